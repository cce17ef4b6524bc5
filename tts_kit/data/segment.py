"""Long recordings -> clips of a sentence or two: cut inside silence only, at one loudness, every piece accounted for.

In goes a sound file of any length; out come `clips/` and `rejected/` in a folder of its own, and `pieces.jsonl`, which says
of each piece where it was, what was measured, and why it was left out if it was.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, io
from tts_kit.data import vad
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.vad import STEP, VadTrack
from tts_kit.errors import KitError

PIECES = "pieces.jsonl"
LEAD, TAIL = 0.1, 0.25
"""Seconds of room before and after the voice."""
LONGEST = vad.LONGEST + LEAD + TAIL
SILENT = -100.0
"""LUFS, for what has none."""
FADE = 0.005
MEASURED = 120
"""Seconds of speech by which the loudness of a recording is measured."""
BUMP = 2.0
"""Times the usual peak from which on a piece's peak has no say in how loud the others become."""
LEAST_RATIO = 8.0
"""Decibels between speech and room under which a piece is left out."""
CUT_WORD, OVER_THE_ROOM = 15.0, 6.0
"""Decibels: an edge that is not so far under the speech beside it may have cut a word, unless it is as quiet as the room."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording that became a clip, or the reason why it did not."""
    file: str
    """The clip, under the recording's folder."""
    begin: float
    """Seconds into the recording; the clip is exactly what lies between, faded at its ends."""
    end: float
    ratio: float
    """Decibels of the speech over the room."""
    edge: float
    """Decibels of the speech over the louder of the two edges; small where a word may have been cut."""
    clipped: float
    """Share of samples at full scale."""
    level: float
    """Loudness in the recording, in LUFS."""
    reason: str = ""
    """Why it was left out."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @property
    def may_cut_a_word(self) -> bool:
        return self.edge < CUT_WORD and self.ratio - self.edge > OVER_THE_ROOM


def segment_recording(path: str | Path, folder: str | Path) -> list[Segment]:
    """The clips of one recording in a folder of its own under `folder`; what was cut before is used again."""
    path = Path(path)
    place, told = segment_folder(path, folder), _identity(path)
    if (place / PIECES).is_file():
        return read_segments(place)
    with tqdm(desc=f"listening to {path.name}", unit="s", bar_format="{desc}: {n:.0f} s [{elapsed}]") as bar:
        heard = vad.detect_speech(_counted(audio.read_blocks(path, vad.RATE), vad.RATE, bar))
    planned = plan(heard)
    if not planned:
        raise KitError(f"{path} holds {heard.seconds:.0f} s and nobody speaks in it. Give a recording of one voice.")
    with io.atomic_folder(place) as beside:
        made = list(_written(path, planned, heard, beside))
        io.write_rows(beside / PIECES, [told, *(dataclasses.asdict(piece) for piece in made)])
        if _identity(path) != told:
            raise KitError(f"{path} has changed while it was read. Wait until it is finished, and cut it then.")
    return made


def segment_folder(path: Path, folder: str | Path) -> Path:
    """The folder under `folder` that is a recording's own: of two with one name the second gets a number."""
    told = _identity(path)
    for number in itertools.count(1):
        place = Path(folder) / (name_of(path) + f"-{number}" * (number > 1))
        if not (place / PIECES).is_file():
            return place
        before = {**recording_identity(place)}
        where = before.pop("path", "")
        if before == {name: value for name, value in told.items() if name != "path"}:
            return place
        if where == told["path"]:
            raise KitError(f"{place} was cut from another {path.name}, or with other settings. Move it away, or give the new "
                          "recording another name.")


def segment_folders(folder: Path) -> list[Path]:
    """The folders of all recordings that were cut into `folder`."""
    return sorted(path.parent for path in Path(folder).glob(f"*/{PIECES}"))


def recording_identity(place: Path) -> dict:
    """What a folder of pieces was cut from."""
    first, *_ = io.read_rows(place / PIECES)
    return first


def read_segments(folder: Path) -> list[Segment]:
    """What became of a recording that was cut into `folder`."""
    return [Segment(**row) for row in io.read_rows(folder / PIECES)[1:]]


def plan(heard: VadTrack) -> list[tuple[int, int, int, int]]:
    """(begin, voice begins, voice ends, end) of each clip in steps; neighbours never overlap."""
    stretches = vad.speech_segments(heard)
    clipped = [heard.full[begin:end].mean() > vad.MOST_CLIPPED for begin, end in stretches]
    clips = [(stretches[first][0], stretches[last][1]) for first, last in vad.merge_segments(stretches, clipped)]
    borders = [0, *(vad.lowest_energy_frame(heard, before[1], after[0]) for before, after in itertools.pairwise(clips)),
               len(heard.levels)]
    lead, tail = round(LEAD / STEP), round(TAIL / STEP)
    return [(max(border, begin - lead), begin, end, min(end + tail, following))
            for (begin, end), (border, following) in zip(clips, itertools.pairwise(borders))]


