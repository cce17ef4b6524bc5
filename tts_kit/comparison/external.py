"""Other systems as arms: they speak in environments of their own, or their files are given in a folder."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from tts_kit import audio, device, text
from tts_kit.comparison import page
from tts_kit.comparison.external_systems import SYSTEMS, System, process
from tts_kit.data import manifest, table
from tts_kit.errors import KitError
from tts_kit.io import read_json, write_bytes, write_json
from tts_kit.speech.speak import Reference

FOLDER = "folder:"
TABLE = "metadata.csv"
SPOKEN = "spoken.json"
"""Beside the wavs: what each of them was made of."""
REFERENCE_RATE = 44_100
"""What the one system reads that does not resample; the others do."""
LONGEST_SECONDS = 120.0
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


class ExternalRequest(NamedTuple):
    sentence: int
    text: str
    seed: int


class ExternalClip(NamedTuple):
    sentence: int
    seed: int | None
    """The take's number, or None where the sentence has one take only."""
    path: Path | None
    reason: str = ""
    """Why there is no path."""


@dataclass(frozen=True)
class ExternalSystem:
    name: str
    """Of the arm."""
    folder: Path | None = None
    """Where its files are, if they are given."""

    @property
    def system(self) -> System | None:
        return None if self.folder else SYSTEMS[self.name]

    @property
    def meaning(self) -> str:
        """What it is, for a page."""
        if self.folder:
            return "Clips that were given."
        voice = "with the reference" if self.system.clones else "in a voice of its own"
        return f"Another system: {self.system.packages[0]}, {voice}."


def parse(words: str) -> ExternalSystem:
    """A system's name, or folder:NAME (a folder of that name) or folder:NAME=PATH, as a baseline."""
    if not words.startswith(FOLDER):
        if words not in SYSTEMS:
            raise KitError(f"{words[:60]!r} is no system that is known here: {', '.join(SYSTEMS)}. Choose one of them, or "
                          "give its files: folder:NAME=PATH.")
        return ExternalSystem(words)
    name, _, path = words.removeprefix(FOLDER).partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", name) or name in {*page.ARMS, *SYSTEMS}:
        raise KitError(f"{words[:60]!r} calls an arm {name[:40]!r}; wanted folder:NAME=PATH with a name of 1 to 32 letters, "
                      "digits, '.', '_' or '-' that no other arm has. Choose another name.")
    return ExternalSystem(name, Path(path or name).expanduser())


def describe(name: str) -> str:
    """What is about to be installed, on which terms, in one line."""
    system = SYSTEMS[name]
    voice = "clones the reference" if system.clones else "speaks with a voice of its own"
    return (f"{name}: {', '.join(system.packages)}; weights about {system.gigabytes:g} GB, {system.licence}; {voice}"
            f"{'' if system.draws else ', in the same way with every seed'}.")


def available(name: str) -> str:
    """Why this machine cannot try the system; nothing where it can."""
    system = SYSTEMS[name]
    if system.agreement and process.environment(system).get(system.agreement) != "1":
        return f"its licence binds you ({system.licence}). If you accept it, set {system.agreement}=1"
    if not process.uv():
        return "it runs in an environment that uv makes, and uv is missing. Install it: pip install uv"
    if system.needs_gpu and device.choose().device != "cuda":
        return "it needs an NVIDIA GPU, and torch sees none here"
    return ""


def synthesize(baseline: ExternalSystem, lines: Sequence[ExternalRequest], reference: Reference, folder: Path,
          limits: tuple[float, float] = process.LIMITS) -> Iterator[tuple[int, Path | None, str]]:
    """Make folder/NNN-SEED.wav of each line that has none; gives (place in lines, wav, "") or (place, None, reason)."""
    if baseline.folder:
        raise KitError(f"{baseline.name} is a folder of files that were spoken before; ask from_folder for them.")
    lines = [ExternalRequest(sentence, text.normalize(words), seed) for sentence, words, seed in lines]
    reference = Reference(reference.path, text.normalize(reference.text))
    marks = _marks(baseline, lines, reference)
    paths = [folder / f"{line.sentence:03d}-{line.seed}.wav" for line in lines]
    made = read_json(folder / SPOKEN, f"Delete {folder}.") if (folder / SPOKEN).exists() else {}
    todo: dict[tuple, list[int]] = {}
    for place, (line, path) in enumerate(zip(lines, paths)):
        if made.get(path.name) == marks[place] and path.is_file():
            yield place, path, ""
        else:  # a system without chance says a sentence once for all its seeds
            todo.setdefault((line.text, line.seed if baseline.system.draws else 0), []).append(place)
    if reason := todo and available(baseline.name):
        yield from ((place, None, reason) for places in todo.values() for place in places)
        return
    for asked, content, reason in _said(baseline, list(todo), reference, limits):
        for place in todo[asked]:
            if content:
                write_bytes(paths[place], content)
                made[paths[place].name] = marks[place]
                write_json(folder / SPOKEN, made)
            yield place, paths[place] if content else None, reason


