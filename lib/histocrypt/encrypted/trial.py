"""The whole way for one section, each encrypted step in a process and each party in a folder of its own, measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted.bundle import Bundle, load_bundle
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json
from histocrypt.machine import peak_gib
from histocrypt.predictors.registry import ENCRYPTED

if TYPE_CHECKING:
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

    if model not in ENCRYPTED:
        raise unknown_name("model", model, ENCRYPTED, field="model")
    folds = [load_fold(study.run.folds, fold)] if fold else load_folds(study.run.folds)
    tested = held_out_sections(folds, sys.maxsize)
    name = section or next(iter(tested), "")
    if name not in tested:
        raise unknown_name("test section", name, tested, field="section")
    (files,) = (one for one in study_sections(study) if one.id == name)
    model_folder = study.run.model(model, tested[name])
    return HeldOut(model_folder, name, files.path, files.image, files.um_per_px, tested[name])


@dataclass(frozen=True)
class Trial:
    """What the parties have in the end."""

    folder: Path
    steps: dict[str, Step]

    @property
    def bundle(self) -> Bundle:
        """The compiled model."""
        return load_bundle(self.folder / OWNER / "bundle")

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

    def ciphertext_of(self, spot: str) -> bytes:
        """Return what the evaluator got for a spot; only the hospital's own notes tell which that is."""
        (note,) = (self.folder / HOSPITAL / "keys" / "requests").glob("*.json")
        content = read_json(note)
        place = content["order"].index(content["names"].index(spot))
        return (self.request / f"{place // self.bundle.client.batch:05d}.ct").read_bytes()

    def clean(self) -> None:
        """Delete keys, ciphertexts and the compiled network; logs and the public part stay."""
        keys, secret = self.folder / HOSPITAL / "keys", self.folder / OWNER / "bundle" / "server"
        for path in (keys, secret, self.response, self.folder / EVALUATOR):
            shutil.rmtree(path, ignore_errors=True)

    def cost(self) -> dict[str, Any]:
        """Return seconds, memory and sizes under the names of ``agreement.json``."""
        evaluation = read_json(self.response / "cost.json")
        batch, peak = self.bundle.client.batch, dict.fromkeys((EVALUATOR, HOSPITAL, OWNER), 0.0)
        for step in self.steps.values():
            if step.name != "clear":
                peak[step.party] = max(peak[step.party], round(step.peak_gib, 3))
        inputs, outputs = (sorted(folder.glob("*.ct")) for folder in (self.request, self.response))
        return {
            "seconds": {
                **{name: round(step.seconds, 2) for name, step in self.steps.items() if name != "clear"},
                "load_model": evaluation["load_seconds"],
                "evaluate_per_spot": round(evaluation["seconds"] / evaluation["ciphertexts"] / batch, 4),
            },
            "workers": evaluation["workers"],
            "peak_gib": peak,
            "evaluation_keys_mib": round((self.folder / EVALUATOR / "evaluation.keys").stat().st_size / 2**20, 1),
            "ciphertext_in_mib": round(inputs[0].stat().st_size / 2**20, 3),
            "ciphertext_out_mib": round(outputs[0].stat().st_size / 2**20, 3),
            "spots_per_ciphertext": batch,
        }


