"""Before a run: what is broken in its folder is found and removed, so that the stage that made it runs again.

That a file is missing Snakemake sees itself: every rule names what it makes. It does not look into files, and knows
nothing of those that a job need not write. So what there was is remembered by name, size and time; what was found whole
is not opened again.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histocrypt.errors import InputError
from histocrypt.files import PARTIAL, read_json, write_json
from histocrypt.paths import RunFolder
from histocrypt.workflow.outline import Job, Outline

NOT_DEMANDED = {"parties", "decrypted", "shadows", "last", "nnunet", "members.json", "training.safetensors"}
"""Folders and files that may go: keys, ciphertexts, who was a member, states of trainings, what nothing reads."""
NOT_ARTIFACTS = {"logs", ".snakemake"}
OLD = 24 * 3600
"""Seconds after which a half-written file of another machine is taken for left over."""
VERSION = 3

Stamps = dict[str, list[int]]
"""Size and time of files by their names in the run folder; as remembered, also whether a file was found whole."""


@dataclass(frozen=True)
class Found:
    """An artifact that has to be made again."""

    path: Path
    what: str
    """``is broken (truncated)`` or ``is gone``."""
    job: Job
    """That makes it."""


@contextmanager
def intact(outline: Outline, *, dry_run: bool = False, spare: Collection[Path] = ()) -> Iterator[list[Found]]:
    """Say and remove what is broken, run the block, and remember afterwards what is there.

    With what is broken, or is gone though no rule demands it, the executed notebook of its job is removed; Snakemake
    then runs the job again, and whatever follows from it. The caller holds the lock of the study.

    Parameters
    ----------
    outline
        Of the study; nothing outside its run folder is touched, nor what no job of it makes.
    dry_run
        Remove and remember nothing.
    spare
        Files that are left alone wherever they lie: those of the user's sections.

    Yields
    ------
    list of Found
        What is to be made again.

    Raises
    ------
    InputError
        If a file stands where a folder belongs.
    """
    run, spare = outline.run, {Path(path).resolve() for path in spare}
    for folder in {parent for path in outline.makers for parent in path.parents if run.root in parent.parents}:
        if folder.is_file():
            raise InputError("is a file where the run keeps a folder", file=folder, fix="move it away")
    known, files = _remembered(run), _artifacts(run, spare)
    found = [*_broken(outline, files, known), *_gone(outline, files, known)]
    for sentence in sentences(run, found):
        print(f"histocrypt: {sentence}", flush=True)
    if dry_run:
        yield found
        return
    for one in found:
        one.path.unlink(missing_ok=True)
        one.job.executed.unlink(missing_ok=True)
    remove_leftovers(run)
    files = _artifacts(run, spare)
    _remember(run, files, whole=set(files))
    try:
        yield found
    finally:
        now = _artifacts(run, spare)
        with suppress(OSError):  # a full disk has been said already
            _remember(run, now, whole={name for name, stamp in files.items() if now.get(name) == stamp})


def sentences(run: RunFolder, found: Iterable[Found]) -> Iterator[str]:
    """Yield one line for each job and flaw: the first file is named, others are counted."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        groups.setdefault((one.job.name, one.what), []).append(one)
    for (_, what), ones in groups.items():
        more = f" (and {len(ones) - 1} more)" if len(ones) > 1 else ""
        yield f"{_name(run, ones[0].path)} {what}{more}, made again by {' '.join(ones[0].job.words)}"


def maker_of(outline: Outline, path: Path) -> Job | None:
    """Return the job that makes a file: that names it, or owns the nearest folder; None where the study has none."""
    leaves = outline.leaves
    nearest = (leaves[folder] for folder in (path, *path.parents) if folder in leaves)
    return outline.makers.get(path) or next(nearest, None)


