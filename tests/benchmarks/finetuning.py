"""How fine-tuning does against cloning and the base on four voices: python -m tests.benchmarks.finetuning

Each voice is fine-tuned on its 70 clips with the bundled model's preset; `compare --recommend` finds its settings. Every arm
speaks the 50 evaluation sentences, which nothing was trained or chosen on. Writes results/finetuning.json; what exists under
--root is used again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sample_data.build import goals, sentences, voice_runs
from tests.benchmarks import measure
from tts_kit import device, pipeline
from tts_kit.comparison import arms, compare, recommend
from tts_kit.comparison.synthesis import Plan
from tts_kit.config import Config
from tts_kit.data import manifest
from tts_kit.evaluation import metrics, scoring
from tts_kit.io import write_json
from tts_kit.run import TINY_CSM, Run
from tts_kit.speech import best_of
from tts_kit.speech.voice import load_voice
from tts_kit.training import finetune, generation_eval

VOICES = ("af_heart", "am_michael", "bm_george", "am_puck")
GUIDED, BEST_OF = ":guidance=2", ":best_of=4"
ARMS = tuple(arm + change for change in ("", GUIDED, BEST_OF) for arm in ("base", "clone", "finetuned"))
RECOMMENDED = "recommended"  # the fine-tuned model with the settings that were recommended for the voice
PAIRS = ((RECOMMENDED, "clone"), (RECOMMENDED, "base"), (RECOMMENDED, "finetuned"), ("finetuned", "clone"),
         ("finetuned", "base"))


def speak_all(root: Path, voice_name: str, count: int, seeds: Sequence[int]) -> tuple[list[dict], dict]:
    """Return the scored rows of all arms of a voice, and which settings were recommended for it and what they are worth."""
    run, device_config = Run(voice_name, root), device.choose("cpu")
    config = Config(base=str(TINY_CSM), **pipeline.TINY_PRESET)
    voice_runs.make(run, voice_name, config, device_config)
    voice = load_voice(device_config, finetune.finetune(config, run, device_config))
    settings = recommend.recommend(run, voice).settings
    recommended = recommend.arm_name(settings)
    utterances = manifest.read(run.data)
    plan_sentences = voice_runs.recordings(run, voice_name, sentences.evaluation_set().sentences[:count])
    names = dict.fromkeys((*ARMS, recommended))
    plan = Plan(run, run.folder / "evaluation", plan_sentences, seeds, [arms.parse(name) for name in names], utterances)
    voice.apply(recommend.own_settings(run, voice))
    rows, _, _ = compare.scored_clips(plan, voice, {sentence.text: sentence.recording for sentence in plan_sentences})
    of_recommended = [row | {"arm": RECOMMENDED} for row in rows if row["arm"] == recommended]
    # the same sentence in another voice is another unit of the bootstrap
    rows = [row | {"sentence": f"{voice_name} {row['sentence']}"} for row in (*rows, *of_recommended)]
    scores = generation_eval.step_scores(rows, "arm")
    return rows, {"settings": settings, "worth": {arm: round(scores[arm].worth, 4) for arm in ("finetuned", RECOMMENDED)}}


def summarize(rows: Sequence[dict], recommendations: Mapping[str, dict]) -> dict:
    """Return the metrics of each arm over all voices, paired differences, and the goals."""
    by_arm = scoring.group_by_arm(rows)

    def difference(one: str, other: str) -> dict:
        estimates = scoring.differences(by_arm[one], by_arm[other])
        return {name: goals.estimate_values(estimates[name]) for name in ("wer", "sim")}

    figures = {arm: {name: goals.estimate_values(estimate) for name, estimate in scoring.aggregate(arm_rows).items()
                     if name in ("wer", "sim", "mos", "ended_with_eos")} for arm, arm_rows in by_arm.items()}
    pairs = {f"{one} - {other}": difference(one, other) for one, other in PAIRS}
    changes = {name: difference(name, name.partition(":")[0]) | {
        "relative wer": round(figures[name]["wer"]["value"] / figures[name.partition(":")[0]]["wer"]["value"] - 1, 3)}
        for name in ARMS if ":" in name}
    against_clone, against_base = (pairs[f"{RECOMMENDED} - {other}"] for other in ("clone", "base"))
    reached = {
        "recommended against clone: SIM above, by its interval": against_clone["sim"].get("low", -1) > 0,
        "recommended against clone: WER at most +3 points": against_clone["wer"]["value"] <= 0.03,
        "recommended against base: WER not higher": against_base["wer"]["value"] <= 0,
        "guidance, an arm: WER -20 % or better, SIM not lower": any(
            changes[name]["relative wer"] <= -0.2 and changes[name]["sim"].get("high", 1) >= 0
            for name in changes if name.endswith(GUIDED)),
        "best of 4, an arm: WER -40 % or better": any(
            changes[name]["relative wer"] <= -0.4 for name in changes if name.endswith(BEST_OF))}
    worths = [recommendation["worth"] for recommendation in recommendations.values() if recommendation["settings"]]
    return {"arms": figures, "differences": pairs, "against the same arm without": changes,
            "recommendations": recommendations, "voices with recommended settings": len(worths),
            "of which better than the default": sum(worth[RECOMMENDED] > worth["finetuned"] for worth in worths),
            "goals": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/finetuning"), help="folder of the runs")
    parser.add_argument("--voices", nargs="+", default=VOICES)
    parser.add_argument("--sentences", type=int, default=len(sentences.evaluation_set().sentences))
    parser.add_argument("--seeds", type=int, nargs="+", default=sentences.evaluation_set().seeds)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args()
    rows, recommendations = [], {}
    for voice_name in options.voices:
        voice_rows, recommendations[voice_name] = speak_all(options.root, voice_name, options.sentences, options.seeds)
        rows += voice_rows
    result = {"what": "fine-tuning against cloning and the base, in four voices", "voices": list(recommendations),
              "sentences": options.sentences, "seeds": list(options.seeds), **summarize(rows, recommendations),
              "metrics": metrics.load_available(), "choosing models": list(best_of.NAMES.values()),
              "machine": device.machine(), "versions": device.versions(), "command": measure.command()}
    write_json(options.out / "finetuning.json", result)
    print(json.dumps(result["goals"], indent=2))


if __name__ == "__main__":
    main()
