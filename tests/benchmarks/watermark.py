"""What the mark survives, what it costs, and what is mistaken for it: python -m tests.benchmarks.watermark

On the bundled voice, on strangers, on tiny-csm's speech and on five people's prompts, which apt fetches; writes
results/watermark.json and prints the README's block. Needs the judges and the extra `audio`, whose av has the
encoders of MP3, AAC and Opus.
"""

import argparse
import contextlib
import datetime
import functools
import io
import random
import statistics
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
from tts_kit.evaluation import metrics
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_json, write_json
from tts_kit.model import load
from tts_kit.run import SAMPLE_DATA, SAMPLE_HELD_OUT, SAMPLE_VOICE, TINY_CSM
from tts_kit.speech import speak
from tts_kit.speech.voice import Voice

RESULTS = Path(__file__).parent / "results" / "watermark.json"
RATE = 24_000
EMMA, MACHINE = 9, 5
"""Clips of the bundled voice and of tiny-csm, beside six strangers."""
JUDGED = 8
PEOPLE = [f"asterisk-core-sounds-{language}-g722" for language in ("en", "es", "fr", "it", "ru")]
"""Prompts of a telephone system, each language by a voice of its own."""
PROMPTS = r"\./usr/share/asterisk/sounds/[^/]+/(?!silence)((?:[\w-]+/)?(?!beep|[\w-]*tone|[\w-]*music)[\w-]+)\.g722"
HEARD = 300.0
"""Seconds of each of them."""
WIPED_OUT = 0.1
"""Below this share of the clips the mark counts as gone."""
BEGIN, END = "<!-- watermark -->", "<!-- /watermark -->"
Clip = tuple[str, str, np.ndarray]
"""Kind of voice, what is said (of strangers nobody wrote it down), (samples,) at RATE."""
Damage = Callable[[np.ndarray], np.ndarray | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block", type=Path, help="write the README's block to this file too")
    parser.add_argument("--judged-before", action="store_true", help="keep what the judges said last, which takes longest")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load.load_base(str(TINY_CSM), device.choose("cpu"))
    plain, speaking = clips(base)
    marked = [(kind, text, watermark.apply(wave, RATE)) for kind, text, wave in plain]
    judged = {name: read_json(RESULTS, "Leave out --judged-before.")[name] for name in (
        "metrics", "evaluated")} if options.judged_before else judge(plain, marked, options.threads)
    command = f"python -m tests.benchmarks.watermark{' --judged-before' * options.judged_before}"
    found = {"what": "the mark of machine-made speech", "command": command,
             "mark": f"{watermark.PACKAGE} {watermark.VERSION}", "sure from": {
                 f"{watermark.SHORT_SECONDS:g} s on": watermark.MIN_SCORE, "less": watermark.MIN_SCORE_SHORT},
             "clips": {kind: figures_of([wave for each, _, wave in plain if each == kind])
                       for kind in dict.fromkeys(kind for kind, _, _ in plain)},
             "survival": survival(plain, marked, damages(base)), "unmarked speech": false_alarms(),
             "difference": difference(plain, marked), **judged, "processor seconds for a second": seconds(
                 [wave for _, _, wave in plain]) | {"tiny-csm's speaking": speaking}, "threads": options.threads,
             "machine": device.machine(), "versions": device.versions() | {"av": av.__version__},
             "date": datetime.date.today().isoformat()}
    write_json(RESULTS, found)
    if options.block:
        options.block.write_text(block(found), encoding="utf-8")
    print(block(found))


def figures_of(waves: Sequence[np.ndarray]) -> dict:
    return {"clips": len(waves), "seconds": round(sum(map(len, waves)) / RATE, 1)}


def judge(plain: Sequence[Clip], marked: Sequence[Clip], threads: int) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):
        metric_models = metrics.load(threads, model_set="bundled")
    return {"metrics": metric_models.name, "evaluated": heard(plain, marked, metric_models)}


