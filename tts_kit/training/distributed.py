"""Training in several processes, one per GPU: start-up, collectives, rank 0's decisions and output."""

import contextlib
import datetime
import io
import os
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, reason

TIMEOUT = datetime.timedelta(hours=1)
"""How long the other ranks wait while rank 0 evaluates and generates, before a stuck process is given up."""


def init(device_config: DeviceConfig) -> None:
    """Join the processes that a launcher started and take this one's GPU; a single process has nothing to do."""
    processes, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if processes == 1 or dist.is_initialized():
        return
    if device_config.device == "mps":
        raise KitError(f"{processes} processes were started, and a Mac has one GPU. Start `tts-kit train` without a "
                       "launcher.")
    if device_config.device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise KitError(f"{processes} processes were started for {torch.cuda.device_count()} GPU(s); each needs its "
                           f"own. Start them with --num_processes {torch.cuda.device_count()}, or fewer.")
        torch.cuda.set_device(local_rank)
    else:
        # accelerate would call the CPU cpu:0, and torch loads no optimizer state for a device of that name
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    dist.init_process_group("nccl" if device_config.device == "cuda" else "gloo", timeout=TIMEOUT)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, evaluates and generates for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def all_reduce_sum(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(total.view_as(tensor))


def broadcast_bool(function: Callable[[], bool]) -> bool:
    """Call `function` in rank 0 alone; return its answer in every process."""
    if world_size() == 1:
        return function()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    answer = torch.tensor([is_rank_zero() and function()], dtype=torch.int32, device=device)
    dist.broadcast(answer, 0)
    return bool(answer.item())


@contextlib.contextmanager
def explain_peer_errors() -> Iterator[None]:
    """Turn the failure to reach another process into a clear error; the process that failed reports its own."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo's errors have no class of their own
            raise
        raise KitError(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: another process has stopped or does "
                       f"not answer ({reason(error)}). Its error is printed above, or in its own output. Start all "
                       "processes again: the run resumes from its last checkpoint.") from error


@contextlib.contextmanager
def rank_zero_stdout() -> Iterator[None]:
    """Print in rank 0 only."""
    with contextlib.nullcontext() if is_rank_zero() else contextlib.redirect_stdout(io.StringIO()):
        yield
