"""Synthetic images with masks, drawn from a trained generator.

Noise is drawn by the name of the sample, ``synthetic:<seed>:<number>``: equal seeds give equal samples, whatever is
drawn beside them (up to the rounding of a grey level). Masks are decoded to the nearest level.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.synthesis.generator import SAMPLERS, Generator, scheduler_of, seeded, within_range
from histocrypt.synthesis.pairs import Pairs, Scheme

BATCH = {"cpu": 32, "cuda": 256}
"""Images of at most 64 pixels a side that are drawn at once; larger ones are fewer by their area."""

LEAST_LESION = 0.002
"""A lesion is one where it covers this share of the area of the body."""


def sample(
    generator: Generator,
    *,
    labels: np.ndarray,
    seed: int,
    steps: int = 25,
    sampler: str = "dpm++",
    guidance: float = 1.0,
    folder: Path | None = None,
    mask_rule: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """Draw one synthetic image for each label.

    Parameters
    ----------
    labels
        (n,) str, classes that the generator has seen. A generator that knows no class draws n images, and their class
        is read from the mask (`class_of_mask`).
    seed
        Of the noise; part of the names.
    steps
        Of the way back; at most as many as the generator's schedule has.
    sampler
        ``ancestral``, ``ddim`` or ``dpm++``, see `synthesis.noise`.
    guidance
        1 draws what was learned of the class; larger values exaggerate what tells it from the others.
    folder
        Where PNG files and ``manifest.json`` are written (see `synthesis.manifest`), batch by batch until then: a run
        that was killed goes on, and a finished one is read. None writes nothing.
    mask_rule
        How a control generator's images (n, side, side, channels) uint8 get their masks (n, side, side) of levels;
        None: they have none.

    Returns
    -------
    Pairs
        In the order of the labels.

    Raises
    ------
    InputError
        If a label is unknown to the generator, or an option is out of range.
    """
    labels = np.asarray(labels, dtype=str)
    _check(generator, labels, steps=steps, sampler=sampler, guidance=guidance)
    done = None if folder is None else Path(folder) / "sampling.json"
    fingerprint = _fingerprint(generator, labels, seed, steps, sampler, guidance, mask_rule)
    names = np.array([f"synthetic:{seed}:{number}" for number in range(len(labels))], dtype=str)
    if done is not None and done.is_file():
        from histocrypt.synthesis.manifest import load_pairs

        if read_json(done).get("fingerprint") == fingerprint:
            return load_pairs(done.with_name("manifest.json"), scheme=generator.scheme, side=generator.side)
    parts = None if done is None else done.with_name("parts") / fingerprint[:16]
    images, masks = _draw(generator, names, labels, seed, steps, sampler, guidance, parts)
    has_mask = np.ones(len(labels), dtype=bool)
    if generator.plan.kind == "control":
        has_mask[:] = mask_rule is not None
        masks = np.zeros(images.shape[:3], np.uint8) if mask_rule is None else np.asarray(mask_rule(images), np.uint8)
    if not generator.network.n_classes and generator.plan.kind == "joint":
        labels = class_of_mask(masks, generator.scheme)
    patients = np.full(len(labels), "", dtype=str)
    pairs = Pairs(generator.scheme, names, labels, patients, images, masks, has_mask)
    if done is not None:
        from histocrypt.synthesis.manifest import save_pairs

        save_pairs(done.parent, pairs)
        settings = {"seed": seed, "steps": steps, "sampler": sampler, "guidance": guidance, "n": len(labels)}
        write_json(done, {"fingerprint": fingerprint, "generator": generator.record["fingerprint"], **settings})
        for part in parts.glob("*.npz"):
            part.unlink()
    return pairs


def class_of_mask(masks: np.ndarray, scheme: Scheme, *, least: float | None = None) -> np.ndarray:
    """Return the class that a mask shows, (n,) str: that of the level, named after a class, with most pixels.

    Where it has fewer pixels than ``least`` of the level after the background (body, stroma), or none, the class is
    the control.

    Parameters
    ----------
    masks
        (n, side, side) of levels.
    least
        By default `LEAST_LESION` where levels bear the names of classes, as a lesion is small; and 1 where a level is
        a region of the class ("tumour region"), which must then be the larger part.
    """
    named = {  # level: class
        level: name
        for level, words in enumerate(scheme.levels)
        for name in scheme.classes
        if words == name or words.startswith(f"{name} ")
    }
    if not named or scheme.control is None:
        raise InputError(
            "no level of the mask is named after a class, so that the class cannot be read from it",
            field="scheme",
            value=list(scheme.levels),
        )
    if least is None:
        least = LEAST_LESION if all(scheme.levels[level] == name for level, name in named.items()) else 1.0
    counts = np.stack([(masks == level).sum(axis=(1, 2)) for level in range(len(scheme.levels))], axis=1)
    levels = np.array(list(named))
    best = levels[counts[:, levels].argmax(axis=1)]
    area = counts[np.arange(len(masks)), best]
    shown = (area > 0) & (area >= least * counts[:, 1])
    return np.array(
        [named[level] if yes else scheme.control for level, yes in zip(best, shown, strict=True)], dtype=str
    )


def body_mask(images: np.ndarray, *, darkest: int = 8) -> np.ndarray:
    """Return masks (n, side, side) of slices of the chest: level 1 (body) in the largest bright region, holes filled.

    Parameters
    ----------
    images
        (n, side, side, channels) uint8, of a window of 400 HU about 0: what is black is air.
    darkest
        Brighter grey levels are body: a generator's air is not quite black.
    """
    from scipy.ndimage import binary_fill_holes, label

    masks = np.zeros(images.shape[:3], dtype=np.uint8)
    for mask, image in zip(masks, images, strict=True):
        regions, n = label(image.mean(axis=-1) > darkest)
        if n:
            mask[binary_fill_holes(regions == 1 + np.bincount(regions.ravel())[1:].argmax())] = 1
    return masks


def _check(generator: Generator, labels: np.ndarray, *, steps: int, sampler: str, guidance: float) -> None:
    """Refuse what cannot be drawn."""
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS, field="synthesis.sampler")
    if not 1 <= steps <= generator.plan.steps:
        expected = f"1 to {generator.plan.steps}"
        raise InputError("is out of range", field="synthesis.sampler_steps", value=steps, expected=expected)
    for label in np.unique(labels).tolist():
        if label not in generator.classes:
            raise unknown_name("class", label, generator.classes, field="labels")
    if guidance != 1 and not (generator.network.n_classes and generator.plan.guidance_dropout):
        msg = "this generator was not trained to be guided"
        fix = "train it with conditional and guidance_dropout"
        raise InputError(msg, field="synthesis.guidance", value=guidance, expected="1", fix=fix)


def _draw(
    generator: Generator,
    names: np.ndarray,
    labels: np.ndarray,
    seed: int,
    steps: int,
    sampler: str,
    guidance: float,
    parts: Path | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, side, side, channels) and masks (n, side, side); what lies in ``parts`` is not drawn again."""
    from tqdm.auto import tqdm

    side, colours = generator.side, generator.colours
    images = np.empty((len(names), side, side, colours), dtype=np.uint8)
    masks = np.zeros((len(names), side, side), dtype=np.uint8)
    area = max(1, (side // 64) ** 2)
    batch = max(1, BATCH.get(generator.device.type, BATCH["cpu"]) // area)
    with tqdm(total=len(names), desc="synthetic images", unit="image", mininterval=1, file=sys.stderr) as bar:
        for start in range(0, len(names), batch):
            rows = slice(start, start + batch)
            part = None if parts is None else parts / f"{start}-{len(names[rows])}.npz"
            if part is not None and part.is_file():
                with np.load(part) as stored:
                    images[rows], masks[rows] = stored["images"], stored["masks"]
            else:
                clean = _way_back(generator, names[rows], labels[rows], seed, steps, sampler, guidance).cpu().numpy()
                grey = np.rint((clean[:, :colours].clip(-1, 1) + 1) * 127.5).astype(np.uint8)
                images[rows] = grey.transpose(0, 2, 3, 1)
                if generator.plan.kind == "joint":
                    masks[rows] = generator.scheme.decode(clean[:, colours])
                if part is not None:
                    with atomic_path(part) as temporary:
                        np.savez(temporary, images=images[rows], masks=masks[rows])
            bar.update(len(names[rows]))
    return images, masks


def _way_back(
    generator: Generator, names: np.ndarray, labels: np.ndarray, seed: int, steps: int, sampler: str, guidance: float
) -> torch.Tensor:
    """Return clean signals (B, C, side, side), about -1 to 1."""
    device = generator.device
    scheduler = scheduler_of(sampler, generator.plan.steps)
    scheduler.set_timesteps(steps, device=device)
    chance = [seeded(seed, name) for name in names.tolist()]
    shape = (generator.colours + (generator.plan.kind == "joint"), generator.side, generator.side)
    state = torch.stack([torch.randn(shape, generator=each) for each in chance]).to(device)
    classes = generator.known_classes(labels).to(device)
    null = torch.full_like(classes, generator.network.n_classes)
    with torch.inference_mode():
        for step in scheduler.timesteps:
            kept = scheduler.alphas_cumprod[step].to(device)
            noise = generator.noise_in(state, kept.expand(len(state)), classes)
            if guidance != 1:
                free = generator.noise_in(state, kept.expand(len(state)), null)
                noise = free + guidance * (noise - free)
            noise = within_range(noise, state, kept)
            fresh = {"generator": chance} if sampler == "ancestral" else {}
            state = scheduler.step(noise, step, state, **fresh).prev_sample
    return state


def _fingerprint(generator: Generator, labels: np.ndarray, *settings: object) -> str:
    """Return a hash of all that the samples depend on."""
    digest = hashlib.sha256(json.dumps([generator.record["fingerprint"], labels.tolist()]).encode())
    for value in settings:
        digest.update(f"\n{getattr(value, '__qualname__', value)}".encode())
    for weights in generator.network.state_dict().values():
        digest.update(np.ascontiguousarray(weights.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
