"""Try values of one setting at a time, on sentences of their own, so that nobody has to guess it."""

from collections.abc import Mapping, Sequence

from tts_kit.comparison import arms, compare, synthesis, verdict
from tts_kit.comparison.synthesis import Plan, Sentence
from tts_kit.comparison.verdict import Verdict
from tts_kit.data import manifest
from tts_kit.data.manifest import TRAIN
from tts_kit.errors import KitError
from tts_kit.run import Run
from tts_kit.speech.voice import Voice
from tts_kit.training import generation_eval

FOLDER = "sweep"


def run_sweep(run: Run, voice: Voice, values: Mapping[str, Sequence[float]], arm: str = "finetuned", sentences: int = 10,
              seeds: Sequence[int] = (1, 2)) -> compare.Result:
    """Synthesize the kit's own sentences with every value of every setting, and write a page to runs/NAME/sweep.

    Neither held-out sentences nor held-out clips are used, so that they can test afterwards what is chosen here.
    """
    utterances = manifest.read(run.data)
    variants = list(dict.fromkeys(arms.parse(f"{arm}:{setting}={value}") for setting, numbers in values.items()
                                  for value in numbers))
    if not variants or sentences < 1 or not seeds:
        raise KitError("there is nothing to sweep: give at least one setting with values, one sentence and one seed.")
    compare.check_held_out(run, voice)
    texts = generation_eval.read_sentences(utterances)[:sentences]
    if not texts:
        raise KitError(f"all of the kit's sentences in {generation_eval.SENTENCES} are in the data itself, so that none is "
                       "left for a sweep. Add others to that file.")
    if len(texts) < sentences:
        print(f"{sentences} sentences were asked for; the kit has {len(texts)} that are not in the data. Those are used.")
    plan = Plan(run, run.folder / FOLDER, [Sentence(text) for text in texts], list(dict.fromkeys(seeds)),
                [arms.parse(arm), *variants], utterances)
    inputs = compare.describe_inputs(run, voice, plan)
    synthesis.check_inputs(plan.folder, inputs)
    rows, _ = synthesis.synthesize(plan, voice)
    references = {reference.path for one in plan.arms for reference in synthesis.references(one, utterances)}
    recordings = {one.text: one.audio for one in utterances if one.split == TRAIN and one.audio not in references}
    rows = compare.score(plan, rows, recordings)
    decision = decide(rows, [(variant.name, arms.parse(arm).name) for variant in variants])
    return compare.show(plan, rows, decision, inputs, f"tts_kit: sweep of {run.name}")


def decide(rows: Sequence[dict], pairs: verdict.Pairs) -> Verdict:
    """Return the verdict with a headline that lists the significantly better and worse values."""
    decision = verdict.decide(rows, pairs)
    if not decision.comparisons:
        return decision

    def having(*outcomes: str) -> str:
        return ", ".join(one.arm for one in decision.comparisons if one.outcome in outcomes)

    parts = [f"significantly better than the default: {having(verdict.HIGHER_SIM, verdict.LOWER_WER) or 'none'}"]
    if worse := having(verdict.LOWER_SIM, verdict.HIGHER_WER):
        parts.append(f"significantly worse: {worse}")
    if mixed := having(verdict.HIGHER_SIM_AND_WER, verdict.LOWER_SIM_AND_WER):
        parts.append(f"better in one of SIM and WER and worse in the other: {mixed}")
    return Verdict(f"In short: {'; '.join(parts)}.", decision.details, decision.comparisons, decision.figures)
