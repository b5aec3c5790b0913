"""The made study of the evaluation's tests, to look at."""

from tests.evaluation.conftest import fresh, made  # noqa: F401
