"""The one place that touches the engine's internals.

Written for orion-v2-lattigo 6.2.4 (keys, encryption, decryption) and orion-v2-evaluator 2.1.8 (evaluation); `check`
refuses other versions. Two properties of the engine are used that its interface does not promise: the layout of its
model file, which `write_model` writes (so its own compiler, and its packing, are not needed), and that its native calls
take pointers, so that arrays and memory-mapped files go in without a copy.

The two halves are separate native libraries. A process that evaluates loads the second only, which cannot decrypt.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.parameters import Parameters
from histocrypt.errors import InputError
from histocrypt.files import atomic_path

VERSIONS = {"orion-v2-lattigo": "6.2.4", "orion-v2-evaluator": "2.1.8"}
MAGIC = b"ORION\x00\x02\x00"
PACKED = ".xz"
COLLECT_AT = "25"
"""The engine collects garbage when its memory has grown by so many per cent; Go's own default is 100."""
GENERATOR = 5
"""Rotations by k slots are the automorphisms X -> X^(5^k)."""


def check() -> None:
    """Refuse any other version of the engine than the one this file was written for."""
    for package, wanted in VERSIONS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = None
        if found != wanted:
            problem, value = "encrypted inference needs exactly this version of its engine", found or "not installed"
            fix = f"pip install {package}=={wanted}"
            raise InputError(problem, field=package, value=value, expected=wanted, fix=fix)


def galois_order(parameters: Parameters) -> int:
    """Return the order of the roots of unity behind the slots."""
    return 1 << (parameters.logn + (2 if parameters.ring == "conjugate_invariant" else 1))


def galois_element(rotation: int, parameters: Parameters) -> int:
    """Return the automorphism that rotates slots to the left."""
    order = galois_order(parameters)
    return pow(GENERATOR, rotation % order, order)


@dataclass
class Node:
    """One step of the compiled network."""

    name: str
    op: str
    """``linear_transform``, ``quad``, ``add``, ``mult``, ``polynomial`` or ``bootstrap``."""
    level: int
    """Of its input."""
    inputs: tuple[str, ...]
    """Names of earlier nodes; none: the network's input."""
    config: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """Name to a function that makes the bytes, so that only one block is in memory at a time."""


def diagonal_blob(found: dict[int, np.ndarray]) -> bytes:
    """Return diagonals as the engine stores them: count, offsets ascending, values."""
    offsets = sorted(found)
    return b"".join(
        [struct.pack("<I", len(offsets)), np.array(offsets, "<i4").tobytes()]
        + [np.ascontiguousarray(found[offset], "<f8").tobytes() for offset in offsets]
    )


def linear_node(
    name: str,
    level: int,
    inputs: tuple[str, ...],
    blocks: dict[tuple[int, int], dict[int, np.ndarray]],
    bias: np.ndarray,
    *,
    log_ratio: int,
    folds: int,
) -> Node:
    """Return a linear map as a node.

    Parameters
    ----------
    name, level, inputs
        Of the node.
    blocks
        (target ciphertext, source ciphertext) to its diagonals.
    bias
        (target ciphertexts, slots) float64.
    log_ratio
        Baby steps for a giant one, binary logarithm.
    folds
        How often the result is added to itself rotated by slots/2, slots/4, ...
    """
    blobs = {f"diag_{row}_{column}": partial(diagonal_blob, found) for (row, column), found in blocks.items()}
    blobs |= {f"bias_{row}": values.tobytes for row, values in enumerate(bias)}
    config = {
        "bsgs_ratio": float(1 << log_ratio),
        "output_rotations": folds,
        "num_input_cts": 1 + max(column for _, column in blocks),
        "num_output_cts": len(bias),
    }
    return Node(name, "linear_transform", level, inputs, config, blobs)


