"""A section made ready to be encrypted: read, judged, cut, normalised, and refused where the model is not for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.scratch import scratch

CHUNK = 256
"""Spots that are looked at together."""


@dataclass(frozen=True)
class Prepared:
    """A section ready to be encrypted."""

    section: str
    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    patient: str
    raw: np.ndarray
    """(n, side, side, 3) uint8 tiles, or (n, features) float32."""
    scale: Callable[[np.ndarray], np.ndarray]
    """From rows of ``raw`` to what the network sees of them."""
    about: dict[str, Any]
    """Resolution, unmeasured genes, origin, verdict: goes into the prediction file. ``without_prediction``: spots."""
    looked_over: dict[str, np.ndarray] | None = None
    """What is known of the spots' tiles, see `pipeline.gating.looked_over_spots`."""

    @property
    def values(self) -> np.ndarray:
        """(n, channels, side, side) or (n, features) float32, as the network sees them."""
        return self.inputs(np.arange(len(self.names)))

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Return what the network sees of some spots, as `values`."""
        return self.scale(self.raw[rows])

    def only(self, rows: np.ndarray, *, reason: str = "") -> Prepared:
        """Return these spots alone; the others are counted as without prediction for a ``reason``, if one is given."""
        about = self.about
        if reason and (left := len(self.names) - len(rows)):
            about = {**about, "without_prediction": {**about["without_prediction"], reason: left}}
        looked = None if self.looked_over is None else {name: one[rows] for name, one in self.looked_over.items()}
        rest = {"names": self.names[rows], "coords": self.coords[rows], "raw": self.raw[rows]}
        return replace(self, **rest, about=about, looked_over=looked)


def evenly(count: int, most: int | None) -> np.ndarray:
    """Return at most so many of the numbers below ``count``, evenly spread; all where ``most`` is None."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))


