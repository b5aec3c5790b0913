"""What encrypted inference costs on random weights: time, memory, sizes and error; beside orion-fhe if asked to.

    python benchmarks/encrypted.py [--depth 5 --depth 9] [--outputs 250] [--tiles 12] [--orion]

For `fhe_cnn` at each depth (3 x 64 x 64 tiles, batch norms calibrated) the parties work as their users run them: a
process for each step, a folder for each party, real ciphertexts, the commands' own functions. Compile and evaluate
belong to the model's owner; keygen, encrypt and decrypt to the key owner, who also compares the result with torch.
Peaks are what a whole process ever held (VmHWM), memory-mapped files included. CPU seconds stand beside wall seconds
because they do not depend on what else the machine does. Nothing is simulated.

With ``--orion`` the same network is evaluated by orion-fhe, in one process that holds the secret key: it gets the same
weights, inputs, ring, primes and scale, and packs, fuses and evaluates in its own way (`histocrypt.encrypted.orion`).
What memory it takes is said before: about 9 GiB at depth 5.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 64
HEAD_FEATURES = 1280
"""Of the encoder that `fhe_head` reads by default."""
SPREAD = 1.5
"""Standard deviation of inputs to the head; inputs to the network are standard normal."""


def cnn(folder: Path, *, depth: int, outputs: int, pool: int, tiles: int, orion_tiles: int) -> dict[str, Any]:
    """Compile `fhe_cnn` with random weights; write the bundle, and what the comparison needs."""
    import torch

    from histocrypt.encrypted.lowering import lower
    from histocrypt.models.fhe import STRIDES, FheCnn

    torch.manual_seed(depth)
    pool = pool or SIDE // math.prod(STRIDES[depth])
    network = FheCnn(outputs, depth=depth, pool=pool, side=SIDE)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over all batches
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(16, 3, SIDE, SIDE))
        network.eval()
        x = torch.randn(tiles, 3, SIDE, SIDE)
        expected = network.double()(x.double()).numpy()
    network.float()
    started = time.perf_counter()
    lowered = lower(network, (3, SIDE, SIDE))
    described = {
        "sees": "tiles", "batch": 1, "input": {"kind": "tiles", "shape": [3, SIDE, SIDE], "factors": lowered.strides},
        "normalisation": {"by_section": False, "mean": [0] * 3, "sd": [1] * 3},
    }  # fmt: skip
    result, parameters = bundle(folder, lowered, described, x.numpy(), expected, started)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    np.savez(folder / "network.npz", **state, tiles=x.numpy(), expected=expected)
    about = {"depth": depth, "width": 1.0, "pool": pool, "side": SIDE, "outputs": outputs, "parameters": parameters}
    (folder / "network.json").write_text(json.dumps({**about, "orion_tiles": orion_tiles}))
    return result


def head(folder: Path, *, outputs: int, tiles: int) -> dict[str, Any]:
    """Compile a linear head as `fhe_head` has it."""
    from histocrypt.encrypted.compile import HEAD_BATCH
    from histocrypt.encrypted.lowering import Lowered, linear

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(outputs, HEAD_FEATURES)) / np.sqrt(HEAD_FEATURES)
    started = time.perf_counter()
    lowered = Lowered([linear(weight, rng.normal(size=outputs), (HEAD_FEATURES,))], [])
    described = {
        "sees": "features", "batch": HEAD_BATCH,
        "input": {"kind": "features", "shape": [HEAD_FEATURES, HEAD_BATCH], "encoder": "none"},
        "normalisation": {"by_section": False, "mean": [0.0] * HEAD_FEATURES, "sd": [1.0] * HEAD_FEATURES},
    }  # fmt: skip
    x = rng.normal(size=(tiles * HEAD_BATCH, HEAD_FEATURES)) * SPREAD
    return bundle(folder, lowered, described, x, lowered(x), started)[0]


def bundle(
    folder: Path, lowered: Any, described: dict, x: np.ndarray, expected: np.ndarray, started: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the bundle of a network, its inputs and its clear outputs; return what it cost, and its parameters."""
    from histocrypt.encrypted.compile import compile_lowered, write_bundle

    compiled = compile_lowered(lowered, described)
    about = {
        **described, "model": "benchmark", "title": "random weights", "panel": {}, "transforms": [], "geometry": {},
        "outputs": [f"output {number}" for number in range(expected.shape[1])], "preprocessing": {}, "stain": {},
        "input_range": [float(x.min()), float(x.max())], "output_range": [float(expected.min()), float(expected.max())],
        "study": {}, "fold": "none", "seed": 0, "weights_sha256": "",
    }  # fmt: skip
    write_bundle(folder / "bundle", compiled, about, {})
    seconds = time.perf_counter() - started
    np.savez(folder / "inputs.npz", x=x, expected=expected)
    cost = {
        "compile_seconds": seconds, "diagonals": compiled.diagonals, "levels": lowered.levels,
        "rotations": len(compiled.rotations), "logn": compiled.parameters.logn, "log_qp": compiled.parameters.log_qp,
    }  # fmt: skip
    return cost, compiled.parameters.to_dict()


