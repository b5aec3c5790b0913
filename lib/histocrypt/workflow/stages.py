"""The notebooks of a run, and the parameters that a user may set in them."""

from __future__ import annotations

from functools import cache

from histocrypt import paths

STAGES = {
    "10_eda": "eda",
    "20_preprocessing": "preprocessed",
    "22_folds": "folds",
    "30_training": "trained_all",
    "32_multitask": "multitask_all",
    "34_diffusion": "diffusion_all",
    "38_inner_training": "inner_all",
    "40_stacking": "stacked_all",
    "50_fhe_inference": "encrypted_all",
    "60_synthetic_data": "synthesis_all",
    "62_membership_audit": "audit_all",
    "70_evaluation": "evaluated",
    "72_viewer": "all",
}
"""The Snakemake rule after which a notebook has run for everything, by notebook, in reading order."""

RULES = {
    "eda": "10_eda",
    "preprocess": "20_preprocessing",
    "folds": "22_folds",
    "train": "30_training",
    "multitask": "32_multitask",
    "diffusion": "34_diffusion",
    "train_inner": "38_inner_training",
    "stack": "40_stacking",
    "encrypted": "50_fhe_inference",
    "synthesis": "60_synthetic_data",
    "audit": "62_membership_audit",
    "evaluate": "70_evaluation",
    "view": "72_viewer",
}
"""The notebook that a Snakemake rule runs."""

APART = ("00_data",)
"""Notebooks that no run executes: a person opens them before there is anything to run."""

SET_BY_WORKFLOW = {"study", "section", "model", "fold"}
"""Notebook parameters that the workflow itself fills in."""


@cache
def known_parameters(notebook: str) -> frozenset[str]:
    """Return the parameters of a notebook that a user may set."""
    return frozenset(_inspect(notebook)) - SET_BY_WORKFLOW


def _inspect(notebook: str) -> dict[str, dict[str, str]]:
    from papermill import inspect_notebook

    return inspect_notebook(str(paths.repository() / "notebooks" / f"{notebook}.ipynb"))