def as_seen(
    values: np.ndarray, sees: str, normalisation: dict[str, Any]
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return a section's tiles or features, and the function from some of them to what the network sees, float32.

    Tiles stay as they are, a quarter of the size; features are standardised at once.

    Parameters
    ----------
    values
        (n, side, side, 3) uint8 tiles, or (n, d) features, of all spots of one section.
    sees
        ``tiles`` or ``features``.
    normalisation
        ``by_section``: with this section's own mean and deviation (of features at least a share of ``sd``, those within
        training sections); else with ``mean`` and ``sd`` of the training spots. What is not needed is not there.
    """
    mean, sd = (np.asarray(normalisation.get(name, 0), dtype=np.float32) for name in ("mean", "sd"))
    if sees == "features":
        from histocrypt.predictors.closed_form import standardise

        sections = np.zeros(len(values), dtype=int)
        return standardise(values, sections, mean, sd, by_section=normalisation["by_section"]), _itself
    if normalisation["by_section"]:  # as `predictors.network.PixelMoments` has them, without torch
        total, squares = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
        for tile in values:
            grey = tile.reshape(-1, 3).astype(np.int64)
            total, squares = total + grey.sum(axis=0), squares + (grey * grey).sum(axis=0)
        count = values[..., 0].size
        mean = total / count
        sd = np.sqrt(np.maximum(squares / count - mean**2, 0)).clip(1.0)
        mean, sd = (np.stack([mean, sd]) / 255).astype(np.float32)

    def scale(tiles: np.ndarray) -> np.ndarray:
        scaled = tiles.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        scaled /= np.float32(255)  # in place: a batch of four thousand tiles is large
        scaled -= mean[:, None, None]
        scaled /= sd[:, None, None]
        return scaled

    return values, scale


def _itself(rows: np.ndarray) -> np.ndarray:
    return rows


def prepare(
    client: Client,
    section_path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    bin_um: float | None = None,
    panel: str | Path | None = None,
    skip_out_of_range: bool = False,
    spots: int | None = None,
    folder: Path | None = None,
    anyway: bool = False,
) -> Prepared:
    """Prepare a section for encryption, or refuse it; nothing is encrypted and no key is needed.

    Parameters
    ----------
    client
        The public part of the compiled model.
    section_path
        A section in any readable format.
    image, um_per_px
        Where the section does not tell them.
    bin_um
        Side of the squares that Visium HD or Xenium is summed to, micrometres; else the format's own.
    panel
        A list of gene ids, one a line, that the client expects to get, in this order.
    skip_out_of_range
        Leave out spots whose values are outside the calibrated range, instead of refusing the section.
    spots
        Of the section, evenly spread in the order of its file; all if not given. The section is standardised whole.
    folder
        Where a private folder is made in which tiles lie in the clear meanwhile; the system's if not given.
    anyway
        Go on where the model does not fit the tissue or the slide, and say so.

    Raises
    ------
    InputError
        If the section cannot be read, its pixels are too coarse, the panel is another one, the model is not for it
        (`trust.origin.check_origin`, `trust.gate`), or a spot's values are outside the range that the model was
        calibrated for.
    """
    from histocrypt.data.features import reaches_of
    from histocrypt.encrypted.told import gate_of, judged_features
    from histocrypt.pipeline.compatibility import check_fit, unlike_training
    from histocrypt.pipeline.gating import judge, looked_over_spots, said_of_trust
    from histocrypt.pipeline.inputs import prepare_section
    from histocrypt.pipeline.predict import said_of_sections, said_of_surroundings
    from histocrypt.sections.genes import GeneNames, meant_by
    from histocrypt.sections.read import read_path
    from histocrypt.targets.panels import Panel, read_gene_list
    from histocrypt.tissue.ring import ring_reach
    from histocrypt.tissue.tiles import read_places
    from histocrypt.trust.origin import check_origin

    about = client.about
    offered = Panel.from_dict(about["panel"])
    if panel is not None:
        wanted = list(read_gene_list(panel))
        meant = meant_by(wanted, GeneNames.of(offered.genes, offered.symbols))
        if meant.tolist() != list(range(len(offered))):
            other = (f"{len(wanted)} genes", len(offered))
            got, due = next(
                (pair for row, pair in enumerate(zip(wanted, offered.genes, strict=False)) if meant[row] != row), other
            )
            due = f"{due} (model: {len(offered)} genes)"
            raise InputError("this model predicts another panel", file=panel, field="panel", value=got, expected=due)
    section = read_path(section_path, image=image, um_per_px=um_per_px, bin_um=bin_um, for_prediction=True)
    missing = check_fit(about, section, offered)
    absent = missing if offered.matrix is None else []
    fits = check_origin(about.get("origin"), section, missing=absent, genes=len(offered), anyway=anyway)
    if "gate" not in about:
        fits.append("the model does not say what its training slides looked like, and this one is not judged")
    for note in (*section.notes, *unlike_training(about, section), *fits):
        print(f"note: {note}", file=sys.stderr)
    with scratch(folder) as private:
        sees = about["sees"]
        encoder = about["input"]["encoder"] if sees == "features" else ""
        around = ring_reach(reaches_of(encoder))
        cut, coords, report = prepare_section(about, section, private, tuple(about["outputs"]), around_um=around)
        for note in said_of_surroundings(encoder, section.id, read_places(private / "tiles.h5")):
            print(f"note: {note}", file=sys.stderr)
        gate, mine, seen = gate_of(about), judged_features(about), None
        if gate is not None and gate.centre is not None:
            seen = cut.features(mine)
            if seen.shape[1:] != gate.centre.shape:
                problem, fix = (
                    "is not in terms of the features that the model uses",
                    "ask the model's owner for it again",
                )
                raise InputError(problem, file=client.file, field="shift", value=len(gate.centre), fix=fix)
        verdict = judge(gate, about, private, seen, tiles=not mine, file=section.image.path, anyway=anyway)
        if verdict is not None and verdict.reasons:
            print(f"note: {section.id}: {verdict.words}", file=sys.stderr)
        looked = looked_over_spots(private)
        if encoder:
            raw = seen if seen is not None and encoder == mine else cut.features(encoder)
        else:
            raw = np.array(cut.tiles)
        raw, scale = as_seen(raw, sees, about["normalisation"])
        names = cut.names
    keep = _in_range(raw, scale, client, names, section_path, skip=skip_out_of_range)
    dropped = {**report.dropped, **({"out of range": int((~keep).sum())} if not keep.all() else {})}
    if not keep.any():
        raise InputError("no spot is left", file=section_path, value=dropped)
    prepared = Prepared(
        section=section.id,
        names=names[keep],
        coords=coords[keep],
        patient=section.patient or "",
        raw=raw if keep.all() else raw[keep],  # no second copy of a large section
        scale=scale,
        about={
            **said_of_sections([section], missing, "section"),
            **said_of_trust(about, [verdict]),
            "without_prediction": {str(key): int(n) for key, n in dropped.items()},
        },
        looked_over={name: one[keep] for name, one in looked.items()},
    )
    return prepared if spots is None else prepared.only(evenly(len(prepared.names), spots), reason="not asked for")


def _in_range(
    raw: np.ndarray,
    scale: Callable[[np.ndarray], np.ndarray],
    client: Client,
    names: np.ndarray,
    file: Any,
    *,
    skip: bool,
) -> np.ndarray:
    low, high = client.about["input_range"]
    lowest, highest = np.empty(len(raw)), np.empty(len(raw))
    for start in range(0, len(raw), CHUNK):
        flat = scale(raw[start : start + CHUNK]).reshape(-1, raw[0].size)
        lowest[start : start + CHUNK], highest[start : start + CHUNK] = flat.min(axis=1), flat.max(axis=1)
    keep = (lowest >= low) & (highest <= high)  # false for what is no number, too
    if not keep.all() and not skip:
        first = int(np.flatnonzero(~keep)[0])
        worst = lowest[first] if lowest[first] < low else highest[first]
        problem = f"{(~keep).sum()} of {len(keep)} spots are outside the range that the model was calibrated for"
        where = {"file": file, "field": str(names[first]), "value": round(float(worst), 2)}
        fix = "check the image's stain and focus there, or leave such spots out with --skip-out-of-range"
        raise InputError(problem, **where, expected=f"{low:.2f} to {high:.2f}", fix=fix)
    return keep
