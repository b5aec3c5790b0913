"""The viewer of the report: a few sections and genes of every model, small enough to travel inside the page.

What is embedded is chosen by rule, and the page says by which: sections and genes spread evenly from the best
predicted to the worst, and the genes that the study names (``evaluation.markers``). Values travel as 16-bit steps of
each gene's range in each section, spots as discs over one small JPEG of the section.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation import maps, wording
from histocrypt.evaluation.figures import embed_bytes
from histocrypt.evaluation.scores import title_of
from histocrypt.pipeline.predictions import some
from histocrypt.report import views
from histocrypt.report.views import find_gene
from histocrypt.spatial import spot_pitch
from histocrypt.targets.matrix import noun

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.evaluation.scores import Scores
    from histocrypt.report.views import Views
    from histocrypt.study import Study

STEPS = 2**16 - 1
JPEG_QUALITY = 72
SECTIONS, GENES, FEWEST_GENES = 6, 24, 3
BUDGET = 2_500_000
"""Characters of the page that values and spots may take; pictures of tissue come on top, some 50 kB each."""
PER_SPOT, PER_VALUE = 36, 8 / 3
"""Characters: a spot's name and place; two bytes in base64."""


@dataclass(frozen=True)
class Choice:
    """What the page holds, and what it leaves out."""

    sections: list[str]
    genes: list[str]
    """Gene ids, best predicted first."""
    markers: list[str]
    """Those of ``genes`` that the study names."""
    unknown: list[str]
    """Names in the study that are in no panel."""
    too_large: list[str]
    """Sections with too many spots for a page."""


def choose(views: Views, scores: Scores, model: str) -> Choice:
    """Choose sections and genes by how well ``model`` predicts them, on the main transform, within `BUDGET`."""
    main = scores.transforms[0]
    table = scores.sections
    table = table[(table["model"] == model) & (table["transform"] == main) & table["section"].isin(views.sections)]
    spots = table.set_index("section")["spots"]
    columns = 1 + len(views.models)

    def cost(names: list[str], genes: int) -> float:
        return sum(spots[name] * (PER_SPOT + PER_VALUE * columns * genes) for name in names)

    fitting = [name for name in spots.index if cost([name], FEWEST_GENES) <= BUDGET]
    ranked = table[table["section"].isin(fitting)].sort_values("pearson", ascending=False)["section"].tolist()
    markers, unknown = _markers(views)
    by_gene = gene_ranking(scores, model, main)
    by_gene = by_gene[by_gene.index.isin(views.genes)]
    sections, most = min(SECTIONS, len(ranked)), min(GENES, len(by_gene))
    fewest = min(max(FEWEST_GENES, len(markers)), most)
    while sections > 1 and cost(spread(ranked, sections), fewest) > BUDGET:
        sections -= 1
    chosen = spread(ranked, sections)
    while most > fewest and cost(chosen, most) > BUDGET:
        most -= 1
    own = [gene for gene in by_gene.index if gene in markers][:most]
    others = spread([gene for gene in by_gene.index if gene not in own], most - len(own))
    genes = [gene for gene in by_gene.index if gene in {*own, *others}]
    return Choice(chosen, genes, own, unknown, [name for name in spots.index if name not in fitting])


