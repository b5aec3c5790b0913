"""Measured, predicted and residual values beside the H&E: pick model, section, gene and transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histocrypt.viewer.board import Board, gene_box, labelled, opacity_slider, spot_sizes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from histocrypt.study import Study


def view_results(study: Study, *, model: str = "", section: str = "", gene: str = "", transform: str = "") -> Board:
    """Return the viewer of a study's predictions of held-out sections; ``show()`` displays it.

    Parameters
    ----------
    study
        A study whose models have predicted held-out sections; it need not be scored.
    model, section, gene, transform
        What to open with; the gene by symbol or id. Empty: the study's last model, its first section, the first gene
        of its panel, its main transform.

    Raises
    ------
    InputError
        If nothing is predicted yet, or (in ``show()``) a name is unknown or not predicted in this section.
    """
    from histocrypt.evaluation.scores import title_of
    from histocrypt.evaluation.views import Views, draw, sentence
    from histocrypt.evaluation.words import TRANSFORM_WORDS
    from histocrypt.targets.matrix import noun

    every = Views(study)
    first = {"model": model or every.models[-1], "section": section or every.sections[0]}
    first["transform"] = transform or every.transforms[0]
    gene = gene or every.genes[str(every.joined(**first).genes[0])]
    values = [(TRANSFORM_WORDS.get(name, name), name) for name in every.transforms]
    controls = {
        "model": labelled("Dropdown", "Model", options=[(title_of(name), name) for name in every.models]),
        "section": labelled("Dropdown", "Section", options=every.sections),
        "gene": gene_box(sorted(every.genes.values()), gene, label=noun(study.target.matrix).capitalize()),
        "transform": labelled("Dropdown", "Values", options=values),
        "touching": spot_sizes(),
        "opacity": opacity_slider(),
    }
    for name, value in first.items():
        controls[name].value = value

    def view(*, touching: bool, opacity: float, **chosen: str) -> tuple[Figure, str]:
        seen = every.view(**chosen)
        return draw(seen, touching=touching, opacity=opacity), sentence(seen)

    return Board(controls, view)
