"""A made study of 2 patients x 3 sections in the run folder's layout: known signal, known losers, shuffled columns."""

from __future__ import annotations

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from histocrypt.files import write_json
from histocrypt.predictors.registry import BASELINES
from histocrypt.study import parse_study
from histocrypt.targets.transforms import transform

SIDE, GENES, PANEL, UM_PER_PX, PITCH_PX = 12, 40, 24, 1.0, 200
TITLE = 'Made "data" <script>alert(1)</script> & more'
TRANSFORMS = ["log1p_cp10k", "log1p"]
# How much of the true pattern, and how much noise, each model's predictions hold.
SKILL = {
    "mean_profile": None, "depth_only": (0.1, 1.0), "colour_ridge": (0.5, 1.0), "encoder_ridge": (0.8, 1.0),
    "knn": (0.4, 1.0), "vision_mlp": (1.0, 0.5), "resnet18": (0.15, 1.0),
}  # fmt: skip


def genes() -> list[str]:
    return [f"ENSG{i:05d}" for i in range(GENES)]


def make_section(name: str, patient: str, rng: np.random.Generator, measured: list[str]) -> ad.AnnData:
    """Smooth patterns with Poisson counts; the expected value is the layer ``image_signal``."""
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    phase = rng.uniform(0, 2 * np.pi, (len(measured), 3))
    waves = np.sin(x[:, None] / 2.5 + phase[:, 0]) + np.cos(y[:, None] / 3 + phase[:, 1])
    rates = np.exp(0.6 * waves) * np.linspace(2, 12, len(measured))
    depth = rng.gamma(8, 1 / 8, len(x))[:, None]
    counts = rng.poisson(rates * depth)
    spatial = np.column_stack([x, y]) * float(PITCH_PX) + 300
    obs = pd.DataFrame({"section": name, "patient": patient}, index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)])
    obs["total_counts"] = counts.sum(axis=1).astype(float)
    section = ad.AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame({"symbol": [f"GENE{gene[-3:]}" for gene in measured]}, index=measured),
        obsm={"spatial": spatial},
    )
    section.layers["image_signal"] = np.log1p(1e4 * rates / rates.sum(axis=1, keepdims=True)).astype(np.float32)
    picture = np.full((300, 300, 3), 235, dtype=np.uint8)
    picture[20:280, 20:280] = rng.integers(150, 220, (260, 260, 1)) + np.array([20, -10, 25])
    section.uns["spatial"] = {
        name: {
            "images": {"hires": picture},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 110.0},
        }
    }
    alignment = {"dx_um": 40.0, "dy_um": -30.0, "applied": name == "A_1", "confidence": 3.2, "reason": "gain not clear"}
    section.uns["preprocessing"] = {
        "um_per_px": UM_PER_PX, "um_per_px_source": "given", "dropped": {"off tissue": 3, "fewer than 200 counts": 2},
        "alignment": alignment,
    }  # fmt: skip
    return section


def predict(
    sections: dict[str, ad.AnnData], names: list[str], panel: list[str], model: str, fold: str, part: str, seed: int
) -> ad.AnnData:
    """Predictions of a model of known skill, rows and columns in an order of their own."""
    rng = np.random.default_rng(seed)
    blocks, frames, places = {t: [] for t in TRANSFORMS}, [], []
    for name in names:
        section = sections[name]
        order = rng.permutation(section.n_obs)
        columns = section.var_names.get_indexer(panel)
        for t in TRANSFORMS:
            everything = transform(section.X, section.obs["total_counts"].to_numpy(), t)[order]
            true = np.where(columns >= 0, everything[:, columns], 1.0)
            if SKILL[model] is None:
                blocks[t].append(np.tile(np.linspace(0.5, 3, len(panel), dtype=np.float32), (len(true), 1)))
                continue
            gain, noise = SKILL[model]
            signal = np.where(columns >= 0, section.layers["image_signal"][order][:, columns], 1.0)
            wobble = rng.standard_normal(true.shape) * (signal.std(axis=0) + 1e-6)
            away = gain * (signal - signal.mean(axis=0)) + noise * wobble
            blocks[t].append((true.mean(axis=0) + 0.6 * away).astype(np.float32))
        barcodes = section.obs_names[order]
        frame = pd.DataFrame({"section": name, "patient": section.obs["patient"].iloc[0], "barcode": barcodes})
        frames.append(frame.set_index(pd.Index([f"{name}:{barcode}" for barcode in barcodes])))
        places.append(section.obsm["spatial"][order])
    layers = {t: np.concatenate(block) for t, block in blocks.items()}
    symbols = [f"GENE{gene[-3:]}" for gene in panel]
    prediction = ad.AnnData(
        layers[TRANSFORMS[0]].copy(),
        obs=pd.concat(frames),
        var=pd.DataFrame({"symbol": symbols}, index=panel),
        layers=layers,
    )
    prediction.obsm["spatial"] = np.concatenate(places)
    prediction.uns["prediction"] = {
        "model": model, "fold": fold, "part": part, "transform": TRANSFORMS[0], "transforms": TRANSFORMS,
    }  # fmt: skip
    return prediction


