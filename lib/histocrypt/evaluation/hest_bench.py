"""The protocol of HEST-Benchmark (Jaume et al., NeurIPS 2024; arXiv:2406.16192), from its description.

A task holds patches of 112 x 112 um around spots, their counts, a list of 50 genes, and splits by patient. Targets are
ln(1 + count). Frozen features are standardised and reduced to 256 principal components on a fold's training spots; a
ridge regression predicts the genes from these. The score of a fold is Pearson's correlation over test spots, averaged
over genes; a task's is the mean over its folds, with their standard deviation; an encoder's the mean over tasks.

Two things of the protocol are disputed, so each is done in two ways:

* the penalty. ``published``: scikit-learn's ``alpha = 100 / (components * genes)``, which hardly shrinks at all.
  ``validated``: of that and 17 stronger ones, the one with the best correlations on training patients held out in turn.
* pooling. ``fold``: one correlation over all spots of a fold's test samples together, as the published table has it.
  ``sample``: one in each test sample, then the mean.

The published regression has no intercept. Components are centred on the training spots, so an intercept changes each
gene's predictions by a constant, and no correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.features import section_features
from histocrypt.data.load import Spots, spot_names
from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation.metrics import finite_mean, pearson
from histocrypt.hdf5 import open_h5
from histocrypt.predictors.closed_form import PENALTIES as TRIED
from histocrypt.predictors.closed_form import inner_folds, mean_and_sd, principal_components, ridge
from histocrypt.sections.formats.h5ad import read_anndata
from histocrypt.sections.formats.hest import hest_gene_list, hest_splits, is_hest_bench
from histocrypt.sections.image import PatchMosaic
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import transform
from histocrypt.tissue.stain import DEFAULT_REFERENCE

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = 256
TASKS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "HCC", "LUAD", "LYMPH_IDC")
"""In the order of the published table; other tasks follow by name."""
PENALTIES = ("published", "validated")
POOLINGS = ("fold", "sample")
DEFAULT_ENCODER = "efficientnet_lite0"


@dataclass(frozen=True)
class Sample:
    """One sample of a task: its patches and what was measured there."""

    id: str
    patches: Path
    names: np.ndarray
    """(n,) of the spots that have a patch, in the order of the patches."""
    targets: np.ndarray
    """(n, genes) float32, ln(1 + count)."""

    def features(self, encoder: str) -> np.ndarray:
        """Return the encoder's features of the patches as they are, (n, d) float32; cached by content."""
        with open_h5(self.patches) as file:
            return section_features(
                file["img"], stain=DEFAULT_REFERENCE, method="none", encoder=encoder, names=self.names
            )


@dataclass(frozen=True)
class Task:
    """A task of the benchmark."""

    name: str
    genes: tuple[str, ...]
    samples: dict[str, Sample]
    folds: dict[int, tuple[tuple[str, ...], tuple[str, ...]]]
    """Fold -> samples to train on, and to test."""

    def group(self, sample: str) -> str:
        """Return whom a sample is held out with: samples that are tested in the same folds are of one patient."""
        return str([fold for fold, (_, test) in self.folds.items() if sample in test] or sample)


