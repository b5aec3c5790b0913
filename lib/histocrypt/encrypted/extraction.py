"""How much of a model its clients can take by asking: said to the model's owner before others are served."""

from __future__ import annotations

import math

from histocrypt.encrypted.bundle import forms
from histocrypt.encrypted.single import Client


def spots_to_take(client: Client) -> int | None:
    """Return how many spots give all weights away exactly, by the public part; None where no such number is known.

    A network of one level is a linear map of d numbers: the answers to zero and to d independent inputs are its
    intercept and its weights, but for the error of an answer, which larger inputs make as small as one likes.
    """
    if client.level > 1:
        return None
    shape = client.about["input"]["shape"]
    return 1 + (shape[0] if client.about["sees"] == "features" else math.prod(shape))


def extraction(client: Client) -> str:
    """Return one sentence on what clients can take of the model by asking."""
    taken = spots_to_take(client)
    if taken is None:
        return (
            "a client can train a copy of this network from answers to inputs of its own choice: encryption and quotas "
            "slow that down, a contract forbids it"
        )
    places = [form.places for form in forms(client).values()]
    ways = ", or ".join(f"{-(-taken // each):,} of {each}" for each in sorted(set(places)))
    return (
        f"{taken:,} spots (messages: {ways} places) give a client all weights of this linear head exactly: serve it to "
        f"whom you would give it"
    )
