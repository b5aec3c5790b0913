"""HDF5 files from outside, opened so that nothing leads out of them and nothing in them is larger than it can be.

An HDF5 file may name other files (external links, virtual data sets, external storage), lead back into itself, declare
arrays of any size in a few bytes, or name one long text as every element of an array. A file of a stranger that does is
refused before anything of it is read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.files import regular
from histocrypt.kinds import lacking_filter

if TYPE_CHECKING:
    import h5py

MOST_OBJECTS = 500_000
INFLATED = 2000
"""Largest number of bytes that a stored byte may stand for: gzip reaches 1,032."""
PIECE = 2**20
"""References to texts that are read at once."""
SEARCHED = 2**30
"""Bytes of the largest file in which heaps of texts are searched for."""
HEAP = b"GCOL\x01\0\0\0"
"""What such a heap begins with."""
LOOKED_THROUGH = 10_000
"""Files of which it is kept that nothing leads out of them."""
UNQUESTIONED = 2**28
"""Bytes up to which nobody asks how a data set is stored, or how much memory there is."""


def open_h5(path: str | Path, *, what: str = "cannot be read as HDF5", whole: bool = False) -> h5py.File:
    """Open an HDF5 file for reading after looking at all that it names; close it, or use it as a context.

    Parameters
    ----------
    path
        The file.
    what
        What is said where it cannot be opened, a clause.
    whole
        All of it is going to be held in memory: refuse what cannot be.

    Raises
    ------
    InputError
        If it is no ordinary file, is locked, truncated or of another kind, names another file, leads back into
        itself, has a data set that its size cannot hold, or is compressed by a filter that is not installed.
    """
    import h5py

    path = regular(path)
    now = path.stat()
    with reading(what, OSError, RuntimeError, ValueError, LookupError, TypeError, file=path):
        declared = _declared(path, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
        if whole:
            _check_memory(declared, path)
        return h5py.File(path, "r")


@lru_cache(LOOKED_THROUGH)
def _declared(path: Path, version: tuple[int, ...]) -> int:
    """Look through a file, once while ``version`` stays the same; return the bytes of all its data sets in memory."""
    import h5py

    with h5py.File(path, "r") as file:
        _check_heaps(path)
        return _look_through(file, path)


def _check_heaps(path: Path) -> None:
    """Refuse a heap of texts with an entry of no length, at which the HDF5 library would stay for ever.

    Format: HDF5 File Format Specification, III.E, "Disk Format: Level 1E - Global Heap". Files of more than `SEARCHED`
    bytes are taken on trust. Heaps lie side by side, so there are no more entries than the file has room for: more are
    those of heaps made to lie in one another, to keep the search busy.
    """
    length = path.stat().st_size
    room = length // 16
    if not 0 < length <= SEARCHED:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(HEAP)
        while at >= 0:
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            entry, end = at + 16, at + size
            while end <= length and entry + 16 <= end:
                number, size = struct.unpack_from("<H6xQ", content, entry)
                room -= 1
                if room < 0:
                    raise InputError(
                        "is damaged: heaps of texts are nested in one another", file=path, fix="copy it again"
                    )
                if number == 0 and size < 16:
                    raise InputError("is damaged: a heap of texts has no end", file=path, fix="copy it again")
                entry += size if number == 0 else 16 + -(-size // 8) * 8
            at = content.find(HEAP, at + 1)


def _look_through(file: h5py.File, path: Path) -> int:
    """Check every link, group and data set; return the bytes that all data sets have in memory."""
    import h5py

    waiting: list[tuple[str, Any]] = [("", file)]
    groups, links, declared, count = {_address(file)}, [], 0, 0
    while waiting:
        place, group = waiting.pop()
        for name in group:
            count += 1
            where = f"{place}/{name}"[-200:]
            if count > MOST_OBJECTS:
                raise InputError(f"holds more than {MOST_OBJECTS:,} objects", file=path, field=where)
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _elsewhere(path, where, f"{link.filename}:{link.path}", "is a link into another file")
            if isinstance(link, h5py.SoftLink):
                links.append((where, group, name, link.path))
                continue
            node = group[name]
            if isinstance(node, h5py.Dataset):
                declared += _check_data(node, path, where)
            elif isinstance(node, h5py.Group):
                if _address(node) in groups:
                    raise InputError("links back into the file in a circle", file=path, field=where)
                groups.add(_address(node))
                waiting.append((where, node))
    for where, group, name, target in links:  # now that no external link is on their way
        try:
            leads_to_data = group.get(name, getclass=True) is h5py.Dataset
        except (OSError, LookupError, RuntimeError):
            leads_to_data = False
        if not leads_to_data:
            raise _elsewhere(path, where, target, "is a link that leads to no data")
    return declared


def _address(node: Any) -> int:
    import h5py

    return h5py.h5o.get_info(node.id).addr


def _check_data(data: h5py.Dataset, path: Path, where: str) -> int:
    import h5py

    if data.is_virtual or data.external:
        raise _elsewhere(path, where, None, "is stored in another file")
    plist = data.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        number = plist.get_filter(index)[0]
        if not (h5py.h5z.filter_avail(number) or _plugin_has(number)):
            problem, fix = lacking_filter(str(number))
            raise InputError(problem, file=path, field=where, value=number, fix=fix)
    size = int(data.size or 0) * data.dtype.itemsize
    if size > UNQUESTIONED and size > INFLATED * max(1, data.id.get_storage_size()):
        raise _not_held(data, size, path, where)
    if data.dtype.hasobject and h5py.check_ref_dtype(data.dtype) is None:
        size = _check_texts(data, path, where)
    return size


def _not_held(data: h5py.Dataset, size: int, path: Path, where: str) -> InputError:
    return InputError(
        f"declares {size / 2**30:.1f} GiB, but holds less",
        file=path,
        field=where,
        value=f"{data.shape} {data.dtype}",
        fix="copy it again from its source",
    )


# An element of variable length is stored as a reference: its length, and where in the file its content lies. Each has a
# content of its own in what libraries write, so that all lengths together are less than the file.

REFERENCE = 16
"""Bytes of a reference: length (4), address (8) and number in the heap (4)."""


def _check_texts(data: h5py.Dataset, path: Path, where: str) -> int:
    """Refuse elements that together are longer than the file; return the bytes that they have in memory."""
    most, total = path.stat().st_size, 0
    for lengths in _lengths(data, path):
        total += int(lengths.sum())
        if total > most:
            raise _not_held(data, total, path, where)
    return total + int(data.size or 0) * data.dtype.itemsize


def _lengths(data: h5py.Dataset, path: Path) -> Iterator[np.ndarray]:
    """Yield the lengths of elements, in bytes, as far as possible without reading what they refer to."""
    import h5py

    sequence = h5py.check_vlen_dtype(data.dtype)
    width = 1 if h5py.check_string_dtype(data.dtype) else sequence.itemsize if sequence is not None else 0
    if not width or data.file.userblock_size:
        yield from _lengths_read(data, path)
    elif data.chunks:
        for raw in _chunks(data):
            yield raw.view("<u4")[:, 0].astype(np.int64) * width
    elif (start := data.id.get_offset()) is not None and data.id.get_storage_size() == REFERENCE * data.size:
        with path.open("rb") as file:
            file.seek(start)
            for first in range(0, data.size, PIECE):
                raw = np.frombuffer(file.read(REFERENCE * min(PIECE, data.size - first)), dtype="<u4")
                yield raw.reshape(-1, 4)[:, 0].astype(np.int64) * width
    elif data.id.get_storage_size():  # nothing is stored where nothing was written
        yield from _lengths_read(data, path)


def _chunks(data: h5py.Dataset) -> Iterator[np.ndarray]:
    """Yield references of each chunk, uint8 (n, REFERENCE): its filters are undone on a data set of mere bytes."""
    import h5py

    plist, shape = h5py.h5p.create(h5py.h5p.DATASET_CREATE), data.chunks
    plist.set_chunk(shape)
    stored = data.id.get_create_plist()
    for number in range(stored.get_nfilters()):
        code, flags, values, _ = stored.get_filter(number)
        plist.set_filter(code, flags, values)
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, REFERENCE)
    kind.set_tag(b"")
    for number in range(data.id.get_num_chunks()):
        place = data.id.get_chunk_info(number).chunk_offset
        mask, content = data.id.read_direct_chunk(place)
        with h5py.File(f"chunk-{number}", "w", driver="core", backing_store=False) as memory:
            copy = h5py.h5d.create(memory.id, b"x", kind, h5py.h5s.create_simple(shape), plist)
            copy.write_direct_chunk((0,) * len(shape), content, mask)
            raw = np.empty(shape, dtype=f"V{REFERENCE}")
            copy.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, mtype=kind)
        yield raw.reshape(-1).view(np.uint8).reshape(-1, REFERENCE)


def _lengths_read(data: h5py.Dataset, path: Path) -> Iterator[np.ndarray]:
    """Yield the lengths of elements that have to be read for it: as few at once as memory bears, were each the file."""
    if not data.shape:
        return
    most = max(1, UNQUESTIONED // path.stat().st_size)
    rows = max(1, most // max(1, data.size // data.shape[0]))
    for first in range(0, data.shape[0], rows):
        values = data[first : first + rows]
        fields = [values[name] for name in values.dtype.names] if values.dtype.names else [values]
        for field in fields:
            if field.dtype.hasobject:
                sizes = (getattr(one, "nbytes", None) or getattr(one, "__len__", int)() for one in field.ravel())
                yield np.fromiter(sizes, dtype=np.int64)


def _plugin_has(number: int) -> bool:
    """Return whether hdf5plugin, where it is installed, brings a filter; importing it registers its filters."""
    import h5py

    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(number))


def _elsewhere(path: Path, where: str, target: str | None, problem: str) -> InputError:
    return InputError(
        problem,
        file=path,
        field=where,
        value=target,
        expected="data in the file itself",
        fix="write the section again as one file",
    )


def _check_memory(declared: int, path: Path) -> None:
    if declared <= UNQUESTIONED:
        return
    import psutil

    free = psutil.virtual_memory().available
    if declared > free:
        raise InputError(
            "needs more memory than there is",
            file=path,
            value=f"{declared / 2**30:.1f} GiB",
            expected=f"at most {free / 2**30:.1f} GiB",
            fix="use a machine with more memory, or cut the section smaller",
        )
