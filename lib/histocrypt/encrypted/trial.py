"""The whole way for one section, each encrypted step in a process and each party in a folder of its own, measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted.bundle import Bundle, load_bundle
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json
from histocrypt.machine import peak_gib
from histocrypt.predictors.registry import BOOTSTRAPPED, ENCRYPTED

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.encrypted.lowering import Lowered
    from histocrypt.encrypted.prepare import Prepared
    from histocrypt.encrypted.single import Client
    from histocrypt.pipeline.checkpoints import TrainedModel
    from histocrypt.study import Study

OWNER, HOSPITAL, EVALUATOR = "model_owner", "hospital", "evaluator"


@dataclass(frozen=True)
class Step:
    """One command of one party."""

    name: str
    party: str
    seconds: float
    peak_gib: float
    """Largest memory; 0 where the system does not tell of other processes."""
    said: str
    cpu_seconds: float = 0.0
    """Of all threads; 0 where the system does not tell."""


@dataclass(frozen=True)
class HeldOut:
    """A trained model of a study, and a section that it never saw."""

    model: Path
    section: str
    path: Path
    """The section's file."""
    image: Path | None
    um_per_px: float | None
    fold: str


def held_out(study: Study, model: str, *, fold: str = "", section: str = "") -> HeldOut:
    """Return a model of one fold and one of the sections that the fold tests.

    Where no fold is named it is the one that tests the section; where no section is, the first of the (first) fold.

    Raises
    ------
    InputError
        If the model cannot be evaluated encrypted, or the section is not tested by the fold, or by any.
    """
    from histocrypt.data.folds import held_out_sections, load_fold, load_folds
    from histocrypt.explore.survey import study_sections

    if model not in (able := (*ENCRYPTED, *BOOTSTRAPPED)):
        raise unknown_name("model", model, able, field="model")
    folds = [load_fold(study.run.folds, fold)] if fold else load_folds(study.run.folds)
    tested = held_out_sections(folds, sys.maxsize)
    name = section or next(iter(tested), "")
    if name not in tested:
        raise unknown_name("test section", name, tested, field="section")
    (files,) = (source for source in study_sections(study) if source.id == name)
    model_folder = study.run.model(model, tested[name])
    return HeldOut(model_folder, name, files.path, files.image, files.um_per_px, tested[name])


