"""Report on a run's data: how much, how clean, which clips to check first, what was left out, and what would help most."""

import html
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, io
from tts_kit import html as pages
from tts_kit.data import ingest, manifest, prepare, quality_flags, speaker_embedding
from tts_kit.data.manifest import SAMPLE_RATE, Utterance
from tts_kit.data.quality_flags import OUTLIER_THRESHOLD
from tts_kit.data.review_store import DROPPED
from tts_kit.data.segment import Segment, read_segments, segment_folders
from tts_kit.errors import KitError
from tts_kit.run import Run

FILE = "report.html"
MAX_UNUSUAL, MAX_LISTED = 6, 40
"""Clips in a list of unusual ones, and in any list."""
ACCENT, GREY = "#0b8079", "#8a857c"
BANDWIDTH_DB = -70.0
"""A frequency band this far below the strongest one was not recorded."""
SHINGLE, MAX_WORD_DISTANCE = 3, 0.2
"""Consecutive words that two texts must share to be compared, and the share that may differ in near-duplicates."""
# minutes from which a voice is recognisable, is stable, and gains little from more, as users of other kits report them
MIN_MINUTES, STEADY_MINUTES, ENOUGH_MINUTES = 5, 25, 40
QUIET_SNR_DB, NOISY_SNR_DB = 30.0, 20.0
"""Median SNR from which a room is quiet, and below which it is loud."""
NARROW_BAND_HZ = 7_000
"""Median bandwidth below which a voice sounds like a telephone."""
MAX_DUPLICATE_SHARE = 0.05


@dataclass(frozen=True)
class AudioStats:
    """What is measured of one clip."""
    clip: Utterance
    chars_per_second: float
    lufs: float
    snr_db: float
    f0: float
    """Hertz, the median of voiced frames; 0 if there are none."""
    bandwidth_hz: float
    speaker_distance: float
    """How much less it resembles the main speaker than usual, at worst; 0 if voices were not compared."""


@dataclass(frozen=True)
class Rejected:
    """What is not in the data for one reason."""
    clips: int
    minutes: float | None
    """None if they were not measured."""


@dataclass(frozen=True)
class Report:
    name: str
    clips: Sequence[AudioStats]
    rejected: dict[str, Rejected]
    """By reason."""
    near_duplicates: Sequence[tuple[Utterance, Utterance]]
    recording_lufs: Sequence[float]
    """Loudness of each clip as it was recorded; empty if there was no recording."""
    rejected_segments: Sequence[tuple[Path, Segment]]
    """Segments of recordings that were left out, with their audio."""
    rejected_rows: Sequence[dict]
    """Rows of the input table that could not be used."""
    voices_compared: bool

    @property
    def minutes(self) -> float:
        return sum(stats.clip.seconds for stats in self.clips) / 60

    @property
    def speaker_outliers(self) -> list[AudioStats]:
        """Clips that sound like another speaker, the most distant first."""
        outliers = [stats for stats in self.clips if stats.speaker_distance > OUTLIER_THRESHOLD]
        return sorted(outliers, key=lambda stats: -stats.speaker_distance)


def analyse(run: Run) -> Report:
    """Measure a run's data."""
    clips = manifest.read(run.data)
    segments = [(folder / segment.file, segment) for folder in segment_folders(run.segments)
                for segment in read_segments(folder)]
    rejected_rows = run.data / prepare.REJECTED
    return Report(
        name=run.name, clips=measure(clips), rejected=_rejected(run, [segment for _, segment in segments]),
        near_duplicates=near_duplicates(clips),
        recording_lufs=[segment.lufs for _, segment in segments if not segment.reason],
        rejected_segments=[(path, segment) for path, segment in segments if segment.reason],
        rejected_rows=io.read_rows(rejected_rows) if rejected_rows.is_file() else [],
        voices_compared=speaker_embedding.is_installed())


def display(run: Run) -> None:
    """Print the advice, and write the page and print its address."""
    report = analyse(run)
    print(f"{advice(report)}\nOpen {write(run, report).resolve().as_uri()}")


