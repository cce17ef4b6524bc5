"""Best of several takes: which one is kept, and that it is one of the takes."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from tts_kit import audio, cli
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics
from tts_kit.generation.engine import Generation
from tts_kit.generation.sampling import Sampling
from tts_kit.run import SAMPLE_VOICE
from tts_kit.speech import speak
from tts_kit.speech.best_of import ChoiceModels, TakeChooser, load_models
from tts_kit.speech.voice import Voice

RATE = 16_000


def take(loudness):
    return (np.sin(np.arange(RATE) * 0.1) * loudness).astype(np.float32)


def chooser(takes, probabilities, embeddings, clips=()):
    """A chooser whose models return these probabilities, sentence by sentence, and embeddings, take by take."""
    probabilities, embeddings = iter(probabilities), iter(embeddings)
    return TakeChooser(takes, clips, ChoiceModels(lambda samples, text: next(probabilities),
                                                  lambda samples, rate: np.array(next(embeddings))))


def generation(ended_with_eos=True):
    return Generation(torch.zeros(5, 4, dtype=torch.int16), ended_with_eos)


def choose(models, endings):
    generations = [generation(ended_with_eos) for ended_with_eos in endings]
    chosen = models.choose(generations, [take(0.1)] * len(generations), RATE, "It is raining.")
    return chosen.choice


def test_words_come_before_similarity_and_similarity_before_the_ending(tmp_path):
    """Mistake: the most similar take wins although it says something else, or an unfinished one among equals."""
    voice, other, near = [1.0, 0.0], [0.0, 1.0], [0.98, 0.2]
    target = tmp_path / "clip.wav"
    audio.write(target, take(0.1), RATE)
    models = chooser(3, [[0.7, 0.802, 0.798]], [voice, other, near], [target])
    assert choose(models, [True] * 3) == "take 3 of 3: words 80 % probable, SIM 0.98"
    assert choose(chooser(2, [[0.5, 0.5]], []), [False, True]) == "take 2 of 2: words 50 % probable"
    assert choose(chooser(2, [[0.5, 0.5]], []), [True, True]) == "take 1 of 2: words 50 % probable"


def test_a_silent_take_is_never_chosen():
    """Mistake: silence, which no model can judge, ends the sentence with an error, or is kept."""
    chosen = chooser(2, [[0.1]], []).choose([generation(), generation(False)], [take(0), take(0.1)], RATE, "Hello.")
    assert chosen.choice == "take 2 of 2: words 10 % probable"
    chosen = chooser(2, [], []).choose([generation(), generation()], [take(0), take(0)], RATE, "Hello.")
    assert chosen.choice == "take 1 of 2: words 0 % probable"


@pytest.mark.skipif(bool(backends.missing_packages()), reason="the metric models are not installed")
def test_the_take_that_says_the_sentence_is_the_most_probable():
    """Mistake: the probabilities are those of another clip, of an empty transcript, or of the text alone."""
    with (SAMPLE_VOICE / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)][:3]
    texts = [row["text"] for row in rows]
    takes = [metrics.normalized(audio.read(SAMPLE_VOICE / row["file_name"], RATE), RATE) for row in rows]
    takes.append(np.concatenate([takes[0][:len(takes[0]) // 2], take(0.1)]))
    for number, text in enumerate(texts):
        probabilities = load_models().text_probabilities(takes, text)
        assert np.argmax(probabilities) == number and probabilities[number] > 2 * max(
            probability for other, probability in enumerate(probabilities[:3]) if other != number)
    first = load_models().text_probabilities(takes, texts[0])
    assert first[3] < first[0]


def test_the_chosen_take_is_what_its_seed_gives(spread_base):
    """Mistake: the text, seed or neighbour of another take is returned, or takes share their noise."""
    voice = Voice(spread_base, spread_base.model, sampling=Sampling(0.9, 0.9, 8))
    requests = [replace(speak.Request("One."), seed=3), speak.Request("Another one.", seed=9)]
    models = chooser(2, [[0.1, 0.9], [0.9, 0.1]], [])
    for (_, speech), request, number in zip(sorted(speak.speak_requests(requests, voice, chooser=models)), requests, (1, 0)):
        seed = request.seed + number * speak.TAKE_SEED_STEP
        alone, = speak.generate_batch(voice, [replace(request, seed=seed)], [[]], 0)
        assert speech.generations[0].codes.tolist() == alone.codes.tolist()
        assert speech.generations[0].choice.startswith(f"take {number + 1} of 2") and speech.attempts == 2


@pytest.mark.parametrize("takes", [0, 1, 9])
def test_numbers_of_takes_out_of_range_are_refused(takes):
    """Mistake: 0 takes end in an IndexError, 1000 in a full memory."""
    with pytest.raises(KitError, match=f"best of {takes} was asked for; wanted 2 to 8"):
        chooser(takes, [], [])


def test_missing_judges_are_named_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    """Mistake: all takes are generated and then lost, or the first one is kept and nothing is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "missing_packages", lambda: ["faster-whisper"])
    load_models.cache_clear()
    assert cli.main(["speak", "Hi.", "--run", "none", "--best-of", "2"]) == 1
    assert "faster-whisper are not installed. Install them: pip install" in capsys.readouterr().err
