"""Report on a run's data: how much, how clean, which clips to check first, what was left out, and what would help most."""

import html
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from tts_kit import audio, io
from tts_kit import html as pages
from tts_kit.data import ingest, manifest, prepare, quality_flags, review, segment, speaker_embedding
from tts_kit.data.manifest import ENOUGH_MINUTES, MIN_MINUTES, SAMPLE_RATE, STEADY_MINUTES, Utterance
from tts_kit.progress import tqdm
from tts_kit.run import Run

FILE = "report.html"
MAX_UNUSUAL, MAX_LISTED = 6, 40  # clips in a list of unusual ones, and in the list of rejected ones
ACCENT, INK = "#0b8079", "#3d3a35"
BANDWIDTH_DB = -70.0  # a frequency band this far below the strongest one was not recorded
QUIET_SNR_DB, NOISY_SNR_DB = 30.0, 20.0  # median SNR from which a room is quiet, and below which it is loud
NARROW_BAND_HZ = 7_000  # median bandwidth below which a voice sounds like a telephone
MAX_DUPLICATE_SHARE = 0.05


@dataclass(frozen=True)
class AudioStats:
    """What is measured of one clip."""
    clip: Utterance
    chars_per_second: float
    lufs: float
    snr_db: float
    f0: float  # Hertz, the median of voiced frames; 0 if there are none
    bandwidth_hz: float
    speaker_distance: float  # how much less it resembles the main speaker than usual, at worst; 0 if not compared


@dataclass(frozen=True)
class Report:
    clips: Sequence[AudioStats]
    rejected: dict[str, tuple[int, float | None]]  # reason -> clips that are not in the data, and minutes if known
    duplicates: Sequence[Utterance]  # clips whose words an earlier one has as well
    rejected_segments: Sequence[tuple[Path, segment.Segment]]  # of the recordings, with their audio
    voices_compared: bool

    @property
    def minutes(self) -> float:
        return sum(stats.clip.seconds for stats in self.clips) / 60

    @property
    def speaker_outliers(self) -> list[AudioStats]:
        """Clips that sound like another speaker, the most distant first."""
        outliers = [stats for stats in self.clips if stats.speaker_distance > quality_flags.OUTLIER_THRESHOLD]
        return sorted(outliers, key=lambda stats: -stats.speaker_distance)


def analyse(run: Run) -> Report:
    """Measure a run's data, and count by reason what every stage left out."""
    clips = manifest.read(run.data)
    segments = [(folder / part.file, part) for folder in segment.segment_folders(run.segments)
                for part in segment.read_segments(folder) if part.reason]
    left_out = [(part.reason.partition(":")[0], part.seconds) for _, part in segments]
    if ingest.asr_models(run):
        left_out += [("dropped in the review" if clip.state == review.DROPPED else "without a text", clip.seconds)
                     for clip in ingest.load_review(run).clips if clip.state == review.DROPPED or not clip.text]
    counts = Counter(reason for reason, _ in left_out)
    rejected = {reason: (count, sum(seconds for other, seconds in left_out if other == reason) / 60)
                for reason, count in counts.most_common()}
    path = run.data / prepare.REJECTED
    if path.is_file():
        rejected["could not be used"] = (len(io.read_rows(path)), None)
    return Report(measure(clips), rejected, duplicates(clips), segments, speaker_embedding.is_installed())


def display(run: Run) -> None:
    """Print the advice, and write the page and print its address."""
    report = analyse(run)
    print(f"{advice(report)}\nOpen {write(run, report).resolve().as_uri()}")