def keygen(folder: Path) -> dict[str, Any]:
    from histocrypt.encrypted.key_owner import keygen

    started = time.perf_counter()
    keygen(folder / "client.json", folder / "keys")
    return {"seconds": time.perf_counter() - started, "bytes": (folder / "keys" / "evaluation.keys").stat().st_size}


def encrypt(folder: Path) -> dict[str, Any]:
    """Encrypt all inputs, and one alone."""
    from histocrypt.encrypted.key_owner import Keys, Prepared, encrypt

    x = np.load(folder / "inputs.npz")["x"]
    keys, cost = Keys(folder / "keys"), {}
    for name, chosen in (("one", x[: keys.client.batch]), ("all", x)):
        n = len(chosen)
        names = np.array([f"section:{number}" for number in range(n)])
        prepared = Prepared("section", names, np.zeros((n, 2)), "patient", chosen, {"without_prediction": {}})
        started = time.perf_counter()
        encrypt(prepared, keys, folder / name, canaries=0)
        cost["seconds"] = (time.perf_counter() - started) / n
    cost["bytes"] = (folder / "all" / "00000.ct").stat().st_size
    return cost


def decrypt(folder: Path) -> dict[str, Any]:
    """Decrypt all outputs, without noise, and compare them with the clear network."""
    from histocrypt.encrypted.key_owner import Keys, decrypt

    started = time.perf_counter()
    _, values = decrypt(folder / "all.out", Keys(folder / "keys"))
    seconds = (time.perf_counter() - started) / len(values)
    expected = np.load(folder / "inputs.npz")["expected"]
    error = np.abs(values - expected)
    return {
        "seconds": seconds, "error": float(error.max()), "mean_error": float(error.mean()),
        "spread": float(expected.std()), "bytes": (folder / "all.out" / "00000.ct").stat().st_size,
    }  # fmt: skip


def orion_fhe(folder: Path) -> dict[str, Any]:
    """Evaluate some tiles of the network by orion-fhe, and compare them with the clear network."""
    import torch

    from histocrypt.encrypted import orion
    from histocrypt.encrypted.lowering import lower
    from histocrypt.encrypted.parameters import Parameters
    from histocrypt.models.fhe import FheCnn

    about, stored = json.loads((folder / "network.json").read_text()), np.load(folder / "network.npz")
    shape = {name: about[name] for name in ("depth", "width", "side")}
    network = FheCnn(about["outputs"], pool=about["pool"], **shape)
    network.load_state_dict({name: torch.tensor(stored[name]) for name in network.state_dict()})
    lowered = lower(network.eval(), (3, SIDE, SIDE))
    one = orion.plain(network, lowered, {**shape, "outputs": about["outputs"]})
    if one.parameters.to_dict() != Parameters.from_dict(about["parameters"]).to_dict():
        raise RuntimeError("orion-fhe would get other parameters than the two parties")
    if why := orion.unable(one):
        raise SystemExit(why)
    found = orion.evaluate(one, stored["tiles"][: about["orion_tiles"]])
    error = np.abs(found.outputs["ciphertexts"] - stored["expected"][: about["orion_tiles"]])
    return {
        "compile_seconds": found.set_up["seconds"], "seconds": found.seconds["ciphertexts"],
        "cpu": found.cpu_seconds["ciphertexts"], "orion_peak_gib": found.peak_gib["ciphertexts"],
        "stated_gib": found.stated_gib, "error": float(error.max()), "diagonals": found.diagonals,
    }  # fmt: skip


