"""What generators and drawn sets give away: noise known too well, records that lie too close, and copies.

The loss of the noise in a record, and the distance to the nearest synthetic record, are one number a record; with the
sign turned they are membership scores (`audit.membership` reads a high score as "more likely a member"). The first
needs the generator itself, the second synthetic records alone.

Memorisation is how many synthetic images lie nearer to a training record than another patient's tissue does. The
threshold is a low quantile of the distances from held-out images to the training images, so that by chance alone that
share of images counts as copies: it is shown beside the share found. What is measured is nearness in the features
given; a generator that learnt a patient's stain, and no image, is nearer too. That is why the nearest pairs are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from histocrypt.errors import InputError
from histocrypt.synthesis.filtering import check_apart, distances
from histocrypt.synthesis.generator import class_numbers, noised, signals_of, told_of
from histocrypt.training.loop import seeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from histocrypt.synthesis.generator import Generator
    from histocrypt.synthesis.manifest import Pairs

LEVELS = (0.9, 0.7, 0.5, 0.3)
"""Shares of signal at which losses are asked for: in much noise all records are alike, in little all are easy."""

BATCH = 64


def denoising_loss(
    generator: Generator, pairs: Pairs, *, levels: tuple[float, ...] = LEVELS, draws: int = 4, seed: int = 0
) -> np.ndarray:
    """Return how badly the generator tells the noise in each record.

    Parameters
    ----------
    pairs
        Of the generator's side, colours and classes; with masks where it is joint.
    levels
        Shares of the signal's variance that are left, each between 0 and 1.
    draws
        Of noise, for each level. The noise depends on the seed and the record's name alone.

    Returns
    -------
    (n,) float64
        Mean squared error of the noise over levels and draws. Minus this is a membership score.

    Raises
    ------
    InputError
        If the pairs do not suit the generator, or a level is out of range.
    """
    _check(generator, pairs, levels, draws)
    signals = signals_of(pairs, generator.plan)
    classes = class_numbers(pairs.labels, generator.scheme).to(generator.device)
    told = {name: values.to(generator.device) for name, values in told_of(pairs, generator.plan).items()}
    total = np.zeros(len(pairs))
    chance = [seeded(seed, name) for name in pairs.ids.tolist()]
    with torch.inference_mode():
        for level in np.repeat(levels, draws).tolist():
            for start in range(0, len(pairs), BATCH):
                rows = slice(start, start + BATCH)
                clean = generator.network.encode(signals[rows].to(generator.device))
                noise = torch.stack([torch.randn(clean.shape[1:], generator=each) for each in chance[rows]])
                noise, kept = noise.to(clean), torch.full((len(clean),), level).to(clean)
                also = {name: values[rows] for name, values in told.items()}
                found = generator.noise_in(noised(clean, kept, noise), kept, classes[rows], **also)
                total[rows] += (found - noise).square().mean(dim=(1, 2, 3)).double().cpu().numpy()
    return total / (len(levels) * draws)


def closest_record(synthetic: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the distance of each record to the nearest synthetic one, (n,). Minus this is a membership score.

    Parameters
    ----------
    synthetic
        (m, d) features of synthetic records; m at least 1.
    features
        (n, d) features of the records that are asked about.
    """
    from sklearn.neighbors import NearestNeighbors

    synthetic, features = np.asarray(synthetic, dtype=np.float64), np.asarray(features, dtype=np.float64)
    if not len(synthetic):
        raise InputError("there is no synthetic record to compare with", value=0)
    if synthetic.shape[1:] != features.shape[1:]:
        raise InputError("synthetic and real records have different features", value=(synthetic.shape, features.shape))
    return NearestNeighbors(n_neighbors=1).fit(synthetic).kneighbors(features)[0][:, 0]


def _check(generator: Generator, pairs: Pairs, levels: tuple[float, ...], draws: int) -> None:
    """Refuse pairs that the generator cannot have been trained on, and levels without noise or signal."""
    found, known = pairs.images.shape[1:], (generator.side, generator.side, generator.colours)
    if found != known:
        raise InputError("images differ in size from the generator's", value=found, expected=str(known))
    if pairs.scheme != generator.scheme:
        raise InputError(
            "images differ in classes or mask levels from the generator's",
            value=list(pairs.scheme.classes),
            expected=", ".join(generator.scheme.classes),
        )
    if generator.plan.kind == "joint" and not pairs.has_mask.all():
        raise InputError(
            "the generator knows images with masks, and some have none", value=str(pairs.ids[~pairs.has_mask][0])
        )
    if draws < 1 or not levels or not all(0 < level < 1 for level in levels):
        raise InputError("levels must be between 0 and 1, and draws at least 1", value=(tuple(levels), draws))


@dataclass(frozen=True)
class Memorised:
    """What was found."""

    share_samples: float
    """Of the synthetic images, how many are nearer than the threshold."""
    share_samples_interval: tuple[float, float]
    """95 %, bootstrap over training patients: what a set of other such patients would give."""
    share_patients: float
    """Of the training patients, how many are nearest to at least one such image."""
    share_patients_interval: tuple[float, float]
    """95 %, exact binomial over patients: wide where patients are few, and never empty at 0 or 1."""
    expected_samples: float
    """The share of samples that held-out images themselves have: the quantile, up to ties."""
    expected_patients: float
    """The share of patients that as many held-out images, drawn with replacement, reach on average."""
    nearest: pd.DataFrame
    """By synthetic id, nearest first: distance, record, patient, copied."""
    threshold: float
    patients: int
    held_out_patients: int
    notes: list[str]


