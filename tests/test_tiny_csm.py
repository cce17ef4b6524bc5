"""The bundled model: complete, small, evaluated, and loaded by transformers without the kit."""

import json

import pytest
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from sample_data.build import model_shapes, sentences, ship
from tts_kit import device
from tts_kit.generation.sampling import Sampling
from tts_kit.run import SAMPLE_HELD_OUT as HELD_OUT
from tts_kit.run import TINY_CSM as BUNDLED
from tts_kit.speech import speak
from tts_kit.speech.voice import Reference, Voice, load_voice


@pytest.fixture(scope="module")
def voice() -> Voice:
    return load_voice(device.choose("cpu"), base=str(BUNDLED))


def test_transformers_loads_the_same_weights_as_the_kit(voice):
    """Mistake: an embedding table that transformers initializes at load, or files that only the kit can read."""
    stock = CsmForConditionalGeneration.from_pretrained(BUNDLED, dtype=torch.float32)
    assert AutoProcessor.from_pretrained(BUNDLED).feature_extractor.sampling_rate == voice.base.spec.sample_rate
    kit_weights = voice.base.model.state_dict()
    for name, weight in stock.state_dict().items():
        assert name.startswith("codec_model") or torch.equal(kit_weights[name], weight), name
    backbone_table, depth_table = (embedding.weight for embedding in (stock.backbone_model.embed_tokens.embed_audio_tokens,
                                                                      stock.depth_decoder.model.embed_tokens))
    assert torch.equal(backbone_table, depth_table)


@pytest.mark.parametrize("folder, temperatures", [(BUNDLED, (0.15, 0.1)), ("toy", model_shapes.DEFAULT_TEMPERATURES)])
def test_transformers_uses_the_sampling_settings(toy, folder, temperatures):
    """Mistake: a config marked as derived from the model config; transformers then ignores the depth decoder's."""
    stock = CsmForConditionalGeneration.from_pretrained(toy if folder == "toy" else folder)
    generation_configs = [stock.generation_config, stock.depth_decoder.generation_config]
    assert [generation_config.temperature for generation_config in generation_configs] == list(temperatures)
    assert all(generation_config.do_sample and generation_config.top_k == 50 for generation_config in generation_configs)


def test_the_model_is_small_and_its_card_matches_the_results(voice):
    """Mistake: new weights with old figures, a card edited by hand, or a model that makes cloning the project slow."""
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= ship.MAX_BYTES
    results = json.loads((BUNDLED / ship.RESULTS).read_text(encoding="utf-8"))
    assert results["weights"] == voice.base.fingerprint
    assert (BUNDLED / "README.md").read_text(encoding="utf-8") == ship.card(BUNDLED, results)
    evaluation_set = sentences.evaluation_set()
    groups = results["groups"].values()
    assert {group["sentences"] for group in groups} == {len(evaluation_set.sentences)}
    assert results["seeds"] == list(evaluation_set.seeds)


def test_the_model_speaks_and_generates_eos(voice):
    """Mistake: the bundled model runs to its limit, is silent, or is sampled at too high a temperature."""
    assert voice.sampling == Sampling(0.15, 0.1, 50)
    reference = Reference(HELD_OUT / "later01_01.flac", "Do you always sleep before breakfast?")
    requests = [speak.Request(text, 1, context, False) for text in sentences.evaluation_set().bundled[:4]
                for context in (None, reference)]
    for _, generation in speak.speak_requests(requests, voice):
        assert generation.ended_with_eos and 1.0 < generation.seconds < 8.0
        assert abs(generation.samples).max() > 0.05
