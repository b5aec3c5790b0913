"""The options of a generator: which of the two it is, how large, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from histocrypt.errors import InputError, unknown_name

KINDS = ("joint", "control")
OBJECTIVES = ("noise", "velocity")
WHERE = "synthesis.generator"


@dataclass(frozen=True)
class GeneratorPlan:
    """Options that a study may set; the published ones where nothing else is said."""

    kind: str = "joint"
    """``joint``: image and mask, of all classes whose images have masks. ``control``: images of the control class."""
    width: int = 64
    """Channels at the finest level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Of the width, a level each; every level halves the side."""
    blocks: int = 2
    """Residual blocks a level."""
    patch: int = 1
    """Pixels a side that the network sees as one: 2 is faster, and leaves grain in pictures of 32 pixels a side."""
    steps: int = 2000
    """Of the noise schedule."""
    objective: str = "noise"
    """What the network says: ``noise``, as published, or ``velocity``, see `noise.target`."""
    dropout: float = 0.2
    batch: int = 12
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    ema: float = 0.9999
    """Decay of the averaged weights; 0: none, as published."""
    conditional: bool = True
    """Whether the class is told; the published joint network is not, and its class is read from the mask."""
    guidance_dropout: float = 0.1
    """Share of training images whose class is hidden; 0: sampling cannot be guided."""
    balance: bool = True
    """Whether rarer classes are repeated to the size of the largest."""
    augment: bool = True
    """Whether images are mirrored and turned at random, masks with them."""

    def __post_init__(self) -> None:
        """Check what types and names cannot tell."""
        if self.kind not in KINDS:
            raise unknown_name("kind", self.kind, KINDS, field=f"{WHERE}.kind")
        if self.objective not in OBJECTIVES:
            raise unknown_name("objective", self.objective, OBJECTIVES, field=f"{WHERE}.objective")
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        whole = [(name, getattr(self, name)) for name in ("width", "blocks", "patch", "steps", "batch")]
        for name, value in [*whole, *(("multipliers", one) for one in self.multipliers or (0,))]:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                msg = "is out of range"
                raise InputError(msg, field=f"{WHERE}.{name}", value=value, expected="whole numbers from 1")
        for name in ("dropout", "ema", "guidance_dropout"):
            if not 0 <= getattr(self, name) < 1:
                msg = "is out of range"
                raise InputError(msg, field=f"{WHERE}.{name}", value=getattr(self, name), expected="0 to below 1")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            msg = "learning_rate must be positive, and weight_decay not negative"
            raise InputError(msg, field=WHERE, value=(self.learning_rate, self.weight_decay))

    @property
    def least_side(self) -> int:
        """Pixels that the side of an image must be a multiple of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @classmethod
    def of(cls, options: dict[str, Any]) -> GeneratorPlan:
        """Return the plan of a study's options; an unknown one, or a value of a wrong kind, is an `InputError`."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known, field=WHERE)
        try:
            return cls(**options)
        except TypeError as error:
            msg = f"an option is of a wrong kind ({error})"
            raise InputError(msg, field=WHERE, value=options) from error
