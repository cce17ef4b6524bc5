"""Evaluate a small model on sentences and voices that it was not trained on, and compare the results with its goals.

    python -m sample_data.build.evaluate --model sample_data/tiny-csm --out runs/pretrain/results.json
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sample_data.build import bundled_voice, corpus, evaluation_clips, goals, sentences
from sample_data.build.evaluation_clips import GroundTruth, Synthesize
from sample_data.build.goals import ClipGroup
from tts_kit import device
from tts_kit.comparison import arms, verdict
from tts_kit.errors import KitError, report_errors
from tts_kit.evaluation import metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.evaluation.scoring import References
from tts_kit.io import write_json, write_rows
from tts_kit.model import lora
from tts_kit.speech.voice import Voice, load_voice

ARMS = (*arms.ARMS, evaluation_clips.FIRST_CODEBOOK)
UNSEEN, OPEN, FINETUNED = "unseen voices", "open vocabulary", "bundled voice"
GOALS = {UNSEEN: goals.UNSEEN, OPEN: goals.OPEN, FINETUNED: goals.FINETUNED}
HELD_OUT = Path(__file__).parents[2] / "sample_data" / "held_out"


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate, and with what."""
    model: Path
    adapter: Path | None = None  # an adapter of the bundled voice
    held_out: Path = HELD_OUT  # clips of the bundled voice that no adapter was trained on
    work: Path = Path("runs/evaluate")  # folder of the clips
    sentences: int = 50
    seeds: tuple[int, ...] = field(default_factory=lambda: sentences.evaluation_set().seeds)
    arms: tuple[str, ...] = ARMS
    device: str = "auto"
    threads: int = 2


def evaluate(config: EvaluationConfig, synthesize: Synthesize = corpus.synthesize_kokoro) -> tuple[dict, list[dict]]:
    """Return (results, rows of all clips); clips and scores in config.work are used again."""
    metric_models = metrics.load(config.threads)
    clips = evaluation_clips.ground_truth(config.work / "originals", synthesize)
    reference_clips = evaluation_clips.reference_clips(config.work / "originals", synthesize)
    voice = load_voice(device.choose(config.device), config.adapter, str(config.model))
    folder = config.work / evaluation_clips.model_digest(config.model, voice)
    references = _measure_references(clips, metric_models)
    evaluated = clips[:config.sentences]
    base_arms = [arm for arm in config.arms if arm in (*arms.GIVEN_ARMS, evaluation_clips.FIRST_CODEBOOK, "base", "clone")]
    planned = evaluation_clips.plan_rows(evaluated, reference_clips, config.seeds, base_arms)
    groups = {UNSEEN: _make_group(planned, folder / "unseen", voice, metric_models, references, references)}
    open_clips = evaluation_clips.ground_truth(config.work / "originals", synthesize,
                                               sentences.evaluation_set().open_sentences[:config.sentences])
    planned = evaluation_clips.plan_rows(open_clips, reference_clips, config.seeds,
                                         [arm for arm in base_arms if arm in ("ground_truth", "base", "clone")])
    groups[OPEN] = _make_group(planned, folder / "open", voice, metric_models, references, references)
    if config.adapter is not None:
        recorded = evaluation_clips.recorded_clips(config.held_out, bundled_voice.VOICE)
        planned = evaluation_clips.plan_rows(evaluated, reference_clips, config.seeds, config.arms, bundled_voice.VOICE,
                                             recorded)
        adapter_folder = folder / f"tuned-{lora.fingerprint(voice.model)}"
        groups[FINETUNED] = _make_group(planned, adapter_folder, voice, metric_models,
                                        _measure_references(recorded, metric_models), references)
    rows = [row | {"group": name} for name, group in groups.items() for row in group.rows]
    return _results(config, voice, metric_models, groups), rows


def report(results: dict) -> str:
    """Return the results as tables for a terminal."""
    parts = [f"Metrics: {results['metrics']}."]
    for name, group in results["groups"].items():
        parts += ["", f"{name}, {group['sentences']} sentences:", scoring.print_table(goals.arm_table(group))]
        if "verdict" in group:
            parts.append(group["verdict"])
    reached = sum(goal["reached"] for goal in results["goals"])
    return "\n".join([*parts, "", scoring.print_table(goals.goal_table(results["goals"])),
                      f"{reached} of {len(results['goals'])} goals reached."])


