"""What a server allows and keeps: quotas, expiry, disk, slow clients, addresses, tokens."""

import asyncio
import shutil
import socket
import subprocess

import anndata
import numpy as np
import pytest
from tests.encrypted.serving import refused, refuses, serving, wait_for

from histocrypt.encrypted import server as endpoints
from histocrypt.encrypted import sessions
from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.client import Server, send_section
from histocrypt.encrypted.compile import compile_model
from histocrypt.encrypted.key_owner import Keys
from histocrypt.encrypted.messages import read_tokens
from histocrypt.encrypted.server import serve
from histocrypt.errors import InputError
from histocrypt.pipeline.predict import predict_section


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    return folder / "cert.pem", folder / "key.pem"


def test_strict_server(world, encrypted, certificate, tmp_path):
    """TLS, quotas, expiry, a full disk, and nothing left when it stops."""
    good = (world.keys / "evaluation.keys").read_bytes()
    options = ["--certificate", certificate[0], "--private-key", certificate[1], "--sessions", "1"]
    options += ["--ciphertexts", "3", "--per-minute", "2", "--idle-minutes", "0.04"]
    with serving(world.bundle, tmp_path / "a", *options, largest_file=len(good) + 1000) as strict:
        assert strict.address.startswith("https://")
        with (
            Server(strict.address, strict.token_file) as stranger,
            pytest.raises(InputError, match="cannot be reached.*certificate"),
        ):
            stranger.ask("GET", "/v1/client", most=1000, patient=False)
        with strict.connect() as server, server.session(Keys(world.keys)) as opened:
            keys = Keys(world.keys)
            size = {"client": keys.client.hash, "bytes": len(good)}
            refused(strict.http.post("/v1/sessions", json=size), 429, "sessions are taken")
            request, (first, second) = encrypted
            assert strict.post(opened.path, request, 0, first).status_code == 200
            refused(strict.post(opened.path, request, 1, b"nonsense"), 422, "not a message")  # counts, too
            refused(strict.post(opened.path, request, 1, second), 429, "a minute")
            assert wait_for(lambda: strict.http.get("/v1/health") and "expired" in strict.log.read_text())
            refused(strict.post(opened.path, request, 0, first), 404, "expired")
        (folder,) = strict.scratch.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert strict.is_well()
    assert not list(strict.scratch.iterdir())  # stopped by a signal


def test_full_disk(world, tmp_path):
    """The kernel refuses to store more; the client is told, and the server lives."""
    keys = Keys(world.keys)
    with serving(world.bundle, tmp_path / "a", largest_file=5_000_000) as small:
        path = small.open(keys)
        good = (world.keys / "evaluation.keys").read_bytes()
        assert small.http.put(f"{path}/keys/0", content=good[: 4 << 20]).status_code == 200
        refused(small.http.put(f"{path}/keys/{4 << 20}", content=good[4 << 20 : 8 << 20]), 507, "cannot store keys")
        assert small.http.get(path).json()["received"] == 4 << 20
        assert small.http.delete(path).status_code == 204
        assert small.is_well()


def test_room_is_asked_for_before_keys_come(world, tmp_path, monkeypatch):
    store = sessions.Store(
        load_bundle(world.bundle), None, workers=1, holders=1, limits=sessions.Limits(), scratch=tmp_path
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(sessions.Refused) as error:
        store.open(0, client=store.client.hash, size=1000)
    assert error.value.status == 507
    store.stop()


def test_sessions_are_shared_out(world, tmp_path):
    """One client's token cannot take the sessions of another's."""
    limits = sessions.Limits(sessions=2)
    store = sessions.Store(load_bundle(world.bundle), None, workers=1, holders=2, limits=limits, scratch=tmp_path)
    first = store.open(0, client=store.client.hash, size=1000)
    with pytest.raises(sessions.Refused) as error:
        store.open(0, client=store.client.hash, size=1000)
    assert error.value.status == 429
    store.open(1, client=store.client.hash, size=1000)
    store.end(first)
    store.open(0, client=store.client.hash, size=1000)
    store.stop()
    assert not list(tmp_path.iterdir())


def test_slow_bodies(monkeypatch):
    """A client that never gets to the end is not waited for."""
    from starlette.requests import Request as Incoming

    monkeypatch.setattr(endpoints, "BODY_SECONDS", 0.1)

    async def never():
        await asyncio.sleep(60)

    with pytest.raises(sessions.Refused) as error:
        asyncio.run(endpoints._body(Incoming({"type": "http", "headers": []}, never), 10))
    assert error.value.status == 408


def test_what_a_killed_server_left_is_deleted(tmp_path):
    left = tmp_path / f"{sessions.PREFIX}abc"
    left.mkdir()
    (left / "lock").touch()
    (left / "1.keys").touch()
    folder, lock = sessions._own_folder(tmp_path)
    other, second = sessions._own_folder(tmp_path)  # the first one is in use
    assert sorted(tmp_path.iterdir()) == sorted([folder, other])
    lock.close()
    second.close()


def test_addresses(world, tmp_path):
    """Others are let in, and sent to, with a token and TLS alone."""
    token = tmp_path / "token"
    with refuses("host"):
        serve(world.bundle, host="0.0.0.0")
    with refuses("host"):
        serve(world.bundle, host="::", token_file=token)
    assert not token.exists()
    with refuses("certificate"):
        serve(world.bundle, host="0.0.0.0", token_file=token, certificate=world.section)
    with socket.create_server(("127.0.0.1", 0)) as taken, refuses("host"):
        serve(world.bundle, port=taken.getsockname()[1], token_file=token)
    assert token.stat().st_mode & 0o777 == 0o600
    with refuses("server"):
        Server("http://192.0.2.1:8423", token)
    Server("http://192.0.2.1:8423", token, insecure_http=True)
    for wrong in ("ftp://x", "localhost:8423", "http://", "http://x:y"):
        with refuses("server"):
            Server(wrong, token)
    with Server("http://127.0.0.1:9", token) as nobody, pytest.raises(InputError, match="cannot be reached"):
        nobody.ask("GET", "/", most=10, patient=False)


def test_token_files(tmp_path):
    path = tmp_path / "token"
    assert len(read_tokens(path, make=True)[0]) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_tokens(path, make=True) == read_tokens(path)
    path.chmod(0o640)
    with refuses("mode"):
        read_tokens(path)
    path.chmod(0o600)
    path.write_text("password\n")
    with refuses("token") as error:
        read_tokens(path)
    assert "password" not in str(error.value)
    with refuses(None, file=tmp_path / "none"):
        read_tokens(tmp_path / "none")


@pytest.mark.slow
def test_send_to_a_head(world, section, tmp_path):
    """Features are computed here, several spots share a ciphertext."""
    compile_model(world.head, tmp_path / "head")
    predict_section(world.head, section, tmp_path / "clear.h5ad")
    with serving(tmp_path / "head", tmp_path / "a") as server:
        sent = send_section(
            section, server=server.address, token_file=server.token_file, keys=tmp_path / "keys",
            output=tmp_path / "p.h5ad", noise=0,
        )  # fmt: skip
    clear, found = anndata.read_h5ad(tmp_path / "clear.h5ad"), anndata.read_h5ad(tmp_path / "p.h5ad")
    assert list(clear.obs_names) == list(found.obs_names)
    assert 0 < np.abs(clear.X - found.X).max() < 1e-2 * clear.X.std()
    assert sent.spots == len(found)
