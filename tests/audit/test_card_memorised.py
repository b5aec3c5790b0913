"""A synthetic set's card asks for copies: planted ones are found, tissue of other patients is not."""

import numpy as np

from histocrypt.audit.card import LEAK, NOT_FOUND, SIGNS, UNDECIDED, ask_memorised
from histocrypt.audit.memorisation import memorised
from histocrypt.synthesis.manifest import TISSUE, Pairs


def images(prefix, patients, each, seed, *, of=None):
    """Return random grey images of some patients, or slightly noised copies of the first of others' images."""
    rng, n = np.random.default_rng(seed), len(patients) * each
    pixels = rng.integers(0, 256, (n, 6, 6, 1)) if of is None else of.images[:n] + rng.integers(-2, 3, (n, 6, 6, 1))
    return Pairs(
        TISSUE,
        np.array([f"{prefix}{i}" for i in range(n)]),
        np.full(n, "normal"),
        np.repeat(patients, each),
        np.clip(pixels, 0, 255).astype(np.uint8),
        np.zeros((n, 6, 6), np.uint8),
        np.zeros(n, bool),
    )


def test_copies_are_told_from_new_images():
    train, held_out = images("t", ["a", "b", "c", "d"], 60, 0), images("h", ["e", "f"], 100, 1)
    others, new = images("o", ["g"], 100, 2), images("s", [""], 100, 3)
    two, copies = images("w", [""], 100, 4, of=train), images("c", [""], 240, 4, of=train)

    def ask(synthetic, unseen=others):
        flat = [pairs.images.reshape(len(pairs), -1) for pairs in (train, held_out)]
        named = {"records": train.ids, "patients": train.patients, "strangers": held_out.patients, "quantile": 0.05}
        found = [
            memorised(one.images.reshape(len(one), -1), *flat, ids=one.ids, **named)
            for one in (synthetic, copies, unseen)
        ]
        return ask_memorised(*found, what="pixels")

    fresh, leaky = ask(new), ask(copies)
    assert (fresh.figure.verdict, fresh.verdict) == (NOT_FOUND, UNDECIDED), "a distance clears nothing"
    assert leaky.verdict == LEAK
    assert leaky.figure.value == 1
    assert [control.passed for control in leaky.controls] == [True, True]
    assert leaky.n == "240 images against 4 patients"
    assert leaky.figure.over == "patients"
    assert ask(two).verdict == SIGNS, "all of it copies of two patients: not to be called unseen"
    assert not ask(new, unseen=copies).controls[1].passed, "a negative control that finds copies has failed"
