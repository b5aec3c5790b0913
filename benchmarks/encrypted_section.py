"""What a real section costs over HTTP, from file to decrypted predictions: tile by tile, in batches, and by orion-fhe.

    python benchmarks/encrypted_section.py RUN SECTION_FILE [--model fhe_cnn] [--fold FOLD] [--orion]
    python benchmarks/encrypted_section.py RUN SECTION_FILE --model fhe_cnn --spots 20 50 100 244 1000 5000 --figure F

RUN is a run folder with trained models (e.g. outputs/breast). The model is compiled; then, for each form, `histocrypt
fhe serve` is started on a free port of this machine and `histocrypt fhe send` is run as a user would run it: keys,
tiles, encryption, evaluation, decryption, file. Beside it the same model in the clear (`histocrypt predict`).

CPU seconds are user and system time of both sides together: all of the client's process, and what the server's took
between the start and the end of the client. Memory is the largest that each process held (VmHWM). Errors are of outputs
without added noise against the clear network, in standard deviations over the training spots, and as a share of the
noise that would be added by default. Kernels are compiled once a machine: run a first section before measuring.

``--orion`` lets orion-fhe evaluate some tiles, in one process that holds the secret key (about 9 GiB at depth 5); what
it would take for the section is extrapolated: its set-up, and each tile as long.

``--spots`` makes sections of so many spots from the given one (an AnnData with patches): some of its spots, or all of
them several times over, under other names and at other places. Tile by tile, more than ``--most-single`` spots are not
run but extrapolated by the line through the last two that were.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HISTOCRYPT = [sys.executable, "-m", "histocrypt"]
FORMS = ("single", "batch")
APART = 1024
"""Pixels between copies of a section."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    seconds: float
    cpu: float
    peak_gib: float
    said: str


def run(*arguments: Any) -> Ran:
    """Run a command of histocrypt; nothing is found again that another one computed."""
    from histocrypt.machine import peak_gib

    started, peak = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        environment = {**os.environ, "HISTOCRYPT_CACHE": cache}
        process = subprocess.Popen([*HISTOCRYPT, *map(str, arguments)], stdout=said, stderr=errors, env=environment)
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.02):
                peak = max(peak, peak_gib(process.pid) or 0.0)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        said.seek(0), errors.seek(0)
        if process.returncode:
            sys.exit(errors.read().decode().strip().splitlines()[-1])
        return Ran(seconds, used.ru_utime + used.ru_stime, peak, said.read().decode().strip())


