"""The ``histocrypt`` command: thin verbs; bad input ends in one sentence and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from histocrypt import __version__
from histocrypt import cli_predict as predicting
from histocrypt import cli_score as scoring
from histocrypt.answer import Json, answer
from histocrypt.encrypted import commands as fhe
from histocrypt.encrypted.commands import BinSize
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

Weights = predicting.Weights
Overwrite = predicting.Overwrite


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if asked:
        typer.echo(f"histocrypt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def doctor(weights: Weights = None, json: Json = False) -> None:
    """Show what this machine has, and how to mend what it lacks.

    Exits with 1 if something that a study needs is broken.
    """
    from histocrypt.doctor import document, examine, render

    use_weights(weights)
    findings = answer(examine, render, as_json=json, document=document, then=_after_doctor)
    raise typer.Exit(1 if any(finding.status == "broken" for finding in findings) else 0)


def _after_doctor(findings: list) -> str:
    if any(finding.status == "broken" for finding in findings):
        return "mend what is broken, then histocrypt doctor"
    return "histocrypt run studies/demo.yaml, or for your own sections: histocrypt new NAME SECTIONS"


def download(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="her2st, hbcis, hest or visium; none: list all sources.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="SECTION", help="Sections to fetch; none: list their names.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to save; default: HISTOCRYPT_DATA/SOURCE.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the terms of a licence that restricts use (HEST).")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Skip whole-slide images where a smaller image is enough.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a Hugging Face token; default: HF_TOKEN.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Fetch from URL/ROLE instead of the original hosts.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Try again after so long without a byte.")
    ] = 60.0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Download public sections, with licence and citation.

    Files are checked against checksums, and an interrupted download resumes.
    """
    from histocrypt.download.fetch import Downloaded, download_by_name

    def then(found: Downloaded) -> str:
        if found.sections:
            return "histocrypt check " + " ".join(str(section.path) for section in found.sections)
        return f"histocrypt download {source or 'SOURCE'}" + (" SECTION" if source else "")

    try:
        answer(
            lambda: download_by_name(
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
            ),
            lambda found: found.words,
            as_json=json,
            document=lambda found: found.document,
            then=then,
        )
    except KeyboardInterrupt:  # here, since typer would end without a word
        typer.echo("histocrypt: interrupted; run the same command again to resume", err=True)
        raise typer.Exit(130) from None


def check(
    files: Annotated[list[str], typer.Argument(metavar="PATH", help="Section files, folders or a study file.")],
    bin_um: BinSize = None,
    json: Json = False,
) -> None:
    """Check whether sections can be used.

    Prints one table, then what was read from where. Exits with 2 if a section cannot be used.
    """
    from histocrypt.explore.survey import check_sections, document, render

    study = next((one for one in files if one.endswith((".yaml", ".yml"))), None)

    def then(rows: list) -> str:
        if any(row.unusable for row in rows):
            return f"mend what is unusable, then histocrypt check {' '.join(files)}"
        return f"histocrypt run {study} --dry-run" if study else f"histocrypt new NAME {' '.join(files)}"

    rows = answer(lambda: check_sections(files, bin_um=bin_um), render, as_json=json, document=document, then=then)
    raise typer.Exit(2 if any(row.unusable for row in rows) else 0)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")],
    sections: Annotated[list[str], typer.Argument(metavar="SECTION", help="Section files, folders or globs.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Study file; default: NAME.yaml.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a commented study file for your own sections."""
    from histocrypt.explore.new_study import new_study

    typer.echo(new_study(name, sections, output=output, overwrite=overwrite))
    onward(f"histocrypt run {output or f'{name}.yaml'} --dry-run")


def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file, e.g. studies/demo.yaml.")],
    cores: Annotated[int, typer.Option(min=0, metavar="N", help="Cores to use; 0: all.")] = 0,
    until: Annotated[
        str | None, typer.Option(metavar="NOTEBOOK", help="Stop after this notebook, e.g. 20_preprocessing.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a notebook parameter; may be repeated."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="PROFILE", help="Where jobs run: local (default), slurm or a Snakemake profile folder."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan only: jobs and why, core-hours, memory, disk.")
    ] = False,
    weights: Weights = None,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON document.")] = False,
) -> None:
    """Run a study, from section files to the report.

    After an interruption, run it again: finished steps are kept.
    """
    from histocrypt.workflow.run import run_study

    use_weights(weights)
    pairs = [tuple(pair.split("=", 1)) for pair in parameter or []]
    how = {"cores": cores, "until": until, "parameters": pairs, "profile": profile}
    code = run_study(study, **how, dry_run=dry_run, as_json=json)
    if code == 0 and not json:
        onward(f"histocrypt run {study}" if dry_run else f"open the report, or: histocrypt runs {study.stem}")
    raise typer.Exit(code)


def runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Study name or run folder. One: show it; two: compare; none: list all."),
    ] = None,
    json: Json = False,
) -> None:
    """List all runs, show one in full or compare two."""
    from histocrypt.workflow import runs_document
    from histocrypt.workflow.runs import compare_runs, list_runs, show_run

    names = names or []
    if len(names) > 2:
        raise InputError("only two runs can be compared at once", field="RUN", value=" ".join(names), expected="A B")
    if names:
        text, facts = (compare_runs, runs_document.two_runs) if len(names) == 2 else (show_run, runs_document.one_run)
        then = f"histocrypt runs {names[0]} OTHER" if len(names) == 1 else f"histocrypt runs {names[1]}"
        answer(lambda: facts(*names) if json else text(*names), str, as_json=json, then=lambda _: then)
        return
    if json:
        found = answer(runs_document.all_runs, str, as_json=True)
        raise typer.Exit(2 if found["problems"] else 0)
    listed, problems = list_runs()
    typer.echo(listed)
    for problem in problems:
        typer.echo(f"histocrypt: {problem}", err=True)
    onward("histocrypt runs RUN, or to compare: histocrypt runs RUN OTHER")
    raise typer.Exit(2 if problems else 0)


def demo_tissue(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Sections are written here.")],
    sections: Annotated[int, typer.Option(min=1, metavar="N", help="Number of sections, each of another patient.")] = 6,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the simulator.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write simulated sections to try things on."""
    from histocrypt.demo.write import write_demo

    for path in write_demo(folder, n_sections=sections, seed=seed, overwrite=overwrite):
        typer.echo(path)
    onward(f"histocrypt new NAME {folder}")


VERBS = {
    "doctor": doctor,
    "demo-tissue": demo_tissue,
    "download": download,
    "check": check,
    "new": new,
    "run": run,
    "runs": runs,
    "predict": predicting.predict,
    "map": predicting.draw_map,
    "export": predicting.export,
    "serve": serve,
    "score": scoring.score,
    "compare": scoring.compare,
    "trust": scoring.trust,
    "audit": scoring.audit,
    "hest-bench": scoring.hest_bench,
    "import-weights": predicting.import_weights,
}
"""In the order of the help."""
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)
app.add_typer(fhe.app, name="fhe")


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
        if arguments[:1] != ["run"] and not sys.stderr.isatty():  # the line of `run` is read from its jobs' bars
            os.environ.setdefault("TQDM_DISABLE", "1")
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
