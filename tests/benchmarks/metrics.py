"""The bundled metric models on human, synthetic and damaged speech: python -m tests.benchmarks.metrics

Downloads recorded prompts with apt (example:allison), synthesizes their words with flite and espeak-ng, and writes to
results/metrics.json each bound with the measured value, and the processor time of each model for a clip.
"""

import argparse
import contextlib
import datetime
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tts_kit import audio, device
from tts_kit.data import examples, sources
from tts_kit.evaluation import backends, metrics, scoring, wer
from tts_kit.evaluation.metrics import SAMPLE_RATE, ClipMetrics, MetricModels
from tts_kit.io import write_json
from tts_kit.run import SAMPLE_HELD_OUT

RESULTS = Path(__file__).parent / "results" / "metrics.json"
CLIPS, PAIRS = 20, 8
WORDS = range(6, 16)
"""Words of the prompts that are used."""
LOOP, CUT = 2.0, 0.5
"""Seconds at the end that are repeated three times, and the share of a cut clip that is kept."""
Wave = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):  # the license is in the README and next to the clips
        voices = {"allison": read_clips(examples.allison()), "emma": read_clips(SAMPLE_HELD_OUT)}
    torch.set_num_threads(options.threads)
    metric_models = backends.load_bundled(options.threads)
    scores = {name: measure_clips(clips, metric_models) for name, clips in voices.items()}
    clips = voices["allison"]
    scores |= {name: measure_clips(synthesize(clips[:PAIRS], command), metric_models) for name, command in MACHINES.items()}
    scores |= {name: measure_clips([(text, damage(wave)) for text, wave in clips[:PAIRS]], metric_models)
              for name, damage in DAMAGES.items()}
    result = {"what": "checks of the metric models", "command": "python -m tests.benchmarks.metrics",
              "metrics": metric_models.name, "bounds": check_bounds(scores),
              "figures": {name: summary(clip_metrics) for name, clip_metrics in scores.items()},
              "noise gate": noise_gate(scores), "bad input": bad_input(metric_models, *clips[0]),
              "processor seconds for a clip": processor_seconds(clips, metric_models), "threads": options.threads,
              "machine": device.machine(), "versions": device.versions(), "date": datetime.date.today().isoformat()}
    write_json(RESULTS, result)
    print(json.dumps(result["bounds"], indent=1), f"\n{sum(bound['reached'] for bound in result['bounds'])} of "
          f"{len(result['bounds'])} bounds reached. In {RESULTS}.")


def read_clips(folder: Path) -> list[tuple[str, Wave]]:
    """Return (text, samples at 16 kHz) of the first clips of a folder that have a suitable number of words."""
    rows = [row for row in sources.rows(str(folder)) if wer.length(row.text)[0] in WORDS]
    return [(row.text, metrics.read(row.audio())) for row in rows[:CLIPS]]


def flite(voice: str) -> Callable[[str, str], list[str]]:
    return lambda text, path: ["flite", "-voice", voice, "-t", text, "-o", path]


MACHINES = {"flite slt": flite("slt"), "flite rms": flite("rms"),
            "espeak": lambda text, path: ["espeak-ng", "-v", "en-us", "-w", path, text]}


def synthesize(clips: Sequence[tuple[str, Wave]], command: Callable[[str, str], list[str]]) -> list[tuple[str, Wave]]:
    """Synthesize the words of clips with a command."""
    spoken = []
    for text, _ in clips:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run(command(text, file.name), check=True, capture_output=True)
            spoken.append((text, metrics.read(file.name)))
    return spoken


def add_noise(decibels: float) -> Callable[[Wave], Wave]:
    """Return a function that adds white noise at this signal-to-noise ratio."""
    def damage(wave: Wave) -> Wave:
        level = np.sqrt((wave ** 2).mean()) / 10 ** (decibels / 20)
        return wave + np.random.default_rng(0).normal(0, level, len(wave)).astype(np.float32)

    return damage


def loop_end(wave: Wave) -> Wave:
    tail = audio.trim(wave, SAMPLE_RATE, 0.0, 0.0)[-round(LOOP * SAMPLE_RATE):]
    return np.concatenate([wave, *[tail] * 3])


def pad_with_silence(wave: Wave) -> Wave:
    return np.concatenate([np.zeros(2 * SAMPLE_RATE, np.float32), wave, np.zeros(2 * SAMPLE_RATE, np.float32)])


DAMAGES = {**{f"noise {decibels} dB": add_noise(decibels) for decibels in (40, 30, 20, 10)},
           "cut": lambda wave: wave[:round(CUT * len(wave))], "looped": loop_end,
           "20 dB quieter": lambda wave: wave * 0.1, "in 4 s of silence": pad_with_silence}


def measure_clips(clips: Sequence[tuple[str, Wave]], metric_models: MetricModels) -> list[ClipMetrics]:
    return [metric_models.measure(wave, SAMPLE_RATE, text) for text, wave in clips]


def summary(clips: Sequence[ClipMetrics]) -> dict:
    """Return WER, CER and the means of the other metrics over clips."""
    return {"clips": len(clips), "wer": word_error_rate(clips), "cer": round(
                sum(clip.char_errors for clip in clips) / sum(clip.ref_chars for clip in clips), 4),
            **{name: round(float(np.mean([getattr(clip, name) for clip in clips if getattr(clip, name)])), 3)
               for name in ("mos", "noise_mos", "f0", "speech_rate", "speech_seconds")}}


