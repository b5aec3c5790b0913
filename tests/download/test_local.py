"""What is here, what a study asks for, and the notebook that shows both."""

import hashlib
import io
import tarfile

import nbformat
import papermill
import pytest
from tests.space_ranger import write_space_ranger
from tests.tiny_section import write_tiny_section

from histocrypt import paths
from histocrypt.download.fetch import SOURCES, catalogue_rows, local_rows, study_rows
from histocrypt.errors import InputError
from histocrypt.files import check_sums
from histocrypt.study import parse_study


@pytest.fixture
def data(tmp_path):
    """A data folder: an .h5ad, a folder of another, a folder of Visium runs, and one that is not supported."""
    write_tiny_section(tmp_path, "A")
    write_tiny_section(tmp_path / "more", "B", "P2")
    write_space_ranger(tmp_path / "visium" / "V")
    (tmp_path / "hd" / "binned_outputs").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_local_sections(data):
    rows = local_rows(data)
    assert [(row["section"], row["patient"], row["format"], row["here"]) for row in rows] == [
        ("A", "P1", "h5ad", True),
        ("hd", "", "", False),
        ("B", "P2", "h5ad", True),
        ("V", "", "space_ranger", True),
    ]
    assert "Visium HD" in rows[1]["note"]
    assert rows[3]["MB"] > 0.6
    assert local_rows(data / "absent") == []


def test_sections_of_a_study(data):
    sections = [{"path": str(data / "A.h5ad")}, {"path": str(data / "C.h5ad")}, {"path": "demo"}]
    here, absent, demo = study_rows(parse_study({"name": "s", "sections": sections}))
    assert (here["here"], absent["here"], demo["here"]) == (True, False, True)
    assert "no such file or folder" in absent["note"]
    assert not (paths.outputs() / "s").exists()


def test_catalogue():
    rows = {row["name"]: row for row in catalogue_rows()}
    assert set(rows) == set(SOURCES)
    assert rows["hest"]["asks for"] == "--accept-licence, your token"
    assert rows["visium"]["asks for"] == "a citation"


def test_sums(tmp_path):
    for name, content in (("good", b"1"), ("bad", b"2"), ("own/good", b"3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sums = {"./good": b"1", "bad": b"other", "gone": b""}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sums.items()]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    (tmp_path / "own" / "good.sha256").write_text(f"{hashlib.sha256(b'3').hexdigest()}  good\n")
    assert check_sums(tmp_path) == {"bad": "differs", "gone": "missing", "good": "good", "own/good": "good"}
    (tmp_path / "SHA256SUMS").write_text("no sum\n")
    with pytest.raises(InputError, match="line 1") as refused:
        check_sums(tmp_path)
    assert refused.value.file == tmp_path / "SHA256SUMS"


def test_the_notebook_fetches_where_asked_to(server, tmp_path):
    name, run = "V1_Human_Heart", write_space_ranger(tmp_path / "run", positions="v1", image=False)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(run / "spatial", "spatial")
    base = f"/samples/1.1.0/{name}/{name}"
    server.add(f"{base}_filtered_feature_bc_matrix.h5", (run / "filtered_feature_bc_matrix.h5").read_bytes())
    server.add(f"{base}_spatial.tar.gz", packed.getvalue())
    given = {
        "source": "visium",
        "names": [name],
        "small": True,
        "folder": str(tmp_path / "data"),
        "mirror": server.url(),
    }
    notebook = paths.repository() / "notebooks" / "00_data.ipynb"
    for fetch in (False, True):
        done = papermill.execute_notebook(
            notebook, tmp_path / "out.ipynb", {**given, "fetch": fetch}, progress_bar=False
        )
        printed = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", []))
        assert bool(server.requests) is fetch
        assert f"histocrypt download visium {name} --small" in printed
    assert f"- path: {tmp_path / 'data' / 'visium' / name}" in printed
    nbformat.validate(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert [row["section"] for row in local_rows(tmp_path / "data")] == [name]
