"""Settings of fine-tuning are searched on further voices, with regularizers; and what the codec loses, by voice."""

import csv

import numpy as np
import pytest
import torch
from conftest import make_clip

from sample_data.build import bundled_voice, corpus, lora_recipe, model_shapes, regularizers, round_trip, sentences, voices
from tts_kit import device
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import read_json
from tts_kit.model import lora
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.training import dataset, trainer

CPU = device.choose("cpu")


@pytest.fixture
def toy_trainer(config, base, tmp_path):
    """A trainer of an adapter of the toy model on twelve clips of one voice."""
    clips = [make_clip(f"own-{number}", 4 + number) for number in range(12)]
    model = lora.add_lora(base.model, config.rank, config.alpha)
    micro_batches = dataset.MicroBatchDataset(clips, base.prompt_builder, config)
    held_out = dataset.evaluation_batches([dataset.build_example(clips[0], base.prompt_builder)], config)
    arguments = trainer.training_arguments(config, Run("one", tmp_path), CPU)
    return trainer.CsmTrainer(model, arguments, micro_batches, held_out, CPU)


def test_rehearsal_replaces_a_share_of_the_clips(toy_trainer, base):
    """Mistake: always the same clips are replaced, the context of a pair has a loss, or pairs are of two speakers."""
    train_set = toy_trainer.train_dataset
    others = [make_clip(f"other-{number}", 20, speaker="AB"[number // 4]) for number in range(8)]
    own = len(train_set.examples)
    train_set.plan = [[(clip, None) for clip in range(own)] for _ in range(50)]
    regularizers.add_rehearsal(toy_trainer, base, others, 0.25)
    names = [[train_set.example(item).name for item in items] for items in train_set.plan]
    shares = [sum(name.startswith("other") for name in column) / 50 for column in zip(*names)]
    assert 0.2 < np.mean(shares) < 0.3 and min(shares) > 0
    pairs = train_set.examples[own:]
    assert [pair.name for pair in pairs] == [f"other-{number}" for number in (1, 2, 3, 5, 6, 7)]
    assert all(pair.target_frames == 21 for pair in pairs)


def test_the_divergence_from_the_base_is_zero_at_first_and_has_a_gradient(toy_trainer, base):
    """Mistake: the divergence is measured against the adapter itself, or changes nothing."""
    inputs = toy_trainer._prepare_inputs(toy_trainer.train_dataset[0])
    toy_trainer.current_gradient_accumulation_steps = 1
    toy_trainer.model.train()
    before = toy_trainer.compute_loss(toy_trainer.model, inputs).item()
    regularizers.add_kl(toy_trainer, base, ["One.", "Two more words."], 3.0)
    assert toy_trainer.compute_loss(toy_trainer.model, inputs).item() == pytest.approx(before, rel=1e-5)
    for name, weight in toy_trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    toy_trainer.model.eval()
    plain = toy_trainer.compute_loss(toy_trainer.model, inputs)
    toy_trainer.model.train()
    regularized = toy_trainer.compute_loss(toy_trainer.model, inputs)
    assert regularized.item() > plain.item() + 1e-4
    (regularized - plain).backward()
    assert any(weight.grad.abs().sum() > 0 for name, weight in toy_trainer.model.named_parameters() if "lora" in name)


def test_a_setting_is_kept_if_it_is_better_on_nearly_all_voices(tmp_path, monkeypatch):
    """Mistake: a value that one voice likes much and the others dislike is kept, or values are tried without the best of
    those before them."""
    tried = []

    def measure(model, out, clips, settings, voice):
        tried.append(settings)
        worth = {"a": 0.1, "b": 0.2, "c": 0.3}[voice]
        worth += {30: 0.02, 120: -0.1}.get(settings["steps"], 0)
        worth += (0.5 if voice == "a" else -0.01) * (settings["learning_rate"] == 4e-4)
        return worth + 0.01 * (settings["rank"] == 8)

    monkeypatch.setattr(lora_recipe, "_measure", measure)
    grid = {"steps": (120, 30), "learning_rate": (4e-4,), "rank": (8,)}
    best = lora_recipe.search(tmp_path, tmp_path, list, ["a", "b", "c"], grid)
    assert (best["steps"], best["learning_rate"], best["rank"], best["alpha"]) == (30, 8e-4, 8, 16.0)
    assert {settings["steps"] for settings in tried[9:]} == {30}
    recorded = read_json(tmp_path / "recipe.json", "")
    assert [trial["kept"] for trial in recorded["trials"]] == [True, False, True, False, True] and recorded["best"] == best


def test_development_sentences_are_in_no_other_set():
    """Mistake: settings are chosen on the sentences that score the result."""
    if not (lora_recipe.open_text.WORDNET / "data.noun").exists():
        pytest.skip("Debian's wordnet-base is not installed")
    evaluation_set = sentences.evaluation_set()
    used = {tuple(sentences.words(text)) for text in (*evaluation_set.sentences, *evaluation_set.open_sentences,
                                                      *evaluation_set.bundled)}
    texts = lora_recipe._development_sentences()
    assert len(texts) == len(set(texts)) == 44 and not used & {tuple(sentences.words(text)) for text in texts}
    assert not {*voices.RECIPE_VOICES} & {*voices.NAMES}


def test_clips_of_another_voice_are_those_of_the_bundled_one(tmp_path):
    """Mistake: a further voice is trained on other sentences or split otherwise, so that figures cannot be compared."""
    spoken = []

    def synthesize(text, voice, speed):
        spoken.append(voice)
        return np.sin(np.arange(24000) * 0.05).astype(np.float32) * 0.1

    bundled_voice.write_clips(tmp_path, "ff_siwis", synthesize)
    assert set(spoken) == {"ff_siwis"}
    sample_data = bundled_voice.Path(bundled_voice.__file__).parents[1]
    for folder in ("voice", "held_out"):
        ours, bundled = (list(csv.DictReader((root / folder / "metadata.csv").open(encoding="utf-8")))
                         for root in (tmp_path, sample_data))
        assert [row | {"source": ""} for row in ours] == [row | {"source": ""} for row in bundled]
        assert {row["source"] for row in ours} == {"ff_siwis"}


def test_a_voice_that_the_codec_garbles_is_not_used(tmp_path):
    """Mistake: the loss of the codec is measured over all voices together, and the language model hears noise."""
    texts = ["one two three four five", "six seven eight nine ten"]

    def synthesize(text, speaker, speed):
        return np.full(4000, 0.1 if speaker.name.startswith("good") else 0.2, np.float32)

    speakers = [voices.Speaker("good", "good"), voices.Speaker("bad-good-40", "bad")]
    corpus.make_shards(tmp_path, 1, synthesize, speakers=speakers, sentence_source=lambda seed: iter(texts * 60))

    class Garbling:
        spec = ModelSpec.of(model_shapes.config("toy"))

        def encode(self, waves):
            return waves

        def decode(self, codes, levels=None):
            return [wave if wave.mean() < 0.15 else np.zeros_like(wave) for wave in codes]

    def transcribe(samples):
        return "one two three four five" if np.abs(samples).max() > 0 else ""

    models = MetricModels({}, transcribe, None, None)
    results = round_trip.evaluate_voices(Garbling(), models, [tmp_path])
    assert results["good"]["used"] and not results["bad"]["used"]
    assert results["bad"]["wer_decoded"] == 1.0 and results["good"]["clips"] == round_trip.CLIPS_PER_VOICE


def test_speakers_belong_to_their_voice():
    """Mistake: each mixture is a voice of its own, with three clips."""
    names = {"af_bella": "af_bella", "af_bella-bm_lewis-40": "af_bella", "flite-slt-170-104": "flite-slt"}
    assert {name: round_trip.voice_name(name) for name in names} == names
