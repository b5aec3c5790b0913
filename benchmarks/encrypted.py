"""What encrypted inference costs on random weights, tile by tile and in batches; beside orion-fhe if asked to.

    python benchmarks/encrypted.py [--depth 5 --depth 9] [--outputs 250] [--tiles 12] [--batch-tiles 300] [--orion]

For `fhe_cnn` at each depth (3 x 64 x 64 tiles, batch norms calibrated) the parties work as their users run them: a
process for each step, a folder for each party, real ciphertexts, the commands' own functions. Compile and evaluate
belong to the model's owner; keygen, encrypt and decrypt to the key owner, who also compares the result with torch.
Peaks are what a whole process ever held (VmHWM), memory-mapped files included. CPU seconds stand beside wall seconds
because they do not depend on what else the machine does. Nothing is simulated. Every tile is sent twice (tile by tile)
or a third of them are (in batches), as `encrypt` does it: figures "a tile" have the copies in them.

Below each table stands, for each layout of a batch that the run used, what the plan's cost model predicts and what was
measured; ``--every-layout`` runs all of them.

With ``--orion`` the same network is evaluated by orion-fhe, in one process that holds the secret key: it gets the same
weights, inputs, ring, primes and scale, and packs, fuses and evaluates in its own way (`histocrypt.encrypted.orion`).
What memory it takes is said before: about 9 GiB at depth 5.
"""

from __future__ import annotations

import argparse
import json
import os
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


def cnn(folder: Path, *, depth: int, outputs: int, tiles: int, orion_tiles: int) -> dict[str, Any]:
    """Compile `fhe_cnn` with random weights; write the bundle, and what the comparison needs."""
    import torch

    from histocrypt.encrypted.lowering import lower
    from histocrypt.models.fhe import FheCnn

    torch.manual_seed(depth)
    network = FheCnn(outputs, depth=depth, side=SIDE)
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
    about = {"depth": depth, "width": 1.0, "side": SIDE, "outputs": outputs, "parameters": parameters}
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
    from histocrypt.encrypted.batch.plan import make_plan
    from histocrypt.encrypted.compile import EXAMPLES, compile_lowered, write_bundle

    input_range = [float(x.min()), float(x.max())]
    compiled = compile_lowered(lowered, described)
    largest = [*lowered.largest(x.astype(np.float64)), float(np.abs(expected).max())]
    examples = x[:EXAMPLES].astype(np.float64)
    plan = make_plan(lowered, described["input"], input_range=input_range, largest=largest, examples=examples)
    about = {
        **described, "model": "benchmark", "title": "random weights", "panel": {}, "transforms": [], "geometry": {},
        "outputs": [f"output {number}" for number in range(expected.shape[1])], "preprocessing": {}, "stain": {},
        "input_range": input_range, "output_range": [float(expected.min()), float(expected.max())],
        "study": {}, "fold": "none", "seed": 0, "weights_sha256": "",
    }  # fmt: skip
    write_bundle(folder / "bundle", compiled, about, {}, plan)
    seconds = time.perf_counter() - started
    np.savez(folder / "inputs.npz", x=x, expected=expected)
    cost = {
        "compile_seconds": seconds, "diagonals": compiled.diagonals, "levels": lowered.levels,
        "rotations": len(compiled.rotations), "logn": compiled.parameters.logn, "log_qp": compiled.parameters.log_qp,
        "batch_logn": plan.parameters.logn, "batch_log_qp": plan.parameters.log_qp, "proof": plan.proof(),
        "predicted": [plan.costs(layout) for layout in plan.layouts], "places": [one.tiles for one in plan.layouts],
    }  # fmt: skip
    return cost, compiled.parameters.to_dict()


def keygen(folder: Path, name: str, form: str, spots: int, layout: int) -> dict[str, Any]:
    """Make keys for so many spots in a form, and in a given layout of a batch if that is not below 0."""
    from histocrypt.encrypted import key_owner
    from histocrypt.encrypted.batch.client import BatchClient

    if layout >= 0:
        chosen = next(one for one in _forms(folder) if isinstance(one, BatchClient) and one.number == layout)
        key_owner.best_form = lambda *_, **__: chosen
    started = time.perf_counter()
    key_owner.keygen(folder / "client.json", folder / name, spots=spots, form=form)
    seconds = time.perf_counter() - started
    number = getattr(key_owner.Keys(folder / name).client, "number", 0)
    return {"seconds": seconds, "bytes": (folder / name / "evaluation.keys").stat().st_size, "layout": number}