def _measure_references(clips: Sequence[GroundTruth], metric_models: MetricModels) -> dict[str, References]:
    """Return voice -> metrics of its ground truth clips, by their sentences."""
    paths_by_speaker = {}
    for clip in clips:
        paths_by_speaker.setdefault(clip.speaker, {})[clip.text] = clip.path
    return {name: scoring.measure_references(paths, metric_models) for name, paths in paths_by_speaker.items()}


def _make_group(planned: Sequence[dict], folder: Path, voice: Voice, metric_models: MetricModels,
                references: Mapping[str, References], all_references: Mapping[str, References]) -> ClipGroup:
    """Make and score the planned clips; the other voices in `all_references` are the other speakers of a voice."""
    clip_rows = evaluation_clips.make_clips(planned, folder, voice)
    rows = {row["file"]: row for row in clip_rows}

    def save(scored: Sequence[dict]) -> None:
        rows.update((row["file"], row) for row in scored)
        evaluation_clips.save_rows(folder, list(rows.values()))

    for speaker, speaker_references in references.items():
        speaker_rows = [row for row in clip_rows if row["speaker"] == speaker]
        save(scoring.score_rows(speaker_rows, folder, metric_models, speaker_references, save))
    other_speakers = {name: [clip.embedding for other in all_references if other != name
                             for clip in all_references[other].values()] for name in references}
    return ClipGroup(list(rows.values()), references, other_speakers)


def _results(config: EvaluationConfig, voice: Voice, metric_models: MetricModels, groups: Mapping[str, ClipGroup]) -> dict:
    group_results = {name: goals.summarize(group) for name, group in groups.items()}
    if FINETUNED in groups:
        group_results[FINETUNED]["verdict"] = "\n".join(
            verdict.decide(groups[FINETUNED].rows, verdict.PRIMARY_COMPARISONS).details)
    checked = [goal for name, group in groups.items()
               for goal in goals.check(GOALS[name], group, group_results[name])]
    return {"model": config.model.name, "weights": voice.base.fingerprint,
            "model digest": evaluation_clips.model_digest(config.model, voice),
            "adapter": lora.fingerprint(voice.model) if voice.is_finetuned else None, "seeds": list(config.seeds),
            "metrics": metric_models.name, "date": datetime.date.today().isoformat(), "machine": device.machine(),
            "versions": device.versions(), "goals": checked, "groups": group_results}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.evaluate", description=__doc__.split("\n")[0])
    top.add_argument("--model", type=Path, required=True, help="folder of the model")
    top.add_argument("--out", type=Path, required=True, help="results as JSON; the scores of the clips get the same name "
                     "with .jsonl")
    top.add_argument("--adapter", type=Path, help="an adapter of the bundled voice, to be evaluated as well")
    top.add_argument("--held-out", type=Path, default=HELD_OUT, help="clips of the bundled voice that the adapter was not "
                     "trained on")
    top.add_argument("--sentences", type=int, default=50, help="how many of the evaluation sentences (default 50: all)")
    top.add_argument("--seeds", type=int, nargs="+", help="seeds with which each sentence is spoken (default: those of the "
                     "evaluation set)")
    top.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="arms to make (default all)")
    top.add_argument("--work", type=Path, default=Path("runs/evaluate"), help="folder of the clips")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where the model computes")
    top.add_argument("--threads", type=int, default=2, help="of the metric models (default 2)")
    return top


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    command_arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(command_arguments)
    values = {name: value for name, value in vars(options).items() if name not in ("out", "seeds") and value is not None}
    seeds = {} if options.seeds is None else {"seeds": tuple(dict.fromkeys(options.seeds))}
    if options.out.suffix != ".json" or options.sentences < 1:
        raise KitError(f"--out {options.out} --sentences {options.sentences}: the name must end in .json, and there must be "
                      "at least one sentence. Change them.")
    results, rows = evaluate(EvaluationConfig(**values | seeds))
    command = f"python -m sample_data.build.evaluate {shlex.join(command_arguments)}"
    write_json(options.out, {"command": command} | results)
    write_rows(options.out.with_suffix(".jsonl"), rows)
    print(f"{report(results)}\nResults: {options.out}; scores of the clips: {options.out.with_suffix('.jsonl')}.")


if __name__ == "__main__":
    sys.exit(main())
