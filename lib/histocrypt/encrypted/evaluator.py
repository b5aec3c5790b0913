"""The evaluator: applies a compiled network to ciphertexts. It holds no secret key."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Bundle, load_bundle
from histocrypt.encrypted.messages import check_ciphertext, check_evaluation_keys
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.machine import peak_gib

MOST_CIPHERTEXTS = 100_000
"""In a request: a client's number is not believed beyond what a section can have."""


class Session:
    """One client's evaluation keys on one compiled model; several ciphertexts at once.

    The encoded network is shared by all sessions and threads; every worker holds the client's keys once.

    Parameters
    ----------
    bundle
        The compiled model.
    model
        What `engine.load_model` gave for it.
    keys
        The client's evaluation keys.
    workers
        Ciphertexts evaluated at once.
    """

    def __init__(self, bundle: Bundle, model: Any, keys: Path, *, workers: int) -> None:
        client = bundle.client
        header, start = messages.open_message(keys, "evaluation keys", client=client.hash)
        expected = client.evaluation_key_bytes()
        if not 0.9 * expected < header["bytes"] < 1.1 * expected + (1 << 20):
            raise InputError(
                "has not the size of this model's evaluation keys",
                file=keys,
                field="bytes",
                value=header["bytes"],
                expected=f"about {expected}",
            )
        if client.parameters.bootstrapping is None:
            check_evaluation_keys(keys, client.parameters, client.rotations, start=start)
        self.key: str = str(header.get("key"))
        self._bundle, self._model = bundle, model
        self._free: queue.Queue[engine.Evaluator] = queue.Queue()
        self._all: list[engine.Evaluator] = []
        try:
            for _ in range(workers):
                self._all.append(engine.Evaluator(client.parameters, keys, start=start))
                self._free.put(self._all[-1])
        except RuntimeError as error:
            raise InputError(
                f"are no evaluation keys for these parameters ({' '.join(str(error).split())[:200]})",
                file=keys,
                fix="make keys again with this model's client part",
            ) from error
        self._moduli = [int(prime) for prime in client.about["moduli"]]

    @property
    def most_bytes(self) -> int:
        """The largest input message that is read."""
        client = self._bundle.client
        return client.input.ciphertexts * client.ciphertext_bytes(client.level) + messages.LONGEST_HEADER

    def evaluate(self, data: bytes, *, file: Any, **expected: Any) -> bytes:
        """Return the output message for an input message; see `messages.unpack` for ``expected``.

        Raises
        ------
        InputError
            If the message is damaged, not bound to this session, or not a ciphertext under its parameters.
        """
        client = self._bundle.client
        bound = {"client": client.hash, "key": self.key, **expected}
        payload = messages.unpack(data, file=file, kind="input", **bound)
        parts = messages.unpack_list(payload, count=client.input.ciphertexts, file=file)
        for part in parts:
            check_ciphertext(part, client.parameters, self._moduli, client.level, file=file)
        worker = self._free.get()
        try:
            outputs = worker(self._model, parts)
        except RuntimeError as error:
            raise InputError(f"cannot be evaluated ({' '.join(str(error).split())[:200]})", file=file) from error
        finally:
            self._free.put(worker)
        return messages.pack("output", messages.pack_list(outputs), **bound)

    def close(self) -> None:
        """Free the keys."""
        for worker in self._all:
            worker.close()


