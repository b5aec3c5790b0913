"""A pretrained start for a segmentation network, from a local file that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from histocrypt.errors import InputError


@dataclass(frozen=True)
class Taken:
    """What a file of weights gave."""

    taken: int
    """Tensors that were taken over ..."""
    of: int
    """... of as many as the network has."""
    unused: int
    """Tensors of the file that the network has no place for."""

    def __str__(self) -> str:
        return f"{self.taken} of {self.of} tensors taken over, {self.unused} of the file not used"


def take_weights(network: torch.nn.Module, file: str | Path) -> Taken:
    """Put the weights of a ``.safetensors`` file into a network, by name; the others stay as they were drawn.

    A network with a method ``adopt`` says under which other names it knows weights (`models.transunet`).

    Raises
    ------
    InputError
        If the file cannot be read, has nothing that the network knows, or a tensor of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        msg = f"weights cannot be read ({' '.join(str(error).split())})"
        raise InputError(msg, file=file, expected="a .safetensors file") from error
    own = network.state_dict()
    known = network.adopt(weights) if hasattr(network, "adopt") else {k: v for k, v in weights.items() if k in own}
    if not known:
        msg = "holds no tensor that this network knows"
        raise InputError(msg, file=file, value=next(iter(weights), None), expected=f"names such as {next(iter(own))}")
    for name, value in known.items():
        if value.shape != own[name].shape:
            raise InputError(
                "has another shape than in this network",
                file=file,
                field=name,
                value=tuple(value.shape),
                expected=str(tuple(own[name].shape)),
                fix="set the network's options as the file's",
            )
    network.load_state_dict(known, strict=False)
    return Taken(len(known), len(own), len(weights) - len(known))
