"""HER2ST from its authors' repository: listed by GitHub, each file checked by the name that git gives its content."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from histocrypt.download.catalogue import HER2ST_COMMIT, Source
from histocrypt.download.st_tables import read_selection, write_section
from histocrypt.download.transfer import RemoteFile
from histocrypt.download.web import Web
from histocrypt.errors import InputError

COUNTS, SPOTS, IMAGES = "data/ST-cnts", "data/ST-spotfiles", "data/ST-imgs"


def names(source: Source, web: Web) -> list[str]:
    """Return the section names."""
    return list(source.names)


def files(source: Source, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
    """Return counts, spots and image of a section; there is no smaller image."""
    url = f"{source.hosts['api']}/git/trees/{HER2ST_COMMIT}?recursive=1"
    content, _ = web.json(url)
    try:
        listed = {item["path"]: item for item in content["tree"] if item["type"] == "blob"}
        images = [path for path in listed if _is_image(path, name)]
        wanted = {
            f"raw/{name}.tsv.gz": listed[f"{COUNTS}/{name}.tsv.gz"],
            f"raw/{name}_selection.tsv": listed[f"{SPOTS}/{name}_selection.tsv"],
            f"HER2ST_{name}.jpg": listed[images[0]] if len(images) == 1 else {},
        }
        return [
            RemoteFile(
                f"{source.hosts['raw']}/{HER2ST_COMMIT}/{item['path']}", path, int(item["size"]), f"git:{item['sha']}"
            )
            for path, item in wanted.items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"listing does not hold section {name} as expected ({error})"
        raise InputError(msg, file=url, fix="the repository may have moved: see its page") from error


def finish(source: Source, folder: Path, name: str) -> Path:
    """Write the section file."""
    return write_section(
        folder / "raw" / f"{name}.tsv.gz",
        read_selection(folder / "raw" / f"{name}_selection.tsv"),
        folder / f"HER2ST_{name}.jpg",
        folder / f"HER2ST_{name}.h5ad",
        section=f"HER2ST_{name}",
        patient=f"HER2ST_{name[0]}",
        source=source,
    )


def _is_image(path: str, name: str) -> bool:
    parts = PurePosixPath(path)
    return parts.parent.as_posix() == f"{IMAGES}/{name[0]}/{name}" and parts.suffix.lower() in {".jpg", ".jpeg"}
