"""Train a small CSM from random weights on the codes of many speakers.

    python -m sample_data.build.csm_training --corpus DIR --codec DIR

An example is two sentences of one speaker, and all speakers have the same id: the voice of the second sentence can only be
predicted from the first, so the model learns to clone. The first sentence is predicted from its text alone.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm
from transformers import CsmForConditionalGeneration, MimiModel, PrinterCallback, TrainerCallback

from sample_data.build import codec_evaluation, corpus, model_shapes, processes, pronunciation, round_trip
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
from tts_kit.training import callbacks, dataset, distributed, trainer

CONFIG = Config(steps=12_000, learning_rate=1.5e-3, warmup_steps=300, weight_decay=0.1, tokens_per_batch=1_800,
                packing=False, context_probability=1.0, condition_dropout=0.1, depth_frame_fraction=1 / 8, eval_steps=500,
                save_steps=500, sample_steps=0)
"""Default settings. Without its text a tenth of the clips teach the unconditional prediction that guidance needs; without
context it learns from the first sentence of each pair."""
LETTERS = 0.1
"""Share of the words of the pronouncing dictionary that stay letters, so that the model learns to speak unknown words."""
SPEAKER_ID = "0"
VARIANTS = 6
"""Versions of each sentence of the corpus: the original, and others that are resampled to be slower and lower or faster and
higher, which adds voices. Each starts at another time within a frame, which gives other codes."""
HELD_OUT_EVERY = 20  # of the speakers
MIN_SPEED, MAX_SPEED = 0.86, 1.16
NOISE = 0.2
"""Share of the input codes that are replaced by random ones, so that the model relies more on the text than on the codes."""
CODES_FILE, INDEX_FILE, SETTINGS_FILE = "codes.safetensors", "index.jsonl", "codec.json"
CORPUS, AUXILIARY = "corpus", "auxiliary"
TRAINING_FILE = "training.json"  # file in the model's folder: what it was trained with


class BestWeightsCallback(TrainerCallback):
    """Keeps the weights with the lowest held-out loss: the model memorizes the training sentences long before the last step.

    Trainer's own record of the best checkpoint waits for processes that do not save."""

    def __init__(self, folder: Path):
        self.weights, self.facts = folder / "best.safetensors", folder / "best.json"

    def read(self) -> dict:
        """Return `step` and `eval_loss` of the best weights so far."""
        return read_json(self.facts, "Train again.") if self.facts.exists() else {"step": None, "eval_loss": math.inf}

    def on_evaluate(self, args, state, control, model=None, metrics=None, **_):
        if metrics["eval_loss"] < self.read()["eval_loss"]:
            write_bytes(self.weights, save({name: weight.contiguous() for name, weight in _trained_weights(model).items()}))
            write_json(self.facts, {"step": state.global_step, "eval_loss": metrics["eval_loss"]})

    def load(self, model: CsmForConditionalGeneration) -> None:
        """Load the best weights into the model."""
        best = load_file(self.weights)
        for name, weight in _trained_weights(model).items():
            weight.data.copy_(best[name])


def _trained_weights(model: CsmForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Return the weights by name, the tied table once."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


class NoisyDataset(dataset.MicroBatchDataset):
    """The kit's batches with a loss on both sentences, and with noise in the input codes."""

    def __init__(self, clips: Sequence[EncodedClip], prompt_builder: PromptBuilder, config: Config, noise: float = NOISE):
        super().__init__(clips, prompt_builder, config, distributed.world_size())
        self.noise, self.codebook_size = noise, prompt_builder.spec.codebook_size

    def example(self, item: dataset.Item, with_text: bool = True) -> Example:
        clip, context = item
        target = (self.examples if with_text else self.examples_without_text)[clip]
        return target if context is None else dataset.join(self.examples[context], target)

    def __getitem__(self, index: int) -> dict:
        batch = super().__getitem__(index)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)
        random_codes = torch.randint(self.codebook_size, batch["codes"].shape, generator=generator)
        is_replaced = torch.rand(batch["codes"].shape, generator=generator) < self.noise
        return batch | {"codes": torch.where(is_replaced, random_codes, batch["codes"])}


