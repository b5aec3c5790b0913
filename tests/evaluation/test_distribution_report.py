"""What the page says of a distribution: who wins is said whichever way it goes."""

from histocrypt.evaluation.stem import MEASURES
from histocrypt.report.parts import sentences


def rows(**mine):
    ridge = {name: None if "samples" in name or "coverage" in name else 0.5 for name in MEASURES}
    return {
        "model": "stem",
        "title": "Stem",
        "rows": [
            {"model": "stem", **dict.fromkeys(MEASURES, 0.4), **mine},
            {"model": "encoder_ridge", **ridge},
        ],
    }


def test_a_lower_correlation_is_said_beside_what_is_better():
    first, second, third = sentences(rows())
    assert first == "Stem does not reach the correlation of ridge on frozen features: 0.400 and 0.500."
    assert "better in: squared error, CRPS" in second
    assert second.endswith("Ridge does better in: correlation.")
    assert third == "Its 50 % and 90 % intervals hold 40 % and 40 % of what was measured."


def test_a_higher_correlation_is_said_too():
    worse = dict.fromkeys(MEASURES, 0.6)
    first, second, _ = sentences(rows(**worse))
    assert first == "Stem reaches a higher correlation than ridge on frozen features: 0.600 and 0.500."
    assert second.startswith("It does better in: correlation. Ridge does better in: squared error")
