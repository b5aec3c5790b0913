"""A trained network through orion-fhe, tile by tile: one party, beside which the two parties of this library stand.

orion-fhe (Ebel, Garimella and Reagen, "Orion: A Fully Homomorphic Encryption Framework for Deep Learning", ASPLOS 2025)
makes keys, encrypts, evaluates and decrypts in one process, which holds the secret key; it sends no ciphertext and no
evaluation key anywhere. So it protects nobody's tile: it is here for experiments with an engine, and to compare with.
Its packing, fusing and evaluation are its own. It gets the weights, the ring, the primes and the scale that the two
parties use, and a secret of uniform ternary weight (its default is sparse, which `parameters` does not judge).

The scheme is global to a process and takes gigabytes, so each call starts a process of its own, in a folder that nobody
else can read and that is gone afterwards. ``io_mode`` stays ``none``, since ``save`` writes the secret key in plain;
``debug`` stays off, since it decrypts within every layer. What comes back are numbers in the clear.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted.parameters import Parameters, check_security, choose
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.machine import peak_gib

if TYPE_CHECKING:
    from types import SimpleNamespace

    from torch import nn

    from histocrypt.encrypted.lowering import Lowered
    from histocrypt.pipeline.checkpoints import TrainedModel

PACKAGE, VERSION = "orion-fhe", "1.0.2"
"""The distribution; it imports as ``orion`` (the distribution of that name is another one)."""
WHEELS = "it has wheels for Linux on x86, for Windows, and for macOS 14 or later on Apple silicon"
PARTIES = "one party"
WAYS = ("torch", "clear", "ciphertexts")
"""The same network in torch, in orion-fhe in the clear, and in orion-fhe on ciphertexts."""
GOGC = "25"
"""How much garbage Go may pile up, percent: a fifth less memory, no slower. Go reads it when a process starts."""
BASE_GIB = 0.7
"""Python with torch and the package, before anything is packed."""
PLACES_BYTES, DENSE_BYTES, LIST_BYTES = 25, 16, 32
"""Of each value of a layer while it is packed as a dense matrix: where it goes, three times over; then that once and
the value twice. And of each value that is kept: a float of Python's and its place in a list."""
GO_SHARE = 1.5
"""What Go holds for what is encoded, by measurement."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network as orion-fhe takes it: plain layers, the last of them with pooling and units merged into it."""

    shape: dict[str, Any]
    """``depth``, ``width``, ``side``, ``outputs`` of an `FheCnn`; ``features``, ``outputs`` of a linear head."""
    weights: dict[str, np.ndarray]
    """float32, by the names that `layers` gives."""
    parameters: Parameters

    @property
    def stated_gib(self) -> float:
        """About the largest memory of the process, GiB; a bound on diagonals makes it larger than what is measured."""
        p, kept, packing, encoded = self.parameters, 0, 0, 0
        for number, diagonals in enumerate(_diagonals(self.shape)):
            diagonals = min(diagonals, p.slots)
            own = diagonals * p.slots * LIST_BYTES
            packing = kept + max(PLACES_BYTES * p.slots**2, DENSE_BYTES * p.slots**2 + own)
            limbs = p.levels - 2 * number + 1 + len(p.logp)
            encoded += diagonals * limbs * p.limb_bytes + 2 * math.isqrt(diagonals) * p.switching_key_bytes
            kept += own
        return BASE_GIB + max(packing, kept + GO_SHARE * encoded) / 2**30


@dataclass(frozen=True, eq=False)
class OneParty:
    """What one process found and measured. Every way is a key of `WAYS`."""

    outputs: dict[str, np.ndarray]
    """(n, outputs) float32, in the outputs' units."""
    seconds: dict[str, float]
    """Wall, a tile; of ciphertexts the evaluation alone."""
    cpu_seconds: dict[str, float]
    """Of all threads, a tile."""
    peak_gib: dict[str, float]
    """The largest that the process had held so far."""
    set_up: dict[str, float]
    """``seconds`` and ``cpu_seconds`` of making keys, packing and encoding, once a network."""
    diagonals: int
    """Of all linear layers in orion-fhe's packing."""
    stated_gib: float


