"""The null of spatial shifts: right by hand, calibrated on smooth noise, and able to see a signal."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from histocrypt.evaluation.he2gene import (
    LEAST_OVERLAP,
    Pair,
    area_of_draws,
    array_or_nearest,
    gene_signal,
    shifted_correlations,
    smoothing,
    summary_of,
    tumour_score,
)

SIDE = 12


def disc():
    """A round piece of tissue on a square array."""
    row, column = (axis.ravel() for axis in np.mgrid[:SIDE, :SIDE])
    inside = np.hypot(row - (SIDE - 1) / 2, column - (SIDE - 1) / 2) < SIDE / 2
    return np.column_stack([row, column])[inside]


def smooth(rng, genes, grid, sigma=1.5):
    fields = gaussian_filter(rng.normal(size=(genes, SIDE, SIDE)), sigma=(0, sigma, sigma), mode="wrap")
    return fields[:, grid[:, 0], grid[:, 1]].T


def test_every_shift_and_mirror_by_hand():
    rng = np.random.default_rng(0)
    grid = disc()
    true, predicted = smooth(rng, 3, grid), smooth(rng, 3, grid)
    found, met = shifted_correlations(true, predicted, grid)
    assert found.shape == (4 * SIDE * SIDE, 3)
    place = {tuple(one): index for index, one in enumerate(grid.tolist())}
    for number in (0, 5, SIDE + 3, 2 * SIDE * SIDE + 7, 3 * SIDE * SIDE + 40):
        flip, shift = divmod(number, SIDE * SIDE)
        down, right = divmod(shift, SIDE)
        pairs = []
        for index, (row, column) in enumerate(grid.tolist()):
            r, c = (row - down) % SIDE, (column - right) % SIDE
            source = (SIDE - 1 - r if flip >= 2 else r, SIDE - 1 - c if flip % 2 else c)
            if source in place:
                pairs.append((index, place[source]))
        assert met[number] == len(pairs)
        a, b = np.array(pairs).T
        for gene in range(3):
            assert found[number, gene] == pytest.approx(np.corrcoef(true[a, gene], predicted[b, gene])[0, 1], abs=1e-8)


def test_the_null_is_calibrated_where_both_maps_are_smooth_and_unrelated():
    """Permuting spots would call half of these genes significant; shifts keep the p-values near uniform."""
    rng, grid = np.random.default_rng(1), disc()
    sections = [Pair(f"S_{k}", smooth(rng, 400, grid), smooth(rng, 400, grid), grid) for k in range(2)]
    table = gene_signal(sections, np.array([f"g{i}" for i in range(400)]), draws=500)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs((table["p"] <= level).mean() - level) < 0.08, level
    assert (table["q"] <= 0.05).sum() <= 2
    naive = np.mean([np.corrcoef(t, p)[0, 1] > 1.65 / np.sqrt(len(grid)) for t, p in
                     zip(sections[0].true.T, sections[0].predicted.T, strict=True)])  # fmt: skip
    assert naive > 0.15, "the control: spots are not independent here"


def test_a_signal_is_found_and_a_constant_is_not():
    rng, grid = np.random.default_rng(2), disc()
    true, predicted = smooth(rng, 100, grid), smooth(rng, 100, grid)
    predicted[:, :40] = true[:, :40] + 0.5 * true[:, :40].std() * rng.normal(size=(len(grid), 40))
    predicted[:, 99] = 1.0
    true[:, 98] = 0.0
    names = np.array([f"g{i:02d}" for i in range(100)])
    table = gene_signal([Pair("S", true, predicted, grid)], names, draws=999).set_index("gene")
    assert "g98" not in table.index, "a gene that does not vary cannot be tested"
    assert (table.loc[names[:40], "q"] <= 0.05).mean() > 0.9
    assert (table.loc[names[40:98], "q"] <= 0.05).mean() < 0.1
    assert table.loc["g99", "p"] == 1.0
    assert LEAST_OVERLAP <= 0.5
    (line,) = summary_of(table.reset_index().assign(patient="P", symbol=lambda t: t["gene"], sections=1), level=0.05)
    assert line["better"] == (table["q"] <= 0.05).sum()


def section_of(grid, labels=None):
    adata = anndata.AnnData(np.zeros((len(grid), 1), dtype=np.float32))
    adata.obs_names = [f"{c}x{r}" for r, c in grid]
    adata.var_names = ["g"]
    adata.obsm["spatial"] = grid[:, ::-1] * 100.0
    adata.uns["preprocessing"] = {"um_per_px": 1.0}
    if labels is not None:
        adata.obs["tumour"] = labels
    return adata


def heads_of(section, probability):
    heads = anndata.AnnData(np.zeros((section.n_obs, 0), dtype=np.float32))
    heads.obs_names = [f"S:{name}" for name in section.obs_names]
    heads.obs["section"], heads.obs["patient"], heads.obs["barcode"] = "S", "P", list(section.obs_names)
    heads.obs["tumour_probability"] = probability
    heads.uns["prediction"] = {"label": {"source": "obs:tumour", "proxy": False, "positive": np.array([], dtype=str)}}
    return heads


def test_area_under_the_curve_with_its_interval():
    rng, grid = np.random.default_rng(3), disc()
    truth = grid[:, 0] > SIDE / 2
    section = section_of(grid, truth)
    noisy = truth + rng.normal(0, 0.7, len(grid))
    found = tumour_score(heads_of(section, noisy), {"S": section}, block_um=300, draws=200)
    assert found["low"] < found["auc"] < found["high"] <= 1
    assert 0.7 < found["auc"] < 0.95
    assert found["spots"] == len(grid)
    shuffled = heads_of(section, noisy)[rng.permutation(len(grid))].copy()
    again = tumour_score(shuffled, {"S": section}, block_um=300, draws=200)
    assert again["auc"] == pytest.approx(found["auc"]), "joined by name, not by place"
    assert "why" in tumour_score(heads_of(section, noisy), {"S": section_of(grid)}, block_um=300)
    none = heads_of(section, noisy)
    del none.obs["tumour_probability"]
    assert tumour_score(none, {"S": section}, block_um=300) == {"why": "no training section has a label"}


def test_smoothing_is_seen_in_variance_and_morans_i(tmp_path):
    rng, grid = np.random.default_rng(4), disc()
    section = section_of(grid)
    section = anndata.AnnData(rng.poisson(20, (len(grid), 5)).astype(np.float32), obs=section.obs, obsm=section.obsm)
    section.var_names = [f"g{i}" for i in range(5)]
    section.obs["total_counts"] = np.asarray(section.X.sum(axis=1)).ravel()
    field = smooth(rng, 5, grid, sigma=2.5).astype(np.float32)
    rough = rng.normal(size=(len(grid), 5)).astype(np.float32)
    scores = {}
    for name, values in (("smooth", 0.1 * field / field.std()), ("rough", rough)):
        obs = pd.DataFrame(
            {"section": "S", "patient": "P", "barcode": list(section.obs_names)},
            index=[f"S:{one}" for one in section.obs_names],
        )
        file = anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=section.var_names), layers={"log1p": values})
        file.uns["prediction"] = {"transforms": np.array(["log1p"])}
        file.write_h5ad(tmp_path / f"{name}.h5ad")
        scores[name] = smoothing(tmp_path / f"{name}.h5ad", {"S": section})
    assert scores["smooth"]["moran_predicted"] > 0.5 > abs(scores["rough"]["moran_predicted"])
    assert scores["smooth"]["variance_ratio"] < scores["rough"]["variance_ratio"]
    assert scores["smooth"]["moran_measured"] == scores["rough"]["moran_measured"]


def test_places_come_from_the_array_or_from_coordinates():
    grid = disc()
    section = section_of(grid)
    by_coordinates = array_or_nearest(section)
    section.obs["array_row"], section.obs["array_col"] = grid[:, 0], grid[:, 1]
    assert np.array_equal(by_coordinates - by_coordinates.min(axis=0), grid - grid.min(axis=0))
    assert np.array_equal(array_or_nearest(section), grid)


def test_the_report_shows_what_the_summary_says_and_asks_for_it_where_it_is_missing(small_run, tmp_path, monkeypatch):
    from histocrypt.errors import InputError
    from histocrypt.evaluation.wording import number
    from histocrypt.files import read_json
    from histocrypt.report.parts import beyond_panel
    from histocrypt.study import load_study

    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(small_run))
    study = load_study(small_run / "small.yaml")
    said = read_json(study.run.multitask / "summary.json")
    page = study.run.report.read_text(encoding="utf-8")
    assert "Beyond the panel" in page
    for one in said["tumour"]:
        assert number(one["auc"]) in page
    assert {line["genes"] for line in said["signal"]} == {60 - 12}
    assert read_json(study.run.stacking("fold_1"))["validation_pcc"]["he2gene"] is not None
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    with pytest.raises(InputError) as refused:
        beyond_panel(study, {}, [])
    assert refused.value.file == study.run.multitask


def test_the_area_in_every_draw_is_that_of_repeated_spots():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(5)
    labels, yes, score = rng.integers(0, 4, 60), rng.random(60) < 0.4, rng.integers(0, 8, 60) / 7
    yes[labels == 3] = False
    weights = np.vstack([rng.multinomial(4, [0.25] * 4, size=20), [0, 0, 0, 4]]).astype(float)
    areas = area_of_draws(yes, score, labels, weights)
    assert np.isnan(areas[-1])
    for area, weight in zip(areas[:-1], weights, strict=False):
        one = weight[labels]
        if one[yes].sum() and one[~yes].sum():
            assert area == pytest.approx(roc_auc_score(yes, score, sample_weight=one))