def make_study(*, title: str = TITLE):
    """Write a whole run folder below HISTOCRYPT_OUTPUTS and return its study."""
    study = parse_study(
        {
            "name": "made",
            "title": title,
            "sections": [{"path": "nowhere"}],
            "panel": {"method": "hvg", "size": PANEL},
            "target": {"transforms": TRANSFORMS},
            "models": {"vision_mlp": {}, "resnet18": {}},
            "evaluation": {"bootstrap": 200, "block_um": 600, "k": [5, 10]},
        }
    )
    run = study.run
    names = {f"{patient}_{i}": patient for patient in "AB" for i in (1, 2, 3)}
    rng = np.random.default_rng(1)
    sections = {}
    for name, patient in names.items():
        measured = genes()[:-2] if name == "B_3" else genes()  # B_3 did not measure the last two
        sections[name] = make_section(name, patient, rng, measured)
        run.section(name).parent.mkdir(parents=True, exist_ok=True)
        sections[name].write_h5ad(run.section(name))
    folds, panels = [], {"A": genes()[:PANEL], "B": [*genes()[4 : PANEL + 2], *genes()[-2:]]}
    for patient in "AB":
        other = "B" if patient == "A" else "A"
        fold = {"name": f"fold_{patient}", "test_patients": [patient], "train_sections": [f"{other}_1", f"{other}_2"]}
        fold |= {"validation_sections": [f"{other}_3"], "test_sections": [n for n in names if names[n] == patient]}
        folds.append(fold)
        for i, model in enumerate([*BASELINES, "vision_mlp", "resnet18"]):
            for part in ("test", "validation"):
                seed = 100 * i + 10 * (patient == "A") + (part == "test")
                panel = [str(gene) for gene in np.random.default_rng(seed).permutation(panels[patient])]
                prediction = predict(sections, fold[f"{part}_sections"], panel, model, fold["name"], part, seed)
                path = run.prediction(model, fold["name"], part)
                path.parent.mkdir(parents=True, exist_ok=True)
                prediction.write_h5ad(path)
    final = {"name": "final", "test_patients": [], "train_sections": list(names), "validation_sections": []}
    write_json(run.folds, {"folds": [*folds, {**final, "test_sections": []}]})
    for model in ("vision_mlp", "resnet18", "colour_ridge"):
        write_json(run.model(model, "final") / "model.json", {"model": model, "panel": {"genes": panels["A"]}})
    for fold in folds:
        epochs = np.arange(1, 9)
        table = pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "validation_loss": 0.3 + 1 / epochs})
        table = table.assign(validation_pcc=0.5 - 0.4 / epochs, learning_rate=1e-3, seconds=1.0)
        folder = run.model("vision_mlp", fold["name"])
        folder.mkdir(parents=True)
        table.to_csv(folder / "curves.csv", index=False)
    return study


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of a made study that nobody has scored; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(folder))
        return folder, make_study()


@pytest.fixture(scope="session")
def scored_once(made, tmp_path_factory):
    """The made study, scored once: (outputs folder, study, scores)."""
    from histocrypt.evaluation.scores import score_study

    folder, study = made
    outputs = tmp_path_factory.mktemp("scored") / "outputs"
    shutil.copytree(folder, outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        return outputs, study, score_study(study)


@pytest.fixture(scope="session")
def page(scored_once, tmp_path_factory):
    """The report of the scored study, as it was written first: a file of its own."""
    from histocrypt.report.page import write_report

    outputs, study, _ = scored_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        return shutil.copy(write_report(study), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def scored(scored_once, monkeypatch):
    """The made study and its scores, its run folder in place: (study, scores)."""
    outputs, study, scores = scored_once
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
    return study, scores


@pytest.fixture
def fresh(made, tmp_path, monkeypatch):
    """A made study of one's own, not scored yet, to break things in."""
    folder, study = made
    shutil.copytree(folder, tmp_path / "outputs")
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    return study
