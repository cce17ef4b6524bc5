"""Copy a trained and evaluated model to the folder that is bundled, with a model card made of its results.

    python -m sample_data.build.ship --model runs/pretrain/tiny-csm --results runs/pretrain/results.json
"""

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from transformers.utils import CONFIG_NAME

from sample_data.build import csm_training, evaluate, goals, pronunciation, sentences, voices
from tts_kit import device, pretrained
from tts_kit.errors import KitError, report_errors
from tts_kit.io import atomic_folder, check_replaceable, read_json, write_text
from tts_kit.model import load
from tts_kit.pretrained import ModelSpec

OUT = Path("sample_data/tiny-csm")
RESULTS = "results.json"
"""File of all results in the bundled folder; the scores of the clips are in the .jsonl of the same name."""
MAX_BYTES = 45_000_000
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-to-speech
---
# tiny-csm

A small Conversational Speech Model with the classes and file formats of `sesame/csm-1b`, for laptops, tests and
machines without a model hub: `CsmForConditionalGeneration.from_pretrained("sample_data/tiny-csm")`.

Backbone of {backbone:.1f} million parameters, depth decoder of {depth:.1f}, Mimi codec of {codec:.1f}: {codebooks} codebooks
of {size} codes, {frames:g} frames a second, {rate} Hz. Weights are float16. {reading}

## Data
{hours} hours of synthetic speech, no person's, its slower and faster copies counted:
[Kokoro-82M](https://huggingface.co/hexgrad/Kokoro-82M) (Apache-2.0) in {speakers} voices and mixtures of two, and
{auxiliary} hours of [flite](http://cmuflite.org) (under its own free licence) as additional speech to learn reading from.
{sentences} The voices {held_out}
and the evaluation sentences were never trained on.

## Training
`python -m sample_data.build` makes everything. This model: {steps} steps of the language model; of the last part, the
checkpoint of step {best}, which has the lowest held-out loss; on {machine}. The recorded settings of all parts are in
`training.json`.

## Results
Metrics: {metrics}. On {count} unseen sentences, each generated with {seeds} seeds ({date}, {evaluated_on}):

{figures}

{open_figures}{goals}

WER is the word error rate; SIM the speaker similarity (cosine), normalised between other speakers (0) and the voice itself
(1); MOS a predicted opinion of 1 to 5; EOS the share of clips that the model ended itself; RTF the seconds of computation
for a second of speech. All figures with their 95 % intervals and the command that made them: `{results}`.

## Limits
{limits}
"""


GRAMMAR_TEXTS = {
    "reading": "It was trained to read short English sentences\nmade of {words} words, and to clone the voice of a "
               "reference; how well it does both is measured below.",
    "sentences": "The sentences come from a grammar written for this project.",
    "limits": "Words that are not in the grammar come out garbled, and so do long sentences. The audio quality is that of a "
              "bad telephone\nline: the model is meant for learning and testing. Do not use it where people would take it "
              "for a real voice."}
"""What the card says of a model that was evaluated on sentences of the grammar alone."""
OPEN_TEXTS = {
    "reading": "It was trained to read English and\nto clone the voice of a reference; how well it does both is measured "
               "below. The pronunciation of {words:,} words is in\n`tokenizer.json`, where they become phonemes; other "
               "words are read by their letters.",
    "sentences": "Half of the sentences come from a grammar written for this project, half are usage examples of\n"
                 "[WordNet](https://wordnet.princeton.edu) (WordNet License).",
    "limits": "Rare names and words come out garbled, and so do long sentences. The model is meant for learning and "
              "testing. Do not\nuse it where people would take it for a real voice."}


def ship(model: Path, results: Path, out: Path = OUT) -> Path:
    """Copy the model to `out` with its card; refuses the results of another model, and a folder that is too large."""
    check_replaceable(out, CONFIG_NAME)
    evaluation = read_json(results, "Make it with python -m sample_data.build.evaluate.")
    clip_scores = Path(RESULTS).with_suffix(".jsonl").name
    files = [path for path in sorted(Path(model).iterdir())
             if path.is_file() and path.name not in ("README.md", RESULTS, clip_scores)]
    if (total := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise KitError(f"{model} holds {total / 1e6:.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB. Train a smaller one.")
    if (weights := load.load_base(str(model), device.choose("cpu")).fingerprint) != evaluation["weights"]:
        raise KitError(f"{results} evaluates another model (weights {evaluation['weights']}) than {model} ({weights}). "
                       f"Evaluate this one: python -m sample_data.build.evaluate --model {model} --out {results}")
    text = card(Path(model), evaluation)
    with atomic_folder(out) as staging:
        for path in files:
            shutil.copy2(path, staging / path.name)
        shutil.copy2(results, staging / RESULTS)
        shutil.copy2(Path(results).with_suffix(".jsonl"), staging / clip_scores)
        write_text(staging / "README.md", text)
    return out


def card(model: Path, results: dict) -> str:
    """Return the model card, with the figures of the results."""
    training = csm_training.read_training(model)
    spec = ModelSpec.of(pretrained.config(str(model)))
    unseen = results["groups"][next(iter(results["groups"]))]
    is_open = evaluate.OPEN in results["groups"]
    words = len(pronunciation.table() if is_open else sentences.vocabulary())
    texts = {name: text.format(words=words) for name, text in (OPEN_TEXTS if is_open else GRAMMAR_TEXTS).items()}
    return CARD.format(
        **_parameter_counts(model), codebooks=spec.num_codebooks, size=spec.codebook_size, frames=spec.frame_rate,
        rate=spec.sample_rate, **texts,
        hours=training["hours"], auxiliary=training["hours of auxiliary speech"],
        speakers=len(voices.training_speakers()), held_out=", ".join(sentences.evaluation_set().voices),
        steps=" + ".join(_step_counts(training)),
        best=training["best step"], machine=training["machine"], metrics=results["metrics"], count=unseen["sentences"],
        seeds=len(results["seeds"]), date=results["date"], evaluated_on=results["machine"],
        figures=markdown_table(goals.arm_table(unseen)), open_figures=_open_figures(results["groups"]),
        goals=markdown_table(goals.goal_table(results["goals"])),
        results=RESULTS)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, headings first, as a Markdown table."""
    headings, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *body))


def _open_figures(groups: dict) -> str:
    """Return the table of the sentences that are not of the grammar, if they were evaluated."""
    if evaluate.OPEN not in groups:
        return ""
    group = groups[evaluate.OPEN]
    return (f"On {group['sentences']} plain sentences that are not of the grammar:\n\n"
            f"{markdown_table(goals.arm_table(group))}\n\n")


def _step_counts(training: dict | None) -> list[str]:
    """Return the steps of each part of a training, the first part first."""
    return [*_step_counts(training.get("initialized from")), f"{training['steps']:,}"] if training else []


def _parameter_counts(model: Path) -> dict[str, float]:
    """Return the millions of parameters of each part."""
    counts = {"backbone": 0, "depth": 0, "codec": 0}
    with safe_open(model / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            part = next((part for part in ("codec", "depth") if name.startswith(part)), "backbone")
            counts[part] += math.prod(file.get_slice(name).get_shape()) / 1e6
    return counts


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    print(f"Bundled: {ship(options.model, options.results, options.out)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.ship", description=__doc__.split("\n")[0])
    top.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    top.add_argument("--results", type=Path, required=True, help="its results by python -m sample_data.build.evaluate")
    top.add_argument("--out", type=Path, default=OUT, help=f"folder to bundle (default {OUT})")
    return top


if __name__ == "__main__":
    sys.exit(main())
