"""An evaluator that lies to get the secret key out of published predictions.

A ciphertext (c0, c1) decrypts to c0 + c1 s. So (0, p) decrypts to p s, whatever polynomial p the evaluator writes down:
in every slot, p's value there times the key's. The evaluator adds that to an honest result. It compiled the network, so
it knows directions of the outputs that the last layer cannot reach: nothing of the tile is there, and what a published
prediction has there is key and added noise. Least squares over such directions give the key's slots, and these are
linear in its coefficients (Li and Micciancio, 2021, "On the security of homomorphic encryption on approximate numbers",
is where decrypted CKKS values first gave keys away).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.batch.client import BatchClient
from histocrypt.encrypted.batch.embedding import encode, slots
from histocrypt.encrypted.batch.packed import pack_residues, unpack_residues
from histocrypt.encrypted.batch.plan import Unfit, make_plan
from histocrypt.encrypted.batch.ring import Ring
from histocrypt.encrypted.batch.secret import read_secret
from histocrypt.encrypted.bundle import Client
from histocrypt.encrypted.compile import Compiled, compile_lowered, write_bundle
from histocrypt.encrypted.key_owner import Keys
from histocrypt.encrypted.lowering import Affine, Lowered, convolution
from histocrypt.encrypted.packing import Layout, best_ratio, diagonals


def of_rank(lowered: Lowered, rank: int, *, gain: float) -> Lowered:
    """Return the network with a last layer of that rank: what a model's owner does who wants unreachable directions.

    What comes out varies ``gain`` times as much.
    """
    last = lowered.maps[-1]
    left, size, right = np.linalg.svd(last.matrix.toarray(), full_matrices=False)
    matrix = sp.csr_matrix((gain * left[:, :rank] * size[:rank]) @ right[:rank])
    return Lowered([*lowered.maps[:-1], replace(last, matrix=matrix)], lowered.strides)


def compile_anew(lowered: Lowered, described: dict, about: dict, inputs: np.ndarray, folder: Path) -> None:
    """Compile a network as the product does, in all forms that it fits, with the panel and units of an honest one."""
    outputs = lowered(inputs)
    largest = [*lowered.largest(inputs), float(np.abs(outputs).max())]
    public, private, plan = {key: value for key, value in about.items() if key != "batch_form"}, {}, None
    try:
        reached = {"input_range": about["input_range"], "largest": largest, "examples": inputs.astype(float)}
        plan = make_plan(lowered, described["input"], **reached)
        public["batch_form"], private["batch_bytes"] = plan.public(), plan.most_bytes()
    except Unfit:
        pass
    write_bundle(folder, compile_lowered(lowered, described), public, private, plan)


def unreachable(lowered: Lowered) -> np.ndarray:
    """Return (outputs, directions), orthonormal: what the last layer adds to its bias has no part along them."""
    matrix = lowered.maps[-1].matrix.toarray()
    left, size, _ = np.linalg.svd(matrix)
    return left[:, int((size > 1e-9 * size[0]).sum()) :]


def with_pixels(lowered: Lowered, spread: np.ndarray, *, size: float) -> tuple[Lowered, np.ndarray]:
    """Return another network of the same form, which also writes the tile's coarse pixels into its outputs.

    Its first convolution has two more channels, m + 1 and m, where m is the mean of a cell: the difference of their
    squares is 2 m + 1.

    Parameters
    ----------
    lowered
        A network of two maps whose last one leaves as many directions unreached as the first one has cells.
    spread
        (outputs,) standard deviations of its outputs.
    size
        Of what is added for a cell of one standard deviation, as a share of that.

    Returns
    -------
    Lowered
        The network.
    np.ndarray
        (outputs, cells): its outputs' standardised part along these is the cells' means.
    """
    first, last = lowered.maps
    channels, cells = first.target[0], int(np.prod(first.target[1:]))
    kernel = np.ones((1, *_kernel(first)))
    mean = convolution(kernel / kernel.size, None, first.source, stride=kernel.shape[-1])
    free = unreachable_standardised(lowered, spread)[:, :cells]
    gain = size * spread[:, None] * free / 2
    return Lowered(
        [
            replace(
                first,
                matrix=sp.vstack([first.matrix, mean.matrix, mean.matrix]).tocsr(),
                bias=np.concatenate([first.bias, np.ones(cells), np.zeros(cells)]),
                target=(channels + 2, *first.target[1:]),
            ),
            replace(
                last,
                matrix=sp.hstack([last.matrix, gain, -gain]).tocsr(),
                bias=last.bias - gain.sum(axis=1),
                source=(channels + 2, *first.target[1:]),
            ),
        ],
        lowered.strides,
    ), free / size


def _kernel(first: Affine) -> tuple[int, int, int]:
    """Return (channels, height, width) of the kernel of a convolution whose stride is its kernel."""
    return (first.source[0], first.source[1] // first.target[1], first.source[2] // first.target[2])


def unreachable_standardised(lowered: Lowered, spread: np.ndarray) -> np.ndarray:
    """Return `unreachable` of the outputs in units of their standard deviations."""
    last = lowered.maps[-1]
    return unreachable(Lowered([replace(last, matrix=sp.diags(1 / spread) @ last.matrix)], []))


class Forger:
    """Writes multiples of the key with what an evaluator has: public part, evaluation keys, and an honest result.

    Parameters
    ----------
    client
        The public part, in the form ``single``.
    evaluation_keys
        The client's; rotations bring what is added to one copy of an output to all of them.
    folder
        For the evaluator's little network.
    """

    def __init__(self, client: Client, evaluation_keys: Path, folder: Path) -> None:
        self.client, parameters, slots = client, client.parameters, client.parameters.slots
        self._ring = Ring(parameters.logn, client.moduli)
        _, start = messages.open_message(evaluation_keys, "evaluation keys", client=self.client.hash)
        self._evaluator = engine.Evaluator(parameters, evaluation_keys, start=start)
        folds = (slots // self.client.output.span).bit_length() - 1
        ones = {(0, 0): {0: np.ones(slots)}}
        node = engine.linear_node("fold", 1, (), ones, np.zeros((1, slots)), log_ratio=0, folds=folds)
        engine.write_model(folder / "fold.orion", parameters, [node], set(self.client.rotations))
        self._fold = engine.load_model(folder / "fold.orion")

    def add(self, output: bytes, key_times: np.ndarray) -> bytes:
        """Return an output ciphertext with a multiple of the key added.

        Parameters
        ----------
        output
            An honest one.
        key_times
            (slots,) what the key's slots are multiplied with; the products are summed over all copies of an output.
        """
        header, honest = read_polynomials(output)
        (multiple,) = self._evaluator(self._fold, [self._key_times(header, key_times)])
        return write_polynomials(header, self._ring.add(honest, read_polynomials(multiple)[1]))

    def _key_times(self, header: bytes, values: np.ndarray) -> bytes:
        """Return the ciphertext (0, p) at level 1, where p's slots are ``values``."""
        p = self._ring.residues(encode(values, 2.0**self.client.parameters.log_scale), 1)
        return write_polynomials(header, np.stack([np.zeros_like(p), p]))


