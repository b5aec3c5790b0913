"""Prediction files: spots x panel, every transform a layer; written, read, and joined with what was measured.

Spots and genes are joined by their names, never by position. A fold may hold out many sections: `PredictionFile` reads
one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from histocrypt.errors import InputError, unreadable
from histocrypt.files import atomic_path, regular
from histocrypt.hdf5 import open_h5
from histocrypt.predictors.base import AUXILIARY, TARGET, TUMOUR
from histocrypt.trust import genes

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.data.load import Spots
    from histocrypt.predictors.base import Predictor
    from histocrypt.targets.panels import Panel
    from histocrypt.targets.transforms import TargetStatistics

PROBABILITY = "tumour_probability"
"""Column of ``obs``: what the head `TUMOUR` says."""
MEASURED = "measured"
"""Column of ``obs``, bool: spots whose counts corrected the predictions of the others (`pipeline.measured`)."""
LOOSE = ("new", "encrypted")
"""What ``uns["prediction"]["part"]`` says of predictions that belong to no run."""


@dataclass(frozen=True)
class Joined:
    """One section's spots and genes that are both predicted and measured, in the prediction's order."""

    section: str
    patient: str
    spots: np.ndarray
    """(n,) str, ``"<section>:<barcode>"``."""
    genes: np.ndarray
    """(g,) str."""
    symbols: np.ndarray
    """(g,) str; the gene id where no symbol is known."""
    coords: np.ndarray
    """(n, 2) float64, x and y in full-resolution pixels."""
    true: dict[str, np.ndarray]
    """(n, g) measured values by transform."""
    predicted: dict[str, np.ndarray]
    """(n, g) predicted values by transform."""
    unscored_genes: list[str]
    """Predicted genes that the section did not measure."""
    unpredicted_spots: list[str]
    """Measured spots without a prediction."""
    unmeasured_spots: list[str]
    """Predicted spots that the section file does not have."""
    renamed_genes: int = 0
    """How many genes the section calls differently; they were joined by id or symbol."""
    used_spots: int = 0
    """Spots left out, as their counts corrected the predictions: they are no test."""


def write_predictions(
    path: Path,
    predicted: np.ndarray,
    *,
    spots: Spots,
    coords: np.ndarray,
    panel: Panel,
    transforms: list[str],
    about: dict[str, Any],
    scaling: TargetStatistics | None = None,
    extra: Callable[[AnnData], None] | None = None,
    trust: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions as ``.h5ad``, atomically.

    Parameters
    ----------
    predicted
        (n, len(transforms) * genes) in the transforms' units, columns as ``spots.outputs`` names them.
    spots
        Whose predictions these are.
    coords
        (n, 2) x, y in full-resolution pixels.
    panel
        The genes.
    transforms
        The first is the main one and becomes ``X``.
    about
        Becomes ``uns["prediction"]``.
    scaling
        Statistics of the training targets. Of a named matrix, the training mean of each column is kept as
        ``var["training_mean:<transform>"]``: scores within a spot say little without the mean composition beside them.
    extra
        Adds whatever else a model predicts, just before the file is written.
    trust
        What ``model.json`` says of how well each output is predicted on training sections left out (see
        `predictors.predictability`): kept in ``var`` (`trust.genes.columns`), and in ``uns["prediction"]`` what was
        left out at a time, of how many patients, and what intervals promise.
    """
    import pandas as pd

    column = {name: index for index, name in enumerate(spots.outputs)}
    layers = {
        transform: np.ascontiguousarray(predicted[:, [column[f"{transform}:{gene}"] for gene in panel.genes]])
        for transform in transforms
    }
    var = pd.DataFrame({"symbol": list(panel.symbols)}, index=pd.Index(list(panel.genes), name="gene_id"))
    if panel.matrix is not None and scaling is not None and np.any(scaling.mean):  # not so without any standardisation
        mean = dict(zip(scaling.outputs, scaling.mean.tolist(), strict=True))
        for transform in transforms:
            var[f"training_mean:{transform}"] = [mean[f"{transform}:{gene}"] for gene in panel.genes]
    if trust:
        for transform in transforms:
            for column, values in genes.columns(trust, transform, panel.genes).items():
                var[f"{column}:{transform}"] = values
        said = {name: trust[name] for name in ("by", "patients", "sections")}
        about = {**about, "predictability": {**said, "interval": genes.promise(trust)}}
    adata = AnnData(X=layers[transforms[0]].copy(), obs=_obs_of(spots), var=var, layers=layers)
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    about = about if panel.matrix is None else {**about, "matrix": panel.matrix}
    adata.uns["prediction"] = {**about, "transform": transforms[0], "transforms": np.array(transforms, dtype=str)}
    if extra is not None:
        extra(adata)
    write_h5ad(path, adata)


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write an AnnData as ``.h5ad`` with gzip, atomically."""
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def _obs_of(spots: Spots) -> pd.DataFrame:
    import pandas as pd

    pairs = zip(spots.names.tolist(), spots.sections.tolist(), strict=True)
    barcodes = [name.removeprefix(f"{section}:") for name, section in pairs]
    return pd.DataFrame(
        {"section": spots.sections.astype(str), "patient": spots.patients.astype(str), "barcode": barcodes},
        index=pd.Index(spots.names.astype(str), name="spot"),
    )


def write_heads(path: Path, predictor: Predictor, spots: Spots, *, coords: np.ndarray, about: dict[str, Any]) -> None:
    """Write ``X`` (spots x every other gene, ln(1 + counts per 10,000)) and ``obs["tumour_probability"]``, atomically.

    Parameters
    ----------
    predictor
        Fitted, with heads.
    spots
        Whole sections.
    coords
        (n, 2) x, y in full-resolution pixels.
    about
        Becomes ``uns["prediction"]``, with what is said of the label.
    """
    import pandas as pd

    heads = predictor.predict_heads(spots)
    var = pd.DataFrame(
        {"symbol": list(predictor.genes.values()), "head": AUXILIARY},
        index=pd.Index(list(predictor.genes), name="gene_id", dtype=object),
    )
    adata = AnnData(X=heads.get(AUXILIARY, np.zeros((len(spots), 0), np.float32)), obs=_obs_of(spots), var=var)
    if TUMOUR in heads:
        adata.obs[PROBABILITY] = heads[TUMOUR][:, 0]
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    label = predictor.label_words()
    adata.uns["prediction"] = {**about, "transform": "log1p_cp10k", **({"label": label} if label else {})}
    write_h5ad(path, adata)


def add_heads(adata: AnnData, heads: dict[str, np.ndarray], predictor: Predictor) -> None:
    """Put every head into one prediction of the panel: other genes in ``obsm``, the probability in ``obs``.

    ``obsm["auxiliary"]`` is (n, g) in ln(1 + counts per 10,000), its columns named in ``uns["auxiliary_names"]`` and
    ``uns["auxiliary_symbols"]``. What reads ordinary predictions sees the panel alone.
    """
    adata.var["head"] = TARGET
    if AUXILIARY in heads:
        adata.obsm[AUXILIARY] = heads[AUXILIARY]
        adata.uns[f"{AUXILIARY}_names"] = np.array(list(predictor.genes), dtype=str)
        adata.uns[f"{AUXILIARY}_symbols"] = np.array(list(predictor.genes.values()), dtype=str)
    if TUMOUR in heads:
        adata.obs[PROBABILITY] = heads[TUMOUR][:, 0]
        adata.uns["prediction"] = {**adata.uns["prediction"], "label": predictor.label_words()}


def is_loose_prediction(path: Path) -> bool:
    """Return whether a file is what ``predict``, ``fhe decrypt`` or ``fhe send`` wrote: they may replace each other's.

    A run's own predictions are not: other stages rely on them.
    """
    try:
        with open_h5(path) as file:
            return file["uns/prediction/part"].asstr()[()] in LOOSE
    except (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError):
        return False


def some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names and how many more there are: ``"a, b and 3 more"``."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@contextmanager
def h5ad_errors(path: Path, *, what: str, fix: str | None = None) -> Iterator[None]:
    """Turn every way in which a file can be unreadable into an `InputError` that names it."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        unread = unreadable(f"{what} is not readable as .h5ad", error, file=path)
        raise (unread if fix is None else InputError(unread.problem, file=path, fix=fix)) from error


