"""An evaluator that lies to get the secret key out of published predictions.

A ciphertext (c0, c1) decrypts to c0 + c1 s. So (0, p) decrypts to p s, whatever polynomial p the evaluator writes down:
in every slot, p's value there times the key's. The evaluator adds that to an honest result. It compiled the network, so
it knows directions of the outputs that the last layer cannot reach: nothing of the tile is there, and what a published
prediction has there is key and added noise. Least squares over such directions give the key's slots, and these are
linear in its coefficients (Li and Micciancio, 2021, "On the security of homomorphic encryption on approximate numbers",
is where decrypted CKKS values first gave keys away).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.compile import compile_lowered, write_bundle
from histocrypt.encrypted.lowering import Affine, Lowered, convolution
from histocrypt.encrypted.single import Client


def of_rank(lowered: Lowered, rank: int) -> Lowered:
    """Return the network with a last layer of that rank: what a model's owner does who wants unreachable directions."""
    last = lowered.maps[-1]
    left, size, right = np.linalg.svd(last.matrix.toarray(), full_matrices=False)
    matrix = sp.csr_matrix((left[:, :rank] * size[:rank]) @ right[:rank])
    return Lowered([*lowered.maps[:-1], replace(last, matrix=matrix)], lowered.strides)


def compile_rank(lowered: Lowered, described: dict, about: dict, folder: Path) -> Path:
    """Compile a network as the product does, with the public part ``about`` of an honest one of the same form."""
    write_bundle(folder, compile_lowered(lowered, described), about, {})
    return folder


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
    bundle
        The evaluator's own compiled model.
    evaluation_keys
        The client's; rotations bring what is added to one copy of an output to all of them.
    folder
        For the evaluator's little network.
    """

    def __init__(self, bundle: Path, evaluation_keys: Path, folder: Path) -> None:
        self.client: Client = load_bundle(bundle).client
        parameters, slots = self.client.parameters, self.client.parameters.slots
        self._owner = engine.KeyOwner(parameters)  # for its encoder: it holds no key
        _, start = messages.open_message(evaluation_keys, "evaluation keys", client=self.client.hash)
        self._evaluator = engine.Evaluator(parameters, evaluation_keys, start=start)
        folds = (slots // self.client.output.span).bit_length() - 1
        ones = {(0, 0): {0: np.ones(slots)}}
        node = engine.linear_node("fold", 1, (), ones, np.zeros((1, slots)), log_ratio=0, folds=folds)
        engine.write_model(folder / "fold.orion", parameters, [node], set(self.client.rotations))
        self._fold = engine.load_model(folder / "fold.orion")

    def add(self, output: bytes, *, key_times: np.ndarray, constant: np.ndarray) -> bytes:
        """Return an output ciphertext with constants and a multiple of the key added.

        Parameters
        ----------
        output
            An honest one.
        key_times
            (slots,) what the key's slots are multiplied with; the products are summed over all copies of an output.
        constant
            (outputs,) added to the outputs.
        """
        end = output.find(b"}}") + 2
        (multiple,) = self._evaluator(self._fold, [self._trivial(output[:end], key_times)])
        layout, prime = self.client.output, self.client.moduli[0]
        every = np.tile(layout.pack(constant[:, None])[0, : layout.span], layout.slots // layout.span)
        total = self._polynomials(output) + self._polynomials(multiple)
        total[0] += self._encode(every, level=0)[0]
        words = np.frombuffer(output, "<u8", offset=end).copy()
        words[1:].reshape(2, -1)[:, 2:] = total % np.uint64(prime)
        return output[:end] + words.tobytes()

    def _trivial(self, header: bytes, values: np.ndarray, level: int = 1) -> bytes:
        """Return the ciphertext (0, p) where p's slots are ``values``."""
        limbs, degree = level + 1, 1 << self.client.parameters.logn
        words = np.zeros((2, 1 + limbs * (1 + degree)), "<u8")
        words[:, 0] = limbs
        each = words[:, 1:].reshape(2, limbs, 1 + degree)
        each[:, :, 0] = degree
        each[1, :, 1:] = self._encode(values, level=level)
        return header + np.uint64(2).tobytes() + words.tobytes()

    def _encode(self, values: np.ndarray, *, level: int) -> np.ndarray:
        """Return (primes, degree) residues of the polynomial with these slots."""
        from lattigo import ffi, rlwe

        error, values = ctypes.c_char_p(None), np.ascontiguousarray(values, dtype=np.float64)
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        encoder, scale = self._owner._encoder._handle.raw, 1 << self.client.parameters.log_scale
        handle = ffi._lib_call().EncoderEncode(encoder, pointer, len(values), level, scale, ctypes.byref(error))
        ffi._check_err(error)
        with rlwe.Plaintext(ffi.GoHandle(handle, tag="Plaintext")) as plain:
            words = np.frombuffer(plain.marshal_binary(), np.uint8)
        degree = 1 << self.client.parameters.logn
        return words[-8 * (level + 1) * (degree + 1) :].view("<u8").reshape(level + 1, degree + 1)[:, 1:]

    @staticmethod
    def _polynomials(ciphertext: bytes) -> np.ndarray:
        """Return (2, degree) residues of a ciphertext of one prime."""
        return np.frombuffer(ciphertext, "<u8", offset=ciphertext.find(b"}}") + 2)[1:].reshape(2, -1)[:, 2:]


