"""What a fold may know before training: its panel, its target statistics, its stain reference.

Every file below ``folds/<fold>/`` is made from the files of that fold's training patients alone; the files of its test
patients are not even opened. Files are the same byte for byte when nothing they depend on has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.targets.matrix import names_of, targets_of
from histocrypt.targets.panels import Panel, choose_panel
from histocrypt.targets.transforms import TargetStatistics, output_names
from histocrypt.training.folds import Fold, final_fold, make_folds, save_folds

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study

PANEL, TARGETS, STAIN = "panel.json", "target_stats.json", "stain_reference.json"
"""Names of the files in the folder of a fold."""


def prepare_folds(study: Study, *, sections: list[str] | None = None) -> list[Fold]:
    """Write ``folds.json`` and ``folds/<fold>/`` for every fold of a study, the fold ``final`` among them.

    Parameters
    ----------
    study
        The study, after preprocessing.
    sections
        Section ids; if not given, every section in the run folder.

    Returns
    -------
    list of Fold
        ``final`` is the last.

    Raises
    ------
    InputError
        If there is no preprocessed section, the patients allow no folds, or a panel cannot be chosen.
    """
    from tqdm.auto import tqdm

    run = study.run
    patients = section_patients(study, sections)
    folds = [*make_folds(patients, study.folds, study.seed), final_fold(patients)]
    uncounted = [section for section in patients if not _counted(run.section(section))]
    save_folds(run.folds, folds, patients, scheme=study.folds.scheme, uncounted=uncounted)
    for fold in tqdm(folds, desc="panels and references", unit="fold"):
        prepare_fold(study, fold)
    return folds


def prepare_fold(study: Study, fold: Fold, *, panel: Panel | None = None) -> None:
    """Write one fold's panel, target statistics and stain reference, from its training patients' files alone.

    An inner fold of a stack is given the panel of its outer fold, so that all its models predict the same names.
    """
    from histocrypt.tissue.stain import StainStatistics, pool

    run, folder = study.run, study.run.fold(fold.name)
    training = [read_clean_section(run.section(section)) for section in fold.training_sections]
    file = study.resolve(study.panel.file) if study.panel.file else None
    panel = panel or choose_panel(training, study.panel, file=file, matrix=study.target.matrix)
    panel.save(folder / PANEL)

    outputs = output_names(study.target.transforms, panel.genes)
    targets = np.concatenate(
        [
            section_targets(section, panel, study.target.transforms, section=name)
            for section, name in zip(training, fold.training_sections, strict=True)
        ]
    )
    TargetStatistics.of(targets, outputs).save(folder / TARGETS)
    pool([StainStatistics.load(run.stain(section)) for section in fold.training_sections]).save(folder / STAIN)


def section_patients(study: Study, sections: list[str] | None = None) -> dict[str, str]:
    """Return the patient of every preprocessed section, by section id, reading nothing else of the files."""
    folder = study.run.section("any").parent
    names = sorted(sections) if sections is not None else sorted(path.stem for path in folder.glob("[!.]*.h5ad"))
    if not names:
        msg = "no preprocessed section"
        raise InputError(msg, file=folder, fix="run the preprocessing first")
    return {name: _patient(study.run.section(name)) for name in names}


def _patient(path: Path) -> str:
    import anndata
    import h5py

    try:
        with h5py.File(path, "r") as file:
            patients = anndata.io.read_elem(file["obs"])["patient"].unique()
    except (OSError, KeyError) as error:
        msg = f"is not a preprocessed section ({error})"
        raise InputError(msg, file=path, fix="run the preprocessing again") from error
    if len(patients) != 1:
        msg = "a section belongs to one patient"
        raise InputError(msg, file=path, field="obs['patient']", value=sorted(map(str, patients)))
    return str(patients[0])


def _counted(path: Path) -> bool:
    """Return whether a preprocessed section has counts, reading only their totals."""
    import anndata
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return bool(np.isfinite(anndata.io.read_elem(file["obs/total_counts"]).astype(float)).all())
    except (OSError, KeyError) as error:
        msg = f"is not a preprocessed section ({error})"
        raise InputError(msg, file=path, fix="run the preprocessing again") from error


def read_clean_section(path: Path) -> AnnData:
    """Read ``sections/<id>.h5ad``; a missing or damaged one is an `InputError` that names it."""
    import anndata

    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        msg = f"is not a preprocessed section ({error})"
        raise InputError(msg, file=path, fix="run the preprocessing again") from error


def section_targets(adata: AnnData, panel: Panel, transforms: list[str], *, section: str) -> np.ndarray:
    """Return (n, len(transforms) x g) float32 targets of a section; a panel gene it lacks is an `InputError`."""
    panel.columns(names_of(adata, panel.matrix, section=section), section=section)  # all that is missing, named
    found = targets_of(adata, panel.genes, transforms, matrix=panel.matrix, section=section)
    return np.concatenate([found[name] for name in transforms], axis=1)
