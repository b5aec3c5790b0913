"""CKKS parameters: which ring a network needs, and whether it keeps 128 bits of security.

The bounds on ``log2(QP)`` are those of Bossuat et al. (2024), "Security Guidelines for Implementing Homomorphic
Encryption", for uniform ternary secrets and 128 bits against classical attacks; they are slightly stricter than the
tables of the HomomorphicEncryption.org standard. A sparse secret is weaker and is judged by published sets made for its
own weight. The conjugate-invariant ring of degree N (Kim and Song, 2018) holds N real slots; it is judged as a ring of
degree N.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from histocrypt.errors import InputError

MAX_LOG_QP = {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747}
"""log2(N) to the largest log2(QP) that keeps 128 bits, uniform ternary secret."""
MAX_LOG_QP_SPARSE = {(16, 192): 1546}
"""(log2(N), Hamming weight) to the same for a sparse secret: the sets that Lattigo's authors published for it."""
SECURITY_BITS = 128
CIRCUIT_LOGQ = (39,) * 3 + (60,) * 8 + (56,) * 4
"""Bits of the primes that the engine's bootstrapping adds: slots to coefficients, the sine, coefficients to slots."""
LEVELS = 6
"""Between two bootstrappings: two convolutions, two squares, one level for shifts, one that bootstrapping takes."""
SCALE = 38
FIRST = 52
"""Bits of the first prime. 2^(FIRST - SCALE) must be well above 2^8, the ratio that the engine's sine is made for."""


@dataclass(frozen=True)
class Bootstrapping:
    """The larger ring in which ciphertexts are refreshed.

    Its secret is the key owner's alone, so it may be uniform ternary (``h``: two thirds of the degree);
    then the same table judges it. While refreshing, the engine passes through an ephemeral secret of weight 32 (Bossuat
    et al., 2022): keys under it have one ciphertext prime and one special prime only, at most 121 bits at N = 2^16, for
    which that weight keeps 128 bits.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    logn: int
    logp: tuple[int, ...]
    h: int
    """Hamming weight of its secret."""
    log_qp: int
    """log2(QP) of the whole chain, counted by the engine's default circuit."""
    log_slots: int


