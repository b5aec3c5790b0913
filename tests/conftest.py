"""Fixtures that every part of the tests may use.

The demo tissue is simulated once for all tests and workers, each size of it: ask for the fixture ``demo_tissue``.
``demo_tissue(sections=2)`` returns the shared ``.h5ad`` files, to be read only; ``demo_tissue(folder, sections=2)``
hard-links them into a folder of the test's own, where files may be deleted and replaced but never written into.
A study of ``path: demo`` finds its tissue in place after ``demo_tissue(outputs / name / "demo_tissue", ...)`` with the
sections, spots_per_side, genes and seed that it asks for; the defaults are those of `tests.small_study.SMALL`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.small_study import MODELS, SMALL, WINGS, histocrypt, write_study
from tests.tiny_section import write_tiny_section

from histocrypt import paths

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would build its grammar, for seconds; no test needs it

FIRST = "test_intact.py"
"""Who begins the small run: it has little else to do."""
LONGEST, LONGEST_OF_THOSE = "test_interrupted.py", "test_notebooks.py"
"""Modules that begin early, of those that do not need the small run and of those that do: they take longest."""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real sections; a test that needs it is skipped where it is absent."""
    folder = paths.data()
    if not (folder / "HER2ST_C2.h5ad").exists():
        pytest.skip(f"no real sections in {folder}: set HISTOCRYPT_DATA to run this test")
    return folder


@pytest.fixture
def tiny_section() -> Callable[..., Path]:
    """Return a function that writes a small good section (``.h5ad`` and ``.png``) and returns the ``.h5ad``."""
    return write_tiny_section


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one module begin `small_run`, and those that would wait for it come last: no worker stands still."""
    waiting = list(dict.fromkeys(item.path for item in items if "small_run" in getattr(item, "fixturenames", ())))
    first = min(waiting, key=lambda path: path.name != FIRST, default=None)
    ranks = {path: 3 + (path.name != LONGEST_OF_THOSE) for path in waiting} | {first: 0}
    items.sort(key=lambda item: ranks.get(item.path, 1 + (item.path.name != LONGEST)))


@contextmanager
def shared_by_workers(tmp_path_factory, name: str) -> Iterator[Path]:
    """Give a folder that all test workers share, to one of them at a time."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def demo_tissue(tmp_path_factory) -> Callable[..., list[Path]]:
    """Return a function that gives the files of a small demo tissue, simulated once: see the top of this file."""
    from histocrypt.demo.write import demo_in

    def files(folder: Path | None = None, **changes: int) -> list[Path]:
        settings = {**SMALL["demo"], "seed": 0, **changes}
        with shared_by_workers(tmp_path_factory, "demo_tissue") as shared:
            shared_files = demo_in(shared / "-".join(map(str, settings.values())), **settings)
        if folder is None:
            return shared_files
        shutil.copytree(shared_files[0].parent, folder, copy_function=os.link)
        return [folder / file.name for file in shared_files]

    return files


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, demo_tissue) -> Path:
    """A finished run of a small demo study with a network; returns the outputs folder. Shared by all test workers."""
    with shared_by_workers(tmp_path_factory, "small_run") as shared:
        study = write_study(shared, "small", models=MODELS, **WINGS)
        if not (shared / "small" / "report.html").is_file():
            if not (shared / "small" / "demo_tissue").exists():
                demo_tissue(shared / "small" / "demo_tissue")
            finished = histocrypt("run", study, "--cores", "2", outputs=shared)
            assert finished.returncode == 0, finished.stdout + finished.stderr
    return shared
