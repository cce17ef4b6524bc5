"""Consent: recorded once, stored word for word, bound to the clips, and required before a voice becomes public."""

import dataclasses
import hashlib
import json
import re
import shutil

import pytest
from conftest import make_clip
from test_tokens_cache import tone
from test_training_finetune import with_codes

from tts_kit import audio
from tts_kit.cli import main
from tts_kit.data import consent, manifest
from tts_kit.data.consent import Consent
from tts_kit.data.manifest import SAMPLE_RATE, Utterance
from tts_kit.errors import KitError
from tts_kit.model import license
from tts_kit.run import SAMPLE_DATA, SAMPLE_HELD_OUT, SAMPLE_VOICE, TINY_CSM, Run, write_inputs

STATEMENT = "I am Anna. I allow a model of my voice, \"as it is\" — für alle."
OPTIONS = ["--who", "Anna Example", "--kind", "own", "--statement", STATEMENT]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with three clips, named `anna`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    anna = Run("anna")
    clips = []
    for number in range(3):
        path = anna.data / "clips" / f"{number}.flac"
        audio.write(path, tone(1.0, 200 + 50 * number), SAMPLE_RATE)
        clips.append(Utterance(str(number), path, "Hello.", "Hello.", "0", "", "monday", "train", 1.0, number, path.name,
                               hashlib.sha256(path.read_bytes()).hexdigest()))
    manifest.write(anna.data, clips)
    write_inputs(anna.data, source="/clips", eval_source="")
    return anna


