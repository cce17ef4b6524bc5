"""Find the settings that suit a voice: with a reference clip or without, guidance, strength and temperature; keep them with
its adapter as its defaults.

One setting after the other is tried on the kit's own sentences, against recordings of training clips; what is chosen is
measured against the defaults once more, with takes that did not choose it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import audio
from tts_kit import config as kit_config
from tts_kit.comparison import arms, compare, synthesis, verdict
from tts_kit.comparison.verdict import plural
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.evaluation import metrics, stats
from tts_kit.evaluation.stats import Estimate
from tts_kit.model import lora
from tts_kit.run import Run
from tts_kit.speech.voice import RECOMMENDED, REFERENCE_FILE, Voice, default_sampling, recommended_context
from tts_kit.tokens.prompt import Turn
from tts_kit.training import generation_eval
from tts_kit.training.generation_eval import StepScores

FOLDER = "recommend"  # of a run
REFERENCE = "reference"
GRID = {REFERENCE: (1.0,), "guidance": (1.5, 2.0, 3.0), "strength": (0.5, 0.75, 1.25), "temperature": (0.6, 1.4)}
"""Factors of the voice's own values that are tried, in this order, each with the best of the settings before it; 1 for a
reference clip, which the voice has not by itself."""
NEW_TAKES = 1000  # added to the seeds for the takes that measure the choice


@dataclass(frozen=True)
class Recommendation:
    settings: dict[str, float]  # those that differ from the voice's own; `reference` is 1 if a clip precedes each sentence
    reason: str
    page: Path


def recommend(run: Run, voice: Voice, sentences: int = 12, seeds: Sequence[int] = (1, 2)) -> Recommendation:
    """Find the best settings for a run's adapter and keep them as its defaults; go on where it was interrupted.

    The best have the highest SIM - WER_WEIGHT * WER, by which checkpoints are selected too. The settings are kept only if
    new takes of the same sentences confirm them. The voice has them from then on, in place of earlier ones."""
    if not voice.is_finetuned:
        raise KitError(f"{voice.base.name} is loaded without an adapter, with which settings could be kept. Load one.")
    if not metrics.load_available():
        raise KitError(f"settings are chosen by WER and SIM, and the metric models are not installed: {metrics.INSTALL}")
    if sentences < stats.MIN_SENTENCES or not seeds:
        raise KitError(f"{plural(sentences, 'sentence')} with {plural(len(seeds), 'seed')} cannot choose settings; ask for "
                       f"at least {stats.MIN_SENTENCES} sentences and a seed.")
    own, before = own_settings(run, voice), {"strength": voice.strength} | vars(voice.sampling)
    search = _Search(run, voice, sentences)
    try:
        voice.apply(own)
        chosen: dict[str, float] = {}
        for name, factors in GRID.items():
            values = dict.fromkeys(round(min(factor * own.get(name, 1.0), RECOMMENDED.get(name, 1.0)), 3)
                                   for factor in factors)
            candidates = [chosen, *({**chosen, name: value} for value in values if value != own.get(name))]
            scores = search.scores(candidates, seeds)
            chosen = max(candidates, key=lambda settings: scores[arm_name(settings)].worth)  # the first if equal
            print("\n".join([f"{name}:", *(f"  {settings.get(name, own.get(name, 0)):g}: {scores[arm_name(settings)]}"
                                           for settings in candidates)]))
        reason = "No other settings were better than the voice's own."
        if chosen:
            new_seeds = [seed + NEW_TAKES for seed in seeds]
            scores = search.scores([{}, chosen], new_seeds)
            best, default = scores[arm_name(chosen)], scores[arm_name({})]
            is_confirmed = best.worth > default.worth
            reason = _describe(chosen, best, default, is_confirmed)
            chosen = chosen if is_confirmed else {}
        voice.context = _keep(run, voice, chosen, reason)
        before = own | _without_reference(chosen)
    finally:
        voice.apply(before)
    page = search.show()
    print(reason, f"Kept in {run.adapter} as the voice's defaults; options of a command win over them." if chosen else "")
    if _without_reference(chosen) and run.comparison.exists():
        print(f"{run.comparison} was made with other settings: move it away to compare again with these.")
    return Recommendation(chosen, reason, page)


class _Search:
    """Clips of many settings in one folder, and their scores."""

    def __init__(self, run: Run, voice: Voice, sentences: int):
        self.run, self.voice, self.sentences = run, voice, sentences
        self.utterances = manifest.read(run.data)
        self.load_models = functools.cache(metrics.load_for_selection)

    def scores(self, candidates: Sequence[Mapping[str, float]], seeds: Sequence[int]) -> dict[str, StepScores]:
        """Return the scores of each arm on the takes of these seeds."""
        names = [arm_name(settings) for settings in candidates]
        self.plan = compare.development_plan(self.run, self.run.folder / FOLDER, [arms.parse(name) for name in names],
                                             self.sentences, seeds, self.utterances)
        rows, self.inputs, _ = compare.scored_clips(
            self.plan, self.voice, compare.training_recordings(self.plan), load_models=self.load_models)
        self.judged = [row for row in rows if row["arm"] in names and row["seed"] in self.plan.seeds
                       and row["sentence"] <= len(self.plan.sentences)]
        return generation_eval.step_scores(self.judged, "arm")

    def show(self) -> Path:
        """Write the page of what was measured last."""
        names = [arm.name for arm in self.plan.arms]
        decision = verdict.decide(self.judged, [(name, arm_name({})) for name in names[1:]])
        return compare.show(self.plan, self.judged, decision, self.inputs, f"tts_kit: settings for {self.run.name}").page


def _keep(run: Run, voice: Voice, chosen: dict[str, float], reason: str) -> list[Turn]:
    """Keep settings in the adapter's folder, and the reference clip if they have one; returns the voice's new context."""
    kept, clip = {}, run.adapter / REFERENCE_FILE
    if chosen:
        kept = {"settings": _without_reference(chosen), "reason": reason}
    if REFERENCE in chosen:
        [reference] = synthesis.pick_references(manifest.read(run.data))
        rate = audio.probe(reference.path)[0]
        audio.write(clip, audio.read(reference.path, rate), rate)
        kept[REFERENCE] = reference.text
    lora.add_metadata(run.adapter, recommended=kept)
    if REFERENCE not in chosen:
        clip.unlink(missing_ok=True)
    return recommended_context(voice, clip, kept)


def _without_reference(settings: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in settings.items() if name != REFERENCE}


def own_settings(run: Run, voice: Voice) -> dict[str, float]:
    """Return the settings of a voice without what is recommended for it."""
    config = kit_config.read_config(run.adapter / kit_config.CONFIG_FILE)
    return {"strength": 1.0} | vars(default_sampling(voice.base, config))


def arm_name(settings: Mapping[str, float]) -> str:
    """Return the name of the arm with these settings."""
    kind = "finetuned+clone:" if settings.get(REFERENCE) else "finetuned:"
    return arms.parse(kind + ",".join(f"{name}={value:g}" for name, value in _without_reference(settings).items())).name


def _describe(settings: Mapping[str, float], best: StepScores, default: StepScores, is_confirmed: bool) -> str:
    """Say what was measured of the chosen settings against the defaults."""
    sim, wer = (stats.paired_bootstrap_diff(getattr(best, name), getattr(default, name)) for name in ("sim", "wer"))
    names = ", ".join("a reference clip" if name == REFERENCE else f"{name} {value:g}" for name, value in settings.items())
    return (f"{names}: {best}; the voice's own settings: {default}. Difference of SIM {_interval(sim, 1, 3)}, of WER "
            f"{_interval(wer, 100, 0)} points, on new takes of {plural(len(best.sim), 'sentence')}."
            + " They did not confirm the choice, and the voice keeps its own settings." * (not is_confirmed))


def _interval(difference: Estimate, scale: float, digits: int) -> str:
    value, low, high = (f"{round(scale * bound, digits) + 0.0:+.{digits}f}" if np.isfinite(bound) else "?"
                        for bound in (difference.value, difference.low, difference.high))
    return f"{value} (95 % CI {low} to {high})"
