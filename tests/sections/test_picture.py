"""Is this the picture that the coordinates refer to? Each way in which it is not, refused or noted; no false alarm."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from tests.space_ranger import HEIGHT, WIDTH, tissue, write_space_ranger

from histocrypt.errors import InputError
from histocrypt.explore.registration import laid_otherwise
from histocrypt.explore.survey import check_sections
from histocrypt.options import Preprocessing, SectionSource
from histocrypt.sections.image import ScaledImage
from histocrypt.sections.picture import PixelImage
from histocrypt.sections.read import find_sections, read_path, read_section
from histocrypt.tissue.preprocess import preprocess_section

TURN = Image.Transpose


def read(path, **given):
    (files,) = find_sections(SectionSource(path=str(path), **given))
    return read_section(files, require_patient=False)


SIDE, PITCH, UM, HIRES = 12, 50, 4.0, 0.4
FULL = (SIDE + 1) * PITCH


def painted(seed: int = 0) -> tuple[np.ndarray, anndata.AnnData]:
    """Return a picture, uint8 (FULL, FULL, 3), and spots that count the more, the more nuclei lie below them."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal((228, 165, 200), 4, (FULL, FULL, 3)), 0, 255)
    columns, rows = (axis.ravel() for axis in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    xy, crowd = np.column_stack([columns + 1, rows + 1]) * float(PITCH), rng.integers(2, 40, SIDE**2)
    for (x, y), many in zip(xy.astype(int), crowd, strict=True):
        for left, top in np.array([x, y]) + rng.integers(-22, 20, (many, 2)):
            pixels[top : top + 3, left : left + 3] = (96, 62, 140)
    pixels[:15], pixels[-15:], pixels[:, :15], pixels[:, -15:] = 244, 244, 244, 244
    pixels[-90:, :90] = 244  # a corner without tissue
    pixels = pixels.astype(np.uint8)
    counts = rng.poisson(crowd[:, None] * rng.gamma(2.0, 1.0, 30))
    adata = anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"array_row": rows, "array_col": columns, "patient": "P1"},
            index=[f"{x}x{y}" for x, y in zip(columns, rows, strict=True)],
        ),
        var=pd.DataFrame(index=[f"ENSG{number:011d}" for number in range(30)]),
        obsm={"spatial": xy},
    )
    small = np.asarray(Image.fromarray(pixels).resize((round(FULL * HIRES),) * 2, Image.Resampling.BOX))
    about = {"source_image_path": "S_1.png", "pixel_size_um": UM, "fullres_width": FULL, "fullres_height": FULL}
    library = {"images": {"hires": small}, "scalefactors": {"tissue_hires_scalef": HIRES}, "metadata": about}
    adata.uns["spatial"] = {"S_1": library}
    return pixels, adata


@pytest.fixture
def section(tmp_path):
    """Return a function that writes a painted section changed, and returns its path; it carries a reduced picture."""

    def write(*, edit=None, picture=None, carried=True, image=True, **metadata):
        pixels, adata = painted()
        library = adata.uns["spatial"]["S_1"]
        if not carried:
            library["images"] = {}
        library["metadata"] |= metadata
        if edit is not None:
            edit(adata)
        adata.write_h5ad(tmp_path / "S_1.h5ad")
        if image:
            shown = Image.fromarray(pixels)
            (picture(shown) if picture is not None else shown).save(tmp_path / "S_1.png", compress_level=1)
        return tmp_path / "S_1.h5ad"

    return write


def places(change):
    def edit(adata):
        adata.obsm["spatial"] = change(adata.obsm["spatial"])

    return edit


def odd(found):
    return [note for note in found.notes if "dropped" not in note and "no genes" not in note]


