"""Score every model of a study on the patients that each fold held out.

Written to ``evaluation/``: ``scores.csv`` (one row per model, section, transform and gene; section ``pooled`` too),
``summary.csv`` (one row per model and transform), ``paired.csv`` (each model against each baseline, a stack against
every model, on shared bootstrap draws), ``sections.csv`` (mean correlation by section, with its patient) and
``notes.json`` (what was not scored). Panels of cell types are also scored within spots (``within_spot`` in all but the
first).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt import paths
from histocrypt.data.folds import BY_SECTION
from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.evaluation.bootstrap import Draws
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.paths import RunFolder
from histocrypt.pipeline.predictions import Joined, PredictionFile, as_mapping, join, read_h5ad, some
from histocrypt.predictors.registry import BASELINES, MODELS, NEEDS_COUNTS, STACKS
from histocrypt.study import Study

if TYPE_CHECKING:
    from anndata import AnnData

# ---- pooled
# All test spots together: scores that need every spot of a gene at once, without holding every gene at once.
#
# A rank needs all values of a gene. Values of each section are set aside in an unnamed file of the cache folder, gene
# by gene, and come back a few genes at a time: memory grows with the spots of one gene, not with all that was
# predicted.


POOLED = "pooled"
AT_ONCE = 2**20
"""Values (spots x genes) that are in memory at a time."""


@dataclass(frozen=True)
class _Block:
    """Where the values of one section lie: genes x spots."""

    offset: int
    genes: np.ndarray
    """(g,) str, sorted."""
    spots: int
    dtype: np.dtype


class Pool:
    """Measured and predicted values of every section, transform and model; use as a context manager."""

    def __init__(self) -> None:
        paths.cache().mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=paths.cache())
        # By section: one model may be scored on some sections only, as the ceiling is.
        self._true: dict[str, dict[str, _Block]] = {}
        self._predicted: dict[tuple[str, str], dict[str, _Block]] = {}
        self._symbols: dict[str, str] = {}
        self._last = np.empty(0, dtype=str)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, transform: str, model: str, pair: Joined, true: np.ndarray, predicted: np.ndarray) -> None:
        """Set aside one section under one model: (n, g) values, spots in the order that all models share."""
        measured = self._true.setdefault(transform, {})
        if pair.section not in measured:  # what was measured is the same for all models
            measured[pair.section] = self._written(pair.genes, true)
            for gene, symbol in zip(pair.genes.tolist(), pair.symbols.tolist(), strict=True):
                self._symbols.setdefault(gene, symbol)
        self._predicted.setdefault((transform, model), {})[pair.section] = self._written(pair.genes, predicted)

    def _written(self, genes: np.ndarray, values: np.ndarray) -> _Block:
        order = np.argsort(genes)
        names = genes[order]
        if np.array_equal(names, self._last):
            names = self._last  # one copy of the names for all that have the same
        self._last = names
        block = np.ascontiguousarray(values[:, order].T)
        single = block.astype(np.float32)
        if np.array_equal(single, block):  # as nearly always: targets and predictions are of single precision
            block = single
        offset = self._file.seek(0, 2)
        self._file.write(block.data)
        return _Block(offset, names, block.shape[1], block.dtype)

    def _values(self, blocks: list[_Block], genes: np.ndarray) -> np.ndarray:
        """Return (n, len(genes)) float64, spots section by section."""
        found = np.empty((sum(block.spots for block in blocks), len(genes)))
        start = 0
        for block in blocks:
            length = block.spots * block.dtype.itemsize
            for column, row in enumerate(np.searchsorted(block.genes, genes).tolist()):
                self._file.seek(block.offset + row * length)
                found[start : start + block.spots, column] = np.frombuffer(self._file.read(length), block.dtype)
            start += block.spots
        return found

    def common(self) -> list[str]:
        """Return the genes that every fold predicted and every section measured."""
        every = {id(block.genes): block.genes for blocks in self._true.values() for block in blocks.values()}
        return sorted(set.intersection(*(set(genes.tolist()) for genes in every.values()))) if every else []

    def tables(self) -> list[pd.DataFrame]:
        """Return the scores of all test spots together, one table a transform and model; none without a common gene."""
        common = np.array(self.common(), dtype=str)
        if not len(common):
            return []
        tables = []
        for (transform, model), predicted in self._predicted.items():
            true, blocks = [self._true[transform][section] for section in predicted], list(predicted.values())
            few = max(1, AT_ONCE // sum(block.spots for block in true))
            parts = [common[start : start + few] for start in range(0, len(common), few)]
            scored = [metrics.per_gene(self._values(true, part), self._values(blocks, part)) for part in parts]
            keys = {"model": model, "fold": "all", "section": POOLED, "patient": "all", "transform": transform}
            names = {"gene": common, "symbol": [self._symbols[gene] for gene in common.tolist()]}
            table = pd.DataFrame({name: np.concatenate([one[name] for one in scored]) for name in scored[0]})
            tables.append(table.assign(**keys, **names))
        return tables


# ---- section scores
# Score one section under every model: gene by gene, within spots, and in every bootstrap draw.


CEILING = "image_signal"
CEILING_TRANSFORM = "log1p_cp10k"
FEW_BLOCKS = 4
WITHIN = "within_spot"
"""The correlation within a spot, over a panel of cell types."""


@dataclass
class Tally:
    """What is gathered section by section: tables, and what keeps values and draws without piling them up."""

    draws: Draws
    pool: Pool
    rows: list[pd.DataFrame] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)
    unscored: dict[str, list[str]] = field(default_factory=dict)
    few_blocks: dict[str, int] = field(default_factory=dict)


def score_section(
    study: Study, fold: str, section: Any, joined: dict[str, Joined], rankings: dict, rng: Any, tally: Tally
) -> None:
    """Score a test section under every model, all on the same bootstrap draws of its blocks, into ``tally``.

    Parameters
    ----------
    study
        The study.
    fold
        The fold that holds the section out.
    section
        The cleaned section.
    joined
        Model -> predictions beside measurements.
    rankings
        Model -> transform -> each gene's correlation on validation data.
    rng
        Of the draws.
    tally
        Where rows, draws and notes go.

    Raises
    ------
    InputError
        If two models predict different genes.
    """
    first = next(iter(joined.values()))
    um_per_px = float(as_mapping(section.uns.get("preprocessing", {})).get("um_per_px", 1.0))
    labels = bootstrap.block_labels(first.coords * um_per_px, study.evaluation.block_um)
    weights = bootstrap.draw_weights(labels.max() + 1, study.evaluation.bootstrap, rng)
    graph = metrics.neighbour_graph(first.coords)
    position = {spot: i for i, spot in enumerate(first.spots)}
    drawn: dict[tuple[str, str, str], np.ndarray] = {}
    if first.unscored_genes:
        tally.unscored[first.section] = first.unscored_genes
    if labels.max() + 1 < FEW_BLOCKS:
        tally.few_blocks[first.section] = int(labels.max() + 1)
    if CEILING in section.layers and CEILING_TRANSFORM in study.target.transforms:
        joined = {**joined, CEILING: _ceiling(section, first)}
    for transform in study.target.transforms:
        true_moran: pd.Series | None = None
        for model, pair in joined.items():
            if transform not in pair.predicted:
                continue
            if set(pair.genes) != set(first.genes):
                raise InputError(
                    f"fold {fold!r}: models {model!r} and {next(iter(joined))!r} predict different genes",
                    file=study.run.prediction(model, fold),
                    fix="train both on the same panel",
                )
            order = np.argsort([position[spot] for spot in pair.spots])  # all models in one order of spots
            true, predicted = pair.true[transform][order], pair.predicted[transform][order]
            if true_moran is None:
                true_moran = pd.Series(metrics.morans_i(true, graph), index=pair.genes)
            moran = metrics.morans_i(predicted, graph)
            known_moran = true_moran[pair.genes].to_numpy()
            table = pd.DataFrame(metrics.per_gene(true, predicted))
            table["moran_true"], table["moran_predicted"] = known_moran, moran
            table["moran_error"] = np.abs(moran - known_moran)
            ranking = rankings.get(model, {}).get(transform)
            rank = None if ranking is None else ranking.reindex(pair.genes).to_numpy()
            table["validation_pearson"] = np.nan if rank is None else rank
            keys = {"model": model, "fold": fold, "section": pair.section, "patient": pair.patient}
            names = {"transform": transform, "gene": pair.genes, "symbol": pair.symbols}
            tally.rows.append(table.assign(**keys, **names)[[*keys, *names, *table.columns]])
            sums = bootstrap.block_sums(true, predicted, labels)
            drawn[transform, "pearson", model] = bootstrap.pearson_of_draws(sums, weights)
            drawn[transform, "mse", model] = bootstrap.mse_of_draws(sums, weights)
            r = table["pearson"].to_numpy()
            usable = ~table["constant_truth"].to_numpy()
            row = {**keys, "transform": transform, "spots": len(true), "genes": int(usable.sum())}
            row |= {"blocks": int(labels.max() + 1), "pearson": r[usable].mean() if usable.any() else np.nan}
            row["mse"] = table["mse"].to_numpy()[usable].mean() if usable.any() else np.nan
            for k in study.evaluation.k:
                row[f"pcc_{k}_training"] = metrics.mean_of_top(r, rank, k) if rank is not None else np.nan
                row[f"pcc_{k}_published"] = metrics.mean_of_top(r, r, k)
            if study.target.matrix is not None:
                spots = metrics.within_spot(true, predicted)
                drawn[transform, WITHIN, model] = bootstrap.mean_of_draws(spots, labels, weights)
                known = np.isfinite(spots)
                row[WITHIN] = spots[known].mean() if known.any() else np.nan
                row[f"{WITHIN}_spots"], row[f"{WITHIN}_undefined"] = int(known.sum()), int((~known).sum())
            tally.sections.append(row)
            tally.pool.add(transform, model, pair, true, predicted)
    tally.draws.add(drawn)


def _ceiling(section: Any, like: Joined) -> Joined:
    """Return the simulator's noise-free, image-borne expression as if a model had predicted it."""
    rows = section.obs_names.get_indexer([spot.removeprefix(f"{like.section}:") for spot in like.spots])
    signal = section.layers[CEILING][rows][:, section.var_names.get_indexer(like.genes)]
    signal = signal.toarray() if hasattr(signal, "toarray") else np.asarray(signal)
    return Joined(**{**like.__dict__, "predicted": {CEILING_TRANSFORM: signal.astype(np.float64)}})