def write_model(path: Path, parameters: Parameters, nodes: Sequence[Node], rotations: set[int]) -> int:
    """Write a compiled network for the evaluator, block by block; return its size in bytes before compression.

    Under a name that ends in ``.xz`` it is compressed: diagonals repeat the weights, so a hundredth of it is left.
    """
    blobs = [(node, name) for node in nodes for name in node.blobs]
    number = {(node.name, name): i for i, (node, name) in enumerate(blobs)}
    again = parameters.bootstrapping
    graph = {
        "input": nodes[0].name,
        "output": nodes[-1].name,
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "level": node.level,
                "depth": 0 if node.op == "add" else 1,
                "config": node.config,
                **({"blob_refs": {name: number[node.name, name] for name in node.blobs}} if node.blobs else {}),
            }
            for node in nodes
        ],
        "edges": [{"src": source, "dst": node.name} for node in nodes for source in node.inputs],
    }
    meta = {
        "version": 2,
        "params": engine_parameters(parameters),
        "config": {"margin": 1, "embedding_method": "hybrid", "fuse_modules": True},
        "manifest": {
            "galois_elements": sorted(galois_element(rotation, parameters) for rotation in rotations),
            "bootstrap_slots": [1 << again.log_slots] if again else [],
            "boot_logp": list(again.logp) if again else None,
            "btp_logn": again.logn if again else None,
            "needs_rlk": True,
        },
        "input_level": nodes[0].level,
        "cost": {"bootstrap_count": 0, "galois_key_count": len(rotations), "bootstrap_key_count": 0},
        "graph": graph,
        "blob_count": len(blobs),
    }
    header = json.dumps(meta, separators=(",", ":")).encode()
    with atomic_path(path) as temporary, _written(temporary, packed=path.suffix == PACKED) as file:
        file.write(MAGIC + struct.pack("<I", len(header)) + header + struct.pack("<I", len(blobs)))
        for node, name in blobs:
            data = node.blobs[name]()
            file.write(struct.pack("<Q", len(data)))
            file.write(data)
        return file.tell()


def _written(path: Path, *, packed: bool) -> Any:
    import lzma

    path.touch(mode=0o600)  # weights are nobody else's business, in whatever folder they lie
    return lzma.open(path, "wb", preset=1) if packed else path.open("wb")


def engine_parameters(parameters: Parameters) -> dict[str, Any]:
    """Return parameters under the engine's names."""
    again = parameters.bootstrapping
    return {
        "logn": parameters.logn,
        "logq": list(parameters.logq),
        "logp": list(parameters.logp),
        "log_default_scale": parameters.log_scale,
        "h": 2 * (1 << parameters.logn) // 3,  # what a uniform ternary secret has
        "ring_type": parameters.ring,
        "boot_logp": list(again.logp) if again else None,
        "btp_logn": again.logn if again else None,
    }


