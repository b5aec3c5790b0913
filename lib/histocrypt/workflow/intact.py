"""Before a run: what is broken or gone in its folder is found and, with the notebook that made it, made again.

Snakemake knows that a notebook ran, not that what it wrote is still there and whole. What was found whole is remembered
by size and time, so that it is opened once only.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from histocrypt.atomic import PARTIAL, write_json
from histocrypt.paths import RunFolder
from histocrypt.workflow.makers import makers
from histocrypt.workflow.wholeness import flaw

NOT_DEMANDED = {"parties", "decrypted", "shadows", "last", "nnunet", "members.json", "training.safetensors"}
"""Folders and files that may go: keys, ciphertexts, who was a member, states of trainings, what nothing reads."""
NOT_ARTIFACTS = {"logs", ".snakemake"}
OLD = 24 * 3600
"""Seconds after which a half-written file of another machine is taken for left over."""


@dataclass(frozen=True)
class Found:
    """An artifact that has to be made again."""

    path: Path
    what: str
    """``is broken (truncated)`` or ``is gone``."""
    notebooks: tuple[Path, ...]
    """The executed notebooks that stand for it."""

    def sentence(self, run: RunFolder) -> str:
        """Say it in one line."""
        by = ", ".join(path.stem.replace("__", " ") for path in self.notebooks)
        return f"{self.path.relative_to(run.root)} {self.what}, made again by {by or 'the stage that makes it'}"


@contextmanager
def intact(run: RunFolder, *, dry_run: bool = False, spare: Collection[Path] = ()) -> Iterator[list[Found]]:
    """Say and remove what is broken, then run the block, and remember afterwards what is there.

    The caller holds the lock of the study.

    Parameters
    ----------
    run
        The run folder; nothing outside it is touched.
    dry_run
        Put everything back when the block ends: only the plan of the block is to see that it has gone.
    spare
        Files that are left alone wherever they lie: those of the user's sections.

    Yields
    ------
    list of Found
        What is made again.
    """
    spare = {Path(path).resolve() for path in spare}
    known = _remembered(run)
    files = _artifacts(run, spare)
    found = _broken(run, files, known) + _gone(run, files, known)
    for one in found:
        print(f"histocrypt: {one.sentence(run)}", flush=True)
    condemned = _condemned(run, found)
    if dry_run:
        with _aside(condemned):
            yield found
        return
    for path in condemned:
        path.unlink(missing_ok=True)
        files.pop(_name(run, path), None)
    remove_leftovers(run)
    _remember(run, files, whole=set(files))
    try:
        yield found
    finally:
        with suppress(OSError):  # a full disk has been said already
            now = _artifacts(run, spare)
            _remember(run, now, whole={name for name, stamp in files.items() if now.get(name) == stamp})


def _name(run: RunFolder, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _artifacts(run: RunFolder, spare: Collection[Path]) -> dict[str, list[int]]:
    """Return size and time of every artifact by its name in the run folder; links are not followed."""
    files: dict[str, list[int]] = {}
    folders = [run.root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                if entry.is_dir():
                    if entry.name not in NOT_ARTIFACTS or Path(entry.path).parent != run.root:
                        folders.append(Path(entry.path))
                elif Path(entry.path) not in spare:
                    stat = entry.stat()
                    files[_name(run, Path(entry.path))] = [stat.st_size, stat.st_mtime_ns]
    return files


def _broken(run: RunFolder, files: dict[str, list[int]], known: dict[str, list[int]]) -> list[Found]:
    found = []
    for name, stamp in files.items():
        if known.get(name) == [*stamp, 1]:
            continue
        path = run.root / name
        notebooks = makers(run, path)
        wrong = None if notebooks is None else flaw(path)
        if wrong:
            found.append(Found(path, f"is broken ({wrong})", tuple(notebooks)))
    return found


def _gone(run: RunFolder, files: dict[str, list[int]], known: dict[str, list[int]]) -> list[Found]:
    """Return what is gone although the notebook that made it is the one that was there when it was last seen."""
    found = []
    for name in known.keys() - files.keys():
        path = run.root / name
        if path.exists() or NOT_DEMANDED & set(path.parts[len(run.root.parts) :]):
            continue
        notebooks = [one for one in makers(run, path) or [] if one != path]
        same = [one for one in notebooks if files.get(_name(run, one)) == known.get(_name(run, one), [])[:2]]
        if same:
            found.append(Found(path, "is gone", tuple(same)))
    return sorted(found, key=lambda one: one.path)


def _condemned(run: RunFolder, found: list[Found]) -> list[Path]:
    """Return what must not be there for Snakemake to make everything again."""
    paths = [path for one in found for path in (one.path, *one.notebooks)]
    if any(path.parent == run.demo_tissue for path in paths):
        paths.append(run.demo_tissue / "demo_tissue.json")  # without it, the tissue is simulated again
    if run.notebooks / "10_eda.ipynb" in paths:
        paths.append(run.eda / "summary.json")  # the workflow reads it before anything has run
    return [path for path in dict.fromkeys(paths) if path.is_file()]


@contextmanager
def _aside(paths: list[Path]) -> Iterator[None]:
    moved = {path: path.with_name(f".{path.name}.aside") for path in paths}
    try:
        for path, hidden in moved.items():
            path.rename(hidden)
        yield
    finally:
        for path, hidden in moved.items():
            if hidden.exists():
                hidden.rename(path)


def remove_leftovers(run: RunFolder) -> list[Path]:
    """Remove what killed processes were writing, and return it; what a living process writes stays."""
    gone = []
    for path in run.root.rglob(".*.partial*"):
        named = PARTIAL.match(path.name)
        if named is None or path.is_symlink():
            continue
        if named["host"] in (None, socket.gethostname().split(".")[0]):
            left = not _alive(int(named["pid"]))
        else:
            left = time.time() - path.stat().st_mtime > OLD
        if left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            gone.append(path)
    return gone


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remembered(run: RunFolder) -> dict[str, list[int]]:
    """Return size, time and whether it was found whole, by name; nothing where that was never written down."""
    try:
        content = json.loads(run.seen.read_text(encoding="utf-8"))
        return content["files"] if content["version"] == 1 else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(run: RunFolder, files: dict[str, list[int]], *, whole: set[str]) -> None:
    if run.root.is_dir():
        content = {name: [*stamp, int(name in whole)] for name, stamp in sorted(files.items())}
        write_json(run.seen, {"version": 1, "files": content})
