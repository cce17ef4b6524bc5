"""Compare the arms: synthesize the same sentences in each, score them, and write one page with the verdict.

A sweep does the same with the values of one setting at a time, on sentences of its own."""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_kit import device
from tts_kit.comparison import arms, external, listening_test, page, plots, synthesis, verdict
from tts_kit.comparison.arms import ARMS, GENERATED_ARMS
from tts_kit.comparison.synthesis import Plan, Sentence
from tts_kit.comparison.verdict import Verdict
from tts_kit.data import manifest
from tts_kit.data.manifest import HELD_OUT, TRAIN
from tts_kit.errors import KitError
from tts_kit.evaluation import metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import read_json, read_rows, write_json
from tts_kit.model import lora
from tts_kit.run import OTHER_SPEAKERS, Run, lock, read_inputs
from tts_kit.speech import best_of
from tts_kit.speech.voice import Voice
from tts_kit.tokens import cache
from tts_kit.training import generation_eval

PAGE, RESPONSES_FILE, SWEEP_FOLDER = "index.html", "responses.json", "sweep"
SETTINGS_FILE, DEFAULT_SETTINGS = "settings.json", {"sentences": 10, "seeds": (1, 2, 3), "arms": GENERATED_ARMS}
CLIP_COLUMNS = {"word_errors": "word errors"} | {name: scoring.COLUMNS[name].heading
                                                 for name in ("sim", "sim_norm", "sim_2", "mos", "mos_2")}
CLIP_LEGEND = {"word errors": "words of the sentence that the ASR model did not transcribe, or added"}
SORT_COLUMNS = {"seconds": "seconds", "wall_seconds": "seconds to generate", "attempts": "attempts"}


@dataclass(frozen=True)
class Result:
    page: Path
    rows: list[dict]  # of scores.jsonl: one for each clip
    verdict: Verdict


def compare(run: Run, voice: Voice, sentences: int | None = None, seeds: Sequence[int] | None = None,
            arm_names: Sequence[str] | None = None, test_types: Sequence[str] = ("ab", "smos")) -> Result:
    """Synthesize held-out sentences in all arms, score them, and write the page; go on where it was interrupted.

    Sentences, seeds and arms that are not given are those of the run's last comparison; `test_types` are the parts of the
    listening test, nothing for none."""
    given = {"sentences": sentences, "seeds": seeds, "arms": arm_names}
    settings = read_settings(run) | {name: value for name, value in given.items() if value is not None}
    utterances = manifest.read(run.data)
    held_out = [Sentence(one.text, one.audio) for one in utterances if one.split == HELD_OUT]
    plan = _plan(run, run.comparison, held_out, settings["sentences"], settings["seeds"],
                 [parse_arm(name) for name in settings["arms"]], utterances)
    rows, inputs, notes = scored_clips(plan, voice, {sentence.text: sentence.recording for sentence in held_out}, settings)
    invitation = write_listening_test(plan, rows, test_types)
    return show(plan, rows, verdict.decide(rows), inputs, f"tts_kit: {run.name}", notes, invitation)


def read_settings(run: Run) -> dict:
    """Sentences, seeds and arms of a run's last comparison, or the defaults."""
    path = run.comparison / SETTINGS_FILE
    return DEFAULT_SETTINGS | (read_json(path, "Delete it.") if path.is_file() else {})


def count_responses(run: Run, responses: Sequence[Path]) -> Result:
    """Add the responses of listeners to the verdict and page of a run's comparison; nothing is synthesized or scored.

    More responses may come for the listening test, so it stays as it is."""
    path = run.comparison / synthesis.SCORES
    rows = [row for row in read_rows(path) if (run.comparison / row["file"]).is_file() or "problem" in row] if (
        path.is_file()) else []
    if not rows:
        raise KitError(f"{run.comparison} holds no comparison, to which responses could belong. Make it first: tts-kit "
                       f"compare --run {run.name}")
    analysis = listening_test.analyze(responses, run.comparison)
    write_json(run.comparison / RESPONSES_FILE, analysis)
    plan = Plan(run, run.comparison, [], [], [parse_arm(name) for name in read_settings(run)["arms"]], [])
    inputs = {name: value for name, value in read_inputs(run.comparison).items() if name != "format"}
    return show(plan, rows, verdict.decide(rows), inputs, f"tts_kit: {run.name}", listening_test.describe(analysis))


