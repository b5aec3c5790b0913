"""One card for a service: what an encrypted prediction service is, who learns what, what is known of its leaks.

It is made from the public part of a compiled model, which the service gives to everybody, and from what an audit of the
same training wrote: files, so that who has them can make the card again. What no file answers is "not asked". The JSON
is the card; `service_page` shows it on one page, and `service_files` writes and signs both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from histocrypt import __version__
from histocrypt.encrypted.article29 import three_questions
from histocrypt.encrypted.bundle import forms, is_client, load_client
from histocrypt.encrypted.claims import SHOWN, who_learns_what
from histocrypt.encrypted.extraction import spots_to_take
from histocrypt.encrypted.parameters import MAX_LOG_QP, MAX_LOG_QP_SPARSE, SECURITY_BITS, Parameters
from histocrypt.encrypted.service_parts import (
    FORMAT,
    VERSION,
    Attribute,
    Copied,
    Encryption,
    Extraction,
    Figure,
    Form,
    Genes,
    Guessed,
    Learns,
    Membership,
    Returned,
    Ring,
    Service,
    ServiceCard,
    Signed,
    Training,
    Trust,
)
from histocrypt.encrypted.single import Client
from histocrypt.encrypted.told import gate_of
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.trust import conformal, genes

AUDIT_FORMAT = "histocrypt privacy card"
"""Of the JSON that an audit writes of each subject."""
EXTRACTION_FORMAT = "histocrypt extraction"
"""Of what `benchmarks/extraction.py` measured; it lies beside the audit's cards as ``extraction_<model>.json``."""
OUTPUTS = ("decrypted outputs", "black box")
"""What an asker holds, in an audit's words, who sees what a client of the service sees."""
LONGEST = 90
"""Characters of a name that comes from outside; longer ones are cut, so that the page stays one."""
MOST_NAMED = 4
"""Laboratories, organs, platforms that are named; of more, their number is said."""
THIS_MODEL = "Was this patient's section among those it was trained on?"
"""The audit's question on a model itself; others are on its way of training."""


NOT_COVERED = (
    "That the right network computed an answer: encryption does not prove it.",
    "What is done with predictions once they are decrypted, and a hospital's own machine.",
    "Attacks that are not listed here; quantum computers.",
)


def service_card(
    client: str | Path, *, audit: str | Path | None = None, signer: Signed | None = None, date: str = ""
) -> ServiceCard:
    """Return the card of a service.

    Parameters
    ----------
    client
        The public part of a compiled model, ``client.json``, or its folder.
    audit
        Folder of an audit, e.g. ``outputs/demo/audit/fold_1``; without it nothing is known of membership.
    signer
        Who will sign it.
    date
        As ``2026-11-30``; today if empty.

    Raises
    ------
    InputError
        If the public part, or a file of the audit, is missing or not what it should be; or the audit is of another
        study.
    """
    offered = load_client(_public(client))
    audit = None if audit is None else Path(audit)
    membership = _membership(offered, audit)
    parts = {
        "service": _service(offered),
        "training": _training(offered.about),
        "encryption": _encryption(offered),
        "parties": _parties(),
        "returned": _returned(offered, audit),
        "attributes": _attributes(offered.about, audit),
        "membership": membership,
        "extraction": _extraction(offered, audit),
        "trust": _trust(offered.about),
    }
    return ServiceCard(
        format=FORMAT,
        version=VERSION,
        made_by=f"histocrypt {__version__}",
        date=date or datetime.now(UTC).date().isoformat(),
        questions=three_questions(gate=gate_of(offered.about), **parts),
        not_covered=list(NOT_COVERED),
        signer=signer,
        **parts,
    )


def parse_card(content: bytes, *, file: Path | str) -> ServiceCard:
    """Read the JSON of a card.

    Raises
    ------
    InputError
        If it is none, of another version, or lacks something.
    """
    try:
        return ServiceCard.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, expected = ".".join(map(str, first["loc"])) or None, f"what version {VERSION} of a card holds"
        raise InputError(
            f"is not a service card, or of another version ({first['msg']})", file=file, field=field, expected=expected
        ) from error


