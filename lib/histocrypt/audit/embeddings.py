"""How much of a tile comes back from its embedding, which some services ask a hospital to send in the clear.

A frozen encoder makes a few hundred numbers of a tile. Whoever gets them, and has tiles of other patients and the same
public encoder, can train a decoder from embeddings to pixels (Mahendran and Vedaldi, CVPR 2015; Dosovitskiy and Brox,
CVPR 2016), or encode tiles they hold and look for the same numbers. Both are tried here, on patients whose tiles the
decoder never saw. Beside them stand what needs no embedding (the mean tile), what is no decoder (the public tile with
the nearest embedding), and the same decoder on real ciphertexts of the same embeddings.

What comes back is a floor: an attacker with millions of public tiles and a large network gets more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from histocrypt.data.folds import Fold
    from histocrypt.study import Study

SIDE = 48
"""Pixels of a tile's side that are asked back."""
COMPONENTS = 64
"""Of public tiles, that the linear decoder gives."""
DECODERS = ("linear", "network")
MEAN, NEAREST = "mean public tile", "nearest public tile"
BASELINES = (MEAN, NEAREST)
MEASURES = {
    "psnr": "peak signal to noise, dB",
    "ssim": "structural similarity, at most 1",
    "colour": "distance of mean colours, CIELAB",
    "nuclei": "Dice overlap of what is dark with haematoxylin",
    "content": "difference of the share of the tile that is dark with haematoxylin",
    "found": "is the tile nearest to the picture, of all the hospital's",
}
"""Of each tile."""
PENALTIES = np.logspace(1, 7, 13)
SPREAD = 64.0
"""Grey levels that are 1 to the network."""


@dataclass(frozen=True)
class Sent:
    """Tiles, as an encoder sees them, with their embeddings; rows belong together."""

    pixels: np.ndarray
    """(n, side, side, 3) uint8."""
    embeddings: np.ndarray
    """(n, d) float."""
    patients: np.ndarray
    """(n,) str."""
    blocks: np.ndarray
    """(n,) str: squares of tissue within a patient, which are drawn whole for intervals."""

    def __post_init__(self) -> None:
        """Refuse rows that do not belong together."""
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            value = f"{self.pixels.shape} {self.pixels.dtype}"
            raise InputError("are not tiles", field="pixels", value=value, expected="(n, side, side, 3) uint8")
        for name in ("embeddings", "patients", "blocks"):
            if len(rows := getattr(self, name)) != len(self.pixels):
                raise InputError("must have one value per tile", field=name, value=len(rows), expected=len(self.pixels))
        if not np.isfinite(self.embeddings).all():
            raise InputError("holds a number that is not finite", field="embeddings")

    def __len__(self) -> int:
        """Return n."""
        return len(self.pixels)

    def subset(self, keep: np.ndarray) -> Sent:
        """Return some of the rows."""
        return Sent(*(getattr(self, name)[keep] for name in ("pixels", "embeddings", "patients", "blocks")))


Decoder = Callable[[np.ndarray], np.ndarray]
"""From (n, d) embeddings to (n, side, side, 3) uint8 pictures."""


def fit_decoder(public: Sent, kind: str = "linear", *, epochs: int = 8, seed: int = 0) -> Decoder:
    """Learn to draw tiles from embeddings, of tiles that the attacker holds.

    Parameters
    ----------
    public
        The attacker's tiles and their embeddings.
    kind
        ``linear``: ridge regression of the tiles' principal components, its penalty chosen by leave-one-out.
        ``network``: `models.tile_decoder.TileDecoder`, trained on absolute errors after the linear one: it draws what
        that one misses.
    epochs
        Of the network.
    seed
        Of whatever is random.
    """
    if kind not in DECODERS:
        raise unknown_name("decoder", kind, DECODERS)
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV

    shape = public.pixels.shape[1:]
    rows = public.pixels.reshape(len(public), -1).astype(np.float32)
    centre, spread = public.embeddings.mean(axis=0), public.embeddings.std(axis=0) + 1e-6
    components = min(COMPONENTS, len(public) - 1, rows.shape[1])
    parts = PCA(components, svd_solver="randomized", random_state=seed).fit(rows)

    def scaled(embeddings: np.ndarray) -> np.ndarray:
        return ((embeddings - centre) / spread).astype(np.float32)

    ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(scaled(public.embeddings), parts.transform(rows))

    def drawn(embeddings: np.ndarray) -> np.ndarray:
        return parts.inverse_transform(ridge.predict(scaled(embeddings))).reshape(-1, *shape)

    more = None
    if kind == "network":
        missed = public.pixels - drawn(public.embeddings)
        more = _network(scaled(public.embeddings), missed, epochs=epochs, seed=seed)

    def decode(embeddings: np.ndarray) -> np.ndarray:
        picture = drawn(embeddings) + (0 if more is None else more(scaled(embeddings)))
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    return decode


