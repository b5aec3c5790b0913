"""Print what synthetic tiles are good for and what models give away, as the README does: ``privacy_table.py demo``."""

import argparse
import sys

import pandas as pd

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.paths import RunFolder
from histocrypt.report import parts
from histocrypt.study import parse_study

COLUMNS = {
    "loss threshold": "the model's own loss",
    "calibrated": "calibrated",
    "LiRA": "LiRA",
    "LiRA, training repeated": "training repeated",
}


def interval(low: float, high: float) -> str:
    return f" ({low:.3f} to {high:.3f})" if pd.notna(low) else ""


def table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def use(shown: dict) -> None:
    rows = [
        [row["title"], str(row["images"])]
        + ["" if one is None else f"{one['value']:.3f}{interval(one['low'], one['high'])}" for one in row["scores"]]
        for row in shown["rows"]
    ]
    table(["trained on", "tiles", *shown["columns"]], rows)
    said = shown["filter"]
    print(
        f"{shown['drawn']} drawn, {said['rejected']:.0%} rejected: {said['not_realistic']:.0%} unlike tissue, "
        f"{said['too_near']:.0%} too near; {shown['used']} used.\n"
    )


def leaks(shown: dict) -> None:
    rows = pd.DataFrame(shown["rows"])
    rows["attack"] = rows["attack"].str.split(":").str[0]  # beyond it: which centre the non-members are of
    plain = rows[rows["attack"].isin(COLUMNS)].drop_duplicates(["title", "attack"])
    cells = []
    for title, own in plain.groupby("title", sort=False):
        by = own.set_index("attack")
        found = [by.loc[name] if name in by.index else None for name in COLUMNS]
        cells.append(
            [title] + ["" if one is None else f"{one.value:.3f}{interval(one.low, one.high)}" for one in found]
        )
    table(["", *COLUMNS.values()], sorted(cells, key=lambda row: row[1], reverse=True))
    others = rows.drop(plain.index)
    table(
        ["", "attack", "measure", "figure", "by chance"],
        [[one.title, one.attack, one.measure, f"{one.value:.3f}{interval(one.low, one.high)}", f"{one.chance:.3f}"]
         for one in others.itertuples()],
    )  # fmt: skip
    lowest = rows.loc[rows["measure"] == "AUC", "positive_control"].min()
    print(f"Controls: all {len(rows)} passed." if (rows["positive_passed"] & rows["negative_passed"]).all() else
          f"Controls: {(~(rows['positive_passed'] & rows['negative_passed'])).sum()} of {len(rows)} failed.",
          f"AUC on models made to leak: at least {lowest:.3f}.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="name of a study that has run, with the parts synthesis or audit")
    run = RunFolder.of(parser.parse_args().study)
    try:
        study = parse_study(read_json(run.study), file=run.study)
    except InputError as error:
        print(f"privacy_table: {error}", file=sys.stderr)
        sys.exit(2)
    synthetic, audit = parts.synthetic(study), parts.audit(study)
    if synthetic is None and audit is None:
        print(f"privacy_table: {run.root}: neither synthetic tiles nor an audit in this run", file=sys.stderr)
        sys.exit(2)
    if synthetic:
        use(synthetic)
    if audit:
        leaks(audit)


if __name__ == "__main__":
    main()
