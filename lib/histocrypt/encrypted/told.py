"""What the public part of a compiled model says of its trust, without what is known of single training patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.predictors.predictability import without_patients
from histocrypt.trust import conformal, genes
from histocrypt.trust.gate import Gate, own_features, without_names
from histocrypt.trust.origin import origin_words

PUBLIC = ("panel", "transforms", "geometry", "preprocessing", "stain", "study", "fold", "seed")
"""What clients learn of ``model.json`` as it stands."""


def told_of(about: Mapping[str, Any], gate: Gate | None, *, looks: bool = True) -> dict[str, Any]:
    """Return what clients learn of ``model.json`` and the gate beside it; what its model does not say is left out.

    ``origin``, ``gate`` and ``shift`` are for who would send a slide, before anything is sent. ``predictability`` and
    ``intervals`` are for who reads what came back. Names of sections, patients and laboratories are left out of the
    gate, and of features there is one mean over all sections; each patient's correlations and errors stay with the
    model. Who has a slide can tell from ``gate`` whether its patient was trained on, so that a model's owner may keep
    gate and shift back (not ``looks``). See ``docs/threat_model.md``.
    """
    gate, about = (gate, about) if looks else (None, {key: value for key, value in about.items() if key != "gate"})
    told = {key: about[key] for key in PUBLIC}
    told |= {"origin": about["origin"]} if "origin" in about else {}
    told |= {"gate": without_names(about["gate"])} if "gate" in about else {}
    told |= {"predictability": without_patients(about["predictability"])} if "predictability" in about else {}
    if gate is not None and (shift := gate.without_sections()) is not None:
        told["shift"] = shift
    if "intervals" in about:
        told["intervals"] = {kind: conformal.without_patients(said) for kind, said in about["intervals"].items()}
    return told


def gate_of(about: Mapping[str, Any]) -> Gate | None:
    """Return the gate in a public part; None for a model of an earlier version."""
    return Gate.from_told(about["gate"], about.get("shift")) if "gate" in about else None


def judged_features(about: Mapping[str, Any]) -> str:
    """Return the name of the features that the gate in a public part looks at; "" for a model that reads tiles."""
    return own_features(about["input"]["encoder"]) if about["sees"] == "features" else ""


def check_told(about: Mapping[str, Any], *, file: Path | str) -> None:
    """Refuse a public part whose words on trust cannot be read: whoever serves it wrote them.

    Raises
    ------
    InputError
        That names the field.
    """
    for field, read in (
        ("origin", _read_origin),
        ("gate", _read_gate),
        ("shift", _read_shift),
        ("predictability", _read_predictability),
        ("intervals", _read_intervals),
    ):
        try:
            if field in about:
                read(about)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            problem, fix = "is not what `histocrypt fhe compile` writes", "ask the model's owner for it again"
            raise InputError(problem, file=file, field=field, fix=fix) from error


def _read_origin(about: Mapping[str, Any]) -> None:
    origin_words(about["origin"])


def _read_gate(about: Mapping[str, Any]) -> None:
    looks = list(Gate.from_dict(about["gate"], {}).looks.values())
    np.stack([look.colour for look in looks]).reshape(len(looks), 6)


def _read_shift(about: Mapping[str, Any]) -> None:
    gate = gate_of(about)
    if gate.centre.shape != gate.sd.shape or gate.sd.ndim != 1 or not np.isfinite([*gate.centre, *gate.sd]).all():
        raise ValueError


def _read_predictability(about: Mapping[str, Any]) -> None:
    said = about["predictability"]
    for transform in about["transforms"]:
        genes.columns(said, transform, about["panel"]["genes"])
    _ = said["sections"], genes.promise(said)


def _read_intervals(about: Mapping[str, Any]) -> None:
    for kind in about["intervals"].values():
        conformal.widths_of(kind).reshape(len(about["outputs"]))
        conformal.promise(kind)
