#!/usr/bin/env bash
# Sets up what is missing in venv/, then does what the verb says. Running it again is safe, cheap, and mends an
# interrupted run. Written for bash 3.2, which macOS still has.
set -eu -o pipefail

usage='usage: bash install_host.sh [demo|test] [--device auto|cpu|cuda|mps]

  (no verb)   set up what is missing
  demo        then run the demo study and print where its report is
  test        then run the tests

Environment: PYTHON           the Python to build venv/ with (3.11 or 3.12)
             TORCH_INDEX_URL  a package index with the torch builds you want, as the install page of PyTorch names it
             and everything pip itself understands (pip.conf, PIP_*)'

say() { printf 'install_host: %s\n' "$*"; }
warn() { say "$@" >&2; }
die() { code=$1; shift; warn "$@"; exit "$code"; }

verb='' device=''
while [ $# -gt 0 ]; do
  case $1 in
    demo | test)
      [ -z "$verb" ] || die 2 "one verb at a time: '$verb' and '$1' were given."
      verb=$1 ;;
    --device)
      [ $# -gt 1 ] || die 2 "--device needs a value: auto, cpu, cuda or mps."
      device=$2; shift ;;
    --device=*) device=${1#--device=} ;;
    -h | --help) printf '%s\n' "$usage"; exit 0 ;;
    *) die 2 "unknown verb or option '$1'; known are demo, test and --device auto|cpu|cuda|mps." ;;
  esac
  shift
done
case $device in
  '' | auto | cpu | cuda | mps) ;;
  *) die 2 "unknown device '$device'; known are auto, cpu, cuda and mps." ;;
esac

# What the caller names relative to where they stand must survive the change of folder.
case ${PYTHON:-} in
  /* | '') ;;
  */*) PYTHON=$PWD/$PYTHON ;;
esac
CDPATH='' cd "$(dirname "$0")"
root=$(pwd -P)
system=$(uname -s) machine=$(uname -m)
python=venv/bin/python stamp=venv/.histocrypt-stamp
unset PYTHONHOME PYTHONPATH || true
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=0
trap 'warn "interrupted; the same command goes on from here."; exit 130' INT TERM

# ---- the device: as asked, else as the last complete set-up chose it, else what the machine has

if [ -z "$device" ] && [ -f "$stamp" ]; then
  device=$(sed -n 's/^device=//p' "$stamp")
fi
case "$device/$system/$machine" in
  mps/Darwin/arm64) ;;
  mps/*) die 2 "--device mps needs a Mac with Apple silicon, and this is $system on $machine; use --device cpu or cuda." ;;
  cuda/Darwin/*) die 2 "--device cuda needs an NVIDIA GPU, which torch does not support on macOS; use --device mps or cpu." ;;
  */Darwin/x86_64) die 1 "torch has no builds for Macs with an Intel processor any more; use the Docker image, docs/docker.md." ;;
esac
if [ -z "$device" ] || [ "$device" = auto ]; then
  if nvidia-smi >/dev/null 2>&1; then device=cuda
  elif [ "$system/$machine" = Darwin/arm64 ]; then device=mps
  else device=cpu; fi
fi

# ---- is the set-up that is there complete, and made for this?

# venv/bin/pip is the last thing that the making of a venv writes, and it names the folder the venv was made in.
venv_works() {
  grep -qF "$root/venv/bin/" venv/bin/pip 2>/dev/null && "$python" -I -c 'import pip' 2>/dev/null
}
version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
wanted_stamp() {
  echo "root=$root"
  echo "device=$device"
  echo "python=$(version_of "$python")"
  echo "locked=$(cat requirements.lock pyproject.toml install_host.sh | cksum)"
}
complete() {
  [ -f "$stamp" ] && venv_works && wanted_stamp | cmp -s - "$stamp" &&
    [ -x venv/bin/histocrypt ] && [ -f venv/share/jupyter/kernels/histocrypt/kernel.json ] &&
    "$python" -I -c 'import histocrypt' 2>/dev/null
}

# ---- the Python to build with

