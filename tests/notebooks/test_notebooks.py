"""Every notebook is run small, with nbval comparing the outputs that are stored, and is of the agreed form."""

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
from histocrypt.workflow.preloaded import ONE_THREAD, Preloaded
from histocrypt.workflow.stages import APART, STAGES

NOTEBOOKS = sorted((paths.repository() / "notebooks").glob("*.ipynb"))

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
            assert not cell.outputs or "NBVAL_CHECK_OUTPUT" in cell.source
            assert bool(cell.execution_count) == bool(cell.outputs)
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
    copied = tmp_path / "outputs"
    shutil.copytree(small_run / "small", copied / "small", symlinks=True)
    command = [sys.executable, "-m", "histocrypt.workflow.measure", str(tmp_path / "nbval.log"), "pytest", "-q"]
    command += ["-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*command, str(prepared)],
        # What is computed again lies in a cache made to be shared; a copy could miss what another worker is writing.
        env={**environment(copied), **preloaded, "PYTEST_ADDOPTS": "", "HISTOCRYPT_CACHE": str(small_run / "cache")},
        cwd=paths.repository(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(prepared, as_version=4).cells)
    assert f"{cells} passed" in done.stdout


HALF = len(NOTEBOOKS) // 2


class TestFirstHalf:  # two classes, so that two workers share the notebooks
    @pytest.mark.parametrize("path", NOTEBOOKS[:HALF], ids=lambda path: path.stem)
    def test_runs_small_under_nbval(self, path: Path, small_run: Path, tmp_path: Path, preloaded):
        runs_small_under_nbval(path, small_run, tmp_path, preloaded)


class TestSecondHalf:
    @pytest.mark.parametrize("path", NOTEBOOKS[HALF:], ids=lambda path: path.stem)
    def test_runs_small_under_nbval(self, path: Path, small_run: Path, tmp_path: Path, preloaded):
        runs_small_under_nbval(path, small_run, tmp_path, preloaded)