def test_no_alarm(section, tmp_path, demo_tissue):
    for path in (section(), section(carried=False), *demo_tissue()[1:]):
        found = read(path)
        assert not odd(found)
        assert not laid_otherwise(found)
    for number, image in enumerate((True, False)):
        found = read(write_space_ranger(tmp_path / str(number), image=image))
        assert not [note for note in odd(found) if "reduced image" not in note]
        assert not laid_otherwise(found)


@pytest.mark.parametrize("name", ["HER2ST_B4", "HER2ST_C5", "HBCIS_BC23209_C1"])
def test_no_alarm_on_real_sections(name, real_data):
    found = read(real_data / f"{name}.h5ad")
    assert not found.notes
    assert not laid_otherwise(found)


@pytest.mark.parametrize(
    "turn",
    [TURN.ROTATE_180, TURN.FLIP_LEFT_RIGHT, TURN.FLIP_TOP_BOTTOM, TURN.ROTATE_90, TURN.ROTATE_270, TURN.TRANSPOSE],
)
def test_a_turned_picture(turn, section):
    path = section(picture=lambda pixels: pixels.transpose(turn))
    with pytest.raises(InputError) as caught:  # against the picture that the file carries
        read(path)
    assert caught.value.file == path.with_suffix(".png")
    path = section(picture=lambda pixels: pixels.transpose(turn), carried=False)
    assert laid_otherwise(read(path))  # against the counts alone


def test_a_turned_picture_is_listed_by_check(section):
    (row,) = check_sections([str(section(picture=lambda pixels: pixels.transpose(TURN.ROTATE_180), carried=False))])
    assert any("turned by 180 degrees" in problem for problem in row.problems)


@pytest.mark.parametrize("by", [30, 80])
def test_a_shifted_picture(by, section):
    path = section(picture=lambda pixels: Image.fromarray(np.roll(np.asarray(pixels), (by, by), (0, 1))))
    with pytest.raises(InputError) as caught:
        read(path)
    x, y = (int(part) for part in caught.value.value.removeprefix("by about ").removesuffix(" px").split(","))
    assert (x, y) == (pytest.approx(by, abs=10), pytest.approx(by, abs=10))


def test_a_picture_of_another_section_is_noted(section):
    (note,) = odd(read(section(picture=lambda _: Image.fromarray(painted(1)[0]))))
    assert "does not look like" in note


@pytest.mark.parametrize("carried", [True, False])
def test_exchanged_x_and_y(carried, section):
    path = section(edit=places(lambda xy: xy[:, ::-1].copy()), carried=carried)
    with pytest.raises(InputError) as caught:
        read(path)
    assert (caught.value.file, caught.value.field) == (path, "obsm['spatial']")


def test_exchanged_columns(section):
    def edit(adata):
        adata.obs["pxl_row_in_fullres"], adata.obs["pxl_col_in_fullres"] = adata.obsm["spatial"].T
        del adata.obsm["spatial"]

    with pytest.raises(InputError) as caught:
        read(section(edit=edit))
    assert caught.value.field == "obs['pxl_col_in_fullres'], obs['pxl_row_in_fullres']"


def test_exchanged_names_of_the_index_are_harmless(section):
    names = {"array_row": "array_col", "array_col": "array_row"}
    found = read(section(edit=lambda adata: adata.obs.rename(columns=names, inplace=True)))
    assert any("names look exchanged" in note for note in found.notes)


def test_exchanged_columns_of_space_ranger(tmp_path):
    run = write_space_ranger(tmp_path / "run")
    path = run / "spatial" / "tissue_positions.csv"
    head, *lines = path.read_text().split()
    cells = [line.split(",") for line in lines]
    path.write_text("\n".join([head, *(",".join([*cell[:4], cell[5], cell[4]]) for cell in cells)]))
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.field.startswith("tissue_positions.csv")


def test_an_array_turned_on_the_picture_is_noted(section):
    found = read(section(edit=places(lambda xy: np.column_stack([xy[:, 1], FULL - xy[:, 0]]))))
    assert any("turned by 90 degrees" in note for note in found.notes)


