"""Spoken text: what is said for what is written, lexicons, hostile input; and where both reach the model."""

import csv
import json
import time
from pathlib import Path

import pytest

from tts_kit import text
from tts_kit.cli import main
from tts_kit.config import Config, read_config
from tts_kit.errors import KitError
from tts_kit.evaluation import wer
from tts_kit.run import TINY_CSM
from tts_kit.speech import speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Voice
from tts_kit.spoken_text import read_lexicon, to_spoken
from tts_kit.tokens.prompt import PromptBuilder, prompt_options

CASES = [*csv.reader(Path(__file__).with_name("spoken_text.csv").read_text("utf-8").splitlines())][1:]
HOSTILE = ["1" * 10_000, "1," * 5_000, "1.1" * 5_000, "a." * 5_000, "a-" * 5_000, "a@" * 5_000, "1/" * 5_000, "1-" * 5_000,
           "$" * 10_000, " " * 10_000, "1 " * 5_000, "http://" * 2_000, "www." * 3_000, "May 1 " * 2_000, "1:1" * 5_000,
           "x" * 10_000 + "@", "1,111" * 3_000, "1" * 10_000 + "x", "I" * 10_000, "(111) " * 2_000, "+" * 9_999]


@pytest.mark.parametrize(("written", "spoken"), CASES, ids=lambda cell: cell[:40])
def test_what_is_said_for_what_is_written(written, spoken):
    """Mistake: a number, date, unit or symbol is read wrongly, or what is already spoken changes once more."""
    assert to_spoken(written) == spoken
    assert to_spoken(spoken) == spoken
    assert not any(character.isdigit() for character in spoken)


@pytest.mark.parametrize(("written", "spoken"), CASES, ids=lambda cell: cell[:40])
def test_words_as_they_are_spoken_are_no_word_errors(written, spoken):
    """Mistake: `5 min` in the text and the words `five minutes` in the transcript count as an error of the voice."""
    if wer.normalize(written):
        assert wer.edit_counts(written, spoken)[0] == 0 == wer.edit_counts(spoken, written)[0]


def test_there_are_enough_cases():
    """Mistake: the table is cut, and its tests pass."""
    assert len({written for written, _ in CASES}) >= 150


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile[:6])
def test_no_text_takes_long(hostile):
    """Mistake: a pattern that backtracks, or an integer of 10,000 digits: one request blocks the server."""
    start = time.process_time()
    assert to_spoken(hostile) is not None
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("number", ["7" * 400, "1," * 399 + "1", "9" * 101])
def test_a_number_of_400_digits_is_refused(number):
    """Mistake: a minute of digits, or ValueError from int(); the error holds all of the number."""
    with pytest.raises(KitError, match="more than 100 digits") as error:
        speak.split_requests(f"Call {number} now.")
    assert len(str(error.value)) < 200
    assert to_spoken("7" * 100) == " ".join(["seven"] * 100) and text.normalize("7" * 100)


def test_a_lexicon_replaces_whole_words(tmp_path):
    """Mistake: Ann changes Annual, `us` changes US where only US is meant, the shorter of two words wins."""
    path = tmp_path / "words.csv"
    path.write_text('\ufeffword,spoken\nSiobhan,shivawn\nnginx,engine x\nUS,you ess\n"San Jose",san hosay\nSan,sahn\n'
                    "5G,five jee\n", encoding="utf-8")
    lexicon = read_lexicon(path)
    assert lexicon[0] == ("Siobhan", "shivawn") and len(lexicon) == 6
    assert to_spoken("Siobhan's NGINX, siobhan and Siobhans.", lexicon) == "shivawn's engine x, siobhan and Siobhans."
    assert to_spoken("The US gave us 5G in San Jose, San.", lexicon) == "The you ess gave us five jee in san hosay, sahn."
    assert to_spoken("Siobhan has 5 km.", lexicon, english=False) == "shivawn has 5 km."
    path.write_text("Siobhan,shivawn\n")
    assert read_lexicon(path) == (("Siobhan", "shivawn"),)  # the header may be left out