def clips(base: load.Base) -> tuple[list[Clip], float]:
    """Two sentences a clip of the bundled voice, one of each stranger, and what tiny-csm says; and its processor seconds
    for a second."""
    rows = [*sources.rows(str(SAMPLE_HELD_OUT)), *sources.rows(str(SAMPLE_VOICE))]
    said = [(row.text, audio.read(row.audio(), RATE)) for row in rows[:2 * EMMA]]
    made = [("emma", f"{one[0]} {other[0]}", np.concatenate([one[1], other[1]]))
            for one, other in zip(said[::2], said[1::2])]
    made += [("strangers", "",
              audio.read(path, RATE)) for path in sorted((SAMPLE_DATA / "strangers").glob("*.flac"))]
    voice = Voice(base, base.model, sampling=Sampling.from_generation_config(base.generation_config))
    begun = time.process_time()
    spoken = [("tiny-csm", text, speak.speak(text, voice, seed=number).samples)
              for number, (_, text, _) in enumerate(made[:MACHINE])]
    spent = time.process_time() - begun
    return made + spoken, round(spent / (sum(len(wave) for _, _, wave in spoken) / RATE), 4)


def coded(codec: str, kind: str, rate: int, bits: int, wave: np.ndarray) -> np.ndarray:
    """Through an encoder at so many bits a second, and back."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono", bit_rate=bits)
        kinds = {"libopus": "s16", "libmp3lame": "fltp", "aac": "fltp"}
        resampler = av.AudioResampler(format=kinds[codec], layout="mono", rate=rate, frame_size=stream.frame_size or 0)
        frame = av.AudioFrame.from_ndarray((wave * 32767).round().clip(-32768, 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE
        for part in (frame, None):
            for ready in resampler.resample(part):
                out.mux(stream.encode(ready))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as back:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        parts = [each.to_ndarray()[0] for frame in [*back.decode(audio=0), None] for each in resampler.resample(frame)]
    return np.concatenate(parts).astype(np.float32)


def written(wave: np.ndarray) -> np.ndarray:
    return ((wave * 32768).round().clip(-32768, 32767) / 32768).astype(np.float32)


def resampled(rate: int, wave: np.ndarray) -> np.ndarray:
    return audio.resample(audio.resample(wave, RATE, rate), rate, RATE)


def faster(factor: float, wave: np.ndarray) -> np.ndarray:
    """Played so much faster, and higher with it."""
    return soxr.resample(wave, RATE * factor, RATE).astype(np.float32)


def middle(seconds: float, wave: np.ndarray) -> np.ndarray | None:
    """So much from the middle; nothing of a clip that is not longer."""
    wanted = round(seconds * RATE)
    start = (len(wave) - wanted) // 2
    return wave[start:start + wanted] if start > 0 else None


def noisy(decibels: float, wave: np.ndarray) -> np.ndarray:
    level = np.sqrt((wave ** 2).mean()) / 10 ** (decibels / 20)
    return wave + np.random.default_rng(0).normal(0, level, len(wave)).astype(np.float32)


def telephone(wave: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz, as a telephone passes on, at 8 kHz."""
    spectrum = np.fft.rfft(wave)
    heights = np.fft.rfftfreq(len(wave), 1 / RATE)
    spectrum[(heights < 300) | (heights > 3400)] = 0
    return resampled(8_000, np.fft.irfft(spectrum, len(wave)).astype(np.float32))


