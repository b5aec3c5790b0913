#!/usr/bin/env bash
# Starts JupyterLab. A token is required: JUPYTER_TOKEN where it is set, else a fresh one that is printed.
# HISTOCRYPT_NO_TOKEN=1 is the only way to do without one. Further arguments go to `jupyter lab`.
set -eu

port=${HISTOCRYPT_PORT:-8888}
address=${HISTOCRYPT_ADDRESS:-0.0.0.0}

# A home that this user cannot write to, because somebody chose another one.
if [ ! -w "${HOME:-/}" ]; then
  HOME=$(mktemp -d)
  export HOME
fi

if [ "${HISTOCRYPT_NO_TOKEN:-}" = 1 ]; then
  echo "WARNING: HISTOCRYPT_NO_TOKEN=1: whoever reaches port $port can run any code here and read all mounted data." >&2
  echo "         Publish the port on 127.0.0.1 only, and on no machine that other people use." >&2
  unset JUPYTER_TOKEN
  # Without a token, answer only to the names of this machine: a page from elsewhere cannot pass for one of them.
  set -- --IdentityProvider.token= --ServerApp.allow_remote_access=False "$@"
else
  if [ -z "${JUPYTER_TOKEN:-}" ]; then
    JUPYTER_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(24))')
    echo "Open http://127.0.0.1:$port/lab?token=$JUPYTER_TOKEN" >&2
  fi
  # By the environment and not as an argument, which every process could read.
  export JUPYTER_TOKEN
  set -- --ServerApp.allow_remote_access=True "$@"
fi

# No question about news and no look for updates: the page asks nothing of the world outside.
set -- --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate "$@"

exec jupyter lab --no-browser --ip="$address" --port="$port" --ServerApp.port_retries=0 "$@"
