"""The evaluator's side of a bootstrapped network: a layer in work, the next ones being encoded, all else on disk.

Every layer's output is written before the next layer starts, so a kill costs one layer. Nothing here can decrypt.
`estimate` says before any key is made what an evaluation will cost, from what its parts cost when they were measured.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.messages import pack_list, unpack_list
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.resnet import residual
from histocrypt.encrypted.resnet.compile import Compiled
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_text

AHEAD_GIB = 3.5
"""What the layer in work and those encoded ahead of it may take together."""
SECONDS_FIRST = 52.0
"""First refresh of a process, which sets the engine's circuit up. Seconds are of two cores and the ring of 2^15, as
``benchmarks/fhe_resnet18.py`` prints them."""
SECONDS_REFRESH = 14.5
SECONDS_DIAGONAL = 0.018
"""Encoding and multiplying, which overlap."""
SECONDS_POLYNOMIAL = 1.5
ENGINE_GIB, LOADING_GIB = 7.0, 1.0
"""Of bootstrapping, and of a layer while it is loaded."""


@dataclass(frozen=True)
class Timing:
    """What one layer took, seconds."""

    step: str
    waited: float
    """For its diagonals to be encoded."""
    evaluated: float


def write_ciphertexts(path: Path, ciphertexts: list[bytes]) -> None:
    """Write ciphertexts to one file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(pack_list(ciphertexts))


def read_ciphertexts(path: Path) -> list[bytes]:
    """Read what `write_ciphertexts` wrote; an `InputError` names a file that was cut, whose layer is to be deleted."""
    return unpack_list(path.read_bytes(), count=None, file=path)


class RotationKeys:
    """The key owner's file of relinearisation and rotation keys, of which a layer takes the few that it needs."""

    def __init__(self, path: Path, parameters: Parameters) -> None:
        self.path, self.parameters = path, parameters
        size = path.stat().st_size
        # flag, relinearisation key, flag, number of rotation keys, then element and key for each; a rotation key is a
        # relinearisation key with 16 bytes more
        number = round((size - 6) / parameters.switching_key_bytes) - 1
        first, rest = divmod(size - 6 - 24 * number, number + 1)
        with path.open("rb") as file:
            file.seek(min(size, 2 + first))
            if number < 0 or rest or file.read(4) != struct.pack("<I", number):
                fix = "send the key owner's evaluation keys again"
                raise InputError("are not evaluation keys of these parameters", file=path, field="bytes", fix=fix)
            self._first, self._each = 1 + first, first + 24
            self._place = {}
            for one in range(number):
                at = 6 + first + one * self._each
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
        self.begin = max(done) + 1 if done else 0
        self.output = self._place[steps[-1]["name"]]

    def evaluate(self, number: int, evaluator: engine.Evaluator, model: Any) -> None:
        """Evaluate one layer; drop what no later one needs."""
        step = self._steps[number]
        given = [one for name in step["inputs"] for one in read_ciphertexts(self._place[name])]
        write_ciphertexts(self._place[step["name"]], evaluator(model, given))
        for name in step["inputs"]:
            if self._last_use[name] == number and name != "input":
                self._place[name].unlink()


