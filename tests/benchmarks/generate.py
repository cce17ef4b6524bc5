"""Speaking against transformers' own `generate`: python -m tests.benchmarks.generate --shape csm-1b --batch 1 8 32

Both say the same prompts for as many frames, the stop rule off, sampled alike; before that both must give the same codes
when greedy, in float32. The real-time factor is the time for all clips of a batch over the length of one of them. A file
for each batch and cache, written as soon as it is measured.
"""

import argparse
import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch.nn.functional import pad

from tests.benchmarks import measure, shapes
from tts_kit import device as runtime
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.generation import generate
from tts_kit.generation.generate import Sampling
from tts_kit.model import load
from tts_kit.spec import ModelSpec
from tts_kit.tokens import streaming
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import Example, PromptBuilder, Turn

TINY = Path(__file__).parents[2] / "sample_data" / "tiny-csm"
FRAMES = 50
"""4 s, about a sentence."""
CHECKED, CHECKED_FRAMES = 2, 4
"""Prompts and frames whose greedy codes are compared: enough for every head and table, too few for two logits to be so
near each other that the order of additions decides."""
FIRST = 2
"""Frames in the first chunk of sound."""
SENTENCES = ("The river is deep.", "He lost two wooden chairs in the garden behind the old house.", "Who is that girl?",
             "Count from one to ten and then tell me what you have heard.", "We met in the garden.",
             "Her voice is known here, and in the village on the other side of the hill.", "It was too dark.",
             "The dog ran away before anybody could say a word.")
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static", "depth_decoder_cache_implementation": "static"}}
"""Caches of transformers' `generate`; `dynamic` is what it does when told nothing."""


@dataclass
class Speaker:
    """A network with what both sides need to speak with it; they share the weights."""
    model: torch.nn.Module
    codec: Codec
    spec: ModelSpec
    prompt_builder: PromptBuilder
    sampling: Sampling

    def prompts(self, count: int) -> list[Example]:
        """Sentences of different lengths, again from the first when there are no more."""
        texts = itertools.islice(itertools.cycle(SENTENCES), count)
        return [self.prompt_builder.build(text, [Turn(text, "0")]) for text in texts]


@dataclass
class Task:
    """What is said in one run."""
    speaker: Speaker
    prompts: Sequence[Example]
    frames: int
    device: str

    def kit(self, sampling: Sampling | None = None, int8: bool = False) -> torch.Tensor:
        """(prompts, frames, codebooks) codes said by the kit."""
        speaker, count = self.speaker, len(self.prompts)
        with mock.patch.object(generate, "is_eos_frame", lambda frame: torch.zeros(len(frame), dtype=torch.bool)):
            takes = generate.generate(speaker.model, speaker.spec, self.prompts, sampling or speaker.sampling,
                                   range(count), [self.frames] * count, int8=int8)
        return torch.stack([take.codes for take in takes]).long()

    def other(self, sampling: Sampling | None = None, cache: str = "dynamic", **more) -> torch.Tensor:
        """The same said by transformers."""
        ids, mask = left_padded(self.prompts, self.speaker.prompt_builder.eos)
        with endless(self.speaker.model), torch.inference_mode():
            codes = self.speaker.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=self.frames,
                **stock_sampling(sampling or self.speaker.sampling), **CACHES[cache], **more).cpu()
        if codes.shape[1] != self.frames:
            raise KitError(f"transformers ended after {codes.shape[1]} of {self.frames} frames: its stop rule is not off.")
        return codes

    def first_sound(self, int8: bool = False) -> float:
        """Seconds until the first prompt can be heard while it is still being said."""
        speaker, begun = self.speaker, measure.now(self.device)
        frames = generate.stream(speaker.model, speaker.spec, self.prompts, speaker.sampling,
                                 range(len(self.prompts)), self.frames, int8)
        chunk = torch.stack([frame[0] for frame in itertools.islice(frames, FIRST)])
        streaming.StreamingDecoder(speaker.codec).decode(chunk)
        seconds = measure.now(self.device) - begun
        frames.close()
        return seconds

    def decode(self, codes: torch.Tensor) -> float:
        """Seconds for the sound of one whole clip, its words that are no codes made some that are."""
        known = codes[0].clamp(max=self.speaker.spec.codebook_size - 1)
        return measure.timed(lambda: self.speaker.codec.decode([known]), self.device)()


def speaker(shape: str, place: DeviceConfig) -> Speaker:
    """The bundled tiny-csm, or a network of random weights that says something else in every frame."""
    if shape == "tiny":
        base = load.load_base(str(TINY), place)
        return Speaker(base.model, base.codec, base.spec, base.prompt_builder, base.sampling)
    model = shapes.network(shape, place.device)
    codec, model.codec_model = Codec(model.codec_model, shapes.spec(shape)), None
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, weight.shape[1] ** -0.5)
    shapes.cast(model, place.dtype)
    return Speaker(model, codec, shapes.spec(shape), shapes.prompt_builder(shape), Sampling())


