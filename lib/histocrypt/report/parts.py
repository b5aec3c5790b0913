"""What the report says of a model that predicts distributions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.evaluation import family_figures as figures
from histocrypt.evaluation import wording
from histocrypt.evaluation.figures import INK, LINE, MUTED, ROLE, canvas, embed, save, style
from histocrypt.evaluation.he2gene import load_summary, read_heads
from histocrypt.evaluation.scores import title_of
from histocrypt.evaluation.stem import MEASURES, load_distributions
from histocrypt.files import read_json
from histocrypt.predictors.registry import STACKS
from histocrypt.workflow.record import added_up, belonging, read_record
from histocrypt.workflow.runs import about, duration, gib, when

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.evaluation.scores import Scores
    from histocrypt.study import Study

# ---- distribution report


SHOWN = {"variation": "{model}.svg", "maps": "{model}_maps.png"}
"""Pictures that notebook 34_diffusion leaves beside its scores."""

COUNTED = {
    "pearson": "correlation",
    "mse": "squared error",
    "crps": "CRPS",
    "rvd": "variance of the means (RVD)",
    "rvd_samples": "variance of single draws (RVD)",
    "correlation_error_samples": "correlation between genes, of single draws",
    "moran_samples": "spatial autocorrelation, of single draws",
}
"""What the sentence compares with ridge; single draws stand against ridge's one prediction."""

HIGHER = {"pearson"}


def distributions(study: Study) -> list[dict[str, Any]]:
    """Return what the page shows of each model whose draws were scored: sentence, columns, rows and pictures."""
    found = []
    for content in load_distributions(study):
        pictures = {}
        for name, file in SHOWN.items():
            path = study.run.evaluation / f"distribution_{file.format(model=content['model'])}"
            if path.is_file():
                pictures[name] = embed(path)
        encoder = study.options_of(content["model"]).get("encoder", "efficientnet_lite0")
        ridge = study.options_of("encoder_ridge").get("encoder", "efficientnet_lite0")
        same = "the same features" if encoder == ridge else f"features of another encoder ({ridge}, not {encoder})"
        about = {"sentences": sentences(content), "columns": list(MEASURES.items()), "features": same}
        found.append({**content, **about, "pictures": pictures})
    return found


def sentences(content: dict[str, Any]) -> list[str]:
    """Say whether a model beats ridge in correlation, and what each of the two does better."""
    rows = {row["model"]: row for row in content["rows"]}
    mine, ridge = rows[content["model"]], rows["encoder_ridge"]
    won, lost = [], []
    for key, words in COUNTED.items():
        theirs = ridge[key.removesuffix("_samples")]
        if mine[key] is None or theirs is None:
            continue
        better = mine[key] > theirs if key in HIGHER else mine[key] < theirs
        (won if better else lost).append(words)
    verb = "reaches a higher" if mine["pearson"] > ridge["pearson"] else "does not reach the"
    first = (
        f"{content['title']} {verb} correlation {'than' if 'higher' in verb else 'of'} ridge on frozen features: "
        f"{mine['pearson']:.3f} and {ridge['pearson']:.3f}."
    )
    second = f"It does better in: {', '.join(won) or 'nothing'}. Ridge does better in: {', '.join(lost) or 'nothing'}."
    held = (mine["coverage_50"], mine["coverage_90"])
    third = f"Its 50 % and 90 % intervals hold {100 * held[0]:.0f} % and {100 * held[1]:.0f} % of what was measured."
    return [first, second, third]


# ---- multitask report
# What the report says of a multi-task model beyond the panel.


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
        raise InputError(
            "what he2gene says beyond the panel was not scored",
            file=study.run.multitask,
            fix="run notebook 32_multitask",
        )
    table = pd.read_csv(path)
    drawn = {"signal": figures.signal(table, level=said["level"]), "smoothing": figures.smoothing(runs_of(said))}
    best = max(said["signal"], key=lambda line: line["better"])
    if best["better"]:
        own = table[table["patient"] == best["patient"]]
        fold, name = _where(folds, sections, best["patient"])
        heads = read_heads(study.run.heads(MODEL, fold))
        drawn["auxiliary"] = figures.panel_marker_maps(heads, sections[name], name, study.run.tiles(name), own)
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
    raise InputError(
        "was scored, but no fold holds this patient out", field=patient, fix="run notebook 32_multitask again"
    )


