"""How a study is spoken of: what its panel holds and who was held out. One place, for report, figures and cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from histocrypt.targets.matrix import noun
from histocrypt.training.folds import BY_SECTION, caveat

if TYPE_CHECKING:
    from histocrypt.evaluation.scores import Scores


@dataclass(frozen=True)
class Terms:
    """Words that depend on the study."""

    one: str
    """One name of the panel: ``gene`` or ``cell type``."""
    quantity: str
    """What is measured of it."""
    unit: str
    """Who is held out: ``patient`` or ``section``."""
    unseen: str
    """On whom scores are, as said after "on"."""
    caveat: str
    """What scores do not say because of the scheme; empty where patients are held out."""

    @property
    def many(self) -> str:
        """Several names of the panel."""
        return f"{self.one}s"

    @property
    def by_section(self) -> bool:
        """Whether sections were held out while other sections of their patient were trained on."""
        return self.unit == "section"


def terms_of(scores: Scores) -> Terms:
    """Return the words for a scored study."""
    return terms(scores.notes.get("matrix"), scores.notes.get("scheme", ""))


def terms(matrix: str | None, scheme: str) -> Terms:
    """Return the words for a study that predicts ``matrix`` (None: counts) and holds out by ``scheme``."""
    by_section = scheme == BY_SECTION
    return Terms(
        one=noun(matrix),
        quantity="expression" if matrix is None else "shares",
        unit="section" if by_section else "patient",
        unseen="sections it never saw, of patients that it did see" if by_section else "patients it never saw",
        caveat=caveat(scheme),
    )
