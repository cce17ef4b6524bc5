"""A run's data as a person would want to see it: how much, how clean, what to listen to first, and whether it is enough.

In go the utterances of a run and the lists of what was left out; out come figures, a page and a paragraph of advice.
"""

import html
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tts_kit import audio, io
from tts_kit import html as pages
from tts_kit.data import advice as advisor
from tts_kit.data import audio_stats, ingest, manifest, prepare, quality_flags, segment, speaker_embedding
from tts_kit.data.audio_stats import AudioStats
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_store import DROPPED
from tts_kit.errors import KitError
from tts_kit.run import Run

FILE = "report.html"
LISTED, MOST = 6, 40
"""Clips in a list of unusual ones, and in any list."""
ACCENT, GREY = "#0b8079", "#8a857c"


@dataclass(frozen=True)
class Rejected:
    """What is not in the data."""
    clips: int
    minutes: float | None
    """None where nobody measured it."""


@dataclass(frozen=True)
class Report:
    name: str
    clips: Sequence[AudioStats]
    left: dict[str, Rejected]
    """By reason."""
    twins: Sequence[tuple]
    """Pairs of utterances that say nearly the same."""
    levels: Sequence[float]
    """LUFS of each clip as it was recorded, empty where there was no recording."""
    rejected: Sequence[tuple[Path, segment.Segment]]
    """Pieces of recordings that were left out, with their sound."""
    refused: Sequence[dict]
    """Rows of clips that could not be used."""
    compared: bool
    """Whether voices were compared."""

    @property
    def minutes(self) -> float:
        return sum(each.clip.seconds for each in self.clips) / 60

    @property
    def strangers(self) -> list[AudioStats]:
        """Clips that sound like somebody else, the strangest first."""
        return sorted((each for each in self.clips if each.unlike > quality_flags.OUTLIER_THRESHOLD), key=lambda each: -each.unlike)


def analyse(place: Run) -> Report:
    """Measure a run's data, once it has some."""
    clips = manifest.read(place.data)
    pieces = [(folder / piece.file, piece) for folder in segment.segment_folders(place.segments) for piece in segment.read_segments(folder)]
    refused = place.data / prepare.REJECTED
    return Report(
        name=place.name, clips=audio_stats.measure(clips), left=dict(_left(place, [piece for _, piece in pieces])),
        twins=audio_stats.near_duplicates(clips), levels=[piece.lufs for _, piece in pieces if not piece.reason],
        rejected=[(path, piece) for path, piece in pieces if piece.reason],
        refused=io.read_rows(refused) if refused.is_file() else [], compared=speaker_embedding.is_installed())


def display(place: Run) -> None:
    """Say what there is to say, and where the page lies."""
    found = analyse(place)
    print(f"{advice(found)}\nOpen {write(place, found).resolve().as_uri()}")


def advice(report: Report) -> str:
    """One paragraph: how much there is, how good it is, and what would help most."""
    return advisor.advise(report.clips, len(report.strangers) if report.compared else None, len(report.twins))


