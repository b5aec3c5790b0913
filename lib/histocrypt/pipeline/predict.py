"""Applies a trained model to a section that no study knows, in any readable format."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histocrypt import paths
from histocrypt.data.features import (
    PLACES,
    parts_of,
    reaches_of,
    ring_read,
    split_context,
)
from histocrypt.data.load import Spots, spot_names
from histocrypt.errors import InputError
from histocrypt.files import claim
from histocrypt.pipeline.checkpoints import TrainedModel, load_model
from histocrypt.pipeline.compatibility import absent_genes, missing_genes, trained_on, unlike_training
from histocrypt.pipeline.csv_files import CSV_FILES, check_submission, made_with, write_csv, write_submission
from histocrypt.pipeline.gating import add_trust, checked, judge, looked_over_spots, said_of_trust
from histocrypt.pipeline.inputs import GRID_UM, prepare_section, sections_to_predict
from histocrypt.pipeline.measured import correct, read_measured
from histocrypt.pipeline.predictions import (
    add_heads,
    is_loose_prediction,
    read_prediction,
    write_h5ad,
    write_predictions,
)
from histocrypt.pipeline.regions import check_on_image, predicted_regions, read_regions
from histocrypt.pipeline.views import Views, predict_views, recut
from histocrypt.predictors.predictability import correlations_of
from histocrypt.predictors.registry import MODELS
from histocrypt.sections.image import PatchMosaic
from histocrypt.spatial import FEW, few_around, surroundings
from histocrypt.targets.matrix import noun
from histocrypt.targets.panels import Panel
from histocrypt.tissue.grid import is_patch_folder, widest
from histocrypt.tissue.ring import ring_reach
from histocrypt.tissue.tiles import Places, read_places
from histocrypt.trust.gate import Look, Verdict, own_features
from histocrypt.trust.origin import check_origin

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.section import Section
    from histocrypt.tissue.stain import StainStatistics

Kind = Literal["section", "grid", "patches"]
"""What is predicted: a section's own spots, a grid over a slide, or single patches."""
PIXELS_A_PATCH = 4000
"""Pixels of a patch from which its section's stain is estimated."""


@dataclass(frozen=True)
class PredictedPart:
    """What was predicted of one section, or of several."""

    spots: Spots
    """Their names; tiles are gone when the temporary folder is."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    heads: dict[str, np.ndarray]
    """By head, (n, outputs)."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> spots without prediction."""
    notes: tuple[str, ...] = ()
    """What is to be said of surroundings that the model reads."""
    looked_over: dict[str, np.ndarray] | None = None
    """What is known of the spots' tiles, see `pipeline.gating.looked_over_spots`; None: not looked at."""
    verdict: Verdict | None = None
    """On the slide; None where the model cannot tell."""

    @classmethod
    def joined(cls, parts: list[PredictedPart]) -> PredictedPart:
        """Return several sections as one, in order."""
        if len(parts) == 1:
            return parts[0]

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([getattr(part.spots, name) for part in parts])

        named = {name: all_of(name) for name in ("names", "sections", "patients", "depth")}
        spots = replace(parts[0].spots, **named, pixels=None, features=None)
        heads = {name: np.concatenate([part.heads[name] for part in parts]) for name in parts[0].heads}
        return cls(spots, np.concatenate([part.coords for part in parts]), heads)


