"""How much of a study with many sections a page shows: some sections and folds by rule, and where the rest is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.evaluation import figures, wording
from histocrypt.evaluation import figures as maps
from histocrypt.evaluation.agreement import load_agreements
from histocrypt.evaluation.figures import backdrop, embed
from histocrypt.evaluation.scores import CEILING, POOLED, WITHIN, Scores, load_scores, read_folds, title_of
from histocrypt.evaluation.wording import number, plural, terms_of
from histocrypt.files import atomic_path, write_text
from histocrypt.pipeline.predictions import PredictionFile, as_mapping, h5ad_errors, join, read_h5ad
from histocrypt.predictors.registry import BASELINES
from histocrypt.report import views
from histocrypt.report.parts import audit, beyond_panel, distributions, stacked, synthetic, this_run
from histocrypt.report.viewer import viewer_content
from histocrypt.targets.matrix import depth

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study

# ---- facts
# What happened to the data before any model: rows for the report's tables, from the cleaned sections alone.


def data_row(name: str, section: AnnData) -> dict[str, Any]:
    """Return what a reader wants to know about one section."""
    done = as_mapping(section.uns.get("preprocessing"))
    dropped = {str(reason): int(count) for reason, count in as_mapping(done.get("dropped")).items() if int(count)}
    alignment = as_mapping(done.get("alignment"))
    if alignment and bool(alignment.get("applied")):
        moved = float(np.hypot(alignment["dx_um"], alignment["dy_um"]))
        turn = float(alignment.get("rotation_deg", 0.0))
        aligned = f"moved {moved:.0f} µm" + (f", turned {number(turn, 1)}°" if turn else "")
        aligned += f" (confidence {number(float(alignment.get('confidence', np.nan)), 2)})"
    else:
        aligned = str(alignment.get("reason") or "left as given")
    totals = depth(section)
    known = bool(np.isfinite(totals).all())
    return {
        "section": name,
        "patient": str(section.obs["patient"].iloc[0]),
        "kept": section.n_obs,
        "dropped": ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none",
        "n_dropped": sum(dropped.values()),
        "genes": section.n_vars if known else "none",
        "depth": f"{np.median(totals):,.0f}".replace(",", "\u2009") if known else "none",
        "um_per_px": number(float(done.get("um_per_px", np.nan)), 3),
        "um_per_px_source": str(done.get("um_per_px_source", "")),
        "aligned": aligned,
    }


def planted_row(name: str, section: AnnData) -> dict[str, Any] | None:
    """Return what the simulator planted in a demo section and what preprocessing found; None for real sections."""
    if "planted" not in as_mapping(section.uns.get("demo")):
        return None
    from histocrypt.demo.write import planted

    hidden = planted(section)
    there = set(section.obs_names)
    row: dict[str, Any] = {"section": name}
    for key in ("off_tissue", "nan", "low_depth"):
        missed = [barcode for barcode in hidden[key] if barcode in there]
        row[key] = f"{len(hidden[key]) - len(missed)} of {len(hidden[key])}" if hidden[key] else "none planted"
        row[f"{key}_ok"] = not missed
    shift = np.asarray(hidden["shift_um"])
    alignment = as_mapping(as_mapping(section.uns.get("preprocessing")).get("alignment"))
    applied = bool(alignment.get("applied", False))
    found = np.array([alignment["dx_um"], alignment["dy_um"]], dtype=float) if applied else np.zeros(2)
    left = float(np.hypot(*(shift + found)))
    planted_um = float(np.hypot(*shift))
    # A shift counts as found where at least half of it is gone; an untouched section must stay untouched.
    row["shift_ok"] = left <= planted_um / 2 if planted_um else left < 1
    done = f"moved {left:.0f} µm" if applied else "left alone"
    row["shift"] = f"{planted_um:.0f} µm planted, {left:.0f} µm left" if planted_um else f"none planted, {done}"
    return row


def data_sentence(rows: list[dict[str, Any]]) -> str:
    """Return the size of the study in one sentence."""
    spots = sum(row["kept"] for row in rows)
    dropped = sum(row["n_dropped"] for row in rows)
    patients = len({row["patient"] for row in rows})
    return (
        f"{plural(len(rows), 'section')} of {plural(patients, 'patient')}; {plural(spots, 'spot')} kept and {dropped} "
        "dropped, each for a stated reason."
    )


# ---- crowd


SECTIONS = 24
"""Sections that a table of the page shows; a study of more has the others in files beside the page."""
FOLDS = 12
"""Folds of which training curves are drawn."""


class Sections(Mapping[str, "AnnData"]):
    """Cleaned sections by name, each read when it is asked for; none is kept."""

    def __init__(self, study: Study, names: Sequence[str]) -> None:
        self._run, self._names = study.run, list(names)

    def __getitem__(self, name: str) -> AnnData:
        if name not in self._names:
            raise KeyError(name)
        return read_h5ad(self._run.section(name), what="cleaned section")

    def about(self, name: str) -> AnnData:
        """Return a section without its counts: what is known of its spots and genes, and what was done to it."""
        import h5py
        from anndata import AnnData
        from anndata.io import read_elem

        path = self._run.section(name)
        with h5ad_errors(path, what="cleaned section"), h5py.File(path) as file:
            parts = {part: read_elem(file[part]) for part in ("obs", "var", "uns")}
        return AnnData(**parts) if "total_counts" in parts["obs"] else self[name]  # else the counts are added up

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` names spread evenly over a list: the first, the last, and others between them."""
    if len(names) <= count:
        return list(names)
    places = np.unique(np.round(np.linspace(0, len(names) - 1, count)).astype(int))
    return [names[place] for place in places]


