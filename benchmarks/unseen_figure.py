"""Draw one gene on a patient never seen: `python benchmarks/unseen_figure.py SECTION -o FIGURE.png`.

After `histocrypt run studies/breast_unseen.yaml`. The gene is the one that the fold's model trusted most on its
training patients (or one that is named): it is not picked by the score that the figure shows. Each map has its own
colours, since predictions of single spots vary less than counts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    from histocrypt.data.fold_statistics import read_clean_section
    from histocrypt.data.folds import FINAL, load_folds
    from histocrypt.errors import InputError
    from histocrypt.evaluation import maps
    from histocrypt.evaluation.figures import canvas, save, style
    from histocrypt.files import read_table
    from histocrypt.paths import RunFolder
    from histocrypt.pipeline.predictions import PredictionFile, as_mapping, join
    from histocrypt.spatial import spot_pitch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--study", default="breast_unseen")
    parser.add_argument("--model", default="fusion_ridge")
    parser.add_argument("--gene", help="symbol; default: what training trusted most")
    given = parser.parse_args()
    run = RunFolder.of(given.study)
    try:
        folds = [one for one in load_folds(run.folds) if given.section in one.test_sections and one.name != FINAL]
        if not folds:
            raise InputError("is held out in no fold of the study", field="section", value=given.section)
        file = PredictionFile(run.prediction(given.model, folds[0].name))
        section = read_clean_section(run.section(given.section))
        both = join(file.of(given.section), section, given.section)
    except InputError as error:
        print(f"unseen_figure: {error}", file=sys.stderr)
        return 2
    transform = next(iter(both.true))
    trust = file.trust(transform).reindex(both.genes)
    symbols = both.symbols.tolist()
    if given.gene is not None and given.gene not in symbols:
        print(f"unseen_figure: {given.gene} is not predicted", file=sys.stderr)
        return 2
    place = int(np.nanargmax(trust)) if given.gene is None else symbols.index(given.gene)
    true, predicted = both.true[transform][:, place], both.predicted[transform][:, place]
    scored = read_table(run.evaluation / "scores.csv")
    own = scored[(scored.model == given.model) & (scored.section == given.section)]
    row = own[(own["transform"] == transform) & (own.gene == both.genes[place])].iloc[0]

    image, scale = maps.backdrop(section, run.tiles(given.section))
    coords, pitch = both.coords * scale, spot_pitch(both.coords * scale)
    low, high = maps.window(coords, pitch)
    high = high + (0, 0.1 * (high[1] - low[1]))  # room for the scale bar
    with style():
        figure, axes = canvas(1, 3, figsize=(9, 2.6))
        axes[0].imshow(image, interpolation="bilinear")
        look = {"diameter": maps.TOUCHING * pitch, "image": image}
        maps.spot_map(axes[1], coords, true, **look)
        maps.spot_map(axes[2], coords, predicted, **look)
        titles = [f"{given.section}, patient never seen", f"{symbols[place]} measured", "predicted from H&E"]
        for one, title in zip(axes, titles, strict=True):
            one.set_title(title, fontsize=10)
            maps.frame(one, low, high)
        um = float(as_mapping(section.uns["preprocessing"])["um_per_px"])
        maps.scale_bar(axes[0], low, high, um / scale)
    save(figure, given.output, made="made by benchmarks/unseen_figure.py")
    rank = int((trust > trust.iloc[place]).sum()) + 1
    print(f"{given.output}: {symbols[place]} on {given.section}, {transform}, correlation {row.pearson:.2f}")
    print(f"noise ceiling {row.noise_ceiling:.2f}; {trust.iloc[place]:.2f} in training, rank {rank} of {len(symbols)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
