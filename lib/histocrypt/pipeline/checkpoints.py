"""Trained models on disk: ``model.json`` says everything, ``weights.safetensors`` holds the arrays. No pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.data.fold_statistics import PANEL, STAIN, TARGETS
from histocrypt.data.folds import FINAL
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.predictors.registry import MODELS
from histocrypt.targets.transforms import TargetStatistics
from histocrypt.trust.gate import Gate

if TYPE_CHECKING:
    from histocrypt.data.folds import Fold
    from histocrypt.predictors.base import Predictor
    from histocrypt.study import Study

FORMAT, VERSION = "histocrypt model", 1
REQUIRED = {
    "model": str,
    "options": dict,
    "training": dict,
    "outputs": list,
    "panel": dict,
    "transforms": list,
    "geometry": dict,
    "preprocessing": dict,
    "stain": dict,
    "target_statistics": dict,
    "study": dict,
    "fold": str,
    "seed": int,
    "chosen": dict,
    "weights": dict,
}
"""What predicting needs, and of which type it is."""

LEARNED_FROM = ("seed", "sections", "demo", "preprocessing", "panel", "target", "folds")
"""Parts of a study that every trained model depends on."""


@dataclass(frozen=True)
class TrainedModel:
    """A model read from its folder, ready to predict."""

    folder: Path
    about: dict[str, Any]
    """The content of ``model.json``."""
    predictor: Predictor
    scaling: TargetStatistics
    """From the loss's units back to the transforms'."""
    gate: Gate | None = None
    """What it knows of its training sections; None: it is of an earlier version."""

    def predict(self, spots: Any) -> np.ndarray:
        """Return (n, n_outputs) float32 predictions in the transforms' own units."""
        return self.scaling.restore(self.predictor.predict(spots))


def save_model(folder: Path, about: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a model: weights first, then ``model.json``, which holds their checksum and so marks the model as whole.

    Parameters
    ----------
    folder
        ``models/<model>/<fold>``.
    about
        What `REQUIRED` lists but ``weights``, and anything else that JSON can hold.
    state
        Named arrays go to ``weights.safetensors``, anything else to ``model.json``.
    """
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(value) for key, value in state.items() if isinstance(value, np.ndarray)}
    values = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    (folder / "model.json").unlink(missing_ok=True)
    weights = folder / "weights.safetensors"
    with atomic_path(weights) as temporary:
        save_file(arrays, temporary)
    content = {"format": FORMAT, "version": VERSION, **about, "state": values, "weights": {"sha256": _sha256(weights)}}
    write_json(folder / "model.json", content)


def read_about(folder: str | Path) -> dict[str, Any]:
    """Read and validate ``model.json``.

    Raises
    ------
    InputError
        If it is missing, truncated, of another version, of an unknown model, or lacks something.
    """
    file = Path(folder) / "model.json"
    if not file.is_file():
        raise _no_model(Path(folder))
    about = read_json(file)
    again = "train the model again"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError("does not describe a trained model", file=file, fix=again)
    if about.get("version") != VERSION:
        raise InputError(
            "was written by another version",
            file=file,
            field="version",
            value=about.get("version"),
            expected=str(VERSION),
            fix=again,
        )
    if about.get("kind") == "stack":
        problem = "is a stack: it combines predictions of other models and cannot be applied to a new section"
        parts = [Path(folder).parents[1] / str(name) / Path(folder).name for name in about.get("families", [])]
        raise InputError(problem, file=folder, expected=_one_of([part for part in parts if _is_model(part)]))
    for key, kind in REQUIRED.items():
        if not isinstance(about.get(key), kind):
            raise InputError("is missing or of the wrong type", file=file, field=key, expected=kind.__name__, fix=again)
    if about["model"] not in MODELS:
        raise unknown_name("model", about["model"], MODELS, file=file, field="model")
    for option in about["options"]:
        if option not in (known := MODELS[about["model"]].options.model_fields):
            raise unknown_name("option", option, known, file=file, field="options")
    return about


def _no_model(given: Path) -> InputError:
    """Return the error for a path that holds no trained model; it names the nearest folders that do."""
    if given.suffix.lower() in (".yaml", ".yml"):
        runs = paths.RunFolder.of(given.stem).root
        problem = "is a study file, not a trained model"
        fix = None if _models_below(runs) else f"train its models first: histocrypt run {given}"
        return InputError(problem, file=given, expected=_one_of(_models_below(runs)), fix=fix)
    if given.is_file():
        problem, near = "is a file, not the folder of a trained model", _models_below(given.parent)
    else:
        problem = "holds no trained model" if given.is_dir() else "does not exist, and holds no trained model"
        near = _models_below(given)
    for parent in given.absolute().parents[:3]:
        near = near or _models_below(parent)
    near = near or _models_below(paths.outputs())
    return InputError(problem, file=given, expected=_one_of(near))


def _models_below(folder: Path) -> list[Path]:
    """Return the folders with a trained model in a folder of one model, of all models, or of runs; `final` first."""
    for pattern in ("", "*/", "*/*/", "models/*/*/", "*/models/*/*/"):
        found = [path.parent for path in folder.glob(f"{pattern}model.json") if _is_model(path.parent)]
        if found:
            return sorted(found, key=lambda path: (path.name != FINAL, path))
    return []


def _is_model(folder: Path) -> bool:
    try:
        about = read_json(folder / "model.json")
    except InputError:
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT and about.get("kind") != "stack"


def _one_of(models: list[Path], most: int = 5) -> str:
    """Return what to give instead, in words."""
    if not models:
        return "the folder of a trained model, e.g. outputs/demo/models/resnet18/final"
    if len(models) == 1:
        return str(models[0])
    if len(models) <= most:
        return f"one of {', '.join(map(str, models))}"
    folder, fold = models[0].parents[1], models[0].name
    names = [model.parent.name for model in models if (model.parents[1], model.name) == (folder, fold)]
    return f"{folder}/MODEL/{fold}, where MODEL is one of {', '.join(names)}"


def load_model(folder: str | Path, *, device: Any = None) -> TrainedModel:
    """Load a trained model. Only ``model.json`` and ``weights.safetensors`` of this very folder are read.

    Raises
    ------
    InputError
        Where either file is missing, truncated, of another version, or does not belong to the other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from histocrypt.predictors.registry import build

    folder = Path(folder)
    about = read_about(folder)
    weights = folder / "weights.safetensors"
    again = "train the model again"
    try:
        state = load_file(weights)
        whole = _sha256(weights) == about["weights"].get("sha256")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"weights are missing or truncated ({' '.join(str(error).split())})", file=weights, fix=again
        ) from error
    if not whole:
        raise InputError("weights are not those that model.json describes", file=weights, field="sha256", fix=again)
    try:
        scaling = TargetStatistics.from_dict(about["target_statistics"])
        if scaling.outputs != tuple(about["outputs"]):
            raise InputError(
                "names outputs that differ from the model's",
                file=folder / "model.json",
                field="target_statistics",
                fix=again,
            )
        predictor = build(
            about["model"], scaling.outputs, settings=about["training"], options=about["options"], device=device
        )
        apart = {name: state.pop(name) for name in [*state] if name.startswith("gate_")}
        gate = Gate.from_dict(about["gate"], apart) if "gate" in about else None
        predictor.load_state({**about.get("state", {}), **state})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise error.of_file(folder, fix=again) from error
        raise InputError(
            f"the model cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            file=folder,
            fix=again,
        ) from error
    return TrainedModel(folder, about, predictor, scaling, gate)


