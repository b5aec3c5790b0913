"""Make again the model that comes with the library: `python benchmarks/ship_model.py` (6 minutes of two cores).

Runs `studies/breast_unseen.yaml` in a new folder (a temporary one; `--keep FOLDER` leaves it there) and puts its model
of all patients into `lib/histocrypt/shipped/breast`: weights, `model.json` without what differs between runs (seconds,
versions), and its card. The same versions on the same kind of processor give the same bytes, which `--check` tells
(exit code 1 where not); on others last bits may differ.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from model_table import by_patient

if TYPE_CHECKING:
    from histocrypt.evaluation.scores import Scores

ROOT = Path(__file__).resolve().parents[1]
STUDY, MODEL = "breast_unseen", "fusion_ridge"
RUNS_APART = ("made_from", "seconds", "validation_pcc", "versions")
"""What `model.json` says of a run and predicting does not need."""
MOST_BYTES = 500_000
BESIDE = ("colour_ridge", "encoder_ridge", "knn", "depth_only")
CARD = """\
# The model in the box: expression of {genes} genes from H&E of breast tissue

`histocrypt predict SLIDE` uses this model where no `--model` is named. Read here what it is good for before you use it.

It is `fusion_ridge`, a linear model of {kilobytes} kB. It reads colour, nuclei and tissue, and the middle layers of
EfficientNet-Lite0, which was trained on photographs; each of a tile and of its surroundings. It does not replace a
pathology encoder, nor a model of your own tissue.

## How well does it predict a patient never seen?

Each patient was left out in turn; panel, scaling and weights came from the other two. Scores are Pearson's correlation
within sections, averaged over the genes of the panel and a patient's sections. In brackets: the share of the noise
ceiling, which no predictor of single spots can pass. *Sequencing depth* reads the counts of the spots themselves: it is
a yardstick, no predictor.

{tables}

Of {genes} genes, {below} reach less than .05 of `{main}` in this way, and {above} more than .25; the last table says
which. HER2ST_B and HER2ST_C come from one laboratory, HBCIS from another: new laboratories are the harder case.

## What is it for, and what not?

- **For research** on H&E-stained breast tumours: a first look, a yardstick, teaching. **Not for diagnosis or
  treatment.**
- **Not for** other organs, other stains, fluorescence, cytology, frozen artefacts.
- A slide of another stain, far out of focus or at a resolution wrong by four is refused, unless you add `--anyway`. A
  slide of another laboratory or a little blurred gets a warning. Another organ may pass. `docs/trust.md` says how
  often, and what it costs.
- Values are relative: they rank the places of **one** section. Level and scale are those of the training patients.
  Give a whole section: it is standardised by itself.
- Three patients, two laboratories, one technology (100 um spots, 200 um apart). Where tissue differs more than theirs,
  expect less than above. Maps are smoother than expression is.
- `predictability` in `model.json`, and `var["training_pearson:..."]` in its predictions, hold the table below. They
  also say which genes are trusted, with intervals (`docs/trust.md`).
- The weights come from a regression on {spots} spots of people whose data are public.

## Data, licence, citation

Trained on {sections} (CC BY 4.0):

- HER2ST: Andersson A. et al., "Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell
  type interactions", Nat Commun 12:6012 (2021), doi:10.1038/s41467-021-26271-2.
- HBCIS: He B. et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nat Biomed
  Eng 4:827 (2020), doi:10.1038/s41551-020-0578-x.

The weights have the same licence, CC BY 4.0: name the two papers. Tiles are {tile}; panel by `{method}`; units
{units}. `python benchmarks/ship_model.py` makes the model again, to the byte.

## Gene by gene

Correlation within sections of `{main}`, each patient left out in turn: mean, and each patient. The panel was chosen on
all three.