# ---- scores


CEILING_TITLE = "Ceiling: what the image carries"
MEANS = ("pearson", "spearman", "mse", "mae", "r2", "rvd", "moran_error")


@dataclass(frozen=True)
class Scores:
    """The tables of a scored study."""

    genes: pd.DataFrame
    """One row per model, section (and ``pooled``), transform and gene."""
    summary: pd.DataFrame
    """One row per model and transform, models in the study's order, the ceiling last."""
    paired: pd.DataFrame
    """One row per transform, metric, model and baseline: difference, interval, patients and sections in which it is
    better."""
    sections: pd.DataFrame
    """One row per model, transform and section: mean correlation, spots, genes, blocks."""
    notes: dict[str, Any]
    """``unscored_genes`` by section, ``pooled_genes``, ``few_blocks``, ``draws``, ``block_um``, ``k``; where they apply
    ``scheme`` (sections were held out, not patients), ``matrix`` and ``left_out`` (model -> why it has no score)."""

    @property
    def transforms(self) -> list[str]:
        """The scored transforms, the main one first."""
        return list(dict.fromkeys(self.summary["transform"]))

    def of(self, transform: str, *, ceiling: bool = True) -> pd.DataFrame:
        """Return the summary of one transform, indexed by model."""
        table = self.summary[self.summary["transform"] == transform].set_index("model")
        return table if ceiling else table[table["role"] != "ceiling"]

    def against(self, baseline: str, transform: str, metric: str = "pearson") -> pd.DataFrame:
        """Return the differences of every model to ``baseline``, indexed by model."""
        rows = self.paired
        keep = (rows["baseline"] == baseline) & (rows["transform"] == transform) & (rows["metric"] == metric)
        return rows[keep].set_index("model")


