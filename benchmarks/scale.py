"""Time and memory of a study against the number of its sections, on made sections that hold only what a stage reads.

    python benchmarks/scale.py FOLDER [--sections 1 4 16 64 200] [--spots 5000] [--genes 20000] [--panel 50]

Stages, each in a process of its own: `plan` (`histocrypt run --dry-run` of the whole study), `preprocessing` (notebook
20 for one section among n), `folds` (notebook 22 over all sections, one patient a section, each held out in turn),
`evaluation` (notebook 70 over all, six models, report and cards). Notebooks run cell by cell without a kernel. Folds
need three patients: for fewer sections all but preprocessing are measured with three. Time is CPU time, which depends
less on what else the machine does; FOLDER/scale.csv has wall time, too. What is there is not measured again; a study's
files are deleted after it. The counts of four sections serve all, through links inside the files, so that disk does not
grow; sections differ in one gene's name.

Exponents are slopes of log against log, with 95 % intervals of the fit: 0 is flat, 1 is proportional.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from made_study import POOL, Made, write_counts

STAGES = {"plan": None, "preprocessing": "20_preprocessing", "folds": "22_folds", "evaluation": "70_evaluation"}
LEAST = 3
"""Sections of as many patients that a fold needs: one tests, one trains, one stops the training."""
LAUNCHER = """
import json, os, subprocess, sys
with open(sys.argv[1], "w") as log:
    process = subprocess.Popen(sys.argv[2:], stdout=log, stderr=subprocess.STDOUT)
    _, status, used = os.wait4(process.pid, 0)
print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""Starts a command from a process that is small: Linux never puts the peak of a process below its starter's."""
FIELDS = ("stage", "sections", "cpu_s", "wall_s", "peak_gib", "report_mb")


def command(made: Made, stage: str) -> list[str]:
    """Return the command that is measured."""
    if stage == "plan":
        return [sys.executable, "-m", "histocrypt", "run", str(made.study_file), "--dry-run"]
    given = {"study": str(made.study_file), **({"section": made.names[0]} if stage == "preprocessing" else {})}
    return [sys.executable, __file__, "--cells", STAGES[stage], json.dumps(given)]


