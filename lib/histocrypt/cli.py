"""The ``histocrypt`` command: thin verbs; bad input ends in one sentence and exit code 2."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from histocrypt import __version__
from histocrypt.encrypted import commands as fhe
from histocrypt.errors import InputError
from histocrypt.onward import onward
from histocrypt.paths import settle, use_weights, use_writable_caches
from histocrypt.serve.commands import serve

app = typer.Typer(
    help="Private prediction of spatial gene expression from H&E histology.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich costs as much as all the rest, and cuts long options at 80 columns
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

app.add_typer(fhe.app, name="fhe")
app.command()(serve)


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if asked:
        typer.echo(f"histocrypt {__version__}")
        raise typer.Exit


BinSize = fhe.BinSize
Anyway = fhe.Anyway
Weights = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of encoders' weights, see docs/encoders.md.")]
Units = Annotated[
    str | None,
    typer.Option(metavar="TRANSFORM", help="What values of others are: log1p_cp10k, log1p or log2p1; else unknown."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that lie there, whoever made them.")]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def download(
    source: Annotated[
        str | None, typer.Argument(help="her2st, hbcis, hest or visium; without it, all are listed.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Sections; without any, their names are listed.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder; default HISTOCRYPT_DATA/<source>.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that forbids silent use (HEST).")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Leave out whole-slide images where a smaller image serves.")
    ] = False,
    token_file: Annotated[Path | None, typer.Option(help="File with a Hugging Face token; else HF_TOKEN.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Fetch from <address>/<role> instead of the hosts.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds without a byte before trying again.")] = 60.0,
    overwrite: Overwrite = False,
) -> None:
    """Fetch public sections: resumable, checksummed, licence and citation shown."""
    from histocrypt.download.fetch import download_by_name

    try:
        download_by_name(
            source,
            names or [],
            to,
            accepted=accept_licence,
            small=small,
            token_file=token_file,
            mirror=mirror,
            timeout_s=timeout,
            overwrite=overwrite,
            say=typer.echo,
        )
    except KeyboardInterrupt:  # here, since typer would end without a word
        typer.echo("histocrypt: interrupted; what came is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


@app.command()
def doctor(weights: Weights = None) -> None:
    """Say what this machine has, what is missing, and how to mend it."""
    from histocrypt.doctor import examine, render

    use_weights(weights)
    findings = examine()
    typer.echo(render(findings))
    onward("histocrypt run studies/demo.yaml, or histocrypt new NAME SECTIONS... for sections of your own")
    raise typer.Exit(1 if any(finding.status == "broken" for finding in findings) else 0)


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="PATH...", help="Section files or folders, or a study file.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    bin_um: BinSize = None,
) -> None:
    """Check sections: one table, and what was read from where; exit 2 where one cannot be used."""
    from histocrypt.explore.survey import check_sections, render

    table = check_sections(files, bin_um=bin_um)
    typer.echo(render(table, as_json=json))
    study = next((one for one in files if one.endswith((".yaml", ".yml"))), None)
    onward(f"histocrypt run {study} --dry-run" if study else f"histocrypt new NAME {' '.join(files)}")
    raise typer.Exit(2 if any(row.unusable for row in table) else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the study.")],
    sections: Annotated[list[str], typer.Argument(metavar="SECTIONS...", help="Section files, folders or globs.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Study file; default NAME.yaml.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a commented study file for sections of your own."""
    from histocrypt.explore.new_study import new_study

    typer.echo(new_study(name, sections, output=output, overwrite=overwrite))


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="Study file, e.g. studies/demo.yaml.")],
    cores: Annotated[int, typer.Option(help="Cores to use; 0 means all.")] = 0,
    until: Annotated[str | None, typer.Option(help="Stop after this notebook, e.g. 20_preprocessing.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Notebook parameter; may be repeated."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Where jobs run: local (the default), slurm, or a Snakemake profile folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the plan: jobs and why, core-hours, peak memory, disk.")
    ] = False,
    weights: Weights = None,
) -> None:
    """Run a study from section files to report; run it again after an interruption."""
    from histocrypt.workflow.run import run_study

    use_weights(weights)
    pairs = [tuple(pair.split("=", 1)) for pair in parameter or []]
    raise typer.Exit(run_study(study, cores=cores, until=until, parameters=pairs, profile=profile, dry_run=dry_run))