def name_of(path: Path) -> str:
    """A folder's name for a recording: its own, cleaned, with four letters that tell apart what cleaning made alike."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60] or "recording"
    return stem if stem == path.stem else f"{stem}-{hashlib.sha256(path.name.encode()).hexdigest()[:4]}"


def summary(found: Sequence[Segment]) -> str:
    """One line: what was kept and what was not, and why."""
    kept = [piece for piece in found if not piece.reason]
    left = [piece for piece in found if piece.reason]
    line = f"{len(kept)} clips, {sum(piece.seconds for piece in kept) / 60:.1f} minutes"
    if not left:
        return line
    kinds: dict[str, list[Segment]] = {}
    for piece in left:
        kinds.setdefault(piece.reason.partition(":")[0], []).append(piece)
    told = "; ".join(f"{len(some)} {kind}" for kind, some in kinds.items())
    return f"{line}; left out: {told} ({sum(piece.seconds for piece in left) / 60:.1f} minutes)"


def _identity(path: Path) -> dict:
    """What the pieces are made of; another file or other limits make others."""
    if not path.is_file():
        raise KitError(f"{path} is missing: no such file. Check the name.")
    settings = (LEAD, TAIL, LEAST_RATIO, vad.MOST_CLIPPED, vad.SHORTEST, vad.GOOD, vad.LONG, vad.LONGEST)
    return {"recording": path.name, "path": str(path.resolve()), "bytes": path.stat().st_size,
            "modified": path.stat().st_mtime_ns, "settings": list(settings)}


def _written(path: Path, planned: Sequence[tuple[int, int, int, int]], heard: VadTrack, folder: Path) -> Iterator[Segment]:
    """Every planned clip measured and on disk, kept or rejected; of one that is too long only the beginning."""
    spans = [(begin * STEP, min(end * STEP, begin * STEP + LONGEST + 1)) for begin, *_, end in planned]
    short = [span for span in spans if span[1] - span[0] <= LONGEST] or spans
    factor = min(audio.gain(_loudness(path, short)), audio.MAX_TRUE_PEAK / _peak(path, short))
    clips = tqdm(zip(planned, _spans(path, spans)), desc="writing clips", unit="clip", total=len(planned))
    for number, ((begin, first, last, end), samples) in enumerate(clips, 1):
        clipped = float((np.abs(samples) >= vad.FULL_SCALE).mean()) if len(samples) else 0.0
        speech = _power(heard.levels[first:last])
        edges = max(_power(heard.levels[begin:begin + 2]), _power(heard.levels[max(begin, end - 2):end]))
        piece = Segment("", round(begin * STEP, 2), round(end * STEP, 2), round(speech - heard.floor, 1),
                      round(speech - edges, 1), round(clipped, 5), round(max(SILENT, audio.loudness(samples, SAMPLE_RATE)), 1))
        reason = _reason(piece)
        file = f"{'rejected' if reason else 'clips'}/{number:05d}.flac"
        audio.write(folder / file, _faded(audio.amplify(samples, factor)), SAMPLE_RATE)
        yield dataclasses.replace(piece, file=file, reason=reason)


def _reason(piece: Segment) -> str:
    if piece.seconds - LEAD - TAIL < vad.SHORTEST - 0.25:
        return f"too short: {piece.seconds:.1f} s, wanted {vad.SHORTEST:g} s or more"
    if piece.seconds > LONGEST:
        return f"too long: {piece.seconds:.1f} s without a pause to cut in, wanted {LONGEST:g} s at most"
    if piece.clipped > vad.MOST_CLIPPED:
        return f"clipped: {piece.clipped:.2%} of it at full scale, wanted {vad.MOST_CLIPPED:.1%} at most"
    if piece.ratio < LEAST_RATIO:
        return f"noisy: speech {piece.ratio:.0f} dB over the room, wanted {LEAST_RATIO:g} dB or more"
    return ""


def _loudness(path: Path, spans: Sequence[tuple[float, float]]) -> float:
    """Loudness of the speech of a recording, by about two minutes of it spread evenly."""
    wanted = max(1, round(MEASURED / (sum(end - begin for begin, end in spans) / len(spans))))
    some = spans[::-(-len(spans) // wanted)]
    return audio.loudness(np.concatenate(list(_spans(path, some))), SAMPLE_RATE)


def _peak(path: Path, spans: Sequence[tuple[float, float]]) -> float:
    """The highest true peak of a recording's speech; a bump that is far above the usual peaks is lowered by itself."""
    peaks = np.array([audio.true_peak(samples) for samples in _spans(path, spans)])
    return float(peaks[peaks <= BUMP * np.median(peaks)].max()) or 1.0


def _spans(path: Path, spans: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """(samples,) at 24 kHz of every span, in their order; a few blocks are in memory at a time."""
    blocks, left, start = audio.read_blocks(path, SAMPLE_RATE), np.zeros(0, np.float32), 0
    for begin, end in spans:
        first, last = round(begin * SAMPLE_RATE), round(end * SAMPLE_RATE)
        while start + len(left) < last and (block := next(blocks, None)) is not None:
            drop = min(max(0, first - start), len(left))
            left, start = np.concatenate([left[drop:], block]), start + drop
        yield left[first - start:last - start].copy()


def _counted(blocks: Iterator[np.ndarray], rate: int, bar: tqdm) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block
        bar.update(len(block) / rate)


def _power(levels: np.ndarray) -> float:
    """Level of several steps together, in dB."""
    return float(10 * np.log10(np.mean(10 ** (levels.astype(np.float64) / 10)))) if len(levels) else -100.0


def _faded(samples: np.ndarray) -> np.ndarray:
    slope = np.linspace(0, 1, max(1, min(round(FADE * SAMPLE_RATE), len(samples) // 2)), dtype=np.float32)
    faded = samples.copy()
    faded[:len(slope)] *= slope
    faded[len(faded) - len(slope):] *= slope[::-1]
    return faded
