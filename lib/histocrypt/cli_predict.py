"""The verbs that predict, and those that show what was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histocrypt.answer import answer
from histocrypt.encrypted.commands import Anyway, BinSize
from histocrypt.errors import InputError
from histocrypt.onward import onward
from histocrypt.paths import use_weights

Weights = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of encoder weights, see docs/encoders.md.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files, even those of others.")]
Prediction = Annotated[Path, typer.Argument(metavar="PREDICTION", help="Predictions (.h5ad).")]
Part = Annotated[str | None, typer.Option(metavar="NAME", help="Section, if the file holds several.")]
Resolution = Annotated[float | None, typer.Option(metavar="UM", help="Micrometres per full-resolution pixel.")]


def predict(
    section: Annotated[
        str,
        typer.Argument(
            metavar="SECTION",
            help="A section in any readable format, a slide, or a folder of <section>_<x>_<y>.tif; or many: a folder "
            "of slides, or a list (.csv: path, um_per_px, patient, laboratory).",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of a trained model, e.g. outputs/demo/models/resnet18/final; default: the small model of "
            "breast tissue that comes with HistoCrypt.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="Where predictions go: a .h5ad file; for many slides a folder. Default: SECTION_predicted.h5ad, here.",
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Image, if the section does not name it.")] = None,
    um_per_px: Resolution = None,
    bin_um: BinSize = None,
    submission: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a CSV with ID and panel, one row per spot, in section order."),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(metavar="UM", help="Predict on a grid over the tissue with this spacing (slides: 200)."),
    ] = None,
    average_symmetries: Annotated[
        bool | None,
        typer.Option(
            "--average-symmetries/--no-average-symmetries",
            help="Average over the 8 symmetries of a tile; default: as the model was trained.",
        ),
    ] = None,
    average_windows: Annotated[
        bool,
        typer.Option("--average-windows", help="Average over windows of 1, 1/2 and 3/2 tile widths that fit."),
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write target, auxiliary and tumour CSV files.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Tiles held at a time; does not change predictions.")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GeoJSON of cells or regions; each gets the mean of the points inside it."),
    ] = None,
    regions_within: Annotated[
        float | None,
        typer.Option(metavar="UM", help="A region without a point uses one this near; default: the spacing."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Counts of some spots; they correct the others and give their intervals."),
    ] = None,
    measured_within: Annotated[
        float | None,
        typer.Option(metavar="UM", help="How far a measured spot may be from its point; default: half the spacing."),
    ] = None,
    cores: Annotated[int, typer.Option(min=0, metavar="N", help="Many slides: how many at once; 0: all cores.")] = 0,
    profile: Annotated[
        Path | None, typer.Option(metavar="PROFILE", help="Many slides: Snakemake profile, e.g. slurm.")
    ] = None,
    weights: Weights = None,
    overwrite: Overwrite = False,
    anyway: Anyway = False,
    json: Annotated[
        bool, typer.Option("--json", help="Many slides: print one JSON document instead of a table.")
    ] = False,
) -> None:
    """Predict a new section, a slide or a folder of slides.

    Exits with 1 if a slide of a folder failed or was refused. A hackathon file means its test slide; FILE.h5/S_1 names
    another.
    """
    from histocrypt.pipeline.listing import are_many
    from histocrypt.pipeline.predict import default_output, predict_section

    use_weights(weights)
    if are_many(section, output):
        single = {"--image": image, "--submission": submission, "--csv": csv, "--measured": measured}
        for option, given in single.items():
            if given is not None:
                raise InputError("only works with one section", field=option, value=str(given), fix="leave it out")
        raise typer.Exit(
            _predict_many(
                section,
                output,
                model,
                as_json=json,
                cores=cores,
                profile=profile,
                overwrite=overwrite,
                um_per_px=um_per_px,
                bin_um=bin_um,
                spacing_um=spacing,
                average_symmetries=average_symmetries,
                average_windows=average_windows,
                batch_size=batch_size,
                regions=None if regions is None else str(regions),
                regions_within_um=regions_within,
                anyway=anyway,
            )
        )
    if profile is not None:
        raise InputError("only works with a folder or a list of slides", field="--profile", value=str(profile))
    if json:
        raise InputError("only works with a folder or a list of slides, which end in a table", field="--json")
    said = predict_section(
        model,
        section,
        output,
        image=image,
        um_per_px=um_per_px,
        bin_um=bin_um,
        submission=submission,
        spacing_um=spacing,
        average_symmetries=average_symmetries,
        average_windows=average_windows,
        csv=csv,
        batch_size=batch_size,
        regions=regions,
        regions_within_um=regions_within,
        measured=measured,
        measured_within_um=measured_within,
        overwrite=overwrite,
        anyway=anyway,
    )
    typer.echo(said)
    written = output or default_output(Path(section))
    onward(f"histocrypt map {written}, or: histocrypt export {written} -o OUT.geojson --to geojson")


def _predict_many(
    path: str,
    output: Path,
    model: Path | None,
    *,
    as_json: bool,
    cores: int,
    profile: Path | None,
    overwrite: bool,
    **settings: object,
) -> int:
    """Predict a folder or a list of slides; return the exit code."""
    from functools import partial

    from histocrypt.pipeline.folder import Settings
    from histocrypt.report.slides import PAGE, predict_folder, render

    how = {"model": model, "settings": Settings(**settings), "cores": cores, "overwrite": overwrite}
    if profile is not None:
        from histocrypt.workflow.slides import by_profile

        how["run"] = by_profile(profile, cores=cores)
    outcome, _ = answer(
        lambda: predict_folder(path, output, **how, say=partial(typer.echo, err=True)),
        lambda found: render(found[1], output),
        as_json=as_json,
        document=lambda found: found[1],
        then=lambda _: f"open {output / PAGE}",
    )
    return 1 if any(state["status"] != "predicted" for state in outcome.slides) else 0


def draw_map(
    prediction: Prediction,
    gene: Annotated[
        str | None,
        typer.Option(metavar="GENE", help="Gene id or symbol, of any head, or `tumour`; default: the most trusted."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Picture to write; default: GENE.png.")
    ] = None,
    section: Part = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a predicted gene over the tissue.

    The picture has a scale bar and says how far to trust the gene.
    """
    from histocrypt.evaluation.maps import write_map

    typer.echo(write_map(prediction, gene, output, section=section, overwrite=overwrite))
    onward(f"histocrypt map {prediction} --gene GENE, or: histocrypt export {prediction} -o OUT.geojson --to geojson")


