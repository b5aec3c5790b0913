"""One page that people read: ``report.html``, self-contained, from score tables, cleaned sections and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.atomic import write_text
from histocrypt.evaluation import crowd, figures, maps, views, words
from histocrypt.evaluation.agreement import load_agreements
from histocrypt.evaluation.backdrop import backdrop
from histocrypt.evaluation.distribution_report import distributions
from histocrypt.evaluation.embed import embed
from histocrypt.evaluation.multitask_report import beyond_panel
from histocrypt.evaluation.prediction_file import PredictionFile
from histocrypt.evaluation.privacy_report import audit, synthetic
from histocrypt.evaluation.run_report import this_run
from histocrypt.evaluation.scores import CEILING, POOLED, Scores, load_scores, read_folds, title_of
from histocrypt.evaluation.section_scores import WITHIN
from histocrypt.evaluation.stacked import stacked
from histocrypt.evaluation.terms import terms_of
from histocrypt.evaluation.truth import as_mapping, join
from histocrypt.evaluation.viewer_page import viewer_content
from histocrypt.models.registry import BASELINES

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study

GENES_SHOWN = 12
FINAL = "final"
PACKAGES = ("histocrypt", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "anndata", "scanpy")


def write_report(study: Study) -> Path:
    """Write the report of a scored study and the figures it shows (``evaluation/*.svg``, ``*.png``).

    Raises
    ------
    InputError
        If the study was not scored yet, or a cleaned section or prediction is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=words.number, span=words.span, plural=words.plural)
    content = _content(study, load_scores(study))
    css, script = (Markup((here / name).read_text(encoding="utf-8")) for name in ("report.css", "viewer.js"))
    page = environment.get_template("report.html").render(css=css, viewer_js=script, **content)
    write_text(study.run.report, page)
    return study.run.report


def _content(study: Study, scores: Scores) -> dict[str, Any]:
    run, main = study.run, scores.transforms[0]
    folds = read_folds(study)
    names = sorted(
        {name for fold in folds for part in ("train", "validation", "test") for name in fold[f"{part}_sections"]}
    )
    sections = crowd.Sections(study, names)
    best = words.best_model(scores, main)
    some = crowd.shown(scores, best, main)
    data = crowd.data_tables(study, sections, some)
    pictures = _pictures(study, scores, folds, sections, data.pop("patients"))
    beyond, drawn = beyond_panel(study, sections, folds)
    for name, figure in drawn.items():
        pictures[f"multitask_{name}"] = embed(figures.save(figure, run.evaluation / f"multitask_{name}.png"))
    return {
        "title": study.title or study.name,
        "name": study.name,
        "answer": words.answer(scores),
        "limits": words.limits(scores),
        "key": _key_figures(scores, main, best),
        "best": title_of(best),
        "best_is_colour": best == words.COLOUR,
        **data,
        "scheme": study.folds.scheme.replace("_", " "),
        "n_folds": len(folds),
        "folds_drawn": min(len(folds), crowd.FOLDS),
        "panel": study.panel.model_dump(),
        "panel_size": _panel_size(scores),
        "matrix": study.target.matrix,
        "terms": terms_of(scores),
        "left_out": {m: {"title": title_of(m), "why": why} for m, why in scores.notes.get("left_out", {}).items()},
        "transforms": [_transform(scores, name) for name in scores.transforms],
        "main_words": words.TRANSFORM_WORDS.get(main, main),
        "stacked": stacked(study, scores, folds),
        "beyond": beyond,
        "distributions": distributions(study),
        "synthetic": synthetic(study),
        "audit": audit(study),
        "run": this_run(study),
        "by_section": crowd.by_section(scores, main, some),
        "genes": _genes(scores, main, best),
        "unscored": words.listed({name: len(genes) for name, genes in scores.notes["unscored_genes"].items()}),
        "pooled_genes": len(scores.notes["pooled_genes"]),
        "draws": scores.notes["draws"],
        "block_mm": words.number(scores.notes["block_um"] / 1000, 1),
        "ks": scores.notes["k"],
        "ceiling": CEILING in scores.of(main).index,
        "encrypted": [_encrypted(one) for one in load_agreements(study)],
        "figures": pictures,
        "viewer": _viewer(study, scores, best),
        "provenance": _provenance(study),
    }


def _encrypted(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the page says of one network's encrypted inference on one section."""
    seconds, peak = content["seconds"], content["peak_gib"]
    once = seconds["compile"] + seconds["keygen"]
    each = sum(seconds[step] for step in ("encrypt", "evaluate", "decrypt"))
    return {**content, "title": title_of(content["network"]), "once": once, "each": each, "peak": peak}


def _key_figures(scores: Scores, main: str, best: str) -> list[dict[str, str]]:
    table = scores.of(main)
    row = table.loc[best]
    low_high = f"95 % interval {words.span(row['pearson_low'], row['pearson_high'])}"
    key = [{"value": words.number(row["pearson"]), "label": f"mean correlation, {title_of(best)}", "note": low_high}]
    if best != words.COLOUR and words.COLOUR in table.index:
        pair = scores.against(words.COLOUR, main).loc[best]
        said = words.verdict(pair)
        verb = f"{said if said in ('beats', 'cannot be told from') else 'does not beat'} colour-only ridge"
        interval = f"95 % interval {words.span(pair['low'], pair['high'], sign=True)}"
        key.append({"value": words.number(pair["difference"], sign=True), "label": verb, "note": interval})
    unit = terms_of(scores).unit
    spread = words.span(row[f"{unit}_min"], row[f"{unit}_max"])
    note = f"{words.plural(int(row[f'{unit}s']), unit)}, each unseen"
    key.append({"value": spread, "label": f"from the worst {unit} to the best", "note": note})
    if WITHIN in table:
        pair = scores.against(words.MEAN_PROFILE, main, WITHIN).loc[best]
        profile = words.number(table.loc[words.MEAN_PROFILE, WITHIN])
        label = "correlation within a spot, beyond the mean profile"
        note = f"{words.number(row[WITHIN])} beside {profile} for the same composition everywhere"
        key.append({"value": words.number(pair["difference"], sign=True), "label": label, "note": note})
    if CEILING in table.index:
        share = f"{100 * row['recovered']:.0f} %"
        note = f"the image carries about {words.number(table.loc[CEILING, 'pearson'])}"
        key.append({"value": share, "label": "of what the image can tell", "note": note})
    return key


def _transform(scores: Scores, transform: str) -> dict[str, Any]:
    table = scores.of(transform).sort_values("pearson", ascending=False)
    against = scores.against(words.COLOUR, transform)
    low = min(0.0, float(table["pearson_low"].min()))
    high = max(float(table["pearson_high"].max()), low + 1e-3)

    def at(value: float) -> float:
        return round(100 * float((value - low) / (high - low)), 2) if np.isfinite(value) else 0.0

    rows = []
    for model, record in table.iterrows():
        row = {**record.to_dict(), "model": model}
        row["bar"] = {k: at(record[k]) for k in ("pearson", "pearson_low", "pearson_high")} | {"zero": at(0.0)}
        row["colour"] = None
        if model in against.index:
            pair = against.loc[model]
            row["colour"] = {**pair.to_dict(), "verdict": words.verdict(pair)}
        rows.append(row)
    best = words.best_model(scores, transform)
    compared = [m for m in table.index if table.loc[m, "role"] == "model" or m == best]
    baselines = [model for model in BASELINES if model in table.index]
    pairs = {name: scores.against(name, transform) for name in baselines}
    paired = []
    for model in compared:
        cells = []
        for name in baselines:
            pair = pairs[name].loc[model] if model in pairs[name].index else None
            cells.append(None if pair is None else {**pair.to_dict(), "verdict": words.verdict(pair)})
        paired.append({"title": title_of(model), "cells": cells})
    return {
        "name": transform,
        "words": words.TRANSFORM_WORDS.get(transform, transform),
        "rows": rows,
        "baselines": [title_of(name) for name in baselines],
        "paired": paired,
        "within": _within(scores, transform),
    }


def _within(scores: Scores, transform: str) -> list[dict[str, Any]]:
    """Return the rows of the table of correlations within spots; none for a panel of genes."""
    table = scores.of(transform)
    if WITHIN not in table:
        return []
    against = scores.against(words.MEAN_PROFILE, transform, WITHIN)
    rows = []
    for model, record in table.sort_values(WITHIN, ascending=False).iterrows():
        pair = against.loc[model] if model in against.index else None
        cell = None if pair is None else {**pair.to_dict(), "verdict": words.verdict(pair)}
        rows.append({**record.to_dict(), "pair": cell})
    return rows


def _panel_size(scores: Scores) -> str:
    """Return how many names the folds' panels hold."""
    each = scores.genes[scores.genes["section"] != POOLED].groupby("section")["gene"].nunique()
    unscored = scores.notes["unscored_genes"]
    sizes = sorted({int(count) + len(unscored.get(name, ())) for name, count in each.items()})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _genes(scores: Scores, transform: str, best: str) -> dict[str, Any]:
    each = scores.genes
    each = each[(each["transform"] == transform) & (each["section"] != POOLED) & ~each["constant_truth"].astype(bool)]
    by_gene = each.groupby(["model", "gene"]).agg(
        symbol=("symbol", "first"),
        pearson=("pearson", "mean"),
        spearman=("spearman", "mean"),
        moran=("moran_true", "mean"),
        sections=("section", "nunique"),
    )
    mine = by_gene.loc[best].sort_values("pearson", ascending=False)
    mine["colour"] = by_gene.loc[words.COLOUR, "pearson"].reindex(mine.index)
    shown = min(GENES_SHOWN, max(1, len(mine) // 2))
    records = mine.reset_index().to_dict("records")
    positive = int((mine["pearson"] > mine["colour"]).sum())
    return {"top": records[:shown], "bottom": records[-shown:][::-1], "n": len(mine), "above_colour": positive}


def _pictures(
    study: Study, scores: Scores, folds: list[dict], sections: Mapping[str, AnnData], patients: dict[str, str]
) -> dict[str, dict[str, str] | None]:
    run, main = study.run, scores.transforms[0]
    best = words.best_model(scores, main)
    order = figures.picture_order(scores, main)
    models = [best, *(m for m in order if m != best)]
    drawn = {
        "forest": figures.forest(scores, main),
        "folds": figures.fold_diagram(folds, patients),
        "genes": figures.gene_distribution(scores, main),
        "variance": figures.variance_curves(scores, main, [m for m in models if m != CEILING]),
        "curves": figures.training_curves(crowd.training_curves(study, folds)),
    }
    shown, about = _maps(study, scores, best, sections)
    found: dict[str, Any] = {
        name: None if figure is None else embed(figures.save(figure, run.evaluation / f"{name}.svg"))
        for name, figure in drawn.items()
    }
    found["maps"] = embed(figures.save(shown, run.evaluation / "maps.png"))
    found["maps_about"] = about
    return found


def _viewer(study: Study, scores: Scores, best: str) -> dict[str, Any]:
    """Return what the viewer's tab holds, its first view drawn as a still picture for readers without scripts."""
    content = viewer_content(study, scores, best)
    view = content.pop("view", None)
    if view is not None:
        content["still"] = embed(figures.save(views.draw(view), study.run.evaluation / "viewer.png"))
    return content


def _maps(study: Study, scores: Scores, best: str, sections: Mapping[str, AnnData]) -> tuple[Any, str]:
    """Map the best, the median and the worst gene, ranked before the test, in the section with the median score."""
    main = scores.transforms[0]
    rows = scores.sections
    mine = rows[(rows["model"] == best) & (rows["transform"] == main)].sort_values("pearson")
    typical = mine.iloc[len(mine) // 2]
    name, fold = typical["section"], typical["fold"]
    section = sections[name]
    pair = join(PredictionFile(study.run.prediction(best, fold)).of(name), section, name, transforms=[main])
    each = scores.genes
    keep = (each["model"] == best) & (each["transform"] == main) & (each["section"] == name)
    table = each[keep & ~each["constant_truth"].astype(bool)].set_index("gene")
    ranked = table["validation_pearson"].dropna().sort_values(ascending=False)
    ranked = ranked if len(ranked) else table["pearson"].sort_values(ascending=False)
    picked = {"best": ranked.index[0], "median": ranked.index[len(ranked) // 2], "worst": ranked.index[-1]}
    panels = []
    for label, gene in picked.items():
        column = int(np.flatnonzero(pair.genes == gene)[0])
        title = f"{pair.symbols[column]} ({label})\nr = {words.number(table.loc[gene, 'pearson'], 2)}"
        true, predicted = pair.true[main][:, column], pair.predicted[main][:, column]
        panels.append({"title": title, "true": true, "predicted": predicted})
    image, scale = backdrop(section, study.run.tiles(name))
    um_per_px = float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0))
    coords = pair.coords * scale
    spacing = maps.pitch(coords)
    figure = maps.side_by_side(panels, coords, um_per_unit=um_per_px / scale, spacing=spacing, image=image)
    return figure, f"Section {name} of patient {typical['patient']}, predicted by {title_of(best)}"


def _provenance(study: Study) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    file = Path(study.folder) / f"{study.name}.yaml"
    try:
        shown = file.relative_to(paths.repository()).as_posix()
    except ValueError:
        shown = file.name
    return {
        "hash": study.hash(),
        "seed": study.seed,
        "date": datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": versions,
        "command": f"histocrypt run {shown}",
        "stain": study.preprocessing.stain,
        "tile": f"{study.preprocessing.tile_um:g} µm as {study.preprocessing.tile_px} px",
        "models": ", ".join(title_of(name) for name in study.scored_names),
    }
