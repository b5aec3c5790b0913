"""Predictions of others beside a study's own models: the same held-out sections, spots, genes, blocks and scores.

Each of the study's ``others`` is compared on what it and the models both predict, so that neither its gaps nor those of
a second one move any score of `evaluation.scores`. Nothing of it was trained here: whether its makers saw a patient is
not known, and nothing in a score can tell. Written to ``evaluation/``: ``others.csv`` and ``others.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap
from histocrypt.evaluation.bootstrap import Draws
from histocrypt.evaluation.compare import shared
from histocrypt.evaluation.score_file import join_counts
from histocrypt.evaluation.scores import (
    CEILING,
    covering,
    paired_rows,
    read_folds,
    ready_models,
    test_sections,
    title_of,
)
from histocrypt.evaluation.section_scores import score_section
from histocrypt.files import read_json, read_table, write_json, write_table
from histocrypt.pipeline.foreign import UNITS, knows_units, says_section
from histocrypt.pipeline.predictions import as_mapping, read_h5ad
from histocrypt.predictors.registry import BASELINES

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from histocrypt.pipeline.predictions import Joined
    from histocrypt.study import Study

TABLE, NOTES = "others.csv", "others.json"


@dataclass(frozen=True)
class Beside:
    """What predictions of others reach beside the models of a study."""

    table: pd.DataFrame
    """One row per ``other``, ``transform`` and ``model`` (itself, with role ``other``, first): ``title``, ``role``,
    ``pearson`` with ``low`` and ``high`` on what both predict; of a model also ``difference``, ``difference_low`` and
    ``difference_high``, the other's less the model's, and ``patients_better`` of ``patients``."""
    notes: dict[str, Any]
    """By other: ``title``, ``sections``, ``spots``, ``genes`` (fewest and most of a section), ``missing`` sections,
    ``joined`` (how, a sentence each) and ``units`` (None: not stated)."""


class _Scored:
    """What was scored of one of the others so far."""

    def __init__(self, name: str, models: list[str]) -> None:
        self.name, self.models = name, models
        self.pairs = [(name, model) for model in models]
        self.draws = Draws(self.pairs)
        self.rows: list[dict[str, Any]] = []
        self.genes: list[int] = []
        self.missing: list[str] = []
        self.joined: list[str] = []
        self.known_units = True


def score_others(study: Study, *, unfinished: bool = False) -> Beside | None:
    """Score the predictions of others that a study names beside its models, and write the tables.

    Parameters
    ----------
    study
        Scored by `scores.score_study`.
    unfinished
        Beside the models that are finished; what covers more is kept, and returned.

    Returns
    -------
    None where the study names no others.

    Raises
    ------
    InputError
        If a file cannot be read or joined, or holds no held-out section.
    """
    if not study.others:
        return None
    folds = read_folds(study)
    models = ready_models(study, folds, present=unfinished)
    if unfinished and covering(study, models) and (study.run.evaluation / TABLE).is_file():
        return load_others(study)
    found = {name: _Scored(name, models) for name in study.others}
    cache: dict[Path, AnnData] = {}
    seeds = np.random.SeedSequence(study.seed)
    for _, _, joined, _, _ in test_sections(study, folds, models):
        joined.pop(CEILING, None)
        section = next(iter(joined.values())).section
        rng = np.random.default_rng(seeds.spawn(1)[0])
        counted = read_h5ad(study.run.section(section), what="cleaned section")
        for one in found.values():
            theirs = _predicted(study, one, section, counted, cache)
            if theirs is not None:
                _score(study, one, theirs, joined, counted, rng.spawn(1)[0])
    tables = []
    for one in found.values():
        if not one.rows:
            problem, first = "predicts no section that the study holds out", one.missing[0]
            where = {"file": study.others_file(one.name, first), "field": f"others.{one.name}.path"}
            raise InputError(problem, **where, expected=f"spots of {first}", fix="name the section in a column of obs")
        tables.append(_table(study, one))
    beside = Beside(pd.concat(tables, ignore_index=True), {name: _notes(study, one) for name, one in found.items()})
    write_table(study.run.evaluation / TABLE, beside.table, index=False, float_format="%.9g")
    write_json(study.run.evaluation / NOTES, beside.notes)
    return beside


def load_others(study: Study) -> Beside | None:
    """Read what `score_others` wrote; None where it is not there."""
    table, notes = (study.run.evaluation / name for name in (TABLE, NOTES))
    if not study.others or not (table.is_file() and notes.is_file()):
        return None
    return Beside(read_table(table, keep_default_na=False, na_values=[""]), read_json(notes))


def _predicted(study: Study, one: _Scored, section: str, counted: AnnData, cache: dict[Path, AnnData]) -> Joined | None:
    """Return predictions of others beside what was measured of a section; None where there are none."""
    path, source = study.others_file(one.name, section), study.others[one.name]
    if not path.is_file():
        one.missing.append(section)
        return None
    own = "{section}" in source.path
    read = cache.get(path) or read_h5ad(path, what="prediction file")
    if not own:
        cache[path] = read
        if not says_section(read, section):
            one.missing.append(section)
            return None
    against = [name for name in study.target.transforms if name in UNITS]
    how = {"units": source.units, "against": against}
    predicted, pair, said = join_counts(read, counted, file=path, name=section, **how)
    one.known_units &= knows_units(predicted)
    one.joined += said
    return pair


def _score(
    study: Study, one: _Scored, theirs: Joined, joined: Mapping[str, Joined], counted: AnnData, rng: np.random.Generator
) -> None:
    """Score one section under the other and every model, on the spots and genes that both predict."""
    transforms = [name for name in study.target.transforms if name in theirs.predicted]
    if not transforms:
        raise InputError(
            "has units that differ from the study's",
            file=study.others_file(one.name, theirs.section),
            value=", ".join(theirs.predicted),
            expected=", ".join(study.target.transforms),
        )
    both = {}
    for model, ours in joined.items():
        pairs = theirs, ours
        rows, columns, _, _ = shared(pairs, counted, None, study.others_file(one.name, theirs.section))
        kept = [_part(pair, *of, transforms) for pair, *of in zip(pairs, rows, columns, strict=True)]
        both = both or {one.name: kept[0]}  # all models predict the same spots and genes
        both[model] = kept[1]
    scored = score_section(
        both,
        um_per_px=float(as_mapping(counted.uns.get("preprocessing")).get("um_per_px", 1.0)),
        block_um=study.evaluation.block_um,
        draws=study.evaluation.bootstrap,
        rng=rng,
    )
    one.rows += scored.rows
    one.draws.add(scored.draws)
    one.genes.append(len(both[one.name].genes))


def _part(pair: Joined, rows: np.ndarray, columns: np.ndarray, transforms: list[str]) -> Joined:
    """Return some spots and genes of a pair, in this order."""

    def part(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[name][np.ix_(rows, columns)] for name in transforms}

    named = {"spots": pair.spots[rows], "coords": pair.coords[rows]}
    named |= {"genes": pair.genes[columns], "symbols": pair.symbols[columns]}
    return replace(pair, **named, true=part(pair.true), predicted=part(pair.predicted))


def _table(study: Study, one: _Scored) -> pd.DataFrame:
    sections, rows = pd.DataFrame(one.rows), []
    transforms = [name for name in study.target.transforms if name in set(sections["transform"])]
    pairs = paired_rows(transforms, one.pairs, sections, one.draws)
    pairs = pairs[pairs["metric"] == "pearson"].set_index(["transform", "baseline"])
    for transform in transforms:
        means = sections[sections["transform"] == transform].groupby("model", sort=False)["pearson"].mean()
        for model in [one.name, *one.models]:
            low, high = bootstrap.interval(one.draws.mean(transform, "pearson", model), float(means[model]))
            own = model == one.name
            role = "other" if own else "baseline" if model in BASELINES else "model"
            row = {"other": one.name, "transform": transform, "model": model}
            row |= {"title": _title(study, model) if own else title_of(model), "role": role}
            row |= {"pearson": float(means[model]), "low": low, "high": high}
            if not own:
                pair = pairs.loc[(transform, model)]
                row |= {"difference": pair["difference"], "difference_low": pair["low"]}
                row |= {"difference_high": pair["high"]}
                row |= {name: pair[name] for name in ("patients_better", "patients", "sections_better", "sections")}
            rows.append(row)
    return pd.DataFrame(rows)


def _title(study: Study, name: str) -> str:
    return study.others[name].title or name


def _notes(study: Study, one: _Scored) -> dict[str, Any]:
    rows = [row for row in one.rows if row["model"] == one.name]
    spots = {row["section"]: row["spots"] for row in rows}
    return {
        "title": _title(study, one.name),
        "sections": list(spots),
        "spots": sum(spots.values()),
        "genes": [min(one.genes), max(one.genes)],
        "missing": one.missing,
        "joined": list(dict.fromkeys(one.joined)),
        "units": study.others[one.name].units if one.known_units else None,
        "known_units": one.known_units,
    }
