# docker build -t histocrypt --build-arg TORCH_INDEX_URL=... .   CPU, 2.7 GB
# docker build -t histocrypt .                                   runs on CPU, with CUDA inside on Intel and AMD: 3 GB more
# docker build -t histocrypt:cuda --build-arg DEVICE=cuda .      NVIDIA GPU
# How to run it: docs/docker.md
FROM python:3.11-slim AS packages

ARG DEVICE=cpu
# The package index with the torch builds for DEVICE, as the install page of PyTorch names it. Without one, Linux gets
# the CUDA build from an ordinary index: right for cuda, and about 3 GB more than needed for cpu, which the build says.
ARG TORCH_INDEX_URL=
# The versions of requirements.lock, repeated so that another package's new version does not reinstall torch.
ARG TORCH_VERSION=2.13.0
ARG TORCHVISION_VERSION=0.28.0

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# No apt packages: every library that is needed comes inside a wheel.
RUN useradd --create-home --uid 1000 --shell /bin/bash histocrypt

# Torch: the largest layer, rebuilt only when its version or the device changes.
RUN case "$DEVICE" in cpu|cuda) ;; *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; esac \
 && python -m pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
      "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION" \
 && if [ "$DEVICE" = cuda ]; then python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; \
    else python -c 'import torch; torch.version.cuda and print("NOTE: this torch holds CUDA, about 3 GB that a CPU" \
      " does not need: give the CPU index of PyTorch by --build-arg TORCH_INDEX_URL=...")'; fi

# All other packages, by exact version.
COPY requirements.lock /tmp/requirements.lock
RUN python -m pip install --no-deps -r /tmp/requirements.lock

# The code, without what its user saw in notebooks and saved there: a layer keeps what a later one deletes, so it is
# cleared in a stage of its own, of which only the result goes on.
FROM python:3.11-slim AS code
COPY . /histocrypt
RUN python /histocrypt/docker/clear_outputs.py /histocrypt

# It installs nothing but itself. It belongs to the user, who may edit the notebooks.
FROM packages
COPY --from=code --chown=1000:1000 /histocrypt /histocrypt
WORKDIR /histocrypt
RUN python -m pip install --no-deps --no-build-isolation -e . \
 && python -m ipykernel install --sys-prefix --name histocrypt --display-name "Python (HistoCrypt)" \
 && python -m jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements \
 && mkdir -p data outputs && chown -R 1000:1000 /histocrypt \
 && chmod -R a+rwX /home/histocrypt notebooks studies data outputs && rm -rf ~/.ipython /tmp/*

# `docker run --user` may name anybody: there is a home and a name for them, and notebooks can be saved.
ENV HOME=/home/histocrypt \
    USER=histocrypt \
    HISTOCRYPT_DATA=/histocrypt/data \
    HISTOCRYPT_OUTPUTS=/histocrypt/outputs
USER 1000
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('HISTOCRYPT_PORT', '8888') + '/api', timeout=4)"]
CMD ["bash", "docker/start.sh"]
