"""Viewers for notebooks: pick and see. Live in JupyterLab, and a still picture wherever a notebook is only read."""

from histocrypt.viewer.results import view_results
from histocrypt.viewer.sections import view_sections

__all__ = ["view_results", "view_sections"]
