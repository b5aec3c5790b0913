"""``histocrypt fhe``: the verbs of the model's owner, the key owner and the evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histocrypt.onward import onward

app = typer.Typer(
    help="Encrypted inference between two parties. Model owner: compile. Key owner: check, keygen, encrypt, decrypt. "
    "Evaluator: evaluate. Over a network: serve, token, send. For who decides: card, signing-key, verify-card.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Image = Annotated[str | None, typer.Option(help="Image file, where the section does not name it.")]
Resolution = Annotated[float | None, typer.Option(help="Micrometres per full-resolution pixel.")]
BinSize = Annotated[
    float | None, typer.Option(metavar="UM", help="Side of the squares that Visium HD or Xenium is summed to.")
]
ExpectedPanel = Annotated[Path | None, typer.Option(help="Gene ids you expect, one a line; another panel is refused.")]
Form = Annotated[str | None, typer.Option(help="single: tile by tile; batch: hundreds in one. Default: the faster.")]
Some = Annotated[int | None, typer.Option(min=1, help="Spots to encrypt, evenly spread; default: all.")]
Skip = Annotated[bool, typer.Option("--skip-out-of-range", help="Leave out spots outside the calibrated range.")]


Keys = Annotated[Path, typer.Option(help="Folder of the keys.")]
Predictions = Annotated[Path, typer.Option("-o", "--output", help="Predictions are written here (.h5ad).")]
Noise = Annotated[float, typer.Option(min=0, help="Noise added to values, as a share of a gene's spread; 0: none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies there, whoever made it.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Go on where the model does not fit the tissue or the slide.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Ciphertexts at once; default: one per core (ResNet-18: refreshes, one).")
]


@app.command("compile")
def compile_(
    model: Annotated[Path, typer.Option(help="Folder of a trained model, e.g. outputs/demo/models/fhe_cnn/final.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle: server/ is secret, client.json public.")],
    looks: Annotated[
        bool, typer.Option(help="Tell clients what training slides looked like: they can judge theirs before sending.")
    ] = True,
) -> None:
    """Compile a trained model for encrypted evaluation (model owner)."""
    from histocrypt.encrypted.compile import compile_model

    typer.echo(compile_model(model, output, looks=looks))
    onward(f"give {output / 'client.json'} to the hospital; there: histocrypt fhe keygen --client client.json -o keys")


@app.command()
def keygen(
    client: Annotated[Path, typer.Option(help="The model's public part, client.json.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the keys; keep it to yourself.")],
    spots: Annotated[
        int | None, typer.Option(min=1, help="About how many will be sent; a few go one by one. Default: a section.")
    ] = None,
    form: Form = None,
) -> None:
    """Make keys for a compiled model, for one section (key owner)."""
    from histocrypt.encrypted.key_owner import keygen

    typer.echo(keygen(client, output, spots=spots, form=form))
    onward(f"histocrypt fhe encrypt SECTION --keys {output} -o request")


@app.command()
def encrypt(
    section: Annotated[str, typer.Argument(help="A section in any readable format.")],
    keys: Keys,
    output: Annotated[Path, typer.Option("-o", "--output", help="The request, for the evaluator.")],
    image: Image = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    panel: ExpectedPanel = None,
    skip_out_of_range: Skip = False,
    anyway: Anyway = False,
    spots: Some = None,
) -> None:
    """Cut, normalise, check and encrypt the spots of a section (key owner)."""
    from histocrypt.encrypted.key_owner import encrypt_section

    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "panel": panel, "anyway": anyway}
    typer.echo(encrypt_section(section, keys, output, skip_out_of_range=skip_out_of_range, spots=spots, **how))
    onward(
        f"give {output} and {keys / 'evaluation.keys'} to the evaluator; there: histocrypt fhe evaluate {output.name} "
        "--bundle BUNDLE --evaluation-keys evaluation.keys -o response"
    )


@app.command()
def check(
    section: Annotated[str, typer.Argument(help="A section in any readable format.")],
    client: Annotated[Path, typer.Option(help="The model's public part, client.json.")],
    image: Image = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    panel: ExpectedPanel = None,
    skip_out_of_range: Skip = False,
    anyway: Anyway = False,
    spots: Some = None,
    form: Form = None,
) -> None:
    """Say whether the model is for a section, and what sending it takes; nothing is encrypted (key owner)."""
    from histocrypt.encrypted.check import check_section

    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "panel": panel, "anyway": anyway}
    typer.echo(check_section(client, section, skip_out_of_range=skip_out_of_range, spots=spots, form=form, **how))


@app.command()
def evaluate(
    request: Annotated[Path, typer.Argument(help="The request folder.")],
    bundle: Annotated[Path, typer.Option(help="The compiled model.")],
    evaluation_keys: Annotated[Path, typer.Option(help="The client's evaluation.keys.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The response folder.")],
    workers: Workers = None,
) -> None:
    """Predict on ciphertexts, without being able to decrypt them (evaluator)."""
    from histocrypt.encrypted.evaluator import evaluate_request

    typer.echo(evaluate_request(request, bundle, evaluation_keys, output, workers=workers))
    onward(f"give {output} back; there: histocrypt fhe decrypt {output.name} --keys KEYS -o PRED.h5ad")


@app.command()
def decrypt(
    response: Annotated[Path, typer.Argument(help="The response folder.")],
    keys: Keys,
    output: Predictions,
    noise: Noise = 1e-2,
    overwrite: Overwrite = False,
) -> None:
    """Decrypt predictions (key owner)."""
    from histocrypt.encrypted.key_owner import decrypt_response

    typer.echo(decrypt_response(response, keys, output, noise=noise, overwrite=overwrite))
    onward(f"histocrypt map {output}")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Option(help="The compiled model.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8423,
    token_file: Annotated[
        Path | None, typer.Option(help="Lines NAME TOKEN, one a client; made if missing. Default: in the bundle.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Let others in without TLS.")] = False,
    workers: Workers = None,
    sessions: Annotated[int, typer.Option(min=1, help="Clients at once; fewer where memory is short.")] = 4,
    spots: Annotated[
        int | None,
        typer.Option(min=1, help="Spots in a session; copies and spare places count. Default: 30000 (ResNet-18: 256)."),
    ] = None,
    per_minute: Annotated[int, typer.Option(min=1, help="Spots of a client in a minute.")] = 12_000,
    idle_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Sessions end after so long without a request. Default: 15 (ResNet-18: a day)."),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Where keys and large messages lie for a while (ResNet-18: whole sessions, kept on disk)."),
    ] = None,
    noise: Annotated[float, typer.Option(min=0, help="Noise in answers, as a share of an output's spread.")] = 0.0,
) -> None:
    """Serve a compiled model over HTTP(S); a ResNet-18 by jobs that a killed server goes on with (evaluator)."""
    from histocrypt.encrypted.server import serve

    limits = {"sessions": sessions, "per_minute": per_minute}
    limits |= {} if spots is None else {"spots": spots}
    limits |= {} if idle_minutes is None else {"idle_seconds": 60 * idle_minutes}
    tls = {"certificate": certificate, "private_key": private_key, "insecure_http": insecure_http}
    how = {"workers": workers, "limits": limits, "scratch": scratch, "noise": noise}
    serve(bundle, host=host, port=port, token_file=token_file, **how, **tls)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="The client's name: letters, digits, dots, dashes, underscores.")],
    token_file: Annotated[Path, typer.Option(help="The server's token file; made if missing.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The client's own file. Default: NAME.token beside the other.")
    ] = None,
) -> None:
    """Make a token for a new client: a line in the server's file, and a file for the client (evaluator)."""
    from histocrypt.http.access import add_token

    typer.echo(add_token(name, token_file, output))


