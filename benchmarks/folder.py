"""Twenty slides in one command, killed twice, to a summary right about each; beside a plain loop over `predict`.

    python benchmarks/folder.py FOLDER [--model FOLDER] [--cores 2] [--kills 2] [--few] [--no-loop] [--json]

Twenty slides are put together in FOLDER, with a list of their resolution, patient and laboratory: the eight real
sections of HISTOCRYPT_DATA, pictures of two of them as slides of their own (a grid of 200 um), patches of one in a
folder, two simulated sections and the picture of one, a truncated picture, one of which the list says that its pixels
are four times coarser than they are and one four times finer, immunohistochemistry and a photograph (both of
scikit-image, mirrored to the size of a section), and one that is not there. With ``--few``, one of each kind. Before
anything runs it is written down how each must end, from what it is and from what the model says it was trained on:
a slide of a laboratory that the model knows is fine; one of another is used with care or not at all; other stains,
pixels said to be four times finer than they are, and tissue without the model's genes are refused.

`histocrypt predict LIST -o OUT` is killed with SIGKILL each time another share of the slides is done, then ends; then a
loop runs `histocrypt predict SLIDE` for each. The model is the one in the box, or ``--model``: of a run of
`studies/breast_unseen.yaml`, ``fusion_ridge/fold_HBCIS_BC23209`` does not know the laboratory of HBCIS.

Each side has a cache of features of its own, empty at the beginning. CPU seconds are those of all a slide's work; the
loop's hold the imports of each of its processes, which the folder's share. Peak memory is the largest of the slide's
own process. Where both predict, predictions are compared. The exit code is 1 where the summary is wrong about a slide,
or the two differ.
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
DEMO = 2
PATIENTS = {"HER2ST_B": "HER2ST_B_BT10737", "HER2ST_C": "HER2ST_C_BT5714", "HBCIS": "HBCIS_BC23209"}
"""Whose a section is, by how its name begins."""
SIDE = 3000
"""Pixels of a picture that is no H&E, mirrored until it has the size of a small section: 2 mm."""
PATCHES = 60
FINE, CARE, NO = "predicted: fine", "predicted: with care", "refused: do not use"
MAKE = """
import sys
from pathlib import Path
import h5py, numpy as np
from PIL import Image
from skimage import data
from histocrypt.demo.write import write_demo
folder, sections, patches, side, most = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
files = write_demo(folder / "demo", n_sections=sections, seed=0)
Image.open(Path(files[0]).with_suffix(".png")).save(folder / "simulated_picture.png")
for name, picture in (("immunohistochemistry", data.immunohistochemistry()), ("photograph", data.astronaut())):
    beyond = [(0, side - length) for length in picture.shape[:2]]
    Image.fromarray(np.pad(picture, (*beyond, (0, 0)), mode="symmetric")).save(folder / f"{name}.png")
out = folder / "patches"
out.mkdir()
with h5py.File(patches) as file:
    name = patches.stem.removesuffix("_patches")
    for jpeg, (x, y) in list(zip(file["jpeg"], file["coords"]))[:most]:
        (out / f"{name}_{x}_{y}.jpg").write_bytes(jpeg.tobytes())
