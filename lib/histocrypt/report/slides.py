"""What came of a folder of slides, as people read it: ``summary.html``, one page on its own, and ``summary.csv``.

The pictures of a slide are made in the process that predicted it, as it has the slide at hand. `words_of` is the one
place where columns of words about a slide are made, for page, table, text and JSON alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt import __version__, paths
from histocrypt.evaluation import maps
from histocrypt.evaluation.figures import embed
from histocrypt.evaluation.wording import number, plural
from histocrypt.files import atomic_path, write_table, write_text
from histocrypt.pipeline.checkpoints import read_about
from histocrypt.pipeline.folder import (
    FAILED,
    PREDICTED,
    PREDICTION,
    REFUSED,
    Outcome,
    Settings,
    Task,
    brief,
    duration,
    predict_slides,
)
from histocrypt.pipeline.listing import Slide, slides_at
from histocrypt.pipeline.predictions import PredictionFile
from histocrypt.spatial import spot_pitch
from histocrypt.trust import genes as trust
from histocrypt.trust.gate import WORDS

GENES_DRAWN = 3
SIDE = 260
"""Pixels of the longer side of a picture."""
FADED = 0.55
"""How much of the tissue is seen below a gene."""
JPEG_QUALITY = 82
SHORT = 240
"""Characters of words that are all shown; of longer ones a click shows the rest."""
EMBEDDED = 300
"""Slides whose pictures the page holds itself, at some 40 kB each; of more it shows the files beside it."""
NOT_JUDGED = "not judged"
MARKS = {WORDS[0]: "\N{CHECK MARK}", WORDS[1]: "!", WORDS[-1]: "\N{MULTIPLICATION X}", NOT_JUDGED: "?"}
"""Before each verdict, so that it is told without its colour; in the order of a sorted column."""
KINDS = {"grid": "on a grid", "spots": "spots", "patches": "patches"}
MADE = "made by histocrypt predict"
PAGE, TABLE = "summary.html", "summary.csv"


def predict_folder(
    path: str | Path,
    output: Path,
    *,
    model: Path | None = None,
    settings: Settings,
    cores: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    run: Callable[[list[Task]], Mapping[str, str]] | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Predict every slide of a folder or a list, and write the summary; return what came of it, and what it says.

    Parameters
    ----------
    path
        See `pipeline.listing.slides_at`.
    output, model, settings, cores, overwrite, say, run
        See `pipeline.folder.predict_slides`.

    Raises
    ------
    InputError
        If nothing can be tried.
    """
    about = read_about(paths.shipped_model() if model is None else model)
    listing = slides_at(path, but=[output])
    genes, chosen = genes_drawn(about)
    how = {"model": model, "settings": settings, "cores": cores, "overwrite": overwrite, "say": say, "run": run}
    draws = {"then": partial(draw_slide, genes=genes), "otherwise": draw_tissue}
    outcome = predict_slides(listing.slides, output, **how, **draws)
    summary = summarised(outcome, about, chosen, source=str(path), left_out=listing.left_out, shipped=model is None)
    write_summary(output, summary)
    return outcome, summary


