"""Score every model of a study on the patients that each fold held out.

Written to ``evaluation/``: ``scores.csv`` (one row per model, section, transform and gene; section ``pooled`` too),
``summary.csv`` (one row per model and transform), ``paired.csv`` (each model against each baseline, a stack against
every model, on shared bootstrap draws), ``sections.csv`` (mean correlation by section, with its patient) and
``notes.json`` (what was not scored).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histocrypt.atomic import atomic_path, read_json, write_json
from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.evaluation.truth import Joined, as_mapping, join, read_h5ad, read_prediction, some
from histocrypt.models.registry import BASELINES, MODELS, STACKS
from histocrypt.paths import RunFolder
from histocrypt.study import Study

CEILING = "image_signal"
CEILING_TITLE = "Ceiling: what the image carries"
CEILING_TRANSFORM = "log1p_cp10k"
POOLED = "pooled"
FEW_BLOCKS = 4
MEANS = ("pearson", "spearman", "mse", "mae", "r2", "rvd", "moran_error")


@dataclass(frozen=True)
class Scores:
    """The tables of a scored study."""

    genes: pd.DataFrame
    """One row per model, section (and ``pooled``), transform and gene."""
    summary: pd.DataFrame
    """One row per model and transform, models in the study's order, the ceiling last."""
    paired: pd.DataFrame
    """One row per transform, metric, model and baseline: difference, interval, patients in which it is better."""
    sections: pd.DataFrame
    """One row per model, transform and section: mean correlation, spots, genes, blocks."""
    notes: dict[str, Any]
    """``unscored_genes`` by section, ``pooled_genes``, ``few_blocks``, ``draws``, ``block_um``, ``k``."""

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
    """Return the folds that hold patients out, checked: no test patient among those the fold learnt from."""
    run = study.run
    record = read_json(run.folds)
    folds = [fold for fold in record["folds"] if fold["test_sections"]]
    for fold in folds:
        learnt_from = {*fold["train_sections"], *fold["validation_sections"]}
        shared = learnt_from & set(fold["test_sections"])
        patients = {name: _patient(run, name) for name in {*learnt_from, *fold["test_sections"]}}
        held_out = {patients[name] for name in fold["test_sections"]}
        shared |= {name for name in learnt_from if patients[name] in held_out}
        if shared:
            msg = f"fold {fold['name']!r} learns from the patients that it tests: sections {some(sorted(shared))}"
            raise InputError(msg, file=run.folds, fix="remake the folds; such scores would mean nothing")
    return folds


def _patient(run: RunFolder, section: str) -> str:
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(run.section(section)) as file:
            return str(read_elem(file["obs/patient"])[0])
    except (OSError, KeyError, IndexError) as error:
        msg = "cleaned section with its patient is missing or unreadable"
        raise InputError(msg, file=run.section(section), fix="run the preprocessing of this study") from error


