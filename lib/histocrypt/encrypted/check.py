"""The word on a section and what sending it would take, before a key is made or a spot encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histocrypt.encrypted.bundle import BREAK_EVEN, best_form, forms, load_client
from histocrypt.encrypted.key_owner import messages_of
from histocrypt.encrypted.prepare import prepare
from histocrypt.encrypted.single import Client


def check_section(client_file: str | Path, section: str | Path, *, form: str | None = None, **how: Any) -> str:
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
    why = f" ({'; '.join(slide['why'])})" if len(slide["why"]) else ""
    gone = prepared.about["without_prediction"]
    left = f"; not sent: {', '.join(f'{count} {reason}' for reason, count in gone.items())}" if gone else ""
    return "\n".join(
        [
            f"{prepared.section}: {slide['verdict']}{why}",
            f"model: {offered.about['title']}, learnt from {prepared.about['origin']}",
            f"would send: {spots} spots in {number} message{'s' if number > 1 else ''} of the form {chosen.form}, with "
            f"room for {chosen.places} in each; some are sent again{left}",
            f"would travel: {_mib(keys)} of keys and {_mib(up)} of spots up, at most {_mib(down)} down",
            f"would take: {_time(offered, chosen, number)}",
            "nothing was encrypted, and nothing was sent",
        ]
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _time(offered: Client, chosen: Client, number: int) -> str:
    """Return about how long a request takes, as far as the public part tells."""
    if "estimate" in offered.about:
        return offered.about["estimate"]
    batches = [one for one in forms(offered).values() if one.form == "batch"]
    if chosen.form == "batch":
        seconds = chosen.seconds(number * chosen.places)
    elif batches:
        seconds = number / BREAK_EVEN * min(one.seconds(1) for one in batches)
    else:
        return "unknown: the public part does not tell"
    return f"about {max(1, round(seconds))} s of a processor, of both sides together, and of the line"
