"""How often recommended settings beat a voice's own on held-out sentences: python -m tests.benchmarks.recommend RUN ...

Each run has a trained adapter. `compare --recommend` chooses its settings (or goes on where it was interrupted), then both
speak the held-out sentences, which had no part in the choice. Writes results/recommend.json.
"""

import argparse
import json
import sys
from pathlib import Path

from tts_kit import device
from tts_kit.comparison import arms, compare, recommend
from tts_kit.comparison.synthesis import Plan, Sentence
from tts_kit.data import manifest
from tts_kit.evaluation import metrics, stats
from tts_kit.evaluation.stats import Estimate
from tts_kit.io import write_json
from tts_kit.run import Run
from tts_kit.speech.voice import Voice, load_voice
from tts_kit.training import generation_eval

RESULTS = Path(__file__).parent / "results" / "recommend.json"
FOLDER = "recommend-held-out"  # of a run


def measure(run: Run, voice: Voice, sentences: int, seeds: list[int]) -> dict:
    """Return what was recommended for a run, and how much better it is on held-out sentences."""
    result = recommend.recommend(run, voice)
    row = {"run": run.name, "settings": result.settings, "reason": result.reason}
    if not result.settings:
        return row | {"outcome": "own settings"}
    utterances = manifest.read(run.data)
    held_out = [Sentence(one.text, one.audio) for one in utterances if one.split == manifest.HELD_OUT]
    names = [recommend.arm_name(settings) for settings in ({}, result.settings)]
    plan = Plan(run, run.folder / FOLDER, held_out[:sentences], seeds, [arms.parse(name) for name in names], utterances)
    voice.apply(recommend.own_settings(run, voice))
    rows, _, _ = compare.scored_clips(plan, voice, {one.text: one.recording for one in held_out},
                                      load_models=metrics.load_for_selection)
    scores = generation_eval.step_scores([row for row in rows if row["arm"] in names], "arm")
    own, recommended = (scores[name] for name in names)
    difference = {metric: interval(stats.paired_bootstrap_diff(getattr(recommended, metric), getattr(own, metric)))
                  for metric in ("sim", "wer")}
    return row | {"sentences": len(plan.sentences), "takes": len(seeds), "own": str(own), "recommended": str(recommended),
                  "difference": difference, "outcome": "better" if recommended.worth > own.worth else "worse"}


def interval(estimate: Estimate) -> list[float]:
    return [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--root", default="runs", help="folder of the runs")
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows = []
    for name in options.runs:
        run = Run(name, options.root)
        rows.append(measure(run, load_voice(device.choose("auto"), run.adapter), options.sentences, options.seeds))
        counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("better", "worse", "own settings")}
        result = {"what": "recommended settings against the voice's own on held-out sentences", "voices": rows, **counts,
                  "metrics": metrics.load_available(), "machine": device.machine(), "versions": device.versions(),
                  "command": f"python -m tests.benchmarks.recommend {' '.join(sys.argv[1:])}"}
        write_json(RESULTS, result)  # after each run, as each takes minutes
    print(json.dumps(result))


if __name__ == "__main__":
    main()
