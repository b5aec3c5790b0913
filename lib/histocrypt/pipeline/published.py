"""A ResNet-18 that others published, as a model of a run: weights by torchvision's names, genes by identifier.

A state dict says neither which gene an output is nor how pixels were scaled; published runs keep that in files of their
own: a list of genes, a mean for each, the mean and deviation of pixels. Lists that were made from different samples are
joined by identifier, never by place: the reference's own list and means have 6,216 and 6,153 entries, and joined by
place they choose 13 of 250 genes right.

What is read of a ``.pth`` file are tensors alone (``torch.load(weights_only=True)``): a pickle with code is refused.
"""

from __future__ import annotations

import csv
import hashlib
import pickle
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import claim, refuse_pipe
from histocrypt.sections.genes import GeneNames, meant_by
from histocrypt.targets.panels import Panel, read_gene_list
from histocrypt.targets.transforms import TRANSFORMS, TargetStatistics, output_names

if TYPE_CHECKING:
    import torch

    from histocrypt.data.folds import Fold
    from histocrypt.study import Study

MODEL = "resnet18"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts keep the state dict, among other things."""
PREFIXES = ("module.", "network.", "model.")
"""What wrappers of networks put before every name."""
COUNTER = "num_batches_tracked"
"""Of batch norms: not needed to predict, and missing in files of older versions."""
SHOWN = 3


@dataclass(frozen=True)
class Published:
    """A state dict and what its outputs are."""

    state: dict[str, torch.Tensor]
    """By torchvision's names."""
    genes: tuple[str, ...]
    """Of the outputs, in their order."""
    mean: np.ndarray
    """(outputs,) what is added to an output that was multiplied by ``sd``: it is then in the transform's units."""
    sd: np.ndarray
    pixel_moments: np.ndarray
    """(2, 3) float32: mean and deviation of pixels from 0 to 1, red, green, blue."""


