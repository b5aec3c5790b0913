"""What clients may use, and what is deleted when: no process is started here."""

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histocrypt.http.refusals import Refused
from histocrypt.pipeline.folder import Settings
from histocrypt.sections.image import open_image
from histocrypt.serve.jobs import Limits, Store
from histocrypt.serve.uploads import check_slide, slide_suffix, tiles_suffix
from histocrypt.serve.work import Wanted, for_clients

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


@pytest.fixture
def store(tmp_path):
    limits = Limits(bytes=500, disk=1000, jobs=1, waiting=1, per_minute=3, kept_seconds=0.01)
    store = Store(Path("model"), clients=["a", "b"], limits=limits, scratch=tmp_path)
    yield store
    store.stop()
    assert not list(tmp_path.iterdir())


def opened(store, holder, size=100):
    return store.open(
        holder, name="x", wanted=Wanted("json", tiles=False, genes=(), layer=None), settings=Settings(), size=size
    )


def refused(store, holder, size=100):
    with pytest.raises(Refused) as error:
        opened(store, holder, size)
    assert error.value.retry_after
    return error.value.status


def test_each_client_has_a_share(store):
    first = opened(store, "a")
    assert refused(store, "a") == 429
    second = opened(store, "b")
    with pytest.raises(Refused) as error:
        store.get(first.id, "b")
    assert error.value.status == 404
    store.end(second)
    store.end(first)
    opened(store, "a")


def test_uploads_a_minute(store):
    for _ in range(3):
        store.end(opened(store, "a"))
    assert refused(store, "a") == 429
    opened(store, "b")


def test_the_disk_is_shared(store, monkeypatch):
    first = opened(store, "a", 600)
    assert refused(store, "b", 500) == 507
    store.end(first)
    opened(store, "b", 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    assert refused(store, "a", 10) == 507


def test_an_upload_goes_to_a_private_file_and_with_its_job(store, monkeypatch):
    monkeypatch.setattr(store, "_run", lambda *_: None)
    job = opened(store, "a")

    async def body():
        for at in range(0, len(PNG), 50):
            yield PNG[at : at + 50]

    asyncio.run(store.receive(job, body(), slide_suffix, "a slide"))
    assert job.upload.read_bytes() == PNG
    assert job.upload.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == job.folder.stat().st_mode & 0o777 == 0o700
    assert (job.size, job.state) == (len(PNG), "waiting")
    store.end(job)
    assert not job.folder.exists()


def test_what_is_no_slide_is_refused_by_its_first_bytes(store):
    read = []

    async def body():
        for part in (b"PK\x03\x04" + bytes(200), bytes(50)):
            read.append(part)
            yield part

    with pytest.raises(Refused) as error:
        asyncio.run(store.receive(opened(store, "a"), body(), slide_suffix, "a slide"))
    assert (error.value.status, error.value.said["field"]) == (415, "body")
    assert len(read) == 1, "the rest is not read"


def test_answers_that_nobody_asks_for_are_deleted(store):
    job = opened(store, "a")
    job.state, job.touched = "done", time.monotonic() - 1

    async def look():
        sweeping = asyncio.ensure_future(store.sweep())
        await asyncio.sleep(0.1)
        sweeping.cancel()

    asyncio.run(look())
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (PNG, ".png"),
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"II*\0", ".tif"),
        (b"MM\0+", ".tif"),
        (b"RIFF\0\0\0\0WEBP", ".webp"),
        (b"ZISRAWFILE", ".czi"),
        (bytes(128) + b"DICM", ".dcm"),
        (b"<svg", None),
        (b"\x89HDF\r\n\x1a\n", None),
        (b"[VirtualMicroscope]", None),
    ],
)
def test_kinds_by_their_first_bytes(head, suffix):
    assert slide_suffix(head) == suffix
    assert tiles_suffix(head) is None


def test_words_for_clients_name_no_file_of_the_server():
    said = for_clients(
        "/t/1/upload/slide.tif: is odd; /t/1/upload/patches: too; give --um-per-px, or --anyway; see /models/x/card.md",
        folder=Path("/t/1"),
        name="P7",
        model=Path("/models/x"),
    )
    assert said == "P7: is odd; P7: too; give um_per_px, or anyway=true; see the model/card.md"


@pytest.mark.parametrize("tile", [None, (128, 128)])
def test_a_slide_that_names_another_file_shows_none_of_it(tmp_path, tile):
    """An OME-TIFF may say that its pixels lie in another file; that one is not opened."""
    how = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "secret.tif", np.full((256, 256, 3), 7, np.uint8), **how)
    (tmp_path / "upload").mkdir()
    words = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3"'
        ' SizeZ="1" SizeT="1"><Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">'
        '<UUID FileName="../secret.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    own = np.random.default_rng(0).integers(100, 200, (256, 256, 3), np.uint8)
    slide = tmp_path / "upload" / "slide.tif"
    tifffile.imwrite(slide, own, tile=tile, compression="zlib", description=words, **how)
    check_slide(slide, megapixels=1)
    assert np.array_equal(open_image(slide).read_region(0, 0, 256, 256), own)
