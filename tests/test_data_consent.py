"""Consent: asked for once, kept word for word, tied to the very clips, and wanted before a voice becomes public."""

import dataclasses
import hashlib
import json
import re
import shutil

import pytest
from test_tokens_cache import tone

from tts_kit import audio
from tts_kit.cli import main
from tts_kit.data import consent, manifest
from tts_kit.data.consent import Consent
from tts_kit.data.manifest import SAMPLE_RATE, Utterance
from tts_kit.errors import KitError
from tts_kit.model import license
from tts_kit.run import SAMPLE_DATA, SAMPLE_HELD_OUT, SAMPLE_VOICE, TINY_CSM, Run, write_inputs

STATEMENT = "I am Anna. I allow a model of my voice, \"as it is\" — für alle."
GIVEN = ["--who", "Anna Example", "--kind", "own", "--statement", STATEMENT]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with three clips, called `anna`, in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    made = Run("anna")
    clips = []
    for number in range(3):
        path = made.data / "clips" / f"{number}.flac"
        audio.write(path, tone(1.0, 200 + 50 * number), SAMPLE_RATE)
        clips.append(Utterance(str(number), path, "Hello.", "Hello.", "0", "", "monday", "train", 1.0, number, path.name,
                               hashlib.sha256(path.read_bytes()).hexdigest()))
    manifest.write(made.data, clips)
    write_inputs(made.data, source="/clips", eval_source="")
    return made


def replace_a_clip(run: Run) -> None:
    """Make the data again with another recording under the name of a clip that consent was given for."""
    path = run.data / "clips" / "1.flac"
    audio.write(path, tone(1.0, 999), SAMPLE_RATE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write(run.data, [dataclasses.replace(clip, sha256=digest) if clip.audio == path else clip
                              for clip in manifest.read(run.data)])


def test_it_is_kept_word_for_word_with_the_sum_of_the_clips(run):
    """Mistake: a statement that was tidied up, or a sum that nobody else can compute."""
    made = consent.record(run, " Anna Example ", "own", STATEMENT)
    assert consent.read(run.folder) == made == consent.for_run(run) and not consent.problem(run)
    assert (made.who, made.statement, made.clips, made.seconds) == ("Anna Example", STATEMENT, 3, 3.0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made.when)
    sums = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (run.data / "clips").iterdir())
    assert made.sha256 == hashlib.sha256("".join(f"{each}\n" for each in sums).encode()).hexdigest()
    assert [each.name for each in run.folder.iterdir() if each.name.startswith(".")] == []


def test_no_consent_and_one_for_other_clips_are_told(run):
    """Mistake: one consent, and then other recordings are slipped under it."""
    assert "No consent to the voice of run anna is recorded. Record it: tts-kit consent" in consent.problem(run)
    consent.record(run, "Anna", "own", STATEMENT)
    replace_a_clip(run)
    assert re.search("have changed since Anna consented .* for 3 clips .* minutes. Record it", consent.problem(run))
    consent.record(run, "Anna", "own", STATEMENT)
    assert consent.problem(run) == ""


def test_it_travels_with_the_voice(run, tmp_path):
    """Mistake: the adapter goes to somebody else and nobody knows whose voice it is."""
    run.adapter.mkdir()
    made = consent.record(run, "Anna", "written", STATEMENT)
    assert consent.read(run.adapter) == made, "an adapter that is there already gets it"
    (tmp_path / "away").mkdir()
    assert consent.attach(run, tmp_path / "away") == consent.read(tmp_path / "away") == made
    (run.folder / consent.FILE).unlink()
    shutil.rmtree(run.data)
    assert consent.for_run(run) == made and not consent.problem(run), "a voice that came without its clips"


def test_a_record_for_other_clips_does_not_travel(run, tmp_path):
    """Mistake: the adapter of new recordings carries the consent to the old ones."""
    consent.record(run, "Anna", "own", STATEMENT)
    replace_a_clip(run)
    assert consent.attach(run, tmp_path) is None and not (tmp_path / consent.FILE).exists()


def test_what_goes_on_without_says_one_line(run, capsys, tmp_path):
    """Mistake: training stops for want of a record, or nothing at all is said of it."""
    consent.warn_if_missing(run)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "tts-kit consent --run anna" in said and "Clone only voices" in said
    consent.record(run, "Anna", "own", STATEMENT)
    consent.attach(run, tmp_path)
    replace_a_clip(run)
    consent.warn_if_missing(run)
    consent.warn_if_missing(Run("other"), adapter=tmp_path)
    consent.warn_if_missing(Run("nothing-there"))
    assert capsys.readouterr().out == ""
    consent.warn_if_missing(run, thorough=True)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "have changed since Anna" in said


def test_the_bundled_voice_has_a_record_of_its_own(run, capsys):
    """Mistake: the demo asks for consent to a voice that is nobody's, or takes any folder for that voice."""
    write_inputs(run.data, source=str(SAMPLE_VOICE.resolve()), eval_source=str(SAMPLE_HELD_OUT.resolve()))
    consent.warn_if_missing(run)
    made = consent.read(run.folder)
    assert capsys.readouterr().out == "" and made.kind == "synthetic" and "Kokoro" in made.who
    text = " ".join((SAMPLE_DATA / "README.md").read_text(encoding="utf-8").split())
    assert made.statement.split(". ")[0] in text, "as its own page says"
    replace_a_clip(run)
    assert "have changed" in consent.problem(run), "what was put there later is not nobody's voice"
    (run.folder / consent.FILE).unlink()
    write_inputs(run.data, source=str(SAMPLE_VOICE.resolve()), eval_source="/somebody/else")
    assert consent.for_run(run) is None


