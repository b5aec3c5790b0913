"""How much of a study with many sections a page shows: some sections and folds by rule, and where the rest is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.evaluation.facts import data_row, data_sentence, planted_row
from histocrypt.evaluation.truth import h5ad_errors, read_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.evaluation.scores import Scores
    from histocrypt.study import Study

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