def _network(inputs: np.ndarray, missed: np.ndarray, *, epochs: int, seed: int) -> Decoder:
    """Train a network to draw (n, side, side, 3) what a linear decoder misses."""
    import torch

    from histocrypt.models.tile_decoder import TileDecoder
    from histocrypt.training.loop import Trainer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TileDecoder(inputs.shape[1], missed.shape[1])
    known = torch.from_numpy(inputs)
    wanted = torch.from_numpy(np.ascontiguousarray(missed.transpose(0, 3, 1, 2), np.float32)) / SPREAD
    size = 32

    def batches(_: int, chance: torch.Generator | None) -> Iterable[torch.Tensor]:
        return [rows for rows in torch.randperm(len(known), generator=chance).split(size) if len(rows) > 1]

    Trainer(
        network=network,
        optimiser=torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2),
        device=torch.device("cpu"),
        batches=batches,
        loss=lambda rows, _: torch.nn.functional.l1_loss(network(known[rows]), wanted[rows]),
        steps=-(-len(known) // size),
        epochs=epochs,
        seed=seed,
    ).fit()
    network.eval()

    def draw(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(rows)).permute(0, 2, 3, 1).numpy() * SPREAD

    return draw


def pictures_of(public: Sent, hospital: Sent, *, epochs: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Return what each decoder, and each baseline, makes of the hospital's embeddings: (n, side, side, 3) uint8 each.

    Raises
    ------
    InputError
        If a patient is on both sides.
    """
    both = sorted({*public.patients.tolist()} & {*hospital.patients.tolist()})
    if both:
        raise InputError("is both among the public tiles and among the hospital's", field="patients", value=both[0])
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(public.embeddings)
    search = NearestNeighbors(n_neighbors=1).fit(scale.transform(public.embeddings))
    nearest = search.kneighbors(scale.transform(hospital.embeddings), return_distance=False)[:, 0]
    mean = np.rint(public.pixels.mean(axis=0)).astype(np.uint8)
    found = {kind: fit_decoder(public, kind, epochs=epochs, seed=seed)(hospital.embeddings) for kind in DECODERS}
    return {MEAN: np.repeat(mean[None], len(hospital), axis=0), NEAREST: public.pixels[nearest], **found}


def measure(pictures: np.ndarray, tiles: np.ndarray) -> pd.DataFrame:
    """Return the `MEASURES` of each picture of a tile; both (n, side, side, 3) uint8, tiles in the reference stain."""
    import pandas as pd
    from skimage.color import rgb2lab
    from skimage.metrics import structural_similarity

    off = pictures.astype(np.float64) - tiles
    psnr = 10 * np.log10(255**2 / np.maximum(np.square(off).mean(axis=(1, 2, 3)), 1e-3))
    ssim = [
        structural_similarity(one, other, channel_axis=-1, data_range=255)
        for one, other in zip(pictures, tiles, strict=True)
    ]
    colours = [rgb2lab(one.mean(axis=(1, 2)) / 255) for one in (pictures, tiles)]
    dark = [_dark(one, tiles) for one in (pictures, tiles)]
    overlap = 2 * (dark[0] & dark[1]).sum(axis=(1, 2))
    whole = sum(one.sum(axis=(1, 2)) for one in dark)
    return pd.DataFrame(
        {
            "psnr": psnr,
            "ssim": ssim,
            "colour": np.linalg.norm(colours[0] - colours[1], axis=1),
            "nuclei": np.where(whole > 0, overlap / np.maximum(whole, 1), 1.0),
            "content": np.abs(dark[0].mean(axis=(1, 2)) - dark[1].mean(axis=(1, 2))),
            "found": ranks(pictures.reshape(len(pictures), -1), tiles.reshape(len(tiles), -1)) == 0,
        }
    )


def ranks(given: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return how many of the (n, d) kept rows are at least as near to each given row as its own; ties count half."""
    given, kept = np.asarray(given, np.float64), np.asarray(kept, np.float64)
    apart = np.square(given).sum(axis=1)[:, None] - 2 * given @ kept.T + np.square(kept).sum(axis=1)[None]
    own = np.diag(apart)[:, None]
    return (apart < own - 1e-6).sum(axis=1) + ((np.abs(apart - own) <= 1e-6).sum(axis=1) - 1) / 2


def _dark(pictures: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Return (n, side, side) bool: more haematoxylin than Otsu's limit of the tiles themselves."""
    from skimage.filters import threshold_otsu

    from histocrypt.encoders.morphology import concentrations
    from histocrypt.tissue.stain import DEFAULT_REFERENCE

    limit = threshold_otsu(concentrations(tiles, DEFAULT_REFERENCE)[..., 0])
    return concentrations(pictures, DEFAULT_REFERENCE)[..., 0] > limit


def summarised(measured: pd.DataFrame, blocks: np.ndarray, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return the mean of every measure with its 95 % interval over blocks of tissue: ``[value, low, high]`` each."""
    names, place = np.unique(np.asarray(blocks).astype(str), return_inverse=True)
    rng = np.random.default_rng([seed, 13])
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, place.ravel()]
    found = {}
    for name in measured:
        values = measured[name].to_numpy(np.float64)
        low, high = np.quantile(times @ values / times.sum(axis=1), [0.025, 0.975])
        found[str(name)] = [float(values.mean()), float(low), float(high)]
    return found


def disturbed(tiles: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return tiles as another scan of the same place might look: moved by a few pixels, brighter or darker, as JPEG."""
    import io

    from PIL import Image

    rng, seen = np.random.default_rng([seed, 17]), []
    for tile in tiles:
        moved = np.roll(tile, rng.integers(-tile.shape[0] // 24, tile.shape[0] // 24 + 1, 2), axis=(0, 1))
        shade = np.clip(moved * rng.uniform(0.93, 1.05, 3), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(shade).save(file, "JPEG", quality=60)
        seen.append(np.asarray(Image.open(file)))
    return np.stack(seen)


def encrypted(embeddings: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Encrypt each embedding under one new key, as a head for encrypted inference gets it; return what can be read.

    Parameters
    ----------
    embeddings
        (n, d), at most 4,096 wide.

    Returns
    -------
    words
        (n, d): coefficients of each ciphertext, as shares of their prime, less one half: what a decoder may read.
    about
        ``security_bits``, ``bytes`` of a ciphertext, ``error``: by how much the first one decrypts wrongly.
    """
    from histocrypt.encrypted.engine import KeyOwner
    from histocrypt.encrypted.packing import spots_side_by_side
    from histocrypt.encrypted.parameters import SECURITY_BITS, check_security, choose

    width = embeddings.shape[1]
    parameters = choose(1, width)
    check_security(parameters)
    owner, level = KeyOwner(parameters), 1
    owner.generate()
    layout, prime = spots_side_by_side(width, 1, parameters.slots), int(owner.moduli()[level])
    words, first = np.empty((len(embeddings), width)), b""
    for row, values in enumerate(np.asarray(embeddings, np.float64)):
        (slots,) = layout.pack(values[:, None])
        ciphertext = owner.encrypt(slots, level)
        first = first or ciphertext
        words[row] = np.frombuffer(ciphertext[-8 << parameters.logn :], "<u8")[:width] / prime - 0.5
    back = layout.unpack(owner.decrypt(first)[None])[:, 0]
    about = {"security_bits": SECURITY_BITS, "bytes": len(first), "error": float(np.abs(back - embeddings[0]).max())}
    return words, about


def sent_of(study: Study, fold: Fold, encoder: str, *, per_section: int = 100, side: int = SIDE) -> tuple[Sent, Sent]:
    """Return the public side, a fold's training and validation patients, and the hospital's, its test patients.

    Tiles are in the published reference stain, as frozen encoders of the library see them; embeddings are the cached
    ones. No expression is read.

    Parameters
    ----------
    per_section
        Tiles of each section, at most, evenly spaced.
    side
        Pixels that tiles are resized to.

    Raises
    ------
    InputError
        If the fold holds nobody out.
    """
    if not fold.test_sections:
        fix = "choose a fold that holds patients out"
        raise InputError("nobody is held out, so nobody can be attacked", field="fold", value=fold.name, fix=fix)
    from histocrypt.audit.subjects import blocks_of
    from histocrypt.data.fold_statistics import PANEL, read_clean_section
    from histocrypt.data.load import load_spots
    from histocrypt.encrypted.prepare import evenly
    from histocrypt.targets.panels import Panel

    run, panel = study.run, Panel.load(study.run.fold(fold.name) / PANEL)

    def of(sections: Iterable[str]) -> Sent:
        parts = []
        for section in sections:
            spots = load_spots(study, fold, [section], panel=panel, with_targets=False)
            keep = evenly(len(spots), per_section)
            names = spots.names[keep].tolist()
            block = blocks_of(read_clean_section(run.section(section)), section, study.evaluation.block_um)
            pixels = tiles_of(study, section, names, side=side)
            labels = np.array([block[name] for name in names])
            parts.append((pixels, spots.features(encoder)[keep], spots.patients[keep], labels))
        return Sent(*map(np.concatenate, zip(*parts, strict=True)))

    return of((*fold.train_sections, *fold.validation_sections)), of(fold.test_sections)


def tiles_of(study: Study, section: str, names: list[str], *, side: int | None = None) -> np.ndarray:
    """Return a section's tiles by the names of their spots, in the published reference stain; (n, side, side, 3)."""
    from histocrypt.data.features import normalised_chunks
    from histocrypt.tissue.stain import DEFAULT_REFERENCE, StainStatistics
    from histocrypt.tissue.tiles import read_tiles

    run, barcodes = study.run, [name.split(":", 1)[1] for name in names]
    how = {"source": StainStatistics.load(run.stain(section)), "reference": DEFAULT_REFERENCE}
    how |= {"method": study.preprocessing.stain, "side": side}
    return np.concatenate(list(normalised_chunks(read_tiles(run.tiles(section), barcodes)[0], **how)))


@dataclass(frozen=True)
class Returned:
    """What came back of the tiles of one side."""

    encoder: str
    public: int
    """Tiles that decoders learnt from."""
    hospital: int
    patients: tuple[str, ...]
    """Of the hospital."""
    rows: dict[str, dict[str, Any]]
    """By decoder, baseline or ``<decoder>, ciphertexts``: `summarised` measures."""
    chance: float
    """Share of tiles that a guess would find."""
    encryption: dict[str, Any]
    """See `encrypted`, with the ``tiles`` that were encrypted; or ``missing``: why nothing was."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, as JSON can hold it."""
        return {**vars(self), "patients": list(self.patients), "measures": MEASURES}

    def write(self, folder: Path) -> Path:
        """Write ``embeddings.json`` into an audit's folder."""
        path = folder / "embeddings.json"
        write_json(path, self.to_dict())
        return path

    def table(self) -> pd.DataFrame:
        """Return one row for each decoder and baseline."""
        import pandas as pd

        def said(name: str, found: list[float]) -> str:
            places = 1 if name in ("psnr", "colour") else 3 if name == "found" else 2
            value, low, high = (f"{one:.{places}f}" for one in found)
            return f"{value} ({low} to {high})"

        return pd.DataFrame(
            [{"from": name, **{one: said(one, ends) for one, ends in row.items()}} for name, row in self.rows.items()]
        )


def linked(tiles: np.ndarray, encoder: str, blocks: np.ndarray, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Ask whether who holds another scan of a tile finds its embedding among a hospital's.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, all of the hospital's.
    encoder
        That made their embeddings; the attacker has it too.
    blocks
        (n,) of `Sent`.

    Returns
    -------
    dict
        ``found``: share of `disturbed` tiles whose embedding is nearest to that of their own tile, with its interval;
        ``chance``; ``tiles``.
    """
    import pandas as pd

    from histocrypt.encoders.encoders import encode

    sent, seen = (encode(one, encoder, progress=False) for one in (tiles, disturbed(tiles, seed=seed)))
    centre, spread = sent.mean(axis=0), sent.std(axis=0) + 1e-6
    place = ranks((seen - centre) / spread, (sent - centre) / spread)
    found = summarised(pd.DataFrame({"found": place == 0}), blocks, draws=draws, seed=seed)
    return {**found, "chance": 1 / len(tiles), "tiles": len(tiles)}


def attack(
    public: Sent, hospital: Sent, encoder: str, *, epochs: int = 8, draws: int = 1000, seed: int = 0
) -> tuple[Returned, dict[str, np.ndarray]]:
    """Try to get the hospital's tiles back, from embeddings and from ciphertexts of them.

    The decoders of ciphertexts are trained as the others are, on ciphertexts that the attacker makes under the
    hospital's public key.

    Returns
    -------
    What came back, and the pictures by row.
    """
    pictures = pictures_of(public, hospital, epochs=epochs, seed=seed)
    centre, spread = public.embeddings.mean(axis=0), public.embeddings.std(axis=0) + 1e-6
    every = np.concatenate([public.embeddings, hospital.embeddings])
    try:
        words, about = encrypted((every - centre) / spread)
    except InputError as error:  # a machine without the engine: the row is missing, and the reason is written
        about = {"missing": str(error)}
    else:
        about |= {"tiles": len(every)}
        known, unknown = replace(public, embeddings=words[: len(public)]), words[len(public) :]
        pictures |= {
            f"{kind}, ciphertexts": fit_decoder(known, kind, epochs=epochs, seed=seed)(unknown) for kind in DECODERS
        }
    rows = {
        name: summarised(measure(one, hospital.pixels), hospital.blocks, draws=draws, seed=seed)
        for name, one in pictures.items()
    }
    patients = tuple(sorted({*hospital.patients.tolist()}))
    return Returned(encoder, len(public), len(hospital), patients, rows, 1 / len(hospital), about), pictures


def figure(hospital: Sent, pictures: dict[str, np.ndarray], *, n: int = 8) -> Figure:
    """Draw tiles as they are, what came back from embeddings, and what came back from ciphertexts; one column each."""
    import matplotlib.pyplot as plt

    from histocrypt.encrypted.prepare import evenly
    from histocrypt.evaluation.figures import style

    columns = evenly(len(hospital), n)
    shown = {
        "the tile": hospital.pixels,
        "from its\nembedding": pictures["network"],
        "nearest\npublic tile": pictures[NEAREST],
        "from its\nciphertext": pictures.get("network, ciphertexts"),
    }
    shown = {title: tiles for title, tiles in shown.items() if tiles is not None}
    with style():
        drawn, axes = plt.subplots(len(shown), len(columns), figsize=(1.15 * len(columns) + 1, 1.2 * len(shown)),
                                   squeeze=False)  # fmt: skip
        for line, (title, tiles) in zip(axes, shown.items(), strict=True):
            line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
            for axis, tile in zip(line, tiles[columns], strict=True):
                axis.imshow(tile)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
    return drawn