def advice(report: Report) -> str:
    """Return one paragraph: how much data there is, how good it is, and what would help most."""
    clips, minutes = report.clips, report.minutes
    more = max(1, round(STEADY_MINUTES - minutes))
    sentences = [f"{minutes:.1f} minutes in {len(clips)} clips: "]
    if minutes < MIN_MINUTES:
        sentences[0] += (f"little. {MIN_MINUTES} minutes is the minimum for a recognisable voice; cloning from one clip may "
                         f"do as well. About {more} minutes more would give stable results.")
    elif minutes < STEADY_MINUTES:
        sentences[0] += f"enough for a recognisable voice; about {more} minutes more would give stable results."
    else:
        sentences[0] += "enough." + f" Beyond {ENOUGH_MINUTES} minutes more adds little." * (minutes >= ENOUGH_MINUTES)
    outliers = len(report.speaker_outliers)
    if not report.voices_compared:
        sentences.append("Whether one voice speaks in all of them was not measured: that needs tts-kit[eval].")
    elif outliers:
        sentences.append(f"{outliers} of them sound{'s' * (outliers == 1)} like another speaker: check these first, below.")
    else:
        sentences.append("One voice speaks in all of them.")
    snr_db = statistics.median(stats.snr_db for stats in clips)
    if snr_db >= QUIET_SNR_DB:
        sentences.append(f"The room is quiet (SNR {snr_db:.0f} dB).")
    else:
        room = "can be heard" if snr_db >= NOISY_SNR_DB else "is loud"
        sentences.append(f"The room {room} (SNR {snr_db:.0f} dB), and the model learns it with the voice.")
    bandwidth_hz = statistics.median(stats.bandwidth_hz for stats in clips)
    if bandwidth_hz < NARROW_BAND_HZ:
        sentences.append(f"There is nothing above {bandwidth_hz / 1000:.1f} kHz: use the original recording if you have it.")
    if len(report.near_duplicates) > MAX_DUPLICATE_SHARE * len(clips):
        sentences.append(f"{len(report.near_duplicates)} clips say nearly the same as another.")
    return " ".join(sentences)


# Measurements


def measure(utterances: Sequence[Utterance]) -> list[AudioStats]:
    """Measure every clip; voices are compared if Resemblyzer is installed."""
    compare_voices, rows, windows = speaker_embedding.is_installed(), [], []
    for clip in tqdm(utterances, desc="measuring", unit="clip"):
        samples = audio.read(clip.audio, SAMPLE_RATE)
        rows.append((clip, len(clip.text) / clip.seconds, audio.loudness(samples, SAMPLE_RATE), snr_db(samples),
                     audio.median_f0(samples, SAMPLE_RATE), bandwidth_hz(samples)))
        resampled = audio.resample(samples, SAMPLE_RATE, speaker_embedding.SAMPLE_RATE) if compare_voices else None
        windows.append(speaker_embedding.embed_windows(resampled) if compare_voices else None)
    return [AudioStats(*row, distance) for row, distance in zip(rows, speaker_embedding.speaker_outlier_score(windows))]


