"""How large a section is: what memory, time and disk of a run are estimated from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from histocrypt.sections.section import Section


@dataclass(frozen=True)
class SectionSize:
    """The size of one section; the defaults are those of a large one whose size is not known yet."""

    spots: int = 5_000
    genes: int = 20_000
    values: int = 20_000_000
    """Counts that are not zero."""
    decoded_mpx: float = 400.0
    """Millions of pixels that are held in memory at once: the whole image, but nothing of a pyramid."""


def size_of(section: Section) -> SectionSize:
    """Return the size of a section that has been read."""
    held = section.image.decoded_mpx if section.image is not None else 0.0
    return SectionSize(section.n_spots, section.adata.n_vars, int(section.adata.X.nnz), round(held, 3))
