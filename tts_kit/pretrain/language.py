"""Codes of many speakers -> a small CSM trained from nothing: python -m tts_kit.pretrain.language --corpus DIR --codec DIR.

Half of the sentences come after another one of the same speaker, and every speaker has the same id: so whose voice it
is can only be heard from that context, which is how cloning is learnt.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm
from transformers import MimiModel, PrinterCallback

from tts_kit import checkpoint, runtime
from tts_kit.physics import Physics
from tts_kit.pretrain import corpus, shape
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run, read_rows, write_bytes, write_rows
from tts_kit.runtime import Runtime
from tts_kit.tokens.cache import Clip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import Writer
from tts_kit.tuning import batches, trainer, watch

RECIPE = Recipe(steps=20_000, learning_rate=1e-3, warmup_steps=300, weight_decay=0.05, tokens_per_batch=6_000,
                packing=False, context_share=0.5, depth_ratio=1 / 4, evaluate_every=500, save_every=500, sample_every=0)
"""What the bundled model is trained with unless told otherwise."""
SPEAKER = "0"
CODES, INDEX = "codes.safetensors", "index.jsonl"
ENCODED_TOGETHER = 32


def encode(corpus_folder: Path, codec: Codec, out: Path) -> Path:
    """All of a corpus as codes: one tensor of frames, and a table of who says what where. Small enough to travel."""
    if (out / INDEX).exists():
        print(f"{out} already holds codes; they are used again.")
        return out
    rows, pieces, frames = [], [], 0
    utterances = iter(tqdm(corpus.read(corpus_folder), desc="encoding", unit="sentence"))
    while some := list(itertools.islice(utterances, ENCODED_TOGETHER)):
        for (speaker, text, _), codes in zip(some, codec.encode([samples for *_, samples in some])):
            rows.append({"speaker": speaker, "text": text, "start": frames, "end": frames + len(codes)})
            pieces.append(codes)
            frames += len(codes)
    write_bytes(out / CODES, save({"codes": torch.cat(pieces)}))
    write_rows(out / INDEX, rows)
    return out


def clips(folder: Path, held_out_every: int = 20) -> list[Clip]:
    """The corpus as clips; every so many speakers are held out whole, to hear whether cloning reaches new voices."""
    codes = load_file(folder / CODES)["codes"]
    rows = read_rows(folder / INDEX)
    held_out = set(sorted({row["speaker"] for row in rows})[::held_out_every])
    return [Clip(f"clip{number}", row["text"], SPEAKER, row["speaker"], row["speaker"],
                 "held_out" if row["speaker"] in held_out else "train", codes[row["start"]:row["end"]].clone())
            for number, row in enumerate(rows)]


def train(sentences: Sequence[Clip], codec: MimiModel, out: Path, run: Run, runtime: Runtime, recipe: Recipe = RECIPE,
          size: str = "tiny", evaluated: int = 200) -> Path:
    """Train all of backbone and depth decoder, or go on; writes `out`, a folder that plain `from_pretrained` loads."""
    refuse_other_shape(codec, size)
    model = shape.untrained(size, recipe.seed)
    model.codec_model = None
    physics = Physics.of(model.config)
    writer = Writer(shape.byte_tokenizer(), physics)
    steps = batches.Steps([clip for clip in sentences if clip.split == "train"], writer, recipe)
    held_out = _with_context([clip for clip in sentences if clip.split == "held_out"][:evaluated], writer)
    made = trainer.CsmTrainer(model.to(runtime.device), _arguments(recipe, run, runtime), steps,
                              batches.for_evaluation(held_out, recipe), runtime,
                              callbacks=[progress := watch.Progress(), watch.Record(run)])
    made.remove_callback(PrinterCallback)
    last = trainer.last_whole_checkpoint(run.training)
    with checkpoint.quiet():
        made.train(resume_from_checkpoint=str(last) if last else None)
    progress.close()
    model.to("cpu").codec_model = codec
    return shape.save(model, out)


def refuse_other_shape(codec: MimiModel, size: str) -> None:
    """A codec fits a model when its weights and rates are those that the model's configuration names."""
    wanted = shape.config(size).codec_config
    with torch.device("meta"):
        sizes = {name: weight.shape for name, weight in MimiModel(wanted).state_dict().items()}
    found = {name: weight.shape for name, weight in codec.state_dict().items()}
    rates = [(config.sampling_rate, config.frame_rate) for config in (wanted, codec.config)]
    if sizes != found or rates[0] != rates[1]:
        raise Problem(f"the codec is not of the shape {size!r}. Train it with --shape {size}, or give another codec.")


def _with_context(sentences: Sequence[Clip], writer: Writer) -> list:
    """Held-out examples as cloning meets them: after another sentence of the same speaker, where there is one."""
    examples, before = [], {}
    for clip in sentences:
        example = batches.write(clip, writer)
        heard = before.get(clip.speaker)
        examples.append(batches.join(batches.write(heard, writer, scored=False), example) if heard else example)
        before[clip.speaker] = clip
    return examples


def _arguments(recipe: Recipe, run: Run, runtime: Runtime):
    """The kit's own arguments, with what a training from nothing needs beside them."""
    arguments = trainer.arguments(recipe, run, runtime)
    arguments.lr_scheduler_type, arguments.adam_beta2, arguments.eval_on_start = "cosine", 0.95, False
    # the network goes on learning the training sentences by heart long after it has learnt to read
    arguments.load_best_model_at_end, arguments.metric_for_best_model, arguments.greater_is_better = True, "eval_loss", False
    return arguments


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a person has to do something first."""
    parser = argparse.ArgumentParser(prog="python -m tts_kit.pretrain.language", description=__doc__.split(":")[0])
    parser.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder of speech (default {corpus.OUT})")
    parser.add_argument("--codec", type=Path, required=True, help="folder of the trained codec")
    parser.add_argument("--run", default="pretrain", help="name of the run that holds codes and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain/tiny-csm"), help="folder of the finished model")
    parser.add_argument("--size", default="tiny", choices=shape.SHAPES, help="shape of the model (default tiny)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help=f"optimizer steps (default {RECIPE.steps})")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where to compute")
    options = parser.parse_args(arguments)
    try:
        run, here = Run(options.run), runtime.choose(options.device)
        model, _ = checkpoint.weights(MimiModel, str(options.codec), dtype=torch.float32)
        refuse_other_shape(model, options.size)
        physics = Physics.of(shape.config(options.size))
        encode(options.corpus, Codec(model.to(here.device), physics), run.codes)
        train(clips(run.codes), model.to("cpu"), options.out, run, here, RECIPE.but(steps=options.steps), options.size)
        print(f"Model: {options.out}")
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