def read_h5ad(path: Path, *, what: str, fix: str | None = None) -> AnnData:
    """Read an AnnData file; a missing or unreadable one is an `InputError` that names it."""
    import anndata as ad

    if fix and not Path(path).exists():
        raise InputError(f"{what} is missing", file=path, fix=fix)
    with h5ad_errors(path, what=what, fix=fix):
        open_h5(
            regular(path, missing=f"{what} is missing"), what=f"{what} is not readable as .h5ad", whole=True
        ).close()
        return ad.read_h5ad(path)


def read_prediction(path: Path, *, fix: str | None = None) -> AnnData:
    """Read a prediction file.

    Raises
    ------
    InputError
        If it is missing, is not a prediction, names a spot or gene twice, lacks a transform, or holds a NaN.
    """
    prediction = read_h5ad(path, what="prediction file", fix=fix)
    check_prediction(prediction, path)
    return prediction


def check_prediction(prediction: AnnData, path: Path, unread: Collection[str] = ()) -> None:
    """Refuse what is no prediction, as `read_prediction` says; layers named in ``unread`` are not looked at."""
    about = prediction.uns.get("prediction")
    if not isinstance(about, Mapping) or "transforms" not in about:
        msg = "this is not a prediction file"
        expected = "a file written by `histocrypt predict` or by a run, under predictions/"
        raise InputError(msg, file=path, field='uns["prediction"]', expected=expected)
    for axis, names in (("obs", prediction.obs_names), ("var", prediction.var_names)):
        if not names.is_unique:
            raise InputError(f"names occur twice: {some(names[names.duplicated()])}", file=path, field=axis)
    for column in ("section", "barcode"):
        if column not in prediction.obs:
            raise InputError("a column that every prediction has is missing", file=path, field=f'obs["{column}"]')
    for transform in transforms_of(prediction):
        if transform in unread:
            continue
        if transform not in prediction.layers:
            raise InputError(
                f"values of the transform {transform!r} are missing",
                file=path,
                field="layers",
                expected=f"a layer named {transform}",
            )
        finite = np.isfinite(np.asarray(prediction.layers[transform])).all(axis=0)
        if not finite.all():
            raise InputError(
                f"predictions are not finite for {some(prediction.var_names[~finite])}",
                file=path,
                field=f'layers["{transform}"]',
            )


