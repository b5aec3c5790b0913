"""How `send` has a bootstrapped network evaluate: keys of 7 GiB once, then tiles, then asking until answers are there.

The session is not ended before all answers came, whatever stops this side: the next call takes it up where it was.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import httpx

from histocrypt.encrypted import messages
from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.encrypted.client import Sent, Way
    from histocrypt.encrypted.prepare import Prepared
    from histocrypt.encrypted.remote import Server, Session
    from histocrypt.encrypted.single import Client

CHUNK = 4 << 20
"""Bytes of keys in one request to a session that an earlier call opened."""
PATIENCE = 900.0
"""Seconds for which a server that is gone is asked again."""
POLL_SECONDS = 5.0


def price(remote: Server, model: Client, spots: int) -> str:
    """Return what so many spots will cost, said before a key is made; `InputError` where the server takes fewer."""
    count = 2 * spots  # each twice
    answer = remote.json("GET", "/v1/cost", params={"of": count})
    minutes, gib, jobs = (answer.get(key) for key in ("minutes", "gib", "jobs"))
    if not (isinstance(minutes, int | float) and isinstance(gib, int | float) and isinstance(jobs, int)):
        raise remote.strange("/v1/cost")
    keys, tiles = model.evaluation_key_bytes() / 2**30, count * model.input_bytes / 2**20
    return (
        f"{spots} spots, each sent twice: {keys:.1f} GiB of keys and {tiles:.0f} MiB of tiles go up, and keys take as "
        f"much disk on both sides; about {minutes:.0f} min on the server's two idle cores and up to {gib:.1f} "
        f"GiB of its memory, after {jobs} jobs before it. Stopped, the same call goes on where it was"
    )


def exchange_by_job(remote: Server, way: Way, prepared: Prepared, done: Sent) -> None:
    """Have all missing messages of a request evaluated, in the session of an earlier call if there is one."""
    note, keys = way.keys.folder / "session", way.keys.folder / "evaluation.keys"
    with done.stage("upload"):
        session, size, chunk = remote.resume(note), keys.stat().st_size, CHUNK
        if way.missing:
            if session is None:
                session, size, chunk = remote.open(way.keys, remember=note, count=way.request.batches)
            session.upload(keys, size, chunk)
    if way.missing:
        _send_tiles(session, way, prepared, done)
        with done.stage("evaluate"):
            _fetch(session, way)
    if session is not None:
        session.end(note)


def _where(session: Session, way: Way) -> tuple[str, dict[str, int]]:
    return f"{session.path}/requests/{way.request.name}", {"of": way.request.batches}


def _send_tiles(session: Session, way: Way, prepared: Prepared, done: Sent) -> None:
    """Send the messages that are missing on both sides, and have them evaluated."""
    from tqdm.auto import tqdm

    where, of = _where(session, way)
    there = session.server.json("GET", where, params=of).get("there")
    if not isinstance(there, list):
        raise session.server.strange(where)
    encryptor = way.keys.encryptor()
    for index in tqdm([index for index in way.missing if index not in there], desc="sending tiles", unit="message"):
        with done.stage("encrypt"):
            path = way.encrypt(index, prepared, encryptor)
        session.evaluate(way.request, index, path, way.keys.client.most_output_bytes)
    session.server.json("POST", where, params=of)


def _fetch(session: Session, way: Way) -> None:
    """Ask for one answer after the other until all are there; a server that is gone is waited for."""
    from tqdm.auto import tqdm

    where, of = _where(session, way)
    batches, most, heard = way.request.batches, way.keys.client.most_output_bytes, time.monotonic()
    with tqdm(total=batches, initial=batches - len(way.missing), desc="evaluating", unit="message") as bar:
        for index in way.missing:
            while True:
                try:
                    body = session.server.ask("GET", f"{where}/{index}", most=most, params=of)
                except InputError as error:
                    gone = isinstance(error.__cause__, httpx.RequestError)
                    if not gone or time.monotonic() - heard > PATIENCE:
                        raise
                    continue
                heard = time.monotonic()
                if body.startswith(messages.MAGIC):
                    way.take(index, body, file=f"{session.server.address} message {index}")
                    bar.update()
                    break
                bar.set_postfix_str(_progress(session, where, body))
                time.sleep(POLL_SECONDS)


def _progress(session: Session, where: str, body: bytes) -> str:
    try:
        return str(json.loads(body)["progress"])[:80]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise session.server.strange(where) from error
