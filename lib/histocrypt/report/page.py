"""One page that people read: ``report.html``, self-contained, from score tables, cleaned sections and predictions.

A page of a study with many sections shows some of them and says by which rule; the rest is in files beside it. A page
that is made before the study is finished says at its top what is still to come, and what it covers is written beside
it (``evaluation/covers.json``), so that it never takes the place of one that covers more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.correlation import pearson
from histocrypt.evaluation import figures, maps, wording
from histocrypt.evaluation.figures import embed
from histocrypt.evaluation.metrics import METRICS, POOLED
from histocrypt.evaluation.scores import (
    CEILING,
    NOISE_CEILING,
    SHARE,
    WITHIN,
    Scores,
    covering,
    load_scores,
    read_folds,
    ready_models,
    title_of,
)
from histocrypt.evaluation.wording import cell, number, percent, plural, span, terms_of
from histocrypt.files import read_table, write_json, write_table, write_text
from histocrypt.pipeline.predictions import PredictionFile, as_mapping, h5ad_errors, join, read_h5ad
from histocrypt.predictors.registry import BASELINES
from histocrypt.report import parts, views
from histocrypt.report.viewer import spread, viewer_content
from histocrypt.spatial import spot_pitch
from histocrypt.targets.matrix import depth

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study

GENES_SHOWN = 12
SECTIONS = 24
"""Sections that a table of the page shows; a study of more has the others in files beside the page."""
FOLDS = 12
"""Folds of which training curves are drawn."""
PACKAGES = ("histocrypt", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "anndata", "scanpy")


def write_report(study: Study, *, run: Mapping[str, Any] | None = None, unfinished: bool = False) -> Path:
    """Write the report of a scored study and the figures it shows (``evaluation/*.svg``, ``*.png``).

    Parameters
    ----------
    study
        The study.
    run
        What made it, from `workflow.runs.this_run`; without it, the page has no section on its run.
    unfinished
        Leave out what is not there yet, and keep a page that is there and covers more.

    Raises
    ------
    InputError
        If the study was not scored yet, a cleaned section or prediction is missing, or (unless ``unfinished``) a stack
        or what a multi-task model says beyond the panel.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    scores, folds = load_scores(study), read_folds(study)
    asked = parts.parts_of(study, scores, folds)
    there = [name for name, done in asked.items() if done]
    if unfinished and covering(study, ready_models(study, folds, present=True), there):
        return study.run.report
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=number, percent=percent, span=span, plural=plural)
    coming = _coming(scores, asked)
    content = _content(study, scores, folds, there if unfinished else list(asked))
    content |= {"coming": coming, "run": None if run is None else parts.shown_run(study, run)}
    css, script = (Markup((here / name).read_text(encoding="utf-8")) for name in ("report.css", "viewer.js"))
    page = environment.get_template("report.html").render(css=css, viewer_js=script, **content)
    write_text(study.run.report, page)
    covers = {"study": study.hash(), "models": scores.models, "parts": there}
    write_json(study.run.evaluation / "covers.json", {**covers, "coming": coming})
    return study.run.report


def _coming(scores: Scores, asked: Mapping[str, bool]) -> list[str]:
    """Return what the study asks for and the page does not show yet: models with their folds, then parts."""
    models = scores.notes.get("coming", {})
    lines = [f"{title_of(name)} ({done} of {plural(total, 'fold')})" for name, (done, total) in models.items()]
    return [*lines, *(f"the part “{name}”" for name, done in asked.items() if not done)]


def _content(study: Study, scores: Scores, folds: list[dict[str, Any]], shown: Collection[str]) -> dict[str, Any]:
    run, main = study.run, scores.transforms[0]
    sections = Sections(study, folds)
    best = wording.best_model(scores, main)
    some = shown_sections(scores, best, main)
    data = data_tables(study, sections, some)
    pictures = _pictures(study, scores, folds, data.pop("patients"))
    beyond, drawn = parts.beyond_panel(study, sections, folds) if "Beyond the panel" in shown else (None, {})
    for name, figure in drawn.items():
        pictures[f"multitask_{name}"] = embed(figures.save(figure, run.evaluation / f"multitask_{name}.png"))
    terms = terms_of(scores)
    limited = bool(scores.summary[NOISE_CEILING].notna().any())
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
        "terms": terms,
        "metrics": METRICS.values(),
        "glossary": [
            (term, words.format(one=terms.one, many=terms.many))
            for name, (term, words) in {**wording.METRIC_WORDS, **wording.CEILING_WORDS}.items()
            if name in METRICS or (limited and name in wording.CEILING_WORDS)
        ]
        + ([tuple(words.format(many=terms.many) for words in wording.TRUST_WORDS)] if len(scores.trust) else [])
        + [
            (title_of(name), words.format(one=terms.one))
            for name, words in wording.MODEL_WORDS.items()
            if name in scores.models
        ],
        "left_out": {m: {"title": title_of(m), "why": why} for m, why in scores.notes.get("left_out", {}).items()},
        "transforms": [_transform(scores, name) for name in scores.transforms],
        "main_words": wording.TRANSFORM_WORDS.get(main, main),
        "stacked": parts.stacked(study, scores, folds) if "Stacked" in shown else None,
        "beyond": beyond,
        "distributions": parts.distributions(study),
        "others": parts.others(study),
        "synthetic": parts.synthetic(study),
        "audit": parts.audit(study),
        "by_section": by_section(scores, main, some),
        "genes": _genes(scores, main, best),
        "unscored": wording.listed({name: len(genes) for name, genes in scores.notes["unscored_genes"].items()}),
        "pooled_genes": len(scores.notes["pooled_genes"]),
        "draws": scores.notes["draws"],
        "block_mm": number(scores.notes["block_um"] / 1000, 1),
        "ks": scores.notes["k"],
        "ceiling": CEILING in scores.of(main).index,
        "limited": limited,
        "questions": wording.by_question(scores),
        "trust": trust(scores, main),
        "no_ceiling": wording.no_ceiling(scores),
        "encrypted": parts.encrypted(study),
        "one_party": parts.one_party(study),
        "figures": pictures,
        "viewer": _viewer(study, scores, best),
        "provenance": _provenance(study, scores),
    }


class Sections(Mapping[str, "AnnData"]):
    """The cleaned sections of all folds by name, each read when it is asked for; none is kept."""

    def __init__(self, study: Study, folds: list[dict[str, Any]]) -> None:
        kinds = ("train_sections", "validation_sections", "test_sections")
        self._run, self._names = study.run, sorted({name for fold in folds for kind in kinds for name in fold[kind]})

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
            known = {part: read_elem(file[part]) for part in ("obs", "var", "uns")}
        return AnnData(**known) if "total_counts" in known["obs"] else self[name]  # else the counts are added up

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def shown_sections(scores: Scores, model: str, transform: str) -> set[str]:
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
    write_table(study.run.evaluation / "data.csv", pd.DataFrame(rows), index=False)
    everywhere = len(rows) <= SECTIONS  # sections that only train are shown where there is room
    patients = {row["section"]: row["patient"] for row in rows}
    spots, dropped = (sum(row[key] for row in rows) for key in ("kept", "n_dropped"))
    return {
        "data": [row for row in rows if everywhere or row["section"] in some],
        "data_total": len(rows),
        "data_sentence": f"{plural(len(rows), 'section')} of {plural(len(set(patients.values())), 'patient')}; "
        f"{plural(spots, 'spot')} kept and {dropped} dropped, each for a stated reason.",
        "planted": [row for row in planted if row and (everywhere or row["section"] in some)],
        "patients": patients,
    }


def data_row(name: str, section: AnnData) -> dict[str, Any]:
    """Return what a reader wants to know about one section: what happened to it before any model."""
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

    hidden, there = planted(section), set(section.obs_names)
    row: dict[str, Any] = {"section": name}
    for key in ("off_tissue", "nan", "low_depth"):
        missed = [barcode for barcode in hidden[key] if barcode in there]
        row[key] = f"{len(hidden[key]) - len(missed)} of {len(hidden[key])}" if hidden[key] else "none planted"
        row[f"{key}_ok"] = not missed
    shift = np.asarray(hidden["shift_um"])
    alignment = as_mapping(as_mapping(section.uns.get("preprocessing")).get("alignment"))
    applied = bool(alignment.get("applied", False))
    moved = np.array([alignment["dx_um"], alignment["dy_um"]], dtype=float) if applied else np.zeros(2)
    left, planted_um = float(np.hypot(*(shift + moved))), float(np.hypot(*shift))
    # A shift counts as found where at least half of it is gone; an untouched section must stay untouched.
    row["shift_ok"] = left <= planted_um / 2 if planted_um else left < 1
    done = f"moved {left:.0f} µm" if applied else "left alone"
    row["shift"] = f"{planted_um:.0f} µm planted, {left:.0f} µm left" if planted_um else f"none planted, {done}"
    return row


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
            "title": row["title"],
            "role": row["role"],
            "cells": [{"value": v, "shade": round(max(0.0, v / top) * 0.55, 3)} for v in wide.loc[model]],
        }
        for model, row in order.iterrows()
    ]
    shares = rows.pivot(index="model", columns=["patient", "section"], values=SHARE).reindex(columns=wide.columns)
    for row, model in zip(table, order.index, strict=True):
        for cell_, part in zip(row["cells"], shares.loc[model], strict=True):
            cell_["share"] = part
    about = rows.drop_duplicates("section").set_index("section")
    columns = [
        {
            "patient": patient,
            "section": name,
            "spots": int(about.loc[name, "spots"]),
            "ceiling": about.loc[name, NOISE_CEILING],
        }
        for patient, name in wide.columns
    ]
    return {"columns": columns, "rows": table, "total": every}


def trust(scores: Scores, transform: str) -> list[dict[str, Any]]:
    """Return, model by model, whether training told which genes are predicted well on those held out."""
    table = scores.trust[scores.trust["transform"] == transform]
    rows = []
    for model, own in table.groupby("model", sort=False):
        means = own.groupby("patient")[["rank_agreement", "trusted", "rest"]].mean()
        training = sorted(set(own["training_patients"].astype(int)))
        row = {"title": title_of(model), "patients": len(means), **means.mean().to_dict()}
        row["better"] = int((means["trusted"] > means["rest"]).sum())
        row["left_out"] = " or ".join(sorted(set(own["left_out"])))
        rows.append(row | {"training": span(training[0], training[-1], 0) if len(training) > 1 else str(training[0])})
    return sorted(rows, key=lambda row: -row["trusted"])


def _key_figures(scores: Scores, main: str, best: str) -> list[dict[str, str]]:
    """Return the few figures beside the answer: value, label and note."""
    table = scores.of(main)
    row = table.loc[best]
    low_high = f"95 % interval {span(row['pearson_low'], row['pearson_high'])}"
    key = [(number(row["pearson"]), f"mean correlation, {title_of(best)}", low_high)]
    if best != wording.COLOUR and wording.COLOUR in table.index:
        pair = cell(scores.against(wording.COLOUR, main), best)
        said = pair["verdict"]
        verb = f"{said if said in ('beats', 'cannot be told from') else 'does not beat'} colour-only ridge"
        interval = f"95 % interval {span(pair['low'], pair['high'], sign=True)}"
        key.append((number(pair["difference"], sign=True), verb, interval))
    unit = terms_of(scores).unit
    note = f"{plural(int(row[f'{unit}s']), unit)}, each unseen"
    key.append((span(row[f"{unit}_min"], row[f"{unit}_max"]), f"from the worst {unit} to the best", note))
    if WITHIN in table:
        pair = scores.against(wording.MEAN_PROFILE, main, WITHIN).loc[best]
        profile = number(table.loc[wording.MEAN_PROFILE, WITHIN])
        note = f"{number(row[WITHIN])} beside {profile} for the same composition everywhere"
        label = "correlation within a spot, beyond the mean profile"
        key.append((number(pair["difference"], sign=True), label, note))
    if CEILING in table.index:
        note = f"the image carries about {number(table.loc[CEILING, 'pearson'])}"
        key.append((f"{100 * row['recovered']:.0f} %", "of what the image can tell", note))
    return [dict(zip(("value", "label", "note"), one, strict=True)) for one in key]


def _transform(scores: Scores, transform: str) -> dict[str, Any]:
    """Return the tables of one transform: scores with bars, within spots, differences from every baseline."""
    table = scores.of(transform).sort_values("pearson", ascending=False)
    low = min(0.0, float(table["pearson_low"].min()))
    high = max(float(table["pearson_high"].max()), low + 1e-3)

    def at(value: float) -> float:
        return round(100 * float((value - low) / (high - low)), 2) if np.isfinite(value) else 0.0

    baselines = [model for model in BASELINES if model in table.index]
    pairs = {name: scores.against(name, transform) for name in baselines}
    against = scores.against(wording.COLOUR, transform)
    rows = []
    for model, record in table.iterrows():
        bar = {k: at(record[k]) for k in ("pearson", "pearson_low", "pearson_high")} | {"zero": at(0.0)}
        rows.append({**record.to_dict(), "model": model, "bar": bar, "colour": cell(against, model)})
    best, within = wording.best_model(scores, transform), []
    if WITHIN in table:
        profile = scores.against(wording.MEAN_PROFILE, transform, WITHIN)
        ranked = table.sort_values(WITHIN, ascending=False)
        within = [{**record.to_dict(), "pair": cell(profile, model)} for model, record in ranked.iterrows()]
    return {
        "name": transform,
        "words": wording.TRANSFORM_WORDS.get(transform, transform),
        "rows": rows,
        "baselines": [title_of(name) for name in baselines],
        "paired": [
            {"title": title_of(model), "cells": [cell(pairs[name], model) for name in baselines]}
            for model in table.index
            if table.loc[model, "role"] == "model" or model == best
        ],
        "within": within,
    }


def _panel_size(scores: Scores) -> str:
    """Return how many names the folds' panels hold."""
    each = scores.genes.groupby("section")["gene"].nunique().drop(POOLED, errors="ignore")
    unscored = scores.notes["unscored_genes"]
    sizes = sorted({int(count) + len(unscored.get(name, ())) for name, count in each.items()})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _genes(scores: Scores, transform: str, best: str) -> dict[str, Any]:
    """Return the genes that are predicted best and worst."""
    by_gene = scores.by_gene(transform).groupby(["model", "gene"])
    by_gene = by_gene.agg(
        symbol=("symbol", "first"),
        pearson=("pearson", "mean"),
        moran=("moran_true", "mean"),
        sections=("section", "nunique"),
    )
    mine = by_gene.loc[best].sort_values("pearson", ascending=False)
    mine["colour"] = by_gene.loc[wording.COLOUR, "pearson"].reindex(mine.index)
    few = min(GENES_SHOWN, max(1, len(mine) // 2))
    records = mine.reset_index().to_dict("records")
    above = int((mine["pearson"] > mine["colour"]).sum())
    return {"top": records[:few], "bottom": records[-few:][::-1], "n": len(mine), "above_colour": above}


def _pictures(study: Study, scores: Scores, folds: list[dict], patients: dict[str, str]) -> dict[str, str | None]:
    """Draw the page's figures into ``evaluation/`` and return them as addresses, by name."""
    run, main = study.run, scores.transforms[0]
    best = wording.best_model(scores, main)
    models = [best, *(m for m in figures.picture_order(scores, main) if m not in (best, CEILING))]
    drawn = {
        "forest": figures.forest(scores, main),
        "folds": figures.fold_diagram(folds, patients),
        "genes": figures.gene_distribution(scores, main),
        "variance": figures.variance_curves(scores, main, models),
        "curves": figures.training_curves(training_curves(study, folds)),
    }
    addresses: dict[str, Any] = {
        name: None if figure is None else embed(figures.save(figure, run.evaluation / f"{name}.svg"))
        for name, figure in drawn.items()
    }
    strip, shown, about = section_maps(study, scores, best)
    drawn = {"strip": strip, "maps": shown}
    saved = {name: embed(figures.save(figure, run.evaluation / f"{name}.png")) for name, figure in drawn.items()}
    return addresses | saved | {"maps_about": about}


def training_curves(study: Study, folds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the training curves of some folds: model -> fold -> table."""
    curves: dict[str, dict[str, Any]] = {}
    for fold in spread([fold["name"] for fold in folds], FOLDS):
        for model in study.model_names:
            path = study.run.model(model, fold) / "curves.csv"
            if path.is_file():
                curves.setdefault(model, {})[fold] = read_table(path)
    return curves


def section_maps(
    study: Study, scores: Scores, best: str, *, patient: str = "", drawn: AnnData | None = None
) -> tuple[Any, Any, str]:
    """Map the best, the median and the worst gene, ranked before the test, in the section with the median score.

    Parameters
    ----------
    best
        The model.
    patient
        Whose sections are looked at; empty: everybody's.
    drawn
        Another prediction of that section, such as a decrypted one; None: the run's own.

    Returns
    -------
    The best alone, without residuals; all three; and what they are of.
    """
    main = scores.transforms[0]
    rows = scores.sections
    mine = rows[(rows["model"] == best) & (rows["transform"] == main)].sort_values("pearson")
    mine = mine[mine["patient"] == patient] if patient else mine
    typical = mine.iloc[len(mine) // 2]
    name, fold = typical["section"], typical["fold"]
    section = read_h5ad(study.run.section(name), what="cleaned section")
    drawn = PredictionFile(study.run.prediction(best, fold)).of(name) if drawn is None else drawn
    pair = join(drawn, section, name, transforms=[main])
    table = scores.by_gene(main)
    table = table[(table["model"] == best) & (table["section"] == name)].set_index("gene")
    ranked = table["validation_pearson"].dropna().sort_values(ascending=False)
    ranked = ranked if len(ranked) else table["pearson"].sort_values(ascending=False)
    picked = {"best": ranked.index[0], "median": ranked.index[len(ranked) // 2], "worst": ranked.index[-1]}
    panels = []
    for label, gene in picked.items():
        column = int(np.flatnonzero(pair.genes == gene)[0])
        true, predicted = pair.true[main][:, column], pair.predicted[main][:, column]
        r = number(float(pearson(true[:, None], predicted[:, None])[0]), 2)
        title = f"{pair.symbols[column]} ({label})\nr = {r}"
        panels.append({"title": title, "true": true, "predicted": predicted})
    image, scale = maps.backdrop(section, study.run.tiles(name))
    um_per_px = float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0))
    coords = pair.coords * scale
    spacing = spot_pitch(coords)
    look = {"um_per_unit": um_per_px / scale, "spacing": spacing, "image": image}
    top = [panels[0] | {"title": panels[0]["title"].replace(" (best)", "")}]
    strip = maps.side_by_side(top, coords, residual=False, **look)
    figure = maps.side_by_side(panels, coords, **look)
    return strip, figure, f"Section {name} of patient {typical['patient']}, predicted by {title_of(best)}"


def _viewer(study: Study, scores: Scores, best: str) -> dict[str, Any]:
    """Return what the viewer's tab holds, its first view drawn as a still picture for readers without scripts."""
    content = viewer_content(study, scores, best)
    view = content.pop("view", None)
    if view is not None:
        content["still"] = embed(figures.save(views.draw(view), study.run.evaluation / "viewer.png"))
    return content


def _provenance(study: Study, scores: Scores) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    file = Path(study.folder) / f"{study.name}.yaml"
    inside = file.is_relative_to(paths.repository())
    shown = file.relative_to(paths.repository()).as_posix() if inside else file.name
    models = [name for name in study.scored_names if name not in scores.notes.get("coming", {})]
    return {
        "hash": study.hash(),
        "seed": study.seed,
        "date": datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": versions,
        "command": f"histocrypt run {shown}",
        "stain": study.preprocessing.stain,
        "tile": f"{study.preprocessing.tile_um:g} µm as {study.preprocessing.tile_px} px",
        "models": ", ".join(title_of(name) for name in models),
    }
