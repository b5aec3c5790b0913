"""The evaluator's side of a bootstrapped network: few layers in work, the next ones being encoded, all else on disk.

Every layer's output is written before the next layer starts, so a kill costs one layer. Nothing here can decrypt.
`estimate` says before any key is made what an evaluation will cost, from what its parts cost when they were measured.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.messages import pack_list, switching_key_words, unpack_list
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.resnet import residual
from histocrypt.encrypted.resnet.pairs import Refresher
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_text

AHEAD_GIB, TOGETHER_GIB = 3.5, 6.5
"""What the layers in work and those encoded ahead of them may take together: for a tile alone; for several tiles, where
memory is there, since a block's three layers are then in work at once."""
SECONDS_FIRST = 37.5
"""What the first refresh of a process takes longer, since it sets the engine's circuit up. Seconds are of two cores and
the ring of 2^15, as ``benchmarks/fhe_resnet18.py`` prints them."""
SECONDS_REFRESH = 16.5
SECONDS_DIAGONAL = 0.018
"""Encoding and multiplying, which overlap, where a tile is alone."""
SECONDS_ENCODE, SECONDS_PRODUCT = 0.0105, 0.0015
"""Of a diagonal, on one core: encoding, once for all tiles; multiplying, rotations included."""
SECONDS_ENDS = 45.0
"""Before the first refresh and after the last one, where several tiles go together."""
SECONDS_POLYNOMIAL = 1.5
ENGINE_GIB, LOADING_GIB = 7.0, 1.0
"""Of bootstrapping, and of a layer while it is loaded."""
PAIR_GIB = 2.6
"""More of bootstrapping two tiles at once: a served job of one pair held 17.1 GiB."""


@dataclass(frozen=True)
class Timing:
    """What one layer took, seconds."""

    step: str
    number: int
    """Of the layer."""
    of: int
    """Layers in all."""
    waited: float
    """For its diagonals to be encoded, and for the layers before it."""
    evaluated: float
    """All tiles together."""


def write_ciphertexts(path: Path, ciphertexts: list[bytes]) -> None:
    """Write ciphertexts to one file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(pack_list(ciphertexts))


def read_ciphertexts(path: Path) -> list[bytes]:
    """Read what `write_ciphertexts` wrote; an `InputError` names a file that was cut, whose layer is to be deleted."""
    return unpack_list(path.read_bytes(), count=None, file=path)


class EvaluationKeys:
    """The key owner's file: the relinearisation key, rotation keys, of which a layer takes few, bootstrapping keys."""

    def __init__(self, path: Path, parameters: Parameters, *, start: int = 0) -> None:
        self.path, self.parameters = path, parameters
        size, first = path.stat().st_size, 8 * switching_key_words(parameters)
        self._start, self._first, self._each = start, 1 + first, first + 24
        with path.open("rb") as file:
            file.seek(min(size, start + self._first))
            said = file.read(5)
            number = int.from_bytes(said[1:], "little")
            self.end = start + self._first + 5 + number * self._each
            """Where the bootstrapping keys begin."""
            if said[:1] != b"\x01" or self.end > size:
                fix = "send the key owner's evaluation keys again"
                raise InputError("are not evaluation keys of these parameters", file=path, field="bytes", fix=fix)
            self._place = {}
            for at in range(start + self._first + 5, self.end, self._each):
                file.seek(at)
                self._place[struct.unpack("<Q", file.read(8))[0]] = at

    def subset(self, rotations: Iterable[int]) -> np.ndarray:
        """Return the same form with these rotations' keys only, read and not mapped: what is mapped stays in memory."""
        elements = sorted({engine.galois_element(rotation, self.parameters) for rotation in rotations})
        missing = [element for element in elements if element not in self._place]
        if missing:
            problem, fix = f"lack {len(missing)} rotation keys that this network needs", "make keys for this network"
            raise InputError(problem, file=self.path, field="rotations", value=missing[0], fix=fix)
        found = np.empty(self._first + 5 + len(elements) * self._each, dtype=np.uint8)
        view = memoryview(found)
        with self.path.open("rb") as file:
            file.seek(self._start)
            file.readinto(view[: self._first])
            view[self._first : self._first + 5] = b"\x01" + struct.pack("<I", len(elements))
            for number, element in enumerate(elements):
                start = self._first + 5 + number * self._each
                file.seek(self._place[element])
                file.readinto(view[start : start + self._each])
        return found


