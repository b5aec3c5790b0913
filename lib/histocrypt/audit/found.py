"""What the attacks find out about one subject, gathered question by question until its card is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.card import DOES_NOT_COVER, Asked, Card, ask_membership, ask_procedure, card_path, write_card
from histocrypt.audit.controls import Controls, Shuffled, run_controls
from histocrypt.audit.lower_bound import LowerBound
from histocrypt.audit.membership import Audit, judge_groups, write_scores
from histocrypt.audit.strongest import best_dealt, simultaneous

if TYPE_CHECKING:
    from histocrypt.audit.shadow import Procedure
    from histocrypt.audit.subjects import Subject
    from histocrypt.study import Study


@dataclass
class Found:
    """What was found out about one subject: every attack with its figures and controls."""

    subject: Subject
    what: str
    """A sentence: what it is, and whose tissue it was learned from."""
    audits: dict[str, Audit] = field(default_factory=dict)
    controls: dict[str, Controls] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bound: LowerBound | None = None
    promised: str = ""
    """Both as of `Card`."""
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    """(draws,) that the interval of an attack is of, by its name; attacks that ask the same have the same draws."""
    dealt: dict[str, Shuffled] = field(default_factory=dict)
    """What an attack gives when membership is permuted among patients, likewise."""

    def attack(
        self,
        name: str,
        audit: Audit,
        overfitted: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        access: str,
        draws: int,
        seed: int,
        decides: bool = True,
    ) -> None:
        """Judge one attack, group by group, and its controls.

        Parameters
        ----------
        overfitted
            (n,) scores of the same attack on a model of the same records that was made to leak; or (k,) of some
            records, where such a model is too costly for all.
        rows
            (k,) indices: which these are.
        access
            What the attacker holds; a key of `WHO`.
        decides
            As of `Asked`.
        """
        self.audits[name] = audit
        unit = {"blocks": audit.blocks, "draws": draws, "seed": seed}
        controls = run_controls(audit.scores, audit.member, audit.patients, overfitted=overfitted, rows=rows, **unit)
        self.controls[name] = controls
        for group, judged in judge_groups(audit, draws=draws, seed=seed).items():
            attack = name if group == "same" else f"{name}: {group}"
            asked = ask_membership(judged, controls, access=access, attack=attack, against=group)
            self.asked.append(replace(asked, decides=decides))
            self.drawn[attack] = judged.auc_drawn
            if controls.negative.p_value is not None and len(set(audit.group.tolist())) == 1:
                self.dealt[attack] = controls.negative

    def procedure(
        self, found: Procedure, controls: Controls, *, access: str, attack: str, decides: bool = True
    ) -> None:
        """Add what an attack finds of a way of training; see `ask_procedure`."""
        self.asked.append(replace(ask_procedure(found, controls, access=access, attack=attack), decides=decides))
        self.drawn[attack] = found.drawn

    def corrected(self) -> list[Asked]:
        """Return the questions, with intervals that hold of all attacks that ask the same at once."""
        families: dict[tuple[str, ...], list[str]] = {}
        for asked in self.asked:
            if asked.attack in self.drawn:
                families.setdefault(asked.asks, []).append(asked.attack)
        known = {asked.attack: asked for asked in self.asked}
        for names in families.values():
            held = simultaneous({name: self.drawn[name] for name in names})
            said, by_lot = {}, None
            if len(names) > 1:
                said["Interval"] = f"widened for the choice among {len(names)} attacks"
            if all(name in self.dealt for name in names):
                by_lot = best_dealt({name: known[name].figure.value for name in names}, self.dealt)
                if len(names) > 1:
                    said["The best of them by lot"] = f"p = {by_lot:.2g}"
            for name in names:
                figure = replace(known[name].figure, low=held[name][0], high=held[name][1])
                known[name] = replace(known[name], figure=figure, also=known[name].also | said, by_lot=by_lot)
        return [known[asked.attack] for asked in self.asked]

    def card(self, study: Study) -> Card:
        """Return the privacy card."""
        return Card(
            thing=self.subject.name,
            kind=self.subject.kind,
            title=self.subject.title,
            what=self.what,
            study=study.title or study.name,
            fold=self.subject.fold,
            questions=self.corrected(),
            does_not_cover=list(DOES_NOT_COVER[self.subject.kind]),
            notes=self.notes,
            date=datetime.now(UTC).date().isoformat(),
            bound=self.bound,
            promised=self.promised,
        )

    def write(self, study: Study, folder: Path) -> Card:
        """Write the privacy card and, as ``scores/<subject>.csv``, the scores of every attack; return the card."""
        write_scores(folder / "scores" / f"{self.subject.name}.csv", self.audits)
        card = self.card(study)
        write_card(card_path(folder, self.subject.name), card)
        return card