@pytest.mark.parametrize(("content", "message"), [
    (b"word,spoken\na,b\na,c\n", "row 3: 'a' stands there twice"), (b"a,b\n\nc,d\n", "row 2 is ''"),
    (b"a,\n", "row 1 is 'a,'"), (b"a,b,c\n", "row 1 is 'a,b,c'"), (b"", "holds 0 words"),
    (b"word,spoken\n", "holds 0 words"),
    ("Zoë,zo ee\n".encode("latin-1"), "not UTF-8"), ("a,b\n".encode("utf-16"), "not UTF-8"),
    (b"...,dots\n", "begin and end"),
    (b"a,123\n", "in letters"), (b"a," + b"b" * 201, "200 characters"), (b"a,b\x00c\n", "lexicon"), (b'"a,b\n', "not CSV"),
    (b"x" * 1_000_001, "larger than 1 MB"), ("".join(f"w{n},v\n" for n in range(5001)).encode(), "holds 5001 words")],
    ids=lambda value: str(value)[:20])
def test_a_lexicon_with_faults_is_refused(tmp_path, content, message):
    """Mistake: rows that are lost without a word, and a voice that says a name wrongly."""
    path = tmp_path / "words.csv"
    path.write_bytes(content)
    with pytest.raises(KitError, match=message) as error:
        read_lexicon(path)
    assert str(path) in str(error.value) and path.read_bytes() == content
    with pytest.raises(KitError, match="cannot be read"):
        read_lexicon(tmp_path / "missing.csv")


def test_the_model_reads_what_is_said(base):
    """Mistake: training, speaking or the reference gives the model `5 km` where another gives it `five kilometers`."""
    builder = PromptBuilder(base.prompt_builder.tokenizer, base.spec)
    lexicon = (("Siobhan", "shivawn"),)
    assert builder.text_ids("5 km.", "0") == builder.text_ids("five kilometers.", "0")
    named = PromptBuilder(builder.tokenizer, base.spec, lexicon=lexicon)
    assert named.text_ids("Siobhan.", "0") == builder.text_ids("shivawn.", "0") != builder.text_ids("Siobhan.", "0")
    written = PromptBuilder(builder.tokenizer, base.spec, **prompt_options(Config(spoken_text=False)))
    assert written.text_ids("5 km.", "0") != builder.text_ids("5 km.", "0")
    assert written.text_ids("Hello.", "0") == builder.text_ids("Hello.", "0")


def test_the_frame_limit_follows_the_spoken_text(base):
    """Mistake: $1,234,567 may last as long as ten letters, and its end is cut off."""
    voice = Voice(base, base.model)
    _, short = speak.build_prompt(voice, Request("1234567."), [])
    _, long = speak.build_prompt(voice, Request(to_spoken("1234567.")), [])
    assert short == long > round(text.max_speech_seconds("1234567.") * base.spec.frame_rate)


def test_voices_on_one_base_keep_their_own_lexicon(base):
    """Mistake: the names of one voice are said by another, or by the base."""
    one, other = Voice(base, base.model), Voice(base, base.model)
    one.set_prompt_options(lexicon=(("Siobhan", "shivawn"),))
    assert one.base.prompt_builder.spoken("Siobhan") == "shivawn"
    assert other.base.prompt_builder.spoken("Siobhan") == base.prompt_builder.spoken("Siobhan") == "Siobhan"


def test_the_lexicon_is_kept_with_the_run(tmp_path, monkeypatch, capsys):
    """Mistake: a lexicon given to `prepare` is not in the config that training and the adapter keep; texts are changed."""
    monkeypatch.chdir(tmp_path)
    Path("words.csv").write_text("Laura,lowra\n")
    assert main(["prepare", "example:emma", "--run", "named", "--lexicon", "words.csv"]) == 0
    config = read_config(Path("runs/named/config.json"))
    assert config.lexicon == (("Laura", "lowra"),) and config.spoken_text
    assert Config.differences(config, Config()).keys() == {"lexicon"}
    rows = Path("runs/named/data/manifest.jsonl").read_text().splitlines()
    assert any("Laura" in json.loads(row)["text"] for row in rows)
    assert main(["speak", "Hello.", "--run", "none", "--base", str(TINY_CSM), "--lexicon", "missing.csv"]) == 1
    assert "missing.csv cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("lexicon", [(("a",),), (("a", 1),), ("ab", "c")])
def test_a_config_from_elsewhere_is_checked(lexicon):
    """Mistake: an adapter from the hub whose config holds no rows of two texts fails deep in the prompt."""
    with pytest.raises(KitError, match="lexicon"):
        Config(lexicon=lexicon)