def read_state_dict(file: str | Path) -> dict[str, torch.Tensor]:
    """Read a ResNet-18's weights, wrapped or not, under torchvision's names.

    Parameters
    ----------
    file
        What ``torch.save`` wrote: a state dict, or a dictionary with one; ``module.`` before names is left out.

    Raises
    ------
    InputError
        If it holds code or is damaged, lacks weights, has others, or some of another shape or without a value.
    """
    import torch

    file = Path(file)
    refuse_pipe(file)
    wanted = "a state dict as torch.save writes it"
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or 'damaged'})", file=file, expected=wanted) from error
    except pickle.UnpicklingError as error:
        problem = "is not a file of weights alone: its other content would run as code and is not read"
        fix = "ask for the state dict alone: torch.save(network.state_dict(), FILE)"
        raise InputError(problem, file=file, field="pickle", expected=wanted, fix=fix) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError("is not a file of weights, or is truncated", file=file, expected=wanted) from error
    while isinstance(found, dict) and (inside := [key for key in WRAPPERS if isinstance(found.get(key), dict)]):
        found = found[inside[0]]
    if not isinstance(found, dict) or not found or not all(torch.is_tensor(value) for value in found.values()):
        raise InputError("holds no state dict", file=file, field="state dict", expected=wanted)
    state = {str(key): value for key, value in found.items()}
    while prefix := next((one for one in PREFIXES if all(key.startswith(one) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return _checked(state, file)


def _checked(state: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return the weights as float32 after comparing them with a ResNet-18 of as many outputs."""
    import torch

    from histocrypt.models.resnet18 import ResNet18

    head = state.get("fc.weight")
    outputs = head.shape[0] if head is not None and head.ndim == 2 and head.shape[0] else 1
    wanted = ResNet18(outputs).network.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    unknown = [key for key in state if key not in wanted]
    for names, problem in ((missing, "lacks weights of a ResNet-18"), (unknown, "has weights that a ResNet-18 lacks")):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            value = ", ".join(names[:SHOWN]) + more
            raise InputError(problem, file=file, field="state dict", value=value, expected="torchvision's names")
    for key, value in state.items():
        shape, expected = tuple(value.shape), tuple(wanted[key].shape)
        if shape != expected:
            raise InputError("has another shape", file=file, field=key, value=str(shape), expected=str(expected))
        if not key.endswith(COUNTER) and not bool(torch.isfinite(value).all()):
            raise InputError("holds values that are not numbers", file=file, field=key)
    return {key: value if key.endswith(COUNTER) else value.float() for key, value in state.items()}


def read_means(file: str | Path, genes: list[str]) -> dict[str, float]:
    """Read the mean expression of genes: ``gene,mean`` lines, or numbers alone in the order of ``genes``.

    Raises
    ------
    InputError
        If it has numbers without names and not as many as genes, a gene twice, or a value that is no number.
    """
    rows = _rows(file)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(genes):
            problem = "has numbers without gene names, and not one per gene"
            fix = "give lines with the gene's identifier and its mean"
            raise InputError(problem, file=file, field="genes", value=len(rows), expected=str(len(genes)), fix=fix)
        rows = [[gene, *row] for gene, row in zip(genes, rows, strict=True)]
    named = {row[0]: _number(row[1] if len(row) > 1 else "", file, row[0]) for row in rows}
    if len(named) != len(rows):
        twice = Counter(row[0] for row in rows).most_common(1)[0][0]
        raise InputError("lists a gene twice", file=file, field="genes", value=twice)
    return named


def _rows(file: str | Path) -> list[list[str]]:
    """Return the cells of a text file with commas or tabs, or of a vector in ``.npy``, without a line of titles."""
    file = Path(file)
    refuse_pipe(file)
    try:
        if file.suffix == ".npy":
            return [[repr(float(value))] for value in np.load(file, allow_pickle=False).reshape(-1)]
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError("cannot be read as numbers of genes", file=file, expected="gene,mean lines") from error
    cells = csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",")
    rows = [[cell.strip() for cell in row] for row in cells if any(cell.strip() for cell in row)]
    if not rows:
        raise InputError("is empty", file=file, expected="gene,mean lines")
    return rows[1:] if not _is_number(rows[0][-1]) else rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, file: str | Path, field: str) -> float:
    value = float(text) if _is_number(text) else np.nan
    if not np.isfinite(value):
        raise InputError("is not a number", file=file, field=field, value=text)
    return value


def read_pixel_moments(file: str | Path) -> np.ndarray:
    """Read mean and deviation of pixels: ``type,value`` lines, three ``image_mean`` and three ``image_std``.

    Returns
    -------
    (2, 3) float32

    Raises
    ------
    InputError
        If there are not three of each, or pixels of that mean and deviation cannot lie between 0 and 1.
    """
    rows = _rows(file)
    moments = []
    for name in ("image_mean", "image_std"):
        values = [_number(row[-1], file, name) for row in rows if row[0] == name]
        if len(values) != 3 or not all(0 < value < 1 for value in values):
            wanted = f"three lines {name},VALUE with values between 0 and 1, red, green, blue"
            raise InputError("does not give them", file=file, field=name, value=values, expected=wanted)
        moments.append(values)
    return np.array(moments, dtype=np.float32)


def read_output_statistics(file: str | Path, genes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read mean and deviation of what the network learnt, ``gene,mean,sd`` lines; return those of ``genes``."""
    named = {row[0]: row for row in _rows(file)}
    absent = [gene for gene in genes if len(named.get(gene, ())) != 3]
    if absent:
        problem, wanted = f"lacks {len(absent)} genes of the outputs", "gene,mean,sd lines"
        raise InputError(problem, file=file, field="genes", value=absent[0], expected=wanted)
    mean, sd = (np.array([_number(named[gene][column], file, gene) for gene in genes]) for column in (1, 2))
    if (sd <= 0).any():
        raise InputError("has a deviation that is not positive", file=file, field=genes[int(np.argmin(sd))])
    return mean, sd


def chosen_genes(genes: list[str], means: dict[str, float] | None, outputs: int, *, file: str | Path) -> list[str]:
    """Return which gene each output is: all of a list as long, else those with the highest means, in the list's order.

    Parameters
    ----------
    genes
        The published list.
    means
        Mean expression by gene; genes without one cannot have been chosen.
    outputs
        Of the network.
    file
        The list, for errors.

    Raises
    ------
    InputError
        If a gene is listed twice, or there are too few, or too many and no means to choose by.
    """
    twice = [gene for gene, times in Counter(genes).items() if times > 1]
    if twice:
        raise InputError("lists a gene twice", file=file, field="genes", value=twice[0])
    counts = {"value": len(genes), "expected": str(outputs)}
    if len(genes) == outputs:
        return genes
    if means is None:
        problem, fix = "must have one gene per output", "give the genes' means, by which they were chosen"
        raise InputError(problem, file=file, field="genes", **counts, fix=fix)
    known = [gene for gene in genes if gene in means]
    if len(known) < outputs:
        counts["value"] = len(known)
        raise InputError("has fewer genes with a mean than the network has outputs", file=file, field="genes", **counts)
    highest = set(sorted(known, key=lambda gene: -means[gene])[:outputs])
    return [gene for gene in genes if gene in highest]


def read_published(
    weights: str | Path,
    *,
    genes: str | Path,
    statistics: str | Path,
    means: str | Path | None = None,
    output_statistics: str | Path | None = None,
) -> Published:
    """Read a published network and what goes with it; see `import_weights`."""
    state, listed = read_state_dict(weights), read_gene_list(genes)
    by_gene = None if means is None else read_means(means, listed)
    outputs = len(state["fc.bias"])
    chosen = tuple(chosen_genes(listed, by_gene, outputs, file=genes))
    mean, sd = np.zeros(outputs), np.ones(outputs)
    if output_statistics is not None:
        mean, sd = read_output_statistics(output_statistics, chosen)
    return Published(state, chosen, mean, sd, read_pixel_moments(statistics))


def as_outputs(published: Published, panel: Panel, scaling: TargetStatistics, transform: str) -> Published | None:
    """Return the same network with a fold's outputs: in its order, and scaled as it scales them.

    Then it stands where a network trained on that fold would, and can teach another one. None where the fold predicts
    other genes, or other transforms than the network's one.
    """
    import torch

    meant = meant_by(published.genes, GeneNames.of(panel.genes, panel.symbols))
    if sorted(meant.tolist()) != list(range(len(scaling.outputs))) or scaling.outputs != output_names(
        (transform,), panel.genes
    ):
        return None
    order = np.argsort(meant)
    mean, sd = published.mean[order], published.sd[order]
    factor = sd / scaling.sd
    weight, bias = (published.state[f"fc.{name}"].double().numpy()[order] for name in ("weight", "bias"))
    head = {
        "fc.weight": torch.tensor(weight * factor[:, None], dtype=torch.float32),
        "fc.bias": torch.tensor((bias * sd + mean - scaling.mean) / scaling.sd, dtype=torch.float32),
    }
    return Published(
        {**published.state, **head}, panel.genes, scaling.mean, scaling.sd.astype(float), published.pixel_moments
    )


def import_weights(
    weights: str | Path,
    study: Study,
    *,
    genes: str | Path,
    statistics: str | Path,
    means: str | Path | None = None,
    output_statistics: str | Path | None = None,
    transform: str = "log1p",
    fold: str = "final",
    average_pool: bool = True,
    overwrite: bool = False,
) -> str:
    """Make a published ResNet-18 a model of a study, ``imported/resnet18/<fold>`` in its run folder.

    The study says how tiles are cut and stained; its training sections of the fold are what `histocrypt fhe compile`
    finds ranges on. Where the fold predicts the very genes of the network, in the network's transform alone, the model
    takes the place of the study's own ``resnet18`` of that fold: ``30_training`` takes it in place of training, and
    ``fhe_resnet18`` with ``teacher: resnet18`` and ``replace_over`` turns its ReLUs into squares.

    Parameters
    ----------
    weights
        The state dict, see `read_state_dict`.
    study
        After ``20_preprocessing``.
    genes, means
        The published gene list, and the mean expression by which the outputs' genes were chosen from it; see
        `chosen_genes`.
    statistics
        Mean and deviation of pixels, see `read_pixel_moments`.
    output_statistics
        Mean and deviation of each output's target where the network learnt standardised ones.
    transform
        What the outputs are of counts, a name in `targets.transforms.TRANSFORMS`.
    fold
        Whose training sections go with it.
    average_pool
        Whether the network pools by averages (privateST) or by maxima (torchvision's own), which a state dict does not
        say.
    overwrite
        Replace another imported model.

    Raises
    ------
    InputError
        If a file does not hold what it should; its field says which.
    """
    from histocrypt.data.fold_statistics import PANEL, TARGETS
    from histocrypt.data.folds import load_fold
    from histocrypt.pipeline.checkpoints import made_from, save_model

    if transform not in TRANSFORMS:
        raise unknown_name("transform", transform, TRANSFORMS, field="--transform")
    read = {"genes": genes, "statistics": statistics, "means": means, "output_statistics": output_statistics}
    published, split = read_published(weights, **read), load_fold(study.run.folds, fold)
    folder, own = study.run.imported(MODEL, fold), study.run.fold(fold)
    inputs = [weights, *(file for file in read.values() if file is not None)]
    for name in ("model.json", "weights.safetensors"):
        claim(folder / name, inputs=inputs, mine=None, overwrite=overwrite)
    panel, scaling = Panel.load(own / PANEL), TargetStatistics.load(own / TARGETS)
    joined = as_outputs(published, panel, scaling, transform)
    if joined is None:
        published_outputs = output_names((transform,), published.genes)
        panel = Panel(published.genes, published.genes, "published")
        scaling = TargetStatistics(
            published_outputs, published.mean.astype(np.float32), published.sd.astype(np.float32)
        )
    used = joined or published
    plain = {"normalise_by_section": False, "augment_stain": 0.0, "seeds": 1, "smooth_um": 0}
    settings = study.training_of(MODEL).model_copy(update=plain)
    about = _about(study, split, panel, scaling, settings=settings, transform=transform, average_pool=average_pool)
    about["imported"] = {"file": Path(weights).name, "sha256": _sha256(Path(weights))}
    if joined is not None:
        about["made_from"] = made_from(study, MODEL, split)
    state = {f"network.network.{key}": value.numpy() for key, value in used.state.items()}
    state |= {f"network.network.{key}": value for key, value in _counters(used.state).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, about, {**state, "pixel_moments": used.pixel_moments})
    place = (
        f"it takes the place of this study's {MODEL} of {fold} when 30_training runs"
        if joined
        else f"its genes or transform are not those of {fold}, so it predicts and is compiled, and teaches nobody"
    )
    return f"{folder}: {len(panel)} genes as {transform}, {Path(weights).name}; {place}"


def _counters(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the counters that batch norms lack."""
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return {norm + COUNTER: np.array(0) for norm in norms if norm + COUNTER not in state}


def _about(
    study: Study,
    fold: Fold,
    panel: Panel,
    scaling: TargetStatistics,
    *,
    settings: Any,
    transform: str,
    average_pool: bool,
) -> dict[str, Any]:
    """Return what ``model.json`` says: as of a trained model, as far as it can be known."""
    from histocrypt.data.fold_statistics import STAIN
    from histocrypt.files import read_json
    from histocrypt.predictors.registry import MODELS, tile_side

    pre = study.preprocessing
    return {
        "model": MODEL,
        "title": MODELS[MODEL].title,
        "kind": MODELS[MODEL].kind,
        "options": {"average_pool": average_pool},
        "training": settings.model_dump(mode="json"),
        "fold": fold.name,
        "train_sections": list(fold.train_sections),
        "validation_sections": list(fold.validation_sections),
        "test_patients": list(fold.test_patients),
        "transforms": [transform],
        "outputs": list(scaling.outputs),
        "panel": panel.to_dict(),
        "geometry": {
            "tile_um": pre.tile_um,
            "tile_px": pre.tile_px,
            "input_px": tile_side(MODEL, settings) or pre.tile_px,
        },
        "preprocessing": pre.model_dump(mode="json"),
        "stain": {"method": pre.stain, "reference": read_json(study.run.fold(fold.name) / STAIN)},
        "target": study.target.model_dump(mode="json"),
        "target_statistics": scaling.to_dict(),
        "study": {"name": study.name, "title": study.title, "hash": study.hash()},
        "seed": study.seed,
        "chosen": {},
        "validation_pcc": None,
        "versions": {name: version(name) for name in ("histocrypt", "torch", "numpy")},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
