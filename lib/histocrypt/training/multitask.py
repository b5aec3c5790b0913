"""HE2Gene behind the interface of all predictors: the panel, every other gene and the tumour label from one encoder.

Targets are those that all networks learn. Every other gene is ln(1 + counts per 10,000), less its section's mean where
the study centres by section, all divided by one number (so that their mean square is 1, and noise of rare genes is not
blown up): with equal weights both gene heads start from the same loss.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from histocrypt.errors import InputError
from histocrypt.models.fitted import mean_and_sd, standardise
from histocrypt.models.he2gene import AUXILIARY, TARGET, TUMOUR, HE2Gene, Head, take_imagenet
from histocrypt.models.spots import Spots
from histocrypt.training import loop
from histocrypt.training.averaging import symmetries
from histocrypt.training.images import Images
from histocrypt.training.multitask_lesson import Lesson
from histocrypt.training.multitask_plan import Plan
from histocrypt.training.network import CHUNK, NetworkPredictor, resized

BLOCK = 32
"""Tiles that the network sees at once when it predicts, the last ones filled up: a prediction is the same to the bit
whatever stands beside it."""


class MultitaskPredictor(NetworkPredictor):
    """HE2Gene, trained by the loop of all networks. See `Plan` for its options."""

    def __init__(self, model: str, outputs: tuple[str, ...], **given: Any) -> None:
        super().__init__(model, outputs, **given)
        self.plan = Plan.of(self.options)
        self.genes: dict[str, str] = {}
        """Auxiliary genes, id -> symbol, in the order of their head's outputs."""
        self.means: np.ndarray | None = None
        """(g,) float32: mean of each auxiliary gene over training spots."""
        self.scale = 1.0
        self.has_label = False
        self.width = 0
        self._training: Spots | None = None
        self.chunk = CHUNK
        """Tiles held at a time in prediction, rounded up to whole blocks."""

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
        network = HE2Gene(
            self.heads, backbone=backbone, width=self.width, hidden=self.plan.hidden, dropout=self.plan.dropout
        )
        if self.plan.pretrained and self.network is None and self._training is not None:
            take_imagenet(network, self.plan.backbone)
        return network

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train; return what was chosen: ``{"epochs": n}``. The validation score is that of the panel's genes."""
        if train.measured is None:
            msg = "he2gene learns from measured sections, and these spots come without"
            raise InputError(msg, field="models.he2gene")
        self.genes = self._shared_genes(train, validation) if self.plan.aux_weight else {}
        label = self.plan.where()
        labels = None if label is None else train.measured.labels(label)
        self.has_label = labels is not None and bool(np.isfinite(labels).any())
        if self.plan.spatial_weight and self.plan.neighbours == "predicted" and not self.has_label:
            msg = "neighbours by predicted label need spots with a label to learn from, and there are none"
            raise InputError(msg, field="models.he2gene.neighbours", fix="choose image, or name a label")
        if not self.plan.is_trained:
            self.width = train.features(self.plan.backbone).shape[1]
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
        return {gene: name for gene, name in shared.items() if gene in others and gene not in panel}

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
            values = measured.expression(list(self.genes))
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
            plan=self.plan, heads=self.heads, graph=measured.graph(), auxiliary=values, means=means,
            code=code, scale=self.scale, labels=torch.from_numpy(labels),
        )  # fmt: skip

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
        one = torch.ones((1, 3, 1, 1))
        targets = None if spots.targets is None else torch.from_numpy(np.asarray(spots.targets, dtype=np.float32))
        return Lesson(torch.from_numpy(features), 0 * one, one, np.asarray(spots.sections), targets)

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, len(outputs)) float32, in the units of the targets; give whole sections."""
        return self.predict_heads(spots, wanted=(TARGET,))[TARGET]

    def predict_heads(self, spots: Spots, *, wanted: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return what the heads say, by name, each (n, outputs) float32; give whole sections.

        ``target`` in the units of the targets, ``auxiliary`` as ln(1 + counts per 10,000), ``tumour`` a probability.
        With ``average_symmetries`` each is the mean over the eight symmetries of the tiles.
        """
        if self.network is None:
            msg = "fit or load_state comes before predict"
            raise RuntimeError(msg)
        names = [head.name for head in self.heads if wanted is None or head.name in wanted]
        found: dict[str, np.ndarray] = {}
        for turned in symmetries(spots) if self.plan.average_symmetries else (spots,):
            for name, values in self._upright(turned, names).items():
                found[name] = values if name not in found else found[name] + values
        views = 8 if self.plan.average_symmetries else 1
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
        with torch.inference_mode(), loop.precision(self.device):
            embedded = self.network.embed(images)
            out = {name: self.network.heads[name](embedded).float() for name in names}
        if TUMOUR in out:
            out[TUMOUR] = torch.sigmoid(out[TUMOUR])
        found = {name: values.cpu().numpy() for name, values in out.items()}
        if AUXILIARY in found:
            found[AUXILIARY] = found[AUXILIARY] * np.float32(self.scale) + self.means
        return found

    def state(self) -> dict[str, Any]:
        """Return all that `predict_heads` needs: named arrays, and numbers."""
        lines = "\n".join(f"{gene}\t{symbol}" for gene, symbol in self.genes.items())
        return {
            **super().state(),
            "auxiliary_genes": np.frombuffer(lines.encode(), dtype=np.uint8),
            "auxiliary_mean": np.zeros(0, np.float32) if self.means is None else self.means,
            "auxiliary_scale": self.scale,
            "has_label": self.has_label,
            "width": self.width,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; names or shapes that do not fit are an `InputError`."""
        lines = np.asarray(state["auxiliary_genes"], dtype=np.uint8).tobytes().decode()
        self.genes = dict(line.split("\t", 1) for line in lines.split("\n") if line)
        self.means = np.asarray(state["auxiliary_mean"], dtype=np.float32)
        self.scale, self.has_label = float(state["auxiliary_scale"]), bool(state["has_label"])
        self.width = int(state["width"])
        if len(self.means) != len(self.genes):
            msg = "auxiliary genes and their means are not as many"
            raise InputError(msg, fix="train the model again")
        super().load_state(state)

    def _moments_of(self, stored: np.ndarray) -> np.ndarray:
        return np.asarray(stored, dtype=np.float32).reshape(2, 3 if self.plan.is_trained else self.width)

    def _fingerprint(
        self, stage: str, epochs: int, seed: int, train: loop.Images, validation: loop.Images | None
    ) -> str:
        """Hash whatever the weights depend on: beside the rest, the other genes, labels and neighbours."""
        digest = hashlib.sha256(super()._fingerprint(stage, epochs, seed, train, validation).encode())
        digest.update("\n".join(self.genes).encode())
        parts = [train.labels.numpy(), train.graph.indptr, train.graph.indices]
        if train.auxiliary is not None:
            parts += [train.auxiliary.data, train.auxiliary.indices, train.auxiliary.indptr, train.means]
        for part in parts:
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()
