"""From raw counts to what is predicted, and the training statistics that put outputs on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json, write_json

if TYPE_CHECKING:
    from scipy.sparse import spmatrix


def _log1p(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.log1p(counts)


def _log1p_cp10k(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    # A spot without counts has no composition: zeros, not 0/0.
    return np.log1p(counts / np.where(totals > 0, totals, np.inf)[:, None] * 1e4)


def _log2p1(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.log2(counts + 1.0)


def _rank(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return _spot_rank(counts, totals) * (totals > 0)[:, None]


def _proportion(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    if values.size and (values.min() < 0 or values.max() > 1 + ABOVE_ONE):
        worst = values.max() if values.max() > 1 else values.min()
        raise InputError(
            f"a proportion must be between 0 and 1, and the values reach {worst:.4g}",
            expected="shares of a spot",
            fix="the transform spot_rank takes abundances of any scale",
        )
    return values


def _spot_rank(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, method="average", axis=1)


ABOVE_ONE = 1e-4
"""What rounding may add to a proportion of 1."""

TRANSFORMS = {"log1p": _log1p, "log1p_cp10k": _log1p_cp10k, "log2p1": _log2p1, "rank": _rank}
"""Transforms of counts by name."""

COMPOSITIONS = {"proportion": _proportion, "spot_rank": _spot_rank}
"""Transforms of a named matrix, such as cell-type proportions, by name."""


BY_GENE = ("log1p", "log1p_cp10k", "log2p1", "proportion")
"""Transforms of a gene that do not depend on which other genes are in the panel."""


def transform(counts: np.ndarray | spmatrix, totals: np.ndarray, name: str) -> np.ndarray:
    """Transform raw counts of the panel's genes, or values of a named matrix, into targets.

    Parameters
    ----------
    counts
        (n, g) raw counts or values of the panel, dense or sparse.
    totals
        (n,) total counts of each spot over **all** genes of its section, not over the panel.
    name
        Of counts: ``log1p``: ln(1 + count). ``log1p_cp10k``: ln(1 + count / total x 10,000), the depth-normalised one.
        ``log2p1``: log2(1 + count). ``rank``: rank of each gene within its spot, 1 to g, ties share their average.
        A spot without counts becomes a row of zeros in all of them.
        Of a named matrix, where ``totals`` are not looked at: ``proportion``: the values as they are, from 0 to 1.
        ``spot_rank``: rank of each column within its spot, 1 (smallest) to g, ties share their average.

    Returns
    -------
    (n, g) float32

    Raises
    ------
    InputError
        If the name is unknown, or values are not proportions.
    """
    known = {**TRANSFORMS, **COMPOSITIONS}
    if name not in known:
        raise unknown_name("transform", name, known, field="target.transforms")
    dense = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    return known[name](dense.astype(np.float64), np.asarray(totals, dtype=np.float64)).astype(np.float32)


def output_names(transforms: list[str] | tuple[str, ...], genes: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the predicted columns, ``"<transform>:<gene id>"``, transform by transform."""
    return tuple(f"{transform}:{gene}" for transform in transforms for gene in genes)


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of the rows of a matrix, column by column; float64.

    Of columns that come section by section, put together without the values themselves. Parts are joined as in Chan,
    Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37:242 (1983): exact
    but for rounding, whatever the means.
    """

    n: int
    mean: np.ndarray
    """(g,)."""
    squares: np.ndarray
    """(g,) sum over rows of the squared distance to the mean."""

    @classmethod
    def none(cls, columns: int) -> Moments:
        """Return the moments of no row."""
        return cls(0, np.zeros(columns), np.zeros(columns))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Return the moments of (n, g) ``values``."""
        values = np.asarray(values, dtype=np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of matrices of the same rows, set side by side."""
        mean, squares = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "squares"))
        return cls(parts[0].n, mean, squares)

    def of_columns(self, columns: np.ndarray) -> Moments:
        """Return the moments of some columns."""
        return Moments(self.n, self.mean[columns], self.squares[columns])

    def with_more(self, other: Moments) -> Moments:
        """Return the moments of these rows and the other's."""
        n = self.n + other.n
        if not self.n or not n:
            return other
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        return Moments(n, mean, self.squares + other.squares + np.square(apart) * (self.n * other.n / n))

    @property
    def sd(self) -> np.ndarray:
        """(g,) standard deviation over the rows."""
        return np.sqrt(self.squares / max(self.n, 1))


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and standard deviation of every output over the spots of a fold's training patients.

    The z-score that they give lives inside the loss: predictions are always put back into the transforms' own units.
    """

    outputs: tuple[str, ...]
    """``"<transform>:<gene id>"``."""
    mean: np.ndarray
    """(n_outputs,) float32."""
    sd: np.ndarray
    """(n_outputs,) float32; 1 where an output does not vary, so that it can be divided by."""

    @classmethod
    def of(cls, targets: np.ndarray, outputs: tuple[str, ...]) -> TargetStatistics:
        """Compute the statistics of (n, n_outputs) ``targets``."""
        return cls.of_moments(Moments.of(targets), outputs)

    @classmethod
    def of_moments(cls, moments: Moments, outputs: tuple[str, ...]) -> TargetStatistics:
        """Return the statistics of targets whose moments are known."""
        sd = np.where(moments.sd > 1e-8, moments.sd, 1.0)
        return cls(tuple(outputs), moments.mean.astype(np.float32), sd.astype(np.float32))

    def standardise(self, targets: np.ndarray, *, sections: np.ndarray | None = None) -> np.ndarray:
        """Return z-scores of (n, n_outputs) ``targets``.

        With ``sections`` ((n,) section of each spot) the section's own mean is subtracted instead of the training mean
        (``target.centre_by_section``): what is learned are differences within a section, and `restore` puts
        predictions on the training mean, because the mean of an unseen section cannot be known.
        """
        if sections is None:
            return ((targets - self.mean) / self.sd).astype(np.float32)
        centred = np.array(targets, dtype=np.float32)
        for section in np.unique(sections):
            rows = sections == section
            centred[rows] -= centred[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        return centred / self.sd

    def restore(self, scores: np.ndarray) -> np.ndarray:
        """Return z-scores in the transforms' units: the inverse of `standardise`."""
        return (np.asarray(scores) * self.sd + self.mean).astype(np.float32)

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        """Return a JSON-able dictionary: output name -> mean and sd."""
        return {
            name: {"mean": float(mean), "sd": float(sd)}
            for name, mean, sd in zip(self.outputs, self.mean, self.sd, strict=True)
        }

    @classmethod
    def from_dict(cls, content: dict[str, dict[str, float]]) -> TargetStatistics:
        """Return the statistics that `to_dict` wrote."""
        mean, sd = (np.array([value[name] for value in content.values()], dtype=np.float32) for name in ("mean", "sd"))
        return cls(tuple(content), mean, sd)

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TargetStatistics:
        """Read what `save` wrote; anything else is an `InputError` that names the file."""
        try:
            return cls.from_dict(read_json(path))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                "does not hold target statistics", file=path, expected='{"<transform>:<gene>": {"mean": .., "sd": ..}}'
            ) from error
