"""Pictures of an audit. Very specific, not for general use; `evaluation.figures.save` writes them.

Each line or row has a name beside it; no picture relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.membership import FALSE_POSITIVES, Audit, Judged, bands
from histocrypt.evaluation.figures import CYCLE, INK, LINE, MUTED, canvas, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from histocrypt.audit.controls import Controls
    from histocrypt.audit.shadow import Procedure

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


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
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(start, 1)
        axes.set_ylim(start, 1.05)
        limit = min(1.0, FALSE_POSITIVES / fewest)
        axes.axvspan(start, limit, color=LINE, alpha=0.6, lw=0, zorder=0)
        axes.text(
            np.sqrt(start * limit),
            1.1,
            f"fewer than {FALSE_POSITIVES} non-members",
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=MUTED,
        )
        axes.set_xlabel("non-members taken for members (FPR)")
        axes.set_ylabel("members found (TPR)")
        axes.legend(loc="lower right", fontsize=8)
    return figure


def histograms(audits: Mapping[str, Audit]) -> Figure:
    """Draw, attack by attack, the scores of members (filled) and non-members (outline)."""
    with style():
        columns = 2 if len(audits) == 4 else min(3, len(audits))
        rows = -(-len(audits) // columns)
        figure, axes = canvas(rows, columns, figsize=(3.2 * columns, 2.3 * rows), squeeze=False)
        for axis in axes.ravel()[len(audits) :]:
            axis.set_axis_off()
        for axis, (name, audit) in zip(axes.ravel(), audits.items(), strict=False):
            low, high = np.quantile(audit.scores, [0.005, 0.995])
            edges = np.linspace(low, high if high > low else low + 1, 31)
            shown = np.clip(audit.scores, edges[0], edges[-1])  # the rare beyond are in the outer bars
            sides = [(audit.member, "members"), (~audit.member, "non-members")]
            for side, label in sides:
                look = {"color": CYCLE[1], "alpha": 0.45} if label == "members" else {"color": INK, "lw": 1.3}
                kind = "stepfilled" if label == "members" else "step"
                weights = np.full(int(side.sum()), 1 / side.sum())
                axis.hist(
                    shown[side], bins=edges, weights=weights, histtype=kind, label=f"{side.sum():,} {label}", **look
                )
            axis.set_title(name)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.legend(fontsize=7.5)
            axis.margins(y=0.25)
        figure.supxlabel("score of the attack: higher, more likely a member", fontsize=9)
    return figure


def forest(judged: Mapping[str, Judged | Procedure], controls: Mapping[str, Controls] | None = None) -> Figure:
    """Draw AUCs with their intervals, one row each, and in the same row its controls.

    Parameters
    ----------
    judged
        By the row's name.
    controls
        By the row's name; a diamond is the model made to leak (it must reach 0.9), a grey bar is where shuffled
        membership lies (it must hold 0.5).
    """
    controls = controls or {}
    with style():
        figure, axes = canvas(figsize=(6.8, (1.1 if controls else 0.75) + 0.27 * len(judged)))
        lowest = 0.3
        for place, (name, found) in enumerate(judged.items()):
            low, high = found.auc_interval if isinstance(found, Judged) else found.interval
            if name in controls:
                planted, dealt = controls[name].positive.auc, controls[name].negative.interval
                axes.plot(dealt, [place, place], color=LINE, lw=7, solid_capstyle="butt", label="membership shuffled")
                axes.plot(planted, place, "D", color=CYCLE[1], markersize=4.5, clip_on=False, label="made to leak")
                lowest = min(lowest, planted - 0.02, dealt[0] - 0.02)
            axes.plot([low, high], [place, place], color=CYCLE[0], lw=1.6, solid_capstyle="butt")
            axes.plot(found.auc, place, "o", color=CYCLE[0], markersize=5.5, clip_on=False, label="found")
            lowest = min(lowest, low - 0.02)
            axes.annotate(
                f"{found.auc:.2f} ({low:.2f} to {high:.2f})",
                (1, place),
                (10, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.axvline(0.5, color=INK, lw=0.9)
        if controls:
            axes.axvline(0.9, color=CYCLE[1], lw=0.8, ls=":")
            named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            figure.legend(named.values(), named.keys(), ncols=3, fontsize=8.5, loc="outside lower center")
        axes.set_yticks(range(len(judged)), list(judged))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(judged) - 0.4, -0.6)
        axes.set_xlim(lowest, 1.01)
        axes.set_xlabel("AUC (line: 0.5, a guess)")
    return figure
