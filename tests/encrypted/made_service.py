"""A public part and an audit's card as files, made here: nothing is compiled, nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histocrypt.encrypted.bundle import write_client
from histocrypt.encrypted.parameters import choose
from histocrypt.files import write_json

GENES, FEATURES = 6, 40


def look(patient: int, lightness: float, *, laboratory: str = "laboratory 1") -> dict[str, Any]:
    """A training slide as a public part tells of it."""
    colour = [lightness, 25.0, -7.0, 10.0, 8.0, 5.0]
    return {
        "patient": f"patient {patient}",
        "laboratory": laboratory,
        "colour": colour,
        "sharpness": -0.5,
        "blurred": -1.0,
        "coarse": -0.4,
        "stained": True,
        "second": [0.2, 0.8, 0.5],
    }


def public_part(folder: Path, **changes: Any) -> Path:
    """Write ``client.json`` of a head of frozen features; a change to None leaves a field out."""
    genes = [f"G{at}" for at in range(GENES)]
    outputs = [f"log1p:{gene}" for gene in genes]
    about = {
        "model": "fhe_head",
        "title": "Head for encryption, frozen encoder",
        "sees": "features",
        "fold": "fold_1",
        "weights_sha256": "9b" * 32,
        "parameters": choose(1, 1).to_dict(),
        "input": {"kind": "features", "shape": [FEATURES, 16], "encoder": "efficientnet_lite0"},
        "panel": {"genes": genes, "symbols": genes},
        "geometry": {},
        "preprocessing": {},
        "stain": {},
        "normalisation": {"by_section": True},
        "study": {"name": "tiny", "title": "Made for tests", "hash": "ab" * 8},
        "rotations": [16, 32],
        "moduli": ["274878136321", "1073692673"],
        "outputs": outputs,
        "input_range": [-1.0, 1.0],
        "output_range": [0.0, 2.0],
        "transforms": ["log1p"],
        "level": 1,
        "batch": 16,
        "seed": 0,
        "origin": {
            "simulated": False,
            "organs": ["breast"],
            "stains": ["H&E"],
            "laboratories": ["north"],
            "platforms": ["Visium"],
        },
        "gate": {"section 1": look(1, 60.0), "section 2": look(1, 61.5), "section 3": look(2, 68.0)},
        "predictability": {
            "by": "patient",
            "patients": 2,
            "sections": 3,
            "correlation": dict(zip(outputs, [0.8, 0.7, 0.6, 0.5, 0.1, 0.0], strict=True)),
            "measured_in": [2] * GENES,
            "low": [0.5, 0.4, 0.3, 0.2, -0.2, -0.3],
            "high": [0.9, 0.9, 0.8, 0.7, 0.4, 0.3],
            "false_discovery": [0.001, 0.001, 0.01, 0.02, 0.5, 0.9],
            "positive": [True, True, True, False, True, False],
        },
        "intervals": {"value": {"share": 0.9, "patients": 2, "half_widths": [1.0] * GENES}},
    }
    about = {name: value for name, value in (about | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    write_client(folder / "client.json", about)
    return folder / "client.json"


def asked(access: str, value: float, verdict: str, **changes: Any) -> dict[str, Any]:
    """A question of an audit's card with its answer."""
    low = value - 0.1
    return {
        "question": "Was this patient's section among those it was trained on?",
        "access": access,
        "attack": f"attack of {value}",
        "figure": {
            "value": value,
            "low": low,
            "high": value + 0.02,
            "measure": "AUC",
            "chance": 0.5,
            "over": "patients",
        },
        "n": "40 of 2 patients against 40 of 2 patients",
        "verdict": verdict,
        "controls": [{"name": "planted", "passed": True}, {"name": "dealt", "passed": True}],
    } | changes


def audit(folder: Path, *questions: dict[str, Any], **changes: Any) -> Path:
    """Write an audit's folder with the card of the same model."""
    said = {
        "format": "histocrypt privacy card",
        "version": 1,
        "thing": "fhe_head",
        "study": "Made for tests",
        "fold": "fold_1",
        "questions": list(questions),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "privacy_card_fhe_head.json", said)
    return folder
