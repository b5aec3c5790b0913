"""How often the gate lets slides pass that it should, and warns of others: a table that can embarrass it.

    python benchmarks/gate.py [--tiles 32] [--real] [--demo] [--harm [SECTION ...]] [--spots]

``--real`` reads a finished run of `studies/breast_unseen.yaml` (in HISTOCRYPT_OUTPUTS) and its sections (in
HISTOCRYPT_DATA): every section is judged by the model of the fold that holds its patient out, as it is and as what it
is not (changed tiles; ``2x coarser`` is cut anew with twice the width). ``--demo`` simulates 20 patients of two
centres, and judges each by a gate of all others (known centre) and by one of the other centre alone; features are
colour and nuclei. Sections as they are count with all their spots, changed ones with ``--tiles`` of them. Takes 2
CPU minutes for real ones whose features are cached, 3 for the demo. ``--harm`` predicts every changed section with the
model that has not seen its patient, and prints what it costs beside the gate's numbers (about 10
CPU seconds for a section and change). ``--spots`` draws pen on real tissue and folds it. ``docs/trust.md`` holds the
tables.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from histocrypt.data.features import section_features
from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.folds import FINAL, load_folds
from histocrypt.data.load import load_spots
from histocrypt.demo.write import planted, write_demo
from histocrypt.encoders.described import DESCRIBED
from histocrypt.evaluation.metrics import pearson
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.sections.read import read_path
from histocrypt.study import load_study
from histocrypt.targets.matrix import columns_of, targets_of
from histocrypt.targets.panels import Panel
from histocrypt.tissue.artefacts import FOLD, PEN, looked_over
from histocrypt.tissue.focus import COARSE, sharpness
from histocrypt.tissue.stain import StainStatistics, estimate
from histocrypt.tissue.tiles import Places, iter_tiles, read_places
from histocrypt.trust.gate import WORDS, Gate, Look, own_features

if TYPE_CHECKING:
    from histocrypt.study import Study

STUDY, MODEL = "breast_unseen", "fusion_ridge"
COARSER = "2x coarser than said"


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that changes tile after tile."""
    return lambda tiles: np.stack([change(tile) for tile in tiles])


