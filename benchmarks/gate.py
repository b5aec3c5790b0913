"""How often the gate lets slides pass that it should, and warns of others: a table that can embarrass it.

    python benchmarks/gate.py [--tiles 32] [--real] [--demo]

``--real`` reads a finished run of `studies/breast_unseen.yaml` (in HISTOCRYPT_OUTPUTS) and its sections (in
HISTOCRYPT_DATA): every section is judged by the model of the fold that holds its patient out, as it is and as what it
is not (changed tiles; ``2x coarser`` is cut anew with twice the width). ``--demo`` simulates 20 patients of two
centres, and judges each by a gate of all others (known centre) and by one of the other centre alone; features are
colour and nuclei. Sections as they are count with all their spots, changed ones with ``--tiles`` of them. Takes 2
CPU minutes for real ones whose features are cached, 3 for the demo. ``docs/trust.md`` holds the table.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from histocrypt.data.features import section_features
from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.folds import FINAL, load_folds
from histocrypt.data.load import load_spots
from histocrypt.demo.write import planted, write_demo
from histocrypt.encoders.described import DESCRIBED
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.sections.read import read_path
from histocrypt.study import load_study
from histocrypt.targets.panels import Panel
from histocrypt.tissue.focus import sharpness
from histocrypt.tissue.stain import StainStatistics, estimate
from histocrypt.tissue.tiles import Places, iter_tiles
from histocrypt.trust.gate import WORDS, Gate, Look, own_features

STUDY, MODEL = "breast_unseen", "fusion_ridge"


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


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda tiles: 255 - tiles,
    "grey": grey,
    "blurred by 1 px": each(lambda tile: gaussian_filter(tile, (1, 1, 0))),
    "blurred by 2 px": each(lambda tile: gaussian_filter(tile, (2, 2, 0))),
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
    return Look.of(stain, sharpness(tiles), found)


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
            look = Look.of(StainStatistics.load(run.stain(section)), obs["sharpness"].to_numpy(), spots.features(own))
            question = "known laboratory" if obs["laboratory"].iloc[0] in known else "new laboratory"
            yield question, "as it is", model.gate.judge(look).word
            with h5py.File(run.tiles(section)) as file:
                tiles = file["img"][some(len(file["img"]), most)]
            for name, change in CHANGES.items():
                yield question, name, model.gate.judge(look_of(change(tiles), own, tile_um=tile_um)).word
            source = read_path(study.resolve(f"data:{section}.h5ad"), for_prediction=True)
            where = np.asarray(read_clean_section(run.section(section), parts=("obs", "obsm")).obsm["spatial"])
            how = {"um_per_px": source.um_per_px, "tile_um": 2 * tile_um, "tile_px": tiles.shape[1]}
            wide = np.stack(list(iter_tiles(source.image, where[some(len(where), most)], **how)))
            yield question, "2x coarser than said", model.gate.judge(look_of(wide, own, tile_um=tile_um)).word


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
            looks[section.id] = Look.of(stain, sharpness(cut), every, **about)
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
    given = parser.parse_args()
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for wanted, made in ((given.real, real), (given.demo, simulated)):
        for question, done, word in made(given.tiles) if wanted else ():
            counts[question, done][word] += 1
    print(f"| trained without the patient | the slide | {' | '.join(WORDS)} |\n|---|---|---|---|---|")
    for (question, done), found in sorted(counts.items(), key=lambda one: (one[0][0], one[0][1] != "as it is")):
        print(f"| {question} | {done} | {' | '.join(str(found[word]) for word in WORDS)} |")


if __name__ == "__main__":
    main()
