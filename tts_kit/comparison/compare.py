"""The contest: every arm says the same sentences, judges listen, and one page shows what was found."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_kit import device
from tts_kit.comparison import arms, external, listening_test, listening_test_analysis, page, plots, synthesis, verdict
from tts_kit.comparison.synthesis import Plan, Sentence
from tts_kit.data import manifest
from tts_kit.data.manifest import HELD_OUT, TRAIN, Utterance
from tts_kit.errors import KitError
from tts_kit.evaluation import memorization, metrics, scoring
from tts_kit.io import read_json, read_rows, write_json
from tts_kit.model import lora
from tts_kit.run import Run
from tts_kit.speech.speak import Reference, Voice
from tts_kit.tokens import cache

ARMS, TRIALS = tuple(arms.SPOKEN_ARMS), ("ab", "smos")
STRANGERS = Path(__file__).parents[2] / "sample_data" / "strangers"
"""Clips of other people, who say what similarity a stranger gets."""
RESPONSES_FILE, SCALE = "votes.json", "scale.json"


def compare(run: Run, voice: Voice, sentences: int = 10, seeds: Sequence[int] = (1, 2, 3), wanted: Sequence[str] = ARMS,
            voted: Sequence[Path] = (), trials: Sequence[str] = TRIALS) -> Path:
    """Speak held-out sentences in all arms and write clips, scores.jsonl and index.html; goes on where it stopped.

    `voted` are the files that listeners sent back, `trials` what they are asked on blind.html, nothing for no such page.
    """
    utterances = manifest.read(run.data)
    held_out = _held_out(utterances, sentences, seeds)
    check_held_out(run, voice, utterances)
    plan = Plan(run, run.comparison, [Sentence(each.text, each.audio) for each in held_out], list(dict.fromkeys(seeds)),
                list(dict.fromkeys(map(parse_arms, wanted))), utterances)
    settings = describe(run, voice, plan, arms.pick_reference(utterances))
    synthesis.check_settings(plan.folder, settings)
    rows, lost = synthesis.synthesize(plan, voice)
    rows = score(plan, rows, {each.text: each.audio for each in utterances if each.split == HELD_OUT})
    said = [*summary(rows, comparisons_for(rows)), *lost]
    if voted:
        found = listening_test_analysis.analyse_files(voted, plan.folder)
        said += listening_test_analysis.describe(found)
        write_json(plan.folder / RESPONSES_FILE, found)
    # more votes may come for the test that is there, so it stays as it is while they are counted
    return show(plan, rows, said, settings, f"tts_kit: {run.name}", write_listening_test(plan, rows, () if voted else trials))


def write_listening_test(plan: Plan, rows: Sequence[dict], trials: Sequence[str]) -> list[str]:
    """Write the blind test of the questions that can be asked; says where it is, or why there is none."""
    there = set(scoring.group_by_arm(rows))
    asked = [pair for pair in listening_test.TEST_QUESTIONS if set(pair) <= there]
    if not trials or not asked:
        return []
    others = sorted(STRANGERS.glob("*.flac"))
    try:
        shown_at = listening_test.write(rows, plan.folder, others, f"tts_kit: {plan.run.name}", kinds=trials, questions=asked)
    except KitError as problem:
        return [f"There is no blind test: {problem}"]
    return [f"For listeners, who are not told which is which: {shown_at.resolve().as_uri()}"]


def parse_arms(text: str) -> arms.Arm | external.ExternalSystem:
    """An arm of the voice's own model, another system, or a folder of its clips."""
    if text.partition(":")[0] in (*arms.SPOKEN_ARMS, *arms.OLD_NAMES):
        return arms.parse(text)
    if text.startswith(external.FOLDER) or text in external.SYSTEMS:
        return external.parse(text)
    raise KitError(f"there is no arm {text[:60]!r}. Arms of the model: {', '.join(arms.SPOKEN_ARMS)}, with knobs behind a colon "
                  f"(finetuned:strength=0.5). Other systems: {', '.join(external.SYSTEMS)}. Clips of any other: "
                  f"{external.FOLDER}NAME=PATH.")