def _name(run: RunFolder, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _artifacts(run: RunFolder, spare: Collection[Path]) -> Stamps:
    """Return every artifact; links are not followed."""
    files: Stamps = {}
    folders = [run.root] if run.root.is_dir() else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                if entry.is_dir():
                    if entry.name not in NOT_ARTIFACTS or path.parent != run.root:
                        folders.append(path)
                elif path not in spare:
                    stat = entry.stat()
                    files[_name(run, path)] = [stat.st_size, stat.st_mtime_ns]
    return files


def _broken(outline: Outline, files: Stamps, known: Stamps) -> Iterator[Found]:
    for name, stamp in files.items():
        path = outline.run.root / name
        if known.get(name) != [*stamp, 1] and (job := maker_of(outline, path)) and (wrong := flaw(path)):
            yield Found(path, f"is broken ({wrong})", job)


def _gone(outline: Outline, files: Stamps, known: Stamps) -> Iterator[Found]:
    """Yield what is gone though its job ended well: what the table demands, and what was there when last seen."""
    demanded = {_name(outline.run, path) for path in outline.makers}
    for name in sorted((known.keys() | demanded) - files.keys()):
        path = outline.run.root / name
        job = maker_of(outline, path)
        if job is None or NOT_DEMANDED & set(Path(name).parts):
            continue
        executed = _name(outline.run, job.executed)
        # Who deletes an executed notebook wants it run again; one that ran since then left what it makes now.
        if executed in files and (name in demanded or files[executed] == known.get(executed, [])[:2]):
            yield Found(path, "is gone", job)


def tissue_flaw(run: RunFolder) -> str | None:
    """Return what is wrong with the simulated sections of a run, file first; None if they are whole or not there."""
    stamp = run.demo_tissue / "demo_tissue.json"
    if not stamp.is_file():
        return None
    if wrong := flaw(stamp):
        return f"{_name(run, stamp)} is broken ({wrong})"
    for section in json.loads(stamp.read_text(encoding="utf-8"))["sections"]:
        stem = run.demo_tissue / Path(section).stem
        for path in (stem.with_suffix(".h5ad"), stem.with_suffix(".png"), stem.with_name(f"{stem.name}_mask.png")):
            if not path.is_file():
                return f"{_name(run, path)} is gone"
            if wrong := flaw(path):
                return f"{_name(run, path)} is broken ({wrong})"
    return None


def same_under_new_rules(run: RunFolder, study: dict[str, Any]) -> bool:
    """Return whether a run folder was finished under other rules of ours, for a study that is still the same.

    What Snakemake noted of its jobs then would make all of them run again, though their files are what they were.
    """
    try:
        return read_json(run.seen)["version"] == 2 and read_json(run.study) == study
    except (InputError, KeyError, TypeError):
        return False


def moved_from(run: RunFolder) -> str | None:
    """Return where a run folder was when it was last run; None where it is there still, or nobody knows."""
    try:
        before = json.loads(run.seen.read_text(encoding="utf-8"))["root"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if before == str(run.root) else before


def follow(run: RunFolder, before: str, notes: Path) -> None:
    """Write what Snakemake noted of a run folder's jobs when it lay elsewhere as if it had always lain here.

    It finds the settings that a file was made with by the path of the file, in base64: in a folder that was moved or
    copied it would see no change of settings, and leave old results under new ones.

    Parameters
    ----------
    run
        The folder, where it is now.
    before
        Where it was.
    notes
        Folder to write the notes to.
    """
    old, longest = run.root / ".snakemake" / "metadata", os.pathconf(run.root, "PC_NAME_MAX") - 1
    here, there = (json.dumps(f"{root}/")[1:-1] for root in (run.root, before))
    for file in [path for path in old.rglob("*") if path.is_file()]:
        coded = "".join(part.removeprefix("@") for part in file.relative_to(old).parts)
        made = base64.urlsafe_b64decode(coded).decode().replace(f"{before}/", f"{run.root}/", 1)
        coded = base64.urlsafe_b64encode(made.encode()).decode()
        *folders, name = (coded[start : start + longest] for start in range(0, len(coded), longest))
        path = notes.joinpath(*(f"@{folder}" for folder in folders), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.read_text(encoding="utf-8").replace(there, here), encoding="utf-8")


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
    write_json(run.seen, {"version": VERSION, "root": str(run.root), "files": content})


# Whether a file is whole, told from little of it: a copy that stopped, a full disk and a kill leave half files.

ENDINGS = {
    ".html": b"</html>",
    ".svg": b"</svg>",
    ".png": b"IEND\xaeB`\x82",
    ".jpg": b"\xff\xd9",
    ".csv": b"\n",
    ".md": b"\n",
}
"""How whole files end, spaces apart, by suffix."""
TAIL = 64
"""Bytes read of the end of such a file."""


def flaw(path: Path) -> str | None:
    """Return what is wrong with a file in a few words; None if it is whole, or of a kind that nothing is known of.

    HDF5 and safetensors say their size in their heads, JSON and notebooks must parse, pictures, pages and tables must
    end as such files do. Bytes changed in the middle of a file are not noticed.
    """
    check = _CHECKS.get(path.suffix)
    if check is None:
        return None
    try:
        return "empty" if path.stat().st_size == 0 else check(path)
    except OSError as error:
        return _brief(error)


def _hdf5(path: Path) -> str | None:
    import h5py

    try:
        h5py.File(path, "r").close()
    except OSError as error:
        return "truncated" if "truncated" in str(error) else _brief(error)
    return None


def _safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return None
    except SafetensorError as error:
        return "truncated" if "header" in str(error) else _brief(error)


def _json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return f"truncated or not JSON: {_brief(error)}"
    executed = isinstance(content, dict) and isinstance(content.get("cells"), list)
    return "not a notebook" if path.suffix == ".ipynb" and not executed else None


def _zip(path: Path) -> str | None:
    return None if zipfile.is_zipfile(path) else "truncated"


def _ending(path: Path) -> str | None:
    wanted = ENDINGS[path.suffix]
    with path.open("rb") as file:
        file.seek(-min(TAIL, path.stat().st_size), 2)
        tail = file.read()
    return None if (tail if wanted == b"\n" else tail.rstrip()).endswith(wanted) else "truncated"


def _brief(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".h5ad": _hdf5,
    ".h5": _hdf5,
    ".safetensors": _safetensors,
    ".json": _json,
    ".ipynb": _json,
    ".npz": _zip,
    **dict.fromkeys(ENDINGS, _ending),
}
