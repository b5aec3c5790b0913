"""The parameter set of bootstrapped networks.

Between two bootstrappings ciphertexts live in a conjugate-invariant ring; the engine refreshes them in a standard ring
of exactly twice the degree, which leaves one choice with 128 bits of security: 2^15 and 2^16.
"""

from __future__ import annotations

from histocrypt.encrypted.parameters import CIRCUIT_LOGQ, Bootstrapping, Parameters

LEVELS = 6
"""Between two bootstrappings: two convolutions, two squares, one level for shifts, one that bootstrapping takes."""
SCALE = 38
FIRST = 52
"""Bits of the first prime. 2^(FIRST - SCALE) must be well above 2^8, the ratio that the engine's sine is made for."""


def bootstrapped(logn: int = 15) -> Parameters:
    """Return the parameter set of bootstrapped networks.

    Parameters
    ----------
    logn
        Of the ring between bootstrappings. 15 is the only one with 128 bits of security, since the ring of
        bootstrapping is one above it; tests use smaller ones, which `check_security` refuses.
    """
    logq = (FIRST, *[SCALE] * LEVELS)
    special = (59,) * 6 + (58,) * 5  # one more than half of the primes: two digits a key, and 1745 of 1747 bits
    return Parameters(
        logn=logn, logq=logq, logp=(50, 50, 50), log_scale=SCALE,
        bootstrapping=Bootstrapping(
            logn=logn + 1, logp=special, h=2 * (2 << logn) // 3,
            log_qp=sum(logq) + sum(CIRCUIT_LOGQ) + sum(special), log_slots=logn - 1,
        ),
    )  # fmt: skip