SUFFIX = r"[-_.]\d{1,3}$"
"""What programs add to a barcode: the number of the gel bead lane."""


def transforms_of(prediction: AnnData) -> list[str]:
    """Return the transforms of a prediction, the main one first."""
    return [str(name) for name in np.atleast_1d(prediction.uns["prediction"]["transforms"])]


def matrix_of(prediction: AnnData) -> str | None:
    """Return the named matrix that is predicted, e.g. ``obsm:celltype_prop_major``; None for counts."""
    matrix = prediction.uns["prediction"].get("matrix")
    return None if matrix is None else str(matrix)


def symbols_of(annotated: AnnData) -> np.ndarray:
    """Return a readable name for every gene: its symbol, or its id where there is none."""
    ids = annotated.var_names.to_numpy(dtype=str)
    if "symbol" not in annotated.var:
        return ids
    symbols = annotated.var["symbol"].astype(object)
    known = symbols.notna() & (symbols.astype(str).str.strip() != "")
    return np.where(known, symbols.astype(str), ids)


def join(prediction: AnnData, section: AnnData, name: str, *, transforms: Iterable[str] | None = None) -> Joined:
    """Put the predictions of section ``name`` beside its measurements.

    Parameters
    ----------
    prediction
        From `read_prediction`; it may hold several sections.
    section
        Spots x genes, raw counts in ``X`` (or the predicted matrix in ``obsm``), barcodes as ``obs_names``,
        ``obsm["spatial"]`` in full-resolution pixels.
    name
        Section id.
    transforms
        Which to join; all of the prediction's by default.

    Raises
    ------
    InputError
        If no spot or no gene is in both, or ranks within a spot were predicted among names that the section lacks.
    """
    import pandas as pd

    from histocrypt.targets.matrix import columns_of, targets_of

    of_it = prediction.obs["section"].astype(str).to_numpy() == name
    used = of_it & prediction.obs[MEASURED].to_numpy(dtype=bool) if MEASURED in prediction.obs else np.zeros_like(of_it)
    mine, every = np.flatnonzero(of_it & ~used), prediction.obs["barcode"].astype(str).to_numpy()
    barcodes, measured_names = pd.Index(every[mine]), section.obs_names.astype(str)
    rows = measured_names.get_indexer(barcodes)
    found = rows >= 0
    if not found.any():
        if used.any() and measured_names.isin(every[used]).any():
            problem = "every measured spot was used to correct the predictions, so none is left to score"
            fix = "give counts of other spots"
            raise InputError(problem, field=f"obs[{MEASURED!r}]", value=int(used.sum()), fix=fix)
        raise _unjoined(prediction, name, barcodes, measured_names)
    matrix = matrix_of(prediction)
    symbols = symbols_of(prediction)
    columns = columns_of(section, prediction.var_names, symbols, matrix=matrix, section=name)
    measured_gene = columns >= 0
    if 2 * measured_gene.sum() < len(columns):
        _refuse_other_names(prediction, section, name, matrix, found=int(measured_gene.sum()))
    genes = list(prediction.var_names[measured_gene])
    keep_rows, keep_mine = rows[found], mine[found]
    names = transforms_of(prediction) if transforms is None else list(transforms)
    if "spot_rank" in names and not measured_gene.all():
        raise InputError(
            f"section {name!r} lacks {some(prediction.var_names[~measured_gene])}",
            field=matrix,
            expected="every predicted cell type, since ranks are among all of them",
        )
    patient = section.obs["patient"].iloc[0] if "patient" in section.obs else ""
    return Joined(
        section=name,
        patient=str(patient),
        spots=np.array([f"{name}:{barcode}" for barcode in barcodes[found]]),
        genes=np.array(genes, dtype=str),
        symbols=symbols[measured_gene],
        coords=np.asarray(section.obsm["spatial"], dtype=np.float64)[keep_rows],
        true={
            transform: values.astype(np.float64)
            for transform, values in targets_of(
                section, genes, names, matrix=matrix, section=name, rows=keep_rows, symbols=symbols[measured_gene]
            ).items()
        },
        predicted={t: np.asarray(prediction.layers[t][keep_mine][:, measured_gene], dtype=np.float64) for t in names},
        unscored_genes=list(prediction.var_names[~measured_gene]),
        unpredicted_spots=list(section.obs_names[~measured_names.isin(every[of_it])]),
        unmeasured_spots=list(barcodes[~found]),
        used_spots=int(used.sum()),
        renamed_genes=0 if matrix is not None else int((section.var_names[columns[measured_gene]] != genes).sum()),
    )