def predicted_part(
    model: TrainedModel,
    section: Section,
    folder: Path,
    views: Views,
    *,
    every: bool = False,
    kind: Kind = "section",
    anyway: bool = False,
) -> PredictedPart:
    """Predict one section.

    Parameters
    ----------
    model
        The model.
    section
        With an image.
    folder
        Temporary; tiles are memory-mapped from there.
    views
        Over what to average.
    every
        Keep spots off tissue, too.
    kind
        The spots of a ``grid`` are where they should be, and are not aligned; ``patches`` are predicted as they are.
    anyway
        Go on with a slide that the model's gate refuses.
    """
    from histocrypt.tissue.stain import StainStatistics

    about, features = model.about, _features_of(model)
    reference = StainStatistics.from_dict(about["stain"]["reference"], file="model")
    tile_um = about["geometry"]["tile_um"]
    dropped: dict[str, int] = {}
    looked = verdict = None
    if kind == "patches":
        own, coords = _patch_stain(section.image), np.asarray(section.coords)
        spots = _bare(section, model.scaling.outputs)
        places = Places(np.full(coords.shape, np.nan), tile_um)
    else:
        how = {"every": every, "align": False if kind == "grid" else None}
        how["around_um"] = ring_reach(reaches_of(features))
        spots, coords, report = prepare_section(about, section, folder, model.scaling.outputs, **how)
        own, dropped, places = StainStatistics.load(folder / "s.json"), report.dropped, read_places(folder / "tiles.h5")
        mine = own_features(features)
        seen = spots.features(mine) if mine and model.gate is not None else None
        verdict = judge(model.gate, about, folder, seen, tiles=not mine, file=section.image.path, anyway=anyway)
        looked = looked_over_spots(folder)

    def window(factor: float) -> Spots:
        if factor == 1 and kind != "patches":
            return spots
        return recut(
            spots,
            section.image,
            coords,
            um_per_px=section.um_per_px,
            tile_um=factor * tile_um,
            places=places,
            about=about,
            own=own,
            reference=reference,
            file=folder / f"window_{factor:g}.bin",
        )

    if kind == "patches" and model.gate is not None:
        verdict = checked(model.gate.judge(Look.of(own)), file=section.id, anyway=anyway)
    heads = predict_views(model, window, views)
    notes = tuple(said_of_surroundings(features, section.id, places))
    return PredictedPart(spots, coords, heads, dropped, notes, looked, verdict)


def _bare(section: Section, outputs: tuple[str, ...]) -> Spots:
    n = section.n_spots
    return Spots(
        names=spot_names(section.id, section.adata.obs_names.to_numpy().astype(str)),
        sections=np.full(n, section.id),
        patients=np.full(n, section.patient or "", dtype=object).astype(str),
        depth=np.full(n, np.nan),
        outputs=outputs,
    )


