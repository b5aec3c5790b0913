"""How a study is spoken of: what its panel holds and who was held out. One place, for report, figures and cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.folds import BY_SECTION, QUESTIONS, UNKNOWN_LABORATORY, caveat
from histocrypt.evaluation.metrics import METRICS
from histocrypt.evaluation.scores import CEILING, NOISE_CEILING, SHARE, WITHIN, title_of
from histocrypt.pipeline.predictions import some
from histocrypt.predictors.registry import BASELINES
from histocrypt.targets.matrix import noun

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.evaluation.scores import Scores

COLOUR = "colour_ridge"
MEAN_PROFILE = "mean_profile"
BLIND = (MEAN_PROFILE, "depth_only")  # baselines that do not look at the image
MINUS, RANGE = "\u2212", "\u2009to\u2009"
TRANSFORM_WORDS = {
    "log1p_cp10k": "depth-normalised expression",
    "log1p": "raw counts, log scale",
    "log2p1": "raw counts, log2 scale",
    "rank": "ranks within a spot",
    "proportion": "proportions of cell types",
    "spot_rank": "ranks of cell types within a spot",
}
METRIC_WORDS = {
    "pearson": ("PCC", "Pearson’s correlation between predicted and measured values of one {one} over spots."),
    "spearman": ("Spearman", "The same on ranks: does the order of spots agree?"),
    "mse": ("MSE", "Mean squared error, in the squared units of the table. Smaller is better."),
    "mae": ("MAE", "Mean absolute error, in the units of the table. Smaller is better."),
    "r2": (
        "R²",
        "Share of a section’s variance explained; negative means worse than that section’s own (unknown) mean.",
    ),
    "rvd": ("RVD", "Relative variance distance: squared relative error of the variance, mean over {many}."),
    "moran_error": (
        "Moran’s I",
        "How alike neighbouring spots are, from about 0 (no pattern) to 1 (smooth). Its error is the mean absolute "
        "difference between predicted and measured.",
    ),
}
"""The glossary's term and its meaning, for every metric in `METRICS`."""
MODEL_WORDS = {
    "mean_profile": "Predicts each {one}’s training mean at every spot: a constant predictor.",
    "depth_only": "Predicts from the spot’s own total counts, which no image shows.",
    "colour_ridge": "A linear model (ridge: with shrunken weights) of the average colours of a tile.",
    "encoder_ridge": "The same on the output of a network that was trained on other pictures and stays as it is.",
    "knn": "The mean of the most similar training tiles (k nearest neighbours), by that network’s output.",
    "fusion_ridge": "One linear model of colour, nuclei, tissue and network layers, of a tile and its surroundings.",
    "vision_mlp": "A convolutional network that looks at a tile, its quarters and its centre.",
    "resnet18": "A residual network of 18 layers, trained on the tiles.",
    "fhe_cnn": "A convolutional network whose activations are squares, so that it runs on encrypted tiles.",
    "fhe_head": "A linear model on a frozen network’s output, evaluated on encrypted features.",
    "fhe_resnet18": "ResNet-18 with squares for activations, for encryption with bootstrapping.",
    "he2gene": "One network for the panel, all other genes and a tumour label.",
    "stem": "A diffusion model that draws many possible values for each spot.",
    "stacking_mlp": "A small network that combines the predictions of the other models.",
    "rank_average": "The mean of the other models’ ranks; it learns nothing.",
}
"""The glossary's line for every model a page may show."""
ATTACK_WORDS = {
    "loss threshold": "Takes a small error as a sign of membership in the training data.",
    "calibrated": "Compares the error with that of models that did not see the patient.",
    "LiRA": "Likelihood ratio: how likely the error is with and without the patient, by models of both kinds.",
    "RMIA": "Counts how many other patients have a smaller likelihood ratio than this one.",
    "quantile": "Compares the error with a high quantile of the errors on similar spots of other patients.",
    "learned": "A classifier trained on models whose members are known.",
    "denoising loss": "Takes a generator’s small error in a tile’s noise for membership.",
    "closest record": "Looks for drawn tiles that lie near a patient’s.",
    "density ratio": "Compares how many drawn tiles lie around a patient’s tile with how many another set has there.",
    "classifier of sets": "A classifier that tells sets drawn with a patient in training from sets drawn without.",
    "Share nearer": "Counts drawn tiles that lie nearer to a training tile than tiles of other patients do.",
    "offline": "The same attack with only models that did not see the patient.",
    "training repeated": "The same attack on several models trained alike: it judges the training, not one model.",
    "by shadow generators": "The same attack with the help of generators whose members are known.",
    "decrypted": "The same attack on the outputs that the key owner decrypts.",
}
"""The glossary's line for an attack, or for a variant of one, by a part of its name."""
CEILING_WORDS = {
    NOISE_CEILING: (
        "Noise ceiling",
        "The PCC that a predictor would reach that knew every spot’s true {one} level: counts are a sample of it, and "
        "their noise cannot be predicted. Estimated from the counts themselves, by splitting them at random in halves "
        "(Spearman and Brown). It counts all that differs between spots as predictable, seen in the image or not.",
    ),
    SHARE: ("Share of it", "Mean PCC divided by the mean noise ceiling of the same {many} and sections."),
}
"""The glossary's terms for how high a score can be, where some section has a noise ceiling."""
TRUST_WORDS = (
    "Trusted {many}",
    "Those that a model predicts better than chance, and in no training patient left out in turn the wrong way; the "
    "first quarter are those with the largest correlation there. Both are chosen before the test.",
)
"""The glossary's term and its meaning, where models say which names they predict."""


