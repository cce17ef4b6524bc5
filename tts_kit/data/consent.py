"""Who allowed a model of this voice, in which words, and for which recordings; asked for once, and kept beside them."""

import dataclasses
import datetime
import hashlib
import os
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit.data import examples, manifest, prepare
from tts_kit.errors import KitError
from tts_kit.io import read_json, write_json
from tts_kit.run import CONSENT, Run

FILE = CONSENT
KINDS = {"own": "my own voice", "written": "written permission of the speaker",
         "licensed": "recordings in the public domain or under a licence that allows it", "synthetic": "nobody's voice: a "
         "machine's"}
PROPOSED = {"own": "I am the speaker of these recordings. I allow a model of my voice to be made from them and to be used.",
            "written": "The speaker has allowed me in writing to make a model of this voice from these recordings.",
            "licensed": "These recordings are published under a licence that allows a model of this voice: ",
            "synthetic": "No person spoke these clips; they were made by "}
LONGEST = {"who": 200, "statement": 4_000}
BREAKS = {"who": "", "statement": "\n\t"}
JOINERS = "\u200c\u200d\u200e\u200f"
"""Invisible, and part of how Persian, Hindi, Hebrew and Arabic are written."""


@dataclass(frozen=True)
class Consent:
    who: str
    """The speaker, or the system that spoke; as the card will name them."""
    kind: str
    """One of KINDS."""
    statement: str
    """Word for word."""
    when: str
    """Date and time it was recorded, with the zone."""
    clips: int
    seconds: float
    sha256: str
    """Of the clips it covers: of the sorted list of their own SHA-256, one a line."""

    def __str__(self) -> str:
        return (f"{self.who} ({KINDS[self.kind]}), {self.when[:10]}, for {self.clips} clips of {self.seconds / 60:.1f} "
                f"minutes: \"{self.statement}\"")


def read(folder: str | Path) -> Consent | None:
    """The record in a folder (a run's, an adapter's), if there is one; a broken one is refused."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    remedy = "Repair it, or delete it and record the consent again: tts-kit consent --run NAME"
    found = read_json(path, remedy)
    wanted = {field.name: field.type for field in dataclasses.fields(Consent)}
    if set(found) != set(wanted) or not all(isinstance(found[name], (int, float) if kind is float else kind)
                                            for name, kind in wanted.items()):
        raise KitError(f"{path} is no record of consent: wanted {', '.join(wanted)}. {remedy}")
    _check(found["who"], found["kind"], found["statement"])
    return Consent(**found)


def record(run: Run, who: str, kind: str, statement: str) -> Consent:
    """Record it for the clips that the run holds now, beside them and beside the adapter if there is one; what is recorded
    already keeps its date."""
    who, statement = who.strip(), statement.strip().replace("\r\n", "\n")
    _check(who, kind, statement)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = Consent(who, kind, statement, now, *_covered(run))
    if (old := read(run.folder)) and dataclasses.replace(old, when=now) == made:
        made = old
    for folder in (run.folder, *[run.adapter] * run.adapter.is_dir()):
        write(made, folder)
    return made


def write(made: Consent, folder: str | Path) -> None:
    """Into a folder that the voice travels in."""
    write_json(Path(folder) / FILE, dataclasses.asdict(made))


def for_run(run: Run) -> Consent | None:
    """The run's record, or the one that came with its adapter; a run on an example of the kit's gets that example's own."""
    return read(run.folder) or read(run.adapter) or _record_example(run)


def problem(run: Run) -> str:
    """What is wrong with the consent to a run's voice, and what to do; nothing where a record covers its very clips."""
    remedy = f"Record it: tts-kit consent --run {run.name}"
    if (found := for_run(run)) is None:
        return f"No consent to the voice of run {run.name} is recorded. {remedy}"
    if run.data.is_dir() and (now := _covered(run))[2] != found.sha256:
        return (f"The recordings of run {run.name} have changed since {found.who} consented on {found.when[:10]}: then "
                f"{found.clips} clips of {found.seconds / 60:.1f} minutes, now {now[0]} of {now[1] / 60:.1f}, not all the "
                f"same. {remedy}")
    return ""


def audio_digest(run: Run) -> str:
    """The sum of the clips that the run's data folder holds, as a record has it; empty where they are not all there."""
    try:
        return _covered(run)[2]
    except KitError:  # codes are enough to train from
        return ""


def warn_if_missing(run: Run, thorough: bool = False, adapter: str | Path = "") -> None:
    """One line where no consent is recorded, with the run or with an `adapter` from elsewhere, for what goes on without;
    `thorough` looks at every clip too."""
    if (adapter and read(adapter)) or not (run.data.is_dir() or run.adapter.is_dir() or adapter):
        return
    wrong = problem(run) if thorough else f"No consent to the voice of run {run.name} is recorded." * (for_run(run) is None)
    if wrong:
        print(f"{wrong.partition(' Record it')[0]} Clone only voices whose owner agreed, and record it before you share "
              f"the voice: tts-kit consent --run {run.name}")