def replace_a_clip(run: Run) -> None:
    """Prepare the data again with another recording under the name of a clip that consent was given for."""
    path = run.data / "clips" / "1.flac"
    audio.write(path, tone(1.0, 999), SAMPLE_RATE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write(run.data, [dataclasses.replace(clip, sha256=digest) if clip.audio == path else clip
                              for clip in manifest.read(run.data)])


def test_a_statement_is_stored_word_for_word_with_a_digest(run):
    """Mistake: a statement that was changed, or a digest that nobody else can compute."""
    recorded = consent.record(run, " Anna Example ", "own", STATEMENT)
    assert consent.read(run.folder) == recorded == consent.for_run(run) and not consent.problem(run)
    assert (recorded.who, recorded.statement, recorded.clips, recorded.seconds) == ("Anna Example", STATEMENT, 3, 3.0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", recorded.when)
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (run.data / "clips").iterdir())
    assert recorded.sha256 == hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    assert [path.name for path in run.folder.iterdir() if path.name.startswith(".")] == []


def test_missing_and_outdated_consent_is_reported(run):
    """Mistake: consent is given once, and then other recordings are used under it."""
    assert "No consent to the voice of run anna is recorded. Record it: tts-kit consent" in consent.problem(run)
    consent.record(run, "Anna", "own", STATEMENT)
    replace_a_clip(run)
    assert re.search("have changed since Anna consented .* for 3 clips .* minutes. Record it", consent.problem(run))
    consent.record(run, "Anna", "own", STATEMENT)
    assert consent.problem(run) == ""


def test_consent_is_copied_with_the_adapter(run, tmp_path):
    """Mistake: an adapter is passed on, and nobody knows whose voice it is."""
    run.adapter.mkdir()
    recorded = consent.record(run, "Anna", "written", STATEMENT)
    assert consent.read(run.adapter) == recorded, "an adapter that is there already gets it"
    (tmp_path / "away").mkdir()
    assert consent.attach(run, tmp_path / "away") == consent.read(tmp_path / "away") == recorded
    (run.folder / consent.FILE).unlink()
    shutil.rmtree(run.data)
    assert consent.for_run(run) == recorded and not consent.problem(run), "a voice that came without its clips"


def test_consent_for_other_clips_is_not_copied(run, tmp_path):
    """Mistake: the adapter of new recordings carries the consent to the old ones."""
    consent.record(run, "Anna", "own", STATEMENT)
    replace_a_clip(run)
    assert consent.attach(run, tmp_path) is None and not (tmp_path / consent.FILE).exists()


def test_missing_consent_is_one_line_of_warning(run, capsys, tmp_path):
    """Mistake: training stops because consent is missing, or nothing is printed."""
    consent.warn_if_missing(run)
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "tts-kit consent --run anna" in output and "Clone only voices" in output
    consent.record(run, "Anna", "own", STATEMENT)
    consent.attach(run, tmp_path)
    replace_a_clip(run)
    consent.warn_if_missing(run)
    consent.warn_if_missing(Run("other"), adapter=tmp_path)
    consent.warn_if_missing(Run("nothing-there"))
    assert capsys.readouterr().out == ""
    consent.warn_if_missing(run, thorough=True)
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "have changed since Anna" in output


def test_the_bundled_voice_has_its_own_consent(run, capsys):
    """Mistake: the demo asks for consent to a synthetic voice, or takes any folder for that voice."""
    write_inputs(run.data, source=str(SAMPLE_VOICE.resolve()), eval_source=str(SAMPLE_HELD_OUT.resolve()))
    consent.warn_if_missing(run)
    recorded = consent.read(run.folder)
    assert capsys.readouterr().out == "" and recorded.kind == "synthetic" and "Kokoro" in recorded.who
    text = " ".join((SAMPLE_DATA / "README.md").read_text(encoding="utf-8").split())
    assert recorded.statement.split(". ")[0] in text, "as its README says"
    replace_a_clip(run)
    assert "have changed" in consent.problem(run), "a clip that was added later is not synthetic"
    (run.folder / consent.FILE).unlink()
    write_inputs(run.data, source=str(SAMPLE_VOICE.resolve()), eval_source="/somebody/else")
    assert consent.for_run(run) is None


@pytest.mark.parametrize(("who", "kind", "statement", "message"), [
    ("", "own", STATEMENT, "needs who"), ("Anna", "own", " ... ", "needs statement"), ("Anna", "yes", STATEMENT, "no kind"),
    ("An\x1b[2Jna", "own", STATEMENT, "controls a terminal"), ("Anna", "own", "a" * 5_000, "at most 4000"),
    ("An\u202ena", "own", STATEMENT, r"who holds '\\u202e', which .* reorders text"),
    ("Anna\nBob", "own", STATEMENT, "in one line"), ("Anna", "own", "I agree.\u2028\x07", "statement holds"),
])
def test_invalid_consent_is_refused(run, who, kind, statement, message):
    """Mistake: an empty statement counts, or a name contains terminal control codes."""
    with pytest.raises(KitError, match=message):
        consent.record(run, who, kind, statement)
    assert not (run.folder / consent.FILE).exists()


@pytest.mark.parametrize(("who", "statement"), [
    ("山田　太郎", "私の声です。　許可します。"), ("Zoé", "J’accepte : « oui ». D\u202faccord\u00a0!"),
    ("علی", "من اجازه می\u200cدهم."), ("מיכל", "אני מסכימה\u200f.")])
def test_statements_in_any_language_are_accepted(run, who, statement):
    """Mistake: the spaces and joiners of Japanese, French, Persian and Hebrew are taken for terminal codes and refused."""
    recorded = consent.record(run, who, "own", statement)
    assert (recorded.who, recorded.statement) == (who, statement) and consent.for_run(run) == recorded


def test_a_statement_with_windows_line_ends_is_accepted(run):
    """Mistake: line ends of Notepad are refused as terminal codes."""
    assert consent.record(run, "Anna", "own", "I am Anna.\r\nI agree.").statement == "I am Anna.\nI agree."


def test_recording_the_same_consent_keeps_its_date(run):
    """Mistake: a notebook that is run again changes the date of the consent."""
    recorded = dataclasses.replace(consent.record(run, "Anna", "own", STATEMENT), when="2024-02-29T12:00:00+00:00")
    consent.write(recorded, run.folder)
    assert consent.record(run, "Anna", "own", STATEMENT) == recorded == consent.read(run.folder)
    assert consent.record(run, "Anna", "written", STATEMENT).when > recorded.when


@pytest.mark.parametrize("broken", ["{", "[]", '{"who": "Anna"}', None, "kind"])
def test_a_broken_consent_file_is_named(run, broken):
    """Mistake: a traceback, or a record that is only partly read."""
    fields = dataclasses.asdict(consent.record(run, "Anna", "own", STATEMENT))
    invalid = {None: json.dumps(fields | {"statement": 7}), "kind": json.dumps(fields | {"kind": "none"})}
    (run.folder / consent.FILE).write_text(invalid.get(broken, broken))
    with pytest.raises(KitError, match="consent.json|no kind of consent"):
        consent.problem(run)


def test_the_command_records_once(run, capsys):
    """Mistake: a valid record is replaced by each call, or something else than the arguments is recorded."""
    assert main(["consent", "--run", "anna", *OPTIONS]) == 0
    recorded = consent.read(run.folder)
    assert recorded == Consent("Anna Example", "own", STATEMENT, recorded.when, 3, 3.0, recorded.sha256)
    assert "Anna Example (my own voice)" in capsys.readouterr().out
    assert main(["consent", "--run", "anna"]) == 0
    assert consent.read(run.folder) == recorded and "Anna Example" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [
    ([], "--who, --kind, --statement is missing. Give --who NAME"),
    (OPTIONS[:4], "--statement is missing.*A statement could be: \"I am the speaker"),
    ([*OPTIONS[:3], "stolen", *OPTIONS[4:]], "'stolen' is no kind of consent; wanted one of: own"),
])
def test_missing_options_are_named(run, capsys, options, message):
    """Mistake: half of the answers make a record."""
    assert main(["consent", "--run", "anna", *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (run.folder / consent.FILE).exists()


def test_consent_needs_data(run, monkeypatch, capsys):
    """Mistake: a record for no recordings at all."""
    assert main(["consent", "--run", "none", *OPTIONS]) == 1
    assert "has no data yet" in capsys.readouterr().err
    assert not Run("none").folder.exists()


def test_the_license_of_the_base_is_printed_before_training(run, capsys):
    """Mistake: the terms of CSM are only in the card, which is read after the training."""
    with_codes(run, [make_clip("clip", 5)])
    write_inputs(run.codes, codec="of CSM", manifest=manifest.digest(run.data))
    assert main(["train", "--run", "anna", "--base", "unsloth/csm-1b"]) == 1, "the hub is not asked"
    output = capsys.readouterr().out
    assert "unsloth/csm-1b is licensed under apache-2.0" in output and "forbid impersonation" in output
    assert "apache-2.0: a voice made from it" in license.license_notice(str(TINY_CSM))
    assert "states no licence" in license.license_notice("somebody/else")
    assert "CC-BY-4.0" in license.prohibited_uses("sesame/csm-1b", "apache-2.0")[1]
    assert "Mimi" not in str(license.prohibited_uses("tiny-csm", "apache-2.0"))