def run_cells(notebook: str, given: dict[str, str]) -> None:
    """Run the code cells of a notebook as one program; print CPU seconds and peak memory."""
    import matplotlib.pyplot as plt
    import nbformat

    from histocrypt import paths
    from histocrypt.machine import peak_gib

    names: dict[str, Any] = {}
    for cell in nbformat.read(paths.repository() / "notebooks" / f"{notebook}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook, "exec"), names)
            plt.close("all")
        if "parameters" in cell.metadata.get("tags", ()):
            names.update(given)
    print(json.dumps({"peak_gib": peak_gib()}))


def measure(made: Made, stage: str) -> dict[str, Any]:
    """Run a stage in a process of its own; CPU time and peak are those of it and of what it started."""
    log = made.folder / f"{stage}.log"
    start = time.perf_counter()
    line = [sys.executable, "-c", LAUNCHER, str(log), *command(made, stage)]
    done = subprocess.run(line, env=made.environment, check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    status, cpu, peak_kib = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{stage} with {made.n} sections failed:\n{log.read_text()[-3000:]}")
    last = log.read_text().splitlines()[-1]
    # The largest process: of a plan, of this one and of Snakemake; a notebook says its own exact mark.
    peak = peak_kib / 2**20 if stage == "plan" else json.loads(last)["peak_gib"]
    report = made.run / "report.html"
    return {
        "stage": stage,
        "sections": made.n,
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "peak_gib": round(peak, 4),
        "report_mb": round(report.stat().st_size / 1e6, 2) if stage == "evaluation" else "",
    }


def exponent(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of log y against log x and the half width of its 95 % interval (NaN of two points)."""
    from scipy.stats import linregress, t

    fit = linregress(np.log(x), np.log(y))
    return fit.slope, fit.stderr * t.ppf(0.975, len(x) - 2) if len(x) > 2 else float("nan")


def said(x: np.ndarray, y: np.ndarray) -> str:
    slope, half = exponent(x, y)
    return f"{slope:.2f} ± {half:.2f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw CPU time and peak memory against sections; the exponents stand in the titles and in the legend."""
    from histocrypt.evaluation.figures import CYCLE, LINE, canvas, save, style

    with style():
        figure, axes = canvas(1, 2, figsize=(9.6, 4.4))
        for axis, field, label, scale in (
            (axes[0], "cpu_s", "CPU time, s", 1),
            (axes[1], "peak_gib", "peak memory, GiB", 1),
        ):
            words = []
            for number, stage in enumerate(STAGES):
                mine = [row for row in rows if row["stage"] == stage]
                if len(mine) < 2:
                    continue
                x, y = (np.array([float(row[name]) for row in mine]) * factor for name, factor in
                        (("sections", 1), (field, scale)))  # fmt: skip
                axis.plot(x, y, "osD^"[number] + "-", color=CYCLE[number], lw=1.6, ms=6, label=stage)
                words.append(f"{stage} {said(x, y)}")
            axis.set(xscale="log", yscale="log", xlabel="sections", ylabel=label)
            ticks = sorted({int(row["sections"]) for row in rows})
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
            axis.grid(color=LINE, lw=0.6)
            title = ", ".join(words[:2]) + ",\n" + ", ".join(words[2:])
            axis.set_title(f"{label.split(',')[0]} grows as sections to the power of\n{title}", fontsize=9)
        low = min(float(row["peak_gib"]) for row in rows)
        axes[1].set_ylim(min(0.1, low / 2), 16)
        if axes[0].lines:
            axes[0].legend()
    save(figure, path)


def table(rows: list[dict[str, Any]]) -> str:
    counts = sorted({int(row["sections"]) for row in rows})
    lines = []
    for field, title in (("cpu_s", "CPU time, s"), ("peak_gib", "peak memory, GiB"), ("report_mb", "report, MB")):
        lines += [f"\n{title:<18}" + "".join(f"{count:>9}" for count in counts) + "   exponent"]
        for stage in STAGES:
            mine = {
                int(row["sections"]): float(row[field]) for row in rows if row["stage"] == stage and row[field] != ""
            }
            if mine:
                cells = "".join(f"{mine[count]:>9.2f}" if count in mine else f"{'-':>9}" for count in counts)
                x, y = (np.array(list(part)) for part in (mine.keys(), mine.values()))
                lines.append(f"{stage:<18}{cells}   {said(x, y) if len(x) > 1 else '-'}")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--cells"]:
        run_cells(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--spots", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--panel", type=int, default=50)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--keep", action="store_true", help="keep the made studies")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    (folder / "pool").mkdir(parents=True, exist_ok=True)
    for number in range(POOL):
        path = folder / "pool" / f"{number}.h5"
        if not path.with_suffix(".npy").is_file():
            import h5py
            from anndata.io import read_elem

            write_counts(path, arguments.spots, arguments.genes, number)
            with h5py.File(path) as file:
                np.save(path.with_suffix(".npy"), np.asarray(read_elem(file["X"]).sum(axis=1)).ravel())
    results = folder / "scale.csv"
    rows = list(csv.DictReader(results.open())) if results.is_file() else []
    for n in arguments.sections:
        for stage in arguments.stages:
            n_made = n if stage == "preprocessing" else max(n, LEAST)
            if any(row["stage"] == stage and int(row["sections"]) == n_made for row in rows):
                continue
            made = Made(folder, n_made, arguments)
            made.prepare(stage)
            rows.append({key: str(value) for key, value in measure(made, stage).items()})
            print(", ".join(f"{key} {rows[-1][key]}" for key in FIELDS if rows[-1][key]), flush=True)
            rows.sort(key=lambda row: (list(STAGES).index(row["stage"]), int(row["sections"])))
            with results.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
        if not arguments.keep:
            for n_made in {n, max(n, LEAST)}:
                shutil.rmtree(folder / f"n{n_made}", ignore_errors=True)
    print(table(rows))
    draw(rows, folder / "scale.png")
    print(f"\n{results}, {folder / 'scale.png'}")


if __name__ == "__main__":
    main()
