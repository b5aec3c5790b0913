"""A trained ResNet-18 as a bundle: its ranges found on its own training tiles, one file a layer in ``server/network``.

``fhe_resnet18`` keeps its squares; ``resnet18`` with an average pool keeps its ReLUs, as minimax polynomials.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.bundle import write_client
from histocrypt.encrypted.lowering import scaling
from histocrypt.encrypted.parameters import SECURITY_BITS, Parameters, bootstrapped, check_security
from histocrypt.encrypted.resnet.compile import CELL, compile_network
from histocrypt.encrypted.resnet.residual import Network, gains, lower, with_gains
from histocrypt.encrypted.resnet.run import estimate
from histocrypt.encrypted.single import hash_of
from histocrypt.errors import InputError
from histocrypt.files import write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from histocrypt.pipeline.checkpoints import TrainedModel

RESIDUAL = ("fhe_resnet18", "resnet18")
"""Models that are evaluated with bootstrapping."""
AT_ONCE = 64
"""Tiles in a batch while ranges are found."""


class Entering:
    """What enters each activation of a network, over all tiles that it was shown."""

    def __init__(self) -> None:
        self.squares: list[float] = []
        """Sums of squares, one for each activation in the order of evaluation."""
        self.largest: list[float] = []
        self.values: list[int] = []
        self._next = 0

    def __call__(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Note what enters the next activation."""
        x, number = inputs[0].detach().double(), self._next
        if number == len(self.values):
            self.squares.append(0.0)
            self.largest.append(0.0)
            self.values.append(0)
        self.squares[number] += float(x.square().sum())
        self.largest[number] = max(self.largest[number], float(x.abs().max()))
        self.values[number] += x.numel()
        self._next += 1

    def restart(self) -> None:
        """Begin with the first activation again."""
        self._next = 0

    @property
    def mean_squares(self) -> list[float]:
        """Mean of the squared values."""
        return [total / count for total, count in zip(self.squares, self.values, strict=True)]


@contextmanager
def _watching(network: nn.Module) -> Iterator[Entering]:
    from torch import nn

    from histocrypt.models.fhe import Square

    seen = Entering()
    active = [module for module in network.modules() if isinstance(module, Square | nn.ReLU)]
    hooks = [module.register_forward_pre_hook(seen) for module in active]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def compile_residual(
    model: TrainedModel,
    output: Path,
    *,
    inputs: Callable[[dict[str, Any]], Iterator[np.ndarray]],
    margin: float,
    told: dict[str, Any],
) -> str:
    """Compile a residual network into a bundle; `compile.compile_model` calls this.

    Parameters
    ----------
    model
        The trained model.
    output
        The bundle.
    inputs
        From how inputs are described to what the network was trained on, as it enters the network, by sections.
    margin
        The calibrated range of inputs is widened by this share of itself on both sides.
    told
        What clients learn of ``model.json`` as it stands.

    Raises
    ------
    InputError
        If its tiles are too large for the ring, its pool takes maxima, or its training tiles are not beside it.
    """
    about, network = model.about, model.predictor.network
    side, parameters = about["geometry"]["input_px"], bootstrapped()
    check_security(parameters)
    if 2 * _width(network) * (side // CELL) ** 2 > parameters.slots:
        problem, fix = "its tiles are too large for the ring that is bootstrapped", "train it with input_px: 64"
        raise InputError(problem, file=model.folder, field="geometry.input_px", value=side, fix=fix)
    described, lowered = lowered_residual(model)
    entering, input_range, output_range = _calibrate(model, inputs(described), margin)
    lowered = with_gains(lowered, gains(lowered.activation, entering.mean_squares, entering.largest))
    server = output / "server"
    server.mkdir(mode=0o700, parents=True, exist_ok=True)
    (server / "server.json").unlink(missing_ok=True)
    shutil.rmtree(server / "network", ignore_errors=True)
    made = compile_network(lowered, parameters, server / "network")
    cost = estimate([vars(step) for step in made.steps], parameters)
    public = {
        "model": about["model"],
        "title": about.get("title", about["model"]),
        "outputs": about["outputs"],
        "input_range": input_range,
        "output_range": output_range,
        **described,
        **told,
        "weights_sha256": about["weights"]["sha256"],
        "parameters": parameters.to_dict(),
        "security_bits": SECURITY_BITS,
        "rotations": sorted(made.rotations),
        "moduli": [str(prime) for prime in engine.KeyOwner(parameters).moduli()],
        "level": made.level,
        "estimate": str(cost),
    }
    private = {
        "model": str(model.folder.resolve()),
        "activation": lowered.activation,
        "largest_before_activation": entering.largest,
    }
    _write(output, public, private, parameters)
    return (
        f"{output}: {public['title']} ({about['model']}), N = 2^{parameters.logn} and "
        f"2^{parameters.bootstrapping.logn} for bootstrapping, at least {SECURITY_BITS} bits, "
        f"{len(made.rotations)} rotation keys\n{cost}\npublic part {output / 'client.json'}"
    )


def lowered_residual(model: TrainedModel) -> tuple[dict[str, Any], Network]:
    """Return how inputs are described to clients, and the network with the outputs' units in its last map."""
    side, by_section = model.about["geometry"]["input_px"], model.about["training"]["normalise_by_section"]
    mean, sd = np.asarray(model.predictor.state()["pixel_moments"], dtype=float)
    described = {
        "sees": "tiles",
        "batch": 1,
        "input": {"kind": "cells", "shape": [3, side, side], "factor": CELL},
        "normalisation": {"by_section": by_section}
        | ({} if by_section else {"mean": mean.tolist(), "sd": sd.tolist()}),
    }
    lowered = lower(model.predictor.network, side)
    units = scaling(model.scaling.sd.astype(float), model.scaling.mean.astype(float), lowered.head.target)
    return described, replace(lowered, head=lowered.head.then(units))


def _width(network: nn.Module) -> int:
    """Return the channels of the stem."""
    from torch import nn

    return next(module for module in network.modules() if isinstance(module, nn.Conv2d)).out_channels


def _calibrate(
    model: TrainedModel, sections: Iterator[np.ndarray], margin: float
) -> tuple[Entering, list[float], list[float]]:
    """Return what enters activations over the training tiles, the range of inputs, widened, and that of outputs."""
    import torch

    low, high, out_low, out_high = np.inf, -np.inf, np.inf, -np.inf
    with _watching(model.predictor.network) as entering, torch.no_grad():
        for section in sections:
            for part in torch.tensor(section, dtype=torch.float32).split(AT_ONCE):
                entering.restart()
                outputs = model.scaling.restore(model.predictor.network(part).numpy())
                low, high = min(low, float(part.min())), max(high, float(part.max()))
                out_low, out_high = min(out_low, float(outputs.min())), max(out_high, float(outputs.max()))
    room = margin * (high - low)
    return entering, [low - room, high + room], [out_low, out_high]


def _write(output: Path, public: dict[str, Any], private: dict[str, Any], parameters: Parameters) -> None:
    """Write the public part, and what makes the compiled network whole."""
    public, server = json.loads(json.dumps(public)), output / "server"
    digest, size = hashlib.sha256(), 0
    for path in sorted((server / "network").glob("*")):
        path.chmod(0o600)
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        size += path.stat().st_size
    write_client(output / "client.json", public)
    content = {"client": hash_of(public), "file_bytes": size, "sha256": digest.hexdigest(), **private}
    write_json(server / "server.json", content)
    (server / "server.json").chmod(0o600)
