"""Asks a trained predictor, and the decrypted outputs of one, about the patients behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.attacks import calibrated, in_and_out, lira, loss_threshold
from histocrypt.audit.card_words import patients_of
from histocrypt.audit.controls import overfitted_losses
from histocrypt.audit.found import Found
from histocrypt.audit.learned import on_shadows, train_value_attack, value_inputs
from histocrypt.audit.membership import Audit
from histocrypt.audit.records import Records, losses
from histocrypt.audit.shadow import as_targets, dealt_anew, shadow_losses, target_scores
from histocrypt.audit.targets import Auditable

if TYPE_CHECKING:
    from histocrypt.audit.targets import Thing
    from histocrypt.study import Study

FEATURES = "efficientnet_lite0"
"""What the model that is made to leak sees."""
FEWEST_TO_HALVE = 4
"""Patients; of fewer, sections are dealt to the shadow models instead, and their other sections may be inside."""


def audit_predictor(study: Study, thing: Thing, *, folder: Path) -> Found:
    """Attack a trained predictor: by its losses, and, where the study names it, with the help of shadow models.

    Parameters
    ----------
    study
        A study that was run; its part `audit` says how many shadows, of which models.
    thing
        A predictor of `targets.audited`.
    folder
        Where finished shadows are kept, so that an interrupted audit goes on.
    """
    able = Auditable(study, thing.name, thing.fold)
    records = able.records()
    found = Found(thing, _what(records, thing))
    leaky = _leaky(able, records, study.seed)
    options = {"access": "black box", "draws": study.audit.draws, "seed": study.seed}
    found.attack("loss threshold", _audit(records, loss_threshold(records.loss)), loss_threshold(leaky), **options)
    if thing.name in study.audit.shadowed:
        _with_shadows(study, able, records, leaky, found, folder / thing.name)
    return found


def _with_shadows(
    study: Study, able: Auditable, records: Records, leaky: np.ndarray, found: Found, folder: Path
) -> None:
    """Add what an attacker finds who can train such models on patients of their own."""
    settings, truth = study.audit, records.truth
    by_section = len(np.unique(records.patients)) < FEWEST_TO_HALVE
    units, unit = (records.sections, "section") if by_section else (records.patients, "patient")

    def train_one(mask: np.ndarray, seed: int):
        return lambda: able.predicted_by_shadow(mask, seed=seed)

    predicted, inside = shadow_losses(
        train_one, units, settings.shadows, study.seed, folder=folder,
        fingerprint=f"{study.hash()} {able.model} {able.fold.name}", label=f"shadows of {able.model}",
    )  # fmt: skip
    loss = np.stack([losses(truth, one) for one in predicted])
    loss_in, loss_out = in_and_out(loss, inside)
    options = {"access": "black box", "draws": settings.draws, "seed": study.seed}
    for name, attacked in {
        "calibrated": lambda own: calibrated(own, loss_out),
        "LiRA": lambda own: lira(own, loss_in, loss_out),
    }.items():
        found.attack(name, _audit(records, attacked(records.loss)), attacked(leaky), **options)
    chosen = {"unit": unit, "blocks": records.blocks, "draws": settings.draws, "seed": study.seed}
    dealt = dealt_anew(loss, inside, units, unit=unit, seed=study.seed)
    passed = dealt.interval[0] <= 0.5 <= dealt.interval[1]
    controls = replace(found.controls["LiRA"], negative=dealt, negative_passed=passed)
    procedure = as_targets(target_scores(loss, inside), inside, units, attack="LiRA", **chosen)
    found.procedure("LiRA, training repeated", procedure, controls=controls)
    inputs = np.stack([value_inputs(truth, one) for one in predicted])
    learned = as_targets(on_shadows(inputs, inside, train_value_attack), inside, units, attack="learned", **chosen)
    found.procedure("learned attack, training repeated", learned, controls=controls)


def audit_decrypted(study: Study, thing: Thing, found: Found, *, folder: Path, spots: int | None) -> dict[str, float]:
    """Attack the outputs that a key owner decrypts, and add it to what was found of the model in the clear.

    Real ciphertexts, in processes of their own; see `encrypted_view.decrypted_records`.

    Returns
    -------
    dict
        How far decrypted and clear outputs are apart.
    """
    from histocrypt.audit.encrypted_view import decrypted_records

    pair = decrypted_records(study, thing.name, thing.fold, folder=folder, spots=spots)
    able = Auditable(study, thing.name, thing.fold)
    records = able.records()
    row = {name: index for index, name in enumerate(records.names.tolist())}
    rows = np.array([row[name] for name in pair.encrypted.names.tolist()])
    leaky = loss_threshold(_leaky(able, records, study.seed)[rows])
    options = {"draws": study.audit.draws, "seed": study.seed}
    found.attack(
        "loss threshold, decrypted",
        _audit(pair.encrypted, loss_threshold(pair.encrypted.loss)),
        leaky,
        access="decrypted outputs",
        **options,
    )
    found.notes.append(
        f"Decrypted: {len(pair.encrypted)} spots through real ciphertexts of {pair.about['security_bits']} bits; their "
        f"outputs differ from the clear ones by at most {pair.compared()['max_abs_error']:.2g} standard deviations."
    )
    return pair.compared() | pair.about


def _leaky(able: Auditable, records: Records, seed: int) -> np.ndarray:
    """Return (n,) losses of a model of the same members that was made to leak."""
    return overfitted_losses(able.spots().features(FEATURES), records.truth, records.member, seed=seed)


def _audit(records: Records, scores: np.ndarray) -> Audit:
    return Audit(scores, records.member, records.patients, records.group, records.blocks)


def _what(records: Records, thing: Thing) -> str:
    people = len(np.unique(records.patients[records.member]))
    return (
        f"{thing.title}: predicts expression from tiles; fitted on {int(records.member.sum()):,} spots of "
        f"{patients_of(people)}, the members; the non-members are the patients that the fold holds out."
    )
