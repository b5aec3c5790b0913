"""How long a real section takes from file to decrypted predictions, over HTTP, for the networks made for encryption.

    python benchmarks/encrypted_section.py RUN SECTION_FILE [--model fhe_cnn] [--fold FOLD]

RUN is a run folder with trained models (e.g. outputs/breast). For each model it compiles, starts `histocrypt fhe serve`
on a free port of this machine, and times `histocrypt fhe send` as a user would run it, keys included and then again
with keys at hand; beside it the same model in the clear (`histocrypt predict`). Keys, server and client live in folders
and processes of their own. Errors are of outputs in standard deviations over the training spots.
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
import time
from pathlib import Path

import anndata
import numpy as np

HISTOCRYPT = [sys.executable, "-m", "histocrypt"]


def timed(*arguments: object) -> tuple[float, str]:
    """Run a command; return seconds and what it said last."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:  # nothing is found again that another command computed
        environment = {**os.environ, "HISTOCRYPT_CACHE": cache}
        command = [*HISTOCRYPT, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        said, errors = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        sys.exit(errors.decode().strip().splitlines()[-1])
    return seconds, said.decode().strip().splitlines()[-1]


def serving(bundle: Path, folder: Path) -> tuple[subprocess.Popen, str]:
    """Start a server; return it and its address."""
    log = (folder / "server.log").open("w+")
    command = [
        *HISTOCRYPT,
        "fhe",
        "serve",
        "--bundle",
        str(bundle),
        "--port",
        "0",
        "--token-file",
        str(folder / "token"),
    ]
    server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
    while server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", (folder / "server.log").read_text())
        if found:
            return server, found[0]
        time.sleep(0.2)
    sys.exit((folder / "server.log").read_text())


def peak_gib(process: subprocess.Popen) -> float:
    """Return the largest memory a running process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("section")
    parser.add_argument("--model", action="append")
    parser.add_argument("--fold", default="")
    given = parser.parse_args()
    rows = []
    for name in given.model or ["fhe_cnn", "fhe_head"]:
        folders = sorted((given.run / "models" / name).glob(given.fold or "fold_*"))
        if not folders:
            sys.exit(f"{given.run}: no trained {name}")
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(measure(name, folders[0], given.section, Path(temporary)))
    print(
        "| network | spots | send, keys made first | send, keys at hand | in the clear | server peak | largest error |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['network']} | {row['spots']} | {row['first']:.1f} s | {row['again']:.1f} s | {row['clear']:.1f} s "
            f"| {row['server']:.2f} GiB | {row['error']:.1e} |"
        )


def measure(name: str, model: Path, section: str, folder: Path) -> dict:
    (folder / "owner").mkdir()
    (folder / "hospital").mkdir()
    print(timed("fhe", "compile", "--model", model, "-o", folder / "owner" / "bundle")[1], file=sys.stderr)
    server, address = serving(folder / "owner" / "bundle", folder / "owner")
    hospital = folder / "hospital"
    try:
        send = ["fhe", "send", section, "--server", address, "--token-file", folder / "owner" / "token"]
        send += ["--keys", hospital / "keys", "--noise", 0, "-o"]
        first = timed(*send, hospital / "first.h5ad")
        again = timed(*send, hospital / "again.h5ad")
        print(first[1], again[1], sep="\n", file=sys.stderr)
        server_peak = peak_gib(server)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    clear = timed("predict", section, "--model", model, "-o", folder / "clear.h5ad")
    one, other = anndata.read_h5ad(hospital / "again.h5ad"), anndata.read_h5ad(folder / "clear.h5ad")
    assert list(one.obs_names) == list(other.obs_names)
    statistics = json.loads((model / "model.json").read_text())["target_statistics"]
    error = 0.0
    for layer in one.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in one.var_names])
        error = max(error, float((np.abs(one.layers[layer] - other.layers[layer]) / sd).max()))
    return {
        "network": name, "spots": one.n_obs, "first": first[0], "again": again[0], "clear": clear[0],
        "server": server_peak, "error": error,
    }  # fmt: skip


if __name__ == "__main__":
    main()
