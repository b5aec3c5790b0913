"""What the report says of a model that predicts distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histocrypt.evaluation.distribution_scores import MEASURES, load_distributions
from histocrypt.evaluation.embed import embed

if TYPE_CHECKING:
    from histocrypt.study import Study

SHOWN = {"variation": "{model}.svg", "maps": "{model}_maps.png"}
"""Pictures that notebook 34_diffusion leaves beside its scores."""

COUNTED = {
    "pearson": "correlation",
    "mse": "squared error",
    "crps": "CRPS",
    "rvd": "variance of the means (RVD)",
    "rvd_samples": "variance of single draws (RVD)",
    "correlation_error_samples": "correlation between genes, of single draws",
    "moran_samples": "spatial autocorrelation, of single draws",
}
"""What the sentence compares with ridge; single draws stand against ridge's one prediction."""

HIGHER = {"pearson"}


def distributions(study: Study) -> list[dict[str, Any]]:
    """Return what the page shows of each model whose draws were scored: sentence, columns, rows and pictures."""
    found = []
    for content in load_distributions(study):
        pictures = {}
        for name, file in SHOWN.items():
            path = study.run.evaluation / f"distribution_{file.format(model=content['model'])}"
            if path.is_file():
                pictures[name] = embed(path)
        encoder = study.options_of(content["model"]).get("encoder", "efficientnet_lite0")
        ridge = study.options_of("encoder_ridge").get("encoder", "efficientnet_lite0")
        same = "the same features" if encoder == ridge else f"features of another encoder ({ridge}, not {encoder})"
        about = {"sentences": sentences(content), "columns": list(MEASURES.items()), "features": same}
        found.append({**content, **about, "pictures": pictures})
    return found


def sentences(content: dict[str, Any]) -> list[str]:
    """Say whether a model beats ridge in correlation, and what each of the two does better."""
    rows = {row["model"]: row for row in content["rows"]}
    mine, ridge = rows[content["model"]], rows["encoder_ridge"]
    won, lost = [], []
    for key, words in COUNTED.items():
        theirs = ridge[key.removesuffix("_samples")]
        if mine[key] is None or theirs is None:
            continue
        better = mine[key] > theirs if key in HIGHER else mine[key] < theirs
        (won if better else lost).append(words)
    verb = "reaches a higher" if mine["pearson"] > ridge["pearson"] else "does not reach the"
    first = (
        f"{content['title']} {verb} correlation {'than' if 'higher' in verb else 'of'} ridge on frozen features: "
        f"{mine['pearson']:.3f} and {ridge['pearson']:.3f}."
    )
    second = f"It does better in: {', '.join(won) or 'nothing'}. Ridge does better in: {', '.join(lost) or 'nothing'}."
    held = (mine["coverage_50"], mine["coverage_90"])
    third = f"Its 50 % and 90 % intervals hold {100 * held[0]:.0f} % and {100 * held[1]:.0f} % of what was measured."
    return [first, second, third]
