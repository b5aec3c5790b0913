"""Clear what notebooks below a folder show: outputs, pictures, widgets and counts of cells. Needs Python alone."""

import json
import sys
from pathlib import Path


def cleared(notebook: dict) -> dict:
    """Return a notebook's content with its code and text alone."""
    for cell in notebook.get("cells", []):
        cell.pop("attachments", None)
        if cell.get("cell_type") == "code":
            cell["outputs"], cell["execution_count"] = [], None
    for name in ("widgets", "papermill"):
        notebook.get("metadata", {}).pop(name, None)
    return notebook


def main(folder: Path) -> None:
    """Clear every notebook in place; one that cannot be read ends the build."""
    for path in sorted(folder.rglob("*.ipynb")):
        notebook = cleared(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
