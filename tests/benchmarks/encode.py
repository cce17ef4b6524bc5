"""Encoding of audio, batched against one clip at a time: python -m tests.benchmarks.encode --shape csm-1b

One clip at a time is measured twice: with the kit's own codec and with transformers' MimiModel. The codes are compared
first; the share of codes that differ is written to the result and must not exceed MAX_UNEQUAL.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tests.benchmarks import measure, shapes
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.tokens import codec
from tts_kit.tokens.codec import Codec

TINY = Path(__file__).parents[2] / "sample_data" / "tiny-csm"
CLIPS, BATCH, SECONDS = 16, 8, (2.0, 10.0)
MAX_UNEQUAL = 1e-3
"""Share of codes that may differ: another order of additions can change a code at a quantization boundary."""


def load_codec(shape: str, device: str) -> Codec:
    """Return the codec of the bundled tiny-csm, or one with random weights."""
    if shape == "tiny":
        return codec.load(str(TINY), device=device)
    return Codec(shapes.network(shape, device).codec_model, shapes.spec(shape))


def encode_batched(codec: Codec, waves: Sequence[np.ndarray], batch: int) -> list[torch.Tensor]:
    """Return the kit's (frames, codebooks) of each clip, batched by length, longest first, as `tokens.cache` does."""
    order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
    codes = {}
    for start in range(0, len(order), batch):
        indices = order[start:start + batch]
        codes |= zip(indices, codec.encode([waves[index] for index in indices]))
    return [codes[index] for index in range(len(waves))]


@torch.inference_mode()
def encode_stock(codec: Codec, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Return the same codes by transformers' own call, one clip at a time."""
    clip_codes = []
    with device.full_float32():
        for wave in waves:
            codes = codec.model.encode(torch.from_numpy(wave)[None, None].to(codec.device)).audio_codes
            clip_codes.append(codes[0].T.to("cpu", torch.int16))
    return clip_codes


def unequal_share(codes: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Return the share of codes that differ between two lists; raise if it is more than rounding explains."""
    if [clip.shape for clip in codes] != [clip.shape for clip in reference]:
        raise KitError("two encoders give different numbers of frames for the same clips. Fix that before timing them.")
    share = (torch.cat(list(codes)) != torch.cat(list(reference))).float().mean().item()
    if share > MAX_UNEQUAL:
        raise KitError(f"{share:.2%} of the codes differ between two encoders of the same clips; at most {MAX_UNEQUAL:.2%} "
                       "can come from the order of additions. Fix that before timing them.")
    return share


def compare(shape: str, device: str, clips: int, batch: int, repeats: int) -> list[dict]:
    """Return a row for batched encoding against each encoder that takes one clip at a time."""
    encoder, spec = load_codec(shape, device), shapes.spec(shape)
    waves = [clip.wave for clip in shapes.random_clips(shape, clips, SECONDS)]
    seconds = sum(map(len, waves)) / spec.sample_rate
    encoders = {"kit": partial(encode_batched, encoder, waves, batch),
                "kit's codec": partial(encode_batched, encoder, waves, 1),
                "transformers": partial(encode_stock, encoder, waves)}
    codes = {name: encode() for name, encode in tqdm(encoders.items(), desc="codes compared", leave=False)}
    weight_bytes = measure.tensor_bytes((*encoder.model.parameters(), *encoder.model.buffers()), device)
    extra_bytes = {name: measure.extra_peak_bytes(encode, device) for name, encode in encoders.items()}
    durations = measure.alternate({name: measure.timer(encode, device) for name, encode in encoders.items()}, repeats)
    sides = {name: measure.speed(runs, seconds, "s of audio/s", audio_seconds_per_second=seconds / np.median(runs),
                                 peak_bytes=None if extra_bytes[name] is None else weight_bytes + extra_bytes[name])
             for name, runs in durations.items()}
    settings = {"clips": clips, "seconds": round(seconds, 1), "between_seconds": list(SECONDS), "batch": batch,
                "dtype": "float32", "threads": torch.get_num_threads(), "memory": measure.MEMORY[device]}
    return [measure.row("encode", shape, "one by one",
                        settings | {"by": name, "unequal_codes": unequal_share(codes["kit"], codes[name])},
                        sides["kit"], sides[name]) for name in ("kit's codec", "transformers")]


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    parser = measure.parser(__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--batch", type=int, default=BATCH, help="clips that the kit encodes at once")
    options = parser.parse_args(arguments)
    device_type = device.choose(options.device).device
    rows = compare(options.shape, device_type, options.clips, options.batch, options.repeats)
    measure.report(rows, device_type, options.out)
    return rows


if __name__ == "__main__":
    main()
