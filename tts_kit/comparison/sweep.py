"""The knobs experiment: one setting turned at a time, on sentences of its own, so that nobody has to guess."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_kit.comparison import arms, compare, synthesis, verdict
from tts_kit.comparison.synthesis import Plan, Sentence
from tts_kit.data import manifest
from tts_kit.data.manifest import TRAIN
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.run import Run
from tts_kit.speech.speak import Voice
from tts_kit.training import generation_eval

FOLDER = "knobs"


def run_sweep(run: Run, voice: Voice, wanted: Mapping[str, Sequence[float]], kind: str = "finetuned", sentences: int = 10,
         seeds: Sequence[int] = (1, 2)) -> Path:
    """Say the kit's own sentences with every value of every knob, and write a page and table to runs/NAME/knobs.

    Neither held-out sentences nor held-out clips are used: what is chosen here can be judged by them afterwards.
    """
    utterances = manifest.read(run.data)
    turned = list(dict.fromkeys(arms.parse(f"{kind}:{name}={value}") for name, values in wanted.items()
                                for value in values))
    if not turned or sentences < 1 or not seeds:
        raise KitError("there is nothing to turn: give at least one knob with values, one sentence and one seed.")
    compare.check_held_out(run, voice, utterances)
    texts = generation_eval.read_sentences(utterances)[:sentences]
    if not texts:
        raise KitError(f"all of the kit's sentences in {generation_eval.SENTENCES} are in the data itself, so that none is left to turn "
                      "knobs on. Add others to that file.")
    if len(texts) < sentences:
        print(f"{sentences} sentences were asked for; the kit has {len(texts)} not in the data, and those are said.")
    plan = Plan(run, run.folder / FOLDER, [Sentence(each) for each in texts], list(dict.fromkeys(seeds)),
                [arms.parse(kind), *turned], utterances)
    settings = compare.describe(run, voice, plan, arms.pick_reference(utterances))
    synthesis.check_settings(plan.folder, settings)
    rows, _ = synthesis.synthesize(plan, voice)
    heard = {reference.path for arm in plan.arms for reference in arms.references(arm, utterances)}
    real = {each.text: each.audio for each in utterances if each.split == TRAIN and each.audio not in heard}
    rows = compare.score(plan, rows, real)
    asked = [(arm.name, kind) for arm in turned]
    return compare.show(plan, rows, summary(rows, asked), settings, f"tts_kit: the knobs of {run.name}")


def summary(rows: Sequence[dict], asked: verdict.Comparisons) -> list[str]:
    """Which setting is surely better than the usual one, first; then every setting with its evidence."""
    if not all(scoring.METRICS in row for row in rows):
        return [verdict.UNMEASURED]
    found = verdict.find(rows, asked)
    better = [each.one for each in found if each.kind in (verdict.WINS, verdict.WINS_WORDS)]
    worse = [each.one for each in found if each.kind in (verdict.LOSES, verdict.LOSES_WORDS)]
    traded = [each.one for each in found if each.kind in (verdict.TRADES, verdict.TRADES_VOICE)]
    parts = [f"surely better than usual: {', '.join(better) or 'nothing'}"]
    parts += [f"surely worse: {', '.join(worse)}"] if worse else []
    parts += [f"words for voice, or voice for words: {', '.join(traded)}"] if traded else []
    return [f"In short: {'; '.join(parts)}.", *verdict.verdict(rows, asked).splitlines()]
