#!/usr/bin/env bash
# Makes the case notebooks again, from finished runs, with their outputs: bash notebooks/cases.sh [90_case_breast ...]
set -eu -o pipefail
cd "$(dirname "$0")/.."
for name in "${@:-90_case_breast}"; do
  made=$(mktemp)
  MPLBACKEND= venv/bin/papermill --no-progress-bar "notebooks/$name.ipynb" "$made"
  # papermill's own notes (times, paths) tell of the machine; progress bars stand still at what they first showed
  venv/bin/python - "$made" "notebooks/$name.ipynb" <<'PY'
import sys
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
for name in ("papermill", "widgets"):
    notebook.metadata.pop(name, None)
for cell in notebook.cells:
    for name in ("papermill", "execution"):
        cell.metadata.pop(name, None)
    if cell.cell_type == "code":
        bars = "application/vnd.jupyter.widget-view+json"
        cell.outputs = [output for output in cell.outputs if bars not in output.get("data", {})]
nbformat.write(notebook, sys.argv[2])
PY
  rm -f "$made"
done
