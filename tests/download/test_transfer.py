"""One file from a server that drops, stalls, lies, forgets and changes its mind."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.download.server import running
from tests.small_study import environment, interruptible

from histocrypt.download.transfer import RemoteFile, Web, confined, fetch, left_to_fetch, need_space
from histocrypt.errors import InputError
from histocrypt.files import check_sums, digest_of

CONTENT = np.random.default_rng(0).bytes(700_000)
OTHER = np.random.default_rng(1).bytes(700_000)


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def remote(server, *, digest=True, size=None, path="/f.bin"):
    return RemoteFile(server.url(path), "f.bin", size, sha256(CONTENT) if digest is True else digest or None)


def partial_bytes(folder):
    path = folder / "f.bin.partial"
    return path.stat().st_size if path.exists() else 0


def test_plain(server, web, tmp_path):
    server.add("/f.bin", CONTENT)
    file = remote(server)
    found = fetch(web, file, tmp_path)
    assert (found.how, found.checked) == ("fetched", "sha256 as published")
    assert found.path.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f.bin"]
    assert fetch(web, file, tmp_path).how == "present"
    assert len(server.asked("/f.bin")) == 1


def test_checksum_is_written_where_none_is_published(server, web, tmp_path):
    server.add("/f.bin", CONTENT)
    file = remote(server, digest=None)
    assert fetch(web, file, tmp_path).checked == "none published: its SHA-256 is now written beside it"
    assert (tmp_path / "f.bin.sha256").read_text() == f"{sha256(CONTENT)[7:]}  f.bin\n"
    assert check_sums(tmp_path) == {"f.bin": "good"}
    again = fetch(web, file, tmp_path)
    assert (again.how, again.checked) == ("present", "sha256 as written beside it by the first download")
    (tmp_path / "f.bin").write_bytes(OTHER)  # somebody changed it
    assert check_sums(tmp_path) == {"f.bin": "differs"}
    with pytest.raises(InputError) as caught:
        fetch(web, file, tmp_path)
    assert caught.value.file == tmp_path / "f.bin"
    assert (tmp_path / "f.bin").read_bytes() == OTHER
    assert fetch(web, file, tmp_path, overwrite=True).how == "fetched"
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5", "git"])
def test_kinds_of_checksum(kind, server, web, tmp_path):
    server.add("/f.bin", CONTENT)
    (tmp_path / "same").write_bytes(CONTENT)
    value = digest_of(tmp_path / "same", kind)
    if kind == "git" and shutil.which("git"):
        own = subprocess.run(["git", "hash-object", tmp_path / "same"], capture_output=True, text=True, check=True)
        assert own.stdout.strip() == value
    assert fetch(web, remote(server, digest=f"{kind}:{value}"), tmp_path).checked == f"{kind} as published"


def test_a_dropped_connection_is_resumed(server, web, tmp_path):
    server.add("/f.bin", CONTENT, drops=[100_000, 200_000])
    found = fetch(web, remote(server, digest=None), tmp_path)
    assert found.how == "resumed"
    assert found.path.read_bytes() == CONTENT
    first, second, third = server.asked("/f.bin")
    assert "Range" not in first
    assert (second["Range"], third["Range"]) == ("bytes=100000-", "bytes=300000-")
    assert second["If-Range"].startswith('"')
    assert second["Accept-Encoding"] == "identity"


def test_drops_without_progress_end_and_a_later_call_goes_on(server, web, waits, tmp_path):
    served = server.add("/f.bin", CONTENT, drops=[300_000, 0, 0, 0, 0, 0])
    with pytest.raises(InputError, match=r" 3 times; .* 300\.0 kB"):
        fetch(web, remote(server), tmp_path)
    assert partial_bytes(tmp_path) == 300_000
    assert waits == sorted(waits)
    assert len(waits) == 3  # the first attempt brought something, so that attempts were counted anew
    served.drops.clear()
    assert fetch(web, remote(server), tmp_path).how == "resumed"
    assert server.asked("/f.bin")[-1]["Range"] == "bytes=300000-"
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_dates_serve_where_there_is_no_etag(server, web, tmp_path):
    server.add("/f.bin", CONTENT, drops=[100_000], etag=False, modified="Wed, 21 Oct 2015 07:28:00 GMT")
    fetch(web, remote(server, digest=None), tmp_path)
    assert server.asked("/f.bin")[1]["If-Range"] == "Wed, 21 Oct 2015 07:28:00 GMT"
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_nothing_to_tell_the_file_by_begins_anew(server, web, tmp_path):
    server.add("/f.bin", CONTENT, drops=[100_000], etag=False)
    fetch(web, remote(server, digest=None), tmp_path)
    assert "Range" not in server.asked("/f.bin")[1]
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_a_server_without_ranges(server, web, tmp_path):
    server.add("/f.bin", CONTENT, drops=[100_000, 200_000], ranges=False)
    found = fetch(web, remote(server), tmp_path)
    assert (found.how, found.path.read_bytes()) == ("fetched", CONTENT)


def test_a_server_that_tells_no_length(server, web, tmp_path):
    server.add("/f.bin", CONTENT, length=False, drops=[100_000])
    assert fetch(web, remote(server, size=len(CONTENT)), tmp_path).path.read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False])
def test_the_file_changes_between_attempts(if_range, server, web, tmp_path):
    """What came of the old file is thrown away, whether the server heeds If-Range or only shows another ETag."""
    served = server.add("/f.bin", OTHER, drops=[300_000, 0, 0, 0], if_range=if_range)
    file = remote(server, digest=None)
    with pytest.raises(InputError):
        fetch(web, file, tmp_path)
    served.content, served.drops = CONTENT, []
    assert fetch(web, file, tmp_path).path.read_bytes() == CONTENT


def test_a_change_that_only_the_checksum_shows(server, web, tmp_path):
    served = server.add("/f.bin", OTHER, drops=[300_000, 0, 0, 0], etag=False)
    with pytest.raises(InputError):
        fetch(web, remote(server), tmp_path)
    served.content, served.drops = CONTENT, []
    assert fetch(web, remote(server), tmp_path).path.read_bytes() == CONTENT
    assert [("Range" in headers) for headers in server.asked("/f.bin")[-2:]] == [True, False]


def test_all_had_come_before(server, web, tmp_path):
    """The last byte came, then the process died: the server has nothing to add."""
    served = server.add("/f.bin", CONTENT, drops=[300_000, 0, 0, 0])
    with pytest.raises(InputError):
        fetch(web, remote(server), tmp_path)
    (tmp_path / "f.bin.partial").write_bytes(CONTENT)
    served.drops.clear()
    assert fetch(web, remote(server), tmp_path).how == "resumed"
    assert server.asked("/f.bin")[-1]["Range"] == f"bytes={len(CONTENT)}-"


def test_wrong_checksum_is_deleted_and_said(server, web, tmp_path):
    server.add("/f.bin", OTHER)
    with pytest.raises(InputError, match="has the wrong checksum, twice; what came was deleted") as caught:
        fetch(web, remote(server), tmp_path)
    assert sha256(CONTENT) in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert len(server.asked("/f.bin")) == 2


def test_an_error_in_place_of_the_file(server, web, tmp_path):
    """Some hosts answer 200 and an error text: the published size tells."""
    server.add("/f.bin", b'{"error": "busy"}')
    with pytest.raises(InputError, match="offers 17 bytes where 700000 are published, 3 times"):
        fetch(web, remote(server, size=700_000), tmp_path)
    assert partial_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "404"), (401, "401"),
     (403, "403"), (418, "418")],
)  # fmt: skip
def test_refusals(status, words, server, web, tmp_path):
    server.add("/f.bin", CONTENT, statuses=[status])
    with pytest.raises(InputError, match=words) as caught:
        fetch(web, remote(server), tmp_path)
    assert str(caught.value).startswith(server.url("/f.bin"))
    assert len(server.asked("/f.bin")) == 1


def test_requests_used_up(server, web, tmp_path):
    server.add("/f.bin", CONTENT, statuses=[403], headers={"X-RateLimit-Remaining": "0"})
    with pytest.raises(InputError, match="allows no more requests for now .*try again in an hour"):
        fetch(web, remote(server), tmp_path)


def test_a_busy_server_is_waited_for(server, web, waits, tmp_path):
    server.add("/f.bin", CONTENT, statuses=[503, 500], headers={"Retry-After": "7"})
    fetch(web, remote(server), tmp_path)
    assert waits == [7, 7]


def test_a_busy_server_for_too_long(server, web, tmp_path):
    server.add("/f.bin", CONTENT, statuses=[503] * 9)
    with pytest.raises(InputError, match="503, 3 times"):
        fetch(web, remote(server), tmp_path)


def test_a_server_that_falls_silent(server, waits, tmp_path):
    server.add("/f.bin", CONTENT[:60_000], stall=30)
    with (
        Web(read_s=0.3, attempts=2, wait=waits.append) as web,
        pytest.raises(InputError, match=r"0\.3 s, 2 times"),
    ):
        fetch(web, remote(server), tmp_path)
    assert partial_bytes(tmp_path) > 25_000


def test_a_server_that_trickles(server, waits, tmp_path):
    server.add("/f.bin", CONTENT, trickle=0.01)
    with (
        Web(read_s=0.3, attempts=2, wait=waits.append) as web,
        pytest.raises(InputError, match=r"only \d+ bytes came in 0.3 s, 2 times; the first \d+ bytes are kept"),
    ):
        fetch(web, remote(server), tmp_path)


def test_nobody_there(web, tmp_path):
    with running() as gone:
        file = remote(gone)
    with pytest.raises(InputError, match="cannot be reached .*, 3 times"):
        fetch(web, file, tmp_path)


def test_no_space(tmp_path):
    file = RemoteFile("https://localhost/f.bin", "f.bin", 10**17)
    with pytest.raises(InputError, match=r"f\.bin.* 100000000\.0 GB.* GB"):
        need_space(tmp_path / "not" / "yet", left_to_fetch(file, tmp_path), file.path)


def test_the_disk_fills_up(server, tmp_path):
    """A real limit on the size of files: what came is kept, and said."""
    server.add("/f.bin", CONTENT)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from histocrypt.download.transfer import RemoteFile, fetch; from histocrypt.download.transfer import Web\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}))\n"
        f"fetch(Web(), RemoteFile({server.url('/f.bin')!r}, 'f.bin'), Path(sys.argv[1]), progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "InputError" in done.stderr
    assert "the disk is full; the first 200.0 kB are kept" in done.stderr
    assert partial_bytes(tmp_path) == 200_000


def test_one_process_at_a_time(server, web, tmp_path):
    import fcntl

    server.add("/f.bin", CONTENT)
    with (tmp_path / "f.bin.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being downloaded by another process"):
            fetch(web, remote(server), tmp_path)
    assert fetch(web, remote(server), tmp_path).how == "fetched"


def test_ctrl_c_keeps_what_came(server, tmp_path):
    served = server.add("/samples/1.1.0/V1_Human_Heart/V1_Human_Heart_filtered_feature_bc_matrix.h5", CONTENT, stall=60)
    command = [sys.executable, "-m", "histocrypt", "download", "visium", "V1_Human_Heart", "--to", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--mirror", server.url()],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    partial = tmp_path / "V1_Human_Heart" / "filtered_feature_bc_matrix.h5.partial"
    deadline = time.monotonic() + 600
    while not (partial.exists() and partial.stat().st_size >= len(CONTENT) // 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("histocrypt: ")
    assert "Traceback" not in said
    assert partial.stat().st_size == len(CONTENT) // 2
    assert json.loads(partial.with_name(f"{partial.name}.json").read_text())["etag"]
    served.stall = 0
    done = subprocess.run(
        [*command, "--mirror", server.url()], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert "resumed" in done.stdout
    assert done.returncode == 2  # the other files are not there
    assert "404" in done.stderr
    assert partial.with_suffix("").read_bytes() == CONTENT


def test_redirects_within_a_server(server, web, tmp_path):
    server.add("/f.bin", b"", redirect="/there.bin")
    server.add("/there.bin", CONTENT)
    assert fetch(web, remote(server), tmp_path).path.read_bytes() == CONTENT


def test_redirect_to_another_host_without_https(server, web, tmp_path):
    with running() as other:
        other.add("/f.bin", CONTENT)
        server.add("/f.bin", b"", redirect=other.url("/f.bin?signature=secret"))
        with pytest.raises(InputError, match="is redirected to another host without https") as caught:
            fetch(web, remote(server), tmp_path)
        assert "secret" not in str(caught.value)
        assert not other.requests


def test_circle_of_redirects(server, web, tmp_path):
    server.add("/f.bin", b"", redirect="/f.bin")
    with pytest.raises(InputError) as caught:
        fetch(web, remote(server), tmp_path)
    assert caught.value.file == server.url("/f.bin")


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate for localhost that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    return cert, key


def test_redirect_to_another_host_over_https_without_the_token(server, certificate, tmp_path):
    with running(certificate) as other, Web(token="hf_secret", token_host=server.url()) as web:
        other.add("/f.bin", CONTENT)
        server.add("/f.bin", b"", redirect=other.url("/f.bin", host="localhost"), needs_token="hf_secret")
        assert fetch(web, remote(server), tmp_path / "to").path.read_bytes() == CONTENT
        assert server.asked("/f.bin")[0]["Authorization"] == "Bearer hf_secret"
        assert "Authorization" not in other.asked("/f.bin")[0]


def test_a_certificate_of_nobody(certificate, web, monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE")
    with running(certificate) as other, Web(attempts=1, wait=lambda _: None) as plain:
        other.add("/f.bin", CONTENT)
        with pytest.raises(InputError, match="certificate verify failed"):
            fetch(plain, RemoteFile(other.url("/f.bin", host="localhost"), "f.bin"), tmp_path / "to")


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://example.org/f", "file:///etc/passwd", "nowhere"])
def test_plain_http_is_for_this_machine_only(url, web, tmp_path):
    with pytest.raises(InputError, match="address is not https"):
        fetch(web, RemoteFile(url, "f.bin"), tmp_path)


def test_addresses_that_are_none(server, web, tmp_path):
    with pytest.raises(InputError, match="https://host:port/f"):
        fetch(web, RemoteFile("https://host:port/f", "f.bin"), tmp_path)
    server.add("/f.bin", b"", redirect="https://host:port/f")
    with pytest.raises(InputError, match="Invalid URL in location header"):
        fetch(web, remote(server), tmp_path)


@pytest.mark.parametrize("name", ["../f", "/f", "a/../../f", "a\\..\\f", "C:/f", "", "a\0b"])
def test_names_stay_in_the_folder(name, tmp_path):
    with pytest.raises(InputError) as caught:
        confined(tmp_path, name)
    assert caught.value.value == name


def test_a_link_in_the_folder_is_not_followed_out(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "away").symlink_to(tmp_path)
    with pytest.raises(InputError) as caught:
        confined(tmp_path / "to", "away/f")
    assert caught.value.value == "away/f"


def test_a_folder_that_cannot_be_made(server, web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder cannot be written"):
        fetch(web, remote(server), tmp_path / "file" / "below")
