"""Score every model of a study on the patients that each fold held out.

Written to ``evaluation/``: ``scores.csv`` (one row per model, section, transform and gene; section ``pooled`` too),
``summary.csv`` (one row per model and transform), ``paired.csv`` (each model against each baseline, a stack against
every model, on shared bootstrap draws), ``sections.csv`` (mean correlation by section, with its patient),
``patients.csv`` (the same by patient), ``patients_paired.csv`` (differences by patient, with intervals), ``trust.csv``
(how well training tells which genes are predicted well) and ``notes.json`` (what was not scored). All but pairs and
trust hold the noise ceiling and the share of it that is reached, where a section has one. Panels of cell types are
also scored within spots (``within_spot`` in all but the first). While a study is being trained, the models that are
finished can be scored (``unfinished``): those that every fold has predicted, never a model on some folds only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt.data.folds import BY_SECTION, RUN_FIRST, Fold, questions
from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.evaluation.bootstrap import Draws
from histocrypt.evaluation.metrics import METRICS, POOLED, Pool
from histocrypt.evaluation.section_scores import NOISE_CEILING, SHARE, WITHIN, score_section
from histocrypt.evaluation.trust import trust_table, with_trust
from histocrypt.files import read_json, read_table, write_json, write_table
from histocrypt.paths import RunFolder
from histocrypt.pipeline.predictions import Joined, PredictionFile, as_mapping, join, read_h5ad, some
from histocrypt.predictors.registry import BASELINES, MODELS, NEEDS_COUNTS, STACKS
from histocrypt.study import Study
from histocrypt.targets.ceiling import section_ceiling, share
from histocrypt.targets.matrix import columns_of

if TYPE_CHECKING:
    from anndata import AnnData

CEILING = "image_signal"
CEILING_TITLE = "Ceiling: what the image carries"
CEILING_TRANSFORM = "log1p_cp10k"
FEW_BLOCKS = 4
NAMES = {"left_out": str, "fold": str, "section": str, "patient": str, "gene": str, "symbol": str}
FILES = {
    "genes": "scores.csv",
    "summary": "summary.csv",
    "paired": "paired.csv",
    "sections": "sections.csv",
    "apart": "patients_paired.csv",
    "trust": "trust.csv",
}
EVERY_PATIENT = "mean of patients"
"""What stands for a patient in ``patients_paired.csv`` where every patient counts the same."""


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
    apart: pd.DataFrame
    """One row per transform, model, baseline and patient (and `EVERY_PATIENT`): difference of correlation, interval."""
    trust: pd.DataFrame
    """One row per model, transform and section: how training ranks genes beside how they were predicted."""
    notes: dict[str, Any]
    """``unscored_genes`` by section, ``pooled_genes``, ``few_blocks``, ``draws``, ``block_um``, ``k``; where they apply
    ``scheme`` (sections were held out, not patients), ``matrix``, ``left_out`` (model -> why it has no score) and
    ``coming`` (model that is not trained yet -> folds that it has predicted, and all), ``no_ceiling`` (section -> why
    it has no noise ceiling)."""

    @property
    def transforms(self) -> list[str]:
        """The scored transforms, the main one first."""
        return list(dict.fromkeys(self.summary["transform"]))

    @property
    def models(self) -> list[str]:
        """The scored models, in the study's order, without the ceiling."""
        return [name for name in dict.fromkeys(self.summary["model"]) if name != CEILING]

    def of(self, transform: str, *, ceiling: bool = True) -> pd.DataFrame:
        """Return the summary of one transform, indexed by model."""
        table = self.summary[self.summary["transform"] == transform].set_index("model")
        return table if ceiling else table[table["role"] != "ceiling"]

    def against(self, baseline: str, transform: str, metric: str = "pearson") -> pd.DataFrame:
        """Return the differences of every model to ``baseline``, indexed by model."""
        rows = self.paired
        keep = (rows["baseline"] == baseline) & (rows["transform"] == transform) & (rows["metric"] == metric)
        return rows[keep].set_index("model")

    def patients(self, transform: str | None = None) -> pd.DataFrame:
        """Return one row per transform, model and held-out patient: means over its sections, and the share reached."""
        rows = self.sections if transform is None else self.sections[self.sections["transform"] == transform]
        by = rows.groupby(["transform", "model", "patient"], sort=False)
        table = by.agg(
            sections=("section", "nunique"), pearson=("pearson", "mean"), **{NOISE_CEILING: (NOISE_CEILING, "mean")}
        )
        return table.assign(**{SHARE: share(table["pearson"], table[NOISE_CEILING])}).reset_index()

    def by_question(self, transform: str) -> pd.DataFrame:
        """Return one row per model and question that held-out sections answer: means of patients, share reached."""
        rows = self.sections[self.sections["transform"] == transform]
        each = rows.groupby(["model", "question", "patient"], sort=False)[["pearson", NOISE_CEILING]].mean()
        by = each.reset_index().groupby(["model", "question"], sort=False)
        table = by.agg(
            patients=("patient", "nunique"), pearson=("pearson", "mean"), noise_ceiling=(NOISE_CEILING, "mean")
        )
        return table.assign(**{SHARE: share(table["pearson"], table[NOISE_CEILING])}).reset_index()

    def by_gene(self, transform: str) -> pd.DataFrame:
        """Return the rows of ``genes`` of one transform that are of a section and can be scored."""
        each = self.genes
        keep = (each["transform"] == transform) & (each["section"] != POOLED) & ~each["constant_truth"].astype(bool)
        return each[keep]


