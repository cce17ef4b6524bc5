"""The bundled metric models on people, machines and damaged clips: python -m tests.benchmarks.metrics

Fetches a person's prompts with apt (example:allison), speaks their words by flite and espeak-ng, and writes to
results/metrics.json every bound with what was seen, and how long each model takes for a clip.
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
"""Of a prompt that is judged by."""
LOOP, CUT = 2.0, 0.5
"""Seconds at the end that are said three times more, and the share that is left."""
Wave = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):  # the licence is in README and beside the clips
        people = {"allison": read(examples.allison()), "emma": read(SAMPLE_HELD_OUT)}
    torch.set_num_threads(options.threads)
    metric_models = metrics.load(options.threads, model_set="bundled")
    heard = {name: listen(clips, metric_models) for name, clips in people.items()}
    clips = people["allison"]
    machines = {name: speak(clips[:count], voice) for name, (voice, count) in MACHINES.items()}
    heard |= {name: listen(some, metric_models) for name, some in machines.items()}
    heard |= {name: listen([(text, damage(wave)) for text, wave in clips[:PAIRS]], metric_models)
              for name, damage in DAMAGES.items()}
    found = {"what": "checks of the metric models", "command": "python -m tests.benchmarks.metrics",
             "metrics": metric_models.name,
             "bounds": bounds(heard), "figures": {name: figures(each) for name, each in heard.items()},
             "noise gate": noise_gate(clips, heard), "bad input": bad_input(metric_models, *clips[0]),
             "processor seconds for a clip": seconds(clips, metric_models), "threads": options.threads,
             "machine": device.machine(), "versions": device.versions(), "date": datetime.date.today().isoformat()}
    write_json(RESULTS, found)
    print(json.dumps(found["bounds"], indent=1), f"\n{sum(each['reached'] for each in found['bounds'])} of "
          f"{len(found['bounds'])} bounds reached. In {RESULTS}.")


def read(folder: Path) -> list[tuple[str, Wave]]:
    """(text, samples at 16 kHz) of the first clips of a folder that are sentences."""
    rows = [row for row in sources.rows(str(folder)) if wer.length(row.text)[0] in WORDS]
    return [(row.text, metrics.read(row.audio())) for row in rows[:CLIPS]]


def flite(voice: str) -> Callable[[str, str], list[str]]:
    return lambda text, path: ["flite", "-voice", voice, "-t", text, "-o", path]


MACHINES = {"flite slt": (flite("slt"), PAIRS), "flite rms": (flite("rms"), PAIRS),
            "espeak": (lambda text, path: ["espeak-ng", "-v", "en-us", "-w", path, text], PAIRS)}


def speak(clips: Sequence[tuple[str, Wave]], command: Callable[[str, str], list[str]]) -> list[tuple[str, Wave]]:
    """The same words by a machine."""
    made = []
    for text, _ in clips:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run(command(text, file.name), check=True, capture_output=True)
            made.append((text, metrics.read(file.name)))
    return made


def noisy(decibels: float) -> Callable[[Wave], Wave]:
    """White noise so far under the speech."""
    def damage(wave: Wave) -> Wave:
        level = np.sqrt((wave ** 2).mean()) / 10 ** (decibels / 20)
        return wave + np.random.default_rng(0).normal(0, level, len(wave)).astype(np.float32)

    return damage


def looped(wave: Wave) -> Wave:
    tail = audio.trim(wave, SAMPLE_RATE, 0.0, 0.0)[-round(LOOP * SAMPLE_RATE):]
    return np.concatenate([wave, *[tail] * 3])


def late(wave: Wave) -> Wave:
    return np.concatenate([np.zeros(2 * SAMPLE_RATE, np.float32), wave, np.zeros(2 * SAMPLE_RATE, np.float32)])


DAMAGES = {"noise 40 dB": noisy(40), "noise 30 dB": noisy(30), "noise 20 dB": noisy(20), "noise 10 dB": noisy(10),
           "cut": lambda wave: wave[:round(CUT * len(wave))], "looped": looped, "20 dB quieter": lambda wave: wave * 0.1,
           "in 4 s of silence": late}


def listen(clips: Sequence[tuple[str, Wave]], metric_models: MetricModels) -> list[ClipMetrics]:
    return [metric_models.measure(wave, SAMPLE_RATE, text) for text, wave in clips]


def figures(heard: Sequence[ClipMetrics]) -> dict:
    """Figures of one kind of clips, over all of them."""
    return {"clips": len(heard), "wer": wrong(heard), "cer": round(
                sum(each.char_errors for each in heard) / sum(each.ref_chars for each in heard), 4),
            **{name: round(float(np.mean([getattr(each, name) for each in heard if getattr(each, name)])), 3)
               for name in ("mos", "noise_mos", "f0", "speech_rate", "speech_seconds")}}


def wrong(heard: Sequence[ClipMetrics]) -> float:
    return round(sum(each.word_errors for each in heard) / sum(each.ref_words for each in heard), 4)


def natural(heard: Sequence[ClipMetrics]) -> float:
    return float(np.mean([each.mos for each in heard]))


def alike(heard: Sequence[ClipMetrics], real: Sequence[ClipMetrics]) -> float:
    """Mean similarity of clips to the mean of the real ones of other sentences; the same words are left out."""
    known = {str(place): each.embedding for place, each in enumerate(real)}
    return float(np.mean([scoring.similarity(each.embedding, known, str(place)) for place, each in enumerate(heard)]))


def bounds(heard: dict[str, list[ClipMetrics]]) -> list[dict]:
    """Each bound with what was seen."""
    person, some = heard["allison"], heard["allison"][:PAIRS]
    drop = natural(some) - natural(heard["noise 10 dB"])
    moved = [abs(one.mos - other.mos) for one, other in zip(some, heard["20 dB quieter"])]
    turned = [one.embedding @ other.embedding for one, other in zip(some, heard["20 dB quieter"])]
    waited = [one.embedding @ other.embedding for one, other in zip(some, heard["in 4 s of silence"])]
    wanted = [
        ("WER of human recordings", wrong(person), "<", 0.08), ("WER of the bundled voice", wrong(heard["emma"]), "<", 0.08),
        ("WER of clips that are cut, above that of the whole clips", wrong(heard["cut"]) - wrong(some), ">", 0.10),
        ("WER of clips that are looped, above that of the clips", wrong(heard["looped"]) - wrong(some), ">", 0.10),
        ("SIM of flite slt to itself", alike(heard["flite slt"], heard["flite slt"]), ">", 0.85),
        ("SIM of flite rms to slt", alike(heard["flite rms"], heard["flite slt"]), "<", 0.75),
        ("MOS of human recordings, above that of espeak-ng", natural(some) - natural(heard["espeak"]), ">", 1.0),
        ("MOS lost by noise 10 dB below the speech", drop, ">", 1.0),
        ("SIM of a clip to itself, 20 dB quieter", min(turned), ">", 0.999),
        ("change of MOS by 20 dB of level", max(moved), "<", 0.1),
        ("SIM of a clip to itself, in 4 s of silence", min(waited), ">", 0.98)]
    return [{"what": what, "seen": round(float(seen), 4), "wanted": f"{sign} {limit}",
             "reached": bool(seen < limit if sign == "<" else seen > limit)} for what, seen, sign, limit in wanted]


def noise_gate(clips: Sequence[tuple[str, Wave]], heard: dict[str, list[ClipMetrics]]) -> dict:
    """How many clips are share that is noisy than the voice's own recordings, where those are all others of the person."""
    real = [each.noise_mos for each in heard["allison"]]
    share = {"the recordings": np.mean([backends.is_noisy(each, real[:place] + real[place + 1:])
                                       for place, each in enumerate(real)])}
    share |= {name: np.mean([backends.is_noisy(each.noise_mos, real) for each in heard[name]])
              for name in DAMAGES if name.startswith("noise")}
    return {"model": "DNSMOS, score of the background", "noisiest recording": round(min(real), 3),
            "standard deviation of the recordings": round(float(np.std(real)), 3), "margin": backends.NOISE_MARGIN,
            "share that is noisy": {name: round(float(each), 3) for name, each in share.items()}}


