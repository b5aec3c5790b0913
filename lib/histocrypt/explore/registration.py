"""Do the spots lie where their counts come from? Local haematoxylin against total counts at shifted offsets.

Where cells crowd, there is more haematoxylin in the image and there are usually more molecules in the spot. If the
spots are placed right, the two agree best without a shift. Both are taken relative to the spots around: the large
gradient from the middle of the tissue to its rim agrees at every shift and would only blur the answer. What the check
cannot see: a turn or a stretch of the array, a shift beyond the search, and tissue where depth does not follow density.

The rule was set on the demo tissue of seeds 0 to 4. ``python benchmarks/registration.py`` says how it does on other
tissue, and on counts that have nothing to do with the image: smooth random fields over the same tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from histocrypt.figure_style import CYCLE, VALUES, bare, canvas, style
from histocrypt.spatial import spot_pitch, squares, touching
from histocrypt.tissue import stain
from histocrypt.tissue.mask import disc_share, sample, tissue_mask

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from scipy.sparse import csr_matrix

    from histocrypt.sections.section import Section
    from histocrypt.tissue.stain import StainStatistics

UM_PER_PX = 2.5
"""Fine enough to part a nucleus from its surroundings; a section of 6.5 mm has 2600 px a side."""
MAX_SIDE = 4096
_COARSER = 4  # tissue is found, and stains are estimated, on every fourth pixel
_PIXELS = 200_000
_STRIP = 256
_BRIGHTEST = 99.9  # percentile that counts as full: dust and folds are darker than any nucleus

SURROUNDINGS = 2.5
"""In pitches: a spot is compared with the mean of those around it, up to here."""
SEARCH = 1.5
"""Largest shift tried, in pitches."""
STEPS = 12
"""Shifts tried along each half axis."""
WITHIN = 0.5
"""In pitches: shifts closer than this are the same place, since a spot's own disc is as wide."""
AGREEMENT = 0.9
"""Share of the bootstrap draws that must agree before anything is claimed."""
LEAST_SPOTS = 30
LEAST_COVERED = 0.5
"""Share of the spots that must have pixels at every shift tried; else fewer shifts are tried."""
BLOCK = 3.0
"""Side of a bootstrap block, in pitches."""
_MOST_SPOTS = 4000

TURNED = 0.3
"""Correlation from which another way to lay the picture is claimed; real sections have 0.4 to 0.6 where spots lie."""
MUCH_BETTER = 0.25
"""Gain in correlation without which no other way is claimed."""
MOST_TURNED = 20_000
"""Spots beyond which the ways to lay the picture are not tried."""

Verdict = Literal["registered", "perhaps shifted", "perhaps turned", "cannot tell"]


@dataclass(frozen=True)
class Haematoxylin:
    """How much haematoxylin lies where, a stand-in for how densely cells lie: a coarse map, only to look at."""

    amount: np.ndarray
    """(h, w) float32 from 0 (none) to 1 (as much as the darkest nuclei hold)."""
    known: np.ndarray
    """(h, w) bool: the image has pixels there. Patches cut around spots leave gaps."""
    scale: float
    """Map pixels per full-resolution pixel."""
    um_per_px: float
    """Micrometres per map pixel."""
    statistics: StainStatistics
    """The section's stains; their ``note`` says so where its own vectors could not be estimated."""


def haematoxylin(section: Section, *, um_per_px: float = UM_PER_PX) -> Haematoxylin:
    """Map the haematoxylin of a section.

    Colour deconvolution (Ruifrok and Johnston, Anal Quant Cytol Histol 23, 2001) with the stain vectors that Macenko's
    method finds in the section's own tissue, or the published ones where it finds none.

    Parameters
    ----------
    section
        A section with an image.
    um_per_px
        Micrometres per pixel of the map, at least; a large slide is mapped more coarsely.

    Raises
    ------
    InputError
        If the section has no image.
    """
    image = section.picture()
    longest = max(image.width, image.height)
    side = int(np.clip(longest * section.um_per_px / um_per_px, 64, MAX_SIDE))
    return _mapped(section, *image.thumbnail(min(side, longest)))


