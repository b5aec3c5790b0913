"""One rule for each slide of `histocrypt predict FOLDER --profile`: what is to be made stands in a plan.

The plan is `histocrypt.workflow.slides`'s; what a rule makes is the state of its slide, which says what came of it.
"""

import json
import sys
from pathlib import Path

from histocrypt.pipeline.folder import STATE
from histocrypt.workflow.resources import Needs
from histocrypt.workflow.slides import STAGE

PYTHON, PLAN = sys.executable, config["plan"]
TOLD = json.loads(Path(PLAN).read_text(encoding="utf-8"))
OWN = workflow.resource_settings


def asks(need):
    """Return what a job asks for; on the second attempt twice the memory and time."""
    return {
        "mem_mb": lambda wildcards, attempt: need.memory_mb(attempt),
        "runtime": lambda wildcards, attempt: need.minutes(attempt),
        "gpu": need.gpus,
        "expected_s": round(need.seconds),
    }


def state_of(slide):
    return str(Path(TOLD["output"]) / slide["slide"]["id"] / STATE)


rule all:
    input:
        [state_of(slide) for slide in TOLD["slides"]],


for slide in TOLD["slides"]:

    rule:
        name:
            slide["job"]
        output:
            state_of(slide),
        log:
            str(Path(PLAN).parent / "logs" / f"{slide['job']}.log"),
        params:
            job=slide["job"],
        threads: slide["asks"]["threads"]
        resources:
            **asks(Needs(**slide["asks"])),
        shell:
            "export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}; "
            "{PYTHON:q} -m histocrypt.workflow.slides {PLAN:q} {params.job:q} > {log:q} 2>&1"

    # What a profile sets for the stage holds for all of its jobs.
    workflow.get_rule(slide["job"]).resources.update(OWN._parsed_overwrite_resources.get(STAGE, {}))
    if STAGE in OWN._parsed_overwrite_threads:
        workflow.get_rule(slide["job"]).resources["_cores"] = OWN._parsed_overwrite_threads[STAGE]
