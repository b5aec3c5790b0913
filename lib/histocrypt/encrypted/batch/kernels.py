"""Loops over residues, compiled by numba: the number theoretic transform of the conjugate-invariant ring, and products.

The ring is that of Kim and Song (2018, "Approximate homomorphic encryption over the conjugate-invariant ring"): real
polynomials in X + 1/X. A polynomial of N coefficients modulo a prime q is kept as its values at psi^(4 r + 1), psi a
primitive 4N-th root of unity and r the bit-reversed place, which is the engine's order. A product by a constant w uses
Shoup's quotient floor(w 2^64 / q); the sums between two butterflies stay below 8 q, which must fit 64 bits (Harvey,
2014, "Faster arithmetic for number-theoretic transforms"). High words are made of 32-bit halves, because compilers
turn those into vector instructions. The last five stages run on a transposed copy, so that they are vectors, too.

A root or another constant comes with its Shoup quotient, as a pair. Functions are small, run without the interpreter's
lock, and never call one another when compiled: else the compiler would copy the transforms into each of their callers.
They are compiled once a machine.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import register_jitable

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
WORD = np.uint64
HALF = WORD(32)
LOW = WORD(0xFFFFFFFF)
ONE = WORD(1)
TAIL = 32
"""Coefficients that the last five stages of a transform mix."""
TAIL_BLOCKS = TAIL - 1
LANES = 64
"""Rows of ``TAIL`` coefficients that are transposed together: 16 KiB, which a first-level cache holds."""
BLOCK = 256
"""Coefficients of an inner product at once."""


@register_jitable
def high(a, b):
    """Return the upper word of a product, or up to two less."""
    a_low, a_high, b_low, b_high = a & LOW, a >> HALF, b & LOW, b >> HALF
    return a_high * b_high + ((a_low * b_high) >> HALF) + ((a_high * b_low) >> HALF)


@register_jitable
def wide(a, b):
    """Return the upper and the lower word of a product."""
    a_low, a_high, b_low, b_high = a & LOW, a >> HALF, b & LOW, b >> HALF
    first = a_high * b_low + ((a_low * b_low) >> HALF)
    second = a_low * b_high + (first & LOW)
    return a_high * b_high + (first >> HALF) + (second >> HALF), a * b


@register_jitable
def times(a, constant, quotient, prime):
    """Return a * constant modulo the prime, below 4 primes, for any word a."""
    return a * constant - high(a, quotient) * prime


@register_jitable
def less(a, bound):
    """Return a, less the bound where a reaches it."""
    return min(a, a - bound)


@register_jitable
def whole(a, prime):
    """Return a residue below 8 primes, reduced."""
    return less(less(less(a, prime << WORD(2)), prime << ONE), prime)


@register_jitable
def montgomery(upper, lower, prime, inverse):
    """Return (upper 2^64 + lower) / 2^64 modulo the prime, reduced; upper is below the prime."""
    return less(upper + prime - wide(lower * inverse, prime)[0], prime)


@register_jitable
def product(a, b, prime, inverse):
    """Return a * b / 2^64 modulo the prime, reduced."""
    upper, lower = wide(a, b)
    return montgomery(upper, lower, prime, inverse)


@register_jitable
def forward_step(left, right, constant, quotient, prime):
    """Mix two runs of values below 8 primes, with one root."""
    four = prime << WORD(2)
    for j in range(left.size):
        a = less(left[j], four)
        b = times(right[j], constant, quotient, prime)
        left[j] = a + b
        right[j] = a + four - b


@register_jitable
def forward_lanes(left, right, constants, quotients, prime):
    """Mix two runs of values below 8 primes, with a root for each lane."""
    four = prime << WORD(2)
    for j in range(left.size):
        a = less(left[j], four)
        b = times(right[j], constants[j], quotients[j], prime)
        left[j] = a + b
        right[j] = a + four - b


@register_jitable
def backward_step(left, right, constant, quotient, prime):
    """Undo `forward_step`, but for a factor of two; values are below 4 primes."""
    four = prime << WORD(2)
    for j in range(left.size):
        a, b = left[j], right[j]
        left[j] = less(a + b, four)
        right[j] = times(a + four - b, constant, quotient, prime)


@register_jitable
def backward_lanes(left, right, constants, quotients, prime):
    """Undo `forward_lanes` likewise."""
    four = prime << WORD(2)
    for j in range(left.size):
        a, b = left[j], right[j]
        left[j] = less(a + b, four)
        right[j] = times(a + four - b, constants[j], quotients[j], prime)


@compiled
def forward(coefficients, origin, spare, out, prime, reciprocal, head, tail):
    """Transform coefficients, reduced modulo another prime or this one and centred, to values modulo this one.

    Parameters
    ----------
    coefficients
        (N,) uint64 below ``origin``.
    origin
        Their prime.
    spare, out
        (N,) uint64, other arrays.
    prime, reciprocal
        And floor(2^64 / prime).
    head
        (2, N / TAIL) pairs: the root of block i of the stage of h blocks at h + i; that of the first step at 0.
    tail
        (2, groups, TAIL_BLOCKS, lanes) pairs: roots of the last five stages.
    """
    half, minus = origin >> ONE, prime - origin % prime
    source = spare
    for j in range(coefficients.size):
        a = coefficients[j]
        source[j] = times(a + (minus if a > half else WORD(0)), ONE, reciprocal, prime)
    size, four = source.size, prime << WORD(2)
    middle = size >> 1
    constant, quotient = head[0, 0], head[1, 0]
    first, second, to_first, to_second = source[1:middle], source[middle + 1 :], out[1:middle], out[middle + 1 :]
    last = WORD(middle - 2)  # unsigned, so that no index is taken for one from the end
    for j in range(middle - 1):
        to_first[j] = first[j] + four - times(second[last - WORD(j)], constant, quotient, prime)
    for j in range(middle - 1):
        to_second[j] = second[j] + four - times(first[last - WORD(j)], constant, quotient, prime)
    out[0] = source[0]
    out[middle] = source[middle] + four - times(source[middle], constant, quotient, prime)
    step, blocks = middle, 1
    while step >= TAIL:
        for i in range(blocks):
            start = 2 * step * i
            forward_step(
                out[start : start + step],
                out[start + step : start + 2 * step],
                head[0, blocks + i],
                head[1, blocks + i],
                prime,
            )
        step >>= 1
        blocks <<= 1
    groups, lanes = tail.shape[1], tail.shape[3]
    turned = np.empty((TAIL, lanes), WORD)
    for group in range(groups):
        rows = out[group * lanes * TAIL : (group + 1) * lanes * TAIL]
        for lane in range(lanes):
            for k in range(TAIL):
                turned[k, lane] = rows[lane * TAIL + k]
        step, blocks = TAIL >> 1, 1
        while step >= 1:
            for i in range(blocks):
                constants, quotients = tail[0, group, blocks - 1 + i], tail[1, group, blocks - 1 + i]
                for j in range(2 * step * i, 2 * step * i + step):
                    forward_lanes(turned[j], turned[j + step], constants, quotients, prime)
            step >>= 1
            blocks <<= 1
        for k in range(TAIL):
            row = turned[k]
            for lane in range(lanes):
                row[lane] = whole(row[lane], prime)
        for lane in range(lanes):
            for k in range(TAIL):
                rows[lane * TAIL + k] = turned[k, lane]


@compiled
def backward(source, spare, out, prime, scale, head, tail):
    """Transform reduced values to reduced coefficients; see `forward`. ``scale`` (2,) is the pair of 1 / 2N."""
    size, four = source.size, prime << WORD(2)
    groups, lanes = tail.shape[1], tail.shape[3]
    turned = np.empty((TAIL, lanes), WORD)
    for group in range(groups):
        rows = source[group * lanes * TAIL : (group + 1) * lanes * TAIL]
        for lane in range(lanes):
            for k in range(TAIL):
                turned[k, lane] = rows[lane * TAIL + k]
        step, blocks = 1, TAIL >> 1
        while blocks >= 1:
            for i in range(blocks):
                constants, quotients = tail[0, group, blocks - 1 + i], tail[1, group, blocks - 1 + i]
                for j in range(2 * step * i, 2 * step * i + step):
                    backward_lanes(turned[j], turned[j + step], constants, quotients, prime)
            step <<= 1
            blocks >>= 1
        rows = spare[group * lanes * TAIL : (group + 1) * lanes * TAIL]
        for lane in range(lanes):
            for k in range(TAIL):
                rows[lane * TAIL + k] = turned[k, lane]
    step, blocks = TAIL, size // (2 * TAIL)
    while blocks >= 1:
        for i in range(blocks):
            start = 2 * step * i
            backward_step(
                spare[start : start + step],
                spare[start + step : start + 2 * step],
                head[0, blocks + i],
                head[1, blocks + i],
                prime,
            )
        step <<= 1
        blocks >>= 1
    middle = size >> 1
    constant, quotient = head[0, 0], head[1, 0]
    for j in range(size):
        spare[j] = times(spare[j], scale[0], scale[1], prime)
    first, second, to_first, to_second = spare[1:middle], spare[middle + 1 :], out[1:middle], out[middle + 1 :]
    last = WORD(middle - 2)
    for j in range(middle - 1):
        to_first[j] = whole(first[j] + four - times(second[last - WORD(j)], constant, quotient, prime), prime)
    for j in range(middle - 1):
        to_second[j] = whole(second[j] + four - times(first[last - WORD(j)], constant, quotient, prime), prime)
    out[0] = whole(spare[0] + spare[0], prime)
    out[middle] = whole(spare[middle] + four - times(spare[middle], constant, quotient, prime), prime)


@compiled
def root_table(factors, quotients, prime, inverse, square, pairs):
    """Fill the roots of a transform and their quotients, bit-reversed: of block i of the stage of h blocks at h + i.

    ``factors``: psi^(N / 2^k) for k up to log2(N), with their Shoup quotients; ``pairs``: (2, N).
    """
    size = pairs.shape[1]
    powers = np.empty(size, WORD)
    powers[0] = ONE
    blocks, k = 1, 0
    while blocks < size:
        known, more, roots = powers[:blocks], powers[blocks : 2 * blocks], pairs[0, blocks : 2 * blocks]
        for i in range(blocks):  # twice as many blocks have roots between these
            more[i] = whole(times(known[i], factors[k], quotients[k], prime), prime)
            roots[i] = whole(times(known[i], factors[k + 1], quotients[k + 1], prime), prime)
        blocks <<= 1
        k += 1
    pairs[0, 0] = powers[1]
    values, found = pairs[0], pairs[1]
    for i in range(size):  # floor(w 2^64 / q) is (w 2^64 - (w 2^64 mod q)) / q, exactly, modulo 2^64
        found[i] = (WORD(0) - product(values[i], square, prime, inverse)) * inverse


@compiled
def inner_product(digits, keys, first, second, prime, inverse, out):
    """Sum products over the digits, and one more where ``first`` is not empty, divided by 2^64 and reduced.

    digits (D, N) and keys (D, N) uint64; first and second (N,), the products of which may reach 2 prime^2.
    """
    upper, lower = np.empty(BLOCK, WORD), np.empty(BLOCK, WORD)
    for start in range(0, out.size, BLOCK):
        stop = start + BLOCK
        if first.size:
            a, b = first[start:stop], second[start:stop]
            for j in range(BLOCK):
                upper[j], lower[j] = wide(a[j], b[j])
        else:
            upper[:] = WORD(0)
            lower[:] = WORD(0)
        for digit in range(digits.shape[0]):
            a, b = digits[digit, start:stop], keys[digit, start:stop]
            for j in range(BLOCK):
                more, rest = wide(a[j], b[j])
                total = lower[j] + rest
                upper[j] += more + (ONE if total < rest else WORD(0))
                lower[j] = total
        target = out[start:stop]
        for j in range(BLOCK):
            target[j] = montgomery(upper[j], lower[j], prime, inverse)


@compiled
def combine(first, first_prime, second, second_prime, factor, quotient, prime, reciprocal, out):
    """Return first + factor * second modulo a prime, reduced: both reduced modulo their own primes and centred."""
    half, minus = first_prime >> ONE, prime - first_prime % prime
    other_half, other_minus = second_prime >> ONE, prime - second_prime % prime
    for j in range(out.size):
        a, b = first[j], second[j]
        a = times(a + (minus if a > half else WORD(0)), ONE, reciprocal, prime)
        b = times(b + (other_minus if b > other_half else WORD(0)), factor, quotient, prime)
        out[j] = whole(a + b, prime)


@compiled
def difference(first, second, origin, factor, quotient, prime, reciprocal, out):
    """Return (first - second) * factor modulo a prime, reduced; second is reduced modulo ``origin`` and centred."""
    half, minus, four = origin >> ONE, prime - origin % prime, prime << WORD(2)
    for j in range(out.size):
        b = second[j]
        b = times(b + (minus if b > half else WORD(0)), ONE, reciprocal, prime)
        out[j] = whole(times(first[j] + four - b, factor, quotient, prime), prime)


@compiled
def reduce_whole(coefficients, prime, reciprocal, out):
    """Reduce whole numbers (N,), float64 or int64, below 2^62 in absolute value."""
    above = (ONE << WORD(62)) // prime * prime + prime  # a multiple of the prime, at least 2^62
    for i in range(out.size):
        out[i] = whole(times(WORD(np.int64(coefficients[i])) + above, ONE, reciprocal, prime), prime)


@compiled
def centre(residues, prime, out):
    """Return residues (N,) as float64, from minus half the prime to half of it."""
    half = prime >> ONE
    for i in range(out.size):
        out[i] = np.float64(np.int64(residues[i] - (prime if residues[i] > half else WORD(0))))


@compiled
def scale_rows(values, factors, primes, inverses, out):
    """Multiply (L, N) residues by one factor for each prime, in the form factor * 2^64."""
    for j in range(values.shape[0]):
        factor, prime, inverse, source, target = factors[j], primes[j], inverses[j], values[j], out[j]
        for i in range(source.size):
            target[i] = product(source[i], factor, prime, inverse)


@compiled
def multiply(a, b, primes, inverses, squares, out):
    """Multiply (M, L, N) residues, place by place. ``squares`` (L,): 2^128 modulo each prime."""
    for m in range(a.shape[0]):
        for j in range(a.shape[1]):
            prime, inverse, factor = primes[j], inverses[j], squares[j]
            x, y, target = a[m, j], b[m, j], out[m, j]
            for i in range(x.size):
                target[i] = product(product(x[i], factor, prime, inverse), y[i], prime, inverse)


@compiled
def add(a, b, primes, out):
    """Add (M, L, N) residues."""
    for m in range(a.shape[0]):
        for j in range(a.shape[1]):
            prime, x, y, target = primes[j], a[m, j], b[m, j], out[m, j]
            for i in range(x.size):
                target[i] = less(x[i] + y[i], prime)


@compiled
def subtract(a, b, primes, out):
    """Subtract (M, L, N) residues."""
    for m in range(a.shape[0]):
        for j in range(a.shape[1]):
            prime, x, y, target = primes[j], a[m, j], b[m, j], out[m, j]
            for i in range(x.size):
                target[i] = less(x[i] + prime - y[i], prime)


@compiled
def halve(values, part, limb, start, prime, out):
    """Split centred residues of values (I, 2, L, N) in signed halves of 30 bits: out (I, 2 B) float64, lower first."""
    middle, width = prime >> ONE, out.shape[1] >> 1
    for k in range(values.shape[0]):
        source, lower, upper = values[k, part, limb, start : start + width], out[k, :width], out[k, width:]
        for i in range(width):
            a = np.int64(source[i] - (prime if source[i] > middle else WORD(0)))
            top = (a + np.int64(1 << 29)) >> np.int64(30)
            lower[i] = np.float64(a - (top << np.int64(30)))
            upper[i] = np.float64(top)


@compiled
def join(halves, biases, part, limb, start, prime, out):
    """Put lower + 2^30 upper + bias in out (O, 2, L, N): halves (O, 2 B) whole float64 up to 2^53; biases (O,)."""
    width = halves.shape[1] >> 1
    share = 1.0 / np.float64(prime)
    for k in range(out.shape[0]):
        lower, upper, bias = halves[k, :width], halves[k, width:], biases[k] + (prime << ONE)
        target = out[k, part, limb, start : start + width]
        for i in range(width):
            quotient = np.int64(np.floor((upper[i] * 1073741824.0 + lower[i]) * share))  # right, or one off
            rest = (np.int64(upper[i]) << np.int64(30)) + np.int64(lower[i]) - quotient * np.int64(prime)
            target[i] = whole(WORD(rest) + bias, prime)


@compiled
def sum_blocks(values, prime, out):
    """Add up each block of values (K, N) modulo the prime -> out (K, n)."""
    count = values.shape[1] // out.shape[1]
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            total = WORD(0)
            for j in range(count):
                total = less(total + values[k, i * count + j], prime)
            out[k, i] = total


@compiled
def squeeze(values, bits, out):
    """Put values (N,) uint64 of so many bits, up to 63, one after the other: out (N * bits / 64,)."""
    word, held, place = WORD(0), WORD(0), 0
    width, full = WORD(bits), WORD(64)
    for value in values:
        word |= value << held
        held += width
        if held >= full:
            out[place] = word
            place += 1
            held -= full
            word = value >> (width - held) if held else WORD(0)


@compiled
def spread(words, bits, out):
    """Undo `squeeze`: out (N,)."""
    held, place = WORD(0), 0
    width, full = WORD(bits), WORD(64)
    mask = (ONE << width) - ONE
    for i in range(out.size):
        value = words[place] >> held
        held += width
        if held >= full:
            place += 1
            held -= full
            if held:
                value |= words[place] << (width - held)
        out[i] = value & mask