def title_of(model: str) -> str:
    """Return how tables call a model."""
    entry = {**MODELS, **STACKS}.get(model)
    return CEILING_TITLE if model == CEILING else model if entry is None else entry.title


def score_study(study: Study, *, unfinished: bool = False) -> Scores:
    """Score the models of a study beside all baselines and write the tables.

    Parameters
    ----------
    study
        The study.
    unfinished
        Score what is there: the models of which every fold is predicted. Tables of more models that are there already
        are kept, and returned.

    Raises
    ------
    InputError
        If predictions of a model or baseline are missing or miss a spot, or a fold tests a patient that it learnt from.
    """
    run, about = study.run, study.evaluation
    folds = read_folds(study)
    absent = left_out(study)
    models = ready_models(study, folds, present=unfinished)
    coming = [name for name in study.scored_names if name not in absent and name not in models]
    for name in coming:
        if name in BASELINES or not unfinished:
            path = next(run.prediction(name, fold["name"]) for fold in folds if not _predicted(run, name, [fold])[0])
            first = "no score stands without every baseline: " if name in BASELINES else ""
            raise InputError("prediction file is missing", file=path, fix=f"{first}{RUN_FIRST}")
    if unfinished and covering(study, models):
        return load_scores(study)
    pairs = _pairs(models)
    draws, genes, rows, unscored, few_blocks, no_ceiling = Draws(pairs), [], [], {}, {}, {}
    of_patients: dict[str, Draws] = {}
    with Pool() as pool:
        for fold, section, joined, rankings, rng in test_sections(study, folds, models):
            first = next(iter(joined.values()))
            ceilings, why = section_ceiling(
                section,
                first.genes,
                first.symbols,
                study.target.transforms,
                name=first.section,
                matrix=study.target.matrix,
                rng=rng.spawn(1)[0],
            )
            if why:
                no_ceiling[first.section] = why
            scored = score_section(
                joined,
                um_per_px=float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0)),
                block_um=about.block_um,
                draws=about.bootstrap,
                rng=rng,
                k=about.k,
                rankings=rankings,
                within=study.target.matrix is not None,
                ceilings={name: pd.Series(values, index=first.genes) for name, values in ceilings.items()},
            )
            for table in scored.genes:
                table.insert(1, "fold", fold)
            genes += scored.genes
            rows += [{"model": row["model"], "fold": fold, **row} for row in scored.rows]
            draws.add(scored.draws)
            own = of_patients.setdefault(first.patient, Draws(pairs))
            own.add({key: values for key, values in scored.draws.items() if key[1] == "pearson"})
            if first.unscored_genes:
                unscored[first.section] = first.unscored_genes
            if scored.blocks < FEW_BLOCKS:
                few_blocks[first.section] = scored.blocks
            for transform in study.target.transforms:
                for model, pair in joined.items():
                    if transform in pair.predicted:
                        pool.add(transform, model, pair)
        if not rows:
            raise InputError("no fold holds a patient out, so there is nothing to score", file=run.folds)
        genes_table = pd.concat([*genes, *pool.tables()], ignore_index=True)
        pooled_genes = pool.common()
    sections = pd.DataFrame(rows)
    sections["question"] = sections["section"].map(_questions(run, folds))
    genes_table = with_trust(run, folds, models, genes_table)
    notes = {
        "unscored_genes": unscored,
        "pooled_genes": pooled_genes,
        "few_blocks": few_blocks,
        "draws": about.bootstrap,
        "block_um": about.block_um,
        "k": list(about.k),
    }
    later = {
        "scheme": BY_SECTION if study.folds.scheme == BY_SECTION else None,
        "matrix": study.target.matrix,
        "left_out": absent,
        "no_ceiling": no_ceiling,
        "coming": {model: _predicted(run, model, folds) for model in coming},
    }
    scores = Scores(
        genes=genes_table,
        summary=_summarise(study, models, genes_table, sections, draws),
        paired=paired_rows(study.target.transforms, pairs, sections, draws),
        sections=sections,
        apart=_pair_patients(study, pairs, sections, of_patients),
        trust=trust_table(run, genes_table),
        notes=notes | {name: value for name, value in later.items() if value},
    )
    if unfinished and covering(study, models):  # written while we scored
        return load_scores(study)
    save_scores(study, scores)
    return scores