def imported_model(study: Study, model: str, fold: Fold) -> TrainedModel | None:
    """Return the model whose published weights stand for this fold's own; None where there is none that fits now."""
    folder = study.run.imported(model, fold.name)
    if not (folder / "model.json").is_file() or "made_from" not in (about := read_about(folder)):
        return None
    if about["made_from"] != made_from(study, model, fold):
        raise InputError(
            "the imported weights were fitted to other settings of this study",
            file=folder,
            fix="import them again, or delete the folder to train the model",
        )
    return load_model(folder, device="cpu")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_from(study: Study, model: str, fold: Fold) -> str:
    """Hash what a model depends on: parts of the study, its own settings, the fold's files, its teacher's weights.

    Raises
    ------
    InputError
        If it has a teacher that is not trained on this fold, or was trained under other settings.
    """
    digest = hashlib.sha256(study.hash(*LEARNED_FROM).encode())
    facts = [model, study.training_of(model).model_dump(), study.options_of(model), vars(fold)]
    digest.update(json.dumps(facts, sort_keys=True, default=list).encode())
    for name in (PANEL, TARGETS, STAIN):
        digest.update((study.run.fold(fold.name) / name).read_bytes())
    teacher = study.teacher_of(model)
    if teacher is not None:
        digest.update(teacher_of(study, teacher, fold)["weights_sha256"].encode())
    return digest.hexdigest()[:16]


def teacher_of(study: Study, teacher: str, fold: Fold) -> dict[str, Any]:
    """Return the fold's own model of a teacher: ``model``, ``fold``, ``weights_sha256``.

    Raises
    ------
    InputError
        If it is not trained, or was trained under other settings.
    """
    folder = study.run.model(teacher, fold.name)
    fix = f"train {teacher} on fold {fold.name} first"
    if not (folder / "model.json").is_file():
        raise InputError("the teacher is not trained", file=folder, field="teacher", value=teacher, fix=fix)
    about = read_about(folder)
    if about.get("made_from") != made_from(study, teacher, fold):
        raise InputError(
            "the teacher was trained under other settings", file=folder, field="teacher", value=teacher, fix=fix
        )
    return {"model": teacher, "fold": fold.name, "weights_sha256": about["weights"]["sha256"]}


def trained_about(study: Study, model: str, fold: Fold, *, why: str) -> dict[str, Any]:
    """Return what ``model.json`` says of a fold's model, made under the present settings.

    Raises
    ------
    InputError
        If it is not trained (``why`` says what it is needed for), or was trained under other settings.
    """
    folder = study.run.model(model, fold.name)
    fix = f"train {model} on fold {fold.name} first"
    if not (folder / "model.json").is_file():
        raise InputError(f"{why}, and {fold.name} is not trained", file=folder, fix=fix)
    about = read_about(folder)
    if about.get("made_from") != made_from(study, model, fold):
        raise InputError(f"{model} on fold {fold.name} was trained under other settings", file=folder, fix=fix)
    return about
