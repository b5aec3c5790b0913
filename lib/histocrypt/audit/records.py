"""Spots of members and non-members, what was measured of them and what a model makes of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.evaluation.bootstrap import block_labels
from histocrypt.evaluation.truth import as_mapping

if TYPE_CHECKING:
    from anndata import AnnData

CENTRES = ("centre", "center", "site", "dataset")
"""Where a section may say where it comes from, in ``obs`` or ``uns``; the first found counts."""


@dataclass(frozen=True)
class Records:
    """Rows belong together and are named."""

    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    patients: np.ndarray
    """(n,) str: the unit of privacy."""
    sections: np.ndarray
    """(n,) str."""
    group: np.ndarray
    """(n,) str: centre or data set of the section, ``""`` where it does not tell."""
    blocks: np.ndarray
    """(n,) str: the square of tissue, of the study's ``evaluation.block_um``, that a spot lies in."""
    member: np.ndarray
    """(n,) bool: whether the weights were fitted on the spot's patient."""
    outputs: tuple[str, ...]
    """``"<transform>:<gene id>"``, the columns of the two below."""
    truth: np.ndarray
    """(n, outputs) float32: what was measured, in the units of the loss."""
    prediction: np.ndarray
    """(n, outputs) float32, in the same units."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.names)

    @property
    def loss(self) -> np.ndarray:
        """(n,) float64: see `losses`."""
        return losses(self.truth, self.prediction)

    def subset(self, keep: np.ndarray) -> Records:
        """Return the rows chosen by a boolean mask or by indices."""
        return replace(self, **{name: getattr(self, name)[keep] for name in _rows()})

    @classmethod
    def join(cls, parts: list[Records]) -> Records:
        """Return all rows of several with the same outputs, in order."""
        if any(part.outputs != parts[0].outputs for part in parts):
            msg = "records of different outputs cannot be joined"
            raise ValueError(msg)
        return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _rows()})


def _rows() -> list[str]:
    return [field.name for field in fields(Records) if field.name != "outputs"]


def losses(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return (n,) mean squared errors over the standardised outputs, as models of a study are trained with."""
    return np.square(np.asarray(prediction, np.float64) - np.asarray(truth, np.float64)).mean(axis=1)


def group_of(section: AnnData) -> str:
    """Return the centre or data set that a cleaned section names, or ``""``."""
    for name in CENTRES:
        if name in section.obs and section.obs[name].nunique() == 1:
            return str(section.obs[name].iloc[0])
        if isinstance(section.uns.get(name), str):
            return section.uns[name]
    return ""


def blocks_of(section: AnnData, name: str, block_um: float) -> dict[str, str]:
    """Return the square of tissue that each spot of a cleaned section lies in, by the spot's name."""
    um_per_px = float(as_mapping(section.uns.get("preprocessing", {})).get("um_per_px", 1.0))
    labels = block_labels(np.asarray(section.obsm["spatial"], dtype=np.float64) * um_per_px, block_um)
    return {f"{name}:{spot}": f"{name}:{label}" for spot, label in zip(section.obs_names, labels, strict=True)}
