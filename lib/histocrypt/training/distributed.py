"""What processes that train one model together share: who they are, and what the first of them says.

Started by ``torchrun``, every process holds the same network and sees its share of each batch; see
`pipeline.stem_samples`. Without torchrun there is one process and nothing here does anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long the others wait for the first process, which draws the predictions alone."""


def number() -> int:
    """Return this process's number, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agreed(value: T) -> T:
    """Return the first process's value, so that all of them decide alike."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean(value: float, device: torch.device) -> float:
    """Return the mean over all processes."""
    if count() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / count()


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        dist.barrier()


def check_equal(network: torch.nn.Module) -> None:
    """Check that every process holds the same weights, to the bit.

    Raises
    ------
    RuntimeError
        If they do not: then something besides the shared gradients changed them.
    """
    if count() == 1:
        return
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    found: list[str] = [""] * count()
    dist.all_gather_object(found, digest.hexdigest())
    if len(set(found)) > 1:
        raise RuntimeError("the processes that trained together hold different weights")


def own_share(index: torch.Tensor) -> torch.Tensor:
    """Return this process's rows of a batch."""
    return index[number() :: count()]


@contextmanager
def together() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yield this process's device."""
    from histocrypt.machine import choose_device

    device = choose_device()
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
