"""Which synthetic images are kept: those that look real and are no copies, as many of one class as of another.

Both limits come from real images of patients that neither the generator nor the autoencoder learnt from. These must be
inner validation patients, not those that anything is tested on later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import files
from histocrypt.errors import InputError
from histocrypt.synthesis.pairs import Pairs

if TYPE_CHECKING:
    import pandas as pd
    import torch

# ---- realism
# How real an image looks: the error of an autoencoder that learnt real images only.
#
# Instance norm and LeakyReLU 0.2 as DiffGuard's reconstruction network (npj Digital Medicine 2024), trained with L1;
# but no bridge leads around the bottleneck, for a network with bridges copies whatever it is shown. Instance norm
# removes an image's colour and contrast, so their means and spreads are handed on beside the code.
#
# A low error also favours **copies** of what was learnt: `synthesis.novelty` is the other half of the filter.


WIDTH, CODE, BATCH, RATE = 16, 24, 16, 2e-3
_DEPTH = 3  # halvings of the side down to the code
_FILES = ("reconstruction.safetensors", "reconstruction.json")


class Reconstruction:
    """A trained autoencoder, with the mean and spread of its features on what it learnt from."""

    def __init__(self, network: torch.nn.Module, mean: np.ndarray, spread: np.ndarray, *, side: int, channels: int):
        self.network, self.mean, self.spread = network.eval(), mean, spread
        self.side, self.channels = side, channels

    def error(self, pairs: Pairs) -> np.ndarray:
        """Return (n,) float32: the mean absolute error of each image, in units of [-1, 1]."""
        return self._over(pairs, lambda x: (self.network(x) - x).abs().mean((1, 2, 3)))

    def features(self, pairs: Pairs) -> np.ndarray:
        """Return (n, d) float32 features, in standard deviations of what was learnt from.

        Means and spreads of the code over the image, over its eight flips and turns: an image and its mirror image have
        the same features, so that turning a copy does not hide it.
        """
        found = self._over(pairs, lambda x: _summary(self.network, x))
        return ((found - self.mean) / self.spread).astype(np.float32)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write the network and what is known of it, the description last."""
        import torch
        from safetensors.torch import save_file

        state = {f"network.{key}": value.contiguous() for key, value in self.network.state_dict().items()}
        state |= {"mean": torch.from_numpy(self.mean), "spread": torch.from_numpy(self.spread)}
        with files.atomic_path(folder / _FILES[0]) as temporary:
            save_file(state, temporary)
        files.write_json(folder / _FILES[1], about)

    def _over(self, pairs: Pairs, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        import torch

        shape = pairs.images.shape[1:]
        if shape != (self.side, self.side, self.channels):
            raise InputError(
                "images are of another shape than the autoencoder learnt",
                value=shape,
                expected=f"{(self.side, self.side, self.channels)}",
            )
        device = next(self.network.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pairs), 64):
                images = pairs.subset(np.arange(start, min(start + 64, len(pairs)))).signals()[0]
                parts.append(function(torch.from_numpy(images).to(device)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, *self.mean.shape), dtype=np.float32)