def snr_db(samples: np.ndarray) -> float:
    """Return the level of the loud frames of (samples,) over the quiet ones, in dB; digital silence does not count."""
    power = (audio.frame(samples, SAMPLE_RATE // 50) ** 2).mean(axis=1)
    power = power[power > 1e-10]
    return float(10 * np.log10(np.percentile(power, 95) / np.percentile(power, 10))) if len(power) else 0.0


def bandwidth_hz(samples: np.ndarray) -> float:
    """Return the highest frequency of (samples,) that was recorded: not far below the strongest."""
    frames = audio.frame(samples, 1024) * np.hanning(1024)
    power = (np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0)
    power = np.convolve(power, np.ones(5) / 5, "same")
    if power.max() <= 0:
        return 0.0
    return float(np.flatnonzero(power > power.max() * 10 ** (BANDWIDTH_DB / 10))[-1] * SAMPLE_RATE / 1024)


def near_duplicates(utterances: Sequence[Utterance]) -> list[tuple[Utterance, Utterance]]:
    """Return pairs that say nearly the same; each later utterance is paired with the first one like it."""
    by_shingle: dict[tuple[str, ...], list[Utterance]] = defaultdict(list)
    order = {utterance.id: number for number, utterance in enumerate(utterances)}
    pairs = []
    for utterance in utterances:
        words = quality_flags.words(utterance.text)
        shingles = {words[start:start + SHINGLE] for start in range(max(1, len(words) - SHINGLE + 1))}
        candidates = {other.id: other for other in itertools.chain(*(by_shingle[shingle] for shingle in shingles))}
        for other in sorted(candidates.values(), key=lambda other: order[other.id]):
            if quality_flags.word_edit_distance(other.text, utterance.text) <= MAX_WORD_DISTANCE:
                pairs.append((other, utterance))
                break
        for shingle in shingles:
            by_shingle[shingle].append(utterance)
    return pairs


def _rejected(run: Run, segments: Sequence[Segment]) -> dict[str, Rejected]:
    """Return what every stage left out, by reason."""
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()

    def add(reason: str, duration: float) -> None:
        counts[reason] += 1
        seconds[reason] += duration

    for segment in segments:
        if segment.reason:
            add(segment.reason.partition(":")[0], segment.seconds)
    if any(ingest.asr_models(run)):
        for clip in ingest.load_review(run).clips:
            if clip.state == DROPPED or not clip.text:
                add("dropped in the review" if clip.state == DROPPED else "without a text", clip.seconds)
    rejected = {reason: Rejected(count, seconds[reason] / 60) for reason, count in counts.most_common()}
    if (run.data / prepare.REJECTED).is_file():
        rejected["could not be used"] = Rejected(len(io.read_rows(run.data / prepare.REJECTED)), None)
    return rejected


# The page


def figure(report: Report):
    """Return six histograms as a matplotlib figure."""
    from matplotlib.figure import Figure

    clips, figure = report.clips, Figure(figsize=(11, 5.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    loudness = {"in the data": [stats.lufs for stats in clips]}
    if report.recording_lufs:
        loudness["in the recording"] = report.recording_lufs
    histograms = [("duration", "seconds", {"": [stats.clip.seconds for stats in clips]}),
                  ("speaking rate", "characters per second", {"": [stats.chars_per_second for stats in clips]}),
                  ("loudness", "LUFS", loudness), ("SNR", "dB", {"": [stats.snr_db for stats in clips]}),
                  ("F0", "hertz", {"": [stats.f0 for stats in clips if stats.f0]}),
                  ("distance from the main speaker", "cosine difference", {"": [stats.speaker_distance for stats in clips]})]
    for axes, (title, unit, series) in zip(figure.subplots(2, 3).flat, histograms):
        for (label, values), color in zip(series.items(), (ACCENT, GREY)):
            axes.hist(values, bins=24, color=color, alpha=0.8, label=label)
        axes.set_title(title, color=GREY, fontsize=10)
        axes.set_xlabel(unit, color=GREY, fontsize=8)
        axes.tick_params(colors=GREY, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
    axes.axvline(OUTLIER_THRESHOLD, color=GREY, linewidth=1, linestyle=":")
    return figure


def picture(report: Report) -> bytes:
    """Return the figure as a PNG for light and dark backgrounds."""
    content = BytesIO()
    figure(report).savefig(content, format="png", dpi=140, transparent=True)
    return content.getvalue()


def write(run: Run, report: Report) -> Path:
    """Write the page into the run's data, self-contained: plots and clips are inside; return its path."""
    page, _ = pages.page(__file__, f"The data of {report.name}", csp=("img-src data:", "media-src data:"),
                         advice=html.escape(advice(report)), totals="\n".join(_totals(report)),
                         lists="\n".join(_lists(report)), plots=pages.data_uri(picture(report), "image/png"))
    io.write_text(run.data / FILE, page)
    return run.data / FILE


def _totals(report: Report) -> Iterator[str]:
    splits = {manifest.TRAIN: "to train on", manifest.HELD_OUT: "held out, to evaluate on",
              manifest.EXCLUDED: "excluded: next to held-out clips"}
    rows = []
    for split, label in splits.items():
        if seconds := [stats.clip.seconds for stats in report.clips if stats.clip.split == split]:
            rows.append((label, len(seconds), sum(seconds) / 60))
    rows += [(f"left out: {reason}", rejected.clips, rejected.minutes) for reason, rejected in report.rejected.items()]
    for label, count, minutes in rows:
        yield (f"<tr><th>{html.escape(label)}</th><td>{count}</td>"
               f"<td>{'' if minutes is None else f'{minutes:.1f}'}</td></tr>")


def _lists(report: Report) -> Iterator[str]:
    """Yield lists of clips to check, by what is unusual about them."""
    clips = report.clips
    yield _clip_list("Other speakers", "Another person, a cough, or only another mood.", report.speaker_outliers,
                     lambda stats: f"speaker distance {stats.speaker_distance:.2f}")
    yield _clip_list("Fast and slow", "The transcript may say more or less than the clip.",
                     _outliers(clips, lambda stats: stats.chars_per_second),
                     lambda stats: f"{stats.chars_per_second:.0f} characters per second")
    yield _clip_list("Noisiest", "The lowest signal-to-noise ratio.", sorted(clips, key=lambda stats: stats.snr_db),
                     lambda stats: f"SNR {stats.snr_db:.0f} dB")
    yield _clip_list("High and low", "A laugh, a shout, or another speaker.",
                     _outliers([stats for stats in clips if stats.f0], lambda stats: stats.f0),
                     lambda stats: f"{stats.f0:.0f} Hz")
    by_id = {stats.clip.id: stats for stats in clips}
    yield _clip_list("Near-duplicates", "Both stay in the data; one is enough.",
                     [by_id[later.id] for _, later in report.near_duplicates], lambda stats: "like another clip")
    listed = [(path, segment.reason, f"{segment.start:.0f} to {segment.end:.0f} s", f"{path.parent.parent.name}/{path.name}")
              for path, segment in report.rejected_segments]
    more = f" The first {MAX_LISTED} of {len(listed)}; all are in the run's segments." * (len(listed) > MAX_LISTED)
    yield _section("Left out", f"Segments of the recordings that became no clips.{more}", listed[:MAX_LISTED])
    yield _section("Could not be used", "Clips of the table.", [
        (None, row["reason"], f"row {row['row']}", row["file"]) for row in report.rejected_rows[:MAX_LISTED]])


def _outliers(clips: Sequence[AudioStats], value: Callable[[AudioStats], float]) -> list[AudioStats]:
    """Sort clips by the distance from the median, as a ratio, the farthest first."""
    median = statistics.median([value(stats) for stats in clips] or [1.0])
    return sorted(clips, key=lambda stats: -max(value(stats) / median, median / max(value(stats), 1e-6)))


def _clip_list(title: str, explanation: str, clips: Sequence[AudioStats], note: Callable[[AudioStats], str]) -> str:
    return _section(title, explanation, [(stats.clip.audio, stats.clip.text, note(stats), stats.clip.file)
                                         for stats in clips[:MAX_UNUSUAL]])


def _section(title: str, explanation: str, rows: Sequence[tuple[Path | None, str, str, str]]) -> str:
    """Return a list of players with text, note and file name; empty if there are no rows."""
    if not rows:
        return ""
    items = []
    for path, *texts in rows:
        text, note, file = map(html.escape, texts)
        items.append(f'<li>{_player(path) if path else ""}<p dir="auto">{text}</p><small>{note}<br>{file}</small></li>')
    return f'<h2>{title}</h2><p class="explanation">{explanation}</p><ul class="clips">{"".join(items)}</ul>'


def _player(path: Path) -> str:
    try:
        source = pages.data_uri(*audio.encode_lossy(audio.read(path, SAMPLE_RATE), SAMPLE_RATE))
    except KitError:  # a segment may have been left out because it is silent
        return "<audio></audio>"
    return f'<audio controls preload="none" src="{source}"></audio>'
