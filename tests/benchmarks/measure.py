"""What the speed benchmarks share: sides timed in turn, their memory, and one JSON object that says all of it.

Needs torch, transformers, peft and this repository, nothing else, so that it runs on a lent GPU machine without network.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from tts_kit import device as runtime
from tts_kit.io import write_json

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
"""Timed runs of each side, after one that is dropped."""
DEVICES = ("auto", "cuda", "mps", "cpu")
MEMORY = {"cuda": "bytes of tensors on the GPU (torch.cuda.max_memory_allocated)",
          "cpu": "bytes of live tensors (torch.profiler)", "mps": "not measured"}
"""How `above` measures; both sides of a comparison are measured in the same way."""


def wait(device: str) -> None:
    """Until the device has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> tuple[Callable[[], float], str]:
    """What tells the time, and its name: on one thread of a CPU the processor's time, which leaves out whatever else runs
    on the machine and is the wall's time where nothing else does."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor"
    return time.perf_counter, "wall"


def now(device: str) -> float:
    """The time when the device has done all that it was told."""
    wait(device)
    return clock(device)[0]()


def timed(work: Callable[[], object], device: str) -> Callable[[], float]:
    """`work` as something that says how many seconds it took."""
    def run() -> float:
        begun = now(device)
        work()
        return now(device) - begun

    return run


def alternate(sides: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """What each side said of its runs: A B A B ..., the first round dropped as warm-up.

    In turn, because a machine that slows down for a while then slows both down.
    """
    seconds = {name: [] for name in sides}
    with tqdm(total=(repeats + 1) * len(sides), desc="runs", leave=False, file=sys.stderr) as bar:
        for number in range(repeats + 1):
            for name, run in sides.items():
                bar.set_postfix_str(name)
                taken = run()
                if number:
                    seconds[name].append(taken)
                bar.update()
    return seconds


def speed(seconds: Sequence[float], amount: float, unit: str, **more) -> dict:
    """One side of a row: `amount` of what `unit` counts (clips/s, frames/s, ...) was done in each of the runs."""
    median = statistics.median(seconds)
    return {"speed": amount / median, "unit": unit, "seconds": median, "fastest": min(seconds), "slowest": max(seconds),
            "runs": [round(each, 6) for each in seconds], **more}


def not_measured(why: str) -> dict:
    """A side that could not run here."""
    return {"not_measured": why}


def above(work: Callable[[], object], device: str) -> int | None:
    """Bytes that `work` held at its peak, over what was held before it; see `MEMORY`."""
    if device == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        wait(device)
        return torch.cuda.max_memory_allocated() - before
    if device == "mps":
        work()
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    changes = sorted((event.start_ns(), event.nbytes()) for event in seen.profiler.kineto_results.events()
                     if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def held(tensors: Iterable[torch.Tensor], device: str) -> int:
    """Bytes of tensors on the device, those that share their memory counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors
                if each.device.type == device}
    return sum(storages.values())


def row(what: str, shape: str, against: str, settings: dict, kit: dict, other: dict) -> dict:
    """One comparison as every benchmark writes it; `ratio` is the kit's speed over the other's, None if one is missing."""
    both = "speed" in kit and "speed" in other
    return {"what": what, "shape": shape, "against": against, "settings": settings, "kit": kit, "other": other,
            "ratio": kit["speed"] / other["speed"] if both else None, "machine": runtime.machine(),
            "versions": runtime.versions(), "command": command()}


def command() -> str:
    """The command line that was given, without this machine's paths."""
    called = getattr(sys.modules["__main__"], "__spec__", None)
    module = called.name.removesuffix(".__main__") if called else Path(sys.argv[0]).stem
    return " ".join(["python -m", module, *sys.argv[1:]])


def report(rows: Sequence[dict], device: str, folder: Path = RESULTS) -> dict:
    """Write the rows of one command as one file, print the same as one line, the last; returns it."""
    rows = [{**each, "clock": clock(device)[1]} for each in rows]
    first = rows[0]
    same = {key: first[key] for key in ("what", "shape", "against", "machine", "versions", "command")}
    found = first if len(rows) == 1 else {**same, "rows": rows}
    name = "-".join([first["what"], first["shape"], first["against"], device]).replace(" ", "_")
    write_json(Path(folder) / f"{name}.json", found)
    print(json.dumps(found, ensure_ascii=False), flush=True)
    return found


def rows_of(found: dict) -> list[dict]:
    """The rows of a file that `report` wrote; none for results of another kind."""
    return found.get("rows", [found] if "ratio" in found else [])
