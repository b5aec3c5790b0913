"""Which synthetic images are kept: those that look real and are no copies, as many of one class as of another.

How real an image looks is the error of an autoencoder that learnt real images only. Instance norm and LeakyReLU 0.2 as
DiffGuard's reconstruction network (npj Digital Medicine 2024), trained with L1; but no bridge leads around the
bottleneck, for a network with bridges copies whatever it is shown. Instance norm removes an image's colour and
contrast, so their means and spreads are handed on beside the code.

A low error also favours copies of what was learnt. How new an image is, is the distance to its nearest training image
in the features of that network: images of unseen patients lie at some distance from the training images, and what lies
nearer than nearly all of them may be a copy.

Both limits come from real images of patients that neither the generator nor the autoencoder learnt from. These must be
inner validation patients, not those that anything is tested on later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.machine import choose_device
from histocrypt.synthesis.manifest import Pairs
from histocrypt.training.loop import Trainer

if TYPE_CHECKING:
    import pandas as pd

WIDTH, CODE, DEPTH = 16, 24, 3
"""Channels of the first layer and of the code, and halvings of the side down to the code."""
BATCH, RATE = 16, 2e-3
FILES = ("reconstruction.safetensors", "reconstruction.json")
KEPT, UNREAL, COPY, BOTH, SURPLUS = "kept", "not realistic", "too near", "not realistic and too near", "surplus"


class Autoencoder(nn.Module):
    """(n, channels, s, s) in [-1, 1] to the same."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(DEPTH + 1)]
        tint = 2 * channels
        down = [_block(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)]
        self.encoder = nn.Sequential(_block(channels, widths[0]), *down, nn.Conv2d(widths[-1], CODE, 1))
        up = [nn.Conv2d(CODE + tint, widths[-1], 1), nn.LeakyReLU(0.2)]
        for a, b in zip(widths[::-1], widths[-2::-1], strict=False):
            up += [nn.Upsample(scale_factor=2), _block(a, b)]
        self.decoder = nn.Sequential(*up)
        self.last = nn.Conv2d(widths[0] + tint, channels, 3, 1, 1)

    def tint(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, 2 channels, 1, 1): mean and spread of each channel."""
        return torch.cat([images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructed images."""
        tint, code = self.tint(images), self.encoder(images)
        up = self.decoder(torch.cat([code, tint.expand(-1, -1, *code.shape[2:])], 1))
        return self.last(torch.cat([up, tint.expand(-1, -1, *up.shape[2:])], 1)).tanh()

    def summary(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, d): means and spreads of the code, averaged over the eight flips and turns; and the tint."""
        views = []
        for turn in range(4):
            turned = torch.rot90(images, turn, (2, 3))
            for view in (turned, turned.flip(3)):
                code = self.encoder(view)
                views.append(torch.cat([code.mean((2, 3)), code.std((2, 3))], 1))
        return torch.cat([torch.stack(views).mean(0), self.tint(images).flatten(1)], 1)


def _block(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.InstanceNorm2d(b, affine=True, eps=1e-3), nn.LeakyReLU(0.2))


class Reconstruction:
    """A trained autoencoder, with the mean and spread of its features on what it learnt from."""

    def __init__(self, network: Autoencoder, mean: np.ndarray, spread: np.ndarray, *, side: int, channels: int) -> None:
        self.network, self.mean, self.spread = network.eval(), mean, spread
        self.side, self.channels = side, channels

    def error(self, pairs: Pairs) -> np.ndarray:
        """Return (n,) float32: the mean absolute error of each image, in units of [-1, 1]."""
        return self._over(pairs, lambda x: (self.network(x) - x).abs().mean((1, 2, 3)))

    def features(self, pairs: Pairs) -> np.ndarray:
        """Return (n, d) float32 features, in standard deviations of what was learnt from.

        An image and its mirror image have the same features, so that turning a copy does not hide it.
        """
        return ((self._over(pairs, self.network.summary) - self.mean) / self.spread).astype(np.float32)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write the network and what is known of it, the description last."""
        from safetensors.torch import save_file

        state = {f"network.{key}": value.contiguous() for key, value in self.network.state_dict().items()}
        state |= {"mean": torch.from_numpy(self.mean), "spread": torch.from_numpy(self.spread)}
        with atomic_path(folder / FILES[0]) as temporary:
            save_file(state, temporary)
        write_json(folder / FILES[1], about)

    def _over(self, pairs: Pairs, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        shape, known = pairs.images.shape[1:], (self.side, self.side, self.channels)
        if shape != known:
            raise InputError(
                "images differ in shape from the autoencoder's training images", value=shape, expected=str(known)
            )
        device = next(self.network.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pairs), 64):
                images = pairs.subset(np.arange(start, min(start + 64, len(pairs)))).signals()[0]
                parts.append(function(torch.from_numpy(images).to(device)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, *self.mean.shape), dtype=np.float32)


