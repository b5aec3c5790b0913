"""Low-rank fusion of frozen features: what generalises best to patients never seen, and is one small matrix.

Every family of features (colour, nuclei and tissue, middle layers of an encoder) is one block with its context. For
each, ridge regression is averaged over penalties and ranks: with two or three training patients a choice flips between
the ends of any range. The predictions of families are added, each to its own scale: all of them, in fixed shares. A
choice of families on training patients is an option: with two training patients it loses on the third
(`docs/ablation.md`).

All of it is linear in the standardised features, so what is kept is a product of two thin matrices, as of a ridge on
principal components: it is printed, shipped, and evaluated on ciphertexts as `fhe_head` is.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import numpy as np

from histocrypt.data.load import Spots
from histocrypt.predictors.closed_form import EncoderRidge, inner_folds
from histocrypt.predictors.predictability import predictability

FAMILIES = ("colour", "morphology", "efficientnet_lite0_middle")
CONTEXT_UM = 320
"""How far the context of a spot reaches: the 8 neighbours of a 200 um array."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Averaged over, per training spot. A block's squares add up to about one, so they mean the same for every family."""
RANKS = (2, 3)
"""Averaged over: directions of expression that are predicted. One is too few, five gain nothing on another patient."""
KNOWN_PENALTIES, KNOWN_RANKS = (1e-4, 1e-3), (5,)
"""Where the patients that are predicted were trained on, more can be told."""
KEPT = 12
"""Rank of what is kept of each transform."""
SHARES = {"colour": 0.5, "morphology": 1.0}
ENCODER_SHARE = 2.0
"""Weights of families: of any encoder, the second. Colour leads astray where the laboratory changes."""
LEAST_REACH = 0.02
"""Predictions spread by at least this share of a target's own deviation, however badly held-out spots were told."""


class FusionRidge(EncoderRidge):
    """Ridge regressions on families of features with their context, averaged over penalties and ranks, and added up."""

    def __init__(
        self,
        *,
        families: tuple[str, ...] = FAMILIES,
        context_um: int = CONTEXT_UM,
        choose: bool = False,
        patients: Literal["new", "known"] = "new",
        normalise_by_section: bool = True,
    ) -> None:
        self.blocks = {name: [name, *([f"{name}~{context_um}"] if context_um else [])] for name in families}
        every = "+".join(name for block in self.blocks.values() for name in block)
        super().__init__(encoder=every, normalise_by_section=normalise_by_section)
        self.patients, self.choose = patients, choose

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; finds each transform's weights of the families anew, whatever an earlier fit chose: it saw fewer spots.

        Returns
        -------
        dict
            ``patients``: for whom the model is. By transform: ``weights`` by family, and ``correlation`` within
            held-out training sections, mean over outputs.
        """
        scores = self._fit_scores(train.features(self.encoder), train.sections)
        where, scale = self._layout(train)
        inputs, groups = scores * scale, groups_of(train.outputs)
        targets, spread = _standard(train.targets, train.sections)
        how = {"columns": list(groups.values()), "known": self.patients == "known"}
        tried, fits = [], []
        folds = inner_folds(train)
        for known, rows in folds:
            held_out = fit_families(inputs[known], targets[known], where, **how)
            tried.append((rows, {name: inputs[rows][:, place] @ held_out[name] for name, place in where.items()}))
            fits.append((known, held_out))
        weights = candidates(list(where)) if self.choose else [shares(list(where))]
        chosen = {name: best(weights, tried, targets, columns, train.sections) for name, columns in groups.items()}
        said = np.zeros(targets.shape)
        for (rows, by_family), (known, held_out) in zip(tried, fits, strict=True):
            for name, columns in groups.items():
                own, reach = chosen[name]["weights"].items(), max(chosen[name]["correlation"], LEAST_REACH)
                mixed = sum(share * by_family[family][:, columns] for family, share in own)
                learnt = sum(share * inputs[known][:, where[one]] @ held_out[one][:, columns] for one, share in own)
                said[np.ix_(rows, columns)] = mixed * reach * spread[columns] / np.maximum(learnt.std(axis=0), 1e-9)
        self.predictability = predictability(train, folds, lambda _, rows: said[rows])
        fitted = fit_families(inputs, targets, where, **how)
        axes, coefficient = [], np.zeros((KEPT * len(groups), targets.shape[1]), dtype=np.float32)
        for number, (name, columns) in enumerate(groups.items()):
            weight = np.zeros((inputs.shape[1], len(columns)))
            for family, share in chosen[name]["weights"].items():
                weight[where[family]] += share * fitted[family][:, columns]
            reach = max(chosen[name]["correlation"], LEAST_REACH)  # least squares: r deviations of the target for one
            weight *= reach * spread[columns] / np.maximum((inputs @ weight).std(axis=0), 1e-9)
            u, s, vt = np.linalg.svd(weight * scale[:, None], full_matrices=False)
            kept = min(KEPT, len(s))
            sign = np.where(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0)[0] < 0, -1, 1)
            u, vt = u * sign, vt * sign[:, None]  # or linear algebra libraries would give other files
            axes.append(np.pad(u[:, :kept] * s[:kept], ((0, 0), (0, KEPT - kept))))
            coefficient[np.ix_(number * KEPT + np.arange(kept), columns)] = vt[:kept]
        self._state |= {
            "centre": np.zeros(len(scale), dtype=np.float32),
            "axes": np.concatenate(axes, axis=1).astype(np.float32),
            "coefficient": coefficient,
            "intercept": train.targets.mean(axis=0, dtype=np.float64).astype(np.float32),
        }
        return chosen | {"patients": self.patients}

    def _layout(self, train: Spots) -> tuple[dict[str, slice], np.ndarray]:
        """Return the columns of each family, and what brings the sum of a family's squares to about one."""
        widths = {name: sum(train.features(part).shape[-1] for part in block) for name, block in self.blocks.items()}
        ends = np.cumsum([0, *widths.values()])
        scale = np.repeat(1 / np.sqrt(list(widths.values())), list(widths.values())).astype(np.float32)
        if self.patients == "known":
            return {"all": slice(0, int(ends[-1]))}, scale / np.float32(np.sqrt(len(widths)))
        return {name: slice(*map(int, ends[i : i + 2])) for i, name in enumerate(widths)}, scale


