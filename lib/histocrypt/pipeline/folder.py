"""Many slides, one model: each predicted in a process of its own, and kept as soon as it is whole.

``OUT/<id>/`` holds of each slide ``prediction.h5ad``, ``state.json`` and ``log.txt``. The state is written last: it
says what was asked, what came of it, and the checksum of the prediction. What has no state that says so is not there,
so that whoever is killed, however hard, goes on with the same command and takes nothing half for whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import connection, context, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt import __version__, paths
from histocrypt.errors import InputError
from histocrypt.files import digest_of, read_json, write_json
from histocrypt.machine import peak_gib, versions
from histocrypt.pipeline.listing import OURS, Slide
from histocrypt.trust.gate import WORDS
from histocrypt.trust.origin import refuses

FORMAT, VERSION = "histocrypt folder of slides", 1
STATE, PREDICTION, REGIONS, LOG = "state.json", "prediction.h5ad", "prediction.regions.h5ad", "log.txt"
PREDICTED, REFUSED, FAILED = "predicted", "refused", "failed"
"""How a slide ends: refused is one for which the model is not, though the slide could be read."""
FILES_NAMED = 20
"""Files of a slide that its state names one by one; a store of Zarr has thousands, and is known by all together."""
SCRATCH = "histocrypt-slides-"
"""How the temporary folder of a command begins."""
INHERITED = ("HISTOCRYPT_", "HF_", "MPL", "XDG_")
"""Which of the environment's variables a slide's process takes over."""
PRELOADED = (
    "histocrypt.pipeline.predict",
    *("anndata", "h5py", "pandas", "safetensors.numpy", "PIL.Image", "scipy.ndimage", "scipy.signal", "scipy.spatial"),
    *("skimage.color", "skimage.filters", "skimage.measure", "skimage.morphology", "sklearn.decomposition"),
)
"""What is imported once, and not for each slide; nothing that starts a thread or touches a GPU."""


@dataclass(frozen=True)
class Settings:
    """How every slide is predicted; see `pipeline.predict.predict_section`."""

    um_per_px: float | None = None
    bin_um: float | None = None
    spacing_um: float | None = None
    average_symmetries: bool | None = None
    average_windows: bool = False
    batch_size: int | None = None
    regions: str | None = None
    """A GeoJSON where there is one slide, else a folder of them, each named as its slide."""
    regions_within_um: float | None = None
    anyway: bool = False
    """Go on where the model is not for the tissue or the slide, and say so."""


@dataclass(frozen=True)
class Task:
    """One slide, as its process takes it."""

    slide: Slide
    model: Path
    folder: Path
    asked: dict[str, Any]
    settings: Settings
    scratch: str
    environment: dict[str, str]
    then: Callable[[Path], Mapping[str, Any]] | None
    otherwise: Callable[[Slide, Path], Mapping[str, Any]] | None = None
    do: Callable[[Task, list[str]], dict[str, Any]] | None = None
    """What is done in the slide's process instead of `predicted`; importable, and returns the like."""


@dataclass
class Outcome:
    """What came of all slides."""

    slides: list[dict[str, Any]] = field(default_factory=list)
    """Their states, in the order of the listing; ``kept`` says that one was there from an earlier command."""
    seconds: float = 0.0

    def ended(self, status: str) -> list[dict[str, Any]]:
        """Return the states of those that ended so."""
        return [state for state in self.slides if state["status"] == status]