def _forms(folder: Path) -> list[Any]:
    from histocrypt.encrypted.bundle import forms, load_client

    return list(forms(load_client(folder / "client.json")).values())


def encrypt(folder: Path, own: str, name: str, spots: int) -> dict[str, Any]:
    """Encrypt some inputs under keys of one's own."""
    from histocrypt.encrypted.key_owner import Keys, encrypt
    from histocrypt.encrypted.prepare import Prepared

    x, keys = np.load(folder / "inputs.npz")["x"], Keys(folder / own)
    chosen = x[np.arange(spots) % len(x)]
    names = np.array([f"section:{number}" for number in range(spots)])
    about = {"without_prediction": {}}
    prepared = Prepared("section", names, np.zeros((spots, 2)), "patient", chosen, lambda rows: rows, about)
    started, before = time.perf_counter(), time.process_time()
    encrypt(prepared, keys, folder / name)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    note = json.loads((folder / name / "request.json").read_text())
    size = sum(path.stat().st_size for path in (folder / name).glob("*.ct"))
    return {"seconds": seconds, "cpu": cpu, "bytes": size, "messages": note["of"]}


def decrypt(folder: Path, own: str, name: str) -> dict[str, Any]:
    """Decrypt all outputs, without noise, and compare them with the clear network."""
    from histocrypt.encrypted.key_owner import Keys, decrypt

    started, before = time.perf_counter(), time.process_time()
    _, values = decrypt(folder / f"{name}.out", Keys(folder / own))
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    expected = np.load(folder / "inputs.npz")["expected"]
    error = np.abs(values - expected[np.arange(len(values)) % len(expected)])
    return {
        "seconds": seconds, "cpu": cpu, "error": float(error.max()), "mean_error": float(error.mean()),
        "spread": float(expected.std()), "bytes": sum(p.stat().st_size for p in (folder / f"{name}.out").glob("*.ct")),
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
    network = FheCnn(about["outputs"], **shape)
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


def evaluate(folder: Path, own: str, name: str, workers: int) -> dict[str, Any]:
    """Evaluate a request with the command that evaluators use; return its own account."""
    process(
        *(sys.executable, "-m", "histocrypt", "fhe", "evaluate", folder / name, "--bundle", folder / "bundle"),
        *("--evaluation-keys", folder / f"{own}.keys", "-o", folder / f"{name}.out", "--workers", workers),
    )
    return json.loads((folder / f"{name}.out" / "cost.json").read_text())


def hand_over(source: Path, target: Path) -> None:
    """Move a file or folder from one party to another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def through(folder: Path, own: str, name: str, spots: int, *, workers: int) -> dict[str, Any]:
    """Encrypt, evaluate and decrypt some tiles; return what each step took."""
    owner, client = folder / "owner", folder / "client"
    cost = {"spots": spots, "encrypt": step("encrypt", client, own, name, spots)}
    hand_over(client / name, owner / name)
    cost["evaluate"] = evaluate(owner, own, name, workers)
    hand_over(owner / f"{name}.out", client / f"{name}.out")
    return {**cost, "decrypt": step("decrypt", client, own, name)}


def two_parties(folder: Path, given: argparse.Namespace, *compile_arguments: Any) -> dict[str, Any]:
    """Do all steps in both forms; return all that was measured."""
    owner, client = folder / "owner", folder / "client"
    owner.mkdir()
    client.mkdir()
    cost = {"compile": step("compile", owner, *compile_arguments), "keygen": {}}
    (client / "client.json").write_bytes((owner / "bundle" / "client.json").read_bytes())
    (client / "inputs.npz").write_bytes((owner / "inputs.npz").read_bytes())

    def keys(name: str, form: str, spots: int, layout: int = -1) -> int:
        made = step("keygen", client, name, form, spots, layout)
        (owner / f"{name}.keys").write_bytes((client / name / "evaluation.keys").read_bytes())
        cost["keygen"][name] = made
        return made["layout"]

    keys("single", "single", given.tiles)
    chosen = keys("batch", "batch", given.batch_tiles)
    cost["one"] = through(folder, "single", "one", 1, workers=1)
    cost["single"] = through(folder, "single", "all", given.tiles, workers=2)
    cost["batch"] = through(folder, "batch", "many", given.batch_tiles, workers=2)
    cost["layouts"] = {chosen: cost["batch"]}
    for layout, places in enumerate(cost["compile"]["places"] if given.every_layout else ()):
        if layout != chosen:
            spots = 3 * places // 4
            keys(f"layout{layout}", "batch", spots, layout)
            cost["layouts"][layout] = through(folder, f"layout{layout}", f"all{layout}", spots, workers=2)
    return cost


def rows(cost: dict[str, Any], form: str) -> dict[str, str]:
    """Return the table's rows for one form."""
    made, keys, there = cost["compile"], cost["keygen"][form], cost[form]
    sent, done, back, spots = there["encrypt"], there["evaluate"], there["decrypt"], there["spots"]
    client = max(found["peak_gib"] for found in (keys, sent, back))
    single = form == "single"
    logn, log_qp = (made["logn"], made["log_qp"]) if single else (made["batch_logn"], made["batch_log_qp"])
    return {
        "N, log QP": f"2^{logn}, {log_qp}",
        "tiles, messages": f"{spots}, {sent['messages']}",
        "diagonals": "+".join(map(str, made["diagonals"])) if single else "none",
        "key generation, s": f"{keys['seconds']:.1f}",
        "evaluation keys, MiB": f"{keys['bytes'] / 2**20:.1f}",
        "upload a tile, MiB": f"{sent['bytes'] / 2**20 / spots:.2f}",
        "download a tile, MiB": f"{back['bytes'] / 2**20 / spots:.2f}",
        "encrypt, CPU s a tile": f"{sent['cpu'] / spots:.3f}",
        "evaluate, CPU s a tile": f"{done['cpu_seconds'] / spots:.3f}",
        "decrypt, CPU s a tile": f"{back['cpu'] / spots:.4f}",
        "evaluate, s a tile": f"{done['seconds'] / spots:.3f}",
        "load model and keys, s": f"{done['load_seconds']:.1f}",
        "server peak, GiB": f"{done['peak_gib']:.2f}",
        "server, stated before, GiB": f"{done['stated_gib']:.2f}",
        "client peak, GiB": f"{client:.2f}",
        "largest absolute error": f"{back['error']:.1e}",
        "spread of outputs": f"{back['spread']:.2f}",
    }


def table(columns: dict[str, dict[str, str]]) -> None:
    print(f"{'':<28}" + "".join(f"{name:>24}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:<28}" + "".join(f"{found[row]:>24}" for found in columns.values()), flush=True)


def cpu_a_tile(there: dict[str, Any]) -> float:
    """Return the CPU seconds of a tile on both sides: encrypting, evaluating, decrypting; its copies are in it."""
    return (there["encrypt"]["cpu"] + there["evaluate"]["cpu_seconds"] + there["decrypt"]["cpu"]) / there["spots"]


def ratios(cost: dict[str, Any]) -> str:
    """Return the batch beside single tiles."""
    one, other, keys = cost["single"], cost["batch"], cost["keygen"]
    up = [there["encrypt"]["bytes"] / there["spots"] for there in (one, other)]
    server = [there["evaluate"]["cpu_seconds"] / there["spots"] for there in (one, other)]
    return (
        f"tile by tile / in a batch of {other['spots']} tiles: CPU of both sides "
        f"{cpu_a_tile(one) / cpu_a_tile(other):.1f} ({cpu_a_tile(one):.3f} and {cpu_a_tile(other):.3f} s a tile), "
        f"server's {server[0] / server[1]:.1f}, its memory "
        f"{one['evaluate']['peak_gib'] / other['evaluate']['peak_gib']:.1f}, upload {up[0] / up[1]:.1f}, evaluation "
        f"keys {keys['single']['bytes'] / keys['batch']['bytes']:.0f}\n{cost['compile']['proof']}"
    )


def predictions(cost: dict[str, Any]) -> str:
    """Return for each layout that was run what the plan's cost model says of a batch, and what was measured."""
    made, lines = cost["compile"], []
    for layout, there in sorted(cost["layouts"].items()):
        predicted, batches = made["predicted"][layout], there["encrypt"]["messages"]
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in predicted.items())
        lines.append(
            f"layout {layout} ({made['places'][layout]} places): predicted {sum(predicted.values()):.1f} CPU s a batch "
            f"({parts}); measured {cpu_a_tile(there) * there['spots'] / batches:.1f} (encrypt "
            f"{there['encrypt']['cpu'] / batches:.1f}, evaluate "
            f"{there['evaluate']['cpu_seconds'] / batches:.1f}, decrypt "
            f"{there['decrypt']['cpu'] / batches:.1f}), server {there['evaluate']['peak_gib']:.2f} GiB, "
            f"client {max(there['encrypt']['peak_gib'], there['decrypt']['peak_gib']):.2f} GiB"
        )
    return "\n".join(lines)


def beside(depth: int, cost: dict[str, Any], reference: dict[str, Any]) -> str:
    """Return ratios to orion-fhe."""
    one, every, batch = cost["one"]["evaluate"], cost["single"]["evaluate"], cost["batch"]
    alone, shared = one["seconds"] / one["messages"], every["seconds"] / every["messages"]
    cpu = every["cpu_seconds"] / every["messages"]
    return (
        f"depth {depth}, orion-fhe 1.0.2 (one process that holds the secret key; {reference['diagonals']} "
        f"diagonals): compile {reference['compile_seconds']:.1f} s, {reference['seconds']:.2f} s a tile "
        f"({reference['cpu']:.2f} s of CPU), peak {reference['orion_peak_gib']:.2f} GiB "
        f"(stated before: {reference['stated_gib']:.2f}), error {reference['error']:.1e}\n"
        f"  tile by tile beside it, copies left out: compile "
        f"{reference['compile_seconds'] / cost['compile']['compile_seconds']:.1f} x faster; a tile alone "
        f"{reference['seconds'] / alone:.1f} x, tiles in a row {reference['seconds'] / shared:.1f} x faster (CPU a "
        f"tile {reference['cpu'] / cpu:.1f} x less); {reference['orion_peak_gib'] / every['peak_gib']:.1f} x leaner "
        f"with two at once, {reference['orion_peak_gib'] / one['peak_gib']:.1f} x with one\n"
        f"  in a batch of {batch['spots']} tiles, copies counted: CPU a tile of both sides "
        f"{reference['cpu'] / cpu_a_tile(batch):.0f} x less, wall of the evaluation "
        f"{reference['seconds'] / (batch['evaluate']['seconds'] / batch['spots']):.0f} x, "
        f"{reference['orion_peak_gib'] / batch['evaluate']['peak_gib']:.1f} x leaner"
    )


def report(title: str, cost: dict[str, Any]) -> None:
    """Print both forms side by side."""
    print()
    table({f"{title}, {form}": rows(cost, form) for form in ("single", "batch")})
    print(ratios(cost), predictions(cost), sep="\n", flush=True)


def do_step(given: argparse.Namespace) -> None:
    """Do one step in this process and print what it cost."""
    folder, more = Path(given.step[1]), given.step[2:]
    if given.step[0] == "compile":
        options = {"outputs": given.outputs, "tiles": max(given.tiles, given.batch_tiles)}
        made = (
            cnn(folder, depth=given.depth[0], orion_tiles=given.orion_tiles, **options)
            if given.depth
            else head(folder, outputs=given.outputs, tiles=-(-options["tiles"] // 16))
        )
    else:
        steps = {"keygen": keygen, "encrypt": encrypt, "decrypt": decrypt, "orion": orion_fhe}
        made = steps[given.step[0]](folder, *(int(part) if part.lstrip("-").isdigit() else part for part in more))
    from histocrypt.machine import peak_gib

    print(json.dumps({**made, "peak_gib": peak_gib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, action="append", help="3, 5, 7 or 9; repeat it; default: 5 and 9")
    parser.add_argument("--outputs", type=int, default=250)
    parser.add_argument("--tiles", type=int, default=12, help="tiles evaluated in a row")
    parser.add_argument("--batch-tiles", type=int, default=300, help="tiles evaluated in batches")
    parser.add_argument("--every-layout", action="store_true", help="also the batch layouts that were not chosen")
    parser.add_argument("--orion", action="store_true", help="also by orion-fhe, as one party")
    parser.add_argument("--orion-tiles", type=int, default=3, help="tiles that orion-fhe evaluates")
    parser.add_argument("--no-head", action="store_true", help="leave out the head on features")
    parser.add_argument("step", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        do_step(given)
        return
    options = ("--outputs", given.outputs, "--tiles", given.tiles, "--batch-tiles", given.batch_tiles)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for depth in given.depth or (5, 9):
        with tempfile.TemporaryDirectory() as name:
            network = ("--depth", depth, "--orion-tiles", given.orion_tiles)
            cost = two_parties(Path(name), given, *options, *network)
            report(f"depth {depth}", cost)
            if given.orion:
                try:
                    print(beside(depth, cost, step("orion", Path(name) / "owner")), flush=True)
                except RuntimeError as error:  # too little memory, say
                    print(error)
    if not given.no_head:
        with tempfile.TemporaryDirectory() as name:
            report("head", two_parties(Path(name), given, *options))


if __name__ == "__main__":
    main()
