"""What people do with a prediction, and how far each of it can be believed: domains, spatial genes, marker scores.

A prediction is a smooth function of a smooth picture, without the noise of counting. So it looks more coherent than
what was measured, and more than tissue is: clusters have clean borders, every gene "varies in space". Each analysis is
hence held against the same of the measured counts, and against maps that know nothing of the tissue but are as smooth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation import markers, metrics
from histocrypt.evaluation.downstream_slides import Slide
from histocrypt.files import write_table

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

NUMBERS = (3, 4, 5, 6)
"""Domains that a section is divided into; agreement is the mean over these."""
AROUND = 0.8
"""Weight of the neighbours beside a spot's own expression when domains are told, as BANKSY has it for domains."""
COMPONENTS = 10
LARGEST = 5000
"""Spots that are put into one tree; the others of a larger section go to the nearest domain."""
ALPHA = 0.05
"""Share of false discoveries among genes that are said to vary in space."""
TOP = 0.2
"""Share of the genes, those that vary most in space, in which two lists are compared."""
STEPS = 200
"""Averagings with neighbours after which a map is as smooth as it gets."""
NOISE_MAPS, RANDOM_SETS = 200, 5
"""Of each score: maps of noise that it is held against, and sets of other genes."""
BASELINES = {
    "predicted": "predicted genes",
    "colour": "colours of the tiles, no gene",
    "random_genes": "random genes of tile features",
    "place": "where spots lie, nothing else",
    "noise": "noise, as smooth and as correlated",
    "halves": "two halves of the counts",
}
"""What domains are told from, by column, and its words; the last is of two halves with one another."""


