"""Every command of README and documentation exists, with its options; `benchmarks/doc_commands.py` runs them."""

import argparse
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
import yaml

from histocrypt.cli import _joined_parameters, app
from histocrypt.predictors.registry import BASELINES, STACKS

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(/|\.\w+)?$|<\w+>$|.*\$|\.\.\.|.*/(STUDY|SECTION|ID)\b")
HEADS = re.compile(r"(docs|studies|benchmarks|tests|notebooks|workflow|lib|docker|data)/")
READERS = {"studies/mine.yaml"}


def _module():
    spec = importlib.util.spec_from_file_location("doc_commands", ROOT / "benchmarks" / "doc_commands.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["doc_commands"] = module
    spec.loader.exec_module(module)
    return module


doc_commands = _module()
COMMANDS = doc_commands.distinct(doc_commands.commands())


class Parsed(Exception):
    """A script has read its arguments, and stops."""


def typed(words: list[str], *, whole: bool) -> str:
    """Return what the command line would say against these words, which follow ``histocrypt``; empty if nothing."""
    command, name = typer.main.get_command(app), "histocrypt"
    if words[:1] == ["run"]:
        words = _joined_parameters(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        if PLACEHOLDER.match(name):
            return ""
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    context = command.context_class(command, info_name=name)
    try:
        given, rest, _ = command.make_parser(context).parse_args(list(words))
    except Exception as error:  # noqa: BLE001  typer carries its own copy of click's errors
        return str(getattr(error, "message", error))
    if rest:
        return f"more arguments than {name} takes: {rest}"
    for parameter in command.params:
        value = given.get(parameter.name)
        several = value if isinstance(value, list | tuple) else [value]
        filled = [one for one in several if isinstance(one, str)]
        if whole and parameter.required and not filled:
            return f"{name} needs {parameter.name}"
        if filled and not any(map(PLACEHOLDER.match, filled)) and parameter.bare_type is not Path:
            try:
                parameter.process_value(context, value)
            except Exception as error:  # noqa: BLE001  as above
                return str(getattr(error, "message", error))
    return ""


@contextmanager
def stopped() -> Iterator[None]:
    """Let a script read its arguments, and no more; names in capitals stand for any value."""
    parse, value = argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser._get_value

    def parse_known_args(self, args=None, namespace=None):
        _, left = parse(self, args, namespace)
        raise Parsed(" ".join(left) and f"unknown arguments {left}")

    def get_value(self, action, text):
        return text if PLACEHOLDER.match(text) else value(self, action, text)

    def check_value(self, action, text, check=argparse.ArgumentParser._check_value):
        if not PLACEHOLDER.match(str(text)):
            check(self, action, text)

    parser = {"parse_known_args": parse_known_args, "_get_value": get_value, "_check_value": check_value}
    beside = patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path])  # as Python does for a script
    with patch.multiple(argparse.ArgumentParser, **parser), patch.dict(os.environ), beside:
        yield


def scripted(words: list[str], capsys) -> str:
    """Return what a benchmark's own parser would say against its arguments; empty if nothing."""
    script = ROOT / words[0]
    if not script.is_file():
        return f"no file {words[0]}"
    if "ArgumentParser" not in script.read_text(encoding="utf-8"):
        return "it takes no options" if any(word.startswith("-") for word in words[1:]) else ""
    try:
        with stopped(), patch.object(sys, "argv", [str(script), *words[1:]]):
            runpy.run_path(str(script), run_name="__main__")
    except Parsed as done:
        return str(done)
    except SystemExit:
        return capsys.readouterr().err.strip().splitlines()[-1]
    raise AssertionError(f"{words[0]} ran without reading its arguments")


def missing(words: list[str]) -> str:
    """Return the first file, run or notebook that a line names and the repository does not have; empty if none."""
    for word in words:
        if HEADS.match(word) and word not in READERS and not PLACEHOLDER.search(word) and not (ROOT / word).exists():
            return f"no file {word}"
        run = re.match(r"outputs/(\w+)(?:/models/(\w+))?", word)
        if run and not (study := ROOT / "studies" / f"{run[1]}.yaml").is_file():
            return f"no study {run[1]}, whose outputs {word} are"
        if run and run[2] and run[2] not in {*models(study), *BASELINES, *STACKS}:
            return f"{study.name} trains no {run[2]}"
    if "--until" in words:
        until = words[words.index("--until") + 1]
        if not PLACEHOLDER.match(until) and not (ROOT / "notebooks" / f"{until}.ipynb").is_file():
            return f"no notebook {until}"
    return ""