@dataclass(frozen=True)
class Terms:
    """Words that depend on the study."""

    one: str
    """One name of the panel: ``gene`` or ``cell type``."""
    quantity: str
    """What is measured of it."""
    unit: str
    """Who is held out: ``patient`` or ``section``."""
    unseen: str
    """On whom scores are, as said after "on"."""
    caveat: str
    """What scores do not say because of the scheme; empty where patients are held out."""

    @property
    def many(self) -> str:
        """Several names of the panel."""
        return f"{self.one}s"

    @property
    def by_section(self) -> bool:
        """Whether sections were held out while other sections of their patient were trained on."""
        return self.unit == "section"


def terms_of(scores: Scores) -> Terms:
    """Return the words for a scored study."""
    return terms(scores.notes.get("matrix"), scores.notes.get("scheme", ""))


def terms(matrix: str | None, scheme: str) -> Terms:
    """Return the words for a study that predicts ``matrix`` (None: counts) and holds out by ``scheme``."""
    by_section = scheme == BY_SECTION
    return Terms(
        one=noun(matrix),
        quantity="expression" if matrix is None else "shares",
        unit="section" if by_section else "patient",
        unseen="sections it never saw, of patients that it did see" if by_section else "patients it never saw",
        caveat=caveat(scheme),
    )


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number for readers: a true minus sign, an en dash where there is none."""
    if value is None or not np.isfinite(value):
        return "\u2013"
    rounded = round(float(value), digits) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def percent(value: float) -> str:
    """Return a share for readers, in whole percent; an en dash where there is none."""
    return "\u2013" if value is None or not np.isfinite(value) else f"{number(100 * value, 0)} %"


def span(low: float | None, high: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Return ``low to high``; ``none`` where nothing could be drawn."""
    if low is None or not np.isfinite(low):
        return "none"
    return f"{number(low, digits, sign=sign)}{RANGE}{number(high, digits, sign=sign)}"


def plural(count: int, noun: str) -> str:
    """Return ``1 patient`` or ``3 patients``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(counts: Mapping[str, int], limit: int = 24) -> str:
    """Return names with their counts: ``"A (3), B (2) and 190 more"``."""
    few = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:limit])
    return few + (f" and {len(counts) - limit} more" if len(counts) > limit else "")


def best_model(scores: Scores, transform: str) -> str:
    """Return the predictor with the largest mean correlation, baseline or not, among those that look at the image."""
    table = scores.of(transform, ceiling=False)
    return str(table[~table.index.isin(BLIND)]["pearson"].idxmax())


def best_baseline(scores: Scores, transform: str, *, but: str = "") -> str:
    """Return the baseline with the largest mean correlation."""
    table = scores.of(transform, ceiling=False)
    return str(table[(table["role"] == "baseline") & (table.index != but)]["pearson"].idxmax())


def verdict(row: pd.Series | Mapping[str, Any]) -> str:
    """Return what a row of ``paired`` says, as a verb: ``beats`` only where the whole interval lies above zero."""
    if not np.isfinite(row["low"]):
        return "cannot be told from"
    sign = -1 if row["metric"] in METRICS and METRICS[row["metric"]].better == "lower" else 1
    low, high = sorted((sign * row["low"], sign * row["high"]))
    if low > 0:
        return "beats"
    return "does worse than" if high < 0 else "does not beat"


def cell(pairs: pd.DataFrame, model: str) -> dict[str, Any] | None:
    """Return the row of a model in differences from a baseline (`Scores.against`), with its verdict; None without."""
    return {**pairs.loc[model].to_dict(), "verdict": verdict(pairs.loc[model])} if model in pairs.index else None


def score_table(scores: Scores, transform: str) -> pd.DataFrame:
    """Return the report's first table of scores as text, the best model on top."""
    import pandas as pd

    table, unit = scores.of(transform).sort_values("pearson", ascending=False), terms_of(scores).unit
    against = scores.against(COLOUR, transform)
    rows = []
    for model, row in table.iterrows():
        pair = cell(against, model)
        beside = "" if pair is None else f"{number(pair['difference'], sign=True)}, {pair['verdict']}"
        rows.append(
            {
                "": row["title"] + (" (baseline)" if row["role"] == "baseline" else ""),
                "mean correlation": number(row["pearson"]),
                "95 % interval": span(row["pearson_low"], row["pearson_high"]),
                f"{unit}s, lowest to highest": span(row[f"{unit}_min"], row[f"{unit}_max"], 2),
                "against colour-only ridge": beside,
                "noise ceiling": number(row[NOISE_CEILING]),
                "share of it": percent(row[SHARE]),
                "pooled": number(row["pooled_pearson"]),
                **{one.title: number(row[name], one.digits) for name, one in METRICS.items() if "main" in one.tables},
            }
        )
    return pd.DataFrame(rows).set_index("")