@dataclass(frozen=True)
class After:
    """Every section's results; columns of what needs counts are missing where there are none."""

    slide: Slide
    """The section that is drawn."""
    genes: pd.DataFrame
    """One row per section and gene: `gene_table`."""
    coherence: pd.DataFrame
    """One row per section: `coherence`."""
    domains: pd.DataFrame
    """One row per section: `domain_agreement`."""
    markers: pd.DataFrame
    """One row per section and set: `marker_table`."""
    compared: bool
    """Whether some section has counts."""

    def write(self, folder: Path) -> None:
        """Write the tables as CSV."""
        for name in ("genes", "coherence", "domains", "markers"):
            write_table(folder / f"{name}.csv", getattr(self, name), index=False)

    def means(self, table: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
        """Return the means of columns over patients, a patient's sections first."""
        return table.groupby("patient")[list(columns)].mean().mean()


# Smoothness.


def coherence_of(values: np.ndarray, graph: csr_matrix) -> float:
    """Return the mean Moran's I of the columns that vary; NaN where none does."""
    known = ~metrics.is_constant(values)
    return metrics.finite_mean(metrics.morans_i(values[:, known], graph)) if known.any() else float("nan")


def smoothed_to(values: np.ndarray, slide: Slide, level: float) -> np.ndarray:
    """Average columns (n, d) with what lies around until their mean Moran's I is ``level``, or no more can be had.

    What is at least as smooth already, and anything where ``level`` is NaN, is returned as it is.
    """
    from scipy.optimize import brentq

    graph, around, now = slide.graph, slide.around, np.asarray(values, dtype=np.float64)
    for _ in range(STEPS if coherence_of(now, graph) < level else 0):
        then = (now + around @ now) / 2
        if metrics.is_constant(then).any():  # a handful of spots, all of them neighbours
            break
        if coherence_of(then, graph) >= level:
            share = brentq(_missing, 0, 1, args=(now, then, graph, level), xtol=1e-3)
            return (1 - share) * now + share * then
        now = then
    return now


def _missing(share: float, before: np.ndarray, after: np.ndarray, graph: csr_matrix, level: float) -> float:
    """Return how far a mixture of two maps is above ``level``."""
    return coherence_of((1 - share) * before + share * after, graph) - level


def noise_like(values: np.ndarray, slide: Slide, *, rng: np.random.Generator) -> np.ndarray:
    """Return maps (n, g) that know nothing of the tissue, as smooth as ``values`` and as correlated with one another.

    Predicted genes are combinations of few maps. The principal maps are replaced by smooth noise, their weights and
    variances are kept.
    """
    level, standard = coherence_of(values, slide.graph), _standard(values)
    if not standard.shape[1]:
        return standard
    _, spread, weights = np.linalg.svd(standard, full_matrices=False)
    principal = smoothed_to(rng.normal(size=(len(values), len(spread))), slide, level)
    return (_standard(principal) * spread) @ weights


def _standard(values: np.ndarray) -> np.ndarray:
    """Return the columns that vary, each of mean 0 and standard deviation 1."""
    known = np.asarray(values, dtype=np.float64)[:, ~metrics.is_constant(values)]
    return (known - known.mean(axis=0)) / known.std(axis=0)


def coherence_without_noise(first: np.ndarray, second: np.ndarray, graph: csr_matrix) -> float:
    """Return Moran's I of what two halves of the counts share: that of tissue, without the noise of counting.

    The noise of the halves is independent, so that it adds nothing to products of one half with the other: neither
    between neighbours nor within a spot. It is the ratio of sums over genes, since a gene that is nearly all noise has
    next to nothing within spots to divide by.
    """
    known = ~metrics.is_constant(first) & ~metrics.is_constant(second)
    if not known.any() or graph.nnz == 0:
        return float("nan")
    one, other = ((half[:, known] - half[:, known].mean(axis=0)) for half in (first, second))
    scale = one.std(axis=0) * other.std(axis=0)
    beside, within = (((graph @ one) * other).sum(axis=0) / scale).sum(), ((one * other).sum(axis=0) / scale).sum()
    return float(len(one) / graph.sum() * beside / within) if within > 0 else float("nan")


def varies_in_space(values: np.ndarray, graph: csr_matrix, *, alpha: float = ALPHA) -> np.ndarray:
    """Return which columns have a Moran's I above chance, (g,) bool, at a false discovery rate of ``alpha``.

    Under no pattern I is about normal, with the moments of Cliff and Ord, "Spatial processes" (1981), for normal
    values; false discoveries by Benjamini and Hochberg (1995).
    """
    from scipy.stats import false_discovery_control, norm

    n, weights = len(values), float(graph.sum())
    flat = metrics.is_constant(values)
    if n < 4 or not weights:
        return np.zeros(values.shape[1], dtype=bool)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    mean, two, three = -1 / (n - 1), 2 * weights, 4 * float(np.square(degree).sum())
    variance = (n**2 * two - n * three + 3 * weights**2) / ((n**2 - 1) * weights**2) - mean**2
    p = np.where(flat, 1.0, norm.sf((metrics.morans_i(values, graph) - mean) / np.sqrt(variance)))
    return (false_discovery_control(p) <= alpha) & ~flat


# Each analysis of one section.


def gene_table(slide: Slide) -> pd.DataFrame:
    """Return Moran's I of every gene as predicted and as measured, and the correlation between the two maps.

    ``moran_smoothed`` and ``pearson_smoothed`` are of the measured values smoothed to the predictions' Moran's I.
    """
    import pandas as pd

    graph, predicted = slide.graph, slide.predicted
    table = {
        "section": slide.name,
        "patient": slide.patient,
        "gene": slide.genes,
        "symbol": slide.symbols,
        "moran_predicted": metrics.morans_i(predicted, graph),
        "varies_predicted": varies_in_space(predicted, graph),
    }
    if slide.measured is not None:
        smooth = smoothed_to(slide.measured, slide, coherence_of(predicted, graph))
        table |= {
            "moran_measured": metrics.morans_i(slide.measured, graph),
            "varies_measured": varies_in_space(slide.measured, graph),
            "moran_smoothed": metrics.morans_i(smooth, graph),
            "pearson": metrics.pearson(slide.measured, predicted),
            "pearson_smoothed": metrics.pearson(smooth, predicted),
        }
    return pd.DataFrame(table)


def coherence(slide: Slide, genes: pd.DataFrame, *, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return how coherent a section is as predicted, measured, and without the noise of counting.

    ``chance`` is the correlation with a measured gene that 95 % of noise stays below which is as smooth as the
    predictions; ``chance_rough`` that of noise without any pattern.
    """
    graph, said = slide.graph, {"section": slide.name, "patient": slide.patient, "spots": len(slide.coords)}
    said |= {"predicted": coherence_of(slide.predicted, graph), "varies_predicted": genes["varies_predicted"].mean()}
    if slide.measured is None:
        return said
    shape, rough, smooth = slide.predicted.shape, [], []
    for _ in range(draws):
        noise = rng.normal(size=shape)
        rough.append(metrics.pearson(slide.measured, noise))
        smooth.append(metrics.pearson(slide.measured, smoothed_to(noise, slide, said["predicted"])))
    high = _high(smooth)
    known = genes[genes[["pearson", "moran_measured", "moran_predicted"]].notna().all(axis=1)]
    both = known[["moran_measured", "moran_predicted"]].to_numpy()
    number = round(TOP * len(known))
    first = [set(np.argsort(-one, kind="stable")[:number].tolist()) for one in both.T]
    return {
        **said,
        "measured": coherence_of(slide.measured, graph),
        "tissue": coherence_without_noise(*slide.halves, graph) if slide.halves else float("nan"),
        "varies_measured": genes["varies_measured"].mean(),
        "rank_agreement": float(metrics.spearman(both[:, :1], both[:, 1:])[0]) if len(both) > 1 else float("nan"),
        "top_shared": len(first[0] & first[1]) / number if number else float("nan"),
        "pearson": known["pearson"].mean(),
        "pearson_smoothed": known["pearson_smoothed"].mean(),
        "chance": high,
        "chance_rough": _high(rough),
        "beyond_chance": (known["pearson"] > high).mean(),
    }


def _high(values: Iterable[np.ndarray]) -> float:
    """Return what 95 % of all finite values stay below; NaN where none is."""
    every = np.concatenate([np.ravel(one) for one in values])
    every = every[np.isfinite(every)]
    return float(np.quantile(every, 0.95)) if len(every) else float("nan")


def domains(values: np.ndarray, slide: Slide, numbers: Iterable[int] = NUMBERS) -> np.ndarray:
    """Divide a section into domains by its spots' values and those around them.

    The principal components of the standardised columns, and their means over what lies around, weighted as BANKSY
    weights them (Singhal et al., Nat Genet 56:431, 2024); then Ward's tree, cut. Nothing is drawn at random but the
    spots of the tree in a section of more than `LARGEST`.

    Parameters
    ----------
    values
        (n, d): genes, colours, features, of the slide's spots.
    slide
        Where they lie.
    numbers
        How many domains, each of them.

    Returns
    -------
    (len(numbers), n) int, domains numbered from 0
    """
    from scipy.cluster.hierarchy import fcluster, ward
    from sklearn.decomposition import PCA

    numbers, standard = list(numbers), _standard(values)
    if not standard.shape[1] or len(standard) < 2:
        return np.zeros((len(numbers), len(standard)), dtype=int)
    components = PCA(min(COMPONENTS, *standard.shape), random_state=0).fit_transform(standard)
    together = np.hstack([np.sqrt(1 - AROUND) * components, np.sqrt(AROUND) * (slide.around @ components)])
    chosen = np.arange(len(together))
    if len(chosen) > LARGEST:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, LARGEST, replace=False))
    tree = ward(together[chosen])
    return np.stack([_nearest(together, chosen, fcluster(tree, one, "maxclust") - 1) for one in numbers])


def _nearest(values: np.ndarray, chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the labels of all spots, those that are not ``chosen`` by the nearest mean."""
    from scipy.spatial import cKDTree

    if len(chosen) == len(values):
        return labels.astype(int)
    centres = np.stack([values[chosen[labels == one]].mean(axis=0) for one in range(labels.max() + 1)])
    every = cKDTree(centres).query(values)[1]
    every[chosen] = labels
    return every.astype(int)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the adjusted Rand index of two divisions, mean over how many domains there are; (k, n) int from 0 each."""
    return float(np.mean([adjusted_rand(*pair) for pair in zip(first, second, strict=True)]))


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Return the adjusted Rand index of labels (n,) int from 0: 1 for the same division, about 0 for unrelated ones.

    Source: Hubert and Arabie, "Comparing partitions", Journal of Classification 2 (1985); equal to scikit-learn's,
    which takes ten times as long to look at so few spots.
    """
    if len(first) < 2:
        return 1.0
    width = int(second.max()) + 1
    both = np.bincount(first * width + second, minlength=(int(first.max()) + 1) * width).reshape(-1, width)
    together, one, other = ((n * (n - 1) / 2).sum() for n in (both, both.sum(axis=1), both.sum(axis=0)))
    by_chance, most = one * other / (len(first) * (len(first) - 1) / 2), (one + other) / 2
    return 1.0 if most == by_chance else float((together - by_chance) / (most - by_chance))


def told_from(slide: Slide, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return what domains can be told from that holds no measured gene, by name in `BASELINES`: (n, d) each.

    ``random_genes`` are as many as were predicted, each of random weights on the features of the tiles, as an
    untrained last layer gives them; ``noise`` is `noise_like` the predictions. Both are drawn anew at each call.
    """
    found = {"predicted": slide.predicted, "colour": slide.colours, "place": slide.coords}
    if slide.features is not None:
        features = _standard(slide.features)
        found["random_genes"] = features @ rng.normal(size=(features.shape[1], slide.predicted.shape[1]))
    found["noise"] = noise_like(slide.predicted, slide, rng=rng)
    return {name: found[name] for name in BASELINES if found.get(name) is not None}


DRAWN = ("random_genes", "noise")
"""Those of `told_from` that differ from call to call."""


def domain_agreement(slide: Slide, *, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return how well domains agree with the measured ones, by what they are told from (`BASELINES`).

    What is drawn at random is averaged, and ``noise_high`` is what 95 % of the noise stays below. ``halves`` are two
    halves of the counts with one another: what measured domains agree with when they are measured again, at half the
    depth.
    """
    said: dict[str, Any] = {"section": slide.name, "patient": slide.patient}
    if slide.measured is None:
        return said
    truth = domains(slide.measured, slide)
    drawn: dict[str, list[float]] = {name: [] for name in BASELINES}
    for turn in range(draws):
        for name, values in told_from(slide, rng=rng).items():
            if name in DRAWN or not turn:
                drawn[name].append(agreement(domains(values, slide), truth))
    if slide.halves:
        drawn["halves"].append(agreement(*(domains(half, slide) for half in slide.halves)))
    means = {name: float(np.mean(found)) if found else np.nan for name, found in drawn.items()}
    return {**said, **means, "noise_high": _high([np.array(drawn["noise"])])}


def marker_table(slide: Slide, *, rng: np.random.Generator) -> pd.DataFrame:
    """Return how well marker and pathway scores of predictions agree with the same of measured counts, set by set.

    ``pearson`` is over spots, ``smoothed`` with the measured score smoothed to the predicted one's Moran's I.
    ``random_sets`` is the mean of random sets of as many panel genes; ``chance`` what 95 % of noise stays below that is
    as smooth as the predicted score.
    """
    import pandas as pd

    graph, sets = slide.graph, markers.sets_in(slide.genes, slide.symbols)
    predicted, rows = markers.scores(slide.predicted, sets), []
    measured = markers.scores(slide.measured, sets) if slide.measured is not None else {}
    for name, score in predicted.items():
        own = score[:, None]
        smooth = coherence_of(own, graph)
        row = {"section": slide.name, "patient": slide.patient, "set": name}
        row |= {"genes": " ".join(slide.symbols[sets[name]].tolist()), "moran_predicted": smooth}
        if name in measured:
            truth = measured[name][:, None]
            noise = smoothed_to(rng.normal(size=(len(own), NOISE_MAPS)), slide, smooth)
            row |= {
                "moran_measured": coherence_of(truth, graph),
                "pearson": float(metrics.pearson(truth, own)[0]),
                "smoothed": float(metrics.pearson(smoothed_to(truth, slide, smooth), own)[0]),
                "random_sets": _of_random_sets(slide, len(sets[name]), rng=rng),
                "chance": _high([metrics.pearson(np.tile(truth, noise.shape[1]), noise)]),
            }
        rows.append(row)
    columns = ["section", "patient", "set", "genes", "moran_predicted"]
    more = ["moran_measured", "pearson", "smoothed", "random_sets", "chance"]
    return pd.DataFrame(rows, columns=columns + (more if slide.measured is not None else []))


def _of_random_sets(slide: Slide, size: int, *, rng: np.random.Generator) -> float:
    picked = {str(at): rng.choice(len(slide.genes), size, replace=False).tolist() for at in range(RANDOM_SETS)}
    ours, theirs = (markers.scores(values, picked) for values in (slide.predicted, slide.measured))
    both = [np.stack([one[name] for name in ours], axis=1) for one in (theirs, ours)]
    return metrics.finite_mean(metrics.pearson(*both))


def look_at(slides: Iterable[Slide], *, drawn: str = "", draws: int = 20, seed: int = 0) -> After:
    """Do every analysis on every section, each with its comparison where there are counts.

    Parameters
    ----------
    slides
        From `slides_of` or `slides_in`; one at a time is in memory, and the one that is kept.
    drawn
        Name of the section that is kept to be drawn; empty: the first.
    draws
        Maps of noise and random genes, each.
    seed
        Of these.

    Raises
    ------
    InputError
        If there is no section, or none of that name.
    """
    import pandas as pd

    kept, names, genes, coherent, divided, marked, compared = None, [], [], [], [], [], False
    for slide in slides:
        rng = np.random.default_rng([seed, len(names)])
        names.append(slide.name)
        kept = slide if kept is None or slide.name == drawn else kept
        genes.append(gene_table(slide))
        coherent.append(coherence(slide, genes[-1], draws=draws, rng=rng))
        divided.append(domain_agreement(slide, draws=draws, rng=rng))
        marked.append(marker_table(slide, rng=rng))
        compared |= slide.measured is not None
    if kept is None:
        raise InputError("there is no section to look at", field="slides")
    if drawn and drawn != kept.name:
        raise unknown_name("section", drawn, names, field="section")
    every = [pd.concat(tables, ignore_index=True) for tables in (genes, marked)]
    return After(kept, every[0], pd.DataFrame(coherent), pd.DataFrame(divided), every[1], compared)
