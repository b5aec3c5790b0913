"""Archives that try to leave their folder, to fill the disk, or are broken."""

import io
import tarfile

import pytest

from histocrypt.download.transfer import unpack
from histocrypt.errors import InputError


def write(path, *members):
    """Write a tar of (name, content) pairs; a content that is a type makes a member of that type."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
            else:
                member.type = content
                member.linkname = "/etc/passwd"
                tar.addfile(member)
    return path


def test_unpacks_its_folder(tmp_path):
    archive = write(
        tmp_path / "a.tar.gz", ("spatial", tarfile.DIRTYPE), ("./spatial/one", "1"), ("spatial/deep/two", "2")
    )
    for _ in range(2):  # what was there before is replaced
        folder = unpack(archive, tmp_path / "spatial")
        assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {"one": "1", "two": "2"}
        (folder / "left over").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "spatial"]


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../evil", "x"), "without '..'"),
        (("/evil", "x"), "without '..'"),
        (("spatial/../../evil", "x"), "without '..'"),
        (("evil", "x"), r"archive holds more than spatial/"),
        (("spatial/link", tarfile.SYMTYPE), "archive holds a link or a device"),
        (("spatial/link", tarfile.LNKTYPE), "archive holds a link or a device"),
        (("spatial/null", tarfile.CHRTYPE), "archive holds a link or a device"),
        (("spatial/pipe", tarfile.FIFOTYPE), "archive holds a link or a device"),
        (("spatial/good", "twice"), "archive cannot be unpacked"),
    ],
)
def test_refused(member, words, tmp_path):
    archive = write(tmp_path / "a.tar.gz", ("spatial/good", "1"), member)
    with pytest.raises(InputError, match=words):
        unpack(archive, tmp_path / "to" / "spatial")
    assert not (tmp_path / "evil").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


def test_limits(tmp_path):
    archive = write(tmp_path / "a.tar.gz", ("spatial/one", "1" * 600), ("spatial/two", "2" * 600))
    for limits in ({"max_files": 1}, {"max_bytes": 1000}):
        with pytest.raises(InputError, match="archive is too large"):
            unpack(archive, tmp_path / "spatial", **limits)
    assert not (tmp_path / "spatial").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_damaged(content, tmp_path):
    archive = write(tmp_path / "a.tar.gz", ("spatial/one", "1" * 100_000))
    archive.write_bytes(archive.read_bytes()[:100] if content is None else content)
    with pytest.raises(InputError, match="archive cannot be unpacked"):
        unpack(archive, tmp_path / "spatial")
    assert not (tmp_path / "spatial").exists()


def test_empty(tmp_path):
    with pytest.raises(InputError, match="archive is empty"):
        unpack(write(tmp_path / "a.tar.gz"), tmp_path / "spatial")