def paired_table(scores: Scores, transform: str) -> pd.DataFrame:
    """Return the report's table of differences from every baseline as text: models by baselines."""
    import pandas as pd

    rows = scores.paired
    rows = rows[(rows["transform"] == transform) & (rows["metric"] == "pearson")]
    said = [
        {
            "": title_of(row["model"]),
            "from": title_of(row["baseline"]),
            "said": f"{number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)})",
        }
        for _, row in rows[rows["baseline"].isin(BASELINES)].iterrows()
    ]
    return pd.DataFrame(said).pivot(index="", columns="from", values="said").fillna("\u2013")


def compare(scores: Scores, model: str, baseline: str, transform: str) -> str:
    """Return one sentence on a model beside a baseline: who is better, by how much, in how many patients."""
    row = scores.against(baseline, transform).loc[model]
    other = scores.of(transform).loc[baseline, "pearson"]
    verb = verdict(row)
    if verb == "does worse than":
        verb = "does not beat, but does worse than,"
    whys = {
        "does not beat": " (the interval of the difference includes zero)",
        "cannot be told from": " (there is no interval where every section is a single block of tissue)",
    }
    why = whys.get(verb, "")
    return (
        f"{title_of(model)} {verb} {title_of(baseline).lower()}, which reaches {number(other)}{why}: "
        f"difference {number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)}), "
        f"better in {better_in(row, scores)}."
    )


def better_in(row: pd.Series, scores: Scores) -> str:
    """Return in how many of those held out a row of ``paired`` is better: ``2 of 3 patients``."""
    unit = terms_of(scores).unit
    return f"{row[f'{unit}s_better']} of {plural(int(row[f'{unit}s']), unit)}"


def answer(scores: Scores) -> list[str]:
    """Return the answer to the study's question: a few plain sentences."""
    main = scores.transforms[0]
    table = scores.of(main, ceiling=False)
    best = best_model(scores, main)
    row = table.loc[best]
    units = TRANSFORM_WORDS.get(main, main)
    own = table[table["role"] == "model"].sort_values("pearson", ascending=False).index
    terms = terms_of(scores)
    kind = "The best model," if row["role"] == "model" else "The best predictor is a baseline:"
    stop = "," if row["role"] == "model" else ""
    lines = [
        f"{kind} {title_of(best)}{stop} reaches a mean correlation of {number(row['pearson'])} (95 % interval "
        f"{span(row['pearson_low'], row['pearson_high'])}) between predicted and measured {terms.quantity} over the "
        f"spots of a section, averaged over {terms.many} and {plural(int(row['sections']), 'section')}, on "
        f"{terms.unseen} ({units})."
    ]
    if terms.caveat:
        lines.append(terms.caveat)
    if best != COLOUR:
        lines.append(compare(scores, best, COLOUR, main))
    strongest = best_baseline(scores, main, but=best)
    if row["role"] == "model" and strongest != COLOUR:
        lines.append(compare(scores, best, strongest, main))
    if row["role"] != "model" and len(own) and best != COLOUR:
        lines.append(compare(scores, own[0], best, main))
    losers = [
        title_of(model)
        for model in own
        if model != best and verdict(scores.against(COLOUR, main).loc[model]) != "beats"
    ]
    if losers:
        verb = "does not beat" if len(losers) == 1 else "do not beat"
        lines.append(f"{' and '.join(losers)} {verb} colour-only ridge.")
    if CEILING in scores.of(main).index:
        ceiling = scores.of(main).loc[CEILING, "pearson"]
        lines.append(
            "The tissue is simulated, so the right answer is known. With this noise, no reader of the image can do "
            f"better than about {number(ceiling)}, of which {title_of(best)} recovers "
            f"{100 * row['recovered']:.0f} %."
        )
    if np.isfinite(row[NOISE_CEILING]):
        lines.append(
            f"The noise of counting alone leaves a ceiling of {number(row[NOISE_CEILING])}, of which "
            f"{title_of(best)} reaches {percent(row[SHARE])}."
        )
    if WITHIN in table:
        lines.append(within(scores, best, main))
    for other in scores.transforms[1:]:
        theirs = scores.of(other, ceiling=False)
        line = f"On {TRANSFORM_WORDS.get(other, other)}, {title_of(best)} reaches {number(theirs.loc[best, 'pearson'])}"
        if "depth_only" in theirs.index:
            depth = number(theirs.loc["depth_only", "pearson"])
            line += f", and sequencing depth alone, which the image does not show, {depth}"
        lines.append(f"{line}.")
    return lines