@cache
def models(study: Path) -> set[str]:
    return set(yaml.safe_load(study.read_text(encoding="utf-8"))["models"])


def other(words: list[str]) -> str:
    """Return what is wrong with a line of another program, as far as the repository can tell."""
    program, *rest = words
    if program == "bash":
        if rest[0] == "install_host.sh" and rest[1:]:
            usage = subprocess.run([*words[:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            return "" if rest[1] in (*re.findall(r"\w+", usage), "--help") else f"no verb {rest[1]}"
        return "" if (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
    if program == "papermill":
        from papermill import inspect_notebook

        known = inspect_notebook(str(ROOT / rest[0]))
        asked = [rest[i + 1] for i, word in enumerate(rest) if word == "-p"]
        return " ".join(f"{rest[0]} has no parameter {name}" for name in asked if name not in known)
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.findall(r"\[(\w+)\]", " ".join(rest))
        return " ".join(f"no extra {name}" for name in asked if name not in extras)
    if program == "make":
        return "" if re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), flags=re.M) else f"no target {rest[0]}"
    if program == "pytest":
        return ""
    return "" if program in doc_commands.OUTSIDE or program.startswith("tests/") else f"unknown program {program}"


def wrong(command, capsys) -> str:
    """Return what is wrong with a command; empty if nothing."""
    program, *rest = command.words[1:] if command.text.startswith("sudo ") else command.words
    if program == "histocrypt":
        said = typed(rest, whole=command.fenced and "..." not in command.text)
    elif program == "python" and rest[0] == "-m":
        said = "" if rest[1] in ("pytest", "sphinx") else f"no module {rest[1]}"
    elif program == "python":
        said = scripted(rest, capsys)
    else:
        said = other([program, *rest])
    return said or missing(rest)


@pytest.mark.parametrize("page", list(dict.fromkeys(command.page for command in COMMANDS)))
def test_the_commands_of_a_page_exist_with_their_options(page, capsys):
    mine = [command for command in COMMANDS if command.page == page]
    found = {f"{command.line}: {command.text}": wrong(command, capsys) for command in mine}
    assert {line: said for line, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("histocrypt predikt SLIDE", "no command"),
        ("histocrypt predict SLIDE --out OUT", "option"),
        ("histocrypt run studies/demo.yaml --cores many", "integer"),
        ("histocrypt run studies/demo.yaml --until 31_training", "no notebook"),
        ("histocrypt run studies/gone.yaml", "no file"),
        ("histocrypt fhe compile --model outputs/demo/models/gone/final -o B", "trains no"),
        ("histocrypt map A.h5ad B.h5ad C.h5ad", "more arguments"),
        ("python benchmarks/gone.py", "no file"),
        ("python benchmarks/pyramid.py --gone", "unknown arguments"),
        ("papermill notebooks/74_after_prediction.ipynb x.ipynb -p gone 1", "no parameter"),
        ("pip install 'histocrypt[gone]'", "no extra"),
        ("frobnicate STUDY", "unknown program"),
    ],
)
def test_a_wrong_command_is_found(line, problem, capsys):
    assert problem in wrong(doc_commands.Command("page", 1, line, fenced=True), capsys)


def test_commands_are_found_in_blocks_and_in_prose(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "Type `histocrypt check X\nY`.\n\n```bash\nP=1\nhistocrypt run A \\\n  B   # why\ndocker ps && pip -V\n```\n\n"
        "```yaml\nhistocrypt: no\n```\n\n| `histocrypt fhe check A\\|B [-o C]` |\n"
    )
    found = [(one.line, one.text, one.fenced) for one in doc_commands.commands(tmp_path)]
    assert found == [
        (1, "histocrypt check X Y", False),
        (7, "histocrypt run A   B", True),
        (8, "docker ps", True),
        (8, "pip -V", True),
        (15, "histocrypt fhe check A\\|B [-o C]", False),
    ]
    assert doc_commands.commands(tmp_path)[-1].words == ["histocrypt", "fhe", "check", "A", "-o", "C"]