@contextmanager
def serving(bundle: Path, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run a server; give its process and its address."""
    folder.mkdir()
    path, token = folder / "server.log", folder / "token"
    command = ["fhe", "serve", "--bundle", bundle, "--port", 0, "--token-file", token, "--per-minute", 1_000_000]
    with path.open("w") as log:
        server = subprocess.Popen([*HISTOCRYPT, *map(str, command)], stdout=log, stderr=subprocess.STDOUT)
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", path.read_text())):
            if server.poll() is not None:
                sys.exit(path.read_text())
            time.sleep(0.2)
        yield psutil.Process(server.pid), found[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds that a running process has taken."""
    used = process.cpu_times()
    return used.user + used.system


def repeated(section: Path, spots: int, folder: Path) -> Path:
    """Write a section of so many spots: evenly spread ones of another, or all of them again at other places."""
    import anndata
    import h5py

    source = anndata.read_h5ad(section)
    n = source.n_obs
    rows = np.linspace(0, n - 1, spots).round().astype(int) if spots <= n else np.arange(spots) % n
    copy = np.arange(spots) // n if spots > n else np.zeros(spots, dtype=int)
    extent, side = source.obsm["spatial"].max(axis=0) + APART, int(np.ceil(np.sqrt(copy.max() + 1)))
    moved = (np.stack([copy % side, copy // side], axis=1) * extent).astype(int)
    made = source[rows].copy()
    made.obs = made.obs.drop(columns=["array_row", "array_col"], errors="ignore")  # one slide's own positions
    names = [f"spot{number}" for number in range(spots)]
    made.obs_names, made.obsm["spatial"] = names, made.obsm["spatial"] + moved
    made.uns["section"] = f"{source.uns.get('section', section.stem)}_{spots}"
    path = folder / f"{section.stem}_{spots}.h5ad"
    for library in made.uns["spatial"].values():  # the image is another one
        library.pop("images", None)
        library["metadata"]["source_image_path"] = f"{path.stem}_patches.h5"
        for number, name in enumerate(("fullres_width", "fullres_height")):
            library["metadata"][name] = int(moved[:, number].max() + library["metadata"][name])
    made.write_h5ad(path)
    with (
        h5py.File(section.with_name(f"{section.stem}_patches.h5")) as old,
        h5py.File(path.with_name(f"{path.stem}_patches.h5"), "w") as new,
    ):
        place = {name[0].decode(): row for row, name in enumerate(old["barcode"][()])}
        which = [place[name] for name in source.obs_names[rows]]
        new.attrs.update(old.attrs)
        new["barcode"] = np.array([[name.encode()] for name in names])
        for field in ("coords", "centers"):
            new[field] = old[field][()][which] + moved
        pixels = "jpeg" if "jpeg" in old else "img"
        stored = old[pixels]
        target = new.create_dataset(pixels, (spots, *stored.shape[1:]), dtype=stored.dtype)
        for row, origin in enumerate(which):
            target[row] = stored[origin]
    return path


def send(form: str, model: Path, bundle: Path, section: Path, clear: Path, folder: Path) -> dict[str, float]:
    """Send a section in one form; return what it cost, and the largest error."""
    from histocrypt.encrypted.bundle import best_form, load_client

    folder.mkdir()
    with serving(bundle, folder / "owner") as (server, address):
        before = cpu_of(server)
        arguments = ("--server", address, "--token-file", folder / "owner" / "token", "--form", form)
        output = folder / "sent.h5ad"
        client = run(
            *("fhe", "send", section, *arguments, "--keys", folder / "keys"),
            *("-o", output, "--noise", 0, "--skip-out-of-range"),
        )
        from histocrypt.machine import peak_gib

        server_cpu, server_peak = cpu_of(server) - before, peak_gib(server.pid)
    print(client.said, file=sys.stderr)
    spots, error, share = errors(output, clear, model)
    keys = best_form(load_client(bundle), spots, wanted=form).evaluation_key_bytes() / 2**20
    up = float(re.search(r"(\d+) MiB up", client.said)[1])
    return {
        "spots": spots, "cpu": client.cpu + server_cpu, "client cpu": client.cpu, "server cpu": server_cpu,
        "wall": client.seconds, "server": server_peak, "client": client.peak_gib,
        "up": (up - keys) / spots, "keys": keys, "error": error, "share": share,
    }  # fmt: skip


def errors(sent: Path, clear: Path, model: Path) -> tuple[int, float, float]:
    """Return spots, the largest error in an output's deviation in training, and as a share of the noise by default."""
    import anndata

    from histocrypt.encrypted.key_owner import NOISE

    one, other = anndata.read_h5ad(sent), anndata.read_h5ad(clear)
    other = other[one.obs_names]
    statistics = json.loads((model / "model.json").read_text())["target_statistics"]
    error = share = 0.0
    for layer in one.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in one.var_names])
        apart = np.abs(one.layers[layer] - other.layers[layer])
        error = max(error, float((apart / sd).max()))
        share = max(share, float((apart / (NOISE * one.layers[layer].std(axis=0))).max()))
    return one.n_obs, error, share


def by_orion(model: Path, section: Path, folder: Path, *, tiles: int, spots: int) -> dict[str, float]:
    """Let orion-fhe evaluate some tiles; return what it would take for the section."""
    from histocrypt.encrypted.one_party import run_experiment

    found = run_experiment(model, section, folder, spots=tiles)
    one, once = found.found, found.found.set_up
    return {
        "spots": spots, "cpu": once["cpu_seconds"] + spots * one.cpu_seconds["ciphertexts"],
        "wall": once["seconds"] + spots * one.seconds["ciphertexts"], "server": one.peak_gib["ciphertexts"],
        "error": float((np.abs(one.outputs["ciphertexts"] - found.exact) / found.sd).max()),
    }  # fmt: skip


ROWS = {
    "cpu": ("CPU of both sides, s", ".1f"),
    "client cpu": ("of it the client's, s", ".1f"),
    "server cpu": ("of it the server's, s", ".1f"),
    "wall": ("wall, s", ".1f"),
    "server": ("server's peak, GiB", ".2f"),
    "client": ("client's peak, GiB", ".2f"),
    "up": ("upload a tile, MiB", ".2f"),
    "keys": ("evaluation keys, MiB", ".1f"),
    "error": ("largest error, sd", ".1e"),
    "share": ("largest error, share of the noise", ".3f"),
}


def table(title: str, columns: dict[str, dict[str, float]], clear: Ran) -> None:
    """Print what each way costs, and ratios to the batch."""
    others = [name for name in columns if name != "batch"]
    ratios = [f"{name} / batch" for name in others if "batch" in columns]
    print(f"\n{title}; in the clear {clear.cpu:.1f} CPU s, {clear.seconds:.1f} s, {clear.peak_gib:.2f} GiB")
    print("| | " + " | ".join([*columns, *ratios]) + " |")
    print("|---" * (1 + len(columns) + len(ratios)) + "|")
    for row, (said, how) in ROWS.items():
        cells = [format(found[row], how) if row in found else "" for found in columns.values()]
        both = ("batch" in columns and row in columns[name] for name in others)
        cells += [
            f"{columns[name][row] / columns['batch'][row]:.1f}" if there else ""
            for name, there in zip(others, both, strict=True)
        ][: len(ratios)]
        print(f"| {said} | " + " | ".join(cells) + " |", flush=True)


def line(found: list[dict[str, float]], value: str) -> tuple[float, float]:
    """Return start and slope of the line through the last two measurements."""
    one, other = found[-2:]
    slope = (other[value] - one[value]) / (other["spots"] - one["spots"])
    return one[value] - slope * one["spots"], slope


def curves(measured: dict[str, list[dict[str, float]]], figure: Path | None) -> None:
    """Print seconds against spots, and where both forms cost the same; draw them."""
    single, batch = measured["single"], measured["batch"]
    run_spots = {row["spots"] for row in single}
    print("\n| spots | single, CPU s | batch, CPU s | ratio | single, wall s | batch, wall s |")
    print("|---|---|---|---|---|---|")
    lines = {value: line(single, value) for value in ("cpu", "wall")}
    every = {value: [] for value in lines}
    for row in batch:
        here = next((one for one in single if one["spots"] == row["spots"]), None)
        for value, (start, slope) in lines.items():
            every[value].append(here[value] if here else start + slope * row["spots"])
        cpu, wall = (every[value][-1] for value in ("cpu", "wall"))
        said = "" if here else " (extrapolated)"
        print(
            f"| {row['spots']} | {cpu:.1f}{said} | {row['cpu']:.1f} | {cpu / row['cpu']:.1f} "
            f"| {wall:.1f}{said} | {row['wall']:.1f} |"
        )
    for value, (start, slope) in lines.items():
        equal = (batch[0][value] - start) / slope
        print(f"break-even in {value} seconds: {equal:.0f} spots (a batch of {batch[0]['spots']} against the line)")
    if figure is None:
        return
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (value, title) in zip(
        drawn.subplots(1, 2), {"cpu": "CPU seconds", "wall": "seconds"}.items(), strict=True
    ):
        spots = [row["spots"] for row in batch]
        axes.plot(spots, every[value], "--", color="C1", label="tile by tile, extrapolated")
        axes.plot(sorted(run_spots), [row[value] for row in single], "o-", color="C1", label="tile by tile")
        axes.plot(spots, [row[value] for row in batch], "o-", color="C0", label="in batches")
        axes.set(xscale="log", yscale="log", xlabel="spots of a section", ylabel=f"{title}, both sides")
        axes.grid(alpha=0.3, which="both")
    axes.legend()
    drawn.savefig(figure, dpi=120)
    print(f"drawn: {figure}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("section")
    parser.add_argument("--model", action="append", help="default: fhe_cnn and fhe_head")
    parser.add_argument("--fold", default="")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: both")
    parser.add_argument("--orion", action="store_true", help="also by orion-fhe, as one party")
    parser.add_argument("--orion-tiles", type=int, default=1)
    parser.add_argument("--spots", type=int, nargs="+", help="sections of so many spots, made from this one")
    parser.add_argument("--most-single", type=int, default=300)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    section = Path(given.section)
    if not section.exists():
        from histocrypt.paths import data

        section = data() / section
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for name in given.model or ["fhe_cnn", "fhe_head"]:
        folders = sorted((given.run / "models" / name).glob(given.fold or "fold_*"))
        if not folders:
            sys.exit(f"{given.run}: no trained {name}")
        with tempfile.TemporaryDirectory() as temporary:
            measure(name, folders[0].resolve(), section, Path(temporary), given)


def measure(name: str, model: Path, section: Path, folder: Path, given: argparse.Namespace) -> None:
    """Measure one network, on the section or on sections of several sizes made from it."""
    compiled = run("fhe", "compile", "--model", model, "-o", folder / "bundle")
    print(f"{compiled.said}\ncompiled in {compiled.cpu:.1f} CPU s", file=sys.stderr)
    measured: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for number, spots in enumerate(given.spots or [0]):
        work = folder / str(number)
        work.mkdir()
        here = repeated(section, spots, work) if spots else section
        clear = run("predict", here, "--model", model, "-o", work / "clear.h5ad")
        columns = {}
        for form in given.form or FORMS:
            if form == "single" and spots > given.most_single:
                continue
            columns[form] = send(form, model, folder / "bundle", here, work / "clear.h5ad", work / form)
            measured[form].append(columns[form])
        count = next(iter(columns.values()))["spots"]
        if given.orion and not spots:
            found = by_orion(model, here, work / "orion", tiles=given.orion_tiles, spots=count)
            columns["orion-fhe (one party, extrapolated)"] = found
        table(f"{name}, {model.name}: {count} spots of {here.stem}", columns, clear)
    if min(len(rows) for rows in measured.values()) > 1:
        curves(measured, given.figure)


if __name__ == "__main__":
    main()
