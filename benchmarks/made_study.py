"""Made studies of any number of sections, which hold only what the measured stages read; `scale.py` measures them."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

POOL = 4
"""Different count matrices."""
MODELS = ("mean_profile", "depth_only", "colour_ridge", "encoder_ridge", "knn", "resnet18")
TRANSFORMS = ("log1p_cp10k", "log1p")
DENSITY = 0.07
"""Share of counts that are not zero, as in real sections of spots."""
PITCH, UM_PER_PX = 100.0, 2.0


def names_of(n: int) -> list[str]:
    return [f"S_{number:03d}" for number in range(1, n + 1)]


def write_counts(path: Path, spots: int, genes: int, seed: int) -> None:
    """Write raw counts (spots x genes, CSR) of one section; genes differ in abundance, a few vary over the tissue."""
    import h5py
    from anndata.io import write_elem
    from scipy.sparse import csr_matrix, vstack

    abundance = np.random.default_rng(0).lognormal(sigma=1.6, size=genes)
    rng = np.random.default_rng(1 + seed)
    low, high = 1e-6, 1e3  # the scale at which as many counts as wanted are not zero
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (1 - np.exp(-middle * abundance)).mean() < DENSITY else (low, middle)
    x, y = places(spots).T / PITCH / np.sqrt(spots)
    pattern = np.ones((spots, genes), dtype=np.float32)
    patterned = np.argsort(-abundance)[:200]
    phase = rng.uniform(0, 2 * np.pi, (2, len(patterned)))
    pattern[:, patterned] += 0.6 * np.sin(6 * x[:, None] + phase[0]) * np.cos(6 * y[:, None] + phase[1])
    blocks = [
        csr_matrix(rng.poisson(low * abundance * pattern[start : start + 250]).astype(np.int32))
        for start in range(0, spots, 250)
    ]
    with h5py.File(path, "w") as file:
        write_elem(file, "X", vstack(blocks, format="csr"))


def places(spots: int) -> np.ndarray:
    """Return (spots, 2) micrometres: a square array."""
    side = int(np.ceil(np.sqrt(spots)))
    return PITCH * np.column_stack([np.arange(spots) % side, np.arange(spots) // side]).astype(float) + 150.0


class Made:
    """The made study of n sections below a folder."""

    def __init__(self, folder: Path, n: int, arguments: argparse.Namespace) -> None:
        self.base, self.folder, self.n, self.arguments = folder, folder / f"n{n}", n, arguments
        self.names = names_of(n)
        self.study_file = self.folder / f"scale_{n}.yaml"
        self.environment = {
            **os.environ,
            "HISTOCRYPT_OUTPUTS": str(self.folder / "outputs"), "HISTOCRYPT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg",
        }  # fmt: skip
        self.run = self.folder / "outputs" / f"scale_{n}"

    @property
    def patients(self) -> dict[str, str]:
        """Section -> patient: one each."""
        return {name: f"P{name[1:]}" for name in self.names}

    def write_study(self) -> None:
        """Write the study file."""
        import yaml

        content = {
            "name": f"scale_{self.n}",
            "sections": [{"path": str(self.folder / "raw")}],
            "preprocessing": {"min_counts": 10},
            "panel": {"size": self.arguments.panel},
            "target": {"transforms": list(TRANSFORMS)},
            "models": {"resnet18": {}},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study_file.write_text(yaml.safe_dump(content))

    def section(self, name: str, *, cleaned: bool) -> None:
        """Write a section file whose counts are a link to those of the pool."""
        import h5py
        import pandas as pd
        from anndata.io import write_elem

        number, spots, genes = self.names.index(name), self.arguments.spots, self.arguments.genes
        path = self.run / "sections" / f"{name}.h5ad" if cleaned else self.folder / "raw" / f"{name}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        pool = self.base / "pool" / f"{number % POOL}.h5"
        ids = [f"G{gene:05d}" for gene in range(genes - 1)] + [f"OWN_{name}"]
        obs = pd.DataFrame({"patient": self.patients[name]}, index=[f"B{spot:05d}" for spot in range(spots)])
        library: dict[str, Any] = {"metadata": {"pixel_size_um": UM_PER_PX, "spot_diameter_um": 55.0}}
        library["metadata"] |= {"source_image_path": f"{name}.jpg", "inter_spot_um": PITCH}
        uns: dict[str, Any] = {"spatial": {name: library}}
        if cleaned:
            obs = obs.assign(section=name, total_counts=np.load(pool.with_suffix(".npy")).astype(float))
            picture = np.random.default_rng(number).integers(120, 240, (160, 160, 3), dtype=np.uint8)
            library |= {"images": {"hires": np.repeat(np.repeat(picture, 4, 0), 4, 1)}}
            library["scalefactors"] = {"tissue_hires_scalef": 640 / (np.ptp(places(spots)[:, 0]) / UM_PER_PX + 150)}
            uns["preprocessing"] = {"um_per_px": UM_PER_PX, "spot_diameter_um": 55.0}
        obs = obs.astype({column: "category" for column in obs if obs[column].dtype == object})
        with h5py.File(path, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            file["X"] = h5py.ExternalLink(str(pool), "X")
            write_elem(file, "obs", obs)
            write_elem(file, "var", pd.DataFrame({"symbol": ids}, index=ids))
            write_elem(file, "obsm", {"spatial": places(spots) / UM_PER_PX})
            write_elem(file, "uns", uns)
            for part in ("layers", "obsp", "varm", "varp"):
                write_elem(file, part, {})
        if not cleaned:
            self._image(path.with_suffix(".jpg"), number)

    def _image(self, path: Path, number: int) -> None:
        """Write the image of the first section; the others, whose pixels no stage reads, are links to it."""
        from PIL import Image

        path.unlink(missing_ok=True)
        if number:
            path.hardlink_to(path.with_name(f"{self.names[0]}.jpg"))
            return
        side = int((np.ptp(places(self.arguments.spots)[:, 0]) + 300) / UM_PER_PX)
        rng = np.random.default_rng(number)
        grain = rng.integers(-25, 25, (side // 4 + 1, side // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:side, :side]
        pixels = np.array([190, 130, 175]) + grain
        pixels[: int(60 / UM_PER_PX)] = 242
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)

    def listed(self) -> None:
        """Write into the cache what each section is recognised by."""
        from dataclasses import asdict

        from histocrypt.explore.survey import file_stats, fingerprint_file
        from histocrypt.sections.identity import Fingerprint
        from histocrypt.sections.read import find_sections, watched
        from histocrypt.sections.section import SectionSize
        from histocrypt.study import load_study

        spots, genes = self.arguments.spots, self.arguments.genes
        size = SectionSize(spots, genes, int(DENSITY * spots * genes), 16.0)
        study = load_study(self.study_file)
        known = self.folder / "cache" / "fingerprints"
        known.mkdir(parents=True, exist_ok=True)
        for files in (files for source in study.sections for files in find_sections(source, folder=study.folder)):
            names = sorted(map(str, watched(files)))
            one = Fingerprint(files.id, files.patient, str(files.path), f"counts of {files.id}", files.id, size)
            content = {"files": names, "stats": file_stats(names), "fingerprint": asdict(one)}
            (known / fingerprint_file(files).name).write_text(json.dumps(content))

    def cleaned(self) -> None:
        """Write what 20_preprocessing leaves, as far as later stages read it."""
        from histocrypt.tissue.stain import DEFAULT_REFERENCE

        for name in self.names:
            self.section(name, cleaned=True)
            DEFAULT_REFERENCE.save(self.run / "stain" / f"{name}.json")

    def predicted(self) -> None:
        """Write the predictions of every model and fold, panels as chosen; values are links to those of the pool."""
        import h5py
        import pandas as pd
        from anndata.io import write_elem

        from histocrypt.data.folds import FINAL, load_folds
        from histocrypt.targets.panels import Panel

        folds = load_folds(self.run / "folds.json")
        links = self.folder / "links"
        links.mkdir(exist_ok=True)
        for fold in folds:
            panel = Panel.load(self.run / "folds" / fold.name / "panel.json")
            if fold.name == FINAL:
                for model in MODELS:
                    self._model(model, FINAL, {"panel": panel.to_dict()})
                continue
            self._model("resnet18", fold.name, None)
            for part, sections in (("test", fold.test_sections), ("validation", fold.validation_sections)):
                (name,) = sections
                spots = self.arguments.spots
                obs = pd.DataFrame({"section": name, "patient": self.patients[name]}, index=range(spots))
                obs["barcode"] = [f"B{spot:05d}" for spot in range(spots)]
                obs.index = pd.Index([f"{name}:{barcode}" for barcode in obs["barcode"]])
                shared = links / f"{fold.name}.{part}.h5"
                with h5py.File(shared, "w") as file:
                    write_elem(file, "obs", obs.astype({"section": "category", "patient": "category"}))
                for model in MODELS:
                    path = self.run / "predictions" / model / f"{fold.name}.{part}.h5ad"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    values = self._values(self.names.index(name) % POOL, model, panel.genes)
                    about = {"model": model, "transform": TRANSFORMS[0], "transforms": np.array(TRANSFORMS)}
                    with h5py.File(path, "w") as file:
                        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
                        file["obs"] = h5py.ExternalLink(str(shared), "obs")
                        file["X"] = h5py.ExternalLink(str(values), TRANSFORMS[0])
                        write_elem(file, "var", pd.DataFrame({"symbol": panel.symbols}, index=panel.genes))
                        write_elem(file, "obsm", {"spatial": places(spots) / UM_PER_PX})
                        write_elem(file, "uns", {"prediction": about})
                        for empty in ("layers", "obsp", "varm", "varp"):
                            write_elem(file, empty, {})
                        for transform in TRANSFORMS:
                            file[f"layers/{transform}"] = h5py.ExternalLink(str(values), transform)

    def _values(self, pool: int, model: str, genes: tuple[str, ...]) -> Path:
        """Return the file of one model's predictions for a matrix of the pool: the truth, made smaller and noisy."""
        import hashlib

        import h5py
        from anndata.io import read_elem, write_elem

        from histocrypt.targets.transforms import transform

        key = hashlib.sha256(" ".join(genes).encode()).hexdigest()[:12]
        path = self.folder / "links" / f"{pool}_{model}_{key}.h5"
        if path.is_file():
            return path
        counts = self.base / "pool" / f"{pool}.h5"
        truth = self.folder / "links" / f"{pool}_{key}.npz"
        if not truth.is_file():
            with h5py.File(counts) as file:
                chosen = read_elem(file["X"])[:, [int(gene[1:]) for gene in genes]]
            totals = np.load(counts.with_suffix(".npy"))
            np.savez(truth, **{name: transform(chosen, totals, name) for name in TRANSFORMS})
        known, strength = np.load(truth), MODELS.index(model) / 10
        rng = np.random.default_rng([pool, MODELS.index(model)])
        with h5py.File(path, "w") as file:
            for name in TRANSFORMS:
                values = known[name]
                noise = 0.3 * values.std(axis=0) * rng.standard_normal(values.shape) if strength else 0.0
                predicted = values.mean(axis=0) + strength * (values - values.mean(axis=0)) + noise
                write_elem(file, name, predicted.astype(np.float32))
        return path

    def _model(self, model: str, fold: str, about: dict | None) -> None:
        folder = self.run / "models" / model / fold
        folder.mkdir(parents=True, exist_ok=True)
        if about is not None:
            (folder / "model.json").write_text(json.dumps(about))
        rows = "".join(f"{epoch},{1 / epoch:.4f},{0.9 / epoch:.4f},{1 - 1 / epoch:.4f}\n" for epoch in range(1, 31))
        (folder / "curves.csv").write_text(f"epoch,train_loss,validation_loss,validation_pcc\n{rows}")

    def prepare(self, stage: str) -> None:
        """Write what the stage reads."""
        self.write_study()
        if stage == "evaluation":
            self.predicted()
            return
        for name in self.names:
            self.section(name, cleaned=False)
        self.listed()
        if stage == "folds":
            self.cleaned()