def _public(path: str | Path) -> Path:
    """Return the file of a public part; a folder may be a bundle, or what lies in a hospital's folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = path / "client.json"
    if not found.is_file():
        fix = "name the folder that `histocrypt fhe compile` wrote, or its client.json"
        raise InputError("holds no public part of a compiled model", file=path, field="client.json", fix=fix)
    return found


def _cut(text: Any) -> str:
    """Return a name from outside on one line and not too long for the page."""
    text = " ".join(str(text).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "\u2026"


def _some(names: list[Any]) -> list[str]:
    shown = [_cut(name) for name in names[:MOST_NAMED]]
    return shown if len(names) <= MOST_NAMED else [*shown, f"{len(names) - MOST_NAMED} more"]


def _service(client: Client) -> Service:
    about = client.about
    return Service(
        title=_cut(about["title"]),
        model=_cut(about["model"]),
        public_part=client.hash,
        weights_sha256=_cut(about["weights_sha256"]),
        genes=len(about["panel"]["genes"]),
        transforms=_some(about["transforms"]),
        sees=about["sees"],
        encoder=_cut(about["input"]["encoder"]) if about["sees"] == "features" else None,
        study=_cut(about["study"]["name"]),
        study_title=_cut(about["study"].get("title") or about["study"]["name"]),
        study_hash=_cut(about["study"].get("hash", "")),
        fold=_cut(about["fold"]),
    )


def _training(about: Mapping[str, Any]) -> Training:
    origin, known = about.get("origin", {}), about.get("predictability", {})
    looks = about.get("gate", {})
    people = {look["patient"] for look in looks.values()} - {""}
    return Training(
        simulated=origin.get("simulated"),
        patients=known.get("patients") or len(people) or None,
        sections=known.get("sections") or len(looks) or None,
        **{name: _some(origin.get(name, [])) for name in ("organs", "stains", "laboratories", "platforms")},
    )


def _encryption(client: Client) -> Encryption:
    assumes = ["ring learning with errors is hard", "circular security: keys may encrypt themselves"]
    if client.parameters.bootstrapping is not None:
        assumes.append("while refreshing, a secret of weight 32 keeps 128 bits (Bossuat et al., 2022)")
    return Encryption(
        scheme="CKKS",
        security_bits=SECURITY_BITS,
        attacks="classical",
        estimator=None,
        assumes=assumes,
        forms=[
            Form(
                form=form.form,
                places=form.places,
                rings=_rings(form.parameters),
                evaluation_key_bytes=form.evaluation_key_bytes(),
            )
            for form in forms(client).values()
        ],
    )


def _rings(parameters: Parameters) -> list[Ring]:
    table = "Bossuat et al. (2024), uniform ternary secret"
    ring = partial(Ring, table=table)
    found = [ring(log2_degree=parameters.logn, log2_modulus=parameters.log_qp, most=MAX_LOG_QP[parameters.logn])]
    again = parameters.bootstrapping
    if again is not None:
        sparse = MAX_LOG_QP_SPARSE.get((again.logn, again.h))
        most = MAX_LOG_QP[again.logn] if sparse is None else sparse
        said = table if sparse is None else "parameter sets published with Lattigo, sparse secret"
        found.append(Ring(log2_degree=again.logn, log2_modulus=again.log_qp, most=most, table=said))
    return found


PARTIES = {
    "evaluator": "The operator",
    "key owner": "The hospital",
    "another client": "Another hospital",
    "a listener on the line": "A listener",
}
"""Parties of the threat model, as a card calls them."""


def _parties() -> list[Learns]:
    return [
        Learns(
            party=PARTIES[one.party],
            learns=one.learns,
            shown=shown,
            what=one.brief,
            against=one.against,
            tests=list(one.tests),
        )
        for shown, claims in ((False, who_learns_what()), (True, SHOWN))
        for one in claims
    ]


def _membership(client: Client, audit: Path | None) -> Membership:
    about, nothing = client.about, partial(Membership, asked=False, figures=[], files={})
    if audit is None:
        return nothing(of="no audit was named")
    if not audit.is_dir():
        raise InputError("is not a folder", file=audit, field="--audit", expected="the folder of an audit")
    path = audit / f"privacy_card_{about['model']}.json"
    if not path.is_file():
        others = sorted(audit.glob("privacy_card_*.json"))
        if not others:
            fix = "name the folder that 62_membership_audit wrote, e.g. outputs/demo/audit/fold_1"
            raise InputError("has no audit card", file=audit, field="--audit", fix=fix)
        return nothing(of="the audit did not ask it of this model")
    content = path.read_bytes()
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != AUDIT_FORMAT or said.get("thing") != about["model"]:
        raise InputError("is not the card of an audit of this model", file=path, field="format", expected=AUDIT_FORMAT)
    names = (about["study"]["name"], about["study"].get("title"))
    if said.get("study") not in names:
        problem, value = "belongs to another study", said.get("study")
        raise InputError(problem, file=path, field="study", value=value, expected=" or ".join(filter(None, names)))
    try:
        figures = [_figure(asked) for asked in said["questions"] if asked["access"] in OUTPUTS]
        fold = _cut(said["fold"])
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError("lacks a part of an audit's card", file=path, field="questions") from error
    if not figures:
        return nothing(of="the audit did not ask it of what a client sees")
    figures.sort(key=_strongest_first)
    files = {path.name: hashlib.sha256(content).hexdigest()}
    return Membership(asked=True, of=_asked_of(client, audit, fold), figures=figures, files=files)


def _strongest_first(figure: Figure) -> tuple[float, ...]:
    """Return the order of an audit: a leak that was found, then whose controls passed, by the interval's lower end."""
    found = {"leak": 0, "signs": 1}.get(figure.verdict, 2)
    low = -1.0 if figure.low is None else figure.low
    return found, figure.question != THIS_MODEL, not figure.controls_passed, -low


