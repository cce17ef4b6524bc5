"""A trained and judged model -> the folder that is bundled: its files, and a card whose every figure was measured.

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

from sample_data.build import csm_training, goals, sentences, voices
from tts_kit import device, pretrained
from tts_kit.errors import KitError, report_errors
from tts_kit.io import atomic_folder, check_replaceable, read_json, write_text
from tts_kit.model import load
from tts_kit.pretrained import ModelSpec

OUT = Path("sample_data/tiny-csm")
RESULTS = "results.json"
"""In the bundle: every figure; the scores of every clip lie beside it as .jsonl."""
MAX_BYTES = 40_000_000
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
of {size} codes, {frames:g} frames a second, {rate} Hz. Weights are float16. It was taught to read short English sentences
made of {words} words, and to take its voice from a reference; how well it does both is measured below.

## Data
{hours} hours of synthetic speech, no person's, its slower and faster copies counted:
[Kokoro-82M](https://huggingface.co/hexgrad/Kokoro-82M) (Apache-2.0) in {speakers} voices and mixtures of two, and
{practice} hours of [flite](http://cmuflite.org) (under its own free licence) to practise reading on. The sentences come
from a grammar written for this project. The voices {held_out} and the judged sentences
were never trained on.

## Training
`python -m sample_data.build` makes everything. This one: {steps} steps of the language model, of the last part the
best {best} by held-out loss; on {machine}. What was kept of the settings of every part is in `training.json`.

## Measured
By {metrics}, on {count} unseen sentences in {seeds} takes each ({date}, {judged_on}):

{figures}

{goals}

WER is the word error rate; SIM the speaker similarity (cosine), normalised between other speakers (0) and the voice itself
(1); MOS a predicted opinion of 1 to 5. All figures with their 95 % intervals and the command that made them: `{results}`.

## Limits
Words that the grammar does not have come out garbled, and so do long sentences. It sounds like a bad telephone line: it is
there to learn and to test with, not to be listened to for pleasure. Do not use it where people would take it for a real
voice.
"""


def ship(model: Path, results: Path, out: Path = OUT) -> Path:
    """Copy the model to `out` with a card made of the results; refuses results of another model or a folder too large."""
    check_replaceable(out, CONFIG_NAME)
    found = read_json(results, "Make it with python -m sample_data.build.evaluate.")
    clips = Path(RESULTS).with_suffix(".jsonl").name
    files = [path for path in sorted(Path(model).iterdir())
             if path.is_file() and path.name not in ("README.md", RESULTS, clips)]
    if (total := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise KitError(f"{model} holds {total / 1e6:.0f} MB; wanted {MAX_BYTES / 1e6:.0f} at most. Train a smaller one.")
    if (weights := load.load_base(str(model), device.choose("cpu")).fingerprint) != found["weights"]:
        raise KitError(f"{results} judges another model (weights {found['weights']}) than {model} ({weights}). Judge this "
                      f"one: python -m sample_data.build.evaluate --model {model} --out {results}")
    text = card(Path(model), found)
    with atomic_folder(out) as beside:
        for path in files:
            shutil.copy2(path, beside / path.name)
        shutil.copy2(results, beside / RESULTS)
        shutil.copy2(Path(results).with_suffix(".jsonl"), beside / clips)
        write_text(beside / "README.md", text)
    return out


def card(model: Path, found: dict) -> str:
    """The model card, its figures out of the results."""
    facts = csm_training.facts(model)
    spec = ModelSpec.of(pretrained.config(str(model)))
    unseen = found["groups"][next(iter(found["groups"]))]
    return CARD.format(
        **_sizes(model), codebooks=spec.num_codebooks, size=spec.codebook_size, frames=spec.frame_rate,
        rate=spec.sample_rate, words=len(sentences.vocabulary()),
        hours=facts["hours"], practice=facts["hours of practice"],
        speakers=len(voices.speakers()), held_out=", ".join(sentences.evaluation_set().voices), steps=" + ".join(_steps(facts)),
        best=facts["best step"], machine=facts["machine"], metrics=found["metrics"], count=unseen["sentences"],
        seeds=len(found["seeds"]), date=found["date"], judged_on=found["machine"],
        figures=table(goals.arm_lines(unseen)), goals=table(goals.lines(found["goals"])), results=RESULTS)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a Markdown table, the first of them its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _steps(facts: dict | None) -> list[str]:
    """Steps of every part of a training, the first first."""
    return [*_steps(facts.get("begun with")), f"{facts['steps']:,}"] if facts else []


def _sizes(model: Path) -> dict[str, float]:
    """Millions of parameters of each part."""
    counted = {"backbone": 0, "depth": 0, "codec": 0}
    with safe_open(model / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            part = next((part for part in ("codec", "depth") if name.startswith(part)), "backbone")
            counted[part] += math.prod(file.get_slice(name).get_shape()) / 1e6
    return counted


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.ship", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--results", type=Path, required=True, help="what python -m sample_data.build.evaluate wrote of it")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to bundle (default {OUT})")
    options = parser.parse_args(arguments)
    print(f"Bundled: {ship(options.model, options.results, options.out)}")


if __name__ == "__main__":
    sys.exit(main())
