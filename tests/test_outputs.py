"""What is written: in nobody's place, and so that neither a spreadsheet nor a figure runs text from a file."""

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.demo.write import write_demo
from histocrypt.errors import InputError
from histocrypt.evaluation.figures import canvas, log_scale, save, style
from histocrypt.evaluation.maps import write_map
from histocrypt.files import claim, guarded, read_table, same_file, unguarded, without_folders, write_table
from histocrypt.pipeline.predictions import is_loose_prediction

SETTING = {"n_sections": 1, "spots_per_side": 6, "n_genes": 40}


def refused(call, *arguments, **settings) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    return caught.value


def prediction(path: Path, *, part: str = "new", gene: str = "G", identity: str = "E", **about: str) -> Path:
    """Write what looks like predictions of 3 x 3 spots."""
    adata = anndata.AnnData(
        np.arange(9, dtype=np.float32)[:, None], var=pd.DataFrame({"symbol": [gene]}, index=[identity])
    )
    adata.obs["section"], adata.obs["barcode"] = "A", [str(i) for i in range(9)]
    adata.obsm["spatial"] = np.array([(x, y) for x in range(3) for y in range(3)], dtype=float) * 50
    adata.uns["prediction"] = {"part": part, "transform": "log1p", "model": "m", "um_per_px": 4.0, **about}
    adata.write_h5ad(path)
    return path


# Who made it.


def test_what_is_free_may_be_claimed(tmp_path):
    assert claim(tmp_path / "new" / "a.h5ad") == tmp_path / "new" / "a.h5ad"


@pytest.mark.parametrize("how", ["itself", "hard link", "symbolic link", "another", "device", "folder"])
def test_what_is_somebody_elses_is_not(how, tmp_path):
    mine, other = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    mine.write_text("mine")
    {
        "itself": lambda: other.symlink_to(mine),
        "hard link": lambda: os.link(mine, other),
        "symbolic link": lambda: other.symlink_to(mine),
        "another": lambda: other.write_text("other"),
        "device": lambda: other.symlink_to("/dev/null"),
        "folder": other.mkdir,
    }[how]()
    output = mine if how == "itself" else other
    error = refused(claim, output, inputs=[mine], mine=lambda path: path.read_text() != "other")
    assert (error.file, error.field) == (output, "--output")
    if how in ("device", "folder"):
        refused(claim, output, overwrite=True)
    else:
        assert claim(output, inputs=[mine], overwrite=True) == output


@pytest.mark.parametrize("version", [2, 3])
def test_nothing_is_written_into_a_zarr_store(tmp_path, version):
    import zarr

    zarr.open_group(tmp_path / "S.zarr", mode="w", zarr_format=version)
    for name in ("p.h5ad", "tables/p.h5ad"):
        error = refused(claim, tmp_path / "S.zarr" / name, overwrite=True)
        assert (error.file, error.field) == (tmp_path / "S.zarr", "--output")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(claim, tmp_path / "file" / "a.h5ad").file == tmp_path / "file"
    refused(claim, tmp_path / ("x" * 300))


@pytest.mark.parametrize(("part", "loose"), [("new", True), ("encrypted", True), ("test", False)])
def test_only_predictions_of_no_run_are_replaced(part, loose, tmp_path):
    assert is_loose_prediction(prediction(tmp_path / "p.h5ad", part=part)) is loose


def test_a_section_or_anything_is_no_prediction(tiny_section, tmp_path):
    assert not is_loose_prediction(tiny_section(tmp_path))
    assert not is_loose_prediction(tmp_path / "A.png")


def test_demo_tissue_replaces_demo_tissue_alone(tmp_path):
    write_demo(tmp_path, **SETTING)
    write_demo(tmp_path, **SETTING, seed=1)
    kept = (tmp_path / "S_1.h5ad").read_bytes()
    for name in ("S_1_mask.png", "S_1.png"):
        (tmp_path / name).write_bytes(b"\x89PNG mine")
        assert refused(write_demo, tmp_path, **SETTING).file == tmp_path / name
        assert (tmp_path / name).read_bytes() == b"\x89PNG mine"
    assert (tmp_path / "S_1.h5ad").read_bytes() == kept
    write_demo(tmp_path, **SETTING, overwrite=True)
    anndata.AnnData(np.zeros((2, 2))).write_h5ad(tmp_path / "S_1.h5ad")
    assert refused(write_demo, tmp_path, **SETTING).file == tmp_path / "S_1.h5ad"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_map_replaces_maps_alone(suffix, tmp_path):
    source, picture = prediction(tmp_path / "p.h5ad"), tmp_path / f"a{suffix}"
    write_map(source, "G", picture)
    write_map(source, "G", picture)
    picture.write_bytes(b"mine")
    assert refused(write_map, source, "G", picture).file == picture
    assert picture.read_bytes() == b"mine"
    write_map(source, "G", picture, overwrite=True)
    assert picture.read_bytes() != b"mine"