def train_reconstruction(
    pairs: Pairs,
    *,
    epochs: int,
    seed: int,
    folder: str | Path | None = None,
    width: int = WIDTH,
    device: str | torch.device | None = None,
) -> Reconstruction:
    """Train an autoencoder on real images; AdamW with a cosine, L1, random flips and turns.

    Parameters
    ----------
    pairs
        Real images of training patients, side a multiple of 8.
    epochs, seed
        How long, and from which start.
    folder
        Where it is kept; a finished training with the same settings and images is not done again.
    width
        Channels of the first layer.
    device
        Where to compute; the best device present if not given.

    Raises
    ------
    InputError
        If there are fewer than two images, or their side is no multiple of 8.
    """
    side, channels = pairs.images.shape[1], pairs.images.shape[3]
    if len(pairs) < 2 or side % 2**DEPTH or side < 16:
        expected = f"two or more, side a multiple of {2**DEPTH} from 16 on"
        value = f"{len(pairs)} of side {side}"
        raise InputError("an autoencoder cannot learn from these images", value=value, expected=expected)
    digest = hashlib.sha256(np.ascontiguousarray(pairs.images)).hexdigest()
    about = {"epochs": epochs, "seed": seed, "width": width, "side": side, "channels": channels, "images": digest}
    if folder is not None and (Path(folder) / FILES[1]).is_file() and read_json(Path(folder) / FILES[1]) == about:
        return load_reconstruction(folder)
    device = torch.device(device) if device else choose_device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(width, channels).to(device)
    images, rng = torch.from_numpy(pairs.signals()[0]), np.random.default_rng(seed)
    steps = -(-len(images) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, epochs * steps))

    def batches(*_: Any) -> Iterator[np.ndarray]:
        for rows in np.array_split(rng.permutation(len(images)), steps):
            yield rows
            schedule.step()

    def loss(rows: np.ndarray, _: None) -> torch.Tensor:
        shown = torch.rot90(images[rows].to(device), int(rng.integers(4)), (2, 3))
        shown = shown.flip(3) if rng.random() < 0.5 else shown
        return (network(shown) - shown).abs().mean()

    settings = {"steps": steps, "epochs": epochs, "setting": "synthesis.reconstruction_epochs"}
    Trainer(
        network=network,
        optimiser=optimiser,
        device=device,
        batches=batches,
        loss=loss,
        label="reconstruction",
        **settings,
    ).fit()
    plain = Reconstruction(network, np.float32(0), np.float32(1), side=side, channels=channels)
    features = plain.features(pairs)
    spread = np.maximum(features.std(axis=0), 1e-3 * features.std(axis=0).max())
    made = Reconstruction(network, features.mean(axis=0), spread, side=side, channels=channels)
    if folder is not None:
        made.save(Path(folder), about)
    return made


def load_reconstruction(folder: str | Path) -> Reconstruction:
    """Load a trained network.

    Raises
    ------
    InputError
        If the folder holds none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    about = read_json(folder / FILES[1])
    try:
        state = load_file(folder / FILES[0])
        mean, spread = state.pop("mean").numpy(), state.pop("spread").numpy()
        network = Autoencoder(about["width"], about["channels"])
        network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        fix = "run 60_synthetic_data again"
        raise InputError(f"holds no trained reconstruction network ({reason})", file=folder, fix=fix) from error
    return Reconstruction(network, mean, spread, side=about["side"], channels=about["channels"])


def distances(features_a: np.ndarray, features_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row of (n_a, d) features, the distance to the nearest row of (n_b, d), and which one that is.

    Exact, also where both are the same; (n_a,) float64 and (n_a,) int.
    """
    from scipy.spatial.distance import cdist

    if not len(features_b):
        raise InputError("there is no record to compare with")
    nearest, index = np.empty(len(features_a)), np.empty(len(features_a), dtype=np.int64)
    for start in range(0, len(features_a), 512):
        some = cdist(features_a[start : start + 512], features_b)
        index[start : start + 512], nearest[start : start + 512] = some.argmin(axis=1), some.min(axis=1)
    return nearest, index


def check_apart(train: np.ndarray, held_out: np.ndarray) -> None:
    """Refuse a patient on both sides: tiles of one section share pixels, and all of a patient resemble one another."""
    both = sorted(set(train.tolist()) & set(held_out.tolist()) - {""})
    if both:
        fix = "hold out whole patients"
        raise InputError(f"patient {both[0]} is both among the training and the held-out images", fix=fix)


