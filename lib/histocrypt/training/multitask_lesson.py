"""What a multi-task network learns from, batch by batch: connected patches of tissue, and a loss with a part a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from histocrypt.models.he2gene import AUXILIARY, TARGET, TUMOUR, Head
from histocrypt.training.images import Images
from histocrypt.training.multitask_plan import Plan
from histocrypt.training.spatial import (
    connected_batches,
    inner_edges,
    same_image,
    same_label,
    same_predicted,
    spatial_term,
)


@dataclass(frozen=True)
class Lesson(Images):
    """What batches are drawn from, with all that the heads learn."""

    plan: Plan = Plan()
    heads: tuple[Head, ...] = ()
    graph: Any = None
    """(n, n) CSR: neighbours."""
    auxiliary: Any = None
    """(n, g) CSR float32, as measured; None where there is no such head."""
    means: np.ndarray | None = None
    """(sections, g) float32: what is subtracted from the rows of each section."""
    code: np.ndarray | None = None
    """(n,) int: the section of each spot."""
    scale: float = 1.0
    labels: torch.Tensor | None = None
    """(n,) float32: 1, 0, NaN where there is none."""

    def batch(self, index: np.ndarray, device: torch.device, change: Any = None) -> torch.Tensor:
        """Return standardised images (B, 3, S, S), or frozen features (B, d) as they are."""
        if self.pixels.ndim == 2:
            return self.pixels[torch.as_tensor(index)].to(device)
        return super().batch(index, device, change)

    def batches(self, order: np.ndarray, n_batches: int) -> list[np.ndarray]:
        """Return every batch as connected patches of tissue."""
        return connected_batches(self.graph, order, n_batches, patch=self.plan.patch)

    def loss(self, network: nn.Module, images: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """Return target + weights x (other genes, tumour, spatial term) of one batch."""
        embedded = network.embed(images)
        out = {name: values.float() for name, values in network.every_head(embedded).items()}
        device, rows = images.device, torch.as_tensor(index)
        total = nn.functional.mse_loss(out[TARGET], self.targets[rows].to(device))
        for head in self.heads[1:]:
            part = self._auxiliary_loss if head.name == AUXILIARY else self._label_loss
            total = total + head.weight * part(out[head.name], index)
        if self.plan.spatial_weight:
            edges = inner_edges(self.graph, index).to(device)
            weights = self._neighbours(out, embedded, index, edges)
            total = total + self.plan.spatial_weight * spatial_term(out[TARGET], edges, weights)
        return total

    def _auxiliary_loss(self, predicted: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """Squared error of the other genes; the only place where their counts become dense, (B, g)."""
        dense = torch.from_numpy(self.auxiliary[index].toarray())
        dense.sub_(torch.from_numpy(self.means[self.code[index]])).div_(self.scale)
        return nn.functional.mse_loss(predicted, dense.to(predicted.device))

    def _label_loss(self, logits: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """Cross-entropy over the spots of the batch that have a label; 0, with a gradient of 0, where none has."""
        labels = self.labels[torch.as_tensor(index)].to(logits.device)
        known = torch.isfinite(labels)
        if not known.any():
            return (logits * 0).sum()
        return nn.functional.binary_cross_entropy_with_logits(logits[known, 0], labels[known])

    def _neighbours(
        self, out: dict[str, torch.Tensor], embedded: torch.Tensor, index: np.ndarray, edges: torch.Tensor
    ) -> torch.Tensor:
        if self.plan.neighbours == "image":
            return same_image(embedded, edges)
        if self.plan.neighbours == "predicted":
            return same_predicted(torch.sigmoid(out[TUMOUR][:, 0]), edges)
        return same_label(self.labels[torch.as_tensor(index)].to(embedded.device), edges)