def from_folder(name: str, folder: Path, sentences: Sequence[str]) -> list[ExternalClip]:
    """The files of another system, matched by metadata.csv or by their names (NNN.wav, NNN-TAKE.wav), none left out."""
    if not folder.is_dir():
        raise KitError(f"{name}: {folder} is no folder. Wanted one with {TABLE} (file_name,text), or with files called by "
                      "their sentence's number: 001.wav, or 001-1.wav and 001-2.wav for two takes.")
    found, odd = _by_table(folder, sentences) if (folder / TABLE).is_file() else _by_name(folder, len(sentences))
    if odd:
        print(f"{name}: {len(odd)} entries of {folder} fit no sentence and are left out: {', '.join(odd[:5])}"
              f"{', ...' if len(odd) > 5 else ''}")
    if not found:
        raise KitError(f"{name}: nothing in {folder} fits one of the {len(sentences)} sentences. Wanted {TABLE} with their "
                      f"exact texts, or files called 001.wav to {len(sentences):03d}.wav.")
    return [given for number in range(1, len(sentences) + 1) for given in _takes(number, found.get(number, {}))]


def _marks(baseline: ExternalSystem, lines: Sequence[ExternalRequest], reference: Reference) -> list[str]:
    """What each clip is made of, in short: another text, reference or version makes another clip."""
    system = baseline.system
    snippet = (process.RUNNER.parent / system.snippet).read_bytes()
    common = [baseline.name, system.packages, hashlib.sha256(snippet).hexdigest()]
    if system.clones:
        common += [hashlib.sha256(Path(reference.path).read_bytes()).hexdigest(), reference.text]
    return [hashlib.sha256(json.dumps([common, line.text, line.seed]).encode()).hexdigest()[:16] for line in lines]


def _said(baseline: ExternalSystem, asked: Sequence[tuple], reference: Reference,
          limits: tuple[float, float]) -> Iterator[tuple[tuple, bytes, str]]:
    """(what was asked, the bytes of its wav, reason why there are none) for each (text, seed)."""
    if not asked:
        return
    print(describe(baseline.name))
    system, said = baseline.system, 0
    with tempfile.TemporaryDirectory(prefix="tts_kit-") as scratch, tqdm(total=len(asked), unit="clip") as bar:
        bar.set_description(f"{baseline.name}: installing")
        heard = Path(scratch) / "reference.wav"
        audio.write(heard, audio.read(reference.path, REFERENCE_RATE), REFERENCE_RATE)
        job = {"snippet": str(process.RUNNER.parent / system.snippet), "reference": str(heard), "words": reference.text,
               "lines": asked}
        try:
            for answer in process.answers(process.command(system), process.environment(system), Path(scratch), job, limits):
                if "step" in answer:
                    bar.set_description(f"{baseline.name}: {answer['step']}")
                    continue
                yield asked[said], *_checked(Path(scratch) / f"{said}.wav", answer["problem"])
                said += 1
                bar.update()
        except KitError as problem:
            yield from ((each, b"", str(problem)) for each in asked[said:])


def _checked(path: Path, reason: str) -> tuple[bytes, str]:
    """The wav's bytes once they are known to be speech, or why they are not."""
    if reason:
        return b"", reason[:process.LONGEST_REASON]
    content = path.read_bytes() if path.is_file() else b""
    try:
        audio.read(content, audio.probe(content, "its speech")[0], LONGEST_SECONDS, "its speech")
    except KitError as problem:
        return b"", str(problem)
    return content, ""


def _by_name(folder: Path, count: int) -> tuple[dict[int, dict], list[str]]:
    """({sentence: {take or None: path}}, names that fit none) by the files' names."""
    found, odd = {}, []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        parts = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,9}))?", path.stem)
        number, take = (int(parts[1]), int(parts[2]) if parts[2] else None) if parts else (0, None)
        fits = path.suffix.lower() in SUFFIXES and 1 <= number <= count and take not in found.get(number, {})
        if not fits or manifest.resolve_inside(folder, path.name) is None:
            odd.append(repr(path.name))
        else:
            found.setdefault(number, {})[take] = path
    return found, odd


def _by_table(folder: Path, sentences: Sequence[str]) -> tuple[dict[int, dict], list[str]]:
    """The same by the texts of metadata.csv; rows with the same text are takes, in their order."""
    wanted, found, odd = [_plain(each) for each in sentences], {}, []
    for row in table.rows(folder / TABLE):
        numbers = [] if row.problem else [number for number, each in enumerate(wanted, 1) if each == _plain(row.text)]
        if not numbers:
            odd.append(f"row {row.number} ({row.problem or repr(row.text[:40])})")
        for number in numbers:
            takes = found.setdefault(number, {})
            takes[len(takes) + 1] = row.sound.path
    return {number: takes if len(takes) > 1 else {None: takes[1]} for number, takes in found.items()}, odd


def _plain(words: str) -> str:
    """A text as it is compared: without its case and its last full stop."""
    try:
        return text.normalize(words).casefold().rstrip(".")
    except KitError:
        return ""


def _takes(number: int, found: dict[int | None, Path]) -> list[ExternalClip]:
    """The files of one sentence in order; one without a number among others gets the next free one."""
    if not found:
        return [ExternalClip(number, None, None, "missing: there is no file for this sentence")]
    if None in found and len(found) > 1:
        numbered = {take: path for take, path in found.items() if take is not None}
        found = {**numbered, max(numbered) + 1: found[None]}
    return [_readable(ExternalClip(number, take, path)) for take, path in sorted(found.items(), key=lambda each: each[0] or 0)]


def _readable(given: ExternalClip) -> ExternalClip:
    try:
        audio.read(given.path, audio.probe(given.path, given.path.name)[0], LONGEST_SECONDS, given.path.name)
    except KitError as problem:
        return ExternalClip(given.sentence, given.seed, None, str(problem))
    return given
