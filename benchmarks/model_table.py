"""Print a study's models beside the baselines, as the README shows them: ``python benchmarks/model_table.py demo``."""

import argparse
import sys

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.evaluation.scores import WITHIN, load_scores, title_of
from histocrypt.evaluation.wording import terms_of
from histocrypt.files import read_json
from histocrypt.paths import RunFolder
from histocrypt.study import parse_study


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="name of a study that has run")
    run = RunFolder.of(parser.parse_args().study)
    try:
        scores = load_scores(parse_study(read_json(run.study), file=run.study))
    except InputError as error:
        print(f"model_table: {error}", file=sys.stderr)
        sys.exit(2)
    first = scores.transforms[0]
    tables = {transform: scores.of(transform) for transform in scores.transforms}
    against = scores.against("colour_ridge", first)
    terms, within = terms_of(scores), WITHIN in tables[first]

    heads = ["model", *scores.transforms, f"{terms.unit}s", "against colour-only ridge"]
    heads += ["within a spot", "beyond the mean profile"] if within else []
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for model, row in tables[first].sort_values("pearson", ascending=False).iterrows():
        cells = [row.title + (" *(baseline)*" if row.role == "baseline" else "")]
        for transform in scores.transforms:
            known = model in tables[transform].index
            one = tables[transform].loc[model] if known else None
            cells.append(interval(one.pearson, one.pearson_low, one.pearson_high) if known else "")
        cells.append(f"{row[f'{terms.unit}_min']:.3f} to {row[f'{terms.unit}_max']:.3f}")
        if model in against.index:
            found = against.loc[model]
            verdict = {"does worse than": "worse"}.get(said := wording.verdict(found), said)
            cells.append(f"{verdict}: {interval(found.difference, found.low, found.high, '+')}")
        else:
            cells.append("")
        if within:
            beyond = scores.against("mean_profile", first, WITHIN)
            cells.append(interval(row[WITHIN], row[f"{WITHIN}_low"], row[f"{WITHIN}_high"]))
            found = beyond.loc[model] if model in beyond.index else None
            cells.append("" if found is None else interval(found.difference, found.low, found.high, "+"))
        print("| " + " | ".join(cells) + " |")
    notes = [terms.caveat] if terms.caveat else []
    notes += [f"{title_of(model)} is left out: {why}." for model, why in scores.notes.get("left_out", {}).items()]
    if notes:
        print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
