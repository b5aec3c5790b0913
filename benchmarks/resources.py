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
from histocrypt.files import read_json
from histocrypt.sections.section import SectionSize
from histocrypt.study import Study, load_study
from histocrypt.workflow.resources import Needs, needs
from histocrypt.workflow.stages import STAGES


def asked(study: Study, record: dict, sizes: dict[str, SectionSize]) -> Needs:
    """Return what the job of a record would ask for with the threads that it had."""
    section = record.get("section")
    read = [sizes[section]] if section else list(sizes.values())
    formula = STAGES[record["notebook"]].needs
    return needs(formula, study, read, model=record.get("model") or "", threads=int(record.get("threads") or 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    try:
        study = load_study(parser.parse_args().study)
        rows = read_json(study.run.survey)["sections"]
    except InputError as error:
        print(f"resources: {error}", file=sys.stderr)
        sys.exit(2)
    sizes = {row["section"]: SectionSize(**row["size"]) for row in rows}
    found = []
    for file in sorted((study.run.logs / "stages").glob("*.json")):
        record = json.loads(file.read_text())
        if record["outcome"] != "finished":
            continue
        need = asked(study, record, sizes)
        found.append(
            {
                "notebook": record["notebook"],
                "model": record.get("model") or "",
                "asked GiB": need.memory_gib,
                "took GiB": record["peak_gib"],
                "expected CPU s": need.seconds * need.threads,
                "took CPU s": record["cpu_seconds"],
            }
        )
    if not found:
        raise SystemExit(f"no finished job is recorded in {study.run.logs / 'stages'}")
    table = pd.DataFrame(found).groupby(["notebook", "model"]).max()
    table.insert(2, "memory ratio", table["asked GiB"] / table["took GiB"])
    table["CPU ratio"] = table["expected CPU s"] / table["took CPU s"]
    print(table.round(2).to_string())
    held = sum(file.stat().st_size for file in study.run.root.rglob("*") if file.is_file())
    print(f"\nthe run folder holds {held / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
