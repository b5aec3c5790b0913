"""From names to sections on disk: what a source must do, in order, for each of its sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from histocrypt.download import hbcis, her2st, hest, visium
from histocrypt.download.catalogue import Source, accept
from histocrypt.download.transfer import Fetched, fetch, left_to_fetch, need_space
from histocrypt.download.web import Web
from histocrypt.errors import InputError, unknown_name
from histocrypt.sections.validate import SAFE_ID

MODULES: dict[str, ModuleType] = {"her2st": her2st, "hbcis": hbcis, "visium": visium, "hest": hest}
"""Each has ``names(source, web)``, ``files(source, web, name, small=)`` and ``finish(source, folder, name)``."""
NEAR = 12
"""How many names a message lists where there are too many for all."""


@dataclass(frozen=True)
class Section:
    """One section that is now on disk."""

    name: str
    path: Path
    """What a study names, and `histocrypt check`."""
    files: list[Fetched]


def section_names(source: Source, web: Web) -> list[str]:
    """Return what may be asked for; asks the host where the catalogue does not know."""
    return MODULES[source.name].names(source, web)


def download(
    source: Source,
    names: Iterable[str],
    folder: Path,
    *,
    web: Web,
    accepted: bool = False,
    small: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Section]:
    """Fetch sections into a folder, in a layout that the readers know; what is there and right is left alone.

    Parameters
    ----------
    source
        Where from; `Source.mirrored` for another address.
    names
        Sections, as `section_names` returns them.
    folder
        Where to; made if needed.
    web
        The client, with the user's token where the source is gated.
    accepted
        Whether the user accepts a licence that forbids silent use.
    small
        Leave out whole-slide images where something smaller serves: the 2000 px image of Visium, the patches of HEST.
    say
        Takes one line at a time.

    Raises
    ------
    InputError
        If the licence is not accepted, a name is unknown (near ones are listed), the disk is too small, or a file
        cannot be fetched.
    """
    accept(source, accepted=accepted)
    module, names = MODULES[source.name], list(dict.fromkeys(names))
    known = section_names(source, web)
    for name in names:
        if name not in known:
            raise _unknown(source, name, known)
        if not SAFE_ID.match(name):  # a listing may hold anything
            msg = "name of the section cannot be that of a file"
            raise InputError(msg, file=source.homepage, value=name)
    listed = {name: module.files(source, web, name, small=small) for name in names}
    needed = sum(left_to_fetch(file, folder) for files in listed.values() for file in files)
    need_space(folder, needed, ", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))
    found = []
    for name, files in listed.items():
        fetched = []
        for file in files:
            result = fetch(web, file, folder, progress=progress)
            say(f"{result.how:8} {result.path}  ({result.path.stat().st_size:,} bytes; checked: {result.checked})")
            fetched.append(result)
        found.append(Section(name, module.finish(source, folder, name), fetched))
    return found


def _unknown(source: Source, name: str, known: list[str]) -> InputError:
    """Return the error for an unknown name; where there are many names it lists the nearest only."""
    from difflib import get_close_matches

    if len(known) <= 40:
        return unknown_name(f"section of {source.name}", name, known)
    near = get_close_matches(name, known, n=NEAR, cutoff=0.5) or known[:NEAR]
    msg = f"unknown section {name!r} of {source.name}, which has {len(known)}"
    return InputError(msg, expected=f"such as {', '.join(near)}", fix=f"`histocrypt download {source.name}` lists them")