@pytest.mark.parametrize(("who", "kind", "statement", "message"), [
    ("", "own", STATEMENT, "needs who"), ("Anna", "own", " ... ", "needs statement"), ("Anna", "yes", STATEMENT, "no kind"),
    ("An\x1b[2Jna", "own", STATEMENT, "controls a terminal"), ("Anna", "own", "a" * 5_000, "at most 4000"),
    ("An\u202ena", "own", STATEMENT, r"who holds '\\u202e', which .* reorders text"),
    ("Anna\nBob", "own", STATEMENT, "in one line"), ("Anna", "own", "I agree.\u2028\x07", "statement holds"),
])
def test_what_is_no_consent_is_refused(run, who, kind, statement, message):
    """Mistake: an empty statement counts, or a name paints the reader's terminal."""
    with pytest.raises(KitError, match=message):
        consent.record(run, who, kind, statement)
    assert not (run.folder / consent.FILE).exists()


@pytest.mark.parametrize(("who", "statement"), [
    ("山田　太郎", "私の声です。　許可します。"), ("Zoé", "J’accepte : « oui ». D\u202faccord\u00a0!"),
    ("علی", "من اجازه می\u200cدهم."), ("מיכל", "אני מסכימה\u200f.")])
def test_words_are_taken_as_people_write_them(run, who, statement):
    """Mistake: the spaces and joiners of Japanese, French, Persian and Hebrew pass for terminal codes and are refused."""
    made = consent.record(run, who, "own", statement)
    assert (made.who, made.statement) == (who, statement) and consent.for_run(run) == made


def test_a_statement_from_a_windows_file_is_taken(run):
    """Mistake: lines that end as Notepad ends them are refused as terminal codes."""
    assert consent.record(run, "Anna", "own", "I am Anna.\r\nI agree.").statement == "I am Anna.\nI agree."


def test_what_is_said_again_keeps_its_date(run):
    """Mistake: each time a notebook is run again the consent is of that day."""
    made = dataclasses.replace(consent.record(run, "Anna", "own", STATEMENT), when="2024-02-29T12:00:00+00:00")
    consent.write(made, run.folder)
    assert consent.record(run, "Anna", "own", STATEMENT) == made == consent.read(run.folder)
    assert consent.record(run, "Anna", "written", STATEMENT).when > made.when


@pytest.mark.parametrize("broken", ["{", "[]", '{"who": "Anna"}', None, "kind"])
def test_a_broken_record_is_named(run, broken):
    """Mistake: a traceback, or a record half read."""
    made = dataclasses.asdict(consent.record(run, "Anna", "own", STATEMENT))
    spoiled = {None: json.dumps(made | {"statement": 7}), "kind": json.dumps(made | {"kind": "none"})}.get(broken, broken)
    (run.folder / consent.FILE).write_text(spoiled)
    with pytest.raises(KitError, match="consent.json|no kind of consent"):
        consent.problem(run)


def test_the_verb_records_once(run, capsys):
    """Mistake: a valid record is made again each time, or what is given is not what is recorded."""
    assert main(["consent", "--run", "anna", *GIVEN]) == 0
    made = consent.read(run.folder)
    assert made == Consent("Anna Example", "own", STATEMENT, made.when, 3, 3.0, made.sha256)
    assert "Anna Example (my own voice)" in capsys.readouterr().out
    assert main(["consent", "--run", "anna"]) == 0
    assert consent.read(run.folder) == made and "Anna Example" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "message"), [
    ([], "--who, --kind, --statement is missing. Give --who NAME"),
    (GIVEN[:4], "--statement is missing.*A statement could be: \"I am the speaker"),
    ([*GIVEN[:3], "stolen", *GIVEN[4:]], "'stolen' is no kind of consent; wanted one of: own"),
])
def test_what_is_missing_is_named(run, capsys, given, message):
    """Mistake: a record is made of half of the answers."""
    assert main(["consent", "--run", "anna", *given]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (run.folder / consent.FILE).exists()


def test_without_data_there_is_nothing_to_consent_to(run, monkeypatch, capsys):
    """Mistake: a record for no recordings at all."""
    assert main(["consent", "--run", "none", *GIVEN]) == 1
    assert "has no data yet" in capsys.readouterr().err
    assert not Run("none").folder.exists()


def test_the_bases_terms_are_told_to_whoever_makes_a_voice_of_it(run, capsys):
    """Mistake: what CSM's makers forbid stands in the card alone, which is read when the voice is long made."""
    assert main(["train", "--run", "anna", "--base", "unsloth/csm-1b"]) == 1, "there are no codes to learn from"
    said = capsys.readouterr().out
    assert "unsloth/csm-1b is licensed under apache-2.0" in said and "forbid impersonation" in said
    assert "apache-2.0: a voice made from it" in license.license_notice(str(TINY_CSM))
    assert "states no licence" in license.license_notice("somebody/else")
    assert "CC-BY-4.0" in license.prohibited_uses("sesame/csm-1b", "apache-2.0")[1]
    assert "Mimi" not in str(license.prohibited_uses("tiny-csm", "apache-2.0"))
