"""Every notebook is run small, with nbval comparing the outputs that are stored, and is of the agreed form.

Cells with the line `# NBVAL_CHECK_OUTPUT` keep their outputs, which are those of the small run. After a change that is
meant, store them anew: `STORE_OUTPUTS=1 python -m pytest tests/notebooks/test_notebooks.py -k "runs_small and 22"`.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import papermill
import pytest
from tests.small_study import environment

from histocrypt import paths
from histocrypt.encrypted import orion
from histocrypt.workflow.measure import WIDGET
from histocrypt.workflow.preloaded import ONE_THREAD, Preloaded
from histocrypt.workflow.stages import APART, STAGES

NOTEBOOKS = sorted((paths.repository() / "notebooks").glob("*.ipynb"))

CHECKED = "NBVAL_CHECK_OUTPUT"
KEEP = "keep_output"
"""Tag of a checked cell, which keeps nbstripout from its outputs."""
SANITIZE = Path(__file__).parent / "sanitize.cfg"

PARAMETERS = {
    "00_data": {},
    "05_your_own_model": {"epochs": 1},
    "10_eda": {},
    "20_preprocessing": {"section": "S_2", "tiles_shown": 3},
    "22_folds": {},
    "30_training": {"model": "vision_mlp", "fold": "fold_1"},
    "32_multitask": {"draws": 200, "ablation_epochs": 1},
    "34_diffusion": {"mapped_genes": 2},
    "38_inner_training": {"model": "vision_mlp", "fold": "fold_1"},
    "40_stacking": {"fold": "fold_1"},
    "50_fhe_inference": {"model": "fhe_head"},
    "51_one_party": {"model": "fhe_head"},
    "58_generators": {"generator": "joint", "shown": 3},
    "60_synthetic_data": {"shown": 3, "draws": 50},
    "62_membership_audit": {"asked": "tiles", "pairs_shown": 4},
    "64_privacy_cards": {},
    "70_evaluation": {},
    "72_viewer": {},
    "74_after_prediction": {"draws": 3},
    "90_case_breast": {"model": "colour_ridge"},
    "92_case_encrypted": {"model": "fhe_head", "section": "S_1"},
    "94_case_audit": {},
}


def test_every_notebook_has_its_place_in_the_workflow_and_in_these_tests():
    assert [path.stem for path in NOTEBOOKS] == sorted([*APART, *STAGES]) == sorted(PARAMETERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path: Path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert len(tagged) == 1
    assert code[0] is tagged[0]
    assert all(":" in line and "#" in line for line in tagged[0].source.splitlines())
    assert notebook.cells[-1].source.startswith("Written: ")
    for cell in code:
        assert len(cell.source.splitlines()) <= 10, cell.source
        if path.stem.startswith("9"):  # a case is kept as a run left it
            assert cell.execution_count
        else:
            assert bool(cell.outputs) == (CHECKED in cell.source) == (KEEP in cell.metadata.get("tags", []))
            assert not cell.execution_count
    if path.stem < "50":  # asked, answered and compared
        assert notebook.cells[0].source.splitlines()[0].endswith("?")
        assert "Markdown(" in "".join(cell.source for cell in code[-2:])
        assert any(CHECKED in cell.source for cell in code)
    assert path.stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def preloaded():
    """Settings under which nbval and its kernel are forks of one process: as in a run, none imports everything anew."""
    with Preloaded() as process:
        process.start()
        yield {**process.environment, **ONE_THREAD}


def runs_small_under_nbval(path: Path, small_run: Path, tmp_path: Path, preloaded: dict[str, str]) -> None:
    if path.stem == "51_one_party" and not {one.name for one in distributions()} >= {orion.PACKAGE}:
        pytest.skip(f"{orion.PACKAGE} is not installed; {orion.WHEELS}")
    prepared = tmp_path / path.name
    parameters = {"study": str(small_run / "small.yaml"), **PARAMETERS[path.stem]}
    if path.stem == "00_data":
        parameters["folder"] = str(tmp_path)  # whatever lies in the user's own data folder
    papermill.execute_notebook(path, prepared, parameters=parameters, prepare_only=True, progress_bar=False)
    if os.environ.get("STORE_OUTPUTS"):
        store_outputs(path, prepared, environment_of(small_run, tmp_path / "first", preloaded))
    done = under_nbval(prepared, environment_of(small_run, tmp_path / "outputs", preloaded))
    assert done.returncode == 0, done.stdout[-3000:]
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(prepared, as_version=4).cells)
    assert f"{cells} passed" in done.stdout


def environment_of(small_run: Path, copied: Path, preloaded: dict[str, str]) -> dict[str, str]:
    """Copy the small run, and return the environment of a notebook that reads and writes the copy."""
    shutil.copytree(small_run / "small", copied / "small", symlinks=True)
    # What is computed again lies in a cache made to be shared; a copy could miss what another worker is writing.
    return {**environment(copied), **preloaded, "HISTOCRYPT_CACHE": str(small_run / "cache")}


def under_nbval(path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.get("outputs"):
            cell.execution_count = 1  # nbval takes no output of a cell without; nbstripout leaves none
    nbformat.write(notebook, path)
    log = str(path.parent / "nbval.log")
    command = [sys.executable, "-m", "histocrypt.workflow.measure", log, "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}", f"--rootdir={path.parent}"]
    return subprocess.run(
        [*command, str(path)],
        env={**environment, "PYTEST_ADDOPTS": ""},
        cwd=paths.repository(),
        capture_output=True,
        text=True,
        check=False,
    )


def store_outputs(path: Path, prepared: Path, environment: dict[str, str]) -> None:
    """Run a prepared notebook, and store the text of its checked cells in it and in the repository, without bars."""
    made = prepared.with_suffix(".made.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(prepared.parent)]
    subprocess.run([*command, str(prepared), str(made)], env=environment, check=True)
    outputs = {cell.id: cell.get("outputs") for cell in nbformat.read(made, as_version=4).cells}
    for target in (path, prepared):
        notebook = nbformat.read(target, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code" and CHECKED in cell.source:
                kept = [output for output in outputs[cell.id] if WIDGET not in output.get("data", {})]
                cell.outputs = [without_pictures(output) for output in kept]
                cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), KEEP})
        nbformat.write(notebook, target)


def without_pictures(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "data" in output:
        output.data = {kind: value for kind, value in output.data.items() if not kind.startswith("image/")}
    if "execution_count" in output:
        output.execution_count = None
    return output


@pytest.mark.parametrize(("stored", "passes"), [("0.1299 after 3 s", True), ("0.1399 after 3 s", False)])
def test_values_are_compared_but_for_times_and_last_digits(stored, passes, tmp_path, preloaded):
    cell = nbformat.v4.new_code_cell(f"# {CHECKED}\nprint('0.1234 after 2.5 s')")
    cell.outputs = [nbformat.v4.new_output("stream", text=f"{stored}\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    done = under_nbval(tmp_path / "one.ipynb", {**os.environ, **preloaded})
    assert (done.returncode == 0) == passes, done.stdout
    assert f"1 {'passed' if passes else 'failed'}" in done.stdout


HALF = len(NOTEBOOKS) // 2


class TestFirstHalf:  # two classes, so that two workers share the notebooks
    @pytest.mark.parametrize("path", NOTEBOOKS[:HALF], ids=lambda path: path.stem)
    def test_runs_small_under_nbval(self, path: Path, small_run: Path, tmp_path: Path, preloaded):
        runs_small_under_nbval(path, small_run, tmp_path, preloaded)


class TestSecondHalf:
    @pytest.mark.parametrize("path", NOTEBOOKS[HALF:], ids=lambda path: path.stem)
    def test_runs_small_under_nbval(self, path: Path, small_run: Path, tmp_path: Path, preloaded):
        runs_small_under_nbval(path, small_run, tmp_path, preloaded)