def groups_of(outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the columns of each transform, by its name."""
    names = np.array([name.partition(":")[0] for name in outputs])
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}


def fit_families(
    inputs: np.ndarray, targets: np.ndarray, where: dict[str, slice], *, columns: list[np.ndarray], known: bool
) -> dict[str, np.ndarray]:
    """Return each family's (width, outputs) weights; what they give has deviation one on these rows."""
    found = {}
    for name, place in where.items():
        how = (KNOWN_PENALTIES, KNOWN_RANKS) if known else (PENALTIES, RANKS)
        weight = low_rank(inputs[:, place], targets, columns, *how)
        found[name] = weight / np.maximum((inputs[:, place] @ weight).std(axis=0), 1e-9)
    return found


def low_rank(
    x: np.ndarray, y: np.ndarray, columns: list[np.ndarray], penalties: tuple[float, ...], ranks: tuple[int, ...]
) -> np.ndarray:
    """Return (d, q) weights: the mean over penalties and ranks of reduced-rank ridge regressions of equal spread.

    The fitted values of one penalty are projected on their first directions (Izenman 1975), transform by transform;
    every regression's outputs are brought to deviation one before they are averaged.

    Parameters
    ----------
    x
        (n, d), about centred.
    y
        (n, q), about centred.
    columns
        Of each transform: they share no directions.
    penalties
        Per row of ``x``.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    tall = len(x) > x.shape[1]
    values, vectors = np.linalg.eigh(x.T @ x if tall else x @ x.T)
    total = np.zeros((x.shape[1], y.shape[1]))
    for penalty in penalties:
        shrunk = 1 / (np.maximum(values, 0) + penalty * len(x))
        inner = (vectors * shrunk) @ (vectors.T @ (x.T @ y if tall else y))
        weight = inner if tall else x.T @ inner
        fitted = x @ weight
        for own in columns:
            directions = np.linalg.eigh(fitted[:, own].T @ fitted[:, own])[1][:, ::-1]
            for rank in ranks:
                onto = directions[:, :rank] @ directions[:, :rank].T
                spread = np.maximum((fitted[:, own] @ onto).std(axis=0), 1e-9)
                total[:, own] += weight[:, own] @ (onto / spread)
    return total


def shares(families: list[str]) -> dict[str, float]:
    """Return the fixed weights of families; one alone has all of it."""
    return {name: SHARES.get(name, ENCODER_SHARE) if len(families) > 1 else 1.0 for name in families}


def candidates(families: list[str]) -> list[dict[str, float]]:
    """Return the weights that may be chosen: those of every set of families, all of them first."""
    sets = [some for size in range(len(families), 0, -1) for some in combinations(families, size)]
    return [shares(list(some)) for some in sets]


def best(
    weights: list[dict[str, float]],
    tried: list[tuple[np.ndarray, dict[str, np.ndarray]]],
    targets: np.ndarray,
    columns: np.ndarray,
    sections: np.ndarray,
) -> dict[str, Any]:
    """Return the weights whose predictions of held-out training spots correlate best, within sections, part by part.

    Parameters
    ----------
    weights
        Those that are tried; the first of equals is taken, and where nothing was held out.
    tried
        Of each held-out part, its rows and each family's predictions of them.
    """
    found: dict[str, Any] = {}
    for one in weights:
        parts = []
        for rows, said in tried:
            mixed = sum(share * said[name][:, columns] for name, share in one.items())
            each = [
                _correlations(mixed[own], targets[np.ix_(rows[own], columns)])
                for own in (sections[rows] == section for section in np.unique(sections[rows]))
                if own.sum() > 2
            ]
            parts += [np.mean(each, axis=0)] if each else []
        genes = np.mean(parts, axis=0) if parts else np.zeros(len(columns))
        if not found or genes.mean() > found["correlation"]:
            found = {"weights": one, "correlation": float(genes.mean())}
    return found


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column; zero where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), size, out=np.zeros(size.shape), where=size > 1e-12)


def _standard(targets: np.ndarray, sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return targets standardised within sections, and each output's deviation within sections."""
    scores, squares = np.zeros(targets.shape), np.zeros(targets.shape[1])
    for section in np.unique(sections):
        rows = sections == section
        own = targets[rows] - targets[rows].mean(axis=0, dtype=np.float64)
        spread = own.std(axis=0)
        scores[rows] = np.divide(own, spread, out=np.zeros(own.shape), where=spread > 1e-9)
        squares += rows.mean() * spread**2
    return scores, np.sqrt(squares)
