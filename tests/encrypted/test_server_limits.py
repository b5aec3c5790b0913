"""What a server allows and keeps: quotas, expiry, disk, slow clients, addresses, tokens."""

import asyncio
import shutil
import socket
import subprocess

import anndata
import numpy as np
import pytest
from tests.encrypted.serving import refused, refuses, serving, wait_for
from typer.testing import CliRunner

from histocrypt.cli import app as cli
from histocrypt.encrypted import sessions
from histocrypt.encrypted.bundle import load_bundle, load_client
from histocrypt.encrypted.client import send_section
from histocrypt.encrypted.compile import compile_model
from histocrypt.encrypted.evaluator import Model
from histocrypt.encrypted.extraction import extraction, spots_to_take
from histocrypt.encrypted.key_owner import Keys
from histocrypt.encrypted.remote import Server
from histocrypt.encrypted.server import serve
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.http import bodies
from histocrypt.http.access import add_token, check_certificate, choose_token, read_tokens
from histocrypt.pipeline.predict import predict_section
from histocrypt.scratch import SERVER, own_folder


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
    options += ["--spots", "3", "--per-minute", "2", "--idle-minutes", "0.04"]
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
        Model(load_bundle(world.bundle)), workers=1, clients=["a"], limits=sessions.Limits(), scratch=tmp_path
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(sessions.Refused) as error:
        store.open("a", client=load_client(world.bundle).hash, size=1000)
    assert error.value.status == 507
    store.stop()


def test_large_messages_lie_in_a_private_file(world, tmp_path, monkeypatch):
    """While they come and are evaluated; not at all where the disk has no room for them."""
    how = {"workers": 1, "clients": ["a"], "limits": sessions.Limits(), "scratch": tmp_path}
    store = sessions.Store(Model(load_bundle(world.bundle)), **how)
    hosted = store.open("a", client=load_client(world.bundle).hash, size=1000)
    monkeypatch.setattr(sessions, "IN_MEMORY", 100)
    monkeypatch.setattr(sessions, "WRITTEN_AT_ONCE", 30)
    before = set(store.folder.iterdir())

    async def parts(count):
        for number in range(count):
            yield bytes([number]) * 10

    async def take(count):
        async with store._message(hosted, parts(count)) as data:
            if isinstance(data, bytes):
                return data
            assert set(store.folder.iterdir()) == before | {data}
            assert data.stat().st_mode & 0o777 == 0o600
            return data.read_bytes()

    for count in (10, 11, 25):
        assert asyncio.run(take(count)) == b"".join(bytes([number]) * 10 for number in range(count))
        assert set(store.folder.iterdir()) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    assert len(asyncio.run(take(10))) == 100
    with pytest.raises(sessions.Refused) as error:
        asyncio.run(take(11))
    assert error.value.status == 507
    assert error.value.retry_after
    assert set(store.folder.iterdir()) == before
    store.stop()


def test_quotas_count_spots(world, tmp_path):
    """A message counts for all of its places; a client's minute is its own, whatever the session."""
    how = {"workers": 1, "clients": ["a", "b"], "scratch": tmp_path}
    store = sessions.Store(Model(load_bundle(world.bundle)), limits=sessions.Limits(4, 16, 24), **how)
    first, second, other = (
        store.open(name, client=load_client(world.bundle).hash, size=1000) for name in ("a", "a", "b")
    )
    for hosted in (first, second, other):
        hosted.state = "ready"
    store._admit(first, 8)
    store._admit(first, 8)
    with pytest.raises(sessions.Refused) as error:
        store._admit(first, 8)
    assert (error.value.status, first.sent) == (403, 16)
    store._admit(second, 8)
    with pytest.raises(sessions.Refused) as error:
        store._admit(second, 8)
    assert error.value.status == 429
    assert 0 < error.value.retry_after <= 61
    store._admit(other, 8)
    store.stop()


def test_a_quota_below_one_message_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Client, "places", 512)
    for limits, field in ((sessions.Limits(spots=511), "--spots"), (sessions.Limits(per_minute=511), "--per-minute")):
        with refuses(field):
            serve(world.bundle, token_file=tmp_path / "token", limits=limits)


def test_what_can_be_taken_by_asking(world, tmp_path):
    """Said of a linear head with the number; of other networks none is known."""
    compile_model(world.head, tmp_path / "head")
    head, network = load_client(tmp_path / "head"), load_client(world.bundle)
    assert spots_to_take(network) is None
    features = head.about["input"]["shape"][0]
    assert spots_to_take(head) == features + 1
    assert f"{features + 1:,} spots" in extraction(head)
    assert f"{features + 1:,} spots" in (tmp_path / "head" / "card.md").read_text()
    assert "copy" in extraction(network)


