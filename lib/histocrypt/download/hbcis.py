"""HBCIS from Mendeley Data: listed with a SHA-256 for each file; its metadata.csv says which belong together."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from histocrypt.download.catalogue import Source
from histocrypt.download.st_tables import read_coordinates, write_section
from histocrypt.download.transfer import RemoteFile, fetch
from histocrypt.download.web import Web, shown
from histocrypt.errors import InputError

VERSION = 5
METADATA = "metadata.csv"
COLUMNS = ("type", "patient", "replicate", "histology_image", "spot_coordinates", "count_matrix")


def names(source: Source, web: Web) -> list[str]:
    """Return the section names: ``<patient>_<replicate>``."""
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(web, _file(_listing(source, web), METADATA, METADATA), Path(folder), progress=False).path
        return sorted(_sections(path))


def files(source: Source, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
    """Return metadata, counts, spots and image of a section; there is no smaller image."""
    listing = _listing(source, web)
    metadata = _file(listing, METADATA, f"raw/{METADATA}")
    with tempfile.TemporaryDirectory() as folder:
        row = _sections(fetch(web, metadata, Path(folder), progress=False).path)[name]
    return [
        metadata,
        _file(listing, row["count_matrix"], f"raw/{name}.counts.tsv.gz"),
        _file(listing, row["spot_coordinates"], f"raw/{name}.spots.csv.gz"),
        _file(listing, row["histology_image"], f"HBCIS_{name}.jpg"),
    ]


def finish(source: Source, folder: Path, name: str) -> Path:
    """Write the section file."""
    row = _sections(folder / "raw" / METADATA)[name]
    return write_section(
        folder / "raw" / f"{name}.counts.tsv.gz",
        read_coordinates(folder / "raw" / f"{name}.spots.csv.gz"),
        folder / f"HBCIS_{name}.jpg",
        folder / f"HBCIS_{name}.h5ad",
        section=f"HBCIS_{name}",
        patient=f"HBCIS_{row['patient']}",
        subtype=row["type"],
        source=source,
    )


def _listing(source: Source, web: Web) -> dict[str, RemoteFile]:
    """Return every file of the data set, by name."""
    url = f"{source.hosts['api']}/files?folder_id=root&version={VERSION}"
    content, _ = web.json(url)
    try:
        return {
            item["filename"]: RemoteFile(
                item["content_details"]["download_url"],
                item["filename"],
                int(item["content_details"]["size"]),
                f"sha256:{item['content_details']['sha256_hash']}",
            )
            for item in content
        }
    except (KeyError, TypeError, ValueError) as error:
        msg = f"listing is not of the expected form ({error})"
        raise InputError(msg, file=shown(url), fix="the host may have changed: see the data set's page") from error


def _file(listing: dict[str, RemoteFile], name: str, path: str) -> RemoteFile:
    if name not in listing:
        msg = f"file {name!r} is not in the data set's listing"
        raise InputError(msg, fix="the host may have changed: see the data set's page")
    known = listing[name]
    return RemoteFile(known.url, path, known.size, known.digest)


def _sections(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of metadata.csv by ``<patient>_<replicate>``."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for column in COLUMNS:
        if not rows or column not in rows[0]:
            msg = "column is missing"
            raise InputError(msg, file=path, field=column, expected=", ".join(COLUMNS))
    return {f"{row['patient']}_{row['replicate']}": row for row in rows}