def left_padded(prompts: Sequence[Example], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, (prompts, longest) each."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [pad(prompt.input_ids, (longest - len(prompt), 0), value=filler) for prompt in prompts]
    mask = [pad(torch.ones_like(prompt.input_ids), (longest - len(prompt), 0)) for prompt in prompts]
    return torch.stack(ids), torch.stack(mask)


def stock_sampling(sampling: Sampling) -> dict:
    """The same sampling in transformers' words; all of them every time, because it keeps the depth decoder's."""
    if sampling.temperature == 0:
        return {"do_sample": False, "depth_decoder_do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k,
            "depth_decoder_do_sample": True, "depth_decoder_temperature": sampling.depth_temperature,
            "depth_decoder_top_k": sampling.top_k}


@contextlib.contextmanager
def endless(model) -> Iterator[None]:
    """Transformers without its stop rule: no frame consists of a code that does not exist."""
    kept, model.config.codebook_eos_token_id = model.config.codebook_eos_token_id, -1
    try:
        yield
    finally:
        model.config.codebook_eos_token_id = kept


def check(shape: str, device: str) -> str:
    """Refuse to time two that do not say the same."""
    speaking = speaker(shape, runtime.choose(device, "float32"))
    task = Task(speaking, speaking.prompts(CHECKED), CHECKED_FRAMES, device)
    nothing = list(range(speaking.spec.codebook_size, speaking.model.config.vocab_size))
    greedy = Sampling(temperature=0, depth_temperature=0)
    with runtime.full_float32():
        codes = task.kit(greedy)
        wanted = task.other(greedy, suppress_tokens=nothing, depth_decoder_suppress_tokens=nothing)
    # transformers keeps it in the depth decoder's own settings, where it would slow down what is timed next
    speaking.model.depth_decoder.generation_config.suppress_tokens = None
    if not torch.equal(codes, wanted):
        clip, frame, book = (codes != wanted).nonzero()[0].tolist()
        raise KitError(f"the kit and transformers say different codes for {shape}, greedy and in float32: first at clip "
                      f"{clip}, frame {frame}, codebook {book}. Nothing is timed before that is mended.")
    return f"equal: {len(codes.unique())} different codes in {codes.numel()}, greedy, float32"


def row(shape: str, task: Task, equality: str, repeats: int, cache: str = "dynamic", int8: bool = False) -> dict:
    """The kit against `generate` with one kind of cache."""
    settings = {"batch": len(task.prompts), "frames": task.frames, "cache": cache, "int8": int8, "first_chunk": FIRST,
                "dtype": str(task.speaker.model.dtype).removeprefix("torch."), "greedy_codes": equality,
                "longest_prompt": max(map(len, task.prompts)), "threads": torch.get_num_threads(),
                "memory": measure.MEMORY[task.device]}
    sides = {"kit": lambda: task.kit(int8=int8), "other": lambda: task.other(cache=cache)}
    generate.TALKERS.clear()  # so that what the kit lays by for speaking is counted as well
    memory = {"kit": peak(task, sides["kit"])}
    try:
        memory["other"] = peak(task, sides["other"])
        codes = sides["other"]()
    except Exception as error:  # whatever transformers and its compiler raise is a result, and the kit's figures stay
        other = measure.not_measured(f"not run: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        del sides["other"]
    seconds = measure.alternate({name: measure.timed(run, task.device) for name, run in sides.items()}, repeats)
    kit = side(task, seconds["kit"], memory["kit"], statistics.median(task.first_sound(int8) for _ in range(repeats)))
    if "other" in sides:
        decoding = statistics.median(task.decode(codes) for _ in range(repeats))
        other = side(task, seconds["other"], memory["other"], statistics.median(seconds["other"]) + decoding)
    return measure.row(" ".join([f"generate batch {len(task.prompts)}", *["int8"] * int8]), shape,
                       "transformers" if cache == "dynamic" else f"transformers {cache}", settings, kit, other)


def side(task: Task, seconds: Sequence[float], memory: int | None, first_sound: float) -> dict:
    """What one side reached, in the units that people ask for."""
    median, rate = statistics.median(seconds), task.speaker.spec.frame_rate
    frames = len(task.prompts) * task.frames
    return measure.speed(seconds, frames, "frames/s", rtf=median * rate / task.frames, frames_per_second=frames / median,
                         audio_seconds_per_second=frames / rate / median, first_audio_seconds=first_sound,
                         peak_bytes=memory)


def peak(task: Task, work: Callable[[], object]) -> int | None:
    """Bytes of the weights and of all that is held above them."""
    above = measure.above(work, task.device)
    return None if above is None else above + measure.held(task.speaker.model.parameters(), task.device)


def main(told: Sequence[str] | None = None) -> list[dict]:
    """A row for each cache and batch."""
    options = parser().parse_args(told)
    place = runtime.choose(options.device)
    equality = check(options.shape, place.device)
    speaking, rows = speaker(options.shape, place), []
    for cache in options.caches:
        for batch in options.batch:
            task = Task(speaking, speaking.prompts(batch), options.frames, place.device)
            rows.append(row(options.shape, task, equality, options.repeats, cache, options.int8))
            measure.report(rows[-1:], place.device, options.out)
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    made.add_argument("--caches", choices=CACHES, nargs="+", default=list(CACHES), help="of transformers' generate")
    made.add_argument("--int8", action="store_true", help="the kit with 8-bit weights")
    made.add_argument("--frames", type=int, default=FRAMES)
    made.add_argument("--repeats", type=int, default=measure.REPEATS)
    made.add_argument("--device", choices=runtime.DEVICES, default="auto")
    made.add_argument("--out", "--folder", type=Path, default=measure.RESULTS)
    return made


if __name__ == "__main__":
    main()