def word_error_rate(clips: Sequence[ClipMetrics]) -> float:
    return round(sum(clip.word_errors for clip in clips) / sum(clip.ref_words for clip in clips), 4)


def mean_mos(clips: Sequence[ClipMetrics]) -> float:
    return float(np.mean([clip.mos for clip in clips]))


def mean_similarity(clips: Sequence[ClipMetrics], recordings: Sequence[ClipMetrics]) -> float:
    """Return the mean similarity of clips to the mean of the recordings of other sentences."""
    embeddings = [clip.embedding for clip in recordings]
    return float(np.mean([scoring.similarity(clip.embedding, embeddings[:index] + embeddings[index + 1:])
                          for index, clip in enumerate(clips)]))


def check_bounds(scores: dict[str, list[ClipMetrics]]) -> list[dict]:
    """Return each bound with the measured value."""
    recordings = scores["allison"][:PAIRS]
    wer, mos = word_error_rate(recordings), mean_mos(recordings)
    pairs = {name: list(zip(recordings, scores[name])) for name in ("20 dB quieter", "in 4 s of silence")}
    similarity = {name: min(before.embedding @ after.embedding for before, after in pairs[name]) for name in pairs}
    mos_change = max(abs(before.mos - after.mos) for before, after in pairs["20 dB quieter"])
    limits = [
        ("WER of human recordings", word_error_rate(scores["allison"]), "<", 0.08),
        ("WER of the bundled voice", word_error_rate(scores["emma"]), "<", 0.08),
        ("WER of clips that are cut, above that of the whole clips", word_error_rate(scores["cut"]) - wer, ">", 0.10),
        ("WER of clips that are looped, above that of the clips", word_error_rate(scores["looped"]) - wer, ">", 0.10),
        ("SIM of flite slt to itself", mean_similarity(scores["flite slt"], scores["flite slt"]), ">", 0.85),
        ("SIM of flite rms to slt", mean_similarity(scores["flite rms"], scores["flite slt"]), "<", 0.75),
        ("MOS of human recordings, above that of espeak-ng", mos - mean_mos(scores["espeak"]), ">", 1.0),
        ("MOS lost by noise 10 dB below the speech", mos - mean_mos(scores["noise 10 dB"]), ">", 1.0),
        ("SIM of a clip to itself, 20 dB quieter", similarity["20 dB quieter"], ">", 0.999),
        ("change of MOS by 20 dB of level", mos_change, "<", 0.1),
        ("SIM of a clip to itself, in 4 s of silence", similarity["in 4 s of silence"], ">", 0.98)]
    return [{"what": quantity, "seen": round(float(value), 4), "wanted": f"{sign} {limit}",
             "reached": bool(value < limit if sign == "<" else value > limit)} for quantity, value, sign, limit in limits]


def noise_gate(scores: dict[str, list[ClipMetrics]]) -> dict:
    """Return the share of clips that is noisy compared with the recordings; a recording is compared with all others."""
    noise_mos = [recording.noise_mos for recording in scores["allison"]]
    shares = {"the recordings": np.mean([backends.is_noisy(score, noise_mos[:index] + noise_mos[index + 1:])
                                         for index, score in enumerate(noise_mos)])}
    shares |= {name: np.mean([backends.is_noisy(clip.noise_mos, noise_mos) for clip in scores[name]])
              for name in DAMAGES if name.startswith("noise")}
    return {"model": "DNSMOS, score of the background", "noisiest recording": round(min(noise_mos), 3),
            "standard deviation of the recordings": round(float(np.std(noise_mos)), 3), "margin": backends.NOISE_MARGIN,
            "share that is noisy": {name: round(float(share), 3) for name, share in shares.items()}}


def bad_input(metric_models: MetricModels, text: str, wave: Wave) -> dict:
    """Return the failures and word errors of clips without speech."""
    cases = {"missing": None, "empty": wave[:0], "silent": wave * 0, "broken": wave * np.nan,
             "noise only": np.random.default_rng(1).normal(0, 0.05, 3 * SAMPLE_RATE).astype(np.float32)}
    measured = {name: metric_models.measure(clip, SAMPLE_RATE, text) for name, clip in cases.items()}
    return {name: {"failure": clip.failure, "ref_words": clip.ref_words, "word_errors": clip.word_errors}
            for name, clip in measured.items()}


def processor_seconds(clips: Sequence[tuple[str, Wave]], metric_models: MetricModels) -> dict:
    """Return the mean processor seconds of each metric for one clip; wall time would count other processes."""
    waves = [metrics.trimmed(wave, SAMPLE_RATE) for _, wave in clips[:PAIRS]]
    functions = {"wer": metric_models.transcribe, "sim": metric_models.embed_speaker, "mos": metric_models.predict_mos,
                 "noise_mos": metric_models.predict_noise_mos, "f0": lambda wave: audio.median_f0(wave, SAMPLE_RATE),
                 "level and trim": lambda wave: metrics.trimmed(wave, SAMPLE_RATE)}
    seconds = {"length of a clip": float(np.mean([len(wave) for wave in waves])) / SAMPLE_RATE}
    for name, function in functions.items():
        start = time.process_time()
        for wave in waves:
            function(wave)
        seconds[name] = (time.process_time() - start) / len(waves)
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