def within(scores: Scores, model: str, transform: str) -> str:
    """Return one sentence on the order of cell types within a spot, with the mean profile beside it."""
    table = scores.of(transform)
    row, profile = table.loc[model], table.loc[MEAN_PROFILE]
    pair = scores.against(MEAN_PROFILE, transform, WITHIN).loc[model]
    return (
        f"Within a spot, {title_of(model)} orders the cell types with a mean Spearman correlation of "
        f"{number(row[WITHIN])} ({span(row[f'{WITHIN}_low'], row[f'{WITHIN}_high'])}). The mean profile, which gives "
        f"every spot the same composition, already reaches {number(profile[WITHIN])}, because some cell types are "
        f"common everywhere; the model adds the difference, {number(pair['difference'], sign=True)} "
        f"({span(pair['low'], pair['high'], sign=True)})."
    )


def by_question(scores: Scores) -> dict[str, Any]:
    """Return means of patients by the question that a section answers; empty where no laboratory is stated."""
    if "question" not in scores.sections:  # scored before laboratories were stated
        return {}
    table = scores.by_question(scores.transforms[0])
    asked = [one for one in QUESTIONS if one in set(table["question"])]
    if asked == [UNKNOWN_LABORATORY]:
        return {}
    cells = table.set_index(["model", "question"])
    rows = [
        {"title": row["title"], "role": row["role"], "cells": [cells.loc[(model, one)].to_dict() for one in asked]}
        for model, row in scores.of(scores.transforms[0]).sort_values("pearson", ascending=False).iterrows()
    ]
    sections = scores.sections.drop_duplicates("section").groupby("question")["section"].agg(list).to_dict()
    return {"asked": [(one, some(sections[one])) for one in asked], "rows": rows}


def no_ceiling(scores: Scores) -> list[str]:
    """Return why sections have no noise ceiling: one sentence for each reason."""
    sections: dict[str, list[str]] = {}
    for section, why in scores.notes.get("no_ceiling", {}).items():
        sections.setdefault(why, []).append(section)
    return [
        f"No noise ceiling for {plural(len(names), 'section')} ({some(names)}): {why}."
        for why, names in sections.items()
    ]


def limits(scores: Scores) -> list[str]:
    """Return what a reader must not conclude, from the numbers at hand."""
    main = scores.of(scores.transforms[0])
    patients = int(main["patients"].max())
    block = number(scores.notes["block_um"] / 1000, 1)
    terms = terms_of(scores)
    lines = [*([terms.caveat] if terms.caveat else [])]
    lines += [f"{title_of(model)} has no score: {why}." for model, why in scores.notes.get("left_out", {}).items()]
    lines += [
        f"{plural(patients, 'patient')} in all. The intervals redraw {block} mm squares of tissue of these patients; "
        "they do not cover new patients. The spread over patients is shown beside them; with so few it is only a hint."
        if patients < 20
        else f"The intervals redraw {block} mm squares of tissue of these {patients} patients, not patients.",
        "The best model is named after seeing all test scores; with several models this flatters it a little.",
        "Pooled correlations mix differences within sections with differences between them (depth, batch, centre).",
    ]
    lines += no_ceiling(scores)
    if scores.notes["few_blocks"]:
        few = listed(scores.notes["few_blocks"])
        lines.append(f"Too few blocks of tissue for a trustworthy interval in: {few}.")
        if 1 in scores.notes["few_blocks"].values():
            lines.append(
                "Sections of a single block are left out of the intervals; `evaluation: {block_um: ...}` in the study "
                "file sets smaller blocks."
            )
    if scores.notes["unscored_genes"]:
        each = listed({name: len(genes) for name, genes in scores.notes["unscored_genes"].items()})
        lines.append(
            f"{terms.many.capitalize()} of the panel that a test section did not measure were not scored there: {each}."
        )
    if not scores.notes["pooled_genes"]:
        lines.append(f"No {terms.one} is in every fold's panel and measured in every section: nothing could be pooled.")
    return lines
