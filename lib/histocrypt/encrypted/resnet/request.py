"""A request of encrypted tiles through a bootstrapped network: several tiles at a time, layer by layer, resumable."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Bundle
from histocrypt.encrypted.resnet.run import (
    AHEAD_GIB,
    TOGETHER_GIB,
    Estimate,
    Timing,
    estimate,
    evaluate,
    read_ciphertexts,
    write_ciphertexts,
)
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.machine import peak_gib

GROUP = 32
"""Tiles that go through the network together: of what is done once for all of them, each bears a thirty-second part;
results come a group at a time."""
PROGRESS = "progress.json"
"""In the folder of a request that is in work: its tiles, its layer, of how many layers."""


def cost_of(bundle: Bundle) -> Estimate:
    """Return what a compiled network costs."""
    return estimate(read_json(bundle.model / "steps.json")["steps"], bundle.client.parameters)


def room_for_layers(cost: Estimate, tiles: int, workers: int, *, bundle: Bundle) -> float:
    """Return the memory that encoded layers may take, GiB.

    Raises
    ------
    InputError
        If there is not memory enough for the least.
    """
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if (least := cost.gib(workers)) > free:
        problem, fix = "this machine has too little memory to evaluate this model", "use fhe_cnn, or another machine"
        value, expected = f"{free:.1f} GiB free", f"{least:.0f} GiB"
        raise InputError(problem, file=bundle.folder, value=value, expected=expected, fix=fix)
    spare = 0.9 * free - least
    return AHEAD_GIB if tiles == 1 else min(TOGETHER_GIB, AHEAD_GIB + max(spare, 0.0))


def evaluate_tiles(
    bundle: Bundle,
    keys: Path,
    request: Path,
    output: Path,
    pending: Sequence[int],
    answer: dict[str, Any],
    *,
    workers: int = 1,
) -> str:
    """Evaluate the ciphertexts of a request that have no result yet; `evaluator.evaluate_request` calls this.

    Parameters
    ----------
    bundle
        The compiled model.
    keys
        The client's evaluation keys.
    request, output
        Folders; ``output/work`` holds the outputs of layers, encrypted, until a group of tiles is done.
    pending
        Places of the tiles.
    answer
        ``client``, ``key``, ``request`` and ``of``, as headers must say.
    workers
        Refreshes at once, of two tiles each where activations are squares; each takes memory of its own, so that there
        is one where nobody asks for more.

    Raises
    ------
    InputError
        If memory is short, the keys are another client's, or a ciphertext is damaged or belongs to something else.
    """
    client, started = bundle.client, time.monotonic()
    cost = cost_of(bundle)
    workers = min(workers, -(-len(pending) // cost.together))
    ahead = room_for_layers(cost, len(pending), workers, bundle=bundle)
    stated, minutes = cost.gib(workers, ahead_gib=ahead), cost.seconds(len(pending), GROUP, refreshers=workers) / 60
    said = f"about {minutes:.0f} min on two idle cores and {stated:.1f} GiB of memory"
    once = workers * cost.together
    print(f"{len(pending)} tiles, {once} of them refreshed at once, {said}", file=sys.stderr)
    header, start = messages.open_message(keys, "evaluation keys", client=client.hash)
    if header.get("key") != answer["key"]:
        problem, wanted = "these are another client's evaluation keys", str(answer["key"])
        raise InputError(problem, file=keys, field="key", value=header.get("key"), expected=wanted)
    loading, work = time.monotonic() - started, output / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    started = time.monotonic()
    for first in range(0, len(pending), GROUP):
        group = {work / f"{index:05d}.ct": index for index in pending[first : first + GROUP]}
        for tile, index in group.items():
            _unpack(request / tile.name, tile, bundle, index=index, **answer)
        try:
            how = {"start": start, "refreshers": workers, "ahead_gib": ahead, "progress": _Progress(len(group), work)}
            results = evaluate(bundle.model, keys, list(group), work, **how)
        except engine.EngineError as error:
            fix = "check that keys and ciphertexts belong together"
            raise InputError("cannot be evaluated", file=request, field="ciphertexts", fix=fix) from error
        for result, (tile, index) in zip(results, group.items(), strict=True):
            payload = messages.pack_list(read_ciphertexts(result))
            with atomic_path(output / tile.name) as temporary:
                temporary.write_bytes(messages.pack("output", payload, index=index, **answer))
        shutil.rmtree(work)
        work.mkdir(mode=0o700)
    work.rmdir()
    seconds = time.monotonic() - started
    figures = {
        "messages": len(pending),
        "workers": workers,
        "load_seconds": round(loading, 3),
        "seconds": round(seconds, 3),
        "stated_gib": round(stated, 3),
        "peak_gib": round(peak_gib() or 0.0, 3),
    }
    write_json(output / "cost.json", figures)
    return (
        f"{output}: {len(pending)} tiles in {seconds / 60:.1f} min ({seconds / len(pending):.0f} s each), "
        f"peak {peak_gib() or 0.0:.2f} GiB"
    )


def _unpack(message: Path, tile: Path, bundle: Bundle, **expected: Any) -> None:
    """Check a message of the request and write its ciphertexts, unless an earlier call has."""
    payload = messages.read_message(message, "input", most=bundle.client.most_input_bytes, **expected)
    write_ciphertexts(tile, check_tile(payload, bundle.client, file=message))


def check_tile(payload: messages.Data, client: Client, *, file: Any) -> list[messages.Data]:
    """Return the ciphertexts of an input message; `InputError` where they are not fresh ones of this model."""
    parts = messages.unpack_list(payload, count=client.input.ciphertexts, file=file)
    for part in parts:
        messages.check_ciphertext(part, client.parameters, client.moduli, client.level, file=file, fresh=True)
    return parts


class _Progress:
    """A bar over layers, which says what each took; a file says how far they are."""

    def __init__(self, tiles: int, work: Path) -> None:
        self._tiles, self._work, self._bar = tiles, work, None

    def __call__(self, timing: Timing) -> None:
        from tqdm.auto import tqdm

        if self._bar is None:
            self._bar = tqdm(total=timing.of, initial=timing.number, desc=f"{self._tiles} tiles", unit="layer")
        write_json(self._work / PROGRESS, {"tiles": self._tiles, "layer": timing.number + 1, "of": timing.of})
        self._bar.set_postfix_str(f"{timing.step} {timing.waited + timing.evaluated:.0f} s")
        self._bar.update()
        if self._bar.n == timing.of:
            self._bar.close()
