"""How cost grows, a step with its batch and speech with its length: python -m tests.benchmarks.growth --shape small

Writes growth_<shape>_<device>.json and draws it beside; where matplotlib is not installed, draw later:
python -m tests.benchmarks.growth --draw tests/benchmarks/results/growth_small_cpu.json
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks import generate, measure, shapes, train_step
from tts_kit import device
from tts_kit.device import DeviceConfig
from tts_kit.io import read_json, write_json
from tts_kit.model import attention, lora
from tts_kit.tokens.cache import EncodedClip
from tts_kit.training import dataset

TOKENS, RATIOS, FRAMES = (350, 700, 1400, 2800), {"1/16": 1 / 16, "1": 1.0}, (25, 50, 100, 200, 400)
SECONDS = 10.0
"""Of every clip that is learnt from."""


def clips(shape: str, count: int) -> list[EncodedClip]:
    """Clips of random codes and letters, all as long."""
    numbers, chance = shapes.spec(shape), torch.Generator().manual_seed(0)
    size = (round(SECONDS * numbers.frame_rate), numbers.num_codebooks)
    text = "abcdefghijk" * round(shapes.LETTERS * SECONDS / 11)
    return [EncodedClip(f"clip{number}", text, "0", "", f"clip{number}", "train",
                 torch.randint(1, numbers.codebook_size, size, generator=chance, dtype=torch.int16))
            for number in range(count)]


def training(shape: str, tokens: Sequence[int], place: DeviceConfig, repeats: int, folder: Path) -> list[dict]:
    """Seconds and bytes of a step, one micro-batch of about so many tokens, at each depth ratio."""
    model = shapes.network(shape, place.device)
    model.codec_model = None
    shapes.cast(model, place.dtype)
    attention.install(model)
    model = lora.add_lora(model, train_step.RANK, float(train_step.RANK), "both", train_step.SEED)
    prompt_builder, steps = shapes.prompt_builder(shape), train_step.STEPS[place.device]
    length = len(dataset.build_example(clips(shape, 1)[0], prompt_builder))
    sides = {}
    for count in sorted({max(1, round(each / length)) for each in tokens}):
        material = train_step.Material(clips(shape, count), [], prompt_builder, count, steps)
        for name, ratio in RATIOS.items():
            sides[count, name] = train_step.kit(model, material, ratio, place, folder, {})
    seconds = measure.alternate({key: side.run for key, side in sides.items()}, repeats)
    return [{"tokens": count * length, "clips": count, "depth_frame_fraction": ratio, "seconds": statistics.median(taken),
             "runs": [round(each, 6) for each in taken], "peak_bytes": sides[count, ratio].peak()}
            for (count, ratio), taken in seconds.items()]


def speaking(shape: str, frames: Sequence[int], place: DeviceConfig, repeats: int) -> list[dict]:
    """Seconds for one clip of so many frames."""
    said_by = generate.speaker(shape, place)
    tasks = {count: generate.Task(said_by, said_by.prompts(1), count, place.device) for count in frames}
    seconds = measure.alternate({count: measure.timed(task.kit, place.device) for count, task in tasks.items()}, repeats)
    return [{"frames": count, "seconds": statistics.median(taken), "runs": [round(each, 6) for each in taken]}
            for count, taken in seconds.items()]


def summary(steps: Sequence[dict], said: Sequence[dict]) -> dict:
    """What the plots show, in figures: the last point over the first."""
    by_ratio = {ratio: [each for each in steps if each["depth_frame_fraction"] == ratio] for ratio in RATIOS}
    found = {"tokens": by_ratio["1"][-1]["tokens"] / by_ratio["1"][0]["tokens"],
             "step_seconds": {ratio: each[-1]["seconds"] / each[0]["seconds"] for ratio, each in by_ratio.items()},
             "frames": said[-1]["frames"] / said[0]["frames"],
             "speaking_seconds": said[-1]["seconds"] / said[0]["seconds"]}
    if all(each["peak_bytes"] is not None for each in steps):
        # both ratios hold the same weights and the same backbone
        found["bytes_more_at_ratio_1"] = [all_frames["peak_bytes"] - some["peak_bytes"]
                                          for all_frames, some in zip(by_ratio["1"], by_ratio["1/16"])]
    return found


def draw(found: dict, path: Path) -> None:
    """Three small plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), dpi=80, layout="constrained")
    time, memory, speech = figure.subplots(1, 3)
    for ratio in RATIOS:
        points = [each for each in found["training"] if each["depth_frame_fraction"] == ratio]
        tokens = [each["tokens"] for each in points]
        time.plot(tokens, [each["seconds"] for each in points], "o-", label=f"depth ratio {ratio}")
        if points[0]["peak_bytes"] is not None:
            memory.plot(tokens, [each["peak_bytes"] / 1e9 for each in points], "o-", label=f"depth ratio {ratio}")
    frames = [each["frames"] for each in found["speaking"]]
    speech.plot(frames, [each["seconds"] for each in found["speaking"]], "o-", label="one clip")
    speech.plot(frames, [count / found["settings"]["frame_rate"] for count in frames], "k:", label="its own length")
    for plot, title, below in ((time, "seconds of a training step", "tokens in the batch"),
                               (memory, "GB at its peak", "tokens in the batch"),
                               (speech, "seconds until a clip is said", "frames of the clip")):
        plot.set(title=title, xlabel=below)
        plot.set_ylim(bottom=0)
        plot.set_xlim(left=0)
        plot.grid(alpha=0.3)
        if plot.has_data():
            plot.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{found['shape']} on {found['machine']}", fontsize="small")
    figure.savefig(path, pil_kwargs={"optimize": True})


def drawn(found: dict, path: Path) -> str:
    """Draw it if that is possible here; a sentence about what became of it."""
    try:
        draw(found, path.with_suffix(".png"))
    except ImportError as error:
        return f"No picture: {error}. Where matplotlib is installed: python -m tests.benchmarks.growth --draw {path.name}"
    return f"Drawn: {path.with_suffix('.png').name}"


def main(told: Sequence[str] | None = None) -> dict:
    options = parser().parse_args(told)
    if options.draw:
        found = read_json(options.draw, "Measure it again.")
        print(drawn(found, options.draw))
        return found
    place = device.choose(options.device)
    with tempfile.TemporaryDirectory() as folder:
        steps = training(options.shape, options.tokens, place, options.repeats, Path(folder))
    said = speaking(options.shape, options.frames, place, options.repeats)
    settings = {"rank": train_step.RANK, "clip_seconds": SECONDS, "dtype": str(place.dtype).removeprefix("torch."),
                "frame_rate": shapes.spec(options.shape).frame_rate, "threads": torch.get_num_threads(),
                "clock": measure.clock(place.device)[1], "memory": measure.MEMORY[place.device]}
    found = {"what": "growth", "shape": options.shape, "settings": settings, "training": steps, "speaking": said,
             "last_over_first": summary(steps, said), "machine": device.machine(), "versions": device.versions(),
             "command": measure.command()}
    path = options.out / f"growth_{options.shape}_{place.device}.json"
    write_json(path, found)
    print(drawn(found, path))
    print(json.dumps(found, ensure_ascii=False), flush=True)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    made.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="in a batch")
    made.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="of a spoken clip")
    made.add_argument("--repeats", type=int, default=measure.REPEATS)
    made.add_argument("--device", choices=measure.DEVICES, default="auto")
    made.add_argument("--out", "--folder", type=Path, default=measure.RESULTS)
    made.add_argument("--draw", type=Path, metavar="FILE", help="only draw what was measured before")
    return made


if __name__ == "__main__":
    main()