def shown(scores: Scores, model: str, transform: str) -> set[str]:
    """Return the sections that tables show: all of a few; of many, spread from the best predicted to the worst."""
    table = scores.sections
    mine = table[(table["model"] == model) & (table["transform"] == transform)]
    return set(spread(mine.sort_values("pearson", ascending=False)["section"].tolist(), SECTIONS))


def data_tables(study: Study, sections: Sections, some: set[str]) -> dict[str, Any]:
    """Return what the page says of the data; all rows go to ``evaluation/data.csv``, those of ``some`` on the page."""
    import pandas as pd

    rows, planted = [], []
    for name in sections:
        section = sections.about(name)
        rows.append(data_row(name, section))
        planted.append(planted_row(name, section))
    rows.sort(key=lambda row: (row["patient"], row["section"]))
    with atomic_path(study.run.evaluation / "data.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    everywhere = len(rows) <= SECTIONS  # sections that only train are shown where there is room
    return {
        "data": [row for row in rows if everywhere or row["section"] in some],
        "data_total": len(rows),
        "data_sentence": data_sentence(rows),
        "planted": [row for row in planted if row and (everywhere or row["section"] in some)],
        "patients": {row["section"]: row["patient"] for row in rows},
    }


def by_section(scores: Scores, transform: str, some: set[str]) -> dict[str, Any]:
    """Return the table of every model's mean correlation in every section, or in ``some`` of many."""
    rows = scores.sections[scores.sections["transform"] == transform]
    every = rows["section"].nunique()
    rows = rows[rows["section"].isin(some)]
    wide = rows.pivot(index="model", columns=["patient", "section"], values="pearson").sort_index(axis=1)
    order = scores.of(transform).sort_values("pearson", ascending=False)
    top = max(float(np.nanmax(wide.to_numpy())), 1e-9)
    table = [
        {
            "title": order.loc[model, "title"],
            "role": order.loc[model, "role"],
            "cells": [{"value": v, "shade": round(max(0.0, v / top) * 0.55, 3)} for v in wide.loc[model]],
        }
        for model in order.index
    ]
    spots = rows.drop_duplicates("section").set_index("section")
    columns = [
        {"patient": patient, "section": section, "spots": int(spots.loc[section, "spots"])}
        for patient, section in wide.columns
    ]
    return {"columns": columns, "rows": table, "total": every}


def training_curves(study: Study, folds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the training curves of some folds: model -> fold -> table."""
    import pandas as pd

    curves: dict[str, dict[str, Any]] = {}
    for fold in spread([fold["name"] for fold in folds], FOLDS):
        for model in study.model_names:
            path = study.run.model(model, fold) / "curves.csv"
            if path.is_file():
                curves.setdefault(model, {})[fold] = pd.read_csv(path)
    return curves


# ---- report
# One page that people read: ``report.html``, self-contained, from score tables, cleaned sections and predictions.


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
    environment.globals.update(number=wording.number, span=wording.span, plural=wording.plural)
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
    sections = Sections(study, names)
    best = wording.best_model(scores, main)
    some = shown(scores, best, main)
    data = data_tables(study, sections, some)
    pictures = _pictures(study, scores, folds, sections, data.pop("patients"))
    beyond, drawn = beyond_panel(study, sections, folds)
    for name, figure in drawn.items():
        pictures[f"multitask_{name}"] = embed(figures.save(figure, run.evaluation / f"multitask_{name}.png"))
    return {
        "title": study.title or study.name,
        "name": study.name,
        "answer": wording.answer(scores),
        "limits": wording.limits(scores),
        "key": _key_figures(scores, main, best),
        "best": title_of(best),
        "best_is_colour": best == wording.COLOUR,
        **data,
        "scheme": study.folds.scheme.replace("_", " "),
        "n_folds": len(folds),
        "folds_drawn": min(len(folds), FOLDS),
        "panel": study.panel.model_dump(),
        "panel_size": _panel_size(scores),
        "matrix": study.target.matrix,
        "terms": terms_of(scores),
        "left_out": {m: {"title": title_of(m), "why": why} for m, why in scores.notes.get("left_out", {}).items()},
        "transforms": [_transform(scores, name) for name in scores.transforms],
        "main_words": wording.TRANSFORM_WORDS.get(main, main),
        "stacked": stacked(study, scores, folds),
        "beyond": beyond,
        "distributions": distributions(study),
        "synthetic": synthetic(study),
        "audit": audit(study),
        "run": this_run(study),
        "by_section": by_section(scores, main, some),
        "genes": _genes(scores, main, best),
        "unscored": wording.listed({name: len(genes) for name, genes in scores.notes["unscored_genes"].items()}),
        "pooled_genes": len(scores.notes["pooled_genes"]),
        "draws": scores.notes["draws"],
        "block_mm": wording.number(scores.notes["block_um"] / 1000, 1),
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
    spots = {"section_spots": content["spots"], **content}  # files of before say nothing of the section
    return {**spots, "title": title_of(content["network"]), "once": once, "each": each, "peak": peak}


def _key_figures(scores: Scores, main: str, best: str) -> list[dict[str, str]]:
    table = scores.of(main)
    row = table.loc[best]
    low_high = f"95 % interval {wording.span(row['pearson_low'], row['pearson_high'])}"
    key = [{"value": wording.number(row["pearson"]), "label": f"mean correlation, {title_of(best)}", "note": low_high}]
    if best != wording.COLOUR and wording.COLOUR in table.index:
        pair = scores.against(wording.COLOUR, main).loc[best]
        said = wording.verdict(pair)
        verb = f"{said if said in ('beats', 'cannot be told from') else 'does not beat'} colour-only ridge"
        interval = f"95 % interval {wording.span(pair['low'], pair['high'], sign=True)}"
        key.append({"value": wording.number(pair["difference"], sign=True), "label": verb, "note": interval})
    unit = terms_of(scores).unit
    spread = wording.span(row[f"{unit}_min"], row[f"{unit}_max"])
    note = f"{wording.plural(int(row[f'{unit}s']), unit)}, each unseen"
    key.append({"value": spread, "label": f"from the worst {unit} to the best", "note": note})
    if WITHIN in table:
        pair = scores.against(wording.MEAN_PROFILE, main, WITHIN).loc[best]
        profile = wording.number(table.loc[wording.MEAN_PROFILE, WITHIN])
        label = "correlation within a spot, beyond the mean profile"
        note = f"{wording.number(row[WITHIN])} beside {profile} for the same composition everywhere"
        key.append({"value": wording.number(pair["difference"], sign=True), "label": label, "note": note})
    if CEILING in table.index:
        share = f"{100 * row['recovered']:.0f} %"
        note = f"the image carries about {wording.number(table.loc[CEILING, 'pearson'])}"
        key.append({"value": share, "label": "of what the image can tell", "note": note})
    return key


def _transform(scores: Scores, transform: str) -> dict[str, Any]:
    table = scores.of(transform).sort_values("pearson", ascending=False)
    against = scores.against(wording.COLOUR, transform)
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
            row["colour"] = {**pair.to_dict(), "verdict": wording.verdict(pair)}
        rows.append(row)
    best = wording.best_model(scores, transform)
    compared = [m for m in table.index if table.loc[m, "role"] == "model" or m == best]
    baselines = [model for model in BASELINES if model in table.index]
    pairs = {name: scores.against(name, transform) for name in baselines}
    paired = []
    for model in compared:
        cells = []
        for name in baselines:
            pair = pairs[name].loc[model] if model in pairs[name].index else None
            cells.append(None if pair is None else {**pair.to_dict(), "verdict": wording.verdict(pair)})
        paired.append({"title": title_of(model), "cells": cells})
    return {
        "name": transform,
        "words": wording.TRANSFORM_WORDS.get(transform, transform),
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
    against = scores.against(wording.MEAN_PROFILE, transform, WITHIN)
    rows = []
    for model, record in table.sort_values(WITHIN, ascending=False).iterrows():
        pair = against.loc[model] if model in against.index else None
        cell = None if pair is None else {**pair.to_dict(), "verdict": wording.verdict(pair)}
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
    mine["colour"] = by_gene.loc[wording.COLOUR, "pearson"].reindex(mine.index)
    shown = min(GENES_SHOWN, max(1, len(mine) // 2))
    records = mine.reset_index().to_dict("records")
    positive = int((mine["pearson"] > mine["colour"]).sum())
    return {"top": records[:shown], "bottom": records[-shown:][::-1], "n": len(mine), "above_colour": positive}


def _pictures(
    study: Study, scores: Scores, folds: list[dict], sections: Mapping[str, AnnData], patients: dict[str, str]
) -> dict[str, dict[str, str] | None]:
    run, main = study.run, scores.transforms[0]
    best = wording.best_model(scores, main)
    order = figures.picture_order(scores, main)
    models = [best, *(m for m in order if m != best)]
    drawn = {
        "forest": figures.forest(scores, main),
        "folds": figures.fold_diagram(folds, patients),
        "genes": figures.gene_distribution(scores, main),
        "variance": figures.variance_curves(scores, main, [m for m in models if m != CEILING]),
        "curves": figures.training_curves(training_curves(study, folds)),
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
        title = f"{pair.symbols[column]} ({label})\nr = {wording.number(table.loc[gene, 'pearson'], 2)}"
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
