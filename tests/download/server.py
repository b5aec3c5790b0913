"""A real HTTP server on this machine that can misbehave in the ways that servers do."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """One file and how it is served; a test may change it between requests."""

    content: bytes
    etag: bool = True
    modified: str = ""
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is honoured."""
    length: bool = True
    drops: list[int] = field(default_factory=list)
    """For the next requests: after how many bytes of the answer the connection breaks."""
    statuses: list[int] = field(default_factory=list)
    """For the next requests: answers instead of the file."""
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    """Seconds of silence after half of the answer."""
    trickle: float = 0.0
    """Seconds between bytes."""
    redirect: str = ""
    needs_token: str = ""
    methods: tuple[str, ...] = ("GET", "HEAD")


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path and remembers ``requests``: method, path, headers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.scheme = "http"

    def handle_error(self, request, client_address) -> None:
        """Keep quiet about clients that left."""

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_address[1]}{path}"

    def add(self, path: str, content: bytes, **how) -> Served:
        self.files[path] = Served(content, **how)
        return self.files[path]

    def asked(self, path: str, method: str = "GET") -> list[dict[str, str]]:
        return [headers for verb, place, headers in self.requests if place == path and verb == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes = b"") -> None:
        headers = {name.title(): value for name, value in self.headers.items()} | (
            {"Body": body.decode()} if body else {}
        )
        self.server.requests.append((self.command, self.path, headers))
        file = self.server.files.get(self.path)
        if file is None or self.command not in file.methods:
            return self._empty(404)
        if file.needs_token and headers.get("Authorization") != f"Bearer {file.needs_token}":
            return self._empty(401)
        if file.redirect:
            return self._empty(302, {"Location": file.redirect})
        if self.command == "GET" and file.statuses:
            return self._empty(file.statuses.pop(0), file.headers)
        return self._send(file, headers)

    def _send(self, file: Served, headers: dict[str, str]) -> None:
        content, status, first = file.content, 200, 0
        etag = f'"{hashlib.md5(content).hexdigest()}"' if file.etag else ""
        wanted = re.match(r"bytes=(\d+)-", headers.get("Range", ""))
        if wanted and file.ranges and self.command == "GET":
            same = headers.get("If-Range", etag) in {etag, file.modified} or not file.if_range
            if same and int(wanted[1]) >= len(content):
                return self._empty(416, {"Content-Range": f"bytes */{len(content)}"})
            if same:
                status, first = 206, int(wanted[1])
        answer = content[first:]
        self.send_response(status)
        if file.length:
            self.send_header("Content-Length", str(len(answer)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        if etag:
            self.send_header("ETag", etag)
        if file.modified:
            self.send_header("Last-Modified", file.modified)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        for name, value in file.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self._body(file, answer)

    def _body(self, file: Served, answer: bytes) -> None:
        if file.drops:
            self.wfile.write(answer[: file.drops.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        if file.stall:
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            time.sleep(file.stall)
            answer = answer[len(answer) // 2 :]
        if file.trickle:
            for byte in answer:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(file.trickle)
            return
        self.wfile.write(answer)

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def running(certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """Run a server, over TLS where a certificate and its key are given."""
    server = Server()
    if certificate is not None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
