"""Print what the reference's ResNet-18, with squares for activations, costs between two parties that are processes.

    python benchmarks/fhe_resnet18.py FOLDER [--light] [--model resnet18] [--tiles 4] [--workers 1] [--memory GIB]
    python benchmarks/fhe_resnet18.py FOLDER --study studies/breast.yaml [--model resnet18] [--fold NAME] [--tiles 1]

Without a study the network has random weights, and batch norm that has seen random tiles: all that engine work needs
(``--light``: two blocks, width 16). With one, trained weights and tiles of a held-out section. ``resnet18`` is the
clear network: its ReLUs are evaluated by minimax polynomials. Each party has a folder and processes of its own: the
model owner compiles, the key owner makes keys and encrypts, the evaluator evaluates, the key owner decrypts. A stage
whose figures lie in FOLDER is not done again, and an evaluation goes on with the layer at which it was stopped. FOLDER
takes 12 GiB.
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


def random_network(model: str, tiles: int, *, light: bool) -> tuple:
    """Return a network with random weights, and tiles for calibration and for the client."""
    import torch

    from histocrypt.models.fhe import FheResNet18
    from histocrypt.models.resnet18 import ResNet18

    torch.manual_seed(0)
    if model == "resnet18":
        network = ResNet18(OUTPUTS, average_pool=True)
    else:
        network = FheResNet18(OUTPUTS, width=16, blocks=(1, 1)) if light else FheResNet18(OUTPUTS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over what was seen
    with torch.no_grad():
        network.train()(torch.randn(32, 3, SIDE, SIDE))
    images = torch.randn(max(4, tiles), 3, SIDE, SIDE)
    return network.eval(), images, images[:tiles]


def trained_network(study_file: Path, model: str, fold_name: str | None, tiles: int) -> tuple:
    """Return a trained network, training tiles for calibration, and tiles of a held-out section for the client."""
    import torch

    from histocrypt.data.fold_statistics import PANEL
    from histocrypt.data.folds import load_fold, load_folds
    from histocrypt.data.load import load_spots
    from histocrypt.pipeline.checkpoints import load_model
    from histocrypt.predictors.registry import tile_side
    from histocrypt.study import load_study
    from histocrypt.targets.panels import Panel

    study = load_study(study_file)
    fold = load_fold(study.run.folds, fold_name) if fold_name else load_folds(study.run.folds)[0]
    predictor = load_model(study.run.model(model, fold.name), device="cpu").predictor
    panel, side = Panel.load(study.run.fold(fold.name) / PANEL), tile_side(model, study.training_of(model))

    def images(section: str) -> torch.Tensor:
        return predictor.inputs(load_spots(study, fold, [section], panel=panel, with_targets=False, side=side))

    rng, seen = np.random.default_rng(0), []
    for section in fold.training_sections:
        found = images(section)
        seen.append(found[rng.permutation(len(found))[:32]])
    held_out = images(fold.test_sections[0])
    print(f"{model} of {study.name}, {fold.name}: {tiles} tiles of {fold.test_sections[0]}, which no training saw")
    return predictor.network.eval(), torch.cat(seen), held_out[rng.permutation(len(held_out))[:tiles]]


def compile_stage(folder: Path, given: argparse.Namespace) -> dict:
    """Write the evaluator's network, and the key owner's tiles with what the network says of them in the clear."""
    import torch

    from histocrypt.encrypted.parameters import bootstrapped, check_security
    from histocrypt.encrypted.resnet.compile import compile_network
    from histocrypt.encrypted.resnet.residual import lower, normalised
    from histocrypt.encrypted.resnet.run import estimate

    if given.study:
        network, calibration, images = trained_network(given.study, given.model, given.fold, given.tiles)
    else:
        network, calibration, images = random_network(given.model, given.tiles, light=given.light)
    lowered = normalised(lower(network, SIDE), calibration.numpy())
    with torch.no_grad():
        says = network(images).numpy()
    seen: list[np.ndarray] = []
    matrices = lowered(images.double().numpy(), seen=seen)
    parameters = bootstrapped()
    made = compile_network(lowered, parameters, folder / "evaluator" / "network")
    cost = estimate([vars(step) for step in made.steps], parameters)
    print(cost, flush=True)
    (folder / "client").mkdir(exist_ok=True)
    slots = np.stack([made.source.pack(image) for image in images.numpy()])
    np.savez(folder / "client" / "tiles.npz", slots=slots, expected=says)
    polynomials = lowered.minimax_relu(images.double().numpy()) if lowered.activation == "relu" else matrices
    return {
        "diagonals": cost.diagonals,
        "levels": cost.levels,
        "bootstrappings": cost.refreshes,
        "estimated seconds": cost.seconds(len(images), len(images)),
        "rotation keys": len(made.rotations),
        "security bits": check_security(parameters),
        "largest value before an activation": max(float(np.abs(z).max()) for z in seen),
        "difference of torch and its matrices": float(np.abs(matrices - says).max()),
        "difference of torch and its polynomials": float(np.abs(polynomials - says).max()),
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
    from histocrypt.encrypted.resnet.keys import bootstrapping_pieces

    owner, stored = _owner(folder, new=True)
    secret, public = owner.generate()
    client, evaluator = folder / "client", folder / "evaluator"
    descriptor = os.open(client / "secret_key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    (client / "public_key").write_bytes(public)
    sizes = []
    with (evaluator / "keys").open("wb") as file:
        for pieces in (owner.evaluation_keys(stored["rotations"]), bootstrapping_pieces(owner)):
            sizes.append(sum(map(file.write, pieces)) / 2**30)
    return dict(zip(("rotation keys GiB", "bootstrapping keys GiB"), sizes, strict=True))


def encrypt_stage(folder: Path) -> dict:
    """Encrypt the tiles."""
    from histocrypt.encrypted.resnet.run import write_ciphertexts

    owner, stored = _owner(folder)
    size = 0
    for number, slots in enumerate(np.load(folder / "client" / "tiles.npz")["slots"]):
        sent = [owner.encrypt(values, stored["level"]) for values in slots]
        write_ciphertexts(folder / "evaluator" / f"tile{number}.ct", sent)
        size += sum(map(len, sent))
    return {"tiles": number + 1, "sent MiB a tile": size / (number + 1) / 2**20}


def evaluate_stage(folder: Path, given: argparse.Namespace) -> dict:
    """Evaluate the tiles; one line a layer."""
    from histocrypt.encrypted.resnet.run import AHEAD_GIB, TOGETHER_GIB, Timing, evaluate

    evaluator, waited = folder / "evaluator", []

    def show(timing: Timing) -> None:
        waited.append(timing.waited)
        print(f"  {timing.step:14}{timing.waited:8.1f} s for diagonals{timing.evaluated:8.1f} s evaluated", flush=True)

    tiles, started = sorted(evaluator.glob("tile*.ct")), time.monotonic()
    ahead = TOGETHER_GIB if len(tiles) > 1 else AHEAD_GIB
    how = {"refreshers": given.workers, "ahead_gib": ahead, "progress": show}
    evaluate(evaluator / "network", evaluator / "keys", tiles, evaluator / "work", **how)
    return {"seconds a tile": (time.monotonic() - started) / len(tiles), "waited for diagonals s": sum(waited)}


def decrypt_stage(folder: Path) -> dict:
    """Decrypt and compare with the network in the clear."""
    from histocrypt.encrypted.resnet.run import read_ciphertexts

    owner, _ = _owner(folder)
    expected = np.load(folder / "client" / "tiles.npz")["expected"]
    found, size = [], 0
    for number in range(len(expected)):
        answer = read_ciphertexts(folder / "evaluator" / "work" / f"tile{number}" / "head.ct")
        found.append(owner.decrypt(answer[0])[: expected.shape[1]])
        size += sum(map(len, answer))
    error = np.abs(np.array(found) - expected)
    return {
        "answer MiB a tile": size / len(expected) / 2**20,
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "spread of outputs": float(expected.std()),
    }


def run_stage(role: str, folder: Path, given: argparse.Namespace) -> None:
    """Do one stage in this process and write its figures."""
    started = time.monotonic()
    stage = {
        "compile": lambda: compile_stage(folder, given), "keys": lambda: keys_stage(folder),
        "encrypt": lambda: encrypt_stage(folder), "evaluate": lambda: evaluate_stage(folder, given),
        "decrypt": lambda: decrypt_stage(folder),
    }  # fmt: skip
    figures = stage[role]()
    own = {"seconds": time.monotonic() - started, "processor seconds": time.process_time(), "peak GiB": peak_gib()}
    (folder / f"{role}.json").write_text(json.dumps(own | figures, indent=2), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run every stage in a process of its own and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--light", action="store_true", help="random weights: two blocks of width 16")
    parser.add_argument("--study", type=Path, help="trained weights and real tiles of this study, which has run")
    parser.add_argument("--model", default="fhe_resnet18", help="fhe_resnet18, or resnet18 for ReLUs")
    parser.add_argument("--fold", help="with --study: the first fold by default")
    parser.add_argument("--tiles", type=int, default=1, help="that are evaluated together")
    parser.add_argument("--workers", type=int, default=1, help="tiles that are refreshed at once; each takes 7 GiB")
    parser.add_argument(
        "--memory", type=float, help="GiB above which the evaluator collects garbage at once; default: what it needs"
    )
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role:
        run_stage(given.role, given.folder, given)
        return 0
    given.memory = given.memory or 10 + 3 * (given.tiles > 1) + 7 * (given.workers - 1)
    (given.folder / "evaluator").mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        if not (given.folder / f"{role}.json").is_file():
            limits = {"evaluate": {"GOGC": "100", "GOMEMLIMIT": f"{given.memory:g}GiB"}}.get(role, {"GOGC": "10"})
            again = [sys.executable, __file__, *(arguments or sys.argv[1:]), "--role", role]
            done = subprocess.run(again, env=os.environ | {"OMP_NUM_THREADS": "1"} | limits, check=False)
            if done.returncode:
                return done.returncode
        figures = json.loads((given.folder / f"{role}.json").read_text(encoding="utf-8"))
        print(f"{role}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