def _mapped(section: Section, thumbnail: np.ndarray, scale: float) -> Haematoxylin:
    coarse = thumbnail[::_COARSER, ::_COARSER]
    tissue = coarse[tissue_mask(coarse, um_per_px=_COARSER * section.um_per_px / scale)]
    chosen = np.random.default_rng(0).permutation(len(tissue))[:_PIXELS]
    statistics = stain.estimate(tissue[chosen])
    unmix = np.linalg.pinv(statistics.stain_matrix)[0].astype(np.float32)
    density = np.maximum(-np.log((np.arange(256, dtype=np.float32) + 1) / stain.INCIDENT_LIGHT), 0)
    amount = np.empty(thumbnail.shape[:2], dtype=np.float32)
    for top in range(0, len(thumbnail), _STRIP):  # in strips: optical density takes twelve bytes a pixel
        amount[top : top + _STRIP] = density[thumbnail[top : top + _STRIP]] @ unmix
    full = float(np.percentile(amount, _BRIGHTEST))
    amount = np.clip(amount / full if full > 0 else amount, 0, 1)
    return Haematoxylin(
        amount, _known(section, thumbnail.shape[:2], scale), scale, section.um_per_px / scale, statistics
    )


def over_discs(stained: Haematoxylin, diameter_um: float) -> Haematoxylin:
    """Return the map of means over discs of ``diameter_um``; known is where the whole disc has pixels."""
    diameter = diameter_um / stained.um_per_px
    known = stained.known if stained.known.all() else disc_share(stained.known, diameter) > 0.99
    return replace(stained, amount=disc_share(stained.amount, diameter), known=known)