# ---- privacy report
# What the report says of synthetic tiles and of the audit: both left their figures in JSON, which is read here.


PICTURES = {"synthesis": ("tiles", "filter", "utility"), "audit": ("forest",)}
PRIVACY_SHOWN = (("mean_dice", "mean Dice"), ("balanced_accuracy", "tissue label, balanced accuracy"), ("auc", "AUC"))
VERDICTS = {
    "leak": "a leak",
    "signs": "signs of a leak",
    "undecided": "not decided",
    "below chance": "worse than guessing",
    "not found": "none found by this attack",
}


def synthetic(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of drawn tiles: counts, what was rejected, what they are good for, pictures."""
    folder = _folder(study.run.root / "synthesis", study.synthesis)
    if folder is None:
        return None
    said, use = read_json(folder / "summary.json"), read_json(folder / "utility.json")
    shown = [key for key, _ in PRIVACY_SHOWN]
    rows = [
        {"title": row["title"], "images": int(row["images"]), "scores": [_score(row, key) for key in shown]}
        for row in use["rows"]
    ]
    titles = [title for _, title in PRIVACY_SHOWN]
    return {**said, "rows": rows, "columns": titles, "pictures": _pictures(folder, "synthesis")}


def audit(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of the audit: each question with its answer and controls, and where the cards are."""
    folder = _folder(study.run.root / "audit", study.audit)
    if folder is None:
        return None
    said = read_json(folder / "summary.json")
    rows = [{**row, "words": VERDICTS[row["verdict"]]} for row in said["rows"]]
    cards = {name: f"audit/{folder.name}/{file}" for name, file in said["cards"].items()}
    return {**said, "rows": rows, "cards": cards, "pictures": _pictures(folder, "audit")}


def _folder(home: Path, part: Any) -> Path | None:
    """Return the newest fold's folder, where the study asks for the part and it has run."""
    done = sorted(home.glob("*/summary.json"), key=lambda file: file.stat().st_mtime) if part is not None else []
    return done[-1].parent if done else None


def _score(row: dict[str, Any], key: str) -> dict[str, float] | None:
    value = row.get(key)
    return None if value is None else {"value": value, "low": row[f"{key}_low"], "high": row[f"{key}_high"]}


def _pictures(folder: Path, kind: str) -> dict[str, str]:
    found = {name: folder / f"{name}.png" for name in PICTURES[kind]}
    return {name: embed(path) for name, path in found.items() if path.is_file()}


# ---- run report
# What the report says of the run that made it: with what, when, and what its stages took.


def this_run(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of the run; None where there is no record, or not one of this study as it is now.

    The page is a part of the run: its own stage, and what comes after it, are not in the record yet.
    """
    try:
        record = read_record(study.run.root)
    except InputError:
        return None
    if record.hash != study.hash():
        return None
    stages = belonging(record.stages, study)
    table = added_up(stages).sort_values("notebook", kind="stable")
    commits = {stage.commit for stage in stages if stage.outcome == "finished"}
    content = {
        "begun": when(record.begun),
        "about": about(record),
        "runs": len(record.history) + 1,
        "commits": len(commits),
        "again": sum(stage.attempt > 1 for stage in stages),
        "rows": [
            {
                "name": _name(row),
                "jobs": row.jobs,
                "time": duration(row.seconds),
                "slowest": duration(row.slowest),
                "cpu": duration(row.cpu_seconds),
                "memory": gib(row.peak_gib),
            }
            for row in table.itertuples()
        ],
        "total": duration(table["seconds"].sum()),
        "jobs": int(table["jobs"].sum()),
        "most": gib(table["peak_gib"].max()),
    }
    if len(table):
        content["picture"] = embed(save(draw(table), study.run.stages / "stages.svg"))
    return content


def _name(row: Any) -> str:
    model = "all baselines" if row.model == "baselines" else title_of(row.model)
    return f"{row.notebook}, {model}" if model else row.notebook


def draw(table: pd.DataFrame) -> Figure:
    """Draw the time of all jobs of a stage, the slowest of them darker, beside the peak memory of the largest."""
    seconds = float(table["seconds"].sum())
    unit, divisor = ("hours", 3600) if seconds > 3 * 3600 else ("minutes", 60)
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(7.4, 0.3 * len(table) + 1.1), sharey=True, width_ratios=[3, 2])
        rows = range(len(table))
        left.barh(rows, table["seconds"] / divisor, color=ROLE["baseline"], alpha=0.55, height=0.62)
        left.barh(rows, table["slowest"] / divisor, color=ROLE["model"], height=0.62)
        right.barh(rows, table["peak_gib"], color=ROLE["ceiling"], height=0.62)
        for y, row in zip(rows, table.itertuples(), strict=True):
            several = f"  {row.jobs} jobs" if row.jobs > 1 else ""
            left.annotate(several, (row.seconds / divisor, y), va="center", color=MUTED, fontsize=8)
            right.annotate(f"  {row.peak_gib:.1f}", (row.peak_gib, y), va="center", color=INK, fontsize=8)
        left.set_yticks(rows, [_name(row) for row in table.itertuples()])
        left.set_ylim(len(table) - 0.4, -0.6)
        left.set_title("Time")
        right.set_title("Peak memory")
        left.set_xlabel(unit)
        right.set_xlabel("GiB")
        for axes in (left, right):
            axes.margins(x=0.14)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=LINE, lw=0.6)
    return figure


# ---- stacked
# What the report says of a stack: beside each family that it is made of, with a paired interval of the difference.


def stacked(study: Study, scores: Scores, folds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the report's section on stacking shows; None for a study without a stack.

    Parameters
    ----------
    study
        The study.
    scores
        Its scores.
    folds
        The folds that hold patients out.

    Raises
    ------
    InputError
        If a fold was not stacked.
    """
    if study.stacking is None:
        return None
    said = []
    for fold in folds:
        path = study.run.stacking(fold["name"])
        if not path.is_file():
            raise InputError("this fold was not stacked", file=path, fix="run notebook 40_stacking for it")
        said.append(read_json(path))
    return {
        "titles": [title_of(name) for name in STACKS],
        "sentences": [compare(scores, stack, study.families, scores.transforms[0]) for stack in STACKS],
        "tables": [_table(scores, transform, study.families) for transform in scores.transforms],
        "nesting": list(dict.fromkeys(one["nesting"] for one in said)),
        "left_out": {title_of(name): why for one in said for name, why in one["left_out"].items()},
    }


def compare(scores: Scores, stack: str, families: list[str], transform: str) -> str:
    """Return one sentence: how many families a stack beats, and how it stands to the best of them."""
    table = scores.of(transform, ceiling=False)
    best = str(table.loc[families, "pearson"].idxmax())
    pairs = {family: scores.against(family, transform).loc[stack] for family in families}
    beaten = sum(wording.verdict(pair) == "beats" for pair in pairs.values())
    row, reached = pairs[best], wording.number(table.loc[stack, "pearson"])
    return (
        f"{title_of(stack)} reaches {reached}, beats {beaten} of the {len(families)} "
        f"models it is made of, and {wording.verdict(row)} the best of them, {title_of(best)}: "
        f"{wording.number(row['difference'], sign=True)} ({wording.span(row['low'], row['high'], sign=True)})."
    )


def _table(scores: Scores, transform: str, families: list[str]) -> dict[str, Any]:
    table = scores.of(transform, ceiling=False)
    rows = []
    for family in table.loc[families].sort_values("pearson", ascending=False).index:
        pairs = [scores.against(family, transform).loc[stack] for stack in STACKS]
        cells = [{**pair.to_dict(), "verdict": wording.verdict(pair)} for pair in pairs]
        rows.append({**table.loc[family].to_dict(), "cells": cells})
    own = [table.loc[stack].to_dict() for stack in STACKS]
    return {"name": transform, "words": wording.TRANSFORM_WORDS.get(transform, transform), "rows": rows, "stacks": own}
