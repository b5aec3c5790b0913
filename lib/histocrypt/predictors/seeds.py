"""Several networks of one kind that differ by their seed alone, and predict as one: the mean of all.

Where a network is trained on hundreds of spots, what it makes of them depends on its random start as much as on its
settings. The mean over starts has less of that (Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.options import Training
from histocrypt.predictors.base import Predictor
from histocrypt.predictors.network import NetworkPredictor

if TYPE_CHECKING:
    from histocrypt.data.load import Spots


class SeedAverage(Predictor):
    """As many networks as ``settings.seeds`` says, trained one after the other; parameters as of `registry.build`.

    The first is the network that one seed gives, to the bit. Each has a state of its own under ``last/`` while it is
    trained, so that a training that was killed goes on with the network that it was at. Curves of the first lie in
    ``curves.csv``, those of the others in ``curves_seed_<n>.csv``.
    """

    def __init__(
        self,
        model: str,
        outputs: tuple[str, ...],
        *,
        settings: Training,
        folder: Path | None = None,
        **given: Any,
    ) -> None:
        self.folder = folder
        alone = settings.model_copy(update={"seeds": 1})
        folders = [folder, *(folder and folder / "last" / f"{folder.name}_seed_{n}" for n in range(1, settings.seeds))]
        self.networks = [NetworkPredictor(model, outputs, settings=alone, folder=own, **given) for own in folders]

    @property
    def sees_tiles(self) -> bool:
        """Whether its input is the tile itself."""
        return True

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train with the seeds ``seed``, ``seed + 1``, ...; return ``{"epochs": n}``, the median of what they chose."""
        epochs = []
        for number, one in enumerate(self.networks):
            epochs.append(one.fit(train, validation, seed=seed + number, chosen=chosen)["epochs"])
            if number and one.folder is not None:
                for curves in one.folder.glob("curves*.csv"):
                    shutil.copyfile(curves, self.folder / f"{curves.stem}_seed_{number}.csv")
        return {"epochs": round(float(np.median(epochs)))}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32, the mean over the networks; give whole sections."""
        return sum(one.predict(spots) / np.float32(len(self.networks)) for one in self.networks)

    def state(self) -> dict[str, Any]:
        """Return what each network's own `state` holds, its names behind ``seed_<n>.``."""
        return {
            f"seed_{number}.{key}": value
            for number, one in enumerate(self.networks)
            for key, value in one.state().items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; names or shapes that do not fit are an `InputError`."""
        for number, one in enumerate(self.networks):
            own = f"seed_{number}."
            one.load_state({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})
