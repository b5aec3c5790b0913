"""What a fold may know before training: its panel, its target statistics, its stain reference.

Every file below ``folds/<fold>/`` is made from the files of that fold's training patients alone; nothing of its test
patients is in any of them. Files are the same byte for byte when nothing they depend on has changed. Sections are read
one at a time, so that memory does not grow with their counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.folds import Fold, final_fold, make_folds, save_folds
from histocrypt.errors import InputError
from histocrypt.targets.matrix import names_of, targets_of
from histocrypt.targets.panels import Panel, PanelChooser
from histocrypt.targets.transforms import BY_GENE, Moments, TargetStatistics, output_names

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
    run, folder = study.run, study.run.section("any").parent
    sections = sorted(path.stem for path in folder.glob("[!.]*.h5ad")) if sections is None else sorted(sections)
    if not sections:
        raise InputError("no preprocessed section", file=folder, fix="run the preprocessing first")
    known = {section: _patient(run.section(section)) for section in sections}
    patients = {section: patient for section, (patient, _, _) in known.items()}
    uncounted = [section for section, (_, counted, _) in known.items() if not counted]
    laboratories = {section: laboratory for section, (*_, laboratory) in known.items() if laboratory}
    split = make_folds(patients, study.folds, study.seed, folder=study.folder, laboratories=laboratories)
    folds = [*split, final_fold(patients)]
    about = {"scheme": study.folds.scheme, "uncounted": uncounted, "laboratories": laboratories}
    save_folds(run.folds, folds, patients, **about)
    _prepare(study, folds, {})
    return folds


def prepare_fold(study: Study, fold: Fold, *, panel: Panel | None = None) -> None:
    """Write one fold's panel, target statistics and stain reference, from its training patients' files alone.

    An inner fold of a stack is given the panel of its outer fold, so that all its models predict the same names.
    """
    _prepare(study, [fold], {} if panel is None else {fold.name: panel})


def _prepare(study: Study, folds: list[Fold], panels: dict[str, Panel]) -> None:
    """Write what folds may know before training; ``panels`` are those that are given, by fold.

    A fold is made of numbers of its own training sections. These are read one at a time, twice in all, however many
    folds they train in: once for the panels, once for the targets that the panels name.
    """
    from tqdm.auto import tqdm

    from histocrypt.tissue.stain import StainStatistics, pool

    run, transforms = study.run, study.target.transforms
    file = study.resolve(study.panel.file) if study.panel.file else None
    if any(fold.name not in panels for fold in folds):

        def read(section: str) -> AnnData:
            return read_clean_section(run.section(section))

        chooser = PanelChooser(read, study.panel, file=file, matrix=study.target.matrix)
        for fold in tqdm(folds, desc="panels", unit="fold"):
            if fold.name not in panels:
                panels[fold.name] = chooser.choose(fold.training_sections)
        if chooser.note:
            print(f"panel of fold {folds[-1].name}: {chooser.note}")
    pooled = {fold.name: Moments.none(len(transforms) * len(panels[fold.name])) for fold in folds}
    trained_on = {fold.name: set(fold.training_sections) for fold in folds}
    for section in tqdm(sorted(set().union(*trained_on.values())), desc="targets", unit="section"):
        mine = {name: panels[name] for name, sections in trained_on.items() if section in sections}
        for name, moments in _section_moments(run.section(section), mine, transforms, section=section).items():
            pooled[name] = pooled[name].with_more(moments)
    stains = {section: StainStatistics.load(run.stain(section)) for section in set().union(*trained_on.values())}
    for fold in folds:
        folder, panel = run.fold(fold.name), panels[fold.name]
        panel.save(folder / PANEL)
        TargetStatistics.of_moments(pooled[fold.name], output_names(transforms, panel.genes)).save(folder / TARGETS)
        pool([stains[section] for section in fold.training_sections]).save(folder / STAIN)


def _section_moments(
    path: Path, panels: dict[str, Panel], transforms: list[str], *, section: str
) -> dict[str, Moments]:
    """Return the moments of one section's targets for every fold, computed once for panels that are the same."""
    adata = read_clean_section(path)
    distinct = {panel.genes: panel for panel in panels.values()}
    moments: dict[tuple[str, ...], Moments] = {}
    if all(name in BY_GENE for name in transforms):  # whatever else is in its panel: every gene of any panel once
        matrix = next(iter(distinct.values())).matrix
        known, place, symbols = set(names_of(adata, matrix, section=section).tolist()), {}, []
        for panel in distinct.values():
            if not known.issuperset(panel.genes):
                panel.columns(adata, section=section)  # says what is missing
            for gene, symbol in zip(panel.genes, panel.symbols, strict=True):
                if gene not in place:
                    place[gene] = len(place)
                    symbols.append(symbol)
        targets = targets_of(adata, place, transforms, matrix=matrix, section=section, symbols=symbols)
        parts = [Moments.of(targets[name]) for name in transforms]
        for genes in distinct:
            columns = np.array([place[gene] for gene in genes], dtype=np.int64)
            moments[genes] = Moments.joined([part.of_columns(columns) for part in parts])
    else:
        for genes, panel in distinct.items():
            moments[genes] = Moments.of(section_targets(adata, panel, transforms, section=section))
    return {name: moments[panel.genes] for name, panel in panels.items()}


def _patient(path: Path) -> tuple[str, bool, str]:
    """Return the patient of a preprocessed section, whether it has counts, and its laboratory (empty: not stated)."""
    obs = read_clean_section(path, parts=["obs"]).obs
    if not {"patient", "total_counts"} <= set(obs):
        raise InputError("is not a preprocessed section", file=path, field="obs", fix="run the preprocessing again")
    patients = obs["patient"].unique()
    if len(patients) != 1:
        raise InputError(
            "a section belongs to one patient", file=path, field="obs['patient']", value=sorted(map(str, patients))
        )
    laboratory = str(obs["laboratory"].iloc[0]) if "laboratory" in obs else ""
    return str(patients[0]), bool(np.isfinite(obs["total_counts"].astype(float)).all()), laboratory


def read_clean_section(path: Path, *, parts: Sequence[str] = ()) -> AnnData:
    """Read ``sections/<id>.h5ad``, or some ``parts`` of it, e.g. ``obs``: counts may be most of it.

    Raises
    ------
    InputError
        If it is missing, damaged, or has no spots; it is named.
    """
    import anndata

    try:
        if not parts:
            return anndata.read_h5ad(path)
        import h5py

        with h5py.File(path, "r") as file:
            return anndata.AnnData(**{name: anndata.io.read_elem(file[name]) for name in parts if name in file})
    except (OSError, KeyError) as error:
        raise InputError(
            f"is not a preprocessed section ({error})", file=path, fix="run the preprocessing again"
        ) from error


def section_targets(adata: AnnData, panel: Panel, transforms: list[str], *, section: str) -> np.ndarray:
    """Return (n, len(transforms) x g) float32 targets of a section; a panel gene it lacks is an `InputError`."""
    panel.columns(adata, section=section)  # all that is missing, named
    named = {"matrix": panel.matrix, "section": section, "symbols": panel.symbols}
    targets = targets_of(adata, panel.genes, transforms, **named)
    return np.concatenate([targets[name] for name in transforms], axis=1)
