"""Scores of a model that predicts distributions, beside those of models that predict one value, section by section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation import metrics
from histocrypt.evaluation.metrics import finite_mean
from histocrypt.evaluation.scores import read_folds, title_of
from histocrypt.files import read_json, write_json, write_table
from histocrypt.pipeline.predictions import Joined, join, read_h5ad, read_prediction, transforms_of
from histocrypt.spatial import touching

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.study import Study

BESIDE = ("encoder_ridge", "knn", "mean_profile")
"""What stands beside a distribution, always: regression and neighbours on frozen features, and no prediction at all."""


@dataclass(frozen=True)
class Measure:
    """One column of the table of distributions."""

    title: str
    meaning: str
    better: Literal["lower", "higher", "neither"] = "lower"
    words: str = ""
    """What the report's sentence calls it where it says who does better; empty: not in the sentence."""

    def wins(self, mine: float, theirs: float) -> bool:
        """Return whether the first value is the better one."""
        return mine > theirs if self.better == "higher" else self.better == "lower" and mine < theirs


MEASURES = {
    "pearson": Measure(
        "PCC", "correlation of the mean with the truth, over spots; mean over genes", "higher", "correlation"
    ),
    "mse": Measure("MSE", "squared error of the mean", words="squared error"),
    "mae": Measure("MAE", "absolute error of the mean"),
    "crps": Measure(
        "CRPS", "score of the whole distribution, in units of MAE; of a single value, its absolute error", words="CRPS"
    ),
    "rvd": Measure("RVD of means", "0: the variance over spots is right; 1: flat", words="variance of the means (RVD)"),
    "rvd_samples": Measure("RVD of samples", "the same for single draws", words="variance of single draws (RVD)"),
    "coverage_50": Measure("50 % interval holds", "share of measured values; 0.5 is right", "neither"),
    "coverage_90": Measure("90 % interval holds", "share of measured values; 0.9 is right", "neither"),
    "correlation_error": Measure("Gene-gene error", "mean difference between true and predicted gene-gene correlation"),
    "correlation_error_samples": Measure(
        "Gene-gene error of samples",
        "the same for single draws",
        words="correlation between genes, of single draws",
    ),
    "moran": Measure("Moran's I error", "mean difference in spatial autocorrelation"),
    "moran_samples": Measure(
        "Moran's I error of samples", "the same for single draws", words="spatial autocorrelation, of single draws"
    ),
}
"""Measures by column."""
COMPARED = [name for name, one in MEASURES.items() if one.better != "neither" and not name.endswith("_samples")]
"""Measures that a model of one value has, too: in these the two are compared."""


@dataclass(frozen=True)
class Samples:
    """Draws of one fold's test spots, as `pipeline.stem_samples.write_samples` wrote them."""

    spots: np.ndarray
    genes: np.ndarray
    values: np.ndarray
    """(n, K, g), in the main transform's units."""
    about: dict[str, str]

    def of(self, pair: Joined) -> np.ndarray:
        """Return the draws of a section's joined spots and genes, by name: (n, K, g) float64."""
        rows, columns = (_places(mine, wanted) for mine, wanted in ((self.spots, pair.spots), (self.genes, pair.genes)))
        return self.values[rows][:, :, columns].astype(np.float64)


def read_samples(path: Path) -> Samples:
    """Read drawn samples; a missing or unreadable file is an `InputError` that names it."""
    import h5py

    if not path.is_file():
        raise InputError("there are no samples", file=path, fix="run notebook 34_diffusion, which draws them")
    try:
        with h5py.File(path, "r") as file:
            spots, genes = (file[name].asstr()[:].astype(str) for name in ("spots", "genes"))
            return Samples(spots, genes, file["samples"][:], {key: str(value) for key, value in file.attrs.items()})
    except (OSError, KeyError) as error:
        raise InputError(f"samples are not readable ({error})", file=path) from error


def score_distribution(study: Study, model: str) -> pd.DataFrame:
    """Score a model's test predictions and samples, and `BESIDE`, on the main transform.

    Writes ``evaluation/distribution_<model>.csv`` and ``.json`` with the means over sections.

    Returns
    -------
    pandas.DataFrame
        A row for each model and section, a column for each of `MEASURES`; NaN where a model draws no samples.

    Raises
    ------
    InputError
        If predictions or samples are missing.
    """
    import pandas as pd

    rows = []
    for fold in read_folds(study):
        samples = read_samples(study.run.samples(model, fold["name"]))
        for name in (model, *BESIDE):
            prediction = read_prediction(study.run.prediction(name, fold["name"]))
            main = transforms_of(prediction)[0]
            for section in fold["test_sections"]:
                clean = read_h5ad(study.run.section(section), what="cleaned section")
                pair = join(prediction, clean, section, transforms=[main])
                found = score_section(pair, main, samples.of(pair) if name == model else None)
                said = {"model": name, "title": title_of(name), "fold": fold["name"], "section": section}
                rows.append({**said, "patient": pair.patient, **found})
    table = pd.DataFrame(rows)
    folder = study.run.evaluation
    write_table(folder / f"distribution_{model}.csv", table, index=False)
    write_json(folder / f"distribution_{model}.json", summary(table, model))
    return table


