"""Makes a predictor of any registered kind, all behind one interface."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.models.registry import MODELS, model_class

if TYPE_CHECKING:
    from histocrypt.study_parts import Training


def build(
    model: str,
    outputs: tuple[str, ...],
    *,
    settings: Training | dict[str, Any],
    options: dict[str, Any] | None = None,
    device: Any = None,
    folder: Path | None = None,
) -> Any:
    """Return an unfitted predictor with ``fit``, ``predict``, ``state`` and ``load_state``.

    Parameters
    ----------
    model
        Name in the registry.
    outputs
        Names of the predicted columns.
    settings
        Training settings; fitted baselines heed ``normalise_by_section`` only.
    options
        The model's own options.
    device, folder
        For networks: see `histocrypt.training.network.NetworkPredictor`.
    """
    from histocrypt.study_parts import Training

    settings = Training(**settings) if isinstance(settings, dict) else settings
    if MODELS[model].kind == "network":
        module, name = MODELS[model].predictor.split(":")
        predictor = getattr(import_module(module), name)
        return predictor(model, outputs, settings=settings, options=options, device=device, folder=folder)
    return model_class(model)(normalise_by_section=settings.normalise_by_section, **(options or {}))


def tile_side(model: str, settings: Training) -> int | None:
    """Return the side in pixels that a model's tiles are resized to; None: as they are stored."""
    if MODELS[model].kind == "network":
        return settings.input_px or model_class(model).input_px
    return settings.input_px
