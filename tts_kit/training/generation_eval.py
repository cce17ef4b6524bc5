"""Generation evaluation: SIM and WER of synthesized sentences during training, early stopping, checkpoint selection."""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

from tts_kit import audio
from tts_kit.config import Config
from tts_kit.data import manifest, quality_flags
from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.io import atomic_folder, read_rows, write_rows
from tts_kit.model import lora
from tts_kit.model.load import Base
from tts_kit.progress import tqdm
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.training import callbacks, distributed

SENTENCES = Path(__file__).with_name("sentences.txt")
MIN_SENTENCES = 5
MAX_REFERENCES = 20
FOLDER, GENERATED = "generation_eval", "generated.jsonl"
"""Folder under training/ with the clips and the adapter of every evaluated step; file there with the rows of its clips."""
ROWS, PLOT = "generation_eval.jsonl", "generation_eval.png"
"""Files under training/: the scored rows of all steps, and their plot."""
BASE_MODEL = 0  # the step before training: what the others are compared with, never selected
WER_WEIGHT = scoring.MARGINS["sim"] / scoring.MARGINS["wer"]  # a step is worth its SIM minus this times its WER


@dataclass(frozen=True)
class SelectedCheckpoint:
    step: int
    reason: str


@dataclass(frozen=True)
class StepScores:
    """Scores of one step by sentence."""
    sim: stats.SentenceSums
    wer: stats.SentenceSums

    @property
    def worth(self) -> float:
        """What decides between steps: voice and words in one number."""
        return _value(self.sim) - WER_WEIGHT * _value(self.wer)

    def __str__(self) -> str:
        return f"SIM {_value(self.sim):.2f}, WER {_value(self.wer):.0%}"


