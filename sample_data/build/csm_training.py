"""Train a small CSM from random weights on the codes of many speakers.

    python -m sample_data.build.csm_training --corpus DIR --codec DIR

Two sentences of one speaker follow each other, and every speaker has the same id: whose voice the second shall have can
only be heard from the first, which is how cloning is learnt. The first has nothing but its text to go by.
"""

import argparse
import dataclasses
import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm
from transformers import CsmForConditionalGeneration, MimiModel, PrinterCallback

from sample_data.build import codec_evaluation, corpus, model_shapes
from sample_data.build.muon import MuonAdamW
from tts_kit import audio, device, pretrained
from tts_kit.config import Config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, report_errors
from tts_kit.io import check_replaceable, read_json, read_rows, write_bytes, write_json, write_rows
from tts_kit.model import load
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import Example, PromptBuilder
from tts_kit.training import callbacks, dataset, trainer

RECIPE = Config(steps=12_000, learning_rate=1.5e-3, warmup_steps=300, weight_decay=0.1, tokens_per_batch=1_800,
                packing=False, context_probability=1.0, depth_frame_fraction=1 / 8, eval_steps=500, save_steps=500,
                sample_steps=0)
"""What the bundled model is trained with unless told otherwise."""
SPEAKER = "0"
VARIANTS = 6
"""How often each sentence of the corpus is heard: as it is, and slower and deeper or faster and higher, which makes more
voices, and always beginning at another moment of a frame, which makes other codes."""
SLOWEST, FASTEST = 0.86, 1.16
NOISE = 0.2
"""Share of the codes that are heard as others; the text is then a better guide than what was said just before."""
CODES, INDEX, MADE_BY = "codes.safetensors", "index.jsonl", "codec.json"
CORPUS, PRACTICE = "corpus", "practice"
FACTS = "training.json"
"""Beside the weights: what they were trained with."""
ENCODED_TOGETHER = {"cpu": 1}
"""Sentences in one call of the codec; a CPU's cache holds one of them, a GPU is given 32."""


class Steps(dataset.MicroBatchDataset):
    """The kit's batches with both sentences scored, and with noise in the codes that are heard."""

    def __init__(self, clips: Sequence[EncodedClip], prompt_builder: PromptBuilder, config: Config, noise: float = NOISE):
        super().__init__(clips, prompt_builder, config)
        self.noise, self.words = noise, prompt_builder.spec.codebook_size

    def example(self, item: dataset.Item) -> Example:
        clip, context = item
        return self.examples[clip] if context is None else dataset.join(self.examples[context], self.examples[clip])

    def __getitem__(self, index: int) -> dict:
        batch = super().__getitem__(index)
        chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)
        other = torch.randint(self.words, batch["codes"].shape, generator=chance)
        wrong = torch.rand(batch["codes"].shape, generator=chance) < self.noise
        return batch | {"codes": torch.where(wrong, other, batch["codes"])}


def encode(corpus_folder: Path, codec: Codec, out: Path, variants: int = VARIANTS) -> Path:
    """All of a corpus as codes: one tensor of frames, and a table of who says what where. Small enough to travel."""
    made_by = {"codec": codec.fingerprint(), "variants": variants}
    if (out / INDEX).exists():
        if read_json(out / MADE_BY, f"Move {out} away.") != made_by:
            raise KitError(f"{out} holds the codes of another codec. Move it away, or choose another --run.")
        print(f"{out} already holds codes; they are used again.")
        return out
    write_json(out / MADE_BY, made_by)
    rows, pieces, frames = [], [], 0
    utterances = iter(tqdm(_varied(corpus.read(corpus_folder), variants, codec.spec.frame_rate), desc="encoding",
                           unit="sentence"))
    together = ENCODED_TOGETHER.get(codec.device.type, 32)
    while some := list(itertools.islice(utterances, together)):
        for (speaker, text, _), codes in zip(some, codec.encode([samples for *_, samples in some])):
            rows.append({"speaker": speaker, "text": text, "start": frames, "end": frames + len(codes)})
            pieces.append(codes)
            frames += len(codes)
    write_bytes(out / CODES, save({"codes": torch.cat(pieces)}))
    write_rows(out / INDEX, rows)
    return out


