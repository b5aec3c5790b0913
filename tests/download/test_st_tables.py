"""Tables of counts and of spots, as older arrays are published, become a section."""

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histocrypt.download.fetch import SOURCES
from histocrypt.download.sources import read_coordinates, read_selection, write_section
from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import read_path


def convert(tmp_path, counts, spots=b"x\ty\tpixel_x\tpixel_y\n1\t1\t50\t50\n2\t1\t100\t50\n"):
    (tmp_path / "c.tsv").write_bytes(counts)
    (tmp_path / "s.tsv").write_bytes(spots)
    Image.fromarray(np.full((200, 200, 3), 200, np.uint8)).save(tmp_path / "i.jpg")
    return write_section(
        tmp_path / "c.tsv", read_selection(tmp_path / "s.tsv"), tmp_path / "i.jpg", tmp_path / "o.h5ad",
        section="S", patient="P", source=SOURCES["her2st"],
    )  # fmt: skip


GOOD = b"\tG1\tG2\n1x1\t3\t0\n2x1\t1\t5\n"


def test_conversion(tmp_path):
    adata = anndata.read_h5ad(convert(tmp_path, GOOD))
    assert adata.X.toarray().tolist() == [[3, 0], [1, 5]]
    assert list(adata.obs_names) == ["1x1", "2x1"]
    (tmp_path / "o.csv").write_text(",X,Y\n7x9,10.5,20\n")
    assert read_coordinates(tmp_path / "o.csv").loc["7x9"].tolist() == [7, 9, 10.5, 20]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (GOOD.replace(b"5", b"5.5"), "not whole numbers"),
        (GOOD.replace(b"5", b"-5"), "not whole numbers"),
        (GOOD.replace(b"5", b"five"), "counts cannot be read"),
        (GOOD.replace(b"G2", b"G1"), "gene appears twice .*'G1'"),
        (GOOD.replace(b"x1", b"x7"), "no spot is in both tables"),
        (b"", "lists no gene"),
    ],
)
def test_conversion_of_bad_counts(counts, words, tmp_path):
    with pytest.raises(InputError, match=words):
        convert(tmp_path, counts)
    assert not (tmp_path / "o.h5ad").exists()


@pytest.mark.parametrize(
    ("spots", "words"),
    [
        (b"x\ty\n1\t1\n", "pixel_x: column is missing"),
        (b"x\ty\tpixel_x\tpixel_y\n", "table of spots is empty"),
        (b"x\ty\tpixel_x\tpixel_y\n1\t1\tleft\t50\n", "line 2: spot"),
        (b"x\ty\tpixel_x\tpixel_y\n1\t1\t5\t5\n1\t1\t6\t6\n", "spot .*twice"),
        (b"", "table of spots cannot be read"),
    ],
)
def test_conversion_of_bad_spots(spots, words, tmp_path):
    with pytest.raises(InputError, match=words):
        convert(tmp_path, GOOD, spots)


def test_conversion_agrees_with_the_real_section(real_data, tmp_path):
    """The section at hand, taken apart into tables as they are published, comes out the same."""
    real = anndata.read_h5ad(real_data / "HER2ST_C2.h5ad")
    symbols = pd.Index(real.var["symbol"].astype(str))
    first = ~symbols.duplicated()
    counts = pd.DataFrame(real.X.toarray()[:, first], index=real.obs_names, columns=symbols[first])
    counts.to_csv(tmp_path / "C2.tsv.gz", sep="\t")
    x, y = real.obsm["spatial"].T
    index = real.obs_names.str.split("x")
    table = {"x": index.str[0], "y": index.str[1], "pixel_x": x, "pixel_y": y, "selected": 1}
    pd.DataFrame(table).to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    (tmp_path / "HER2ST_C2.jpg").symlink_to(real_data / "HER2ST_C2.jpg")
    made = write_section(
        tmp_path / "C2.tsv.gz", read_selection(tmp_path / "s.tsv"), tmp_path / "HER2ST_C2.jpg",
        tmp_path / "HER2ST_C2.h5ad", section="HER2ST_C2", patient="HER2ST_C", source=SOURCES["her2st"],
    )  # fmt: skip
    ours, theirs = read_path(made, require_image=True), read_path(real_data / "HER2ST_C2.h5ad")
    assert list(ours.adata.obs_names) == list(theirs.adata.obs_names)
    np.testing.assert_allclose(ours.coords, theirs.coords)
    assert ours.um_per_px == pytest.approx(theirs.um_per_px, rel=0.002)
    assert (ours.adata.X != theirs.adata.X[:, np.flatnonzero(first)]).nnz == 0
    assert SectionSource(path=str(made)).format == "auto"