def train_reconstruction(
    pairs: Pairs, *, epochs: int, seed: int, folder: str | Path | None = None, width: int = WIDTH, device: Any = None
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
    import torch
    from tqdm.auto import tqdm

    from histocrypt.machine import choose_device

    side, channels = pairs.images.shape[1], pairs.images.shape[3]
    if len(pairs) < 2 or side % 2**_DEPTH or side < 16:
        msg = "an autoencoder cannot learn from these images"
        expected = f"two or more, side a multiple of {2**_DEPTH} from 16 on"
        raise InputError(msg, value=f"{len(pairs)} of side {side}", expected=expected)
    digest = hashlib.sha256(np.ascontiguousarray(pairs.images)).hexdigest()
    about = {"epochs": epochs, "seed": seed, "width": width, "side": side, "channels": channels, "images": digest}
    if folder is not None and (found := _finished(Path(folder), about)) is not None:
        return found
    device = torch.device(device) if device else choose_device()
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(width, channels).to(device).train()
    images = torch.from_numpy(pairs.signals()[0])
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, epochs * -(-len(images) // BATCH)))
    for _ in tqdm(range(epochs), desc="reconstruction", unit="epoch", leave=False):
        for rows in np.array_split(rng.permutation(len(images)), -(-len(images) // BATCH)):
            shown = images[rows].to(device)
            shown = torch.rot90(shown, int(rng.integers(4)), (2, 3))
            shown = shown.flip(3) if rng.random() < 0.5 else shown
            loss = (network(shown) - shown).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    plain = Reconstruction(network, np.float32(0), np.float32(1), side=side, channels=channels)
    features = plain.features(pairs)
    spread = features.std(axis=0)
    made = Reconstruction(
        network, features.mean(axis=0), np.maximum(spread, 1e-3 * spread.max()), side=side, channels=channels
    )
    if folder is not None:
        made.save(Path(folder), about)
    return made


def build(width: int, channels: int) -> torch.nn.Module:
    """Return the untrained autoencoder: (n, channels, s, s) in [-1, 1] to the same."""
    from torch import cat, nn

    def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, b, 3, stride, 1), nn.InstanceNorm2d(b, affine=True, eps=1e-3), nn.LeakyReLU(0.2)
        )

    widths = [width * 2**i for i in range(_DEPTH + 1)]
    tint = 2 * channels

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            down = [block(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)]
            self.encoder = nn.Sequential(block(channels, widths[0]), *down, nn.Conv2d(widths[-1], CODE, 1))
            up = [nn.Conv2d(CODE + tint, widths[-1], 1), nn.LeakyReLU(0.2)]
            for a, b in zip(widths[::-1], widths[-2::-1], strict=False):
                up += [nn.Upsample(scale_factor=2), block(a, b)]
            self.decoder = nn.Sequential(*up)
            self.last = nn.Conv2d(widths[0] + tint, channels, 3, 1, 1)

        def tint(self, images: Any) -> Any:
            """Return (n, 2 channels, 1, 1): mean and spread of each channel."""
            return cat([images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)], 1)

        def forward(self, images: Any) -> Any:
            tint, code = self.tint(images), self.encoder(images)
            up = self.decoder(cat([code, tint.expand(-1, -1, *code.shape[2:])], 1))
            return self.last(cat([up, tint.expand(-1, -1, *up.shape[2:])], 1)).tanh()

    return Autoencoder()


def _summary(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    import torch

    views = []
    for turn in range(4):
        turned = torch.rot90(images, turn, (2, 3))
        for view in (turned, turned.flip(3)):
            code = network.encoder(view)
            views.append(torch.cat([code.mean((2, 3)), code.std((2, 3))], 1))
    return torch.cat([torch.stack(views).mean(0), network.tint(images).flatten(1)], 1)


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
    about = files.read_json(folder / _FILES[1])
    try:
        state = load_file(folder / _FILES[0])
        network = build(about["width"], about["channels"])
        network.load_state_dict(
            {key.removeprefix("network."): v for key, v in state.items() if key.startswith("network.")}
        )
        mean, spread = state["mean"].numpy(), state["spread"].numpy()
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"holds no trained reconstruction network ({' '.join(str(error).split())[:120]})",
            file=folder,
            fix="run 60_synthetic_data again",
        ) from error
    return Reconstruction(network, mean, spread, side=about["side"], channels=about["channels"])


def _finished(folder: Path, about: dict[str, Any]) -> Reconstruction | None:
    """Return what an earlier training left in a folder, if it was the same training."""
    if not (folder / _FILES[1]).is_file() or files.read_json(folder / _FILES[1]) != about:
        return None
    return load_reconstruction(folder)


# ---- novelty
# How new an image is: the distance to its nearest training record, against that of patients not learnt from.
#
# Images of unseen patients lie at some distance from the training images. What lies nearer than nearly all of them is
# closer to a training record than another patient's tissue comes by itself, and may be a copy.


Features = Callable[[Pairs], np.ndarray]
"""From n images to (n, d) features that are compared by Euclidean distance."""
_AT_ONCE = 512


def distances(features_a: np.ndarray, features_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row of (n_a, d) features, the distance to the nearest row of (n_b, d), and which one that is.

    Exact, also where both are the same; (n_a,) float64 and (n_a,) int.
    """
    from scipy.spatial.distance import cdist

    if not len(features_b):
        raise InputError("there is no record to compare with")
    nearest = np.empty(len(features_a))
    index = np.empty(len(features_a), dtype=np.int64)
    for start in range(0, len(features_a), _AT_ONCE):
        found = cdist(features_a[start : start + _AT_ONCE], features_b)
        index[start : start + _AT_ONCE] = found.argmin(axis=1)
        nearest[start : start + _AT_ONCE] = found.min(axis=1)
    return nearest, index


def threshold(train: np.ndarray, held_out: np.ndarray, *, quantile: float) -> float:
    """Return the distance to training features below which ``quantile`` of the held-out features lie."""
    if not 0 < quantile < 1:
        raise InputError("is no share", field="novelty quantile", value=quantile, expected="between 0 and 1")
    if not len(held_out):
        raise InputError("without held-out images nothing says how near is too near")
    return float(np.quantile(distances(held_out, train)[0], quantile))


def check_apart(train: Pairs, held_out: Pairs) -> None:
    """Refuse a patient on both sides: tiles of one section share pixels, and all of a patient resemble one another."""
    both = sorted(set(train.patients.tolist()) & set(held_out.patients.tolist()) - {""})
    if both:
        raise InputError(
            f"patient {both[0]} is among the training and the held-out images", fix="hold out whole patients"
        )


def with_encoder(reconstruction: Reconstruction, train: Pairs, *, encoder: str = "efficientnet_lite0_128") -> Features:
    """Return features of the autoencoder beside those of a frozen encoder, both with the same weight.

    The encoder's are averaged over four turns and their mirror images, and scaled by their spread on ``train``.
    """
    plain = _encoded(train, encoder)
    mean, spread = plain.mean(axis=0), plain.std(axis=0) + 1e-6

    def features(pairs: Pairs) -> np.ndarray:
        own = reconstruction.features(pairs)
        other = (_encoded(pairs, encoder) - mean) / spread
        return np.concatenate([own / np.sqrt(own.shape[1]), other / np.sqrt(other.shape[1])], axis=1)

    return features


def _encoded(pairs: Pairs, encoder: str) -> np.ndarray:
    from histocrypt.encoders.encoders import encode

    images = np.repeat(pairs.images, 3, axis=3) if pairs.images.shape[3] == 1 else pairs.images
    turned = [np.rot90(images, turn, (1, 2)) for turn in range(4)]
    views = [view for one in turned for view in (one, one[:, :, ::-1])]
    return np.mean([encode(np.ascontiguousarray(view), encoder, progress=False) for view in views], axis=0)


# ---- filtering


KEPT, UNREAL, COPY, BOTH, SURPLUS = "kept", "not realistic", "too near", "not realistic and too near", "surplus"


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
    features: Features | None = None,
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
    features
        What distances are taken on; the reconstruction's own if not given.

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
        found = f"{novelty_quantile} and {realism_quantile}"
        raise InputError("quantiles do not fit", value=found, expected="0 < novelty < realism < 1")
    if per_class is not None and per_class < 1:
        raise InputError("keeps nothing", field="per_class", value=per_class, expected="1 or more")
    check_apart(train, held_out)
    features = features or reconstruction.features
    known = features(train)
    most = float(np.quantile(reconstruction.error(held_out), realism_quantile))
    unseen = features(held_out)
    least, farthest = (threshold(known, unseen, quantile=q) for q in (novelty_quantile, realism_quantile))
    error = reconstruction.error(synthetic)
    distance, index = distances(features(synthetic), known)
    unreal, copied = (error > most) | (distance > farthest), distance < least
    verdict = np.select([unreal & copied, unreal, copied], [BOTH, UNREAL, COPY], KEPT).astype(object)
    wanted = _balance(verdict, synthetic.labels, per_class)
    table = pd.DataFrame(
        {
            "label": synthetic.labels,
            "error": error,
            "distance": distance,
            "nearest": train.ids[index],
            "verdict": verdict,
        },
        index=pd.Index(synthetic.ids, name="id"),
    )
    summary = {
        "n": len(synthetic),
        "most_error": most,
        "least_distance": least,
        "most_distance": farthest,
        "realism_quantile": realism_quantile,
        "novelty_quantile": novelty_quantile,
        "held_out_patients": len(set(held_out.patients.tolist())),
        "not_realistic": float(unreal.mean()),
        "too_near": float(copied.mean()),
        "rejected": float((unreal | copied).mean()),
        "classes": _by_class(synthetic.labels, unreal, copied, verdict),
        "per_class": wanted,
    }
    summary["notes"] = _notes(summary)
    return Filtered(synthetic.subset(verdict == KEPT), table, summary)


def _balance(verdict: np.ndarray, labels: np.ndarray, per_class: int | None) -> int:
    """Mark what passed beyond the number wanted of its class as surplus, in place; return that number."""
    passed = {name: np.flatnonzero((labels == name) & (verdict == KEPT)) for name in np.unique(labels).tolist()}
    wanted = per_class or min((len(rows) for rows in passed.values() if len(rows)), default=0)
    for rows in passed.values():
        verdict[rows[wanted:]] = SURPLUS
    return wanted


def _by_class(labels: np.ndarray, unreal: np.ndarray, copied: np.ndarray, verdict: np.ndarray) -> dict[str, Any]:
    found = {}
    for name in np.unique(labels).tolist():
        own = labels == name
        found[name] = {
            "n": int(own.sum()),
            "not_realistic": float(unreal[own].mean()),
            "too_near": float(copied[own].mean()),
            "rejected": float((unreal | copied)[own].mean()),
            "kept": int((verdict[own] == KEPT).sum()),
        }
    return found


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    for name, row in summary["classes"].items():
        if row["kept"] < summary["per_class"]:
            notes.append(f"class {name} is short: {row['kept']} of {summary['per_class']} wanted passed the filter")
    if not summary["per_class"]:
        notes.append("no synthetic image passed the filter")
    if summary["held_out_patients"] < 2:
        notes.append("both limits rest on a single held-out patient")
    return notes
