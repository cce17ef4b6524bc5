"""Takes of which everything is known, and how much of it the desk finds out: cuts, speech, words, strangers, time, memory.

    python -m sample_data.build.segmentation_benchmark --corpus runs/pretrain/corpus

In go clips whose speaker and words are known; they are laid out with pauses, and one thing after the other is added that
spoils recordings. Speakers at even places of the list are for trying things out (--practice), those at odd ones for scoring.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sample_data.build import corpus
from sample_data.build.simulated_recording import RATE, SPOILT, WITH_STRANGERS, Said, Take, Wave, lay_out
from tts_kit import audio, device, io
from tts_kit.data import quality_flags, segment, speaker_embedding, transcribe
from tts_kit.data.review import ReviewClip, ReviewStore
from tts_kit.errors import report_errors
from tts_kit.evaluation import wer

TAKES, TAKES_WITH_STRANGERS = 4, 12
"""Takes of a condition, each of another speaker."""
STRANGERS = 3
"""Sentences of a take that somebody else says, where somebody does."""
AUDIBLE = -30.0
"""Decibels against its sentence at which a moment is speech."""
LONG_HOURS = 3
RESULTS = Path("tests/benchmarks/results/recordings.json")


@dataclass(frozen=True)
class Tally:
    """What was counted in one take."""
    seconds: float
    cuts: int
    cut_words: int
    speech: float
    """Seconds of it, of the main speaker, that nothing spoilt."""
    lost: float
    words: int
    word_errors: int
    scores: tuple[tuple[float, bool], ...]
    """Of each clip how doubtful its flags make it, and whether its transcript was wrong."""
    strangers: int
    strangers_found: int
    own: int
    own_suspected: int
    seconds_cutting: float
    seconds_voices: float
    seconds_writing: float
    seconds_again: float
    rejected: int


def hear(take: Take, folder: Path, transcriber: transcribe.Transcriber, doubter: transcribe.Transcriber) -> Tally:
    """Put a take on a desk in `folder`, as a person would, and compare what is found with the truth."""
    path, clock = folder / "take.flac", [time.perf_counter()]
    audio.write(path, take.samples, RATE)
    clock[0] = time.perf_counter()
    pieces, place = segment.segment_recording(path, folder / "cuts"), segment.segment_folder(path, folder / "cuts")
    clock.append(time.perf_counter())
    speaker_embedding.embed_folder(place)
    clock.append(time.perf_counter())
    for each in (transcriber, doubter):
        transcribe.transcribe(place, each, "en")
        clock.append(time.perf_counter())
    kept = {f"{place.name}/{Path(piece.file).stem}": piece for piece in pieces if not piece.reason}
    entries = [(entry, kept[entry.id]) for entry in ReviewStore(folder / "cuts", transcriber.name, doubter.name).clips]
    said = [(entry, *_word_errors(take.text(piece.start, piece.end), entry.text))
            for entry, piece in entries if take.is_whole(piece.start, piece.end)]
    foreign = [(_is_suspected(entry), _foreign(take, piece)) for entry, piece in entries]
    strange, own = ([is_suspected for is_suspected, seconds in foreign if wanted(seconds)]
                    for wanted in (lambda seconds: seconds > 0.3, lambda seconds: seconds == 0))
    unharmed, lost = _speech(take, list(kept.values()))
    cutting, comparing, writing, again = (after - before for before, after in itertools.pairwise(clock))
    return Tally(
        seconds=len(take.samples) / RATE, cuts=2 * len(pieces), cut_words=sum(_cuts(take, piece) for piece in pieces),
        speech=unharmed, lost=lost, words=sum(words for _, words, _ in said), word_errors=sum(wrong for *_, wrong in said),
        scores=tuple((entry.score, wrong > 0) for entry, _, wrong in said),
        strangers=len(strange), strangers_found=sum(strange), own=len(own), own_suspected=sum(own), seconds_cutting=cutting,
        seconds_voices=comparing, seconds_writing=writing, seconds_again=again, rejected=len(pieces) - len(kept))


def _word_errors(text: str, transcript: str) -> tuple[int, int]:
    """(words, word errors); without words in the text every word of the transcript is an error."""
    errors = wer.edit_counts(text, transcript)[0]
    return wer.length(text)[0], wer.length(transcript)[0] if errors is None else errors


def summed(tallies: Sequence[Tally]) -> dict:
    """The figures of a condition, or of all."""
    def total(name: str) -> float:
        return sum(getattr(tally, name) for tally in tallies)

    clips = sorted((each for tally in tallies for each in tally.scores), key=lambda each: -each[0])
    first, wrong = clips[:round(0.2 * len(clips))], sum(is_wrong for _, is_wrong in clips)
    hours = total("seconds") / 3600
    return {
        "minutes": round(60 * hours, 1), "clips": len(clips), "rejected": total("rejected"),
        "cut words per 100 cuts": round(100 * total("cut_words") / total("cuts"), 2),
        "speech lost, %": round(100 * total("lost") / total("speech"), 2),
        "WER before review, %": round(100 * total("word_errors") / total("words"), 1),
        "wrong transcripts": wrong,
        "of them in the most suspicious fifth, %": round(100 * sum(each for _, each in first) / wrong) if wrong else None,
        "clips with a second speaker": total("strangers"),
        "of them suspected, %": round(100 * total("strangers_found") / total("strangers")) if total("strangers") else None,
        "clips without, suspected, %": round(100 * total("own_suspected") / total("own"), 1),
        "seconds an hour, cutting": round(total("seconds_cutting") / hours),
        "seconds an hour, voices": round(total("seconds_voices") / hours),
        "seconds an hour, writing down": round(total("seconds_writing") / hours),
        "seconds an hour, hearing it again": round(total("seconds_again") / hours)}


def conditions(folder: Path, is_practice: bool, seed: int) -> dict[str, list[Tally]]:
    """Every condition with every speaker of one half."""
    speakers: dict[str, list[tuple[str, Wave]]] = {}
    for speaker, text, wave in corpus.read(folder):
        speakers.setdefault(speaker, []).append((text, wave))
    half = sorted(speakers)[0 if is_practice else 1::2]
    listener = transcribe.load(transcribe.BUNDLED, device.choose("cpu"))
    doubter = transcribe.second_pass_model(listener, device.choose("cpu"))
    found: dict[str, list[Tally]] = {}
    for number, (name, spoil) in enumerate(tqdm(SPOILT.items(), desc="conditions")):
        for take in range(TAKES_WITH_STRANGERS if name == WITH_STRANGERS else TAKES):
            chance = np.random.default_rng([seed, number, take])
            main = chance.choice(half)
            other = chance.choice([each for each in half if not set(each.split("-")) & set(main.split("-"))])
            strangers = speakers[other][:STRANGERS] if name == WITH_STRANGERS else []
            made = spoil(lay_out(speakers[main], strangers, chance), chance)
            with tempfile.TemporaryDirectory() as place:
                found.setdefault(name, []).append(hear(made, Path(place), listener, doubter))
    return found


def memory(folder: Path) -> dict:
    """The most memory that cutting a recording of three hours takes, in a process of its own."""
    import soundfile

    utterances = [wave for _, (_, _, wave) in zip(range(200), corpus.read(folder))]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "long.flac"
        written = 0
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for wave in itertools.cycle(utterances):
                file.write(np.pad(wave, (0, RATE // 2)))
                written += len(wave) + RATE // 2
                if written > LONG_HOURS * 3600 * RATE:
                    break
        begun = time.perf_counter()
        told = subprocess.run([sys.executable, "-m", "sample_data.build.segmentation_benchmark", "--cut", str(path)], check=True,
                              capture_output=True, text=True).stdout
        return {"hours": LONG_HOURS, "most memory, MB": int(told.split()[-1]),
                "seconds an hour": round((time.perf_counter() - begun) / LONG_HOURS)}


def _most_memory() -> int:
    """Megabytes that this process ever held; what the system keeps for its parent's sake (ru_maxrss) counts the parent."""
    [peak] = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(peak) // 1024


