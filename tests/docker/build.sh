#!/usr/bin/env bash
# Builds the repository's Dockerfile, as it stands, where there is neither Docker nor a registry of images.
#
#   sudo apt-get install --no-install-recommends buildah debootstrap     (Debian, Ubuntu; the build needs root)
#   sudo bash tests/docker/build.sh
#   sudo venv/bin/python -m pytest -m slow tests/docker
#
# The base python:3.11-slim is made from Debian's packages where it is absent: a stand-in with the same commands in the
# same places, not the published image. `buildah pull docker.io/library/python:3.11-slim` beforehand takes that one.
# pip finds packages as it does on this machine: its settings and the folders they name are lent to the build and do
# not go into the image (empty mount points stay). Further arguments go to `buildah bud`, e.g. --no-cache.
# It takes about 7 GB of disk; `buildah rmi --all` gives them back.
set -eu -o pipefail

base=docker.io/library/python:3.11-slim
image=${HISTOCRYPT_IMAGE:-localhost/histocrypt}
root=$(CDPATH='' cd "$(dirname "$0")/../.." && pwd -P)
export BUILDAH_ISOLATION=chroot

say() { printf 'build: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }
needs() { command -v "$1" >/dev/null || die "$1 is missing (on Debian and Ubuntu: sudo apt-get install --no-install-recommends $1)"; }

[ "$(id -u)" = 0 ] || die "building without Docker needs root: sudo bash tests/docker/build.sh"
needs buildah
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

make_base() {
  needs debootstrap
  say "making $base from Debian's packages"
  debootstrap --variant=minbase --include=python3.11,python3-venv,ca-certificates,netbase,tzdata bookworm "$work/base" >"$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2; die "debootstrap failed"; }
  # As in the published image, `python` is in /usr/local, and its pip installs there.
  chroot "$work/base" python3.11 -m venv /usr/local
  rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
  tar -C "$work/base" --one-file-system -cf "$work/base.tar" .
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/base.tar" / >/dev/null
  buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 \
    --label histocrypt.base=stand-in --cmd python3 "$container"
  buildah commit -q --rm "$container" "$base" >/dev/null
  rm -rf --one-file-system "$work/base" "$work/base.tar"
}

# One `--volume` a line: pip's settings on this machine as a file, and each local file or folder that they name.
lend_pip() {
  python=$root/venv/bin/python
  [ -x "$python" ] || python=python3
  "$python" -m pip config list | "$python" -I "$root/tests/docker/lend_pip.py" "$work/pip.conf"
}

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then make_base; fi
volumes=()
while IFS= read -r volume; do volumes+=(--volume "$volume"); done < <(lend_pip)

say "building $image from the Dockerfile"
began=$SECONDS
buildah bud --layers --format docker -t "$image" "${volumes[@]}" "$@" "$root"

size=$(buildah images --json "$image" | sed -n 's/.*"size": "\(.*\)".*/\1/p')
say "$image: $size, built in $((SECONDS - began)) s on $(nproc) cores"
case $(buildah inspect --type image --format '{{index .Docker.Config.Labels "histocrypt.base"}}' "$base") in
  stand-in) say "the base is a stand-in made from Debian's packages, not the published $base: sizes differ from those of docker build" ;;
esac
