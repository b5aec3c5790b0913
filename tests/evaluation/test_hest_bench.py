"""The protocol of HEST-Benchmark, on small tasks in its layout: against scikit-learn and scipy, and what breaks it."""

import csv
import json
import runpy

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.commands import document
from tests.tiny_section import write_tiny_section
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.encoders.encoders import encode
from histocrypt.errors import InputError
from histocrypt.evaluation.hest_bench import read_task, render, run, score_task, tasks_in
from histocrypt.paths import repository

ENCODER = "efficientnet_lite0_128"
GENES = [f"GENE{number}" for number in range(6)]
SPOTS = 24
FOLDS = {0: (["C", "D"], ["A", "B"]), 1: (["A", "B", "D"], ["C"]), 2: (["A", "B", "C"], ["D"])}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write(folder):
    """Write a task: four samples of three patients, whose genes follow how dark and how red a patch is."""
    rng = np.random.default_rng(0)
    slopes = rng.uniform(-2, 2, (2, 6))
    for part in ("adata", "patches", "splits"):
        (folder / part).mkdir(parents=True)
    for sample in "ABCD":
        look = rng.uniform(0, 1, (SPOTS, 2))
        pixels = np.stack([200 - 90 * look[:, 0], 120 + 60 * look[:, 1], np.full(SPOTS, 170.0)], axis=1)[:, None, None]
        img = np.clip(pixels + rng.normal(0, 6, (SPOTS, 32, 32, 3)), 0, 255).astype(np.uint8)
        rates = np.exp(2 + look @ slopes)
        names = [f"{sample}-{number}" for number in range(SPOTS)]
        order = rng.permutation(SPOTS)
        counts = np.vstack([rng.poisson(rates)[order], rng.poisson(5, (3, 6))])  # three spots have no patch
        obs = pd.DataFrame(index=[*np.array(names)[order], "x1", "x2", "x3"])
        adata = anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=GENES[::-1]))
        adata.write_h5ad(folder / "adata" / f"{sample}.h5ad")
        with h5py.File(folder / "patches" / f"{sample}.h5", "w") as file:
            file["img"], file["coords"] = img, np.zeros((SPOTS, 2), dtype=int)
            file["barcode"] = np.array([name.encode() for name in names])[:, None]
    (folder / "var_5genes.json").write_text(json.dumps({"genes": GENES[:5]}))
    for number, halves in FOLDS.items():
        for half, samples in zip(("train", "test"), halves, strict=True):
            with (folder / "splits" / f"{half}_{number}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["sample_id", "patches_path", "expr_path"])
                writer.writerows([one, f"patches/{one}.h5", f"adata/{one}.h5ad"] for one in samples)
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write(folder / "PRAD")
    return folder


@pytest.fixture
def task(tmp_path):
    return write(tmp_path / "TASK")


@pytest.fixture(scope="module")
def scores(bench):
    return run(bench, [ENCODER], components=12, say=lambda _: None)


def sample(folder, name):
    """Return features and targets of a sample's patches, read without the library's readers."""
    with h5py.File(folder / "patches" / f"{name}.h5") as file:
        img, barcodes = file["img"][:], [one.decode() for one in file["barcode"][:, 0]]
    counts = anndata.read_h5ad(folder / "adata" / f"{name}.h5ad")[barcodes, GENES[:5]].X.toarray()
    return encode(img, ENCODER, progress=False), np.log1p(counts)


def test_scores_are_those_of_the_described_protocol(bench, scores):
    own = {name: sample(bench / "PRAD", name) for name in "ABCD"}
    for fold, (train, test) in FOLDS.items():
        x, y = (np.concatenate([own[name][part] for name in train]) for part in (0, 1))
        reduce = make_pipeline(StandardScaler(), PCA(12, svd_solver="full")).fit(x)
        model = Ridge(alpha=100 / (12 * 5), fit_intercept=False).fit(reduce.transform(x), y)
        predicted = {name: model.predict(reduce.transform(own[name][0])) for name in test}
        true = np.concatenate([own[name][1] for name in test])
        together = np.concatenate([predicted[name] for name in test])
        expected = {
            "fold": [pearsonr(true[:, g], together[:, g])[0] for g in range(5)],
            "sample": [np.mean([pearsonr(own[n][1][:, g], predicted[n][:, g])[0] for n in test]) for g in range(5)],
        }
        for pooling, values in expected.items():
            rows = scores[
                (scores["fold"] == fold) & (scores["pooling"] == pooling) & (scores["penalty"] == "published")
            ]
            assert list(rows["gene"]) == GENES[:5]
            assert np.allclose(rows["pearson"], values, atol=1e-4)
            assert np.allclose(rows["alpha"], 100 / (12 * 5))


def test_the_penalty_is_chosen_without_a_test_sample(bench, scores, task):
    """Other counts of the test samples change scores, and no penalty."""
    path = task / "adata" / "D.h5ad"
    adata = anndata.read_h5ad(path)
    adata.X = csr_matrix(adata.X.toarray()[::-1])
    adata.write_h5ad(path)
    changed = score_task(read_task(task), ENCODER, components=12)
    both = [table[(table["fold"] == 2) & (table["penalty"] == "validated")] for table in (scores, changed)]
    assert set(both[0]["alpha"]) == set(both[1]["alpha"])
    assert not np.allclose(both[0]["pearson"], both[1]["pearson"])
    assert set(both[0]["alpha"]) != set(scores[scores["penalty"] == "published"]["alpha"])


def test_samples_that_are_tested_together_are_held_out_together(bench):
    read = read_task(bench / "PRAD")
    assert read.group("A") == read.group("B")
    assert len({read.group(name) for name in "ABCD"}) == 3


def test_the_table_is_that_of_the_benchmark(bench, scores, tmp_path):
    (bench / "IDC").symlink_to(bench / "PRAD")
    try:
        assert [path.name for path in tasks_in(bench)] == ["IDC", "PRAD"]
    finally:
        (bench / "IDC").unlink()
    shown = render(scores)
    folds = scores[(scores["penalty"] == "published") & (scores["pooling"] == "fold")].groupby("fold")["pearson"].mean()
    row = f"| {ENCODER} | {folds.mean():.4f} ({folds.std(ddof=0):.4f}) | {folds.mean():.4f} |"
    assert "| encoder | PRAD | Average |" in shown
    assert row in shown.splitlines()
    assert folds.mean() > 0.3  # colour tells these genes: a mixed-up join would not
    command = ["hest-bench", str(bench), "-e", ENCODER, "--components", "12", "-o", str(tmp_path / "out.csv")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert row in done.output.splitlines()
    assert len(pd.read_csv(tmp_path / "out.csv")) == len(scores)
    assert isinstance(CliRunner().invoke(app, command).exception, InputError)  # the file is there already
    (first, *_) = document(*command[:-2])["rows"]
    assert (first["encoder"], first["penalty"], first["pooling"]) == (ENCODER, "published", "fold")
    assert first["pearson"] == first["tasks"]["PRAD"]["pearson"] == pytest.approx(folds.mean())
    assert first["tasks"]["PRAD"]["pearson_sd"] == pytest.approx(folds.std(ddof=0))


def test_a_task_with_a_hole_is_refused(task):
    with h5py.File(task / "patches" / "B.h5", "r+") as file:
        file["barcode"][3] = b"Z-99"
    with pytest.raises(InputError) as refused:
        read_task(task)
    assert refused.value.value == "Z-99"
    (task / "patches" / "B.h5").unlink()
    with pytest.raises(InputError) as refused:
        read_task(task)
    assert str(refused.value.file) == str(task / "patches" / "B.h5")
    (task / "var_5genes.json").unlink()
    with pytest.raises(InputError) as refused:
        read_task(task)
    assert refused.value.file == task
    with pytest.raises(InputError) as refused:
        tasks_in(task / "adata")
    assert refused.value.file == task / "adata"
    with pytest.raises(InputError) as refused:
        tasks_in(task, ["LUAD"])
    assert refused.value.file == task


def test_own_sections_become_a_task(tmp_path):
    write_task = runpy.run_path(str(repository() / "benchmarks" / "hest_task.py"))["write_task"]
    whose = {"A": "P1", "B": "P2", "C": "P1"}
    paths = [write_tiny_section(tmp_path / "own", name, patient) for name, patient in whose.items()]
    write_task(tmp_path / "OWN", paths, genes=8)
    read = read_task(tmp_path / "OWN")
    assert read.folds == {0: (("B",), ("A", "C")), 1: (("A", "C"), ("B",))}
    assert len(read.genes) == 8
    with h5py.File(read.samples["B"].patches) as file:
        assert file["img"].shape == (36, 224, 224, 3)
    counts = anndata.read_h5ad(paths[1])[:, list(read.genes)].X.toarray()
    assert np.allclose(read.samples["B"].targets, np.log1p(counts))
    with pytest.raises(InputError):
        write_task(tmp_path / "ONE", paths[:1])