def tasks_in(folder: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """Return the folders of tasks: the folder itself if it is one, else those in it, in the order of the table.

    Raises
    ------
    InputError
        If there is none, or not the one that is named.
    """
    folder = Path(folder)
    if is_hest_bench(folder):
        found = [folder]
    else:
        found = [path for path in (folder.iterdir() if folder.is_dir() else ()) if is_hest_bench(path)]
    if not found:
        expected = "a task, splits/train_0.csv and test_0.csv among its files, or a folder of tasks"
        raise InputError("is not a task of hest-bench", file=folder, expected=expected)
    rank = {name: number for number, name in enumerate(TASKS)}
    found.sort(key=lambda path: (rank.get(path.name, len(rank)), path.name))
    there = {path.absolute().name: path for path in found}
    for name in names:
        if name not in there:
            raise unknown_name("task", name, there, file=folder)
    return [path for name, path in there.items() if not names or name in names]


def read_task(folder: Path) -> Task:
    """Read splits, genes and counts of a task; patches stay on the disk.

    Raises
    ------
    InputError
        If the task has no gene list, or a file is missing, damaged or does not go with another: a patch is of no spot,
        a gene of the list was not measured, a count is negative.
    """
    genes, splits = hest_gene_list(folder), hest_splits(folder)
    if genes is None:
        raise InputError("task has no gene list", file=folder, expected="var_50genes.json")
    rows = {row["sample_id"]: row for split in splits.values() for half in split.values() for row in half}
    folds = {
        number: tuple(tuple(row["sample_id"] for row in split[half]) for half in ("train", "test"))
        for number, split in splits.items()
    }
    samples = {name: _sample(name, row["patches_path"], row["expr_path"], genes) for name, row in rows.items()}
    return Task(folder.absolute().name, tuple(genes), samples, folds)


def _sample(name: str, patches: Path, expression: Path, genes: list[str]) -> Sample:
    mosaic = PatchMosaic.from_h5(patches)
    with open_h5(patches) as file:
        if mosaic.barcodes is None or "img" not in file:
            raise InputError("lacks the names or the pixels of patches", file=patches, expected="barcode and img")
    adata = read_anndata(expression)
    if not adata.obs_names.is_unique:
        raise InputError("lists a spot twice", file=expression, field="obs_names")
    rows = adata.obs_names.astype(str).get_indexer(mosaic.barcodes)
    if (rows < 0).any():
        stranger = str(mosaic.barcodes[int((rows < 0).argmax())])
        raise InputError(f"has a patch without a spot in {expression.name}", file=patches, value=stranger)
    columns = Panel(tuple(genes), tuple(genes), "hest-bench").columns(adata, section=name)
    counts = adata.X[rows][:, columns]
    counts = np.asarray(counts.todense() if hasattr(counts, "todense") else counts, dtype=np.float64)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError("holds numbers that are not counts", file=expression, field="X", expected="0, 1, 2, ...")
    return Sample(name, patches, spot_names(name, mosaic.barcodes), transform(counts, counts.sum(axis=1), "log1p"))


def score_task(task: Task, encoder: str, *, components: int = COMPONENTS) -> pd.DataFrame:
    """Fit and score one encoder on every fold of a task.

    Returns
    -------
    One row a fold, penalty, pooling and gene: ``pearson`` (0 for a flat prediction, NaN where the gene is constant),
    and ``alpha``, the penalty in scikit-learn's units.
    """
    import pandas as pd

    features = {name: sample.features(encoder) for name, sample in task.samples.items()}
    parts = []
    for fold, (train, test) in task.folds.items():
        learnt = _together(task, train)
        x, project = _components(np.concatenate([features[name] for name in train]), components)
        published = 100 / (x.shape[1] * len(task.genes))
        alphas = {"published": published, "validated": chosen_alpha(x, learnt, published)}
        coefficients, intercepts = ridge(x, learnt.targets, [alphas[rule] / len(x) for rule in PENALTIES])
        tested = {name: project(features[name]) for name in test}
        for rule, slope, constant in zip(PENALTIES, coefficients, intercepts, strict=True):
            predicted = [tested[name] @ slope + constant for name in test]
            true = [task.samples[name].targets for name in test]
            pooled = {
                "fold": pearson(np.concatenate(true), np.concatenate(predicted)),
                "sample": _mean([pearson(*pair) for pair in zip(true, predicted, strict=True)]),
            }
            for pooling, scores in pooled.items():
                about = {"task": task.name, "encoder": encoder, "fold": fold, "penalty": rule, "pooling": pooling}
                parts.append(pd.DataFrame({**about, "gene": task.genes, "pearson": scores, "alpha": alphas[rule]}))
    return pd.concat(parts, ignore_index=True)


def chosen_alpha(x: np.ndarray, learnt: Spots, published: float) -> float:
    """Return the penalty, in scikit-learn's units, under which held-out training patients are predicted best.

    Judged by the benchmark's own measure. An error would not do: between laboratories the level of counts differs more
    than within, so the least error is that of the strongest penalty. The strongest of equals is taken.

    Parameters
    ----------
    x
        (n, k) components of training spots.
    learnt
        The training spots with their targets, see `closed_form.inner_folds`.
    published
        The benchmark's own penalty, which is tried with `closed_form.PENALTIES`.
    """
    tried = sorted({published, *(penalty * len(x) for penalty in TRIED)})
    scores = np.zeros(len(tried))
    for train, held_out in inner_folds(learnt):
        coefficients, _ = ridge(x[train], learnt.targets[train], [alpha / len(x) for alpha in tried])
        scores += [finite_mean(pearson(learnt.targets[held_out], x[held_out] @ slope)) for slope in coefficients]
    return tried[int(np.flatnonzero(scores == scores.max())[-1])]


def _together(task: Task, names: Sequence[str]) -> Spots:
    samples = [task.samples[name] for name in names]
    sizes = [len(sample.names) for sample in samples]
    return Spots(
        names=np.concatenate([sample.names for sample in samples]),
        sections=np.repeat(np.array(names), sizes),
        patients=np.repeat(np.array([task.group(name) for name in names]), sizes),
        depth=np.zeros(sum(sizes)),
        outputs=task.genes,
        targets=np.concatenate([sample.targets for sample in samples]),
    )


def _components(train: np.ndarray, most: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the components of training features, (n, k), and what gives those of others; no label is looked at."""
    mean, sd = mean_and_sd(train, np.zeros(len(train)), by_section=False)
    pca = principal_components((train - mean) / sd, most)

    def project(features: np.ndarray) -> np.ndarray:
        return ((features - mean) / sd - pca.mean_) @ pca.components_.T

    return project(train), project


def _mean(scores: list[np.ndarray]) -> np.ndarray:
    """Return the mean of each gene over the samples in which it is not constant; NaN where it is in all."""
    known = np.isfinite(scores)
    total = np.where(known, scores, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def run(
    folder: str | Path,
    encoders: Sequence[str] = (DEFAULT_ENCODER,),
    *,
    tasks: Sequence[str] = (),
    components: int = COMPONENTS,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run encoders on tasks: the rows of `score_task`, encoder by encoder.

    Parameters
    ----------
    folder
        A task, or a folder of tasks.
    encoders
        Names as in a study, e.g. ``resnet50`` or ``uni2_h+hibou_l``.
    tasks
        Names of tasks; all if none.
    components
        Principal components kept, at most.
    say
        Told of every task, and of what it took.
    """
    import pandas as pd

    parts = []
    for path in tasks_in(folder, tasks):
        task = read_task(path)
        spots = sum(len(sample.names) for sample in task.samples.values())
        say(
            f"{task.name}: {len(task.folds)} folds, {len(task.samples)} samples, {spots} spots, {len(task.genes)} genes"
        )
        parts += [score_task(task, encoder, components=components) for encoder in encoders]
    return pd.concat(parts, ignore_index=True)


def averages(scores: pd.DataFrame, penalty: str, pooling: str) -> list[dict[str, Any]]:
    """Return a row per encoder: its mean correlation, and mean and standard deviation over the folds of each task."""
    own = scores[(scores["penalty"] == penalty) & (scores["pooling"] == pooling)]
    folds, rows = own.groupby(["encoder", "task", "fold"])["pearson"].apply(finite_mean), []
    for encoder in dict.fromkeys(scores["encoder"]):
        each = {task: folds[encoder, task].to_numpy() for task in dict.fromkeys(scores["task"])}
        tasks = {task: {"pearson": values.mean(), "pearson_sd": values.std()} for task, values in each.items()}
        mean = np.mean([values.mean() for values in each.values()])
        rows.append({"encoder": encoder, "penalty": penalty, "pooling": pooling, "pearson": mean, "tasks": tasks})
    return rows


def document(scores: pd.DataFrame) -> dict[str, Any]:
    """Return the rows of all tables that `render` writes, for programs."""
    ways = [(penalty, pooling) for penalty in PENALTIES for pooling in ("fold", "sample")]
    return {"rows": [row for way in ways for row in averages(scores, *way)]}


def render(scores: pd.DataFrame) -> str:
    """Return `run`'s rows as the published table has them, once for each penalty and pooling: mean (sd) over folds."""
    words = {
        ("published", "fold"): "As published: alpha = 100 / (components x genes), one correlation a fold",
        ("published", "sample"): "The same, one correlation a test sample",
        ("validated", "fold"): "Penalty chosen on training patients, one correlation a fold",
        ("validated", "sample"): "The same, one correlation a test sample",
    }
    tasks, lines = list(dict.fromkeys(scores["task"])), []
    for (rule, pooling), words_of in words.items():
        lines += [words_of, "", f"| encoder | {' | '.join(tasks)} | Average |", "|---" * (len(tasks) + 2) + "|"]
        for row in averages(scores, rule, pooling):
            cells = [f"{task['pearson']:.4f} ({task['pearson_sd']:.4f})" for task in row["tasks"].values()]
            lines.append(f"| {row['encoder']} | {' | '.join(cells)} | {row['pearson']:.4f} |")
        lines.append("")
    return "\n".join(
        [*lines, "Pearson's r, mean over genes; mean (standard deviation) over folds. Flat predictions are 0."]
    )