def network_of(model: TrainedModel) -> Network:
    """Return a trained `fhe_cnn` or `fhe_head` as orion-fhe takes it.

    Raises
    ------
    InputError
        If the model cannot be evaluated on ciphertexts.
    """
    from histocrypt.encrypted.compile import lowered_model

    described, lowered = lowered_model(model)
    if described["sees"] == "features":
        shape = {"features": described["input"]["shape"][0], "outputs": lowered.maps[-1].target[0]}
        return plain(None, lowered, shape)
    own = model.predictor.plan
    shape = {"depth": own.depth, "width": own.width, "side": described["input"]["shape"][1]}
    return plain(model.predictor.network, lowered, {**shape, "outputs": lowered.maps[-1].target[0]})


def plain(network: nn.Module | None, lowered: Lowered, shape: dict[str, Any]) -> Network:
    """Return a network whose last layer is ``lowered``'s: pooling would cost orion-fhe a level, and here it is merged.

    Parameters
    ----------
    network
        An `FheCnn`; None for a linear head, which is its last layer.
    lowered
        The same as affine maps.
    shape
        See `Network.shape`.
    """
    last = lowered.maps[-1]
    final = 0 if network is None else 3 * (len(lowered.maps) - 1) + 1  # convolution, batch norm, square; flatten
    state = {} if network is None else network.state_dict()
    kept = {name: tensor.cpu().numpy() for name, tensor in state.items() if int(name.split(".")[1]) < final}
    weights = {**kept, f"layers.{final}.weight": last.matrix.toarray(), f"layers.{final}.bias": last.bias}
    values = int(np.prod(lowered.maps[0].source))
    parameters = choose(lowered.levels, max(values, last.target[0]))
    check_security(parameters)
    single = {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in weights.items()}
    return Network(shape, single, parameters)