def title_of(model: str) -> str:
    """Return how tables call a model."""
    entry = {**MODELS, **STACKS}.get(model)
    return CEILING_TITLE if model == CEILING else model if entry is None else entry.title


def read_folds(study: Study) -> list[dict[str, Any]]:
    """Return the folds that hold patients out, checked: no test patient among those the fold learnt from.

    Where the study asks for leave-one-section-out, it is the sections that are checked.
    """
    run = study.run
    record = read_json(run.folds)
    folds = [fold for fold in record["folds"] if fold["test_sections"]]
    parts = ("train_sections", "validation_sections", "test_sections")
    patients = {
        name: _patient(run, name) for name in sorted({one for fold in folds for part in parts for one in fold[part]})
    }
    for fold in folds:
        learnt_from = {*fold["train_sections"], *fold["validation_sections"]}
        shared = learnt_from & set(fold["test_sections"])
        held_out = {patients[name] for name in fold["test_sections"]}
        if study.folds.scheme != BY_SECTION:
            shared |= {name for name in learnt_from if patients[name] in held_out}
        if shared:
            raise InputError(
                f"fold {fold['name']!r} learns from the patients that it tests: sections {some(sorted(shared))}",
                file=run.folds,
                fix="remake the folds; such scores would mean nothing",
            )
    return folds


