"""``histocrypt audit``: a predictor of others asked, from its predictions alone, who was in its training data.

A table says of each section where its predictions and its counts lie, and whether the model had learnt from it. Nothing
else is needed of the model: no weights, no tiles, no training. So only the attack that needs losses alone can be made
(`membership.loss_threshold`), which finds gross overfitting; repeating the training, which finds more, cannot. The
positive control is a network that learns members' counts by heart from the very predictions that are audited: an answer
that says nothing of a spot lets nothing be learnt, and then the card says "not decided".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import paths
from histocrypt.audit.card import DOES_NOT_COVER, FORMAT, WORDS, Card, card_path, patients_of, write_card
from histocrypt.audit.controls import overfitted_losses
from histocrypt.audit.found import Found
from histocrypt.audit.membership import Audit, loss_threshold, write_scores
from histocrypt.audit.subjects import Records, Subject, group_of
from histocrypt.errors import InputError, reading
from histocrypt.evaluation.score_file import join_file
from histocrypt.files import claim, read_table, regular, says
from histocrypt.pipeline.foreign import knows_units
from histocrypt.pipeline.predictions import matrix_of, read_h5ad
from histocrypt.sections.genes import GeneNames, places
from histocrypt.sections.identity import safe_id
from histocrypt.spatial import spot_pitch, squares

if TYPE_CHECKING:
    from histocrypt.pipeline.predictions import Joined

COLUMNS = {
    "prediction": ("predictions", "predicted"),
    "section": ("counts", "truth"),
    "member": ("mia_label", "is_member"),
    "patient": ("patient_id",),
    "laboratory": ("lab", "centre", "center", "site"),
}
"""Columns of the table, and what else people call them; the last two may be missing."""
NEEDED = 3
YES, NO = ("1", "1.0", "true", "yes", "member"), ("0", "0.0", "false", "no", "non-member")
MOST_GENES = 500
"""Of more, the attack takes those that vary most in what was measured: the rest is noise of counting."""
CONTROLLED = 1500
"""Spots that the control is made of, evenly spread: as many as its network can learn by heart."""
BLOCK = 5.0
"""Side of a block of tissue, in distances of neighbouring spots."""
NOT_SEEN = (
    "What other attacks would find, which need the training (models trained alike: calibrated, LiRA, learned) or the "
    "model itself (weights, features).",
    "Whether the table is right: who was a member is as it says.",
)


@dataclass(frozen=True)
class Row:
    """One section of the table."""

    prediction: Path
    section: str
    member: bool
    patient: str
    laboratory: str


@dataclass(frozen=True)
class _Part:
    """One section beside its predictions."""

    pair: Joined
    member: bool
    patient: str
    laboratory: str


def audit_predictions(
    table: Path,
    folder: Path,
    *,
    name: str | None = None,
    units: str | None = None,
    bin_um: float | None = None,
    draws: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> Card:
    """Ask a predictor who was in its training data, and write its privacy card.

    Parameters
    ----------
    table
        ``.csv`` with a row for each section, see `COLUMNS`; paths are relative to its own folder.
    folder
        ``privacy_card_<name>.html`` and ``.json`` go there, and ``scores/<name>.csv``.
    name
        What the predictor is called; None: as the table.
    units
        What values are that do not state it; None: unknown, and errors are of z-scores within sections.
    bin_um
        As in `score_file.score_files`.
    draws, seed
        Of intervals and controls.
    overwrite
        Replace files that lie there.

    Raises
    ------
    InputError
        If the table or a file of it cannot be used, a patient is on both sides, a side is empty, or no gene is
        predicted and measured in every section.
    """
    rows = read_rows(table)
    name = safe_id(name or Path(table).stem)
    page, scores = card_path(Path(folder), name), Path(folder) / "scores" / f"{name}.csv"
    earlier = says(page.with_suffix(".json"), FORMAT)
    for path in (page.with_suffix(".json"), page, scores):
        claim(path, inputs=[table], mine=lambda _: earlier, overwrite=overwrite)
    known, notes = True, []
    parts: list[_Part] = []
    for row in rows:
        part, is_known, said = _read(row, units, bin_um)
        parts.append(part)
        known &= is_known
        notes += said
    _check_sides(table, parts)
    transforms = [one for one in parts[0].pair.true if all(one in part.pair.true for part in parts)]
    if not transforms:
        raise InputError("files use different units", file=table, field="prediction", fix="state them with --units")
    columns = _common([part.pair for part in parts], table)
    subject, found = Subject("predictor", name, name, f"members as {Path(table).name} says", Path(folder)), None
    for transform in transforms:
        records, left = _records(parts, columns, transform, scaled=known)
        found = found or Found(subject, _what(records, name))
        notes += left
        attack = f"loss threshold ({transform}{'' if known else ', z-scores within sections'})"
        audit = Audit(loss_threshold(records.loss), records.member, records.patients, records.group, records.blocks)
        few = np.unique(np.linspace(0, len(records) - 1, min(len(records), CONTROLLED)).round().astype(int))
        own = records.subset(few)
        planted = loss_threshold(overfitted_losses(own.prediction, own.truth, own.member, seed=seed))
        found.attack(attack, audit, planted, rows=few, access="black box", draws=draws, seed=seed)
    found.notes += list(dict.fromkeys(notes))
    card = Card(
        thing=name,
        kind=subject.kind,
        title=subject.title,
        what=found.what,
        study="predictions of others",
        fold=subject.fold,
        questions=found.corrected(),
        does_not_cover=[*NOT_SEEN, *DOES_NOT_COVER[subject.kind]],
        notes=found.notes,
        date=datetime.now(UTC).date().isoformat(),
    )
    write_scores(scores, found.audits)
    write_card(page, card)
    return card


def read_rows(table: Path) -> list[Row]:
    """Return the sections of a table.

    Raises
    ------
    InputError
        If it is no table, lacks a column, or a row does not say what it must.
    """
    with reading("is not readable as a table", ValueError, UnicodeError, file=table):
        content = read_table(regular(table), dtype=str, keep_default_na=False, skipinitialspace=True)
    there = {str(column).strip().lower(): column for column in reversed(content.columns)}
    named = {
        name: next((there[one] for one in (name, *others) if one in there), None) for name, others in COLUMNS.items()
    }
    for name in list(COLUMNS)[:NEEDED]:
        if named[name] is None:
            others = ", ".join((name, *COLUMNS[name]))
            raise InputError("a column is missing", file=table, field=name, expected=f"one of {others}")
    if not len(content):
        raise InputError("lists no section", file=table)
    rows = []
    for number, record in enumerate(content.to_dict("records"), start=2):
        said = {name: str(record[column]).strip() if column is not None else "" for name, column in named.items()}
        where = {"file": table, "field": f"line {number}"}
        for name in ("prediction", "section"):
            if not said[name]:
                raise InputError(f"has no {name}", **where)
        if said["member"].lower() not in (*YES, *NO):
            raise InputError(
                "does not say whether the section was a member", **where, value=said["member"], expected="1 or 0"
            )
        prediction, section = (paths.resolve(said[name], Path(table).parent) for name in ("prediction", "section"))
        rows.append(Row(prediction, str(section), said["member"].lower() in YES, said["patient"], said["laboratory"]))
    return rows


def _read(row: Row, units: str | None, bin_um: float | None) -> tuple[_Part, bool, list[str]]:
    """Return a section of the table, whether its units are known, and notes."""
    from histocrypt.sections.read import read_path

    section = read_path(row.section, bin_um=bin_um, counts_only=True)
    read = read_h5ad(row.prediction, what="prediction file")
    how = {"file": row.prediction, "name": None, "units": units}
    predicted, pair, notes = join_file(read, section, **how)
    if matrix_of(predicted) is not None:
        raise InputError("does not predict genes", file=row.prediction, value=matrix_of(predicted), expected="genes")
    patient = row.patient or section.patient or ""
    if not patient:
        notes = [*notes, f"{section.id}: no patient is named; it counts as one of its own"]
    laboratory = row.laboratory or group_of(section.adata)
    return _Part(pair, row.member, patient or f"section {section.id}", laboratory), knows_units(predicted), notes


def _check_sides(table: Path, parts: Sequence[_Part]) -> None:
    members, others = ({part.patient for part in parts if part.member is side} for side in (True, False))
    if both := sorted(members & others):
        problem, fix = (
            "a patient is a member in one row but not in another",
            "mark every section of a training patient as a member",
        )
        raise InputError(problem, file=table, field="member", value=both[0], fix=fix)
    if not members or not others:
        value = "members" if members else "non-members"
        raise InputError(f"all are {value}", file=table, field="member", expected="members and non-members")


def _common(pairs: Sequence[Joined], table: Path) -> list[np.ndarray]:
    """Return each pair's columns of the genes that all have, in the order of the first."""
    first = GeneNames.of(pairs[0].genes, pairs[0].symbols)
    columns = np.stack([places(first, GeneNames.of(pair.genes, pair.symbols)) for pair in pairs])
    columns = columns[:, (columns >= 0).all(axis=0)]
    if not columns.shape[1]:
        raise InputError("no gene is predicted and measured in every section", file=table, field="prediction")
    return list(columns)


