"""Train in several processes of one thread each, which on CPUs is faster than one process of several threads."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from tts_kit.errors import KitError


def rank() -> int:
    """Return the number of this process; the first is 0, and the only one too."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def run(task: Callable[..., Any], processes: int, *arguments) -> None:
    """Call `task(*arguments)` in `processes` processes that can sum tensors; in this process if it is one.

    If one fails, the others are ended and its error is raised as a `KitError`."""
    if processes == 1:
        task(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            multiprocessing.spawn(_work, (processes, f"file://{Path(folder) / 'rendezvous'}", task, arguments), processes)
        except multiprocessing.ProcessRaisedException as error:
            last_line = str(error).strip().splitlines()[-1]
            raise KitError(last_line.partition(f"{KitError.__name__}: ")[2] or str(error)) from error


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process run the block before the others do, so that they find the files that it wrote."""
    if distributed.is_initialized() and rank():
        distributed.barrier()
    yield
    if distributed.is_initialized() and not rank():
        distributed.barrier()


@torch.no_grad()
def sum_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes."""
    if not distributed.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype by their means over all processes."""
    if distributed.is_initialized():
        sum_(tensors)
        torch._foreach_div_(list(tensors), distributed.get_world_size())


def _work(index: int, processes: int, rendezvous: str, task: Callable[..., Any], arguments: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rendezvous, rank=index, world_size=processes)
    try:
        task(*arguments)
    finally:
        distributed.destroy_process_group()
