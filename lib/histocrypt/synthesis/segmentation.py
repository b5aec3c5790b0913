"""Segmentation: networks that learn masks from images, real or synthetic.

A trained network is a folder: ``segmenter.json`` says how it came about, ``weights.safetensors`` holds it. The loop is
`synthesis.segmentation_loop`, the score `synthesis.dice`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import atomic_path, read_json, write_json
from histocrypt.errors import InputError, unknown_name
from histocrypt.synthesis.dice import mean_dice, pixel_counts, score
from histocrypt.synthesis.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from histocrypt.synthesis.pairs import Pairs

NETWORKS = ("unet", "vit_hybrid")
FULL_SIZE: dict[str, dict[str, Any]] = {
    "unet": {"width": 64, "depth": 4},
    "vit_hybrid": {"stem": "resnet50", "stages": 3, "width": 768, "layers": 12, "heads": 12, "decoder": 512},
}
"""Options of the published sizes, for a GPU and 256 px; without options the networks are small enough for a CPU."""
AT_ONCE = 256
"""Images whose probabilities are in memory at once."""
FORMAT, VERSION = "histocrypt segmenter", 1


@dataclass(frozen=True)
class SegmenterPlan:
    """How a segmentation network is trained."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of the network, see `models.unet.UNet` and `models.transunet.ViTHybrid`."""
    batch: int = 16
    learning_rate: float = 2e-3
    """The highest; it rises shortly, then falls as half a cosine."""
    weight_decay: float = 1e-4
    patience: int = 10
    """Epochs without a better validation score after which training stops."""
    steps: int | None = None
    """Steps of an epoch; None: as many as all images make. Images are drawn anew when all have been seen."""


class Segmenter:
    """A trained segmentation network."""

    def __init__(
        self, network: torch.nn.Module, about: dict[str, Any], scheme: Scheme, *, device: torch.device
    ) -> None:
        self.network, self.about, self.scheme, self.device = network.to(device).eval(), about, scheme, device

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        """Return (n, levels, side, side) float32; they sum to 1 over levels."""
        import torch

        self._check(pairs)
        side = pairs.images.shape[1]
        found = np.empty((len(pairs), len(self.scheme.levels), side, side), dtype=np.float32)
        step = self.about["plan"]["batch"]
        with torch.inference_mode():
            for start in range(0, len(pairs), step):
                images = torch.from_numpy(pairs.subset(slice(start, start + step)).signals()[0]).to(self.device)
                found[start : start + step] = self.network(images).float().softmax(dim=1).cpu().numpy()
        return found

    def predict(self, pairs: Pairs) -> np.ndarray:
        """Return the most probable level of each pixel, (n, side, side) uint8. True masks are not looked at."""
        parts = [
            self.probabilities(pairs.subset(slice(start, start + AT_ONCE))).argmax(axis=1).astype(np.uint8)
            for start in range(0, len(pairs), AT_ONCE)
        ]
        return np.concatenate([np.empty((0, *pairs.masks.shape[1:]), np.uint8), *parts])

    def losses(self, pairs: Pairs) -> np.ndarray:
        """Return the mean cross-entropy of each image's pixels, (n,) float64; NaN where there is no mask."""
        found, rows = np.full(len(pairs), np.nan), np.flatnonzero(pairs.has_mask)
        for start in range(0, len(rows), AT_ONCE):
            own = rows[start : start + AT_ONCE]
            some = pairs.subset(own)
            chosen = np.take_along_axis(self.probabilities(some), some.masks[:, None].astype(np.intp), axis=1)
            found[own] = -np.log(np.maximum(chosen, 1e-12)).mean(axis=(1, 2, 3), dtype=np.float64)
        return found

    def _check(self, pairs: Pairs) -> None:
        if pairs.scheme != self.scheme:
            msg = "the images' classes or levels are not those that the network was trained with"
            raise InputError(msg, value=list(pairs.scheme.levels), expected=", ".join(self.scheme.levels))
        found, known = list(pairs.images.shape[1:]), [self.about["side"]] * 2 + [self.about["channels"]]
        if found != known:
            msg = "the images are not of the size that the network was trained with"
            raise InputError(msg, value=found, expected=str(known))


