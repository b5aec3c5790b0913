"""Slides and tiles over HTTP: what `predict` says comes back with its trust, and nobody gets more than is theirs."""

import io
import re
import time
from pathlib import Path

import anndata
import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save
from tests.serve.conftest import UM_PER_PX, serving

from histocrypt.pipeline.predict import predict_section

GOOD = {"um_per_px": UM_PER_PX, "anyway": True, "name": "A"}


def picture(size, mode="RGB"):
    held = io.BytesIO()
    Image.new(mode, size, 1).save(held, "PNG")
    return held.getvalue()


def test_a_slide_to_predictions_that_say_how_far_to_trust_them(client, slide, colours, tmp_path):
    answer = client.post("/v1/slides", params=GOOD, content=slide.read_bytes())
    assert answer.status_code == 200, answer.text
    predict_section(colours[0], slide, tmp_path / "p.h5ad", um_per_px=UM_PER_PX, spacing_um=200, anyway=True)
    alone, said = anndata.read_h5ad(tmp_path / "p.h5ad"), answer.json()
    order = [gene["id"] for gene in said["genes"]]
    assert sorted(order) == sorted(alone.var_names)
    assert said["spots"]["name"] == list(alone.obs["barcode"])
    np.testing.assert_allclose(np.array(said["values"]), alone[:, order].X, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(said["spots"]["x_px"], alone.obsm["spatial"][:, 0], rtol=1e-5)
    assert said["spots"]["out_of_focus"] == alone.obs["out_of_focus"].tolist()
    about = alone.uns["prediction"]
    assert said["slide"]["verdict"] == about["slide"]["verdict"] == answer.headers["Histocrypt-Verdict"]
    assert said["slide"]["reasons"] == list(about["slide"]["why"])
    assert said["intervals"] == about["intervals"]
    assert {"by": "patient", "patients": 3, "sections": 3}.items() <= said["predictability"].items()
    assert said["predictability"] == dict(about["predictability"])
    main = about["transform"]
    columns = [name.removesuffix(f":{main}") for name in alone.var if name.endswith(f":{main}")]
    assert {"training_pearson", "half_width", "half_width_within"} <= set(columns)
    for column in columns:
        known = alone.var.loc[order, f"{column}:{main}"].to_numpy()
        given = np.array([gene[column] for gene in said["genes"]], dtype=known.dtype)
        np.testing.assert_allclose(given, known, rtol=1e-4, atol=1e-5)
    trust = [gene["training_pearson"] for gene in said["genes"]]
    assert trust == sorted(trust, reverse=True), "the trusted first"


def test_a_slide_that_the_model_is_not_for_is_refused(client, slide):
    brown = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(slide).convert("RGB"))[..., [0, 2, 1]]).save(brown, "PNG")
    answer = client.post("/v1/slides", params={**GOOD, "anyway": False}, content=brown.getvalue())
    error = answer.json()
    assert answer.status_code == 422
    assert (error["field"], error["value"]) == ("slide", "do not use")
    assert "anyway=true" in error["fix"]
    assert error["reasons"]
    assert error["error"].count("\n") == 0


def test_a_slide_of_unknown_resolution_is_refused(client, slide):
    answer = client.post("/v1/slides", params={"name": "A"}, content=slide.read_bytes())
    assert answer.status_code == 422
    assert answer.json()["field"] == "um_per_px"
    assert "--" not in answer.json()["fix"]


def test_tiles_come_back_in_their_order(client, colours):
    tiles = colours[1]
    where = {"um_per_px": UM_PER_PX}
    said = client.post("/v1/tiles", params=where, content=save({"tiles": tiles})).json()
    assert said["slide"]["verdict"] == "fine", "a training section"
    assert said["spots"]["name"] == [str(number) for number in range(len(tiles))]
    assert "x_px" not in said["spots"]
    turned = client.post("/v1/tiles", params=where, content=save({"tiles": tiles[::-1].copy()})).json()
    np.testing.assert_allclose(turned["values"][::-1], said["values"], atol=1e-3)
    assert np.std(said["values"], axis=0).min() > 0.01


def test_other_formats_and_jobs(served, client, slide):
    first, second, third = [gene["symbol"] for gene in client.get("/v1/model").json()["genes"][:3]]
    asked = {**GOOD, "format": "geojson", "genes": f"{second},{third}", "wait": 0}
    answer = client.post("/v1/slides", params=asked, content=slide.read_bytes())
    assert answer.status_code == 202, answer.text
    job = answer.headers["Location"]
    assert answer.json()["state"] in ("waiting", "running")
    drawn = client.get(job)
    assert drawn.headers["Content-Type"] == "application/geo+json"
    assert 'filename="A.geojson"' in drawn.headers["Content-Disposition"]
    feature = drawn.json()["features"][0]
    assert {second, third} <= feature["properties"]["measurements"].keys()
    assert first not in feature["properties"]["measurements"]
    kept = client.get(job, params={"format": "h5ad"}).content
    adata = anndata.read_h5ad(io.BytesIO(kept))
    assert set(adata.obs["section"]) == {"A"}
    assert "image" not in adata.uns["prediction"]
    assert str(served.scratch).encode() not in kept
    assert client.get(job, params={"format": "json"}).json()["name"] == "A"
    assert client.get(job, params={"format": "csv"}).json()["field"] == "format"
    with served.client("client-1") as other:
        assert other.get(job).status_code == other.delete(job).status_code == 404
    assert not list(served.scratch.rglob("upload")), "what came is gone as soon as it is predicted"
    assert client.delete(job).status_code == 204
    assert client.get(job).status_code == 404
    assert not [path for path in served.scratch.rglob("*") if path.suffix == ".geojson"]


