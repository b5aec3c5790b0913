"""What outputs tell of patients beyond their image, where the truth is known: simulated cohorts.

    python benchmarks/attributes.py [--patients 80] [--spots-per-side 6] [--calibrate 60] [--json FILE]

Half of the patients, from two centres in turn, are members: models are fitted on them. The other half is new. Four
attributes of known kind are guessed of them (`audit.attributes`):

- ``laboratory``: the centre that stained the section. Seen in the image by stain alone; expression knows nothing of it.
- ``immune-rich``: among the third of the patients with the most immune tissue, against the third with the least. In the
  image, and in expression. The attacker looks at outputs of immune genes.
- ``hidden level``: the patient's own level of one gene of the programme OFF, above the median patient's. In measured
  expression alone: nothing of it shows in the image, so a model can know it of members only. The attacker looks at
  that gene's output.
- ``member``: whether the patient was trained on.

Models: ``ridge``, a ridge regression with a penalty chosen over left-out patients, and ``by heart``, which answers with
the measured values of the nearest training spot. A leak of graded strength is planted by mixing the two. The last
table asks whether intervals of `audit.attributes` cover, over made patients of whom the truth is known; with
``--patients 0`` it stands alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from histocrypt.audit import attributes
from histocrypt.audit.attributes import BOTH, IMAGE, OUTPUTS, Inferred, Told, by_patient, infer
from histocrypt.data.load import Spots
from histocrypt.demo.write import planted, write_demo
from histocrypt.encoders.described import DESCRIBED
from histocrypt.encoders.encoders import encode
from histocrypt.files import write_json
from histocrypt.predictors.closed_form import EncoderRidge
from histocrypt.sections.read import read_path
from histocrypt.targets.transforms import TargetStatistics, output_names, transform
from histocrypt.tissue.stain import estimate
from histocrypt.tissue.tiles import iter_tiles

TILE_UM, TILE_PX, MIN_COUNTS, GENES, ENCODER = 150, 96, 200, 80, "efficientnet_lite0_128"
DOSES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Weights of what was learnt by heart."""


@dataclass(frozen=True)
class Cohort:
    """Spots of all patients."""

    patients: np.ndarray
    """(n,) P_01, P_02, ..."""
    seen: np.ndarray
    """(n, d) colour and nuclei: what models see."""
    image: dict[str, np.ndarray]
    """(n, d) what an attacker may see who holds the image."""
    values: np.ndarray
    """(n, genes) log1p_cp10k."""
    attribute: dict[str, np.ndarray]
    """(patients,) values, patients in sorted order; ``""``: not asked."""
    looked_at: dict[str, np.ndarray]
    """(genes,) bool: outputs that the attacker of an attribute looks at; all, where it is not named."""