def damages(base: load.Base) -> dict[str, Damage]:
    """What happens to clips on their way."""
    part = functools.partial
    return {"nothing": lambda wave: wave, "16 bits": written,
            "MP3 128 kbit/s": part(coded, "libmp3lame", "mp3", RATE, 128_000),
            "MP3 64 kbit/s": part(coded, "libmp3lame", "mp3", RATE, 64_000),
            "MP3 32 kbit/s": part(coded, "libmp3lame", "mp3", RATE, 32_000),
            "AAC 64 kbit/s": part(coded, "aac", "adts", RATE, 64_000),
            "Opus 32 kbit/s": part(coded, "libopus", "ogg", 48_000, 32_000),
            "Opus 16 kbit/s": part(coded, "libopus", "ogg", 48_000, 16_000),
            "24 -> 16 -> 24 kHz": part(resampled, 16_000), "24 -> 8 -> 24 kHz": part(resampled, 8_000),
            "telephone (300-3400 Hz)": telephone,
            "3 s of it": part(middle, 3.0), "1 s of it": part(middle, 1.0), "0.5 s of it": part(middle, 0.5),
            "0.25 s of it": part(middle, 0.25),
            "white noise at 30 dB": part(noisy, 30), "white noise at 20 dB": part(noisy, 20),
            "white noise at 10 dB": part(noisy, 10),
            "20 dB quieter": lambda wave: wave * 0.1, "6 dB louder, clipped": lambda wave: (wave * 2).clip(-1, 1),
            "1 % faster and higher": part(faster, 1.01), "5 % faster and higher": part(faster, 1.05),
            "5 % slower and lower": part(faster, 1 / 1.05),
            "tiny-csm's codec and back": lambda wave: base.codec.decode(base.codec.encode([wave]))[0]}


def survival(plain: Sequence[Clip], marked: Sequence[Clip], damages: dict[str, Damage]) -> dict:
    """Damage -> how often the mark is found after it, how surely, and how often where there is none."""
    found = {}
    for name, damage in tqdm(damages.items(), desc="damages"):
        left = {side: [kept for _, _, wave in some if (kept := damage(wave)) is not None]
                for side, some in (("marked", marked), ("plain", plain))}
        (sure, enough), (unmarked, alarms) = look(left["marked"]), look(left["plain"])
        found[name] = {"clips": len(sure), "found": round(statistics.fmean(enough), 3),
                       "sureness": round(statistics.fmean(sure), 3), "lowest": round(min(sure), 3),
                       "false alarms": round(statistics.fmean(alarms), 3), "highest unmarked": round(max(unmarked), 3)}
    return found


def look(waves: Sequence[np.ndarray], rate: int = RATE) -> tuple[list[float], list[bool]]:
    """How sure of each, and whether that is enough."""
    sure = [watermark.detect(wave, rate) for wave in waves]
    return sure, [each >= watermark.min_score(len(wave) / rate) for each, wave in zip(sure, waves)]


def false_alarms() -> dict:
    """What is not marked: people, synthetic voices, noise; whole files, and every second of them by itself."""
    paths = [*(SAMPLE_DATA / "voice").glob("*.flac"), *(SAMPLE_DATA / "held_out").glob("*.flac"),
             *(SAMPLE_DATA / "strangers").glob("*.flac"), SAMPLE_DATA / "recording.flac"]
    synthetic = [audio.read(path, RATE) for path in sorted(paths)]
    hiss = [np.random.default_rng(seed).normal(0, 0.05, 3 * RATE).astype(np.float32) for seed in range(20)]
    report = {}
    for kind, waves in {**people(), "synthetic": synthetic, "white noise": hiss}.items():
        apart = [wave[start:start + RATE] for wave in waves for start in range(0, len(wave) - RATE + 1, RATE)]
        report[kind] = {"files": alarms(waves, kind), "seconds": alarms(apart, f"{kind}, by seconds")}
    return report


def alarms(waves: Sequence[np.ndarray], kind: str) -> dict:
    sure, enough = look(tqdm(waves, desc=kind))
    return {"pieces": len(sure), "false alarms": sum(enough), "highest": round(max(sure), 3),
            f"over {watermark.MIN_SCORE:g}": sum(each >= watermark.MIN_SCORE for each in sure)}