def process(*command: Any) -> str:
    """Run one step in a process of its own; return its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command[1:]))} failed: {done.stderr.strip()[-1000:] or done.returncode}"
        )
    return done.stdout.strip().splitlines()[-1]


def step(*arguments: Any) -> dict[str, Any]:
    """Run a step of this file in a process of its own."""
    return json.loads(process(sys.executable, __file__, *arguments))


def evaluate(folder: Path, name: str, workers: int) -> dict[str, Any]:
    """Evaluate a request with the command that evaluators use; return its own account, and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process(
        *(sys.executable, "-m", "histocrypt", "fhe", "evaluate", folder / name, "--bundle", folder / "bundle"),
        *("--evaluation-keys", folder / "evaluation.keys", "-o", folder / f"{name}.out", "--workers", workers),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"process_cpu": cpu, **json.loads((folder / f"{name}.out" / "cost.json").read_text())}


def hand_over(source: Path, target: Path) -> None:
    """Move a file or folder from one party to another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def two_parties(folder: Path, *compile_arguments: Any) -> dict[str, Any]:
    """Do all steps; return all that was measured."""
    owner, client = folder / "owner", folder / "client"
    owner.mkdir()
    client.mkdir()
    cost = {"compile": step("compile", owner, *compile_arguments)}
    (client / "client.json").write_bytes((owner / "bundle" / "client.json").read_bytes())
    (client / "inputs.npz").write_bytes((owner / "inputs.npz").read_bytes())
    cost["keygen"] = step("keygen", client)
    cost["encrypt"] = step("encrypt", client)
    (owner / "evaluation.keys").write_bytes((client / "keys" / "evaluation.keys").read_bytes())
    for name in ("one", "all"):
        hand_over(client / name, owner / name)
    cost["one"] = evaluate(owner, "one", 1)
    cost["all"] = evaluate(owner, "all", 2)
    hand_over(owner / "all.out", client / "all.out")
    cost["decrypt"] = step("decrypt", client)
    return cost


def rows(cost: dict[str, Any]) -> dict[str, str]:
    """Return the table's rows."""
    one, every, made = cost["one"], cost["all"], cost["compile"]
    batches = every["ciphertexts"]
    marginal = (every["process_cpu"] - one["process_cpu"]) / (batches - 1)
    client = max(cost[step]["peak_gib"] for step in ("keygen", "encrypt", "decrypt"))
    return {
        "levels": f"{made['levels']}",
        "N, log QP": f"2^{made['logn']}, {made['log_qp']}",
        "diagonals": "+".join(map(str, made["diagonals"])),
        "rotation keys": f"{made['rotations']}",
        "compile, s": f"{made['compile_seconds']:.1f}",
        "key generation, s": f"{cost['keygen']['seconds']:.1f}",
        "evaluation keys, MiB": f"{cost['keygen']['bytes'] / 2**20:.0f}",
        "encrypt a tile, s": f"{cost['encrypt']['seconds']:.3f}",
        "ciphertext in, MiB": f"{cost['encrypt']['bytes'] / 2**20:.2f}",
        "load model and keys, s": f"{every['load_seconds']:.1f}",
        "one tile alone, s": f"{one['seconds'] / one['ciphertexts']:.2f}",
        "a tile, two at once, s": f"{every['seconds'] / batches:.3f}",
        "CPU a tile, s": f"{marginal:.2f}",
        "server peak, GiB": f"{every['peak_gib']:.2f}",
        "server, stated before, GiB": f"{every['stated_gib']:.2f}",
        "ciphertext out, MiB": f"{cost['decrypt']['bytes'] / 2**20:.2f}",
        "decrypt a tile, s": f"{cost['decrypt']['seconds']:.3f}",
        "client peak, GiB": f"{client:.2f}",
        "largest absolute error": f"{cost['decrypt']['error']:.1e}",
        "spread of outputs": f"{cost['decrypt']['spread']:.2f}",
    }