@app.command()
def runs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[A [B]]", help="Study names or run folders; none: list all runs.")
    ] = None,
) -> None:
    """List the runs there are; show one in full; set two beside each other."""
    from histocrypt.workflow.runs import compare_runs, list_runs, show_run

    names = names or []
    if len(names) > 2:
        raise InputError("more than two runs cannot be compared at once", value=" ".join(names), expected="A B")
    if names:
        typer.echo(compare_runs(*names) if len(names) == 2 else show_run(*names))
        return
    listed, problems = list_runs()
    typer.echo(listed)
    for problem in problems:
        typer.echo(f"histocrypt: {problem}", err=True)
    raise typer.Exit(2 if problems else 0)


@app.command()
def predict(
    section: Annotated[
        str,
        typer.Argument(
            help="A section in any readable format, a slide, or a folder of <section>_<x>_<y>.tif; or a folder of "
            "many, or a list (.csv: path, um_per_px, patient, laboratory)."
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained model, e.g. outputs/demo/models/resnet18/final; "
            "default: the small model of breast tissue that comes with HistoCrypt."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Predictions go here (.h5ad; of many slides a folder); default: SECTION_predicted.h5ad, here.",
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image file, where the section does not name it.")] = None,
    um_per_px: Annotated[float | None, typer.Option(help="Micrometres per full-resolution pixel.")] = None,
    bin_um: BinSize = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write a CSV: ID and the panel, one row a spot in the section's order.")
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(metavar="UM", help="Predict on a grid over the tissue, points this far apart (a slide: 200)."),
    ] = None,
    average_symmetries: Annotated[
        bool | None, typer.Option(help="Average over the eight symmetries of a tile; default: as the model says.")
    ] = None,
    average_windows: Annotated[
        bool, typer.Option(help="Average over windows of 1, 1/2 and 3/2 tile widths, as far as they fit.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write target, auxiliary and tumour CSV files.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Tiles held at a time; predictions do not depend on it.")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="GEOJSON", help="Cells or regions that others drew get the mean prediction of the points inside."
        ),
    ] = None,
    regions_within: Annotated[
        float | None,
        typer.Option(metavar="UM", help="A region without a point gets the nearest so near; default: the spacing."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTS", help="Counts of some spots of the section correct the others and give their intervals."
        ),
    ] = None,
    measured_within: Annotated[
        float | None,
        typer.Option(metavar="UM", help="How far a measured spot may lie from its point; default: half the spacing."),
    ] = None,
    cores: Annotated[int, typer.Option(help="Of many slides, how many at a time; 0 means all cores.")] = 0,
    profile: Annotated[
        Path | None, typer.Option(help="Of many slides: Snakemake profile, a folder or a name, e.g. slurm.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Of many slides, print JSON instead of a table.")] = False,
    weights: Weights = None,
    overwrite: Overwrite = False,
    anyway: Anyway = False,
) -> None:
    """Apply a trained model to a new section, or to a folder of slides: exit 1 where one of them failed or was refused.

    A hackathon file stands for its test slide; FILE.h5/S_1 names another.
    """
    from histocrypt.pipeline.listing import are_many
    from histocrypt.pipeline.predict import predict_section

    use_weights(weights)
    if are_many(section, output):
        single = {"--image": image, "--submission": submission, "--csv": csv, "--measured": measured}
        for option, given in single.items():
            if given is not None:
                raise InputError("is of one section", field=option, value=str(given), fix="leave it out")
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
        raise InputError("is for a folder or a list of slides", field="--profile", value=str(profile))
    if json:
        raise InputError("is for a folder or a list of slides, which ends in a table", field="--json")
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
    onward(f"histocrypt map {output}, or histocrypt export {output} -o OUT.geojson --to geojson")


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
    from histocrypt.report.slides import predict_folder, render

    how = {"model": model, "settings": Settings(**settings), "cores": cores, "overwrite": overwrite}
    if profile is not None:
        from histocrypt.workflow.slides import by_profile

        how["run"] = by_profile(profile, cores=cores)
    outcome, summary = predict_folder(path, output, **how, say=partial(typer.echo, err=True))
    typer.echo(render(summary, output, as_json=as_json))
    return 1 if any(state["status"] != "predicted" for state in outcome.slides) else 0


