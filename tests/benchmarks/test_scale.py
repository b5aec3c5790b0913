"""What a page holds of many sections is bounded: pytest -m slow tests/benchmarks (in CI: test_streaming.py)."""

import csv
import os
import subprocess
import sys

import pytest
from tests.evaluation.chromium import opened

from histocrypt import paths

SMALL = ["--spots", "64", "--genes", "60", "--panel", "8"]


def scaled(folder, sections):
    script = paths.repository() / "benchmarks" / "scale.py"
    command = [sys.executable, script, folder, "--sections", sections, *SMALL, "--stages", "folds", "evaluation"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command), "--keep"], check=True, env=environment, stdout=subprocess.DEVNULL)
    with (folder / "scale.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "evaluation"]
    run = folder / f"n{sections}" / "outputs" / f"scale_{sections}"
    return float(rows[0]["report_mb"]), run


@pytest.mark.slow
@pytest.mark.parametrize("sections", [26, 200])
def test_a_page_of_many_sections_is_small_and_opens(tmp_path, sections):
    size, run = scaled(tmp_path, sections)
    assert size < 20
    text = (run / "report.html").read_text(encoding="utf-8")
    assert f"Shown are 24 of {sections} sections" in text
    assert f"all {sections} are in <code>evaluation/data.csv</code>" in text
    assert f"12 of {sections} folds, a line each." in text
    assert len((run / "evaluation" / "data.csv").read_text().splitlines()) == sections + 1
    assert "Section by section" in opened(run / "report.html", tmp_path)
