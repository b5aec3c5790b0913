"""What the report says of synthetic tiles and of the audit: both left their figures in JSON, which is read here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.atomic import read_json
from histocrypt.evaluation.embed import embed

if TYPE_CHECKING:
    from histocrypt.study import Study

PICTURES = {"synthesis": ("tiles", "filter", "utility"), "audit": ("forest",)}
SHOWN = (("mean_dice", "mean Dice"), ("balanced_accuracy", "tissue label, balanced accuracy"), ("auc", "AUC"))
VERDICTS = {
    "leak": "a leak",
    "signs": "signs of a leak",
    "undecided": "not decided",
    "below chance": "worse than guessing",
    "not found": "none found by this attack",
}


def synthetic(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of drawn tiles: counts, what was rejected, what they are good for, pictures."""
    folder = _folder(study.run.root / "synthesis", study.synthesis)
    if folder is None:
        return None
    said, use = read_json(folder / "summary.json"), read_json(folder / "utility.json")
    rows = [{"title": row["title"], "images": int(row["images"]), "scores": [_score(row, key) for key, _ in SHOWN]}
            for row in use["rows"]]  # fmt: skip
    titles = [title for _, title in SHOWN]
    return {**said, "rows": rows, "columns": titles, "pictures": _pictures(folder, "synthesis")}


def audit(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of the audit: each question with its answer and controls, and where the cards are."""
    folder = _folder(study.run.root / "audit", study.audit)
    if folder is None:
        return None
    said = read_json(folder / "summary.json")
    rows = [{**row, "words": VERDICTS[row["verdict"]]} for row in said["rows"]]
    cards = {name: f"audit/{folder.name}/{file}" for name, file in said["cards"].items()}
    return {**said, "rows": rows, "cards": cards, "pictures": _pictures(folder, "audit")}


def _folder(home: Path, part: Any) -> Path | None:
    """Return the newest fold's folder, where the study asks for the part and it has run."""
    done = sorted(home.glob("*/summary.json"), key=lambda file: file.stat().st_mtime) if part is not None else []
    return done[-1].parent if done else None


def _score(row: dict[str, Any], key: str) -> dict[str, float] | None:
    value = row.get(key)
    return None if value is None else {"value": value, "low": row[f"{key}_low"], "high": row[f"{key}_high"]}


def _pictures(folder: Path, kind: str) -> dict[str, str]:
    found = {name: folder / f"{name}.png" for name in PICTURES[kind]}
    return {name: embed(path) for name, path in found.items() if path.is_file()}
