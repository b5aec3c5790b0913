"""What the gate in the public part of an encrypted model is worth, and what it gives away of training patients.

    python benchmarks/public_gate.py [MODEL]

A model's own gate (the one in the box, if none is named) holds colours, sharpness and mean features of its training
sections. Each patient is left out of it in turn: what does the whole gate say of its sections, which knows every
training section's mean, and what does the public one, which knows their rounded centre? Deviations are the model's own,
of all sections. Then the other way round: how near the centre lies a section whose patient is in it, and one whose
patient is not; and how near the nearest line of colours. Takes seconds.
"""

from __future__ import annotations

import argparse

from histocrypt import paths
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.trust.gate import Gate, Look, without_names


def public(gate: Gate) -> Gate:
    """Return a gate as clients have it."""
    return Gate.from_told(without_names(gate.to_dict()), gate.without_sections())


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=paths.shipped_model())
    gate = load_model(parser.parse_args().model).gate
    if gate is None or gate.sd is None:
        parser.error("this model has no gate that looks at features")

    def without(section: str, *, patient: bool) -> Gate:
        whose = gate.looks[section].patient if patient else None
        kept = {name: one for name, one in gate.looks.items() if name != section and one.patient != whose}
        return Gate(kept, gate.sd)

    def shift(made: Gate, look: Look) -> str:
        verdict = made.judge(look)
        measured = verdict.measured
        return f"{verdict.word} | {measured['shift']:.2f} ({measured['shift_limit']:.2f})"

    header = "| section, its patient left out | whole gate | shift (limit) | public gate | shift (limit) |"
    print(f"{header}\n|---|---|---|---|---|")
    for name, look in gate.looks.items():
        made = without(name, patient=True)
        print(f"| {name} | {shift(made, look)} | {shift(public(made), look)} |")
    print("\n| section | patient is known | shift from the centre | colours from the nearest line |\n|---|---|---|---|")
    for name, look in gate.looks.items():
        told = (
            ("no", without(name, patient=True)),
            ("by other sections", without(name, patient=False)),
            ("by this section", gate),
        )
        for known, made in told:
            if known == "by other sections" and all(o.patient != look.patient for o in made.looks.values()):
                continue
            found = public(made).judge(look).measured
            print(f"| {name} | {known} | {found['shift']:.2f} | {found['colour']:.2f} |")


if __name__ == "__main__":
    main()
