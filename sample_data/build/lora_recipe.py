"""Find settings for fine-tuning the bundled model, on voices and sentences that nothing else uses.

    python -m sample_data.build.lora_recipe --model runs/pretrain/tiny-csm --codes runs/pretrain/codes/corpus

One setting after the other is tried, with the best of those before it. A value is kept if it is better in the mean over the
voices and worse in none but one; better is a higher SIM - 0.67 WER, by which the kit selects checkpoints too, of the arm in
which it is higher: with a reference clip or without, as `compare --recommend` decides. What exists in the folder is used
again.
"""

import argparse
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sample_data.build import csm_training, open_text, regularizers, sentences, voice_runs, voices
from tts_kit import device, pipeline, run
from tts_kit.comparison import arms, compare
from tts_kit.comparison.synthesis import Plan
from tts_kit.config import Config
from tts_kit.data import manifest
from tts_kit.errors import report_errors
from tts_kit.evaluation import metrics
from tts_kit.io import read_json, write_json
from tts_kit.model.load import Base
from tts_kit.run import Run
from tts_kit.speech.voice import load_voice
from tts_kit.tokens.cache import EncodedClip
from tts_kit.training import finetune, generation_eval
from tts_kit.training.trainer import CsmTrainer

GRID = {"context_probability": (0.5, 1.0), "learning_rate": (2e-4, 4e-4), "steps": (30, 120),
        "lora_targets": ("backbone", "depth"), "rank": (8, 32), "condition_dropout": (0.1, 0.2), "rehearsal": (0.1, 0.3),
        "kl": (0.1, 0.5), "generation_eval_steps": (0,)}
"""Settings of the kit's config in the order in which they are tried, and the two regularizers."""
REGULARIZERS = {"rehearsal": 0.0, "kl": 0.0}
ARMS = ("finetuned", "finetuned+clone")
DEVELOPMENT_SEED, DEVELOPMENT_SENTENCES, SEEDS = 70_001, 20, (1, 2)
KL_SENTENCES = 24
Clips = Callable[[], list[EncodedClip]]  # other speakers' clips, for rehearsal


def search(model: Path, out: Path, clips: Clips, voice_names: list[str] = voices.RECIPE_VOICES,
           grid: Mapping[str, tuple] = GRID) -> dict:
    """Return the best settings and what each trial measured; written to `out`/recipe.json after each trial."""
    best, trials = pipeline.TINY_PRESET | REGULARIZERS, []
    measure_one = functools.partial(_measure, model, out, clips)
    best_worths = [measure_one(best, name) for name in voice_names]
    trials.append({"change": "none", "worth": best_worths, "kept": True})
    for name, values in grid.items():
        before, before_worths = best, best_worths
        for value in values:
            candidate = before | {name: value}
            if name == "rank":
                candidate["alpha"] = before["alpha"] * value / before["rank"]
            worths = [measure_one(candidate, voice_name) for voice_name in voice_names]
            gains = np.subtract(worths, before_worths)
            is_better = (gains < 0).sum() <= 1 and gains.mean() > 0 and np.mean(worths) > np.mean(best_worths)
            if is_better:
                best, best_worths = candidate, worths
            trials.append({"change": f"{name}={value}", "worth": worths, "gain": round(float(gains.mean()), 4),
                           "better in": int((gains > 0).sum()), "kept": bool(is_better)})
            print(trials[-1])
            write_json(out / "recipe.json", {
                "command": "python -m sample_data.build.lora_recipe", "voices": list(voice_names), "best": best,
                "trials": trials, "metrics": metrics.load_available(), "machine": device.machine(),
                "versions": device.versions()})
    return best


def _measure(model: Path, out: Path, clips: Clips, settings: Mapping, voice_name: str) -> float:
    """Fine-tune a voice with these settings; returns what it is worth on the development sentences."""
    first = voice_runs.make(Run(voice_name, out), voice_name, Config(base=str(model)), device.choose("cpu"))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    trial = Run(f"{voice_name}-{digest}", out)
    result = trial.folder / "worth.json"
    if result.exists():
        return read_json(result, "Delete it.")["worth"]
    if not trial.data.exists():
        run.share(first, trial)
    config = Config(base=str(model), **{name: value for name, value in settings.items() if name not in REGULARIZERS})
    config = config.replace(sample_steps=0)

    def customize(base: Base, trainer: CsmTrainer) -> None:
        if settings["rehearsal"]:
            regularizers.add_rehearsal(trainer, base, clips(), settings["rehearsal"])
        if settings["kl"]:
            regularizers.add_kl(trainer, base, _development_sentences()[-KL_SENTENCES:], settings["kl"])

    adapter = finetune.finetune(config, trial, device.choose("cpu"), customize=customize)
    texts = _development_sentences()[:DEVELOPMENT_SENTENCES]
    plan_sentences = voice_runs.recordings(first, voice_name, texts)
    plan = Plan(trial, trial.folder / "development", plan_sentences, SEEDS, [arms.parse(name) for name in ARMS],
                manifest.read(trial.data))
    rows, _, _ = compare.scored_clips(plan, load_voice(device.choose("cpu"), adapter),
                                      {sentence.text: sentence.recording for sentence in plan_sentences},
                                      load_models=metrics.load_for_selection)
    scores = generation_eval.step_scores([row for row in rows if row["arm"] in ARMS], "arm")
    worth = round(max(score.worth for score in scores.values()), 4)
    write_json(result, {"settings": dict(settings), "scores": {name: str(scores[name]) for name in ARMS}, "worth": worth})
    return worth


@functools.cache
def _development_sentences() -> list[str]:
    """Return sentences that are in no other set; the last of them are for the divergence from the base."""
    bundled = {tuple(sentences.words(text)) for text in sentences.evaluation_set().bundled}
    generated = (text for text in open_text.generate(DEVELOPMENT_SEED) if tuple(sentences.words(text)) not in bundled)
    return list(itertools.islice(generated, DEVELOPMENT_SENTENCES + KL_SENTENCES))


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)

    @functools.cache
    def clips() -> list[EncodedClip]:
        return [clip for clip in csm_training.load_clips(options.codes) if clip.split == "train"][:2000]

    print(json.dumps(search(options.model, options.out, clips), indent=2))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.lora_recipe", description=__doc__.split("\n")[0])
    top.add_argument("--model", type=Path, required=True, help="folder of the model to fine-tune")
    top.add_argument("--codes", type=Path, required=True, help="codes of the corpus it was trained on, for rehearsal")
    top.add_argument("--out", type=Path, default=Path("runs/recipe"), help="folder of the runs and of recipe.json")
    return top


if __name__ == "__main__":
    sys.exit(main())
