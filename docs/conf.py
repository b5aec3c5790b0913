"""The documentation as a site: ``make docs`` writes ``outputs/docs/index.html``, which needs no network to be read.

Three reference pages are made here at each build, so that they cannot differ from the code: the command line from
typer, the keys of a study from pydantic, and the list of modules from the library. The card of the model in the box and
CONTRIBUTING are pages, too. Executed notebooks of the demo are shown where ``outputs/demo`` has them.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "lib"))

from histocrypt import __version__  # noqa: E402

project, copyright, author, release = "HistoCrypt", "2026, the HistoCrypt authors", "HistoCrypt authors", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"HistoCrypt {__version__}"
html_static_path: list[str] = []
html_show_search_summary = False  # else a search fetches pages, which browsers refuse to files
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # notebooks are shown as a run left them
nb_ipywidgets_js: dict[str, dict] = {}  # else a page with widgets loads two scripts from outside
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
suppress_warnings = [
    "myst.header",  # the parts of README start at its second level
    "myst.xref_missing",  # links to files of the repository, which are no pages
    "misc.highlighting_failure",
    "ref.python",  # names that several modules have
    "mystnb.unknown_mime_type",
]
MADE = DOCS / "reference"
SHOWN = DOCS / "notebooks"


def command_line() -> str:
    """Return the page of all commands, as typer describes them."""
    asked = [sys.executable, "-m", "typer", "histocrypt.cli", "utils", "docs", "--name", "histocrypt"]
    library = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    made = subprocess.run([*asked, "--title", "Commands"], capture_output=True, text=True, check=True, env=library)
    return made.stdout


def study_keys() -> str:
    """Return the page of all keys of a study file, with types, defaults and descriptions."""
    from histocrypt.study import Study

    schema = Study.model_json_schema()
    lines = ["# Keys of a study file", "", "An unknown key is refused with the list of known ones.", ""]
    for name, part in {"": schema, **schema["$defs"]}.items():
        lines += [f"## {name or 'Top level'}", "", part.get("description", "").split("\n")[0], ""]
        lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        for key, one in part.get("properties", {}).items():
            default = repr(one["default"]) if "default" in one and "$ref" not in one else ""
            said = one.get("description", "").replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{key}` | {_kind(one)} | {f'`{default}`' if default else ''} | {said} |")
        lines.append("")
    return "\n".join(lines)


def _kind(one: dict) -> str:
    if "$ref" in one:
        name = one["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in one:
            return " or ".join(dict.fromkeys(_kind(each) for each in one[several]))
    inner = one.get("items")
    if isinstance(inner, dict) and inner:
        return f"list of {_kind(inner)}"
    return str(one.get("type", one.get("const", "")))


def modules() -> str:
    """Return the page that lists every module of the library; each gets a page from its docstrings."""
    root = ROOT / "lib" / "histocrypt"
    names = [
        "histocrypt." + ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted(root.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    listed = "\n".join(f"   {name}" for name in names)
    return f"Modules\n=======\n\n.. autosummary::\n   :toctree: modules\n\n{listed}\n"


def notebooks() -> str:
    """Copy executed notebooks beside the pages, and return the page that lists them."""
    shutil.rmtree(SHOWN, ignore_errors=True)
    SHOWN.mkdir()
    told = sorted((ROOT / "notebooks").glob("9*_case_*.ipynb"))
    ran = sorted((ROOT / "outputs" / "demo" / "notebooks").glob("[0-9]*.ipynb"))
    ran = [path for path in ran if "__" not in path.stem or path.stem.endswith(("__fold_1", "__final"))]
    for path in [*told, *ran]:
        shutil.copy(path, SHOWN / path.name)
    lines = ["# Notebooks, as a run left them", ""]
    if not ran:
        lines += ["Run `bash install_host.sh demo` before `make docs`, and the demo's notebooks stand here.", ""]
    for caption, paths in (("Cases", told), ("The demo study", ran)):
        if paths:
            lines += ["```{toctree}", f":caption: {caption}", ":maxdepth: 1", ""]
            lines += [f"../notebooks/{path.stem}" for path in paths] + ["```", ""]
    return "\n".join(lines)


def included(source: str) -> str:
    """Return the page that shows a Markdown file from outside of ``docs/``."""
    up = os.path.relpath(ROOT, MADE)
    return f"```{{include}} {up}/{source}\n:relative-docs: docs/\n```\n"


def to_shown_pages(_: object, doctree: nodes.document) -> None:
    """Let links from outside of ``docs/`` and to files outside of it lead to pages; what no page shows is no link."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        target = link["reftarget"]
        page = re.search(r"(?:^|/)docs/(\w+)\.md$", target)
        shown = [f"/reference/{n}" for n, s in SHOWN_FILES.items() if target.removesuffix(".md").endswith(s[:-3])]
        if page and (DOCS / f"{page[1]}.md").is_file():
            shown.append(f"/{page[1]}")
        if shown:
            link.attributes.update(refdomain="std", reftype="doc", reftarget=shown[0], refexplicit=True)
        elif link["reftype"] == "myst" and (ROOT / target).is_file():
            link.replace_self(nodes.inline("", "", *link.children))


def keep_tables(_app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Show a table of a docstring as it stands in the code: its bars mean something else to Sphinx."""
    kept: list[str] = []
    for line in lines:
        inside = line.lstrip().startswith("|")
        if inside and not (kept and kept[-1].lstrip().startswith("|")):
            kept += ["", "::", ""]
        elif kept and kept[-1].lstrip().startswith("|") and line.strip():
            kept.append("")
        kept.append(f"   {line}" if inside else line)
    lines[:] = kept


def setup(app: Sphinx) -> None:
    """Have docstrings and links changed once they are read."""
    app.connect("autodoc-process-docstring", keep_tables)
    app.connect("doctree-read", to_shown_pages)


shutil.rmtree(MADE, ignore_errors=True)
MADE.mkdir()
SHOWN_FILES = {"model": "lib/histocrypt/shipped/breast/README.md", "contributing": "CONTRIBUTING.md"}
PAGES = {"commands.md": command_line, "study.md": study_keys, "modules.rst": modules, "notebooks.md": notebooks}
PAGES |= {f"{name}.md": partial(included, source) for name, source in SHOWN_FILES.items()}
for page, make in PAGES.items():
    (MADE / page).write_text(make(), encoding="utf-8")