@dataclass(frozen=True)
class Trial:
    """The folders of the parties, what travels between them, and what every step took."""

    folder: Path
    workers: int | None = None
    """Spots that the evaluator works on at once; all cores if not given."""
    steps: dict[str, Step] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: str | Path, *, workers: int | None = None) -> Trial:
        """Empty a folder, and make one in it for each party."""
        folder = Path(folder).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        for party in (OWNER, HOSPITAL, EVALUATOR):
            (folder / party).mkdir(parents=True)
        return cls(folder, workers)

    @property
    def bundle(self) -> Bundle:
        """The compiled model."""
        return load_bundle(self.folder / OWNER / "bundle")

    @property
    def keys(self) -> Path:
        """The hospital's keys."""
        return self.folder / HOSPITAL / "keys"

    @property
    def request(self) -> Path:
        """The ciphertexts that the evaluator got."""
        return self.folder / EVALUATOR / "request"

    @property
    def response(self) -> Path:
        """The ciphertexts that the hospital got back."""
        return self.folder / HOSPITAL / "response"

    @property
    def prediction(self) -> Path:
        """What the hospital decrypted, without noise: for comparison, not for sharing."""
        return self.folder / HOSPITAL / "prediction.h5ad"

    @property
    def clear(self) -> Path:
        """What the model predicts in the clear."""
        return self.folder / OWNER / "clear.h5ad"

    def run(self, party: str, verb: str, *arguments: Any) -> Step:
        """Run a verb of ``histocrypt fhe`` in a process and the folder of a party; measure wall time and memory.

        Raises
        ------
        InputError
            With the last line that the command said.
        """
        command = [sys.executable, "-m", "histocrypt", "fhe", verb, *map(str, arguments)]
        log, started, peak = self.folder / party / f"{verb}.log", time.monotonic(), 0.0
        before = _cpu_of_children()
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=log.parent) as process,
        ):
            while process.poll() is None:  # the commands say one line, which waits in the pipe
                peak = max(peak, peak_gib(process.pid) or 0.0)
                time.sleep(0.05)
            said = process.stdout.read().decode().strip()
        if process.returncode:
            lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines() or ["no message"]
            last, whose = lines[-1].removeprefix("histocrypt: "), party.replace("_", " ")
            raise InputError(f"the step {verb!r} of the {whose} failed: {last}", file=log)
        self.steps[verb] = Step(verb, party, time.monotonic() - started, peak, said, _cpu_of_children() - before)
        return self.steps[verb]

    def table(self) -> pd.DataFrame:
        """Return who did each step, and what it took."""
        import pandas as pd

        steps = pd.DataFrame([vars(step) for step in self.steps.values()]).set_index("name")
        columns = {"party": "party", "seconds": "s", "cpu_seconds": "CPU s", "peak_gib": "peak memory, GiB"}
        return steps[list(columns)].rename(columns=columns).rename_axis("step").round(2)

    def held(self) -> pd.DataFrame:
        """Return what lies in each party's folder: how many files, ciphertexts among them, and their MiB."""
        import pandas as pd

        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        rows = [
            (path.relative_to(self.folder).parts[0], path.suffix == ".ct", path.stat().st_size / 2**20)
            for path in files
        ]
        table = pd.DataFrame(rows, columns=["party", "ciphertexts", "MiB"])
        return table.groupby("party").agg(files=("MiB", "size"), ciphertexts=("ciphertexts", "sum"), MiB=("MiB", "sum"))

    @property
    def form(self) -> Client:
        """The form in which the hospital's keys were made."""
        from histocrypt.encrypted.key_owner import Keys

        return Keys(self.keys).client

    def set_up(self, model: str | Path) -> None:
        """Compile a trained model; hand over what each party gets."""
        owner, hospital, evaluator = (self.folder / party for party in (OWNER, HOSPITAL, EVALUATOR))
        self.run(OWNER, "compile", "--model", Path(model).resolve(), "-o", owner / "bundle")
        shutil.copytree(owner / "bundle", evaluator / "bundle", copy_function=_hand_over)
        shutil.copyfile(owner / "bundle" / "client.json", hospital / "client.json")

    def make_keys(self, spots: int | None = None) -> None:
        """Make the hospital's keys for its next section, of so many spots, and hand the evaluation keys over."""
        shutil.rmtree(self.keys, ignore_errors=True)
        about = ("--client", self.folder / HOSPITAL / "client.json", "-o", self.keys)
        self.run(HOSPITAL, "keygen", *about, *(("--spots", spots) if spots else ()))
        _hand_over(self.keys / "evaluation.keys", self.folder / EVALUATOR / "evaluation.keys")

    def evaluate(self, request: Path, response: Path) -> Step:
        """Evaluate a request that the evaluator has, and hand the response to the hospital."""
        there = self.folder / EVALUATOR
        keys = ("--bundle", there / "bundle", "--evaluation-keys", there / "evaluation.keys")
        workers = ("--workers", self.workers) if self.workers else ()
        step = self.run(EVALUATOR, "evaluate", request, *keys, "-o", there / response.name, *workers)
        shutil.move(there / response.name, response)
        return step

    def ciphertext_of(self, spot: str) -> bytes:
        """Return the message in which the evaluator got a spot; only the hospital's own notes tell which that is."""
        (note,) = (self.keys / "requests").glob("*.json")
        content = read_json(note)
        place = content["order"].index(content["names"].index(spot))
        return (self.request / f"{place // self.form.places:05d}.ct").read_bytes()

    def clean(self) -> None:
        """Delete keys, ciphertexts and the compiled network; logs and the public part stay."""
        gone = (self.keys, self.folder / OWNER / "bundle" / "server", self.folder / EVALUATOR)
        for path in (*gone, *self.response.parent.glob("*response")):
            shutil.rmtree(path, ignore_errors=True)

    def cost(self) -> dict[str, Any]:
        """Return seconds, memory and sizes under the names of ``agreement.json``."""
        evaluation = read_json(self.response / "cost.json")
        (note,) = (self.keys / "requests").glob("*.json")
        content, encrypted = read_json(note), [step for step in self.steps.values() if step.name != "clear"]
        inputs, outputs = (sorted(folder.glob("*.ct")) for folder in (self.request, self.response))
        return {
            "seconds": {
                **{step.name: round(step.seconds, 2) for step in encrypted},
                "load_model": evaluation["load_seconds"],
                "evaluate_per_spot": round(evaluation["seconds"] / len(content["names"]), 4),
            },
            "cpu_seconds": {
                **{step.name: round(step.cpu_seconds, 2) for step in encrypted},
                "evaluate_per_spot": round(evaluation["cpu_seconds"] / len(content["names"]), 4),
            },
            "workers": evaluation["workers"],
            "peak_gib": {
                party: max(round(step.peak_gib, 3) for step in encrypted if step.party == party)
                for party in (EVALUATOR, HOSPITAL, OWNER)
            },
            "evaluation_keys_mib": round((self.folder / EVALUATOR / "evaluation.keys").stat().st_size / 2**20, 1),
            "message_in_mib": round(inputs[0].stat().st_size / 2**20, 3),
            "message_out_mib": round(outputs[0].stat().st_size / 2**20, 3),
            "form": self.form.form,
            "spots_per_message": self.form.places,
        }