class _Tile:
    """One tile's way through the network: which layers are done, and where their outputs lie."""

    def __init__(self, tile: Path, steps: list[dict[str, Any]], network: bytes, work: Path) -> None:
        self._steps = steps
        self._last_use = {name: number for number, step in enumerate(steps) for name in step["inputs"]}
        self._place = {step["name"]: work / f"{step['name']}.ct" for step in steps} | {"input": tile}
        work.mkdir(parents=True, exist_ok=True)
        identity = hashlib.sha256(network + tile.read_bytes()).hexdigest()
        if not (work / "of.txt").is_file():
            write_text(work / "of.txt", identity)
        elif (work / "of.txt").read_text(encoding="utf-8") != identity:
            fix = "delete it, or give another folder"
            raise InputError("holds layers of another tile or network", file=work, field="of.txt", fix=fix)
        done = [number for number, step in enumerate(steps) if self._place[step["name"]].is_file()]
        self.next = max(done) + 1 if done else 0
        """The layer that it goes through next."""
        self.output = self._place[steps[-1]["name"]]

    def inputs(self) -> list[bytes]:
        """Read what its next layer takes."""
        return [one for name in self._steps[self.next]["inputs"] for one in read_ciphertexts(self._place[name])]

    def write(self, outputs: list[bytes]) -> None:
        """Write what its next layer gave; drop what no later one needs."""
        number, step = self.next, self._steps[self.next]
        write_ciphertexts(self._place[step["name"]], outputs)
        for name in step["inputs"]:
            if self._last_use[name] == number and name != "input":
                self._place[name].unlink()


Layer = tuple[Any, engine.Evaluator | None]
"""A loaded network of one layer, and what evaluates it where it does not refresh."""


def refreshed_together(steps: Sequence[dict[str, Any]]) -> int:
    """Return how many tiles one refresh takes: two, unless it is one of the refreshes within an activation."""
    return 2 if max((step["refreshes"] for step in steps), default=0) == 1 else 1


