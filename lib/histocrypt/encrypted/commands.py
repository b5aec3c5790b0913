"""``histocrypt fhe``: the verbs of the model's owner, the key owner and the evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histocrypt.answer import Json, answer
from histocrypt.onward import onward

app = typer.Typer(
    help="Encrypted inference between two parties. Model owner: compile. Key owner: check, keygen, encrypt, decrypt. "
    "Evaluator: evaluate. Over a network: serve, token, send. For those who decide: card, signing-key, verify-card.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Section = Annotated[str, typer.Argument(metavar="SECTION", help="A section in any readable format.")]
PublicPart = Annotated[Path, typer.Option(metavar="FILE", help="The model's public part, client.json.")]
Image = Annotated[str | None, typer.Option(metavar="FILE", help="Image, if the section does not name it.")]
Resolution = Annotated[float | None, typer.Option(metavar="UM", help="Micrometres per full-resolution pixel.")]
BinSize = Annotated[
    float | None, typer.Option(metavar="UM", help="Side of the squares that Visium HD or Xenium is summed to.")
]
ExpectedPanel = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Gene ids, one per line; refuse a model with another panel.")
]
Form = Annotated[
    str | None, typer.Option(metavar="FORM", help="single: one tile per message; batch: hundreds. Default: the faster.")
]
Some = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Encrypt only N spots, evenly spread; default: all.")
]
Skip = Annotated[bool, typer.Option("--skip-out-of-range", help="Leave out spots outside the calibrated range.")]


Keys = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the keys.")]
Predictions = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Predictions to write (.h5ad).")]
Noise = Annotated[
    float, typer.Option(min=0, metavar="SHARE", help="Noise added to values, as a share of a gene's spread; 0: none.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files, even those of others.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Go on although the model does not fit the tissue or slide.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Ciphertexts at once; default: one per core (ResNet-18: refreshes, one)."),
]


@app.command("compile")
def compile_(
    model: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A trained model, e.g. outputs/demo/models/fhe_cnn/final.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="The bundle: server/ is secret, client.json public."),
    ],
    looks: Annotated[
        bool, typer.Option(help="Describe the training slides, so that clients can judge theirs before sending.")
    ] = True,
) -> None:
    """Compile a trained model for encryption (model owner)."""
    from histocrypt.encrypted.compile import compile_model

    typer.echo(compile_model(model, output, looks=looks))
    onward(
        f"give {output / 'client.json'} to the key owner (hospital); there: histocrypt fhe keygen --client client.json "
        f"-o keys. Or serve it: histocrypt fhe serve --bundle {output}"
    )


@app.command()
def keygen(
    client: PublicPart,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the keys; keep it secret.")
    ],
    spots: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="About how many spots will be sent; default: a whole section."),
    ] = None,
    form: Form = None,
) -> None:
    """Make keys for one section (key owner)."""
    from histocrypt.encrypted.key_owner import keygen

    typer.echo(keygen(client, output, spots=spots, form=form))
    onward(f"histocrypt fhe encrypt SECTION --keys {output} -o request")


@app.command()
def encrypt(
    section: Section,
    keys: Keys,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The request, for the evaluator.")],
    image: Image = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    panel: ExpectedPanel = None,
    skip_out_of_range: Skip = False,
    anyway: Anyway = False,
    spots: Some = None,
) -> None:
    """Encrypt the spots of a section (key owner).

    Cuts and normalises its tiles, and checks whether the model is for it.
    """
    from histocrypt.encrypted.key_owner import encrypt_section

    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "panel": panel, "anyway": anyway}
    typer.echo(encrypt_section(section, keys, output, skip_out_of_range=skip_out_of_range, spots=spots, **how))
    onward(
        f"give {output} and {keys / 'evaluation.keys'} to the evaluator; there: histocrypt fhe evaluate {output.name} "
        "--bundle BUNDLE --evaluation-keys evaluation.keys -o response"
    )


@app.command()
def check(
    section: Section,
    client: PublicPart,
    image: Image = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    panel: ExpectedPanel = None,
    skip_out_of_range: Skip = False,
    anyway: Anyway = False,
    spots: Some = None,
    form: Form = None,
    json: Json = False,
) -> None:
    """Check a section before sending it (key owner).

    Says whether the model is for it, and what sending takes. Nothing is encrypted.
    """
    from histocrypt.encrypted.check import check_section, render

    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "panel": panel, "anyway": anyway}
    how |= {"skip_out_of_range": skip_out_of_range, "spots": spots, "form": form}
    answer(
        lambda: check_section(client, section, **how),
        render,
        as_json=json,
        then=lambda _: f"histocrypt fhe keygen --client {client} -o keys, or over a network: histocrypt fhe send -h",
    )


@app.command()
def evaluate(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="Folder of the request.")],
    bundle: Annotated[Path, typer.Option(metavar="FOLDER", help="The compiled model.")],
    evaluation_keys: Annotated[Path, typer.Option(metavar="FILE", help="The key owner's evaluation.keys.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the response.")],
    workers: Workers = None,
) -> None:
    """Predict on ciphertexts (evaluator).

    The evaluator cannot decrypt them.
    """
    from histocrypt.encrypted.evaluator import evaluate_request

    typer.echo(evaluate_request(request, bundle, evaluation_keys, output, workers=workers))
    onward(f"give {output} back to the key owner; there: histocrypt fhe decrypt {output.name} --keys KEYS -o PRED.h5ad")


@app.command()
def decrypt(
    response: Annotated[Path, typer.Argument(metavar="RESPONSE", help="Folder of the response.")],
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
    bundle: Annotated[Path, typer.Option(metavar="FOLDER", help="The compiled model.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0: any free one.")
    ] = 8423,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines NAME TOKEN, one per client; made if missing. Default: in the bundle."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS certificate (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Accept other machines without TLS.")] = False,
    workers: Workers = None,
    sessions: Annotated[int, typer.Option(min=1, metavar="N", help="Clients at once; fewer if memory is short.")] = 4,
    spots: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Spots per session, with copies and padding. Default: 30000 (ResNet-18: 256)."
        ),
    ] = None,
    per_minute: Annotated[int, typer.Option(min=1, metavar="N", help="Spots per client and minute.")] = 12_000,
    idle_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="MINUTES",
            help="End a session after so long without a request. Default: 15 (ResNet-18: a day).",
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for keys and large messages (ResNet-18: for whole sessions)."),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0, metavar="SHARE", help="Noise added to answers, as a share of an output's spread.")
    ] = 0.0,
) -> None:
    """Serve a compiled model over HTTP(S) (evaluator).

    A ResNet-18 runs as jobs; a server that was killed resumes them when it is started again.
    """
    from histocrypt.encrypted.server import serve

    limits = {"sessions": sessions, "per_minute": per_minute}
    limits |= {} if spots is None else {"spots": spots}
    limits |= {} if idle_minutes is None else {"idle_seconds": 60 * idle_minutes}
    tls = {"certificate": certificate, "private_key": private_key, "insecure_http": insecure_http}
    how = {"workers": workers, "limits": limits, "scratch": scratch, "noise": noise}
    serve(bundle, host=host, port=port, token_file=token_file, **how, **tls)


@app.command()
def token(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The client's name: letters, digits, dots, dashes, underscores."),
    ],
    token_file: Annotated[Path, typer.Option(metavar="FILE", help="The server's token file; made if missing.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The client's own file. Default: NAME.token beside it."),
    ] = None,
) -> None:
    """Make a token for a new client (evaluator).

    Adds a line to the server's file and writes a file for the client.
    """
    from histocrypt.http.access import add_token

    typer.echo(add_token(name, token_file, output))
    onward(
        f"give {output or token_file.with_name(f'{name}.token')} to {name}; there: histocrypt fhe send SECTION "
        "--server https://HOST:PORT --token-file FILE --keys keys -o PRED.h5ad"
    )


@app.command()
def send(
    section: Section,
    server: Annotated[str, typer.Option(metavar="URL", help="Address of the server, https://host:port.")],
    token_file: Annotated[
        Path, typer.Option(metavar="FILE", help="File with your token; ask the server's owner for it.")
    ],
    keys: Annotated[Path, typer.Option(metavar="FOLDER", help="A private folder for keys and unfinished work.")],
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
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Whose token, if the file holds several.")] = None,
    certificate_authority: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate (PEM) that signed the server's own.")
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Send the token to another machine without TLS.")
    ] = False,
) -> None:
    """Encrypt, send and decrypt over a network (key owner).

    The server predicts on ciphertexts. A ResNet-18 takes minutes to hours, and the cost is printed first; after an
    interruption, run the same command again to resume.
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
    client: Annotated[
        Path, typer.Argument(metavar="CLIENT", help="The model's public part, client.json, or its folder.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the card: JSON, HTML and PDF.")
    ],
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="An audit of the same study, e.g. outputs/demo/audit/fold_1."),
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign it with this private ed25519 key.")] = None,
    signer: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pub", help="To sign it later with ssh-keygen: the public key of the signer."),
    ] = None,
) -> None:
    """Write the card of a service (model owner).

    It says what the service is, who learns what, and what is known of its leaks.
    """
    from histocrypt.encrypted.service_files import make_card

    typer.echo(make_card(client, output, audit=audit, key=sign, signer=signer))
    onward(
        f"give {output} to the key owner; there: histocrypt fhe verify-card {output.name}/service_card.json --key "
        "KEY.pub"
        if sign
        else f"histocrypt fhe signing-key KEY, then: histocrypt fhe card {client} -o {output} --sign KEY"
    )


