"""A folder of slides in one command, killed twice, beside a plain loop over `predict`: seconds and peak memory a slide.

    python benchmarks/folder.py FOLDER [--cores 2] [--kills 2] [--few] [--json]

Twenty slides are put together in FOLDER: the real sections of HISTOCRYPT_DATA, the pictures of those that have one as
slides of their own (a grid of 200 um), simulated tissue, a picture that is truncated, one whose resolution the list
gives ten times too coarse, and one that is no H&E (simulated tissue with its colours inverted, bright on black). With
``--few``, one of each kind. `histocrypt predict LIST -o OUT` is killed with SIGKILL each time another share of the
slides is done, then ends; then a loop runs `histocrypt predict SLIDE` for each. Both use the model in the box.

Each has a cache of features of its own, empty at the beginning. CPU seconds are those of all a slide's work; the loop's
hold the imports of each of its processes, which the folder's share. Peak memory is the largest of the slide's own
process. Where both predict, predictions are compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HISTOCRYPT = (sys.executable, "-m", "histocrypt")
HER2ST_UM = 0.688
"""Micrometres a pixel of the pictures of HER2ST."""
DEMO = 4
MAKE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from histocrypt.demo.write import write_demo
folder, sections = Path(sys.argv[1]), int(sys.argv[2])
files = write_demo(folder / "demo", n_sections=sections, seed=0)
pixels = np.asarray(Image.open(Path(files[0]).with_suffix(".png")).convert("RGB"))
Image.fromarray(255 - pixels).save(folder / "inverted.png")
"""
COMPARE = """
import sys, anndata, numpy as np
one, other = (anndata.read_h5ad(path) for path in sys.argv[1:])
print(float(np.abs(one.X - other.X).max()) if list(one.var_names) == list(other.var_names) else float("nan"))
"""


def make(folder: Path, data: Path, *, few: bool) -> Path:
    """Put the slides together, once; return the list."""
    listing = folder / "slides.csv"
    if listing.is_file():
        return listing
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", MAKE, str(folder), str(1 if few else DEMO)], check=True)
    sections = sorted(path for path in data.glob("*.h5ad") if "patient" not in path.stem)
    pictures = [path.with_suffix(".jpg") for path in sections if path.with_suffix(".jpg").is_file()]
    if not pictures:
        raise SystemExit(f"no section with a picture in {data}: set HISTOCRYPT_DATA")
    truncated, coarse = folder / "truncated.jpg", folder / "too_coarse.jpg"
    truncated.write_bytes(pictures[0].read_bytes()[:200_000])
    shutil.copyfile(pictures[0], coarse)
    for picture in pictures:
        shutil.copyfile(picture, folder / f"slide_{picture.name}")
    rows = [(path, "") for path in sections[: 1 if few else None]]
    rows += [(folder / f"slide_{picture.name}", HER2ST_UM) for picture in pictures[: 1 if few else None]]
    rows += [(path, "") for path in sorted((folder / "demo").glob("*.h5ad"))]
    rows += [(truncated, HER2ST_UM), (coarse, 10 * HER2ST_UM), (folder / "inverted.png", 1.0)]
    with listing.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "um_per_px"), *rows])
    return listing


def fresh(cache: Path) -> dict[str, str]:
    """Return an environment whose cache of features is empty."""
    shutil.rmtree(cache, ignore_errors=True)
    return {**os.environ, "HISTOCRYPT_CACHE": str(cache)}