def people() -> dict[str, list[np.ndarray]]:
    """Prompts (samples,) at RATE that five people have spoken, by package, none of less than LITTLE seconds."""
    spoken = {}
    for package in examples.download_packages(PEOPLE):
        content = [each for _, each in sorted(examples.package_files(package, PROMPTS))
                   if watermark.SHORT_SECONDS <= len(each) / examples.G722_BYTES_PER_SECOND <= examples.MAX_SECONDS]
        random.Random(0).shuffle(content)
        chosen, total = [], 0.0
        while content and total < HEARD:
            chosen.append(content.pop())
            total += len(chosen[-1]) / examples.G722_BYTES_PER_SECOND
        spoken[package.name.split("_")[0]] = [audio.resample(examples.decode_g722(clip), examples.G722_RATE, RATE)
                                              for clip in chosen]
    return spoken


def difference(plain: Sequence[Clip], marked: Sequence[Clip]) -> dict:
    """Decibels from the speech down to what the mark adds."""
    ratios = [10 * np.log10(float((before ** 2).sum() / ((after - before) ** 2).sum()))
              for (_, _, before), (_, _, after) in zip(plain, marked)]
    return {"mean dB": round(statistics.fmean(ratios), 2), "least dB": round(min(ratios), 2),
            "above 2.2 kHz, least dB": round(min(high(one[2], other[2]) for one, other in zip(plain, marked)), 1)}


def high(before: np.ndarray, after: np.ndarray) -> float:
    upper = np.fft.rfftfreq(len(before), 1 / RATE) > 2_200
    power = [float((np.abs(np.fft.rfft(each.astype(np.float64))[upper]) ** 2).sum()) for each in (before, after - before)]
    return 10 * np.log10(power[0] / power[1])


def heard(plain: Sequence[Clip], marked: Sequence[Clip], metric_models: metrics.MetricModels) -> dict:
    """What the judges say before and after, clip by clip; the difference with its interval."""
    report = {}
    for kind in dict.fromkeys(kind for kind, _, _ in plain):
        pairs = [(text or "Nobody wrote it down.", one, other) for (each, text, one), (_, _, other) in zip(plain, marked)
                 if each == kind][:JUDGED]
        said = [(metric_models.measure(one, RATE, text), metric_models.measure(other, RATE, text))
                for text, one, other in tqdm(pairs, desc=kind)]
        before, after = zip(*said)
        drop = [two.mos - one.mos for one, two in said]
        report[kind] = {"clips": len(said), "mos": means(before, after, "mos"),
                        "mos difference": estimate(drop), "noise_mos": means(before, after, "noise_mos"),
                        "sim of a clip to itself unmarked": round(statistics.fmean(
                            float(one.embedding @ two.embedding) for one, two in said), 4)}
        if kind != "strangers":
            report[kind]["wer"] = [wrong(before), wrong(after)]
    return report


def mistaken(unmarked: dict) -> list[str]:
    """What was taken for marked, in words."""
    def count(kinds: Sequence[str], how: str) -> str:
        return " of ".join(str(sum(unmarked[kind][how][name] for kind in kinds)) for name in ("false alarms", "pieces"))

    voices = [kind for kind in unmarked if kind.startswith("asterisk")]
    surest = max(unmarked[kind]["files"]["highest"] for kind in voices)
    over = sum(unmarked[kind]["seconds"][f"over {watermark.MIN_SCORE:g}"] for kind in voices)
    return [f"Taken for marked though it is not: of prompts that {len(voices)} people spoke for a telephone system, each in "
            f"another language, {count(voices, 'files')}, with {surest:.2f} at most; of their seconds one by one "
            f"{count(voices, 'seconds')}. From {watermark.MIN_SCORE:g} on it would have been {over} of these, which is why "
            f"less "
            f"than {watermark.SHORT_SECONDS:g} s of sound counts as marked from {watermark.MIN_SCORE_SHORT:g} on, and more "
            f"from "
            f"{watermark.MIN_SCORE:g}. Of synthetic clips {count(['synthetic'], 'files')}, of white noise "
            f"{count(['white noise'], 'files')}."]