@app.command("signing-key")
def signing_key(
    key: Annotated[
        Path, typer.Argument(metavar="KEY", help="Private key to write; keep it secret. KEY.pub beside it is public.")
    ],
) -> None:
    """Make a key to sign cards with (model owner).

    An ed25519 key, as `ssh-keygen -t ed25519` makes.
    """
    from histocrypt.encrypted.signature import make_key, public_path

    made = make_key(key)
    typer.echo(f"{key}: keep it secret\n{public_path(key)}: give it to those who check cards; {made.fingerprint}")
    onward(f"histocrypt fhe card CLIENT -o card --sign {key}")


@app.command("verify-card")
def verify_card(
    card_file: Annotated[Path, typer.Argument(metavar="CARD", help="service_card.json, its signature beside it.")],
    key: Annotated[
        Path, typer.Option(metavar="KEY.pub", help="Public key of the signer, received by another way than the card.")
    ],
    client: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The public part, client.json, that the card must describe.")
    ] = None,
    json: Json = False,
) -> None:
    """Check who signed a card (key owner).

    Also checks that neither the card nor its pages were changed.
    """
    from histocrypt.encrypted.service_files import render_verified, verify_card

    answer(
        lambda: verify_card(card_file, key, client=client),
        render_verified,
        as_json=json,
        then=lambda _: f"histocrypt fhe check SECTION --client {client or 'client.json'}",
    )
