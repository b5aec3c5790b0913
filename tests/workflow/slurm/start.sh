#!/usr/bin/env bash
# Starts a SLURM of one machine, in a folder of its own: configuration, key, state, logs and ports are its own, systemd
# has no part in it, and stop.sh leaves nothing. Works as root (jobs of any user) and as a user (jobs of that user).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: start.sh FOLDER [--accounting] [--cpus N] [--memory MB] [--gpus N] [--install]
  --accounting  with slurmdbd on a MariaDB of its own; without it sacct knows nothing, as on many small clusters
  --cpus, --memory  what the node offers (default: all processors, nine tenths of the memory)
  --gpus        that the node says it has, there or not (default: 0)
  --install     apt-get install what is missing (as root)
then:  source FOLDER/env; sinfo; sbatch ...; and stop.sh FOLDER at the end
TEXT
}

fail() {
    echo "start.sh: $1" >&2
    exit 2
}

folder="" accounting=no install=no gpus=0 cpus=$(nproc) memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
while [ $# -gt 0 ]; do
    case $1 in
        --accounting) accounting=yes ;;
        --gpus) gpus=$2 && shift ;;
        --install) install=yes ;;
        --cpus) cpus=$2 && shift ;;
        --memory) memory=$2 && shift ;;
        -h | --help) usage && exit 0 ;;
        -*) usage >&2 && fail "unknown option $1" ;;
        *) folder=$1 ;;
    esac
    shift
done
[ -n "$folder" ] || { usage >&2 && fail "which folder?"; }
export PATH="$PATH:/usr/sbin:/sbin"

packages="slurm-wlm munge" programs="munged slurmctld slurmd sbatch scontrol"
if [ $accounting = yes ]; then
    packages="$packages slurmdbd slurm-wlm-mysql-plugin mariadb-server"
    programs="$programs slurmdbd mariadbd mariadb-install-db"
fi
missing=""
for program in $programs; do
    command -v "$program" > /dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
    how="apt-get install --no-install-recommends $packages"
    [ $install = yes ] || fail "not installed:$missing; on Debian: $how (or --install)"
    apt-get update -qq && apt-get install -yqq --no-install-recommends $packages > /dev/null || fail "could not: $how"
fi

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ ! -e "$folder/env" ] || fail "a SLURM was started in $folder already; stop.sh $folder ends it"
mkdir -p "$folder"/{state,spool,log,munge}
chmod 711 "$folder" "$folder/munge"
host=$(hostname -s)
me=$(id -un)
read -r control node database dbd <<< "$(python3 - <<'TEXT'
import socket
sockets = [socket.socket() for _ in range(4)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
TEXT
)"

(umask 077 && head -c 1024 /dev/urandom > "$folder/munge/key")
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" 2> "$folder/log/munged.start.log"

cat > "$folder/slurm.conf" <<TEXT
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
SlurmctldPort=$control
SlurmdPort=$node
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
# No cgroups: they need more than a container gives. Memory is watched, and a job that takes too much is killed.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MpiDefault=none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500
PartitionName=other Nodes=$host MaxTime=INFINITE State=UP DefMemPerCPU=500
TEXT

touch "$folder/gres.conf"
for number in $(seq 0 $((gpus - 1))); do
    touch "$folder/gpu$number"
    echo "NodeName=$host Name=gpu File=$folder/gpu$number" >> "$folder/gres.conf"
done

wait_for() { # what, seconds, command...
    local what=$1 left=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { "$(dirname "$0")/stop.sh" "$folder" --keep && fail "$what did not start: see $folder/log"; }
        sleep 1
    done
}

export SLURM_CONF="$folder/slurm.conf"
if [ $accounting = yes ]; then
    password=$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
    options="--no-defaults --user=$me --datadir=$folder/database --socket=$folder/database.socket"
    mariadb-install-db $options --auth-root-authentication-method=normal --skip-test-db > "$folder/log/database.log" 2>&1
    mariadbd $options --port="$database" --bind-address=127.0.0.1 --pid-file="$folder/mariadbd.pid" \
        >> "$folder/log/database.log" 2>&1 &
    as_root="mariadb --no-defaults --user=root --socket=$folder/database.socket"
    wait_for MariaDB 60 $as_root -e "select 1"
    $as_root -e "create user slurm@'127.0.0.1' identified by '$password'; grant all on accounts.* to slurm@'127.0.0.1'"
    (umask 077 && cat > "$folder/slurmdbd.conf" <<TEXT
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$dbd
SlurmUser=$me
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database
StorageUser=slurm
StoragePass=$password
StorageLoc=accounts
TEXT
    )
    cat >> "$folder/slurm.conf" <<TEXT
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd
AccountingStoragePass=$folder/munge/socket
AccountingStorageEnforce=associations
TEXT
    slurmdbd
    wait_for slurmdbd 60 sacctmgr -n list cluster
    sacctmgr -iQ add cluster one > /dev/null
    sacctmgr -iQ add account lab > /dev/null
    sacctmgr -iQ add user "$me" account=lab > /dev/null
fi
slurmctld
wait_for slurmctld 30 bash -c "scontrol ping | grep -q UP"
slurmd
wait_for "the node" 30 bash -c 'sinfo -h -o %T | grep -q idle'
# The executor's job steps drop SLURM_CONF (and every other SLURM variable) before they call srun, which then looks in
# /etc/slurm only, where a cluster has its configuration and this one must not write.
mkdir "$folder/bin"
printf '#!/bin/sh\nSLURM_CONF="%s" exec "%s" "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$folder/bin/srun"
chmod +x "$folder/bin/srun"
cat > "$folder/env" <<TEXT
export SLURM_CONF='$folder/slurm.conf'
export PATH='$folder/bin':"\$PATH"
TEXT
sinfo
echo "started; now: source $folder/env"
