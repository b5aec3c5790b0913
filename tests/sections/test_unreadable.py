"""Files that cannot be read: the remedy is the right one, nothing is waited for, and nothing leads out of a file."""

import errno
import gzip
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError, unreadable
from histocrypt.hdf5 import _lengths, open_h5
from histocrypt.options import SectionSource
from histocrypt.sections import stores
from histocrypt.sections.image import open_image
from histocrypt.sections.read import find_sections, read_path, read_section


@pytest.fixture
def section(tiny_section, tmp_path):
    return tiny_section(tmp_path)


def refused(call, *arguments, **settings) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    return caught.value


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "b")


def gzipped(path):
    with gzip.open(path, "wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n" + bytes(100))


def r_data(path):
    with gzip.open(path, "wb") as file:
        file.write(b"X\n\x00\x00\x00\x03")


def named(*names):
    def write(path):
        with h5py.File(path, "w") as file:
            for name in names:
                file[f"{name}/a"] = 1

    return write


DISGUISED = {
    "nothing": (lambda path: path.write_bytes(b""), "0 bytes"),
    "zip": (zipped, "zip archive"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>sign in</html>"), "web page"),
    "refusal": (lambda path: path.write_text('<?xml version="1.0"?><Error>AccessDenied</Error>'), "XML"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "annex": (lambda path: path.write_text("/annex/objects/SHA256E-s1--0.h5ad\n"), "git annex get"),
    "annex link": (lambda path: path.symlink_to(".git/annex/objects/a/b/SHA256E-s1--0.h5ad"), "git annex get"),
    "gzip": (gzipped, "gunzip"),
    "rds": (r_data, "R's data"),
    "loom": (named("matrix", "row_attrs", "col_attrs"), "loom"),
    "10x": (named("matrix"), "10x count matrix"),
    "mudata": (named("mod"), "MuData"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.7"), "PDF"),
    "picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9)), "PNG"),
}


@pytest.mark.parametrize("kind", DISGUISED)
def test_what_another_file_under_the_name_of_a_section_is(kind, tmp_path):
    path = tmp_path / "A.h5ad"
    write, words = DISGUISED[kind]
    write(path)
    error = refused(lambda: read_section(find_sections(SectionSource(path=str(path), patient="P"))[0]))
    assert error.file == path
    assert error.fix
    assert words in str(error)
    assert "truncated" not in str(error)


@pytest.mark.parametrize("name", ["a.rds", "a.zip", "a.h5mu", "a.loom", "a.h5ad.gz"])
def test_what_a_file_is_that_is_no_section(name, tmp_path):
    writer = {"rds": r_data, "zip": zipped, "h5mu": named("mod"), "gz": gzipped}
    writer.get(name.rsplit(".", 1)[1], named("matrix", "row_attrs", "col_attrs"))(tmp_path / name)
    error = refused(read_path, tmp_path / name)
    assert error.file == tmp_path / name
    assert error.fix


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_section_is_said_to_be_truncated(share, section):
    content = section.read_bytes()
    section.write_bytes(content[: int(share * len(content))])
    error = refused(read_path, section)
    assert error.file == section
    assert "truncated" in error.problem
    assert "copy" in error.fix


def test_a_section_that_is_being_written_is_waited_for(section):
    held = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(section)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"held\n"
        error = refused(read_path, section)
        writer.stdin.close()
    assert error.file == section
    assert error.fix.startswith("wait")
    assert read_path(section).n_spots == 36


@pytest.mark.parametrize(("number", "name"), [(32015, "zstd"), (32001, "blosc"), (32004, "lz4"), (31000, "")])
def test_a_filter_that_is_not_here_is_named(number, name, section):
    data = b"data"
    with h5py.File(section, "r+") as file:
        chunk = file["X/data"][:]
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(chunk.shape)
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))
        made = h5py.h5d.create(
            file["X"].id, data, h5py.h5t.py_create(chunk.dtype), h5py.h5s.create_simple(chunk.shape), properties
        )
        made.write_direct_chunk((0,), chunk.tobytes())
    error = refused(read_path, section)
    assert (error.file, error.field, error.value) == (section, "/X/data", number)
    assert name in error.problem
    assert "pip install hdf5plugin" in error.fix


def test_the_nearest_name_is_guessed(section):
    error = refused(read_path, section.with_name("A.h5d"))
    assert str(section) in error.fix
    error = refused(read_path, section.parent / "nowhere" / "B" / "A.h5ad")
    assert "nowhere" in error.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(section):
    section.chmod(0)
    assert "permission" in refused(read_path, section).problem


def test_permission_denied_is_no_truncation(tmp_path):
    error = unreadable("cannot be read", PermissionError(errno.EACCES, "Permission denied"), file=tmp_path / "a.h5ad")
    assert "right" in error.problem
    assert "copy it again" not in str(error)


@pytest.mark.parametrize("name", ["x" * 300 + ".h5ad", "a\0b.h5ad", "loop"])
def test_names_that_cannot_be(name, tmp_path):
    if name == "loop":
        (tmp_path / name).symlink_to(tmp_path / name)
    assert len(str(refused(find_sections, SectionSource(path=str(tmp_path / name))))) < 600


# What a stranger's file may try.


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.arange(3)
    file["uns/secret"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def external_pipe(file, folder):
    os.mkfifo(folder / "pipe")
    del file["obs"]
    file["obs"] = h5py.ExternalLink(str(folder / "pipe"), "/x")


def external_storage(file, folder):
    (folder / "raw").write_bytes(bytes(80))
    file.create_dataset("uns/raw", (10,), "f8", external=[(str(folder / "raw"), 0, 80)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (3,))
    file.create_virtual_dataset("uns/v", layout)


def soft_loop(file, _):
    file["uns/a"] = h5py.SoftLink("/uns")


def hard_loop(file, _):
    file["uns/a"] = file["/"]


def many_loops(file, _):
    for number in range(20):
        file[f"uns/a{number}"] = file["/uns"]


def dangling(file, _):
    file["uns/a"] = h5py.SoftLink("/nothing")


def huge(file, _):
    del file["obsm/spatial"]
    made = file.create_dataset("obsm/spatial", (2**40, 2), "f8", chunks=(1024, 2))
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def huge_text(file, _):
    del file["obs/patient"]
    made = file.create_dataset("obs/patient", (2**38,), h5py.string_dtype(), chunks=(1024,))
    made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


@pytest.mark.parametrize(
    "trick",
    [
        external_link,
        external_pipe,
        external_storage,
        virtual,
        soft_loop,
        hard_loop,
        many_loops,
        dangling,
        huge,
        huge_text,
    ],
)  # fmt: skip
def test_a_section_file_that_leads_elsewhere_or_has_no_end(trick, section, tmp_path):
    with h5py.File(section, "r+") as file:
        trick(file, tmp_path)
    files = find_sections(SectionSource(path=str(section), patient="P1"))[0]
    error = refused(read_section, files)
    assert error.file == section
    assert error.field.startswith("/")


def test_a_link_to_data_in_the_file_is_followed(section):
    with h5py.File(section, "r+") as file:
        file["uns/same"] = h5py.SoftLink("/obsm/spatial")
    assert read_path(section).n_spots == 36


def test_more_than_the_memory_is_refused_before_it_is_read(section, monkeypatch):
    import psutil

    from histocrypt import hdf5

    monkeypatch.setattr(hdf5, "UNQUESTIONED", 1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 2000}))
    assert "memory" in refused(open_h5, section, whole=True).problem
    open_h5(section).close()


@pytest.mark.parametrize("suffix", [".h5ad", ".h5", ".png", ".tif", ".svs", ".npz"])
def test_pipes_are_not_waited_for(suffix, tmp_path):
    path = tmp_path / f"A{suffix}"
    os.mkfifo(path)
    assert refused(find_sections, SectionSource(path=str(path))).file == path
    assert refused(open_image, path).file == path


def test_an_image_that_is_a_pipe_or_a_device(section, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for image in (tmp_path / "pipe.png", "/dev/zero"):
        assert str(refused(read_path, section, image=image).file) == str(image)


def one_text(file, packed):
    """Let every element of a column name one text of a megabyte, as its stored references can."""
    del file["obs/patient"]
    how = {"chunks": (12,), "compression": packed} if packed else {}
    made = file.create_dataset("obs/patient", (36,), h5py.string_dtype(), **how)
    made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    made[:] = ["P" * 1_000_000, *["P"] * 35]
    file.flush()
    if packed:
        for first in (0, 12, 24):
            content = zlib.decompress(made.id.read_direct_chunk((0,))[1])
            made.id.write_direct_chunk((first,), zlib.compress(12 * content[:16]))
    return made.id.get_offset()


@pytest.mark.parametrize("packed", [None, "gzip"])
def test_a_text_that_every_spot_names_is_counted_before_it_is_read(packed, section):
    with h5py.File(section, "r+") as file:
        start = one_text(file, packed)
    if not packed:
        content = bytearray(section.read_bytes())
        content[start : start + 36 * 16] = 36 * content[start : start + 16]
        section.write_bytes(content)
    with h5py.File(section) as file:
        assert len(file["obs/patient"][35]) == 1_000_000
    error = refused(open_h5, section)
    assert (error.file, error.field) == (section, "/obs/patient")
    assert refused(read_path, section).field == "/obs/patient"


@pytest.mark.parametrize("packed", [None, "gzip", "lzf"])
def test_lengths_of_texts_are_told_without_reading_them(packed, tmp_path):
    words = np.array([["a", "", "longer " * number] for number in range(30)], dtype=object)
    table = np.array([(1, "ab"), (2, "")], dtype=[("n", "i4"), ("word", h5py.string_dtype())])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("words", data=words, compression=packed)
        file.create_dataset("wide", data=["äöü"] * 10, dtype=h5py.string_dtype(), compression=packed)
        series = file.create_dataset("series", (4,), h5py.vlen_dtype(np.float64), compression=packed)
        series[1] = np.arange(9.0)
        file["table"] = table
        file.create_dataset("nothing", (5,), h5py.string_dtype(), compression=packed)
        file.create_dataset("none", (0,), h5py.string_dtype(), maxshape=(None,), compression=packed)
        file["one"] = "word"
        file.create_dataset("leads", (2,), h5py.ref_dtype)
    with open_h5(tmp_path / "a.h5", whole=True) as file:
        lengths = {name: sum(int(part.sum()) for part in _lengths(file[name], tmp_path / "a.h5")) for name in file
                   if name not in ("leads", "one")}  # fmt: skip
    words = sum(map(len, words.ravel()))
    assert lengths == {"words": words, "wide": 60, "series": 72, "table": 2, "nothing": 0, "none": 0}


def test_a_gz_that_swells_is_stopped(section, monkeypatch):
    packed = section.with_name("B.h5ad.gz")
    with gzip.open(packed, "wb") as file:
        file.write(section.read_bytes() + bytes(2**25))
    assert read_path(packed, image=section.with_suffix(".png")).n_spots == 36
    unpacked = []
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda folder: unpacked.append(folder) or SimpleNamespace(free=0))
    error = refused(read_path, packed)
    assert error.file == packed
    assert "TMPDIR" in error.fix
    monkeypatch.undo()
    monkeypatch.setattr(stores, "SLACK", 2**20)
    error = refused(read_path, packed)
    assert error.file == packed
    assert not Path(unpacked[0]).exists()


def test_patches_that_lead_elsewhere(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["coords"] = np.zeros((1, 2), int)
        file["img"] = h5py.ExternalLink("other.h5", "/x")
    assert refused(open_image, tmp_path / "p.h5").field == "/img"


# What is said fits the command.


def without_resolution(section):
    adata = anndata.read_h5ad(section)
    del adata.uns["spatial"], adata.uns["technology"]
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    adata[:5].copy().write_h5ad(section)


def test_a_missing_resolution_is_given_where_the_command_takes_it(section):
    without_resolution(section)
    study = refused(read_section, find_sections(SectionSource(path=str(section)))[0])
    predict = refused(read_path, section, for_prediction=True)
    score = refused(read_path, section)
    assert {error.field for error in (study, predict, score)} == {"um_per_px"}
    assert "study" in study.fix
    assert "--um-per-px" in predict.fix
    assert "study" not in predict.fix + score.fix
    assert "--" not in score.fix


def test_check_tells_every_kind_in_one_sentence(section, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    shutil.copy(section, folder / "good.h5ad")
    (folder / "page.h5ad").write_text("<html>")
    found = CliRunner().invoke(app, ["check", *map(str, sorted(folder.glob("*")))])
    assert found.exit_code == 2
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    "command",
    [["check", "{pipe}.yaml"], ["run", "{pipe}.yaml"], ["map", "{pipe}.h5ad", "--gene", "A"]]
    + [["fhe", "keygen", "--client", "{pipe}.json", "-o", "keys"], ["score", "{pipe}.h5ad", "{pipe}.h5ad"]],
    ids=lambda command: command[0],
)
def test_no_command_waits_for_a_pipe(command, tmp_path):
    for suffix in (".yaml", ".h5ad", ".json"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
    arguments = [part.format(pipe=tmp_path / "pipe") for part in command]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, InputError)
    assert str(found.exception.file) in arguments


def test_no_secret_is_read_from_a_pipe(tmp_path):
    from histocrypt.download.fetch import read_token
    from histocrypt.encrypted.key_owner import Keys
    from histocrypt.encrypted.messages import read_message
    from histocrypt.encrypted.remote import _authorities
    from histocrypt.http.access import check_certificate, read_tokens

    pipe = tmp_path / "secret.key"
    os.mkfifo(pipe, 0o600)
    for read in (
        read_token,
        read_tokens,
        _authorities,
        lambda path: check_certificate(path, None),
        lambda path: check_certificate(None, path),
        lambda path: read_message(path, "secret key"),
    ):
        assert refused(read, pipe).file == pipe
    assert refused(Keys, tmp_path).field == "secret.key"


def test_a_heap_of_texts_without_an_end_is_refused(tiny_section, tmp_path):
    """The HDF5 library stays for ever at an entry that leads to itself."""
    path = tiny_section(tmp_path, "A", "P1")
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL") + 16
    content[heap : heap + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_path(path)
    assert refused.value.file == path


def test_packed_text_that_is_broken_is_refused(tmp_path):
    from tests.space_ranger import write_space_ranger

    run = write_space_ranger(tmp_path / "run", matrix="mtx.gz")
    path = run / "filtered_feature_bc_matrix" / "features.tsv.gz"
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_path(run)
    assert refused.value.file == path


def test_heaps_that_lie_in_one_another_do_not_keep_anybody_busy(tiny_section, tmp_path):
    path = tiny_section(tmp_path, "A", "P1")
    many, block = 20_000, 48
    with path.open("ab") as file:
        for number in range(many):  # an entry that holds the head of a heap, which reaches to the end
            left = (block * (many - number) - 16).to_bytes(8, "little")
            file.write(struct.pack("<H6xQ", 1, 32) + b"GCOL\x01\0\0\0" + left + struct.pack("<H6xQ", 1, 0))
    with pytest.raises(InputError) as refused:
        read_path(path)
    assert refused.value.file == path
