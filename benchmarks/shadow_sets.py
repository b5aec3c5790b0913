"""What a set of drawn tiles gives away, where the truth is known: simulated patients, and leaks planted by degrees.

    python benchmarks/shadow_sets.py [--figure docs/sets.png] [--folder KEPT] [--patients 24] [--shadows 16]

Patients are simulated (the demo tissue, two centres in turn), 36 tiles of 16 pixels each that do not overlap; sets are
seen by a reconstruction network that learnt from eight further patients, as is the distance filter, whose limit is a
low quantile of these patients' distances to the training tiles. Generators (`audit.shadow_sets.QUICK`) are trained on
random halves of the patients, and each draws a set. Printed:

* copies: a share of every set is replaced by tiles of members, plain, or disguised by noise on every pixel. Beside the
  attacks stands what distances say: the share of tiles that the filter holds back, how many sets pass (no more tiles
  too near than held-out tissue has), and the AUC of the distance without shadow generators;
* the same after the filter has taken out what is too near;
* training: generators of few tiles, trained ever longer, by their sets and, with the weights, by their losses;
* silence: how often an interval lies above a guess when the patients' names are permuted.

AUC: how often a patient who was in scores higher than one who was not, mean over the sets; intervals of 95 % by drawing
patients. ``--folder`` keeps what was trained, so that a second run takes seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from histocrypt.audit.shadow import Procedure, as_targets, dealt_anew, target_scores
from histocrypt.audit.shadow_sets import ATTACKS, QUICK, ShadowSets, set_scores, train_shadows
from histocrypt.demo.tissue import BACKGROUND, TUMOUR, draw_tissue
from histocrypt.synthesis.filtering import Reconstruction, distances, train_reconstruction
from histocrypt.synthesis.manifest import TISSUE, Pairs

SIDE, TILE_UM, GRID, MARGIN = 16, 64, 6, 16
OUTSIDE, QUANTILE = 8, 0.05
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
NOISE = {"plain": 0.0, "disguised": 10.0}
"""Standard deviation of the noise on each pixel of a copy, grey levels."""
FEW_TILES = 6
"""Of each patient, where generators are trained for too long."""
ALONE, WEIGHTS = "distance alone", "weights: denoising loss"


def patient(index: int, seed: int) -> Pairs:
    """Simulate a section and cut it into tiles with coarse masks."""
    drawn = draw_tissue(TILE_UM * GRID, MARGIN, index=index, rng=np.random.default_rng([seed, index]))
    corners = [(MARGIN + TILE_UM * row, MARGIN + TILE_UM * column) for row in range(GRID) for column in range(GRID)]
    step = TILE_UM // SIDE
    tiles = np.stack([drawn.rgb[y : y + TILE_UM, x : x + TILE_UM] for y, x in corners])
    images = tiles.reshape(-1, SIDE, step, SIDE, step, 3).mean(axis=(2, 4))
    regions = np.stack([drawn.labels[y : y + TILE_UM, x : x + TILE_UM] for y, x in corners])
    masks = np.select([regions == TUMOUR, regions == BACKGROUND], [3, 0], 1)[:, step // 2 :: step, step // 2 :: step]
    name, n = f"P{index:03d}", len(corners)
    return Pairs(
        TISSUE,
        np.array([f"{name}:{number}" for number in range(n)]),
        np.where((regions == TUMOUR).mean(axis=(1, 2)) > 0.5, "tumour", "normal"),
        np.full(n, name),
        np.rint(images).astype(np.uint8),
        masks.astype(np.uint8),
        np.ones(n, bool),
    )


def pixels(pairs: Pairs) -> np.ndarray:
    """Return (n, side * side * 3), so that copies can be planted in what was drawn."""
    return pairs.images.reshape(len(pairs), -1).astype(np.float64)


def seen(judge_of: Reconstruction, flat: np.ndarray) -> np.ndarray:
    """Return (n, d) features of tiles given as pixels."""
    n = len(flat)
    images = flat.reshape(n, SIDE, SIDE, 3).clip(0, 255).round().astype(np.uint8)
    blank = np.zeros((n, SIDE, SIDE), np.uint8)
    none = np.full(n, "")
    pairs = Pairs(TISSUE, np.arange(n).astype(str), none, none, images, blank, np.ones(n, bool))
    return judge_of.features(pairs).astype(np.float64)


def with_copies(raw: ShadowSets, share: float, noise: float, seed: int) -> ShadowSets:
    """Replace a share of each set's pixels by members' tiles with noise."""
    rng, made = np.random.default_rng([seed, 1]), []
    for drawn, inside in zip(raw.drawn, raw.tiles_inside, strict=True):
        own, at = raw.real[inside], rng.permutation(len(drawn))[: round(share * len(drawn))]
        changed = drawn.copy()
        changed[at] = own[rng.integers(len(own), size=len(at))] + noise * rng.normal(size=(len(at), own.shape[1]))
        made.append(changed)
    return replace(raw, drawn=tuple(made))


def scored(sets: ShadowSets) -> dict[str, np.ndarray]:
    """Return (shadows, patients) scores of the distance alone and of every attack on sets."""
    read = sets.view.read(sets.drawn)
    found = {ALONE: -read.by_patient(np.exp(read.near))}
    return found | {name: set_scores(read, sets.inside, attack=name) for name in ATTACKS}


def judged(sets: ShadowSets, scores: dict[str, np.ndarray], draws: int) -> dict[str, Procedure]:
    """Return AUCs with intervals over patients."""
    return {name: as_targets(one, sets.inside, sets.patients, draws=draws) for name, one in scores.items()}


def filter_says(sets: ShadowSets, outside: np.ndarray) -> tuple[float, int]:
    """Return the share of drawn tiles that are too near, and how many sets have no more than held-out tissue has."""
    near, passed = [], 0
    for drawn, inside in zip(sets.drawn, sets.tiles_inside, strict=True):
        own = sets.real[inside]
        limit = np.quantile(distances(outside, own)[0], QUANTILE)
        near.append(float((distances(drawn, own)[0] < limit).mean()))
        passed += near[-1] <= QUANTILE
    return float(np.mean(near)), passed


def figure(rows: dict[tuple[str, float], tuple[float, dict[str, Procedure]]], path: Path) -> None:
    """Draw what the filter holds back and what attacks find, by the share of copies."""
    from histocrypt.evaluation.figures import CYCLE, INK, MUTED, canvas, save, style

    places = np.arange(len(SHARES))
    with style():
        picture, axes = canvas(2, 2, figsize=(7.4, 4.9), sharex=True, sharey="row", height_ratios=(3, 1))
        for column, kind in enumerate(NOISE):
            top, foot = axes[0, column], axes[1, column]
            own = [rows[kind, share] for share in SHARES]
            looks = zip((ALONE, *ATTACKS), (MUTED, *CYCLE), ("--", "-", "-", "-"), ("x", "o", "s", "D"), strict=False)
            for name, colour, dash, marker in looks:
                low, high = zip(*(found[name].interval for _, found in own), strict=True)
                values = [found[name].auc for _, found in own]
                top.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)
                top.plot(places, values, dash, marker=marker, ms=4, color=colour, label=name)
            top.axhline(0.5, color=INK, lw=0.8)
            top.set_title(f"{kind} copies" + (f", noise of {NOISE[kind]:g} grey levels" if NOISE[kind] else ""))
            foot.bar(places, [near for near, _ in own], color=MUTED, width=0.5)
            foot.set_xticks(places, [f"{share:.0%}" for share in SHARES])
            foot.set(xlabel="share of drawn tiles that are copies", ylim=(0, 1))
        axes[0, 0].set(ylabel="AUC by patient", ylim=(0.4, 1.02))
        axes[1, 0].set_ylabel("held back\nby distance")
        named = axes[0, 0].get_legend_handles_labels()
        picture.legend(*named, ncols=4, fontsize=8.5, loc="outside lower center")
        save(picture, path)


def line(cells: list[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def said(found: Procedure) -> str:
    return f"{found.auc:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--per-class", type=int, default=48, help="tiles that each generator draws of each class")
    parser.add_argument("--long", type=int, nargs="*", default=[30, 200], help="epochs over few tiles")
    parser.add_argument("--long-shadows", type=int, default=8)
    parser.add_argument("--deals", type=int, default=40, help="of the patients' names, without any leak")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(asked, asked.folder or Path(temporary))


def run(asked: argparse.Namespace, folder: Path) -> None:
    every = Pairs.join([patient(index, asked.seed) for index in range(asked.patients + OUTSIDE)])
    dealt = np.isin(every.patients, np.unique(every.patients)[: asked.patients])
    game, others = every.subset(dealt), every.subset(~dealt)
    network = train_reconstruction(others, epochs=10, seed=asked.seed, folder=folder / "reconstruction")
    outside = seen(network, pixels(others))
    settings = {"per_class": asked.per_class, "features": pixels, "seed": asked.seed, "fingerprint": "pixels"}
    settings["way_back"] = {"steps": 16}

    def seen_as(raw: ShadowSets) -> ShadowSets:
        return replace(raw, drawn=tuple(seen(network, one) for one in raw.drawn), real=seen(network, raw.real))

    one = {"n_shadows": asked.shadows, "epochs": asked.epochs, "folder": folder / "sets"}
    raw = train_shadows(game, QUICK, **one, **settings)
    names, rows, plain = [ALONE, *ATTACKS], {}, seen_as(raw)
    print(
        f"{asked.patients} patients, {asked.shadows} generators of {asked.epochs} epochs, {len(raw.drawn[0])} tiles\n"
    )
    line(["copies", "share", "held back", "sets that pass", *names, "classifier, filtered"])
    line(["---"] * (len(names) + 5))
    for kind, noise in NOISE.items():
        for share in SHARES:
            sets = seen_as(with_copies(raw, share, noise, asked.seed)) if share else plain
            near, passed = filter_says(sets, outside)
            scores = scored(sets)
            found = rows[kind, share] = near, judged(sets, scores, asked.draws)
            clean = sets.filtered(QUANTILE)
            after = judged(clean, {ATTACKS[-1]: scored(clean)[ATTACKS[-1]]}, asked.draws)[ATTACKS[-1]]
            figures = [said(found[1][name]) for name in names]
            line([kind, f"{share:.0%}", f"{near:.1%}", f"{passed} of {len(sets.drawn)}", *figures, said(after)])
    if asked.figure:
        figure(rows, asked.figure)

    print()
    line(["generators", "epochs", "held back", *names, WEIGHTS, "weights, not calibrated"])
    line(["---"] * (len(names) + 5))
    few = game.subset(np.arange(len(game)) % GRID**2 % (GRID**2 // FEW_TILES) == 0)
    trained = [(f"{GRID**2} tiles a patient", asked.epochs, raw, plain)]
    for epochs in asked.long:
        one = {"n_shadows": asked.long_shadows, "epochs": epochs, "folder": folder / f"long_{epochs}"}
        leaky = train_shadows(few, QUICK, **one, **settings)
        trained.append((f"{FEW_TILES} tiles a patient", epochs, leaky, seen_as(leaky)))
    for title, epochs, kept, sets in trained:
        read = sets.view.read(sets.drawn)
        loss = read.by_patient(kept.loss)
        weights = {WEIGHTS: target_scores(loss, sets.inside), "raw": -loss}
        found = judged(sets, scored(sets) | weights, asked.draws)
        near = filter_says(sets, outside)[0]
        line([title, epochs, f"{near:.1%}", *(said(one) for one in found.values())])

    print(f"\nNames permuted {asked.deals} times: intervals above 0.5 (nominal 0.025) and below\n")
    line(["attack", "above", "below", "real AUC", "p"])
    line(["---"] * 5)
    read, rng = plain.view.read(plain.drawn), np.random.default_rng([asked.seed, 2])
    losses = read.by_patient(raw.loss)
    attacks = {name: lambda inside, name=name: set_scores(read, inside, attack=name) for name in ATTACKS}
    attacks[WEIGHTS] = lambda inside: target_scores(losses, inside)
    deals = [plain.inside[:, rng.permutation(plain.inside.shape[1])] for _ in range(asked.deals)]
    for name, attack in attacks.items():
        ends = np.array([as_targets(attack(own), own, plain.patients, draws=asked.draws).interval for own in deals])
        told = dealt_anew(attack, plain.inside, plain.patients, deals=asked.deals, seed=asked.seed)
        real = as_targets(attack(plain.inside), plain.inside, plain.patients, draws=2).auc
        above, below = (ends[:, 0] > 0.5).mean(), (ends[:, 1] < 0.5).mean()
        line([name, f"{above:.3f}", f"{below:.3f}", f"{real:.2f}", f"{told.p_value:.2g}"])


if __name__ == "__main__":
    main()