def predict_slides(
    slides: list[Slide],
    output: Path,
    *,
    model: Path | None = None,
    settings: Settings,
    cores: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    then: Callable[[Path], Mapping[str, Any]] | None = None,
    otherwise: Callable[[Slide, Path], Mapping[str, Any]] | None = None,
    run: Callable[[list[Task]], Mapping[str, str]] | None = None,
) -> Outcome:
    """Predict slides, those that are not there yet as asked for, and return the state of each.

    A slide has a process of its own, so that memory does not grow with their number, and what ends one (a fault, the
    system for want of memory) ends one slide. So many run at a time as there are cores; one waits where less memory is
    free than the largest before it took.

    Parameters
    ----------
    slides
        Of `listing.slides_at`.
    output
        Folder for all: new, empty, or of an earlier command.
    model
        ``models/<name>/<fold>``; None: the model that comes with the library.
    settings
        The same for all slides.
    cores
        Cores to use; 0: all.
    overwrite
        Take a folder that holds other things.
    say
        Takes lines about how it goes.
    then
        Given a slide's folder with its prediction, in the slide's process, makes more of it, such as pictures, and
        returns what becomes part of the state; for a slide to be kept, what it names under ``files`` must be whole. It
        must be importable.
    otherwise
        The same of a slide that is not predicted: given the slide and its folder, what of it can be shown.
    run
        Runs every task somewhere else, by `work`, such as on a cluster, and returns why a slide has no state, by id;
        None: in processes of this machine.

    Raises
    ------
    InputError
        If nothing can be tried: the model is none, regions do not fit several slides, or the folder is not to be used.
    """
    from histocrypt.pipeline.checkpoints import load_model

    began, output = time.monotonic(), output.absolute()
    model = paths.shipped_model() if model is None else Path(model).absolute()
    about = load_model(model, device="cpu").about
    drawn = {slide.id: _regions_of(slide, settings, alone=len(slides) == 1) for slide in slides}
    which = {
        "name": about["model"],
        "title": about.get("title", about["model"]),
        "weights_sha256": about["weights"]["sha256"],
        "about_sha256": digest_of(model / "model.json", "sha256"),
    }
    with _taken(output, overwrite=overwrite) as scratch:
        tasks = []
        for slide in slides:
            asked = asked_of(slide, which, settings, drawn[slide.id])
            environment = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
            folder = output / slide.id
            tasks.append(Task(slide, model, folder, asked, settings, scratch, environment, then, otherwise))
        kept = {task.slide.id: state for task in tasks if (state := kept_state(task.folder, task.asked)) is not None}
        waiting = [task for task in tasks if task.slide.id not in kept]
        if kept:
            say(f"{len(kept)} of {len(tasks)} slides are there already, as asked for")
        if run is None:
            _run(waiting, cores=cores, total=len(tasks), say=say)
        elif waiting:
            why = run(waiting)
            for task in waiting:
                if not (task.folder / STATE).is_file():
                    said = why.get(task.slide.id, f"its job wrote nothing; {task.folder / LOG} may say why")
                    write_json(task.folder / STATE, _failed(task, said))
        states = [{**_state_of(task), "kept": task.slide.id in kept} for task in tasks]
    return Outcome(states, time.monotonic() - began)


def asked_of(slide: Slide, model: Mapping[str, Any], settings: Settings, regions: str | None) -> dict[str, Any]:
    """Return what is asked for one slide: where all of it is the same, what is there need not be made again."""
    files = {str(path): _stamp(path) for path in (*slide.files, *([Path(regions)] if regions else []))}
    if len(files) > FILES_NAMED:
        there = [stamp for stamp in files.values() if stamp is not None]
        files = {f"{len(files)} files": [sum(size for size, _ in there), max((time for _, time in there), default=0)]}
    plain = {name: getattr(slide, name) for name in ("path", "um_per_px", "patient", "laboratory", "image")}
    given = {name: value for name, value in asdict(settings).items() if name != "regions"}
    return {
        **plain,
        "regions": regions,
        **({"measured": slide.measured} if slide.measured else {}),
        "files": files,
        "model": dict(model),
        "settings": given,
        "histocrypt": __version__,
    }


def _stamp(path: Path) -> list[int] | None:
    """Return size and time of a file; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def kept_state(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a slide that was predicted as asked for, and whose prediction is whole; else None."""
    try:
        state = read_json(folder / STATE)
        whole = all(digest_of(folder / name, "sha256") == known for name, known in state["sha256"].items())
        same = state["status"] == PREDICTED and state["asked"] == dict(asked) and PREDICTION in state["sha256"]
    except (InputError, OSError, KeyError, TypeError, AttributeError):  # not there, or of another version
        return None
    return state if same and whole else None