def evaluate(
    network: Path,
    keys: Path,
    bootstrapping_keys: Path,
    tiles: Sequence[Path],
    work: Path,
    *,
    ahead_gib: float = AHEAD_GIB,
    progress: Callable[[Timing], None] | None = None,
) -> list[Path]:
    """Evaluate encrypted tiles layer by layer; go on from where an earlier call was stopped.

    All tiles go through a layer before the next one is taken, so that its diagonals are encoded once.

    Parameters
    ----------
    network
        Folder that `histocrypt.encrypted.resnet.compile.compile_network` wrote.
    keys, bootstrapping_keys
        Files of the key owner's evaluation keys.
    tiles
        Files of ciphertexts, see `write_ciphertexts`; their names differ.
    work
        Folder for the outputs of layers, a folder for each tile.
    ahead_gib
        What the layer in work and those encoded ahead of it may take together. The engine's bootstrapping takes about 7
        GiB beside it, and loading a layer about one more.
    progress
        Called after each layer.

    Returns
    -------
    paths
        Of the network's outputs, in ``work``, in the order of ``tiles``.

    Raises
    ------
    InputError
        If ``work`` holds layers of something else, or keys do not fit.
    """
    plan = read_json(network / "steps.json")
    parameters, steps = Parameters.from_dict(plan["parameters"]), plan["steps"]
    identity = (network / "steps.json").read_bytes()
    runs = [_Tile(tile, steps, identity, work / tile.stem) for tile in tiles]
    begin = min((run.begin for run in runs), default=len(steps))
    if begin == len(steps):
        return [run.output for run in runs]
    rotation_keys = RotationKeys(keys, parameters)
    sizes = [step_bytes(step, parameters) for step in steps]

    def load(number: int) -> tuple[Any, engine.Evaluator | None]:
        step = steps[number]
        model = engine.load_model(network / f"{step['name']}.orion")
        if step["refreshes"]:
            return model, None
        return model, engine.Evaluator(parameters, rotation_keys.subset(step["rotations"]))

    def load_refresher() -> engine.Evaluator:
        return engine.Evaluator(parameters, rotation_keys.subset(()), bootstrapping_keys)

    coming: deque[Future] = deque()
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as beside:
        refresher = beside.submit(load_refresher) if any(step["refreshes"] for step in steps[begin:]) else None
        for number in range(begin, len(steps)):
            last = number + len(coming)
            while last < len(steps) and (not coming or sum(sizes[number : last + 1]) <= ahead_gib * 2**30):
                coming.append(ahead.submit(load, last))
                last += 1
            started = time.monotonic()
            model, evaluator = coming.popleft().result()
            if evaluator is None:
                evaluator = refresher.result()
            waited = time.monotonic() - started
            for run in runs:
                if run.begin <= number:
                    run.evaluate(number, evaluator, model)
            model.close()
            if not steps[number]["refreshes"]:
                evaluator.close()
            if progress is not None:
                progress(Timing(steps[number]["name"], waited, time.monotonic() - started - waited))
        if refresher is not None:
            refresher.result().close()
    return [run.output for run in runs]


def step_bytes(step: dict[str, Any], parameters: Parameters) -> int:
    """Return the memory that a layer's encoded diagonals and keys take."""
    limbs = step["level"] + 1 + len(parameters.logp)
    keys = (1 + len(step["rotations"])) * parameters.switching_key_bytes
    return step["diagonals"] * limbs * parameters.limb_bytes + keys


@dataclass(frozen=True)
class Estimate:
    """Of one tile."""

    activation: str
    levels: int
    """Multiplications one after the other, refreshes left out."""
    refreshes: int
    diagonals: int
    minutes: float
    peak_gib: float

    def __str__(self) -> str:
        return (
            f"{self.activation}: {self.levels} levels, {self.refreshes} bootstrappings, {self.diagonals:,} diagonals; "
            f"about {self.minutes:.0f} min a tile and {self.peak_gib:.0f} GiB on two idle cores"
        )


def estimate(made: Compiled, activation: str, parameters: Parameters) -> Estimate:
    """Estimate the evaluation of one tile by a compiled network, before any key is made.

    Parameters
    ----------
    made
        The compiled network.
    activation
        ``square`` or ``relu``.
    parameters
        Of the compiled network; seconds are known for its only secure ring, smaller ones are taken in proportion.
    """
    linear = [step for step in made.steps if not step.refreshes and not step.name.endswith("_shift")]
    shifts = sum(step.name.endswith("_shift") for step in made.steps)
    activations = sum(step.name == "stem" or step.name.endswith(("_first", "_sum")) for step in linear)
    each = 1 if activation == "square" else residual.levels()
    refreshes = sum(step.refreshes * step.ciphertexts for step in made.steps)
    diagonals = sum(step.diagonals for step in made.steps)
    polynomials = 0 if activation == "square" else refreshes * len(residual.DEGREES) / residual.REFRESHES
    seconds = diagonals * SECONDS_DIAGONAL + polynomials * SECONDS_POLYNOMIAL
    if refreshes:
        seconds += SECONDS_FIRST + (refreshes - 1) * SECONDS_REFRESH
    return Estimate(
        activation=activation,
        levels=len(linear) + shifts + activations * each,
        refreshes=refreshes,
        diagonals=diagonals,
        minutes=seconds / 60 * parameters.slots / 2**15,
        peak_gib=ENGINE_GIB + LOADING_GIB + AHEAD_GIB,
    )
