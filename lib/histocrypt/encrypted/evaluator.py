"""The evaluator: applies a compiled network to ciphertexts. It holds no secret key."""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answer_noise import AnswerNoise
from histocrypt.encrypted.bundle import Bundle, forms, load_bundle
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, claim, read_json, write_json
from histocrypt.machine import peak_gib

if TYPE_CHECKING:
    from histocrypt.encrypted.batch.evaluate import Session as BatchSession

MOST_CIPHERTEXTS = 100_000
"""In a request: a client's number is not believed beyond what a section can have."""


class Model:
    """A compiled model, loaded as far as clients ask for it: the two forms have nothing in common."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._lock = threading.Lock()
        self._loaded: dict[str, Any] = {}

    def session(self, keys: Path, *, workers: int, noise: AnswerNoise | None = None) -> Session | BatchSession:
        """Return a client's session, in the form that its keys were made for; noise is added to outputs, if given.

        Raises
        ------
        InputError
            If the keys are damaged, or of another model.
        """
        made_for = str(messages.read_header(keys).get("client"))
        client = forms(self.bundle.client).get(made_for)
        if client is None:
            problem, wanted = messages.MEANING["client"], self.bundle.client.hash
            raise InputError(problem, file=keys, field="client", value=made_for, expected=wanted)
        if client.form == "single":
            model = self._load(client.form, lambda: engine.load_model(self.bundle.model))
            return Session(self.bundle, model, keys, workers=workers, noise=noise)
        from histocrypt.encrypted.batch.evaluate import Session as BatchSession
        from histocrypt.encrypted.batch.plan import read_maps

        maps = self._load(client.form, lambda: read_maps(self.bundle.integers))
        return BatchSession(client, maps, keys, workers=workers, noise=noise)

    def _load(self, form: str, load: Callable[[], Any]) -> Any:
        with self._lock:
            if form not in self._loaded:
                self._loaded[form] = load()
            return self._loaded[form]


class Session:
    """One client's evaluation keys on one compiled model, in the form ``single``; several ciphertexts at once.

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
    noise
        Added to outputs, if given.
    """

    def __init__(
        self, bundle: Bundle, model: Any, keys: Path, *, workers: int, noise: AnswerNoise | None = None
    ) -> None:
        client = bundle.client
        header, start = messages.open_message(keys, "evaluation keys", client=client.hash)
        expected = client.evaluation_key_bytes()
        if not 0.9 * expected < header["bytes"] < 1.1 * expected + (1 << 20):
            problem = "does not have the size of this model's evaluation keys"
            raise InputError(problem, file=keys, field="bytes", value=header["bytes"], expected=f"about {expected}")
        if client.parameters.bootstrapping is None:
            messages.check_evaluation_keys(keys, client.parameters, client.rotations, start=start)
        self.key: str = messages.name_of_key(header, file=keys)
        self._bundle, self._model, self._noise = bundle, model, noise
        self._free: queue.Queue[engine.Evaluator] = queue.Queue()
        self._all: list[engine.Evaluator] = []
        try:
            for _ in range(workers):
                self._all.append(engine.Evaluator(client.parameters, keys, start=start))
                self._free.put(self._all[-1])
        except engine.EngineError as error:
            self.close()
            problem = "are not evaluation keys for these parameters"
            raise InputError(problem, file=keys, fix="make keys again with this model's client part") from error
        self._moduli = client.moduli

    def evaluate(self, data: bytes | Path, *, file: Any, **expected: Any) -> bytes:
        """Return the output message for an input message; see `messages.unpack` for ``expected``.

        Parameters
        ----------
        data
            The message, or the file that holds it, which is mapped: a large one is then in memory once, as pages that
            the system can drop.
        file
            What errors name.

        Raises
        ------
        InputError
            If the message is damaged, not bound to this session, or not a ciphertext under its parameters.
        """
        client = self._bundle.client
        bound = {"client": client.hash, "key": self.key, **expected}
        payload = messages.unpack(messages.mapped(data), file=file, kind="input", complete=True, **bound)
        parts = messages.unpack_list(payload, count=client.input.ciphertexts, file=file)
        for part in parts:
            messages.check_ciphertext(part, client.parameters, self._moduli, client.level, file=file, fresh=True)
        worker = self._free.get()
        try:
            outputs = worker(self._model, parts)
        except engine.EngineError as error:
            raise InputError("cannot be evaluated", file=file, field="ciphertexts", fix="encrypt it again") from error
        finally:
            self._free.put(worker)
        if self._noise is not None:
            outputs = self._noise.add(outputs)
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
    loaded, file = load_bundle(bundle), request / "request.json"
    content = read_json(file)
    content = content if isinstance(content, dict) else {}
    name, count = content.get("request"), content.get("of")
    if not isinstance(name, str) or not isinstance(count, int) or not 0 < count <= MOST_CIPHERTEXTS:
        raise InputError("does not describe a request", file=file, expected="what `histocrypt fhe encrypt` writes")
    form, wanted = forms(loaded.client).get(str(content.get("client"))), loaded.client.hash
    if form is None:
        value = content.get("client")
        raise InputError("was made for another model", file=file, field="client", value=value, expected=wanted)
    _claim_response(output)
    output.mkdir(parents=True, exist_ok=True)
    answer = {key: content.get(key) for key in ("client", "key", "request", "of")}
    if (output / "response.json").is_file() and read_json(output / "response.json") != answer:
        problem, fix = "holds the response to another request", "choose another folder"
        raise InputError(problem, file=output, field="response.json", fix=fix)
    write_json(output / "response.json", answer)
    paths = [output / f"{index:05d}.ct" for index in range(count)]
    pending = [index for index in range(count) if not _is_done(paths[index], index=index, **answer)]
    if len(pending) < count:
        print(f"{count - len(pending)} of {count} messages were evaluated before and are kept", file=sys.stderr)
    if not pending:
        return f"{output}: all {count} messages were evaluated before"
    if form.parameters.bootstrapping is not None:
        from histocrypt.encrypted.resnet.request import evaluate_tiles

        return evaluate_tiles(loaded, keys, request, output, pending, answer, workers=workers or 1)
    workers = workers_for(loaded, form, workers)
    workers = workers if form.form == "batch" else min(workers, len(pending))
    stated = loaded.evaluation_bytes(workers, form) / 2**30
    print(f"{workers} at once, about {stated:.1f} GiB of memory", file=sys.stderr)
    started = time.monotonic()
    session = Model(loaded).session(keys, workers=workers)
    if session.key != content.get("key"):
        problem, wanted = "these are another client's evaluation keys", str(content.get("key"))
        raise InputError(problem, file=keys, field="key", value=session.key, expected=wanted)
    loading, stop = time.monotonic() - started, threading.Event()

    def evaluate(index: int) -> None:
        if stop.is_set():
            return
        path = request / paths[index].name
        result = session.evaluate(path, file=path, request=name, index=index, of=count)
        try:
            with atomic_path(paths[index]) as temporary:
                temporary.write_bytes(result)
        except OSError as error:
            problem, free = f"a result cannot be written ({error.strerror})", shutil.disk_usage(output).free
            fix = "free some space and run the same command again; finished parts are kept"
            raise InputError(problem, file=output, value=f"{free / 2**20:.0f} MiB free", fix=fix) from error

    started, before = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(1 if form.form == "batch" else workers) as pool:
        jobs = [pool.submit(evaluate, index) for index in pending]
        try:
            for job in tqdm(jobs, desc="evaluating", unit="message"):
                job.result()
        except BaseException:
            stop.set()
            raise
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - before
    session.close()
    cost = {
        "messages": len(pending),
        "workers": workers,
        "load_seconds": round(loading, 3),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "stated_gib": round(stated, 3),
        "peak_gib": round(peak_gib() or 0.0, 3),
    }
    write_json(output / "cost.json", cost)
    return (
        f"{output}: {len(pending)} message{'s' * (len(pending) != 1)}, "
        f"loaded in {loading:.1f} s, evaluated in {seconds:.1f} s "
        f"({seconds / len(pending):.2f} s each, {workers} at once), peak {peak_gib() or 0.0:.2f} GiB"
    )


def _claim_response(output: Path) -> None:
    """Refuse a folder where results would replace what is no result."""

    def says(field: str, path: Path) -> bool:
        try:
            content = read_json(path)
        except InputError:
            return False
        return isinstance(content, dict) and field in content

    claim(output / "response.json", mine=partial(says, "request"), overwrite=None)
    claim(output / "cost.json", mine=partial(says, "messages"), overwrite=None)
    for path in sorted(output.glob("[0-9]*.ct")):
        claim(path, mine=partial(messages.is_message, kind="output"), overwrite=None)


def workers_for(bundle: Bundle, form: Client, wanted: int | None = None) -> int:
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
    while workers > 1 and bundle.evaluation_bytes(workers, form) > 0.9 * free:
        workers -= 1
    if bundle.evaluation_bytes(workers, form) > free:
        problem, room = "this machine has too little memory to evaluate this model", f"{free / 2**30:.1f} GiB free"
        needed, fix = f"{bundle.evaluation_bytes(workers, form) / 2**30:.1f} GiB", "use a shallower network"
        raise InputError(problem, file=bundle.folder, value=room, expected=needed, fix=fix)
    return workers


def _is_done(path: Path, **bound: Any) -> bool:
    """Whether a result is there and whole."""
    try:
        messages.read_message(path, "output", **bound)
    except InputError:
        return False
    return True
