"""What the report says of each part that a study may have: stack, genes beyond the panel, distributions, privacy, run.

A part that the study asks for and that is not there yet is named by `parts_of`, for the top of a page that is made
early.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.data.folds import held_out_sections, load_folds
from histocrypt.errors import InputError
from histocrypt.evaluation import family_figures as figures
from histocrypt.evaluation import wording
from histocrypt.evaluation.agreement import load_agreements
from histocrypt.evaluation.figures import INK, LINE, MUTED, ROLE, canvas, embed, save, style
from histocrypt.evaluation.he2gene import load_summary, read_heads
from histocrypt.evaluation.others import load_others
from histocrypt.evaluation.scores import patient_of, title_of
from histocrypt.evaluation.stem import MEASURES, load_distributions
from histocrypt.files import read_json, read_table
from histocrypt.pipeline.predictions import some
from histocrypt.predictors.registry import STACKS

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.evaluation.scores import Scores
    from histocrypt.study import Study

MULTITASK, DISTRIBUTION = "he2gene", "stem"
DISTRIBUTION_FILES = {"variation": "{model}.svg", "maps": "{model}_maps.png"}
"""Pictures that notebook 34_diffusion leaves beside its scores."""
PRIVACY_PICTURES = {"synthesis": ("tiles", "filter", "utility"), "audit": ("forest",)}
PRIVACY_SHOWN = {"mean_dice": "mean Dice", "balanced_accuracy": "tissue label, balanced accuracy", "auc": "AUC"}
VERDICTS = {
    "leak": "a leak",
    "signs": "signs of a leak",
    "undecided": "not decided",
    "below chance": "worse than guessing",
    "not found": "none found by this attack",
}
"""The gravest first."""


def parts_of(study: Study, scores: Scores, folds: list[dict[str, Any]]) -> dict[str, bool]:
    """Return the parts that the study asks for, by their name on the page, and whether each can be shown."""
    parts = {}
    if study.stacking is not None:
        known = {*study.families, *STACKS} <= set(scores.models)
        parts["Stacked"] = known and all(study.run.stacking(fold["name"]).is_file() for fold in folds)
    if MULTITASK in study.models:
        parts["Beyond the panel"] = all(
            (study.run.multitask / name).is_file() for name in ("summary.json", "signal.csv")
        )
    if DISTRIBUTION in study.models:
        parts["Distributions"] = bool(load_distributions(study))
    if study.others:
        parts["Predictions of others"] = load_others(study) is not None
    networks = study.encrypted_models
    if networks:
        trials = len(networks) * len(held_out_sections(load_folds(study.run.folds), study.encrypted.sections))
        name = "One party" if study.encrypted.engine == "orion" else "Encrypted"
        parts[name] = len(load_agreements(study, engine=study.encrypted.engine)) == trials
    if study.synthesis is not None:
        parts["Synthetic"] = _newest(study, "synthesis") is not None
    if study.audit is not None:
        parts["Audit"] = _newest(study, "audit") is not None
    return parts


def stacked(study: Study, scores: Scores, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how a stack stands beside each family that it is made of.

    Raises
    ------
    InputError
        If a fold was not stacked.
    """
    said = []
    for fold in folds:
        path = study.run.stacking(fold["name"])
        if not path.is_file():
            raise InputError("this fold was not stacked", file=path, fix="run notebook 40_stacking for it")
        said.append(read_json(path))
    return {
        "titles": [title_of(name) for name in STACKS],
        "sentences": [_stack_sentence(scores, stack, study.families, scores.transforms[0]) for stack in STACKS],
        "tables": [_stack_table(scores, transform, study.families) for transform in scores.transforms],
        "nesting": list(dict.fromkeys(one["nesting"] for one in said)),
        "left_out": {title_of(name): why for one in said for name, why in one["left_out"].items()},
    }


def _stack_sentence(scores: Scores, stack: str, families: list[str], transform: str) -> str:
    """Return how many families a stack beats, and how it stands to the best of them."""
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