def _hand_over(source: str | Path, target: str | Path) -> None:
    """Give a file to another party: by a link where the disk has them, since keys and networks may have gigabytes."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run_trial(
    model: str | Path,
    section: str | Path,
    folder: str | Path,
    *,
    workers: int | None = None,
    spots: int | None = None,
    anyway: bool = False,
    **source: Any,
) -> Trial:
    """Compile, make keys, encrypt, evaluate and decrypt one section, and predict it in the clear beside.

    Parameters
    ----------
    model
        Folder of a trained model.
    section
        As for `histocrypt predict`; so are ``image`` and ``um_per_px`` of ``source``.
    folder
        Emptied first; gets one folder per party. What travels between them is copied, and nothing else is.
    workers
        Spots that the evaluator works on at once; all cores if not given.
    spots
        Of the section, evenly spread, that are encrypted; all if not given. In the clear all are predicted.
    anyway
        Go on where the model does not fit the tissue or the slide, as for a section of the model's own study.

    Raises
    ------
    InputError
        With the sentence of the step that failed.
    """
    from histocrypt.pipeline.predict import predict_section

    trial = Trial.begin(folder, workers=workers)
    trial.set_up(model)
    trial.make_keys(spots)
    options = {"--image": source.get("image"), "--um-per-px": source.get("um_per_px"), "--spots": spots}
    given = [part for name, value in options.items() if value for part in (name, value)]
    given += ["--anyway"] if anyway else []
    hospital = trial.folder / HOSPITAL
    trial.run(HOSPITAL, "encrypt", Path(section).resolve(), "--keys", trial.keys, "-o", hospital / "request", *given)
    shutil.move(hospital / "request", trial.request)
    trial.evaluate(trial.request, trial.response)
    trial.run(HOSPITAL, "decrypt", trial.response, "--keys", trial.keys, "-o", trial.prediction, "--noise", 0)
    started, used = time.monotonic(), time.process_time()
    said = predict_section(model, section, trial.clear, anyway=anyway, **source)
    took = time.monotonic() - started
    trial.steps["clear"] = Step("clear", OWNER, took, peak_gib() or 0.0, said, time.process_time() - used)
    return trial


def polynomial(
    model: str | Path, section: str | Path, names: np.ndarray, **source: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network sees of the named spots, and the compiled arithmetic on it, in double precision.

    This simulates what the evaluator computes, without encryption and so without its noise.

    Returns
    -------
    inputs
        (n, 3, side, side) or (n, features) float32.
    outputs
        (n, outputs) float64.
    """
    from histocrypt.pipeline.checkpoints import load_model

    how = {**source, "anyway": True}  # the spots are predicted already
    prepared, lowered = prepared_clear(load_model(model, device="cpu"), section, **how)
    row = {name: index for index, name in enumerate(prepared.names.tolist())}
    inputs = prepared.values[[row[name] for name in names]]
    return inputs, lowered(inputs.astype(np.float64))


def prepared_clear(loaded: TrainedModel, section: str | Path, **how: Any) -> tuple[Prepared, Lowered]:
    """Return a section's spots as the network sees them, of any range, and the network; ``how`` goes to `prepare`."""
    from histocrypt.encrypted.compile import lowered_model
    from histocrypt.encrypted.prepare import prepare
    from histocrypt.encrypted.resnet.bundle import RESIDUAL, lowered_residual

    described, lowered = (lowered_residual if loaded.about["model"] in RESIDUAL else lowered_model)(loaded)
    about = {**loaded.about, **described, "input_range": [-np.inf, np.inf]}
    return prepare(_Described(about), section, **how), lowered


def _cpu_of_children() -> float:
    """Return the CPU seconds of the processes that this one started and that have ended; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class _Described:
    about: dict[str, Any]