def gone(found: dict) -> str:
    """What no mark, or hardly one, survives."""
    *names, last = (name for name, each in found["survival"].items() if each["found"] < WIPED_OUT)
    return f"{', '.join(names)} and {last}"


def wrong(said: Sequence[metrics.ClipMetrics]) -> float:
    return round(sum(each.word_errors for each in said) / sum(each.ref_words for each in said), 4)


def means(before, after, field: str) -> list[float]:
    return [round(statistics.fmean(getattr(each, field) for each in side), 3) for side in (before, after)]


def estimate(moved: Sequence[float]) -> dict:
    """The mean with its standard error; so few clips need no more."""
    return {"mean": round(statistics.fmean(moved), 3),
            "standard error": round(statistics.stdev(moved) / len(moved) ** 0.5, 3)}


def seconds(waves: Sequence[np.ndarray]) -> dict:
    """Processor seconds for a second of sound: whole clips, and as a stream in chunks of 0.16 s."""
    long, chunk = np.concatenate(waves), 2 * RATE * 80 // 1000
    chunks = [long[start:start + chunk] for start in range(0, len(long), chunk)]
    jobs = {"marking": lambda: watermark.apply(long, RATE), "detecting": lambda: watermark.detect(long, RATE),
            "marking a stream in chunks of 0.16 s": lambda: [None for _ in watermark.apply_stream(chunks, RATE)]}
    spent = {}
    for name, job in jobs.items():
        begun = time.process_time()
        job()
        spent[name] = round((time.process_time() - begun) / (len(long) / RATE), 4)
    return spent


def block(found: dict) -> str:
    """The README's table."""
    lines = [BEGIN, "| what happened to the clip | found | how sure | false alarms |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {each['found']:.0%} of {each['clips']} | {each['sureness']:.2f} | {each['false alarms']:.0%} |"
              for name, each in found["survival"].items()]
    spent, told = found["processor seconds for a second"], found["evaluated"]
    natural = "; ".join(f"{kind} {each['mos'][0]:.2f} -> {each['mos'][1]:.2f} (moved by "
                        f"{each['mos difference']['mean']:+.2f}, standard error "
                        f"{each['mos difference']['standard error']:.2f})" for kind, each in told.items())
    words = "; ".join(f"{kind} {each['wer'][0]:.1%} -> {each['wer'][1]:.1%}" for kind, each in told.items()
                      if "wer" in each)
    alike = [each["sim of a clip to itself unmarked"] for each in told.values()]
    whole, streamed, speaking = (spent[name] for name in (
        "marking", "marking a stream in chunks of 0.16 s", "tiny-csm's speaking"))
    lines += ["", f"What it costs: {whole:.3f} processor seconds for a second of speech, "
              f"{whole / speaking:.1%} of what tiny-csm takes to say it; as a stream {streamed:.3f} "
              f"({streamed / speaking:.0%}); finding it {spent['detecting']:.3f}. What it adds lies "
              f"{found['difference']['mean dB']:.0f} dB under the speech, all of it below 2 kHz. Naturalness by DistillMOS: "
              f"{natural}. Wrong words: {words}. A clip's voice is like itself unmarked by {min(alike):.3f} to "
              f"{max(alike):.3f}, means of the three kinds.", "", *mistaken(found["unmarked speech"]), "",
              "So it survives most of what players, uploads and telephones do, and not who wants it gone: "
              f"{gone(found)} wipe it out. In a long recording {watermark.BLOCK_SECONDS:g} s are looked at together, so "
              f"that a "
              "marked sentence among others can be missed. It is one mark for all who use Perth: that a machine spoke, not "
              "which. Mimi itself could not be tried. Clips that stay in a run's folder, of training and of `compare` with "
              "its pages, are without it.", END]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