def enlarged(times: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that shows the middle of a tile, as if pixels were coarser than they are."""

    def change(tile: np.ndarray) -> np.ndarray:
        side = len(tile)
        start, kept = (side - side // times) // 2, side // times
        middle = Image.fromarray(tile[start : start + kept, start : start + kept])
        return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS))

    return each(change)


def compressed(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that saves tiles as JPEG."""

    def change(tile: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(tile).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return each(change)


def grey(tiles: np.ndarray) -> np.ndarray:
    """Return tiles without colour."""
    return np.repeat(tiles.mean(axis=-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)


def brown(tiles: np.ndarray) -> np.ndarray:
    """Return tiles whose eosin has the colour of diaminobenzidine (Ruifrok and Johnston 2001, by scikit-image)."""
    from skimage.color import rgb_from_hed

    own, light = estimate(tiles[:, ::3, ::3].reshape(-1, 3)), 240.0
    density = -np.log((tiles.astype(np.float32) + 1) / light) @ np.linalg.pinv(own.stain_matrix).T.astype(np.float32)
    dab = rgb_from_hed[2] / np.linalg.norm(rgb_from_hed[2])
    vectors = np.stack([own.stain_matrix[:, 0], dab]).astype(np.float32)
    return np.clip(light * np.exp(-density @ vectors), 0, 255).astype(np.uint8)


def blurred(px: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that smooths tiles by a Gaussian."""
    return each(lambda tile: gaussian_filter(tile, (px, px, 0)))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda tiles: 255 - tiles,
    "grey": grey,
    "eosin brown": brown,
    "blurred by 1 px": blurred(1),
    "blurred by 2 px": blurred(2),
    "blurred by 4 px": blurred(4),
    "blurred by 8 px": blurred(8),
    "2x finer than said": enlarged(2),
    "4x finer than said": enlarged(4),
    "JPEG, quality 30": compressed(30),
    "JPEG, quality 10": compressed(10),
}


def some(count: int, most: int) -> np.ndarray:
    """Return evenly spread places."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def look_of(tiles: np.ndarray, features: str, *, tile_um: float, method: str = "macenko") -> Look:
    """Return the look of tiles alone, whose stain is estimated from themselves."""
    stain = estimate(tiles[:, ::3, ::3].reshape(-1, 3))
    names = np.array([f"changed:{i}" for i in range(len(tiles))])
    if set(features.split("+")) <= set(DESCRIBED):
        how = {"stain": stain, "um_per_px": tile_um / tiles.shape[1]}
        found = np.concatenate([DESCRIBED[name].describe(tiles, **how) for name in features.split("+")], axis=1)
    else:
        places = Places(np.full((len(tiles), 2), np.nan), tile_um)
        found = section_features(tiles, stain=stain, method=method, encoder=features, names=names, places=places)
    return Look.of(stain, sharpness(tiles), found, coarse=sharpness(tiles, every=COARSE))


def real(most: int) -> Iterator[tuple[str, str, str]]:
    """Yield question, what was done, and the verdict, of every real section."""
    study = load_study(f"studies/{STUDY}.yaml")
    run, tile_um = study.run, study.preprocessing.tile_um
    for fold in load_folds(run.folds):
        if fold.name == FINAL:
            continue
        model = load_model(run.model(MODEL, fold.name))
        own = own_features(model.predictor.encoder)
        panel = Panel.load(run.fold(fold.name) / "panel.json")
        known = {look.laboratory for look in model.gate.looks.values()}
        for section in fold.test_sections:
            obs = read_clean_section(run.section(section), parts=("obs",)).obs
            spots = load_spots(study, fold, [section], panel=panel, with_targets=False)
            with h5py.File(run.tiles(section)) as file:
                coarse = sharpness(file["img"], every=COARSE)
            stain = StainStatistics.load(run.stain(section))
            look = Look.of(stain, obs["sharpness"].to_numpy(), spots.features(own), coarse=coarse)
            question = "known laboratory" if obs["laboratory"].iloc[0] in known else "new laboratory"
            yield question, "as it is", model.gate.judge(look).word
            with h5py.File(run.tiles(section)) as file:
                tiles = file["img"][some(len(file["img"]), most)]
            for name, change in CHANGES.items():
                yield question, name, model.gate.judge(look_of(change(tiles), own, tile_um=tile_um)).word
            seen = wide(study, section, some(len(obs), most))
            yield question, COARSER, model.gate.judge(look_of(seen, own, tile_um=tile_um)).word


def wide(study: Study, section: str, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Return a section's tiles cut anew with twice the width, as if pixels were finer than they are."""
    source = read_path(study.resolve(f"data:{section}.h5ad"), for_prediction=True)
    where = np.asarray(read_clean_section(study.run.section(section), parts=("obs", "obsm")).obsm["spatial"])
    um, px = study.preprocessing.tile_um, study.preprocessing.tile_px
    return np.stack(
        list(iter_tiles(source.image, where[chosen], um_per_px=source.um_per_px, tile_um=2 * um, tile_px=px))
    )


def harmed(sections: tuple[str, ...] = ()) -> Iterator[dict[str, object]]:
    """Yield what each change costs each real section (or those named), predicted by the model of the other patients.

    Surroundings are those of the spots, changed alike; rings of tiles beside them are left out, of the section as it
    is, too.
    """
    study = load_study(f"studies/{STUDY}.yaml")
    run, method = study.run, study.preprocessing.stain
    for fold in load_folds(run.folds):
        if fold.name == FINAL:
            continue
        model, panel = load_model(run.model(MODEL, fold.name)), Panel.load(run.fold(fold.name) / "panel.json")
        own = own_features(model.predictor.encoder)
        for section in (one for one in fold.test_sections if one in sections or not sections):
            spots = load_spots(study, fold, [section], panel=panel, with_targets=False)
            cleaned, transforms = read_clean_section(run.section(section)), study.target.transforms
            there = np.flatnonzero(columns_of(cleaned, panel.genes, panel.symbols, section=section) >= 0)
            genes, symbols = ([all_of[i] for i in there] for all_of in (panel.genes, panel.symbols))
            true = targets_of(cleaned, genes, transforms, section=section, symbols=symbols)
            places = replace(read_places(run.tiles(section)), ring=None)
            with h5py.File(run.tiles(section)) as file:
                tiles = file["img"][:]
            own_stain = StainStatistics.load(run.stain(section))
            for name in ("as it is", *CHANGES, COARSER):
                seen = wide(study, section) if name == COARSER else CHANGES.get(name, np.asarray)(tiles)
                stain = own_stain if seen is tiles else estimate(seen[:, ::3, ::3].reshape(-1, 3))
                how = {"stain": stain, "method": method, "names": spots.names, "places": places}
                described = partial(section_features, seen, **how)
                changed = replace(spots, features=lambda encoder, described=described: described(encoder=encoder))
                found, sharp = model.predict(changed), sharpness(seen)
                about = {"features": changed.features(own), "coarse": sharpness(seen, every=COARSE)}
                verdict = model.gate.judge(Look.of(stain, sharp, **about))
                row = {"patient": spots.patients[0], "section": section, "slide": name, "word": verdict.word}
                for number, transform in enumerate(transforms):
                    said, known = found[:, number * len(panel) + there], true[transform]
                    apart, told = (said - said.mean(axis=0)) - (known - known.mean(axis=0)), known.std(axis=0) > 1e-6
                    row[f"r {transform}"] = float(np.nanmean(pearson(known, said)))
                    row[f"error {transform}"] = float((apart.std(axis=0)[told] / known.std(axis=0)[told]).mean())
                yield {**row, **verdict.measured}


def print_harm(rows: list[dict[str, object]]) -> None:
    """Print what each change costs, and how well the gate's distances rank it."""
    table = pd.DataFrame(rows)
    units = [name.removeprefix("r ") for name in table if name.startswith("r ")]
    for unit in units:
        plain = table[table["slide"] == "as it is"].set_index("section")[f"r {unit}"]
        table[f"lost {unit}"] = 1 - table[f"r {unit}"] / table["section"].map(plain)
    table["lost"] = table[[f"lost {unit}" for unit in units]].max(axis=1)
    numbers = [f"{what} {unit}" for unit in units for what in ("r", "error")]
    shown = ["lost", *numbers, "shift", "colour", "sharpness", "coarse"]
    means = table.groupby(["patient", "slide"], sort=False)[shown].mean()
    words = table.groupby(["patient", "slide"], sort=False)["word"].agg(lambda all_of: ", ".join(sorted(set(all_of))))
    print(f"| patient | the slide | {' | '.join(shown)} | word |\n|{'---|' * (len(shown) + 3)}")
    for (patient, slide), row in means.iterrows():
        print(f"| {patient} | {slide} | {' | '.join(f'{value:.2f}' for value in row)} | {words[patient, slide]} |")
    print("\nSpearman's rank correlation of distances with the share of the correlation that is lost:")
    for patient, own in table[table["slide"] != "as it is"].groupby("patient", sort=False):
        ranked = {name: spearmanr(own[name].abs(), own["lost"]).statistic for name in shown[-4:]}
        print(f"{patient}: {', '.join(f'{name} {value:.2f}' for name, value in ranked.items())}")


INKS = {
    "blue": (40, 110, 200),
    "dark blue": (20, 25, 90),
    "green": (30, 120, 60),
    "black": (25, 25, 28),
    "red": (200, 30, 45),
}


def inked(tile: np.ndarray, ink: tuple[int, int, int], opaque: float) -> np.ndarray:
    """Return a tile that a stroke of pen crosses."""
    stroke = Image.new("L", (len(tile), len(tile)))
    ends = [(0, len(tile) // 4), (len(tile), 2 * len(tile) // 3)]
    ImageDraw.Draw(stroke).line(ends, fill=255, width=len(tile) // 3)
    cover = np.asarray(stroke)[..., None] / 255 * opaque
    return (tile * (1 - cover) + np.array(ink) * cover).astype(np.uint8)


def folded(tiles: np.ndarray, light: np.ndarray, share: float, layers: int) -> np.ndarray:
    """Return tiles of which a share is covered by the tissue of other tiles: two layers, or three as in a pleat."""
    width, seen = round(share * tiles.shape[1]), tiles.astype(np.float32)
    for layer in range(1, layers):
        seen[:, :, :width] *= np.roll(tiles, layer * len(tiles) // 3, axis=0)[:, :, :width] / light
    return seen.clip(0, 255).astype(np.uint8)


def print_spots(most: int) -> None:
    """Print how often spots are flagged, as they are, and, of ``most``, after ink and folds were added to a third."""
    study = load_study(f"studies/{STUDY}.yaml")
    um_per_px = study.preprocessing.tile_um / study.preprocessing.tile_px
    flagged: dict[str, dict[str, str]] = defaultdict(dict)
    for section in sorted({one for fold in load_folds(study.run.folds) for one in fold.test_sections}):
        with h5py.File(study.run.tiles(section)) as file:
            tiles = file["img"][:]
        light = np.percentile(tiles[:, ::7, ::7].reshape(-1, 3), 99.5, axis=0)

        def told(seen: np.ndarray, column: str, limit: float) -> np.ndarray:
            return looked_over(seen, um_per_px=um_per_px)[column].to_numpy() > limit

        plain = looked_over(tiles, um_per_px=um_per_px)
        flagged["as it is: pen"][section] = f"{(plain['pen_share'] > PEN).mean():.3f}"
        flagged["as it is: fold"][section] = f"{(plain['fold_share'] > FOLD).mean():.3f}"
        flagged["as it is: mean share of glass"][section] = f"{plain['background_share'].mean():.2f}"
        tiles = tiles[some(len(tiles), most)]
        where = np.arange(0, len(tiles), 3)
        for ink, colour in INKS.items():
            for opaque in (0.95, 0.7):
                seen = tiles.copy()
                seen[where] = each(lambda tile, colour=colour, opaque=opaque: inked(tile, colour, opaque))(tiles[where])
                found = looked_over(seen, um_per_px=um_per_px).iloc[where]
                both = found["pen_share"] > PEN, found["fold_share"] > FOLD
                flagged[f"{ink} pen, {opaque:.0%} opaque: pen (or fold)"][section] = (
                    f"{both[0].mean():.2f} ({(both[0] | both[1]).mean():.2f})"
                )
        for layers, share in ((2, 1.0), (3, 1.0), (3, 0.5)):
            seen = tiles.copy()
            seen[where] = folded(tiles[where], light, share, layers)
            mean = told(seen, "fold_share", FOLD)[where].mean()
            flagged[f"{layers} layers over {share:.0%}: fold"][section] = f"{mean:.2f}"
    sections = list(next(iter(flagged.values())))
    print(f"| share of spots told | {' | '.join(sections)} |\n|{'---|' * (len(sections) + 1)}")
    for what, shares in flagged.items():
        print(f"| {what} | {' | '.join(shares[section] for section in sections)} |")


def simulated(most: int, patients: int = 20) -> Iterator[tuple[str, str, str]]:
    """Yield the same of simulated patients."""
    looks, changed, variances = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(write_demo(folder, n_sections=patients, seed=7)):
            section = read_path(path, for_prediction=True)
            told = planted(section.adata)
            where = section.coords[~section.adata.obs_names.isin(told["off_tissue"])] - np.array(told["shift_um"])
            cut = np.stack(list(iter_tiles(section.image, where, um_per_px=1.0, tile_um=150, tile_px=222)))
            features, stain = [], estimate(cut[:, ::3, ::3].reshape(-1, 3))
            for name in ("colour", "morphology"):
                features.append(DESCRIBED[name].describe(cut, stain=stain, um_per_px=150 / 222))
            every = np.concatenate(features, axis=1)
            variances.append(every.var(axis=0, dtype=np.float64))
            about = {"patient": section.patient, "laboratory": str(section.adata.uns["laboratory"])}
            looks[section.id] = Look.of(stain, sharpness(cut), every, coarse=sharpness(cut, every=COARSE), **about)
            if number < 6:
                part = cut[some(len(cut), most)]
                for name, change in CHANGES.items():
                    changed[section.id, name] = look_of(change(part), "colour+morphology", tile_um=150)
    sd = dict(zip(looks, variances, strict=True))

    def gate(names: list[str]) -> Gate:
        return Gate({name: looks[name] for name in names}, np.sqrt(np.mean([sd[name] for name in names], axis=0)))

    for section, look in looks.items():
        others = [name for name in looks if name != section]
        made = gate(others)
        yield "demo, known centre", "as it is", made.judge(look).word
        for name in CHANGES:
            if (section, name) in changed:
                yield "demo, known centre", name, made.judge(changed[section, name]).word
        apart = [name for name in others if looks[name].laboratory != look.laboratory]
        yield "demo, other centre alone", "as it is", gate(apart).judge(look).word


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=32)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--harm", nargs="*", metavar="SECTION")
    parser.add_argument("--spots", action="store_true")
    given = parser.parse_args()
    if given.harm is not None:
        print_harm(list(harmed(tuple(given.harm))))
    if given.spots:
        print_spots(given.tiles)
    if not (given.real or given.demo):
        return
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for wanted, made in ((given.real, real), (given.demo, simulated)):
        for question, done, word in made(given.tiles) if wanted else ():
            counts[question, done][word] += 1
    print(f"| trained without the patient | the slide | {' | '.join(WORDS)} |\n|---|---|---|---|---|")
    for (question, done), found in sorted(counts.items(), key=lambda one: (one[0][0], one[0][1] != "as it is")):
        print(f"| {question} | {done} | {' | '.join(str(found[word]) for word in WORDS)} |")


if __name__ == "__main__":
    main()
