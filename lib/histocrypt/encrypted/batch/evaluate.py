"""The evaluator's side of a batch: integers times ciphertexts, squares, and sums that tell nothing else.

No native library is needed, and nothing here can decrypt. What goes back is made safe for the model's owner: slots
that hold nothing of use are blotted out, a fresh encryption of zero hides how each ciphertext was made, and a mask
that sums to zero over the positions leaves the key owner the sums alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from histocrypt.encrypted import messages
from histocrypt.encrypted.answer_noise import AnswerNoise
from histocrypt.encrypted.batch.client import SEED, BatchClient, part_of
from histocrypt.encrypted.batch.embedding import encode, zero_sums
from histocrypt.encrypted.batch.layout import Layout
from histocrypt.encrypted.batch.order import Order
from histocrypt.encrypted.batch.packed import pack_residues, packed_bytes, unpack_residues
from histocrypt.encrypted.batch.plan import CHANNELS, LOG_WIPE, Map
from histocrypt.encrypted.batch.ring import Keys, Ring
from histocrypt.errors import InputError

ETA = 21
"""Of the centred binomial distribution that errors are drawn from: a standard deviation of 3.2."""
LOG_FLOOD = -21
"""Errors that blur how a result was computed: their share of the outputs' range, binary logarithm. They are about as
large as what the arithmetic itself errs by, at depth 9 smaller, so nothing is hidden for sure (``threat_model.md``).
Larger ones would be taken for a lie: how far copies may differ, and the noise, follow from how far they do.
"""

ONE_AT_A_TIME = threading.Lock()
"""A batch takes all cores and most of the memory."""

Read = Callable[[int], np.ndarray]
"""From a number of ciphertexts to the next ones, (number, 2, primes, slots) uint64."""


class Evaluator:
    """A network's integers under one client's keys.

    Parameters
    ----------
    maps, scale
        Of the plan; see `plan.Plan`.
    ring
        Of its parameters.
    keys
        The client's evaluation keys; None for a network without squares.
    spread
        Range of the outputs.
    public
        (2, slots) uint64: the client's public key modulo the first prime, as ring values.
    """

    def __init__(
        self,
        maps: Sequence[Map],
        scale: float,
        ring: Ring,
        keys: Keys | None,
        public: np.ndarray,
        *,
        spread: float = 1.0,
    ) -> None:
        self._maps, self._scale, self._ring, self._keys, self._public = maps, scale, ring, keys, public
        self._order = Order(ring.moduli, len(maps) - 1)
        self._flood = 2.0 ** (LOG_FLOOD + 1) * spread * scale / np.sqrt(2 * ring.n / 3)

    def __call__(
        self, read: Read, layout: Layout, *, workers: int, noise: AnswerNoise | None = None
    ) -> Iterator[np.ndarray]:
        """Yield each output's ciphertext, (2, slots) uint64 modulo the first prime.

        Parameters
        ----------
        read
            Gives the batch's ciphertexts in the order of `Layout.pack`.
        layout
            Of the batch.
        workers
            Threads.
        noise
            Added to every value, if given.
        """
        with ThreadPoolExecutor(workers) as pool, _blas(1):
            x = self._unfolded(layout.unfolded - 1, read, layout, pool) if self._maps[:-1] else read(layout.inputs)
            for number, shifts in enumerate(layout.shifts, layout.unfolded):
                x = self._folded(number, x, shifts, pool)
            y = self._linear(len(self._maps) - 1, x, pool)
            del x
            wipe = self._wipe(layout) if self._order.before else None
            added = self._noise(layout, noise)

            def finish(number: int) -> np.ndarray:
                one = y[number]
                if wipe is not None:
                    one = self._ring.rescale(self._ring.multiply(one, wipe))
                one = self._ring.add(one, self._zero(layout.positions))
                one[0] = self._ring.add(one[0], zero_sums(self._ring, os.urandom(32), layout.positions)[None])
                if added is not None:
                    one[0] = self._ring.add(one[0], added[number])
                return one[:, 0]

            yield from pool.map(finish, range(len(y)))

    def _unfolded(self, number: int, read: Read, layout: Layout, pool: Executor) -> np.ndarray:
        """Return the squares of one place of the next convolution's cell: depth first, so that little is held."""
        if number == 0:
            return self._squares(number, self._linear(number, read(layout.first), pool), pool)
        places, x = layout.strides[number] ** 2, None
        for place in range(places):
            one = self._unfolded(number - 1, read, layout, pool)
            x = np.empty((places, *one.shape), dtype=np.uint64) if x is None else x
            x[place] = one
        y = self._linear(number, x.reshape(-1, *x.shape[2:]), pool)
        del x
        return self._squares(number, y, pool)

    def _folded(self, number: int, x: np.ndarray, shifts: Sequence[int], pool: Executor) -> np.ndarray:
        """Return the squares of a folded convolution; a few channels are rotated at a time, so that little is held."""
        one, y = self._maps[number], None
        weights = one.weights.reshape(len(one.weights), len(shifts), -1)
        for start in range(0, len(x), CHANNELS):
            some = x[start : start + CHANNELS]
            cells = np.empty((len(shifts), *some.shape), dtype=np.uint64)
            for channel, turned in enumerate(pool.map(partial(self._keys.rotate, rotations=shifts), some)):
                cells[:, channel] = turned
            own = weights[:, :, start : start + CHANNELS].reshape(len(weights), -1)
            cells = cells.reshape(-1, *some.shape[1:])
            more = self._ring.linear(own, cells, None if start else one.bias, pool=pool)
            y = self._ring.add(y, more) if start else more
        return self._squares(number, y, pool)

    def _squares(self, number: int, y: np.ndarray, pool: Executor) -> np.ndarray:
        """Return squares, divided by one prime: before or after squaring."""
        before, after = (self._order.of_map(number) > 1), self._order.of_square(number) > 1

        count, parts, primes, n = y.shape
        out = np.empty((count, parts, primes - 1, n), dtype=np.uint64)

        def square(row: int) -> None:
            out[row] = self._keys.square(self._ring.rescale(y[row]) if before else y[row], rescale=after)

        for _ in pool.map(square, range(count)):
            pass
        return out

    def _linear(self, number: int, x: np.ndarray, pool: Executor) -> np.ndarray:
        return self._ring.linear(self._maps[number].weights, x, self._maps[number].bias, pool=pool)

    def _wipe(self, layout: Layout) -> np.ndarray:
        """Return (2, slots) ring values of a plaintext that keeps the useful slots: ones at a scale of its own."""
        kept = layout.useful if layout.folded else np.ones(layout.positions)
        slots = np.repeat(kept.astype(float), layout.tiles)
        return self._ring.residues(encode(slots[None], 2.0**LOG_WIPE), 1)[0]

    def _noise(self, layout: Layout, noise: AnswerNoise | None) -> np.ndarray | None:
        """Return (outputs, 1, slots) plaintexts of noise: at the first position, so that the sum has it once."""
        if noise is None:
            return None
        drawn = noise.draw(layout.tiles)
        slots = np.zeros((len(drawn), layout.positions, layout.tiles))
        slots[:, 0] = drawn
        return self._ring.residues(encode(slots.reshape(len(drawn), -1), self._scale), 0)

    def _zero(self, positions: int) -> np.ndarray:
        """Return a fresh encryption of zero under the client's public key, (2, 1, slots), with a flooding error."""
        ring, n = self._ring, self._ring.n
        wide = int(self._flood / np.sqrt(positions)) or 1  # the key owner sums over them
        drawn = np.stack([_ternary(n), _uniform(n, wide) + _binomial(n), _binomial(n)]).astype(np.float64)
        u, wide_error, error = ring.residues(drawn, 0)
        return np.stack(
            [
                ring.add(ring.multiply(u, self._public[0][None]), wide_error),
                ring.add(ring.multiply(u, self._public[1][None]), error),
            ]
        )


