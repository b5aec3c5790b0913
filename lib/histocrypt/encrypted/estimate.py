"""What an evaluation with bootstrapping will cost, from what its parts cost when they were measured."""

from __future__ import annotations

from dataclasses import dataclass

from histocrypt.encrypted import minimax
from histocrypt.encrypted.bootstrapped import Compiled
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.resnet_run import AHEAD_GIB

SECONDS_FIRST = 52.0
"""First refresh of a process, which sets the engine's circuit up. Seconds are of two cores and the ring of 2^15, as
``benchmarks/fhe_resnet18.py`` prints them."""
SECONDS_REFRESH = 14.5
SECONDS_DIAGONAL = 0.018
"""Encoding and multiplying, which overlap."""
SECONDS_POLYNOMIAL = 1.5
ENGINE_GIB, LOADING_GIB = 7.0, 1.0
"""Of bootstrapping, and of a layer while it is loaded."""


@dataclass(frozen=True)
class Estimate:
    """Of one tile."""

    activation: str
    levels: int
    """Multiplications one after the other, refreshes left out."""
    refreshes: int
    diagonals: int
    minutes: float
    peak_gib: float

    def __str__(self) -> str:
        return (
            f"{self.activation}: {self.levels} levels, {self.refreshes} bootstrappings, {self.diagonals:,} diagonals; "
            f"about {self.minutes:.0f} min a tile and {self.peak_gib:.0f} GiB on two idle cores"
        )


def estimate(made: Compiled, activation: str, parameters: Parameters) -> Estimate:
    """Estimate the evaluation of one tile by a compiled network, before any key is made.

    Parameters
    ----------
    made
        The compiled network.
    activation
        ``square`` or ``relu``.
    parameters
        Of the compiled network; seconds are known for its only secure ring, smaller ones are taken in proportion.
    """
    linear = [step for step in made.steps if not step.refreshes and not step.name.endswith("_shift")]
    shifts = sum(step.name.endswith("_shift") for step in made.steps)
    activations = sum(step.name == "stem" or step.name.endswith(("_first", "_sum")) for step in linear)
    each = 1 if activation == "square" else minimax.levels()
    refreshes = sum(step.refreshes * step.ciphertexts for step in made.steps)
    diagonals = sum(step.diagonals for step in made.steps)
    polynomials = 0 if activation == "square" else refreshes * len(minimax.DEGREES) / minimax.REFRESHES
    seconds = diagonals * SECONDS_DIAGONAL + polynomials * SECONDS_POLYNOMIAL
    if refreshes:
        seconds += SECONDS_FIRST + (refreshes - 1) * SECONDS_REFRESH
    return Estimate(
        activation=activation,
        levels=len(linear) + shifts + activations * each,
        refreshes=refreshes,
        diagonals=diagonals,
        minutes=seconds / 60 * parameters.slots / 2**15,
        peak_gib=ENGINE_GIB + LOADING_GIB + AHEAD_GIB,
    )
