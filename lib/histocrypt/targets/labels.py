"""A yes or no about each spot: a pathologist's annotation, or a proxy made from proportions by a stated threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.targets.matrix import PREFIX

if TYPE_CHECKING:
    from anndata import AnnData

TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
UNKNOWN = {"", "nan", "none", "na", "<na>", "undetermined"}


@dataclass(frozen=True)
class Label:
    """Where a label is found, and what counts as yes."""

    source: str
    """``obs:COLUMN``, or ``obsm:MATRIX/COLUMN`` with `above`."""
    positive: tuple[str, ...] = ()
    """Values of a column of words that count as yes; empty: the column holds yes and no, or 1 and 0."""
    above: float | None = None
    """Numbers above this count as yes."""
    field: str = "models.he2gene.label"
    """Where the study says so, for what errors say."""

    def __post_init__(self) -> None:
        kind, _, rest = self.source.partition(":")
        matrix, _, column = rest.partition("/")
        where = {"field": self.field, "value": self.source}
        if kind not in ("obs", "obsm") or not matrix or (kind == "obsm") != bool(column):
            msg = "does not say where a label is"
            raise InputError(msg, **where, expected="obs:COLUMN, or obsm:MATRIX/COLUMN")
        if kind == "obsm" and self.above is None:
            msg = "a proportion is made a label by a threshold, and none is given"
            raise InputError(msg, **where, fix="set label_above")
        if self.above is not None and self.positive:
            raise InputError("takes label_is or label_above, not both", **where)

    @property
    def is_proxy(self) -> bool:
        """Whether the label is derived from proportions, not given by a pathologist."""
        return self.source.startswith(PREFIX)

    def of(self, adata: AnnData, *, section: str) -> np.ndarray:
        """Return (n,) float32: 1, 0, or NaN where a spot has no label; NaN throughout where the section has none.

        Raises
        ------
        InputError
            If a value is neither yes nor no.
        """
        values = self._values(adata)
        if values is None:
            return np.full(adata.n_obs, np.nan, dtype=np.float32)
        where = {"field": self.source}
        if self.above is not None:
            try:
                numbers = np.asarray(values, dtype=np.float64)
            except (TypeError, ValueError) as error:
                msg = f"section {section}: the label is not a number, and label_above needs one"
                raise InputError(msg, **where) from error
            return np.where(np.isfinite(numbers), numbers > self.above, np.nan).astype(np.float32)
        found = np.full(adata.n_obs, np.nan, dtype=np.float32)
        yes = {word.lower() for word in self.positive}
        for row, value in enumerate(values.tolist()):
            word = str(value).strip().lower()
            if word in UNKNOWN:
                continue
            if not self.positive and word not in TRUE | FALSE:
                msg = f"section {section}: a label is neither yes nor no"
                raise InputError(msg, **where, value=str(value), fix="say with label_is which words mean tumour")
            found[row] = word in (yes or TRUE)
        return found

    def _values(self, adata: AnnData) -> np.ndarray | None:
        """Return the (n,) values, or None where this section has no such column."""
        kind, _, rest = self.source.partition(":")
        if kind == "obs":
            return adata.obs[rest].to_numpy(dtype=object) if rest in adata.obs else None
        matrix, _, column = rest.partition("/")
        table = adata.obsm.get(matrix)
        if table is None:
            return None
        names = [str(one) for one in getattr(table, "columns", adata.uns.get(f"{matrix}_names", ()))]
        if column not in names:
            msg = "has no such column"
            raise InputError(msg, field=f"obsm[{matrix!r}]", value=column, expected="one of " + ", ".join(names))
        return np.asarray(table)[:, names.index(column)]
