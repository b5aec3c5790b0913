"""nnU-Net v2, run end to end on the export of a study's tiles, beside the U-Net of this repository on the same tiles.

    pip install nnunetv2    # in an environment of its own; it is no dependency here
    python benchmarks/nnunet.py STUDY [--side 64] [--tiles 100] [--epochs 4] [--iterations 25] [--work FOLDER]

Tiles of the fold's training patients teach, those of its validation patient steer, those of its test patients are
scored; nnU-Net is given this split, since its own would deal tiles of one patient to both sides. Its planner, its 2D
network and its trainer are used as they come, but for the numbers of epochs and of iterations, far below its own
(1000 of 250). The U-Net sees as many tiles. Dice is that of `synthesis.segmentation`, with intervals over blocks of
tissue within the test patients. nnU-Net reads back its own checkpoint, a pickle that this run wrote. The defaults take
some minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch; must come first
from histocrypt.evaluation.bootstrap import interval
from histocrypt.files import read_json, write_json
from histocrypt.study import load_study
from histocrypt.synthesis import pipeline
from histocrypt.synthesis.manifest import Pairs, export_nnunet, read_mask
from histocrypt.synthesis.segmentation import draws_of, mean_dice, patient_draws, pixel_counts, score, train_segmenter
from histocrypt.synthesis.utility import colour_mask, majority_mask

NUMBER, NAME = 502, "Tiles"


def run_nnunet(root: Path, work: Path, validation: set[str], *, epochs: int, iterations: int) -> int:
    """Plan, preprocess, train and predict an exported data set; return how many tiles training saw.

    Predictions lie in ``work/predicted``.
    """
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    predicted, device = work / "predicted", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predicted.mkdir(exist_ok=True)
    ready, trained = work / "preprocessed" / root.name, work / "results" / root.name / "nnUNetTrainer__nnUNetPlans__2d"
    if not (trained / "fold_0" / "checkpoint_final.pth").is_file():
        planning.extract_fingerprints([NUMBER], num_processes=1)
        planning.plan_experiments([NUMBER])
        planning.preprocess([NUMBER], configurations=["2d"], num_processes=[1])
        cases = [file.stem for file in sorted((root / "labelsTr").iterdir())]
        split = {side: [one for one in cases if (one in validation) == (side == "val")] for side in ("train", "val")}
        write_json(ready / "splits_final.json", [split])
        os.environ["nnUNet_n_proc_DA"] = "0"  # tiles are augmented in this process; the planner wants at least 1
        trainer = get_trainer_from_args(root.name, "2d", 0, device=device)
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
            epochs,
            iterations,
            2,
        )
        trainer.run_training()
    predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), use_folds=(0,))
    predictor.predict_from_files_sequential(str(root / "imagesTs"), str(predicted))
    plans = read_json(ready / "nnUNetPlans.json")
    return epochs * iterations * plans["configurations"]["2d"]["batch_size"]


def some(pairs: Pairs, limit: int, seed: int) -> np.ndarray:
    """Return up to ``limit`` rows, drawn at random."""
    return np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study with the part synthesis whose sections are preprocessed")
    parser.add_argument("--side", type=int, default=64, help="pixels of a tile")
    parser.add_argument("--tiles", type=int, default=100, help="of each side of the fold, at most")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=25, help="of nnU-Net's epoch, which has 250")
    parser.add_argument("--work", type=Path, help="nnU-Net's files; what is finished there stays; else a temporary one")
    asked = parser.parse_args()
    try:
        versions = {name: version(name) for name in ("nnunetv2", "torch", "numpy")}
    except PackageNotFoundError as error:
        parser.error(f"{error.name} is not installed; pip install it in an environment of its own")
    print(", ".join(f"{name} {one}" for name, one in versions.items()))
    work = asked.work or Path(tempfile.mkdtemp(prefix="nnunet-"))
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
        (work / name).mkdir(parents=True, exist_ok=True)
    settings = {"study": asked.study, "side": asked.side, "tiles": asked.tiles}
    settings |= {"epochs": asked.epochs, "iterations": asked.iterations}
    if (work / "asked.json").is_file() and read_json(work / "asked.json") != settings:
        parser.error(f"{work} holds a run with other options: {read_json(work / 'asked.json')}")
    write_json(work / "asked.json", settings)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
    study = load_study(asked.study)
    study = study.model_copy(update={"synthesis": study.synthesis.model_copy(update={"side": asked.side})})
    fold, seed = pipeline.fold_of(study, study.synthesis.fold), study.seed
    real = pipeline.real_pairs(study, fold)
    real = {name: pairs.subset(some(pairs, asked.tiles, seed)) for name, pairs in real.items()}
    train, validation, test = (real[name] for name in pipeline.PARTS)
    root = work / "raw" / f"Dataset{NUMBER}_{NAME}"
    if not root.is_dir():
        export_nnunet(work / "raw", Pairs.join([train, validation]), test, dataset_id=NUMBER, name=NAME)
    steering = {case for case, said in read_json(root / "cases.json").items() if said["id"] in set(validation.ids)}
    seen = run_nnunet(root, work, steering, epochs=asked.epochs, iterations=asked.iterations)
    levels = len(test.scheme.levels)
    files = sorted((work / "predicted").glob("*.png"))
    masks = {"nnU-Net": np.stack([read_mask(file, levels) for file in files])}
    network = train_segmenter(train, validation, epochs=max(1, round(seen / len(train))), seed=seed)
    masks["U-Net of this repository"] = network.predict(test)
    masks |= {"colour only": colour_mask(train, test, seed=seed), "majority": majority_mask(train, test)}
    weights = patient_draws(test.patients, pipeline.blocks_of(study, test), draws=500, seed=seed)
    named = list(test.scheme.levels[1:])
    sizes = {name: f"{len(pairs)} tiles of {len(set(pairs.patients))} patients" for name, pairs in real.items()}
    print(f"\n{sizes}, {asked.side} px; {seen} tiles seen in training\n")
    print(f"| network | mean Dice (95 %) | {' | '.join(named)} |\n|---|---|{'---|' * len(named)}")
    for name, predicted in masks.items():
        counts = pixel_counts(test.masks, predicted, levels)
        each = score(counts, test.patients)
        mean = float(mean_dice(each))
        low, high = interval(mean_dice(draws_of(counts, weights)), mean)
        dice = " | ".join(f"{one:.3f}" for one in each[1:])
        print(f"| {name} | {mean:.3f} ({low:.3f} to {high:.3f}) | {dice} |")


if __name__ == "__main__":
    main()
