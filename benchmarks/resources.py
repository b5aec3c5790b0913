"""What a finished run's jobs took, beside what they would ask for: ``python benchmarks/resources.py STUDY.yaml``.

Memory and CPU time are those of the stage records (``logs/stages``); of several jobs of a notebook the most hungry is
shown. A ratio below 1 means that the formula asks for less than was needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from histocrypt.errors import InputError
from histocrypt.study import load_study
from histocrypt.workflow.outline import Outline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    try:
        study = load_study(parser.parse_args().study)
        outline = Outline.read(study, study.run.survey)
    except (InputError, OSError) as error:
        print(f"resources: {error}", file=sys.stderr)
        sys.exit(2)
    found = []
    for job in outline.jobs:
        file = study.run.stages / f"{job.name}.json"
        record = json.loads(file.read_text()) if file.is_file() else {}
        if record.get("outcome") != "finished":
            continue
        need = job.asks(threads=int(record.get("threads") or 1))
        found.append(
            {
                "notebook": job.stage.notebook,
                "model or part": next((job.values[key] for key in ("model", "asked") if key in job.values), ""),
                "asked GiB": need.memory_gib,
                "took GiB": record["peak_gib"],
                "expected CPU s": need.seconds * need.threads,
                "took CPU s": record["cpu_seconds"],
            }
        )
    if not found:
        raise SystemExit(f"no finished job is recorded in {study.run.stages}")
    table = pd.DataFrame(found).groupby(["notebook", "model or part"]).max()
    table.insert(2, "memory ratio", table["asked GiB"] / table["took GiB"])
    table["CPU ratio"] = table["expected CPU s"] / table["took CPU s"]
    print(table.round(2).to_string())
    held = sum(file.stat().st_size for file in study.run.root.rglob("*") if file.is_file())
    print(f"\nthe run folder holds {held / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