def run_trial(
    model: str | Path,
    section: str | Path,
    folder: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    workers: int | None = None,
    spots: int | None = None,
) -> Trial:
    """Compile, make keys, encrypt, evaluate and decrypt one section, and predict it in the clear beside.

    Parameters
    ----------
    model
        Folder of a trained model.
    section, image, um_per_px
        As for `histocrypt predict`.
    folder
        Emptied first; gets one folder per party. What travels between them is copied, and nothing else is.
    workers
        Spots that the evaluator works on at once; all cores if not given.
    spots
        Of the section, evenly spread, that are encrypted; all if not given. In the clear all are predicted.

    Raises
    ------
    InputError
        With the sentence of the step that failed.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    owner, hospital, evaluator = (folder / name for name in (OWNER, HOSPITAL, EVALUATOR))
    for path in (owner, hospital, evaluator):
        path.mkdir(parents=True)
    source = [*(("--image", image) if image else ()), *(("--um-per-px", um_per_px) if um_per_px else ())]
    steps: dict[str, Step] = {}

    def step(name: str, party: str, *arguments: Any) -> None:
        steps[name] = run_step(name, party, arguments, folder / party)

    step("compile", OWNER, "fhe", "compile", "--model", model, "-o", owner / "bundle")
    shutil.copytree(owner / "bundle", evaluator / "bundle")
    shutil.copyfile(owner / "bundle" / "client.json", hospital / "client.json")
    step("keygen", HOSPITAL, "fhe", "keygen", "--client", hospital / "client.json", "-o", hospital / "keys")
    step(
        "encrypt",
        HOSPITAL,
        "fhe",
        "encrypt",
        section,
        "--keys",
        hospital / "keys",
        "-o",
        hospital / "request",
        *source,
        *(("--spots", spots) if spots else ()),
    )
    shutil.copyfile(hospital / "keys" / "evaluation.keys", evaluator / "evaluation.keys")
    shutil.move(hospital / "request", evaluator / "request")
    step(
        "evaluate",
        EVALUATOR,
        "fhe",
        "evaluate",
        evaluator / "request",
        "--bundle",
        evaluator / "bundle",
        "--evaluation-keys",
        evaluator / "evaluation.keys",
        "-o",
        evaluator / "response",
        *(("--workers", workers) if workers else ()),
    )
    shutil.move(evaluator / "response", hospital / "response")
    trial = Trial(folder, steps)
    step(
        "decrypt",
        HOSPITAL,
        "fhe",
        "decrypt",
        trial.response,
        "--keys",
        hospital / "keys",
        "-o",
        trial.prediction,
        "--noise",
        0,
    )
    from histocrypt.pipeline.predict import predict_section

    started = time.monotonic()
    said = predict_section(model, section, trial.clear, image=image, um_per_px=um_per_px)
    steps["clear"] = Step("clear", OWNER, time.monotonic() - started, peak_gib() or 0.0, said)
    return trial


def polynomial(model: str | Path, section: str | Path, names: np.ndarray, **source: Any) -> np.ndarray:
    """Return (n, outputs) of the compiled arithmetic in the clear and in double precision, for the named spots.

    This simulates what the evaluator computes, without encryption and so without its noise.
    """
    from histocrypt.encrypted.compile import lowered_model
    from histocrypt.encrypted.key_owner import prepare
    from histocrypt.pipeline.checkpoints import load_model

    loaded = load_model(model, device="cpu")
    described, lowered = lowered_model(loaded)
    about = {**loaded.about, **described, "input_range": [-np.inf, np.inf]}
    prepared = prepare(_Described(about), section, **source)
    row = {name: index for index, name in enumerate(prepared.names.tolist())}
    return lowered(prepared.values[[row[name] for name in names]].astype(np.float64))


@dataclass(frozen=True)
class _Described:
    about: dict[str, Any]


def run_step(name: str, party: str, arguments: tuple, folder: Path) -> Step:
    """Run one command in a process of its own; measure its wall time and its largest memory."""
    command = [sys.executable, "-m", "histocrypt", *map(str, arguments)]
    log = folder / f"{name}.log"
    started = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=folder)
        peak = 0.0
        while process.poll() is None:  # the commands say one line, which waits in the pipe
            peak = max(peak, peak_gib(process.pid) or 0.0)
            time.sleep(0.05)
        said = process.stdout.read().decode()
        process.stdout.close()
    seconds = time.monotonic() - started
    if process.returncode:
        lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines() or ["no message"]
        raise InputError(
            f"the step {name!r} of the {party.replace('_', ' ')} failed: {lines[-1].removeprefix('histocrypt: ')}",
            file=log,
        )
    return Step(name, party, seconds, peak, said.strip())
