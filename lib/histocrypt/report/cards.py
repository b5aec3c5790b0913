"""A model card beside every model that a study hands on: what it is, what it reached, what it must not be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histocrypt.evaluation import wording
from histocrypt.evaluation.metrics import METRICS
from histocrypt.evaluation.scores import WITHIN, load_scores, title_of
from histocrypt.evaluation.wording import terms_of
from histocrypt.files import read_json, write_text
from histocrypt.predictors.registry import BASELINES
from histocrypt.study import Study

FINAL = "final"
TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}: {{ subject }} from H&E

Predicts the {{ terms.quantity }} of {{ genes|length }} {{ terms.many }} from tiles of H&E-stained sections. Trained on
all {{ patients }} of the study *{{ study }}*.

## How well

{{ verdict }}

The table is about models of the same kind, each trained without the {{ terms.unit }}s on which it was scored; this one,
trained on all of them, has no unseen {{ terms.unit }} left to be scored on.{% if terms.caveat %} {{ terms.caveat }}
{%- endif %}


{{ tables }}

Mean correlation: Pearson's, {{ terms.one }} by {{ terms.one }} within a section, averaged over {{ terms.many }} and
sections; 95 % bootstrap intervals over {{ block_mm }} mm blocks of tissue. They speak of these patients, not of new
ones.

## How to use

```
histocrypt predict --model {{ folder }} SECTION -o predictions.h5ad
```

The section may be in any format that `histocrypt check` accepts. Tiles are {{ tile }}; stain normalisation:
{{ stain }}. Predicted units: {{ transforms }}.

## Training data

{{ sections|length }} sections: {{ sections|join(", ") }}.
{{ terms.many|capitalize }} were chosen by `{{ panel_method }}`.

## Intended use

Research on tissue, staining and scanners like those of the training data. Look at the score of the {{ terms.one }} you
care about in `evaluation/scores.csv` before you believe its map.

## Limits

{% for line in limits %}- {{ line }}
{% endfor %}- Not for diagnosis or treatment.
- The weights may tell something about the patients they were trained on: share them as you would share the data.

## Provenance

Study hash `{{ hash }}`, seed {{ seed }}. {{ terms.many|capitalize }}: {{ shown_genes }}.
"""


def write_cards(study: Study) -> list[Path]:
    """Write ``models/<model>/final/README.md`` for every model that was trained on all patients.

    Returns
    -------
    The cards written; a model without a final training, or without a score yet, has none.
    """
    from huggingface_hub import ModelCard, ModelCardData

    scores = load_scores(study)
    written = []
    for model in study.model_names:
        folder = study.run.model(model, FINAL)
        if model not in scores.models or not (folder / "model.json").is_file():
            continue
        about = read_json(folder / "model.json")
        data = ModelCardData(
            license="mit",
            library_name="histocrypt",
            tags=["spatial-transcriptomics", "histology", "gene-expression"],
            model_name=f"{study.name}/{model}",
        )
        card = ModelCard.from_template(data, template_str=TEMPLATE, **_content(study, scores, model, about))
        path = folder / "README.md"
        write_text(path, str(card).rstrip() + "\n")
        written.append(path)
    return written


def _content(study: Study, scores: Any, model: str, about: dict[str, Any]) -> dict[str, Any]:
    panel = about.get("panel", {})
    genes = list(panel.get("symbols") or panel.get("genes") or [])
    final = [fold for fold in read_json(study.run.folds)["folds"] if fold["name"] == FINAL]
    sections = sorted(final[0]["train_sections"]) if final else sorted(set(scores.sections["section"]))
    patients = int(scores.of(scores.transforms[0])["patients"].max())
    shown = ", ".join(genes[:30]) + (f" and {len(genes) - 30} more" if len(genes) > 30 else "")
    return {
        "title": title_of(model),
        "terms": terms_of(scores),
        "subject": "gene expression" if study.target.matrix is None else "cell types",
        "genes": genes,
        "patients": wording.plural(patients, "patient"),
        "study": study.title or study.name,
        "verdict": _verdict(scores, model),
        "tables": "\n\n".join(_table(scores, model, transform) for transform in scores.transforms),
        "block_mm": wording.number(scores.notes["block_um"] / 1000, 1),
        "folder": f"outputs/{study.name}/models/{model}/{FINAL}",
        "tile": f"{study.preprocessing.tile_um:g} µm squares of {study.preprocessing.tile_px} px",
        "stain": study.preprocessing.stain,
        "transforms": ", ".join(scores.transforms),
        "sections": sections,
        "panel_method": study.panel.method,
        "limits": wording.limits(scores),
        "hash": study.hash(),
        "seed": study.seed,
        "shown_genes": shown or "see model.json",
    }


def _verdict(scores: Any, model: str) -> str:
    main = scores.transforms[0]
    row = scores.of(main).loc[model]
    line = (
        f"Mean correlation {wording.number(row['pearson'])} (95 % interval "
        f"{wording.span(row['pearson_low'], row['pearson_high'])}) on {terms_of(scores).unit}s not seen in training."
    )
    line = line if model == wording.COLOUR else f"{line} {wording.compare(scores, model, wording.COLOUR, main)}"
    beyond = WITHIN in scores.of(main) and model != wording.MEAN_PROFILE
    return f"{line} {wording.within(scores, model, main)}" if beyond else line


def _table(scores: Any, model: str, transform: str) -> str:
    table = scores.of(transform)
    shown = [one for one in METRICS.values() if "card" in one.tables]
    lines = [
        f"**{wording.TRANSFORM_WORDS.get(transform, transform)}** (`{transform}`)",
        "",
        f"| | mean correlation | 95 % interval | {' | '.join(one.title for one in shown)} |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for name in [model, *(other for other in BASELINES if other != model and other in table.index)]:
        row = table.loc[name]
        title = f"**{row['title']}**" if name == model else f"{row['title']} (baseline)"
        cells = [wording.number(row["pearson"]), wording.span(row["pearson_low"], row["pearson_high"])]
        cells += [wording.number(row[one.name], one.digits) for one in shown]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)