def export(
    prediction: Prediction,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="File to write; for spatialdata a .zarr folder.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="geojson (QuPath), spatialdata, squidpy, csv, ome-tiff, loupe-csv or anndata."
        ),
    ],
    genes: Annotated[
        str, typer.Option(metavar="A,B", help="Gene ids or symbols; default: all, the most trusted first.")
    ] = "",
    layer: Annotated[
        str | None, typer.Option(metavar="TRANSFORM", help="Which values; default: the main transform.")
    ] = None,
    colour: Annotated[
        str | None, typer.Option(metavar="GENE", help="Gene used for colour; default: the first.")
    ] = None,
    section: Part = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="The slide, if the file does not name it.")] = None,
    um_per_px: Resolution = None,
    overwrite: Overwrite = False,
) -> None:
    """Write predictions for QuPath, squidpy, napari or Loupe.

    docs/export.md describes the formats.
    """
    from histocrypt.export.registry import export as write

    wanted = [gene.strip() for gene in genes.split(",") if gene.strip()]
    how = {"genes": wanted, "layer": layer, "colour": colour, "section": section, "overwrite": overwrite}
    said, notes = write(prediction, output, to=to, image=image, um_per_px=um_per_px, **how)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(said)
    onward("docs/export.md says how to open it")


def import_weights(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="State dict of a ResNet-18 with torchvision's names (.pth).")
    ],
    study: Annotated[
        Path,
        typer.Option(metavar="STUDY", help="Preprocessed study: how tiles are cut, and whose tiles give the ranges."),
    ],
    genes: Annotated[Path, typer.Option(metavar="FILE", help="Published gene list: JSON, or one id per line.")],
    statistics: Annotated[
        Path, typer.Option(metavar="FILE", help="Pixel statistics: lines type,value; 3 image_mean and 3 image_std.")
    ],
    means: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines gene,mean: the genes with the highest means are the outputs."),
    ] = None,
    output_statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines gene,mean,sd, if the network was trained on standardised values."),
    ] = None,
    transform: Annotated[
        str, typer.Option(metavar="TRANSFORM", help="Transform of the counts that it predicts.")
    ] = "log1p",
    fold: Annotated[str, typer.Option(metavar="FOLD", help="Fold whose training sections go with it.")] = "final",
    max_pool: Annotated[
        bool,
        typer.Option("--max-pool", help="The network uses max pooling, like torchvision's; it cannot be encrypted."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a published ResNet-18 a model of a study.

    It reads weights of torchvision, BrSTNet or privateST.
    """
    from histocrypt.pipeline.published import import_weights
    from histocrypt.study import load_study

    files = {"genes": genes, "statistics": statistics, "means": means, "output_statistics": output_statistics}
    how = {"transform": transform, "fold": fold, "average_pool": not max_pool, "overwrite": overwrite}
    typer.echo(import_weights(weights, load_study(study), **files, **how))
    onward(f"histocrypt run {study}")