def _records(
    parts: Sequence[_Part], columns: Sequence[np.ndarray], transform: str, *, scaled: bool
) -> tuple[Records, list[str]]:
    """Return all spots, standardised gene by gene, and what is to be said of genes that were left out.

    Values whose units are known keep the level of their section, and both sides are divided by the spread of what was
    measured; others are z-scores within their section. Nothing of it depends on who was a member.
    """
    values = [
        [of[transform][:, own] for of in (part.pair.true, part.pair.predicted)]
        for part, own in zip(parts, columns, strict=True)
    ]
    measured = np.concatenate([true for true, _ in values])
    kept = np.argsort(-measured.var(axis=0), kind="stable")[:MOST_GENES]
    kept = kept[measured[:, kept].std(axis=0) > 0]
    mean, sd = measured[:, kept].mean(axis=0), measured[:, kept].std(axis=0)
    genes, records = parts[0].pair.genes[columns[0]][kept], []
    for part, both in zip(parts, values, strict=True):
        pair, name, n = part.pair, part.pair.section, len(part.pair.spots)
        truth, prediction = (((one[:, kept] - mean) / sd) if scaled else _z(one[:, kept]) for one in both)
        labels = squares(pair.coords, BLOCK * spot_pitch(pair.coords))
        records.append(
            Records(
                names=pair.spots,
                patients=np.full(n, part.patient),
                sections=np.full(n, name),
                group=np.full(n, part.laboratory),
                blocks=np.array([f"{name}:{label}" for label in labels]),
                member=np.full(n, part.member),
                outputs=tuple(f"{transform}:{gene}" for gene in genes),
                truth=truth.astype(np.float32),
                prediction=prediction.astype(np.float32),
            )
        )
    left = measured.shape[1] - len(kept)
    notes = [f"{transform}: {left} genes that vary less are left out of {measured.shape[1]}"] if left else []
    return Records.join(records), notes


