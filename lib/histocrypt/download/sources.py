"""Where each data set's sections come from: which files its host lists, and how they become what the readers know."""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.download.transfer import RemoteFile, Web, fetch, shown, unpack
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, claim
from histocrypt.hdf5 import open_h5
from histocrypt.sections.image import open_image

if TYPE_CHECKING:
    import pandas as pd

DAMAGED = (OSError, EOFError, UnicodeDecodeError, ValueError)
MOVED = "the host may have changed: see the data set's page"
HER2ST_COMMIT = "85df7411b987a7dec3feff9718b869a7a82091ec"
"""The state of the authors' repository that is fetched; its file list carries a checksum for each file."""

HER2ST_SECTIONS = tuple(
    f"{patient}{number}"
    for patient, last in zip("ABCDEFGH", (6, 6, 6, 6, 3, 3, 3, 3), strict=True)
    for number in range(1, last + 1)
)
COUNTS, SPOTS, IMAGES = "data/ST-cnts", "data/ST-spotfiles", "data/ST-imgs"
VERSION, METADATA = 5, "metadata.csv"
COLUMNS = ("type", "patient", "replicate", "histology_image", "spot_coordinates", "count_matrix")
REPOSITORY = "datasets/MahmoodLab/hest"
NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
MAX_PAGES = 50
_SPACE_RANGER_1_1 = (
    "V1_Adult_Mouse_Brain",
    "V1_Adult_Mouse_Brain_Coronal_Section_1",
    "V1_Adult_Mouse_Brain_Coronal_Section_2",
    "V1_Breast_Cancer_Block_A_Section_1",
    "V1_Breast_Cancer_Block_A_Section_2",
    "V1_Human_Brain_Section_1",
    "V1_Human_Brain_Section_2",
    "V1_Human_Heart",
    "V1_Human_Lymph_Node",
    "V1_Mouse_Brain_Sagittal_Anterior",
    "V1_Mouse_Brain_Sagittal_Anterior_Section_2",
    "V1_Mouse_Brain_Sagittal_Posterior",
    "V1_Mouse_Brain_Sagittal_Posterior_Section_2",
    "V1_Mouse_Kidney",
)
_SPACE_RANGER_1_2 = (
    "Parent_Visium_Human_BreastCancer",
    "Parent_Visium_Human_Cerebellum",
    "Parent_Visium_Human_ColorectalCancer",
    "Parent_Visium_Human_Glioblastoma",
    "Parent_Visium_Human_OvarianCancer",
    "Parent_Visium_Human_SpinalCord",
    "Targeted_Visium_Human_BreastCancer_Immunology",
    "Targeted_Visium_Human_Cerebellum_Neuroscience",
    "Targeted_Visium_Human_ColorectalCancer_GeneSignature",
    "Targeted_Visium_Human_Glioblastoma_Pan_Cancer",
    "Targeted_Visium_Human_OvarianCancer_Immunology",
    "Targeted_Visium_Human_OvarianCancer_Pan_Cancer",
    "Targeted_Visium_Human_SpinalCord_Neuroscience",
)
VISIUM_VERSIONS = {
    **dict.fromkeys(_SPACE_RANGER_1_1, "1.1.0"),
    **dict.fromkeys(_SPACE_RANGER_1_2, "1.2.0"),
    "Visium_FFPE_Human_Breast_Cancer": "1.3.0",
}
"""Version of Space Ranger, which is part of the address, by name."""
NOT_THE_BLOCK = re.compile(r"^(Parent|Targeted)_|_(Immunology|Neuroscience|Pan_Cancer|GeneSignature)$|_Section_\d+$")


