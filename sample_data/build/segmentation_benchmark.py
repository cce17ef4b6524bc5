"""Measure segmentation, transcription and flags on simulated recordings: cut words, lost speech, WER, time and memory.

    python -m sample_data.build.segmentation_benchmark --corpus runs/pretrain/corpus

The recordings consist of clips whose speaker and text are known, with pauses between them and one defect for each
condition. Speakers at even positions of the sorted list are for development (--development), the others for the results.
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
from sample_data.build.simulated_recording import CONDITIONS, RATE, SECOND_SPEAKER, Recording, Utterance, Wave, simulate
from tts_kit import audio, device, io
from tts_kit.data import quality_flags, segment, speaker_embedding, transcribe
from tts_kit.data.review import ReviewClip, ReviewStore
from tts_kit.errors import report_errors
from tts_kit.evaluation import wer

RECORDINGS, RECORDINGS_WITH_SECOND_SPEAKER = 4, 12  # recordings of a condition, each of another speaker
OTHER_UTTERANCES = 3  # utterances of the second speaker in a recording
AUDIBLE = -30.0  # level in dB relative to the utterance above which a time counts as speech
LONG_HOURS = 3
RESULTS = Path("tests/benchmarks/results/recordings.json")


@dataclass(frozen=True)
class Measurement:
    """Counts and times of one recording."""
    seconds: float
    cuts: int
    cut_words: int
    speech: float  # seconds of undamaged speech of the main speaker
    lost: float
    words: int
    word_errors: int
    scores: tuple[tuple[float, bool], ...]  # for each clip, the score of its flags and whether its transcript is wrong
    other_speaker_clips: int
    other_speaker_flagged: int
    main_speaker_clips: int
    main_speaker_flagged: int
    segmentation_seconds: float
    embedding_seconds: float
    transcription_seconds: float
    second_transcription_seconds: float
    rejected: int


def measure(recording: Recording, folder: Path, transcriber: transcribe.Transcriber,
            second_transcriber: transcribe.Transcriber) -> Measurement:
    """Segment and transcribe a recording in `folder`, as a user would, and compare the result with its content."""
    path, times = folder / "take.flac", [time.perf_counter()]
    audio.write(path, recording.samples, RATE)
    times[0] = time.perf_counter()
    segments = segment.segment_recording(path, folder / "cuts")
    segment_folder = segment.segment_folder(path, folder / "cuts")
    times.append(time.perf_counter())
    speaker_embedding.embed_folder(segment_folder)
    times.append(time.perf_counter())
    for model in (transcriber, second_transcriber):
        transcribe.transcribe(segment_folder, model, "en")
        times.append(time.perf_counter())
    accepted = {f"{segment_folder.name}/{Path(piece.file).stem}": piece for piece in segments if not piece.reason}
    clips = [(clip, accepted[clip.id])
             for clip in ReviewStore(folder / "cuts", transcriber.name, second_transcriber.name).clips]
    transcripts = [(clip, *_word_errors(recording.text(piece.start, piece.end), clip.text))
                   for clip, piece in clips if recording.is_between_utterances(piece.start, piece.end)]
    flags = [(_is_flagged(clip), _other_speaker_seconds(recording, piece)) for clip, piece in clips]
    other_flags = [is_flagged for is_flagged, seconds in flags if seconds > 0.3]
    main_flags = [is_flagged for is_flagged, seconds in flags if seconds == 0]
    speech, lost = _speech(recording, list(accepted.values()))
    durations = [after - before for before, after in itertools.pairwise(times)]
    return Measurement(
        seconds=len(recording.samples) / RATE, cuts=2 * len(segments),
        cut_words=sum(_cut_words(recording, piece) for piece in segments),
        speech=speech, lost=lost, words=sum(words for _, words, _ in transcripts),
        word_errors=sum(errors for *_, errors in transcripts),
        scores=tuple((clip.score, errors > 0) for clip, _, errors in transcripts),
        other_speaker_clips=len(other_flags), other_speaker_flagged=sum(other_flags),
        main_speaker_clips=len(main_flags), main_speaker_flagged=sum(main_flags),
        segmentation_seconds=durations[0], embedding_seconds=durations[1], transcription_seconds=durations[2],
        second_transcription_seconds=durations[3], rejected=len(segments) - len(accepted))


def _word_errors(text: str, transcript: str) -> tuple[int, int]:
    """Return (words, word errors); if the text has no words, each word of the transcript is an error."""
    errors = wer.edit_counts(text, transcript)[0]
    return wer.length(text)[0], wer.length(transcript)[0] if errors is None else errors


def summarize(measurements: Sequence[Measurement]) -> dict:
    """Return the figures of one condition, or of all."""
    def total(name: str) -> float:
        return sum(getattr(measurement, name) for measurement in measurements)

    scores = sorted((score for measurement in measurements for score in measurement.scores), key=lambda score: -score[0])
    top_fifth, wrong = scores[:round(0.2 * len(scores))], sum(is_wrong for _, is_wrong in scores)
    hours, other_speaker_clips = total("seconds") / 3600, total("other_speaker_clips")
    return {
        "minutes": round(60 * hours, 1), "clips": len(scores), "rejected": total("rejected"),
        "cut words per 100 cuts": round(100 * total("cut_words") / total("cuts"), 2),
        "speech lost, %": round(100 * total("lost") / total("speech"), 2),
        "WER before review, %": round(100 * total("word_errors") / total("words"), 1),
        "wrong transcripts": wrong,
        "of them in the fifth flagged most, %":
            round(100 * sum(is_wrong for _, is_wrong in top_fifth) / wrong) if wrong else None,
        "clips with a second speaker": other_speaker_clips,
        "of them flagged, %":
            round(100 * total("other_speaker_flagged") / other_speaker_clips) if other_speaker_clips else None,
        "other clips flagged, %": round(100 * total("main_speaker_flagged") / total("main_speaker_clips"), 1),
        "seconds an hour, segmentation": round(total("segmentation_seconds") / hours),
        "seconds an hour, speaker embeddings": round(total("embedding_seconds") / hours),
        "seconds an hour, transcription": round(total("transcription_seconds") / hours),
        "seconds an hour, second transcription": round(total("second_transcription_seconds") / hours)}


def measure_conditions(folder: Path, is_development: bool, seed: int) -> dict[str, list[Measurement]]:
    """Measure all conditions with speakers of one half of the corpus; returns condition -> measurements."""
    clips_by_speaker: dict[str, list[tuple[str, Wave]]] = {}
    for speaker, text, wave in corpus.read(folder):
        clips_by_speaker.setdefault(speaker, []).append((text, wave))
    speakers = sorted(clips_by_speaker)[0 if is_development else 1::2]
    transcriber = transcribe.load(transcribe.BUNDLED, device.choose("cpu"))
    second_transcriber = transcribe.second_pass_model(transcriber, device.choose("cpu"))
    measurements: dict[str, list[Measurement]] = {}
    for condition_index, (name, add_defect) in enumerate(tqdm(CONDITIONS.items(), desc="conditions")):
        for index in range(RECORDINGS_WITH_SECOND_SPEAKER if name == SECOND_SPEAKER else RECORDINGS):
            rng = np.random.default_rng([seed, condition_index, index])
            main = rng.choice(speakers)
            other = rng.choice([speaker for speaker in speakers if not set(speaker.split("-")) & set(main.split("-"))])
            other_clips = clips_by_speaker[other][:OTHER_UTTERANCES] if name == SECOND_SPEAKER else []
            recording = add_defect(simulate(clips_by_speaker[main], other_clips, rng), rng)
            with tempfile.TemporaryDirectory() as working_folder:
                measurements.setdefault(name, []).append(
                    measure(recording, Path(working_folder), transcriber, second_transcriber))
    return measurements


def measure_memory(folder: Path) -> dict:
    """Measure the peak memory of segmenting a recording of three hours, in a process of its own."""
    import soundfile

    utterances = [wave for _, (_, _, wave) in zip(range(200), corpus.read(folder))]
    with tempfile.TemporaryDirectory() as working_folder:
        path = Path(working_folder) / "long.flac"
        written = 0
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for wave in itertools.cycle(utterances):
                file.write(np.pad(wave, (0, RATE // 2)))
                written += len(wave) + RATE // 2
                if written > LONG_HOURS * 3600 * RATE:
                    break
        start_time = time.perf_counter()
        command = [sys.executable, "-m", "sample_data.build.segmentation_benchmark", "--segment", str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {"hours": LONG_HOURS, "peak memory, MB": int(output.split()[-1]),
                "seconds an hour": round((time.perf_counter() - start_time) / LONG_HOURS)}


def _peak_memory() -> int:
    """Return the peak memory of this process in MB; ru_maxrss would include that of its parent."""
    [peak] = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(peak) // 1024


def _is_flagged(clip: ReviewClip) -> bool:
    return any(flag.reason == quality_flags.OTHER_SPEAKER for flag in clip.flags)


def _cut_words(recording: Recording, piece: segment.Segment) -> int:
    """Return how many of the two ends of a segment are inside audible speech."""
    return sum(any(_is_audible(recording, recording.speech, cut, utterance) for utterance in recording.utterances)
               for cut in (piece.start, piece.end))


def _speech(recording: Recording, segments: Sequence[segment.Segment]) -> tuple[float, float]:
    """Return the seconds of undamaged speech of the main speaker, and how many of them are in no segment."""
    step, total, lost = 0.02, 0.0, 0.0
    for utterance in (utterance for utterance in recording.utterances if utterance.is_main and not utterance.is_damaged):
        for moment in np.arange(utterance.start, utterance.end, step):
            if _is_audible(recording, recording.main_speech, moment, utterance):
                total += step
                lost += step * (not any(piece.start <= moment < piece.end for piece in segments))
    return total, lost


def _is_audible(recording: Recording, clean: Wave, moment: float, utterance: Utterance) -> bool:
    """Return whether the clean speech within 30 ms is loud enough relative to its utterance, and louder than the noise."""
    if not utterance.start < moment < utterance.end:
        return False
    window = slice(round((moment - 0.015) * RATE), round((moment + 0.015) * RATE))
    speech, noise = np.mean(clean[window] ** 2), np.mean((recording.samples[window] - recording.speech[window]) ** 2)
    utterance_power = np.mean(clean[round(utterance.start * RATE):round(utterance.end * RATE)] ** 2)
    return bool(speech > max(noise, 10 ** (AUDIBLE / 10) * utterance_power))


def _other_speaker_seconds(recording: Recording, piece: segment.Segment) -> float:
    """Return the seconds of a segment in which another speaker speaks."""
    return sum(max(0.0, min(piece.end, utterance.end) - max(piece.start, utterance.start))
               for utterance in recording.utterances if not utterance.is_main)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.segmentation_benchmark",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder that {corpus.__name__} wrote")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--development", action="store_true", help="use the half of the speakers that is for development")
    parser.add_argument("--seed", type=int, default=1, help="of pauses, noise and the choice of speakers (default 1)")
    parser.add_argument("--segment", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.segment:
        with tempfile.TemporaryDirectory() as working_folder:
            segment.segment_recording(options.segment, working_folder)
        print(_peak_memory())
        return
    has_second_model = transcribe.is_installed(transcribe.BUNDLED_TINY)
    results = {"command": f"python -m sample_data.build.segmentation_benchmark --seed {options.seed}"
                          + " --development" * options.development,
               "machine": device.machine(), "versions": device.versions(),
               "transcriber": f"{transcribe.BUNDLED} (Whisper base, int8), verified by "
                              + (f"{transcribe.BUNDLED_TINY} (Whisper tiny.en, int8)" if has_second_model
                                 else "itself on slowed speech"),
               "speech": "synthetic: Kokoro's voices and mixtures"}
    if not options.development:
        results["three hours"] = measure_memory(options.corpus)
    measurements = measure_conditions(options.corpus, options.development, options.seed)
    results |= {"all": summarize(list(itertools.chain(*measurements.values()))),
                "conditions": {name: summarize(group) for name, group in measurements.items()}}
    io.write_json(options.out, results)
    print(f"{options.out}: {results['all']}")


if __name__ == "__main__":
    sys.exit(main())
