"""What networks on frozen features start from: a closed form on the very same features, of which they learn the rest.

With some hundred spots of two patients a network that starts from nothing loses to a ridge on its own features: what
little of expression an image tells is linear in them, and a network needs most of its capacity, and all of its luck, to
find it. So the linear part is found first, in closed form, and the network learns what is left (as boosting does,
Friedman 2001, and diffusion models of residuals, Mardani et al., "Residual corrective diffusion modeling", 2023).
"""

from __future__ import annotations

from typing import Any

from histocrypt.data.features import parts_of, split_context
from histocrypt.errors import InputError
from histocrypt.predictors.fusion_ridge import FusionRidge

PREFIX = "start."
"""Of its arrays in the state of the network that starts from it."""


class Start(FusionRidge):
    """`FusionRidge` on the families that a name of features joins, e.g. ``colour+uni+uni~320``."""

    def __init__(self, features: str, *, normalise_by_section: bool) -> None:
        super().__init__(normalise_by_section=normalise_by_section)
        self.blocks: dict[str, list[str]] = {}
        for part in parts_of(features)[0]:
            self.blocks.setdefault(split_context(part)[0], []).append(part)
        self.encoder = "+".join(part for block in self.blocks.values() for part in block)


def state_of(start: Start | None) -> dict[str, Any]:
    """Return what a network's state holds of what it started from."""
    arrays = {} if start is None else {PREFIX + name: array for name, array in start.state().items()}
    return {"starts": start is not None, **arrays}


def start_from(state: dict[str, Any], features: str, *, normalise_by_section: bool) -> Start | None:
    """Return what a network's state says that it started from; None where it started from nothing, as they once did."""
    if not state.get("starts", False):
        return None
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    start = Start(features, normalise_by_section=normalise_by_section)
    missing = {"mean", "sd", "centre", "axes", "coefficient", "intercept"} - own.keys()
    if missing:
        raise InputError("lacks part of what the network starts from", value=min(missing), fix="train the model again")
    start.load_state(own)
    return start