@dataclass(frozen=True)
class Source(ABC):
    """One data set that can be fetched."""

    name: str
    title: str
    homepage: str
    hosts: Mapping[str, str]
    """What its files are asked from, by role; each without a slash at the end."""
    licence: str
    licence_url: str
    citation: str
    terms: str = ""
    """Why the licence must be accepted by hand; empty where attribution is all that it asks."""
    gated: bool = False
    """Whether the host asks for the user's own access token."""
    names: tuple[str, ...] = ()
    """What may be asked for; empty where only the host knows."""
    example: str = ""
    note: str = ""

    def mirrored(self, address: str | None) -> Source:
        """Return the source with every host replaced by ``<address>/<role>``; as it is where ``address`` is None."""
        if address is None:
            return self
        return replace(self, hosts={role: f"{address.rstrip('/')}/{role}" for role in self.hosts})

    def sections(self, web: Web) -> list[str]:
        """Return the names of what may be asked for; asks the host where the catalogue does not know."""
        return list(self.names)

    @abstractmethod
    def files(self, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
        """Return the files of a section; ``small`` leaves out whole-slide images where something smaller serves."""

    @abstractmethod
    def finish(self, folder: Path, name: str) -> Path:
        """Make of a section's files what the readers know, and return what a study names."""


class Her2st(Source):
    """HER2ST from its authors' repository: listed by GitHub, checked by the names that git gives contents."""

    def files(self, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
        """Return counts, spots and image of a section; there is no smaller image."""
        url = f"{self.hosts['api']}/git/trees/{HER2ST_COMMIT}?recursive=1"
        content, _ = web.json(url)
        try:
            listed = {item["path"]: item for item in content["tree"] if item["type"] == "blob"}
            images = [path for path in listed if _is_image(path, name)]
            wanted = {
                f"raw/{name}.tsv.gz": listed[f"{COUNTS}/{name}.tsv.gz"],
                f"raw/{name}_selection.tsv": listed[f"{SPOTS}/{name}_selection.tsv"],
                f"HER2ST_{name}.jpg": listed[images[0]] if len(images) == 1 else {},
            }
            return [
                RemoteFile(
                    f"{self.hosts['raw']}/{HER2ST_COMMIT}/{item['path']}", path, int(item["size"]), f"git:{item['sha']}"
                )
                for path, item in wanted.items()
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"listing does not hold section {name} as expected ({error})",
                file=url,
                fix="the repository may have moved: see its page",
            ) from error

    def finish(self, folder: Path, name: str) -> Path:
        """Write the section file."""
        return write_section(
            folder / "raw" / f"{name}.tsv.gz",
            read_selection(folder / "raw" / f"{name}_selection.tsv"),
            folder / f"HER2ST_{name}.jpg",
            folder / f"HER2ST_{name}.h5ad",
            section=f"HER2ST_{name}",
            patient=f"HER2ST_{name[0]}",
            source=self,
        )


def _is_image(path: str, name: str) -> bool:
    parts = PurePosixPath(path)
    return parts.parent.as_posix() == f"{IMAGES}/{name[0]}/{name}" and parts.suffix.lower() in {".jpg", ".jpeg"}


class Hbcis(Source):
    """HBCIS from Mendeley Data: listed with a SHA-256 for each file; its metadata.csv says which belong together."""

    def sections(self, web: Web) -> list[str]:
        """Return the section names: ``<patient>_<replicate>``."""
        with tempfile.TemporaryDirectory() as folder:
            path = fetch(web, _file(_listing(self, web), METADATA, METADATA), Path(folder), progress=False).path
            return sorted(_sections(path))

    def files(self, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
        """Return metadata, counts, spots and image of a section; there is no smaller image."""
        listing = _listing(self, web)
        metadata = _file(listing, METADATA, f"raw/{METADATA}")
        with tempfile.TemporaryDirectory() as folder:
            row = _sections(fetch(web, metadata, Path(folder), progress=False).path)[name]
        return [
            metadata,
            _file(listing, row["count_matrix"], f"raw/{name}.counts.tsv.gz"),
            _file(listing, row["spot_coordinates"], f"raw/{name}.spots.csv.gz"),
            _file(listing, row["histology_image"], f"HBCIS_{name}.jpg"),
        ]

    def finish(self, folder: Path, name: str) -> Path:
        """Write the section file."""
        row = _sections(folder / "raw" / METADATA)[name]
        return write_section(
            folder / "raw" / f"{name}.counts.tsv.gz",
            read_coordinates(folder / "raw" / f"{name}.spots.csv.gz"),
            folder / f"HBCIS_{name}.jpg",
            folder / f"HBCIS_{name}.h5ad",
            section=f"HBCIS_{name}",
            patient=f"HBCIS_{row['patient']}",
            subtype=row["type"],
            source=self,
        )


def _listing(source: Source, web: Web) -> dict[str, RemoteFile]:
    """Return every file of the data set, by name."""
    url = f"{source.hosts['api']}/files?folder_id=root&version={VERSION}"
    content, _ = web.json(url)
    try:
        return {
            item["filename"]: RemoteFile(
                item["content_details"]["download_url"],
                item["filename"],
                int(item["content_details"]["size"]),
                f"sha256:{item['content_details']['sha256_hash']}",
            )
            for item in content
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"listing is not of the expected form ({error})",
            file=shown(url),
            fix=MOVED,
        ) from error


def _file(listing: dict[str, RemoteFile], name: str, path: str) -> RemoteFile:
    if name not in listing:
        raise InputError(f"file {name!r} is not in the data set's listing", fix=MOVED)
    known = listing[name]
    return RemoteFile(known.url, path, known.size, known.digest)


def _sections(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of metadata.csv by ``<patient>_<replicate>``."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for column in COLUMNS:
        if not rows or column not in rows[0]:
            raise InputError("column is missing", file=path, field=column, expected=", ".join(COLUMNS))
    return {f"{row['patient']}_{row['replicate']}": row for row in rows}


class Hest(Source):
    """HEST-1k from the Hugging Face hub, section by section, with the user's own token."""

    def sections(self, web: Web) -> list[str]:
        """Return the ids of all sections, as the hub lists them."""
        url = f"{self.hosts['hub']}/api/{REPOSITORY}/tree/main/st"
        found: list[str] = []
        for _ in range(MAX_PAGES):
            content, headers = web.json(url)
            found += [Path(item["path"]).stem for item in _items(content, url) if item["path"].endswith(".h5ad")]
            following = NEXT.search(headers.get("Link", ""))
            if following is None:
                return sorted(found)
            url = following[1]
        return sorted(found)

    def files(self, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
        """Return counts, metadata and patches of a section, and its whole slide unless ``small``.

        Large files are checked by SHA-256, others by the name that git gives their content.
        """
        wanted = [f"st/{name}.h5ad", f"metadata/{name}.json", f"patches/{name}.h5"]
        if not small:
            wanted.append(f"wsis/{name}.tif")
        url = f"{self.hosts['hub']}/api/{REPOSITORY}/paths-info/main"
        content, _ = web.json(url, method="POST", data={"paths": wanted, "expand": False})
        known = {item["path"]: item for item in _items(content, url)}
        if f"st/{name}.h5ad" not in known:
            raise InputError(f"the hub does not list section {name}", file=self.homepage)
        found = []
        for path in wanted:
            if path not in known:  # a section may lack its patches, or its slide
                continue
            large = known[path].get("lfs") or {}
            digest = f"sha256:{large['oid']}" if "oid" in large else f"git:{known[path]['oid']}"
            address = f"{self.hosts['hub']}/{REPOSITORY}/resolve/main/{path}"
            found.append(RemoteFile(address, path, int(large.get("size", known[path]["size"])), digest))
        return found

    def finish(self, folder: Path, name: str) -> Path:
        """Return the section file: HEST's own layout is read as it is."""
        return folder / "st" / f"{name}.h5ad"


def _items(content: object, url: str) -> list[dict]:
    if not isinstance(content, list) or not all(isinstance(item, dict) and "path" in item for item in content):
        raise InputError(
            "listing is not of the expected form",
            file=shown(url),
            fix=MOVED,
        )
    return content


class Visium(Source):
    """Public Visium sections of 10x Genomics, each a folder in Space Ranger's own layout."""

    def files(self, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
        """Return counts, the archive of ``spatial/``, and the full-resolution image unless ``small``."""
        base = f"{self.hosts['samples']}/{VISIUM_VERSIONS[name]}/{name}/{name}"
        wanted = {"filtered_feature_bc_matrix.h5": "filtered_feature_bc_matrix.h5", "spatial.tar.gz": "spatial.tar.gz"}
        if not small:
            wanted["image.tif"] = "image.tif"
        return [
            RemoteFile(f"{base}_{there}", f"{name}/{here}", size=web.size(f"{base}_{there}"))
            for here, there in wanted.items()
        ]

    def finish(self, folder: Path, name: str) -> Path:
        """Unpack ``spatial/``."""
        archive, spatial = folder / name / "spatial.tar.gz", folder / name / "spatial"
        if not spatial.is_dir() or spatial.stat().st_mtime_ns < archive.stat().st_mtime_ns:  # else it may be edited
            unpack(archive, spatial)
        return folder / name


def block_of(name: str) -> str:
    """Return the tissue block of a section, as far as its name tells: without gene panel and section number."""
    return NOT_THE_BLOCK.sub("", name)


# Published tables of an ST array section - counts, spots, one image - become one `.h5ad` beside its image.


def read_selection(path: Path) -> pd.DataFrame:
    """Read HER2ST's table of spots below tissue: tab-separated, of columns x, y, pixel_x, pixel_y, selected.

    Returns
    -------
    Indexed by ``<x>x<y>``: ``array_col``, ``array_row`` (int), ``x``, ``y`` (float, full-resolution pixels).
    """
    table = _table(path, "\t", ("x", "y", "pixel_x", "pixel_y"))
    if "selected" in table:
        table = table[table["selected"] == 1]
    return _spots(path, table["x"], table["y"], table["pixel_x"], table["pixel_y"])


def read_coordinates(path: Path) -> pd.DataFrame:
    """Read HBCIS's table of spots below tissue: comma-separated, indexed by ``<x>x<y>``, with ``X`` and ``Y``.

    Returns as `read_selection` does.
    """
    table = _table(path, ",", ("X", "Y"))
    index = table.iloc[:, 0].astype(str).str.extract(r"^(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$").astype(float)
    return _spots(path, index[0], index[1], table["X"], table["Y"])


def write_section(
    counts_path: Path,
    spots: pd.DataFrame,
    image: Path,
    output: Path,
    *,
    section: str,
    patient: str,
    source: Source,
    subtype: str = "",
) -> Path:
    """Join counts and spots by name and write a section that `histocrypt check` reads.

    Parameters
    ----------
    counts_path
        Tab-separated, spots ``<x>x<y>`` x genes, raw counts; may be compressed.
    spots
        As `read_selection` and `read_coordinates` return them.
    image
        The whole section; it must lie beside ``output``.
    output
        The ``.h5ad`` to write.

    Raises
    ------
    InputError
        If a table cannot be read, counts are not whole numbers, a gene is there twice, or no spot is in both tables.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    if output.exists() and output.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in (counts_path, image)):
        return output
    claim(output, field="--to", mine=lambda there: _is_made_from(there, source))
    genes = _header(counts_path)
    try:
        table = pd.read_csv(counts_path, sep="\t", index_col=0, header=0, names=["spot", *genes], dtype={"spot": str})
        values = table.to_numpy(dtype=np.float64)
    except DAMAGED as error:
        raise InputError(
            f"counts cannot be read, the file may be truncated ({' '.join(str(error).split())[:120]})",
            file=counts_path,
            fix="delete it and download it again",
        ) from error
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        raise InputError("counts are not whole numbers of zero or more", file=counts_path)
    both = [name for name in spots.index if name in table.index]
    if not both:
        raise InputError(
            "no spot is in both tables",
            file=counts_path,
            value=str(table.index[0]),
            expected=f"e.g. {spots.index[0]!r}",
        )
    rows, spots = table.index.get_indexer(both), spots.loc[both]
    picture = open_image(image)
    adata = anndata.AnnData(
        sparse.csr_matrix(values[rows].astype(np.int32)),
        obs=spots[["array_row", "array_col"]].assign(in_tissue=1, section=section, patient=patient),
        var=pd.DataFrame({"symbol": genes}, index=pd.Index(genes, name="gene_id")),
        obsm={"spatial": spots[["x", "y"]].to_numpy(dtype=np.float64)},
    )
    adata.obs.index.name = "barcode"
    adata.uns.update(
        technology="Spatial Transcriptomics",
        dataset=source.name,
        licence=source.licence,
        citation=source.citation,
        source=source.homepage,
        section=section,
        patient=patient,
        **({"subtype": subtype} if subtype else {}),
    )
    about = {"source_image_path": image.name, "fullres_width": picture.width, "fullres_height": picture.height}
    adata.uns["spatial"] = {section: {"metadata": {**about, "spot_diameter_um": 100.0, "inter_spot_um": 200.0}}}
    with atomic_path(output) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return output


def _is_made_from(path: Path, source: Source) -> bool:
    """Return whether a section file says that it was made from a source's tables."""
    try:
        with open_h5(path) as file:
            return file["uns/source"].asstr()[()] == source.homepage
    except (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError):
        return False


def _header(path: Path) -> list[str]:
    """Return the gene names of a count table; pandas would rename those that are there twice."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            genes = file.readline().rstrip("\r\n").split("\t")[1:]
    except DAMAGED as error:
        raise InputError(
            f"counts cannot be read, the file may be truncated ({error})",
            file=path,
            fix="delete it and download it again",
        ) from error
    if not genes:
        raise InputError("table lists no gene", file=path)
    if len(set(genes)) < len(genes):
        seen: set[str] = set()
        repeated = next(gene for gene in genes if gene in seen or seen.add(gene))
        raise InputError("gene appears twice", file=path, value=repeated)
    return genes


def _table(path: Path, separator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_csv(path, sep=separator)
    except DAMAGED as error:
        raise InputError(
            f"table of spots cannot be read, it may be truncated ({' '.join(str(error).split())[:120]})",
            file=path,
            fix="delete it and download it again",
        ) from error
    for name in columns:
        if name not in table:
            raise InputError("column is missing", file=path, field=name, expected=", ".join(columns))
    return table


def _spots(path: Path, column: pd.Series, row: pd.Series, x: pd.Series, y: pd.Series) -> pd.DataFrame:
    import pandas as pd

    numbers = np.column_stack([pd.to_numeric(part, errors="coerce") for part in (column, row, x, y)])
    if not len(numbers) or not np.isfinite(numbers).all():
        msg = "table of spots is empty" if not len(numbers) else "spot has no position"
        bad = None if not len(numbers) else int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 2
        raise InputError(msg, file=path, field=None if bad is None else f"line {bad}")
    index = np.rint(numbers[:, :2]).astype(int)
    names = pd.Index([f"{col}x{row}" for col, row in index], name="barcode")
    if not names.is_unique:
        raise InputError("spot appears twice", file=path, value=str(names[names.duplicated()][0]))
    return pd.DataFrame(
        {"array_col": index[:, 0], "array_row": index[:, 1], "x": numbers[:, 2], "y": numbers[:, 3]}, index=names
    )