def encode(corpus_folder: Path, codec: Codec, out: Path, variants: int = VARIANTS, workers: int = 1) -> Path:
    """Encode a corpus to one tensor of frames and a table of speakers, texts and positions; returns their folder."""
    settings = {"codec": codec.fingerprint(), "variants": variants}
    if (out / INDEX_FILE).exists():
        if read_json(out / SETTINGS_FILE, f"Move {out} away.") != settings:
            raise KitError(f"{out} holds the codes of another codec. Move it away, or choose another --run.")
        print(f"{out} holds codes from before; they are used again.")
        return out
    write_json(out / SETTINGS_FILE, settings)
    rows, clip_codes, frames = [], [], 0
    with _parallel_map(functools.partial(_encode_variants, codec, variants), enumerate(corpus.read(corpus_folder)),
                       workers) as encoded:
        for speaker, text, codes in itertools.chain.from_iterable(tqdm(encoded, desc="encoding", unit="sentence")):
            rows.append({"speaker": speaker, "text": text, "start": frames, "end": frames + len(codes)})
            clip_codes.append(torch.from_numpy(codes))
            frames += len(codes)
    write_bytes(out / CODES_FILE, save({"codes": torch.cat(clip_codes)}))
    write_rows(out / INDEX_FILE, rows)
    return out


@contextlib.contextmanager
def _parallel_map(function: Callable, items: Iterable, workers: int) -> Iterator[Iterator]:
    """Map over items in order, in `workers` processes of one thread; in this process if it is one."""
    if workers == 1:
        yield map(function, items)
        return
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield pool.imap(function, items, chunksize=8)


def _encode_variants(codec: Codec, variants: int, item: tuple) -> list[tuple[str, str, np.ndarray]]:
    """Return (speaker, text, codes) of each variant of an utterance (index, (speaker, text, samples))."""
    versions = list(_speed_variants(*item, variants, codec.spec.frame_rate))
    codes = codec.encode([samples for *_, samples in versions])
    return [(speaker, text, clip.numpy()) for (speaker, text, _), clip in zip(versions, codes)]


