"""What the report says of a multi-task model beyond the panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.evaluation import multitask_figures as figures
from histocrypt.evaluation.multitask import load_summary, read_heads
from histocrypt.evaluation.scores import title_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.study import Study

MODEL = "he2gene"


def beyond_panel(
    study: Study, sections: Mapping[str, AnnData], folds: list[dict[str, Any]]
) -> tuple[dict[str, Any] | None, dict[str, Figure]]:
    """Return what the report's section shows, and its pictures by name; None and none for a study without the model.

    Raises
    ------
    InputError
        If notebook 32_multitask was not run.
    """
    import pandas as pd

    if MODEL not in study.models:
        return None, {}
    said, path = load_summary(study.run), study.run.multitask / "signal.csv"
    if said is None or not path.is_file():
        msg = "what he2gene says beyond the panel was not scored"
        raise InputError(msg, file=study.run.multitask, fix="run notebook 32_multitask")
    table = pd.read_csv(path)
    drawn = {"signal": figures.signal(table, level=said["level"]), "smoothing": figures.smoothing(runs_of(said))}
    best = max(said["signal"], key=lambda line: line["better"])
    if best["better"]:
        own = table[table["patient"] == best["patient"]]
        fold, name = _where(folds, sections, best["patient"])
        heads = read_heads(study.run.heads(MODEL, fold))
        drawn["auxiliary"] = figures.marker_maps(heads, sections[name], name, study.run.tiles(name), own)
    scored = [one for one in said["tumour"] if "auc" in one]
    content = {
        "programmes": {},
        **said,
        "title": title_of(MODEL),
        "tumour": scored,
        "without_tumour": sorted({one["why"] for one in said["tumour"] if "why" in one}),
        "proxy": any(one["proxy"] for one in scored),
        "runs": runs_of(said),
        "best_patient": best["patient"],
    }
    return content, drawn


def runs_of(said: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the ablation's scores by name, in the order in which they were trained."""
    return {name: one for name, one in said["ablation"].items() if isinstance(one, dict)}


def _where(folds: list[dict[str, Any]], sections: Mapping[str, AnnData], patient: str) -> tuple[str, str]:
    """Return the fold that holds a patient out, and the first of the patient's sections."""
    for fold in folds:
        for name in fold["test_sections"]:
            if str(sections[name].obs["patient"].iloc[0]) == patient:
                return fold["name"], name
    msg = "was scored, but no fold holds this patient out"
    raise InputError(msg, field=patient, fix="run notebook 32_multitask again")