def advice(report: Report) -> str:
    """Return one paragraph: how much data there is, how good it is, and what would help most."""
    clips, outliers = report.clips, len(report.speaker_outliers)
    if not report.voices_compared:
        speaker = "Whether one voice speaks in all of them was not measured: that needs tts-kit[eval]."
    elif outliers:
        speaker = f"{outliers} of them sound{'s' * (outliers == 1)} like another speaker: check these first, below."
    else:
        speaker = "One voice speaks in all of them."
    sentences = [_amount(report.minutes, len(clips)), speaker,
                 *_quality([stats.snr_db for stats in clips], [stats.bandwidth_hz for stats in clips])]
    if len(report.duplicates) > MAX_DUPLICATE_SHARE * len(clips):
        sentences.append(f"{len(report.duplicates)} clips say the same as another.")
    return " ".join(sentences)


def brief_advice(run: Run) -> str:
    """Return how much data a run has and how good some of its clips are, without comparing voices: in seconds."""
    clips = manifest.read(run.data)
    waves = [audio.read(clip.audio, SAMPLE_RATE) for clip in clips[::max(1, len(clips) // MAX_LISTED)]]
    sentences = [_amount(sum(clip.seconds for clip in clips) / 60, len(clips)),
                 *_quality([snr_db(wave) for wave in waves], [bandwidth_hz(wave) for wave in waves])]
    return " ".join([*sentences, f"More, with voices compared: tts-kit report --run {run.name}"])


def _amount(minutes: float, clips: int) -> str:
    more = f"bout {max(1, round(STEADY_MINUTES - minutes))} minutes more would give stable results."
    if minutes < MIN_MINUTES:
        amount = (f"little. {MIN_MINUTES} minutes is the minimum for a recognisable voice; cloning from one clip may do as "
                  f"well. A{more}")
    elif minutes < STEADY_MINUTES:
        amount = f"enough for a recognisable voice; a{more}"
    else:
        amount = "enough." + f" Beyond {ENOUGH_MINUTES} minutes more adds little." * (minutes >= ENOUGH_MINUTES)
    return f"{minutes:.1f} minutes in {clips} clips: {amount}"


def _quality(snrs_db: Sequence[float], bandwidths_hz: Sequence[float]) -> list[str]:
    snr = statistics.median(snrs_db)
    background = "is quiet" if snr >= QUIET_SNR_DB else "can be heard" if snr >= NOISY_SNR_DB else "is loud"
    learned = ", and the model learns it with the voice" * (snr < QUIET_SNR_DB)
    sentences = [f"The room {background} (SNR {snr:.0f} dB){learned}."]
    if (bandwidth := statistics.median(bandwidths_hz)) < NARROW_BAND_HZ:
        sentences.append(f"There is nothing above {bandwidth / 1000:.1f} kHz: use the original recording if you have it.")
    return sentences


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


def duplicates(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return the utterances whose words an earlier one has as well, whatever their case and punctuation."""
    first: dict[tuple[str, ...], Utterance] = {}
    return [utterance for utterance in utterances if first.setdefault(quality_flags.words(utterance.text), utterance)
            is not utterance]


def picture(report: Report, columns: int = 3) -> bytes:
    """Return six histograms in so many columns as a PNG."""
    from matplotlib.figure import Figure

    clips, figure = report.clips, Figure(figsize=(3.7 * columns, 2.8 * 6 / columns), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    histograms = [("duration", "seconds", [stats.clip.seconds for stats in clips]),
                  ("speaking rate", "characters per second", [stats.chars_per_second for stats in clips]),
                  ("loudness", "LUFS", [stats.lufs for stats in clips]), ("SNR", "dB", [stats.snr_db for stats in clips]),
                  ("F0", "hertz", [stats.f0 for stats in clips if stats.f0]),
                  ("distance from the main speaker", "cosine difference", [stats.speaker_distance for stats in clips])]
    for axes, (title, unit, values) in zip(figure.subplots(6 // columns, columns).flat, histograms):
        axes.hist(values, bins=24, color=ACCENT)
        axes.set_title(title, color=INK, fontsize=10)
        axes.set_xlabel(unit, color=INK, fontsize=8)
        axes.tick_params(colors=INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
    axes.axvline(quality_flags.OUTLIER_THRESHOLD, color=INK, linewidth=1, linestyle=":")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=140)
    return content.getvalue()


def write(run: Run, report: Report) -> Path:
    """Write the page into the run's data, self-contained: plots and clips are inside; return its path."""
    page, _ = pages.page(__file__, f"The data of {run.name}", csp=("img-src data:", "media-src data:"),
                         advice=html.escape(advice(report)), totals="\n".join(_totals(report)),
                         lists="\n".join(_lists(report)), **{
                             name: pages.data_uri(picture(report, columns), "image/png")
                             for name, columns in (("plots", 3), ("narrow_plots", 1))})
    io.write_text(run.data / FILE, page)
    return run.data / FILE


def _totals(report: Report) -> Iterator[str]:
    splits = {manifest.TRAIN: "to train on", manifest.HELD_OUT: "held out, to evaluate on",
              manifest.EXCLUDED: "excluded: next to held-out clips"}
    seconds = {split: [stats.clip.seconds for stats in report.clips if stats.clip.split == split] for split in splits}
    rows = {label: (len(seconds[split]), sum(seconds[split]) / 60) for split, label in splits.items() if seconds[split]}
    for label, (count, minutes) in (rows | {f"left out: {reason}": row for reason, row in report.rejected.items()}).items():
        yield (f"<tr><th>{html.escape(label)}</th><td>{count}</td>"
               f"<td>{'' if minutes is None else f'{minutes:.1f}'}</td></tr>")


def _lists(report: Report) -> Iterator[str]:
    """Yield lists of clips to check, by what is unusual about them."""
    def clip_list(title: str, explanation: str, clips: Sequence[AudioStats], note: Callable[[AudioStats], str]) -> str:
        return _section(title, explanation, [(stats.clip.audio, stats.clip.text, note(stats), stats.clip.file)
                                             for stats in clips[:MAX_UNUSUAL]])

    clips, repeated = report.clips, {clip.id for clip in report.duplicates}
    rate = statistics.median(stats.chars_per_second for stats in clips)
    yield clip_list("Other speakers", "Another person, a cough, or only another mood.", report.speaker_outliers,
                    lambda stats: f"speaker distance {stats.speaker_distance:.2f}")
    yield clip_list("Fast and slow", "The transcript may say more or less than the clip.",
                    sorted(clips, key=lambda stats: -abs(np.log(stats.chars_per_second / rate))),
                    lambda stats: f"{stats.chars_per_second:.0f} characters per second")
    yield clip_list("Noisiest", "The lowest signal-to-noise ratio.", sorted(clips, key=lambda stats: stats.snr_db),
                    lambda stats: f"SNR {stats.snr_db:.0f} dB")
    yield clip_list("Duplicates", "Both stay in the data; one is enough.",
                    [stats for stats in clips if stats.clip.id in repeated], lambda stats: "the words of another clip")
    rejected = [(path, part.reason, f"{part.start:.0f} to {part.end:.0f} s", f"{path.parent.parent.name}/{path.name}")
                for path, part in report.rejected_segments]
    yield _section("Left out", f"Segments of the recordings that became no clips: {min(MAX_LISTED, len(rejected))} of "
                   f"{len(rejected)}.", rejected[:MAX_LISTED])


def _section(title: str, explanation: str, rows: Sequence[tuple[Path, str, str, str]]) -> str:
    """Return a list of players with text, note and file name; empty if there are no rows."""
    items = []
    for path, *texts in rows:
        text, note, file = map(html.escape, texts)
        player = ""
        if np.any(samples := soundfile.read(path, dtype="float32")[0]):  # silence has no player
            source = pages.data_uri(*audio.encode_lossy(samples, SAMPLE_RATE))
            player = f'<audio controls preload="metadata" aria-label="{text}" src="{source}"></audio>'
        items.append(f'<li>{player}<p dir="auto">{text}</p><small>{note}<br>{file}</small></li>')
    section = f'<h2>{title}</h2><p class="explanation">{explanation}</p><ul class="clips">{"".join(items)}</ul>'
    return section if items else ""