def _varied(utterances: Iterable[tuple[str, str, np.ndarray]], variants: int,
            frame_rate: float) -> Iterator[tuple[str, str, np.ndarray]]:
    """Every utterance so many times; who speaks at another speed is somebody else."""
    for number, (speaker, text, samples) in enumerate(utterances):
        for variant in range(variants):
            speed = 1.0 if variant == 0 else random.Random(f"{speaker} {variant}").uniform(SLOWEST, FASTEST)
            altered = samples if speed == 1 else audio.resample(samples, round(corpus.RATE * speed), corpus.RATE)
            silence = random.Random(f"{number} {variant}").randrange(round(corpus.RATE / frame_rate))
            yield f"{speaker}@{speed:.3f}", text, np.pad(altered, (silence, 0))


def clips(folder: Path, practice: Path | None = None, held_out_every: int = 20) -> list[EncodedClip]:
    """The corpus as clips; every so many speakers are held out whole, to hear whether cloning reaches new voices. What is
    only there to practise on is all learnt from."""
    corpus_rows = read_rows(folder / INDEX)
    held_out = set(sorted({_person(row["speaker"]) for row in corpus_rows})[::held_out_every])
    made = []
    for place in filter(None, (folder, practice)):
        codes = load_file(place / CODES)["codes"]
        made += [EncodedClip(f"{place.name}{number}", row["text"], SPEAKER, row["speaker"], row["speaker"],
                      "held_out" if _person(row["speaker"]) in held_out else "train",
                      codes[row["start"]:row["end"]].clone())
                 for number, row in enumerate(read_rows(place / INDEX))]
    return made


def _person(speaker: str) -> str:
    """Who it is at whatever speed."""
    return speaker.partition("@")[0]


def train(sentences: Sequence[EncodedClip], codec: MimiModel, out: Path, run: Run, device_config: DeviceConfig,
          config: Config = RECIPE,
          size: str = "tiny", evaluated: int = 200, begin_with: str = "", compiled: bool = False,
          codec_facts: dict | None = None) -> Path:
    """Train all of backbone and depth decoder, or go on; writes `out` in 16 bit, which plain `from_pretrained` loads.

    `begin_with` is the folder of a model whose weights are learnt on from, perhaps with another codec's codes; what it was
    trained with is told again in this one's facts, as are the `codec_facts`."""
    check_replaceable(out, FACTS)
    model_shapes.check_codec(codec, size)
    model = _beginning(size, config.seed, begin_with)
    model.codec_model = None
    if device_config.device == "cpu":  # on short sequences plain products are faster there than the fused attention
        with pretrained.quiet():
            model.set_attn_implementation("eager")
    model.to(device_config.device)
    if compiled:
        load.compile_layers(model)
    spec = ModelSpec.of(model.config)
    prompt_builder = PromptBuilder(model_shapes.tokenizer(size), spec)
    steps = Steps([clip for clip in sentences if clip.split == "train"], prompt_builder, config)
    held_out = _with_context([clip for clip in sentences if clip.split == "held_out"][:evaluated], prompt_builder)
    made = trainer.CsmTrainer(model, _arguments(config, run, device_config), steps,
                              dataset.evaluation_batches(held_out, config),
                              device_config, callbacks=[progress := callbacks.ProgressCallback(),
                                                        callbacks.LossPlotCallback(run)],
                              optimizers=(MuonAdamW(model, config.learning_rate, config.weight_decay), None))
    made.remove_callback(PrinterCallback)
    last = trainer.last_complete_checkpoint(run.training)
    with pretrained.quiet():
        made.train(resume_from_checkpoint=str(last) if last else None)
    progress.close()
    model.to("cpu").codec_model = codec
    model_shapes.save(load.untie(model.half()), out, size)
    write_json(out / FACTS, {
        "sentences": len(steps.examples), "hours": _hours(sentences, spec),
        "hours of practice": _hours([clip for clip in sentences if clip.id.startswith(PRACTICE)], spec),
        "steps": config.steps, "best step": _number(made.state.best_model_checkpoint),
        "held-out loss": made.state.best_metric,
        "recipe": dataclasses.asdict(config), "machine": device.machine(), "versions": device.versions(),
        "codec": codec_facts, "begun with": facts(Path(begin_with)) if begin_with else None})
    return out


