"""Several processes, one for each GPU, that train one run: who they are, what they add up, who decides and who speaks."""

import contextlib
import datetime
import io
import os
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as group

from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, reason

LONGEST_WAIT = datetime.timedelta(hours=1)
"""For the others, while the first one evaluates, speaks and listens; after it a process that is stuck is given up."""


def init(device_config: DeviceConfig) -> None:
    """Take this process's place among those that a launcher started, and its GPU; alone there is nothing to do."""
    started, place = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    if started == 1 or group.is_initialized():
        return
    if device_config.device == "mps":
        raise KitError(f"{started} processes were started, and a Mac has one GPU. Start `tts-kit train` without a "
                      "launcher.")
    if device_config.device == "cuda":
        if place >= torch.cuda.device_count():
            raise KitError(f"{started} processes were started for {torch.cuda.device_count()} GPU(s); each needs one of its "
                          f"own. Start them with --num_processes {torch.cuda.device_count()}, or fewer.")
        torch.cuda.set_device(place)
    else:
        # accelerate would call the processor cpu:0, and torch opens no optimizer's state for a device of that name
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    group.init_process_group("nccl" if device_config.device == "cuda" else "gloo", timeout=LONGEST_WAIT)


def world_size() -> int:
    return group.get_world_size() if group.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return group.get_rank() if group.is_initialized() else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes, evaluates and speaks for all."""
    return rank() == 0


def all_reduce_sum(tensors: Sequence[torch.Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in one message."""
    if world_size() == 1:
        return
    flat = torch.cat([each.flatten() for each in tensors])
    group.all_reduce(flat)
    for each, total in zip(tensors, flat.split([each.numel() for each in tensors])):
        each.copy_(total.view_as(each))


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """(processes, ...): what each process holds."""
    if world_size() == 1:
        return tensor[None]
    found = [torch.empty_like(tensor) for _ in range(world_size())]
    group.all_gather(found, tensor)
    return torch.stack(found)


def broadcast_bool(question: Callable[[], bool]) -> bool:
    """The first process asks and does; the others wait for its answer."""
    if world_size() == 1:
        return question()
    answer = torch.tensor([is_rank_zero() and question()], dtype=torch.int32, device=_messages())
    group.broadcast(answer, 0)
    return bool(answer.item())


def barrier() -> None:
    """Until all have come this far."""
    broadcast_bool(lambda: True)


@contextlib.contextmanager
def explain_peer_errors() -> Iterator[None]:
    """A process that waits for one that is gone says so; why that one went is told by itself."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, group.DistError) and "gloo" not in str(error):  # whose errors have no class of their own
            raise
        raise KitError(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} waits for the others, and one of them "
                      f"has stopped or does not answer ({reason(error)}). What stopped it stands above, or in "
                      "its own output; then start all of them again: the run goes on from its last checkpoint.") from error


@contextlib.contextmanager
def rank_zero_stdout() -> Iterator[None]:
    """What all of them would print alike is printed by the first."""
    with contextlib.nullcontext() if is_rank_zero() else contextlib.redirect_stdout(io.StringIO()):
        yield


def _messages() -> str:
    """Where a tensor has to be that goes to the others."""
    return "cuda" if group.get_backend() == "nccl" else "cpu"
