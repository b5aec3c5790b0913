"""HE2Gene behind the interface of all predictors: the panel, every other gene and the tumour label from one encoder.

Targets are those that all networks learn. Every other gene is ln(1 + counts per 10,000), less its section's mean where
the study centres by section, all divided by one number (so that their mean square is 1, and noise of rare genes is not
blown up): with equal weights both gene heads start from the same loss.

On a frozen encoder the panel's head starts from a closed form on the same features (`predictors.start`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from histocrypt.data.features import check_families
from histocrypt.data.load import Spots
from histocrypt.errors import InputError
from histocrypt.models.he2gene import HE2Gene, Head, take_imagenet
from histocrypt.predictors.base import AUXILIARY, TARGET, TUMOUR
from histocrypt.predictors.closed_form import mean_and_sd, standardise
from histocrypt.predictors.network import NetworkPredictor, resized
from histocrypt.predictors.registry import HE2GeneOptions
from histocrypt.predictors.start import Start, start_from, state_of
from histocrypt.sections.genes import GeneNames, meant_by, places
from histocrypt.training.images import Images
from histocrypt.training.loop import precision

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BLOCK = 32
"""Tiles that the network sees at once when it predicts, the last ones filled up: a prediction is the same to the bit
whatever stands beside it."""


def spatial_term(predicted: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean, over spots with a neighbour, of ||y_i - mean of its neighbours' y||^2 / outputs.

    Gradients flow through the spot and its neighbours. Where no spot has a neighbour the term is 0, and so is its
    gradient.

    Parameters
    ----------
    predicted
        (n, k).
    edges
        (2, m) int: spot and neighbour.
    weights
        (m,) non-negative: what each neighbour counts; 0 for none.
    """
    spot, neighbour = edges
    total = predicted.new_zeros(len(predicted)).index_add(0, spot, weights)  # (n,)
    mean = torch.zeros_like(predicted).index_add(0, spot, weights[:, None] * predicted[neighbour])  # (n, k)
    known = total > 0
    if not known.any():
        return (predicted * 0).sum()
    mean = mean[known] / total[known, None]
    return (predicted[known] - mean).square().mean(dim=1).mean()


def same_label(labels: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) 1 where both ends of an edge have the same label, else 0; an unknown label (NaN) is like no other."""
    return (labels[edges[0]] == labels[edges[1]]).float()


def same_predicted(probability: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) the probability that both ends are of one class, from (n,) predicted probabilities; no gradient."""
    a, b = (probability.detach()[end] for end in edges)
    return a * b + (1 - a) * (1 - b)


