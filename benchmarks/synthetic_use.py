"""What synthetic tissue is good for, in every fold of a study: masks, tissue label and gene expression.

    python benchmarks/synthetic_use.py studies/demo.yaml
    python benchmarks/synthetic_use.py studies/breast_synthetic.yaml [--fold fold_HER2ST_B_BT10737]

Run the study up to 22_folds first. In each fold a generator is trained on the training patients alone and draws tiles,
which are filtered; networks, classifiers and ridges learn from real tiles, from drawn ones, from both, and from few
real ones; all are tested on the real tiles of the fold's test patients. What is trained, drawn and found lies below
``synthesis/<fold>/`` of the study's run folder: a run that was stopped goes on, and a fold with ``use/done.json`` is
read. Written are ``synthesis/use.json``, ``use.md`` and ``use.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from histocrypt.data.folds import FINAL, Fold, load_folds
from histocrypt.errors import InputError
from histocrypt.evaluation import figures as drawing
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.study import Study, load_study
from histocrypt.synthesis import expression_use, figures, pipeline
from histocrypt.synthesis.filtering import filter_pairs, train_reconstruction
from histocrypt.synthesis.utility import look, utility_table
from histocrypt.synthesis.worth import across

TASKS = {
    "Masks: mean Dice": ("use", "mean_dice"),
    "Tissue label: AUC": ("use", "auc"),
    "Expression: mean r": ("expression", "pearson"),
}
PARTS = ("seed", "sections", "demo", "preprocessing", "target", "panel", "folds", "synthesis", "evaluation")
"""Of a study, all that its tables rest on."""
FILES = {"use": "utility.json", "expression": "expression.json"}
GUESSES = {"use": "majority", "expression": expression_use.GUESS}
SHOWN = {
    "mean_dice": ("real", "synthetic", "both", "colour_only", "colour_synthetic", "majority"),
    "auc": ("real", "synthetic", "both", "colour_only", "colour_synthetic"),
    "pearson": (*expression_use.LESSONS, *expression_use.COLOUR.values(), "teacher"),
}


def found_or_made(
    study: Study, fold: Fold, *, sizes: list[int], repeats: int, tiles: int | None
) -> dict[str, pd.DataFrame]:
    """Return the tables ``use`` (masks and labels) and ``expression`` of one fold, read where they are made already."""
    home = study.run.synthesis(fold.name) / "use"
    asked = {"study": study.hash(*PARTS), "fold": asdict(fold), "sizes": sizes, "repeats": repeats, "tiles": tiles}
    asked = json.loads(json.dumps(asked))  # as it will be read back
    if not (home / "done.json").is_file() or read_json(home / "done.json") != asked:
        of_fold(study, fold, sizes=sizes, repeats=repeats, tiles=tiles)
        write_json(home / "done.json", asked)
    rows = {name: read_json(home / file)["rows"] for name, file in FILES.items()}
    return {name: pd.DataFrame(some).set_index(list(some[0])[0]) for name, some in rows.items()}


def of_fold(study: Study, fold: Fold, *, sizes: list[int], repeats: int, tiles: int | None) -> None:
    """Write the tables of one fold; of its training tiles at most ``tiles``, drawn at random, are used."""
    part, seed, home = study.synthesis, study.seed, study.run.synthesis(fold.name)
    real = pipeline.real_pairs(study, fold)
    chosen = np.random.default_rng(seed).permutation(len(real["train"]))[:tiles]
    real["train"] = real["train"].subset(np.sort(chosen))
    drawn = pipeline.draw_synthetic(study, pipeline.train_generators(study, real["train"], home), home)
    how = {"epochs": part.reconstruction_epochs, "seed": seed, "folder": home / "reconstruction"}
    limits = {"realism_quantile": part.realism_quantile, "novelty_quantile": part.novelty_quantile}
    judge = train_reconstruction(real["train"], **how)
    kept = filter_pairs(drawn, real["train"], real["validation"], reconstruction=judge, **limits).kept
    used = kept if len(kept) else drawn
    noise = expression_use.noise_like(used, seed=seed)
    sets = {"real": real["train"], "validation": real["validation"], "synthetic": used, "test": real["test"]}
    looked, blocks = look({**sets, "noise": noise}), pipeline.blocks_of(study, real["test"])
    common = {"seed": seed, "draws": study.evaluation.bootstrap, "sizes": sizes, "repeats": repeats, "blocks": blocks}
    how = {"epochs": part.segmentation_epochs, "network": part.network, "looked": looked}
    utility_table(*sets.values(), folder=home / "use", **how, **common)
    values = expression_use.measured(study, fold, {side: sets[side] for side in ("real", "validation", "test")})
    expression_use.expression_table({**sets, "noise": noise}, values, looked, folder=home / "use", **common)
    print(f"{fold.name}: {len(drawn)} drawn, {len(kept)} kept, {values['test'].shape[1]} genes", file=sys.stderr)


def lines(title: str, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Return a table of every task in Markdown."""
    found = [f"## {title}", ""]
    for task, (name, score) in TASKS.items():
        table = tables[name]
        found += [f"| {task} | tiles | score | less real | so it is | worth real tiles |", "|---|---|---|---|---|---|"]
        for row in SHOWN[score]:
            own = table.loc[row]
            cells = [own["title"], f"{own['images' if 'images' in own else 'tiles']:.0f}", _said(own, score)]
            verdict, worth = (own.get(f"{score}_{end}") for end in ("verdict", "worth"))
            cells += [_said(own, f"{score}_vs_real") if isinstance(verdict, str) else ""]
            cells += [one if isinstance(one, str) else "" for one in (verdict, worth)]
            found.append("| " + " | ".join(cells) + " |")
        found.append("")
    return found