def spread(ranked: Sequence[str], count: int) -> list[str]:
    """Return ``count`` names spread evenly over a ranking: the first, the last, and the middle of an odd number."""
    if count <= 0 or not ranked:
        return []
    if count == 1:
        return [ranked[len(ranked) // 2]]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[place] for place in np.unique(np.round(places).astype(int))]


def gene_ranking(scores: Scores, model: str, transform: str) -> pd.Series:
    """Return each gene's mean correlation over sections, best first; genes that vary in no section are left out."""
    each = scores.by_gene(transform)
    return each[each["model"] == model].groupby("gene")["pearson"].mean().sort_values(ascending=False, kind="stable")


def _markers(views: Views) -> tuple[list[str], list[str]]:
    found, unknown = [], []
    names = views.genes
    for given in views.study.evaluation.markers:
        try:
            found.append(find_gene(list(names), list(names.values()), given, where="in any panel"))
        except InputError:
            unknown.append(given)
    return list(dict.fromkeys(found)), unknown


def viewer_content(study: Study, scores: Scores, model: str) -> dict[str, Any]:
    """Return what the template needs: the data of the script, the still picture, and the sentences around them.

    Parameters
    ----------
    study
        A scored study.
    scores
        Its tables.
    model
        The model that the page opens with, and by which sections and genes are ranked.
    """
    every = views.Views(study, models=scores.models)
    choice = choose(every, scores, model)
    doubted = doubted_genes(every, choice, model)
    start = _start(scores, model, choice, doubted)
    content: dict[str, Any] = {"about": about(every, scores, choice, model), "still": None, "data": None}
    content["noun"] = noun(study.target.matrix)
    if start is None:
        return content
    view = every.view(**start)
    content["view"], content["said"] = view, views.sentence(view)
    content["data"] = {
        "models": [{"id": name, "title": title_of(name)} for name in every.models],
        "genes": [
            {"id": gene, "name": name, "marker": gene in choice.markers, "doubted": gene in doubted}
            for gene, name in sorted(_labels(choice.genes, every.genes).items(), key=lambda one: one[0] in doubted)
        ],
        "noun": content["noun"],
        "units": wording.TRANSFORM_WORDS.get(view.transform, view.transform),
        "colours": {"values": stops(maps.VALUES), "residuals": stops(maps.RESIDUALS)},
        "touching": maps.TOUCHING,
        "steps": STEPS,
        "start": start,
        "sections": [_section(every, choice, name) for name in sorted(choice.sections)],
    }
    return content


def _start(scores: Scores, model: str, choice: Choice, doubted: set[str]) -> dict[str, str] | None:
    """Return the first view: the middle section, and the best predicted gene that can be seen in it, trusted first."""
    if not choice.sections:
        return None
    section = choice.sections[len(choice.sections) // 2]
    each = scores.genes
    there = set(each[(each["section"] == section) & (each["model"] == model)]["gene"])
    order = sorted(choice.genes, key=lambda gene: gene in doubted)
    genes = [gene for gene in [*choice.markers, *order] if gene in there]
    return {"model": model, "section": section, "gene": genes[0]} if genes else None


def doubted_genes(every: Views, choice: Choice, model: str) -> set[str]:
    """Return the genes that a model does not trust in any fold of the sections shown; none where it does not tell."""
    files = [every.prediction(model, fold) for fold in dict.fromkeys(every.fold_of[name] for name in choice.sections)]
    told = [worth for file in files if (worth := file.trusted(every.transforms[0])) is not None]
    worthy = {gene for worth in told for gene in worth.index[worth]}
    return set(choice.genes) - worthy if told else set()


def about(every: Views, scores: Scores, choice: Choice, model: str) -> list[str]:
    """Return how what the page holds was chosen, what it leaves out, and where the rest is."""
    main = wording.TRANSFORM_WORDS.get(scores.transforms[0], scores.transforms[0])
    lines, one = [], noun(every.study.target.matrix)
    if choice.sections:
        own = " and those that the study names" if choice.markers else ""
        by = f"spread from the best predicted to the worst by {title_of(model)}{own}"
        partly = len(choice.sections) < len(every.sections) or len(choice.genes) < len(every.genes)
        lines.append(
            f"This page holds {len(choice.sections)} of {wording.plural(len(every.sections), 'section')} and "
            f"{len(choice.genes)} of {wording.plural(len(every.genes), one)} in {main}{', ' + by if partly else ''}."
        )
    if choice.too_large:
        lines.append(f"Too many spots for a page: {some(choice.too_large, 24)}.")
    if choice.unknown:
        lines.append(f"Named in the study but in no panel: {', '.join(choice.unknown)}.")
    lines.append(f"Every section, {one} and target transform: notebooks/72_viewer.ipynb in JupyterLab.")
    return lines


def _labels(genes: list[str], names: dict[str, str]) -> dict[str, str]:
    """Return readable names by id; where two genes share a symbol, the id stands beside it."""
    shown = [names[gene] for gene in genes]
    return {
        gene: name if shown.count(name) == 1 else f"{name} ({gene})" for gene, name in zip(genes, shown, strict=True)
    }


def _section(every: Views, choice: Choice, section: str) -> dict[str, Any]:
    """Return one section's spots, picture and genes; a gene or model that is missing there says why."""
    seen: dict[str, dict[str, views.View]] = {gene: {} for gene in choice.genes}
    missing: dict[str, dict[str, str]] = {gene: {} for gene in choice.genes}
    for model in every.models:
        for gene in choice.genes:
            try:
                seen[gene][model] = every.view(model, section, gene)
            except InputError as error:
                missing[gene][model] = str(error)
    by_model = {model: view for views_ in seen.values() for model, view in views_.items()}
    xy = {name: at for view in by_model.values() for name, at in zip(view.barcodes, view.coords, strict=True)}
    coords = np.array(list(xy.values())) if xy else np.zeros((1, 2))
    tissue, pitch = every.tissue(section), spot_pitch(coords)
    low, high = maps.window(coords, pitch)
    bar = maps.bar_length((high[0] - low[0]) * tissue.um_per_unit)
    return {
        "id": section,
        "patient": next((view.patient for view in by_model.values()), ""),
        "spots": list(xy),
        "x": np.round(coords[:, 0], 1).tolist(),
        "y": np.round(coords[:, 1], 1).tolist(),
        "window": np.round([*low, *high], 1).tolist(),
        "pitch": round(pitch, 2),
        "diameter": round(tissue.diameter, 2) if tissue.diameter else None,
        "bar": {"length": round(bar / tissue.um_per_unit, 2), "label": maps.length_words(bar)},
        "picture": _jpeg(tissue.picture),
        "genes": {gene: {"missing": missing[gene], **_gene(seen[gene], list(xy))} for gene in choice.genes},
    }


def _gene(seen: dict[str, views.View], spots: list[str]) -> dict[str, Any]:
    """Return one gene in one section: measured and predicted values in steps between ``low`` and ``high``."""
    if not seen:
        return {}
    everything = np.concatenate([np.concatenate([view.true, view.predicted]) for view in seen.values()])
    low, high = float(everything.min()), float(everything.max())
    place = {name: i for i, name in enumerate(spots)}
    true, by_model = np.full(len(spots), low), {}
    for model, view in seen.items():
        rows = [place[name] for name in view.barcodes]
        predicted = np.full(len(spots), low)
        true[rows], predicted[rows] = view.true, view.predicted
        by_model[model] = {
            "predicted": _packed(predicted, low, high),
            "limits": [round(value, 4) for value in maps.colour_limits(view.true, view.predicted)],
            "r": wording.number(view.pearson),
            "notes": " ".join(view.notes),
            "absent": np.setdiff1d(np.arange(len(spots)), rows).tolist(),
        }
    return {"low": low, "high": high, "true": _packed(true, low, high), "models": by_model}


def _packed(values: np.ndarray, low: float, high: float) -> str:
    steps = np.round((values - low) / ((high - low) or 1.0) * STEPS)
    return base64.b64encode(steps.astype("<u2").tobytes()).decode()


def _jpeg(picture: np.ndarray | None) -> dict[str, Any] | None:
    from PIL import Image

    if picture is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    height, width = picture.shape[:2]
    return {"width": width, "height": height, "source": embed_bytes(buffer.getvalue(), ".jpg")}


def stops(cmap: str, count: int = 33) -> list[list[int]]:
    """Return ``count`` colours (red, green, blue; 0 to 255) spread evenly over a colour map."""
    from matplotlib import colormaps

    return np.round(colormaps[cmap](np.linspace(0, 1, count))[:, :3] * 255).astype(int).tolist()