"""
ABOUT = """
import json, sys
from histocrypt import paths
from histocrypt.pipeline.checkpoints import read_about
print(json.dumps(read_about(sys.argv[1] or paths.shipped_model())["origin"]))
"""
COMPARE = """
import sys, anndata, numpy as np
one, other = (anndata.read_h5ad(path) for path in sys.argv[1:])
print(float(np.abs(one.X - other.X).max()) if list(one.var_names) == list(other.var_names) else float("nan"))
"""


def make(folder: Path, data: Path, *, few: bool) -> Path:
    """Put the slides together, once; return the list. Beside it, ``expected.json`` says what each is."""
    listing = folder / "slides.csv"
    if listing.is_file():
        return listing
    folder.mkdir(parents=True, exist_ok=True)
    sections = sorted(data.glob("H*_??.h5ad")) if few else sorted(data.glob("*.h5ad"))
    pictures = [path.with_suffix(".jpg") for path in sections if path.with_suffix(".jpg").is_file()]
    patched = sorted(data.glob("*_patches.h5"))
    if not pictures or not patched:
        raise SystemExit(f"no section with a picture, or none with patches, in {data}: set HISTOCRYPT_DATA")
    given = (str(folder), str(1 if few else DEMO), str(patched[0]), str(SIDE), str(PATCHES))
    subprocess.run([sys.executable, "-c", MAKE, *given], check=True)
    (folder / "truncated.jpg").write_bytes(pictures[0].read_bytes()[:200_000])
    for name in ("said_4x_coarser", "said_4x_finer", *(f"slide_{one.stem}" for one in pictures[: 1 if few else 2])):
        shutil.copyfile(pictures[0] if "said" in name else data / f"{name[6:]}.jpg", folder / f"{name}.jpg")

    def of(path: Path) -> tuple[str, str]:
        name = path.stem.removeprefix("slide_")
        return next(who for start, who in PATIENTS.items() if name.startswith(start)), name.partition("_")[0]

    rows = [(path, "", *of(path), "tissue") for path in (sections[:1] + sections[-1:] if few else sections)]
    rows += [(path, HER2ST_UM, *of(path), "tissue") for path in sorted(folder.glob("slide_*.jpg"))]
    rows += [(folder / "patches", HER2ST_UM, *of(patched[0]), "tissue")]
    rows += [(path, "", "", "", "simulated, other genes") for path in sorted((folder / "demo").glob("*.h5ad"))]
    rows += [(folder / "simulated_picture.png", 1.0, "", "", "simulated, a picture")]
    rows += [(folder / "truncated.jpg", HER2ST_UM, "", "", "broken"), (folder / "gone.svs", "", "", "", "not there")]
    rows += [(folder / "said_4x_coarser.jpg", 4 * HER2ST_UM, "", "", "too coarse")]
    rows += [(folder / "said_4x_finer.jpg", HER2ST_UM / 4, "", "", "wrong resolution")]
    rows += [(folder / f"{name}.png", HER2ST_UM, "", "", name) for name in ("immunohistochemistry", "photograph")]
    (folder / "expected.json").write_text(json.dumps({str(row[0]): row[-1] for row in rows}, indent=2))
    with listing.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "um_per_px", "patient", "laboratory"), *(row[:-1] for row in rows)])
    return listing


def expected(what: str, laboratory: str, known: list[str]) -> tuple[str, ...]:
    """Return how a slide may end, from what it is; several where either is right."""
    if what == "tissue":
        return (FINE,) if laboratory in known else (CARE, NO)
    if what in ("broken", "not there", "too coarse"):
        return ("failed",)
    return (CARE, NO) if what == "simulated, a picture" else (NO,)


def ended(row: dict[str, Any]) -> str:
    """Return how a slide ended, as the summary says it."""
    return row["status"] + (f": {row['verdict']}" if row["verdict"] else "")


def fresh(cache: Path) -> dict[str, str]:
    """Return an environment whose cache of features is empty."""
    shutil.rmtree(cache, ignore_errors=True)
    return {**os.environ, "HISTOCRYPT_CACHE": str(cache)}


def states(output: Path) -> dict[str, dict[str, Any]]:
    """Return the states of the slides that have ended, by their paths."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/state.json")))
    return {state["path"]: state for state in found}


def by_folder(listing: Path, output: Path, *options: str, kills: int, total: int) -> dict[str, Any]:
    """Run the command over all slides, killed so many times; return how it went."""
    command = [*HISTOCRYPT, "predict", str(listing), "-o", str(output), *options, "--json"]
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


