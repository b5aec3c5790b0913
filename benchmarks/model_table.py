"""Print a study's models beside the baselines, as the README shows them: ``python benchmarks/model_table.py demo``.

``--patients`` prints held-out patients apart, with the share of the noise ceiling, and differences with intervals.
"""

import argparse
import sys
from collections.abc import Iterable

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.evaluation.scores import EVERY_PATIENT, WITHIN, Scores, load_scores, title_of
from histocrypt.evaluation.section_scores import NOISE_CEILING
from histocrypt.evaluation.wording import terms_of
from histocrypt.files import read_json
from histocrypt.paths import RunFolder
from histocrypt.study import parse_study


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def by_patient(scores: Scores, transform: str, models: Iterable[str], *, baseline: str = "") -> str:
    """Return a table of models by held-out patient: score and share of the ceiling, or difference to a baseline."""
    table = scores.patients(transform).set_index(["model", "patient"])
    patients = sorted(set(table.index.get_level_values("patient")))
    head = f"`{transform}`" + (f", less {title_of(baseline)}" if baseline else " (share of the ceiling)")
    lines = [f"| {head} | {' | '.join(patients)} | {EVERY_PATIENT} |", "|---" * (len(patients) + 2) + "|"]
    apart = scores.apart[(scores.apart["transform"] == transform) & (scores.apart["baseline"] == baseline)]
    for model in models:
        own = table.loc[model].loc[patients]
        cells = [f"{row.pearson:.3f} ({100 * row.share:.0f} %)" for row in own.itertuples()]
        cells.append(f"{own.pearson.mean():.3f}")
        if baseline:
            found = apart[apart["model"] == model].set_index("patient").loc[[*patients, EVERY_PATIENT]]
            cells = [interval(row.difference, row.low, row.high, "+") for row in found.itertuples()]
        lines.append(f"| {title_of(model)} | {' | '.join(cells)} |")
    if not baseline:
        limits = [f"{limit:.3f}" for limit in table.loc["mean_profile"].loc[patients][NOISE_CEILING]]
        lines.append(f"| noise ceiling | {' | '.join(limits)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="name of a study that has run")
    parser.add_argument("--patients", action="store_true", help="held-out patients apart")
    given = parser.parse_args()
    run = RunFolder.of(given.study)
    try:
        scores = load_scores(parse_study(read_json(run.study), file=run.study))
    except InputError as error:
        print(f"model_table: {error}", file=sys.stderr)
        sys.exit(2)
    first = scores.transforms[0]
    if given.patients:
        order = scores.of(first).sort_values("pearson", ascending=False).index
        own = [name for name in order if name in set(scores.sections["model"])]
        against = [name for name in own if name not in ("colour_ridge", "mean_profile")]
        for transform in scores.transforms:
            print(by_patient(scores, transform, own), end="\n\n")
            print(by_patient(scores, transform, against, baseline="colour_ridge"), end="\n\n")
        return
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