| gene | mean | {patients} |
|---|---{rule}|
{rows}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; say whether the files are the same")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="run in this new folder, and leave it")
    given = parser.parse_args()
    if given.keep is not None and given.keep.exists():
        print(f"ship_model: {given.keep} is there, and what an earlier run left would be taken", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        outputs = (given.keep or Path(temporary) / "outputs").absolute()
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = "1"  # sums in another order have other last bits
        os.environ |= {"HISTOCRYPT_OUTPUTS": str(outputs), "HISTOCRYPT_CACHE": str(outputs / ".cache")}
        command = [sys.executable, "-m", "histocrypt", "run", str(ROOT / "studies" / f"{STUDY}.yaml")]
        if code := subprocess.run(command, check=False).returncode:
            return code
        return put(write(Path(temporary) / "breast"), check=given.check)


def put(made: Path, *, check: bool) -> int:
    """Put the files in place of those that ship, or compare them; return the exit code."""
    from histocrypt.paths import shipped_model

    names = sorted(path.name for path in made.iterdir())
    if check:
        same, other, absent = filecmp.cmpfiles(made, shipped_model(), names, shallow=False)
        print(f"the same: {', '.join(same) or 'none'}; others: {', '.join(other + absent) or 'none'}")
        return int(len(same) < len(names))
    size = sum(path.stat().st_size for path in made.iterdir())
    if size > MOST_BYTES:
        print(f"ship_model: {size:,} bytes are more than {MOST_BYTES:,}", file=sys.stderr)
        return 1
    shutil.rmtree(shipped_model(), ignore_errors=True)
    shutil.copytree(made, shipped_model())
    print(f"{shipped_model()}: {', '.join(names)}, {size:,} bytes")
    return 0


def write(folder: Path) -> Path:
    """Write weights, `model.json` and the card into a new folder."""
    from histocrypt.evaluation.scores import load_scores
    from histocrypt.files import read_json, write_json
    from histocrypt.paths import RunFolder
    from histocrypt.study import parse_study

    run = RunFolder.of(STUDY)
    trained = run.model(MODEL, "final")
    about = {name: value for name, value in read_json(trained / "model.json").items() if name not in RUNS_APART}
    folder.mkdir()
    shutil.copyfile(trained / "weights.safetensors", folder / "weights.safetensors")
    write_json(folder / "model.json", about)
    (folder / "README.md").write_text(
        card(about, load_scores(parse_study(read_json(run.study), file=run.study)), folder), encoding="utf-8"
    )
    return folder


def card(about: dict[str, Any], scores: Scores, folder: Path) -> str:
    """Return the card."""
    main, told = about["transforms"][0], about["predictability"]
    patients, panel, geometry = list(told["by_patient"]), about["panel"], about["geometry"]
    places = [about["outputs"].index(f"{main}:{gene}") for gene in panel["genes"]]
    each = np.array([[told["by_patient"][patient][place] for patient in patients] for place in places], dtype=float)
    mean = np.array([told["correlation"][f"{main}:{gene}"] for gene in panel["genes"]], dtype=float)
    order = np.argsort(-mean, kind="stable")
    return CARD.format(
        genes=len(places),
        kilobytes=round(sum(path.stat().st_size for path in folder.iterdir()) / 1000),
        tables="\n\n".join(by_patient(scores, transform, (MODEL, *BESIDE)) for transform in about["transforms"]),
        below=int((mean < 0.05).sum()),
        above=int((mean > 0.25).sum()),
        main=main,
        spots=f"{about['n_train_spots']:,}",
        sections=", ".join(about["train_sections"]),
        tile=f"{geometry['tile_um']:g} um wide, {geometry['tile_px']} px",
        method=panel["method"],
        units=", ".join(about["transforms"]),
        patients=" | ".join(patients),
        rule="|---" * len(patients),
        rows="\n".join(
            f"| {panel['symbols'][i]} | {mean[i]:.2f} | {' | '.join(f'{value:.2f}' for value in each[i])} |"
            for i in order
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