def minimax_sign(degrees: Sequence[int], *, log_alpha: int, log_error: int) -> list[np.ndarray]:
    """Return a composition of polynomials that approximates the sign, in Chebyshev's basis, each for [-1, 1].

    Parameters
    ----------
    degrees
        Of the polynomials, the first to be applied first.
    log_alpha, log_error
        It is right where ``|x| > 2^-log_alpha``; each polynomial bears an error of ``2^-log_error`` in its input.
    """
    check()
    from lattigo import ffi

    with _quiet():  # the library reports the steps of its search
        values, starts = ffi.gen_minimax_composite_polynomial(list(degrees), 128, log_alpha, log_error)
    return [np.array(part) for part in np.split(np.array(values), starts[1:])]


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what native code prints nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class KeyOwner:
    """Makes keys, encrypts and decrypts. Holds the secret key; never leaves the key owner's process."""

    def __init__(self, parameters: Parameters, *, secret: bytes | None = None, public: bytes | None = None) -> None:
        check()
        from lattigo import ckks, rlwe

        self.parameters = parameters
        given = engine_parameters(parameters)
        self._ckks = ckks.Parameters(
            parameters.logn,
            list(parameters.logq),
            list(parameters.logp),
            parameters.log_scale,
            parameters.ring,
            h=given["h"],
            log_nth_root=parameters.bootstrapping.logn + 1 if parameters.bootstrapping else 0,
        )
        self._encoder = ckks.Encoder(self._ckks)
        self._generator = rlwe.KeyGenerator(self._ckks)
        self._secret = rlwe.SecretKey.unmarshal_binary(secret) if secret else None
        self._public = rlwe.PublicKey.unmarshal_binary(public) if public else None
        self._encryptor = rlwe.Encryptor(self._ckks, self._public) if public else None
        self._decryptor = rlwe.Decryptor(self._ckks, self._secret) if secret else None
        self._sampler: KeyOwner | None = None

    def generate(self) -> tuple[bytes, bytes]:
        """Draw a secret key and its public key; return both as bytes."""
        from lattigo import rlwe

        self._secret = self._generator.gen_secret_key()
        self._public = self._generator.gen_public_key(self._secret)
        self._encryptor = rlwe.Encryptor(self._ckks, self._public)
        self._decryptor = rlwe.Decryptor(self._ckks, self._secret)
        self._sampler = None
        return self._secret.marshal_binary(), self._public.marshal_binary()

    def evaluation_keys(self, rotations: Sequence[int]) -> Iterator[bytes]:
        """Yield the evaluator's key set piece by piece, so that one key at a time is in memory."""
        elements = sorted({galois_element(rotation, self.parameters) for rotation in rotations})
        with self._generator.gen_relin_key(self._secret) as key:
            yield b"\x01" + key.marshal_binary()
        yield b"\x01" + struct.pack("<I", len(elements))
        for element in elements:
            with self._generator.gen_galois_key(self._secret, element) as key:
                yield struct.pack("<Q", element) + key.marshal_binary()

    def secret_bytes(self) -> bytes:
        """Return the secret key as the engine stores it."""
        return self._secret.marshal_binary()

    def moduli(self) -> list[int]:
        """Return the ciphertext primes."""
        return self._ckks.moduli_chain()

    def special_moduli(self) -> list[int]:
        """Return the special primes of key switching."""
        return self._ckks.aux_moduli_chain()

    def zero(self) -> bytes:
        """Return a new encryption of zero under the secret key modulo the ciphertext primes: a public key's bytes."""
        if self._sampler is None:
            self._sampler = self._without_special()
        with self._sampler._generator.gen_public_key(self._sampler._secret) as made:
            return made.marshal_binary()

    def _without_special(self) -> KeyOwner:
        """Return an owner of the same secret whose ring has no special primes: its samples are a quarter cheaper."""
        if not self.parameters.logp:
            return self
        limbs = len(self.parameters.logq) * (8 + self.parameters.limb_bytes)
        secret = self.secret_bytes()[: 8 + limbs] + struct.pack("<Q", 0)  # count and ciphertext primes; none follow
        owner = KeyOwner(replace(self.parameters, logp=(), bootstrapping=None), secret=secret)
        if owner.moduli() != self.moduli():
            raise RuntimeError("the engine did not choose the same primes without special ones")
        return owner

    def encrypt(self, values: np.ndarray, level: int) -> bytes:
        """Encrypt (slots,) float64 under the public key."""
        from lattigo import ffi, rlwe

        values = np.ascontiguousarray(values, dtype=np.float64)
        error = ctypes.c_char_p(None)
        handle = ffi._lib_call().EncoderEncode(
            self._encoder._handle.raw,
            values.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
            len(values),
            level,
            1 << self.parameters.log_scale,
            ctypes.byref(error),
        )
        ffi._check_err(error)
        with (
            rlwe.Plaintext(ffi.GoHandle(handle, tag="Plaintext")) as plain,
            self._encryptor.encrypt_new(plain) as ciphertext,
        ):
            return ciphertext.marshal_binary()

    def decrypt(self, ciphertext: bytes) -> np.ndarray:
        """Decrypt to (slots,) float64."""
        from lattigo import rlwe

        with (
            rlwe.Ciphertext.unmarshal_binary(ciphertext) as given,
            self._decryptor.decrypt_new(given) as plain,
        ):
            return np.array(self._encoder.decode(plain, self.parameters.slots))