def table(columns: dict[str, dict[str, str]]) -> None:
    print(f"{'':<28}" + "".join(f"{name:>24}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:<28}" + "".join(f"{found[row]:>24}" for found in columns.values()))


def beside(depth: int, cost: dict[str, Any], reference: dict[str, Any]) -> str:
    """Return ratios to orion-fhe."""
    one, every = cost["one"], cost["all"]
    batches = every["ciphertexts"]
    alone, shared = one["seconds"] / one["ciphertexts"], every["seconds"] / batches
    marginal = (every["process_cpu"] - one["process_cpu"]) / (batches - 1)
    return (
        f"depth {depth}, orion-fhe 1.0.2 (one process that holds the secret key; {reference['diagonals']} "
        f"diagonals): compile {reference['compile_seconds']:.1f} s, {reference['seconds']:.2f} s a tile "
        f"({reference['cpu']:.2f} s of CPU), peak {reference['orion_peak_gib']:.2f} GiB "
        f"(stated before: {reference['stated_gib']:.2f}), error {reference['error']:.1e}\n"
        f"  histocrypt beside it: compile {reference['compile_seconds'] / cost['compile']['compile_seconds']:.1f} x "
        f"faster; a tile alone {reference['seconds'] / alone:.1f} x, tiles in a row "
        f"{reference['seconds'] / shared:.1f} x faster (CPU a tile {reference['cpu'] / marginal:.1f} x less); "
        f"{reference['orion_peak_gib'] / every['peak_gib']:.1f} x leaner with two at once, "
        f"{reference['orion_peak_gib'] / one['peak_gib']:.1f} x with one"
    )


def do_step(given: argparse.Namespace) -> None:
    """Do one step in this process and print what it cost."""
    if given.step == "compile":
        options = {"outputs": given.outputs, "tiles": given.tiles}
        made = (
            cnn(given.folder, depth=given.depth[0], pool=given.pool, orion_tiles=given.orion_tiles, **options)
            if given.depth
            else head(given.folder, **options)
        )
    else:
        steps = {"keygen": keygen, "encrypt": encrypt, "decrypt": decrypt, "orion": orion_fhe}
        made = steps[given.step](given.folder)
    from histocrypt.machine import peak_gib

    print(json.dumps({**made, "peak_gib": peak_gib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, action="append", help="3, 5, 7 or 9; repeat it; default: 5 and 9")
    parser.add_argument("--outputs", type=int, default=250)
    parser.add_argument("--pool", type=int, default=0, help="side that the last grid is pooled to; 0: not pooled")
    parser.add_argument("--tiles", type=int, default=12, help="tiles evaluated in a row")
    parser.add_argument("--orion", action="store_true", help="also by orion-fhe, as one party")
    parser.add_argument("--orion-tiles", type=int, default=3, help="tiles that orion-fhe evaluates")
    parser.add_argument("--no-head", action="store_true", help="leave out the head on features")
    parser.add_argument("step", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        do_step(given)
        return
    options = ("--outputs", given.outputs, "--tiles", given.tiles)
    columns, compared = {}, []
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for depth in given.depth or (5, 9):
        with tempfile.TemporaryDirectory() as name:
            network = ("--depth", depth, "--pool", given.pool, "--orion-tiles", given.orion_tiles)
            cost = two_parties(Path(name), *options, *network)
            columns[f"depth {depth}"] = rows(cost)
            if given.orion:
                try:
                    reference = step("orion", Path(name) / "owner")
                    compared.append(beside(depth, cost, reference))
                except (
                    RuntimeError
                ) as error:  # too little memory, say; what was measured before is printed all the same
                    compared.append(str(error))
    if columns:
        table(columns)
    for line in compared:
        print(line)
    if not given.no_head:
        with tempfile.TemporaryDirectory() as name:
            cost = two_parties(Path(name), *options)
        batches, spots = cost["all"]["ciphertexts"], 16
        print(
            f"head on features, {HEAD_FEATURES} -> {given.outputs}, {spots} spots in a ciphertext set: "
            f"{1000 * cost['all']['seconds'] / batches / spots:.1f} ms a spot with two at once, "
            f"{1000 * cost['encrypt']['seconds']:.1f} ms to encrypt, {1000 * cost['decrypt']['seconds']:.1f} ms to "
            f"decrypt; server peak {cost['all']['peak_gib']:.2f} GiB, evaluation keys "
            f"{cost['keygen']['bytes'] / 2**20:.0f} MiB, error {cost['decrypt']['error']:.1e}"
        )


if __name__ == "__main__":
    main()
