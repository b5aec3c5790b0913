"""What a model was trained on, and the refusal of one that cannot say anything of a section.

Simulated tissue is known by what the demo writes into its files. A section that does not say so is real: the mistake
that is left is to refuse a model of simulated tissue once too often.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.section import Section

ANYWAY = "give --anyway to go on all the same"
"""What can be done where a model does not fit."""


def is_simulated(uns: Mapping[str, Any]) -> bool:
    """Return whether ``uns`` of a section says that the simulator of the demo made it."""
    demo = uns.get("demo")
    return isinstance(demo, Mapping) and "planted" in demo


def origin_of(sections: Iterable[AnnData], *, organ: str = "", stain: str = "") -> dict[str, Any]:
    """Return what ``model.json`` says under ``origin`` of the tissue that a model learnt from.

    Parameters
    ----------
    sections
        Cleaned training sections; ``obs`` and ``uns`` are looked at.
    organ, stain
        As the study states them; "" where it does not. Sections may state the organ themselves (``uns["organ"]``).

    Returns
    -------
    dict
        ``simulated``: whether any of them is. ``organs``, ``stains``, ``laboratories``, ``platforms``: sorted lists of
        what is stated, empty where nothing is.
    """
    found: dict[str, set[str]] = {name: set() for name in ("organs", "stains", "laboratories", "platforms")}
    simulated = False
    for adata in sections:
        simulated |= is_simulated(adata.uns)
        found["organs"].add(organ or _text(adata.uns.get("organ")))
        found["platforms"].add(_text(adata.uns.get("technology")))
        if "laboratory" in adata.obs:
            found["laboratories"] |= set(map(str, adata.obs["laboratory"].unique()))
    found["stains"].add(stain)
    return {"simulated": simulated, **{name: sorted(values - {""}) for name, values in found.items()}}


def origin_words(origin: Mapping[str, Any] | None) -> str:
    """Return what a person should read of a model's origin, e.g. ``real tissue, breast, H&E, laboratories A and B``."""
    if origin is None:
        return "tissue that it does not name"
    parts = ["simulated tissue" if origin["simulated"] else "real tissue", *origin["organs"], *origin["stains"]]
    if laboratories := origin["laboratories"]:
        parts.append(f"{'laboratory' if len(laboratories) == 1 else 'laboratories'} {' and '.join(laboratories)}")
    return ", ".join([*parts, *origin["platforms"]])


def check_origin(
    origin: Mapping[str, Any] | None, section: Section, *, missing: Sequence[str], genes: int, anyway: bool = False
) -> list[str]:
    """Refuse a model that cannot say anything of a section; return what is to be noted.

    Parameters
    ----------
    origin
        What the model says (see `origin_of`); None for one of an earlier version.
    section
        The section, or the grid over a slide. Its ``uns``, and its image, tell whether it is simulated.
    missing
        Genes of the model's panel that the section did not measure (see `pipeline.compatibility.check_fit`).
    genes
        Size of the panel.
    anyway
        Go on, and note what would have been refused.

    Raises
    ------
    InputError
        If the model learnt from simulated tissue and the section is real, or the section has counts and none of the
        model's genes. Without ``anyway``.
    """
    from histocrypt.demo.write import is_demo_file

    if origin is None:
        return ["the model does not say what tissue it learnt from; models of this version do"]
    file = section.file or (section.image.path if section.image is not None else section.id)
    drawn = section.image is not None and is_demo_file(section.image.path)
    notes = []
    if origin["simulated"] and not (is_simulated(section.adata.uns) or drawn):
        problem = "the model was trained on simulated tissue, and this tissue is not marked as simulated"
        _refuse(problem, notes, anyway=anyway, file=file, field="origin", value=section.id, expected="simulated tissue")
    if section.adata.n_vars and genes and len(missing) == genes:
        problem, few = "measures none of the model's genes", ", ".join(missing[:3])
        _refuse(problem, notes, anyway=anyway, file=file, field="var_names", value=section.id, expected=f"e.g. {few}")
    return notes


def refuses(error: InputError) -> bool:
    """Return whether an error says that a model is not to be used, rather than that a file cannot be read."""
    return (error.fix or "").endswith(ANYWAY)


def _refuse(problem: str, notes: list[str], *, anyway: bool, **where: Any) -> None:
    error = InputError(problem, **where, fix=f"name another model, or {ANYWAY}")
    if not anyway:
        raise error
    notes.append(f"{where['file']}: {problem}; predicted all the same, as was asked")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