def test_places_of_other_spots(section):
    path = section(edit=places(lambda xy: np.random.default_rng(0).permutation(xy)))
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.field == "obsm['spatial']"


def test_one_spot_astray_is_named(section):
    names = []

    def edit(adata):
        names.append(adata.obs_names[40])
        adata.obsm["spatial"][40] += (75, 0)

    assert any("1 of" in note and names[0] in note for note in odd(read(section(edit=edit))))


def test_coordinates_of_the_reduced_picture(demo_tissue, tmp_path):
    """Spots then lie beside the tissue, which they would not if their places were enlarged."""
    source, path = demo_tissue()[0], tmp_path / "S_1.h5ad"
    shutil.copy(source.with_suffix(".png"), path.with_suffix(".png"))
    adata = anndata.read_h5ad(source)
    library = adata.uns["spatial"]["S_1"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    adata.obsm["spatial"] = adata.obsm["spatial"] * scale
    library["metadata"]["pixel_size_um"] = 1 / scale
    adata.write_h5ad(path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert (caught.value.file, caught.value.field) == (path, "obsm['spatial']")


def test_spots_in_one_corner_are_noted(section):
    path = section(edit=places(lambda xy: xy * 0.4), carried=False, pixel_size_um=UM / 0.4)
    assert any("upper left corner" in note for note in read(path).notes)


def test_a_reduced_picture_given_as_the_full_one(section):
    path = section(picture=lambda pixels: pixels.resize((260, 260)), carried=False, fullres_width="", fullres_height="")
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.field == "obsm['spatial']"
    assert "reduced" in caught.value.fix


def test_a_carried_picture_that_spots_do_not_lie_on_is_another(section):
    def wide(pixels):
        whole = Image.new("RGB", (3 * FULL, 2 * FULL), (244, 244, 244))
        whole.paste(pixels, (2 * FULL, FULL))
        return whole

    size = {"fullres_width": 3 * FULL, "fullres_height": 2 * FULL}
    found = read(section(edit=places(lambda xy: xy + (2 * FULL, FULL)), picture=wide, **size))
    assert (found.image.width, found.n_spots) == (3 * FULL, SIDE**2)
    assert any("hires" in note for note in found.notes)


def close(image, full, box):
    """Return whether a window of an image shows the same as the full picture."""
    x, y, side = box
    one = Image.fromarray(image.read_region(x, y, side, side)).resize((20, 20), Image.Resampling.BOX)
    two = Image.fromarray(full[y : y + side, x : x + side]).resize((20, 20), Image.Resampling.BOX)
    return np.corrcoef(np.ravel(one), np.ravel(two))[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["uint8", "float", "rgba"])
def test_an_embedded_picture_is_read_at_its_own_scale(kind, section):
    def edit(adata):
        pictures = adata.uns["spatial"]["S_1"]["images"]
        if kind != "uint8":
            pictures["hires"] = (pictures["hires"] / 255).astype(np.float32)
        if kind == "rgba":
            pictures["hires"] = np.dstack([pictures["hires"], np.ones(pictures["hires"].shape[:2], np.float32)])

    found = read(section(edit=edit, image=False, source_image_path=""))
    full = painted()[0]
    assert isinstance(found.image, ScaledImage)
    assert (found.image.width, found.image.height) == full.shape[1::-1]
    assert found.um_per_px == UM
    assert found.detail_um == pytest.approx(UM / HIRES)
    assert found.origins["image"] == "uns['spatial']['S_1']['images']['hires']"
    assert any("reduced image" in note for note in found.notes)
    assert close(found.image, full, (100, 100, 400))


def test_an_embedded_picture_without_its_scale(section):
    def edit(adata):
        del adata.uns["spatial"]["S_1"]["scalefactors"]["tissue_hires_scalef"]

    path = section(image=False, source_image_path="", edit=edit)
    with pytest.raises(InputError, match="tissue_hires_scalef"):
        read(path)


def test_a_named_picture_that_is_gone_has_no_stand_in(section):
    path = section(image=False)
    with pytest.raises(InputError, match="image is missing"):
        read(path)
    assert read_path(path).image is None  # as scores are computed


@pytest.mark.parametrize("stated", [{}, {"fullres_width": "", "fullres_height": ""}])
@pytest.mark.parametrize("carried", [True, False])
def test_the_reduced_picture_may_be_given(carried, stated, section, tmp_path):
    path = section(carried=carried, **stated)
    Image.open(path.with_suffix(".png")).resize((260, 260), Image.Resampling.BOX).save(
        tmp_path / "tissue_hires_image.png"
    )
    found = read(path, image=str(tmp_path / "tissue_hires_image.png"))
    full = painted()[0]
    assert isinstance(found.image, ScaledImage)
    assert close(found.image, full, (100, 100, 400))


def test_a_copy_of_space_rangers_reduced_picture(tmp_path):
    run = write_space_ranger(tmp_path / "run", image=False)
    shutil.copy(run / "spatial" / "tissue_hires_image.png", tmp_path / "he.png")
    found = read(run, image=str(tmp_path / "he.png"))
    assert (found.image.scale, found.image.width, found.image.height) == (0.5, WIDTH, HEIGHT)


@pytest.mark.parametrize("turn", [TURN.ROTATE_180, TURN.FLIP_LEFT_RIGHT])
def test_a_turned_picture_beside_space_rangers_own(turn, tmp_path):
    run = write_space_ranger(tmp_path / "run")
    Image.fromarray(tissue()).transpose(turn).save(run / "image.tif")
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.file == run / "image.tif"


@pytest.mark.parametrize(
    "named",
    ["/home/alice/slides/S_1.png", r"C:\Users\alice\slides\S_1.png", r"\\server\share\S_1.png", "../slides/S_1.png",
     r"slides\S_1.png"],
)  # fmt: skip
def test_a_path_of_another_machine(named, section, tmp_path):
    found = read(section(source_image_path=named))
    assert found.image.path == tmp_path / "S_1.png"
    assert any(repr(named) in note for note in found.notes)


def test_a_path_of_another_machine_without_the_picture(section):
    found = read(section(image=False, source_image_path="/home/alice/slides/HE.tif"))
    assert isinstance(found.image, ScaledImage)


@pytest.mark.parametrize("bad", [np.full((4, 4, 3), 7.0) * 1e3, np.zeros((4, 4, 2)), np.full((4, 4, 3), np.nan)])
def test_what_is_no_picture(bad, tmp_path):
    with pytest.raises(InputError) as caught:
        PixelImage(tmp_path / "a.h5ad", bad, where="uns")
    assert caught.value.field == "uns"


def test_far_fewer_real_pixels_are_noted(tmp_path):
    run = write_space_ranger(tmp_path / "run", image=False)  # 5 um per pixel
    found = read(run)
    settings = Preprocessing(tile_um=100, tile_px=222, min_counts=0, align=False)
    made = {name: tmp_path / name for name in ("section.h5ad", "tiles.h5", "stain.json")}
    report = preprocess_section(
        found, settings=settings, section_path=made["section.h5ad"], tiles_path=made["tiles.h5"],
        stain_path=made["stain.json"], progress=False,
    )  # fmt: skip
    assert any("20 real pixels of 5.0 um" in note for note in report.notes)
    study = tmp_path / "study.yaml"
    study.write_text(f"name: a\nsections: [{{path: {run}, patient: P}}]\npreprocessing: {{tile_um: 100}}\n")
    (row,) = check_sections([str(study)])
    assert any("20 real pixels" in problem for problem in row.problems)
    study.write_text(study.read_text().replace("tile_um: 100", "tile_um: 100, tile_px: 24"))
    (row,) = check_sections([str(study)])
    assert not any("real pixels" in problem for problem in row.problems)