@app.command()
def send(
    section: Annotated[str, typer.Argument(help="A section in any readable format.")],
    server: Annotated[str, typer.Option(help="Address of the server, https://host:port.")],
    token_file: Annotated[Path, typer.Option(help="Holds your token; ask the server's owner for it.")],
    keys: Annotated[Path, typer.Option(help="A private folder: keys and what is under way, until all is done.")],
    output: Predictions,
    image: Image = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    panel: ExpectedPanel = None,
    skip_out_of_range: Skip = False,
    anyway: Anyway = False,
    spots: Some = None,
    noise: Noise = 1e-2,
    form: Form = None,
    overwrite: Overwrite = False,
    client: Annotated[str | None, typer.Option(help="Whose token, where the file holds several.")] = None,
    certificate_authority: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) that the server's own is signed by.")
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Send the token to another machine without TLS.")
    ] = False,
) -> None:
    """Encrypt a section, have a server predict it, decrypt the answer (key owner).

    For a ResNet-18 it says first what that costs, and waits for minutes or hours: the same call goes on after a stop.
    """
    from histocrypt.encrypted.client import send_section

    line = {"certificate_authority": certificate_authority, "insecure_http": insecure_http}
    line |= {"token_file": token_file, "client": client, "form": form}
    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "panel": panel}
    how |= {"skip_out_of_range": skip_out_of_range, "overwrite": overwrite, "anyway": anyway}
    typer.echo(send_section(section, server=server, keys=keys, output=output, noise=noise, spots=spots, **line, **how))
    onward(f"histocrypt map {output}")


@app.command()
def card(
    client: Annotated[Path, typer.Argument(help="The model's public part, client.json, or its folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the card: JSON, HTML and a PDF page.")],
    audit: Annotated[
        Path | None, typer.Option(help="Folder of an audit of the same study, e.g. outputs/demo/audit/fold_1.")
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign it with this private ed25519 key.")] = None,
    signer: Annotated[
        Path | None, typer.Option(metavar="KEY.pub", help="Sign it later, by ssh-keygen: this is whose key it will be.")
    ] = None,
) -> None:
    """Write one card for a service: what it is, who learns what, what is known of its leaks (model owner)."""
    from histocrypt.encrypted.service_files import make_card

    typer.echo(make_card(client, output, audit=audit, key=sign, signer=signer))


@app.command("signing-key")
def signing_key(
    key: Annotated[Path, typer.Argument(help="The private key, for you alone; KEY.pub beside it is for everybody.")],
) -> None:
    """Make an ed25519 key to sign cards with, as `ssh-keygen -t ed25519` does (model owner)."""
    from histocrypt.encrypted.signature import make_key, public_path

    made = make_key(key)
    typer.echo(f"{key}: keep it to yourself\n{public_path(key)}: give it to who checks cards; {made.fingerprint}")


@app.command("verify-card")
def verify_card(
    card_file: Annotated[Path, typer.Argument(metavar="CARD", help="service_card.json, its signature beside it.")],
    key: Annotated[Path, typer.Option(help="Public key (KEY.pub) of who must have signed it, got by another way.")],
    client: Annotated[Path | None, typer.Option(help="The public part, client.json, that it must be of.")] = None,
) -> None:
    """Check who signed a card, and that neither it nor its pages were changed (key owner)."""
    from histocrypt.encrypted.service_files import verify_card

    typer.echo(verify_card(card_file, key, client=client))