def _is_suspected(entry: ReviewClip) -> bool:
    return any(flag.reason == quality_flags.OTHER_SPEAKER for flag in entry.flags)


def _cuts(take: Take, piece: segment.Segment) -> int:
    """How many of a piece's two ends lie where somebody can be heard to speak."""
    return sum(any(_is_heard(take, take.speech, moment, each) for each in take.said) for moment in (piece.start, piece.end))


def _speech(take: Take, kept: Sequence[segment.Segment]) -> tuple[float, float]:
    """Seconds of the main speaker that nothing spoilt, and how much of it no clip has."""
    step, total, lost = 0.02, 0.0, 0.0
    for each in (each for each in take.said if each.is_main and not each.is_spoilt):
        for moment in np.arange(each.begin, each.end, step):
            if _is_heard(take, take.voice, moment, each):
                total += step
                lost += step * (not any(piece.start <= moment < piece.end for piece in kept))
    return total, lost


def _is_heard(take: Take, clean: Wave, moment: float, sentence: Said) -> bool:
    """Whether clean speech, in the 30 ms around a moment of a sentence, is loud enough beside the rest of the sentence, and
    louder than the noise."""
    if not sentence.begin < moment < sentence.end:
        return False
    around = slice(round((moment - 0.015) * RATE), round((moment + 0.015) * RATE))
    speech, noise = np.mean(clean[around] ** 2), np.mean((take.samples[around] - take.speech[around]) ** 2)
    whole = np.mean(clean[round(sentence.begin * RATE):round(sentence.end * RATE)] ** 2)
    return bool(speech > max(noise, 10 ** (AUDIBLE / 10) * whole))


def _foreign(take: Take, piece: segment.Segment) -> float:
    """Seconds in which somebody else speaks."""
    return sum(max(0.0, min(piece.end, each.end) - max(piece.start, each.begin)) for each in take.said if not each.is_main)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.segmentation_benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder that {corpus.__name__} made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the figures")
    parser.add_argument("--practice", action="store_true", help="the other half of the speakers, to try things out on")
    parser.add_argument("--seed", type=int, default=1, help="of pauses, noise and who speaks (default 1)")
    parser.add_argument("--cut", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cut:
        with tempfile.TemporaryDirectory() as place:
            segment.segment_recording(options.cut, place)
        print(_most_memory())
        return
    found = {"command": f"python -m sample_data.build.segmentation_benchmark --seed {options.seed}" + " --practice" * options.practice,
             "machine": device.machine(), "versions": device.versions(),
             "transcriber": f"{transcribe.BUNDLED} (Whisper base, int8), doubted by "
             + (f"{transcribe.BUNDLED_TINY} (Whisper tiny.en, int8)" if transcribe.is_installed(transcribe.BUNDLED_TINY)
                else "itself, slowly"),
             "speech": "synthetic: Kokoro's voices and mixtures"}
    if not options.practice:
        found["three hours"] = memory(options.corpus)
    tallies = conditions(options.corpus, options.practice, options.seed)
    found |= {"all": summed([tally for some in tallies.values() for tally in some]),
              "conditions": {name: summed(some) for name, some in tallies.items()}}
    io.write_json(options.out, found)
    print(f"{options.out}: {found['all']}")


if __name__ == "__main__":
    sys.exit(main())