def _regions_of(slide: Slide, settings: Settings, *, alone: bool) -> str | None:
    """Return the GeoJSON of a slide: as the list says, the one file where it is alone, else by its name or id."""
    from histocrypt.pipeline.regions import SUFFIXES

    if slide.regions or settings.regions is None:
        return slide.regions
    given = Path(settings.regions).absolute()
    if not given.is_dir():
        if not alone:
            raise InputError(
                "one file of regions cannot belong to several slides",
                file=given,
                field="--regions",
                expected="a folder with ID.geojson for each slide, or a column `regions` in a list",
            )
        return str(given)
    names = [f"{stem}{suffix}" for stem in (slide.id, Path(slide.path).stem) for suffix in SUFFIXES]
    return next((str(given / name) for name in names if (given / name).is_file()), None)


@contextmanager
def _taken(output: Path, *, overwrite: bool) -> Iterator[str]:
    """Take a folder for this command alone; yield a temporary folder, which goes even if the next command must do it.

    Raises
    ------
    InputError
        If somebody else's things lie there, or another command writes there now.
    """
    mark = output / OURS
    if output.exists() and not output.is_dir():
        raise InputError("is a file", file=output, field="--output", expected="a folder")
    ours = mark.is_file() and FORMAT in mark.read_text(encoding="utf-8", errors="replace")
    if output.is_dir() and not ours and any(output.glob("[!.]*")) and not overwrite:
        raise InputError(
            "is not empty, and not from this command",
            file=output,
            field="--output",
            expected="a new folder, or one that this command wrote",
            fix="choose another, or add --overwrite",
        )
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("another command is writing here", file=output, field="--output") from error
        if ours:
            with suppress(InputError, KeyError, TypeError):
                _forget(read_json(mark)["scratch"])
        scratch = tempfile.mkdtemp(prefix=SCRATCH)
        write_json(mark, {"format": FORMAT, "version": VERSION, "scratch": scratch})
        try:
            yield scratch
        finally:
            _forget(scratch)


def _forget(scratch: str) -> None:
    """Delete what a command left that was killed; only in the usual place of temporary folders."""
    path = Path(scratch)
    if path.parent == Path(tempfile.gettempdir()) and path.name.startswith(SCRATCH):
        shutil.rmtree(path, ignore_errors=True)