def words_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Return what is said of one slide in words, by the heading of its column; the same headings for all slides.

    Parameters
    ----------
    state
        Its ``state.json``; beside it, in ``OUT/<id>/``, lies its prediction. What a word needs of pixels or values is
        to be put there by the slide's own process, see ``then`` of `pipeline.folder.predict_slides`.
    """
    problem, judged = state.get("problem"), state.get("slide")
    word, why = ("", []) if judged is None else (judged["verdict"], judged["why"])
    if judged is None and state["status"] == PREDICTED:
        word = NOT_JUDGED
    notes = [note for note in state.get("notes", ()) if not (why and note.endswith("; ".join(why)))]  # said beside
    said = [*why, *([state.get("short") or problem] if problem else notes)]
    return {"May it be used": word, "Notes": " ".join(map(_sentence, said))}


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


# Pictures, in the process of a slide.


def genes_drawn(about: Mapping[str, Any], count: int = GENES_DRAWN) -> tuple[list[str], str]:
    """Return the ids of the genes to draw, the same for all slides of a model, and by which rule they were chosen."""
    import pandas as pd

    genes, main, said = list(about["panel"]["genes"]), about["transforms"][0], about.get("predictability")
    told = trust.columns(said, main, genes) if said else {}
    var = pd.DataFrame({f"{name}:{main}": values for name, values in told.items()}, index=genes)
    if (order := trust.ranked(var, main)) is None:
        return genes[:count], "the first of the model’s panel, as it does not tell which it predicts well"
    values, worth = ", ".join(f"{told[trust.TOLD][one]:.2f}" for one in order[:count]), trust.trusted(var, main)
    rule = f"those that correlate best on training patients left out ({values})"
    rule += "" if worth is None else f", of the {int(worth.sum())} that are trusted of {len(genes)}"
    return [genes[one] for one in order[:count]], rule


def draw_slide(folder: Path, *, genes: list[str]) -> dict[str, Any]:
    """Write a slide's pictures, the tissue and every gene over it; return what its state says of them."""
    file = PredictionFile(folder / PREDICTION)
    adata = file.of(file.sections[0])
    about, coords = adata.uns["prediction"], np.asarray(adata.obsm["spatial"], dtype=np.float64)
    layer, (image, scale) = adata.layers[str(about["transform"])], maps.picture(about)
    spacing = spot_pitch(coords)
    low, high = maps.window(coords, spacing)
    ground = _ground(image, scale, low, high)
    per_px = ground.shape[1] / (high[0] - low[0])
    names, shown = dict(zip(adata.var_names, file.symbols, strict=True)), []
    worth = file.trusted(str(about["transform"]))
    if image is not None:
        _save(folder / "tissue.jpg", ground)
    for place, gene in enumerate(one for one in genes if one in names):
        values = np.asarray(layer[:, adata.var_names.get_loc(gene)], dtype=np.float64)
        least, most = np.quantile(values, [0.02, 0.98])
        drawn = _over(ground, (coords - low) * per_px, values, (least, most), maps.TOUCHING * spacing * per_px)
        _save(folder / f"gene_{place}.jpg", drawn)
        said = {"low": float(least), "high": float(most), "trusted": None if worth is None else bool(worth[gene])}
        shown.append({"symbol": names[gene], "file": f"gene_{place}.jpg", **said})
    known = "places" not in about
    return {
        "files": [*(["tissue.jpg"] if image is not None else []), *(gene["file"] for gene in shown)],
        "tissue": "tissue.jpg" if image is not None else None,
        "drawn": shown,
        "width_mm": round(float(high[0] - low[0]) * float(about["um_per_px"]) / 1000, 2) if known else None,
    }


def draw_tissue(slide: Slide, folder: Path) -> dict[str, Any]:
    """Write the picture of a slide that is not predicted, where one can be opened; return what its state says of it."""
    from histocrypt.sections.image import is_image, open_image
    from histocrypt.sections.read import read_path

    (folder / "tissue.jpg").unlink(missing_ok=True)
    if is_image(Path(slide.path)):
        image = open_image(slide.path)
    else:
        image = read_path(Path(slide.path), image=slide.image, um_per_px=slide.um_per_px, for_prediction=True).image
    if image is None:
        return {}
    _save(folder / "tissue.jpg", image.thumbnail(2 * SIDE)[0])
    return {"tissue": "tissue.jpg"}


