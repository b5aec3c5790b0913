"""What is asked of a SLURM cluster before a run starts; with a real one: tests/workflow/slurm/test_slurm.py."""

import pytest
from tests.small_study import write_study

from histocrypt.errors import InputError
from histocrypt.study import load_study
from histocrypt.workflow import cluster
from histocrypt.workflow.cluster import PROGRAMS, Cluster, _asked, cancel_left
from histocrypt.workflow.command import Profile

PROFILE = """
executor: slurm
default-resources:
  slurm_partition: '"main"'
  slurm_account: lab
set-resources:
  train:
    slurm_partition: gpu
  eda: [slurm_partition=short]
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    return load_study(write_study(tmp_path, "here"))


def profile(folder, text: str) -> Profile:
    (folder / "config.yaml").write_text(text)
    return Profile.read(folder, cores=0)


def test_partitions_are_read_from_all_places_where_a_profile_names_them(tmp_path):
    content = profile(tmp_path, PROFILE).content
    assert _asked(content, "slurm_account") == {"default-resources: slurm_account": "lab"}
    assert list(_asked(content, "slurm_partition").values()) == ["main", "gpu", "short"]
    listed = {
        "default-resources": ["slurm_partition=main", "mem_mb=100"],
        "set-resources": ["train:slurm_partition=gpu"],
    }
    assert list(_asked(listed, "slurm_partition").values()) == ["main", "gpu"]


def test_a_machine_without_slurm(tmp_path, study, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no SLURM on this machine: sbatch, .*without --profile"):
        Cluster.ready(study, profile(tmp_path, PROFILE))
    assert cancel_left(study) == 0


def test_a_profile_of_this_machine_asks_no_cluster(tmp_path, study, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Cluster.ready(study, profile(tmp_path, "retries: 1")) is None


def test_snakemake_is_told_where_logs_go_and_how_to_ask(study):
    options = Cluster("hc_here_0", "squeue", study.run.logs / "slurm").options()
    assert options[options.index("--slurm-logdir") + 1] == str(study.run.logs.resolve() / "slurm")
    assert options[options.index("--slurm-status-command") + 1] == "squeue"


def test_a_cluster_that_does_not_answer_is_not_taken_for_one_without_jobs(tmp_path, study, monkeypatch):
    """What could still run there would write into the same files."""
    for program in PROGRAMS:
        file = tmp_path / "bin" / program
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(cluster, "GONE_S", 0)
    assert cancel_left(study) == 0  # it never ran on a cluster
    (study.run.logs / "slurm").mkdir(parents=True)
    with pytest.raises(InputError, match=r"may still be on the cluster: SLURM does not answer \(.*Unable to contact"):
        cancel_left(study)
