"""The one list of what can be downloaded: addresses, licences, citations, names.

Addresses are those publicly known. The code that uses them is tested against a local server only.
"""

from __future__ import annotations

from histocrypt.download.sources import HER2ST_SECTIONS, VISIUM_VERSIONS, Hbcis, Her2st, Hest, Source, Visium
from histocrypt.errors import InputError, unknown_name

SOURCES = {
    source.name: source
    for source in (
        Her2st(
            "her2st",
            "HER2-positive breast tumours: 36 sections of 8 patients, ST arrays",
            homepage="https://github.com/almaan/her2st",
            hosts={
                "api": "https://api.github.com/repos/almaan/her2st",
                "raw": "https://raw.githubusercontent.com/almaan/her2st",
            },
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="Andersson A. et al., Spatial deconvolution of HER2-positive breast cancer delineates "
            "tumor-associated cell type interactions, Nat Commun 12:6012 (2021), doi:10.1038/s41467-021-26271-2; "
            "archived at zenodo.org/records/4751624",
            names=HER2ST_SECTIONS,
            example="C2",
            note="from the authors' repository, as the archive's zip files are encrypted; genes are named by symbol.",
        ),
        Hbcis(
            "hbcis",
            "Human breast cancer in situ: 68 sections of 23 patients, ST arrays",
            homepage="https://data.mendeley.com/datasets/29ntw7sh4r/5",
            hosts={"api": "https://data.mendeley.com/public-api/datasets/29ntw7sh4r"},
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="He B. et al., Integrating spatial gene expression and breast tumour morphology via deep "
            "learning, Nat Biomed Eng 4:827 (2020), doi:10.1038/s41551-020-0578-x; data: doi:10.17632/29ntw7sh4r.5",
            example="BC23209_C1",
        ),
        Visium(
            "visium",
            "10x Genomics' public Visium sections",
            homepage="https://www.10xgenomics.com/datasets",
            hosts={"samples": "https://cf.10xgenomics.com/samples/spatial-exp"},
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="10x Genomics, Spatial Gene Expression data set <name>, 10xgenomics.com/datasets",
            names=tuple(sorted(VISIUM_VERSIONS)),
            example="V1_Breast_Cancer_Block_A_Section_1",
            note="no checksum is published: the first download's is written beside each file.",
        ),
        Hest(
            "hest",
            "HEST-1k: 1229 sections of many organs and technologies",
            homepage="https://huggingface.co/datasets/MahmoodLab/hest",
            hosts={"hub": "https://huggingface.co"},
            licence="CC BY-NC-SA 4.0",
            licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
            citation="Jaume G. et al., HEST-1k: A Dataset for Spatial Transcriptomics and Histology Image Analysis, "
            "NeurIPS 2024, arXiv:2406.16192",
            terms="non-commercial use only; what is made from it is shared alike; access is granted by its authors",
            gated=True,
            example="TENX99",
            note="needs your own Hugging Face token (HF_TOKEN or --token-file), after accepting the terms on its page.",
        ),
    )
}
"""What can be downloaded, by the name used on the command line."""


def source_named(name: str) -> Source:
    """Return a source; an unknown name lists the known ones."""
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return SOURCES[name]


def accept(source: Source, *, accepted: bool) -> None:
    """Refuse to go on where a licence must be accepted by hand and is not."""
    if source.terms and not accepted:
        raise InputError(
            f"{source.name} is under {source.licence}: {source.terms}",
            file=source.licence_url,
            fix="repeat with --accept-licence if you accept that",
        )


def about(source: Source) -> str:
    """Return licence and citation as a person reads them."""
    lines = [
        f"{source.name}: {source.title}",
        f"  page      {source.homepage}",
        f"  licence   {source.licence} ({source.licence_url})" + (f"; {source.terms}" if source.terms else ""),
        f"  cite      {source.citation}",
    ]
    return "\n".join([*lines, *([f"  note      {source.note}"] if source.note else [])])
