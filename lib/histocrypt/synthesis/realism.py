"""How real an image looks: the error of an autoencoder that learnt real images only.

Instance norm and LeakyReLU 0.2 as DiffGuard's reconstruction network (npj Digital Medicine 2024), trained with L1; but
no bridge leads around the bottleneck, for a network with bridges copies whatever it is shown. Instance norm removes an
image's colour and contrast, so their means and spreads are handed on beside the code.

A low error also favours **copies** of what was learnt: `synthesis.novelty` is the other half of the filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import atomic
from histocrypt.errors import InputError
from histocrypt.synthesis.pairs import Pairs

if TYPE_CHECKING:
    import torch

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
        with atomic.atomic_path(folder / _FILES[0]) as temporary:
            save_file(state, temporary)
        atomic.write_json(folder / _FILES[1], about)

    def _over(self, pairs: Pairs, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        import torch

        shape = pairs.images.shape[1:]
        if shape != (self.side, self.side, self.channels):
            msg = "images are of another shape than the autoencoder learnt"
            raise InputError(msg, value=shape, expected=f"{(self.side, self.side, self.channels)}")
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

    from histocrypt.device import choose_device

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
    about = atomic.read_json(folder / _FILES[1])
    try:
        state = load_file(folder / _FILES[0])
        network = build(about["width"], about["channels"])
        network.load_state_dict(
            {key.removeprefix("network."): v for key, v in state.items() if key.startswith("network.")}
        )
        mean, spread = state["mean"].numpy(), state["spread"].numpy()
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        msg = f"holds no trained reconstruction network ({' '.join(str(error).split())[:120]})"
        raise InputError(msg, file=folder, fix="run 60_synthetic_data again") from error
    return Reconstruction(network, mean, spread, side=about["side"], channels=about["channels"])


def _finished(folder: Path, about: dict[str, Any]) -> Reconstruction | None:
    """Return what an earlier training left in a folder, if it was the same training."""
    if not (folder / _FILES[1]).is_file() or atomic.read_json(folder / _FILES[1]) != about:
        return None
    return load_reconstruction(folder)