@dataclass(frozen=True)
class Parameters:
    """A CKKS parameter set; the secret is uniform ternary."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    logn: int
    logq: tuple[int, ...]
    """Bits of the ciphertext primes; each level of depth uses one up."""
    logp: tuple[int, ...]
    """Bits of the special primes of key switching."""
    log_scale: int
    ring: str = "conjugate_invariant"
    bootstrapping: Bootstrapping | None = None

    @property
    def slots(self) -> int:
        """Real values in one ciphertext."""
        return 1 << (self.logn if self.ring == "conjugate_invariant" else self.logn - 1)

    @property
    def levels(self) -> int:
        """Multiplicative depth."""
        return len(self.logq) - 1

    @property
    def log_qp(self) -> int:
        """log2 of the largest modulus."""
        return sum(self.logq) + sum(self.logp)

    @property
    def limb_bytes(self) -> int:
        """Bytes of a polynomial modulo one prime."""
        return 8 << self.logn

    @property
    def ciphertext_bytes(self) -> int:
        """Size of a fresh ciphertext, but for a header."""
        return 2 * len(self.logq) * self.limb_bytes

    @property
    def switching_key_bytes(self) -> int:
        """Size of one relinearisation or rotation key."""
        digits = -(-len(self.logq) // len(self.logp))
        return 2 * digits * (len(self.logq) + len(self.logp)) * self.limb_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Parameters:
        """Read what `to_dict` gave; an `InputError` names what does not fit."""
        try:
            return TypeAdapter(cls).validate_python(stored)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, ("parameters", *first["loc"])))
            raise InputError(f"is not a parameter set ({first['msg']})", field=field, fix="compile it again") from error


def check_security(parameters: Parameters, *, file: Any = None) -> int:
    """Return the security level in bits, 128; refuse anything below, since nobody should make keys for it.

    Raises
    ------
    InputError
        If log2(QP) exceeds what the ring allows, for either ring and secret in use.
    """
    limit, wrong = MAX_LOG_QP.get(parameters.logn), partial(InputError, file=file)
    fix = "do not make keys for this model; ask its owner for another one"
    if parameters.ring not in ("conjugate_invariant", "standard"):
        raise wrong("is not a ring the engine knows", field="parameters.ring", value=parameters.ring)
    if limit is None or parameters.log_qp > limit:
        problem, value = "these parameters give less than 128 bits of security", parameters.log_qp
        room = f"at most {limit} at N = 2^{parameters.logn}" if limit else "N from 2^10 to 2^16"
        raise wrong(problem, field="parameters.log_qp", value=value, expected=room, fix=fix)
    again = parameters.bootstrapping
    if again is not None:
        dense = again.h == 2 * (1 << again.logn) // 3  # uniform ternary: judged as the other ring is
        bound = MAX_LOG_QP.get(again.logn) if dense else MAX_LOG_QP_SPARSE.get((again.logn, again.h))
        log_qp = max(again.log_qp, sum(parameters.logq) + sum(CIRCUIT_LOGQ) + sum(again.logp))  # trust no stated sum
        if bound is None or log_qp > bound:
            problem = "the bootstrapping ring with its secret is not known to give 128 bits of security"
            room = f"at most {bound}" if bound else f"one of the published sets {sorted(MAX_LOG_QP_SPARSE)}"
            raise wrong(problem, field="parameters.bootstrapping.log_qp", value=log_qp, expected=room, fix=fix)
        back = sum(parameters.logq) + sum(again.logp[: len(parameters.logq)])
        if back > limit:  # the key from the larger ring is one under the secret of the smaller ring
            problem, field = (
                "the key back from the bootstrapping ring gives less than 128 bits",
                "parameters.bootstrapping",
            )
            raise wrong(problem, field=f"{field}.logp", value=back, expected=f"at most {limit}", fix=fix)
    return SECURITY_BITS


def choose(levels: int, values: int) -> Parameters:
    """Return the smallest ring with 128 bits that holds ``values`` in one ciphertext and has ``levels`` of depth.

    As many bits as the budget allows go to the scale (at most 40): each bit halves the error. The first prime is 8 to
    15 bits larger, so that decrypted values may reach at least 128. Two special primes make key switching nearly twice
    as fast as one.

    Raises
    ------
    InputError
        If no ring up to 2^15 can.
    """
    for logn in (12, 13, 14, 15):
        for scale, room in product(range(40, 29, -1), (15, 12, 10, 8)):
            first = scale + room
            special = (first,) if levels == 1 else (-(-(first + scale) // 2),) * 2
            if 1 << logn >= values and first + levels * scale + sum(special) <= MAX_LOG_QP[logn]:
                return Parameters(logn, (first, *[scale] * levels), special, scale)
    problem = "no ring without bootstrapping is large enough for this network"
    raise InputError(problem, field="levels", value=levels, expected="at most about 20", fix="use a shallower network")


def bootstrapped(logn: int = 15) -> Parameters:
    """Return the parameter set of bootstrapped networks.

    Between two bootstrappings ciphertexts live in a conjugate-invariant ring; the engine refreshes them in a standard
    ring of exactly twice the degree, which leaves one choice with 128 bits of security: 2^15 and 2^16.

    Parameters
    ----------
    logn
        Of the ring between bootstrappings. 15 is the only one with 128 bits of security, since the ring of
        bootstrapping is one above it; tests use smaller ones, which `check_security` refuses.
    """
    logq = (FIRST, *[SCALE] * LEVELS)
    special = (59,) * 6 + (58,) * 5  # one more than half of the primes: two digits a key, and 1745 of 1747 bits
    return Parameters(
        logn=logn,
        logq=logq,
        logp=(50, 50, 50),
        log_scale=SCALE,
        bootstrapping=Bootstrapping(
            logn=logn + 1,
            logp=special,
            h=2 * (2 << logn) // 3,
            log_qp=sum(logq) + sum(CIRCUIT_LOGQ) + sum(special),
            log_slots=logn - 1,
        ),
    )