def layers(shape: dict[str, Any], ops: SimpleNamespace) -> list[nn.Module]:
    """Return the layers of a `Network.shape`, made from a namespace as in `models.fhe`."""
    from histocrypt.models.fhe import STRIDES, build_layers

    if "features" in shape:
        return [ops.Linear(shape["features"], shape["outputs"])]
    own = {name: shape[name] for name in ("depth", "width", "side")}
    return build_layers(shape["outputs"], pool=shape["side"] // math.prod(STRIDES[shape["depth"]]), ops=ops, **own)


def _diagonals(shape: dict[str, Any]) -> Iterator[int]:
    """Yield at most how many diagonals each linear layer has in orion-fhe's packing.

    It keeps the image's plane. Points of a coarser grid are ``gap`` apart; the channels lie between them, row by row. A
    diagonal is a shift between a value and one that it is made from: how far down, how far right, how many planes.
    """
    from histocrypt.models.fhe import CHANNELS, STRIDES

    if "features" in shape:
        yield shape["features"] + shape["outputs"] - 1
        return
    side, channels, gap = shape["side"], 3, 1
    for stride, standard in zip(STRIDES[shape["depth"]], CHANNELS[shape["depth"]], strict=True):
        after, wider = max(4, round(standard * shape["width"])), gap * stride
        rows = _rows(channels, gap) + _rows(after, wider) - 1
        columns = min(channels, gap) + min(after, wider) - 1
        planes = math.ceil(channels / gap**2) + math.ceil(after / wider**2) - 1
        yield min(2 * wider - 1, stride * rows) * min(2 * wider - 1, stride * columns) * planes
        channels, gap = after, wider
    planes, others = math.ceil(channels / gap**2), shape["outputs"] - 1
    yield min(planes * side**2 + others, planes * (side // gap) * (_rows(channels, gap) * side + others))


def _rows(channels: int, gap: int) -> int:
    return min(gap, math.ceil(channels / gap))


def unable(network: Network) -> str:
    """Return one sentence that says why this machine cannot run orion-fhe on a network; empty if it can."""
    import psutil

    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"{PACKAGE} is not here; {WHEELS}"
    if found != VERSION:
        return f"{PACKAGE} is {found}, and this was written for {VERSION}"
    free = psutil.virtual_memory().available / 2**30
    if network.stated_gib > 0.9 * free:
        return f"{PACKAGE} takes about {network.stated_gib:.1f} GiB for this network, and {free:.1f} GiB are free"
    return ""


def check(network: Network) -> None:
    """Refuse, with an `InputError`, what `unable` says."""
    if why := unable(network):
        raise InputError(why, field="engine", value="orion", fix="use the two parties, or another machine")


def evaluate(network: Network, values: np.ndarray) -> OneParty:
    """Evaluate a network in torch, and by orion-fhe in the clear and on ciphertexts, in one process of its own.

    That process holds the secret key, and sees ``values`` and outputs as they are.

    Parameters
    ----------
    network
        From `network_of`.
    values
        (n, 3, side, side) or (n, features), as the network sees them.

    Raises
    ------
    InputError
        If the package is absent or memory is short (see `unable`), or the process failed.
    """
    check(network)
    with tempfile.TemporaryDirectory(prefix="histocrypt-") as name:  # mode 0700
        folder = Path(name)
        np.savez(folder / "network.npz", **network.weights)
        np.save(folder / "values.npy", np.asarray(values, dtype=np.float32))
        write_json(folder / "network.json", {"shape": network.shape, "parameters": network.parameters.to_dict()})
        command = [sys.executable, "-m", "histocrypt.encrypted.orion", name]
        done = subprocess.run(
            command, env={"GOGC": GOGC, **os.environ}, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            killed = "; memory may have been short" if done.returncode < 0 else ""
            problem = f"{PACKAGE} failed: {last}{killed}"
            raise InputError(problem, field="engine", value="orion", expected=f"{network.stated_gib:.1f} GiB free")
        with np.load(folder / "outputs.npz") as stored:
            outputs = {way: stored[way] for way in WAYS}
        return OneParty(outputs=outputs, stated_gib=round(network.stated_gib, 3), **read_json(folder / "cost.json"))


# What follows runs in the process that is the one party.


def _one_party(folder: Path) -> None:
    """Do all three ways in this process, and leave ``outputs.npz`` and ``cost.json``."""
    import torch

    import histocrypt.torchvision_ops  # noqa: F401  orion-fhe imports torchvision
    from histocrypt.models.fhe import CLEAR

    about, values = read_json(folder / "network.json"), torch.from_numpy(np.load(folder / "values.npy"))
    shape, parameters = about["shape"], Parameters.from_dict(about["parameters"])
    with np.load(folder / "network.npz") as stored:
        state = {name: torch.from_numpy(stored[name]) for name in stored.files}
    outputs: dict[str, np.ndarray] = {}
    cost: dict[str, Any] = {name: {} for name in ("seconds", "cpu_seconds", "peak_gib", "set_up")}

    def same(x: Any) -> Any:
        return x

    def measure(way: str, one: Callable[[Any], Any], enter: Callable = same, leave: Callable = same) -> None:
        found, seconds, cpu = [], 0.0, 0.0
        for row in range(len(values)):
            x, started, before = enter(values[row : row + 1]), time.perf_counter(), time.process_time()
            y = one(x)
            seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - before
            found.append(leave(y).detach().numpy().reshape(-1)[: shape["outputs"]])
        cost["seconds"][way], cost["cpu_seconds"][way] = seconds / len(values), cpu / len(values)
        cost["peak_gib"][way] = peak_gib() or 0.0
        outputs[way] = np.stack(found).astype(np.float32)

    plainly = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers(shape, CLEAR))})
    plainly.load_state_dict(state)
    plainly.eval()
    with torch.no_grad():
        plainly["layers"](values[:1])  # the first pass sets up threads
        measure("torch", plainly["layers"])
    import orion

    class Root(orion.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*layers(shape, orion.nn))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    network = Root()
    network.load_state_dict(state)
    network.eval()  # returns nothing, and must not be chained
    with torch.no_grad():
        network(values[:1])
        measure("clear", network)
    started, before = time.perf_counter(), time.process_time()
    orion.init_scheme(_config(parameters))
    one = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values[:1]), batch_size=1)
    orion.fit(network, one, batch_size=1)  # sets shapes; squares have no range to fit
    level = orion.compile(network)
    packed = (layer.diagonals for layer in network.layers if hasattr(layer, "diagonals"))
    cost["diagonals"] = sum(len(block) for blocks in packed for block in blocks.values())
    cost["set_up"] = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
    network.he()
    measure("ciphertexts", network, lambda x: orion.encrypt(orion.encode(x, level)), lambda y: y.decrypt().decode())
    np.savez(folder / "outputs.npz", **outputs)
    write_json(folder / "cost.json", cost)


def _config(parameters: Parameters) -> dict[str, Any]:
    return {
        "ckks_params": {
            "LogN": parameters.logn, "LogQ": list(parameters.logq), "LogP": list(parameters.logp),
            "LogScale": parameters.log_scale, "H": 2 * (1 << parameters.logn) // 3,
            "RingType": parameters.ring.replace("_", ""),
        },
        "orion": {
            "margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "fuse_modules": True,
            "debug": False, "io_mode": "none",
        },
    }  # fmt: skip


if __name__ == "__main__":
    _one_party(Path(sys.argv[1]))