def _unjoined(prediction: AnnData, name: str, predicted: pd.Index, measured: pd.Index) -> InputError:
    """Return why no spot of a section is predicted: it goes by another name, its barcodes do, or squares differ."""
    from histocrypt.sections.resolution import bin_size

    if not len(predicted):
        there = sorted(set(prediction.obs["section"].astype(str)))
        return InputError(
            f"no spot of section {name!r} is predicted; the prediction holds {some(there)}",
            field="obs['section']",
            value=there[0] if there else None,
            expected=f"{name!r}",
            fix="if it has one of these names there, add --section NAME",
        )
    ours, its = bin_size(predicted), bin_size(measured)
    if ours and its and ours != its:
        return InputError(
            f"section {name!r} was predicted in squares of {ours:g} um and is measured in squares of {its:g} um",
            field="obs['barcode']",
            value=str(predicted[0]),
            expected=f"as in the section, such as {str(measured[0])!r}",
            fix=f"add --bin-um {ours:g} if it is a run of Visium HD or Xenium",
        )
    plain, its = (names.str.replace(SUFFIX, "", regex=True) for names in (predicted, measured))
    shared = len(set(plain) & set(its))
    say = f"e.g. {predicted[0]!r} in the prediction, {measured[0]!r} in the section"
    if shared:
        return InputError(
            f"barcodes of section {name!r} end differently in the two files: without a suffix such as -1, {shared} of "
            f"{len(predicted)} are alike",
            field="obs['barcode']",
            value=str(predicted[0]),
            expected=f"as in the section, such as {str(measured[0])!r}",
            fix="write the barcodes of the section as in the prediction",
        )
    return InputError(
        f"no barcode of section {name!r} is in both files: {say}",
        field="obs['barcode']",
        value=str(predicted[0]),
        expected="the same barcodes in both",
    )


