"""Batch norm of networks that cannot bear statistics that lag behind.

Running means follow the weights some batches late. A ReLU network does not mind; squares of squares turn a small error
into a number without bound. So the statistics are found anew, over all training tiles, before such a network is judged.
"""

from __future__ import annotations

import torch
from torch import nn

from histocrypt.training.images import Images

BATCH = 64


def settle(network: nn.Module, data: Images, device: torch.device) -> None:
    """Replace the running statistics of every batch norm by those of the training tiles, unaugmented."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for index in torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(BATCH):
            network(data.batch(index.numpy(), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