def same_image(embedded: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) how alike the images of both ends are, 0 to 1: the cosine of their embeddings about the batch's mean.

    No gradient. ``embedded`` is (n, d).
    """
    values = embedded.detach().float()
    values = torch.nn.functional.normalize(values - values.mean(dim=0), dim=1)
    return (values[edges[0]] * values[edges[1]]).sum(dim=1).clamp_min(0)


def inner_edges(graph: csr_matrix, index: np.ndarray) -> torch.Tensor:
    """Return the (2, m) edges among the spots ``index`` of a graph, numbered by their place in ``index``."""
    part = graph[index][:, index].tocoo()
    return torch.from_numpy(np.stack([part.row, part.col]).astype(np.int64))


def connected_batches(graph: csr_matrix, order: np.ndarray, n_batches: int, *, patch: int) -> list[np.ndarray]:
    """Deal spots into batches of connected patches: each spot once, so that a neighbour's prediction is computed once.

    A patch grows from a seed over spots not yet taken, nearest first, until it is full or its piece of tissue is used
    up. Several patches make a batch, so that one batch sees more than one corner of one section.

    Parameters
    ----------
    graph
        (n, n) CSR.
    order
        (n,) the spots in random order: where patches start.
    n_batches
        Number of batches, of sizes that differ by one at most.
    patch
        Spots in a patch.
    """
    free = np.ones(len(order), dtype=bool)
    seeds = iter(order.tolist())
    drawn: list[int] = []
    while len(drawn) < len(order):
        seed = next(seed for seed in seeds if free[seed])
        free[seed] = False
        waiting, taken = deque([seed]), 1
        while waiting:
            spot = waiting.popleft()
            drawn.append(spot)
            for near in graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]].tolist():
                if taken < patch and free[near]:
                    free[near] = False
                    waiting.append(near)
                    taken += 1
    return np.array_split(np.array(drawn), n_batches)


@dataclass(frozen=True)
class Lesson(Images):
    """What batches are drawn from, with all that the heads learn."""

    plan: HE2GeneOptions = HE2GeneOptions()
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

    def arrays(self) -> list[np.ndarray]:
        """Return all that training depends on: beside the rest, the other genes, labels and neighbours."""
        parts = super().arrays()
        if self.labels is not None:
            parts += [self.labels.numpy(), self.graph.indptr, self.graph.indices]
        if self.auxiliary is not None:
            parts += [self.auxiliary.data, self.auxiliary.indices, self.auxiliary.indptr, self.means]
        return parts

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
        every = network.every_head(embedded, network.started(images))
        out = {name: values.float() for name, values in every.items()}
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


class MultitaskPredictor(NetworkPredictor):
    """HE2Gene, trained by the loop of all networks. See `HE2GeneOptions`."""

    def __init__(self, model: str, outputs: tuple[str, ...], **given: Any) -> None:
        super().__init__(model, outputs, **given)
        if not self.plan.is_trained:
            check_families(self.plan.backbone)
        self.averages_symmetries = self.plan.average_symmetries
        self.genes: dict[str, str] = {}
        """Auxiliary genes, id -> symbol, in the order of their head's outputs."""
        self.means: np.ndarray | None = None
        """(g,) float32: mean of each auxiliary gene over training spots."""
        self.scale = 1.0
        self.has_label = False
        self.width = 0
        self.base: Start | None = None
        """What the panel's head starts from."""
        self._training: Spots | None = None

    @property
    def sees_tiles(self) -> bool:
        """Whether its encoder is trained, not frozen."""
        return self.plan.is_trained

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, as far as the training data bear them."""
        plan, found = self.plan, [Head(TARGET, "genes", len(self.outputs), "mse")]
        if self.genes:
            found.append(Head(AUXILIARY, "genes", len(self.genes), "mse", plan.aux_weight, plan.aux_rank))
        if self.has_label:
            found.append(Head(TUMOUR, "label", 1, "bce", plan.tumour_weight))
        return tuple(found)

    def _new_network(self) -> HE2Gene:
        backbone = self.plan.backbone if self.plan.is_trained else "features"
        size = {"width": self.width, "hidden": self.plan.hidden, "dropout": self.plan.dropout}
        network = HE2Gene(self.heads, backbone=backbone, **size, starts=self.base is not None)
        if self.plan.pretrained and self.network is None and self._training is not None:
            take_imagenet(network, self.plan.backbone)
        return network

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train; return what was chosen: ``{"epochs": n}``. The validation score is that of the panel's genes."""
        if train.measured is None:
            raise InputError("he2gene needs measured sections, and these spots have none", field="models.he2gene")
        self.genes = self._shared_genes(train, validation) if self.plan.aux_weight else {}
        label = self.plan.where()
        labels = None if label is None else train.measured.labels(label)
        self.has_label = labels is not None and bool(np.isfinite(labels).any())
        if self.plan.spatial_weight and self.plan.neighbours == "predicted" and not self.has_label:
            raise InputError(
                "neighbours by predicted label need training spots with a label, and there are none",
                field="models.he2gene.neighbours",
                fix="choose image, or name a label",
            )
        if not self.plan.is_trained:
            self.width = train.features(self.plan.backbone).shape[1]
            self.base = None
            if self.plan.start != "none":
                self.base = Start(self.plan.backbone, normalise_by_section=self.settings.normalise_by_section)
                self.base.fit(train)
        self._training = train
        try:
            return super().fit(train, validation, seed=seed, chosen=chosen)
        finally:
            self._training = None

    def _shared_genes(self, train: Spots, validation: Spots | None) -> dict[str, str]:
        """Return every gene that all training sections measure, but those of the panel."""
        panel = {name.split(":", 1)[1] for name in self.outputs}
        shared = train.measured.genes()
        others = validation.measured.genes() if validation is not None and validation.measured is not None else shared
        own = GeneNames.of(shared, shared.values())
        there = np.ones(len(own), dtype=bool)
        if not others.keys() >= shared.keys():
            there = places(own, GeneNames.of(others, others.values())) >= 0
        of_panel = meant_by(panel, own)
        there[of_panel[of_panel >= 0]] = False
        return {gene: name for (gene, name), wanted in zip(shared.items(), there.tolist(), strict=True) if wanted}

    def _images(self, spots: Spots, *, fit: bool = False) -> Images:
        if self.plan.is_trained:
            plain = super()._images(spots, fit=fit)
        else:
            if fit:
                self._fit_features(spots)
            plain = self._feature_images(spots)
        return self._lesson(plain, spots) if fit else plain

    def _lesson(self, plain: Images, spots: Spots) -> Lesson:
        measured, n = spots.measured, len(spots)
        label = self.plan.where()
        labels = np.full(n, np.nan, dtype=np.float32) if label is None else measured.labels(label)
        named, code = np.unique(spots.sections, return_inverse=True)
        values, means = None, None
        if self.genes:
            values = measured.expression(self.genes)
            spots_each, squares = np.bincount(code), 0.0
            by_section = np.empty((len(named), len(self.genes)), np.float32)
            for number in range(len(named)):  # one at a time: a copy of all counts would be most of the memory
                own = values[code == number]
                by_section[number] = np.asarray(own.mean(axis=0, dtype=np.float64)).ravel()
                squares += float(own.data.astype(np.float64) @ own.data) / n
            self.means = (spots_each @ by_section.astype(np.float64) / n).astype(np.float32)
            means = by_section if measured.centred else np.broadcast_to(self.means, by_section.shape).copy()
            taken_off = float(spots_each @ (means.astype(np.float64) ** 2).sum(axis=1)) / n
            self.scale = float(np.sqrt(max(squares - taken_off, 1e-12) / len(self.genes)))
        return Lesson(
            **{name: getattr(plain, name) for name in ("pixels", "mean", "sd", "sections", "targets")},
            plan=self.plan,
            heads=self.heads,
            graph=measured.graph(),
            auxiliary=values,
            means=means,
            code=code,
            scale=self.scale,
            labels=torch.from_numpy(labels),
        )

    def _fit_features(self, spots: Spots) -> None:
        """Keep the training features' mean and sd, as two rows, where images keep those of their pixels."""
        features = spots.features(self.plan.backbone)
        by_section = self.settings.normalise_by_section
        self.pixel_moments = np.stack(mean_and_sd(features, spots.sections, by_section=by_section))

    def _feature_images(self, spots: Spots) -> Lesson:
        features = standardise(
            spots.features(self.plan.backbone),
            spots.sections,
            *self.pixel_moments,
            by_section=self.settings.normalise_by_section,
        )
        seen = [features]
        if self.base is not None:
            seen.append(self.base.predict(spots).astype(np.float32))
        one = torch.ones((1, 3, 1, 1))
        targets = None if spots.targets is None else torch.from_numpy(np.asarray(spots.targets, dtype=np.float32))
        return Lesson(torch.from_numpy(np.concatenate(seen, axis=1)), 0 * one, one, np.asarray(spots.sections), targets)

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, len(outputs)) float32, in the units of the targets; give whole sections."""
        return self._heads_of(spots, [TARGET])[TARGET]

    def predict_heads(self, spots: Spots) -> dict[str, np.ndarray]:
        """Return what the heads say, by name, each (n, outputs) float32; give whole sections.

        ``target`` in the units of the targets, ``auxiliary`` as ln(1 + counts per 10,000), ``tumour`` a probability.
        With ``averages_symmetries`` each is the mean over the eight symmetries of the tiles.
        """
        return self._heads_of(spots, [head.name for head in self.heads])

    def label_words(self) -> dict[str, Any]:
        """Return where the label came from; empty where none was learnt."""
        label = self.plan.where()
        if label is None or not self.has_label:
            return {}
        words = {"source": label.source, "proxy": label.is_proxy, "positive": np.array(label.positive, dtype=str)}
        return words if label.above is None else {**words, "above": label.above}

    def _heads_of(self, spots: Spots, names: list[str]) -> dict[str, np.ndarray]:
        if self.network is None:
            raise RuntimeError("fit or load_state comes before predict")
        found: dict[str, np.ndarray] = {}
        for turned in spots.symmetries() if self.averages_symmetries else (spots,):
            for name, values in self._upright(turned, names).items():
                found[name] = values if name not in found else found[name] + values
        views = 8 if self.averages_symmetries else 1
        return {name: (values / np.float32(views)) if views > 1 else values for name, values in found.items()}

    def _upright(self, spots: Spots, names: list[str]) -> dict[str, np.ndarray]:
        """Return the named heads' predictions of tiles as they are, `BLOCK` tiles at a time."""
        self.network.to(self.device).eval()
        moments = None
        if self.plan.is_trained and self.settings.normalise_by_section:
            moments = self._section_moments(spots)
        whole = None if self.plan.is_trained else self._feature_images(replace(spots, targets=None))
        sizes = {head.name: head.outputs for head in self.heads if head.name in names}
        found = {name: np.empty((len(spots), size), np.float32) for name, size in sizes.items()}
        chunk = -(-self.chunk // BLOCK) * BLOCK
        for start in range(0, len(spots), chunk):
            rows = np.arange(start, min(start + chunk, len(spots)))
            if whole is None:
                images = self._with(resized(spots.tiles[rows], self.input_px), spots.sections[rows], moments)
            for first in range(0, len(rows), BLOCK):
                own = rows[first : first + BLOCK]
                filled = np.resize(own, BLOCK)  # the last block repeats its first tiles
                source, base = (images, start) if whole is None else (whole, 0)
                batch = source.batch(filled - base, self.device)
                for name, values in self._block(batch, names).items():
                    found[name][own] = values[: len(own)]
        return found

    def _block(self, images: torch.Tensor, names: list[str]) -> dict[str, np.ndarray]:
        with torch.inference_mode(), precision(self.device):
            embedded = self.network.embed(images)
            out = {name: self.network.heads[name](embedded).float() for name in names}
            if TARGET in out:
                out[TARGET] = out[TARGET] + self.network.started(images)
        if TUMOUR in out:
            out[TUMOUR] = torch.sigmoid(out[TUMOUR])
        found = {name: values.cpu().numpy() for name, values in out.items()}
        if AUXILIARY in found:
            found[AUXILIARY] = found[AUXILIARY] * np.float32(self.scale) + self.means
        return found

    def _besides(self) -> dict[str, Any]:
        lines = "\n".join(f"{gene}\t{symbol}" for gene, symbol in self.genes.items())
        return {
            **super()._besides(),
            "auxiliary_genes": np.frombuffer(lines.encode(), dtype=np.uint8),
            "auxiliary_mean": np.zeros(0, np.float32) if self.means is None else self.means,
            "auxiliary_scale": self.scale,
            "has_label": self.has_label,
            "width": self.width,
            **state_of(self.base),
        }

    def _take(self, state: dict[str, Any]) -> None:
        lines = np.asarray(state["auxiliary_genes"], dtype=np.uint8).tobytes().decode()
        self.genes = dict(line.split("\t", 1) for line in lines.split("\n") if line)
        self.means = np.asarray(state["auxiliary_mean"], dtype=np.float32)
        self.scale, self.has_label = float(state["auxiliary_scale"]), bool(state["has_label"])
        self.width = int(state["width"])
        by_section = self.settings.normalise_by_section
        self.base = start_from(state, self.plan.backbone, normalise_by_section=by_section)
        if len(self.means) != len(self.genes):
            raise InputError("auxiliary genes and their means differ in number", fix="train the model again")
        moments = np.asarray(state["pixel_moments"], dtype=np.float32)
        self.pixel_moments = moments.reshape(2, 3 if self.plan.is_trained else self.width)

    def _fingerprint(self, facts: list[Any], *lessons: Any) -> str:
        return super()._fingerprint([*facts, list(self.genes)], *lessons)