def _patient(run: RunFolder, section: str) -> str:
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(run.section(section)) as file:
            return str(read_elem(file["obs/patient"])[0])
    except (OSError, KeyError, IndexError) as error:
        raise InputError(
            "cleaned section with its patient is missing or unreadable",
            file=run.section(section),
            fix="run the preprocessing of this study",
        ) from error


def left_out(study: Study) -> dict[str, str]:
    """Return the models that cannot be scored and why: depth alone predicts nothing where a section has no counts."""
    uncounted = read_json(study.run.folds).get("uncounted", [])
    why = f"it predicts from total counts, and there are none in {some(uncounted)}"
    return {NEEDS_COUNTS: why} if uncounted else {}


def score_study(study: Study) -> Scores:
    """Score all models of a study beside all baselines and write the tables.

    Raises
    ------
    InputError
        If predictions of a model or baseline are missing or miss a spot, or a fold tests a patient that it learnt from.
    """
    run = study.run
    folds = read_folds(study)
    absent = left_out(study)
    models = [model for model in study.scored_names if model not in absent]
    for fold in folds:
        for model in models:
            path = run.prediction(model, fold["name"])
            if not path.is_file():
                fix = (
                    "no score stands without every baseline: train it first" if model in BASELINES else "train it first"
                )
                raise InputError("prediction file is missing", file=path, fix=fix)
    pairs = _pairs(models)
    with Pool() as pool:
        tally = Tally(Draws(pairs), pool)
        _score_sections(study, folds, models, tally)
        if not tally.rows:
            raise InputError("no fold holds a patient out, so there is nothing to score", file=run.folds)
        genes = pd.concat([*tally.rows, *pool.tables()], ignore_index=True)
        pooled_genes = pool.common()
    sections_table = pd.DataFrame(tally.sections)
    scores = Scores(
        genes=genes,
        summary=_summarise(study, models, genes, sections_table, tally.draws),
        paired=_pair(study, pairs, sections_table, tally.draws),
        sections=sections_table,
        notes={
            "unscored_genes": tally.unscored,
            "pooled_genes": pooled_genes,
            "few_blocks": tally.few_blocks,
            "draws": study.evaluation.bootstrap,
            "block_um": study.evaluation.block_um,
            "k": list(study.evaluation.k),
            **({"scheme": BY_SECTION} if study.folds.scheme == BY_SECTION else {}),
            **({"matrix": study.target.matrix} if study.target.matrix is not None else {}),
            **({"left_out": absent} if absent else {}),
        },
    )
    save_scores(study, scores)
    return scores


