"""How the cost of a training step grows with its batch, and of generation with its length:
python -m tests.benchmarks.growth --shape small

Writes growth_<shape>_<device>.json and a plot of it; where matplotlib is not installed, draw it later:
python -m tests.benchmarks.growth --draw tests/benchmarks/results/growth_small_cpu.json
"""

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
from tts_kit.training import dataset

TOKENS, RATIOS, FRAMES = (350, 700, 1400, 2800), {"1/16": 1 / 16, "1": 1.0}, (25, 50, 100, 200, 400)
SECONDS = 10.0
"""Length of every training clip."""


def measure_training(shape: str, tokens: Sequence[int], device_config: DeviceConfig, repeats: int,
                     folder: Path) -> list[dict]:
    """Return seconds and bytes of a step with one micro-batch of about so many tokens, at each depth ratio."""
    model = train_step.with_lora(shapes.network(shape, device_config.device), device_config)
    prompt_builder, steps = shapes.prompt_builder(shape), train_step.STEPS[device_config.device]
    length = len(dataset.build_example(shapes.random_codes(shape, 1, (SECONDS, SECONDS))[0], prompt_builder))
    sides = {}
    for count in sorted({max(1, round(batch_tokens / length)) for batch_tokens in tokens}):
        clips = shapes.random_codes(shape, count, (SECONDS, SECONDS))
        training_clips = train_step.TrainSet(clips, [], prompt_builder, count, steps)
        for name, ratio in RATIOS.items():
            sides[count, name] = train_step.kit_side(model, training_clips, ratio, device_config, folder, {})
    durations = measure.alternate({key: side.run for key, side in sides.items()}, repeats)
    return [{"tokens": count * length, "clips": count, "depth_frame_fraction": ratio, "seconds": statistics.median(runs),
             "runs": [round(run, 6) for run in runs], "peak_bytes": sides[count, ratio].peak_bytes()}
            for (count, ratio), runs in durations.items()]


def measure_generation(shape: str, frames: Sequence[int], device_config: DeviceConfig, repeats: int) -> list[dict]:
    """Return the seconds for generating one clip of so many frames."""
    random_speaker = generate.speaker(shape, device_config)
    device_type = device_config.device
    tasks = {count: generate.Task(random_speaker, random_speaker.prompts(1), count, device_type) for count in frames}
    durations = measure.alternate({count: measure.timer(task.kit, device_type) for count, task in tasks.items()}, repeats)
    return [{"frames": count, "seconds": statistics.median(runs), "runs": [round(run, 6) for run in runs]}
            for count, runs in durations.items()]


def growth_factors(step_rows: Sequence[dict], generation_rows: Sequence[dict]) -> dict:
    """Return the last point of each curve divided by the first."""
    by_ratio = {ratio: [row for row in step_rows if row["depth_frame_fraction"] == ratio] for ratio in RATIOS}
    factors = {"tokens": by_ratio["1"][-1]["tokens"] / by_ratio["1"][0]["tokens"],
               "step_seconds": {ratio: rows[-1]["seconds"] / rows[0]["seconds"] for ratio, rows in by_ratio.items()},
               "frames": generation_rows[-1]["frames"] / generation_rows[0]["frames"],
               "speaking_seconds": generation_rows[-1]["seconds"] / generation_rows[0]["seconds"]}
    if all(row["peak_bytes"] is not None for row in step_rows):
        # weights and backbone take the same memory at both ratios
        factors["bytes_more_at_ratio_1"] = [all_frames["peak_bytes"] - sampled["peak_bytes"]
                                            for all_frames, sampled in zip(by_ratio["1"], by_ratio["1/16"])]
    return factors


def draw(result: dict, path: Path) -> None:
    """Draw three small plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), dpi=80, layout="constrained")
    time_plot, memory_plot, generation_plot = figure.subplots(1, 3)
    for ratio in RATIOS:
        rows = [row for row in result["training"] if row["depth_frame_fraction"] == ratio]
        tokens = [row["tokens"] for row in rows]
        time_plot.plot(tokens, [row["seconds"] for row in rows], "o-", label=f"depth ratio {ratio}")
        if rows[0]["peak_bytes"] is not None:
            memory_plot.plot(tokens, [row["peak_bytes"] / 1e9 for row in rows], "o-", label=f"depth ratio {ratio}")
    frames = [row["frames"] for row in result["speaking"]]
    generation_plot.plot(frames, [row["seconds"] for row in result["speaking"]], "o-", label="one clip")
    clip_seconds = [count / result["settings"]["frame_rate"] for count in frames]
    generation_plot.plot(frames, clip_seconds, "k:", label="length of the clip")
    for plot, title, label in ((time_plot, "seconds of a training step", "tokens in the batch"),
                               (memory_plot, "peak GB", "tokens in the batch"),
                               (generation_plot, "seconds to generate a clip", "frames of the clip")):
        plot.set(title=title, xlabel=label)
        plot.set_ylim(bottom=0)
        plot.set_xlim(left=0)
        plot.grid(alpha=0.3)
        if plot.has_data():
            plot.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{result['shape']} on {result['machine']}", fontsize="small")
    figure.savefig(path, pil_kwargs={"optimize": True})


def draw_if_possible(result: dict, path: Path) -> str:
    """Draw the result if matplotlib is installed; return a sentence about it."""
    try:
        draw(result, path.with_suffix(".png"))
    except ImportError as error:
        return f"No picture: {error}. Where matplotlib is installed: python -m tests.benchmarks.growth --draw {path.name}"
    return f"Drawn: {path.with_suffix('.png').name}"


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = measure.parser(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="in a batch")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="of a generated clip")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="only draw the result in this file")
    options = parser.parse_args(arguments)
    if options.draw:
        result = read_json(options.draw, "Measure it again.")
        print(draw_if_possible(result, options.draw))
        return result
    device_config = device.choose(options.device)
    with tempfile.TemporaryDirectory() as folder:
        step_rows = measure_training(options.shape, options.tokens, device_config, options.repeats, Path(folder))
    generation_rows = measure_generation(options.shape, options.frames, device_config, options.repeats)
    settings = {"rank": train_step.RANK, "clip_seconds": SECONDS, "dtype": str(device_config.dtype).removeprefix("torch."),
                "frame_rate": shapes.spec(options.shape).frame_rate, "threads": torch.get_num_threads(),
                "clock": measure.clock(device_config.device)[1], "memory": measure.MEMORY[device_config.device]}
    result = {"what": "growth", "shape": options.shape, "settings": settings, "training": step_rows,
              "speaking": generation_rows, "last_over_first": growth_factors(step_rows, generation_rows),
              "machine": device.machine(), "versions": device.versions(), "command": measure.command()}
    path = options.out / f"growth_{options.shape}_{device_config.device}.json"
    write_json(path, result)
    print(draw_if_possible(result, path))
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


if __name__ == "__main__":
    main()
