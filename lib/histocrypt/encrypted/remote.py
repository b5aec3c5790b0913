"""``histocrypt fhe send``: a section's prediction from a server that sees ciphertexts alone.

Everything in the clear happens here. Ciphertexts are made while earlier ones are evaluated, and results are decrypted
as they come, so that a few of them are held at a time, and none on disk. The server is not trusted to answer sensibly.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histocrypt.atomic import write_json
from histocrypt.encrypted import messages
from histocrypt.encrypted.connection import Server, Session
from histocrypt.encrypted.inputs import prepare
from histocrypt.encrypted.key_owner import Keys, keygen
from histocrypt.encrypted.request import NOISE, Answers, Request, check_output, write_result
from histocrypt.errors import InputError


@dataclass
class Sent:
    """What `send_section` did."""

    sentence: str = ""
    spots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: prepare, keys, upload, encrypt, decrypt, write; evaluate is the rest, waiting for the server."""
    bytes_up: int = 0
    bytes_down: int = 0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        return (
            f"{self.sentence}\n{sum(self.seconds.values()):.1f} s ({stages}); "
            f"{self.bytes_up / 2**20:.0f} MiB up, {self.bytes_down / 2**20:.0f} MiB down"
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def send_section(
    section: str | Path,
    *,
    server: str,
    token_file: str | Path,
    keys: str | Path,
    output: str | Path,
    certificate_authority: Path | None = None,
    insecure_http: bool = False,
    noise: float = NOISE,
    **how: Any,
) -> Sent:
    """Predict a section on a server without showing it a pixel.

    Parameters
    ----------
    section
        In any readable format.
    server
        Its address, ``https://host[:port]``; ``http://`` for this machine only, unless ``insecure_http``.
    token_file
        Holds the server's token.
    keys
        The key owner's folder; keys are made where there are none.
    output
        Predictions are written here (``.h5ad``), as `key_owner.decrypt_response` does.
    certificate_authority
        PEM file with the certificate that the server's own is signed by; the usual authorities if not given.
    noise
        See `key_owner.decrypt_response`.
    how
        Goes to `inputs.prepare`, which refuses a section before any key is made.

    Raises
    ------
    InputError
        With the server's sentence where it refuses, or this side's where the section, the keys, the answers or the
        connection are not sound. The session on the server is ended in any case.
    """
    output, done, folder = check_output(output), Sent(), Path(keys)
    with Server(server, token_file, authority=certificate_authority, insecure_http=insecure_http) as remote:
        offered = remote.client()
        opened = Keys(folder) if (folder / "secret.key").is_file() else None
        if opened and opened.client.hash != offered.hash:
            msg = "were made for another compiled model than the one that this server offers"
            raise InputError(msg, file=keys, value=opened.client.hash, expected=offered.hash, fix="use another folder")
        with done.stage("prepare"):
            prepared = prepare(offered, section, **how)
        if opened is None:
            with done.stage("keys"), tempfile.TemporaryDirectory(prefix="histocrypt-") as temporary:
                public = Path(temporary) / "client.json"
                write_json(public, remote.public)
                print(keygen(public, folder), file=sys.stderr)
            opened = Keys(folder)
        request = Request.of(prepared, opened.client, opened.bound)
        answers = Answers(request, opened.decryptor())
        started = time.monotonic()
        with remote.session(opened) as session:
            done.seconds["upload"] = time.monotonic() - started
            _exchange(request, prepared.values, answers, session, opened, done)
        values = answers.values(file=server)
        done.bytes_up, done.bytes_down = remote.bytes_up, remote.bytes_down
    with done.stage("write"):
        done.sentence = write_result(output, values, request, noise=noise)
    done.spots = len(prepared.names)
    return done


def _exchange(request: Request, values: Any, answers: Answers, session: Session, keys: Keys, done: Sent) -> None:
    """Encrypt, send, fetch and decrypt all spots of a request, a few at a time."""
    from tqdm.auto import tqdm

    encryptor = keys.encryptor()
    under_way: dict[Future[bytes], int] = {}
    with (
        ThreadPoolExecutor(session.in_flight) as pool,
        tqdm(total=request.batches, desc="evaluating", unit="ciphertext") as bar,
    ):
        try:
            for index in range(request.batches + 1):
                if index < request.batches:
                    with done.stage("encrypt"):
                        payload = request.encrypt(index, values, encryptor)
                        data = messages.pack("input", payload, **request.place(index))
                    under_way[pool.submit(session.evaluate, request, index, data, answers.most_bytes)] = index
                while len(under_way) > (session.in_flight if index < request.batches else 0):
                    with done.stage("evaluate"):
                        ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for job in ready:
                        place = under_way.pop(job)
                        with done.stage("decrypt"):
                            file = f"{session.server.address} ciphertext {place}"
                            result = messages.unpack(job.result(), file=file, kind="output", **request.place(place))
                            answers.add(place, result, file=file)
                        bar.update()
        except BaseException:
            session.server.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