def run_sweep(run: Run, voice: Voice, values: Mapping[str, Sequence[float]], arm: str = "finetuned", sentences: int = 10,
              seeds: Sequence[int] = (1, 2)) -> Result:
    """Synthesize the kit's own sentences with every value of every setting, and write a page to runs/NAME/sweep.

    Neither held-out sentences nor held-out clips are used, so that they can test afterwards what is chosen here."""
    utterances = manifest.read(run.data)
    default = parse_arm(arm)
    variants = list(dict.fromkeys(parse_arm(f"{arm}:{setting}={value}") for setting, numbers in values.items()
                                  for value in numbers))
    if not variants:
        raise KitError("there is nothing to sweep: give at least one setting with values.")
    plan = development_plan(run, run.folder / SWEEP_FOLDER, [default, *variants], sentences, seeds, utterances)
    rows, inputs, notes = scored_clips(plan, voice, training_recordings(plan))
    decision = verdict.decide(rows, [(variant.name, default.name) for variant in variants])
    return show(plan, rows, decision, inputs, f"tts_kit: sweep of {run.name}", notes)


def development_plan(run: Run, folder: Path, plan_arms: Sequence[arms.Arm], sentences: int, seeds: Sequence[int],
                     utterances: Sequence[manifest.Utterance]) -> Plan:
    """Plan arms on the kit's own sentences, which no comparison uses."""
    texts = generation_eval.read_sentences(utterances)
    return _plan(run, folder, [Sentence(text) for text in texts], sentences, seeds, plan_arms, utterances)


def training_recordings(plan: Plan) -> dict[str, Path]:
    """Return the training clips, by text, that are no reference of the plan's arms."""
    references = {reference.path for arm in plan.arms for reference in synthesis.references(arm, plan.utterances)}
    return {one.text: one.audio for one in plan.utterances if one.split == TRAIN and one.audio not in references}


def parse_arm(text: str) -> arms.Arm | external.ExternalArm:
    """Return an arm of the voice's own model, an external system, or a folder of its clips."""
    return arms.parse(text) if arms.kind_of(text) in GENERATED_ARMS else external.parse(text)


def _plan(run: Run, folder: Path, available: Sequence[Sentence], sentences: int, seeds: Sequence[int],
          plan_arms: Sequence[arms.Arm | external.ExternalArm], utterances: Sequence[manifest.Utterance]) -> Plan:
    if sentences < 1 or not seeds or not available:
        raise KitError(f"{sentences} of {len(available)} sentences and {len(seeds)} seeds leave nothing to compare. Ask for "
                       "at least one each.")
    if len(available) < sentences:
        print(f"{sentences} sentences were asked for; there are {len(available)}, and those are compared.")
    return Plan(run, folder, available[:sentences], list(dict.fromkeys(seeds)), list(dict.fromkeys(plan_arms)), utterances)


def scored_clips(plan: Plan, voice: Voice, recordings: Mapping[str, Path], settings: Mapping | None = None,
                 load_models: Callable[[], MetricModels] | None = None) -> tuple[list[dict], dict, list[str]]:
    """Return the scored rows of all clips, what they were made from, and which external systems cannot run."""
    check_held_out(plan.run, voice)
    [reference] = synthesis.pick_references(plan.utterances)
    inputs = {"base": voice.base.name, "base_weights": voice.base.fingerprint,
              "adapter": str(plan.run.adapter) if voice.is_finetuned else "none",
              "adapter_weights": lora.fingerprint(voice.model) if voice.is_finetuned else "none",
              "reference": f"{reference.path.name}: {reference.text}", **sampling_inputs(voice),
              "sentences": [sentence.text for sentence in plan.sentences]}
    with lock(plan.folder):
        synthesis.check_inputs(plan.folder, inputs)
        if settings:
            write_json(plan.folder / SETTINGS_FILE, {name: value if isinstance(value, int) else [*value]
                                                     for name, value in settings.items()})
        rows, notes = synthesis.synthesize(plan, voice)
        return score(plan, rows, recordings, load_models), inputs, notes


def sampling_inputs(voice: Voice) -> dict:
    """Return the settings of a voice by name; those of guidance and strength are None where they have no effect."""
    neutral = {"guidance": 1.0, "reference_guidance": 1.0, "depth_guidance": 0.0, "strength": 1.0}
    settings = vars(voice.sampling) | {"strength": voice.strength}
    return {name: None if value == neutral.get(name) else value for name, value in settings.items()}