def _z(values: np.ndarray) -> np.ndarray:
    sd = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(sd > 0, sd, 1.0)


def _what(records: Records, name: str) -> str:
    people = len(np.unique(records.patients[records.member]))
    return (
        f"{name}: predictions that others made, of {len(np.unique(records.sections))} sections; "
        f"{records.member.sum():,} spots of {patients_of(people)} are of members, as the table says. Nothing but these "
        "predictions and what was measured was used: neither the model nor its training."
    )


def render(card: Card, folder: Path) -> str:
    """Return what was found, as text."""
    lines = [f"{card_path(Path(folder), card.thing)}: {WORDS[card.verdict]}", card.what, ""]
    for asked in card.questions:
        figure = asked.figure
        between = "no interval" if figure.low is None else f"{figure.low:.2f} to {figure.high:.2f}, over {figure.over}"
        lines.append(f"{asked.attack}: {figure.measure} {figure.value:.2f} ({between}), {asked.n}: {asked.verdict}")
        planted, dealt = asked.positive.figure, asked.negative.figure
        lines.append(f"  made to leak: {planted.value:.2f}; membership permuted: {dealt.low:.2f} to {dealt.high:.2f}")
    lines += ["", f"Not seen: {card.does_not_cover[0]}", *dict.fromkeys([*card.notes, *_said(card)])]
    return "\n".join(lines)


def _said(card: Card) -> list[str]:
    return [note for asked in card.questions for note in asked.notes]