class Windows:
    """A piece of the key at every place.

    Either another one at each, with a constant code that tells which place a published spot had; or ``everywhere`` the
    same one, so that a spot's two results agree however often spots are sent again.

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
        The same at all places.
    """

    def __init__(
        self, forger: Forger, lowered: Lowered, spread: np.ndarray, *, size: float, everywhere: bool = False
    ) -> None:
        self.forger, self._spread = forger, spread
        self._bias = lowered.maps[-1].bias
        self._free = unreachable_standardised(lowered, spread)
        self.width = self._free.shape[1] // 2
        parameters = forger.client.parameters
        self.typical = np.sqrt(2 * parameters.slots * 2 / 3)
        """Standard deviation of a slot of the key."""
        self._size = size
        chance = np.random.default_rng(1)
        blocks = 1 if everywhere else forger.client.output.slots // forger.client.output.span
        self._codes = chance.choice([-1.0, 1.0], (blocks, len(spread))) * size

    def slots(self, place: int) -> np.ndarray:
        """Return which slots of the key are added at a place."""
        span = self.forger.client.output.span
        return place % len(self._codes) * span + np.arange(self.width)

    def forge(self, output: bytes, place: int) -> bytes:
        """Return what is sent in place of an honest output."""
        chosen = self.slots(place)
        times = np.zeros(self.forger.client.parameters.slots)
        times[chosen] = self._spread[: self.width] * self._size / self.typical
        return self.forger.add(output, key_times=times, constant=self._codes[place % len(self._codes)] * self._spread)

    def recover(self, published: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slots of the key and their values, estimated from a published (spots, outputs) table."""
        there = (published - self._bias) / self._spread @ self._free
        window = self._free[: self.width].T  # (directions, width)
        beside = np.linalg.svd(window)[0][:, self.width :]  # directions that no window reaches: the codes'
        codes = self._codes @ self._free
        apart = ((there @ beside)[:, None] - (codes @ beside)[None]) ** 2
        places = apart.sum(axis=2).argmin(axis=1)
        found = np.linalg.lstsq(window, (there - codes[places]).T, rcond=None)[0].T * self.typical / self._size
        different = np.unique(places)  # with `everywhere` there is one, and what all spots say of it is averaged
        each = np.stack([found[places == place].mean(axis=0) for place in different])
        return np.concatenate([self.slots(place) for place in different]), each.reshape(-1)


def key_slots(owner: engine.KeyOwner, forger: Forger, header: bytes) -> np.ndarray:
    """Return (slots,) of the true secret key, by the key owner's own decryption: what estimates are compared with."""
    return owner.decrypt(forger._trivial(header, np.ones(forger.client.parameters.slots)))


def forge_response(response: Path, windows: Windows) -> None:
    """Put forged ciphertexts in the place of honest ones in a response folder."""
    for place, path in enumerate(sorted(response.glob("[0-9]*.ct"))):
        header = {key: messages.read_header(path)[key] for key in ("client", "key", "request", "index", "of")}
        (output,) = messages.unpack_list(messages.read_message(path, "output"), count=1, file=path)
        messages.write_message(path, "output", messages.pack_list([windows.forge(output, place)]), **header)


def correlation(found: Sequence[float], truth: Sequence[float]) -> tuple[float, float]:
    """Return how well estimates agree with the truth, and the probability that chance agrees as well."""
    from scipy.stats import pearsonr

    result = pearsonr(found, truth)
    return float(result.statistic), float(result.pvalue)
