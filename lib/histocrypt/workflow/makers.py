"""Which executed notebook stands for an artifact of the run folder."""

from __future__ import annotations

import re
from pathlib import Path

from histocrypt.models.registry import BASELINES, STACKS
from histocrypt.paths import RunFolder
from histocrypt.study import Study

_PREDICTED = re.compile(r"^(?P<fold>.+?)\.(?:test|validation|samples)(?:\.heads)?$")
_INNER = re.compile(r"^inner_\d+(\.|$)")


def makers(run: RunFolder, path: Path) -> list[Path] | None:
    """Return the executed notebooks whose stages make an artifact; None where no stage is known to make it.

    Parameters
    ----------
    run
        The run folder.
    path
        A file in it.

    Returns
    -------
    list of Path
        Most often one. Several stages write to ``encrypted/agreement.json`` and to the folders of inner folds; those
        of them that have not run are left out.
    """
    first, *rest = path.relative_to(run.root).parts
    names = _NAMES.get(first, lambda _: None)([*rest])
    if names is None:
        return None
    found: list[Path] = []
    for name in names:
        found += sorted(run.notebooks.glob(f"{name}.ipynb")) if "*" in name else [run.notebooks / f"{name}.ipynb"]
    return found


def wanted(study: Study, notebook: Path) -> bool:
    """Return whether an executed notebook is of a stage and a model that the study has."""
    stage, _, rest = notebook.stem.partition("__")
    model = rest.partition("__")[0]
    return {
        "30_training": model in {_family(name) for name in study.model_names},
        "32_multitask": "he2gene" in study.models,
        "34_diffusion": "stem" in study.models,
        "38_inner_training": model in {_family(name) for name in study.inner_models},
        "40_stacking": study.stacking is not None,
        "50_fhe_inference": model in study.models,
        "60_synthetic_data": study.synthesis is not None,
        "62_membership_audit": study.audit is not None,
    }.get(stage, True)


def _family(model: str) -> str:
    return "baselines" if model in BASELINES else model


def _of_fold(model: str, fold: str, *, inner: bool) -> str:
    if model in STACKS:
        return f"40_stacking__{fold}"
    return f"{'38_inner_training' if inner else '30_training'}__{_family(model)}__{fold}"


def _model(rest: list[str]) -> list[str] | None:
    if len(rest) < 3:
        return None
    model, fold, *inside = rest
    if inside == ["README.md"]:
        return ["70_evaluation"]
    return [_of_fold(model, fold, inner=bool(_INNER.match(inside[0])))]


def _prediction(rest: list[str]) -> list[str] | None:
    if len(rest) == 3 and _INNER.match(rest[2]):
        return [_of_fold(rest[0], rest[1], inner=True)]
    named = _PREDICTED.match(Path(rest[1]).stem) if len(rest) == 2 else None
    if named is None:
        return None
    return ["34_diffusion"] if ".samples" in rest[1] else [_of_fold(rest[0], named["fold"], inner=False)]


def _folds(rest: list[str]) -> list[str]:
    return [f"38_inner_training__*__{rest[0]}"] if len(rest) > 1 and _INNER.match(rest[1]) else ["22_folds"]


def _of_section(rest: list[str]) -> list[str] | None:
    return [f"20_preprocessing__{Path(rest[0]).stem}"] if len(rest) == 1 else None


def _trial(rest: list[str]) -> list[str] | None:
    if len(rest) == 1:  # all of them together
        return ["50_fhe_inference__*"]
    return [f"50_fhe_inference__{rest[0]}__{rest[1]}"] if len(rest) > 2 else None


_NAMES = {
    "demo_tissue": lambda _: ["10_eda"],
    "eda": lambda _: ["10_eda"],
    "sections": _of_section,
    "tiles": _of_section,
    "stain": _of_section,
    "folds.json": lambda _: ["22_folds"],
    "folds": _folds,
    "models": _model,
    "predictions": _prediction,
    "multitask": lambda _: ["32_multitask"],
    "stacking": lambda rest: [f"40_stacking__{Path(rest[0]).stem}"],
    "encrypted": _trial,
    "synthesis": lambda _: ["60_synthetic_data"],
    "audit": lambda _: ["62_membership_audit"],
    "evaluation": lambda rest: ["34_diffusion" if rest[0].startswith("distribution_") else "70_evaluation"],
    "report.html": lambda _: ["70_evaluation"],
    "notebooks": lambda rest: [Path(rest[0]).stem] if len(rest) == 1 else None,
}
"""Names of executed notebooks from the rest of an artifact's path, by the first part of that path."""