def restart_to_collect_early() -> None:
    """Start this command again with the engine's garbage collector set to run early: a third less memory.

    Go reads its settings from the environment that the process was started with, and never again. A user's own
    ``GOGC`` is left alone, and so is a process that was not started as this command, such as a test's.
    """
    arguments = sys.argv[1:]
    if "GOGC" not in os.environ and sys.orig_argv[-len(arguments) :] == arguments:
        environment = {**os.environ, "GOGC": COLLECT_AT}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def load_model(path: Path) -> Any:
    """Load a compiled network; every diagonal is encoded now."""
    check()
    import lzma

    from orion_evaluator import ffi

    packed = Path(path).suffix == PACKED
    with _mapped(np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8) if packed else path) as (pointer, size):
        error = ctypes.c_char_p(None)
        handle = ffi._lib_call().EvalLoadModel(pointer, size, ctypes.byref(error))
        ffi._check_err(error)
    return ffi.GoHandle(int(handle), tag="EvalModel", delete_fn=ffi._delete_handle)


class EngineError(RuntimeError):
    """What the engine cannot evaluate, in its own words: they may tell of the network, so clients do not get them."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the evaluating engine's own exceptions into `EngineError`."""
    from orion_evaluator.errors import EvaluatorError

    try:
        yield
    except (EvaluatorError, struct.error, UnicodeDecodeError) as error:
        raise EngineError(" ".join(str(error).split())) from error


class Evaluator:
    """Evaluates compiled networks on ciphertexts with somebody's evaluation keys. Not for two threads at once.

    Raises
    ------
    EngineError
        If the engine takes the keys, or later ciphertexts, for none of these parameters.
    """

    def __init__(
        self,
        parameters: Parameters,
        keys: Path | np.ndarray,
        bootstrapping_keys: Path | None = None,
        *,
        start: int = 0,  # where the keys begin in their file
        bootstrapping_start: int = 0,
    ) -> None:
        check()
        from orion_evaluator import ffi

        given = json.dumps(engine_parameters(parameters)).encode()
        with (
            _refusals(),
            _mapped(keys, start) as (pointer, size),
            _mapped(bootstrapping_keys, bootstrapping_start) as (more, more_size),
        ):
            error = ctypes.c_char_p(None)
            handle = ffi._lib_call().EvalNewEvaluator(given, pointer, size, more, more_size, ctypes.byref(error))
            ffi._check_err(error)
        self._handle = ffi.GoHandle(int(handle), tag="Evaluator", delete_fn=ffi._delete_handle)

    def __call__(self, model: Any, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """Return the network's outputs for its inputs, all as serialised ciphertexts."""
        from orion_evaluator import ffi

        with _refusals():
            return ffi.evaluator_forward(self._handle, model, list(ciphertexts))

    def close(self) -> None:
        """Free keys and buffers."""
        from orion_evaluator import ffi

        if self._handle:
            ffi.evaluator_close(self._handle)


@contextmanager
def _mapped(path: Path | np.ndarray | None, start: int = 0) -> Iterator[tuple[Any, ctypes.c_ulong]]:
    """Give the engine a file, or an array of bytes, without copying it into Python first.

    The engine reads the file once, front to back: a second thread lets go of the pages meanwhile, so that they do not
    count as this process's memory beside the engine's own copies.
    """
    import mmap

    if path is None:
        yield None, ctypes.c_ulong(0)
        return
    if isinstance(path, np.ndarray):
        yield ctypes.c_void_p(path.ctypes.data), ctypes.c_ulong(path.nbytes)
        return
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        array = np.frombuffer(mapped, dtype=np.uint8, offset=start)
        read = threading.Event()

        def let_go() -> None:
            while not read.wait(0.05):
                mapped.madvise(mmap.MADV_DONTNEED)

        helper = threading.Thread(target=let_go, daemon=True)
        helper.start()
        try:
            yield ctypes.c_void_p(array.ctypes.data), ctypes.c_ulong(len(array))
        finally:
            read.set()
            helper.join()
            del array