def ready_models(study: Study, folds: list[dict[str, Any]], *, present: bool = False) -> list[str]:
    """Return the models that can be scored: those that have predicted every fold.

    With ``present``, those are left out that a change of the study has left behind, and that are still to be trained.
    """
    wanted = [name for name in study.scored_names if name not in left_out(study)]
    ready = [name for name in wanted if _predicted(study.run, name, folds)[0] == len(folds)]
    return [name for name in ready if not present or all(_is_present(study, name, fold["name"]) for fold in folds)]


def _is_present(study: Study, model: str, fold: str) -> bool:
    """Return whether a prediction was made under the study's settings as they are now, as far as is known of it."""
    from histocrypt.data.folds import load_fold
    from histocrypt.pipeline.checkpoints import made_from, read_about

    run = study.run
    if model in STACKS:
        below = [run.prediction(family, fold).stat().st_mtime_ns for family in study.families]
        return all(_is_present(study, family, fold) for family in study.families) and (
            run.prediction(model, fold).stat().st_mtime_ns >= max(below)
        )
    folder = run.model(model, fold)
    try:
        made = read_about(folder).get("made_from") if (folder / "model.json").is_file() else None
        return made is None or made == made_from(study, model, load_fold(run.folds, fold))
    except (InputError, OSError):
        return False


