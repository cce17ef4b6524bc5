"""The speaker's consent: who allowed a model of this voice, in which words, for which clips; it travels with the voice."""

import dataclasses
import datetime
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from tts_kit.data import examples, manifest
from tts_kit.errors import KitError
from tts_kit.io import read_json, write_json
from tts_kit.run import CONSENT as FILE
from tts_kit.run import SAMPLE_HELD_OUT, SAMPLE_VOICE, Run, read_inputs

KINDS = {"own": "my own voice", "written": "written permission of the speaker",
         "licensed": "recordings in the public domain or under a licence that allows it",
         "synthetic": "a synthetic voice: nobody's"}
PROPOSALS = {"own": "I am the speaker of these recordings. I allow a model of my voice to be made from them and to be used.",
             "written": "The speaker has allowed me in writing to make a model of this voice from these recordings."}
MAX_CHARACTERS = 4_000
ALLOWED_CONTROLS = "\n\t\u200c\u200d\u200e\u200f"
"""Lines, and the invisible marks with which Persian, Hindi, Hebrew and Arabic are written."""


@dataclass(frozen=True)
class Consent:
    who: str  # the speaker, or the synthetic voice; the model card names them so
    kind: str  # one of KINDS
    statement: str  # word for word
    when: str  # date, time and zone of the record
    clips: int
    seconds: float
    sha256: str  # identifies the clips it covers: `manifest.audio_digest` of them

    def __str__(self) -> str:
        return (f"{self.who} ({KINDS[self.kind]}), {self.when[:10]}, for {self.clips} clips of {self.seconds / 60:.1f} "
                f"minutes: \"{self.statement}\"")


def read(folder: str | Path) -> Consent | None:
    """Return the record in the folder of a run or adapter, if there is one; a broken one is refused."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    remedy = "Repair it, or delete it and record the consent again: tts-kit consent --run NAME"
    try:
        consent = Consent(**read_json(path, remedy))
        _check(consent.who, consent.kind, consent.statement)
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Consent))
        raise KitError(f"{path} is no record of consent: wanted {fields}. {remedy}") from error
    return consent


def record(run: Run, who: str, kind: str, statement: str) -> Consent:
    """Record consent for the run's clips, in the run and with its adapter; what is recorded already keeps its date."""
    who, statement = who.strip(), statement.strip().replace("\r\n", "\n")
    _check(who, kind, statement)
    utterances = manifest.read(run.data)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    seconds = round(sum(utterance.seconds for utterance in utterances), 3)
    consent = Consent(who, kind, statement, now, len(utterances), seconds, manifest.audio_digest(utterances))
    if (old := read(run.folder)) and dataclasses.replace(old, when=now) == consent:
        consent = old
    for folder in (run.folder, *[run.adapter] * run.adapter.is_dir()):
        write(consent, folder)
    return consent


def write(consent: Consent, folder: str | Path) -> None:
    """Write the record into a folder that the voice travels in."""
    write_json(Path(folder) / FILE, dataclasses.asdict(consent))


def for_run(run: Run) -> Consent | None:
    """Return the run's record, or the one that came with its adapter; a run on an example voice gets that voice's."""
    return read(run.folder) or read(run.adapter) or _record_example(run)


def problem(run: Run) -> str:
    """Return what is wrong with the consent to a run's voice and what to do; empty if a record covers its clips."""
    remedy = f"Record it: tts-kit consent --run {run.name}"
    if (consent := for_run(run)) is None:
        return f"No consent to the voice of run {run.name} is recorded. {remedy}"
    if run.data.is_dir() and manifest.audio_digest(manifest.read(run.data)) != consent.sha256:
        return (f"The recordings of run {run.name} have changed since {consent.who} consented on {consent.when[:10]} for "
                f"{consent.clips} clips of {consent.seconds / 60:.1f} minutes. {remedy}")
    return ""


def audio_digest(run: Run) -> str:
    """Return what identifies the run's clips, as a record has it; empty if it has only codes."""
    return manifest.audio_digest(manifest.read(run.data)) if (run.data / manifest.MANIFEST).is_file() else ""


def warn_if_missing(run: Run, thorough: bool = False, adapter: str | Path = "") -> None:
    """Print a line if neither the run nor an `adapter` from elsewhere has a record; `thorough` compares the clips too."""
    if (adapter and read(adapter)) or not (run.data.is_dir() or run.adapter.is_dir() or adapter):
        return
    reason = problem(run) if thorough else f"No consent to the voice of run {run.name} is recorded." * (for_run(run) is None)
    if reason:
        print(f"{reason.partition(' Record it')[0]} Clone only voices whose owner agreed, and record it before you share "
              f"the voice: tts-kit consent --run {run.name}")


def attach(run: Run, folder: str | Path) -> Consent | None:
    """Write the run's record, if one covers its clips, into a folder that the voice travels in."""
    if problem(run):
        return None
    consent = for_run(run)
    write(consent, folder)
    return consent


def ensure(run: Run, who: str = "", kind: str = "", statement: str = "") -> Consent:
    """Return the record if it is valid and nothing else is given, or make one from the arguments."""
    manifest.read(run.data)
    given = {"who": who, "kind": kind, "statement": statement}
    if not any(given.values()) and not problem(run):
        return for_run(run)
    if missing := [f"--{name}" for name, value in given.items() if not value]:
        proposal = f" A statement could be: \"{PROPOSALS[kind]}\"" if kind in PROPOSALS else ""
        raise KitError(f"{', '.join(missing)} is missing. Give --who NAME (of the speaker, or of the synthetic voice), "
                       f"--kind {'|'.join(KINDS)} and --statement \"WORD FOR WORD\".{proposal}")
    return record(run, who, kind, statement)


def _check(who: str, kind: str, statement: str) -> None:
    if kind not in KINDS:
        kinds = ", ".join(f"{name} ({meaning})" for name, meaning in KINDS.items())
        raise KitError(f"{kind!r} is no kind of consent; wanted one of: {kinds}.")
    for name, value in (("who", who), ("statement", statement)):
        if not any(character.isalnum() for character in value):
            raise KitError(f"A consent needs {name}: {value!r} says nothing. Give --{name}.")
        if len(value) > MAX_CHARACTERS or (name == "who" and "\n" in value):
            raise KitError(f"{name} has {len(value)} characters; wanted at most {MAX_CHARACTERS}, who in one line.")
        if hidden := "".join(character for character in value if character not in ALLOWED_CONTROLS
                             and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")):
            raise KitError(f"{name} holds {hidden[:8]!a}, which controls a terminal or reorders text. Leave it out.")


def _record_example(run: Run) -> Consent | None:
    """Record the consent that an example voice brings along; None for any other source."""
    inputs = read_inputs(run.data)
    records = {
        os.path.realpath(SAMPLE_VOICE): (
            "Kokoro-82M, voice bf_emma", "synthetic", "These are synthetic voices: no person spoke these clips, and they "
            "are nobody's voice. They were generated with Kokoro-82M (Apache-2.0), voice bf_emma."),
        os.path.realpath(examples.CACHE / "voice"): (
            "Allison Smith (theivrvoice.com)", "licensed", " ".join(examples.LICENSE.split()))}
    if inputs.get("source") not in records or inputs.get("eval_source") not in ("", os.path.realpath(SAMPLE_HELD_OUT)):
        return None
    return record(run, *records[inputs["source"]])
