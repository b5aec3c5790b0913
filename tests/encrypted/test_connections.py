"""Connections that are silent, slow or too many: they go in seconds, and keep nobody out."""

import asyncio
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tests.encrypted.serving import serving, wait_for
from tests.encrypted.test_server_limits import certificate  # noqa: F401  a fixture

from histocrypt.encrypted import remote as sending
from histocrypt.errors import InputError
from histocrypt.http import guard as guards
from histocrypt.http.connections import Door

NO_TLS = ssl.create_default_context()
"""Made once: it takes longer than a request."""


def open_files(running) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def silent(running, count: int, says: bytes = b"") -> list[socket.socket]:
    lines = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(count)]
    for line in lines:
        line.sendall(says)
    return lines


def is_closed(line: socket.socket) -> bool:
    """Whether the other side has hung up; waits for it."""
    with suppress(ConnectionResetError):
        while data := line.recv(1 << 16):
            assert b" 200 " not in data
    return True


def breaks(line: socket.socket, data: bytes, *, pause: float) -> bool:
    """Whether the other side hangs up within a minute on who sends and sends."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            line.sendall(data)
        except OSError:
            return True
        time.sleep(pause)
    return False


def is_open(line: socket.socket) -> bool:
    line.settimeout(0)
    try:
        return line.recv(1) != b""
    except BlockingIOError:
        return True


def work(running, requests: int) -> list[int]:
    """What a client is told that opens a connection for each request."""
    found, how = [], {"base_url": running.address, "headers": running.http.headers, "timeout": 60}
    for _ in range(requests):
        with httpx.Client(**how, trust_env=False, verify=NO_TLS) as http:
            found.append(http.get("/v1/client").status_code)
    return found


def besieged(running, strangers: int, clients: int, requests: int) -> None:
    """Silent connections, before and while others work: all of these are served, and the silent ones are closed."""
    before = open_files(running)
    heads = (b"", b"GET /v1/client HTTP/1.1\r\nHost: x\r\n")
    with ExitStack() as stack:
        lines = [stack.enter_context(line) for head in heads for line in silent(running, strangers // 2, head)]
        with ThreadPoolExecutor(clients) as pool:
            told = list(pool.map(work, [running] * clients, [requests] * clients))
        assert told == [[200] * requests] * clients
        assert all(map(is_closed, lines))
    assert wait_for(lambda: open_files(running) <= before + 2)


def test_silent_connections_keep_nobody_out(running):
    besieged(running, strangers=120, clients=8, requests=2)


@pytest.mark.slow
def test_500_silent_and_50_working_clients(running):
    besieged(running, strangers=500, clients=50, requests=5)


def test_slow_heads_and_strangers_without_end(running):
    """A head that drips in, after a refusal too, and a body without end to where no token is asked for."""
    endless = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    (dripping,), (refusing,), (flooding,) = silent(running, 1), silent(running, 1), silent(running, 1, endless)
    refusing.sendall(b"GET /v1/client HTTP/1.1\r\nHost: x\r\n\r\n")
    with dripping, refusing, flooding:
        assert b" 401 " in refusing.recv(4096)
        assert is_closed(refusing)
        assert breaks(flooding, b"10000\r\n" + bytes(0x10000) + b"\r\n", pause=0)
        assert breaks(dripping, b"x", pause=0.3)


def test_silent_before_tls(world, certificate, tmp_path):  # noqa: F811
    """Handshakes that are never begun, or never ended, are closed too."""
    options = ["--certificate", certificate[0], "--private-key", certificate[1]]
    with serving(world.bundle, tmp_path / "a", *options) as running:
        context = ssl.create_default_context(cafile=str(certificate[0]))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        half = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with suppress(ssl.SSLWantReadError):
            half.do_handshake()
        lines = silent(running, 20) + silent(running, 20, outgoing.read())
        assert running.is_well()
        assert all(map(is_closed, lines))
        assert running.is_well()
        assert "Traceback" not in running.log.read_text()


def test_the_longest_waiting_of_the_largest_crowd_goes_first():
    """An address with many connections pays for them, not one with few."""
    with Door(socket.create_server(("127.0.0.1", 0)), most=3) as door, ExitStack() as stack:
        lines = []
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.3", "127.0.0.4"):
            line = socket.create_connection(door.getsockname(), source_address=(host, 0), timeout=10)
            lines.append(stack.enter_context(line))
            stack.enter_context(door.accept()[0])
        assert is_closed(lines[1])
        assert is_closed(lines[2])
        assert all(is_open(line) for line in (lines[0], lines[3], lines[4]))


def test_a_request_is_not_shut_while_it_is_answered():
    with Door(socket.create_server(("127.0.0.1", 0)), most=1) as door, ExitStack() as stack:
        line = stack.enter_context(socket.create_connection(door.getsockname(), timeout=10))
        accepted, address = door.accept()
        stack.enter_context(accepted)
        scope = {"client": address, "server": door.getsockname()}
        with door.request(scope):
            for _ in range(3):
                stack.enter_context(socket.create_connection(door.getsockname(), timeout=10))
                stack.enter_context(door.accept()[0])
            assert is_open(line)
            door.hang_up(scope)
            line.settimeout(10)
            assert line.recv(1) == b""


class Busy(BaseHTTPRequestHandler):
    """A server, or what stands before it, that is busy at first."""

    answers: list[tuple[int, str | None]]

    def do_GET(self):
        status, after = self.answers.pop(0) if self.answers else (200, None)
        body = json.dumps({"error": "Not now."} if status != 200 else {}).encode()
        self.send_response(status)
        if after is not None:
            self.send_header("Retry-After", after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask a server that gives these answers first; return how long was waited between them."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 30)

    def ask(*answers, **how):
        waits = []
        monkeypatch.setattr(sending.time, "sleep", waits.append)
        handler = type("Handler", (Busy,), {"answers": list(answers)})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as busy:
            threading.Thread(target=busy.serve_forever, daemon=True).start()
            try:
                with sending.Server(f"http://127.0.0.1:{busy.server_port}", token) as server:
                    server.ask("GET", "/", most=1000, **how)
            finally:
                busy.shutdown()
        return waits

    return ask


def test_busy_servers_are_waited_for(asked, capsys, monkeypatch):
    """As long as they say, or else a default; with a word, and not for ever."""
    answers = [(503, "7"), (503, None), (429, "Wed, 21 Oct 2026 07:28:00 GMT"), (507, "100000"), (503, "9" * 5000)]
    assert asked(*answers) == [7, sending.BUSY[503], sending.BUSY[429], sending.LONGEST_WAIT, sending.BUSY[503]]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Not now" in said
    assert f"{sending.PATIENCE / 60:.0f} min" in said
    monkeypatch.setattr(sending, "PATIENCE", 5.0)
    with pytest.raises(InputError, match=r"busy.*503.*Not now"):
        asked((503, "7"))
    with pytest.raises(InputError, match="refused .503"):
        asked((503, "1"), patient=False)


def test_an_answer_that_is_not_read(monkeypatch):
    """It goes out piece by piece, and the line is hung up where one is not taken."""
    sent, hung_up = [], []
    monkeypatch.setattr(guards, "PIECE_SECONDS", 0.05)
    monkeypatch.setattr(guards, "PIECE", 10)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 25})

    async def send(message):
        sent.append(message)
        await asyncio.sleep(60 if len(sent) == 4 else 0)

    with Door(socket.create_server(("127.0.0.1", 0))) as door:
        monkeypatch.setattr(door, "hang_up", hung_up.append)
        guard = guards.Guard(app, {"a": "secret"}, door)
        scope = {"type": "http", "path": "/", "headers": [(b"authorization", b"Bearer secret")]}
        scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
        asyncio.run(guard(scope, None, send))
    assert hung_up == [scope]
    assert [(len(one["body"]), one["more_body"]) for one in sent[1:]] == [(10, True), (10, True), (5, False)]