def test_nobody_without_a_token(served, slide):
    with httpx.Client(base_url=served.address, trust_env=False) as stranger:
        assert stranger.get("/v1/health").json() == {"status": "ok"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            for method, path in (("GET", "/v1/model"), ("POST", "/v1/slides"), ("GET", "/v1/jobs/x"), ("GET", "/")):
                answer = stranger.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert list(answer.json()) == ["error"]
    assert served.token_file.stat().st_mode & 0o777 == 0o600


WRONG = {
    "another file": (b"%PDF-1.7 " + b"x" * 500, {}, 415, "body", None),
    "nothing": (b"", {}, 415, "body", ""),
    "a form": (b"--9051914041544843365972754266\r\nContent-Disposition: form-data", {}, 415, "body", None),
    "no JPEG but by its first bytes": (b"\xff\xd8\xff" + b"x" * 500, {}, 422, None, None),
    "too many pixels": (picture((1100, 1000)), {}, 422, "pixels", "1100 x 1000 px"),
    "a bomb": (picture((40_000, 20_000), "1"), {}, 422, None, "40000 x 20000 px"),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(1 << 20), {}, 413, "Content-Length", (1 << 20) + 8),
    "no distance": (b"", {"spacing_um": 0}, 422, None, None),
    "all black": (picture((300, 300)), {}, 422, "colours", None),
    "no format": (b"", {"format": "png"}, 422, "format", "png"),
    "no layer": (b"", {"layer": "log"}, 422, "layer", "log"),
    "no gene": (b"", {"genes": ",NOPE"}, 422, "genes", "NOPE"),
    "a path for a name": (b"", {"name": "../../x"}, 422, None, None),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence(client, served, case):
    body, changes, status, field, value = WRONG[case]
    asked = {name: given for name, given in {**GOOD, **changes}.items() if given is not None}
    answer = client.post("/v1/slides", params=asked, content=body)
    error = answer.json()
    assert answer.status_code == status, error
    assert error.get("field") == field
    assert value is None or error["value"] == value
    assert "\n" not in error["error"]
    assert "Traceback" not in answer.text
    assert str(served.scratch) not in answer.text


@pytest.mark.parametrize(
    ("arrays", "value"),
    [
        ({"tiles": np.zeros((2, 36, 36, 3), np.float32)}, "[2, 36, 36, 3] F32"),
        ({"tiles": np.zeros((2, 36, 30, 3), np.uint8)}, "[2, 36, 30, 3] U8"),
        ({"tile": np.zeros((2, 36, 36, 3), np.uint8)}, "tile"),
        ({"tiles": np.zeros((80, 1, 1, 3), np.uint8)}, None),
    ],
)
def test_what_is_wrong_with_tiles(client, arrays, value):
    answer = client.post("/v1/tiles", params={"um_per_px": UM_PER_PX}, content=save(arrays))
    assert answer.status_code == 422
    assert value is None or (answer.json()["field"], answer.json()["value"]) == ("tiles", value)


def test_bodies_of_unknown_size_are_bounded_too(client):
    def body():
        yield b"\x89PNG\r\n\x1a\n"
        for _ in range(40):
            yield bytes(1 << 16)

    try:
        answer = client.post("/v1/slides", params=GOOD, content=body())
    except httpx.WriteError:  # the server has hung up
        return
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/v1/jobs/..%2f..%2ftoken", "/v1/../token", "/token", "/v1/jobs/1/out/state.json"])
def test_no_file_is_read_by_name(client, path):
    assert client.get(path).status_code == 404


def test_the_page_about_it_loads_nothing(served):
    page = httpx.get(f"{served.address}/docs", trust_env=False)
    assert page.status_code == 200
    assert not re.search(r"(src|href)=.?https?:", page.text)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    schema = httpx.get(f"{served.address}/openapi.json", trust_env=False).json()
    assert {"/v1/slides", "/v1/tiles", "/v1/jobs/{job}", "/v1/model"} <= schema["paths"].keys()
    for path in schema["paths"]:
        assert path in page.text
    assert list(schema["components"]["securitySchemes"].values())[0]["scheme"] == "bearer"


def test_the_log_tells_no_token(served, client, slide):
    assert client.get("/v1/model").json()["judges_slides"] is True
    said = served.log.read_text()
    assert "token-of-it" not in said
    assert slide.name not in said


@pytest.mark.slow
def test_what_takes_too_much_ends_alone(colours, slide, tmp_path):
    """A job without memory and one that is killed are refused; the server lives, and leaves nothing."""
    import psutil

    large = picture((15_000, 15_000))  # 900 MB once decoded
    with serving(colours[0], tmp_path / "little", "--memory-gib", "0.6") as server, server.client() as client:
        answer = client.post("/v1/slides", params=GOOD, content=large)
        assert (answer.status_code, answer.json()["field"]) == (413, "memory")
        assert client.get("/v1/model").status_code == 200
    assert not list(server.scratch.iterdir())
    with serving(colours[0], tmp_path / "killed", "--waiting", "1") as server, server.client() as client:
        job = client.post("/v1/slides", params={**GOOD, "wait": 0, "spacing_um": 4}, content=slide.read_bytes())
        assert job.status_code == 202, job.text
        process = None
        for _ in range(6000):
            below = psutil.Process(server.process.pid).children(recursive=True)
            marked = [one for one in below if Path(f"/proc/{one.pid}/oom_score_adj").read_text().strip() == "1000"]
            if marked:
                (process,) = marked
                break
            time.sleep(0.05)
        process.kill()
        answer = client.get(job.headers["Location"])
        assert answer.status_code == 500
        assert list(answer.json()) == ["error"]
        assert client.post("/v1/slides", params=GOOD, content=slide.read_bytes()).status_code == 200
    assert not list(server.scratch.iterdir())
