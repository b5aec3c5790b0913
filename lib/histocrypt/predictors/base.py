"""The interface of every predictor, and what a family may offer beyond it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.load import Spots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from histocrypt.predictors.predictability import Predictability
    from histocrypt.targets.transforms import TargetStatistics

TARGET, AUXILIARY, TUMOUR = "target", "auxiliary", "tumour"
"""Names of heads: the panel, every other gene, and how likely a spot is tumour."""


class Predictor(ABC):
    """Fits spots, predicts spots; its state goes to a file and comes back. Give it whole sections.

    What a family has beyond that (heads, layers, samples) it says by overriding the second half; by default there is
    none.
    """

    chunk: int = 256
    """Tiles held at a time in prediction; predictions do not depend on it."""
    averages_symmetries: bool = False
    """Whether predictions are means over the eight symmetries of a tile; one may say no where the model says yes."""
    genes: Mapping[str, str] = {}
    """What the auxiliary head predicts: gene ids and their symbols."""
    predictability: Predictability | None = None
    """How well the last fit's kind predicts each output on training sections left out; None: it does not tell."""
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None
    """Called with the curves so far after every epoch, by what is trained in epochs."""

    @abstractmethod
    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit to the training spots.

        Parameters
        ----------
        train
            Spots with targets.
        validation
            Networks stop by it. What is fitted in closed form does not look at it: hyper-parameters come from inner
            cross-validation by patient (or section) on ``train``.
        seed
            Seed of whatever is random.
        chosen
            What an earlier fit chose; given in a refit on more spots, it is used instead of choosing again.

        Returns
        -------
        dict
            What was chosen, JSON-able.
        """

    @abstractmethod
    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32 predictions, in the units and the order of the targets it was fitted to.

        With ``normalise_by_section`` all spots of a section must be given at once: its own spots standardise it.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that `predict` needs: named arrays, and what JSON can hold."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; names or shapes that do not fit are an `InputError`."""

    @property
    def sees_tiles(self) -> bool:
        """Whether its input is the tile itself, not frozen features of it."""
        return False

    def predict_heads(self, spots: Spots) -> dict[str, np.ndarray]:
        """Return what every head says, by name, each (n, outputs) float32; `TARGET` is `predict`."""
        return {TARGET: np.asarray(self.predict(spots), dtype=np.float32)}

    def label_words(self) -> dict[str, Any]:
        """Return where the label of the head `TUMOUR` came from; empty where none was learnt."""
        return {}

    def add_layers(self, adata: AnnData, scaling: TargetStatistics) -> None:  # noqa: B027
        """Add what is known of the spread of its last predictions to their file."""

    def samples(self, spots: Spots) -> np.ndarray | None:
        """Return samples of the main transform, (n, K, genes) float32 in the loss's units; None: it draws none."""
        return None

    def warm(self, *parts: Spots | None) -> None:  # noqa: B027
        """Compute what is cached for these spots, so that processes that train together find it."""
