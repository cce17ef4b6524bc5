"""Best of several takes: which one is kept, and that it is one of the takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tts_kit import audio, cli
from tts_kit.errors import KitError
from tts_kit.evaluation import backends
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.generation.engine import Generation
from tts_kit.generation.sampling import Sampling
from tts_kit.speech import speak
from tts_kit.speech.best_of import TakeChooser, load_models
from tts_kit.speech.voice import Voice

RATE = 16_000


def take(loudness):
    return (np.sin(np.arange(RATE) * 0.1) * loudness).astype(np.float32)


def chooser(takes, transcripts, embeddings, clips=()):
    """A chooser whose models return these transcripts and embeddings, take by take."""
    transcripts, embeddings = iter(transcripts), iter(embeddings)
    return TakeChooser(takes, clips, MetricModels({"wer": "a test"}, lambda samples: next(transcripts),
                                                  lambda samples: np.array(next(embeddings)), None))


def generation(ended_with_eos=True):
    return Generation(torch.zeros(5, 4, dtype=torch.int16), ended_with_eos)


def choose(models, endings):
    generations = [generation(ended_with_eos) for ended_with_eos in endings]
    chosen = models.choose(generations, [take(0.1)] * len(generations), RATE, "It is raining.")
    return chosen.choice


def test_words_come_before_similarity_and_similarity_before_the_ending(tmp_path):
    """Mistake: the most similar take wins although it says something else, or an unfinished one among equals."""
    voice, other, near = [1.0, 0.0], [0.0, 1.0], [1.0, 0.2]
    target = tmp_path / "clip.wav"
    audio.write(target, take(0.1), RATE)
    models = chooser(3, ["It is draining.", "It is raining.", "it is raining"], [voice, voice, other, near], [target])
    assert choose(models, [True] * 3) == "take 3 of 3: 0 of 3 words wrong, SIM 0.98"
    assert choose(chooser(2, ["It is raining."] * 2, [voice] * 2), [False, True]) == "take 2 of 2: 0 of 3 words wrong"
    assert choose(chooser(2, ["It is.", ""], [voice] * 2), [True, True]) == "take 1 of 2: 1 of 3 words wrong"


def test_the_chosen_take_is_what_its_seed_gives(spread_base):
    """Mistake: the text, seed or neighbour of another take is returned, or takes share their noise."""
    voice = Voice(spread_base, spread_base.model, sampling=Sampling(0.9, 0.9, 8))
    requests = [replace(speak.Request("One."), seed=3), speak.Request("Another one.", seed=9)]
    models = chooser(2, ["nothing", "one", "another one", "nothing"], [[1.0, 0.0]] * 4)
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