def figure(report: Report):
    """Six histograms, as a figure of matplotlib."""
    from matplotlib.figure import Figure

    clips, made = report.clips, Figure(figsize=(11, 5.6), layout="constrained")
    made.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    levels = {"in the data": [each.level for each in clips]}
    if report.levels:
        levels["in the recording"] = report.levels
    wanted = [("length", "seconds", {"": [each.clip.seconds for each in clips]}),
              ("pace", "characters a second", {"": [each.pace for each in clips]}), ("level", "LUFS", levels),
              ("loud over quiet moments", "decibels", {"": [each.ratio for each in clips]}),
              ("pitch", "hertz", {"": [each.pitch for each in clips if each.pitch]}),
              ("unlike the usual voice", "difference of likeness", {"": [each.unlike for each in clips]})]
    for axes, (title, unit, series) in zip(made.subplots(2, 3).flat, wanted):
        for (label, values), colour in zip(series.items(), (ACCENT, GREY)):
            axes.hist(values, bins=24, color=colour, alpha=0.8, label=label)
        axes.set_title(title, color=GREY, fontsize=10)
        axes.set_xlabel(unit, color=GREY, fontsize=8)
        axes.tick_params(colors=GREY, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
    axes.axvline(quality_flags.OUTLIER_THRESHOLD, color=GREY, linewidth=1, linestyle=":")
    return made


def picture(report: Report) -> bytes:
    """The figure as a PNG, for light and dark paper."""
    buffer = BytesIO()
    figure(report).savefig(buffer, format="png", dpi=140, transparent=True)
    return buffer.getvalue()


def write(place: Run, report: Report) -> Path:
    """The page in the run's data, whole by itself: plots and clips are inside."""
    page, _ = pages.page(__file__, f"The data of {report.name}", csp=("img-src data:", "media-src data:"),
                         advice=html.escape(advice(report)), sums="\n".join(_sums(report)),
                         lists="\n".join(_lists(report)), plots=pages.data_uri(picture(report), "image/png"))
    io.write_text(place.data / FILE, page)
    return place.data / FILE


def _left(place: Run, pieces: Sequence[segment.Segment]) -> Iterator[tuple[str, Rejected]]:
    """What every stage left out, by reason."""
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for piece in (each for each in pieces if each.reason):
        kind = piece.reason.partition(":")[0]
        counts[kind] += 1
        seconds[kind] += piece.seconds
    if any(ingest.asr_models(place)):
        for entry in ingest.load_review(place).clips:
            if entry.state == DROPPED or not entry.text:
                kind = "dropped in the review" if entry.state == DROPPED else "without a text"
                counts[kind] += 1
                seconds[kind] += entry.seconds
    yield from ((f"left out: {kind}", Rejected(count, seconds[kind] / 60)) for kind, count in counts.most_common())
    if (place.data / prepare.REJECTED).is_file():
        yield "left out: could not be used", Rejected(len(io.read_rows(place.data / prepare.REJECTED)), None)


def _sums(report: Report) -> Iterator[str]:
    names = {manifest.TRAIN: "to learn from", manifest.HELD_OUT: "held out, to judge by",
             manifest.EXCLUDED: "unused beside held-out ones"}
    for split, told in names.items():
        some = [each.clip.seconds for each in report.clips if each.clip.split == split]
        if some:
            yield _sum(told, len(some), sum(some) / 60)
    for told, left in report.left.items():
        yield _sum(told, left.clips, left.minutes)


def _sum(told: str, count: int, minutes: float | None) -> str:
    return (f"<tr><th>{html.escape(told)}</th><td>{count}</td><td>{'' if minutes is None else f'{minutes:.1f}'}</td></tr>")


def _lists(report: Report) -> Iterator[str]:
    """Clips worth a person's ear, by what is unusual about them."""
    clips = report.clips
    yield _list("Unlike the usual voice", "Somebody else, a cough, or only another mood.", report.strangers,
                lambda each: f"{each.unlike:.2f} less like it")
    yield _list("Fast and slow", "The transcript may say more or less than the clip.", _far(clips, lambda each: each.pace),
                lambda each: f"{each.pace:.0f} characters a second")
    yield _list("Noisiest", "The room between the words is loudest here.", sorted(clips, key=lambda each: each.ratio),
                lambda each: f"{each.ratio:.0f} dB under the voice")
    yield _list("High and low", "A laugh, a shout, or another speaker.",
                _far([each for each in clips if each.pitch], lambda each: each.pitch), lambda each: f"{each.pitch:.0f} Hz")
    said = {each.clip.id: each for each in clips}
    yield _list("Said twice", "Both stay in the data; one is enough.", [said[later.id] for _, later in report.twins],
                lambda each: "like another clip")
    listed = [(path, piece.reason, f"{piece.start:.0f} to {piece.end:.0f} s", f"{path.parent.parent.name}/{path.name}")
              for path, piece in report.rejected]
    more = f" The first {MOST} of {len(listed)}; the others lie in the run's segments." * (len(listed) > MOST)
    yield _section("Left out", f"Pieces of the recordings that became no clips.{more}", listed[:MOST])
    yield _section("Could not be used", "Clips of the table.", [
        (None, row["reason"], f"row {row['row']}", row["file"]) for row in report.refused[:MOST]])


def _far(clips: Sequence[AudioStats], measure: Callable[[AudioStats], float]) -> list[AudioStats]:
    """The clips farthest from the middle, as a ratio."""
    middle = statistics.median([measure(each) for each in clips] or [1.0])
    return sorted(clips, key=lambda each: -max(measure(each) / middle, middle / max(measure(each), 1e-6)))


def _list(title: str, why: str, clips: Sequence[AudioStats], told: Callable[[AudioStats], str]) -> str:
    return _section(title, why, [(each.clip.audio, each.clip.text, told(each), each.clip.file) for each in clips[:LISTED]])


def _section(title: str, why: str, rows: Sequence[tuple[Path | None, str, str, str]]) -> str:
    """Players with what is said, or what is to be said, beside them; nothing where there are none."""
    if not rows:
        return ""
    items = []
    for path, *told in rows:
        words, note, file = map(html.escape, told)
        items.append(f'<li>{_player(path) if path else ""}<p dir="auto">{words}</p><small>{note}<br>{file}</small></li>')
    return f'<h2>{title}</h2><p class="why">{why}</p><ul class="clips">{"".join(items)}</ul>'


def _player(path: Path) -> str:
    try:
        sound = pages.data_uri(*audio.encode_lossy(audio.read(path, SAMPLE_RATE), SAMPLE_RATE))
    except KitError:  # a piece may have been left out because it is silent
        return "<audio></audio>"
    return f'<audio controls preload="none" src="{sound}"></audio>'