@app.command("import-weights")
def import_weights(
    weights: Annotated[Path, typer.Argument(help="State dict of a ResNet-18 with torchvision's names (.pth).")],
    study: Annotated[Path, typer.Option(help="Study, preprocessed: how tiles are cut, whose tiles give ranges.")],
    genes: Annotated[Path, typer.Option(help="Published gene list: ids, one a line, or JSON.")],
    statistics: Annotated[
        Path, typer.Option(help="Pixel statistics: type,value lines, three image_mean and three image_std.")
    ],
    means: Annotated[
        Path | None, typer.Option(help="gene,mean lines: outputs are the genes with the highest, in the list's order.")
    ] = None,
    output_statistics: Annotated[
        Path | None, typer.Option(help="gene,mean,sd lines, where the network learnt standardised values.")
    ] = None,
    transform: Annotated[str, typer.Option(help="What the network predicts of counts.")] = "log1p",
    fold: Annotated[str, typer.Option(help="Whose training sections go with it.")] = "final",
    max_pool: Annotated[
        bool, typer.Option("--max-pool", help="It pools by maxima, as torchvision's own; then it cannot be encrypted.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a published ResNet-18 (torchvision, BrSTNet, privateST) a model of a study."""
    from histocrypt.pipeline.published import import_weights
    from histocrypt.study import load_study

    files = {"genes": genes, "statistics": statistics, "means": means, "output_statistics": output_statistics}
    how = {"transform": transform, "fold": fold, "average_pool": not max_pool, "overwrite": overwrite}
    typer.echo(import_weights(weights, load_study(study), **files, **how))


@app.command("map")
def draw_map(
    prediction: Annotated[Path, typer.Argument(help="Predictions (.h5ad).")],
    gene: Annotated[
        str | None, typer.Option(help="Gene id or symbol, of any head; or `tumour`. Default: the most trusted.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Picture to write; default GENE.png.")] = None,
    section: Annotated[str | None, typer.Option(help="Section, where the file holds several.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a predicted gene over the tissue, with a scale bar and how far to trust it."""
    from histocrypt.evaluation.maps import write_map

    typer.echo(write_map(prediction, gene, output, section=section, overwrite=overwrite))


@app.command()
def export(
    prediction: Annotated[Path, typer.Argument(help="Predictions (.h5ad).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; a folder .zarr for spatialdata.")],
    to: Annotated[str, typer.Option(help="geojson (QuPath), spatialdata, squidpy, csv, ome-tiff, loupe-csv, anndata.")],
    genes: Annotated[str, typer.Option(metavar="A,B", help="Ids or symbols; default: all, the trusted first.")] = "",
    layer: Annotated[str | None, typer.Option(metavar="TRANSFORM", help="Default: the main transform.")] = None,
    colour: Annotated[str | None, typer.Option(metavar="GENE", help="Gene that colours; default: the first.")] = None,
    section: Annotated[str | None, typer.Option(help="Section, where the file holds several.")] = None,
    image: Annotated[str | None, typer.Option(help="The slide, where the file does not name it.")] = None,
    um_per_px: Annotated[float | None, typer.Option(help="Micrometres per full-resolution pixel.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write predictions as the files that QuPath, squidpy, napari and Loupe open (see docs/export.md)."""
    from histocrypt.export.registry import export as write

    wanted = [gene.strip() for gene in genes.split(",") if gene.strip()]
    how = {"genes": wanted, "layer": layer, "colour": colour, "section": section, "overwrite": overwrite}
    said, notes = write(prediction, output, to=to, image=image, um_per_px=um_per_px, **how)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(said)


@app.command()
def score(
    prediction: Annotated[Path, typer.Argument(help="Predictions (.h5ad).")],
    truth: Annotated[str, typer.Argument(help="The section with its counts, in any readable format.")],
    section: Annotated[
        str | None, typer.Option(help="What the prediction calls the section, where its file is named otherwise.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    bin_um: BinSize = None,
    units: Units = None,
) -> None:
    """Score predictions, of HistoCrypt or of others, against measured counts."""
    from histocrypt.evaluation.score_file import render, score_files

    typer.echo(render(score_files(prediction, truth, name=section, bin_um=bin_um, units=units), as_json=json))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Predictions (.h5ad), of HistoCrypt or of others.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Others of the same section.")],
    truth: Annotated[str, typer.Argument(help="The section with its counts, in any readable format.")],
    section: Annotated[str | None, typer.Option(help="What the predictions call the section.")] = None,
    units: Units = None,
    block: Annotated[float, typer.Option(help="Side of the blocks of tissue that are drawn, in spots.")] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    bin_um: BinSize = None,
) -> None:
    """Compare two predictions of a section: paired differences with intervals by a bootstrap over blocks of tissue."""
    from histocrypt.evaluation.compare import compare_files, render

    how = {"name": section, "units": units, "block": block, "bin_um": bin_um}
    typer.echo(render(compare_files(first, second, truth, **how), as_json=json))


@app.command()
def trust(
    prediction: Annotated[Path, typer.Argument(help="Predictions (.h5ad) by a model of others.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The same with trust, .h5ad.")],
    labelled: Annotated[
        list[Path] | None, typer.Option(help="Predictions by the same model of a section with counts; may be repeated.")
    ] = None,
    counts: Annotated[
        list[str] | None, typer.Option(metavar="SECTION", help="That section, in any format: one for each --labelled.")
    ] = None,
    units: Units = None,
    bin_um: BinSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Write beside predictions how far sections with counts let one trust their model, gene by gene."""
    from histocrypt.evaluation.labelled import trust_from_labelled

    labelled, counts = labelled or [], counts or []
    if len(labelled) != len(counts):
        value, expected = f"{len(labelled)} and {len(counts)}", "--labelled and --counts, one for each other"
        raise InputError(
            "labelled predictions and sections differ in number", field="--counts", value=value, expected=expected
        )
    how = {"units": units, "bin_um": bin_um, "overwrite": overwrite}
    typer.echo(trust_from_labelled(prediction, list(zip(labelled, counts, strict=True)), output, **how))


@app.command()
def audit(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV: prediction, section, member (1 or 0); patient, laboratory.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The privacy card goes there.")],
    name: Annotated[str | None, typer.Option(help="What the model is called; default: as the table.")] = None,
    units: Units = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    bin_um: BinSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Ask a model of others, from its predictions alone, whose tissue it learnt from: a privacy card."""
    from histocrypt.audit.black_box import audit_predictions, render

    card = audit_predictions(table, output, name=name, units=units, bin_um=bin_um, overwrite=overwrite)
    typer.echo(render(card, output, as_json=json))


@app.command("hest-bench")
def hest_bench(
    folder: Annotated[Path, typer.Argument(help="A task of hest-bench, or the folder of its tasks.")],
    encoder: Annotated[
        list[str] | None, typer.Option("-e", "--encoder", help="As in a study; may be repeated.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    components: Annotated[int, typer.Option(min=1, help="Principal components kept, at most.")] = 256,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write every fold's genes (.csv).")] = None,
    weights: Weights = None,
    overwrite: Overwrite = False,
) -> None:
    """Score frozen encoders by the protocol of HEST-Benchmark, and print its table (see docs/hest_bench.md)."""
    from histocrypt.evaluation.hest_bench import DEFAULT_ENCODER, render, run
    from histocrypt.files import claim, write_table

    use_weights(weights)
    if output is not None:
        claim(output, overwrite=overwrite)
    scores = run(folder, encoder or [DEFAULT_ENCODER], tasks=task or [], components=components, say=typer.echo)
    typer.echo(f"\n{render(scores)}")
    if output is not None:
        write_table(output, scores, index=False)


@app.command("demo-tissue")
def demo_tissue(
    folder: Annotated[Path, typer.Argument(help="Sections are written here.")],
    sections: Annotated[int, typer.Option(help="Number of sections, each of another patient.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the simulator.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write simulated sections, to try things on."""
    from histocrypt.demo.write import write_demo

    for path in write_demo(folder, n_sections=sections, seed=seed, overwrite=overwrite):
        typer.echo(path)
    onward(f"histocrypt new NAME {folder}")


def _joined_parameters(arguments: list[str]) -> list[str]:
    """Return the arguments with papermill's ``-p NAME VALUE`` joined to ``-p NAME=VALUE``, which typer can repeat."""
    joined, rest = [], iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("-p", "--parameter"):
            name = next(rest, "")
            value = "" if "=" in name else next(rest, None)
            if not name or value is None:
                raise InputError("a notebook parameter needs a name and a value", field=argument, expected="NAME VALUE")
            joined.append(name if "=" in name else f"{name}={value}")
    return joined


OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ESTALE),
}
"""Errors of the system that are no fault of the program: rights, room, names of files."""


def _refuse(sentence: str) -> NoReturn:
    sys.stdout.flush()
    typer.echo(f"histocrypt: {sentence}", err=True)
    raise SystemExit(2) from None


def main() -> None:
    """Entry point: user mistakes become one sentence and exit code 2."""
    try:
        settle()
        use_writable_caches()
        arguments = sys.argv[1:]
        if arguments[:2] in (["fhe", "evaluate"], ["fhe", "serve"], ["fhe", "keygen"]) and len(arguments) > 2:
            from histocrypt.encrypted.engine import restart_to_collect_early

            restart_to_collect_early()
        app(args=_joined_parameters(arguments) if arguments[:1] == ["run"] else arguments)
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _refuse(f"{where}{error.strerror}."[:500])
    except KeyboardInterrupt:
        typer.echo("histocrypt: interrupted; what was finished is kept", err=True)
        raise SystemExit(130) from None