def _score_sections(study: Study, folds: list[dict], models: list[str], tally: Tally) -> None:
    """Score every held-out section, one at a time, into ``tally``."""
    from tqdm.auto import tqdm

    run, transforms = study.run, study.target.transforms
    seeds = np.random.SeedSequence(study.seed)
    for fold in tqdm(folds, desc="Scoring folds", unit="fold"):
        predictions = {model: PredictionFile(run.prediction(model, fold["name"])) for model in models}
        rankings = _rankings(study, fold, models)
        for name in fold["test_sections"]:
            rng = np.random.default_rng(seeds.spawn(1)[0])
            section = _of_panel(run.section(name), predictions)
            joined = {
                model: join(file.of(name), section, name, transforms=transforms) for model, file in predictions.items()
            }
            for model, pair in joined.items():
                if pair.unpredicted_spots:
                    raise InputError(
                        f"section {name!r}: no prediction for spots {some(pair.unpredicted_spots)}",
                        file=run.prediction(model, fold["name"]),
                        fix="predict this fold again",
                    )
            score_section(study, fold["name"], section, joined, rankings, rng, tally)


def _of_panel(path: Path, files: dict[str, PredictionFile]) -> AnnData:
    """Return a cleaned section with the genes that are predicted; whole where its depth must be counted first."""
    section = read_h5ad(path, what="cleaned section")
    predicted = section.var_names.isin(set().union(*(file.genes for file in files.values())))
    if "total_counts" not in section.obs or not predicted.any():
        return section
    return section[:, predicted].copy()