def by_loop(listing: Path, folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Run `predict` once for each slide; return seconds, CPU seconds, peak and outcome of each, by path."""
    found, environment = {}, fresh(folder / "cache")
    with listing.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        output = folder / f"{len(found)}.h5ad"
        command = [*HISTOCRYPT, "predict", row["path"], "-o", str(output), "--overwrite", *options]
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
            "s": time.monotonic() - began,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_gib": used.ru_maxrss / 2**20,
            "said": last.removeprefix("histocrypt: "),
            "file": output,
        }
        told = found[row["path"]]
        took = f"{told['s']:.0f} s, {told['cpu_s']:.0f} CPU s, {told['peak_gib']:.2f} GiB"
        print(f"loop: {Path(row['path']).name}: {took}", file=sys.stderr)
    return found


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between two predictions, found in a process of its own."""
    command = [sys.executable, "-c", COMPARE, str(one), str(other)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="Folder of a trained model; default: the one in the box.")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--few", action="store_true", help="One slide of each kind.")
    parser.add_argument("--no-loop", action="store_true", help="Leave out the loop over `predict`.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    data = Path(os.environ.get("HISTOCRYPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    listing = make(folder, data.resolve(), few=asked.few)
    with listing.open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    output, model = folder / "predicted", ["--model", asked.model] if asked.model else []
    shutil.rmtree(output, ignore_errors=True)
    (folder / "loop").mkdir(exist_ok=True)
    one = by_folder(listing, output, *model, "--cores", str(asked.cores), kills=asked.kills, total=len(listed))
    about = subprocess.run(
        [sys.executable, "-c", ABOUT, asked.model or ""], check=True, stdout=subprocess.PIPE, text=True
    )
    known, kinds = json.loads(about.stdout)["laboratories"], json.loads((folder / "expected.json").read_text())
    done, loop = states(output), {} if asked.no_loop else by_loop(listing, folder / "loop", *model)
    rows = []
    for given in listed:
        path, row = given["path"], one["slides"][given["path"]]
        must, other = expected(kinds[path], given["laboratory"], known), loop.get(path)
        rows.append(
            {
                "slide": row["id"],
                "it is": f"{kinds[path]} {given['laboratory']}".strip(),
                "must end": " or ".join(must),
                "ended": ended(row),
                "right": ended(row) in must,
                "points": row["spots"],
                "s": row["seconds"],
                "cpu s": done[path].get("cpu_seconds"),
                "GiB": row["peak_gib"],
                **({} if other is None else beside(row, other, output)),
                "said": " ".join(filter(None, row["words"].values())),
            }
        )
    wrong = [row for row in rows if not row["right"] or row.get("loop") == "other"]
    together = {
        **{name: one[name] for name in ("exit_code", "killed_with", "kept_at_the_end", "page_mb")},
        "right": f"{len(rows) - len(wrong)} of {len(rows)}",
        "folder_s": round(one["seconds"], 1),
        "folder_cpu_s": round(sum(row["cpu s"] or 0 for row in rows), 1),
        "folder_peak_gib": max(row["GiB"] or 0 for row in rows),
    }
    if loop:
        together |= {f"loop_{name}": round(sum(one[name] for one in loop.values()), 1) for name in ("s", "cpu_s")}
        together |= {"loop_peak_gib": round(max(one["peak_gib"] for one in loop.values()), 3)}
    if asked.json:
        print(json.dumps({"slides": rows, "together": together}, indent=2))
        return 1 if wrong else 0
    names = [name for name in rows[0] if name != "said"]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join("" if row[name] is None else str(row[name]) for name in names) + " |")
    print("\n".join(f"{row['slide']}: {row['said']}" for row in rows if row["said"]))
    print("\n".join(f"{name}: {value}" for name, value in together.items()))
    return 1 if wrong else 0


def beside(row: dict[str, Any], other: dict[str, Any], output: Path) -> dict[str, Any]:
    """Return what the loop did with the same slide, and whether it ended so, too."""
    both = row["prediction"] and other["code"] == 0
    return {
        "loop": "same" if both or (row["problem"] and row["problem"] == other["said"]) else "other",
        "apart": difference(output / row["prediction"], other["file"]) if both else None,
        "loop s": round(other["s"], 1),
        "loop cpu s": round(other["cpu_s"], 1),
        "loop GiB": round(other["peak_gib"], 3),
    }


if __name__ == "__main__":
    sys.exit(main())