def _predicted(run: RunFolder, model: str, folds: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many folds a model has predicted, and how many there are."""
    return sum(run.prediction(model, fold["name"]).is_file() for fold in folds), len(folds)


def covering(study: Study, models: list[str], parts: Sequence[str] = ()) -> bool:
    """Return whether a report is there that is of this study and of more than ``models`` and ``parts``."""
    run = study.run
    if not run.report.is_file() or not (run.evaluation / FILES["summary"]).is_file():
        return False
    file = run.evaluation / "covers.json"
    if file.is_file():
        said = read_json(file)
    else:  # made before reports said what they cover
        said = {"study": study.hash(), "models": load_scores(study).models, "parts": list(parts)}
    there = {*said["models"], *said["parts"]}
    return said["study"] == study.hash() and there > {*models, *parts}


def left_out(study: Study) -> dict[str, str]:
    """Return the models that cannot be scored and why: depth alone predicts nothing where a section has no counts."""
    uncounted = read_json(study.run.folds).get("uncounted", [])
    why = f"it predicts from total counts, and there are none in {some(uncounted)}"
    return {NEEDS_COUNTS: why} if uncounted else {}


def read_folds(study: Study) -> list[dict[str, Any]]:
    """Return the folds that hold patients out, checked: no test patient among those the fold learnt from.

    Where the study asks for leave-one-section-out, it is the sections that are checked.

    Raises
    ------
    InputError
        If there are none yet, a cleaned section is missing, or a fold learns from what it tests.
    """
    run = study.run
    if not run.folds.is_file():
        raise InputError("this study has no folds yet", file=run.folds, fix=RUN_FIRST)
    folds = [fold for fold in read_json(run.folds)["folds"] if fold["test_sections"]]
    parts = ("train_sections", "validation_sections", "test_sections")
    patients = {
        name: patient_of(run, name) for name in sorted({one for fold in folds for part in parts for one in fold[part]})
    }
    for fold in folds:
        learnt_from = {*fold["train_sections"], *fold["validation_sections"]}
        shared = learnt_from & set(fold["test_sections"])
        held_out = {patients[name] for name in fold["test_sections"]}
        if study.folds.scheme != BY_SECTION:
            shared |= {name for name in learnt_from if patients[name] in held_out}
        if shared:
            raise InputError(
                f"fold {fold['name']!r} trains on patients that it tests: sections {some(sorted(shared))}",
                file=run.folds,
                fix="remake the folds; such scores would mean nothing",
            )
    return folds


def _questions(run: RunFolder, folds: list[dict[str, Any]]) -> dict[str, str]:
    """Return the question that each held-out section answers (`data.folds.questions`)."""
    sides = ("train_sections", "validation_sections", "test_sections")
    split = [Fold(fold["name"], (), *(tuple(fold[side]) for side in sides)) for fold in folds]
    patients = {name: patient_of(run, name) for fold in folds for side in sides for name in fold[side]}
    return questions(split, patients, read_json(run.folds).get("laboratories", {}))


def patient_of(run: RunFolder, section: str) -> str:
    """Return the patient of a cleaned section, reading no more of it."""
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


def test_sections(study: Study, folds: list[dict], models: list[str]) -> Iterator[tuple]:
    """Yield every held-out section: its fold, itself, all models' predictions of it, gene rankings and a generator.

    Predictions are joined to what was measured, spots in one order, the ceiling last where the truth is known.
    """
    run, transforms = study.run, study.target.transforms
    seeds = np.random.SeedSequence(study.seed)
    for fold in folds:
        files = {model: PredictionFile(run.prediction(model, fold["name"])) for model in models}
        rankings = _rankings(study, fold, models)
        for name in fold["test_sections"]:
            rng = np.random.default_rng(seeds.spawn(1)[0])
            section = _of_panel(run.section(name), files)
            joined: dict[str, Joined] = {}
            for model, file in files.items():
                pair = join(file.of(name), section, name, transforms=transforms)
                if pair.unpredicted_spots:
                    raise InputError(
                        f"section {name!r}: no prediction for spots {some(pair.unpredicted_spots)}",
                        file=file.path,
                        fix="predict this fold again",
                    )
                first = joined.get(models[0], pair)
                if set(pair.genes) != set(first.genes):
                    raise InputError(
                        f"fold {fold['name']!r}: models {model!r} and {models[0]!r} predict different genes",
                        file=file.path,
                        fix="train both on the same panel",
                    )
                joined[model] = _in_order(pair, first.spots)
            if CEILING in section.layers and CEILING_TRANSFORM in transforms:
                joined[CEILING] = _ceiling(section, joined[models[0]])
            yield fold["name"], section, joined, rankings, rng


def _in_order(pair: Joined, spots: np.ndarray) -> Joined:
    """Return a pair with its spots in this order."""
    if np.array_equal(pair.spots, spots):
        return pair
    order = pd.Index(pair.spots).get_indexer(spots)
    true, predicted = ({name: values[order] for name, values in of.items()} for of in (pair.true, pair.predicted))
    return replace(pair, spots=spots, coords=pair.coords[order], true=true, predicted=predicted)


def _of_panel(path: Path, files: dict[str, PredictionFile]) -> AnnData:
    """Return a cleaned section with the genes that are predicted; whole where its depth must be counted first."""
    section = read_h5ad(path, what="cleaned section")
    predicted = np.zeros(section.n_vars, dtype=bool)
    for genes, symbols in {(tuple(file.genes), tuple(file.symbols)) for file in files.values()}:
        columns = columns_of(section, genes, symbols, section=path.stem)
        predicted[columns[columns >= 0]] = True
    if "total_counts" not in section.obs or not predicted.any():
        return section
    return section[:, predicted].copy()


def _ceiling(section: AnnData, like: Joined) -> Joined:
    """Return the simulator's noise-free, image-borne expression as if a model had predicted it."""
    rows = section.obs_names.get_indexer([spot.removeprefix(f"{like.section}:") for spot in like.spots])
    signal = section.layers[CEILING][rows][:, columns_of(section, like.genes, like.symbols, section=like.section)]
    signal = signal.toarray() if hasattr(signal, "toarray") else np.asarray(signal)
    return replace(like, predicted={CEILING_TRANSFORM: signal.astype(np.float64)})


def _rankings(study: Study, fold: dict, models: list[str]) -> dict[str, dict[str, pd.Series]]:
    """Return each gene's mean correlation over the fold's validation sections, by model and transform.

    Empty for every model of a fold without validation sections.
    """
    run, transforms = study.run, study.target.transforms
    if not fold["validation_sections"]:
        return {}
    fix = "train it again: PCC-k ranks genes on validation predictions"
    files = {model: PredictionFile(run.prediction(model, fold["name"], "validation"), fix=fix) for model in models}
    ranked: dict[tuple[str, str], list[pd.Series]] = defaultdict(list)
    for name in fold["validation_sections"]:
        section = _of_panel(run.section(name), files)
        for model, file in files.items():
            pair = join(file.of(name), section, name, transforms=transforms)
            for t in transforms:
                ranked[model, t].append(pd.Series(metrics.pearson(pair.true[t], pair.predicted[t]), index=pair.genes))
    return {model: {t: pd.concat(ranked[model, t], axis=1).mean(axis=1) for t in transforms} for model in models}


def _pairs(models: list[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: each model with each baseline, a stack with every model."""
    return [
        (model, baseline)
        for model in models
        for baseline in (models if model in STACKS else BASELINES)
        if model != baseline and baseline in models
    ]


def _summarise(
    study: Study, models: list[str], genes: pd.DataFrame, sections: pd.DataFrame, draws: Draws
) -> pd.DataFrame:
    rows = []
    scored = genes[~genes["constant_truth"].astype(bool)]
    for transform in study.target.transforms:
        for model in [*models, CEILING]:
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
            row |= each.groupby("section")[list(METRICS)].mean().mean().to_dict()  # every section counts the same
            row |= {"pearson_low": low, "pearson_high": high}
            row |= {"patient_min": patients.min(), "patient_max": patients.max(), "patient_sd": patients.std(ddof=1)}
            row |= {"section_min": by_section["pearson"].min(), "section_max": by_section["pearson"].max()}
            if WITHIN in by_section:
                mean = by_section[WITHIN].mean()
                low, high = bootstrap.interval(draws.mean(transform, WITHIN, model), mean)
                row |= {WITHIN: mean, f"{WITHIN}_low": low, f"{WITHIN}_high": high}
                row |= {name: int(by_section[name].sum()) for name in (f"{WITHIN}_spots", f"{WITHIN}_undefined")}
            row[NOISE_CEILING] = by_section[NOISE_CEILING].mean()
            known = by_section[NOISE_CEILING].notna()
            row[SHARE] = share(by_section.loc[known, "pearson"].mean(), row[NOISE_CEILING])
            row |= {"pooled_pearson": pooled["pearson"].mean(), "pooled_genes": len(pooled)}
            for k in study.evaluation.k:
                for way in ("training", "published"):
                    row[f"pcc_{k}_{way}"] = by_section[f"pcc_{k}_{way}"].mean()
            rows.append(row)
    table = pd.DataFrame(rows)
    ceiling = table[table["role"] == "ceiling"].set_index("transform")["pearson"]
    table["recovered"] = table["pearson"] / table["transform"].map(ceiling) if len(ceiling) else np.nan
    return table


def paired_rows(
    transforms: Sequence[str], pairs: list[tuple[str, str]], sections: pd.DataFrame, draws: Draws
) -> pd.DataFrame:
    """Return one row per transform, metric, model and baseline: `Scores.paired`.

    Parameters
    ----------
    transforms
        In whose units.
    pairs
        (model, baseline).
    sections
        Rows of `section_scores.SectionScores` of all sections.
    draws
        Of all sections, made for these pairs.
    """
    rows = []
    for transform in transforms:
        wide = sections[sections["transform"] == transform]
        for metric in [*bootstrap.OF_DRAWS, *([WITHIN] if WITHIN in wide else [])]:
            sign = -1 if metric in METRICS and METRICS[metric].better == "lower" else 1
            by_section = wide.pivot(index="section", columns="model", values=metric)
            by_patient = wide.groupby(["patient", "model"])[metric].mean().unstack()
            for model, baseline in pairs:
                apart = by_section[model] - by_section[baseline]
                difference = float(apart.mean())
                low, high = bootstrap.interval(draws.mean(transform, metric, model, baseline), difference)
                rows.append(
                    {
                        "transform": transform,
                        "metric": metric,
                        "model": model,
                        "baseline": baseline,
                        "difference": difference,
                        "low": low,
                        "high": high,
                        "patients_better": int((sign * (by_patient[model] - by_patient[baseline]) > 0).sum()),
                        "patients": len(by_patient),
                        "sections_better": int((sign * apart > 0).sum()),
                        "sections": len(by_section),
                    }
                )
    return pd.DataFrame(rows)


def _pair_patients(
    study: Study, pairs: list[tuple[str, str]], sections: pd.DataFrame, of_patients: dict[str, Draws]
) -> pd.DataFrame:
    rows = []
    for transform in study.target.transforms:
        wide = sections[sections["transform"] == transform]
        by_patient = wide.groupby(["patient", "model"])["pearson"].mean().unstack()
        for model, baseline in pairs:
            apart = by_patient[model] - by_patient[baseline]
            drawn = {name: own.mean(transform, "pearson", model, baseline) for name, own in of_patients.items()}
            drawn[EVERY_PATIENT] = np.mean(list(drawn.values()), axis=0)
            apart[EVERY_PATIENT] = apart.mean()
            for patient, values in drawn.items():
                low, high = bootstrap.interval(values, float(apart[patient]))
                row = {"transform": transform, "model": model, "baseline": baseline, "patient": patient}
                rows.append(row | {"difference": float(apart[patient]), "low": low, "high": high})
    return pd.DataFrame(rows)


def save_scores(study: Study, scores: Scores) -> None:
    """Write the tables to ``evaluation/``, each atomically."""
    for name, file in FILES.items():
        write_table(study.run.evaluation / file, getattr(scores, name), index=False, float_format="%.9g")
    write_table(study.run.evaluation / "patients.csv", scores.patients(), index=False, float_format="%.9g")
    write_json(study.run.evaluation / "notes.json", scores.notes)


def load_scores(study: Study) -> Scores:
    """Read what `score_study` wrote; a missing table is an `InputError` that names it."""
    folder = study.run.evaluation
    tables = {}
    for name, file in FILES.items():
        if not (folder / file).is_file():
            raise InputError("score table is missing", file=folder / file, fix=RUN_FIRST)
        tables[name] = read_table(folder / file, dtype=NAMES, keep_default_na=False, na_values=[""])
    return Scores(**tables, notes=read_json(folder / "notes.json"))
