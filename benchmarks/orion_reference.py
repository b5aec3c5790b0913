"""The network of `benchmarks/encrypted.py` evaluated by orion-fhe 1.0.2 as it comes: a reference, not two parties.

    python -m venv ENV && ENV/bin/pip install -r benchmarks/requirements-orion.txt
    python benchmarks/encrypted.py --orion ENV/bin/python

One process makes the keys, encrypts, evaluates and decrypts; it holds the secret key, and orion-fhe has no way to send
a ciphertext or evaluation keys elsewhere. It gets the same weights, inputs and CKKS parameters (ring, primes, scale and
a secret of uniform ternary weight) as the compiled network beside it, and its own packing, fusing and evaluation.
Called by `encrypted.py` with a folder; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import histocrypt.torchvision_ops  # noqa: F401  orion imports torchvision
from histocrypt.models.fhe import build_layers


def peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def main(folder: Path) -> None:
    import orion
    from torch.utils.data import DataLoader, TensorDataset

    about = json.loads((folder / "network.json").read_text())
    stored = np.load(folder / "network.npz")

    class Network(orion.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = {name: about[name] for name in ("depth", "width", "pool", "side")}
            self.layers = torch.nn.Sequential(*build_layers(about["outputs"], ops=orion.nn, **shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    network = Network()
    network.load_state_dict({name: torch.tensor(stored[name]) for name in stored.files if name.startswith("layers.")})
    network.eval()  # returns nothing, and must not be chained
    tiles, expected = torch.tensor(stored["tiles"]), stored["expected"]
    parameters = about["parameters"]
    orion.init_scheme(
        {
            "ckks_params": {
                "LogN": parameters["logn"], "LogQ": parameters["logq"], "LogP": parameters["logp"],
                "LogScale": parameters["log_scale"], "H": 2 * (1 << parameters["logn"]) // 3,
                "RingType": parameters["ring"].replace("_", ""),
            },
            "orion": {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "fuse_modules": True,
                      "debug": False, "io_mode": "none"},
        }
    )  # fmt: skip
    started = time.perf_counter()
    orion.fit(network, DataLoader(TensorDataset(tiles), batch_size=1), batch_size=1)
    level = orion.compile(network)
    compile_seconds = time.perf_counter() - started
    network.he()
    seconds, cpu, errors = [], [], []
    for tile, wanted in zip(tiles[: about["orion_tiles"]], expected, strict=False):
        ciphertext = orion.encrypt(orion.encode(tile[None], level))
        before, cpu_before = time.perf_counter(), time.process_time()
        output = network(ciphertext)
        seconds.append(time.perf_counter() - before)
        cpu.append(time.process_time() - cpu_before)
        found = output.decrypt().decode().detach().numpy().reshape(-1)[: len(wanted)]
        errors.append(float(np.abs(found - wanted).max()))
    linear = [layer for layer in network.layers if hasattr(layer, "diagonals")]
    print(
        json.dumps(
            {
                "compile_seconds": compile_seconds,
                "seconds": float(np.median(seconds)),
                "cpu": float(np.median(cpu)),
                "peak_gib": peak_gib(),
                "error": max(errors),
                "level": level,
                "diagonals": sum(len(found) for layer in linear for found in layer.diagonals.values()),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