def states(output: Path) -> dict[str, dict[str, Any]]:
    """Return the states of the slides that have ended, by their paths."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/state.json")))
    return {state["path"]: state for state in found}


def by_folder(listing: Path, output: Path, *, cores: int, kills: int, total: int) -> dict[str, Any]:
    """Run the command over all slides, killed so many times; return how it went."""
    command = [*HISTOCRYPT, "predict", str(listing), "-o", str(output), "--cores", str(cores), "--json"]
    began, killed, environment = time.monotonic(), [], fresh(output.with_name("cache_of_folder"))
    for number in range(kills):
        enough = round(total * (number + 1) / (kills + 1))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while len(states(output)) < enough and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(len(states(output)))
        print(f"killed with {killed[-1]} of {total} slides ended", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    summary = json.loads(done.stdout)
    return {
        "exit_code": done.returncode,
        "seconds": time.monotonic() - began,
        "killed_with": killed,
        "kept_at_the_end": summary["kept"],
        "page_mb": round((output / "summary.html").stat().st_size / 1e6, 2),
        "slides": {row["path"]: row for row in summary["slides"]},
    }


def by_loop(listing: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Run `predict` once for each slide; return seconds, CPU seconds, peak and outcome of each, by path."""
    found, environment = {}, fresh(folder / "cache")
    with listing.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        output = folder / f"{len(found)}.h5ad"
        command = [*HISTOCRYPT, "predict", row["path"], "-o", str(output), "--overwrite"]
        command += ["--um-per-px", row["um_per_px"]] if row["um_per_px"] else []
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            last = (said.read().strip().splitlines() or [""])[-1]
        found[row["path"]] = {
            "code": process.returncode,
            "seconds": time.monotonic() - began,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "peak_gib": used.ru_maxrss / 2**20,
            "said": last,
            "file": output,
        }
        print(f"loop: {Path(row['path']).name}: {found[row['path']]['seconds']:.0f} s", file=sys.stderr)
    return found


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between two predictions, found in a process of its own."""
    command = [sys.executable, "-c", COMPARE, str(one), str(other)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--few", action="store_true", help="One slide of each kind.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    data = Path(os.environ.get("HISTOCRYPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    listing = make(folder, data.resolve(), few=asked.few)
    total = len(listing.read_text(encoding="utf-8").strip().splitlines()) - 1
    output = folder / "predicted"
    shutil.rmtree(output, ignore_errors=True)
    (folder / "loop").mkdir(exist_ok=True)
    one = by_folder(listing, output, cores=asked.cores, kills=asked.kills, total=total)
    ended, loop = states(output), by_loop(listing, folder / "loop")
    rows = []
    for path, row in one["slides"].items():
        other, both = loop[path], row["prediction"] and loop[path]["code"] == 0
        rows.append(
            {
                "slide": row["id"],
                "ended": row["status"] if both or row["problem"] else "differs",
                "points": row["spots"],
                "s": round(row["seconds"], 1),
                "cpu_s": ended[path]["cpu_seconds"],
                "gib": row["peak_gib"],
                "loop_s": round(other["seconds"], 1),
                "loop_cpu_s": round(other["cpu_seconds"], 1),
                "loop_gib": round(other["peak_gib"], 3),
                "apart": difference(output / row["prediction"], other["file"]) if both else None,
                "said": row["problem"],
                "loop_said": "" if other["code"] == 0 else other["said"],
            }
        )
    together = {
        **{name: one[name] for name in ("exit_code", "killed_with", "kept_at_the_end", "page_mb")},
        "folder_s": round(one["seconds"], 1),
        "folder_cpu_s": round(sum(row["cpu_s"] for row in rows), 1),
        "loop_s": round(sum(row["loop_s"] for row in rows), 1),
        "loop_cpu_s": round(sum(row["loop_cpu_s"] for row in rows), 1),
        "folder_peak_gib": max(row["gib"] for row in rows),
        "loop_peak_gib": max(row["loop_gib"] for row in rows),
    }
    if asked.json:
        print(json.dumps({"slides": rows, "together": together}, indent=2))
        return
    names = [name for name in rows[0] if name not in ("said", "loop_said")]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join("" if row[name] is None else str(row[name]) for name in names) + " |")
    for row in rows:
        if row["said"]:
            print(f"{row['slide']}: {row['said']}")
            if row["loop_said"].removeprefix("histocrypt: ") != row["said"]:
                print(f"  loop: {row['loop_said'] or 'predicted'}")
    print("\n".join(f"{name}: {value}" for name, value in together.items()))


if __name__ == "__main__":
    main()