def comparisons_for(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """What is asked of the arms that are there: the three questions, and every other arm against its like."""
    asked, there = list(verdict.PRIMARY_COMPARISONS), scoring.group_by_arm(rows)
    own = next((arm for arm in ("finetuned", "finetuned+clone", "clone", "base") if arm in there), "finetuned")
    for arm in there:
        if arm not in (*arms.GIVEN_ARMS, *arms.SPOKEN_ARMS):
            kind = arm.partition(":")[0]
            asked.append((arm, kind) if kind in arms.SPOKEN_ARMS else (own, arm))
    return asked


def summary(rows: Sequence[dict], asked: verdict.Comparisons = verdict.PRIMARY_COMPARISONS) -> list[str]:
    """What was found, for a person, in short at first: the verdict where judges listened, how to get it where none did."""
    if not all(scoring.METRICS in row for row in rows):
        return [verdict.UNMEASURED]
    return [each for each in (verdict.headline(rows, asked), *verdict.verdict(rows, asked).splitlines()) if each]


def score(plan: Plan, rows: list[dict], real: Mapping[str, Path]) -> list[dict]:
    """All rows, scored where judges are installed; `real` are the clips that the voice is known by."""
    name = metrics.load_available()
    if not name or all(row.get(scoring.METRICS) == name and _is_checked(row) for row in rows):
        return rows
    metric_models = metrics.load()
    known = scoring.measure_references(real, metric_models)
    if len(known) < scoring.MIN_REFERENCES:
        print(f"Only {len(known)} clips say what the voice sounds like; with {scoring.MIN_REFERENCES} or more similarity "
              "is surer.")
    scale = None
    if len(known) > 1:
        scale = scoring.similarity_range(known, scoring.other_speakers(sorted(STRANGERS.glob("*.flac")), metric_models))
        write_json(plan.folder / SCALE, {"strangers": round(scale[0], 3), "the voice itself": round(scale[1], 3)})
    rows = scoring.score_rows(rows, plan.folder, metric_models, lambda row: known, lambda scored: synthesis.save_rows(plan.folder, scored),
                        lambda row: scale)
    learnt = {each.text: each.audio for each in plan.utterances if each.split == TRAIN}
    rows = memorization.check(rows, plan.folder, learnt, metric_models)
    synthesis.save_rows(plan.folder, rows)
    return rows


def _is_checked(row: dict) -> bool:
    """Whether it is known if a clip is a copy; a process that was killed may have judged it and got no further."""
    return row["seed"] is None or not row.get("transcript") or "memorized" in row


def show(plan: Plan, rows: Sequence[dict], said: Sequence[str], settings: dict, title: str,
         beside: Sequence[str] = ()) -> Path:
    """Write the page and print the table and what was found, in short at last; `beside` is printed alone."""
    table = scoring.table(rows)
    shown = {name: value for name, value in settings.items() if name != "sentences"}
    # the page may travel, and the names of this machine's folders stay at home
    shown |= {name: Path(shown[name]).name for name in ("base", "adapter") if Path(shown[name]).exists()}
    heard = sorted({row["seed"] for row in rows} - {None})
    facts = shown | {"seeds": heard, "date": datetime.date.today().isoformat(), "machine": device.machine(),
                     "metrics": rows[0].get(scoring.METRICS, "none"), "versions": device.versions()}
    if (plan.folder / SCALE).exists():
        facts["similarity of"] = read_json(plan.folder / SCALE, "Delete it.")
    meanings = {each.name: each.meaning for each in plan.arms}
    shown_at = page.write(rows, plan.folder, title, "\n".join(said), facts, table, plots.pictures(rows, comparisons_for(rows)),
                          meanings)
    print("\n".join([scoring.print_table(table), *said[1:], *beside, f"Open {shown_at.resolve().as_uri()}", said[0]]))
    return shown_at


def check_held_out(run: Run, voice: Voice, utterances: Sequence[Utterance]) -> None:
    """What is held out now may have been learnt by an adapter of other clips."""
    if not voice.is_finetuned:
        return
    index = run.codes / "index.jsonl"
    if not index.is_file():
        raise KitError(f"what {run.adapter} has learnt cannot be told: there is no {index}. Run `tts-kit tokenize` "
                      "again, on the same data.")
    learnt = [(row["id"], row["text"], row["split"]) for row in read_rows(index)]
    same = learnt == [(each.id, each.text, each.split) for each in utterances]
    if not same or lora.read_metadata(run.adapter).get("codes") != cache.digest(run.codes):
        raise KitError(f"{run.adapter} was trained on other clips than {run.codes if same else run.data} holds now; what is "
                      "held out now may have been learnt then. Train again in a new run.")


def describe(run: Run, voice: Voice, plan: Plan, reference: Reference) -> dict:
    """What makes clips comparable with each other."""
    sampling = voice.sampling
    return {"base": voice.base.name, "base weights": voice.base.fingerprint,
            "adapter": str(run.adapter) if voice.is_finetuned else "none",
            "adapter weights": lora.fingerprint(voice.model) if voice.is_finetuned else "none",
            "reference": f"{reference.path.name}: {reference.text}", "temperature": sampling.temperature,
            "depth temperature": sampling.depth_temperature, "top k": sampling.top_k,
            "sentences": [each.text for each in plan.sentences]}


def _held_out(utterances: Sequence[Utterance], sentences: int, seeds: Sequence[int]) -> list[Utterance]:
    if sentences < 1 or not seeds:
        raise KitError(f"{sentences} sentences and {len(seeds)} seeds leave nothing to compare. Ask for at least one each.")
    held_out = [each for each in utterances if each.split == HELD_OUT]
    if len(held_out) < sentences:
        print(f"{sentences} sentences were asked for; {len(held_out)} are held out, and those are compared.")
    return held_out[:sentences]