def test_sessions_are_shared_out(world, tmp_path):
    """One client's token cannot take the sessions of another's."""
    limits = sessions.Limits(sessions=2)
    store = sessions.Store(
        Model(load_bundle(world.bundle)), workers=1, clients=["a", "b"], limits=limits, scratch=tmp_path
    )
    first = store.open("a", client=load_client(world.bundle).hash, size=1000)
    with pytest.raises(sessions.Refused) as error:
        store.open("a", client=load_client(world.bundle).hash, size=1000)
    assert error.value.status == 429
    store.open("b", client=load_client(world.bundle).hash, size=1000)
    store.end(first)
    store.open("a", client=load_client(world.bundle).hash, size=1000)
    store.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [[], [b"x"] * 3])
def test_slow_bodies(monkeypatch, parts):
    """A client that never gets to the end is not waited for, and each byte buys little time."""
    from starlette.requests import Request as Incoming

    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.1)
    left = list(parts)

    async def never():
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": True}
        await asyncio.sleep(60)

    async def read():
        return [part async for part in bodies.parts(Incoming({"type": "http", "headers": []}, never), 10)]

    with pytest.raises(sessions.Refused) as error:
        asyncio.run(read())
    assert error.value.status == 408


def test_what_a_killed_server_left_is_deleted(tmp_path):
    left = tmp_path / f"{SERVER}abc"
    left.mkdir()
    (left / "lock").touch()
    (left / "1.keys").touch()
    folder, lock = own_folder(tmp_path, SERVER)
    other, second = own_folder(tmp_path, SERVER)  # the first one is in use
    assert sorted(tmp_path.iterdir()) == sorted([folder, other])
    lock.release()
    second.release()


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
    assert len(read_tokens(path, make=True)["client"]) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("# Tokens of")
    assert read_tokens(path, make=True) == read_tokens(path)
    path.chmod(0o640)
    with refuses("mode"):
        read_tokens(path)
    path.chmod(0o600)
    with refuses(None, file=tmp_path / "none"):
        read_tokens(tmp_path / "none")
    first, second = "a" * 30, "b" * 30
    path.write_text(f"# two\nhospital-a {first}\n\n{second}\n")
    assert read_tokens(path) == {"hospital-a": first, "2": second}
    for wrong, field in (
        ("password\n", "token"),
        ("hospital-a password\n", "token"),
        (f"hospital/a {first}\n", "token"),
        (f"hospital a {first}\n", "token"),
        ("# none\n", "token"),
        (f"x {first}\nx {second}\n", "x"),
        (f"x {first}\ny {first}\n", "y"),
        (f"2 {first}\n{second}\n", "2"),
    ):
        path.write_text(wrong)
        with refuses(field) as error:
            read_tokens(path)
        assert not any(secret in str(error.value) for secret in ("password", first, second))


def test_which_token_is_sent(tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("a " + "a" * 30 + "\n")
    assert choose_token(path, None) == choose_token(path, "a") == "a" * 30
    path.write_text("a " + "a" * 30 + "\nb " + "b" * 30 + "\n")
    assert choose_token(path, "b") == "b" * 30
    for name in (None, "c"):
        with refuses("--client", file=path):
            choose_token(path, name)


def test_a_token_for_a_new_client(tmp_path):
    """The command writes the client's own file; neither file is lost, read by others, or shown."""
    path, own = tmp_path / "token", tmp_path / "hospital-a.token"
    read_tokens(path, make=True)
    run = CliRunner().invoke(cli, ["fhe", "token", "hospital-a", "--token-file", str(path)])
    assert run.exit_code == 0, run.output
    tokens = read_tokens(path)
    assert list(tokens) == ["client", "hospital-a"]
    assert read_tokens(own) == {"hospital-a": tokens["hospital-a"]}
    assert {file.stat().st_mode & 0o777 for file in (path, own)} == {0o600}
    assert tokens["client"] not in own.read_text()
    assert tokens["hospital-a"] not in run.output
    before = path.read_bytes(), own.read_bytes()
    with refuses("NAME"):
        add_token("hospital-a", path, tmp_path / "other")
    with refuses("NAME"):
        add_token("../x", path)
    with refuses(None, file=own):
        add_token("hospital-b", path, own)
    assert (path.read_bytes(), own.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == sorted([path, own])
    add_token("hospital-b", tmp_path / "new" / "token")
    assert list(read_tokens(tmp_path / "new" / "token")) == ["hospital-b"]


def test_a_private_key_that_others_can_read(certificate, tmp_path):
    key = tmp_path / "key.pem"
    shutil.copy(certificate[1], key)
    key.chmod(0o640)
    with refuses("mode", file=key):
        check_certificate(certificate[0], key)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())
    both.chmod(0o644)
    with refuses("mode", file=both):
        check_certificate(both, None)
    key.chmod(0o600)
    check_certificate(certificate[0], key)


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