def cohort(folder: Path, *, patients: int, spots_per_side: int, seed: int) -> Cohort:
    """Simulate patients; the genes are those with the highest mean count, programmes that are seen and OFF alike."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("patients", "colour", "morphology", ENCODER, "counts")}
    totals, centre, immune, hidden = [], [], [], []
    drawn = write_demo(folder, n_sections=patients, spots_per_side=spots_per_side, n_genes=120, seed=seed)
    for number, path in enumerate(drawn):
        section = read_path(path, for_prediction=False)
        adata, told = section.adata, planted(section.adata)
        total = np.asarray(adata.X.sum(axis=1)).ravel()
        finite = np.isfinite(adata.X.toarray()).all(axis=1)
        good = (total >= MIN_COUNTS) & finite & ~adata.obs_names.isin(told["off_tissue"])
        where = section.coords[good] - np.array(told["shift_um"]) / section.um_per_px
        cut = iter_tiles(section.image, where, um_per_px=section.um_per_px, tile_um=TILE_UM, tile_px=TILE_PX)
        tiles = np.stack(list(cut))
        how = {"stain": estimate(tiles[:, ::2, ::2].reshape(-1, 3)), "um_per_px": TILE_UM / TILE_PX}
        for name in ("colour", "morphology"):
            rows[name].append(DESCRIBED[name].describe(tiles, **how))
        rows[ENCODER].append(encode(tiles, ENCODER, progress=False))
        rows["counts"].append(adata.X[good].toarray().astype(np.float64))
        rows["patients"].append(np.repeat(f"P_{number:03d}", good.sum()))
        totals.append(total[good])
        centre.append(adata.uns["laboratory"])
        share, regions = adata.obsm["region_share"][good], list(adata.uns["demo"]["regions"])
        immune.append(share[:, regions.index("immune")].mean() / share[:, : regions.index("background")].sum(1).mean())
        hidden.append(np.log1p(1e4 * rows["counts"][-1] / total[good, None]).mean(axis=0))
    counts = np.concatenate(rows["counts"])
    chosen = np.argsort(-counts.mean(axis=0))[:GENES]
    programme = adata.var["programme"].to_numpy()[chosen]
    gene = int(np.flatnonzero(programme == "OFF")[0])
    level = np.array(hidden)[:, chosen[gene]]
    member = np.random.default_rng(seed).permutation(np.arange(patients) // 2 % 2 == 0)
    low, high = np.quantile(immune, [1 / 3, 2 / 3])
    return Cohort(
        np.concatenate(rows["patients"]),
        np.concatenate([np.concatenate(rows[name]) for name in ("colour", "morphology")], axis=1),
        {name: np.concatenate(rows[name]) for name in ("colour", ENCODER)},
        transform(counts, np.concatenate(totals), "log1p_cp10k")[:, chosen],
        {
            "laboratory": np.array(centre),
            "immune-rich": np.where(immune >= high, "high", np.where(immune <= low, "low", "")),
            "hidden level": np.where(level > np.median(level), "high", "low"),
            "member": np.where(member, "yes", "no"),
        },
        {"immune-rich": programme == "IMM", "hidden level": np.arange(GENES) == gene},
    )


def outputs_of(made: Cohort) -> dict[str, np.ndarray]:
    """Return what both models, fitted on the members, say of every spot."""
    names, person = np.unique(made.patients, return_inverse=True)
    inside = np.isin(made.patients, names[made.attribute["member"] == "yes"])
    outputs = output_names(["log1p_cp10k"], [f"g{i}" for i in range(made.values.shape[1])])

    def spots(keep: np.ndarray, targets: np.ndarray | None) -> Spots:
        label, nothing = made.patients[keep], np.full(keep.sum(), np.nan)
        return Spots(label, label, label, nothing, outputs, targets=targets, features=lambda _: made.seen[keep])

    raw = made.values[inside].astype(np.float32)
    scaling = TargetStatistics.of(raw, outputs)
    model = EncoderRidge(encoder="described", components=64)
    model.fit(spots(inside, scaling.standardise(raw.copy(), sections=made.patients[inside])))
    ridge = scaling.restore(model.predict(spots(np.ones_like(inside), None)))
    scaled = (made.seen - made.seen[inside].mean(axis=0)) / np.maximum(made.seen[inside].std(axis=0), 1e-6)
    nearest = NearestNeighbors(n_neighbors=1).fit(scaled[inside]).kneighbors(scaled, return_distance=False)[:, 0]
    return {"ridge": ridge, "by heart": made.values[inside][nearest]}


def ask(made: Cohort, outputs: np.ndarray, name: str, whom: str, seed: int) -> Inferred:
    """Guess one attribute of the members, of the new patients, or of all."""
    member = made.attribute["member"] == "yes"
    who = {"members": member, "new patients": ~member, "all": np.ones_like(member)}[whom] & (made.attribute[name] != "")
    outputs = outputs[:, made.looked_at.get(name, np.ones(outputs.shape[1], bool))]
    image = {family: by_patient(rows, made.patients)[1][who] for family, rows in made.image.items()}
    value = {"laboratory": "south", "member": "yes"}.get(name, "high")
    told = by_patient(outputs, made.patients)[1][who]
    return infer(told, image, made.attribute[name][who], name=name, value=value, repeats=10, seed=seed)


def said(told: Told) -> str:
    """Return a figure with its interval."""
    return f"{told.auc:.2f} ({told.low:.2f} to {told.high:.2f})"


def row(model: str, whom: str, found: Inferred) -> str:
    """Return one line of the table."""
    cells = [said(found.told[source]) for source in (OUTPUTS, IMAGE, BOTH)]
    cells += [said(found.beyond[word]) for word in ("outputs - image", "both - image")]
    controls = f"{found.planted:.2f}; {found.dealt[0]:.2f} to {found.dealt[1]:.2f}"
    p = f"{found.told[OUTPUTS].p_value:.3f}"
    return f"| {found.attribute} | {model} | {whom} | " + " | ".join([*cells[:1], p, *cells[1:], controls]) + " |"


def coverage(cohorts: int, seed: int) -> list[dict[str, float]]:
    """Return how often intervals hold the truth, and how often p is at most .05, over made patients.

    The truth of a size of cohort is the mean of what all its cohorts give. Outputs and image are 20 numbers each, of
    which one differs between the two kinds of patients by so many deviations.
    """
    found = []
    for n, shift in ((12, 0.0), (12, 2.0), (40, 0.0), (40, 1.0), (80, 0.0), (80, 1.0)):
        rng = np.random.default_rng([seed, n, int(10 * shift)])
        has = np.arange(n) % 2 == 0
        aucs, spans, apart, spans_apart, small = [], [], [], [], []
        for _ in range(cohorts):
            outputs, image = rng.normal(size=(2, n, 20))
            outputs[:, 0] += shift * has
            image[:, 0] += 0.5 * shift * has
            dealt = np.stack([has, *(rng.permutation(has) for _ in range(99))], axis=1)
            parts = [attributes._parts(n, rng) for _ in range(8)]
            won, times, nulls = attributes._compared(attributes._axes(outputs), dealt, parts)
            reference, _, others = attributes._compared(attributes._axes(image), dealt, parts)
            weights, count = attributes._drawn(has, 400, rng), {"with": has.sum(), "without": n - has.sum()}
            own, both = attributes._wider(nulls[1:], count), attributes._wider(others[1:], count)
            for values, ends, matrix, wider in (
                (aucs, spans, won, own),
                (apart, spans_apart, won - reference, max(own, both)),
            ):
                how = {"wider": wider, "least": -1}
                value, *interval = attributes._auc(matrix, times, has, weights, **how)
                values.append(value)
                ends.append(interval)
            small.append((nulls >= nulls[0] - 1e-12).mean() <= 0.05)

        def held(ends: list[list[float]], truth: float) -> float:
            return float(np.mean([low <= truth <= high for low, high in ends]))

        found.append(
            {
                "patients": n,
                "shift": shift,
                "auc": float(np.mean(aucs)),
                "held": held(spans, float(np.mean(aucs))),
                "chance_held": held(spans, 0.5),
                "difference": float(np.mean(apart)),
                "difference_held": held(spans_apart, float(np.mean(apart))),
                "p_at_most_5_percent": float(np.mean(small)),
            }
        )
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--spots-per-side", type=int, default=6)
    parser.add_argument("--calibrate", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result: dict[str, list] = {"asked": [], "doses": [], "coverage": []}
    if given.patients:
        cohorts(given, result)
    if given.calibrate:
        result["coverage"] = coverage(given.calibrate, given.seed)
        print(
            "\n| patients | AUC | interval holds it | ... holds .5 | outputs - image | interval holds it | p <= .05 |"
        )
        print("|---" * 7 + "|")
        for one in result["coverage"]:
            print(
                f"| {one['patients']} | {one['auc']:.2f} | {one['held']:.0%} | {one['chance_held']:.0%} "
                f"| {one['difference']:.2f} | {one['difference_held']:.0%} | {one['p_at_most_5_percent']:.0%} |"
            )
    if given.json:
        write_json(given.json, result)


def cohorts(given: argparse.Namespace, result: dict[str, list]) -> None:
    """Ask every attribute of one cohort, then of doses of what was learnt by heart."""
    with tempfile.TemporaryDirectory() as folder:
        made = cohort(Path(folder), patients=given.patients, spots_per_side=given.spots_per_side, seed=given.seed)
    outputs = outputs_of(made)
    print(f"{given.patients} patients, {len(made.patients)} spots\n")
    print("| attribute | model | of whom | from outputs | p | from the image | from both | outputs - image "
          "| both - image | controls: planted; dealt |\n|" + "---|" * 10)  # fmt: skip
    for name, whoms in {
        "laboratory": ("new patients",),
        "immune-rich": ("all",),
        "hidden level": ("members", "new patients"),
        "member": ("all",),
    }.items():
        for model, predicted in outputs.items():
            for whom in whoms:
                found = ask(made, predicted, name, whom, given.seed)
                result["asked"].append({"model": model, "whom": whom, **found.to_dict()})
                print(row(model, whom, found), flush=True)
    print("\n| by heart | hidden level of members | p | outputs - image | member or not | p |\n" + "|---" * 6 + "|")
    for dose in DOSES:
        mixed = (1 - dose) * outputs["ridge"] + dose * outputs["by heart"]
        level, inside = (
            ask(made, mixed, *what, given.seed) for what in (("hidden level", "members"), ("member", "all"))
        )
        result["doses"].append({"dose": dose, "hidden level": level.to_dict(), "member": inside.to_dict()})
        cells = [said(level.told[OUTPUTS]), f"{level.told[OUTPUTS].p_value:.3f}", said(level.beyond["outputs - image"])]
        cells += [said(inside.told[OUTPUTS]), f"{inside.told[OUTPUTS].p_value:.3f}"]
        print(f"| {dose:.0%} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