def bad_input(metric_models: MetricModels, text: str, wave: Wave) -> dict:
    """What is said of clips that are none."""
    cases = {"missing": None, "empty": wave[:0], "silent": wave * 0, "broken": wave * np.nan,
             "noise only": np.random.default_rng(1).normal(0, 0.05, 3 * SAMPLE_RATE).astype(np.float32)}
    heard = {name: metric_models.measure(each, SAMPLE_RATE, text) for name, each in cases.items()}
    return {name: {"failure": each.failure, "ref_words": each.ref_words, "word_errors": each.word_errors}
            for name, each in heard.items()}


def seconds(clips: Sequence[tuple[str, Wave]], metric_models: MetricModels) -> dict:
    """Processor seconds of each judge for one clip, the mean over several: the clock would count what else runs."""
    waves = [metrics.trimmed(wave, SAMPLE_RATE) for _, wave in clips[:PAIRS]]
    asked = {"wer": metric_models.transcribe, "sim": metric_models.embed_speaker, "mos": metric_models.predict_mos,
             "noise_mos": metric_models.predict_noise_mos, "f0": lambda wave: audio.median_f0(wave, SAMPLE_RATE),
             "level and trim": lambda wave: metrics.trimmed(wave, SAMPLE_RATE)}
    spent = {"length of a clip": float(np.mean([len(wave) for wave in waves])) / SAMPLE_RATE}
    for name, judge in asked.items():
        begun = time.process_time()
        for wave in waves:
            judge(wave)
        spent[name] = (time.process_time() - begun) / len(waves)
    return {name: round(value, 3) for name, value in spent.items()}


if __name__ == "__main__":
    main()
