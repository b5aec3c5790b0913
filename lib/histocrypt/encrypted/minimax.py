"""The reference's activation: a ReLU by a composition of minimax polynomials, three refreshes more than a square needs.

``relu(x) = x (1 + sgn x) / 2``, and ``sgn`` is a composition of polynomials of degrees 15, 15 and 27, each the minimax
approximation of the sign on the range that the one before leaves (Lee et al., 2022, "Minimax approximation of sign
function by composite polynomial for homomorphic comparison"). Inputs lie in [-1, 1]. Nothing needs training for it: it
takes the clear network's own weights.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from histocrypt.encrypted.bootstrapping import LEVELS
from histocrypt.encrypted.engine import Node, minimax_sign
from histocrypt.encrypted.parameters import Parameters

DEGREES = (15, 15, 27)
LOG_ALPHA, LOG_ERROR = 6, 12
"""The sign is right where ``|x| > 2^-6``; each polynomial bears an error of 2^-12 in its input."""
MARGIN = 2.0
"""The largest value seen on calibration tiles is scaled to 1 / MARGIN."""
REFRESHES = 1 + len(DEGREES)
"""Of an activation: the input, then after each polynomial."""
LEFT = LEVELS - 1
"""Level of the result: the product takes one."""


@cache
def gates() -> tuple[np.ndarray, ...]:
    """Return the polynomials in Chebyshev's basis, from the first to the last; the last gives ``(1 + sgn x) / 2``."""
    *first, last = minimax_sign(DEGREES, log_alpha=LOG_ALPHA, log_error=LOG_ERROR)
    last = last / 2
    last[0] += 0.5
    return *first, last


def relu(x: np.ndarray) -> np.ndarray:
    """Return what the evaluator computes, in the clear: a ReLU of values in [-1, 1], within 4e-4."""
    gate = x
    for polynomial in gates():
        gate = np.polynomial.chebyshev.chebval(gate, polynomial)
    return x * gate


def levels() -> int:
    """Return the multiplicative depth of the whole activation."""
    return sum(int(np.ceil(np.log2(degree + 1))) for degree in DEGREES) + 1


def nodes(parameters: Parameters) -> list[Node]:
    """Return the activation as nodes of a graph whose input has level 1 or more; the output has level `LEFT`."""
    made = [Node("refresh0", "bootstrap", 1, (), refresh_config(parameters))]
    for number, polynomial in enumerate(gates()):
        config = {
            "coeffs": polynomial.tolist(), "basis": "chebyshev", "prescale": 1.0, "postscale": 1.0, "constant": 0.0,
        }  # fmt: skip
        made.append(Node(f"polynomial{number}", "polynomial", LEVELS, (f"refresh{number}",), config))
        again = Node(f"refresh{number + 1}", "bootstrap", 1, (f"polynomial{number}",), refresh_config(parameters))
        made.append(again)
    return [*made, Node("product", "mult", LEVELS, ("refresh0", made[-1].name))]


def refresh_config(parameters: Parameters) -> dict[str, float | int]:
    """Return the settings of a refresh of values from -1 to 1."""
    return {
        "input_level": 1, "input_min": -1.0, "input_max": 1.0, "prescale": 1.0, "postscale": 1.0, "constant": 0.0,
        "slots": 1 << parameters.bootstrapping.log_slots,
    }  # fmt: skip
