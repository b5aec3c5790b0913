"""The card of a compiled model: what its owner, and whoever is offered it, should know before anything is sent."""

from __future__ import annotations

from histocrypt.encrypted.bundle import forms
from histocrypt.encrypted.extraction import extraction
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.single import Client


def bundle_card(client: Client, said: str) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    client
        The public part; nothing else is told.
    said
        What compiling said of sums and batches.
    """
    about = client.about
    rows = [
        f"| {form.form} | {form.places} "
        f"| 2^{form.parameters.logn} | {form.parameters.log_qp} | {form.evaluation_key_bytes() / 2**20:.1f} MiB |"
        for form in forms(client).values()
    ]
    return "\n".join(
        [
            f"# {about['title']} (`{about['model']}`), compiled for encrypted evaluation",
            "",
            f"Predicts {len(about['panel']['genes'])} genes ({', '.join(about['transforms'])}) for each spot. Study "
            f"{about['study']['name']}, fold {about['fold']}; weights {about['weights_sha256'][:16]}; public part "
            f"{client.hash}: have the model's owner confirm it by another way.",
            "",
            "| form | spots a message | ring | log QP | evaluation keys |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"- At least {SECURITY_BITS} bits against classical attacks, if the evaluator follows the protocol. What "
            "remains under one that lies: `docs/threat_model.md`.",
            f"- What clients can take: {extraction(client)}.",
            f"- Arithmetic: {said.removeprefix('; ')}.",
            "- `client.json` is public and tells statistics of the training slides (ranges, stain, each one's colours, "
            "second stain and sharpness, how well genes were predicted, and means of their pixels or features where "
            "sections are not standardised by themselves); `server/` is secret.",
            "",
        ]
    )