def _refuse_other_names(prediction: AnnData, section: AnnData, name: str, matrix: str | None, *, found: int) -> None:
    """Refuse names of which none, or few by chance since they are of other kinds, are in a section."""
    from histocrypt.sections.genes import GeneNames, why_apart
    from histocrypt.targets.matrix import names_of, noun

    where = {"field": "var", "expected": f"the same kind of {noun(matrix)} names in both"}
    total = prediction.n_vars
    example = f"predicted are {some(prediction.var_names, 3)}; measured are "
    example += some(names_of(section, matrix, section=name), 3)
    if matrix is None:
        one, two = GeneNames.of(prediction.var), GeneNames.of(section.var)
        said, fix = why_apart(one, "the prediction", two, f"section {name!r}")
        if not found or (one.kind, one.species) != (two.kind, two.species) and found < min(total, section.n_vars) / 2:
            few = f"{found} of {total} predicted genes are" if found else "no predicted gene is"
            raise InputError(f"{few} measured in section {name!r}; {said}", **where, fix=f"{fix} ({example})")
    elif not found:
        raise InputError(f"no predicted {noun(matrix)} is measured in section {name!r}", **where, fix=example)


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a stored record as a dict: the mapping itself, its JSON text, or an empty one where there is none."""
    import json

    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return dict(json.loads(value))
    return {}


class PredictionFile:
    """Names, and where the values lie; values are read when a section is asked for.

    Parameters
    ----------
    path
        An ``.h5ad`` of predictions.
    fix
        What to do where it is missing, for the error.

    Raises
    ------
    InputError
        If it is missing, is not a prediction, names a spot or gene twice, or lacks a transform.
    """

    def __init__(self, path: Path, *, fix: str | None = None) -> None:
        import h5py
        from anndata.io import read_elem

        self.path = path
        if not Path(path).is_file():
            raise InputError("prediction file is missing", file=path, fix=fix)
        with h5ad_errors(path, what="prediction file", fix=fix), h5py.File(path) as file:
            parts = {name: read_elem(file[name]) for name in ("obs", "var", "uns")}
            self._coords = read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else None
            layers = set(file["layers"])
        self._names = AnnData(**parts)
        check_prediction(self._names, path, layers)
        self._sections = self._names.obs["section"].astype(str).to_numpy()

    @property
    def about(self) -> Mapping[str, Any]:
        """What ``uns["prediction"]`` says."""
        return self._names.uns["prediction"]

    @property
    def sections(self) -> list[str]:
        """Their ids, in the order of the file."""
        return list(dict.fromkeys(self._sections.tolist()))

    @property
    def patients(self) -> list[str]:
        """Whose they are, as far as known."""
        return sorted(set(self._names.obs["patient"].astype(str)) - {""}) if "patient" in self._names.obs else []

    @property
    def n_spots(self) -> int:
        """Spots of all sections."""
        return self._names.n_obs

    @property
    def genes(self) -> list[str]:
        """Every predicted gene, or column of a named matrix."""
        return self._names.var_names.tolist()

    @property
    def symbols(self) -> list[str]:
        """What people call them, in the same order."""
        return symbols_of(self._names).tolist()

    def trust(self, transform: str) -> pd.Series | None:
        """Return each gene's correlation on training sections left out, by id; None where the model does not tell."""
        column = f"{genes.TOLD}:{transform}"
        return self._names.var[column].astype(float) if column in self._names.var else None

    @property
    def var(self) -> pd.DataFrame:
        """What the file says of each gene."""
        return self._names.var

    def trusted(self, transform: str) -> pd.Series | None:
        """Return which genes are worth trusting, by id; None where nobody told (`trust.genes.trusted`)."""
        import pandas as pd

        worth = genes.trusted(self._names.var, transform)
        return None if worth is None else pd.Series(worth, index=self._names.var_names)

    def ranked(self, transform: str) -> list[str] | None:
        """Return the genes' ids, trusted first; None where nobody told (`trust.genes.ranked`)."""
        order = genes.ranked(self._names.var, transform)
        return None if order is None else self._names.var_names[order].tolist()

    def trust_words(self, transform: str, gene: str) -> str:
        """Return what is known of a gene, in words; empty where nobody told (`trust.genes.words`)."""
        return genes.words(self._names.var, transform, gene)

    @property
    def trusted_by(self) -> dict[str, Any]:
        """What was left out at a time for it (``by``), and of how many ``patients`` and ``sections``; may be empty."""
        return dict(as_mapping(self._names.uns["prediction"].get("predictability")))

    def of(self, section: str) -> AnnData:
        """Return the predictions of one section, an AnnData of its spots alone.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        import h5py

        rows = np.flatnonzero(self._sections == section)
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        found = self._names[rows].copy()
        with h5ad_errors(self.path, what="prediction file"), h5py.File(self.path) as file:
            for transform in np.atleast_1d(found.uns["prediction"]["transforms"]).tolist():
                found.layers[transform] = file["layers"][transform][first:last][rows - first]
        if self._coords is not None:
            found.obsm["spatial"] = np.asarray(self._coords)[rows]
        check_prediction(found, self.path)
        return found
