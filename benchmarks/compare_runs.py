"""Do two run folders of one study hold the same? ``python benchmarks/compare_runs.py FOLDER OTHER``.

Made for moves of code: run a study before and after, with ``HISTOCRYPT_OUTPUTS`` set to two folders, then compare.
Prints how much was compared and what differs; exits with 1 if anything does.
"""

from __future__ import annotations

import argparse
import filecmp
from collections import Counter
from pathlib import Path

OWN = {"logs", ".snakemake", ".lock", ".seen.json", ".survey.json", "run.json", "notebooks"}
"""What tells of the run itself, and differs between any two."""
FRESH = {"encrypted", "decrypted", "last", "training.safetensors"}
"""What holds fresh randomness of ciphertexts, or the state of a training, with its seconds."""


def differences(there: Path, here: Path) -> list[str]:
    """Return what differs between two run folders of one study.

    Compared are which files there are; the bytes of weights, folds and stain references; every number of sections,
    tiles, predictions, samples and shadow models; and every table of scores, to twelve digits. What is encrypted holds
    fresh randomness, and pages, pictures and cards hold times: of those only that they are there.
    """
    ours, theirs = (_files(folder) for folder in (there, here))
    found = [f"{path}: only in {there}" for path in sorted(ours - theirs)]
    found += [f"{path}: only in {here}" for path in sorted(theirs - ours)]
    return found + [f"{path}: differs" for path in sorted(ours & theirs) if not _same(path, there / path, here / path)]


def compared(folder: Path) -> str:
    """Return how much there is to compare."""
    files = _files(folder)
    counts = Counter(path.suffix for path in files if _kind(path))
    return f"{len(files)} files, with " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def _kind(path: Path) -> str:
    """Return how a file is compared: its arrays, its table, its bytes, or nothing but that it is there."""
    if FRESH & set(path.parts):
        return ""
    if path.suffix in (".h5", ".h5ad"):
        return "arrays"
    if path.suffix == ".csv":
        return "table"
    if path.suffix == ".safetensors" and path.parts[0] == "audit":  # whose heads hold digests of how they were made
        return "tensors"
    bytewise = path.suffix in (".safetensors", ".npz") or path.parts[0] in ("folds", "folds.json", "stain")
    return "bytes" if bytewise else ""


def _same(path: Path, one: Path, other: Path) -> bool:
    import numpy as np
    import pandas as pd

    match _kind(path):
        case "arrays":
            first, second = _datasets(one), _datasets(other)
            return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
        case "tensors":
            from safetensors.numpy import load_file

            ours, theirs = load_file(one), load_file(other)
            return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        case "table":
            mine, its = (_untimed(pd.read_csv(file)) for file in (one, other))
            return mine.shape == its.shape and [*mine] == [*its] and all(_close(mine[name], its[name]) for name in mine)
        case "bytes":
            return filecmp.cmp(one, other, shallow=False)
    return True


def _close(column, other) -> bool:
    """Return whether two columns are the same, numbers to twelve digits: sums may be added up in another order."""
    import numpy as np

    if column.dtype.kind == "f" and other.dtype.kind in "fi":
        return bool(np.allclose(column, other, rtol=1e-12, atol=1e-12, equal_nan=True))
    return column.equals(other)


def _untimed(table):
    return table.drop(columns=[name for name in table.columns if "seconds" in name])


def _datasets(file: Path) -> dict:
    """Return all arrays of an HDF5 file, but for the notes in ``uns``, which hold paths and versions; NaN as bytes."""
    import h5py
    import numpy as np

    found = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("uns"):
            values = np.asarray(item[()])
            found[name] = values.view(np.uint8) if values.dtype.kind == "f" and values.ndim else values

    with h5py.File(file) as content:
        content.visititems(keep)
    return found


def _files(folder: Path) -> set[Path]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in files if path.parts[0] not in OWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("other", type=Path)
    arguments = parser.parse_args()
    found = differences(arguments.folder, arguments.other)
    print(compared(arguments.folder))
    print("\n".join(found) if found else "all the same")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