def check_held_out(run: Run, voice: Voice) -> None:
    """Refuse an adapter that was trained on other data than the run's: it may have learned what is held out now."""
    if voice.is_finetuned and not ((run.codes / cache.INDEX).is_file() and cache.matches_data(run)
                                   and lora.read_metadata(run.adapter).get("codes") == cache.digest(run.codes)):
        raise KitError(f"{run.adapter} was trained on other clips than {run.data} and {run.codes} hold now; what is held "
                       "out now may have been trained on then. Run `tts-kit tokenize` again if the data is the same, else "
                       "train again in a new run.")


def score(plan: Plan, rows: list[dict], recordings: Mapping[str, Path],
          load_models: Callable[[], MetricModels] | None = None) -> list[dict]:
    """Return all rows, scored if metric models are installed; `recordings` (text -> clip) say what the voice sounds like."""
    name = metrics.load_available()
    if not name:
        return rows
    if any(row.get(scoring.METRICS) != name for row in rows):
        models = (load_models or metrics.load)()
        references = scoring.measure_references(recordings, models)
        if len(references) < scoring.MIN_REFERENCES:
            print(f"Only {len(references)} recordings say what the voice sounds like; with {scoring.MIN_REFERENCES} or "
                  "more, SIM is more reliable.")
        other_speakers = scoring.other_speakers(sorted(OTHER_SPEAKERS.glob("*.flac")), models)
        rows = scoring.score_rows(rows, plan.folder, models, references,
                                  lambda scored: synthesis.save_rows(plan.folder, scored),
                                  scoring.similarity_range(references, other_speakers))
    training_texts = [one.text for one in plan.utterances if one.split == TRAIN]
    return synthesis.save_rows(plan.folder, scoring.check_memorization(rows, training_texts))


def write_listening_test(plan: Plan, rows: Sequence[dict], test_types: Sequence[str]) -> str:
    """Write the listening test of those questions whose arms exist; return where it is, or why there is none."""
    present = {row["arm"] for row in rows}
    pairs = [pair for pair in listening_test.PAIRS if set(pair) <= present]
    if not test_types or not pairs:
        return ""
    try:
        path = listening_test.write(rows, plan.folder, sorted(OTHER_SPEAKERS.glob("*.flac")),
                                    f"tts_kit: {plan.run.name}", test_types=test_types, pairs=pairs)
    except KitError as error:
        return f"There is no listening test: {error}"
    return f"Listening test, which does not tell which clip is which: {path.resolve().as_uri()}"


def show(plan: Plan, rows: list[dict], decision: Verdict, inputs: dict, title: str, notes: Sequence[str] = (),
         invitation: str = "") -> Result:
    """Write the page, and print the table and the verdict with its headline last."""
    facts = {name.replace("_", " "): value for name, value in inputs.items() if name != "sentences" and value is not None}
    # the page may be published, without the names of this machine's folders
    facts |= {name: Path(facts[name]).name for name in ("base", "adapter") if Path(facts[name]).exists()}
    models = rows[0].get(scoring.METRICS, "none")
    facts |= {"seeds": sorted({row["seed"] for row in rows} - {None}), "date": datetime.date.today().isoformat(),
              "machine": device.machine(), "metrics": models, "versions": device.versions()}
    table = scoring.table(decision.figures)
    legend = explain(table[0], models)
    details = [*decision.details, *notes]
    if any("best_of" in dict(arm.settings) for arm in plan.arms if isinstance(arm, arms.Arm)):
        details.append(f"best_of: takes are chosen by {' and '.join(best_of.NAMES.values())}, and then measured as all "
                       "other clips are.")
    descriptions = {name: info.description for name, info in ARMS.items()} | {arm.name: arm.description for arm in plan.arms}
    path = page.write(
        plan.folder / PAGE, rows, title, decision.headline, descriptions, CLIP_COLUMNS, SORT_COLUMNS, details, table,
        legend | (CLIP_LEGEND if legend else {}), plots.plot(decision), facts)
    print("\n".join(filter(None, [
        scoring.print_table(table), *(f"{heading}: {meaning}." for heading, meaning in legend.items()), *details, invitation,
        f"Open {path.resolve().as_uri()}", decision.headline])))
    return Result(path, rows, decision)


def explain(headings: Sequence[str], models: str) -> dict[str, str]:
    """Return heading -> meaning, with the models of a row's "METRIC: model, METRIC: model"; nothing where none scored."""
    names = dict(part.split(": ", 1) for part in re.split(r", (?=[A-Z][A-Z0-9 ]*: )", models) if ": " in part)
    return {column.heading: re.sub(r"\{(.*?)\}", lambda match: names.get(match[1], "a model"), column.meaning)
            for column in scoring.COLUMNS.values() if column.heading in headings and names}
