"""Tables, however they were saved: by a pipeline, by R, by Excel, as parquet, compressed, under a wrong name."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

import numpy as np

from histocrypt.errors import InputError, reading, unreadable
from histocrypt.files import regular

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = ("\t", ";", ",")
"""In the order of trust: a tab stands in no name, and a semicolon in no number."""
BROKEN = (OSError, EOFError, zlib.error)
"""What is raised on reading a file that is broken, compressed by gzip or not."""
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
ON, OFF = ("true", "t", "yes", "y"), ("false", "f", "no", "n", "0", "0.0")
"""How tables say of a spot that it lies on tissue, or not, in lower case; numbers above 0 say so too."""


def read_table(path: Path, columns: Sequence[str], *, headless: bool = False) -> pd.DataFrame:
    """Read the named columns of a table as text.

    A byte order mark, UTF-16, quotes, ends of line of any system, blanks around values, a delimiter of comma,
    semicolon, tab or blank, a column of row names or numbers as R and pandas write, and empty columns at the end as
    Excel writes are heeded.

    Parameters
    ----------
    path
        Text, or text compressed by gzip.
    columns
        Names of columns; in another case they are these too.
    headless
        The table may have no header; then it has just these columns, in this order.

    Returns
    -------
    str of all rows: of the named columns those that are there.

    Raises
    ------
    InputError
        If the table is no text or empty, or a row is of another length.
    """
    import pandas as pd

    with opened_text(path) as file:
        lines = (line for line in file if line.strip())
        try:
            first = next(lines)
        except StopIteration:
            raise InputError("table is empty", file=path) from None
        delimiter = delimiter_of(first)
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        names = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))]
        known = {name.casefold(): name for name in columns}
        is_header = any(name.casefold() in known for name in names)
        kept: list[list[str]] = []
        if not is_header:
            if not headless:
                raise InputError("header is missing", file=path, value=first.strip()[:80], expected=", ".join(columns))
            body, names = [names], list(columns)
        else:
            names, body = [known.get(name.casefold(), name) for name in names], []
        while names and not names[-1]:
            names.pop()
        extra = 0  # cells before those that the header names
        places: list[int] | None = None

        def all_rows() -> Iterator[list[str]]:
            yield from body
            yield from rows

        for number, row in enumerate(all_rows(), start=1 + is_header):
            if not any(cell.strip() for cell in row):
                continue
            while len(row) > len(names) and not row[-1].strip():
                row.pop()
            if places is None:
                extra = int(len(row) == len(names) + 1)  # row names, which R's header does not name
                names = ["", *names] if extra else names
                if not names[0] and columns[0] not in names and row[0].strip() and not row[0].strip().isdigit():
                    names[0] = columns[0]  # what a row is called was its row name
                places = [place for place, name in enumerate(names) if name in columns]
            if len(row) != len(names):
                raise InputError(
                    f"line {number} has {len(row)} values",
                    file=path,
                    value=delimiter.join(row)[:80],
                    expected=f"{len(names)}: {', '.join(names)}",
                )
            kept.append([row[place].strip() for place in places])
    if not kept:
        raise InputError("table has no row", file=path)
    return pd.DataFrame(kept, columns=[names[place] for place in places])


def numbers(values: Sequence[str]) -> np.ndarray:
    """Return text as float64, a comma read as the decimal point; NaN where it is no number."""
    import pandas as pd

    text = pd.Series(values)
    if text.dtype == object:
        text = text.astype(str).str.replace(",", ".", regex=False)
    return pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)


def delimiter_of(line: str) -> str:
    """Return what separates the values of a line."""
    return next((sign for sign in DELIMITERS if sign in line), " " if " " in line.strip() else ",")


@contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """Open text, compressed or not, in the encoding that its byte order mark says; what fails is an `InputError`."""
    try:
        with opened_bytes(path) as file:
            mark = file.read(2)
            file.seek(0)
            encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with TextIOWrapper(file, encoding=encoding, newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=path, value=str(error), fix="save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"is not a readable table ({error})", file=path) from error
    except BROKEN as error:
        raise unreadable("cannot be read", error, file=path) from error


@contextmanager
def opened_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and what gzip packed into it if its first bytes say so: browsers unpack what they fetch."""
    opener = gzip.open if is_gzip(path) else open
    with opener(regular(path), "rb") as file:
        yield file


def is_gzip(path: Path) -> bool:
    """Return whether a file is compressed by gzip, whatever its name."""
    with regular(path).open("rb") as file:
        return file.read(2) == GZIP


def is_parquet(path: Path) -> bool:
    """Return whether a file is a table in parquet, compressed or not, whatever its name."""
    with reading("cannot be read", *BROKEN, file=path), opened_bytes(path) as file:
        return file.read(4) == PARQUET


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table in parquet, compressed or not; what fails is an `InputError`."""
    import pandas as pd

    with reading("is not readable as parquet", *BROKEN, ValueError, file=path), opened_bytes(path) as file:
        return pd.read_parquet(BytesIO(file.read()) if is_gzip(path) else path, engine="pyarrow")


def tissue_marks(values: Sequence[object]) -> np.ndarray:
    """Return what a column ``in_tissue`` says of each spot, float64: 1, 0, or NaN where it says neither."""
    import pandas as pd

    words = pd.Series(list(values), dtype=object).astype(str).str.strip().str.casefold()
    said = np.where(words.isin(ON), 1.0, np.where(words.isin(OFF), 0.0, np.nan))
    said[(pd.to_numeric(words, errors="coerce") > 0).to_numpy()] = 1.0
    return said
