"""Asks predictors about the patients behind them, in the clear and through outputs that a key owner decrypts.

Encryption hides a slide from the evaluator. It does not change what a prediction tells the one who decrypts it: the
attack on decrypted outputs stands here beside the same attack on the model in the clear. Decrypted values come from
real ciphertexts, evaluated in a process that has no secret key; of sections that the model was fitted on, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.decomposition import PCA

from histocrypt.audit.card import patients_of
from histocrypt.audit.controls import overfitted_losses
from histocrypt.audit.found import Found
from histocrypt.audit.learned import on_shadows, train_value_attack, value_inputs
from histocrypt.audit.lower_bound import LowerBound, coin_runs, lower_bound
from histocrypt.audit.membership import Audit, calibrated, in_and_out, lira, loss_threshold
from histocrypt.audit.quantiles import Strangers
from histocrypt.audit.ratios import rmia
from histocrypt.audit.shadow import as_targets, dealt_anew, shadow_losses, target_scores
from histocrypt.audit.subjects import Auditable, Records, SharedSpots, losses
from histocrypt.errors import InputError, unknown_name
from histocrypt.predictors.registry import ENCRYPTED

if TYPE_CHECKING:
    from histocrypt.audit.subjects import Subject
    from histocrypt.encrypted.prepare import Prepared
    from histocrypt.encrypted.trial import Trial
    from histocrypt.study import Study

FEATURES = "efficientnet_lite0"
"""What the model that is made to leak sees."""
FEWEST_TO_HALVE = 4
"""Patients; of fewer, sections are dealt to the shadow models instead, and their other sections may be inside."""


FEWEST_STRANGERS = 2
"""Patients that were not members; the attack by quantile regression never judges a patient by itself."""
COMPONENTS = 16
"""Of a tile's features, which quantiles are learnt from, beside the truth."""