def _ternary(n: int) -> np.ndarray:
    """Return (n,) uniform -1, 0, 1 from the system's randomness."""
    drawn = np.frombuffer(os.urandom(2 * n), dtype=np.uint8)
    return (drawn[drawn < 255][:n] % 3).astype(np.int64) - 1


def _binomial(n: int) -> np.ndarray:
    """Return (n,) centred binomial integers from the system's randomness."""
    drawn = np.frombuffer(os.urandom(8 * n), dtype="<u4").reshape(2, n) & np.uint32((1 << ETA) - 1)
    ones = np.bitwise_count(drawn).astype(np.int64)
    return ones[0] - ones[1]


def _uniform(n: int, wide: int) -> np.ndarray:
    """Return (n,) integers from -wide / 2 to wide / 2, uniform up to one part in 2^32, from the system's randomness."""
    drawn = np.frombuffer(os.urandom(8 * n), dtype="<u8") >> np.uint64(1)
    return (drawn % np.uint64(wide)).astype(np.int64) - wide // 2


@contextmanager
def _blas(threads: int) -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads, user_api="blas"):
        yield


class Session:
    """One client's keys on a compiled model, in the form ``batch``.

    Parameters
    ----------
    client
        The form.
    maps
        The network's integers.
    keys
        File of the client's evaluation keys.
    workers
        Threads.
    noise
        See `Evaluator`.

    Raises
    ------
    InputError
        If the keys are damaged, or of another model.
    """

    def __init__(
        self,
        client: BatchClient,
        maps: Sequence[Map],
        keys: Path,
        *,
        workers: int,
        noise: AnswerNoise | None = None,
    ) -> None:
        header, start = messages.open_message(keys, "evaluation keys", client=client.hash)
        expected, last = client.evaluation_key_bytes(), 2 * client.parameters.limb_bytes
        least, most = (0.9 * expected, expected + (1 << 20)) if client.squares else (expected, expected)
        if not least <= header["bytes"] <= most:
            problem = "does not have the size of this model's evaluation keys"
            raise InputError(problem, file=keys, field="bytes", value=header["bytes"], expected=f"about {expected}")
        self.key: str = messages.name_of_key(header, file=keys)
        self.client, self._workers, self._noise = client, workers, noise
        public = np.fromfile(keys, "<u8", offset=max(start + header["bytes"] - last, 0)).reshape(2, -1)
        if public.max() >= client.moduli[0]:
            problem, value, limit = "are not evaluation keys for these parameters", int(public.max()), client.moduli[0]
            raise InputError(problem, file=keys, field="public key", value=value, expected=f"below {limit}")
        switching = None
        if client.squares:
            switching = Keys.read(keys, client.ring, client.rotations, start=start, after=last)
        low, high = client.about["output_range"]
        scale = client.batched["scale"]
        self._evaluator = Evaluator(maps, scale, client.ring, switching, public, spread=high - low)

    def evaluate(self, data: bytes | Path, *, file: Any, **expected: Any) -> bytes:
        """Return the output message for an input message, which may lie in a file.

        Raises
        ------
        InputError
            If the message is damaged, not bound to this session, or not made of ciphertexts under its parameters.
        """
        mapped = messages.mapped(data)
        _, start = messages.parse_header(mapped, file)
        bound = {"client": self.client.hash, "key": self.key, **expected}
        payload = messages.unpack(mapped, file=file, kind="input", complete=True, **bound)
        size = len(payload)
        source, start = (data, start) if isinstance(data, Path) else (payload, 0)
        del mapped, payload  # whose pages would count as memory
        if size != (wanted := self.client.input_bytes):
            problem = "does not have the size of a batch"
            raise InputError(problem, file=file, field="bytes", value=size, expected=str(wanted))
        with ONE_AT_A_TIME, source.open("rb") if isinstance(source, Path) else BytesIO(source) as stream:
            stream.seek(start)  # read piece by piece: pages of a map would count as memory
            read = self._reader(stream, self.client.level, file)
            outputs = self._evaluator(read, self.client.layout, workers=self._workers, noise=self._noise)
            results = b"".join(pack_residues(one, self.client.moduli[:1] * 2) for one in outputs)
        return messages.pack("output", results, **bound)

    def _reader(self, stream: BinaryIO, level: int, file: Any) -> Read:
        """Return what reads ciphertexts one after the other: halves from the message, the others from its seed."""
        ring, at = self.client.ring, 0
        seed, moduli = stream.read(SEED), ring.moduli[: level + 1]
        size, primes = packed_bytes(moduli, ring.n), np.array(moduli, dtype=np.uint64)[:, None]

        def read(number: int) -> np.ndarray:
            nonlocal at
            found = np.empty((number, 2, level + 1, ring.n), dtype=np.uint64)
            for row in range(number):
                found[row, 0] = unpack_residues(stream.read(size), moduli, ring.n)
                found[row, 1] = ring.uniform(part_of(seed, at), level)
                at += 1
            if (found[:, 0] >= primes).any():
                problem, fix = "is not made of ciphertexts under these parameters", "encrypt it again for this model"
                raise InputError(problem, file=file, field="coefficients", expected="below its prime", fix=fix)
            return found

        return read

    def close(self) -> None:
        """Free the keys."""
        del self._evaluator
