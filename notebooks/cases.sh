#!/usr/bin/env bash
# Makes the case notebooks again, from finished runs, with their outputs: bash notebooks/cases.sh [90_case_breast ...]
set -eu -o pipefail
cd "$(dirname "$0")/.."
for name in "${@:-90_case_breast}"; do
  made=$(mktemp)
  MPLBACKEND= venv/bin/papermill --no-progress-bar "notebooks/$name.ipynb" "$made"
  # papermill's own notes (times, paths) tell of the machine, and say nothing to a reader
  venv/bin/python - "$made" "notebooks/$name.ipynb" <<'PY'
import sys
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.metadata.pop("papermill", None)
for cell in notebook.cells:
    cell.metadata.pop("papermill", None)
    cell.metadata.pop("execution", None)
nbformat.write(notebook, sys.argv[2])
PY
  rm -f "$made"
done
