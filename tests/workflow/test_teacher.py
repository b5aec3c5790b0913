"""A student is trained after its teacher, fold by fold."""

import subprocess
import sys

from tests.small_study import environment, write_study

from histocrypt import paths


def test_a_student_waits_for_the_same_fold_of_its_teacher(small_run, tmp_path):
    models = {"vision_mlp": {"width": 0.25}, "resnet18": {"teacher": "vision_mlp", "epochs": 1}}
    study = write_study(tmp_path, "small", models=models)
    command = [sys.executable, "-m", "snakemake", "trained_all", "--dry-run", "--cores", "1"]
    command += ["--snakefile", str(paths.repository() / "workflow" / "Snakefile")]
    command += ["--directory", str(small_run / "small"), "--config", f"study={study}"]
    planned = subprocess.run(command, env=environment(small_run), capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    folds = []
    for job in planned.stdout.split("\nrule ")[1:]:
        if "wildcards: model=resnet18" in job:
            fold = job.split("fold=")[1].split()[0]
            inputs = next(line for line in job.splitlines() if line.strip().startswith("input:"))
            assert f"30_training__vision_mlp__{fold}.ipynb" in inputs
            folds.append(fold)
    assert sorted(folds) == ["final", "fold_1", "fold_2", "fold_3"]
