"""Runs what README and documentation tell a reader to type, one command after another, and prints a table of them.

    python benchmarks/doc_commands.py FOLDER [--outputs outputs] [--only TEXT] [--limit 300] [--list]

Commands are read from fenced shell blocks and from inline code; each distinct one runs once, in ``FOLDER``, with
values for the names in capitals (`values`). ``--outputs`` holds finished runs, which are copied: of the demo study, and
of ``studies/breast_unseen.yaml`` for the commands that ask for it. The table says why a command does not run.
``tests/docs/test_commands.py`` parses all of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")
SHELLS = ("", "bash", "sh", "console")
OUTSIDE = {"apt-get", "curl", "docker", "hf", "mkdir", "pip", "pre-commit", "sbatch", "source", "sudo", "xdg-open"}
"""Programs of others that the documentation names."""
OWN = {"histocrypt", "python", "bash", "papermill", "pytest", "make", "sphinx-build"}
NOT_COMMANDS = {"histocrypt service card"}  # what a signature begins with
SERVERS = ("serve", "fhe serve")
MENTIONED = (
    r"histocrypt (run|score|map|export|import-weights|check|fhe( \w+)?|"
    r"predict( FOLDER| SLIDE| SECTION --measured \S+)?)"
)
LINE = re.compile(r"^(?:[A-Z]+=\S+\s+)?(?:sudo\s+)?((?:\S*/)?[\w.-]+)(?:\s|$)")


@dataclass(frozen=True)
class Command:
    """A command as it is written, and where."""

    page: str
    line: int
    text: str
    fenced: bool

    @property
    def words(self) -> list[str]:
        """The words, without optional brackets; of alternatives the first."""
        text = re.sub(r"\\?\|\S+", "", self.text) if " | " not in self.text else self.text
        text = re.sub(r"(?<![\w$\"'(])\[+|\]+(?=[\s\]]|$)", "", text)
        words = [word.removesuffix("...") for word in shlex.split(text, comments=True)]
        return [word.rsplit("/", 1)[-1] if word.startswith("venv/bin/") else word for word in words if word]

    @property
    def synopsis(self) -> bool:
        """Whether parts are optional or left out, so that the line shows a form and cannot be typed as it stands."""
        return bool(re.search(r"(^|\s)\[|\.\.\.|\\\||<\w+>", self.text))

    @property
    def mention(self) -> bool:
        """Whether prose names a command without what it needs."""
        return not self.fenced and bool(re.fullmatch(MENTIONED, self.text))


def commands(root: Path = ROOT) -> list[Command]:
    """Return every command of the pages, in their order."""
    found = []
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            text = page.read_text(encoding="utf-8")
            name = page.relative_to(root).as_posix()
            said = [(*one, True) for one in _fenced(text)] + [(*one, False) for one in _inline(text, root)]
            for line, words, fenced in sorted(said):
                found += [Command(name, line, one, fenced) for one in _split(words)]
    return found


def distinct(found: list[Command]) -> list[Command]:
    """Return each command once, where it stands first; one in a block is a line to type."""
    first: dict[str, Command] = {}
    for one in found:
        if one.text not in first or (one.fenced and not first[one.text].fenced):
            first[one.text] = one
    return list(first.values())


def _fenced(text: str) -> Iterator[tuple[int, str]]:
    for block in re.finditer(r"^```([a-z]*)[ ]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if block[1] not in SHELLS:
            continue
        first, said = text[: block.start(2)].count("\n") + 1, ""
        for i, line in enumerate(block[2].splitlines()):
            said += line.removesuffix("\\")
            if not line.endswith("\\"):
                if block[1] or _program(said) in OWN | OUTSIDE:
                    yield first + i, said.strip()
                said = ""


def _inline(text: str, root: Path) -> Iterator[tuple[int, str]]:
    bare = re.sub(r"^```.*?^```", lambda one: "\n" * one[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    for said in re.finditer(r"(?<!`)`([^`]+)`(?!`)", bare):
        words = " ".join(said[1].split())
        if re.match(r"\w+\.py\s", words) and (root / "benchmarks" / words.split()[0]).is_file():
            words = f"python benchmarks/{words}"
        if _program(words) in OWN and " " in words and words not in NOT_COMMANDS:
            yield bare[: said.start()].count("\n") + 1, words


def _program(line: str) -> str:
    found = LINE.match(line)
    return found[1].removeprefix("venv/bin/") if found else ""


def _split(said: str) -> Iterator[str]:
    """Yield the commands of a line without comments and settings: those joined by ``&&`` are several."""
    said = re.sub(r"(^|\s)#.*", "", said)
    for one in said.split(" && "):
        if one.strip() and not re.fullmatch(r"[A-Z]+=.*", one.strip()):
            yield one.strip()


REASONS = (
    (r"^(sudo )?docker |tests/docker|nvidia-smi", "needs Docker"),
    (r"^(sudo |apt-get|source |mkdir )|install-completion", "changes the machine or the shell, not HistoCrypt"),
    (
        r"^(pip|pre-commit) |^bash install_host.sh( demo| test)?$",
        "installs from the network; CI and a bare machine do it",
    ),
    (r"^histocrypt download \S|^hf ", "downloads public sections"),
    (r"hest-bench|hest_task", "needs data behind a licence, and a token of one's own"),
    (r"slurm|^sbatch", "needs a SLURM cluster; pytest -m slow tests/workflow/slurm starts one"),
    (r"^(xdg-open|curl) ", "a person's program; tests/serve asks the service the same"),
    (r"(^|python -m )pytest|^bash tests/nightly.sh", "the tests themselves"),
    (r"^make docs", "builds the site; pytest -m slow tests/docs does it"),
    (r"run studies/(breast|demo_full)", "trains on the real or the full study: hours"),
    (
        r"run studies/demo.yaml( --until (60|62|64)\S+)?$",
        "the demo study: seven to fifteen minutes; install_host.sh demo",
    ),
    (
        r"outputs/breast|fold_HER2ST_C_BT5714|unseen_figure|studies/breast_unseen|model_table.py (breast|demo_)",
        "needs a finished run of the real study",
    ),
    (r"--until 32_multitask", "needs a study with he2gene; the demo study runs this notebook"),
    (r"-p truth ", "needs measured counts of the slide; the demo study runs this notebook with them"),
    (r"map OUT.h5ad --gene EPCAM", "needs a finished run of the real study"),
    (r"fhe_resnet18", "12 GiB of disk, half an hour"),
    (
        r"import-weights epoch.pth",
        "needs weights of another program; tests/training/test_hackathon_study.py makes them",
    ),
    (
        r"^histocrypt (trust|audit|compare|score) ",
        "needs predictions of others; tests/evaluation and tests/audit make them",
    ),
)
"""Why a command is not run here, by what it says; the first that matches."""
REAL, LONG = "breast_unseen", r"^histocrypt run|embeddings.py"
"""A study whose commands run where ``--outputs`` holds it, but for the long ones."""
SHORT = re.compile(
    r"benchmarks/(model_table|privacy_table|compare_runs|resources|preprocess_section|public_gate|ring_context|"
    r"registration|overlay_figure|unseen_figure)\.py(?!.*breast)"
)
"""Benchmarks that take a minute or two."""


def reason(command: Command, outputs: Path) -> str:
    """Return why a command does not run with these finished runs; empty where it does."""
    if command.synopsis or command.mention:
        return "a form or a name, not a line to type: it is parsed"
    if REAL in command.text and not re.search(LONG, command.text) and (outputs / REAL).exists():
        return ""
    for pattern, why in REASONS:
        if re.search(pattern, command.text):
            return why
    if "benchmarks/" in command.text and not SHORT.search(command.text):
        return "a benchmark of minutes to hours: its page says what it took"
    return ""


def values(folder: Path, data: Path) -> dict[str, str]:
    """Return what names in capitals stand for here; what is not there yet is made: tissue of the demo, a slide."""
    tissue, slide = folder / "tissue", folder / "slides" / "slide.tif"
    if not list(tissue.glob("*.h5ad")):
        _started(["histocrypt", "demo-tissue", tissue, "--sections", "3"], folder).wait()
    section = sorted(tissue.glob("*.h5ad"))[0]
    if not slide.is_file():
        _write_slide(data / "HER2ST_B4.jpg", slide)
    study = folder / "mine.yaml"
    study.write_text(
        f"name: mine\nsections:\n  - path: {tissue}/*.h5ad\npanel: {{method: hvg, size: 20}}\nmodels: {{}}\n"
    )
    pictures = dict.fromkeys(("SLIDE", "SLIDE.svs", "SLIDE.jpg"), slide)
    pictures |= dict.fromkeys(("SLIDES/", "FOLDER"), slide.parent)
    sections = dict.fromkeys(("SECTION", "SECTION.h5ad", "PATH"), section)
    studies = dict.fromkeys(("STUDY.yaml", "studies/mine.yaml"), study)
    runs = {"STUDY": "demo", "RUN": "outputs/demo", "OTHER": "outputs/demo", "A": "demo", "B": "demo", "breast": "demo"}
    names = {
        "ID": slide.stem,
        "ID.geojson": f"{slide.stem}.geojson",
        "client.json": "bundle/client.json",
        "NAME": "hospital-b",
        "WEIGHTS": ".",
        "PNG": "figure.png",
        "F": "tokens",
        "UM": "0.688",
        "GEOJSON": f"{slide.stem}.geojson",
    }
    return {name: str(value) for name, value in (pictures | sections | studies | runs | names).items()}


def _write_slide(picture: Path, slide: Path) -> None:
    """Write a part of a real section as a slide that states its resolution."""
    import numpy as np
    import tifffile
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    slide.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as whole:
        pixels = np.asarray(whole.crop((2500, 2500, 5700, 5700)).convert("RGB"))
    per_cm = 1e4 / 0.688
    tifffile.imwrite(slide, pixels, tile=(256, 256), compression="zlib", resolution=(per_cm, per_cm), resolutionunit=3)


def _started(words: list[str | Path], folder: Path, out: TextIO | None = None) -> subprocess.Popen:
    """Start a command as a shell in ``folder`` would; the library is this repository's."""
    program, *rest = map(str, words)
    beside = Path(sys.executable).parent / program
    own = {"histocrypt": [sys.executable, "-m", "histocrypt"], "python": [sys.executable]}
    command = [*own.get(program, [str(beside) if beside.is_file() else program]), *rest]
    given = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
    return subprocess.Popen(command, cwd=folder, env=_environment(folder), **given)


