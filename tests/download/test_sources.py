"""Each source as its host lays it out, on a local server: from the command line to a section that the readers take."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.small_study import environment, in_process
from tests.space_ranger import write_space_ranger
from tests.tiny_section import PITCH_PX, write_tiny_section
from typer.testing import CliRunner

from histocrypt.cli import app, main
from histocrypt.download.fetch import SOURCES
from histocrypt.download.sources import HER2ST_COMMIT, VISIUM_VERSIONS, block_of
from histocrypt.errors import InputError
from histocrypt.sections.read import find_sections, read_section
from histocrypt.study import parse_study

TOKEN = "hf_secretOfTheUser"


def histocrypt(*arguments, outputs, **variables):
    command = [sys.executable, "-m", "histocrypt", *map(str, arguments)]
    env = {**environment(outputs), "HF_HOME": str(outputs / "nobody"), **variables}
    env.pop("HF_TOKEN", None) if "HF_TOKEN" not in variables else None
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def study_of(printed):
    """Return the sections of the study entry that the command printed."""
    import yaml

    entry = yaml.safe_load(printed[printed.index("sections:") :])
    study = parse_study({"name": "s", **entry})
    return [read_section(files) for source in study.sections for files in find_sections(source, folder=study.folder)]


def tsv(table):
    return gzip.compress(table.to_csv(sep="\t").encode())


@pytest.fixture
def tiny(tmp_path):
    """A small section: its adata, its picture as JPEG, and its counts as a table of array spots, some off tissue."""
    path = write_tiny_section(tmp_path / "tiny", "A")
    adata = anndata.read_h5ad(path)
    adata.obs_names = [f"{x + 1}x{y + 1}" for x, y in adata.obs[["array_col", "array_row"]].to_numpy()]
    jpeg = io.BytesIO()
    Image.open(path.with_suffix(".png")).save(jpeg, "JPEG", quality=95)
    counts = pd.DataFrame(adata.X.toarray().astype(int), index=adata.obs_names, columns=adata.var_names)
    counts.loc["30x30"] = 1  # on the array, not below tissue
    return adata, jpeg.getvalue(), counts.sample(frac=1, random_state=0)


def same_section(section, adata):
    assert section.n_spots == adata.n_obs - 1
    assert section.um_per_px == pytest.approx(200 / PITCH_PX)
    own = section.adata
    reference = adata[own.obs_names]
    np.testing.assert_array_equal(own.X.toarray(), reference[:, own.var_names].X.toarray())
    np.testing.assert_allclose(own.obsm["spatial"], reference.obsm["spatial"])
    assert section.image.width == 350


def test_visium(server, tmp_path):
    name = "V1_Breast_Cancer_Block_A_Section_1"
    run = write_space_ranger(tmp_path / "run", positions="v1")
    base = f"/samples/1.1.0/{name}/{name}"
    server.add(f"{base}_filtered_feature_bc_matrix.h5", (run / "filtered_feature_bc_matrix.h5").read_bytes())
    server.add(f"{base}_image.tif", (run / "image.tif").read_bytes(), drops=[200_000])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(run / "spatial", "spatial")
    server.add(f"{base}_spatial.tar.gz", packed.getvalue())
    to = tmp_path / "to"
    done = in_process("download", "visium", name, "--to", to, "--mirror", server.url(), outputs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CC BY 4.0" in done.stdout
    assert "none published: its SHA-256 is now written beside it" in done.stdout
    assert f"{'resumed':8} {to / name / 'image.tif'}" in done.stdout
    (section,) = study_of(done.stdout)
    assert (section.patient, section.n_spots, section.id) == ("V1_Breast_Cancer_Block_A", 110, name)
    assert section.image.path == to / name / "image.tif"
    before = len(server.asked(f"{base}_image.tif"))
    again = in_process("download", "visium", name, "--to", to, "--mirror", server.url(), outputs=tmp_path)
    assert again.stdout.count("present") == 3
    assert len(server.asked(f"{base}_image.tif")) == before


def test_visium_small(server, tmp_path):
    name = "V1_Human_Heart"
    run = write_space_ranger(tmp_path / "run", positions="v1", image=False)
    base = f"/samples/1.1.0/{name}/{name}"
    server.add(f"{base}_filtered_feature_bc_matrix.h5", (run / "filtered_feature_bc_matrix.h5").read_bytes())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(run / "spatial", "spatial")
    server.add(f"{base}_spatial.tar.gz", packed.getvalue())
    arguments = ("download", "visium", name, "--to", tmp_path, "--mirror", server.url(), "--small")
    done = in_process(*arguments, outputs=tmp_path)
    (section,) = study_of(done.stdout)
    assert section.image.scale == 0.5
    assert any("tiles hold no finer detail" in note for note in section.notes)


def test_blocks_share_a_patient():
    blocks = {name: block_of(name) for name in VISIUM_VERSIONS}
    assert blocks["V1_Breast_Cancer_Block_A_Section_2"] == blocks["V1_Breast_Cancer_Block_A_Section_1"]
    assert (
        blocks["Targeted_Visium_Human_OvarianCancer_Pan_Cancer"]
        == blocks["Targeted_Visium_Human_OvarianCancer_Immunology"]
        == blocks["Parent_Visium_Human_OvarianCancer"]
        == "Visium_Human_OvarianCancer"
    )


def git_name(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def serve_her2st(server, tiny, **how):
    adata, jpeg, counts = tiny
    x, y = adata.obsm["spatial"].T
    array = np.array([name.split("x") for name in adata.obs_names], dtype=int)
    table = pd.DataFrame(
        {"x": array[:, 0], "y": array[:, 1], "new_x": 0.0, "new_y": 0.0, "pixel_x": x, "pixel_y": y, "selected": 1}
    )
    table.loc[3, "selected"] = 0
    contents = {
        "data/ST-cnts/C2.tsv.gz": tsv(counts),
        "data/ST-spotfiles/C2_selection.tsv": table.to_csv(sep="\t", index=False).encode(),
        "data/ST-imgs/C/C2/5714_HE_BT_C2.jpg": jpeg,
        "data/ST-imgs/C/C3/other.jpg": b"",
    }
    tree = [{"path": path, "type": "blob", "size": len(content), "sha": git_name(content)}
            for path, content in contents.items()]  # fmt: skip
    tree.append({"path": "data", "type": "tree", "sha": "0" * 40})
    server.add(f"/api/git/trees/{HER2ST_COMMIT}?recursive=1", json.dumps({"tree": tree}).encode())
    for path, content in contents.items():
        server.add(f"/raw/{HER2ST_COMMIT}/{path}", content, **how)
    return contents


def test_her2st(server, tiny, tmp_path):
    serve_her2st(server, tiny)
    arguments = ("download", "her2st", "C2", "--to", tmp_path / "to", "--mirror", server.url())
    done = in_process(*arguments, outputs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checked: git as published") == 3
    (section,) = study_of(done.stdout)
    assert (section.id, section.patient) == ("HER2ST_C2", "HER2ST_C")
    same_section(section, tiny[0])
    assert section.adata.uns["licence"] == "CC BY 4.0"
    made = tmp_path / "to" / "HER2ST_C2.h5ad"
    before = made.stat().st_mtime_ns
    assert in_process(*arguments, outputs=tmp_path).stdout.count("present") == 3
    assert made.stat().st_mtime_ns == before


def test_her2st_with_a_wrong_file(server, tiny, tmp_path):
    serve_her2st(server, tiny)
    path = f"/raw/{HER2ST_COMMIT}/data/ST-imgs/C/C2/5714_HE_BT_C2.jpg"
    server.files[path].content = server.files[path].content[:-1] + b"x"
    done = in_process("download", "her2st", "C2", "--to", tmp_path / "to", "--mirror", server.url(), outputs=tmp_path)
    assert done.returncode == 2
    assert "has the wrong checksum, twice; what came was deleted" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "to").rglob("*") if path.is_file()) == [
        "C2.tsv.gz", "C2_selection.tsv",
    ]  # fmt: skip


def test_her2st_listing_of_another_form(server, tmp_path):
    for content in ({"message": "moved"}, {"tree": []}, [1]):
        server.add(f"/api/git/trees/{HER2ST_COMMIT}?recursive=1", json.dumps(content).encode())
        done = in_process("download", "her2st", "C2", "--to", tmp_path, "--mirror", server.url(), outputs=tmp_path)
        assert done.returncode == 2
        assert "listing does not hold section C2 as expected" in done.stderr


def serve_hbcis(server, tiny):
    adata, jpeg, counts = tiny
    spots = pd.DataFrame(adata.obsm["spatial"], columns=["X", "Y"], index=adata.obs_names).drop(adata.obs_names[3])
    row = ["TNBC", "BC23209", "C1", "HE_BT23209_C1.jpg", "spots_BT23209_C1.csv.gz", "BC23209_C1_stdata.tsv.gz", "-"]
    columns = "type,patient,replicate,histology_image,spot_coordinates,count_matrix,tumor_annotation"
    contents = {
        "metadata.csv": f"{columns}\n{','.join(row)}\n".encode(),
        row[3]: jpeg,
        row[4]: gzip.compress(spots.to_csv().encode()),
        row[5]: tsv(counts),
    }
    listing = []
    for number, (name, content) in enumerate(contents.items()):
        server.add(f"/file/{number}", b"", redirect=f"/bucket/{number}?signature=abc")
        server.add(f"/bucket/{number}?signature=abc", content)
        about = {"download_url": server.url(f"/file/{number}"), "size": len(content)}
        listing.append(
            {"filename": name, "content_details": {**about, "sha256_hash": hashlib.sha256(content).hexdigest()}}
        )
    server.add("/api/files?folder_id=root&version=5", json.dumps(listing).encode())


def test_hbcis(server, tiny, tmp_path):
    serve_hbcis(server, tiny)
    arguments = ("--to", tmp_path / "to", "--mirror", server.url())
    assert "BC23209_C1" in in_process("download", "hbcis", *arguments, outputs=tmp_path).stdout
    done = in_process("download", "hbcis", "BC23209_C1", *arguments, outputs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checked: sha256 as published") == 4
    (section,) = study_of(done.stdout)
    assert (section.id, section.patient) == ("HBCIS_BC23209_C1", "HBCIS_BC23209")
    assert section.adata.uns["subtype"] == "TNBC"
    same_section(section, tiny[0])
    wrong = in_process("download", "hbcis", "BC23209_C9", *arguments, outputs=tmp_path)
    assert wrong.returncode == 2
    assert (
        "unknown section of hbcis 'BC23209_C9'; expected one of BC23209_C1; did you mean 'BC23209_C1'?" in wrong.stderr
    )


@pytest.fixture
def hest(server, tmp_path):
    """A hub that answers those with the right token only."""
    path = write_tiny_section(tmp_path / "tiny", "TENX1")
    slide = path.with_suffix(".png").read_bytes()
    about = json.dumps({"patient": "donor-1", "st_technology": "Spatial Transcriptomics"}).encode()
    contents = {"st/TENX1.h5ad": path.read_bytes(), "metadata/TENX1.json": about, "wsis/TENX1.tif": slide}
    root = "/hub/api/datasets/MahmoodLab/hest"
    infos = [
        {"type": "file", "path": name, "size": len(content), "oid": git_name(content)}
        | ({"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}} if len(content) > 1000 else {})
        for name, content in contents.items()
    ]
    server.add(f"{root}/paths-info/main", json.dumps(infos).encode(), needs_token=TOKEN, methods=("POST",))
    many = [{"path": f"st/{kind}{number}.h5ad"} for kind in ("TENX", "NCBI") for number in range(1, 40)]
    following = {"Link": f'<{server.url(f"{root}/tree/main/st?cursor=2")}>; rel="next"'}
    server.add(f"{root}/tree/main/st", json.dumps(many[:50]).encode(), needs_token=TOKEN, headers=following)
    server.add(f"{root}/tree/main/st?cursor=2", json.dumps(many[50:]).encode(), needs_token=TOKEN)
    for name, content in contents.items():
        server.add(f"/hub/datasets/MahmoodLab/hest/resolve/main/{name}", content, needs_token=TOKEN)
    return server


def test_hest(hest, tmp_path):
    arguments = ("download", "hest", "TENX1", "--to", tmp_path / "to", "--mirror", hest.url())
    refused = histocrypt(*arguments, outputs=tmp_path, HF_TOKEN=TOKEN)
    assert refused.returncode == 2
    assert "is under CC BY-NC-SA 4.0: non-commercial use only" in refused.stderr
    assert "repeat with --accept-licence" in refused.stderr
    nobody = histocrypt(*arguments, "--accept-licence", outputs=tmp_path)
    assert nobody.returncode == 2
    assert "HF_TOKEN" in nobody.stderr
    assert not hest.requests
    stranger = histocrypt(*arguments, "--accept-licence", outputs=tmp_path, HF_TOKEN="hf_of_a_stranger")
    assert "access is refused (401); accept the terms on the data set's page, and give a valid token" in stranger.stderr
    (tmp_path / "token").write_text(TOKEN + "\n")
    done = histocrypt(*arguments, "--accept-licence", "--token-file", tmp_path / "token", outputs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checked: sha256 as published" in done.stdout
    assert "checked: git as published" in done.stdout
    for said in (refused, nobody, stranger, done):
        assert "hf_" not in said.stdout + said.stderr
    assert not any(TOKEN.encode() in path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file())
    (asked,) = hest.asked("/hub/api/datasets/MahmoodLab/hest/paths-info/main", "POST")[-1:]
    assert "wsis%2FTENX1.tif" in asked["Body"]
    (section,) = study_of(done.stdout)
    assert (section.id, section.patient, section.n_spots) == ("TENX1", "P1", 36)
    assert section.image.path == tmp_path / "to" / "wsis" / "TENX1.tif"


def test_hest_lists_near_names(hest, tmp_path):
    arguments = ("--accept-licence", "--to", tmp_path, "--mirror", hest.url())
    done = histocrypt("download", "hest", "TENX99", *arguments, outputs=tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "unknown section 'TENX99' of hest, which has 78; expected such as TENX" in done.stderr
    assert "NCBI" not in done.stderr


@pytest.mark.parametrize("content", ["", "two words", "schlüssel", None])
def test_token_files(content, tmp_path, monkeypatch):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    arguments = ["histocrypt", "download", "hest", "TENX1", "--accept-licence", "--token-file", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2


def test_lists_need_no_network():
    listed = CliRunner().invoke(app, ["download"])
    assert listed.exit_code == 0
    for source in SOURCES.values():
        assert source.citation in listed.stdout
        assert source.licence_url in listed.stdout
    names = CliRunner().invoke(app, ["download", "her2st"]).stdout.split()
    assert names[-36:] == list(SOURCES["her2st"].names)
    with pytest.raises(InputError, match="unknown data set 'her2'; .*did you mean 'her2st'?"):
        CliRunner().invoke(app, ["download", "her2"], catch_exceptions=False)
    with pytest.raises(InputError, match="did you mean 'V1_Human_Heart'?"):
        CliRunner().invoke(app, ["download", "visium", "V1_Human_Hart"], catch_exceptions=False)


def test_the_disk_is_asked_first(server, tiny, tmp_path):
    serve_her2st(server, tiny)
    listing = server.files[f"/api/git/trees/{HER2ST_COMMIT}?recursive=1"]
    tree = json.loads(listing.content)
    tree["tree"][2]["size"] = 10**17
    listing.content = json.dumps(tree).encode()
    done = in_process("download", "her2st", "C2", "--to", tmp_path / "to", "--mirror", server.url(), outputs=tmp_path)
    assert done.returncode == 2
    assert "not enough disk space for C2: 100000000.0 GB are needed" in done.stderr
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["../../evil", "/evil"])
def test_names_from_a_listing_are_file_names(name, server, tiny, tmp_path):
    serve_hbcis(server, tiny)
    metadata, listed = server.files["/bucket/0?signature=abc"], server.files["/api/files?folder_id=root&version=5"]
    metadata.content = metadata.content.replace(b"BC23209,C1", f"{name},C1".encode())
    listing = json.loads(listed.content)
    own = {"size": len(metadata.content), "sha256_hash": hashlib.sha256(metadata.content).hexdigest()}
    listing[0]["content_details"].update(own)
    listed.content = json.dumps(listing).encode()
    arguments = ("download", "hbcis", f"{name}_C1", "--to", tmp_path / "to", "--mirror", server.url())
    done = in_process(*arguments, outputs=tmp_path)
    assert done.returncode == 2
    assert f"{name}_C1" in done.stderr
    assert not (tmp_path / "to").exists()