def _speed_variants(index: int, utterance: tuple[str, str, np.ndarray], variants: int,
                    frame_rate: float) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield an utterance `variants` times; another speed counts as another speaker."""
    speaker, text, samples = utterance
    for variant in range(variants):
        speed = 1.0 if variant == 0 else random.Random(f"{speaker} {variant}").uniform(MIN_SPEED, MAX_SPEED)
        resampled = samples if speed == 1 else audio.resample(samples, round(corpus.RATE * speed), corpus.RATE)
        silence = random.Random(f"{index} {variant}").randrange(round(corpus.RATE / frame_rate))
        yield f"{speaker}@{speed:.3f}", text, np.pad(resampled, (silence, 0))


def held_out_speakers(speakers: Iterable[str]) -> set[str]:
    """Return the speakers of a corpus that are held out, to evaluate cloning of new voices."""
    return set(sorted(speakers)[::HELD_OUT_EVERY])


def load_clips(folder: Path, auxiliary: Path | None = None, unused_voices: Collection[str] = ()) -> list[EncodedClip]:
    """Load the corpus as clips, without those of `unused_voices`.

    The clips of the auxiliary corpus are all used for training."""
    corpus_rows = read_rows(folder / INDEX_FILE)
    held_out = held_out_speakers({_without_speed(row["speaker"]) for row in corpus_rows})
    clips = []
    for clip_folder in filter(None, (folder, auxiliary)):
        codes = load_file(clip_folder / CODES_FILE)["codes"]
        clips += [EncodedClip(f"{clip_folder.name}{index}", row["text"], SPEAKER_ID, row["speaker"], row["speaker"],
                              "held_out" if _without_speed(row["speaker"]) in held_out else "train",
                              codes[row["start"]:row["end"]].clone())
                  for index, row in enumerate(read_rows(clip_folder / INDEX_FILE))
                  if round_trip.voice_name(_without_speed(row["speaker"])) not in unused_voices]
    return clips


def _without_speed(speaker: str) -> str:
    """Return the name of a speaker without the speed of the variant."""
    return speaker.partition("@")[0]


def train(clips: Sequence[EncodedClip], codec: MimiModel, out: Path, run: Run, device_config: DeviceConfig,
          config: Config = CONFIG, shape: str = "tiny", eval_clips: int = 200, init_from: str = "",
          compile_layers: bool = False, codec_facts: dict | None = None) -> Path:
    """Train all of backbone and depth decoder, or resume; writes `out` in float16 for plain `from_pretrained`.

    `init_from` is the folder of a model whose weights are the initial ones, possibly trained on another codec's codes; its
    training.json becomes a part of the new one, as do the `codec_facts`."""
    check_replaceable(out, TRAINING_FILE)
    model_shapes.check_codec(codec, shape)
    model = _initial_model(shape, config.seed, init_from)
    model.codec_model = None
    if device_config.device == "cpu":  # eager attention is faster there than the fused one on short sequences
        with pretrained.quiet():
            model.set_attn_implementation("eager")
    model.to(device_config.device)
    if compile_layers:
        load.compile_layers(model)
    spec = ModelSpec.of(model.config)
    prompt_builder = PromptBuilder(model_shapes.tokenizer(shape, with_dictionary=False), spec)
    if model_shapes.SHAPES[shape].get("pronunciations"):
        clips = [pronounced(clip) for clip in clips]
    train_set = NoisyDataset([clip for clip in clips if clip.split == "train"], prompt_builder, config)
    held_out = _with_context([clip for clip in clips if clip.split == "held_out"][:eval_clips], prompt_builder)
    csm_trainer = trainer.CsmTrainer(model, _training_arguments(config, run, device_config), train_set,
                                     dataset.evaluation_batches(held_out, config),
                                     device_config, callbacks=[progress := callbacks.ProgressCallback(),
                                                               callbacks.LossPlotCallback(run)],
                                     optimizers=(MuonAdamW(model, config.learning_rate, config.weight_decay), None))
    csm_trainer.remove_callback(PrinterCallback)
    csm_trainer.add_callback(best := BestWeightsCallback(run.training))
    checkpoint = trainer.last_complete_checkpoint(run.training)
    with pretrained.quiet():
        csm_trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    progress.close()
    with processes.first_process_first():
        if distributed.is_rank_zero():
            best.load(model)
            model.to("cpu").codec_model = codec
            model_shapes.save(load.untie(model.half()), out, shape)
            write_json(out / TRAINING_FILE, {
                "sentences": len(train_set.examples), "hours": _hours(clips, spec),
                "hours of auxiliary speech": _hours([clip for clip in clips if clip.id.startswith(AUXILIARY)], spec),
                "steps": config.steps, "best step": best.read()["step"], "held-out loss": best.read()["eval_loss"],
                "recipe": dataclasses.asdict(config), "machine": device.machine(), "versions": device.versions(),
                "codec": codec_facts, "initialized from": read_training(Path(init_from)) if init_from else None})
    return out


def pronounced(clip: EncodedClip) -> EncodedClip:
    """Return a clip whose text is in the symbols of the pronouncing dictionary; some words of a training clip are not."""
    letters = LETTERS if clip.split == "train" else 0.0
    return dataclasses.replace(clip, text=pronunciation.to_symbols(clip.text, random.Random(clip.id), letters))


def read_training(folder: Path) -> dict:
    """Read the training.json of a model, which contains that of the model it was initialized from."""
    return read_json(folder / TRAINING_FILE, "Give a model that python -m sample_data.build.csm_training trained.")


def _initial_model(shape: str, seed: int, folder: str) -> CsmForConditionalGeneration:
    """Return a model with tied embeddings: untrained, or with the weights of a trained one of the same shape."""
    model = model_shapes.untrained(shape, seed)
    if folder:
        trained, _ = pretrained.weights(CsmForConditionalGeneration, folder, dtype=torch.float32)
        try:
            model.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise KitError(f"{folder} is not of the shape {shape!r}. Give a model of that shape to --init-from.") from error
    return model


def _hours(clips: Sequence[EncodedClip], spec: ModelSpec) -> float:
    return round(sum(len(clip.codes) for clip in clips) / spec.frame_rate / 3600, 2)


def _with_context(clips: Sequence[EncodedClip], prompt_builder: PromptBuilder) -> list:
    """Build held-out examples as in cloning: after another sentence of the same speaker, if there is one."""
    examples, previous = [], {}
    for clip in clips:
        example = dataset.build_example(clip, prompt_builder)
        context = previous.get(clip.speaker)
        examples.append(dataset.join(dataset.without_labels(context), example) if context else example)
        previous[clip.speaker] = example
    return examples


def _training_arguments(config: Config, run: Run, device_config: DeviceConfig):
    """Return the kit's training arguments with the changes that training from scratch needs."""
    arguments = trainer.training_arguments(config, run, device_config)
    arguments.lr_scheduler_type, arguments.eval_on_start = "cosine", False
    return arguments


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    run, device_config = Run(options.run), device.choose(options.device, options.dtype)
    # float16, as the codec is bundled: rounding its weights later could change the codes
    model, _ = pretrained.weights(MimiModel, str(options.codec), dtype=torch.float16)
    model_shapes.check_codec(model, options.shape)
    codec = Codec(model.to(device_config.device), ModelSpec.of(model_shapes.config(options.shape)))
    codes = encode(options.corpus, codec, run.codes / CORPUS, options.variants, options.processes)
    auxiliary = options.auxiliary_corpus and encode(options.auxiliary_corpus, codec, run.codes / AUXILIARY, 1,
                                                    options.processes)
    processes.run(_train_on_codes, options.processes, options, run, model.to("cpu"), codes, auxiliary)
    print(f"Model: {options.out}")