def score_section(pair: Joined, transform: str, samples: np.ndarray | None = None) -> dict[str, float]:
    """Return every one of `MEASURES` for one section: means over genes that vary in the truth.

    Parameters
    ----------
    pair
        Truth and mean prediction.
    transform
        Which of the pair's transforms.
    samples
        (n, K, g) draws of the same spots and genes; None for a model that predicts one value.
    """
    true, predicted = pair.true[transform], pair.predicted[transform]
    graph = touching(pair.coords)
    own = metrics.morans_i(true, graph)

    def moran(values: np.ndarray) -> float:
        return finite_mean(np.where(metrics.is_constant(true), np.nan, np.abs(metrics.morans_i(values, graph) - own)))

    known = np.where(metrics.is_constant(true), np.nan, 1.0)
    found = {
        "pearson": finite_mean(metrics.pearson(true, predicted)),
        "mse": finite_mean(metrics.mse(true, predicted) * known),
        "mae": finite_mean(metrics.mae(true, predicted) * known),
        "crps": finite_mean(metrics.mae(true, predicted) * known),
        "rvd": finite_mean(metrics.relative_variance_distance(true, predicted)),
        "correlation_error": metrics.correlation_error(true, predicted),
        "moran": moran(predicted),
    }
    if samples is None:
        return {name: found.get(name, float("nan")) for name in MEASURES}
    few = range(min(5, samples.shape[1]))  # single draws differ little from one another in these two
    found |= {
        "crps": finite_mean(metrics.crps(true, samples)),
        "rvd_samples": finite_mean(metrics.single_sample_rvd(true, samples)),
        "correlation_error_samples": float(np.mean([metrics.correlation_error(true, samples[:, k]) for k in few])),
        "moran_samples": float(np.mean([moran(samples[:, k]) for k in few])),
    }
    for share in (50, 90):
        ends = (50 - share / 2) / 100, (50 + share / 2) / 100
        low, high = np.quantile(samples, ends, axis=1)
        found[f"coverage_{share}"] = finite_mean(metrics.coverage(true, low, high))
    return {name: found[name] for name in MEASURES}


def summary(table: pd.DataFrame, model: str) -> dict[str, object]:
    """Return means over sections by model, and which measures the model wins and loses against `BESIDE`."""
    means = table.groupby("model", sort=False)[list(MEASURES)].mean()
    rows = [
        {"model": name, "title": title_of(name), **{key: _plain(value) for key, value in row.items()}}
        for name, row in means.iterrows()
    ]
    ridge = means.loc["encoder_ridge"]
    mine = means.loc[model]
    better = [key for key in [*COMPARED[1:], *COMPARED[:1]] if MEASURES[key].wins(mine[key], ridge[key])]
    return {"model": model, "title": title_of(model), "rows": rows, "better_than_ridge": better}


def words(table: pd.DataFrame, model: str) -> str:
    """Say in one sentence how variable single draws are, whether intervals hold, and how the model stands to ridge."""
    said = summary(table, model)
    mine, ridge = (next(row for row in said["rows"] if row["model"] == name) for name in (model, "encoder_ridge"))
    held = " and ".join(f"{mine[f'coverage_{share}']:.0%} of the {share} % intervals" for share in (50, 90))
    ours, theirs = said["title"], ridge["title"]
    return (
        f"On held-out patients {ours} has a variance error (RVD) of {mine['rvd_samples']:.2f} for single draws and "
        f"{mine['rvd']:.2f} for their means, {theirs} of {ridge['rvd']:.2f}; {held} hold; the means correlate "
        f"{mine['pearson']:.3f} with what was measured, those of {theirs} {ridge['pearson']:.3f}."
    )


def load_distributions(study: Study) -> list[dict]:
    """Return what `score_distribution` wrote for each of the study's models, as far as it did."""
    files = [study.run.evaluation / f"distribution_{name}.json" for name in study.model_names]
    return [read_json(file) for file in files if file.is_file()]


def _places(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {name: i for i, name in enumerate(names.tolist())}
    missing = [name for name in wanted.tolist() if name not in place]
    if missing:
        raise InputError(
            f"samples lack {len(missing)} of the predicted spots or genes, e.g. {missing[0]}",
            fix="run notebook 34_diffusion again",
        )
    return np.array([place[name] for name in wanted.tolist()], dtype=np.int64)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