def attach(run: Run, folder: str | Path) -> Consent | None:
    """Put the run's record, if one covers its clips, into a folder that the voice travels in."""
    if problem(run):
        return None
    found = for_run(run)
    write(found, folder)
    return found


def ask(run: Run, who: str = "", kind: str = "", statement: str = "") -> Consent:
    """The record that is there and fits, or a new one out of what is given and what a person answers at the terminal."""
    manifest.read(run.data)
    given = {"who": who, "kind": kind, "statement": statement}
    if not any(given.values()):
        if not problem(run):
            return for_run(run)
        if made := _record_example(run):
            return made
    lacking = [f"--{name}" for name, value in given.items() if not value]
    if lacking and not sys.stdin.isatty():
        proposal = f" A statement could be: \"{PROPOSED[kind].strip()}\"" if kind in PROPOSED and not statement else ""
        raise KitError(f"{', '.join(lacking)} is missing, and there is no terminal to ask at. Give --who NAME, --kind "
                      f"{'|'.join(KINDS)} and --statement \"WORD FOR WORD\".{proposal}")
    try:
        return record(run, *_answers(run, **given))
    except EOFError as error:
        raise KitError("The questions were not answered; nothing was recorded.") from error


def _answers(run: Run, who: str, kind: str, statement: str) -> tuple[str, str, str]:
    if not (who and kind and statement):
        print(f"Whose voice is in run {run.name}, and who allowed a model of it? The answer travels with the voice.")
    if not kind:
        listed = "\n".join(f"  {name}: {meaning}" for name, meaning in KINDS.items())
        kind = input(f"{listed}\nWhich of these? ").strip()
    if kind not in KINDS:
        _check("somebody", kind, "something")
    who = who or input("Who gave it (name of the speaker, or of the system that spoke)? ")
    if not statement:
        proposed = PROPOSED[kind]
        asked = f"In which words, exactly?\n  Enter alone takes: {proposed}\n" if proposed.endswith(".") else (
            f"In which words, exactly? For example:\n  {proposed}...\n")
        statement = input(asked) or (proposed if proposed.endswith(".") else "")
    return who, kind, statement


def _check(who: str, kind: str, statement: str) -> None:
    if kind not in KINDS:
        listed = ", ".join(f"{name} ({meaning})" for name, meaning in KINDS.items())
        raise KitError(f"{kind!r} is no kind of consent; wanted one of: {listed}.")
    for name, value in (("who", who), ("statement", statement)):
        if not any(character.isalnum() for character in value):
            raise KitError(f"A consent needs {name}: {value!r} says nothing. Give --{name}.")
        if len(value) > LONGEST[name]:
            raise KitError(f"{name} has {len(value)} characters; wanted at most {LONGEST[name]}. Shorten it.")
        if hidden := "".join(each for each in value if each not in BREAKS[name] + JOINERS
                             and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")):
            raise KitError(f"{name} holds {hidden[:8]!a}, which controls a terminal or turns the order of words; wanted "
                          f"words alone{', in one line' * (name == 'who')}. Leave it out.")


def _covered(run: Run) -> tuple[int, float, str]:
    """Clips, seconds and the SHA-256 of what the run's data folder holds."""
    clips = manifest.read(run.data)
    bar = tqdm(clips, desc="looking at clips", unit="clip", leave=False, disable=len(clips) < 1_000)
    sums = sorted(hashlib.sha256(each.audio.read_bytes()).hexdigest() for each in bar)
    whole = hashlib.sha256("".join(f"{each}\n" for each in sums).encode()).hexdigest()
    return len(clips), round(sum(each.seconds for each in clips), 3), whole


def _record_example(run: Run) -> Consent | None:
    """The record that an example of the kit's brings along; None for any other source."""
    if not (run.data / prepare.ORIGIN).is_file():
        return None
    source = read_json(run.data / prepare.ORIGIN, f"Delete {run.data} and make it again.").get("source")
    own = {os.path.realpath(place / name): told for place, name, told in _EXAMPLES}
    others = prepare.held_out_source(run.data)
    if source not in own or others not in ("", os.path.realpath(examples.SAMPLES / "held_out")):
        return None
    return record(run, *own[source])


_EXAMPLES = (
    (examples.SAMPLES, "voice", (
        "Kokoro-82M, voice bf_emma", "synthetic", "These are synthetic voices: no person spoke these clips, and they are "
        "nobody's voice. They were generated with Kokoro-82M (Apache-2.0), voice bf_emma.")),
    (examples.CACHE, "voice", ("Allison Smith (theivrvoice.com)", "licensed", " ".join(examples.LICENCE.split()))))
"""Where an example's clips are, and who says what of them."""