def _stack_table(scores: Scores, transform: str, families: list[str]) -> dict[str, Any]:
    table = scores.of(transform, ceiling=False)
    rows = []
    for family in table.loc[families].sort_values("pearson", ascending=False).index:
        cells = [wording.cell(scores.against(family, transform), stack) for stack in STACKS]
        rows.append({**table.loc[family].to_dict(), "cells": cells})
    own = [table.loc[stack].to_dict() for stack in STACKS]
    return {"name": transform, "words": wording.TRANSFORM_WORDS.get(transform, transform), "rows": rows, "stacks": own}


def beyond_panel(
    study: Study, sections: Mapping[str, AnnData], folds: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return what a multi-task model says beyond the panel, and its pictures by name.

    Raises
    ------
    InputError
        If notebook 32_multitask was not run.
    """
    said, path = load_summary(study.run), study.run.multitask / "signal.csv"
    if said is None or not path.is_file():
        raise InputError(
            "he2gene's genes beyond the panel were not scored",
            file=study.run.multitask,
            fix="run notebook 32_multitask",
        )
    table = read_table(path)
    runs = {name: one for name, one in said["ablation"].items() if isinstance(one, dict)}
    drawn = {"signal": figures.signal(table, level=said["level"]), "smoothing": figures.smoothing(runs)}
    best = max(said["signal"], key=lambda line: line["better"])
    if best["better"]:
        own = table[table["patient"] == best["patient"]]
        fold, name = _where(study, folds, best["patient"])
        heads = read_heads(study.run.heads(MULTITASK, fold))
        drawn["auxiliary"] = figures.panel_marker_maps(heads, sections[name], name, study.run.tiles(name), own)
    scored = [one for one in said["tumour"] if "auc" in one]
    content = {
        "programmes": {},
        **said,
        "title": title_of(MULTITASK),
        "tumour": scored,
        "without_tumour": sorted({one["why"] for one in said["tumour"] if "why" in one}),
        "proxy": any(one["proxy"] for one in scored),
        "best_patient": best["patient"],
    }
    return content, drawn


def _where(study: Study, folds: list[dict[str, Any]], patient: str) -> tuple[str, str]:
    """Return the fold that holds a patient out, and the first of the patient's sections."""
    for fold in folds:
        for name in fold["test_sections"]:
            if patient_of(study.run, name) == patient:
                return fold["name"], name
    raise InputError(
        "was scored, but no fold holds this patient out", field=patient, fix="run notebook 32_multitask again"
    )


def distributions(study: Study) -> list[dict[str, Any]]:
    """Return what the page shows of each model whose draws were scored: sentences, columns, rows and pictures."""
    shown = []
    for content in load_distributions(study):
        model = content["model"]
        files = {
            name: study.run.evaluation / f"distribution_{file.format(model=model)}"
            for name, file in DISTRIBUTION_FILES.items()
        }
        encoder = study.options_of(model).get("encoder", "efficientnet_lite0")
        ridge = study.options_of("encoder_ridge").get("encoder", "efficientnet_lite0")
        same = "the same features" if encoder == ridge else f"features of another encoder ({ridge}, not {encoder})"
        about = {"sentences": sentences(content), "columns": MEASURES, "features": same}
        shown.append({**content, **about, "pictures": _embedded(files)})
    return shown


def sentences(content: dict[str, Any]) -> list[str]:
    """Say whether a model of distributions beats ridge in correlation, and what each of the two does better."""
    rows = {row["model"]: row for row in content["rows"]}
    mine, ridge = rows[content["model"]], rows["encoder_ridge"]
    won, lost = [], []
    for key, measure in MEASURES.items():
        theirs = ridge[key.removesuffix("_samples")]  # single draws stand against ridge's one prediction
        if not measure.words or mine[key] is None or theirs is None:
            continue
        (won if measure.wins(mine[key], theirs) else lost).append(measure.words)
    verb = "reaches a higher" if mine["pearson"] > ridge["pearson"] else "does not reach the"
    first = (
        f"{content['title']} {verb} correlation {'than' if 'higher' in verb else 'of'} ridge on frozen features: "
        f"{mine['pearson']:.3f} and {ridge['pearson']:.3f}."
    )
    second = f"It does better in: {', '.join(won) or 'nothing'}. Ridge does better in: {', '.join(lost) or 'nothing'}."
    held = (mine["coverage_50"], mine["coverage_90"])
    third = f"Its 50 % and 90 % intervals hold {100 * held[0]:.0f} % and {100 * held[1]:.0f} % of what was measured."
    return [first, second, third]


def others(study: Study) -> list[dict[str, Any]]:
    """Return what the page shows of each of the study's others: sentences, and a table for each transform."""
    beside, shown = load_others(study), []
    for name, said in beside.notes.items() if beside is not None else ():
        own = beside.table[beside.table["other"] == name]
        tables = []
        for transform, rows in own.groupby("transform", sort=False):
            rows = rows.sort_values("pearson", ascending=False)
            pairs = rows.assign(metric="pearson", low=rows["difference_low"], high=rows["difference_high"])
            counts = [f"{unit}s{end}" for unit in ("patient", "section") for end in ("", "_better")]
            cells = [
                None if pair["role"] == "other" else {**pair, **{name: int(pair[name]) for name in counts}}
                for pair in pairs.to_dict("records")
            ]
            cells = [cell and {**cell, "verdict": wording.verdict(cell)} for cell in cells]
            words = wording.TRANSFORM_WORDS.get(transform, transform)
            records = [{**row, "pair": cell} for row, cell in zip(rows.to_dict("records"), cells, strict=True)]
            tables.append({"name": transform, "words": words, "rows": records})
        shown.append({"title": said["title"], "sentences": _others_sentences(said), "tables": tables})
    return shown


def _others_sentences(said: dict[str, Any]) -> list[str]:
    fewest, most = said["genes"]
    genes = str(most) if fewest == most else f"{fewest} to {most}"
    lines = [
        f"Compared on what it and the models all predict: {wording.plural(said['spots'], 'spot')} and {genes} genes of "
        f"{wording.plural(len(said['sections']), 'section')}."
    ]
    if said["missing"]:
        lines.append(f"No predictions of {some(said['missing'])}, which take no part in this table.")
    if not said["known_units"]:
        lines.append("What its values are is not stated; they stand against each of the study's units in turn.")
    return lines


def encrypted(study: Study) -> list[dict[str, Any]]:
    """Return what the page says of each network's encrypted inference on a section; none for one party."""
    rows = []
    for one in load_agreements(study) if study.encrypted.engine == "two_party" else ():
        seconds = one["seconds"]
        once = seconds["compile"] + seconds["keygen"]
        each = sum(seconds[step] for step in ("encrypt", "evaluate", "decrypt"))
        spots = {"section_spots": one["spots"], **one}  # files of before say nothing of the section
        rows.append({**spots, "title": title_of(one["network"]), "once": once, "each": each, "peak": one["peak_gib"]})
    return rows


def one_party(study: Study) -> list[dict[str, Any]]:
    """Return what the page says of each network's experiment in one process, where that is the study's engine."""
    if study.encrypted.engine != "orion":
        return []
    return [{**one, "title": title_of(one["network"])} for one in load_agreements(study, engine="orion")]


def synthetic(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of drawn tiles: counts, what was rejected, what they are good for, pictures."""
    folder = _newest(study, "synthesis")
    if folder is None:
        return None
    said, use = read_json(folder / "summary.json"), read_json(folder / "utility.json")
    rows = [
        {"title": row["title"], "images": int(row["images"]), "scores": [_score(row, key) for key in PRIVACY_SHOWN]}
        for row in use["rows"]
    ]
    pictures = {name: folder / f"{name}.png" for name in PRIVACY_PICTURES["synthesis"]}
    shown = {"rows": rows, "columns": list(PRIVACY_SHOWN.values()), "sight": use.get("sight", "")}
    return {**said, **shown, "pictures": _embedded(pictures)}


def _score(row: dict[str, Any], key: str) -> dict[str, float] | None:
    value = row.get(key)
    return None if value is None else {"value": value, "low": row[f"{key}_low"], "high": row[f"{key}_high"]}


def audit(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of the audit: each question with its answer and controls, and where the cards are.

    ``gravest`` holds one question of each thing, ``rows`` all.
    """
    folder = _newest(study, "audit")
    if folder is None:
        return None
    said = read_json(folder / "summary.json")
    rows = [{**row, "words": VERDICTS[row["verdict"]]} for row in said["rows"]]
    cards = {name: f"audit/{folder.name}/{file}" for name, file in said["cards"].items()}
    pictures = {name: folder / f"{name}.png" for name in PRIVACY_PICTURES["audit"]}
    order, gravest = list(VERDICTS), {}
    for row in sorted(rows, key=lambda row: order.index(row["verdict"])):
        gravest.setdefault(row["thing"], row)
    first = [gravest[name] for name in dict.fromkeys(row["thing"] for row in rows)]
    words = {
        name: meaning for name, meaning in wording.ATTACK_WORDS.items() if any(name in row["attack"] for row in rows)
    }
    return {**said, "rows": rows, "gravest": first, "words": words, "cards": cards, "pictures": _embedded(pictures)}


def _newest(study: Study, part: str) -> Path | None:
    """Return the newest fold's folder of ``synthesis`` or ``audit``, where the study asks for it and it has run."""
    if getattr(study, part) is None:
        return None
    done = sorted((study.run.root / part).glob("*/summary.json"), key=lambda file: file.stat().st_mtime)
    return done[-1].parent if done else None


def _embedded(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: embed(path) for name, path in files.items() if path.is_file()}


def shown_run(study: Study, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of the run that makes it: ``run`` with the titles of its models, and a picture."""
    rows = []
    for row in run["rows"]:
        model = "all baselines" if row["model"] == "baselines" else title_of(row["model"])
        rows.append({**row, "name": f"{row['notebook']}, {model}" if model else row["notebook"]})
    picture = {"picture": embed(save(draw_run(rows), study.run.stages / "stages.svg"))} if rows else {}
    return {**run, "rows": rows, **picture}


def draw_run(rows: list[dict[str, Any]]) -> Figure:
    """Draw the time of all jobs of a stage, the slowest of them darker, beside the peak memory of the largest."""
    names, jobs, seconds, slowest, peak = (
        [row[key] for row in rows] for key in ("name", "jobs", "seconds", "slowest_seconds", "peak_gib")
    )
    unit, divisor = ("hours", 3600) if sum(seconds) > 3 * 3600 else ("minutes", 60)
    places = range(len(rows))
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(7.4, 0.3 * len(rows) + 1.1), sharey=True, width_ratios=[3, 2])
        left.barh(places, [one / divisor for one in seconds], color=ROLE["baseline"], alpha=0.55, height=0.62)
        left.barh(places, [one / divisor for one in slowest], color=ROLE["model"], height=0.62)
        right.barh(places, peak, color=ROLE["ceiling"], height=0.62)
        for y in places:
            several = f"  {jobs[y]} jobs" if jobs[y] > 1 else ""
            left.annotate(several, (seconds[y] / divisor, y), va="center", color=MUTED, fontsize=8)
            right.annotate(f"  {peak[y]:.1f}", (peak[y], y), va="center", color=INK, fontsize=8)
        left.set_yticks(places, names)
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set(title="Time", xlabel=unit)
        right.set(title="Peak memory", xlabel="GiB")
        for axes in (left, right):
            axes.margins(x=0.14)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=LINE, lw=0.6)
    return figure
