"""The word on a section and what sending it would take, before a key is made or a spot encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histocrypt.encrypted.bundle import BREAK_EVEN, best_form, forms, load_client
from histocrypt.encrypted.key_owner import messages_of
from histocrypt.encrypted.prepare import prepare
from histocrypt.encrypted.single import Client


def check_section(
    client_file: str | Path, section: str | Path, *, form: str | None = None, **how: Any
) -> dict[str, Any]:
    """Return what `send` would do with a section; nothing is encrypted, and nothing leaves this machine.

    Parameters
    ----------
    client_file
        The model's public part.
    section
        In any readable format.
    form
        ``single`` or ``batch``; else as `bundle.best_form` chooses.
    how
        Goes to `prepare`.

    Raises
    ------
    InputError
        Where `send` would refuse it: see `prepare`.
    """
    offered = load_client(client_file)
    prepared = prepare(offered, section, **how)
    spots = len(prepared.names)
    chosen = best_form(offered, spots, wanted=form)
    number = messages_of(spots, chosen.places, apart=not chosen.alike)
    keys, up, down = chosen.evaluation_key_bytes(), number * chosen.input_bytes, number * chosen.most_output_bytes
    slide = prepared.about.get(
        "slide", {"verdict": "not judged, the model does not know its training slides", "why": []}
    )
    return {
        "section": prepared.section,
        "verdict": slide["verdict"],
        "why": slide["why"],
        "model": offered.about["title"],
        "trained_on": prepared.about["origin"],
        "form": chosen.form,
        "spots": spots,
        "spots_per_message": chosen.places,
        "messages": number,
        "not_sent": prepared.about["without_prediction"],
        "keys_mib": keys / 2**20,
        "up_mib": up / 2**20,
        "down_mib_at_most": down / 2**20,
        "processor_seconds": None if "estimate" in offered.about else _seconds(offered, chosen, number),
        "estimate": offered.about.get("estimate"),
    }


def render(found: dict[str, Any]) -> str:
    """Return what `check_section` found, for people."""
    why = f" ({'; '.join(found['why'])})" if len(found["why"]) else ""
    gone = ", ".join(f"{count} {reason}" for reason, count in found["not_sent"].items())
    return "\n".join(
        [
            f"{found['section']}: {found['verdict']}{why}",
            f"model: {found['model']}, trained on {found['trained_on']}",
            f"to send: {found['spots']} spots in {found['messages']} message{'s' * (found['messages'] > 1)} of form "
            f"{found['form']}, {found['spots_per_message']} per message; some spots are sent twice"
            + (f"; not sent: {gone}" if gone else ""),
            f"traffic: {found['keys_mib']:.1f} MiB of keys and {found['up_mib']:.1f} MiB of spots up, at most "
            f"{found['down_mib_at_most']:.1f} MiB down",
            f"time: {_time(found)}",
            "nothing was encrypted, and nothing was sent",
        ]
    )


def _time(found: dict[str, Any]) -> str:
    if found["estimate"]:
        return found["estimate"]
    if found["processor_seconds"] is None:
        return "unknown: the public part does not tell"
    return (
        f"about {max(1, round(found['processor_seconds']))} s of processor time on both sides together, plus transfer"
    )


def _seconds(offered: Client, chosen: Client, number: int) -> float | None:
    """Return about how long both sides compute for a request; None where the public part does not tell."""
    batches = [one for one in forms(offered).values() if one.form == "batch"]
    if chosen.form == "batch":
        return chosen.seconds(number * chosen.places)
    return number / BREAK_EVEN * min(one.seconds(1) for one in batches) if batches else None