@dataclass(frozen=True)
class Filtered:
    """What came of a filter."""

    kept: Pairs
    table: pd.DataFrame
    """By id: label, error, distance, nearest (id of the training image), verdict."""
    summary: dict[str, Any]
    """Limits, shares rejected by side and class, numbers kept, and notes: sentences on what was short."""


def filter_pairs(
    synthetic: Pairs,
    train: Pairs,
    held_out: Pairs,
    *,
    reconstruction: Reconstruction,
    realism_quantile: float = 0.95,
    novelty_quantile: float = 0.05,
    per_class: int | None = None,
) -> Filtered:
    """Judge every synthetic image on both sides, then keep the same number of each class.

    Among those that pass, the first are kept, in the order they were drawn: choosing the lowest error would choose what
    is nearest to the training images.

    Parameters
    ----------
    synthetic, train, held_out
        Images to judge, those the generator learnt from, and real ones of other patients.
    reconstruction
        Trained on ``train``.
    realism_quantile
        An image is not realistic if its error is above this quantile of the held-out errors, or its distance to
        training above this quantile of theirs: a blank image is easily reconstructed, and like no tissue.
    novelty_quantile
        An image is too near if its distance to training is below this quantile of the held-out distances.
    per_class
        Number to keep of each class; None: as many as the class with the fewest has, of those with any.

    Raises
    ------
    InputError
        If a set is empty, a patient is on both sides, a quantile is no share, or ``per_class`` is below 1.
    """
    import pandas as pd

    for name, part in (("synthetic", synthetic), ("training", train), ("held-out", held_out)):
        if not len(part):
            raise InputError(f"there is no {name} image to filter with")
    if not 0 < novelty_quantile < realism_quantile < 1:
        value = f"{novelty_quantile} and {realism_quantile}"
        raise InputError("quantiles are out of order", value=value, expected="0 < novelty < realism < 1")
    if per_class is not None and per_class < 1:
        raise InputError("keeps nothing", field="per_class", value=per_class, expected="1 or more")
    check_apart(train.patients, held_out.patients)
    known = reconstruction.features(train)
    most = float(np.quantile(reconstruction.error(held_out), realism_quantile))
    strange = distances(reconstruction.features(held_out), known)[0]
    least, farthest = (float(np.quantile(strange, quantile)) for quantile in (novelty_quantile, realism_quantile))
    error = reconstruction.error(synthetic)
    distance, index = distances(reconstruction.features(synthetic), known)
    unreal, copied = (error > most) | (distance > farthest), distance < least
    verdict = np.select([unreal & copied, unreal, copied], [BOTH, UNREAL, COPY], KEPT).astype(object)
    passed = {
        name: np.flatnonzero((synthetic.labels == name) & (verdict == KEPT)) for name in np.unique(synthetic.labels)
    }
    wanted = per_class or min((len(rows) for rows in passed.values() if len(rows)), default=0)
    for rows in passed.values():
        verdict[rows[wanted:]] = SURPLUS
    columns = {"error": error, "distance": distance, "nearest": train.ids[index], "verdict": verdict}
    table = pd.DataFrame({"label": synthetic.labels, **columns}, index=pd.Index(synthetic.ids, name="id"))
    judged = pd.DataFrame({"not_realistic": unreal, "too_near": copied, "rejected": unreal | copied})
    judged["kept"] = verdict == KEPT
    summary = {
        "n": len(synthetic),
        "most_error": most,
        "least_distance": least,
        "most_distance": farthest,
        "realism_quantile": realism_quantile,
        "novelty_quantile": novelty_quantile,
        "held_out_patients": len(set(held_out.patients.tolist())),
        **{name: float(judged[name].mean()) for name in ("not_realistic", "too_near", "rejected")},
        "classes": {
            str(name): {
                "n": len(own),
                **{column: float(own[column].mean()) for column in ("not_realistic", "too_near", "rejected")},
                "kept": int(own["kept"].sum()),
            }
            for name, own in judged.groupby(synthetic.labels)
        },
        "per_class": wanted,
    }
    summary["notes"] = _notes(summary)
    return Filtered(synthetic.subset(verdict == KEPT), table, summary)


def _notes(summary: dict[str, Any]) -> list[str]:
    wanted = summary["per_class"]
    notes = [
        f"class {name} is short: {row['kept']} of {wanted} wanted passed the filter"
        for name, row in summary["classes"].items()
        if row["kept"] < wanted
    ]
    if not wanted:
        notes.append("no synthetic image passed the filter")
    if summary["held_out_patients"] < 2:
        notes.append("both limits rest on a single held-out patient")
    return notes
