"""What was found out about one thing: every attack with its figures and controls, and the card that says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.card import DOES_NOT_COVER, Asked, Card
from histocrypt.audit.controls import Controls, run_controls
from histocrypt.audit.membership import Audit, Judged, judge_groups

if TYPE_CHECKING:
    from histocrypt.audit.shadow import Procedure
    from histocrypt.audit.targets import Thing
    from histocrypt.study import Study

WAS_IT = "Was this patient's section among those it was trained on?"


@dataclass
class Found:
    """Attacks on one thing, by name."""

    thing: Thing
    what: str
    """A sentence: what it is, and whose tissue it was learned from."""
    audits: dict[str, Audit] = field(default_factory=dict)
    judged: dict[str, Judged | Procedure] = field(default_factory=dict)
    controls: dict[str, Controls] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attack(
        self,
        name: str,
        audit: Audit,
        overfitted: np.ndarray,
        *,
        access: str,
        draws: int,
        seed: int,
        words: str = WAS_IT,
    ) -> None:
        """Judge one attack, group by group, and its controls.

        Parameters
        ----------
        overfitted
            (n,) scores of the same attack on a model of the same records that was made to leak; or scores of some
            records, and which these are, where such a model is too costly for all.
        access
            What the attacker holds; a key of `card.WHO`.
        """
        self.audits[name] = audit
        unit = {"blocks": audit.blocks, "draws": draws, "seed": seed}
        leaky, rows = overfitted if isinstance(overfitted, tuple) else (overfitted, None)
        controls = run_controls(audit.scores, audit.member, audit.patients, overfitted=leaky, rows=rows, **unit)
        self.controls[name] = controls
        for group, judged in judge_groups(audit, draws=draws, seed=seed).items():
            row = name if group == "same" else f"{name}: {group}"
            self.judged[row] = judged
            self.asked.append(Asked.of(judged, question=WAS_IT, access=access, attack=row, controls=controls))

    def procedure(self, name: str, found: Procedure, *, controls: Controls, access: str = "black box") -> None:
        """Note an attack on the training repeated on random halves of the patients."""
        self.judged[name] = found
        question = "If this training were repeated, would it tell who took part?"
        self.asked.append(Asked.of_procedure(found, question=question, access=access, attack=name, controls=controls))

    def card(self, study: Study) -> Card:
        """Return the privacy card."""
        return Card(
            thing=self.thing.name,
            kind=self.thing.kind,
            title=self.thing.title,
            what=self.what,
            study=study.title or study.name,
            fold=self.thing.fold,
            questions=self.asked,
            does_not_cover=list(DOES_NOT_COVER[self.thing.kind]),
            notes=self.notes,
            date=datetime.now(UTC).date().isoformat(),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each question, for tables and the report."""
        rows = []
        for asked in self.asked:
            positive = next(one for one in asked.controls if one.positive)
            negative = next(one for one in asked.controls if not one.positive)
            rows.append({
                "kind": self.thing.kind, "thing": self.thing.name, "title": self.thing.title, "attack": asked.attack,
                "access": asked.access, "measure": asked.figure.measure, "value": asked.figure.value,
                "low": asked.figure.low, "high": asked.figure.high, "chance": asked.figure.chance,
                "interval_over": asked.figure.over, "n": asked.n, "verdict": asked.verdict,
                "positive_control": positive.figure.value, "positive_passed": positive.passed,
                "negative_low": negative.figure.low, "negative_high": negative.figure.high,
                "negative_passed": negative.passed,
            })  # fmt: skip
        return rows
