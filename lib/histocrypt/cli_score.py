"""The verbs that judge predictions and models, of HistoCrypt or of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histocrypt.answer import Json, answer
from histocrypt.cli_predict import Overwrite, Weights
from histocrypt.encrypted.commands import BinSize
from histocrypt.errors import InputError
from histocrypt.paths import use_weights

Units = Annotated[
    str | None,
    typer.Option(metavar="TRANSFORM", help="Units of files of others: log1p_cp10k, log1p or log2p1; else unknown."),
]
Truth = Annotated[str, typer.Argument(metavar="SECTION", help="The section with its counts, in any readable format.")]
Called = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the section in the predictions.")]


def score(
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Predictions (.h5ad).")],
    truth: Truth,
    section: Called = None,
    bin_um: BinSize = None,
    units: Units = None,
    json: Json = False,
) -> None:
    """Score predictions against measured counts.

    Predictions may come from HistoCrypt or from others.
    """
    from histocrypt.evaluation.score_file import render, score_files

    answer(
        lambda: score_files(prediction, truth, name=section, bin_um=bin_um, units=units),
        render,
        as_json=json,
        then=lambda _: f"histocrypt compare {prediction} OTHER.h5ad {truth}",
    )


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Predictions (.h5ad), of HistoCrypt or of others.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Other predictions of the same section.")],
    truth: Truth,
    section: Called = None,
    units: Units = None,
    block: Annotated[
        float, typer.Option(metavar="SPOTS", help="Side of the tissue blocks that are drawn, in spots.")
    ] = 5.0,
    bin_um: BinSize = None,
    json: Json = False,
) -> None:
    """Compare two predictions of one section.

    Prints paired differences with intervals from a bootstrap over blocks of tissue.
    """
    from histocrypt.evaluation.compare import compare_files, render

    how = {"name": section, "units": units, "block": block, "bin_um": bin_um}
    answer(
        lambda: compare_files(first, second, truth, **how),
        render,
        as_json=json,
        then=lambda _: f"histocrypt map {first}, and the same gene: histocrypt map {second} --gene GENE",
    )


def trust(
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Predictions (.h5ad) of any model.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The same predictions with trust (.h5ad).")
    ],
    labelled: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same model's predictions of a section with counts; may be repeated."),
    ] = None,
    counts: Annotated[
        list[str] | None, typer.Option(metavar="SECTION", help="That section; one per --labelled, in the same order.")
    ] = None,
    units: Units = None,
    bin_um: BinSize = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Add to predictions how far to trust each gene.

    The trust comes from sections with counts that the same model predicted.
    """
    from histocrypt.evaluation.labelled import document, render, trust_from_labelled

    labelled, counts = labelled or [], counts or []
    if len(labelled) != len(counts):
        value, expected = f"{len(labelled)} and {len(counts)}", "one --counts per --labelled"
        raise InputError("--labelled and --counts differ in number", field="--counts", value=value, expected=expected)
    how = {"units": units, "bin_um": bin_um, "overwrite": overwrite}
    answer(
        lambda: trust_from_labelled(prediction, list(zip(labelled, counts, strict=True)), output, **how),
        render,
        as_json=json,
        document=document,
        then=lambda _: f"histocrypt map {output}",
    )


def audit(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="CSV with prediction, section, member (1 or 0); optional: patient, laboratory."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the privacy card.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model; default: that of the table.")
    ] = None,
    units: Units = None,
    bin_um: BinSize = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Audit a model by its predictions alone.

    Writes a privacy card: do the predictions tell whose tissue the model was trained on?
    """
    from histocrypt.audit.black_box import audit_predictions, render

    answer(
        lambda: audit_predictions(table, output, name=name, units=units, bin_um=bin_um, overwrite=overwrite),
        lambda card: render(card, output),
        as_json=json,
        document=lambda card: card.to_dict(),
        then=lambda _: f"open the card in {output}",
    )


def hest_bench(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A task of hest-bench, or the folder of its tasks.")],
    encoder: Annotated[
        list[str] | None, typer.Option("-e", "--encoder", metavar="NAME", help="As in a study; may be repeated.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this task; may be repeated.")] = None,
    components: Annotated[int, typer.Option(min=1, metavar="N", help="Keep at most N principal components.")] = 256,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write every gene of every fold (.csv).")
    ] = None,
    weights: Weights = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Score frozen encoders by the HEST-Benchmark protocol.

    docs/hest_bench.md says how to get its tasks.
    """
    from histocrypt.evaluation.hest_bench import DEFAULT_ENCODER, document, render, run
    from histocrypt.files import claim, write_table

    use_weights(weights)
    if output is not None:
        claim(output, overwrite=overwrite)
    scores = answer(
        lambda: run(folder, encoder or [DEFAULT_ENCODER], tasks=task or [], components=components, say=typer.echo),
        lambda found: f"\n{render(found)}",
        as_json=json,
        document=document,
        then=lambda _: f"histocrypt hest-bench {folder} -e OTHER_ENCODER",
    )
    if output is not None:
        write_table(output, scores, index=False)
