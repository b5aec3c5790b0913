#!/usr/bin/env bash
# Ends what start.sh started in a folder, jobs first, and removes the folder (--keep: leaves the logs there).
set -uo pipefail
[ $# -ge 1 ] && [ -e "$1/slurm.conf" ] || { echo "usage: stop.sh FOLDER [--keep], the folder given to start.sh" >&2; exit 2; }
folder=$(cd "$1" && pwd)
export SLURM_CONF="$folder/slurm.conf"

ended() { # seconds, pid file...
    local left=$(($1 * 10)) file
    shift
    for file in "$@"; do
        while [ -s "$file" ] && kill -0 "$(cat "$file" 2> /dev/null)" 2> /dev/null && [ $left -gt 0 ]; do
            sleep 0.1
            left=$((left - 1))
        done
        [ $left -gt 0 ] || kill -KILL "$(cat "$file")" 2> /dev/null
    done
}

if scontrol ping 2> /dev/null | grep -q UP; then
    scancel --user="$(id -un)" 2> /dev/null
    for _ in $(seq 30); do
        [ -z "$(squeue -h 2> /dev/null)" ] && break
        sleep 1
    done
    scontrol shutdown 2> /dev/null
fi
ended 15 "$folder/slurmd.pid" "$folder/slurmctld.pid"
for name in slurmdbd.pid mariadbd.pid munge/pid; do
    [ -s "$folder/$name" ] && kill "$(cat "$folder/$name")" 2> /dev/null
    ended 20 "$folder/$name"
done
rm -f "$folder/env"
[ "${2:-}" = --keep ] || rm -rf "$folder"