@pytest.mark.parametrize("gene", ["ENSG00000141736", "ensg00000141736", "GRCh38_ENSG00000141736.14", "ERBB2", "erbb2"])
def test_a_map_knows_a_gene_by_any_of_its_names(tmp_path, gene):
    path = prediction(tmp_path / "p.h5ad", gene="ERBB2", identity="ENSG00000141736")
    assert write_map(path, gene, tmp_path / "m.png") == f"{tmp_path / 'm.png'}: ERBB2 at 9 spots"


def test_a_gene_misspelt_for_a_map_is_guessed(tmp_path):
    path = prediction(tmp_path / "p.h5ad", gene="ERBB2", identity="ENSG00000141736")
    assert refused(write_map, path, "erb2", tmp_path / "m.png").fix == "did you mean ERBB2?"
    assert refused(write_map, path, "ENSG00000141737.1", tmp_path / "m.png").field == "--gene"


def test_a_map_is_not_drawn_over_the_slide_of_its_prediction(tmp_path):
    (slide,) = (path.with_suffix(".png") for path in write_demo(tmp_path, **SETTING))
    source, before = prediction(tmp_path / "p.h5ad", image=str(slide)), slide.read_bytes()
    (tmp_path / "link.png").hardlink_to(slide)
    for output in (slide, tmp_path / "link.png"):
        assert refused(write_map, source, "G", output).file == output
    assert slide.read_bytes() == before


def test_predict_says_so_before_any_work(tiny_section, tmp_path):
    section = tiny_section(tmp_path)
    before = section.read_bytes()
    for more in (["-o", section], ["-o", tmp_path / "p.h5ad", "--submission", tmp_path / "A.csv"]):
        (tmp_path / "A.csv").write_text("ID,truth\n")
        found = CliRunner().invoke(app, ["predict", str(section), "--model", str(tmp_path), *map(str, more)])
        assert isinstance(found.exception, InputError)
        assert found.exception.file == more[-1]
    assert section.read_bytes() == before
    assert (tmp_path / "A.csv").read_text() == "ID,truth\n"


def test_same_file_sees_through_links(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").hardlink_to(tmp_path / "a")
    assert same_file(tmp_path / "b", tmp_path / "c")
    assert not same_file(tmp_path / "a", tmp_path / "none")


# Text from a file.


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@"])
def test_formulas_are_guarded_and_come_back(text):
    assert guarded(text).startswith("'")
    assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", ["-1.5", "+2e-3", "-47 to 23", "-48, 120", "A", "it's", "'a", "", "AB-1", 3, None])
def test_other_text_is_left_alone(text):
    assert guarded(text) is text
    assert unguarded(text) is text


def test_a_table_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame(
        {"=gene": ["=1", "-5", "x\r=2", "'@"], "value": [-1.0, 2.0, 3.0, 4.0]},
        index=pd.Index(["@a", "b", "c", "d"], name="spot"),
    )
    write_table(tmp_path / "t.csv", table)
    cells = [
        cell.strip('"') for line in (tmp_path / "t.csv").read_bytes().split(b"\n") for cell in line.decode().split(",")
    ]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]
    back = read_table(tmp_path / "t.csv", index_col=0, dtype={"'=gene": str})
    pd.testing.assert_frame_equal(back, table)


@pytest.mark.parametrize("name", [r"$\frac$", "$a$ and $b$", "$", r"$\undefined{x}$"])
def test_dollars_in_names_are_no_formulas(name, tmp_path):
    write_map(prediction(tmp_path / "p.h5ad", gene=name), name, tmp_path / "a.svg")
    with style():
        figure, axes = canvas()
        axes.set_title(name)
    save(figure, tmp_path / "b.svg")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/a/S_1.h5ad: X: 3 of 124 spots dropped", "S_1.h5ad: X: 3 of 124 spots dropped"),
        ("read '/data/S.png' at 0.5 µm/px, and/or not", "read 'S.png' at 0.5 µm/px, and/or not"),
        ("nothing", "nothing"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text, shown):
    assert without_folders(text) == shown


def test_numbers_of_logarithmic_axes_are_plain(tmp_path):
    with style():
        figure, axes = canvas()
        axes.plot([1e-4, 1e3], [1e-4, 1e3])
        log_scale(axes, "x", "y")
        figure.canvas.draw()
        labels = [label.get_text() for label in axes.get_xticklabels()]
    assert not [label for label in labels if "$" in label]
    assert save(figure, tmp_path / "a.png").is_file()