def _train_on_codes(options: argparse.Namespace, run: Run, codec: MimiModel, codes: Path, auxiliary: Path | None) -> None:
    measured = (read_json(options.round_trip, "Make it with python -m sample_data.build.round_trip.")
                if options.round_trip else {})
    unused_voices = [voice for voice, values in measured.get("voices", {}).items() if not values["used"]]
    train(load_clips(codes, auxiliary, unused_voices), codec, options.out, run, device.choose(options.device, options.dtype),
          CONFIG.replace(steps=options.steps, tokens_per_batch=options.tokens_per_batch), options.shape,
          init_from=options.init_from, compile_layers=options.compile,
          codec_facts=codec_evaluation.read(options.codec) | {"round trip": measured})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.csm_training", description=__doc__.split("\n")[0])
    top.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder of speech (default {corpus.OUT})")
    top.add_argument("--auxiliary-corpus", type=Path, help="folder of more speech, all of it to train on")
    top.add_argument("--codec", type=Path, required=True, help="folder of the trained codec")
    top.add_argument("--round-trip", type=Path, help="what the codec loses, by python -m sample_data.build.round_trip; "
                     "voices that it makes unintelligible are left out")
    top.add_argument("--variants", type=int, default=VARIANTS, help="versions of each sentence, at other speeds (default "
                     f"{VARIANTS})")
    top.add_argument("--processes", type=int, default=1, help="processes that encode and that share a step, of one thread "
                     "(default 1)")
    top.add_argument("--run", default="pretrain", help="name of the run that holds codes and checkpoints")
    top.add_argument("--out", type=Path, default=Path("runs/pretrain/tiny-csm"), help="folder for the trained model")
    top.add_argument("--shape", default="tiny", choices=model_shapes.SHAPES, help="shape of the model (default tiny)")
    top.add_argument("--steps", type=int, default=CONFIG.steps, help=f"optimizer steps (default {CONFIG.steps})")
    top.add_argument("--tokens-per-batch", type=int, default=CONFIG.tokens_per_batch,
                     help=f"text tokens and frames in a step (default {CONFIG.tokens_per_batch})")
    top.add_argument("--init-from", default="", help="folder of a trained model with the initial weights")
    top.add_argument("--compile", action="store_true", help="fuse the small operations of the layers; needs a C++ "
                     "compiler, and is faster after some minutes")
    top.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where to compute")
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 is faster on CPUs with bfloat16 "
                     "units")
    return top


if __name__ == "__main__":
    sys.exit(main())
