"""Before a run: what is broken or gone in its folder is found, so that the stage that made it runs again.

Snakemake asks whether what a stage wrote is older than what it was made from, not whether it is still there and whole;
and what only a finished stage would need it does not make again. So what there was is remembered by name, size and
time, and what was found whole is opened once only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from histocrypt.files import PARTIAL, write_json
from histocrypt.paths import RunFolder
from histocrypt.predictors.registry import BASELINES, STACKS
from histocrypt.study import Study

# ---- makers
# Which executed notebook stands for an artifact of the run folder.


_PREDICTED = re.compile(r"^(?P<fold>.+?)\.(?:test|validation|samples)(?:\.heads)?$")
_INNER = re.compile(r"^inner_\d+(\.|$)")


def makers(run: RunFolder, path: Path) -> list[Path] | None:
    """Return the executed notebooks whose stages make an artifact; None where no stage is known to make it.

    Parameters
    ----------
    run
        The run folder.
    path
        A file in it.

    Returns
    -------
    list of Path
        Most often one. Several stages write to ``encrypted/agreement.json`` and to the folders of inner folds; those
        of them that have not run are left out.
    """
    first, *rest = path.relative_to(run.root).parts
    names = _NAMES.get(first, lambda _: None)([*rest])
    if names is None:
        return None
    found: list[Path] = []
    for name in names:
        found += sorted(run.notebooks.glob(f"{name}.ipynb")) if "*" in name else [run.notebooks / f"{name}.ipynb"]
    return found


def wanted(study: Study, notebook: Path) -> bool:
    """Return whether an executed notebook is of a stage and a model that the study has."""
    stage, _, rest = notebook.stem.partition("__")
    model = rest.partition("__")[0]
    return {
        "30_training": model in {_family(name) for name in study.model_names},
        "32_multitask": "he2gene" in study.models,
        "34_diffusion": "stem" in study.models,
        "38_inner_training": model in {_family(name) for name in study.inner_models},
        "40_stacking": study.stacking is not None,
        "50_fhe_inference": model in study.models,
        "60_synthetic_data": study.synthesis is not None,
        "62_membership_audit": study.audit is not None,
    }.get(stage, True)


def _family(model: str) -> str:
    return "baselines" if model in BASELINES else model


def _of_fold(model: str, fold: str, *, inner: bool) -> str:
    if model in STACKS:
        return f"40_stacking__{fold}"
    return f"{'38_inner_training' if inner else '30_training'}__{_family(model)}__{fold}"


def _model(rest: list[str]) -> list[str] | None:
    if len(rest) < 3:
        return None
    model, fold, *inside = rest
    if inside == ["README.md"]:
        return ["70_evaluation"]
    return [_of_fold(model, fold, inner=bool(_INNER.match(inside[0])))]


def _prediction(rest: list[str]) -> list[str] | None:
    if len(rest) == 3 and _INNER.match(rest[2]):
        return [_of_fold(rest[0], rest[1], inner=True)]
    named = _PREDICTED.match(Path(rest[1]).stem) if len(rest) == 2 else None
    if named is None:
        return None
    return ["34_diffusion"] if ".samples" in rest[1] else [_of_fold(rest[0], named["fold"], inner=False)]


def _folds(rest: list[str]) -> list[str]:
    return [f"38_inner_training__*__{rest[0]}"] if len(rest) > 1 and _INNER.match(rest[1]) else ["22_folds"]


def _of_section(rest: list[str]) -> list[str] | None:
    return [f"20_preprocessing__{Path(rest[0]).stem}"] if len(rest) == 1 else None


def _trial(rest: list[str]) -> list[str] | None:
    if len(rest) == 1:  # all of them together
        return ["50_fhe_inference__*"]
    return [f"50_fhe_inference__{rest[0]}__{rest[1]}"] if len(rest) > 2 else None


_NAMES = {
    "demo_tissue": lambda _: ["10_eda"],
    "eda": lambda _: ["10_eda"],
    "sections": _of_section,
    "tiles": _of_section,
    "stain": _of_section,
    "folds.json": lambda _: ["22_folds"],
    "folds": _folds,
    "models": _model,
    "predictions": _prediction,
    "multitask": lambda _: ["32_multitask"],
    "stacking": lambda rest: [f"40_stacking__{Path(rest[0]).stem}"],
    "encrypted": _trial,
    "synthesis": lambda _: ["60_synthetic_data"],
    "audit": lambda _: ["62_membership_audit"],
    "evaluation": lambda rest: ["34_diffusion" if rest[0].startswith("distribution_") else "70_evaluation"],
    "report.html": lambda _: ["70_evaluation"],
    "notebooks": lambda rest: [Path(rest[0]).stem] if len(rest) == 1 else None,
}
"""Names of executed notebooks from the rest of an artifact's path, by the first part of that path."""


# ---- wholeness
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


# ---- intact


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
