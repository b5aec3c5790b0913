"""Some spots of a section by orion-fhe, an experiment of one party; and one tile of it beside the two parties.

Nothing here is sent to anybody, and nobody is kept from seeing a tile: see `histocrypt.encrypted.orion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted import orion
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.trial import EVALUATOR, Trial, prepared_clear
from histocrypt.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from histocrypt.pipeline.checkpoints import TrainedModel

ENGINE = f"{orion.PACKAGE} {orion.VERSION}"
TITLES = {
    "torch": "torch",
    "clear": f"{orion.PACKAGE} in the clear",
    "ciphertexts": f"{orion.PACKAGE} on ciphertexts",
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """What an experiment left, and measured."""

    prediction: Path
    """Of the chosen spots, from ciphertexts."""
    clear: Path
    """Of the whole section."""
    exact: np.ndarray
    """(n, outputs) float64, the network's arithmetic in double precision."""
    sd: np.ndarray
    """(outputs,) over the training spots: the unit of errors."""
    network: orion.Network
    found: orion.OneParty

    def cost(self) -> dict[str, Any]:
        """Return seconds, memory and parameters under the names of ``agreement.json``."""
        found = self.found
        return {
            "engine": ENGINE,
            "parties": orion.PARTIES,
            "seconds": {
                "compile": round(found.set_up["seconds"], 2),
                "evaluate_per_spot": round(found.seconds["ciphertexts"], 4),
            },
            "cpu_seconds": {
                "compile": round(found.set_up["cpu_seconds"], 2),
                "evaluate_per_spot": round(found.cpu_seconds["ciphertexts"], 4),
            },
            "peak_gib": {"process": round(found.peak_gib["ciphertexts"], 3)},
            "stated_gib": found.stated_gib,
            "security_bits": SECURITY_BITS,
            "parameters": self.network.parameters.to_dict(),
        }


def trained(model: str | Path) -> orion.Network:
    """Return the network in the folder of a trained model, as orion-fhe takes it."""
    from histocrypt.pipeline.checkpoints import load_model

    return orion.network_of(load_model(model, device="cpu"))


def run_experiment(
    model: str | Path, section: str | Path, folder: str | Path, *, spots: int, **source: Any
) -> Experiment:
    """Predict some spots of a section by orion-fhe, in one process that holds the secret key; and all in the clear.

    Parameters
    ----------
    model
        Folder of a trained `fhe_cnn` or `fhe_head`.
    section
        As for `histocrypt predict`; so are ``image``, ``um_per_px`` and ``anyway`` of ``source``.
    folder
        Gets both predictions.
    spots
        Of the section, evenly spread.

    Raises
    ------
    InputError
        If the model cannot be evaluated on ciphertexts or is not for the section, orion-fhe is absent, or memory is
        short.
    """
    from histocrypt.pipeline.checkpoints import load_model
    from histocrypt.pipeline.predict import predict_section
    from histocrypt.pipeline.predictions import read_prediction

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, device="cpu")
    network = orion.network_of(loaded)
    orion.check(network)
    prepared, lowered = prepared_clear(loaded, section, spots=spots, **source)
    found = orion.evaluate(network, prepared.values)
    prediction, clear = folder / "prediction.h5ad", folder / "clear.h5ad"
    predict_section(model, section, clear, **source)
    adata = with_values(read_prediction(clear)[prepared.names].copy(), loaded, found.outputs["ciphertexts"])
    with atomic_path(prediction) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    exact, sd = lowered(prepared.values.astype(np.float64)), loaded.scaling.sd.astype(float)
    return Experiment(prediction, clear, exact, sd, network, found)


def with_values(adata: AnnData, loaded: TrainedModel, values: np.ndarray) -> AnnData:
    """Return a prediction with the values that orion-fhe decrypted, (n, outputs), and words that say so."""
    from histocrypt.pipeline.predictions import transforms_of

    column = {name: index for index, name in enumerate(loaded.about["outputs"])}
    for transform in (transforms := transforms_of(adata)):
        adata.layers[transform] = values[:, [column[f"{transform}:{gene}"] for gene in adata.var_names]]
    adata.X = adata.layers[transforms[0]].copy()
    adata.uns["prediction"] = {**adata.uns["prediction"], "engine": ENGINE, "parties": orion.PARTIES}
    return adata


def table(
    found: orion.OneParty, exact: np.ndarray, sd: np.ndarray, others: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """Return a row for each way: parties, what it takes once and a tile, memory, largest error.

    Parameters
    ----------
    found
        From `orion.evaluate`.
    exact
        (n, outputs) what errors are measured against: the arithmetic in double precision.
    sd
        (outputs,) the unit of errors.
    others
        Further rows, by title.
    """
    import pandas as pd

    rows: dict[str, Mapping[str, Any]] = {}
    for way, title in TITLES.items():
        once = found.set_up if way == "ciphertexts" else {"seconds": 0.0, "cpu_seconds": 0.0}
        rows[title] = {
            "parties": orion.PARTIES if way == "ciphertexts" else "in the clear",
            "once, s": once["seconds"],
            "once, CPU s": once["cpu_seconds"],
            "a tile, s": found.seconds[way],
            "a tile, CPU s": found.cpu_seconds[way],
            "memory, GiB": found.peak_gib[way],
            "largest error, sd": largest_error(found.outputs[way], exact, sd),
        }
    return pd.DataFrame.from_dict({**rows, **(others or {})}, orient="index")


def largest_error(values: np.ndarray, exact: np.ndarray, sd: np.ndarray) -> float:
    """Return the largest error of (n, outputs) values in standard deviations of their outputs."""
    return float((np.abs(values - exact) / sd).max())


def beside(trial: Trial, model: str | Path, spot: str, inputs: np.ndarray, exact: np.ndarray) -> pd.DataFrame:
    """Return `table` for one tile, with the two parties of a finished trial in the last row.

    Parameters
    ----------
    trial
        It evaluated the spot among others: what a tile takes is what the evaluation of all took, shared out.
    model
        Folder of the trained model.
    spot
        Its name.
    inputs, exact
        Of the spot alone, (1, ...), from `trial.polynomial`.

    Raises
    ------
    InputError
        As `orion.evaluate` does.
    """
    from histocrypt.pipeline.checkpoints import load_model
    from histocrypt.pipeline.predictions import read_prediction, transforms_of

    loaded = load_model(model, device="cpu")
    sd = loaded.scaling.sd.astype(float)
    one = orion.evaluate(orion.network_of(loaded), inputs)
    decrypted = read_prediction(trial.prediction)[[spot]]
    column = {name: index for index, name in enumerate(loaded.about["outputs"])}
    found = np.empty_like(exact)
    for transform in transforms_of(decrypted):
        found[:, [column[f"{transform}:{gene}"] for gene in decrypted.var_names]] = decrypted.layers[transform]
    cost = trial.cost()
    wall, cpu = cost["seconds"], cost["cpu_seconds"]
    two = {
        "parties": "two parties",
        "once, s": wall["compile"] + wall["keygen"] + wall["load_model"],
        "once, CPU s": cpu["compile"] + cpu["keygen"],
        "a tile, s": wall["evaluate_per_spot"],
        "a tile, CPU s": cpu["evaluate_per_spot"],
        "memory, GiB": cost["peak_gib"][EVALUATOR],
        "largest error, sd": largest_error(found, exact, sd),
    }
    return table(one, exact, sd, {"histocrypt on ciphertexts": two})
