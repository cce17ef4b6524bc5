"""The same sentences said in every way there is: real, codec ceiling, base, clone, tuned, tuned + clone."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit import audio, runtime
from tts_kit.comparison import page, verdict
from tts_kit.data import utterance
from tts_kit.data.utterance import HELD_OUT, TRAIN, Utterance
from tts_kit.judging import judges, scores
from tts_kit.model import lora
from tts_kit.problem import Problem
from tts_kit.run import Run, read_json, read_rows, write_json, write_rows
from tts_kit.speech import speak
from tts_kit.speech.speak import Line, Reference, Voice
from tts_kit.tokens import cache

SPOKEN = {"base": (False, False), "clone": (False, True), "tuned": (True, False), "tuned+clone": (True, True)}
"""Spoken arms: (with the adapter, with the reference)."""
GIVEN = ("real", "codec")
REFERENCE_SECONDS = 6.0
SCORES = "scores.jsonl"


def compare(run: Run, voice: Voice, sentences: int = 10, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """Speak held-out sentences in all arms and write clips, scores.jsonl and index.html; goes on where it stopped."""
    if sentences < 1 or not seeds:
        raise Problem(f"{sentences} sentences and {len(seeds)} seeds leave nothing to compare. Ask for at least one each.")
    seeds = list(dict.fromkeys(seeds))
    utterances = utterance.read(run.data)
    held_out = [each for each in utterances if each.split == HELD_OUT]
    if len(held_out) < sentences:
        print(f"{sentences} sentences were asked for; {len(held_out)} are held out, and those are compared.")
    held_out = held_out[:sentences]
    reference = pick_reference(utterances)
    if voice.is_tuned and lora.read_voice(run.adapter).get("codes") != cache.digest(run.codes):
        raise Problem(f"{run.adapter} was trained on other clips than {run.codes} holds now; what is held out now may have "
                      "been learnt then. Train again in a new run.")
    settings = _settings(run, voice, held_out, reference)
    _claim(run.comparison, settings)
    done = {row["file"]: row for row in _finished(run.comparison)}
    for row in _missing(run.comparison, voice, held_out, seeds, reference, set(done)):
        done[row["file"]] = row
        write_rows(run.comparison / SCORES, sorted(done.values(), key=_place))
    rows = _judged(run, utterances)
    table, said = scores.table(rows), summary(rows)
    shown = {name: value for name, value in settings.items() if name != "sentences"}
    # the page may travel, and the names of this machine's folders stay at home
    shown |= {name: Path(shown[name]).name for name in ("base", "adapter") if Path(shown[name]).exists()}
    heard = sorted({row["seed"] for row in rows} - {None})
    facts = shown | {"seeds": heard, "date": datetime.date.today().isoformat(), "machine": runtime.machine(),
                        "judges": rows[0].get(scores.JUDGED, "none"), "versions": runtime.versions()}
    shown_at = page.write(rows, run.comparison, f"tts_kit: {run.name}", "\n".join([said[-1], *said[:-1]]), facts, table)
    print("\n".join([scores.print_table(table), *said[:-1], f"Open {shown_at.resolve().as_uri()}", said[-1]]))
    return shown_at


def summary(rows: Sequence[dict]) -> list[str]:
    """What was found, for a person, in short at last: the verdict where judges listened, how to get it where none did."""
    if not all(scores.JUDGED in row for row in rows):
        return [verdict.UNMEASURED]
    return [each for each in (*verdict.verdict(rows).splitlines(), verdict.headline(rows)) if each]


def pick_reference(utterances: Sequence[Utterance]) -> Reference:
    """The training clip nearest to six seconds; held-out clips are never heard by the model."""
    chosen = min((each for each in utterances if each.split == TRAIN),
                 key=lambda each: (abs(each.seconds - REFERENCE_SECONDS), each.id))
    return Reference(chosen.audio, chosen.text)


def _judged(run: Run, utterances: Sequence[Utterance]) -> list[dict]:
    """All rows, scored where judges are installed; every held-out clip is what the voice sounds like."""
    rows, name = read_rows(run.comparison / SCORES), judges.present()
    if not name or all(row.get(scores.JUDGED) == name for row in rows):
        return rows
    listeners = judges.load()
    print(f"Judges: {name}.")
    real = scores.listen({each.text: each.audio for each in utterances if each.split == HELD_OUT}, listeners)
    if len(real) < scores.FEWEST_REFERENCES:
        print(f"Only {len(real)} held-out clips say what the voice sounds like; with {scores.FEWEST_REFERENCES} or more "
              "similarity is surer.")
    return scores.judge(rows, run.comparison, listeners, lambda row: real,
                        lambda scored: write_rows(run.comparison / SCORES, scored))


def _settings(run: Run, voice: Voice, held_out: Sequence[Utterance], reference: Reference) -> dict:
    """What makes clips comparable with each other; a folder holds clips of one such setting only."""
    sampling = voice.sampling
    return {"base": voice.base.name, "base weights": voice.base.fingerprint,
            "adapter": str(run.adapter) if voice.is_tuned else "none",
            "adapter weights": lora.fingerprint(voice.model) if voice.is_tuned else "none",
            "reference": f"{reference.path.name}: {reference.text}", "temperature": sampling.temperature,
            "depth temperature": sampling.depth_temperature, "top k": sampling.top_k,
            "sentences": [each.text for each in held_out]}


def _claim(folder: Path, settings: dict) -> None:
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path, f"Move {folder} away, and compare again.")
        shorter = min(len(before.get("sentences", [])), len(settings["sentences"]))
        cut = [each | {"sentences": each.get("sentences", [])[:shorter]} for each in (before, settings)]
        if changed := [name for name in settings if cut[0].get(name) != cut[1][name]]:
            raise Problem(f"{folder} already holds a comparison with another {', another '.join(changed)}. Move that folder "
                          "away, or compare in another run.")
    write_json(path, settings)


def _place(row: dict) -> tuple:
    return row["sentence"], (*GIVEN, *SPOKEN).index(row["arm"]), row["seed"] or 0


def _finished(folder: Path) -> list[dict]:
    """Rows whose clip is really there."""
    path = folder / SCORES
    return [row for row in read_rows(path) if (folder / row["file"]).is_file()] if path.exists() else []


def _missing(folder: Path, voice: Voice, held_out: Sequence[Utterance], seeds: Sequence[int], reference: Reference,
             done: set[str]) -> Iterator[dict]:
    """Make every clip that is not there yet; gives its row once the clip is on disk."""
    for number, each in enumerate(tqdm(held_out, desc="originals", unit="clip"), 1):
        for arm in GIVEN:
            name = f"clips/{arm}/{number:03d}.flac"
            if name not in done:
                samples = audio.read(each.audio, voice.base.physics.sample_rate)
                if arm == "codec":
                    samples = voice.base.codec.decode(voice.base.codec.encode([samples]))[0]
                yield _row(folder, name, arm, number, each.text, None, samples, voice.base.physics.sample_rate)
    wanted = []
    for arm, (tuned, cloned) in SPOKEN.items():
        if tuned and not voice.is_tuned:
            continue
        for number, each in enumerate(held_out, 1):
            wanted += [(arm, number, Line(each.text, seed, reference if cloned else None, tuned)) for seed in seeds]
    names = {place: f"clips/{arm}/{number:03d}-{line.seed}.flac" for place, (arm, number, line) in enumerate(wanted)}
    todo = [place for place in names if names[place] not in done]
    for index, speech in speak.say([wanted[place][2] for place in todo], voice):
        arm, number, line = wanted[todo[index]]
        yield _row(folder, names[todo[index]], arm, number, line.text, line.seed, speech.samples, speech.rate,
                   stopped=speech.stopped, takes=speech.takes, wall_seconds=round(speech.wall_seconds, 3))


def _row(folder: Path, name: str, arm: str, number: int, text: str, seed: int | None, samples, rate: int,
         **spoken) -> dict:
    audio.write(folder / name, samples, rate)
    return {"arm": arm, "sentence": number, "text": text, "seed": seed, "file": name,
            "seconds": round(len(samples) / rate, 3), **spoken}