def _pairs(models: list[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: each model with each baseline, a stack with every model."""
    return [
        (model, baseline)
        for model in models
        for baseline in (models if model in STACKS else BASELINES)
        if model != baseline and baseline in models
    ]


def _rankings(study: Study, fold: dict, models: list[str]) -> dict[str, dict[str, pd.Series]]:
    """Return each gene's mean correlation over the fold's validation sections, by model and transform.

    Empty for every model of a fold without validation sections.
    """
    run, transforms = study.run, study.target.transforms
    if not fold["validation_sections"]:
        return {model: {} for model in models}
    fix = "train it again: PCC-k ranks genes on validation predictions"
    files = {model: PredictionFile(run.prediction(model, fold["name"], "validation"), fix=fix) for model in models}
    found: dict[tuple[str, str], list[pd.Series]] = defaultdict(list)
    for name in fold["validation_sections"]:
        section = _of_panel(run.section(name), files)
        for model, file in files.items():
            pair = join(file.of(name), section, name, transforms=transforms)
            for t in transforms:
                found[model, t].append(pd.Series(metrics.pearson(pair.true[t], pair.predicted[t]), index=pair.genes))
    return {model: {t: pd.concat(found[model, t], axis=1).mean(axis=1) for t in transforms} for model in models}


def _summarise(
    study: Study, models: list[str], genes: pd.DataFrame, sections: pd.DataFrame, draws: Draws
) -> pd.DataFrame:
    rows = []
    scored = genes[~genes["constant_truth"].astype(bool)]
    models = [*models, *([CEILING] if CEILING in set(genes["model"]) else [])]
    for transform in study.target.transforms:
        for model in models:
            mine = scored[(scored["model"] == model) & (scored["transform"] == transform)]
            if mine.empty:
                continue
            each, pooled = mine[mine["section"] != POOLED], mine[mine["section"] == POOLED]
            by_section = sections[(sections["model"] == model) & (sections["transform"] == transform)]
            patients = by_section.groupby("patient")["pearson"].mean()
            low, high = bootstrap.interval(draws.mean(transform, "pearson", model), by_section["pearson"].mean())
            role = "ceiling" if model == CEILING else "baseline" if model in BASELINES else "model"
            row = {"model": model, "title": title_of(model), "role": role, "transform": transform}
            row |= {"sections": len(by_section), "patients": len(patients), "spots": int(by_section["spots"].sum())}
            row |= {"genes": each["gene"].nunique(), "n_scored": len(each)}
            row["n_undefined"] = int(each["constant_prediction"].astype(bool).sum())
            means = each.groupby("section")[list(MEANS)].mean().mean()  # every section counts the same
            row |= means.to_dict()
            row |= {"pearson_low": low, "pearson_high": high}
            row |= {"patient_min": patients.min(), "patient_max": patients.max(), "patient_sd": patients.std(ddof=1)}
            row |= {"section_min": by_section["pearson"].min(), "section_max": by_section["pearson"].max()}
            if WITHIN in by_section:
                row |= _within(by_section, draws.mean(transform, WITHIN, model))
            row |= {"pooled_pearson": pooled["pearson"].mean(), "pooled_genes": len(pooled)}
            for k in study.evaluation.k:
                for way in ("training", "published"):
                    row[f"pcc_{k}_{way}"] = by_section[f"pcc_{k}_{way}"].mean()
            rows.append(row)
    table = pd.DataFrame(rows)
    ceiling = table[table["role"] == "ceiling"].set_index("transform")["pearson"]
    table["recovered"] = table["pearson"] / table["transform"].map(ceiling) if len(ceiling) else np.nan
    return table


def _within(by_section: pd.DataFrame, draws: np.ndarray) -> dict[str, float]:
    """Return what the summary says of correlations within spots; every section counts the same."""
    mean = by_section[WITHIN].mean()
    low, high = bootstrap.interval(draws, mean)
    counts = {name: int(by_section[name].sum()) for name in (f"{WITHIN}_spots", f"{WITHIN}_undefined")}
    return {WITHIN: mean, f"{WITHIN}_low": low, f"{WITHIN}_high": high, **counts}


def _pair(study: Study, pairs: list[tuple[str, str]], sections: pd.DataFrame, draws: Draws) -> pd.DataFrame:
    rows = []
    for transform in study.target.transforms:
        wide = sections[sections["transform"] == transform]
        for metric, sign in (("pearson", 1), ("mse", -1), *([(WITHIN, 1)] if WITHIN in wide else [])):
            by_section = wide.pivot(index="section", columns="model", values=metric)
            by_patient = wide.groupby(["patient", "model"])[metric].mean().unstack()
            for model, baseline in pairs:
                difference = float((by_section[model] - by_section[baseline]).mean())
                low, high = bootstrap.interval(draws.mean(transform, metric, model, baseline), difference)
                better = int((sign * (by_patient[model] - by_patient[baseline]) > 0).sum())
                row = {"transform": transform, "metric": metric, "model": model, "baseline": baseline}
                row |= {
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "patients_better": better,
                    "patients": len(by_patient),
                    "sections_better": int((sign * (by_section[model] - by_section[baseline]) > 0).sum()),
                    "sections": len(by_section),
                }
                rows.append(row)
    return pd.DataFrame(rows)


NAMES = {"fold": str, "section": str, "patient": str, "gene": str, "symbol": str}
FILES = {"genes": "scores.csv", "summary": "summary.csv", "paired": "paired.csv", "sections": "sections.csv"}


def save_scores(study: Study, scores: Scores) -> None:
    """Write the tables to ``evaluation/``, each atomically."""
    for name, file in FILES.items():
        with atomic_path(study.run.evaluation / file) as temporary:
            getattr(scores, name).to_csv(temporary, index=False, float_format="%.9g")
    write_json(study.run.evaluation / "notes.json", scores.notes)


def load_scores(study: Study) -> Scores:
    """Read what `score_study` wrote; a missing table is an `InputError` that names it."""
    folder = study.run.evaluation
    tables = {}
    for name, file in FILES.items():
        if not (folder / file).is_file():
            raise InputError("score table is missing", file=folder / file, fix="score the study first")
        tables[name] = pd.read_csv(folder / file, dtype=NAMES, keep_default_na=False, na_values=[""])
    return Scores(**tables, notes=read_json(folder / "notes.json"))
