"""Which sections and genes travel inside the report: few enough for a page, spread over good and bad ones by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation.scores import POOLED
from histocrypt.evaluation.views import find_gene

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.evaluation.scores import Scores
    from histocrypt.evaluation.views import Views

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


def spread(ranked: list[str], count: int) -> list[str]:
    """Return ``count`` names spread evenly over a ranking: the first, the last, and the middle of an odd number."""
    if count <= 0 or not ranked:
        return []
    if count == 1:
        return [ranked[len(ranked) // 2]]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[place] for place in np.unique(np.round(places).astype(int))]


def gene_ranking(scores: Scores, model: str, transform: str) -> pd.Series:
    """Return each gene's mean correlation over sections, best first; genes that vary in no section are left out."""
    each = scores.genes
    keep = (each["model"] == model) & (each["transform"] == transform) & (each["section"] != POOLED)
    each = each[keep & ~each["constant_truth"].astype(bool)]
    return each.groupby("gene")["pearson"].mean().sort_values(ascending=False, kind="stable")


def _markers(views: Views) -> tuple[list[str], list[str]]:
    found, unknown = [], []
    names = views.genes
    for given in views.study.evaluation.markers:
        try:
            found.append(find_gene(list(names), list(names.values()), given, where="in any panel"))
        except InputError:
            unknown.append(given)
    return list(dict.fromkeys(found)), unknown