class Leaky:
    """The models that are made to leak: one for all predictors of the same members and targets."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, ...], np.ndarray] = {}

    def losses(self, able: Auditable, seed: int) -> np.ndarray:
        """Return (n,) losses of a model of the same members that was made to leak."""
        records, features = able.records, able.spots().features(FEATURES)
        key = (records.member.tobytes(), records.truth.tobytes(), features.tobytes())
        if key not in self._known:
            self._known[key] = overfitted_losses(features, records.truth, records.member, seed=seed)
        return self._known[key]

    def strangers(self, able: Auditable, seed: int) -> Strangers | None:
        """Return who the attack by quantile regression learns from; None where a single patient was no member."""
        records = able.records
        if len(np.unique(records.patients[~records.member])) < FEWEST_STRANGERS:
            return None
        seen = able.spots().features(FEATURES).astype(np.float64)
        components = PCA(min(COMPONENTS, *seen.shape), svd_solver="randomized", random_state=seed).fit_transform(seen)
        known = np.concatenate([records.truth, components], axis=1)
        return Strangers(known, records.member, records.patients, seed=seed)


def audit_predictors(study: Study, subjects: Iterable[Subject], *, folder: Path) -> dict[str, Found]:
    """Attack trained predictors: by their losses, and, those that the study names, with the help of shadow models.

    Parameters
    ----------
    study
        A study that was run; its part `audit` says how many shadows, of which models.
    subjects
        Predictors of `subjects.audited`.
    folder
        Where finished shadows are kept, so that an interrupted audit goes on.

    Returns
    -------
    dict
        By the predictor's name.
    """
    leaky, shared, found = Leaky(), SharedSpots(), {}
    options = {"access": "black box", "draws": study.audit.draws, "seed": study.seed}
    for subject in subjects:
        able = Auditable(study, subject.name, subject.fold, shared=shared)
        records, planted = able.records, leaky.losses(able, study.seed)
        found[subject.name] = one = Found(subject, _what(records, subject))
        one.attack("loss threshold", _audit(records, loss_threshold(records.loss)), loss_threshold(planted), **options)
        if (strangers := leaky.strangers(able, study.seed)) is None:
            one.notes.append("No attack by quantile regression: it needs two patients that were not members.")
        else:
            learnt = _audit(records, strangers.scores(records.loss))
            one.attack("quantile regression", learnt, strangers.scores(planted), **options)
        if subject.name in study.audit.shadowed:
            _with_shadows(able, planted, one, folder / subject.name)
            if study.audit.coin_runs:
                one.bound = predictor_bound(able, folder=folder / subject.name)
    return found


def predictor_bound(able: Auditable, *, folder: Path) -> LowerBound:
    """Return what trainings show of epsilon into which each patient goes by a coin; halves of a size are no coins.

    Parameters
    ----------
    able
        The model; its study's part `audit` says how many trainings.
    folder
        Where finished runs are kept.
    """
    study, truth = able.study, able.records.truth
    scores, coins = coin_runs(
        lambda mask, seed: losses(truth, able.predicted_by_shadow(mask, seed=seed)),
        able.records.patients,
        runs=study.audit.coin_runs,
        seed=study.seed,
        folder=folder,
        fingerprint=f"{study.hash()} {able.model} {able.fold.name}",
    )
    return lower_bound(scores, coins)


def _with_shadows(able: Auditable, leaky: np.ndarray, found: Found, folder: Path) -> None:
    """Add what an attacker finds who can train such models on patients of their own."""
    study, records = able.study, able.records
    settings, truth = study.audit, records.truth
    by_section = len(np.unique(records.patients)) < FEWEST_TO_HALVE
    units, unit = (records.sections, "section") if by_section else (records.patients, "patient")
    predicted, inside = shadow_losses(
        lambda mask, seed: able.predicted_by_shadow(mask, seed=seed),
        units,
        settings.shadows,
        study.seed,
        folder=folder,
        fingerprint=f"{study.hash()} {able.model} {able.fold.name}",
        label=f"shadows of {able.model}",
    )
    loss = np.stack([losses(truth, one) for one in predicted])
    loss_in, loss_out = in_and_out(loss, inside)
    options = {"access": "black box", "draws": settings.draws, "seed": study.seed}
    for name, attacked in {
        "calibrated": lambda own: calibrated(own, loss_out),
        "LiRA": lambda own: lira(own, loss_in, loss_out),
        "RMIA": lambda own: rmia(own, loss_in, loss_out, population=~records.member),
    }.items():
        found.attack(name, _audit(records, attacked(records.loss)), attacked(leaky), **options)
    dealt = dealt_anew(loss, inside, units, unit=unit, seed=study.seed)
    controls = replace(found.controls["LiRA"], negative=dealt)
    inputs = np.stack([value_inputs(truth, one) for one in predicted])
    attack = partial(train_value_attack, rounds=settings.learned_rounds)
    for name, scores in {
        "LiRA": target_scores(loss, inside),
        "RMIA": target_scores(loss, inside, attack="RMIA"),
        "learned attack": on_shadows(inputs, inside, attack),
    }.items():
        procedure = as_targets(
            scores, inside, units, unit=unit, blocks=records.blocks, draws=settings.draws, seed=study.seed
        )
        asked = f"{name}, training repeated"
        found.procedure(procedure, controls, access="black box", attack=asked)


def audit_decrypted(study: Study, found: Found, *, folder: Path) -> dict[str, float]:
    """Attack the outputs that a key owner decrypts, and add it to what was found of the model in the clear.

    Real ciphertexts, in processes of their own; see `decrypted_records`.

    Returns
    -------
    dict
        How far decrypted and clear outputs are apart.
    """
    some = {"spots": study.audit.decrypted_spots, "sections": study.audit.decrypted_sections}
    pair = decrypted_records(study, found.subject.name, found.subject.fold, folder=folder, **some)
    leaky = loss_threshold(Leaky().losses(pair.able, study.seed)[pair.rows])
    audit = _audit(pair.encrypted, loss_threshold(pair.encrypted.loss))
    options = {"access": "decrypted outputs", "draws": study.audit.draws, "seed": study.seed}
    found.attack("loss threshold, decrypted", audit, leaky, **options)
    found.notes.append(
        f"Decrypted: {len(pair.encrypted)} spots through real ciphertexts of {pair.about['security_bits']} bits; their "
        f"outputs differ from the clear ones by at most {pair.compared()['max_abs_error']:.2g} standard deviations."
    )
    return pair.compared() | pair.about


@dataclass(frozen=True)
class Decrypted:
    """The same spots as the key owner decrypts them, and as the model predicts them in the clear."""

    able: Auditable
    """The model, and the spots of all its members and non-members."""
    rows: np.ndarray
    """(n,) which of its records these are."""
    encrypted: Records
    clear: Records
    about: dict[str, Any]
    """``noise``, ``security_bits``, ``seconds`` of the evaluator, ``spots_per_section``, ``sections``."""

    def compared(self) -> dict[str, float]:
        """Return how far the two are apart: standardised outputs, and losses as a share of their spread."""
        apart = np.abs(self.encrypted.prediction - self.clear.prediction)
        losses = np.abs(self.encrypted.loss - self.clear.loss)
        return {
            "max_abs_error": float(apart.max()),
            "mean_abs_error": float(apart.mean()),
            "max_loss_difference": float(losses.max() / max(self.clear.loss.std(), 1e-12)),
        }


def decrypted_records(
    study: Study,
    model: str,
    fold: str,
    *,
    folder: Path,
    spots: int | None = None,
    sections: int | None = None,
    noise: float | None = None,
    workers: int | None = None,
) -> Decrypted:
    """Encrypt, evaluate and decrypt spots of members and non-members, and predict the same in the clear.

    Each party has a folder of its own, as in `encrypted.trial`; compiling, making keys and evaluating are commands in
    processes of their own. Keys, ciphertexts and the compiled network are deleted in the end.

    Parameters
    ----------
    study
        A study that was run; its section files are there.
    model
        A trained model that can be evaluated on ciphertexts.
    fold
        A fold that holds patients out.
    folder
        Emptied first.
    spots
        Of each section, evenly spaced in the order of its file; all if not given.
    sections
        Of members, and as many of non-members; all if not given.
    noise
        As for `histocrypt fhe decrypt`, whose default is taken if not given.
    workers
        Ciphertexts that the evaluator works on at once; all cores if not given.

    Raises
    ------
    InputError
        If the model cannot be evaluated encrypted, is not trained, or a section cannot be encrypted.
    """
    from histocrypt.encrypted.answers import NOISE
    from histocrypt.encrypted.parameters import SECURITY_BITS
    from histocrypt.encrypted.trial import OWNER, Trial
    from histocrypt.explore.survey import study_sections
    from histocrypt.pipeline.predict import predict_section

    if model not in ENCRYPTED:
        raise unknown_name("model", model, ENCRYPTED, field="model")
    able, trained = Auditable(study, model, fold, device="cpu"), study.run.model(model, fold)
    files = {one.id: one for one in study_sections(study)}
    noise = NOISE if noise is None else noise
    trial = Trial.begin(folder, workers=workers)
    names, values, seconds = [], {"encrypted": [], "clear": []}, 0.0
    chosen = [*able.sides.members[:sections], *able.sides.non_members[:sections]]
    try:
        trial.set_up(trained)
        for name in chosen:
            source = {"image": files[name].image, "um_per_px": files[name].um_per_px}
            prepared = _some(trial.bundle.client, study, name, files[name].path, spots, source)
            decrypted, took = _send(trial, prepared, noise=noise)
            clear = trial.folder / OWNER / f"{name}.h5ad"
            predict_section(trained, files[name].path, clear, **source)
            seconds += took
            names.append(prepared.names)
            for kind, path in (("encrypted", decrypted), ("clear", clear)):
                values[kind].append(_predicted(able, path, prepared.names))
    finally:
        trial.clean()
    row = {name: index for index, name in enumerate(able.records.names.tolist())}
    rows = np.array([row[name] for name in np.concatenate(names).tolist()])
    known = able.records.subset(rows)
    both = {kind: replace(known, prediction=np.concatenate(parts)) for kind, parts in values.items()}
    about = {
        "model": model,
        "fold": fold,
        "noise": noise,
        "security_bits": SECURITY_BITS,
        "seconds": round(seconds, 1),
        "spots_per_section": spots,
        "sections": len(chosen),
    }
    return Decrypted(able, rows, **both, about=about)


def _send(trial: Trial, prepared: Prepared, *, noise: float) -> tuple[Path, float]:
    """Return the file of a section's decrypted predictions, and the seconds that the evaluator took."""
    from histocrypt.encrypted.key_owner import Keys, decrypt_response, encrypt
    from histocrypt.encrypted.trial import EVALUATOR, HOSPITAL

    name = prepared.section
    request, response = trial.folder / EVALUATOR / name, trial.folder / HOSPITAL / f"{name}.response"
    trial.make_keys(len(prepared.names))  # keys are for one section
    encrypt(prepared, Keys(trial.keys), request)
    seconds = trial.evaluate(request, response).seconds
    output = trial.folder / HOSPITAL / f"{name}.h5ad"
    decrypt_response(response, trial.keys, output, noise=noise)
    return output, seconds


