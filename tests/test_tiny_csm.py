"""The bundled model: whole, small, judged, and loaded by plain transformers."""

import json

import pytest
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from sample_data.build import sentences, shape, ship
from tts_kit import device
from tts_kit.generation.sampling import Sampling
from tts_kit.run import SAMPLE_HELD_OUT as HELD_OUT
from tts_kit.run import TINY_CSM as BUNDLED
from tts_kit.speech import speak
from tts_kit.speech.voice import Reference, Voice, load_voice


@pytest.fixture(scope="module")
def voice() -> Voice:
    return load_voice(device.choose("cpu"), base=str(BUNDLED))


def test_plain_transformers_loads_it_as_the_kit_does(voice):
    """Mistake: a table that transformers draws anew at load, or files that only the kit understands."""
    plain = CsmForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32)
    assert AutoProcessor.from_pretrained(BUNDLED).feature_extractor.sampling_rate == voice.base.spec.sample_rate
    mine = voice.base.model.state_dict()
    for name, weight in plain.state_dict().items():
        assert name.startswith("codec_model") or torch.equal(mine[name], weight), name
    table, depth = (each.weight for each in (plain.backbone_model.embed_tokens.embed_audio_tokens,
                                             plain.depth_decoder.model.embed_tokens))
    assert torch.equal(table, depth)


@pytest.mark.parametrize("place, temperatures", [(BUNDLED, (0.15, 0.1)), ("toy", shape.USUAL_TEMPERATURES)])
def test_plain_transformers_samples_it_as_told(toy, place, temperatures):
    """Mistake: a file that says it was derived from a model's config, for which transformers overlooks the depth decoder."""
    plain = CsmForConditionalGeneration.from_pretrained(toy if place == "toy" else place)
    told = [plain.generation_config, plain.depth_decoder.generation_config]
    assert [each.temperature for each in told] == list(temperatures)
    assert all(each.do_sample and each.top_k == 50 for each in told)


def test_it_is_small_and_its_card_is_what_was_measured(voice):
    """Mistake: weights that were exchanged under old figures, a card edited by hand, or a clone of the project that takes
    minutes."""
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= ship.MOST_BYTES
    found = json.loads((BUNDLED / ship.RESULTS).read_text(encoding="utf-8"))
    assert found["weights"] == voice.base.fingerprint
    assert (BUNDLED / "README.md").read_text(encoding="utf-8") == ship.card(BUNDLED, found)
    judging = sentences.judging()
    groups = found["groups"].values()
    assert {each["sentences"] for each in groups} == {len(judging.sentences)} and found["seeds"] == list(judging.seeds)


def test_it_speaks_and_stops(voice):
    """Mistake: a bundled model that runs to its limit, is silent, or is sampled too hot to be understood."""
    assert voice.sampling == Sampling(0.15, 0.1, 50)
    reference = Reference(HELD_OUT / "later01_01.flac", "Do you always sleep before breakfast?")
    lines = [speak.Request(text, 1, given, False) for text in sentences.judging().bundled[:4] for given in (None, reference)]
    for _, said in speak.speak_requests(lines, voice):
        assert said.ended_with_eos and 1.0 < said.seconds < 8.0
        assert abs(said.samples).max() > 0.05
