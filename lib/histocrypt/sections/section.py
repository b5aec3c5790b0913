"""A section: spots with raw counts, the image they lie on, and how large a pixel is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.image import ImageSource
    from histocrypt.sections.picture import Carried
    from histocrypt.sections.resolution import Fact


ORIGINS = ("section", "patient", "counts", "genes", "spots", "image", "resolution")
"""What is said of a section: where it was read, so that a person sees a wrong guess at once."""


@dataclass(frozen=True)
class SectionFiles:
    """Where one section lies, before it is read. Cheap to make: only names are read."""

    id: str
    """Section id, unique in a study; safe as a file name."""
    format: str
    """One of `histocrypt.options.FORMATS`."""
    path: Path
    """The section file; for ``st_array`` and ``space_ranger`` the folder that holds ``counts/`` or ``spatial/``."""
    patient: str | None = None
    """Patient id as given in the study, or as read quickly from the file; None where only the reader can tell."""
    laboratory: str | None = None
    """As given in the study; None where only the reader can tell."""
    image: Path | None = None
    """Image file, patches file or tile folder as given; None where the section file names it."""
    um_per_px: float | None = None
    """Micrometres per full-resolution pixel as given."""
    bin_um: float | None = None
    """Side of the squares that ``visium_hd`` and ``xenium`` are summed to, micrometres; None: the format's own."""
    counts_only: bool = False
    """Neither image nor resolution are looked for: counts are compared, spot by spot."""
    part: str = ""
    """Which of several sections this is: ``<folder below counts>/<section>`` of ``st_array``, ``Train/<slide>`` or
    ``Test/<slide>`` of ``hackathon``, the slide as ``h5ad`` calls it."""


@dataclass
class Loaded:
    """What a reader found in the files of a section, not yet validated."""

    adata: AnnData
    """spots x genes, as in the file; ``obsm["spatial"]`` in full-resolution pixels."""
    image: ImageSource | None
    patient: str | None
    files: list[Path]
    um_per_px: float | None = None
    um_field: str = ""
    """The field that states ``um_per_px``."""
    pitch_um: float | None = None
    """Distance between neighbouring spots, micrometres, where the files state it."""
    pitch_why: str = ""
    """How they state it; "" for a number in the file."""
    stated: list[Fact] = field(default_factory=list)
    """Further resolutions that the files state."""
    spot_diameter_px: float | None = None
    """``spot_diameter_fullres`` where it may serve as a resolution, if the technology is known."""
    spot_field: str = ""
    """The field that states ``spot_diameter_px``."""
    pictures: list[Carried] = field(default_factory=list)
    """Reduced pictures that the files carry, the largest first."""
    technology: str = ""
    """Name of the technology, where the files state it."""
    image_note: str = ""
    """Why there is no image, where there is none."""
    notes: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    """Where in the files each of `ORIGINS` was read, in words; what has no entry was read in the only way there is."""
    bin_um: float | None = None
    """Side of the squares that counts were summed over, micrometres; None where there are none to choose."""
    uncounted: bool = False
    """The format has no counts: ``adata`` has no genes, and a named matrix in ``obsm`` is what can be learnt."""


def own_files(files: SectionFiles) -> list[Path]:
    """Return a section's own file, its image, and what lies beside them under the same stem."""
    named = [path for path in (files.path, files.image) if path is not None]
    siblings = [
        path
        for beside in named
        if beside.is_file()
        for path in beside.parent.glob(f"{escape(beside.stem)}[._]*")
        if path.is_file()
    ]
    return sorted({*named, *siblings})


@dataclass(frozen=True)
class Format:
    """How sections of one layout are found and read; ``sections/formats/NAME.py`` has one, called ``FORMAT``."""

    layout: str
    """What such a file or folder looks like, in the words of an error."""
    recognises: Callable[[Path], bool]
    """Whether a path, which may not exist, is of this layout; it looks at names, hardly into files."""
    sections_in: Callable[[Path], list[SectionFiles]]
    """The sections of a path, none where it is of another layout."""
    read: Callable[[SectionFiles], Loaded]
    inputs: Callable[[SectionFiles], list[Path]] = own_files
    """The files whose change makes a section another one, as far as names tell."""
    predicted_in: Callable[[Path], list[SectionFiles]] | None = None
    """The sections of a path that a model predicts, where these are not `sections_in`."""


@dataclass
class Section:
    """One validated section."""

    id: str
    """Section id, unique in a study."""
    patient: str
    """Patient id; folds are made by it. Empty only where a single section is read for prediction."""
    adata: AnnData
    """spots x genes; ``X`` raw counts (CSR int32; of no gene where there are no counts); ``obsm["spatial"]`` float64
    x, y in full-resolution pixels."""
    image: ImageSource | None
    """The H&E image, read lazily; None only where a single section is read without need of pixels."""
    um_per_px: float
    """Micrometres per full-resolution pixel; NaN only where a section is read for its counts alone."""
    um_per_px_source: str
    """``given`` (by the study), ``file`` (its metadata), ``spot pitch`` (estimated) or ``not looked for``."""
    files: list[Path]
    """Every file that was read."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of spots that the reader dropped."""
    notes: list[str] = field(default_factory=list)
    """Sentences worth a reader's attention that do not forbid the use of the section."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where in the files each of `ORIGINS` was read, in words."""
    bin_um: float | None = None
    """Side of the squares that counts were summed over, micrometres, where another one could be asked for."""

    @property
    def file(self) -> Path | None:
        """The file that was read first; None where the section comes from none."""
        return self.files[0] if self.files else None

    @property
    def detail_um(self) -> float:
        """Micrometres per pixel of the image at hand, which may be a reduced one."""
        return self.um_per_px / getattr(self.image, "scale", 1.0)

    def picture(self) -> ImageSource:
        """Return the image.

        Raises
        ------
        InputError
            If the section has none.
        """
        if self.image is None:
            raise InputError("has no image", file=self.file, field=self.id, setting="image")
        return self.image

    @property
    def coords(self) -> np.ndarray:
        """Spot centres, float64 (n, 2): x, y in full-resolution pixels."""
        return self.adata.obsm["spatial"]

    @property
    def n_spots(self) -> int:
        """Number of usable spots."""
        return self.adata.n_obs

    @property
    def genes(self) -> np.ndarray:
        """Gene ids, str (g,)."""
        return self.adata.var_names.to_numpy(dtype=str)


@dataclass(frozen=True)
class SectionSize:
    """How large a section is: what memory, time and disk of a run are estimated from.

    The defaults are those of a large one whose size is not known yet.
    """

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
