"""HDF5 files from outside, opened so that nothing leads out of them and nothing in them is larger than it can be.

An HDF5 file may name other files (external links, virtual data sets, external storage), lead back into itself, or
declare arrays of any size in a few bytes. A file of a stranger that does is refused before anything of it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError, unreadable
from histocrypt.files import regular
from histocrypt.kinds import lacking_filter

if TYPE_CHECKING:
    import h5py

MOST_OBJECTS = 500_000
INFLATED = 2000
"""Largest number of bytes that a stored byte may stand for: gzip reaches 1,032."""
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
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(what, error, file=path) from error
    try:
        declared = _look_through(file, path)
        if whole:
            _check_memory(declared, path)
    except InputError:
        file.close()
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        file.close()
        raise unreadable(what, error, file=path) from error
    return file


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
                    raise InputError("leads back into the file, so that it has no end", file=path, field=where)
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
        raise _elsewhere(path, where, None, "lies in another file")
    plist = data.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        number = plist.get_filter(index)[0]
        if not (h5py.h5z.filter_avail(number) or _plugin_has(number)):
            problem, fix = lacking_filter(str(number))
            raise InputError(problem, file=path, field=where, value=number, fix=fix)
    size = int(data.size or 0) * data.dtype.itemsize
    if size > UNQUESTIONED and size > INFLATED * max(1, data.id.get_storage_size()):
        raise InputError(
            f"declares {size / 2**30:.1f} GiB, which it does not hold",
            file=path,
            field=where,
            value=f"{data.shape} {data.dtype}",
            fix="copy it again from its source",
        )
    return size


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