def _asked_of(client: Client, audit: Path, fold: str) -> str:
    """Return whose outputs an audit looked at: those of these weights, or of others of the same training."""
    if fold != client.about["fold"]:
        return f"not this model, but the same training on other patients ({fold})"
    for path in sorted((audit / "decrypted").glob("*/**/client.json")):
        if is_client(path) and read_json(path).get("hash") == client.hash:
            return "this model: the audit decrypted its outputs"
    return f"a model of this name, study and fold ({fold}); that its weights are these was not compared"


def _figure(asked: Mapping[str, Any]) -> Figure:
    figure = asked["figure"]
    numbers = {name: figure[name] for name in ("measure", "value", "low", "high", "chance", "over")}
    words = {name: _cut(asked[name]) for name in ("question", "access", "attack", "n", "verdict")}
    return Figure(**words, **numbers, controls_passed=all(one["passed"] for one in asked["controls"]))


def _returned(client: Client, audit: Path | None) -> Returned | None:
    """Return what an audit got back of tiles from ciphertexts of their features, the better of its decoders."""
    path = None if audit is None else audit / "embeddings.json"
    if client.about["sees"] != "features" or path is None or not path.is_file():
        return None
    said = read_json(path)
    try:
        if "missing" in said["encryption"]:  # a machine without the engine asked
            return None
        found = {name: row["found"] for name, row in said["rows"].items()}
        clear = max((found[name] for name in found if f"{name}, ciphertexts" in found), key=lambda one: one[0])
        hidden = max((found[name] for name in found if name.endswith(", ciphertexts")), key=lambda one: one[0])
        numbers = {"tiles": said["hospital"], "chance": said["chance"], "ciphertext": hidden, "clear": clear}
        return Returned(encoder=_cut(said["encoder"]), **numbers)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError("lacks the result on reconstructed tiles", file=path, field="rows") from error


