"""What is read and written: inputs are ordinary files, outputs take nobody's place, and checksums.

A file is there whole, or not at all. What somebody else made is not replaced (`claim`). Text from outside goes into a
table so that no spreadsheet runs it (`write_table`), and YAML comes in where it can do no harm (`read_yaml`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.kinds import EMPTY, SOURCE, kind_of

if TYPE_CHECKING:
    import pandas as pd
    from yaml import Node

PARTIAL = re.compile(r"^\..+?\.(?:(?P<host>[^.]+)\.)?(?P<pid>\d+)\.partial")
"""Names of files that are being written: by which process of which machine."""


def partial_path(path: str | Path) -> Path:
    """Return where this process writes before it moves a file or folder to ``path``; the suffix is kept."""
    path = Path(path)
    host = socket.gethostname().split(".")[0]
    return path.with_name(f".{path.stem}.{host}.{os.getpid()}.partial{path.suffix}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there when the block ends without an error.

    The temporary name keeps the suffix, so that libraries that look at it still choose the right format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, keys in the order given, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; an unreadable one is an `InputError` that names it."""
    try:
        return json.loads(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        kind = kind_of(path)
        why, fix = (kind.words, kind.fix) if kind else (str(error), None)
        raise InputError(f"is not readable as JSON ({why})", file=path, fix=fix) from error


# Inputs.

MOST_NAMES = 10_000
"""Names of a folder among which a near one is looked for."""


def regular(path: str | Path, *, missing: str = "is missing") -> Path:
    """Return the path of an ordinary file that can be read and holds something.

    Pipes and devices would be waited for, or have no end. ``missing`` is what is said where nothing is there.

    Raises
    ------
    InputError
        If nothing is there (the nearest name is guessed), or it is a folder, a pipe, a device, empty, or not readable.
    """
    path = Path(path)
    mode = mode_of(path)
    if mode is None:
        kind = kind_of(path)
        if kind is not None:
            raise InputError(kind.words, file=path, fix=kind.fix)
        leads = f": it is a link to {str(path.readlink())!r}, which is not there" if path.is_symlink() else ""
        raise InputError(f"{missing}{leads}", file=path, fix=near(path))
    if stat.S_ISDIR(mode):
        raise InputError("is a folder", file=path, expected="a file")
    refuse_pipe(path)
    if not os.access(path, os.R_OK):
        raise InputError("permission to read it is denied", file=path, fix="ask its owner for permission, or copy it")
    if not path.stat().st_size:
        raise InputError(EMPTY.words, file=path, fix=SOURCE)
    return path


def refuse_pipe(path: str | Path) -> None:
    """Refuse a pipe, a device or a socket: reading it would wait, or never end; what else is wrong is said on reading.

    Raises
    ------
    InputError
        If one is there, or the path can be none.
    """
    mode = mode_of(path)
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError("is a pipe, a device or a socket", file=path, expected="an ordinary file")


def mode_of(path: str | Path) -> int | None:
    """Return the mode of what lies at a path, links followed; None where nothing does.

    Raises
    ------
    InputError
        If the system cannot tell: a name too long, a NUL in it, a circle of links, a folder that may not be entered.
    """
    try:
        return os.stat(path).st_mode  # noqa: PTH116  a Path cannot hold every name
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise InputError("permission to look into its folder is denied", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be a path here ({error.strerror})", file=str(path)[:200]) from error
    except ValueError as error:
        raise InputError("cannot be a path: it contains a NUL character", value=str(path)[:200]) from error


def near(path: Path) -> str | None:
    """Return a guess at what was meant where nothing lies at a path: the folder that is missing, or a near name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        gone = next(parent for parent in (folder, *folder.parents) if parent.parent.is_dir())
        return near(gone) or f"there is no folder {gone}"
    try:
        names = [entry.name for _, entry in zip(range(MOST_NAMES), os.scandir(folder), strict=False)]
    except OSError:
        return None
    close = get_close_matches(path.name, names, n=1) or [name for name in names if name.lower() == path.name.lower()]
    return f"did you mean {path.parent / close[0]}?" if close else None


# Outputs.

MARKED_BYTES = 8192
"""How far from either end of a file a mark of its maker is looked for."""
ZARR = (".zgroup", ".zarray", "zarr.json")
"""Files that a folder of Zarr holds, of version 2 or 3."""


def claim(
    output: str | Path,
    *,
    field: str = "--output",
    inputs: Iterable[str | Path | None] = (),
    mine: Callable[[Path], bool] | None = None,
    overwrite: bool | None = False,
) -> Path:
    """Return a path that may be written to, before any work is done for it: nothing of somebody else lies there.

    Parameters
    ----------
    output
        Where something is to be written, a file.
    field
        The option that gave it, for the error.
    inputs
        What is read meanwhile: not replaced though it is ``mine``, under whatever name it is given (links are seen
        through).
    mine
        Whether a file's content says that the same command made it: then it may be replaced. None: it cannot say so.
    overwrite
        Replace whatever file is there; None: the command has no option that says so.

    Raises
    ------
    InputError
        If a folder, a device or an input is there, a file that is not ``mine``, or if nothing can be written there.
    """
    output = Path(output)
    mode = mode_of(output)
    if mode is None and not output.is_symlink():
        _check_room(output, field)
        return output
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError("would overwrite a folder", file=output, field=field, fix="choose another name")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError("is a pipe, a device or a socket", file=output, field=field, expected="a file")
    if not overwrite:
        fix = "choose another name" + ("" if overwrite is None else ", or add --overwrite")
        if any(same_file(output, other) for other in inputs if other is not None):
            raise InputError("would overwrite an input", file=output, field=field, fix=fix)
        if output.is_symlink():
            raise InputError("would replace a link", file=output, field=field, fix=fix)
        if mine is None or not mine(output):
            raise InputError("already exists and was not written by this command", file=output, field=field, fix=fix)
    _check_room(output, field)
    return output


def says(path: str | Path, mark: str) -> bool:
    """Return whether a file holds a mark near its beginning or its end: what a picture says of its maker."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(MARKED_BYTES)
            file.seek(max(0, file.seek(0, os.SEEK_END) - MARKED_BYTES))
            return mark.encode() in head + file.read()
    except OSError:
        return False


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to one file, by links of either sort."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _check_room(output: Path, field: str) -> None:
    """Refuse a place where nothing can be written, or nothing should: a Zarr store is one thing, as a file is."""
    store = next(
        (parent for parent in output.absolute().parents if any((parent / name).is_file() for name in ZARR)), None
    )
    if store is not None:
        raise InputError("would be written into a Zarr store", file=store, field=field, fix="choose another folder")
    there = next(parent for parent in output.absolute().parents if mode_of(parent) is not None)
    if not there.is_dir():
        raise InputError("cannot be written: one of its parent folders is a file", file=there, field=field)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError("permission to write there is denied", file=there, field=field, fix="choose another folder")


# Tables.

FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet would run, or what looks as if it had been guarded against that."""
_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
NUMBERS = re.compile(rf"{_NUMBER}((, | to ){_NUMBER})*")
"""A number, several, or a range."""


def guarded(text: Any) -> Any:
    """Return text with a quote before what a spreadsheet would run as a formula; numbers and the like as they are."""
    if isinstance(text, str) and FORMULA.match(text) and not NUMBERS.fullmatch(text):
        return f"'{text}"
    return text


def without_folders(text: str) -> str:
    """Return text for readers in which absolute paths are names of files: ``/data/a/b.h5ad`` is ``b.h5ad``."""
    return re.sub(r"(?<![^\s('\"=])(?:/[^\s/]+)+/(?=[^\s/])", "", text)


def unguarded(text: Any) -> Any:
    """Return what `guarded` was given."""
    return text[1:] if isinstance(text, str) and text.startswith("'") and FORMULA.match(text[1:]) else text


def write_table(path: str | Path, table: pd.DataFrame, **how: Any) -> None:
    """Write a table as CSV, atomically, its names and its text guarded; `read_table` gives them back.

    ``how`` goes to ``DataFrame.to_csv``.
    """
    import csv

    content = _each_text(table, guarded)
    if any("\r" in name for name in _texts(content)):  # pandas would leave it bare, where it ends a row
        how = {"quoting": csv.QUOTE_NONNUMERIC, **how}
    with atomic_path(path) as temporary:
        content.to_csv(temporary, **how)


def read_table(path: str | Path, **how: Any) -> pd.DataFrame:
    """Read what `write_table` wrote; ``how`` goes to ``pandas.read_csv``."""
    import pandas as pd

    return _each_text(pd.read_csv(path, **how), unguarded)


def _texts(table: pd.DataFrame) -> Iterator[str]:
    """Yield every text of a table: its names, and the values of its columns of text."""
    columns = [table.iloc[:, number].unique() for number, kind in enumerate(table.dtypes) if _may_be_text(kind)]
    for values in (table.index, table.columns, *columns):
        yield from (value for value in values if isinstance(value, str))


def _may_be_text(kind: Any) -> bool:
    return str(kind) in ("object", "category", "str") or str(kind).startswith("string")


def _each_text(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """Return a table with every text in it, and in its names, changed; the same one where there is none to change."""
    changed = table.copy(deep=False)
    for number, kind in enumerate(table.dtypes):
        if _may_be_text(kind):
            column = table.iloc[:, number]
            if any(change(value) is not value for value in column.unique()):
                changed.isetitem(number, column.astype(object).map(change))
    for axis in ("index", "columns"):
        names = getattr(table, axis)
        if any(change(name) is not name for name in names):
            setattr(changed, axis, names.map(change))
    return changed


YAML_BYTES, YAML_NODES, YAML_DEPTH = 2**19, 100_000, 50
"""What a YAML file may hold: bytes, values with every alias written out, and levels."""


def read_yaml(path: str | Path, what: str, *, prepare: Callable[[Node], None] | None = None) -> Any:
    """Read a YAML file that a person wrote.

    Parameters
    ----------
    what
        What errors call it, e.g. ``"study"``.
    prepare
        Is given the tree of values before they are made, and may change their tags.

    Raises
    ------
    InputError
        If it is not there, no YAML, names a key twice, or is larger or deeper than a person writes.
    """
    import yaml

    path = Path(path)
    try:
        refuse_pipe(path)
        if path.is_dir():
            raise InputError(f"{what} cannot be read (it is a folder)", file=path)
        if (size := path.stat().st_size) > YAML_BYTES:
            raise InputError(f"{what} is far too large", file=path, value=f"{size:,} bytes", expected="at most 512 KiB")
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if tree is None:
            return None
        _check_tree(tree, path, what)
        if prepare is not None:
            prepare(tree)
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(tree)
        finally:
            loader.dispose()
    except OSError as error:
        raise InputError(
            f"{what} cannot be read ({error.strerror})",
            file=path,
            fix="studies/demo.yaml is an example" if what == "study" else None,
        ) from error
    except RecursionError as error:
        raise InputError(f"{what} is nested too deeply", file=path, expected=f"at most {YAML_DEPTH} levels") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        said = " ".join(str(error).split())
        fix = "indent with spaces, not with tabs" if "'\\t'" in said else None
        raise InputError(f"{what} is not valid YAML ({said})", file=path, fix=fix) from error


def _check_tree(tree: Node, path: Path, what: str) -> None:
    """Refuse keys that are there twice, values within themselves, and more values or levels than a person writes."""
    from yaml import MappingNode, ScalarNode

    sizes: dict[int, int] = {}  # of the values below a node, which an alias makes count again

    def size(node: Node, place: tuple[str, ...]) -> int:
        where = {"file": path, "field": ".".join(place) or None}
        if len(place) > YAML_DEPTH:
            raise InputError(f"{what} is nested too deeply", file=path, expected=f"at most {YAML_DEPTH} levels")
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise InputError(f"{what} holds a value within itself", **where)
            return sizes[id(node)]
        if isinstance(node, ScalarNode):
            node.value.encode()  # half a character, which no file could be written with, is a UnicodeError
            return 1
        sizes[id(node)] = 0
        total, seen = 1, set()
        if isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(key.value) if isinstance(key, ScalarNode) else "?"
                if isinstance(key, ScalarNode) and name in seen:
                    line = key.start_mark.line + 1
                    raise InputError("key appears twice", **where, value=name, fix=f"remove one, e.g. in line {line}")
                seen.add(name)
                total += size(key, (*place, name)) + size(value, (*place, name))
        else:
            total += sum(size(value, (*place, str(number))) for number, value in enumerate(node.value))
        if total > YAML_NODES:
            raise InputError(f"{what} holds too many values, with its aliases written out", **where)
        sizes[id(node)] = total
        return total

    size(tree, ())


BLOCK = 2**20
LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")


def digest_of(path: Path, kind: str) -> str:
    """Return the checksum of a file.

    Parameters
    ----------
    kind
        ``sha256``, ``md5``, or ``git``: the SHA-1 that git names a file's content by.
    """
    made = {"sha256": hashlib.sha256, "md5": hashlib.md5, "git": hashlib.sha1}[kind]()
    if kind == "git":
        made.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            made.update(block)
    return made.hexdigest()


def matches(path: Path, published: str) -> bool:
    """Return whether a file has a published checksum ``<kind>:<hex>``."""
    kind, _, value = published.partition(":")
    return digest_of(path, kind) == value.lower()


def record(path: Path) -> str:
    """Write the SHA-256 of a file beside it, as ``sha256sum`` does, and return it."""
    value = digest_of(path, "sha256")
    write_text(record_of(path), f"{value}  {path.name}\n")
    return value


def recorded(path: Path) -> str | None:
    """Return ``sha256:<hex>`` as written beside a file, or None."""
    beside = record_of(path)
    found = LINE.match(beside.read_text(encoding="utf-8").strip()) if beside.is_file() else None
    return f"sha256:{found[1]}" if found else None


def record_of(path: Path) -> Path:
    """Return where the checksum of a file is written."""
    return path.with_name(f"{path.name}.sha256")


def check_sums(folder: str | Path) -> dict[str, str]:
    """Check every file of a folder whose SHA-256 is known there, in ``SHA256SUMS`` or ``<file>.sha256``.

    Returns
    -------
    File, relative to the folder -> ``good``, ``differs`` or ``missing``; empty where nothing is known.
    """
    folder = Path(folder)
    known: dict[str, str] = {}
    for listing in [*folder.glob("SHA256SUMS"), *sorted(folder.rglob("*.sha256"))]:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate((line for line in lines if line.strip()), start=1):
            found = LINE.match(line.strip())
            if not found:
                raise InputError(
                    f"line {number} is not a checksum",
                    file=listing,
                    value=line[:80],
                    expected="64 hexadecimal digits and a file name",
                )
            name = (listing.parent / found[2]).relative_to(folder).as_posix()
            known[name] = found[1]
    return {
        name: "missing"
        if not (folder / name).is_file()
        else "good"
        if digest_of(folder / name, "sha256") == value
        else "differs"
        for name, value in sorted(known.items())
    }