class _Work:
    """What there is to do: layers are loaded in order, as many ahead as fit; the tile that is furthest behind is next.

    Every tile goes through the layers one after the other. A layer is let go of once all tiles went through it.
    Partners are refreshed together: each waits for the other one, unless an earlier call has brought that further.
    """

    def __init__(self, steps: list[dict[str, Any]], runs: list[_Tile], sizes: list[int], room: float) -> None:
        self._steps, self._runs, self._sizes, self._room = steps, runs, sizes, room
        self._layers: dict[int, Layer] = {}
        self._seconds = {number: [0.0, 0.0] for number in range(len(steps))}
        together = refreshed_together(steps)
        self._partners = {run: runs[at // together * together :][:together] for at, run in enumerate(runs)}
        self._held, self._busy, self._stopped = 0, set(), False
        self._changed = threading.Condition()

    def load_all(self, load: Callable[[int], Layer]) -> None:
        """Load the layers that are needed, waiting for room; at least one is always loaded."""
        for number in range(min(run.next for run in self._runs), len(self._steps)):
            size = self._sizes[number]
            with self._changed:
                self._changed.wait_for(
                    lambda size=size: self._stopped or not self._held or self._held + size <= self._room
                )
                if self._stopped:
                    return
                self._held += size
            loaded = load(number)
            with self._changed:
                self._layers[number] = loaded
                self._changed.notify_all()

    def take(self, *, refreshes: bool) -> tuple[list[_Tile], Layer] | None:
        """Wait for something of one kind to do: tiles, and the layer that is next for all; None: nothing is left."""
        began = time.monotonic()
        with self._changed:
            while not self._stopped:
                kind = [number for number, step in enumerate(self._steps) if bool(step["refreshes"]) == refreshes]
                if not kind or all(run.next > kind[-1] for run in self._runs):
                    return None
                ready = [run for run in self._runs if run.next in self._layers and run.next in kind]
                ready = [run for run in ready if run not in self._busy]
                if refreshes:
                    ready = [run for run in ready if all(other.next >= run.next for other in self._partners[run])]
                if ready:
                    run = min(ready, key=lambda run: run.next)
                    found = [other for other in self._partners[run] if other.next == run.next] if refreshes else [run]
                    self._busy.update(found)
                    self._seconds[run.next][0] += time.monotonic() - began
                    return found, self._layers[run.next]
                self._changed.wait()
        return None

    def done(self, run: _Tile, seconds: float) -> Timing | None:
        """Note that a tile went through its layer; free the layer, and tell what it took, where it was the last."""
        with self._changed:
            number = run.next
            self._seconds[number][1] += seconds
            self._busy.remove(run)
            run.next += 1
            last = all(one.next > number for one in self._runs)
            model, evaluator = self._layers.pop(number) if last else (None, None)
            self._changed.notify_all()
        if not last:
            return None
        model.close()
        if evaluator is not None:
            evaluator.close()
        with self._changed:
            self._held -= self._sizes[number]
            self._changed.notify_all()
        return Timing(self._steps[number]["name"], number, len(self._steps), *self._seconds[number])

    def stop(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def evaluate(
    network: Path,
    keys: Path,
    tiles: Sequence[Path],
    work: Path,
    *,
    start: int = 0,
    refreshers: int = 1,
    ahead_gib: float = AHEAD_GIB,
    progress: Callable[[Timing], None] | None = None,
) -> list[Path]:
    """Evaluate encrypted tiles layer by layer; go on from where an earlier call was stopped.

    All tiles go through a layer before it is let go of, so that its diagonals are encoded once. One thread multiplies,
    others refresh: while tiles are refreshed one by one, those already refreshed go on into the next layers.

    Parameters
    ----------
    network
        Folder that `histocrypt.encrypted.resnet.compile.compile_network` wrote.
    keys
        File of the key owner's evaluation keys: those for rotations, then those for bootstrapping.
    tiles
        Files of ciphertexts, see `write_ciphertexts`; their names differ.
    work
        Folder for the outputs of layers, a folder for each tile.
    start
        Where the keys begin in their file.
    refreshers
        Refreshes at once, of two tiles each where activations are squares. Each takes about 7 GiB.
    ahead_gib
        What the layers in work and those encoded ahead may take together, beside the refreshers; loading a layer takes
        about one GiB more.
    progress
        Called after each layer, from any thread.

    Returns
    -------
    paths
        Of the network's outputs, in ``work``, in the order of ``tiles``.

    Raises
    ------
    InputError
        If ``work`` holds layers of something else, keys do not fit, or an older version compiled the network.
    """
    plan = read_json(network / "steps.json")
    parameters, steps = Parameters.from_dict(plan["parameters"]), plan["steps"]
    if "bootstrapping_primes" not in plan:
        problem, fix = "was compiled before two tiles shared a refresh", "compile the model again"
        raise InputError(problem, file=network / "steps.json", field="bootstrapping_primes", fix=fix)
    identity = (network / "steps.json").read_bytes()
    runs = [_Tile(tile, steps, identity, work / tile.stem) for tile in tiles]
    begin = min((run.next for run in runs), default=len(steps))
    if begin == len(steps):
        return [run.output for run in runs]
    given, telling = EvaluationKeys(keys, parameters, start=start), threading.Lock()
    work_left = _Work(steps, runs, [step_bytes(step, parameters) for step in steps], ahead_gib * 2**30)

    def load(number: int) -> Layer:
        step = steps[number]
        model = engine.load_model(network / f"{step['name']}.orion")
        return model, None if step["refreshes"] else engine.Evaluator(parameters, given.subset(step["rotations"]))

    def go(refresher: Refresher | engine.Evaluator | None) -> None:
        while (task := work_left.take(refreshes=refresher is not None)) is not None:
            found, (model, evaluator) = task
            began = time.monotonic()
            inputs = [run.inputs() for run in found]
            every = [one for each in inputs for one in each]
            outputs = refresher(every) if isinstance(refresher, Refresher) else (refresher or evaluator)(model, every)
            seconds, each = time.monotonic() - began, len(outputs) // len(found)
            for at, run in enumerate(found):
                run.write(outputs[at * each : (at + 1) * each])
                timing = work_left.done(run, seconds / len(found))
                if timing is not None and progress is not None:
                    with telling:
                        progress(timing)

    def refresh() -> None:
        if together > 1:
            refresher = Refresher(parameters, *plan["bootstrapping_primes"], keys, start=given.end)
        else:
            refresher = engine.Evaluator(parameters, given.subset(()), keys, bootstrapping_start=given.end)
        go(refresher)
        refresher.close()

    together = refreshed_together(steps)
    threads = min(refreshers, -(-len(runs) // together)) if any(step["refreshes"] for step in steps[begin:]) else 0
    with ThreadPoolExecutor(2 + threads) as pool:
        jobs = [pool.submit(work_left.load_all, load), pool.submit(go, None)]
        jobs += [pool.submit(refresh) for _ in range(threads)]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:
            work_left.stop()
    return [run.output for run in runs]


def step_bytes(step: dict[str, Any], parameters: Parameters) -> int:
    """Return the memory that a layer's encoded diagonals and keys take."""
    limbs = step["level"] + 1 + len(parameters.logp)
    keys = (1 + len(step["rotations"])) * parameters.switching_key_bytes
    return step["diagonals"] * limbs * parameters.limb_bytes + keys


@dataclass(frozen=True)
class Estimate:
    """What an evaluation will take."""

    activation: str
    levels: int
    """Multiplications one after the other, refreshes left out."""
    refreshes: int
    diagonals: int
    seconds_one: float
    """Of a tile alone, on two idle cores."""
    seconds_once: float
    seconds_each: float
    """Of n refreshes of all layers: ``seconds_once + n * seconds_each``; the first takes no less than a tile."""
    together: int
    """Tiles in each refresh."""
    work_once: float
    work_each: float
    work_refreshing: float
    """The same on one core, of a tile, and of a refresh of all layers: two cores need at least half of it."""
    engine_gib: float
    """Of each tile that is refreshed at once."""
    loading_gib: float
    layers_gib: float
    """Of all layers, encoded."""
    largest_gib: float
    """Of the largest one, which is in work whatever room there is."""

    def seconds(self, tiles: int, group: int, *, refreshers: int = 1) -> float:
        """Return the seconds on two cores for so many tiles, ``group`` together, ``refreshers`` refreshed at once."""

        def together(number: int) -> float:
            refreshes = -(-number // self.together)
            refreshing = self.seconds_once + refreshes * self.seconds_each / min(refreshers, refreshes)
            work = self.work_once + number * self.work_each + refreshes * self.work_refreshing
            alone = (
                self.seconds_one if number <= self.together else 0.0
            )  # nothing to multiply while these are refreshed
            return max(alone, refreshing, work / 2)

        last = tiles % group
        return tiles // group * together(group) + (together(last) if last else 0.0)

    def gib(self, refreshers: int = 1, *, ahead_gib: float = AHEAD_GIB) -> float:
        """Return the memory that is needed, GiB."""
        layers = max(min(ahead_gib, self.layers_gib), self.largest_gib)
        return refreshers * self.engine_gib + self.loading_gib + layers

    def __str__(self) -> str:
        one, four = self.seconds_one / 60, self.seconds(4, 4) / 4 / 60
        return (
            f"{self.activation}: {self.levels} levels, {self.refreshes} bootstrappings, {self.diagonals:,} diagonals; "
            f"about {one:.0f} min for a tile, {four:.1f} min each for four together, on two idle cores; "
            f"{self.gib():.1f} GiB, {self.gib(ahead_gib=TOGETHER_GIB):.1f} for several tiles"
        )


def estimate(steps: Sequence[dict[str, Any]], parameters: Parameters) -> Estimate:
    """Estimate what the evaluation of tiles will take, before any key is made.

    Parameters
    ----------
    steps
        Of the compiled network, as ``steps.json`` has them.
    parameters
        Of the compiled network; seconds are known for its only secure ring, smaller ones are taken in proportion.
    """
    names = [step["name"] for step in steps]
    relus = sum(name.endswith("_relu") for name in names)
    squares = 0 if relus else sum(name == "stem" or name.endswith(("_first", "_sum")) for name in names)
    linear = [step for step in steps if not step["refreshes"]]
    refreshes = sum(step["refreshes"] * step["ciphertexts"] for step in steps)
    diagonals = sum(step["diagonals"] for step in steps)
    polynomials = refreshes * len(residual.DEGREES) / residual.REFRESHES if relus else 0
    scale = parameters.slots / 2**15
    each = (refreshes * SECONDS_REFRESH + polynomials * SECONDS_POLYNOMIAL) * scale
    sizes = [step_bytes(step, parameters) for step in steps]
    first = SECONDS_FIRST * scale if refreshes else 0.0
    return Estimate(
        activation="relu" if relus else "square",
        levels=len(linear) + squares + relus * residual.levels(),
        refreshes=refreshes,
        diagonals=diagonals,
        seconds_one=first + each + diagonals * SECONDS_DIAGONAL * scale,
        seconds_once=first + SECONDS_ENDS * scale,
        seconds_each=each,
        together=refreshed_together(steps),
        work_once=first + diagonals * SECONDS_ENCODE * scale,
        work_each=diagonals * SECONDS_PRODUCT * scale,
        work_refreshing=each,
        engine_gib=(ENGINE_GIB + PAIR_GIB * (refreshed_together(steps) > 1)) * scale,
        loading_gib=LOADING_GIB * scale,
        layers_gib=sum(sizes) / 2**30,
        largest_gib=max(sizes) / 2**30,
    )
