"""Runs of Visium HD and Xenium are made and read. The whole sizes: python benchmarks/large_sections.py."""

import json
import subprocess
import sys

from histocrypt import paths

BINS, CELLS = 3_000, 9_000


def test_runs_are_made_and_read_apart(tmp_path):
    script = paths.repository() / "benchmarks" / "large_sections.py"
    size = ["--kinds", "hd", "xenium", "--bins", BINS, "--cells", CELLS]
    command = [sys.executable, script, tmp_path / "made", *size, "--json"]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    assert [(row["section"], row["step"]) for row in rows] == [
        (kind, step) for kind in ("Visium HD", "Xenium") for step in ("make", "read")
    ]
    assert rows[1]["found"].startswith(f"{BINS:,} squares x 18,000 genes")
    assert "at 0.25 µm" in rows[1]["found"]
    assert "squares x 400 genes" in rows[3]["found"]
    assert all(row["CPU s"] > 0 for row in rows)
