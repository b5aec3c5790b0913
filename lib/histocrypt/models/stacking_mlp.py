"""StackingMLP: from the predictions of several model families to one, by a small network.

Stacked generalisation (Wolpert 1992) with a multilayer perceptron: two hidden layers of 512 and 256 units, each with a
leaky ReLU, batch normalisation and dropout. There is one input block for each *family* of models, by its name, so that
no position means anything; what a family's block holds must come from a model that never saw the spot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

HIDDEN = (512, 256)
SLOPE, DROPOUT = 0.01, 0.2


class StackingMLP(nn.Module):
    """Maps each family's outputs to the same outputs.

    Parameters
    ----------
    n_outputs
        Number of predicted columns, the same for every family.
    families
        Names of the families, in any order.
    hidden
        Units of the hidden layers.
    dropout
        After each hidden layer.
    """

    def __init__(
        self, n_outputs: int, families: Sequence[str], *, hidden: Sequence[int] = HIDDEN, dropout: float = DROPOUT
    ) -> None:
        super().__init__()
        if not families or len(set(families)) != len(families):
            raise ValueError(f"families must be distinct names, found {list(families)}")
        # One linear map of all inputs, kept as one block per name. Names sort the order in which weights are drawn.
        self.blocks = nn.ModuleDict({name: nn.Linear(n_outputs, hidden[0], bias=False) for name in sorted(families)})
        with torch.no_grad():  # as one layer over all inputs would be initialised
            for block in self.blocks.values():
                block.weight.div_(len(families) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(hidden[0]))
        layers: list[nn.Module] = []
        for i, size in enumerate(hidden):
            if i:
                layers.append(nn.Linear(hidden[i - 1], size))
            layers += [nn.LeakyReLU(SLOPE), nn.BatchNorm1d(size), nn.Dropout(dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(hidden[-1], n_outputs))

    def forward(self, predicted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Map ``{family: (B, n_outputs)}`` to (B, n_outputs); other names than the network's own are refused."""
        if set(predicted) != set(self.blocks):
            raise ValueError(f"the network has the families {sorted(self.blocks)}, and was given {sorted(predicted)}")
        return self.head(sum(self.blocks[name](predicted[name]) for name in self.blocks) + self.bias)
