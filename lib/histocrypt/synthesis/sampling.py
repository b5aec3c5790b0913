"""Synthetic images with masks, drawn from a trained generator.

Noise is drawn by the name of the sample, ``synthetic:<seed>:<number>``: equal seeds give equal samples, whatever is
drawn beside them (up to the rounding of a grey level). Masks are decoded to the nearest level. The way back takes fewer
steps of the generator's own schedule (the published one takes 1000 of another):

* ``ancestral``: fresh noise at every step (Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020).
* ``ddim``: fewer steps, none (Song et al., "Denoising Diffusion Implicit Models", ICLR 2021).
* ``dpm++``: a second-order multistep solver (Lu et al., "DPM-Solver++", 2022).

With few steps, ancestral drawing leaves tiles flatter than those learned from; ``dpm++`` does not. Of a generator of
whitened patches, the steps lie closest where there is little noise left (`spaced`), except with ``ddim``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.models.diffguard import DiffGuard
from histocrypt.synthesis.generator import Generator, betas, class_numbers
from histocrypt.synthesis.manifest import Pairs, Scheme
from histocrypt.training.loop import seeded

SAMPLERS = ("ancestral", "ddim", "dpm++")
BATCH = {"cpu": 32, "cuda": 256}
"""Images of at most 64 pixels a side that are drawn at once; larger ones are fewer by their area."""
FARTHEST, NEAREST = 60.0, 0.02
"""Noise at the first and the last step of `spaced`: all structure is drowned, and less than a grey level is left."""
LEAST_LESION = 0.002
"""A lesion is one where it covers this share of the area of the body."""


@dataclass(frozen=True)
class WayBack:
    """How images are drawn out of noise."""

    seed: int
    """Of the noise; part of the names."""
    steps: int
    """At most as many as the generator's schedule has."""
    sampler: str
    """One of `SAMPLERS`."""
    guidance: float
    """1 draws what was learned of the class; larger values exaggerate what tells it from the others."""

    def check(self, generator: Generator) -> None:
        """Refuse what the generator cannot do."""
        if self.sampler not in SAMPLERS:
            raise unknown_name("sampler", self.sampler, SAMPLERS, field="synthesis.sampler")
        if not 1 <= self.steps <= generator.plan.steps:
            expected = f"1 to {generator.plan.steps}"
            raise InputError("is out of range", field="synthesis.sampler_steps", value=self.steps, expected=expected)
        if self.guidance != 1 and not (generator.network.n_classes and generator.plan.guidance_dropout):
            raise InputError(
                "this generator was not trained to be guided",
                field="synthesis.guidance",
                value=self.guidance,
                expected="1",
                fix="train it with conditional and guidance_dropout",
            )

    def draw(
        self,
        generator: Generator,
        names: np.ndarray,
        labels: np.ndarray,
        *,
        masks: np.ndarray | None = None,
        stain: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Return clean signals (B, C, side, side), about -1 to 1."""
        device, network, plan = generator.device, generator.network, generator.plan
        scheduler = scheduler_of(self.sampler, plan.steps)
        if network.whitened is None or self.sampler == "ddim":
            scheduler.set_timesteps(self.steps, device=device)
        else:
            scheduler.set_timesteps(timesteps=spaced(self.steps, scheduler.alphas_cumprod), device=device)
        chance = [seeded(self.seed, name) for name in names.tolist()]
        side = generator.side
        pixels = torch.zeros(1, generator.colours + (plan.kind == "joint"), side, side, device=device)
        shape = network.encode(pixels).shape[1:]
        state = torch.stack([torch.randn(shape, generator=each) for each in chance]).to(device)
        classes = class_numbers(labels, generator.scheme).to(device)
        null = torch.full_like(classes, network.n_classes)
        told = {}
        if network.stain is not None:
            noise = torch.stack([torch.randn(len(network.stain.centre), generator=each) for each in chance]).to(device)
            drawn = network.stain.draw(classes if network.n_classes else torch.zeros_like(classes), noise)
            told["stain"] = drawn if stain is None else torch.from_numpy(stain.astype(np.float32)).to(device)
        if network.levels:
            shown = np.full((len(labels), side, side), -1) if masks is None else masks
            told["masks"] = torch.from_numpy(shown.astype(np.int64)).to(device)
        with torch.inference_mode():
            for step in scheduler.timesteps:
                kept = scheduler.alphas_cumprod[step].to(device)
                noise = generator.noise_in(state, kept.expand(len(state)), classes, **told)
                if self.guidance != 1:
                    free = generator.noise_in(state, kept.expand(len(state)), null, **told)
                    noise = free + self.guidance * (noise - free)
                noise = within_range(noise, state, kept, network)
                fresh = {"generator": chance} if self.sampler == "ancestral" else {}
                state = scheduler.step(noise, step, state, **fresh).prev_sample
            return network.decode(state)


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
    masks: np.ndarray | None = None,
    stain: np.ndarray | None = None,
) -> Pairs:
    """Draw one synthetic image for each label.

    Parameters
    ----------
    labels
        (n,) str, classes that the generator has seen. A generator that knows no class draws n images, and their class
        is read from the mask (`class_of_mask`).
    seed, steps, sampler, guidance
        See `WayBack`.
    folder
        Where PNG files and ``manifest.json`` are written (see `synthesis.manifest`), batch by batch until then: a run
        that was killed goes on, and a finished one is read. None writes nothing.
    mask_rule
        How a control generator's images (n, side, side, channels) uint8 get their masks (n, side, side) of levels;
        None: they have none.
    masks
        (n, side, side) of levels that the pictures are drawn to; None: masks are drawn with them.
    stain
        (n, 2 channels) colours as of `generator.colour_numbers`; None: drawn as the class has them.

    Returns
    -------
    Pairs
        In the order of the labels.

    Raises
    ------
    InputError
        If a label is unknown to the generator, or an option is out of range.
    """
    from histocrypt.synthesis.manifest import load_pairs, save_pairs

    labels, way_back = np.asarray(labels, dtype=str), WayBack(seed, steps, sampler, guidance)
    way_back.check(generator)
    _check_told(generator, len(labels), masks=masks, stain=stain)
    for label in np.unique(labels).tolist():
        if label not in generator.classes:
            raise unknown_name("class", label, generator.classes, field="labels")
    done = None if folder is None else Path(folder) / "sampling.json"
    told = {"masks": masks, "stain": stain}
    fingerprint = _fingerprint(generator, labels, seed, steps, sampler, guidance, mask_rule, told=told)
    if done is not None and done.is_file() and read_json(done).get("fingerprint") == fingerprint:
        return load_pairs(done.with_name("manifest.json"), scheme=generator.scheme, side=generator.side)
    names = np.array([f"synthetic:{seed}:{number}" for number in range(len(labels))], dtype=str)
    parts = None if done is None else done.with_name("parts") / fingerprint[:16]
    images, masks = _draw(generator, names, labels, way_back, parts, told)
    has_mask = np.ones(len(labels), dtype=bool)
    if generator.plan.kind == "control":
        has_mask[:] = mask_rule is not None
        masks = np.zeros(images.shape[:3], np.uint8) if mask_rule is None else np.asarray(mask_rule(images), np.uint8)
    elif not generator.network.n_classes:
        labels = class_of_mask(masks, generator.scheme)
    patients = np.full(len(labels), "", dtype=str)
    pairs = Pairs(generator.scheme, names, labels, patients, images, masks, has_mask)
    if done is not None:
        save_pairs(done.parent, pairs)
        about = {"fingerprint": fingerprint, "generator": generator.record["fingerprint"]}
        write_json(done, {**about, **asdict(way_back), "n": len(labels)})
        for part in parts.glob("*.npz"):
            part.unlink()
    return pairs


def class_of_mask(masks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Return the class that a mask shows, (n,) str: that of the level, named after a class, with most pixels.

    Where it has too few pixels beside the level after the background (body, stroma), the class is the control: fewer
    than `LEAST_LESION` of them where levels bear the names of classes, as a lesion is small; fewer than all where a
    level is a region of the class ("tumour region"), which must then be the larger part.

    Parameters
    ----------
    masks
        (n, side, side) of levels.
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
    least = LEAST_LESION if all(scheme.levels[level] == name for level, name in named.items()) else 1.0
    counts = np.stack([(masks == level).sum(axis=(1, 2)) for level in range(len(scheme.levels))], axis=1)
    levels = np.array(list(named))
    best = levels[counts[:, levels].argmax(axis=1)]
    area = counts[np.arange(len(masks)), best]
    shown = (area > 0) & (area >= least * counts[:, 1])
    return np.where(shown, np.array([named[level] for level in best.tolist()], dtype=str), scheme.control)


def within_range(
    noise: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor, network: DiffGuard | None = None
) -> torch.Tensor:
    """Return the noise, as `DiffGuard.encode` gives signals, whose clean image lies in [-1, 1].

    ``kept``, the share of signal, is one number; without a network the signals are pixels.
    """
    signal, spread = kept.sqrt().item(), (1 - kept).sqrt().item()
    clean = (noisy - spread * noise) / signal
    clean = clean.clamp(-1, 1) if network is None else network.encode(network.decode(clean).clamp(-1, 1))
    return (noisy - signal * clean) / spread


def spaced(steps: int, kept: torch.Tensor) -> list[int]:
    """Return at most ``steps`` steps of a schedule, falling, closer the less noise is left.

    Karras et al., NeurIPS 2022, equation 5, between noise of `FARTHEST` and `NEAREST` beside a signal of variance 1.

    Parameters
    ----------
    kept
        (n,) share of signal after each step of the schedule.
    """
    noise = ((1 - kept) / kept).sqrt().numpy()
    ends = [min(max(end, noise[0]), noise[-1]) ** (1 / 7) for end in (FARTHEST, NEAREST)]
    wanted = np.linspace(*ends, steps) ** 7
    return np.unique(np.abs(np.log(noise)[None] - np.log(wanted)[:, None]).argmin(axis=1))[::-1].tolist()


def scheduler_of(sampler: str, steps: int) -> Any:
    """Return the scheduler of diffusers with the schedule of ``steps`` steps; clipping is `within_range`'s."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    own = {"trained_betas": betas(steps).numpy().astype(np.float32), "timestep_spacing": "trailing"}
    if sampler == "ancestral":
        return DDPMScheduler(steps, **own, variance_type="fixed_small", clip_sample=False)
    if sampler == "ddim":
        return DDIMScheduler(steps, **own, clip_sample=False)
    return DPMSolverMultistepScheduler(steps, **own, algorithm_type="dpmsolver++", solver_order=2)


def _draw(
    generator: Generator,
    names: np.ndarray,
    labels: np.ndarray,
    way_back: WayBack,
    parts: Path | None,
    told: dict[str, np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, side, side, channels) and masks (n, side, side); what lies in ``parts`` is not drawn again."""
    from tqdm.auto import tqdm

    side, colours = generator.side, generator.colours
    images = np.empty((len(names), side, side, colours), dtype=np.uint8)
    masks = np.zeros((len(names), side, side), dtype=np.uint8)
    batch = max(1, BATCH.get(generator.device.type, BATCH["cpu"]) // max(1, (side // 64) ** 2))
    with tqdm(total=len(names), desc="synthetic images", unit="image", mininterval=1, file=sys.stderr) as bar:
        for start in range(0, len(names), batch):
            rows = slice(start, start + batch)
            part = None if parts is None else parts / f"{start}-{len(names[rows])}.npz"
            if part is not None and part.is_file():
                with np.load(part) as stored:
                    images[rows], masks[rows] = stored["images"], stored["masks"]
            else:
                own = {name: values[rows] for name, values in told.items() if values is not None}
                clean = way_back.draw(generator, names[rows], labels[rows], **own).cpu().numpy()
                grey = np.rint((clean[:, :colours].clip(-1, 1) + 1) * 127.5).astype(np.uint8)
                images[rows] = grey.transpose(0, 2, 3, 1)
                if told["masks"] is not None:
                    masks[rows] = told["masks"][rows]
                elif generator.plan.kind == "joint":
                    masks[rows] = generator.scheme.decode(clean[:, colours])
                if part is not None:
                    with atomic_path(part) as temporary:
                        np.savez(temporary, images=images[rows], masks=masks[rows])
            bar.update(len(names[rows]))
    return images, masks


def _check_told(generator: Generator, n: int, *, masks: np.ndarray | None, stain: np.ndarray | None) -> None:
    """Refuse conditions that the generator was not trained with, or of another shape."""
    side, levels = generator.side, generator.network.levels
    for name, given, known, shape, option in (
        ("masks", masks, bool(levels), (n, side, side), "mask_given"),
        ("stain", stain, generator.network.stain is not None, (n, 2 * generator.colours), "stain"),
    ):
        if given is None:
            continue
        if not known:
            fix = f"train it with synthesis.generator.{option}"
            raise InputError("this generator was not trained to be told them", field=name, fix=fix)
        if given.shape != shape:
            raise InputError("have another shape", field=name, value=list(given.shape), expected=str(list(shape)))
    if masks is not None and not (0 <= masks.min() and masks.max() < levels):
        found = f"{masks.min()} to {masks.max()}"
        raise InputError("have unknown levels", field="masks", value=found, expected=f"0 to {levels - 1}")


def _fingerprint(
    generator: Generator, labels: np.ndarray, *settings: object, told: dict[str, np.ndarray | None]
) -> str:
    """Return a hash of all that the samples depend on."""
    digest = hashlib.sha256(json.dumps([generator.record["fingerprint"], labels.tolist()]).encode())
    for value in settings:
        digest.update(f"\n{getattr(value, '__qualname__', value)}".encode())
    for name, given in told.items():
        if given is not None:
            digest.update(f"\n{name}".encode() + np.ascontiguousarray(given).tobytes())
    for weights in generator.network.state_dict().values():
        digest.update(np.ascontiguousarray(weights.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