def _run(tasks: list[Task], *, cores: int, total: int, say: Callable[[str], None]) -> None:
    """Run every task in a process of its own, so many at a time as there are cores; states tell how they end."""
    from histocrypt.machine import usable_cores

    if cores < 0:
        raise InputError("is not a number of cores", field="--cores", value=cores, expected="1 or more; 0: all")
    workers = min(cores or usable_cores(), max(1, len(tasks)))
    method = next(name for name in ("forkserver", "spawn") if name in get_all_start_methods())
    processes, progress = get_context(method), Progress(total, len(tasks), workers)
    if method == "forkserver":
        processes.set_forkserver_preload(list(PRELOADED))
    waiting, running = deque(tasks), {}
    with _threads(max(1, (cores or usable_cores()) // workers)):
        try:
            while waiting or running:
                while waiting and len(running) < workers and (not running or _room(progress.largest_gib)):
                    task = waiting.popleft()
                    process = _start(processes, task)
                    running[process.sentinel] = (process, task, time.monotonic())
                for sentinel in connection.wait(list(running), timeout=60):
                    process, task, began = running.pop(sentinel)
                    process.join()
                    _mark_ended(task, process.exitcode)
                    say(progress.line(_state_of(task), time.monotonic() - began))
        finally:
            for process, _, _ in running.values():
                process.terminate()
            for process, task, _ in running.values():
                process.join()
                shutil.rmtree(Path(task.scratch) / task.slide.id, ignore_errors=True)


def make_way(folder: Path) -> None:
    """Remove what there is of a slide that is to be made, so that it can't be taken for the new."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (STATE, PREDICTION, REGIONS):
        (folder / name).unlink(missing_ok=True)


def _start(processes: context.BaseContext, task: Task) -> Any:
    """Start the process of a task."""
    make_way(task.folder)
    process = processes.Process(target=work, args=(task,))
    process.start()
    return process


def _room(largest_gib: float) -> bool:
    """Return whether another process as large as the largest so far fits in what memory is free."""
    import psutil

    return psutil.virtual_memory().available / 2**30 > largest_gib


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give processes that start meanwhile so many threads each, where the user gives no number."""
    if os.environ.get("OMP_NUM_THREADS"):
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@dataclass
class Progress:
    """How far it is, and how long the rest takes."""

    total: int
    to_do: int
    workers: int
    done: int = 0
    seconds: float = 0.0
    """Of all slides done, one after the other."""
    largest_gib: float = 0.0

    def line(self, state: Mapping[str, Any], seconds: float) -> str:
        """Take in a slide that ended after so many seconds, and return what to say of it."""
        self.done += 1
        self.seconds += seconds
        self.largest_gib = max(self.largest_gib, state.get("peak_gib") or 0.0)
        rest = self.to_do - self.done
        left = f"; about {duration(self.seconds / self.done * rest / self.workers)} left" if rest else ""
        number = self.total - self.to_do + self.done
        ended = f"{state['spots']} spots in {duration(seconds)}" if state["status"] == PREDICTED else brief(state)
        return f"[{number} of {self.total}] {state['id']}: {ended.rstrip('.')}{left}"


def brief(state: Mapping[str, Any]) -> str:
    """Return how a slide ended that is not predicted, and why, where its path stands beside it."""
    why = (state.get("slide") or {}).get("why", ())
    return f"{state['status']}: {'; '.join([*why, state.get('short') or state['problem']])}"


def duration(seconds: float) -> str:
    """Return ``8 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _state_of(task: Task) -> dict[str, Any]:
    """Return the state of a task that has ended."""
    return read_json(task.folder / STATE)


def _mark_ended(task: Task, code: int | None) -> None:
    """Write the state of a slide whose process could not: something ended it."""
    if (task.folder / STATE).is_file():
        return
    why = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    hint = ", as the system does where memory runs out" if code == -9 else f"; {task.folder / LOG} may say why"
    write_json(task.folder / STATE, _failed(task, f"its process was ended {why}{hint}."))
    shutil.rmtree(Path(task.scratch) / task.slide.id, ignore_errors=True)


def _failed(task: Task, problem: str, *, short: str = "") -> dict[str, Any]:
    return {**_head(task, FAILED), "problem": problem, "short": short or problem}


def _refused(error: InputError) -> dict[str, Any]:
    """Return what the state of a slide says beyond `_failed` where the model is not for it."""
    reasons = error.problem.partition(": ")[2].split("; ") if error.field == "slide" else [error.problem]
    return {"status": REFUSED, "slide": {"verdict": WORDS[-1], "why": reasons}, "short": f"{error.fix}."}


def _short(error: InputError, slide: Slide) -> str:
    """Return an error's sentence without file and field where the file is the slide's, which stands beside it."""
    own = (slide.path, slide.image, *map(str, slide.files))
    if str(error.file) not in own:
        return str(error)
    return str(InputError(error.problem, value=error.value, expected=error.expected, fix=error.fix))


def _head(task: Task, status: str) -> dict[str, Any]:
    plain = {name: getattr(task.slide, name) for name in ("id", "path", "patient", "laboratory")}
    return {
        "format": FORMAT,
        "version": VERSION,
        "status": status,
        **plain,
        "asked": task.asked,
        "made_with": versions(),
    }


# In the process of a slide.


def work(task: Task) -> None:
    """Predict one slide and write its state; whatever goes wrong becomes a sentence there."""
    _end_with_parent()
    os.environ.update(task.environment)
    scratch = Path(task.scratch) / task.slide.id
    scratch.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(scratch)
    began, notes = time.monotonic(), []
    with (task.folder / LOG).open("w", encoding="utf-8") as log:
        for stream in (1, 2):  # what libraries of C say, too
            os.dup2(log.fileno(), stream)
        try:
            found = {**_head(task, PREDICTED), **(task.do or predicted)(task, notes)}
        except InputError as error:
            found = _failed(task, str(error), short=_short(error, task.slide))
            found["error"] = {name: _plain(getattr(error, name)) for name in ("field", "value", "expected", "fix")}
            if refuses(error):
                found |= _refused(error)
        except MemoryError:
            found = _failed(task, "there is not memory enough for it on this machine.") | {"error": {"field": "memory"}}
        except OSError as error:
            traceback.print_exc()
            where = f"{error.filename}: " if error.filename else ""
            found = _failed(task, f"{where}{error.strerror or error}."[:500])
        except Exception as error:  # noqa: BLE001  the other slides go on
            traceback.print_exc()
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found = _failed(task, f"a fault of the program ({why}); {task.folder / LOG} says where.")
        if task.otherwise is not None and found["status"] != PREDICTED:
            try:
                found |= task.otherwise(task.slide, task.folder)
            except Exception:  # noqa: BLE001  nothing of it can be shown, and why it ended is known already
                traceback.print_exc()
    found |= {"notes": notes, "seconds": round(time.monotonic() - began, 1)}
    found |= {"cpu_seconds": round(time.process_time(), 1), "peak_gib": _rounded(peak_gib())}
    write_json(task.folder / STATE, found)
    shutil.rmtree(scratch, ignore_errors=True)


def _plain(value: Any) -> str | float | None:
    """Return what JSON can hold of a value that an error names."""
    plain = isinstance(value, str | int) or (isinstance(value, float) and np.isfinite(value))
    return value if value is None or plain else str(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _end_with_parent() -> None:
    """End this process when the one that waits for it is killed: what it would write, nobody asks for any more."""
    parent = parent_process()

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()


def predicted(task: Task, notes: list[str]) -> dict[str, Any]:
    """Predict a slide in its own process, say what is to be noted, and return what its state says of it."""
    from histocrypt.pipeline.inputs import GRID_UM
    from histocrypt.pipeline.predict import predict_section
    from histocrypt.pipeline.predictions import PredictionFile
    from histocrypt.sections.image import is_image

    slide, settings, regions = task.slide, task.settings, task.asked["regions"]
    if regions is None and settings.regions is not None:
        notes.append(f"no regions of it lie in {settings.regions}")
    output = task.folder / PREDICTION
    how = {name: value for name, value in asdict(settings).items() if name not in ("um_per_px", "regions")}
    if how["spacing_um"] is None and is_image(Path(slide.path)):
        how["spacing_um"] = GRID_UM
    predict_section(
        task.model,
        slide.path,
        output,
        image=slide.image,
        um_per_px=slide.um_per_px if slide.um_per_px is not None else settings.um_per_px,
        regions=regions,
        measured=slide.measured,
        name=slide.id,
        patient=slide.patient,
        laboratory=slide.laboratory,
        overwrite=True,
        say=notes.append,
        **how,
    )
    found = PredictionFile(output)
    about, more = found.about, dict(task.then(task.folder) if task.then is not None else {})
    written = [task.folder / name for name in more.pop("files", ())]
    written += [output, *([task.folder / REGIONS] if regions is not None else [])]
    return {
        "patient": ", ".join(found.patients) or None,
        "spots": found.n_spots,
        "genes": len(found.genes),
        "kind": "grid" if "points" in about else "patches" if "places" in about else "spots",
        "spacing_um": how["spacing_um"],
        "um_per_px": float(about["um_per_px"]),
        "um_per_px_source": str(about["um_per_px_source"]),
        "slide": _judged(about),
        **more,
        "sha256": {path.name: digest_of(path, "sha256") for path in written},
    }


def _judged(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the verdict on a slide, and why; None where the model could not tell."""
    if (said := about.get("slide")) is None:
        return None
    return {"verdict": str(said["verdict"]), "why": np.atleast_1d(said["why"]).astype(str).tolist()}