def _some(client: Any, study: Study, name: str, path: Path, spots: int | None, source: dict[str, Any]) -> Prepared:
    """Prepare a whole section, which standardises itself, and keep some of the spots that were measured."""
    from histocrypt.data.fold_statistics import read_clean_section
    from histocrypt.encrypted.prepare import evenly, prepare

    how = {"skip_out_of_range": True, "anyway": True}  # a section of the model's own study: what leaks is measured
    prepared = prepare(client, path, **how, **source)
    measured = {f"{name}:{spot}" for spot in read_clean_section(study.run.section(name)).obs_names}
    known = np.flatnonzero([one in measured for one in prepared.names.tolist()])
    if not len(known):
        raise InputError(
            "no spot of the section file is in the run's cleaned section", file=path, fix="run the preprocessing again"
        )
    return prepared.only(known[evenly(len(known), spots)])


def _predicted(able: Auditable, path: Path, spots: np.ndarray) -> np.ndarray:
    """Return what a prediction file says of some spots, by name, in the units of the loss; (n, outputs) float32."""
    from histocrypt.pipeline.predictions import read_prediction

    predicted = read_prediction(path)
    at = predicted.obs_names.get_indexer(spots)
    if (at < 0).any():
        raise InputError("a requested spot has no prediction", file=path, value=str(spots[at < 0][0]))
    predicted = predicted[at, list(able.panel.genes)]
    values = np.concatenate([np.asarray(predicted.layers[name]) for name in able.study.target.transforms], axis=1)
    return ((values - able.scaling.mean) / able.scaling.sd).astype(np.float32)


def _audit(records: Records, scores: np.ndarray) -> Audit:
    return Audit(scores, records.member, records.patients, records.group, records.blocks)


def _what(records: Records, subject: Subject) -> str:
    people = len(np.unique(records.patients[records.member]))
    return (
        f"{subject.title}: predicts expression from tiles; fitted on {int(records.member.sum()):,} spots of "
        f"{patients_of(people)}, the members; the non-members are the patients that the fold holds out."
    )
