"""Train in several processes of one thread each, which on CPUs is faster than one process of several threads."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed import barrier, destroy_process_group, init_process_group

from tts_kit.errors import KitError
from tts_kit.training import distributed


def run(task: Callable[..., Any], count: int, *arguments) -> None:
    """Call `task(*arguments)` in `count` processes that can sum tensors; in this process if it is one.

    If one fails, the others are ended and its error is raised as a `KitError`."""
    if count == 1:
        task(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            multiprocessing.spawn(_work, (count, f"file://{Path(folder) / 'rendezvous'}", task, arguments), count)
        except multiprocessing.ProcessRaisedException as error:
            last_line = str(error).strip().splitlines()[-1]
            raise KitError(last_line.partition(f"{KitError.__name__}: ")[2] or str(error)) from error


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process run the block before the others do, so that they find the files that it wrote."""
    if not distributed.is_rank_zero():
        barrier()
    yield
    if distributed.is_rank_zero() and distributed.world_size() > 1:
        barrier()


@torch.no_grad()
def mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their means over all processes."""
    distributed.all_reduce_sum(tensors)
    if distributed.world_size() > 1:
        torch._foreach_div_(list(tensors), distributed.world_size())


def _work(rank: int, count: int, rendezvous: str, task: Callable[..., Any], arguments: tuple) -> None:
    # accelerate reads them; it asks for an address, although the processes have met
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1",
                   "MASTER_ADDR": "127.0.0.1", "ACCELERATE_TORCH_DEVICE": "cpu"}
    torch.set_num_threads(1)
    init_process_group("gloo", rendezvous, rank=rank, world_size=count, timeout=distributed.TIMEOUT)
    try:
        task(*arguments)
    finally:
        destroy_process_group()
