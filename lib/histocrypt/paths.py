"""The only module that knows folders and reads the environment.

| variable             | default            | holds                                                |
|----------------------|--------------------|------------------------------------------------------|
| HISTOCRYPT_DATA      | ../shared/data     | real sections, never committed                       |
| HISTOCRYPT_OUTPUTS   | outputs            | one run folder per study                             |
| HISTOCRYPT_CACHE     | outputs/.cache     | frozen features, found again by content              |
| HISTOCRYPT_WEIGHTS   | none               | weights of encoders, for machines without a network  |
| HISTOCRYPT_SIGN_KEY  | none               | private key by which a study's cards are signed      |
| HF_TOKEN             | its usual file     | Hugging Face token, only for downloads that need one |
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


def repository() -> Path:
    """Return the folder that holds ``notebooks/`` and ``workflow/``: the clone, or what a wheel brought along."""
    library = Path(__file__).resolve().parent
    brought = library / "checkout"
    return brought if brought.is_dir() else library.parents[1]


def _home() -> Path:
    """Return where data and outputs lie unless told otherwise: the clone; outside one, the current folder."""
    return repository() if (repository() / "pyproject.toml").is_file() else Path.cwd()


def settle() -> None:
    """Outside a clone, tell all processes of a run where data and outputs lie: its jobs run in other folders."""
    if (repository() / "pyproject.toml").is_file():
        return
    os.environ.setdefault("HISTOCRYPT_DATA", str(data()))
    os.environ.setdefault("HISTOCRYPT_OUTPUTS", str(outputs()))


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


def data() -> Path:
    """Return the folder of real sections (it may be absent)."""
    return _folder("HISTOCRYPT_DATA", _home() / ".." / "shared" / "data")


def outputs() -> Path:
    """Return the folder that holds one run folder per study."""
    return _folder("HISTOCRYPT_OUTPUTS", _home() / "outputs")


def cache() -> Path:
    """Return the folder of recomputable, content-addressed intermediate results."""
    return _folder("HISTOCRYPT_CACHE", outputs() / ".cache")


def weights() -> Path | None:
    """Return the folder of encoders' weights (see `encoders.weights`), or None where the user names none."""
    return _folder("HISTOCRYPT_WEIGHTS", Path()) if os.environ.get("HISTOCRYPT_WEIGHTS") else None


def signing_key() -> Path | None:
    """Return the private key by which a study's service cards are signed, or None where the user names none."""
    return _folder("HISTOCRYPT_SIGN_KEY", Path()) if os.environ.get("HISTOCRYPT_SIGN_KEY") else None


def use_weights(folder: str | Path | None) -> None:
    """Take a folder that an option names for that of weights, here and in child processes; None: as it was."""
    if folder is not None:
        os.environ["HISTOCRYPT_WEIGHTS"] = str(Path(folder).expanduser().resolve())  # jobs start elsewhere


def resolve(path: str, folder: str | Path | None = None) -> Path:
    """Return a path as users write it: `data:` is HISTOCRYPT_DATA; a relative one starts at ``folder``, if given."""
    if path.startswith("data:"):
        return data() / path.removeprefix("data:")
    own = Path(path).expanduser()
    return own if folder is None else Path(os.path.normpath(Path(folder) / own))


def use_writable_caches() -> None:
    """Lead the caches of numba, matplotlib and fontconfig to a temporary folder where the usual ones cannot be written.

    They fail, or warn, on a read-only installation whose user has no home. Child processes inherit the setting.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  Path raises without a home
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    if writable:
        return
    folder = tempfile.mkdtemp(prefix="histocrypt-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("MPLCONFIGDIR", folder)
    os.environ["XDG_CACHE_HOME"] = folder
    if not os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", folder)


def threads(default: int | None = None) -> int:
    """Return the number of threads this process may use (``OMP_NUM_THREADS``, else ``default``, else all cores)."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else (default or os.cpu_count() or 1)


def hugging_face_token() -> str | None:
    """Return the user's own token for gated data sets: ``HF_TOKEN``, else where the hub's tools keep it, else None."""
    if given := os.environ.get("HF_TOKEN", "").strip():
        return given
    home = _folder("HF_HOME", Path("~/.cache/huggingface"))
    file = _folder("HF_TOKEN_PATH", home / "token")
    return (file.read_text(encoding="utf-8").strip() or None) if file.is_file() else None


