"""Robustness, cost and false alarms of the watermark: python -m tests.benchmarks.watermark

On the bundled voice, other synthetic speakers, tiny-csm's speech and recorded prompts of five people, downloaded with apt;
writes results/watermark.json and prints the README's block. Needs the metric models and the extra `audio`, whose av has
the encoders of MP3, AAC and Opus.
"""

import argparse
import contextlib
import datetime
import functools
import io
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import soxr
import torch
from tqdm.auto import tqdm

from tts_kit import audio, device, watermark
from tts_kit.data import examples, sources
from tts_kit.evaluation import backends, metrics
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_json, write_json
from tts_kit.model import load
from tts_kit.run import SAMPLE_DATA, SAMPLE_HELD_OUT, SAMPLE_VOICE, TINY_CSM
from tts_kit.speech import speak
from tts_kit.speech.voice import Voice

RESULTS = Path(__file__).parent / "results" / "watermark.json"
RATE = 24_000
BUNDLED_CLIPS, TINY_CSM_CLIPS = 9, 5
"""Clips of the bundled voice and of tiny-csm; six more are of other speakers."""
EVALUATED = 8
"""Clips of each kind that the metric models measure."""
PEOPLE = [f"asterisk-core-sounds-{language}-g722" for language in ("en", "es", "fr", "it", "ru")]
"""Prompts of a telephone system, each language spoken by another person."""
NO_SPEECH = r"silence|(?:.*/)?(?:beep|[\w-]*tone|[\w-]*music)"
SECONDS_PER_VOICE = 300.0
REMOVED = 0.1
"""The watermark counts as removed if it is detected in a smaller share of the clips."""
BEGIN, END = "<!-- watermark -->", "<!-- /watermark -->"
Clip = tuple[str, str, np.ndarray]
"""Kind of voice, transcript (empty for other speakers), (samples,) at RATE."""
Damage = Callable[[np.ndarray], np.ndarray | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block", type=Path, help="also write the README's block to this file")
    parser.add_argument("--judged-before", action="store_true",
                        help="keep the last results of the metric models, the slowest part")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load.load_base(str(TINY_CSM), device.choose("cpu"))
    unmarked, speaking_seconds = load_clips(base)
    marked = [(kind, text, watermark.apply(wave, RATE)) for kind, text, wave in unmarked]
    if options.judged_before:
        last_result = read_json(RESULTS, "Leave out --judged-before.")
        evaluation = {name: last_result[name] for name in ("metrics", "evaluated")}
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            metric_models = backends.load_bundled(options.threads)
        evaluation = {"metrics": metric_models.name, "evaluated": measure_quality(unmarked, marked, metric_models)}
    command = f"python -m tests.benchmarks.watermark{' --judged-before' * options.judged_before}"
    result = {"what": "the mark of machine-made speech", "command": command,
              "mark": f"{watermark.PACKAGE} {watermark.VERSION}", "sure from": {
                  f"{watermark.SHORT_SECONDS:g} s on": watermark.MIN_SCORE, "less": watermark.MIN_SCORE_SHORT},
              "clips": {kind: amount([wave for clip_kind, _, wave in unmarked if clip_kind == kind])
                        for kind in dict.fromkeys(kind for kind, _, _ in unmarked)},
              "survival": survival(unmarked, marked, all_damages(base)), "unmarked speech": false_alarms(),
              "difference": difference(unmarked, marked), **evaluation, "processor seconds for a second": processor_seconds(
                  [wave for _, _, wave in unmarked]) | {"tiny-csm's speaking": speaking_seconds}, "threads": options.threads,
              "machine": device.machine(), "versions": device.versions() | {"av": av.__version__},
              "date": datetime.date.today().isoformat()}
    write_json(RESULTS, result)
    if options.block:
        options.block.write_text(block(result), encoding="utf-8")
    print(block(result))


def amount(waves: Sequence[np.ndarray]) -> dict:
    return {"clips": len(waves), "seconds": round(sum(map(len, waves)) / RATE, 1)}


def load_clips(base: load.Base) -> tuple[list[Clip], float]:
    """Return clips of the bundled voice (two sentences each), of other speakers and of tiny-csm, and the processor seconds
    that tiny-csm takes for a second of audio."""
    rows = [*sources.rows(str(SAMPLE_HELD_OUT)), *sources.rows(str(SAMPLE_VOICE))]
    utterances = [(row.text, audio.read(row.audio(), RATE)) for row in rows[:2 * BUNDLED_CLIPS]]
    clips = [("emma", f"{first[0]} {second[0]}", np.concatenate([first[1], second[1]]))
             for first, second in zip(utterances[::2], utterances[1::2])]
    clips += [("strangers", "", audio.read(path, RATE))
              for path in sorted((SAMPLE_DATA / "other_speakers").glob("*.flac"))]
    voice = Voice(base, base.model, sampling=Sampling.from_generation_config(base.generation_config))
    start = time.process_time()
    spoken = [("tiny-csm", text, speak.speak(text, voice, seed=seed).samples)
              for seed, (_, text, _) in enumerate(clips[:TINY_CSM_CLIPS])]
    seconds = time.process_time() - start
    return clips + spoken, round(seconds / (sum(len(wave) for _, _, wave in spoken) / RATE), 4)


def encode_and_decode(codec: str, container: str, rate: int, bit_rate: int, wave: np.ndarray) -> np.ndarray:
    """Encode at a bit rate and decode."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        sample_formats = {"libopus": "s16", "libmp3lame": "fltp", "aac": "fltp"}
        resampler = av.AudioResampler(format=sample_formats[codec], layout="mono", rate=rate,
                                      frame_size=stream.frame_size or 0)
        frame = av.AudioFrame.from_ndarray((wave * 32767).round().clip(-32768, 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE
        for block in (frame, None):
            for resampled in resampler.resample(block):
                output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as input_file:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        chunks = [chunk.to_ndarray()[0] for frame in [*input_file.decode(audio=0), None]
                  for chunk in resampler.resample(frame)]
    return np.concatenate(chunks).astype(np.float32)


def quantize(wave: np.ndarray) -> np.ndarray:
    return ((wave * 32768).round().clip(-32768, 32767) / 32768).astype(np.float32)


def resample_and_back(rate: int, wave: np.ndarray) -> np.ndarray:
    return audio.resample(audio.resample(wave, RATE, rate), rate, RATE)


def change_speed(factor: float, wave: np.ndarray) -> np.ndarray:
    """Return audio played faster by a factor, with a higher pitch."""
    return soxr.resample(wave, RATE * factor, RATE).astype(np.float32)


def crop_middle(seconds: float, wave: np.ndarray) -> np.ndarray | None:
    """Return so many seconds from the middle, None if the clip is not longer."""
    length = round(seconds * RATE)
    start = (len(wave) - length) // 2
    return wave[start:start + length] if start > 0 else None


def add_noise(decibels: float, wave: np.ndarray) -> np.ndarray:
    level = np.sqrt((wave ** 2).mean()) / 10 ** (decibels / 20)
    return wave + np.random.default_rng(0).normal(0, level, len(wave)).astype(np.float32)


def telephone_band(wave: np.ndarray) -> np.ndarray:
    """Return what a telephone transmits: 300 to 3400 Hz at 8 kHz."""
    spectrum = np.fft.rfft(wave)
    frequencies = np.fft.rfftfreq(len(wave), 1 / RATE)
    spectrum[(frequencies < 300) | (frequencies > 3400)] = 0
    return resample_and_back(8_000, np.fft.irfft(spectrum, len(wave)).astype(np.float32))


def all_damages(base: load.Base) -> dict[str, Damage]:
    """Return what is done to clips before detection, by name."""
    part = functools.partial
    return {"nothing": lambda wave: wave, "16 bits": quantize,
            "MP3 128 kbit/s": part(encode_and_decode, "libmp3lame", "mp3", RATE, 128_000),
            "MP3 64 kbit/s": part(encode_and_decode, "libmp3lame", "mp3", RATE, 64_000),
            "MP3 32 kbit/s": part(encode_and_decode, "libmp3lame", "mp3", RATE, 32_000),
            "AAC 64 kbit/s": part(encode_and_decode, "aac", "adts", RATE, 64_000),
            "Opus 32 kbit/s": part(encode_and_decode, "libopus", "ogg", 48_000, 32_000),
            "Opus 16 kbit/s": part(encode_and_decode, "libopus", "ogg", 48_000, 16_000),
            "24 -> 16 -> 24 kHz": part(resample_and_back, 16_000), "24 -> 8 -> 24 kHz": part(resample_and_back, 8_000),
            "telephone (300-3400 Hz)": telephone_band,
            "3 s of it": part(crop_middle, 3.0), "1 s of it": part(crop_middle, 1.0), "0.5 s of it": part(crop_middle, 0.5),
            "0.25 s of it": part(crop_middle, 0.25),
            "white noise at 30 dB": part(add_noise, 30), "white noise at 20 dB": part(add_noise, 20),
            "white noise at 10 dB": part(add_noise, 10),
            "20 dB quieter": lambda wave: wave * 0.1, "6 dB louder, clipped": lambda wave: (wave * 2).clip(-1, 1),
            "1 % faster and higher": part(change_speed, 1.01), "5 % faster and higher": part(change_speed, 1.05),
            "5 % slower and lower": part(change_speed, 1 / 1.05),
            "tiny-csm's codec and back": lambda wave: base.codec.decode(base.codec.encode([wave]))[0]}


def survival(unmarked: Sequence[Clip], marked: Sequence[Clip], damages: dict[str, Damage]) -> dict:
    """Return detection rate, scores and false alarms after each damage."""
    results = {}
    for name, damage in tqdm(damages.items(), desc="damages"):
        damaged = {side: [output for _, _, wave in clips if (output := damage(wave)) is not None]
                   for side, clips in (("marked", marked), ("plain", unmarked))}
        (scores, detected), (unmarked_scores, alarms) = detect(damaged["marked"]), detect(damaged["plain"])
        results[name] = {"clips": len(scores), "found": round(statistics.fmean(detected), 3),
                         "sureness": round(statistics.fmean(scores), 3), "lowest": round(min(scores), 3),
                         "false alarms": round(statistics.fmean(alarms), 3),
                         "highest unmarked": round(max(unmarked_scores), 3)}
    return results


def detect(waves: Sequence[np.ndarray], rate: int = RATE) -> tuple[list[float], list[bool]]:
    """Return the score of each waveform and whether it counts as detected."""
    scores = [watermark.detect(wave, rate) for wave in waves]
    return scores, [score >= watermark.min_score(len(wave) / rate) for score, wave in zip(scores, waves)]


def false_alarms() -> dict:
    """Return the false alarms in unmarked recordings, synthetic voices and noise, by whole file and by second."""
    paths = [*(SAMPLE_DATA / "voice").glob("*.flac"), *(SAMPLE_DATA / "held_out").glob("*.flac"),
             *(SAMPLE_DATA / "other_speakers").glob("*.flac"), SAMPLE_DATA / "recording.flac"]
    synthetic = [audio.read(path, RATE) for path in sorted(paths)]
    noise = [np.random.default_rng(seed).normal(0, 0.05, 3 * RATE).astype(np.float32) for seed in range(20)]
    results = {}
    for kind, waves in {**recorded_voices(), "synthetic": synthetic, "white noise": noise}.items():
        segments = [wave[start:start + RATE] for wave in waves for start in range(0, len(wave) - RATE + 1, RATE)]
        results[kind] = {"files": count_false_alarms(waves, kind),
                         "seconds": count_false_alarms(segments, f"{kind}, by seconds")}
    return results


def count_false_alarms(waves: Sequence[np.ndarray], kind: str) -> dict:
    scores, detected = detect(tqdm(waves, desc=kind))
    return {"pieces": len(scores), "false alarms": sum(detected), "highest": round(max(scores), 3),
            f"over {watermark.MIN_SCORE:g}": sum(score >= watermark.MIN_SCORE for score in scores)}


def recorded_voices() -> dict[str, list[np.ndarray]]:
    """Return prompts (samples,) at RATE that five people recorded, by package, none shorter than SHORT_SECONDS."""
    voices = {}
    for package in PEOPLE:
        with tempfile.TemporaryDirectory() as folder:
            examples.unpack(package, Path(folder))
            paths = [path for name, path in examples.prompts(Path(folder)) if not re.match(NO_SPEECH, name)
                     and path.stat().st_size >= watermark.SHORT_SECONDS * examples.G722_BYTES_PER_SECOND]
            random.Random(0).shuffle(paths)
            chosen, total = [], 0.0
            while paths and total < SECONDS_PER_VOICE:
                chosen.append(audio.resample(examples.decode(paths.pop()), examples.G722_RATE, RATE))
                total += len(chosen[-1]) / RATE
        voices[package] = chosen
    return voices


def difference(unmarked: Sequence[Clip], marked: Sequence[Clip]) -> dict:
    """Return the decibels from the speech down to what the watermark adds."""
    ratios = [10 * np.log10(float((before ** 2).sum() / ((after - before) ** 2).sum()))
              for (_, _, before), (_, _, after) in zip(unmarked, marked)]
    return {"mean dB": round(statistics.fmean(ratios), 2), "least dB": round(min(ratios), 2),
            "above 2.2 kHz, least dB": round(min(high_frequency_decibels(before, after)
                                                 for (_, _, before), (_, _, after) in zip(unmarked, marked)), 1)}


def high_frequency_decibels(before: np.ndarray, after: np.ndarray) -> float:
    high_bins = np.fft.rfftfreq(len(before), 1 / RATE) > 2_200
    power = [float((np.abs(np.fft.rfft(signal.astype(np.float64))[high_bins]) ** 2).sum())
             for signal in (before, after - before)]
    return 10 * np.log10(power[0] / power[1])


def measure_quality(unmarked: Sequence[Clip], marked: Sequence[Clip], metric_models: metrics.MetricModels) -> dict:
    """Return the metrics of clips before and after watermarking, and the mean change of MOS with its standard error."""
    results = {}
    for kind in dict.fromkeys(kind for kind, _, _ in unmarked):
        # clips without a transcript get a placeholder; their WER is not reported
        pairs = [(text or "No transcript.", before, after)
                 for (clip_kind, text, before), (_, _, after) in zip(unmarked, marked) if clip_kind == kind][:EVALUATED]
        measured = [(metric_models.measure(before, RATE, text), metric_models.measure(after, RATE, text))
                    for text, before, after in tqdm(pairs, desc=kind)]
        before_metrics, after_metrics = zip(*measured)
        mos_changes = [after.mos - before.mos for before, after in measured]
        results[kind] = {"clips": len(measured), "mos": mean_pair(before_metrics, after_metrics, "mos"),
                         "mos difference": mean_with_error(mos_changes),
                         "noise_mos": mean_pair(before_metrics, after_metrics, "noise_mos"),
                         "sim of a clip to itself unmarked": round(statistics.fmean(
                             float(before.embedding @ after.embedding) for before, after in measured), 4)}
        if kind != "strangers":
            results[kind]["wer"] = [word_error_rate(before_metrics), word_error_rate(after_metrics)]
    return results


def word_error_rate(clips: Sequence[metrics.ClipMetrics]) -> float:
    return round(sum(clip.word_errors for clip in clips) / sum(clip.ref_words for clip in clips), 4)


def mean_pair(before_metrics, after_metrics, field: str) -> list[float]:
    return [round(statistics.fmean(getattr(clip, field) for clip in clips), 3) for clips in (before_metrics, after_metrics)]


def mean_with_error(differences: Sequence[float]) -> dict:
    """Return the mean with its standard error."""
    return {"mean": round(statistics.fmean(differences), 3),
            "standard error": round(statistics.stdev(differences) / len(differences) ** 0.5, 3)}


def processor_seconds(waves: Sequence[np.ndarray]) -> dict:
    """Return the processor seconds for a second of audio: at once, and as a stream in chunks of 0.16 s."""
    wave, chunk = np.concatenate(waves), 2 * RATE * 80 // 1000
    chunks = [wave[start:start + chunk] for start in range(0, len(wave), chunk)]
    functions = {"marking": lambda: watermark.apply(wave, RATE), "detecting": lambda: watermark.detect(wave, RATE),
                 "marking a stream in chunks of 0.16 s": lambda: [None for _ in watermark.apply_stream(chunks, RATE)]}
    seconds = {}
    for name, function in functions.items():
        start = time.process_time()
        function()
        seconds[name] = round((time.process_time() - start) / (len(wave) / RATE), 4)
    return seconds


def block(result: dict) -> str:
    """Return the README's table and the paragraphs below it."""
    lines = [BEGIN, "| after | detected | mean score | false alarms |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {row['found']:.0%} of {row['clips']} | {row['sureness']:.2f} | {row['false alarms']:.0%} |"
              for name, row in result["survival"].items()]
    *removing, last_removing = (name for name, row in result["survival"].items() if row["found"] < REMOVED)
    evaluated, unmarked = result["evaluated"], result["unmarked speech"]
    mos = "; ".join(f"{kind} {row['mos'][0]:.2f} -> {row['mos'][1]:.2f} (mean change "
                    f"{row['mos difference']['mean']:+.2f}, standard error {row['mos difference']['standard error']:.2f})"
                    for kind, row in evaluated.items())
    wer = "; ".join(f"{kind} {row['wer'][0]:.1%} -> {row['wer'][1]:.1%}" for kind, row in evaluated.items() if "wer" in row)
    similarities = [row["sim of a clip to itself unmarked"] for row in evaluated.values()]
    seconds = result["processor seconds for a second"]
    marking, streaming, speaking = (seconds[name] for name in (
        "marking", "marking a stream in chunks of 0.16 s", "tiny-csm's speaking"))

    def false_alarms_of(kinds: Sequence[str], part: str) -> str:
        return " of ".join(str(sum(unmarked[kind][part][name] for kind in kinds)) for name in ("false alarms", "pieces"))

    voices = [kind for kind in unmarked if kind.startswith("asterisk")]
    highest = max(unmarked[kind]["files"]["highest"] for kind in voices)
    over_limit = sum(unmarked[kind]["seconds"][f"over {watermark.MIN_SCORE:g}"] for kind in voices)
    lines += [
        "", f"Cost: {marking:.3f} processor seconds for a second of speech, {marking / speaking:.1%} of what tiny-csm takes "
        f"to generate it; as a stream {streaming:.3f} ({streaming / speaking:.0%}); detection {seconds['detecting']:.3f}. "
        f"The watermark lies {result['difference']['mean dB']:.0f} dB below the speech and under 2 kHz. MOS by DistillMOS: "
        f"{mos}. WER: {wer}. SIM of a clip to itself unmarked: {min(similarities):.3f} to {max(similarities):.3f} (means of "
        "the three kinds).",
        "", f"False alarms: {false_alarms_of(voices, 'files')} recorded prompts that {len(voices)} people, each in another "
        f"language, spoke for a telephone system (highest score {highest:.2f}), {false_alarms_of(voices, 'seconds')} single "
        f"seconds of them, {false_alarms_of(['synthetic'], 'files')} synthetic clips and "
        f"{false_alarms_of(['white noise'], 'files')} clips of white noise. With the limit {watermark.MIN_SCORE:g} it would "
        f"be {over_limit} of the single seconds; therefore clips shorter than {watermark.SHORT_SECONDS:g} s need a score of "
        f"{watermark.MIN_SCORE_SHORT:g}, longer ones {watermark.MIN_SCORE:g}.",
        "", "The watermark survives common compression, resampling and the telephone band, but is easy to remove on "
        f"purpose: {', '.join(removing)} and {last_removing} remove it. A long recording is analyzed in blocks of "
        f"{watermark.BLOCK_SECONDS:g} s, so a single marked sentence can be missed. All users of Perth share one watermark: "
        "it says that speech is synthetic, not by which model. Mimi itself was not tested. Clips inside a run's folder, of "
        "training and of `compare` with its pages, have no watermark.", END]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