def train_segmenter(
    pairs: Pairs,
    validation: Pairs | None,
    *,
    network: str = "unet",
    epochs: int,
    seed: int,
    folder: Path | None = None,
    weights: Path | None = None,
    plan: SegmenterPlan | None = None,
    device: str | torch.device | None = None,
) -> Segmenter:
    """Train a network to outline images as their masks do.

    Parameters
    ----------
    pairs
        What to learn from; records without a mask are left out.
    validation
        Training stops when mean Dice on these has not improved for ``plan.patience`` epochs; the best epoch is kept.
        None: all epochs, and the last is kept.
    network
        ``unet`` or ``vit_hybrid``.
    epochs
        At most; the learning rate's schedule spans them.
    folder
        Where the trained network (``segmenter.json``, ``weights.safetensors``), ``curves.csv`` and the state are kept.
        A finished training with the same settings and data is not done again, an interrupted one goes on.
    weights
        A ``.safetensors`` file to start from, see `synthesis.pretrained`.

    Raises
    ------
    InputError
        If there are fewer than two masks, the network refuses its options, a file of weights does not fit, or the loss
        is no longer a number.
    """
    import torch

    from histocrypt.device import choose_device
    from histocrypt.synthesis.pretrained import take_weights
    from histocrypt.synthesis.segmentation_loop import steps_an_epoch, train
    from histocrypt.training.loop import generator_of

    plan = plan or SegmenterPlan()
    pairs = pairs.subset(pairs.has_mask)
    if len(pairs) < 2:
        msg = "segmentation cannot be learned from fewer than two masks"
        raise InputError(msg, value=len(pairs))
    if validation is not None:
        validation = validation.subset(validation.has_mask)
        if validation.scheme != pairs.scheme or not (validation.masks > 0).any():
            msg = "validation images have no mask of this scheme with anything but background"
            raise InputError(msg, value=len(validation))
    if weights is not None and not Path(weights).is_file():
        msg = "there are no weights here"
        raise InputError(msg, file=weights, expected="a .safetensors file")
    device = choose_device() if device is None else torch.device(device)
    asked = {
        "format": FORMAT, "version": VERSION, "network": network, "plan": asdict(plan), "epochs": epochs, "seed": seed,
        "side": pairs.images.shape[1], "channels": pairs.images.shape[3], "scheme": asdict(pairs.scheme),
        "images": len(pairs), "data": [digest(part) for part in (pairs, validation) if part is not None],
        "start": None if weights is None else hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))  # as it will be read back
    if folder is not None and (folder / "segmenter.json").is_file():
        done = read_json(folder / "segmenter.json")
        if isinstance(done, dict) and all(done.get(key) == value for key, value in asked.items()):
            return load_segmenter(folder, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(seed, 0).initial_seed())
        built = build_network(network, asked["scheme"]["levels"], asked["side"], asked["channels"], plan.options)
    found = {}
    if weights is not None:
        found["taken"] = str(take_weights(built, weights))
        print(f"{network}: {found['taken']}", file=sys.stderr)
    segmenter = Segmenter(built, {**asked, **found}, pairs.scheme, device=device)

    def judge() -> float:
        counts = pixel_counts(validation.masks, segmenter.predict(validation), len(pairs.scheme.levels))
        return float(mean_dice(score(counts, validation.patients)))

    fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    settings = {"epochs": epochs, "seed": seed, "device": device, "fingerprint": fingerprint, "folder": folder}
    label = " ".join(filter(None, (network, folder and folder.name)))
    progress = train(built, pairs, judge if validation is not None else None, plan, **settings, label=label)
    segmenter.about |= {
        "best_epoch": progress.best_epoch,
        "steps": progress.epoch * steps_an_epoch(plan, len(pairs)),
        "validation_dice": progress.best_score if validation is not None else None,
    }
    if folder is not None:
        save_segmenter(folder, segmenter)
        shutil.rmtree(folder / "last", ignore_errors=True)
    return segmenter


def build_network(name: str, levels: list[str], side: int, channels: int, options: dict[str, Any]) -> torch.nn.Module:
    """Return an untrained network by name; options that it refuses are an `InputError`."""
    from histocrypt.models.unet import UNet

    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    try:
        if name == "unet":
            network = UNet(len(levels), channels=channels, **options)
        else:
            from histocrypt.models.transunet import ViTHybrid

            network = ViTHybrid(len(levels), channels=channels, side=side, **options)
    except (TypeError, ValueError) as error:
        msg = f"the network refuses its options ({error})"
        raise InputError(msg, field=name, value=options) from error
    if side < network.least_side:
        msg = "images are too small for this network"
        raise InputError(msg, field=name, value=side, expected=f"at least {network.least_side} px a side")
    return network


def save_segmenter(folder: Path, segmenter: Segmenter) -> None:
    """Write a trained network: weights first, then ``segmenter.json``, which holds their checksum."""
    from safetensors.torch import save_file

    (folder / "segmenter.json").unlink(missing_ok=True)
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file({key: value.cpu().contiguous() for key, value in segmenter.network.state_dict().items()}, temporary)
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    write_json(folder / "segmenter.json", {**segmenter.about, "weights": checksum})


def load_segmenter(folder: str | Path, *, device: str | torch.device | None = None) -> Segmenter:
    """Load a trained network.

    Raises
    ------
    InputError
        If either file is missing, of another version, or does not belong to the other.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from histocrypt.device import choose_device

    folder, again = Path(folder), "train the network again"
    about = read_json(folder / "segmenter.json")
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        msg = "does not describe a segmentation network of this version"
        raise InputError(msg, file=folder / "segmenter.json", fix=again)
    try:
        scheme = Scheme(**{key: tuple(v) if isinstance(v, list) else v for key, v in about["scheme"].items()})
        stored = (folder / "weights.safetensors").read_bytes()
        options = about["plan"]["options"]
        network = build_network(about["network"], scheme.levels, about["side"], about["channels"], options)
        if hashlib.sha256(stored).hexdigest() != about["weights"]:
            msg = "weights are not those that segmenter.json describes"
            raise InputError(msg, file=folder / "weights.safetensors", fix=again)
        network.load_state_dict(load(stored))
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, AttributeError) as error:
        msg = f"the network cannot be put together ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise InputError(msg, file=folder, fix=again) from error
    return Segmenter(network, about, scheme, device=choose_device() if device is None else torch.device(device))


def digest(pairs: Pairs) -> str:
    """Return the SHA-256 of ids, images and masks."""
    found = hashlib.sha256("\n".join(pairs.ids.tolist()).encode())
    for array in (pairs.images, pairs.masks):
        found.update(f"{array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
