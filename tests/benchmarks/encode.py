"""Sound to codes, many clips at once against one by one: python -m tests.benchmarks.encode --shape csm-1b

One by one twice: by the kit's own codec, and by transformers' MimiModel. The codes are compared first; where two are not
equal, the share that differs is in the file and must be next to nothing.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tests.benchmarks import measure, shapes
from tts_kit import device as runtime
from tts_kit.errors import KitError
from tts_kit.tokens import codec
from tts_kit.tokens.codec import Codec

TINY = Path(__file__).parents[2] / "sample_data" / "tiny-csm"
CLIPS, BATCH, SECONDS = 16, 8, (2.0, 10.0)
MOST_UNEQUAL = 1e-3
"""Share of codes that may differ: additions in another order tip a code that lies between two."""


def listener(shape: str, device: str) -> Codec:
    """The codec of the bundled tiny-csm, or one of random weights."""
    if shape == "tiny":
        return codec.load(str(TINY), device=device)
    return Codec(shapes.network(shape, device).codec_model, shapes.spec(shape))


def batched(sound: Codec, waves: Sequence[np.ndarray], batch: int) -> list[torch.Tensor]:
    """(frames, codebooks) of each clip by the kit, neighbours in length together, the longest first, as `tokens.cache`."""
    order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
    codes = {}
    for start in range(0, len(order), batch):
        some = order[start:start + batch]
        codes |= zip(some, sound.encode([waves[index] for index in some]))
    return [codes[index] for index in range(len(waves))]


@torch.inference_mode()
def stock(sound: Codec, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """The same by transformers' own call, a clip at a time."""
    found = []
    with runtime.full_float32():
        for wave in waves:
            codes = sound.model.encode(torch.from_numpy(wave)[None, None].to(sound.device)).audio_codes
            found.append(codes[0].T.to("cpu", torch.int16))
    return found


def unequal(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> float:
    """The share of codes in which two lists differ; refuses more than arithmetic explains."""
    if [each.shape for each in one] != [each.shape for each in two]:
        raise KitError("the same clips have different numbers of frames by two ways of encoding. Nothing is timed before "
                      "that is mended.")
    share = (torch.cat(list(one)) != torch.cat(list(two))).float().mean().item()
    if share > MOST_UNEQUAL:
        raise KitError(f"{share:.2%} of the codes differ between two ways of encoding the same clips; wanted none, or at "
                      f"most {MOST_UNEQUAL:.2%} tipped by the order of additions. Nothing is timed before that is mended.")
    return share


def rows(shape: str, device: str, clips: int, batch: int, repeats: int) -> list[dict]:
    """Many at once against both ways of one by one."""
    sound, numbers = listener(shape, device), shapes.spec(shape)
    waves = [each.wave for each in shapes.sounds(shape, clips, SECONDS)]
    seconds = sum(map(len, waves)) / numbers.sample_rate
    work = {"kit": partial(batched, sound, waves, batch), "kit's codec": partial(batched, sound, waves, 1),
            "transformers": partial(stock, sound, waves)}
    codes = {name: run() for name, run in tqdm(work.items(), desc="codes compared", leave=False)}
    held = measure.held((*sound.model.parameters(), *sound.model.buffers()), device)
    memory = {name: measure.above(run, device) for name, run in work.items()}
    timed = measure.alternate({name: measure.timed(run, device) for name, run in work.items()}, repeats)
    sides = {name: measure.speed(taken, seconds, "s of audio/s", audio_seconds_per_second=seconds / np.median(taken),
                                 peak_bytes=None if memory[name] is None else held + memory[name])
             for name, taken in timed.items()}
    same = settings(clips, batch, seconds, device)
    return [measure.row("encode", shape, "one by one", same | {"by": by, "unequal_codes": unequal(codes["kit"], codes[by])},
                        sides["kit"], sides[by]) for by in ("kit's codec", "transformers")]


def settings(clips: int, batch: int, seconds: float, device: str) -> dict:
    return {"clips": clips, "seconds": round(seconds, 1), "between_seconds": list(SECONDS), "batch": batch,
            "dtype": "float32", "threads": torch.get_num_threads(), "memory": measure.MEMORY[device]}


def main(told: Sequence[str] | None = None) -> list[dict]:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    made.add_argument("--clips", type=int, default=CLIPS)
    made.add_argument("--batch", type=int, default=BATCH, help="clips that the kit encodes at once")
    made.add_argument("--repeats", type=int, default=measure.REPEATS)
    made.add_argument("--device", choices=measure.DEVICES, default="auto")
    made.add_argument("--out", "--folder", type=Path, default=measure.RESULTS)
    options = made.parse_args(told)
    device = runtime.choose(options.device).device
    found = rows(options.shape, device, options.clips, options.batch, options.repeats)
    measure.report(found, device, options.out)
    return found


if __name__ == "__main__":
    main()