def _ground(image: np.ndarray | None, scale: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the part of a picture between two corners, in full-resolution pixels, twice `SIDE` long; white beyond."""
    from PIL import Image

    extent = high - low
    size = tuple(max(1, round(2 * SIDE * float(value / extent.max()))) for value in extent)
    if image is None:
        return np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    box = (low[0] * scale, low[1] * scale, high[0] * scale, high[1] * scale)
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": (255, 255, 255)}
    reduced = Image.fromarray(image)
    if (step := int((box[2] - box[0]) / size[0])) > 1:
        reduced, box = reduced.reduce(step), tuple(value / step for value in box)
    steps = ((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    moved = (steps[0], 0, box[0], 0, steps[1], box[1])
    return np.asarray(reduced.transform(size, Image.Transform.AFFINE, moved, **how))


def _over(
    ground: np.ndarray, places: np.ndarray, values: np.ndarray, limits: tuple[float, float], diameter: float
) -> np.ndarray:
    """Return a faded picture with (n,) values as discs at (n, 2) places."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw

    faded = (255 - (255 - ground.astype(np.float32)) * FADED).astype(np.uint8)
    picture, radius = Image.fromarray(faded), max(0.5, diameter / 2)
    spread = max(limits[1] - limits[0], 1e-12)
    colours = mpl.colormaps[maps.VALUES](np.clip((values - limits[0]) / spread, 0, 1), bytes=True)[:, :3]
    pen = ImageDraw.Draw(picture)
    for (x, y), colour in zip(places.tolist(), colours.tolist(), strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    return np.asarray(picture)


def _save(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    image = Image.fromarray(picture)
    with atomic_path(path) as temporary:
        image.resize((image.width // 2 or 1, image.height // 2 or 1)).save(temporary, quality=JPEG_QUALITY)


# The summary.


def summarised(
    outcome: Outcome,
    about: Mapping[str, Any],
    chosen: str,
    *,
    source: str,
    left_out: Mapping[str, str],
    shipped: bool,
) -> dict[str, Any]:
    """Return what page, table, text and JSON say: of the model, of all slides, and a row a slide."""
    from histocrypt.pipeline.predict import shipped_words

    rows = [
        {
            "id": state["id"],
            "path": state["path"],
            "status": state["status"],
            "kept": state["kept"],
            "problem": state.get("problem", ""),
            "brief": "" if state["status"] == PREDICTED else brief(state),
            **{name: state.get(name) for name in ("patient", "laboratory", "spots", "genes", "kind", "spacing_um")},
            **{name: state.get(name) for name in ("um_per_px", "um_per_px_source", "seconds", "peak_gib")},
            "verdict": (state.get("slide") or {}).get("verdict"),
            "notes": state.get("notes", []),
            "words": words_of(state),
            "prediction": f"{state['id']}/{PREDICTION}" if state["status"] == PREDICTED else None,
            **{name: state.get(name) for name in ("tissue", "drawn", "width_mm")},
        }
        for state in outcome.slides
    ]
    return {
        "source": source,
        "model": about.get("title", about["model"]),
        "weights_sha256": about["weights"]["sha256"],
        "histocrypt": __version__,
        **{status: len(outcome.ended(status)) for status in (PREDICTED, REFUSED, FAILED)},
        "kept": sum(row["kept"] for row in rows),
        "seconds": round(outcome.seconds, 1),
        "genes_drawn": chosen,
        "unit": maps.UNITS.get(about["transforms"][0], about["transforms"][0]),
        "said": [shipped_words(about)] if shipped else [],
        "left_out": dict(left_out),
        "slides": rows,
    }


def write_summary(output: Path, summary: Mapping[str, Any]) -> None:
    """Write the page and the table of a summary into its folder."""
    import pandas as pd
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=number, plural=plural, duration=duration)
    rows, inside = summary["slides"], len(summary["slides"]) <= EMBEDDED

    def address(row: Mapping[str, Any], name: str) -> str:
        return embed(output / row["id"] / name) if inside else f"{row['id']}/{name}"

    words = list(dict.fromkeys(title for row in rows for title in row["words"]))
    columns = [("Slide", "l"), ("Tissue and genes", "l picture"), ("State", "l"), ("Points", ""), ("µm/px", "")]
    columns += [*((title, "l") for title in words), ("Seconds", ""), ("GiB", "")]
    rows = [{**row, "shown": _below(row["path"], summary["source"])} for row in rows]
    css = Markup((here / "report.css").read_text(encoding="utf-8"))
    page = environment.get_template("slides.html").render(
        css=css,
        made=MADE,
        kinds=KINDS,
        short=SHORT,
        wbr=Markup("<wbr>"),
        judged=[title for title in words if any(row["words"].get(title) in MARKS for row in rows)],
        marks=MARKS,
        ranks=list(MARKS),
        counted=counted(summary),
        address=address,
        inside=inside,
        columns=columns,
        **{**summary, "slides": rows},
    )
    plain = ("shown", "words", "brief", "verdict", "notes", "drawn", "tissue", "width_mm")
    table = [{name: value for name, value in row.items() if name not in plain} | row["words"] for row in rows]
    write_table(output / TABLE, pd.DataFrame(table), index=False)
    write_text(output / PAGE, page)


def counted(summary: Mapping[str, Any]) -> str:
    """Return how many slides ended how, e.g. ``17 predicted, 2 refused, 1 failed``."""
    shown = (status for status in (PREDICTED, REFUSED, FAILED) if summary[status] or status != REFUSED)
    return ", ".join(f"{summary[status]} {status}" for status in shown)


def _below(path: str, source: str) -> str:
    """Return a path as it lies below the folder that was searched, or that the list lies in, where it does."""
    own, folder = Path(path).absolute(), Path(source).absolute()
    folder = folder if folder.is_dir() else folder.parent
    return own.relative_to(folder).as_posix() if own.is_relative_to(folder) and own != folder else path


def render(summary: Mapping[str, Any], output: Path) -> str:
    """Return the summary as aligned plain text, a line per slide."""
    lines = [("slide", "points", "µm/px", "s", "GiB", "")]
    for row in summary["slides"]:
        um, cells = row["um_per_px"], [row["spots"], row["seconds"], row["peak_gib"]]
        points, seconds, memory = ("-" if value is None else str(value) for value in cells)
        ended = (
            row["brief"]
            if row["status"] != PREDICTED
            else f"{'kept' if row['kept'] else 'predicted'}"
            + (f", {row['verdict']}" if row["verdict"] not in (None, WORDS[0]) else "")
            + (f", {plural(len(row['notes']), 'note')}" if row["notes"] else "")
        )
        lines.append((row["id"], points, "-" if um is None else f"{um:.4g}", seconds, memory, ended))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    table = ["  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]]) for line in lines]
    counts = f"{plural(len(summary['slides']), 'slide')}: {counted(summary)}"
    out = f"; {plural(len(summary['left_out']), 'path')} left out" if summary["left_out"] else ""
    return "\n".join([*(line.rstrip() for line in table), f"{counts}{out}. {output / PAGE}"])
