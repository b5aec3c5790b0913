"""Runs a study: which notebooks there are, what each needs, starting and following Snakemake, what a run left."""
