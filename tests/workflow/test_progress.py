"""What is told of a run while it runs, read from what Snakemake and its executors print."""

from histocrypt.workflow.progress import Progress

HERE = """
rule 30_training__resnet18__fold_1:
    input: /run/folds.json
    output: /run/notebooks/30_training__resnet18__fold_1.ipynb
    log: /run/logs/30_training__resnet18__fold_1.log
    jobid: 7
    reason: Missing output files
[Sat Nov 21 12:38:06 2026]
Finished jobid: 7 (Rule: 30_training__resnet18__fold_1)
5 of 52 steps (10%) done
"""
SLURM = """
Job 7 has been submitted with SLURM jobid 12 (log: /run/logs/slurm/rule_30_training__resnet18__fold_1/12.log).
[Sat Nov 21 12:38:06 2026]
Finished jobid: 7 (Rule: 30_training__resnet18__fold_1)
"""
FAILED = """
Error in rule 30_training__resnet18__fold_1:
    message: SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'. Detailed failure reason unavailable.
    jobid: 7
    log: /run/logs/30_training__resnet18__fold_1.log, /run/logs/slurm/12.log (check log file(s) for error details)
    external_jobid: 12
"""
AGAIN = "Trying to restart job 7.\n"
REFUSED = """
Error in rule 30_training__resnet18__fold_1:
    message: SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: fast'.
    sbatch call:
        sbatch --parsable
    jobid: 7
    log: /run/logs/30_training__resnet18__fold_1.log (check log file(s) for error details)
"""


def told(said: str, progress: Progress | None = None) -> list[str]:
    progress = progress or Progress()
    return [news for line in said.splitlines(keepends=True) if (news := progress.read(line))]


def test_a_run_on_this_machine():
    assert told(HERE) == ["30_training resnet18 fold_1 ...", "30_training resnet18 fold_1 done in 0 s"]


def test_a_job_of_a_cluster_is_named_like_its_notebook():
    first, last = told(SLURM)
    assert first == "30_training resnet18 fold_1 submitted, SLURM job 12"
    assert last == "30_training resnet18 fold_1 done in 0 s"
    both = told(HERE.partition("[")[0] + SLURM)
    assert both[0] == "30_training resnet18 fold_1 ...", "named once, where both are said"


def test_a_job_that_succeeds_when_it_is_tried_again_has_not_failed():
    progress = Progress()
    news = told(SLURM.partition("[")[0] + FAILED + AGAIN + SLURM, progress)
    again = "failed (OUT_OF_MEMORY); tried once more, with twice the memory and time"
    assert news[1] == f"30_training resnet18 fold_1 {again}"
    assert not progress.failed


def test_a_job_that_fails_twice_has_failed_once():
    progress = Progress()
    told(FAILED + AGAIN + FAILED, progress)
    (failure,) = progress.failed.values()
    assert str(failure.log) == "/run/logs/30_training__resnet18__fold_1.log"
    assert failure.slurm == "OUT_OF_MEMORY"


def test_a_job_whose_step_was_ended_for_its_memory(tmp_path):
    log = tmp_path / "12.log"
    log.write_text("x\nslurmstepd-n1: error: StepId=12.0 exceeded memory limit (267402240 > 262144000), being killed\n")
    progress = Progress()
    told(FAILED.replace("OUT_OF_MEMORY", "FAILED").replace("/run/logs/slurm/12.log", str(log)), progress)
    (failure,) = progress.failed.values()
    assert failure.slurm == "OUT_OF_MEMORY"


def test_a_job_that_slurm_does_not_take():
    progress = Progress()
    told(REFUSED, progress)
    (failure,) = progress.failed.values()
    assert failure.refused == "sbatch: error: invalid partition specified: fast"
