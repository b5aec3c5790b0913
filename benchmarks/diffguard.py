"""DiffGuard's column from manifests: shadow data, an attack learned on them, members, non-members, other centres.

    python benchmarks/diffguard.py SHADOW... --members M --internal M [--external NAME=M ...] [--network resnet50]

Every M and SHADOW is a manifest (or its folder) of images and masks, as `synthesis.manifest` reads them. SHADOW are
drawn images of a generator that saw no member: manifests with ``MIA_label`` in every record, or one without any, which
is dealt into halves that are written to ``--splits``. Segmentation networks learn the private half, the attack learns
from them; the audited network learns the members and is attacked. Other centres are judged apart. Beside it stands a
planted leak: networks that know their own images by heart.

    python benchmarks/diffguard.py --study studies/demo.yaml --splits FOLDER [--external NAME=M ...]

does the whole column on a study's fold, in minutes of one core: members are the training tiles, internal non-members
the test tiles, and the shadow generator learns from the test tiles, as DiffGuard's does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histocrypt.audit.diffguard import Predict, by_heart, judge_column, learn_attack, read_splits, write_splits
from histocrypt.audit.learned import NETWORKS, PUBLISHED
from histocrypt.errors import InputError
from histocrypt.study import load_study
from histocrypt.synthesis import pipeline
from histocrypt.synthesis.manifest import CHEST, TISSUE, Pairs, load_pairs, read_manifest
from histocrypt.synthesis.segmentation import train_segmenter

SCHEMES = {"tissue": TISSUE, "chest": CHEST}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shadow", nargs="*", type=Path, help="manifests of shadow data")
    parser.add_argument("--members", type=Path)
    parser.add_argument("--internal", type=Path, help="non-members of the same centre")
    parser.add_argument("--study", type=Path, help="in place of these three: a study with the part synthesis")
    parser.add_argument("--external", action="append", default=[], metavar="NAME=MANIFEST", help="another centre's")
    parser.add_argument("--splits", type=Path, help="where halves of shadow data without MIA_label are written")
    parser.add_argument("--scheme", choices=SCHEMES, default="tissue")
    parser.add_argument("--side", type=int, default=16, help="pixels of an image")
    parser.add_argument("--segmenter-epochs", type=int, default=15)
    parser.add_argument("--shadows", type=int, default=2, help="shadow networks")
    parser.add_argument("--network", choices=NETWORKS, default="small", help="of the attack")
    parser.add_argument("--epochs", type=int, help="of the attack; with resnet50 as published (500) if not given")
    parser.add_argument("--map-side", type=int, help="maps are resized to this; crops are half of it")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if bool(asked.study) == bool(asked.shadow and asked.members and asked.internal):
        parser.error("give SHADOW, --members and --internal, or --study")
    if asked.study and not asked.splits:
        parser.error("--study needs --splits, where shadow data are written")
    try:
        run(asked)
    except InputError as error:
        parser.error(str(error))


def run(asked: argparse.Namespace) -> None:
    scheme, seed, side, shadows = SCHEMES[asked.scheme], asked.seed, asked.side, asked.shadow
    if asked.study:
        study = load_study(asked.study)
        real = pipeline.real_pairs(study, pipeline.fold_of(study, study.synthesis.fold), ("train", "test"))
        members, internal, side = real["train"], real["test"], study.synthesis.side
        generators = pipeline.train_generators(study, internal, asked.splits / "generator")
        drawn = pipeline.draw_synthetic(study, generators, asked.splits / "drawn")
        shadows = write_splits(asked.splits, drawn, seed=seed)
    else:
        members, internal = (load_pairs(path, scheme=scheme, side=side) for path in (asked.members, asked.internal))
    if len(shadows) == 1 and all(one.member is None for one in read_manifest(shadows[0], scheme=scheme)):
        if asked.splits is None:
            raise InputError(
                "shadow data have no MIA_label", file=shadows[0], fix="give --splits, where halves are written"
            )
        shadows = write_splits(asked.splits, load_pairs(shadows[0], scheme=scheme, side=side), seed=seed)
        print(f"halves written: {', '.join(map(str, shadows))}")
    shadow, private = read_splits(*shadows, scheme=scheme, side=side)
    external = {}
    for given in asked.external:
        name, _, path = given.rpartition("=")
        external[name or Path(path).name] = load_pairs(path, scheme=scheme, side=side)
    how = dict(PUBLISHED) if asked.network == "resnet50" else {}
    how |= {} if asked.epochs is None else {"epochs": asked.epochs}
    how |= {} if asked.map_side is None else {"side": asked.map_side, "crop": asked.map_side // 2}

    def trained(pairs: Pairs, start: int) -> Predict:
        return train_segmenter(pairs, None, epochs=asked.segmenter_epochs, seed=start).predict

    sizes = f"{int(private.sum())} private and {int((~private).sum())} public shadow images"
    print(f"{sizes}, {len(members)} of members, {len(internal)} of internal non-members; {asked.network} {how}")
    print("\n| audited network | row | AUC (95 %) | members | non-members | interval over |\n|---|---|---|---|---|---|")
    for title, fit in (("knows its images by heart (planted)", by_heart), ("trained on members", trained)):
        attack = learn_attack(shadow, private, fit, shadows=asked.shadows if fit is trained else 1, seed=seed, **how)
        rows = judge_column(attack, fit(members, seed), members, internal, external, draws=400, seed=seed)
        for name, row in rows.items():
            low, high = row.auc_interval
            sides = f"{row.n_members} | {row.n_non_members} | {row.interval_over}"
            print(f"| {title} | {name} | {row.auc:.2f} ({low:.2f} to {high:.2f}) | {sides} |", flush=True)


if __name__ == "__main__":
    main()