def _patch_stain(image: PatchMosaic) -> StainStatistics:
    """Estimate the stain of a section from pixels of all its patches, evenly spread; the same for every call."""
    from histocrypt.tissue.stain import estimate

    found = []
    for index in range(len(image.coords)):
        pixels = image.patch(index).reshape(-1, 3)
        found.append(pixels[:: max(1, len(pixels) // PIXELS_A_PATCH)])
    return estimate(np.concatenate(found))


def predict_section(
    model_folder: str | Path | None,
    section_path: str | Path,
    output: str | Path | None,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    bin_um: float | None = None,
    submission: str | Path | None = None,
    spacing_um: float | None = None,
    average_symmetries: bool | None = None,
    average_windows: bool = False,
    csv: str | Path | None = None,
    batch_size: int | None = None,
    regions: str | Path | None = None,
    regions_within_um: float | None = None,
    measured: str | Path | None = None,
    measured_within_um: float | None = None,
    name: str | None = None,
    patient: str | None = None,
    laboratory: str | None = None,
    overwrite: bool = False,
    anyway: bool = False,
    say: Callable[[str], None] | None = None,
) -> str:
    """Predict one section (or slide, or folder of patches) and write the predictions as ``.h5ad``.

    The section is preprocessed as the model's training sections were (mask, alignment, tiles), but no spot is dropped
    for low depth, nor, for a submission, for lying off tissue; its tiles are brought from its own stain to the model's
    reference. Tiles go through a temporary file, so that memory does not grow with the section.

    Parameters
    ----------
    model_folder
        ``models/<name>/<fold>``; None: the small model of breast tissue that comes with the library.
    section_path
        A section in any readable format. Its counts are not looked at (but by the depth-only baseline), and there need
        not be any. A hackathon file stands for its test slide. Or an image, with ``spacing_um``; or a folder of patches
        ``<section>_<x>_<y>.tif`` (.jpg, .png), predicted one by one.
    output
        Where predictions go; None: ``<section>_predicted.h5ad`` in the working folder, where none may be yet.
    image
        Image file, where the section does not name it.
    um_per_px
        Micrometres per full-resolution pixel, where the section does not tell.
    bin_um
        Side of the squares that Visium HD or Xenium is summed to, micrometres; else the format's own.
    submission
        Where a CSV with ``ID`` and the panel goes, one row per spot in the section's order: the main transform.
    spacing_um
        Predict on a regular grid over the tissue, its points so many micrometres apart, not on the section's spots.
        An image has no spots: there it is `GRID_UM` where it is not given, and this is said.
    average_symmetries
        Average over the eight symmetries of a tile; None: as the model was trained to.
    average_windows
        Average over windows of 1, 1/2 and 3/2 tile widths, as far as they fit the image.
    csv
        Folder for ``target_count_pred.csv``, ``aux_count_pred.csv`` and ``tumor_pred.csv``.
    batch_size
        Tiles held at a time, rounded up to what the network sees at once: predictions do not depend on it.
    regions
        GeoJSON of cells or regions that others drew: their predictions go to `regions_beside` the output.
    regions_within_um
        How far the nearest point may lie from a region without one; None: as far as points lie from each other.
    measured
        Counts of some spots of this section, in any readable format: they correct the predictions of all others, and
        give their intervals (`pipeline.measured`).
    measured_within_um
        How far a measured spot may lie from what it is joined to; None: half as far as the points lie from each other.
    name
        What an image is called instead of its file's name.
    patient, laboratory
        Whose it is, and who cut and stained it, where no file says so.
    overwrite
        Replace what lies where something is written; else only predictions of this command are replaced, and with
        them the CSV files that say the same.
    anyway
        Go on where the model does not fit the tissue (`trust.origin.check_origin`) or the slide (`trust.gate`), and say
        so.
    say
        Takes what is to be noted, a sentence at a time; None: it goes to stderr.

    Returns
    -------
    str
        One line that says what was predicted.

    Raises
    ------
    InputError
        If the model or the section cannot be used, or the section's resolution is too low for the model: said before
        any work. If the slide is none for the model: said before it is predicted.
    """
    from histocrypt.sections.image import is_image

    path = Path(section_path)
    if output is None:
        output = default_output(path)
        if output.exists() and not overwrite:  # slides of two folders may have one name
            problem = "already exists, perhaps of another slide of this name"
            fix = "name another file with -o, or add --overwrite"
            raise InputError(problem, file=output, field="--output", fix=fix)
    output = Path(output)
    if output.suffix != ".h5ad":
        raise InputError(
            "predictions are written as .h5ad", file=output, field="output", expected="a name that ends in .h5ad"
        )
    say = say or _to_stderr
    inputs = (section_path, image, regions, measured)
    drawn, beside = (None, None) if regions is None else (read_regions(regions), regions_beside(output))
    if beside is not None:
        claim(beside, inputs=inputs, mine=is_loose_prediction, overwrite=overwrite)
    claim(output, inputs=inputs, mine=is_loose_prediction, overwrite=overwrite)
    earlier = made_with(output)
    if submission is not None:
        claim(submission, field="--submission", inputs=inputs, mine=earlier, overwrite=overwrite)
    for name in CSV_FILES if csv is not None else ():
        claim(Path(csv) / name, field="--csv", inputs=inputs, mine=earlier, overwrite=overwrite)
        if submission is not None and Path(submission).absolute() == (Path(csv) / name).absolute():
            raise InputError("is also written by --csv", file=submission, field="--submission")
    model = load_model(paths.shipped_model() if model_folder is None else model_folder)
    if model_folder is None:
        say(shipped_words(model.about))
    if spacing_um is None and is_image(path):
        say(f"predicted on a grid, points {GRID_UM:g} um apart; --spacing asks for another")
        spacing_um = GRID_UM
    _set_up(model, average_symmetries=average_symmetries, batch_size=batch_size)
    how = {"image": image, "um_per_px": um_per_px, "bin_um": bin_um, "spacing_um": spacing_um}
    sections = sections_to_predict(model.about, path, **how, name=name, patient=patient)
    panel = Panel.from_dict(model.about["panel"])
    missing = sorted({gene for section in sections for gene in missing_genes(model.about, section, panel, say)})
    kind = "patches" if is_patch_folder(path) else "section" if spacing_um is None else "grid"
    odd = [note for section in sections for note in unlike_training(model.about, section, spots=kind == "section")]
    odd += filter(None, (trained_on(model.about, section) for section in sections))
    for section in sections:
        fits = {"missing": absent_genes(model.about, section, panel), "genes": len(panel), "anyway": anyway}
        odd += check_origin(model.about.get("origin"), section, **fits)
    if model.gate is None:
        odd.append("the model does not know what its training slides looked like, and this one is not judged")
    for note in (*(note for section in sections for note in section.notes), *odd):
        say(note)
    if drawn is not None:
        if len(sections) != 1 or kind == "patches":
            raise InputError("regions need one whole image", file=section_path, field="--regions", value=str(regions))
        check_on_image(drawn, (sections[0].image.width, sections[0].image.height), regions)
    known = None
    if measured is not None:
        how = {"kind": kind, "within_um": measured_within_um, "submission": submission is not None}
        known = read_measured(measured, sections, panel, list(model.about["transforms"]), **how)
    if submission is not None:
        if len(sections) != 1:
            raise InputError(
                "a submission needs exactly one section", file=section_path, field="--submission", value=len(sections)
            )
        check_submission(Path(submission), sections[0].dropped, section=sections[0].id)

    with tempfile.TemporaryDirectory(prefix="histocrypt-") as folder:
        parts = []
        for number, section in enumerate(sections):
            own = Path(folder) / str(number)
            own.mkdir()
            views = Views.of(
                symmetries=bool(average_symmetries),
                windows=average_windows,
                tile_um=model.about["geometry"]["tile_um"],
                widest_um=widest(section),
            )
            how = {"every": submission is not None, "kind": kind, "anyway": anyway}
            parts.append(predicted_part(model, section, own, views, **how))
        for note in (note for part in parts for note in part.notes):
            say(note)
        for section, part in zip(sections, parts, strict=True):
            if part.verdict is not None and part.verdict.reasons:
                say(f"{section.id}: {part.verdict.words}")
        whole = PredictedPart.joined(parts)
        about = _said(model, sections, missing, views, kind) | said_of_trust(
            model.about, [part.verdict for part in parts]
        )
        about |= {"laboratory": laboratory} if laboratory else {}

        def add(adata: AnnData) -> None:
            _add_heads(adata, whole.heads, model)
            add_trust(adata, model.about, model.gate, whole.looked_over)
            for note in correct(adata, known, seed=model.about["seed"]) if known is not None else ():
                say(note)

        write_predictions(
            output,
            whole.heads["target"],
            spots=whole.spots,
            coords=whole.coords,
            panel=panel,
            transforms=list(model.about["transforms"]),
            about=about,
            scaling=model.scaling,
            trust=model.about.get("predictability"),
            extra=add,
        )
    if drawn is not None:
        adata, told = predicted_regions(read_prediction(output), drawn, file=regions, within_um=regions_within_um)
        write_h5ad(beside, adata)
        say(told)
    if submission is not None:
        main = model.about["transforms"][0]
        column = {name: index for index, name in enumerate(whole.spots.outputs)}
        write_submission(
            Path(submission),
            whole.heads["target"][:, [column[f"{main}:{name}"] for name in panel.genes]],
            predicted=[name.removeprefix(f"{sections[0].id}:") for name in whole.spots.names.tolist()],
            order=sections[0].adata.obs_names.to_list(),
            columns=panel.genes,
        )
    written = [str(path) for path in (output, beside, submission) if path is not None]
    if csv is not None:
        written += map(str, write_csv(Path(csv), output))
    gone = ", ".join(f"{count} {reason}" for reason, count in whole.dropped.items())
    named = sections[0].id if len(sections) == 1 else f"{len(sections)} sections"
    return (
        f"{' and '.join(written) if len(written) < 3 else ', '.join(written)}: "
        f"{len(whole.spots)} spots x {len(panel)} {noun(panel.matrix)}s of {named} by {about['title']} "
        f"({sections[0].um_per_px:.3g} µm/px, {sections[0].um_per_px_source}"
        + (f"; {views.words}" if views.words else "")
        + (f"; without prediction: {gone}" if gone else "")
        + ")"
    )


def default_output(section: Path) -> Path:
    """Return where the predictions of a section go if nobody says."""
    return Path(f"{section.name if section.is_dir() else section.stem}_predicted.h5ad")


def regions_beside(output: Path) -> Path:
    """Return where the predictions of regions go: beside those of the points."""
    return output.with_name(f"{output.stem}.regions.h5ad")


def _to_stderr(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def shipped_words(about: dict[str, Any]) -> str:
    """Return what is to be known before the model that comes with the library is believed."""
    main, told = about["transforms"][0], about["predictability"]
    values = correlations_of(told, [name for name in about["outputs"] if name.startswith(f"{main}:")])
    lowest, highest = np.nanquantile(values, (0.1, 0.9))
    return (
        f"no --model is named: the small model that comes with HistoCrypt predicts, of H&E of breast tissue alone. On "
        f"patients left out, {told['patients']} in all, eight in ten of its {len(values)} genes correlate by "
        f"{lowest:.2f} to {highest:.2f} within a section; {paths.shipped_model() / 'README.md'} says which"
    )


def _set_up(model: TrainedModel, *, average_symmetries: bool | None, batch_size: int | None) -> None:
    """Hand the switches to the model; what averages for itself does so only where nobody says otherwise."""
    if batch_size is not None:
        if batch_size < 1:
            raise InputError("is not a number of tiles", field="--batch-size", value=batch_size, expected="1 or more")
        model.predictor.chunk = batch_size
    if average_symmetries is not None:
        model.predictor.averages_symmetries = False


def _said(model: TrainedModel, sections: list[Section], missing: list[str], views: Views, kind: Kind) -> dict[str, Any]:
    """Return what ``uns["prediction"]`` says."""
    seen = [section.id for section in sections if trained_on(model.about, section)]
    return {
        "model": model.about["model"],
        "title": model.about.get("title", model.about["model"]),
        "fold": model.about["fold"],
        "part": "new",
        "study": model.about["study"]["name"],
        "study_hash": model.about["study"]["hash"],
        "seed": model.about["seed"],
        **said_of_sections(sections, missing, kind),
        **({"trained_on": np.array(seen, dtype=str)} if seen else {}),
        "weights_sha256": model.about["weights"]["sha256"],
        **({"views": views.words} if views.words else {}),
        **({"points": "of a grid over the image, no spots of the section"} if kind == "grid" else {}),
        **({"places": "side by side, since patches have no positions"} if kind == "patches" else {}),
    }


def said_of_sections(sections: list[Section], missing: list[str], kind: Kind) -> dict[str, Any]:
    """Return what ``uns["prediction"]`` says of sections and their genes that were not measured."""
    from histocrypt.tissue.preprocess import spot_diameter_um

    first = sections[0]
    return {
        "section": ", ".join(section.id for section in sections),
        "um_per_px": float(first.um_per_px),
        "um_per_px_source": first.um_per_px_source,
        **({"spot_diameter_um": spot_diameter_um(first)} if kind == "section" else {}),
        "unmeasured_genes": np.array(missing, dtype=str),
        **({"image": str(Path(first.image.path).resolve())} if kind != "patches" else {}),
    }


def _features_of(model: TrainedModel) -> str:
    """Return the name of the features that a model reads; empty for one that reads tiles, one by one."""
    options = model.about["options"]
    if MODELS[model.about["model"]].averages and (reach := model.about["training"].get("smooth_um")):
        return f"{PLACES}~{reach}"
    return getattr(model.predictor, "encoder", "") or options.get("encoder") or options.get("backbone") or ""


def said_of_surroundings(features: str, section: str, places: Places) -> list[str]:
    """Return notes on spots of which few neighbours were measured, where a model reads surroundings.

    Parameters
    ----------
    features
        Names of what the model reads; empty: no features.
    section
        Its id.
    places
        Where the tiles of the spots lie, and the rings that were cut around them.
    """
    notes, n, nowhere = [], len(places.um), not np.isfinite(places.um).all()
    for part in parts_of(features)[0] if features else []:
        _, reach = split_context(part)
        if not reach:
            continue
        few, ring = few_around(places.um, reach), ring_read(places, part)
        graph = surroundings(places.um, reach, ring=None if ring is None else (ring.um, ring.pairs))
        alone, helped = int((graph.diagonal() > 0).sum()), len(np.unique(graph[:, n:].nonzero()[0]))
        if helped:
            told = f"{section}: {len(few)} of {n} spots have fewer than {FEW} others within {reach:g} um"
            notes.append(f"{told}; for {helped} of them tiles of the image around them are read, too")
        if alone:
            why = "patches have no positions" if nowhere else f"spots have no other one within {reach:g} um"
            said = "the model uses their own tiles in place of their surroundings"
            notes.append(f"{section}: {alone} of {n} {why}; {said}")
    return list(dict.fromkeys(notes))


def _add_heads(adata: AnnData, heads: dict[str, np.ndarray], model: TrainedModel) -> None:
    if MODELS[model.about["model"]].has_heads:
        add_heads(adata, heads, model.predictor)
    model.predictor.add_layers(adata, model.scaling)
