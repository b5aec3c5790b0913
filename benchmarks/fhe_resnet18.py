"""Print what the reference's ResNet-18, with squares for activations, costs between two parties that are processes.

    python benchmarks/fhe_resnet18.py FOLDER [--light] [--memory 10]

The network has random weights, and batch norm that has seen random tiles: all that engine work needs. Each party has a
folder and processes of its own: the model owner compiles, the key owner makes keys and encrypts one tile, the evaluator
evaluates it, the key owner decrypts. A stage whose figures lie in FOLDER is not done again, and an evaluation goes on
with the layer at which it was stopped. FOLDER takes 12 GiB. ``--light``: two blocks, width 16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

OUTPUTS, SIDE = 250, 64
ROLES = ("compile", "keys", "encrypt", "evaluate", "decrypt")


def peak_gib() -> float:
    """Return the most memory that this process has held, GiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def compile_stage(folder: Path, *, light: bool) -> dict:
    """Write the evaluator's network, and the key owner's tile with what the network says of it in the clear."""
    import torch

    from histocrypt.encrypted.bootstrapped import compile_network
    from histocrypt.encrypted.bootstrapping import bootstrapped
    from histocrypt.encrypted.parameters import check_security
    from histocrypt.encrypted.residual import lower, normalised
    from histocrypt.models.fhe_resnet import FheResNet18

    torch.manual_seed(0)
    network = FheResNet18(OUTPUTS, width=16, blocks=(1, 1)) if light else FheResNet18(OUTPUTS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over what was seen
    with torch.no_grad():
        network.train()(torch.randn(32, 3, SIDE, SIDE))
        images = torch.randn(4, 3, SIDE, SIDE)
        says = network.eval()(images).numpy()
    lowered = normalised(lower(network, SIDE), images.numpy())
    parameters = bootstrapped()
    made = compile_network(lowered, parameters, folder / "evaluator" / "network")
    (folder / "client").mkdir(exist_ok=True)
    np.savez(folder / "client" / "tile.npz", slots=made.source.pack(images[0].numpy()), expected=says[0])
    return {
        "diagonals": sum(step.diagonals for step in made.steps),
        "rotation keys": len(made.rotations),
        "bootstrappings": sum(step.refreshes for step in made.steps),
        "security bits": check_security(parameters),
        "difference of torch and its matrices": float(np.abs(lowered(images[:1].numpy())[0] - says[0]).max()),
    }


def _owner(folder: Path, *, new: bool = False):
    """Return the key owner, with the keys of an earlier stage."""
    from histocrypt.encrypted.engine import KeyOwner
    from histocrypt.encrypted.parameters import Parameters, check_security

    stored = json.loads((folder / "evaluator" / "network" / "steps.json").read_text(encoding="utf-8"))
    parameters, client = Parameters.from_dict(stored["parameters"]), folder / "client"
    check_security(parameters)
    if new:
        return KeyOwner(parameters), stored
    secret, public = (client / "secret_key").read_bytes(), (client / "public_key").read_bytes()
    return KeyOwner(parameters, secret=secret, public=public), stored


def keys_stage(folder: Path) -> dict:
    """Make the key owner's keys; the evaluator gets those it computes with."""
    from histocrypt.encrypted.bootstrapping_keys import write_bootstrapping_keys

    owner, stored = _owner(folder, new=True)
    secret, public = owner.generate()
    client, evaluator = folder / "client", folder / "evaluator"
    descriptor = os.open(client / "secret_key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    (client / "public_key").write_bytes(public)
    with (evaluator / "keys").open("wb") as file:
        for piece in owner.evaluation_keys(stored["rotations"]):
            file.write(piece)
    size = write_bootstrapping_keys(owner, evaluator / "bootstrapping_keys")
    return {"rotation keys GiB": (evaluator / "keys").stat().st_size / 2**30, "bootstrapping keys GiB": size / 2**30}


def encrypt_stage(folder: Path) -> dict:
    """Encrypt the tile."""
    from histocrypt.encrypted.resnet_run import write_ciphertexts

    owner, stored = _owner(folder)
    slots = np.load(folder / "client" / "tile.npz")["slots"]
    sent = [owner.encrypt(values, stored["level"]) for values in slots]
    write_ciphertexts(folder / "evaluator" / "tile.ct", sent)
    return {"sent MiB": sum(map(len, sent)) / 2**20}


def evaluate_stage(folder: Path) -> dict:
    """Evaluate the tile; one line a layer."""
    from histocrypt.encrypted.resnet_run import Timing, evaluate

    evaluator, waited = folder / "evaluator", []

    def show(timing: Timing) -> None:
        waited.append(timing.waited)
        print(f"  {timing.step:14}{timing.waited:8.1f} s for diagonals{timing.evaluated:8.1f} s evaluated", flush=True)

    evaluate(
        evaluator / "network", evaluator / "keys", evaluator / "bootstrapping_keys", [evaluator / "tile.ct"],
        evaluator / "work", progress=show,
    )  # fmt: skip
    return {"waited for diagonals s": sum(waited)}


def decrypt_stage(folder: Path) -> dict:
    """Decrypt and compare with the network in the clear."""
    from histocrypt.encrypted.resnet_run import read_ciphertexts

    owner, _ = _owner(folder)
    answer = read_ciphertexts(folder / "evaluator" / "work" / "tile" / "head.ct")
    expected = np.load(folder / "client" / "tile.npz")["expected"]
    error = np.abs(owner.decrypt(answer[0])[: len(expected)] - expected)
    return {
        "answer MiB": sum(map(len, answer)) / 2**20,
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "spread of outputs": float(expected.std()),
    }


def run_stage(role: str, folder: Path, *, light: bool) -> None:
    """Do one stage in this process and write its figures."""
    started = time.monotonic()
    stage = {
        "compile": lambda: compile_stage(folder, light=light), "keys": lambda: keys_stage(folder),
        "encrypt": lambda: encrypt_stage(folder), "evaluate": lambda: evaluate_stage(folder),
        "decrypt": lambda: decrypt_stage(folder),
    }  # fmt: skip
    figures = stage[role]()
    own = {"seconds": time.monotonic() - started, "processor seconds": time.process_time(), "peak GiB": peak_gib()}
    (folder / f"{role}.json").write_text(json.dumps(own | figures, indent=2), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run every stage in a process of its own and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--light", action="store_true", help="two blocks of width 16")
    parser.add_argument(
        "--memory", type=float, default=10, help="GiB above which the evaluator collects garbage at once"
    )
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role:
        run_stage(given.role, given.folder, light=given.light)
        return 0
    (given.folder / "evaluator").mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        if not (given.folder / f"{role}.json").is_file():
            limits = {"evaluate": {"GOGC": "100", "GOMEMLIMIT": f"{given.memory:g}GiB"}}.get(role, {"GOGC": "10"})
            again = [sys.executable, __file__, str(given.folder), "--role", role] + ["--light"] * given.light
            done = subprocess.run(again, env=os.environ | {"OMP_NUM_THREADS": "1"} | limits, check=False)
            if done.returncode:
                return done.returncode
        figures = json.loads((given.folder / f"{role}.json").read_text(encoding="utf-8"))
        print(f"{role}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
