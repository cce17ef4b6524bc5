"""What the speed benchmarks share: alternating timed runs, memory measurement and the JSON result.

Needs only torch, transformers, peft and this repository, so that it runs on a GPU machine without network.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from tests.benchmarks import shapes
from tts_kit import device as devices
from tts_kit.io import write_json

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
"""Timed runs of each side, after one warm-up run that is dropped."""
MEMORY = {"cuda": "bytes of tensors on the GPU (torch.cuda.max_memory_allocated)",
          "cpu": "bytes of live tensors (torch.profiler)", "mps": "not measured"}
"""How `extra_peak_bytes` measures; both sides of a comparison are measured in the same way."""


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all speed benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    options.add_argument("--repeats", type=int, default=REPEATS, help="timed runs of each side, after a warm-up run")
    options.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    options.add_argument("--out", "--folder", type=Path, default=RESULTS)
    return options


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> tuple[Callable[[], float], str]:
    """Return the clock function and its name: processor time on a single CPU thread, which excludes other processes on
    the machine, and wall time otherwise."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor"
    return time.perf_counter, "wall"


def current_time(device: str) -> float:
    """Return the time after the device has finished all queued work."""
    synchronize(device)
    return clock(device)[0]()


def timer(function: Callable[[], object], device: str) -> Callable[[], float]:
    """Wrap `function` so that a call returns how many seconds it took."""
    def timed_run() -> float:
        start = current_time(device)
        function()
        return current_time(device) - start

    return timed_run


def alternate(sides: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Return the durations of each side, run in turn (A B A B ...), the first round dropped as warm-up.

    In turn, so that a temporary slowdown of the machine affects all sides alike.
    """
    durations = {name: [] for name in sides}
    with tqdm(total=(repeats + 1) * len(sides), desc="runs", leave=False, file=sys.stderr) as bar:
        for round_index in range(repeats + 1):
            for name, run in sides.items():
                bar.set_postfix_str(name)
                duration = run()
                if round_index:
                    durations[name].append(duration)
                bar.update()
    return durations


def speed(durations: Sequence[float], amount: float, unit: str, **other_values) -> dict:
    """Return one side of a row; `amount` (clips, frames, ...) is what each run processed, `unit` is that per second."""
    median = statistics.median(durations)
    return {"speed": amount / median, "unit": unit, "seconds": median, "fastest": min(durations), "slowest": max(durations),
            "runs": [round(duration, 6) for duration in durations], **other_values}


def not_measured(reason: str) -> dict:
    """Return the side of a row for what could not run on this machine."""
    return {"not_measured": reason}


def extra_peak_bytes(function: Callable[[], object], device: str) -> int | None:
    """Return the peak bytes of a call above what was held before it, None where they are not measured; see `MEMORY`."""
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - bytes_before
    if device == "mps":
        function()
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    changes = sorted((event.start_ns(), event.nbytes()) for event in profiler.profiler.kineto_results.events()
                     if event.name() == "[memory]")
    held_bytes = peak_bytes = 0
    for _, change in changes:
        held_bytes += change
        peak_bytes = max(peak_bytes, held_bytes)
    return peak_bytes


def tensor_bytes(tensors: Iterable[torch.Tensor], device: str) -> int:
    """Return the bytes of tensors on the device, shared storages counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
                if tensor.device.type == device}
    return sum(storages.values())


def row(benchmark: str, shape: str, against: str, settings: dict, kit: dict, other: dict) -> dict:
    """Return one comparison in the form of all benchmarks; `ratio` is the kit's speed over the other's or None."""
    comparable = "speed" in kit and "speed" in other
    return {"what": benchmark, "shape": shape, "against": against, "settings": settings, "kit": kit, "other": other,
            "ratio": kit["speed"] / other["speed"] if comparable else None, "machine": devices.machine(),
            "versions": devices.versions(), "command": command()}


def command() -> str:
    """Return the command line of this process, without this machine's paths."""
    main_spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = main_spec.name.removesuffix(".__main__") if main_spec else Path(sys.argv[0]).stem
    return " ".join(["python -m", module, *sys.argv[1:]])


def report(rows: Sequence[dict], device: str, folder: Path = RESULTS) -> dict:
    """Write the rows of one command as one JSON file, print it as the last line and return it."""
    rows = [{**row, "clock": clock(device)[1]} for row in rows]
    first = rows[0]
    common = {key: first[key] for key in ("what", "shape", "against", "machine", "versions", "command")}
    result = first if len(rows) == 1 else {**common, "rows": rows}
    name = "-".join([first["what"], first["shape"], first["against"], device]).replace(" ", "_")
    write_json(Path(folder) / f"{name}.json", result)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def rows_of(result: dict) -> list[dict]:
    """Return the rows of a file that `report` wrote; none for results of another kind."""
    return result.get("rows", [result] if "ratio" in result else [])