def tokens() -> Path:
    """Return where `histocrypt serve` keeps its clients' tokens where nobody names a file."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  Path raises without a home
    return Path(home) / "histocrypt" / "serve.tokens"


def shipped_model() -> Path:
    """Return the folder of the small model of breast tissue that comes with the library; its card lies there."""
    return Path(__file__).resolve().parent / "shipped" / "breast"


@dataclass(frozen=True)
class RunFolder:
    """The named artifacts of one study, below ``outputs/<study>/``. Every path in a run is built here."""

    root: Path

    @classmethod
    def of(cls, study_name: str) -> RunFolder:
        """Return the run folder of a study by its name."""
        return cls(outputs() / study_name)

    @property
    def study(self) -> Path:
        """The resolved study, as last run."""
        return self.root / "study.json"

    @property
    def seen(self) -> Path:
        """Which artifacts there were when the study last ran, and which of them were found whole."""
        return self.root / ".seen.json"

    @property
    def survey(self) -> Path:
        """The study's sections as last surveyed: what the workflow knows of them."""
        return self.root / ".survey.json"

    @property
    def demo_tissue(self) -> Path:
        """The simulated sections, written as ordinary section files."""
        return self.root / "demo_tissue"

    @property
    def notebooks(self) -> Path:
        """Executed notebooks."""
        return self.root / "notebooks"

    @property
    def eda(self) -> Path:
        """What the exploration found: ``summary.json`` and figures."""
        return self.root / "eda"

    @property
    def folds(self) -> Path:
        """Who is held out when: every fold's training, validation and test sections."""
        return self.root / "folds.json"

    def section(self, section: str) -> Path:
        """Return the checked, aligned, cleaned section (raw counts)."""
        return self.root / "sections" / f"{section}.h5ad"

    def tiles(self, section: str) -> Path:
        """Return the tiles of a section (HEST-style ``.h5``, not stain-normalised)."""
        return self.root / "tiles" / f"{section}.h5"

    def stain(self, section: str) -> Path:
        """Return the stain statistics of a section, estimated from its own pixels."""
        return self.root / "stain" / f"{section}.json"

    def fold(self, fold: str) -> Path:
        """Return the folder of what was chosen on a fold's training patients: panel, target and stain statistics."""
        return self.root / "folds" / fold

    def model(self, model: str, fold: str) -> Path:
        """Return the folder of one trained model; fold ``final`` is trained on every patient."""
        return self.root / "models" / model / fold

    def imported(self, model: str, fold: str) -> Path:
        """Return the folder of a model whose weights others trained, see `pipeline.published`."""
        return self.root / "imported" / model / fold

    def prediction(self, model: str, fold: str, part: str = "test") -> Path:
        """Return the predictions of a fold's ``test`` or ``validation`` sections."""
        return self.root / "predictions" / model / f"{fold}.{part}.h5ad"

    def heads(self, model: str, fold: str, part: str = "test") -> Path:
        """Return what a multi-task model predicts beside the panel: every other gene and the tumour label."""
        return self.root / "predictions" / model / f"{fold}.{part}.heads.h5ad"

    def samples(self, model: str, fold: str) -> Path:
        """Return the samples behind a fold's test predictions, of a model that draws them."""
        return self.root / "predictions" / model / f"{fold}.samples.h5"

    def inner(self, fold: str, number: int) -> str:
        """Return the name of an inner fold; as a fold's name it gives folders and files below those of its fold."""
        return f"{fold}/inner_{number}"

    def stacking(self, fold: str) -> Path:
        """Return what is said of a fold's stack: who took part, how it was nested, what it relies on."""
        return self.root / "stacking" / f"{fold}.json"

    @property
    def evaluation(self) -> Path:
        """Score tables and figures."""
        return self.root / "evaluation"

    @property
    def viewer(self) -> Path:
        """Spots that somebody drew around in `72_viewer` and exported: tables, never read again."""
        return self.root / "viewer"

    @property
    def after(self) -> Path:
        """What people do with predictions, held against the same of measured counts: tables and figures."""
        return self.root / "after_prediction"

    @property
    def multitask(self) -> Path:
        """What a multi-task model says beyond the panel, scored: which genes carry signal, tumour, smoothing."""
        return self.root / "multitask"

    @property
    def encrypted(self) -> Path:
        """Encrypted predictions beside clear ones, by model and section."""
        return self.root / "encrypted"

    def encrypted_trial(self, model: str, section: str) -> Path:
        """Return the folder of one section's encrypted prediction by one model."""
        return self.encrypted / model / section

    @property
    def one_party(self) -> Path:
        """Predictions by one process that holds the secret key, beside clear ones, by model and section."""
        return self.root / "one_party"

    def trials(self, engine: str) -> Path:
        """Return the folder of an engine's trials (``two_party`` or ``orion``): what has one party has its own."""
        return self.one_party if engine == "orion" else self.encrypted

    def synthesis(self, fold: str) -> Path:
        """Return the folder of what was learned, drawn, filtered and tested of synthetic tiles on one fold."""
        return self.root / "synthesis" / fold

    def audit(self, fold: str) -> Path:
        """Return the folder of what was found out about the patients behind one fold's models."""
        return self.root / "audit" / fold

    @property
    def report(self) -> Path:
        """The page that people read."""
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        """What every stage printed."""
        return self.root / "logs"

    @property
    def stages(self) -> Path:
        """What every stage took: time and memory."""
        return self.logs / "stages"

    @property
    def record(self) -> Path:
        """What the runs of this study ran with and how they ended."""
        return self.root / "run.json"