reason=''
usable() {
  case $1 in "$root"/venv/*) return 1 ;; esac
  found=$(version_of "$1") || return 1
  case $found in
    3.11 | 3.12) ;;
    *) reason="$1 is Python $found"; return 1 ;;
  esac
  "$1" -I -c 'import venv, ensurepip' 2>/dev/null && return 0
  reason="$1 cannot make virtual environments (on Debian and Ubuntu: sudo apt install python$found-venv)"
  return 1
}
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    base=$(command -v "$PYTHON") || die 1 "PYTHON=$PYTHON is not a program; set it to a Python 3.11 or 3.12, or unset it."
    usable "$base" && return 0
    die 1 "PYTHON=$PYTHON cannot be used: ${reason:-it does not run}; set it to a Python 3.11 or 3.12 that can make virtual environments."
  fi
  while IFS= read -r base; do
    if usable "$base"; then return 0; fi
  done <<CANDIDATES
$(for name in python3.11 python3.12 python3 python; do type -aP "$name" || true; done)
CANDIDATES
  die 1 "no usable Python 3.11 or 3.12 was found${reason:+ ($reason)}; install one (python.org, your package manager, pyenv or conda) or set PYTHON to it, then run this again."
}

# ---- the steps

pip_install() {
  "$python" -m pip install -q -q "$@" ||
    die 1 "pip could not install $what (its reason is above); mend that and run the same command again, it goes on from here."
}

make_venv() {
  if [ -n "${PYTHON:-}" ]; then find_python; fi
  if venv_works && { [ -z "${PYTHON:-}" ] || [ "$(version_of "$python")" = "$(version_of "$base")" ]; }; then
    case $(version_of "$python") in 3.11 | 3.12) return 0 ;; esac
  fi
  find_python
  if [ -e venv ]; then say "venv/ is incomplete, moved or of another Python: making it anew"; fi
  say "1/5 virtual environment with $base (Python $(version_of "$base"))"
  "$base" -m venv --clear venv || die 1 "$base could not make venv/ (its reason is above)."
}

# A killed pip leaves packages without their list of files, and renamed leftovers; pip would take them for installed.
sweep() {
  "$python" -I - <<'SWEEP'
import pathlib, shutil, sysconfig
for folder in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
    half = folder.suffix == ".dist-info" and not ((folder / "RECORD").is_file() and (folder / "METADATA").is_file())
    if folder.is_dir() and (half or folder.name.startswith("~")):
        shutil.rmtree(folder)
SWEEP
}

locked() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" requirements.lock; }
torch_is() { "$python" -I -c "import importlib.metadata as m, sys; v = m.version('torch'); sys.exit(not ($1))" 2>/dev/null; }
# Without a GPU, Linux still gets torch's CUDA build from an ordinary index. Ask pip what it would take, and say so.
mention_cuda_packages() {
  report=venv/.torch-report.json
  "$python" -m pip install -q -q --dry-run --no-deps --ignore-installed --report "$report" "torch==$torch" 2>/dev/null || return 0
  if "$python" -I - "$report" <<'REPORT'
import json, sys
needs = [need for item in json.load(open(sys.argv[1]))["install"] for need in item["metadata"].get("requires_dist", [])]
sys.exit(not any(need.startswith(("nvidia-", "cuda-")) for need in needs))
REPORT
  then
    warn "the torch that pip finds is the CUDA build, with about 3 GB of packages that a CPU has no use for; to avoid them stop here and set TORCH_INDEX_URL to the CPU index that PyTorch's install page names. Going on."
  fi
  rm -f "$report"
}

install_torch() {
  torch=$(locked torch) vision=$(locked torchvision) equal='=='
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    set -- --extra-index-url "$TORCH_INDEX_URL"
  else
    set --
    # '===' takes the plain build and no '+cpu' one that pip might also find.
    if [ "$device" = cuda ]; then equal='==='; fi
  fi
  if [ "$device" = cuda ] && torch_is '"+cpu" in v'; then
    "$python" -m pip uninstall -q -q -y torch torchvision
  fi
  if ! torch_is "v.split('+')[0] == '$torch'"; then
    if [ "$device/$system" = cpu/Linux ] && [ -z "${TORCH_INDEX_URL:-}" ]; then mention_cuda_packages; fi
  fi
  say "2/5 torch $torch for $device (the largest download)"
  what="torch $torch" # used by pip_install
  # Versions are exact, here and below: a range would let pip pull a second, CUDA, torch.
  pip_install -c requirements.lock ${1+"$@"} "torch$equal$torch" "torchvision==$vision"
  if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    warn "the torch that pip found has no CUDA, so the GPU stays unused; set TORCH_INDEX_URL to the CUDA index that PyTorch's install page names and run this again with --device cuda."
  fi
}

set_up() {
  rm -f "$stamp"
  make_venv
  sweep
  install_torch
  say "3/5 the packages of requirements.lock"
  what='the packages of requirements.lock'
  pip_install --no-deps -r requirements.lock
  say "4/5 histocrypt itself"
  what=histocrypt
  pip_install --no-deps --no-build-isolation -e .
  say "5/5 JupyterLab and the kernel histocrypt, inside venv/"
  # IPYTHONDIR: or it would leave a folder in the user's home.
  IPYTHONDIR=$root/venv/share/ipython "$python" -m ipykernel install --sys-prefix --name histocrypt --display-name 'Python (HistoCrypt)' >/dev/null ||
    die 1 "the Jupyter kernel could not be registered (the reason is above)."
  # JupyterLab would ask about news when it opens, and look outside for updates.
  told=$(JUPYTER_CONFIG_DIR=$root/venv/etc/jupyter "$python" -m jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements 2>&1) ||
    die 1 "JupyterLab could not be set up: $told"
  wanted_stamp >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

other_python() { [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON" || true)" != "$(version_of "$python")" ]; }
if complete && ! other_python; then
  say "venv/ is complete (device: $device)"
else
  set_up
  say "ready (device: $device); venv/bin/histocrypt doctor shows what this machine has"
fi

case $verb in
  demo)
    venv/bin/histocrypt run studies/demo.yaml
    "$python" -c 'from histocrypt.paths import RunFolder; print("The report:", RunFolder.of("demo").report)'
    ;;
  test)
    workers=$("$python" -c 'import os; n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(); print(min((n or 1) + 1, 8))')
    # One worker more than cores, as many tests wait for processes of their own. They share the cores: one thread each.
    # numba counts its own, and sets torch's to as many.
    export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=Agg
    # Each worker, and each process that a test starts, would compile all of ours again where no bytecode may be kept.
    unset PYTHONDONTWRITEBYTECODE
    # Plugins that no test here asks for take seconds to import, in every worker.
    set -- -p no:nbval -p no:anyio -p no:zarr
    # loadscope keeps the cells of a notebook, and the tests that share a costly fixture, on one worker.
    exec "$python" -m pytest -n "$workers" --dist loadscope --no-loadscope-reorder "$@" -m 'not slow' --durations=20
    ;;
esac
