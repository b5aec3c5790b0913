#!/bin/bash
# Runs every slow suite, one after another, and ends with a table; the exit code is 1 where any failed.
#
#   bash tests/nightly.sh [FOLDER]          logs go to FOLDER, by default outputs/nightly
#
# As root, with Docker, SLURM (README, "Tests") and Chromium there, nothing is skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
logs=${1:-outputs/nightly} python=${PYTHON:-venv/bin/python} failed=0
mkdir -p "$logs"
suites=(
    "faults|tests/workflow/test_faults.py tests/workflow/test_refused.py"
    "slurm|tests/workflow/slurm"
    "docker|tests/docker"
    "jupyterlab|tests/notebooks"
    "encrypted|tests/encrypted"
    "training|tests/training tests/models"
    "benchmarks|tests/benchmarks"
)
if [ -x "$(command -v unshare)" ] && [ "$(id -u)" = 0 ]; then
    bash tests/docker/build.sh >"$logs/image.log" 2>&1 || echo "the image was not built: $logs/image.log"
fi
table=""
for suite in "${suites[@]}"; do
    name=${suite%%|*} began=$SECONDS
    # shellcheck disable=SC2086  several folders
    "$python" -m pytest -m slow ${suite#*|} >"$logs/$name.log" 2>&1
    code=$?
    case $code in 0) result=passed ;; 5) result="no tests" ;; *) result=FAILED failed=1 ;; esac
    last=$(tail -n 1 "$logs/$name.log" | tr -d '=')
    table+=$(printf '%-12s %-9s %4d min  %s' "$name" "$result" $(((SECONDS - began + 30) / 60)) "$last")$'\n'
    echo "$name: $result"
done
printf '\n%s' "$table"
exit $failed