def _end(process: subprocess.Popen) -> None:
    """End a command with all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            continue


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "HISTOCRYPT_OUTPUTS": str(folder / "outputs")}


def run(command: Command, folder: Path, known: dict[str, str], limit: float) -> tuple[str, float]:
    """Run one command; return its exit code, or what else became of it, and seconds."""
    words = [known.get(word, re.sub(r"/ID/", f"/{known['ID']}/", word)) for word in command.words]
    if "demo-tissue" in words:
        words = ["made" if word == known["FOLDER"] else word for word in words]
    log = folder / "logs" / f"{command.page.replace('/', '_')}_{command.line}.log"
    began = time.monotonic()
    with log.open("w") as out:
        print(shlex.join(words), file=out, flush=True)
        process = _started(words, folder, out)
        if " ".join(words[1:]).startswith(SERVERS):
            STARTED.append(process)
            said = _listens(process, log, limit)
        else:
            try:
                said = str(process.wait(limit))
            except subprocess.TimeoutExpired:
                _end(process)
                said = f"stopped after {limit:g} s"
    return said, time.monotonic() - began


STARTED: list[subprocess.Popen] = []
"""Servers, for the commands that follow."""


def _listens(server: subprocess.Popen, log: Path, limit: float) -> str:
    """Return 0 once a server has said its address."""
    until = time.monotonic() + limit
    while time.monotonic() < until and server.poll() is None:
        if "http://" in log.read_text(encoding="utf-8"):
            return "0"
        time.sleep(0.5)
    return f"stopped after {limit:g} s" if server.poll() is None else str(server.poll())


def main() -> int:
    """Print the table; exit with 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="scratch; what is there is used again")
    parser.add_argument(
        "--outputs", type=Path, default=ROOT / "outputs", help="with finished runs: demo, breast_unseen"
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOCRYPT_DATA", ROOT / "data")))
    parser.add_argument("--only", default="", help="only commands that contain this text")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one command")
    parser.add_argument("--list", action="store_true", help="run nothing, print what would run and why not")
    given = parser.parse_args()
    folder = given.folder.resolve()
    todo = [one for one in distinct(commands()) if given.only in one.text]
    todo.sort(key=lambda one: " pred.h5ad" in one.text.replace("-o pred.h5ad", ""))  # last, once it is there
    if not given.list:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "docs", folder / "docs", dirs_exist_ok=True)  # commands write pictures there
        for name in ("benchmarks", "notebooks", "studies", "install_host.sh", "lib", "requirements.lock"):
            if not (folder / name).exists():
                (folder / name).symlink_to(ROOT / name)
        for name in ("demo", REAL):
            if (given.outputs / name).exists() and not (folder / "outputs" / name).exists():
                shutil.copytree(given.outputs / name, folder / "outputs" / name, symlinks=True)
        known = values(folder, given.data)
    print("| page | command | seconds | exit code, or why it does not run |\n|---|---|---|---|")
    failed = ran = 0
    try:
        for one in todo:
            said, seconds = reason(one, folder / "outputs"), ""
            if not said and not given.list:
                said, took = run(one, folder, known, given.limit)
                seconds, ran, failed = f"{took:.1f}", ran + 1, failed + (said != "0")
            text = one.text.replace("\\|", "|").replace("|", "\\|")
            print(f"| {one.page}:{one.line} | `{text}` | {seconds} | {said} |", flush=True)
    finally:
        for server in STARTED:
            _end(server)
    print(f"\n{len(todo)} commands: {ran} run, {failed} failed, {len(todo) - ran} not run")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
