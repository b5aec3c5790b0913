"""The options of a diffusion model: what conditions it, how large it is, how it draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from histocrypt.errors import InputError, unknown_name

SAMPLERS = ("ancestral", "ddim", "dpm++")
"""See `training.diffusion_sampling`."""


@dataclass(frozen=True)
class DiffusionPlan:
    """Options that a study may set; the published ones where nothing else is said."""

    encoder: str = "efficientnet_lite0"
    """Frozen encoder, or several: ``uni+conch``, ``prepared:<folder>#uni`` (see `training.conditions`)."""
    augmentations: int = 7
    """Turned and mirrored copies of each tile, 0 to 7; every epoch draws one of them, or the tile itself."""
    components: int = 0
    """Principal components of the features that condition the network; 0: all features, as published."""
    width: int = 384
    blocks: int = 12
    heads: int = 6
    samples: int = 20
    """Drawn for each spot."""
    sampler: str = "dpm++"
    sampler_steps: int = 10
    """Of 1000; ``ancestral`` is meant to take all of them. Ten of ``dpm++`` are the fastest whose scores lie within the
    ancestral sampler's own spread from seed to seed (benchmarks/stem_samplers.py)."""

    def __post_init__(self) -> None:
        """Check what types and names cannot tell."""
        if self.sampler not in SAMPLERS:
            raise unknown_name("sampler", self.sampler, SAMPLERS, field="models.stem.sampler")
        least = {"augmentations": 0, "components": 0, "samples": 2}
        for name in ("augmentations", "components", "width", "blocks", "heads", "samples", "sampler_steps"):
            value, low = getattr(self, name), least.get(name, 1)
            high = {"augmentations": 7, "sampler_steps": 1000}.get(name, 10**6)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                msg = "is out of range"
                expected = f"a whole number, {low} to {high}"
                raise InputError(msg, field=f"models.stem.{name}", value=value, expected=expected)

    @classmethod
    def of(cls, options: dict[str, Any]) -> DiffusionPlan:
        """Return the plan of a study's options; an unknown one is an `InputError`."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known, field="models.stem")
        return cls(**options)