class GenerationEvalCallback(TrainerCallback):
    """Scores the base model and the adapter every `generation_eval_steps` steps, and keeps the adapter of each."""

    def __init__(self, base: Base, config: Config, run: Run, clips: Sequence[cache.EncodedClip],
                 metric_models: metrics.MetricModels | None):
        self.base, self.config, self.run, self.metric_models = base, config, run, metric_models
        self.train_clips = [clip for clip in clips if clip.split == "train"]
        self.sentences = read_sentences(clips)
        self._stop = False

    def on_train_begin(self, args, state, control, model=None, **_):
        self._stop = distributed.broadcast_bool(lambda: self._evaluate(state.global_step, model, state.global_step == 0))

    def on_step_end(self, args, state, control, model=None, **_):
        step = state.global_step
        if step % self.config.generation_eval_steps == 0 or step == state.max_steps:
            control.should_evaluate = True  # a step that may be selected needs its held-out losses too
            self._stop = distributed.broadcast_bool(lambda: self._evaluate(step, model))
        if self._stop and step < state.max_steps:
            tqdm.write(f"Early stopping at step {step} of {state.max_steps}: no better step in the last "
                       f"{self.config.early_stopping_patience} generation evaluations.")
            control.should_training_stop = True

    def _evaluate(self, step: int, model: torch.nn.Module, generate: bool = True) -> bool:
        """Evaluate a step, on resuming only what is on disk already; return whether training should stop."""
        if generate and not self.step_folder(step).exists():
            self._generate(step, model)
        self.score()
        return should_stop_early([row for row in self.rows() if row["step"] <= step], self.config.early_stopping_patience)

    def step_folder(self, step: int) -> Path:
        return self.run.training / FOLDER / f"step-{step:06d}"

    def rows(self) -> list[dict]:
        """The scored rows: one for each step and sentence."""
        path = self.run.training / ROWS
        return read_rows(path) if path.exists() else []

    def scores(self, step: int) -> dict[str, float]:
        """SIM and WER of a step, named as Trainer's metrics; empty if it was not evaluated."""
        if not self.step_folder(step).exists():
            return {}
        scores = step_scores(self.rows())[step]
        return {"eval_sim": _value(scores.sim), "eval_wer": _value(scores.wer)}

    def _generate(self, step: int, model: torch.nn.Module) -> None:
        """Write the clips of a step and its adapter."""
        folder, sample_rate = self.step_folder(step), self.base.spec.sample_rate
        samples = callbacks.generate_samples(self.base, self.config, self.train_clips[0].source, self.sentences)
        rows = []
        with atomic_folder(folder) as staging:
            if step != BASE_MODEL:
                lora.save_weights(model, staging / lora.WEIGHTS_FILE)
            for number, (sentence, (wave, ended_with_eos)) in enumerate(zip(self.sentences, samples), 1):
                file = f"{number:02d}.flac"
                audio.write(staging / file, wave, sample_rate)
                rows.append({"step": step, "sentence": number, "text": sentence, "file": f"{FOLDER}/{folder.name}/{file}",
                             "seed": self.config.seed + number - 1, "ended_with_eos": ended_with_eos})
            write_rows(staging / GENERATED, rows)

    def score(self) -> None:
        """Score all generated clips that have no scores of these metric models yet; update the plot."""
        scored = {(row["step"], row["sentence"]): row for row in self.rows()}
        rows = [scored.get((row["step"], row["sentence"]), row)
                for path in sorted((self.run.training / FOLDER).glob(f"step-*/{GENERATED}")) for row in read_rows(path)]
        if rows:
            scoring.score_rows(rows, self.run.training, self.metric_models, self.references,
                               lambda scored_rows: write_rows(self.run.training / ROWS, scored_rows))
            scores, selected = step_scores(self.rows()), select(self.rows(), self.config.steps)
            callbacks.write_plot(self.run.training / PLOT, {
                "SIM (95 % CI)": {step: stats.bootstrap_ratio(score.sim) for step, score in scores.items()},
                "WER (95 % CI)": {step: stats.bootstrap_ratio(score.wer) for step, score in scores.items()}}, selected.step)

    @functools.cached_property
    def references(self) -> scoring.References:
        """Recordings of up to MAX_REFERENCES training clips, evenly spaced; decoded codes where the recordings are missing.

        Recordings, because the comparison measures SIM against recordings too. Of training clips, because it measures
        against held-out ones: a step selected by these would be nearer to them by chance."""
        count, rate = min(len(self.train_clips), MAX_REFERENCES), self.base.spec.sample_rate
        clips = [self.train_clips[number * len(self.train_clips) // count] for number in range(count)]
        if (self.run.data / manifest.MANIFEST).is_file() and cache.matches_data(self.run):
            recordings = {utterance.id: utterance.audio for utterance in manifest.read(self.run.data)}
            return scoring.measure_references({clip.text: recordings[clip.id] for clip in clips}, self.metric_models)
        waves = {clip.text: self.base.codec.decode([clip.codes])[0] for clip in clips}
        return {text: self.metric_models.measure_reference(wave, rate, text) for text, wave in waves.items()
                if not metrics.unusable_reason(wave, rate)}


def build(base: Base, config: Config, run: Run, clips: Sequence[cache.EncodedClip]) -> GenerationEvalCallback | None:
    """The callback, if the config asks for it and metric models and sentences are there; else print what is missing."""
    if not config.generation_eval_steps:
        return None
    sentences = read_sentences(clips)
    if not metrics.load_available() or len(sentences) < MIN_SENTENCES:
        reason = (f"only {len(sentences)} of the kit's sentences are not in the data itself, fewer than {MIN_SENTENCES}"
                  if metrics.load_available() else f"metric models are not installed. Install them: {metrics.INSTALL}")
        print(f"No generation evaluation: {reason}. The last step will be kept.")
        return None
    metric_models = metrics.load_for_selection() if distributed.is_rank_zero() else None
    return GenerationEvalCallback(base, config, run, clips, metric_models)


def load_best(evaluation: GenerationEvalCallback | None, trainer: Trainer) -> SelectedCheckpoint:
    """Select the step to keep and load its adapter into the model; without generation evaluation it is the last one."""
    if not evaluation:
        return SelectedCheckpoint(trainer.state.global_step, "The last step, without generation evaluation.")
    selected = select(evaluation.rows(), evaluation.config.steps)
    weights = evaluation.step_folder(selected.step) / lora.WEIGHTS_FILE
    if weights.exists():
        lora.load_weights(trainer.model, weights)
    print(f"{selected.reason} SIM is to training recordings, in the comparison to held-out ones. Clips of every step: "
          f"{evaluation.run.training / FOLDER}")
    return selected


def remove_results(run: Run) -> None:
    """Remove the generation evaluation of a start with other inputs, which ended before its first checkpoint."""
    shutil.rmtree(run.training / FOLDER, ignore_errors=True)
    for name in (ROWS, PLOT):
        (run.training / name).unlink(missing_ok=True)


def read_sentences(clips: Sequence[cache.EncodedClip]) -> list[str]:
    """The kit's sentences except those in the data: a memorized one says nothing, a held-out one is for the comparison."""
    in_data = {quality_flags.words(clip.text) for clip in clips}
    return [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if quality_flags.words(line) not in in_data]


def step_scores(rows: Sequence[dict], field: str = "step") -> dict[object, StepScores]:
    """Step, or another field of the rows -> its scores, in order; a clip on which a metric failed counts like one without
    sound."""
    groups = {}
    for row in sorted(rows, key=lambda row: row[field]):
        word_errors = row["ref_words"] if row["word_errors"] is None else row["word_errors"]
        groups.setdefault(row[field], []).append(row | {"sim": row["sim"] or 0.0, "word_errors": word_errors})
    return {step: StepScores(sim=stats.sums_by_sentence(counted, "sim"),
                             wer=stats.sums_by_sentence(counted, "word_errors", "ref_words"))
            for step, counted in groups.items()}


def select(rows: Sequence[dict], steps: int) -> SelectedCheckpoint:
    """Select the step to keep of a training of `steps` steps, from one row for each evaluated step and sentence.

    The best step has the highest SIM - WER_WEIGHT * WER: 0.02 SIM weigh as much as 3 points of WER, the differences that the
    verdict looks for. Selected is the earliest that is as good: neither its SIM lower nor its WER higher than the best's by
    more than one standard error of the paired difference (significance would be too weak a test: with a dozen sentences
    almost every step would pass). If nothing was evaluated, or no clip holds any sound, it is the last step.
    """
    scores = step_scores(rows)
    if all(row["failure"] or row.get("metric_failed") for row in rows if row["step"] != BASE_MODEL):
        last = max(scores.keys() - {BASE_MODEL}, default=steps)
        return SelectedCheckpoint(last, f"Step {last} of {steps} selected, the last: no step could be evaluated.")
    best = _best(scores)
    selected = next(step for step in scores if step != BASE_MODEL and _is_as_good(scores[step], scores[best]))
    rank = "the best" if selected == best else f"as good within one standard error as step {best}, {scores[best]}, the best"
    reason = (f"Step {selected} of {steps} selected: {scores[selected]} ({rank} trade of voice and words, where "
              f"{scoring.MARGINS['sim']} SIM weigh as much as {100 * scoring.MARGINS['wer']:.0f} points of WER)")
    if BASE_MODEL in scores:
        base = scores[BASE_MODEL]
        sim = stats.paired_bootstrap_diff(scores[selected].sim, base.sim)
        wer = stats.paired_bootstrap_diff(scores[selected].wer, base.wer)
        reason += (f"; base model: {base}{', SIM not significantly lower' * (not sim.low > 0)}"
                   f"{', WER significantly lower' * (wer.low > 0 and wer.value > scoring.MARGINS['wer'])}")
    return SelectedCheckpoint(selected, f"{reason}.")


def should_stop_early(rows: Sequence[dict], patience: int) -> bool:
    """Whether none of the last `patience` evaluations is better than the best before them; patience 0: never."""
    trained = sorted({row["step"] for row in rows} - {BASE_MODEL})
    return 0 < patience < len(trained) and _best(step_scores(rows)) not in trained[-patience:]


def _value(sums: stats.SentenceSums) -> float:
    return stats.bootstrap_ratio(sums).value


def _best(scores: dict[int, StepScores]) -> int:
    """The trained step that is worth most; the earliest if equal."""
    return max((step for step in scores if step != BASE_MODEL), key=lambda step: (scores[step].worth, -step))


def _is_as_good(step: StepScores, best: StepScores) -> bool:
    sim, wer = stats.paired_bootstrap_diff(step.sim, best.sim), stats.paired_bootstrap_diff(step.wer, best.wer)
    return sim.value >= -sim.standard_error and wer.value <= wer.standard_error