def evaluate_request(
    request: str | Path, bundle: str | Path, keys: str | Path, output: str | Path, *, workers: int | None = None
) -> str:
    """Evaluate all ciphertexts of a request folder; what is done already is kept.

    Parameters
    ----------
    request
        Folder that `encrypt_section` wrote.
    bundle
        The compiled model.
    keys
        The client's evaluation keys, a file.
    output
        The response folder.
    workers
        Ciphertexts evaluated at once; all cores if not given, fewer where memory is short.

    Raises
    ------
    InputError
        If a part is missing, damaged or belongs to something else. Results that were written are kept.
    """
    from tqdm.auto import tqdm

    request, output, keys = Path(request), Path(output), Path(keys)
    loaded = load_bundle(bundle)
    content = read_json(request / "request.json")
    content = content if isinstance(content, dict) else {}
    name, count = content.get("request"), content.get("of")
    if not isinstance(name, str) or not isinstance(count, int) or not 0 < count <= MOST_CIPHERTEXTS:
        raise InputError(
            "does not describe a request",
            file=request / "request.json",
            expected="what `histocrypt fhe encrypt` writes",
        )
    if content.get("client") != loaded.client.hash:
        raise InputError(
            "was made for another compiled model",
            file=request / "request.json",
            field="client",
            value=content.get("client"),
            expected=loaded.client.hash,
        )
    output.mkdir(parents=True, exist_ok=True)
    answer = {key: content.get(key) for key in ("client", "key", "request", "of")}
    if (output / "response.json").is_file() and read_json(output / "response.json") != answer:
        raise InputError(
            "holds the response to another request", file=output, field="response.json", fix="choose another folder"
        )
    write_json(output / "response.json", answer)
    bound = {"request": name, "of": count}
    pending = [index for index in range(count) if not _done(output / f"{index:05d}.ct", index, content)]
    if len(pending) < count:
        print(f"{count - len(pending)} of {count} ciphertexts were evaluated before and are kept", file=sys.stderr)
    if not pending:
        return f"{output}: all {count} ciphertexts were evaluated before"
    workers = min(workers_for(loaded, workers), len(pending))
    wanted = loaded.evaluation_bytes(workers)
    print(f"{workers} at once, about {wanted / 2**30:.1f} GiB of memory", file=sys.stderr)
    started = time.monotonic()
    session = Session(loaded, engine.load_model(loaded.model), keys, workers=workers)
    if session.key != content.get("key"):
        raise InputError(
            "these are another client's evaluation keys",
            file=keys,
            field="key",
            value=session.key,
            expected=str(content.get("key")),
        )
    loading, stop = time.monotonic() - started, threading.Event()

    def one(index: int) -> None:
        if stop.is_set():
            return
        path = request / f"{index:05d}.ct"
        data = messages.read_whole(path, most=session.most_bytes)
        result = session.evaluate(data, file=path, index=index, **bound)
        with _no_room(output):
            temporary = output / f".{index:05d}.partial"
            temporary.write_bytes(result)
            os.replace(temporary, output / f"{index:05d}.ct")

    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(one, index) for index in pending]
        try:
            for job in tqdm(jobs, desc="evaluating", unit="ciphertext"):
                job.result()
        except BaseException:
            stop.set()
            raise
    seconds = time.monotonic() - started
    session.close()
    cost = {
        "ciphertexts": len(pending),
        "workers": workers,
        "load_seconds": round(loading, 3),
        "seconds": round(seconds, 3),
        "stated_gib": round(wanted / 2**30, 3),
        "peak_gib": round(peak_gib() or 0.0, 3),
    }
    write_json(output / "cost.json", cost)
    return (
        f"{output}: {len(pending)} ciphertexts, loaded in {loading:.1f} s, evaluated in {seconds:.1f} s "
        f"({seconds / len(pending):.2f} s each, {workers} at once), peak {peak_gib() or 0.0:.2f} GiB"
    )


def workers_for(bundle: Bundle, wanted: int | None = None) -> int:
    """Return how many ciphertexts to evaluate at once: one per core, fewer where memory is short.

    Raises
    ------
    InputError
        If there is not memory enough for one.
    """
    import psutil

    from histocrypt.paths import threads

    workers = wanted or threads()
    free = psutil.virtual_memory().available
    while workers > 1 and bundle.evaluation_bytes(workers) > 0.9 * free:
        workers -= 1
    if bundle.evaluation_bytes(workers) > free:
        raise InputError(
            "this machine has too little memory to evaluate this model",
            file=bundle.folder,
            value=f"{free / 2**30:.1f} GiB free",
            expected=f"{bundle.evaluation_bytes(workers) / 2**30:.1f} GiB",
            fix="use a shallower network",
        )
    return workers


def _done(path: Path, index: int, content: dict[str, Any]) -> bool:
    """Whether a result is there and whole."""
    bound = {key: content.get(key) for key in ("client", "key", "request", "of")}
    try:
        messages.read_message(path, "output", index=index, **bound)
    except InputError:
        return False
    return True


@contextmanager
def _no_room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise InputError(
            f"a result cannot be written ({error.strerror})",
            file=folder,
            value=f"{free / 2**20:.0f} MiB free",
            fix="make room and run it again; what was done is kept",
        ) from error
