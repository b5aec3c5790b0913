"""Pictures of an audit, and what is said of all its subjects together. Very specific, not for general use.

Each line or row has a name beside it; no picture relies on colour alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.card import BELOW, LEAK, NOT_FOUND, SIGNS, UNDECIDED, WAS_IT, WORDS, Card, card_path, read_cards
from histocrypt.audit.membership import FALSE_POSITIVES, Audit, bands, read_scores
from histocrypt.evaluation.figures import CYCLE, INK, LINE, MUTED, canvas, log_scale, save, style
from histocrypt.evaluation.wording import number, plural, span
from histocrypt.files import write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from histocrypt.study import Study

COUNTED = {
    LEAK: "a leak in",
    SIGNS: "signs of a leak, in too few patients to be sure, in",
    UNDECIDED: "no decision on",
    BELOW: "worse than guessing on",
    NOT_FOUND: "no leak in",
}
"""What the attacks found, before the number of subjects of which they found it; the gravest first."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def write_summary(study: Study, fold: str, folder: Path) -> tuple[pd.DataFrame, Figure, Figure]:
    """Put what was found of every subject together: write ``summary.json``, ``forest.png`` and ``roc.png``.

    The ROC curves are those of the subject that most attacks were tried on.

    Returns
    -------
    One row for each question, and both pictures.

    Raises
    ------
    InputError
        If no subject has a card yet.
    """
    import pandas as pd

    cards = read_cards(study, folder)
    table = pd.DataFrame([row for card in cards.values() for row in card.rows()])
    audits = max((read_scores(folder / "scores" / f"{name}.csv") for name in cards), key=len)
    pictures = forest(cards.values()), roc(audits)
    for name, picture in zip(("forest", "roc"), pictures, strict=True):
        save(picture, folder / f"{name}.png")
    pages = {name: card_path(folder, name).name for name in cards}
    write_json(folder / "summary.json", {"fold": fold, "rows": table.to_dict("records"), "cards": pages})
    return table, *pictures


def answers(cards: Mapping[str, Card]) -> pd.DataFrame:
    """Return a row for each subject, the gravest first: the card's answer, and the figure that it rests on, as text.

    Where nothing that decides gave the answer, the strongest attack has the row.
    """
    import pandas as pd

    rows, order = [], list(WORDS)
    for card in sorted(cards.values(), key=lambda card: order.index(card.verdict)):
        strongest = [attacks[0] for attacks in card.families]
        rests = [asked for asked in strongest if asked.decides and asked.verdict == card.verdict] or strongest
        asked = max(rests, key=lambda asked: asked.strength)
        figure = asked.figure
        rows.append(
            {
                "subject": card.title,
                "answer": WORDS[card.verdict],
                "attack": asked.attack,
                "who could ask": asked.access,
                "figure": f"{figure.measure} {number(figure.value)} ({span(figure.low, figure.high)})",
            }
        )
    return pd.DataFrame(rows).set_index("subject")


def words(cards: Mapping[str, Card]) -> str:
    """Say what the attacks found of all subjects, and whether they can be believed: one sentence."""
    counts = Counter(card.verdict for card in cards.values())
    found = "; ".join(f"{said} {counts[name]}" for name, said in COUNTED.items() if counts[name])
    asked = [asked for card in cards.values() for asked in card.questions]
    failed = sum(not all(control.passed for control in one.controls) for one in asked)
    subjects = plural(len(cards), "subject")
    return f"Of {subjects}, the attacks found {found}; {failed} of {len(asked)} questions failed a control."


def roc(audits: Mapping[str, Audit], *, draws: int = 400, seed: int = 0) -> Figure:
    """Draw ROC curves on log axes with the chance line and 95 % bands.

    Parameters
    ----------
    audits
        By the name of the attack. Where the false positive rate means fewer than ten non-members the ground is grey:
        what is drawn there is not spoken of.
    draws, seed
        Of the bands; as for `membership.judge`.
    """
    with style():
        figure, axes = canvas(figsize=(5.2, 4.4))
        fewest = min(int((~audit.member).sum()) for audit in audits.values())
        start = 10.0 ** np.floor(np.log10(1 / fewest))
        grid = np.geomspace(start, 1, 600)
        axes.plot(grid, grid, color=MUTED, lw=1)
        axes.annotate("chance", (grid[180], grid[180]), (4, -10), textcoords="offset points", color=MUTED, fontsize=8)
        for (name, audit), colour, dash in zip(audits.items(), CYCLE * 9, DASHES * 9, strict=False):
            value, low, high = bands(audit, grid, draws=draws, seed=seed)
            axes.fill_between(grid, np.maximum(low, start), np.maximum(high, start), color=colour, alpha=0.13, lw=0)
            axes.plot(grid, np.where(value > 0, value, np.nan), color=colour, ls=dash, lw=1.6, label=name)
        log_scale(axes, "x", "y")
        axes.set(xlim=(start, 1), ylim=(start, 1.05))
        limit = min(1.0, FALSE_POSITIVES / fewest)
        axes.axvspan(start, limit, color=LINE, alpha=0.6, lw=0, zorder=0)
        said, look = f"fewer than {FALSE_POSITIVES} non-members", {"fontsize": 7.5, "color": MUTED}
        axes.text(np.sqrt(start * limit), 1.1, said, ha="center", va="bottom", **look)
        axes.set(xlabel="non-members taken for members (FPR)", ylabel="members found (TPR)")
        axes.legend(loc="lower right", fontsize=8)
    return figure


def forest(cards: Iterable[Card]) -> Figure:
    """Draw the AUCs of privacy cards with their intervals, and in the same row its controls.

    Of attacks that ask the same of the same records the strongest has a row; its interval allows for the choice.

    A diamond is the model made to leak (it must reach 0.9), a grey bar is where shuffled membership lies (it must hold
    0.5); both are those of the attack itself, and stand in its row alone.
    """
    rows = [(card, asked[0]) for card in cards for asked in card.families if asked[0].figure.measure == "AUC"]
    with style():
        figure, axes = canvas(figsize=(6.8, 1.1 + 0.27 * len(rows)))
        lowest = 0.3
        for place, (_, asked) in enumerate(rows):
            value, low, high = asked.figure.value, asked.figure.low, asked.figure.high
            if asked.question == WAS_IT and asked.against == "same":
                planted, dealt = asked.positive.figure.value, (asked.negative.figure.low, asked.negative.figure.high)
                axes.plot(dealt, [place, place], color=LINE, lw=7, solid_capstyle="butt", label="membership shuffled")
                axes.plot(planted, place, "D", color=CYCLE[1], markersize=4.5, clip_on=False, label="made to leak")
                lowest = min(lowest, planted - 0.02, dealt[0] - 0.02)
            axes.plot([low, high], [place, place], color=CYCLE[0], lw=1.6, solid_capstyle="butt")
            axes.plot(value, place, "o", color=CYCLE[0], markersize=5.5, clip_on=False, label="found")
            lowest = min(lowest, low - 0.02)
            axes.annotate(
                f"{value:.2f} ({low:.2f} to {high:.2f})",
                (1, place),
                (10, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.axvline(0.5, color=INK, lw=0.9)
        axes.axvline(0.9, color=CYCLE[1], lw=0.8, ls=":")
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), ncols=3, fontsize=8.5, loc="outside lower center")
        axes.set_yticks(range(len(rows)), [f"{card.title}: {asked.attack}" for card, asked in rows])
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(lowest, 1.01), xlabel="AUC (line: 0.5, a guess)")
    return figure
