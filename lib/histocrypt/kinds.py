"""What a file from outside is by its first bytes, and why it cannot be read: the remedy differs from case to case."""

from __future__ import annotations

import errno
import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 2048
HDF5 = b"\x89HDF\r\n\x1a\n"
FILTERS = {
    "32000": "lzf",
    "32001": "blosc",
    "32004": "lz4",
    "32008": "bitshuffle",
    "32013": "zfp",
    "32015": "zstd",
    "32026": "blosc2",
}
"""Filters that HDF5 files of this field use, by their registered numbers; HDF5 itself has only gzip, szip, shuffle."""


@dataclass(frozen=True)
class Kind:
    """What a file is, and what to do with it where something else was wanted."""

    words: str
    fix: str
    suffixes: tuple[str, ...] = ()
    """Names under which it is what one expects."""
    image: bool = False

    def fits(self, path: Path) -> bool:
        """Return whether the file's name says the same as its content."""
        return path.name.lower().endswith(self.suffixes) if self.suffixes else False


EMPTY = Kind("it is empty (0 bytes)", "copy or download it again")
LFS = Kind("it is a Git LFS pointer, not the file itself", "fetch the content with `git lfs pull`")
ANNEX = Kind("it is a git-annex pointer, not the file itself", "fetch the content with `git annex get`")
PAGE = Kind("it is a web page", "download the file itself, not the page about it", (".html", ".htm"))
MARKUP = Kind("it is XML, perhaps the answer of a server that refused", "download it again", (".xml", ".svg"))
R_DATA = Kind("it is R's data", "save it from R as .h5ad, e.g. with anndataR", (".rds", ".rda", ".rdata"))
H5_GZ = Kind("it is a gzip-compressed HDF5 file", "unpack it with gunzip", (".gz",))
ANNDATA = Kind("it is an AnnData file", "name it as the section", (".h5ad",))
TAR = Kind("it is a tar archive", "unpack it, and name what is inside", (".tar", ".tgz", ".tar.gz"))
GZIP = Kind("it is gzip-compressed", "unpack it with gunzip", (".gz",))
EXCEL = Kind("it is an Excel workbook", "save the sheet as CSV", (".xlsx",))
ZIP = Kind("it is a zip archive", "unpack it, and name what is inside", (".zip", ".npz", ".czi"))
PICKLE = Kind("it is a pickle, which is never read", "save it as .h5ad, CSV or text", (".pkl", ".pickle", ".p"))
SOURCE = "copy it again from its source"
SIGNATURES = (
    (b"version https://git-lfs", LFS),
    (b"/annex/objects/", ANNEX),
    (b"RDX", R_DATA),
    (b"RDA", R_DATA),
    (b"X\n\x00\x00", R_DATA),
    (b"A\n2\n", R_DATA),
    (b"A\n3\n", R_DATA),
    (b"BZh", Kind("it is bzip2-compressed", "unpack it with bunzip2", (".bz2",))),
    (b"\xfd7zXZ\0", Kind("it is xz-compressed", "unpack it with unxz", (".xz",))),
    (b"\x28\xb5\x2f\xfd", Kind("it is zstd-compressed", "unpack it with unzstd", (".zst",))),
    (b"7z\xbc\xaf\x27\x1c", Kind("it is a 7z archive", "unpack it, and name what is inside", (".7z",))),
    (b"Rar!", Kind("it is a RAR archive", "unpack it, and name what is inside", (".rar",))),
    (b"%PDF", Kind("it is a PDF", "give the file that it was made from", (".pdf",))),
    (b"%%MatrixMarket", Kind("it is a Matrix Market table", "name the folder that holds it", (".mtx",))),
    (b"\x80\x04\x95", PICKLE),
    (b"\x80\x05\x95", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x89PNG", Kind("it is a PNG image", "give it as the image", (".png",), image=True)),
    (b"\xff\xd8\xff", Kind("it is a JPEG image", "give it as the image", (".jpg", ".jpeg"), image=True)),
    (b"PAR1", Kind("it is a parquet table", "name the folder that holds it", (".parquet",))),
    (b"\x93NUMPY", Kind("it is a numpy array", "save it as .h5ad", (".npy",))),
    (b"SQLite format", Kind("it is a SQLite database", "export it as a table", (".sqlite", ".db"))),
    (b"MATLAB 5.0", Kind("it is MATLAB's data", "save it as .h5ad", (".mat",))),
)  # fmt: skip
H5 = Kind("it is patches or another HDF5 file", "name what belongs here", (".h5", ".h5ad", ".hdf5", ".he5"))
H5_KINDS = (
    ({"row_attrs", "col_attrs", "matrix"}, Kind("it is a loom file", "save it as .h5ad: anndata.io.read_loom")),
    ({"mod"}, Kind("it is MuData (.h5mu)", "save its RNA alone: mudata.read(...)['rna'].write_h5ad(...)")),
    ({"cell.names"}, Kind("it is Seurat's .h5seurat", "save it from R as .h5ad, e.g. with anndataR")),
    ({"barcode_idx", "umi"}, Kind("it is 10x's molecule_info.h5", "name the folder that holds spatial/")),
    ({"matrix"}, Kind("it is a 10x count matrix, without places", "name the folder that holds it and spatial/")),
    ({"jpeg", "coords"}, Kind("it is patches", "give it as the image of its section")),
    ({"img", "coords"}, Kind("it is patches", "give it as the image of its section")),
    ({"layer_names"}, Kind("it is a Keras model", "give a section")),
)
"""HDF5 files that are no AnnData, by names at their top."""


def kind_of(path: str | Path) -> Kind | None:
    """Return what a file is by its content; None where that is not told, or it is no ordinary file."""
    path = Path(path)
    try:
        if path.is_symlink() and not path.exists():
            return ANNEX if "/annex/objects/" in str(path.readlink()) else None
        if not path.is_file():
            return None
        if not path.stat().st_size:
            return EMPTY
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None
    if head.startswith(HDF5):
        return _kind_of_h5(path)
    if head.startswith(b"\x1f\x8b"):
        return _kind_of_gzip(head)
    if head.startswith(b"PK\x03\x04"):
        return EXCEL if b"[Content_Types].xml" in head or b"xl/" in head else ZIP
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text[:512]:
        return PAGE
    if text.startswith((b"<?xml", b"<error")):
        return MARKUP
    if head[257:262] == b"ustar":
        return TAR
    return next((kind for signature, kind in SIGNATURES if head.startswith(signature)), None)


def _kind_of_gzip(head: bytes) -> Kind:
    try:
        inside = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return GZIP
    if inside.startswith(HDF5):
        return H5_GZ
    if inside.startswith((b"RDX", b"RDA", b"X\n\x00", b"A\n2\n", b"A\n3\n")):
        return R_DATA
    return TAR if inside[257:262] == b"ustar" else GZIP


def _kind_of_h5(path: Path) -> Kind | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = set(file)
    except (OSError, RuntimeError, ValueError):
        return H5
    if {"X", "obs", "var"} <= names:
        return ANNDATA
    return next((kind for wanted, kind in H5_KINDS if wanted <= names), H5)


def why_unreadable(path: str | Path | None, error: BaseException) -> tuple[str, str]:
    """Return why a library could not read a file, as a clause, and what to do about it.

    Parameters
    ----------
    path
        The file, where one is known.
    error
        What the library raised; of it and of what it came from, the words and the numbers of the system are looked at.
    """
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 5:
        chain.append(below)
    said = " ".join(" ".join(str(one).split()) for one in chain)
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    detail = " ".join(str(error).split())[:160] or type(error).__name__
    if errno.EACCES in numbers or errno.EPERM in numbers:
        return "you have no right to read it", "ask its owner for permission, or copy it"
    if "unable to lock file" in said:
        return "another program holds it open for writing", "wait until that program has closed it, then try again"
    if "already open for write" in said:
        return (
            "its writer has not closed it",
            "wait until it has; where it was killed, copy the file again, or clear the mark with `h5clear -s`",
        )
    if missing := re.search(r"required filter '?([\w -]+?)'? is not registered|filter[ _]id[ =]+(\d+)", said):
        return lacking_filter(missing[1] or missing[2])
    if "hdf5/lib/plugin" in said or "HDF5_PLUGIN_PATH" in said:
        return lacking_filter("")
    if isinstance(error, MemoryError):
        return "it needs more memory than there is", "use a machine with more, or cut the section smaller"
    kind = kind_of(path) if path is not None else None
    if kind is not None and not kind.fits(Path(path)):
        return kind.words, kind.fix
    if re.search(r"truncat|unexpected end|ended before|end of file|\bEOF\b|not a zip file|premature|incomplete", said):
        return f"it is truncated ({detail})", SOURCE
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return f"it is damaged ({detail})", SOURCE
    return f"it may be truncated or damaged ({detail})", SOURCE


def lacking_filter(name: str) -> tuple[str, str]:
    """Return why a compressed HDF5 file cannot be read, and what to do; ``name`` is its filter's, or its number."""
    number = name if name.isdigit() else next((n for n, known in FILTERS.items() if known in name.lower()), "")
    known = FILTERS.get(number, "" if name.isdigit() else name)
    what = f"{known} " if known else ""
    told = f"HDF5 filter {number}" if number else "an HDF5 filter"
    return (
        f"it is {what}compressed ({told}), and this installation lacks that filter".replace("  ", " "),
        "`pip install hdf5plugin`, or save it again with gzip: adata.write_h5ad(path, compression='gzip')",
    )