def facts(folder: Path) -> dict:
    """What a model was trained with; what it was begun with lies inside, and so on."""
    return read_json(folder / FACTS, "Give a model that python -m sample_data.build.csm_training trained.")


def _beginning(size: str, seed: int, folder: str) -> CsmForConditionalGeneration:
    """A model with its tables tied: untrained, or with the weights of a trained one of the same size."""
    model = model_shapes.untrained(size, seed)
    if folder:
        trained, _ = pretrained.weights(CsmForConditionalGeneration, folder, dtype=torch.float32)
        try:
            model.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise KitError(f"{folder} is not of the shape {size!r}. Give a model of that shape to begin with.") from error
    return model


def _hours(sentences: Sequence[EncodedClip], spec: ModelSpec) -> float:
    return round(sum(len(clip.codes) for clip in sentences) / spec.frame_rate / 3600, 2)


def _number(folder: str | None) -> int | None:
    """The step of a checkpoint's folder."""
    return int(folder.rpartition("-")[2]) if folder else None


def _with_context(sentences: Sequence[EncodedClip], prompt_builder: PromptBuilder) -> list:
    """Held-out examples as cloning meets them: after another sentence of the same speaker, where there is one."""
    examples, before = [], {}
    for clip in sentences:
        example = dataset.build_example(clip, prompt_builder)
        heard = before.get(clip.speaker)
        examples.append(dataset.join(dataset.without_labels(heard), example) if heard else example)
        before[clip.speaker] = example
    return examples


def _arguments(config: Config, run: Run, device_config: DeviceConfig):
    """The kit's own arguments, with what a training from nothing needs beside them."""
    arguments = trainer.training_arguments(config, run, device_config)
    arguments.lr_scheduler_type, arguments.eval_on_start = "cosine", False
    # the network goes on learning the training sentences by heart long after it has learnt to read
    arguments.load_best_model_at_end, arguments.metric_for_best_model, arguments.greater_is_better = True, "eval_loss", False
    return arguments


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.csm_training", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder of speech (default {corpus.OUT})")
    parser.add_argument("--practice", type=Path, help="folder of more speech, to learn reading from")
    parser.add_argument("--codec", type=Path, required=True, help="folder of the trained codec")
    parser.add_argument("--run", default="pretrain", help="name of the run that holds codes and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain/tiny-csm"), help="folder of the finished model")
    parser.add_argument("--size", default="tiny", choices=model_shapes.SHAPES, help="shape of the model (default tiny)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help=f"optimizer steps (default {RECIPE.steps})")
    parser.add_argument("--positions", type=int, default=RECIPE.tokens_per_batch,
                        help=f"text tokens and frames in a step (default {RECIPE.tokens_per_batch})")
    parser.add_argument("--begin-with", default="", help="folder of a trained model to learn on from")
    parser.add_argument("--compile", action="store_true", help="fuse the small operations of the layers; wants a C++ "
                        "compiler, and pays after some minutes")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: as torch likes)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where to compute")
    parser.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 pays on CPUs with units for it")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    run, place = Run(options.run), device.choose(options.device, options.dtype)
    # the codec as it will be shipped: codes must not change by rounding later
    model, _ = pretrained.weights(MimiModel, str(options.codec), dtype=torch.float16)
    model_shapes.check_codec(model, options.size)
    spec = ModelSpec.of(model_shapes.config(options.size))
    codec = Codec(model.to(place.device), spec)
    codes = encode(options.corpus, codec, run.codes / CORPUS)
    practice = options.practice and encode(options.practice, codec, run.codes / PRACTICE, variants=1)
    train(clips(codes, practice), model.to("cpu"), options.out, run, place,
          RECIPE.replace(steps=options.steps, tokens_per_batch=options.positions), options.size,
          begin_with=options.begin_with, compiled=options.compile, codec_facts=codec_evaluation.read(options.codec))
    print(f"Model: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
