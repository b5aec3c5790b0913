"""HEST-1k from the Hugging Face hub, section by section, with the user's own token."""

from __future__ import annotations

import re
from pathlib import Path

from histocrypt.download.catalogue import Source
from histocrypt.download.transfer import RemoteFile
from histocrypt.download.web import Web, shown
from histocrypt.errors import InputError

REPOSITORY = "datasets/MahmoodLab/hest"
NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
MAX_PAGES = 50


def names(source: Source, web: Web) -> list[str]:
    """Return the ids of all sections, as the hub lists them."""
    url = f"{source.hosts['hub']}/api/{REPOSITORY}/tree/main/st"
    found: list[str] = []
    for _ in range(MAX_PAGES):
        content, headers = web.json(url)
        found += [Path(item["path"]).stem for item in _items(content, url) if item["path"].endswith(".h5ad")]
        following = NEXT.search(headers.get("Link", ""))
        if following is None:
            return sorted(found)
        url = following[1]
    return sorted(found)


def files(source: Source, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
    """Return counts, metadata and patches of a section, and its whole slide unless ``small``.

    Large files are checked by SHA-256, others by the name that git gives their content.
    """
    wanted = [f"st/{name}.h5ad", f"metadata/{name}.json", f"patches/{name}.h5"]
    if not small:
        wanted.append(f"wsis/{name}.tif")
    url = f"{source.hosts['hub']}/api/{REPOSITORY}/paths-info/main"
    content, _ = web.json(url, method="POST", data={"paths": wanted, "expand": False})
    known = {item["path"]: item for item in _items(content, url)}
    if f"st/{name}.h5ad" not in known:
        msg = f"the hub does not list section {name}"
        raise InputError(msg, file=source.homepage)
    found = []
    for path in wanted:
        if path not in known:  # a section may lack its patches, or its slide
            continue
        large = known[path].get("lfs") or {}
        digest = f"sha256:{large['oid']}" if "oid" in large else f"git:{known[path]['oid']}"
        address = f"{source.hosts['hub']}/{REPOSITORY}/resolve/main/{path}"
        found.append(RemoteFile(address, path, int(large.get("size", known[path]["size"])), digest))
    return found


def finish(source: Source, folder: Path, name: str) -> Path:
    """Return the section file: HEST's own layout is read as it is."""
    return folder / "st" / f"{name}.h5ad"


def _items(content: object, url: str) -> list[dict]:
    if not isinstance(content, list) or not all(isinstance(item, dict) and "path" in item for item in content):
        msg = "listing is not of the expected form"
        raise InputError(msg, file=shown(url), fix="the host may have changed: see the data set's page")
    return content
