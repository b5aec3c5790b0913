"""The counts of the demo tissue: gene programmes driven by what the image shows, and by things it does not.

The log-rate of a gene is a constant, plus a part that is linear in what lies under the spot (region shares, nuclear
density and size, grade), plus a part that the image does not carry (smooth random fields). Rates are normalised within
three blocks whose shares of a spot's molecules are fixed (programmes, housekeeping, invisible), so that the rise of
one programme does not lower the invisible genes and make them readable from the image after all. Counts are negative
binomial.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRIVERS = ("tumour", "immune", "stroma", "normal", "fat", "nuclear_density", "nuclear_size", "grade")
N_FIELDS = 6  # smooth fields that the image does not show
DEPTH = 4500.0  # median molecules of a spot

# programme: share of the genes, main driver, strength of the image part (from, to), of the invisible part (from, to)
PROGRAMMES = {
    "TUM": (0.19, "tumour", (1.0, 2.1), (0.10, 0.32)),
    "IMM": (0.15, "immune", (1.2, 2.3), (0.10, 0.32)),
    "STR": (0.13, "stroma", (1.0, 2.0), (0.10, 0.32)),
    "NRM": (0.09, "normal", (1.3, 2.4), (0.10, 0.30)),
    "ADI": (0.03, "fat", (1.6, 2.4), (0.10, 0.30)),
    "NUC": (0.09, "nuclear_density", (0.4, 0.8), (0.08, 0.25)),
    "GRD": (0.10, "grade", (0.4, 0.75), (0.08, 0.25)),
    "HKG": (0.12, None, (0.0, 0.08), (0.02, 0.08)),
    "OFF": (0.10, None, (0.0, 0.0), (0.45, 0.7)),
}
BLOCKS = (("HKG",), ("OFF",))  # every other programme makes up the first block
BLOCK_SHARES = (0.70, 0.20, 0.10)


@dataclass(frozen=True)
class GeneModel:
    """How g genes answer.

    Parameters
    ----------
    ids, symbols, programme
        (g,) names.
    base
        (g,) log of the mean rate.
    weights
        (d, g) effect of each of `DRIVERS`.
    loadings
        (f, g) effect of each invisible field.
    dispersion
        (g,) negative-binomial dispersion: the variance is mean + dispersion * mean².
    block
        (g,) block within which the gene's rate is normalised.
    """

    ids: list[str]
    symbols: list[str]
    programme: np.ndarray
    base: np.ndarray
    weights: np.ndarray
    loadings: np.ndarray
    dispersion: np.ndarray
    block: np.ndarray


@dataclass(frozen=True)
class SpotCounts:
    """What n spots express.

    Parameters
    ----------
    counts
        (n, g) float32 whole numbers.
    image_signal
        (n, g) float32, log(1 + counts per 10,000) expected from what the image shows alone.
    log_rate, image_log_rate
        (n, g) log of the true normalised rate, and of the rate with the image-borne part alone.
    rate
        (n, g) expected counts before the noise of counting: the counts are Poisson about them.
    """

    counts: np.ndarray
    image_signal: np.ndarray
    log_rate: np.ndarray
    image_log_rate: np.ndarray
    rate: np.ndarray


def draw_genes(n_genes: int, rng: np.random.Generator) -> GeneModel:
    """Draw the genes of a study: the same ones answer in every patient."""
    shares = np.array([p[0] for p in PROGRAMMES.values()])
    edges = np.rint(np.cumsum(shares / shares.sum()) * n_genes).astype(int)
    programme = np.array(list(PROGRAMMES))[np.searchsorted(edges, np.arange(n_genes), side="right")]
    number = dict.fromkeys(PROGRAMMES, 0)
    symbols, weights, loadings = [], np.zeros((len(DRIVERS), n_genes)), np.zeros((N_FIELDS, n_genes))
    for gene, name in enumerate(programme):
        number[name] += 1
        symbols.append(f"{name}{number[name]:02d}")
        _, driver, seen, unseen = PROGRAMMES[name]
        if driver is not None:
            weights[DRIVERS.index(driver), gene] = rng.uniform(*seen)
            if name == "TUM":  # some tumour genes follow the size of nuclei
                weights[DRIVERS.index("nuclear_size"), gene] = rng.choice([0, 0.3]) * rng.uniform(0.5, 1)
        if name != "OFF":
            weights[:5, gene] += rng.normal(0, 0.12 if driver else seen[1], 5)
        direction = rng.normal(0, 1, N_FIELDS)
        loadings[:, gene] = rng.uniform(*unseen) * direction / np.linalg.norm(direction)
    block = np.zeros(n_genes, int)
    for index, names in enumerate(BLOCKS, start=1):
        block[np.isin(programme, names)] = index
    return GeneModel(
        ids=[f"DEMO{i + 1:05d}" for i in range(n_genes)],
        symbols=symbols,
        programme=programme,
        base=rng.normal(0, 0.9, n_genes),
        weights=weights,
        loadings=loadings,
        dispersion=np.exp(rng.normal(np.log(0.10), 0.4, n_genes)),
        block=block,
    )


def draw_counts(
    genes: GeneModel,
    drivers: np.ndarray,
    fields: np.ndarray,
    density: np.ndarray,
    rng: np.random.Generator,
    *,
    depth: np.ndarray | None = None,
) -> SpotCounts:
    """Draw the counts of one section.

    Parameters
    ----------
    genes
        The genes of the study.
    drivers
        (n, d) what lies under each spot, columns as in `DRIVERS`; shares as they are, the others about standardised.
    fields
        (n, f) invisible fields, about standardised.
    density
        (n,) nuclear density, about standardised: crowded spots also give more molecules, so raw counts follow density.
    rng
        Source of everything random.
    depth
        (n,) expected molecules, where not NaN, instead of the drawn ones.
    """
    n, g = len(drivers), len(genes.ids)
    patient = rng.normal(0, 0.3, g)  # level of each gene in this patient: nothing of it shows in the image
    seen = drivers @ genes.weights
    unseen = fields @ genes.loadings + rng.normal(0, 0.08, (n, g)) + patient
    image_log_rate = _normalise(genes.base + seen, genes.block)
    log_rate = _normalise(genes.base + seen + unseen, genes.block)
    level = rng.normal(0, 0.25)
    expected = DEPTH * np.exp(level + 0.3 * rng.normal(size=n) + 0.4 * density)
    if depth is not None:
        expected = np.where(np.isnan(depth), expected, depth)
    mean = np.exp(log_rate) * expected[:, None]
    shape = 1 / genes.dispersion
    rate = mean * rng.gamma(shape, 1 / shape, (n, g))
    counts = rng.poisson(rate)
    signal = np.log1p(1e4 * np.exp(image_log_rate))
    return SpotCounts(counts.astype(np.float32), signal.astype(np.float32), log_rate, image_log_rate, rate)


def image_share(sections: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Share of the variance of the true log-rate that the image-borne part carries, (g,).

    Squared correlation of the two over the spots of all sections, each centred on its section; zero where the image
    part is constant.

    Parameters
    ----------
    sections
        For each section (log_rate, image_log_rate), each (n, g).
    """
    total, seen = (np.concatenate([pair[i] - pair[i].mean(0) for pair in sections]) for i in (0, 1))
    cross, vt, vs = (total * seen).sum(0), (total**2).sum(0), (seen**2).sum(0)
    carried = vs > 1e-9 * vt
    return np.where(carried, cross**2 / np.where(carried, vt * vs, 1), 0.0)


def _normalise(log_rate: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Scale rates so that those of each block sum to the block's share in every spot."""
    from scipy.special import logsumexp

    out = np.empty_like(log_rate)
    for index, share in enumerate(BLOCK_SHARES):
        members = block == index
        part = log_rate[:, members]
        out[:, members] = part - logsumexp(part, axis=1, keepdims=True) + np.log(share)
    return out
