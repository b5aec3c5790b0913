"""How much of a hospital's tiles comes back from embeddings sent in the clear, and from ciphertexts of them.

    python benchmarks/embeddings.py studies/breast_unseen.yaml [--encoders efficientnet_lite0 ...] [--per-section 100]
                                    [--epochs 8] [--linked 60] [--json FILE] [--figure FILE]

The study must have been run as far as its folds. Every fold is attacked: its test patients are the hospital, all others
the public tiles that decoders learn from (`audit.embeddings`). ``--linked`` tiles of each section are also looked for
by another scan of them. A picture is drawn of simulated tissue alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from histocrypt.audit.embeddings import attack, figure, linked, sent_of, tiles_of
from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.folds import load_folds
from histocrypt.encrypted.prepare import evenly
from histocrypt.evaluation.figures import save
from histocrypt.files import write_json
from histocrypt.study import load_study


def main() -> None:
    """Print a table for each fold and encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--encoders", nargs="+", default=["efficientnet_lite0", "efficientnet_lite0_middle"])
    parser.add_argument("--folds", nargs="+", default=[])
    parser.add_argument("--per-section", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--linked", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    study, results = load_study(given.study), []
    if given.figure and any(section.path != "demo" for section in study.sections):
        parser.error("a picture is drawn of simulated tissue alone: real tiles are not for publication")
    pd.set_option("display.width", 200, "display.max_columns", 20)
    folds = [fold for fold in load_folds(study.run.folds) if fold.test_sections]
    folds = [fold for fold in folds if not given.folds or fold.name in given.folds]
    for encoder in given.encoders:
        for fold in folds:
            public, hospital = sent_of(study, fold, encoder, per_section=given.per_section)
            found, pictures = attack(public, hospital, encoder, epochs=given.epochs, seed=given.seed)
            result = {"fold": fold.name, **found.to_dict()}
            print(
                f"\n{encoder}, {fold.name}: {found.public} public tiles, {found.hospital} of "
                f"{', '.join(found.patients)}; a guess finds {found.chance:.4f}"
            )
            print(found.table().to_string(index=False), flush=True)
            if given.linked:
                tiles = []
                for section in fold.test_sections:
                    names = read_clean_section(study.run.section(section), parts=["obs"]).obs_names
                    some = names[evenly(len(names), given.linked)]
                    tiles.append(tiles_of(study, section, [f"{section}:{name}" for name in some]))
                tiles = np.concatenate(tiles)
                result["linked"] = linked(tiles, encoder, np.arange(len(tiles)).astype(str), seed=given.seed)
                print("another scan finds its embedding:", result["linked"], flush=True)
            results.append(result)
            if given.figure and fold is folds[0] and encoder == given.encoders[0]:
                save(figure(hospital, pictures), given.figure)
    if given.json:
        write_json(given.json, results)


if __name__ == "__main__":
    main()