def _attributes(about: Mapping[str, Any], audit: Path | None) -> list[Attribute]:
    """Return what an audit guessed of patients from this model's predictions, what is guessed best first."""
    path = None if audit is None else audit / "attributes.json"
    if path is None or not path.is_file():
        return []
    said = read_json(path)
    try:
        asked = said["predictors"].get(about["model"], []) if said["fold"] == about["fold"] else []
        found = [
            Attribute(
                attribute=_cut(one["attribute"]),
                value=_cut(one["value"]),
                patients=sum(one["patients"].values()),
                outputs=_guessed(one["told"].get("outputs")),
                image=_guessed(one["told"].get("image")),
                beyond=_guessed(one["beyond"].get("outputs - image")),
                controls_passed=one["controls_passed"],
            )
            for one in asked
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError("lacks the result on guessed attributes of patients", file=path, field="predictors") from error
    return sorted(found, key=lambda one: 0.0 if one.outputs is None else -one.outputs.auc)


def _guessed(told: Mapping[str, Any] | None) -> Guessed | None:
    return None if told is None else Guessed(**{name: told[name] for name in ("auc", "low", "high", "p_value")})


def _extraction(client: Client, audit: Path | None) -> Extraction:
    from histocrypt.encrypted.sessions import Limits

    taken, limit, copied = spots_to_take(client), Limits.per_minute, _copied(client, audit)
    messages: dict[str, int] = {}
    minutes: dict[str, float] = {}
    for form in forms(client).values() if taken else ():
        number = -(-taken // form.places)
        if number < messages.get(form.form, number + 1):
            messages[form.form] = number
            minutes[form.form] = round(number * form.places / limit, 2)
    if taken:
        basis = "derived: a linear map of d numbers is known from its answers to zero and to d independent inputs"
    elif copied:
        basis = "measured: copies were trained from answers for slides of the asker's own"
    else:
        basis = "not measured: a copy can be trained from answers, and no number of questions is known"
    return Extraction(spots=taken, messages=messages, minutes=minutes, per_minute=limit, copied=copied, basis=basis)


def _copied(client: Client, audit: Path | None) -> list[Copied]:
    """Return what was measured of copying these weights, the best copy first."""
    path = None if audit is None else audit / f"extraction_{client.about['model']}.json"
    if path is None or not path.is_file():
        return []
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != EXTRACTION_FORMAT:
        expected = "what benchmarks/extraction.py writes"
        raise InputError("is not a measurement of copies", file=path, field="format", expected=expected)
    if said.get("weights_sha256") != client.about["weights_sha256"]:
        return []
    try:
        found = [Copied(**one) for one in said["copied"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError("is not a measurement of copies", file=path, field="copied") from error
    return sorted(found, key=lambda one: -one.correlation)


def _trust(about: Mapping[str, Any]) -> Trust:
    known, gate = about.get("predictability"), gate_of(about)
    by = ["colours", "stain", "sharpness"] if gate else []
    by += ["features"] if gate and "shift" in about else []
    told = []
    for transform in about["transforms"] if known else ():
        columns = genes.columns(known, transform, about["panel"]["genes"])
        r = columns[genes.TOLD]
        told.append(
            Genes(
                transform=_cut(transform),
                of=len(r),
                trusted=int(columns[genes.TRUSTED].sum()) if genes.TRUSTED in columns else None,
                median=round(float(np.nanmedian(r)), 3) if np.isfinite(r).any() else None,
            )
        )
    return Trust(
        slides_judged=gate is not None,
        judged_by=by,
        genes=told,
        genes_promise=genes.promise(known) if known and "false_discovery" in known else None,
        intervals={kind: conformal.promise(said) for kind, said in about.get("intervals", {}).items()},
    )
