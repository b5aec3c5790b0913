"""What happened to the data before any model: rows for the report's tables, from the cleaned sections alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.truth import as_mapping
from histocrypt.evaluation.words import number, plural
from histocrypt.targets.matrix import depth

if TYPE_CHECKING:
    from anndata import AnnData


def data_row(name: str, section: AnnData) -> dict[str, Any]:
    """Return what a reader wants to know about one section."""
    done = as_mapping(section.uns.get("preprocessing"))
    dropped = {str(reason): int(count) for reason, count in as_mapping(done.get("dropped")).items() if int(count)}
    alignment = as_mapping(done.get("alignment"))
    if alignment and bool(alignment.get("applied")):
        moved = float(np.hypot(alignment["dx_um"], alignment["dy_um"]))
        turn = float(alignment.get("rotation_deg", 0.0))
        aligned = f"moved {moved:.0f} µm" + (f", turned {number(turn, 1)}°" if turn else "")
        aligned += f" (confidence {number(float(alignment.get('confidence', np.nan)), 2)})"
    else:
        aligned = str(alignment.get("reason") or "left as given")
    totals = depth(section)
    known = bool(np.isfinite(totals).all())
    return {
        "section": name,
        "patient": str(section.obs["patient"].iloc[0]),
        "kept": section.n_obs,
        "dropped": ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none",
        "n_dropped": sum(dropped.values()),
        "genes": section.n_vars if known else "none",
        "depth": f"{np.median(totals):,.0f}".replace(",", "\u2009") if known else "none",
        "um_per_px": number(float(done.get("um_per_px", np.nan)), 3),
        "um_per_px_source": str(done.get("um_per_px_source", "")),
        "aligned": aligned,
    }


def planted_row(name: str, section: AnnData) -> dict[str, Any] | None:
    """Return what the simulator planted in a demo section and what preprocessing found; None for real sections."""
    if "planted" not in as_mapping(section.uns.get("demo")):
        return None
    from histocrypt.sections.demo import planted

    hidden = planted(section)
    there = set(section.obs_names)
    row: dict[str, Any] = {"section": name}
    for key in ("off_tissue", "nan", "low_depth"):
        missed = [barcode for barcode in hidden[key] if barcode in there]
        row[key] = f"{len(hidden[key]) - len(missed)} of {len(hidden[key])}" if hidden[key] else "none planted"
        row[f"{key}_ok"] = not missed
    shift = np.asarray(hidden["shift_um"])
    alignment = as_mapping(as_mapping(section.uns.get("preprocessing")).get("alignment"))
    applied = bool(alignment.get("applied", False))
    found = np.array([alignment["dx_um"], alignment["dy_um"]], dtype=float) if applied else np.zeros(2)
    left = float(np.hypot(*(shift + found)))
    planted_um = float(np.hypot(*shift))
    # A shift counts as found where at least half of it is gone; an untouched section must stay untouched.
    row["shift_ok"] = left <= planted_um / 2 if planted_um else left < 1
    done = f"moved {left:.0f} µm" if applied else "left alone"
    row["shift"] = f"{planted_um:.0f} µm planted, {left:.0f} µm left" if planted_um else f"none planted, {done}"
    return row


def data_sentence(rows: list[dict[str, Any]]) -> str:
    """Return the size of the study in one sentence."""
    spots = sum(row["kept"] for row in rows)
    dropped = sum(row["n_dropped"] for row in rows)
    patients = len({row["patient"] for row in rows})
    return (
        f"{plural(len(rows), 'section')} of {plural(patients, 'patient')}; {plural(spots, 'spot')} kept and {dropped} "
        "dropped, each for a stated reason."
    )