class Windows:
    """Adds a piece of the key at every place of single results: another one at each, or ``everywhere`` the same.

    Parameters
    ----------
    forger
        Who writes.
    lowered
        Its network.
    spread
        (outputs,) standard deviation of each output over a section, which the evaluator knows from training.
    size
        Standard deviation of what is added to an output, as a share of that.
    everywhere
        The same at all places: a spot's results agree then, however often it is sent.
    """

    def __init__(
        self, forger: Forger, lowered: Lowered, spread: np.ndarray, *, size: float, everywhere: bool = False
    ) -> None:
        self.forger, self._spread, self._size, self._everywhere = forger, spread, size, everywhere
        self._bias, self._free = lowered.maps[-1].bias, unreachable_standardised(lowered, spread)
        self.width = self._free.shape[1] // 2
        self.typical = np.sqrt(2 * forger.client.parameters.slots * 2 / 3)
        """Standard deviation of a slot of the key."""

    def slots(self, place: int) -> np.ndarray:
        """Return which slots of the key are added at a place."""
        layout = self.forger.client.output
        block = 0 if self._everywhere else place % (layout.slots // layout.span)
        return block * layout.span + np.arange(self.width)

    def forge(self, payload: bytes, place: int) -> bytes:
        """Return what is sent in place of an honest result."""
        (output,) = messages.unpack_list(payload, count=1, file="response")
        times = np.zeros(self.forger.client.parameters.slots)
        times[self.slots(place)] = self._spread[: self.width] * self._size / self.typical
        return messages.pack_list([self.forger.add(output, times)])

    def recover(self, published: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slots of the key and estimates of them.

        Parameters
        ----------
        published
            (spots, outputs).
        places
            (spots,) where each spot's result came from. The evaluator would find that out by a code at each place.
        """
        there = (published - self._bias) / self._spread @ self._free
        found = np.linalg.lstsq(self._free[: self.width].T, there.T, rcond=None)[0].T * self.typical / self._size
        if self._everywhere:
            return self.slots(0), found.mean(axis=0)
        return np.concatenate([self.slots(place) for place in places]), found.reshape(-1)


class Multiplied:
    """Makes the key's slots the weights of a network, for single results: every copy of a spot agrees.

    Each of ``functions`` linear functions of the tile is an output. Every other output is a sum over them, times slots
    of the key: an honest network's last layer, but for its weights. Products are differences of squares.

    Parameters
    ----------
    compiled
        An honest network of three levels; only its form is kept.
    functions
        How many.
    size
        Of a weight: standard deviation.
    """

    def __init__(self, compiled: Compiled, functions: int, *, size: float) -> None:
        self.functions, self._parameters = functions, compiled.parameters
        slots, source, outputs = compiled.parameters.slots, compiled.layouts[0], compiled.layouts[-1]
        self._span, self._count = outputs.span, len(outputs.index)
        chance = np.random.default_rng(0)
        values = chance.normal(size=(functions, len(source.index))) / np.sqrt(len(source.index))
        held = Layout((functions * self._span,), slots, np.arange(functions * self._span))  # each in a block of slots
        of_tile, folds = diagonals(sp.csr_matrix(np.repeat(values, self._span, axis=0)), source, held)
        picked = (np.arange(functions), np.arange(functions) * self._span)
        shape = (self._count, functions * self._span)
        to_outputs, out_folds = diagonals(sp.csr_matrix((np.ones(functions), picked), shape=shape), held, outputs)
        (ratio, first), (out_ratio, second) = best_ratio(of_tile, slots), best_ratio(to_outputs, slots)
        halves = {slots >> step for step in range(1, max(folds, out_folds) + 1)}
        self.compiled = replace(compiled, rotations=compiled.rotations | first | second | halves)
        """What keys are asked for: the client makes those that the public part names."""
        nothing, same = np.zeros((1, slots)), {(0, 0): {0: np.ones(slots)}}
        how = {"log_ratio": 0, "folds": 0}
        self._networks = {
            "functions": [engine.linear_node("a", 3, (), of_tile, nothing, log_ratio=ratio, folds=folds)],
            "square": [engine.Node("b", "quad", 2, ())],
            "sum": [engine.linear_node("c", 1, (), same, nothing, **how | {"folds": out_folds})],
            "outputs": [
                engine.linear_node("d", 2, (), to_outputs, nothing, log_ratio=out_ratio, folds=out_folds),
                engine.linear_node("e", 1, ("d",), same, nothing, **how),
            ],
        }
        self._times = np.zeros(slots)
        self._times[self._slots().reshape(-1)] = size / 4 / np.sqrt(2 * slots * 2 / 3)

    def _slots(self) -> np.ndarray:
        """Return (functions, other outputs): which slot of the key is whose weight."""
        return np.arange(self.functions)[:, None] * self._span + np.arange(self.functions, self._count)

    def evaluate(self, inputs: Sequence[bytes], client: Client, evaluation_keys: Path, folder: Path) -> list[bytes]:
        """Return results for input ciphertexts."""
        _, start = messages.open_message(evaluation_keys, "evaluation keys", client=client.hash)
        run = engine.Evaluator(self._parameters, evaluation_keys, start=start)
        loaded, ring = {}, Ring(self._parameters.logn, client.moduli)
        for name, nodes in self._networks.items():
            engine.write_model(folder / name, self._parameters, nodes, self.compiled.rotations)
            loaded[name] = engine.load_model(folder / name)
        key = ring.residues(encode(self._times, 2.0**self._parameters.log_scale), 2)
        results = []
        for one in inputs:
            (held,) = run(loaded["functions"], [one])
            head, (b, a) = read_polynomials(held)
            squares = [
                run(loaded["square"], [write_polynomials(head, np.stack([b, moved(a, key)]))])[0]
                for moved in (ring.add, ring.subtract)
            ]
            head, plus = read_polynomials(squares[0])
            product = write_polynomials(head, ring.subtract(plus, read_polynomials(squares[1])[1]))
            (total,), (shown,) = run(loaded["sum"], [product]), run(loaded["outputs"], [held])
            head, shown = read_polynomials(shown)
            results.append(write_polynomials(head, ring.add(shown, read_polynomials(total)[1])))
        return results

    def recover(self, published: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slots of the key and estimates of them, up to a factor, from a published (spots, outputs) table."""
        shown, others = np.split(published, [self.functions], axis=1)
        return self._slots().reshape(-1), np.linalg.lstsq(shown, others, rcond=None)[0].reshape(-1)


def read_polynomials(ciphertext: bytes) -> tuple[bytes, np.ndarray]:
    """Return a serialised ciphertext's header and its (2, primes, N) residues."""
    end = ciphertext.find(b"}}") + 2
    words = np.frombuffer(ciphertext, "<u8", offset=end)
    polynomials = words[1:].reshape(2, -1)[:, 1:].reshape(2, int(words[1]), -1)
    return ciphertext[:end], polynomials[:, :, 1:]


def write_polynomials(header: bytes, polynomials: np.ndarray) -> bytes:
    """Return what `read_polynomials` reads."""
    limbs, n = polynomials.shape[1:]
    words = np.zeros((2, 1 + limbs * (1 + n)), "<u8")
    words[:, 0] = limbs
    each = words[:, 1:].reshape(2, limbs, 1 + n)
    each[:, :, 0], each[:, :, 1:] = n, polynomials
    return header + np.uint64(2).tobytes() + words.tobytes()


class BatchForger:
    """Adds numbers of the key to the results of a batch: no key is needed for it, evaluation keys neither.

    The number of place t is the key's slot t (of position 0), along one direction of the outputs that is unreached.

    Parameters
    ----------
    client
        The public part, in the form ``batch``.
    lowered
        The evaluator's network.
    spread
        (outputs,) standard deviation of each output over a section.
    """

    def __init__(self, client: BatchClient, lowered: Lowered, spread: np.ndarray) -> None:
        self.client, self._spread, self._bias = client, spread, lowered.maps[-1].bias
        free = unreachable_standardised(lowered, spread)
        along = free @ (free.T @ np.random.default_rng(1).choice([-1.0, 1.0], len(spread)))
        self.along = along / np.sqrt((along**2).mean())
        self.typical = np.sqrt(2 * client.ring.n * 2 / 3)
        """Standard deviation of a slot of the key."""

    def forge(self, payload: bytes, sizes: np.ndarray) -> bytes:
        """Return a forged payload; ``sizes`` (places,) says how much is added, as a share of an output's deviation."""
        ring = self.client.ring
        times = np.zeros((len(self._spread), ring.n))
        times[:, : len(sizes)] = (self.along * self._spread)[:, None] * sizes / self.typical
        moduli = ring.moduli[:1] * (2 * len(times))
        results = unpack_residues(payload, moduli, ring.n).reshape(-1, 2, 1, ring.n)
        results[:, 1] = ring.add(results[:, 1], ring.residues(encode(times, self.client.batched["scale"]), 0))
        return pack_residues(results.reshape(-1, ring.n), moduli)

    def recover(self, published: np.ndarray) -> np.ndarray:
        """Return (spots,) estimates of the numbers, up to a factor, from a published (spots, outputs) table."""
        return (published - self._bias) / self._spread @ self.along


def key_slots(keys: Keys) -> np.ndarray:
    """Return (slots,) of the true secret key: what estimates are compared with."""
    ring = Ring(keys.client.parameters.logn, keys.client.moduli)
    return slots(ring, read_secret(keys.decryptor().secret_bytes(), ring)[:1], 1.0)[0]


def correlation(found: Sequence[float], truth: Sequence[float]) -> tuple[float, float]:
    """Return how well estimates agree with the truth, and the probability that chance agrees as well."""
    from scipy.stats import pearsonr

    result = pearsonr(found, truth)
    return float(result.statistic), float(result.pvalue)