@dataclass
class _Tally:
    """What is gathered section by section."""

    rows: list[pd.DataFrame] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)
    draws: dict[tuple[str, str, str], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    pieces: dict[tuple[str, str], list[pd.DataFrame]] = field(default_factory=lambda: defaultdict(list))
    unscored: dict[str, list[str]] = field(default_factory=dict)
    few_blocks: dict[str, int] = field(default_factory=dict)
    panels: list[set[str]] = field(default_factory=list)


def score_study(study: Study) -> Scores:
    """Score all models of a study beside all baselines and write the tables.

    Raises
    ------
    InputError
        If predictions of a model or baseline are missing or miss a spot, or a fold tests a patient that it learnt from.
    """
    from tqdm.auto import tqdm

    run = study.run
    tally = _Tally()
    folds = read_folds(study)
    for fold in folds:
        for model in study.scored_names:
            path = run.prediction(model, fold["name"])
            if not path.is_file():
                fix = (
                    "no score stands without every baseline: train it first" if model in BASELINES else "train it first"
                )
                raise InputError("prediction file is missing", file=path, fix=fix)
    seeds = np.random.SeedSequence(study.seed)
    for fold in tqdm(folds, desc="Scoring folds", unit="fold"):
        sections = {
            name: read_h5ad(run.section(name), what="cleaned section")
            for name in {*fold["test_sections"], *fold["validation_sections"]}
        }
        predictions = {m: read_prediction(run.prediction(m, fold["name"])) for m in study.scored_names}
        rankings = {m: _ranking(run, m, fold, sections, study.target.transforms) for m in study.scored_names}
        for name in fold["test_sections"]:
            rng = np.random.default_rng(seeds.spawn(1)[0])
            joined = {
                m: join(p, sections[name], name, transforms=study.target.transforms) for m, p in predictions.items()
            }
            for model, pair in joined.items():
                if pair.unpredicted_spots:
                    msg = f"section {name!r}: no prediction for spots {some(pair.unpredicted_spots)}"
                    raise InputError(msg, file=run.prediction(model, fold["name"]), fix="predict this fold again")
            _score_section(study, fold["name"], sections[name], joined, rankings, rng, tally)
    if not tally.rows:
        raise InputError("no fold holds a patient out, so there is nothing to score", file=run.folds)
    pooled, pooled_genes = _score_pooled(tally)
    genes = pd.concat([*tally.rows, *pooled], ignore_index=True)
    sections_table = pd.DataFrame(tally.sections)
    scores = Scores(
        genes=genes,
        summary=_summarise(study, genes, sections_table, tally.draws),
        paired=_pair(study, sections_table, tally.draws),
        sections=sections_table,
        notes={
            "unscored_genes": tally.unscored,
            "pooled_genes": pooled_genes,
            "few_blocks": tally.few_blocks,
            "draws": study.evaluation.bootstrap,
            "block_um": study.evaluation.block_um,
            "k": list(study.evaluation.k),
        },
    )
    save_scores(study, scores)
    return scores


def _ranking(run: RunFolder, model: str, fold: dict, sections: dict, transforms: list[str]) -> dict[str, pd.Series]:
    """Return each gene's mean correlation over the fold's validation sections, by transform; {} without validation."""
    path = run.prediction(model, fold["name"], "validation")
    if not fold["validation_sections"]:
        return {}
    prediction = read_prediction(path, fix="train it again: PCC-k ranks genes on validation predictions")
    found: dict[str, list[pd.Series]] = defaultdict(list)
    for name in fold["validation_sections"]:
        pair = join(prediction, sections[name], name, transforms=transforms)
        for t in transforms:
            found[t].append(pd.Series(metrics.pearson(pair.true[t], pair.predicted[t]), index=pair.genes))
    return {t: pd.concat(series, axis=1).mean(axis=1) for t, series in found.items()}


def _score_section(
    study: Study, fold: str, section: Any, joined: dict[str, Joined], rankings: dict, rng: Any, tally: _Tally
) -> None:
    first = next(iter(joined.values()))
    um_per_px = float(as_mapping(section.uns.get("preprocessing", {})).get("um_per_px", 1.0))
    labels = bootstrap.block_labels(first.coords * um_per_px, study.evaluation.block_um)
    weights = bootstrap.draw_weights(labels.max() + 1, study.evaluation.bootstrap, rng)
    graph = metrics.neighbour_graph(first.coords)
    position = {spot: i for i, spot in enumerate(first.spots)}
    tally.panels.append(set(first.genes))
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
                msg = f"fold {fold!r}: models {model!r} and {next(iter(joined))!r} predict different genes"
                raise InputError(msg, file=study.run.prediction(model, fold), fix="train both on the same panel")
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
            tally.draws[transform, "pearson", model].append(bootstrap.pearson_of_draws(sums, weights))
            tally.draws[transform, "mse", model].append(bootstrap.mse_of_draws(sums, weights))
            r = table["pearson"].to_numpy()
            usable = ~table["constant_truth"].to_numpy()
            row = {**keys, "transform": transform, "spots": len(true), "genes": int(usable.sum())}
            row |= {"blocks": int(labels.max() + 1), "pearson": r[usable].mean() if usable.any() else np.nan}
            row["mse"] = table["mse"].to_numpy()[usable].mean() if usable.any() else np.nan
            for k in study.evaluation.k:
                row[f"pcc_{k}_training"] = metrics.mean_of_top(r, rank, k) if rank is not None else np.nan
                row[f"pcc_{k}_published"] = metrics.mean_of_top(r, r, k)
            tally.sections.append(row)
            tally.pieces[transform, model].append((pair.genes, pair.symbols, true, predicted))


def _ceiling(section: Any, like: Joined) -> Joined:
    """Return the simulator's noise-free, image-borne expression as if a model had predicted it."""
    rows = section.obs_names.get_indexer([spot.removeprefix(f"{like.section}:") for spot in like.spots])
    signal = section.layers[CEILING][rows][:, section.var_names.get_indexer(like.genes)]
    signal = signal.toarray() if hasattr(signal, "toarray") else np.asarray(signal)
    return Joined(**{**like.__dict__, "predicted": {CEILING_TRANSFORM: signal.astype(np.float64)}})


def _score_pooled(tally: _Tally) -> tuple[list[pd.DataFrame], list[str]]:
    """Score all test spots together, for genes that every fold predicted and every section measured."""
    common = sorted(set.intersection(*tally.panels))
    if not common:
        return [], []
    tables = []
    for (transform, model), pieces in tally.pieces.items():
        columns = [pd.Index(genes).get_indexer(common) for genes, *_ in pieces]
        true = np.concatenate([piece[2][:, c] for piece, c in zip(pieces, columns, strict=True)])
        predicted = np.concatenate([piece[3][:, c] for piece, c in zip(pieces, columns, strict=True)])
        keys = {"model": model, "fold": "all", "section": POOLED, "patient": "all", "transform": transform}
        names = {"gene": common, "symbol": pieces[0][1][columns[0]]}
        table = pd.DataFrame(metrics.per_gene(true, predicted)).assign(**keys, **names)
        tables.append(table)
    return tables, common


def _summarise(study: Study, genes: pd.DataFrame, sections: pd.DataFrame, draws: dict) -> pd.DataFrame:
    rows = []
    scored = genes[~genes["constant_truth"].astype(bool)]
    models = [*study.scored_names, *([CEILING] if CEILING in set(genes["model"]) else [])]
    for transform in study.target.transforms:
        for model in models:
            mine = scored[(scored["model"] == model) & (scored["transform"] == transform)]
            if mine.empty:
                continue
            each, pooled = mine[mine["section"] != POOLED], mine[mine["section"] == POOLED]
            by_section = sections[(sections["model"] == model) & (sections["transform"] == transform)]
            patients = by_section.groupby("patient")["pearson"].mean()
            low, high = bootstrap.interval(
                _mean_draws(draws[transform, "pearson", model]), by_section["pearson"].mean()
            )
            role = "ceiling" if model == CEILING else "baseline" if model in BASELINES else "model"
            row = {"model": model, "title": title_of(model), "role": role, "transform": transform}
            row |= {"sections": len(by_section), "patients": len(patients), "spots": int(by_section["spots"].sum())}
            row |= {"genes": each["gene"].nunique(), "n_scored": len(each)}
            row["n_undefined"] = int(each["constant_prediction"].astype(bool).sum())
            means = each.groupby("section")[list(MEANS)].mean().mean()  # every section counts the same
            row |= means.to_dict()
            row |= {"pearson_low": low, "pearson_high": high}
            row |= {"patient_min": patients.min(), "patient_max": patients.max(), "patient_sd": patients.std(ddof=1)}
            row |= {"pooled_pearson": pooled["pearson"].mean(), "pooled_genes": len(pooled)}
            for k in study.evaluation.k:
                for way in ("training", "published"):
                    row[f"pcc_{k}_{way}"] = by_section[f"pcc_{k}_{way}"].mean()
            rows.append(row)
    table = pd.DataFrame(rows)
    ceiling = table[table["role"] == "ceiling"].set_index("transform")["pearson"]
    table["recovered"] = table["pearson"] / table["transform"].map(ceiling) if len(ceiling) else np.nan
    return table


def _mean_draws(draws: list[np.ndarray]) -> np.ndarray:
    """Return (draws,) the mean over sections; a section that a draw cannot score is left out of it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        return np.nanmean(np.stack(draws), axis=0)


def _pair(study: Study, sections: pd.DataFrame, draws: dict) -> pd.DataFrame:
    rows = []
    for transform in study.target.transforms:
        wide = sections[sections["transform"] == transform]
        for metric, sign in (("pearson", 1), ("mse", -1)):
            by_section = wide.pivot(index="section", columns="model", values=metric)
            by_patient = wide.groupby(["patient", "model"])[metric].mean().unstack()
            for model in study.scored_names:
                for baseline in study.scored_names if model in STACKS else BASELINES:
                    if model == baseline:
                        continue
                    both = zip(draws[transform, metric, model], draws[transform, metric, baseline], strict=True)
                    difference = float((by_section[model] - by_section[baseline]).mean())
                    low, high = bootstrap.interval(_mean_draws([a - b for a, b in both]), difference)
                    better = int((sign * (by_patient[model] - by_patient[baseline]) > 0).sum())
                    row = {"transform": transform, "metric": metric, "model": model, "baseline": baseline}
                    row |= {
                        "difference": difference,
                        "low": low,
                        "high": high,
                        "patients_better": better,
                        "patients": len(by_patient),
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
