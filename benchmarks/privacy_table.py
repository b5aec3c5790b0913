"""Print what synthetic tiles are good for, and what every attack finds of every model: ``privacy_table.py demo``.

``--shadow knn he2gene`` attacks these models anew with shadow models that are trained now and kept in the run's folder
of the audit, beside those that the study names. Cards and summary stay as they are.

Intervals allow for the choice of the strongest among the attacks that ask the same, which is printed bold.
"""

import argparse
import sys

import pandas as pd

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.paths import RunFolder
from histocrypt.report import parts
from histocrypt.study import Study, parse_study

COLUMNS = ("loss threshold", "quantile regression", "calibrated", "LiRA", "RMIA")
"""Of one model; each can also be asked of training repeated."""
REPEATED = ", training repeated"


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


def leaks(rows: pd.DataFrame) -> None:
    rows["attack"] = rows["attack"].str.split(":").str[0]  # beyond it: which centre the non-members are of
    predictor, repeated = rows["kind"] == "predictor", rows["attack"].str.endswith(REPEATED)
    rows["attack"] = rows["attack"].str.removesuffix(REPEATED)
    one = rows[predictor & ~repeated & rows["attack"].isin(COLUMNS)].drop_duplicates(["title", "attack"])
    attacks("one model", one, list(COLUMNS))
    again = rows[repeated].drop_duplicates(["title", "attack"])
    if len(again):
        attacks("training repeated", again, list(dict.fromkeys(again["attack"])))
    others = rows.drop(one.index).drop(again.index)
    table(
        ["", "attack", "measure", "figure", "by chance", "answer"],
        [[one.title, one.attack, one.measure, f"{one.value:.3f}{interval(one.low, one.high)}", f"{one.chance:.3f}",
          one.verdict]
         for one in others.itertuples()],
    )  # fmt: skip
    lowest = rows.loc[rows["measure"] == "AUC", "positive_control"].min()
    print(f"Controls: all {len(rows)} passed." if (rows["positive_passed"] & rows["negative_passed"]).all() else
          f"Controls: {(~(rows['positive_passed'] & rows['negative_passed'])).sum()} of {len(rows)} failed.",
          f"AUC on models made to leak: at least {lowest:.3f}.")  # fmt: skip


def attacks(asked: str, rows: pd.DataFrame, names: list[str]) -> None:
    """Print attacks by models: AUC, its interval, and the answer of the strongest."""
    found: list[tuple[float, list[str]]] = []
    for title, own in rows.groupby("title", sort=False):
        by, cells = own.set_index("attack"), []
        for name in names:
            said = ""
            if name in by.index:
                one = by.loc[name]
                said = f"{one.value:.3f}{interval(one.low, one.high)}"
                said = f"**{said}**" if one.strongest else said
            cells.append(said)
        answer = own.loc[own["strongest"], "verdict"]
        found.append((own["value"].max(), [title, *cells, answer.iloc[0] if len(answer) else ""]))
    table([f"{asked}: AUC", *names, "answer"], [cells for _, cells in sorted(found, key=lambda row: -row[0])])


def again(study: Study, fold: str, names: list[str]) -> pd.DataFrame:
    """Return the rows of models that are attacked anew with the help of shadow models."""
    from histocrypt.audit.predictors import audit_predictors
    from histocrypt.audit.subjects import audited

    asking = study.model_copy(update={"audit": study.audit.model_copy(update={"shadowed": names})})
    subjects = [one for one in audited(asking, fold, models=names, asked="shadowed") if one.kind == "predictor"]
    found = audit_predictors(asking, subjects, folder=study.run.audit(fold) / "shadows")
    return pd.DataFrame([row for one in found.values() for row in one.card(study).rows()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a study that has run, with the parts synthesis or audit")
    parser.add_argument("--shadow", nargs="+", default=[], metavar="MODEL", help="trained predictors of the study")
    asked = parser.parse_args()
    run = RunFolder.of(asked.study)
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
        rows = pd.DataFrame(audit["rows"])
        if asked.shadow:
            try:
                anew = again(study, audit["fold"], asked.shadow)
            except InputError as error:
                print(f"privacy_table: {error}", file=sys.stderr)
                sys.exit(2)
            rows = pd.concat([rows[~rows["thing"].isin(anew["thing"])], anew], ignore_index=True)
        leaks(rows)


if __name__ == "__main__":
    main()