def _said(row: pd.Series, score: str) -> str:
    value, low, high = (f"{row[f'{score}{end}']:.3f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    """Make the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--fold", action="append", help="one fold, or several; default: every fold")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10, 30, 100], help="numbers of real tiles of the curve"
    )
    parser.add_argument("--repeats", type=int, default=5, help="random subsets of each size")
    parser.add_argument("--tiles", type=int, help="real training tiles of a fold, at most: larger folds take longer")
    asked = parser.parse_args()
    study = load_study(asked.study)
    if study.synthesis is None:
        raise InputError("has no part synthesis", file=asked.study, field="synthesis")
    names = asked.fold or [fold.name for fold in load_folds(study.run.folds) if fold.name != FINAL]
    folds = {name: pipeline.fold_of(study, name) for name in names}
    tables, content = {}, [f"# What synthetic tissue of {study.name} is good for", ""]
    for name, fold in folds.items():
        tables[name] = found_or_made(study, fold, sizes=sorted(asked.sizes), repeats=asked.repeats, tiles=asked.tiles)
        content += lines(f"Tested on {', '.join(fold.test_patients)}", tables[name])
    tested, mean = [len(fold.test_patients) for fold in folds.values()], {}
    for name, guess in GUESSES.items():
        scores = [score for table, score in TASKS.values() if table == name]
        mean[name] = across([each[name] for each in tables.values()], tested, scores, guess=guess)
    if len(folds) > 1:
        content += lines(f"Mean over {sum(tested)} test patients", mean)
    home = study.run.synthesis("use").parent
    every = {**tables, "mean": mean}
    rows = {
        fold: {name: table.reset_index().to_dict("records") for name, table in of.items()} for fold, of in every.items()
    }
    write_json(
        home / "use.json", {"study": study.name, "hash": study.hash(), "patients": tested, "tables": _plain(rows)}
    )
    with atomic_path(home / "use.md") as temporary:
        temporary.write_text("\n".join(content), encoding="utf-8")
    drawing.save(
        figures.learning_curves({task: (mean[name], score) for task, (name, score) in TASKS.items()}), home / "use.png"
    )
    print("\n".join(content))


def _plain(value: object) -> object:
    """Return what JSON can hold: NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not value == value else value


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