def at(stained: Haematoxylin, coords_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the amount at (n, 2) full-resolution points, (n,) float64 from 0 to 1, and where it is known, (n,) bool.

    Outside the image nothing is known, and the amount is 0.
    """
    points = np.asarray(coords_px, dtype=np.float64) * stained.scale
    column, row = np.floor(points).astype(np.intp).T
    height, width = stained.known.shape
    known = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    known[known] = stained.known[row[known], column[known]]
    return sample(stained.amount, points), known


def _known(section: Section, shape: tuple[int, int], scale: float) -> np.ndarray:
    if section.image.side is None:
        return np.ones(shape, dtype=bool)
    known = np.zeros(shape, dtype=bool)
    for corner in section.image.coords:
        left, top = np.maximum(np.ceil(corner * scale), 0).astype(int)
        right, bottom = np.maximum(np.floor((corner + section.image.side) * scale), 0).astype(int)
        known[top:bottom, left:right] = True
    return known


@dataclass(frozen=True)
class Registration:
    """What the check says of one section. A shift is how far the spots would have to be moved: x, y in micrometres."""

    section: str
    verdict: Verdict
    sentence: str
    """The verdict and what it rests on, for people."""
    shifts_um: np.ndarray
    """(k, 2) shifts tried; the first is none."""
    spearman: np.ndarray
    """(k,) correlation of local haematoxylin and total counts, both relative to the spots around."""
    best_um: tuple[float, float]
    """The shift of the highest correlation."""
    low_um: tuple[float, float]
    """Lower end of its 95 % interval, x and y apart, by bootstrap over blocks of neighbouring spots."""
    high_um: tuple[float, float]
    """Upper end."""
    pitch_um: float
    reach_um: float
    """Largest shift tried: where pixels exist only round the spots it is less than `SEARCH` pitches."""
    spots: int
    """Spots that took part: those with pixels at every shift tried."""
    planted_um: tuple[float, float] | None = None
    """In simulated tissue, the shift that would put the spots right."""


def registration(section: Section, stained: Haematoxylin, *, draws: int = 400, seed: int = 0) -> Registration:
    """Check whether total counts agree best with the image where the spots are said to lie.

    Parameters
    ----------
    section
        The section as read; only total counts and pixels are looked at.
    stained
        Its map, from `haematoxylin`.
    draws
        Draws of the bootstrap.
    seed
        Its seed.

    Returns
    -------
    Registration
        "registered": nine draws in ten have their best shift within half a pitch of none. "perhaps shifted": they have
        it within half a pitch of the same other place, and the gain's 95 % interval lies above zero. "cannot tell":
        neither, with the reason.
    """
    from histocrypt.tissue.preprocess import spot_diameter_um

    rng = np.random.default_rng(seed)
    planted = _planted(section)
    if section.n_spots < LEAST_SPOTS:
        return _untold(section.id, f"{section.n_spots} spots, {LEAST_SPOTS} needed", planted=planted)
    depth = np.log1p(np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).ravel())
    if np.ptp(depth) == 0:
        why = "every spot has the same depth" if depth[0] > 0 else "the section has no counts"
        return _untold(section.id, why, planted=planted)
    coords, pitch = section.coords * section.um_per_px, spot_pitch(section.coords) * section.um_per_px
    graph = touching(coords, reach=SURROUNDINGS)
    discs = over_discs(stained, spot_diameter_um(section))
    chosen = np.sort(rng.permutation(section.n_spots)[:_MOST_SPOTS])

    shifts = _shifts(pitch)
    amount = np.empty((len(chosen), len(shifts)), dtype=np.float32)
    known = np.empty(amount.shape, dtype=bool)
    for number, shift in enumerate(shifts):
        here, pixels = at(discs, (coords + shift) / section.um_per_px)
        amount[:, number], known[:, number] = _relative(here, graph, pixels)[chosen], pixels[chosen]
    lengths = np.hypot(*shifts.T)
    reach = _reach(known, lengths, pitch)
    used = known[:, lengths <= reach].all(axis=1)
    if reach < pitch or used.sum() < LEAST_SPOTS:
        why = f"shifting is impossible: too few spots have pixels farther than {reach:.0f} µm around them"
        return _untold(section.id, why, reach=reach, pitch=pitch, planted=planted)
    shifts, amount = shifts[lengths <= reach], amount[used][:, lengths <= reach]

    ranks, depth_ranks = _scores(amount), _scores(_relative(depth, graph)[chosen][used])
    spearman = depth_ranks @ ranks / len(ranks)
    weights = _weights(coords[chosen][used], BLOCK * pitch, draws, rng)
    drawn = _drawn(ranks, depth_ranks, weights)

    best = int(spearman.argmax())
    drawn_best = shifts[drawn.argmax(axis=1)]
    low, high = np.quantile(drawn_best, [0.025, 0.975], axis=0)
    near_none = float((np.hypot(*drawn_best.T) <= WITHIN * pitch).mean())
    near_best = float((np.hypot(*(drawn_best - shifts[best]).T) <= WITHIN * pitch).mean())
    gain = float(np.quantile(drawn[:, best] - drawn[:, 0], 0.025))
    at_limit = np.hypot(*shifts[best]) > reach - SEARCH * pitch / STEPS
    verdict, sentence = _judge(shifts[best], near_none, near_best, gain, pitch, reach, at_limit=at_limit)
    if verdict != "registered" and (turned := laid_otherwise(section, stained)):
        verdict, sentence = "perhaps turned", f"perhaps turned: {turned}"
    at_best, low_um, high_um = (tuple(map(float, pair)) for pair in (shifts[best], low, high))
    return Registration(
        section.id,
        verdict,
        sentence,
        shifts,
        spearman,
        at_best,
        low_um,
        high_um,
        pitch,
        float(reach),
        len(ranks),
        planted,
    )


def laid_otherwise(section: Section, stained: Haematoxylin | None = None) -> str:
    """Say how the picture seems to be turned or mirrored against the spots; "" where nothing points that way.

    Local haematoxylin and total counts are compared, both relative to the spots around, with the spots where they are
    and with the picture laid in the six other ways and with x and y exchanged.

    Parameters
    ----------
    section
        The section as read.
    stained
        Its map; made here where there is none, if the coarse one of the image's `signature` points that way.
    """
    from histocrypt.tissue.preprocess import spot_diameter_um

    image = section.image
    if image is None or image.side is not None or not LEAST_SPOTS <= section.n_spots <= MOST_TURNED:
        return ""
    depth = np.log1p(np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).ravel())
    if np.ptp(depth) == 0:
        return ""
    size = np.array([image.width, image.height], dtype=np.float64)
    x, y = (section.coords / size).T
    ways = {
        "": (x, y),
        "turned by 180 degrees": (1 - x, 1 - y),
        "mirrored left to right": (1 - x, y),
        "mirrored top to bottom": (x, 1 - y),
        "turned by 90 degrees": (1 - y, x),
        "turned by 90 degrees to the left": (y, 1 - x),
        "laid with x and y exchanged": (y, x),
        "mirrored along the other diagonal": (1 - y, 1 - x),
    }
    graph = touching(section.coords, reach=SURROUNDINGS)
    depth_ranks = _scores(_relative(depth, graph))

    def agreement_with(stained: Haematoxylin) -> dict[str, float]:
        discs, found = over_discs(stained, spot_diameter_um(section)), {}
        for name, places in ways.items():
            here, known = at(discs, np.column_stack(places) * size)
            found[name] = float(depth_ranks @ _scores(_relative(here, graph, known)) / len(depth))
        return found

    if stained is None:  # real sections agree to 0.1 on maps from 5 to 50 um per pixel
        glance = agreement_with(_mapped(section, *image.signature))
        if max(glance.values()) < glance[""] + MUCH_BETTER / 2:
            return ""
        stained = haematoxylin(section, um_per_px=2 * UM_PER_PX)
    agreement = agreement_with(stained)
    best = max(agreement, key=agreement.get)
    if not best or agreement[best] < max(TURNED, 4 / np.sqrt(section.n_spots)):
        return ""
    if agreement[best] < agreement[""] + MUCH_BETTER:
        return ""
    return (
        f"counts agree better with the picture {best} (correlation {agreement[best]:.2f} instead of "
        f"{agreement['']:.2f}): look whether picture and coordinates belong together"
    )


def _judge(
    best: np.ndarray, near_none: float, near_best: float, gain: float, pitch: float, reach: float, *, at_limit: bool
) -> tuple[Verdict, str]:
    within = f"{WITHIN * pitch:.0f} µm"
    if near_none >= AGREEMENT:
        how = f"{near_none:.0%} of draws agree best within {within} of where the spots are"
        return "registered", f"registered: {how}"
    if near_best >= AGREEMENT and np.hypot(*best) <= WITHIN * pitch and gain <= 0:
        how = f"{near_best:.0%} of draws agree best within {within} of a place that is no better than where they are"
        return "registered", f"registered: {how}"
    x, y = best
    if near_best >= AGREEMENT and gain > 0 and not at_limit:
        how = f"moved by {x:+.0f}, {y:+.0f} µm, the spots agree better with the image"
        return "perhaps shifted", f"perhaps shifted: {how} ({near_best:.0%} of draws)"
    if at_limit:
        return "cannot tell", f"cannot tell: the best shift lies at the limit of the search ({reach:.0f} µm)"
    agree = max(near_none, near_best)
    return "cannot tell", f"cannot tell: the best shift scatters, only {agree:.0%} of draws agree within {within}"


def _shifts(pitch: float) -> np.ndarray:
    """Return (k, 2) shifts on a square grid inside a circle, nearest first."""
    ticks = np.arange(-STEPS, STEPS + 1) * SEARCH * pitch / STEPS
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    length = np.hypot(*grid.T)
    order = np.argsort(length, kind="stable")
    return grid[order[length[order] <= SEARCH * pitch * (1 + 1e-9)]]


def _reach(known: np.ndarray, lengths: np.ndarray, pitch: float) -> float:
    """Return the largest shift up to which enough spots have pixels, from (n, k) bool; ``lengths`` ascend."""
    first = np.where(known.all(axis=1), np.inf, lengths[known.argmin(axis=1)])  # the nearest shift without pixels
    beyond = float(np.quantile(first, 1 - LEAST_COVERED, method="lower"))
    return float(lengths[lengths < beyond].max(initial=0.0))


def _relative(values: np.ndarray, graph: csr_matrix, known: np.ndarray | None = None) -> np.ndarray:
    """Return (n,) values less the mean of the known ones around."""
    known = np.ones(len(values)) if known is None else known.astype(float)
    return values - (graph @ (values * known)) / np.maximum(graph @ known, 1)


def _scores(values: np.ndarray) -> np.ndarray:
    """Return standardised ranks of the columns, float32: their products are Spearman's correlations."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    spread = ranks.std(axis=0)
    return (ranks / np.where(spread > 0, spread, 1)).astype(np.float32)


def _weights(coords_um: np.ndarray, side: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return (draws, n) float32 weights of spots, the same within a block; each row sums to one.

    Exponential weights (the Bayesian bootstrap) instead of whole blocks drawn or not: twenty blocks are few.
    """
    blocks = squares(coords_um, side, origin=0.0)
    weights = rng.exponential(size=(draws, blocks.max() + 1))[:, blocks]
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _drawn(ranks: np.ndarray, depth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (draws, k) weighted correlations of the ranks."""
    mean, depth_mean = weights @ ranks, (weights @ depth)[:, None]
    variance = weights @ ranks**2 - mean**2
    depth_variance = (weights @ depth**2)[:, None] - depth_mean**2
    together = weights @ (ranks * depth[:, None]) - mean * depth_mean
    return together / np.sqrt(np.maximum(variance * depth_variance, 1e-12))


def _planted(section: Section) -> tuple[float, float] | None:
    from histocrypt.demo.write import planted

    if "demo" not in section.adata.uns:
        return None
    x, y = planted(section.adata)["shift_um"]
    return (0.0 - x, 0.0 - y)  # 0.0 - x: no minus zero


def _untold(
    section: str, why: str, *, planted: tuple[float, float] | None, reach: float = 0.0, pitch: float = float("nan")
) -> Registration:
    no_shift, unknown, nothing = np.zeros((1, 2)), np.full(1, np.nan), (float("nan"), float("nan"))
    verdict, sentence = "cannot tell", f"cannot tell: {why}"
    return Registration(
        section, verdict, sentence, no_shift, unknown, nothing, nothing, nothing, pitch, reach, 0, planted
    )


def registration_table(checked: list[Registration]) -> pd.DataFrame:
    """Return one row per section: the verdict, the best shift with its interval, and what was planted where known."""
    import pandas as pd

    rows = []
    for one in checked:
        known = np.isfinite(one.best_um[0])
        row = {
            "section": one.section,
            "verdict": one.verdict,
            "best shift x, y µm": f"{one.best_um[0]:.0f}, {one.best_um[1]:.0f}" if known else "",
            "95 % interval x": f"{one.low_um[0]:.0f} to {one.high_um[0]:.0f}" if known else "",
            "95 % interval y": f"{one.low_um[1]:.0f} to {one.high_um[1]:.0f}" if known else "",
            "correlation there": round(float(np.nanmax(one.spearman)), 2) if known else np.nan,
            "where the spots are": round(float(one.spearman[0]), 2),
            "tried up to µm": round(one.reach_um),
            "spots": one.spots,
        }
        if any(other.planted_um is not None for other in checked):
            row["right shift (planted)"] = "{:.0f}, {:.0f}".format(*one.planted_um) if one.planted_um else ""
        rows.append(row)
    return pd.DataFrame(rows).set_index("section")


def registration_figure(checked: list[Registration], *, columns: int = 3) -> Figure:
    """Draw the correlation by shift, one map per section; the plus is where the spots are, the ring the best shift."""
    from textwrap import fill

    columns = min(columns, len(checked))
    rows = -(-len(checked) // columns)
    top = max((float(np.nanmax(one.spearman)) for one in checked if np.isfinite(one.spearman).any()), default=1.0)
    drawn = None
    with style():
        figure, axes = canvas(rows, columns, figsize=(7.4, 7.4 / columns * rows + 0.3), squeeze=False)
        for axis in axes.ravel()[len(checked) :]:
            axis.set_axis_off()
        for axis, one in zip(axes.ravel(), checked, strict=False):
            axis.set_title(f"{one.section}: {one.verdict}", fontsize=9)
            if not np.isfinite(one.best_um[0]):
                bare(axis)
                axis.set_box_aspect(1)
                why = fill(one.sentence.removeprefix("cannot tell: "), 28)
                axis.text(0.5, 0.5, why, ha="center", va="center", fontsize=8, transform=axis.transAxes)
                continue
            ticks = np.unique(one.shifts_um)
            image = np.full((len(ticks),) * 2, np.nan)
            column, row = np.searchsorted(ticks, one.shifts_um).T
            image[row, column] = one.spearman
            half = (ticks[1] - ticks[0]) / 2
            extent = (ticks[0] - half, ticks[-1] + half, ticks[-1] + half, ticks[0] - half)
            drawn = axis.imshow(image, extent=extent, cmap=VALUES, vmin=0, vmax=top)
            (x0, y0), (x1, y1) = one.low_um, one.high_um
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=1, linestyle=":")
            axis.plot(0, 0, "+", color="white", markersize=10, markeredgewidth=2)
            axis.plot(*one.best_um, "o", markersize=10, markerfacecolor="none", color=CYCLE[4], markeredgewidth=2)
            if one.planted_um is not None:
                axis.plot(*one.planted_um, "x", color="black", markersize=7, markeredgewidth=2)
            axis.tick_params(labelsize=7)
        if drawn is not None:
            figure.colorbar(drawn, ax=axes, shrink=0.6, label="Spearman's correlation", extend="min")
        black = ", black cross: the planted truth" if any(one.planted_um is not None for one in checked) else ""
        figure.supxlabel(
            f"spots moved by x, y µm; plus: as given, ring: best, dotted: its 95 % interval{black}", fontsize=9
        )
    return figure