def memorised(
    drawn: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    ids: np.ndarray,
    records: np.ndarray,
    patients: np.ndarray,
    strangers: np.ndarray,
    quantile: float = 0.05,
    draws: int = 1000,
    seed: int = 0,
) -> Memorised:
    """Compare synthetic images with the records they were learnt from, by features that tell how near two images are.

    Parameters
    ----------
    drawn, train, held_out
        (m, d), (n, d) and (k, d) features, such as `Reconstruction.features`, of synthetic images, of those learnt
        from, and of real ones of other patients. Where tiles of a section overlap, pass those that
        `tissue_pairs.apart` chooses.
    ids
        (m,) names of the synthetic images.
    records, patients
        (n,) names of the training images, and whose they are.
    strangers
        (k,) whose the held-out images are.
    quantile
        Of the held-out distances.
    draws, seed
        Of the bootstrap.

    Raises
    ------
    InputError
        If a set is empty, a training image has no patient, or a patient is on both sides.
    """
    import pandas as pd
    from scipy.stats import binomtest

    for name, part in (("synthetic", drawn), ("training", train), ("held-out", held_out)):
        if not len(part):
            raise InputError(f"there is no {name} image to compare")
    if not 0 < quantile < 1:
        raise InputError("is out of range", field="quantile", value=quantile, expected="between 0 and 1")
    if (patients == "").any():
        nobody = str(records[patients == ""][0])
        raise InputError("a training image has no patient, and memorisation is counted by patient", value=nobody)
    check_apart(patients, strangers)
    unseen, unseen_index = distances(held_out, train)
    limit = float(np.quantile(unseen, quantile))
    distance, index = distances(drawn, train)
    copied, owner = distance < limit, patients[index]
    names = np.unique(patients)
    counts = np.array([(copied & (owner == name)).sum() for name in names])
    n, rng = len(drawn), np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    low, high = np.quantile(np.clip(weights @ counts / n, 0, 1), [0.025, 0.975])
    reached = int((counts > 0).sum())
    exact = binomtest(reached, len(names)).proportion_ci(0.95, method="exact")
    chance = [
        len(np.unique(patients[unseen_index[rows]][unseen[rows] < limit])) / len(names)
        for rows in (rng.integers(len(unseen), size=n) for _ in range(min(draws, 200)))
    ]
    table = pd.DataFrame(
        {"distance": distance, "record": records[index], "patient": owner, "copied": copied},
        index=pd.Index(ids, name="id"),
    ).sort_values("distance", kind="stable")
    outside = len(np.unique(strangers))
    return Memorised(
        share_samples=float(copied.mean()),
        share_samples_interval=(float(low), float(high)),
        share_patients=reached / len(names),
        share_patients_interval=(float(exact.low), float(exact.high)),
        expected_samples=float((unseen < limit).mean()),
        expected_patients=float(np.mean(chance)),
        nearest=table,
        threshold=limit,
        patients=len(names),
        held_out_patients=outside,
        notes=_notes(len(names), outside, len(unseen), quantile),
    )


def _notes(patients: int, outside: int, images: int, quantile: float) -> list[str]:
    notes = ["nearness may be a shared stain and not a shared image: look at the nearest pairs"]
    if patients < 10:
        notes.append(f"{patients} training patients: the interval over patients is wide, and the bootstrap is rough")
    if outside < 2:
        notes.append("the threshold rests on a single held-out patient")
    if images * quantile < 5:
        notes.append(f"the threshold rests on {images * quantile:.1f} of {images} held-out images")
    return notes


def nearest_figure(found: Memorised, synthetic: Pairs, train: Pairs, *, n: int = 8) -> Figure:
    """Draw the ``n`` nearest pairs: synthetic above, the training record below, and how far apart.

    One synthetic image for each record at most, so that one copied record does not fill the picture. The picture shows
    real tiles of training patients: it is for those who may see them.
    """
    from histocrypt.evaluation.figures import CYCLE, MUTED, canvas, style

    shown = found.nearest.drop_duplicates("record").head(n)
    drawn, real = ({name: row for row, name in enumerate(pairs.ids.tolist())} for pairs in (synthetic, train))
    with style():
        figure, axes = canvas(2, len(shown), figsize=(1.25 * len(shown) + 0.9, 3.3), squeeze=False)
        for column, (name, row) in enumerate(shown.iterrows()):
            for axis, image in (
                (axes[0, column], synthetic.images[drawn[name]]),
                (axes[1, column], train.images[real[row["record"]]]),
            ):
                axis.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set(visible=True, color=CYCLE[1] if row["copied"] else MUTED, lw=2 if row["copied"] else 0.8)
            axes[0, column].set_title(f"{row['distance']:.2f}{' copied' if row['copied'] else ''}", fontsize=8.5)
            axes[1, column].set_xlabel(row["record"].replace(":", "\n"), fontsize=7.5)
        axes[0, 0].set_ylabel("synthetic")
        axes[1, 0].set_ylabel("nearest real")
        figure.suptitle(
            f"nearest pairs; nearer than {found.threshold:.2f} counts as copied", fontsize=9.5, x=0.01, ha="left"
        )
    return figure
