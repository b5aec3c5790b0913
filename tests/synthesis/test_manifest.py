import json

import numpy as np
import pytest
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.synthesis.manifest import (
    CHEST,
    TISSUE,
    Pairs,
    Record,
    load_pairs,
    members_of,
    read_manifest,
    save_pairs,
    write_manifest,
)


def some_pairs(*, n=5, side=8, channels=3, scheme=TISSUE, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array([scheme.classes[i % len(scheme.classes)] for i in range(n)])
    has_mask = labels != scheme.control
    masks = rng.integers(0, len(scheme.levels), (n, side, side), dtype=np.uint8) * has_mask[:, None, None]
    return Pairs(
        scheme,
        ids=np.array([f"S_1:{i}x0" for i in range(n)]),
        labels=labels,
        patients=np.array([f"P_{i // 2}" for i in range(n)]),
        images=rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8),
        masks=masks.astype(np.uint8),
        has_mask=has_mask,
    )


def same(a, b):
    for field in ("ids", "labels", "patients", "images", "masks", "has_mask"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
    assert a.scheme == b.scheme


@pytest.mark.parametrize(("scheme", "channels"), [(TISSUE, 3), (TISSUE, 1), (CHEST, 1), (CHEST, 3)])
def test_round_trip_is_exact(tmp_path, scheme, channels):
    pairs = some_pairs(n=13, scheme=scheme, channels=channels)
    same(load_pairs(save_pairs(tmp_path, pairs), scheme=scheme, side=8), pairs)
    same(load_pairs(tmp_path, scheme=scheme, side=8), pairs)  # a folder will do
    entry = json.loads((tmp_path / "manifest.json").read_text())[1]
    assert set(entry) == {"id", "label", "image_path", "mask_path", "patient"}


def test_records_round_trip_through_another_manifest(tmp_path):
    records = read_manifest(save_pairs(tmp_path, some_pairs()), scheme=TISSUE)
    write_manifest(tmp_path / "again.json", records)
    assert read_manifest(tmp_path / "again.json", scheme=TISSUE) == records
    with pytest.raises(InputError, match="outside the manifest's folder"):
        write_manifest(tmp_path / "below" / "manifest.json", records)


def test_an_image_taken_out_of_a_set_does_not_stay_beside_it(tmp_path):
    pairs = some_pairs()
    save_pairs(tmp_path, pairs)
    (tmp_path / "images" / "mine.png").write_bytes(b"not named by the manifest")
    save_pairs(tmp_path, pairs.subset(np.array([1, 3])))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["000000.png", "000001.png", "mine.png"]
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["000000.png", "000001.png"]


def one(tmp_path, *, image=None, mask=None, name="a", **changes):
    """Write a manifest of one record; arrays become .npy files."""
    for key, values in (("image", image), ("mask", mask)):
        if values is not None:
            np.save(tmp_path / f"{key}.npy", values)
    entry = {"id": name, "label": "tumour", "image_path": "image.npy", "mask_path": "mask.npy", **changes}
    (tmp_path / "manifest.json").write_text(json.dumps([{k: v for k, v in entry.items() if v != "absent"}]))
    return tmp_path / "manifest.json"


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
LEVELS = (GREY % 4).astype(np.uint8)


def load(path, *, scheme=TISSUE, side=8, **settings):
    return load_pairs(path, scheme=scheme, side=side, **settings)


DEFECTS = {
    "no class of the scheme": (
        {"label": "cyst"},
        r"record a, label: .*'cyst'.*normal, tumour",
    ),
    "no key": ({"mask_path": "absent"}, "record a: lacks mask_path"),
    "no id": ({"id": ""}, "entry 0: has no id"),
    "a misspelt key": ({"patiant": "P"}, "record a: unknown key 'patiant'.*did you mean 'patient'"),
    "no image": ({"image_path": "gone.png"}, "record a, image_path: .*'gone.png'"),
    "no mask": ({"mask_path": "gone.png"}, "record a, mask_path: .*'gone.png'"),
    "null where a mask is needed": ({"mask_path": None}, "record a, mask_path: is null.*null only for normal"),
    "an unknown format": ({"image_path": "image.jpg"}, "image_path: is of an unknown format.*.png or .npy"),
    "an absolute path": ({"image_path": "/etc/image.png"}, "image_path: .*'/etc/image.png'"),
    "a path upwards": ({"mask_path": "../mask.npy"}, "mask_path: .*'../mask.npy'"),
    "a number as path": ({"image_path": 3}, "is not a path"),
    "a number as patient": ({"patient": 3}, "record a, patient: is not a word"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defective_record_is_named(tmp_path, defect):
    changes, expected = DEFECTS[defect]
    with pytest.raises(InputError, match=expected) as error:
        load(one(tmp_path, image=GREY, mask=LEVELS, **changes))
    assert "manifest.json" in str(error.value)


PIXELS = {
    "mask of another size": ({"mask": LEVELS[:4, :4]}, r"record a, mask_path: mask and image differ in size.*\(4, 4\)"),
    "a level that does not exist": ({"mask": LEVELS + 1}, r"mask.npy has a level that does not exist \(found 4\)"),
    "a level below zero": ({"mask": LEVELS.astype(int) - 1}, r"does not exist \(found -1\)"),
    "a grey between two levels": ({"mask": np.full((8, 8), 0.5)}, "a level that does not exist"),
    "NaN in the mask": ({"mask": np.full((8, 8), np.nan)}, "mask.npy holds NaN"),
    "NaN in the image": ({"image": np.full((8, 8), np.nan)}, "image.npy holds NaN"),
    "a mask in colour": ({"mask": np.zeros((8, 8, 3), np.uint8)}, "mask.npy is not a mask"),
    "two channels": ({"image": np.zeros((8, 8, 2), np.uint8)}, "image.npy is not an image"),
    "no square": ({"image": GREY[:4]}, "image.npy is not square"),
    "shares instead of grey levels": ({"image": GREY / 255.0}, "neither grey levels nor Hounsfield units"),
    "floats in colour": ({"image": np.full((8, 8, 3), 90.0)}, "neither grey levels nor Hounsfield units"),
    "objects": ({"image": np.array([{}], dtype=object)}, "cannot be read as an array of numbers"),
    "words": ({"image": np.array([["a"]])}, "does not hold numbers"),
    "nothing": ({"image": np.zeros((0, 0), np.uint8)}, "is not an image"),
}


@pytest.mark.parametrize("defect", PIXELS)
def test_defective_pixels_are_named(tmp_path, defect):
    changes, expected = PIXELS[defect]
    with pytest.raises(InputError, match=expected):
        load(one(tmp_path, **{"image": GREY, "mask": LEVELS, **changes}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not readable as JSON"),
        ("{}", "is not a list"),
        ("[]", "names no image"),
        ("[3]", "entry 0: is not a record"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, content, expected):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        read_manifest(tmp_path, scheme=TISSUE)
    with pytest.raises(InputError) as missing:
        read_manifest(tmp_path / "none.json", scheme=TISSUE)
    assert missing.value.file == tmp_path / "none.json"


def test_an_id_stands_once(tmp_path):
    entry = json.loads(one(tmp_path, image=GREY, mask=LEVELS).read_text())[0]
    (tmp_path / "manifest.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(InputError) as read:
        read_manifest(tmp_path, scheme=TISSUE)
    with pytest.raises(InputError) as written:
        write_manifest(tmp_path / "m.json", [Record("a", "normal", tmp_path / "image.npy", None)] * 2)
    assert read.value.field == written.value.field == "record a"


def test_grey_and_coloured_images_do_not_mix(tmp_path):
    np.save(tmp_path / "colour.npy", np.zeros((8, 8, 3), np.uint8))
    entry = json.loads(one(tmp_path, image=GREY, mask=LEVELS).read_text())[0]
    content = [entry, {**entry, "id": "b", "image_path": "colour.npy"}]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="record b, image_path: is coloured, and those before it are grey"):
        load(tmp_path)


def test_a_broken_png(tmp_path):
    path = save_pairs(tmp_path, some_pairs())
    (tmp_path / "images" / "000001.png").write_bytes((tmp_path / "images" / "000001.png").read_bytes()[:60])
    with pytest.raises(InputError, match="record S_1:1x0, image_path: 000001.png cannot be read as PNG"):
        load(path)


def test_a_link_does_not_lead_out_of_the_folder_unless_allowed(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    np.save(tmp_path / "secret.npy", GREY)
    path = one(inside, mask=LEVELS)
    (inside / "image.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(InputError, match="image_path: .*a path inside"):
        load(path)
    assert len(load(path, allow_outside=True)) == 1


def test_a_chest_slice_is_windowed(tmp_path):
    slices = np.full((8, 8), -1000, dtype=np.int16)
    slices[0] = [-200, -100, 0, 100, 150, 200, 201, 3000]
    path = one(tmp_path, image=slices, mask=np.zeros((8, 8), np.uint8), label="thymoma")
    image = load(path, scheme=CHEST).images[0, :, :, 0]
    assert image[0].tolist() == [0, 64, 128, 191, 223, 255, 255, 255]
    assert (image[1:] == 0).all()
    assert (load(one(tmp_path, image=slices * 1.0, label="thymoma"), scheme=CHEST).images[0, :, :, 0] == image).all()


def test_masks_as_indices_and_as_the_grey_levels_of_the_reference_are_the_same(tmp_path):
    levels = (GREY % 7).astype(np.uint8)
    eight_bits = {"rounded": np.rint(levels * (255 / 6)), "cut": np.floor(levels * (255 / 6))}
    kinds = {
        "indices": levels,
        "many bytes": levels.astype(np.int64),
        "floats": levels / 6,
        "half": np.float32(levels / 6),
    }
    for kind, values in kinds.items():
        found = load(one(tmp_path, image=GREY, mask=values, label="thymoma"), scheme=CHEST)
        np.testing.assert_array_equal(found.masks[0], levels, err_msg=kind)
    for kind, values in {"indices": levels, **eight_bits}.items():
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
        found = load(one(tmp_path, image=GREY, mask_path="mask.png", label="thymoma"), scheme=CHEST)
        np.testing.assert_array_equal(found.masks[0], levels, err_msg=kind)
    Image.fromarray(levels + 40).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="mask.png has a level that does not exist"):
        load(one(tmp_path, image=GREY, mask_path="mask.png", label="thymoma"), scheme=CHEST)


def test_resizing_averages_images_and_never_mixes_levels(tmp_path):
    image = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((4, 4), np.uint8))
    mask = np.kron(np.array([[0, 3], [3, 0]], np.uint8), np.ones((4, 4), np.uint8))
    path = one(tmp_path, image=image, mask=mask)
    half = load(path, side=4)
    assert half.images[0, :, :, 0].tolist() == [[0, 0, 255, 255]] * 2 + [[255, 255, 0, 0]] * 2
    assert load(path, side=1).images[0, 0, 0, 0] in (127, 128)
    for side in (1, 3, 5, 16):
        assert set(np.unique(load(path, side=side).masks)) <= {0, 3}


def test_pngs_of_other_kinds(tmp_path):
    for mode, image in {
        "P": Image.fromarray(GREY).convert("P"),
        "RGBA": Image.fromarray(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])),
        "1": Image.fromarray(GREY > 30),
    }.items():
        image.save(tmp_path / "image.png")
        assert load(one(tmp_path, mask=LEVELS, image_path="image.png")).images.shape[3] == (1 if mode == "1" else 3)
    Image.fromarray(np.dstack([GREY] * 4)).save(tmp_path / "image.png")
    with pytest.raises(InputError, match=r"image.png has pixels of an unknown kind \(found 'RGBA'\)"):
        load(one(tmp_path, mask=LEVELS, image_path="image.png"))


def test_who_is_a_member_is_read_and_written(tmp_path):
    pairs, member = some_pairs(), np.array([True, False, True, True, False])
    path = save_pairs(tmp_path, pairs, member=member)
    assert [entry["MIA_label"] for entry in json.loads(path.read_text())] == [1, 0, 1, 1, 0]
    records = read_manifest(path, scheme=TISSUE)
    np.testing.assert_array_equal(members_of(path, records), member)
    write_manifest(tmp_path / "again.json", records)
    assert read_manifest(tmp_path / "again.json", scheme=TISSUE) == records
    same(load_pairs(path, scheme=TISSUE, side=8), pairs)


@pytest.mark.parametrize("bad", [2, -1, "1", True, 1.0, None])
def test_a_member_that_is_neither_private_nor_public_is_refused(tmp_path, bad):
    with pytest.raises(InputError) as refused:
        load(one(tmp_path, image=GREY, mask=LEVELS, MIA_label=bad))
    assert refused.value.field.endswith("MIA_label")
    assert refused.value.value == bad


def test_a_record_that_does_not_say_is_named_where_membership_is_asked_for(tmp_path):
    path = one(tmp_path, image=GREY, mask=LEVELS)
    with pytest.raises(InputError) as refused:
        members_of(path, read_manifest(path, scheme=TISSUE))
    assert refused.value.field.endswith("MIA_label")


def test_the_references_own_keys_and_number_ids_are_read(tmp_path):
    path = one(tmp_path, image=GREY, mask=LEVELS, id=7, MIA_label=1)
    assert load(path).ids.tolist() == ["7"]
