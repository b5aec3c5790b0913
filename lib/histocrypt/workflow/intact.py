"""Before a run: what is broken or gone in its folder is found, so that the stage that made it runs again.

Snakemake asks whether what a stage wrote is older than what it was made from, not whether it is still there and whole;
and what only a finished stage would need it does not make again. So what there was is remembered by name, size and
time, and what was found whole is opened once only.
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
from histocrypt.study import Study
from histocrypt.workflow.makers import makers, wanted
from histocrypt.workflow.wholeness import flaw

NOT_DEMANDED = {"parties", "decrypted", "shadows", "last", "nnunet", "members.json", "training.safetensors"}
"""Folders and files that may go: keys, ciphertexts, who was a member, states of trainings, what nothing reads."""
NOT_ARTIFACTS = {"logs", ".snakemake"}
OLD = 24 * 3600
"""Seconds after which a half-written file of another machine is taken for left over."""
LONG_AGO = 1
"""Seconds since 1970: the time of an executed notebook whose stage runs again."""
VERSION = 2

Stamps = dict[str, list[int]]
"""Size and time of files by their names in the run folder; as remembered, also whether the file was found whole."""


@dataclass(frozen=True)
class Found:
    """An artifact that has to be made again."""

    path: Path
    what: str
    """``is broken (truncated)`` or ``is gone``."""
    notebooks: tuple[Path, ...]
    """The executed notebooks that stand for it."""


@contextmanager
def intact(study: Study, *, dry_run: bool = False, spare: Collection[Path] = ()) -> Iterator[list[Found]]:
    """Say and remove what is broken, run the block, and remember afterwards what is there.

    The executed notebooks that stand for what is broken or gone get a time before everything else, so that Snakemake
    runs their stages again, if they are part of the study, and whatever follows from them; until then they stay so.
    The caller holds the lock of the study.

    Parameters
    ----------
    study
        Its run folder is looked at; nothing outside it is touched.
    dry_run
        Remove and remember nothing, and put the times back when the block ends.
    spare
        Files that are left alone wherever they lie: those of the user's sections.

    Yields
    ------
    list of Found
        What is to be made again.
    """
    run, spare = study.run, {Path(path).resolve() for path in spare}
    known = _remembered(run)
    files = _artifacts(run, spare)
    found = _broken(study, files, known) + _gone(study, files, known)
    for sentence in sentences(run, found):
        print(f"histocrypt: {sentence}", flush=True)
    notebooks = list(dict.fromkeys(path for one in found for path in one.notebooks))
    if dry_run:
        with _put_back(notebooks):
            _age(notebooks)
            yield found
        return
    for path in _condemned(run, found):
        path.unlink(missing_ok=True)
    _age(notebooks)
    remove_leftovers(run)
    files = _artifacts(run, spare)
    _remember(run, files, whole=set(files))
    try:
        yield found
    finally:
        now = _artifacts(run, spare)
        # Snakemake removes what it is about to make again; where that failed, it would not try once more.
        removed = [run.root / name for name in files.keys() - now.keys() if name.startswith("notebooks/")]
        with suppress(OSError):  # a full disk has been said already
            _age([path for path in removed if wanted(study, path)])
            _remember(run, now, whole={name for name, stamp in files.items() if now.get(name) == stamp})


def _age(notebooks: list[Path]) -> None:
    """Give executed notebooks a time before everything else; an empty file stands for one that is gone."""
    for path in notebooks:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (LONG_AGO, LONG_AGO))


@contextmanager
def _put_back(notebooks: list[Path]) -> Iterator[None]:
    before = {path: path.stat() if path.exists() else None for path in notebooks}
    try:
        yield
    finally:
        for path, stat in before.items():
            if stat is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def sentences(run: RunFolder, found: list[Found]) -> Iterator[str]:
    """Yield one line for each stage and flaw: the first file is named, others of the same stage are counted."""
    groups: dict[tuple, list[Found]] = {}
    for one in found:
        if one.notebooks != (one.path,) or "broken" in one.what:  # who deletes an executed notebook wants it run again
            groups.setdefault((one.notebooks, one.what), []).append(one)
    for (notebooks, what), ones in groups.items():
        more = f" (and {len(ones) - 1} more)" if len(ones) > 1 else ""
        by = ", ".join(path.stem.replace("__", " ") for path in notebooks)
        yield f"{_name(run, ones[0].path)} {what}{more}, made again by {by}"


def _name(run: RunFolder, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _artifacts(run: RunFolder, spare: Collection[Path]) -> Stamps:
    """Return every artifact; links are not followed."""
    files: Stamps = {}
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


def _broken(study: Study, files: Stamps, known: Stamps) -> list[Found]:
    found = []
    for name, stamp in files.items():
        if known.get(name) == [*stamp, 1] or stamp == [0, LONG_AGO * 10**9]:
            continue
        path = study.run.root / name
        notebooks = [one for one in makers(study.run, path) or [] if wanted(study, one)]
        wrong = flaw(path) if notebooks else None
        if wrong:
            found.append(Found(path, f"is broken ({wrong})", tuple(notebooks)))
    return found


def _gone(study: Study, files: Stamps, known: Stamps) -> list[Found]:
    """Return what is gone although the notebook that made it is the one that was there when it was last seen."""
    found, run = [], study.run
    for name in sorted(known.keys() - files.keys()):
        path = run.root / name
        notebooks = [one for one in makers(run, path) or [] if wanted(study, one)]
        if path.exists() or NOT_DEMANDED & set(Path(name).parts):
            continue
        same = [one for one in notebooks if one == path or _is_same(_name(run, one), files, known)]
        if same:
            found.append(Found(path, "is gone", tuple(same)))
    return found


def _is_same(name: str, files: Stamps, known: Stamps) -> bool:
    return name in files and files[name] == known.get(name, [])[:2]


def _condemned(run: RunFolder, found: list[Found]) -> list[Path]:
    """Return what is not to be there any more when the run starts."""
    paths = [one.path for one in found]
    if any(path.parent == run.demo_tissue for path in paths):
        paths.append(run.demo_tissue / "demo_tissue.json")  # without it, the tissue is simulated again
    return [path for path in dict.fromkeys(paths) if path.is_file()]


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


def _remembered(run: RunFolder) -> Stamps:
    """Return what there was; nothing where that was never written down, or cannot be read."""
    try:
        content = json.loads(run.seen.read_text(encoding="utf-8"))
        return content["files"] if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(run: RunFolder, files: Stamps, *, whole: set[str]) -> None:
    content = {name: [*stamp, int(name in whole)] for name, stamp in sorted(files.items())}
    write_json(run.seen, {"version": VERSION, "files": content})
