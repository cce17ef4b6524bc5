"""Training a CSM from random weights at toy size: it learns, resumes, and transformers loads the result."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_clip
from safetensors.torch import load_file
from transformers import CsmForConditionalGeneration

from sample_data.build import csm_training, model_shapes, processes, sentences
from tts_kit import device
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.io import check_replaceable, read_rows
from tts_kit.model import load
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder, Turn
from tts_kit.training import callbacks

CPU = device.choose("cpu")
CONFIG = Config(steps=60, learning_rate=1e-2, warmup_steps=3, tokens_per_batch=300, packing=False, context_probability=0.5,
                depth_frame_fraction=1.0, eval_steps=20, save_steps=20, sample_steps=0)


def make_clips() -> list:
    """Return eight clips of each of three speakers, each clip with one constant code; the last speaker is held out."""
    clips = []
    for speaker in range(3):
        for number in range(8):
            clip = make_clip(f"{speaker}-{number}", 4 + number, speaker=str(speaker),
                             split="held_out" if speaker == 2 else "train")
            clip.codes[:] = 3 + 2 * (speaker % 2)
            clips.append(clip)
    return clips


@pytest.fixture
def codec():
    return model_shapes.untrained("toy").codec_model


def test_it_learns_and_transformers_loads_it(tmp_path, codec):
    """Mistake: audio embeddings untied in training, weights that are not trained, or a folder that only the kit can read."""
    run = Run("pretrain", tmp_path)
    folder = csm_training.train(make_clips(), codec, tmp_path / "model", run, CPU, CONFIG, "toy")
    losses = [row["eval_loss"] for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert min(losses) < 0.7 * 2 * 3.56
    base = load.load_base(str(folder), CPU)
    untrained = model_shapes.untrained("toy", CONFIG.seed)
    for name, weight in base.model.named_parameters():
        if weight.dim() > 1 and "text" not in name:
            assert not torch.equal(weight, untrained.get_parameter(name)), f"{name} was not trained"
    plain, report = CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(plain.backbone_model.embed_tokens.embed_audio_tokens.weight,
                       plain.depth_decoder.model.embed_tokens.weight)
    assert torch.equal(load_file(folder / "model.safetensors")["codec_model.encoder.layers.0.conv.weight"],
                       codec.state_dict()["encoder.layers.0.conv.weight"].half())


@pytest.mark.slow
def test_a_voice_is_copied_from_context_only(tmp_path, codec):
    """Mistake: the text contains the speaker, so that nothing is learned from context and new voices cannot be cloned."""
    assert {clip.source for clip in make_clips()} | {csm_training.SPEAKER_ID} == {"0"}
    run = Run("pretrain", tmp_path)
    folder = csm_training.train(make_clips(), codec, tmp_path / "model", run, CPU, CONFIG.replace(steps=120), "toy")
    base = load.load_base(str(folder), CPU)
    first_codes = []
    for speaker in (0, 1):
        context = Turn("Hello there.", "0", torch.full((6, 4), 3 + 2 * speaker), in_loss=False)
        prompt = base.prompt_builder.build("clone", [context, Turn("Hello there.", "0")])
        [generation] = InferenceEngine(base.model, base.spec).generate([prompt], Sampling(0, 0), [0], [3])
        first_codes.append(generation.codes[0, 0].item())
    assert first_codes == [3, 5]


@pytest.mark.slow
def test_a_resumed_training_gives_the_same_weights(tmp_path, codec):
    """Mistake: a resumed training loses the tied embeddings, the optimizer or its position."""
    whole = csm_training.train(make_clips(), codec, tmp_path / "whole-model", Run("whole", tmp_path), CPU, CONFIG, "toy")
    run = Run("resumed", tmp_path)

    class Stop(Exception):
        pass

    original = callbacks.ProgressCallback.on_step_end

    def stop(self, args, state, control, **rest):
        original(self, args, state, control, **rest)
        if state.global_step == 45:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(callbacks.ProgressCallback, "on_step_end", stop)
        csm_training.train(make_clips(), codec, tmp_path / "resumed-model", run, CPU, CONFIG, "toy")
    resumed = csm_training.train(make_clips(), codec, tmp_path / "resumed-model", run, CPU, CONFIG, "toy")
    whole_weights, resumed_weights = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(whole_weights[name], resumed_weights[name]) for name in whole_weights)


def test_a_folder_with_other_files_is_not_replaced(tmp_path, codec):
    """Mistake: hours of speech are deleted because --out is their folder; or an earlier model cannot be replaced."""
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "shard.flac").write_bytes(b"speech")
    with pytest.raises(KitError, match="holds something else: no training.json"):
        csm_training.train(make_clips(), codec, tmp_path / "speech", Run("pretrain", tmp_path), CPU, CONFIG, "toy")
    assert (tmp_path / "speech" / "shard.flac").read_bytes() == b"speech"
    for name, is_allowed in (("absent", True), ("empty", True), ("own", True), ("file", False)):
        if name == "file":
            (tmp_path / name).touch()
        elif name != "absent":
            (tmp_path / name).mkdir()
        if name == "own":
            (tmp_path / name / csm_training.TRAINING_FILE).touch()
        with contextlib.nullcontext() if is_allowed else pytest.raises(KitError):
            check_replaceable(tmp_path / name, csm_training.TRAINING_FILE)


@pytest.mark.slow
def test_training_can_start_from_a_trained_model(tmp_path, codec):
    """Mistake: the trained weights are not used, the embeddings are untied, or a model of another shape is half loaded."""
    first = csm_training.train(make_clips(), codec, tmp_path / "model", Run("first", tmp_path), CPU, CONFIG, "toy")
    short = CONFIG.replace(steps=20, learning_rate=1e-5)
    second = csm_training.train(make_clips(), codec, tmp_path / "second model", Run("second", tmp_path), CPU, short, "toy",
                                init_from=str(first))
    assert csm_training.read_training(second)["initialized from"] == csm_training.read_training(first)
    first_loss, second_loss = (min(row["eval_loss"] for row in read_rows(Run(name, tmp_path).training / callbacks.LOG_FILE)
                     if "eval_loss" in row) for name in ("first", "second"))
    assert second_loss == pytest.approx(first_loss, rel=0.02)
    with pytest.raises(KitError, match="not of the shape 'tiny'"):
        csm_training._initial_model("tiny", 0, str(first))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler for torch.compile")
def test_compiled_layers_learn_the_same(tmp_path, codec):
    """Mistake: compiled layers are saved under other names, or compute something else."""
    short = CONFIG.replace(steps=3, eval_steps=3, save_steps=3)
    names, losses = [], []
    for name in ("eager", "compiled"):
        run = Run(name, tmp_path)
        folder = csm_training.train(make_clips(), codec, tmp_path / f"{name}-model", run, CPU, short, "toy",
                                compile_layers=name == "compiled")
        names.append(set(load_file(folder / "model.safetensors")))
        losses += [row["eval_loss"] for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert names[0] == names[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_corpus_is_encoded_with_speed_variants(tmp_path, codec, monkeypatch):
    """Mistake: codes cut at the wrong frames, variants with equal starts, a variant whose speed differs between sentences,
    or a speaker that is both in training and held out."""
    utterances = [(f"s{index % 40}", f"Sentence {index}.",
                   np.random.default_rng(index).normal(0, 0.1, 3000 + 100 * index).astype(np.float32))
                  for index in range(80)]
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter(utterances))
    codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    folder = csm_training.encode(tmp_path, codec, tmp_path / "codes", variants=2)
    encoded = csm_training.load_clips(folder)
    variants = [variant for item in enumerate(utterances)
                for variant in csm_training._speed_variants(*item, 2, codec.spec.frame_rate)]
    for clip, (speaker, text, samples) in zip(encoded, variants, strict=True):
        assert (clip.speaker, clip.text) == (speaker, text)
        assert torch.equal(clip.codes, codec.encode([samples])[0])
    speeds = {}
    originals = [utterance for utterance in utterances for _ in range(2)]
    for (name, _, samples), (speaker, _, variant) in zip(originals, variants):
        speed = float(speaker.partition("@")[2])
        assert speaker.startswith(f"{name}@") and csm_training.MIN_SPEED <= speed <= csm_training.MAX_SPEED
        speeds.setdefault(name, set()).add(speed)
        assert 0 <= len(variant) - len(samples) / speed < 2 + 16000 / codec.spec.frame_rate
    assert all(len(speaker_speeds) == 2 for speaker_speeds in speeds.values())
    assert len({np.flatnonzero(variant)[0] for *_, variant in variants}) > 40
    splits = {split: {clip.speaker.split("@")[0] for clip in encoded if clip.split == split}
              for split in ("train", "held_out")}
    assert len(splits["held_out"]) == 2 and not splits["train"] & splits["held_out"]


@pytest.mark.slow
def test_workers_encode_the_same(tmp_path, codec, monkeypatch):
    """Mistake: sentences change their order, or a worker gives the variants of another one."""
    utterances = [(f"s{index}", f"Sentence {index}.", np.random.default_rng(index).normal(0, 0.1, 3000).astype(np.float32))
                  for index in range(20)]
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter(utterances))
    codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    one, two = (csm_training.load_clips(csm_training.encode(tmp_path, codec, tmp_path / str(workers), 2, workers))
                for workers in (1, 2))
    assert [(clip.text, clip.speaker, clip.split) for clip in one] == [(clip.text, clip.speaker, clip.split) for clip in two]
    assert all(torch.equal(clip.codes, other.codes) for clip, other in zip(one, two, strict=True))


def _train_two(folder):
    for steps in (4, 8):  # the second training resumes the first in both processes
        csm_training.train(make_clips(), model_shapes.untrained("toy").codec_model, folder / f"model-{steps}",
                           Run("two", folder), CPU, CONFIG.replace(steps=steps, eval_steps=4, save_steps=4), "toy")


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(tmp_path):
    """Mistake: each process trains on all clips, or on its own weights; or only the first one resumes."""
    processes.run(_train_two, 2, tmp_path)
    _train_two(tmp_path / "one")
    one, two = (csm_training.read_training(folder / "model-8") for folder in (tmp_path / "one", tmp_path))
    # not equal, because each micro-batch has noise of its own
    assert two["held-out loss"] == pytest.approx(one["held-out loss"], rel=0.02) and two["best step"] == 8


def test_voices_that_the_codec_garbles_are_left_out(tmp_path, codec, monkeypatch):
    """Mistake: two thirds of the speech cannot be understood, and the model learns from it."""
    speakers = ("af_bella", "af_bella-bm_lewis-40", "am_adam", "flite-slt-170-104", "flite-rms-90-100")
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter(
        [(speaker, "One.", np.ones(2000, np.float32)) for speaker in speakers]))
    folder = csm_training.encode(tmp_path, Codec(codec, ModelSpec.of(model_shapes.config("toy"))), tmp_path / "codes", 2)
    clips = csm_training.load_clips(folder, unused_voices=("af_bella", "flite-slt"))
    assert {clip.speaker.split("@")[0] for clip in clips} == {"am_adam", "flite-rms-90-100"}


def test_codes_of_another_codec_are_refused(tmp_path, codec, monkeypatch):
    """Mistake: a new codec is trained, and the model is trained on codes of the old one."""
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter([("s", "One.", np.ones(2000, np.float32))]))
    same_codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    out = csm_training.encode(tmp_path, same_codec, tmp_path / "codes", variants=1)
    assert csm_training.encode(tmp_path, same_codec, out, variants=1) == out
    other = Codec(model_shapes.untrained("toy", 1).codec_model, same_codec.spec)
    with pytest.raises(KitError, match="codes of another codec"):
        csm_training.encode(tmp_path, other, out, variants=1)


def test_auxiliary_clips_are_only_trained_on(tmp_path, codec, monkeypatch):
    """Mistake: the auxiliary corpus changes which speakers are held out, so that results with and without it differ."""
    codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    folders = []
    for kind in ("voice", "aaa"):
        monkeypatch.setattr(csm_training.corpus, "read", lambda folder, kind=kind: iter(
            [(f"{kind}{index}", "One.", np.ones(2000, np.float32)) for index in range(30)]))
        folders.append(csm_training.encode(tmp_path, codec, tmp_path / kind, variants=1))
    alone, both = csm_training.load_clips(folders[0]), csm_training.load_clips(*folders)
    assert [clip.split for clip in both[:30]] == [clip.split for clip in alone]
    assert [clip.text for clip in both] == ["One."] * 60 and {clip.split for clip in both[30:]} == {"train"}
    assert len({clip.id for clip in both}) == 60


def test_both_sentences_have_a_loss_and_noise_is_only_in_the_input(codec):
    """Mistake: half of the speech is not trained on, or the model is trained to predict the noise."""
    prompt_builder = PromptBuilder(model_shapes.tokenizer("toy"), ModelSpec.of(model_shapes.config("toy")))
    clips = [clip for clip in make_clips() if clip.split == "train"]
    config = CONFIG.replace(context_probability=1.0)
    clean, noisy = (csm_training.NoisyDataset(clips, prompt_builder, config, noise)[3] for noise in (0.0, 0.5))
    lengths = {clip.id: len(clip.codes) + 1 for clip in clips}
    assert len(clean["targets"]) > sum(lengths[name] for name in clean["clip_ids"])
    assert torch.equal(clean["targets"], noisy["targets"]) and torch.equal(clean["input_ids"], noisy["input_ids"])
    assert 0.3 < (clean["codes"] != noisy["codes"])[clean["audio_mask"]].float().mean() < 0.7
    assert torch.equal(noisy["codes"], csm_training.NoisyDataset(clips, prompt_builder, config, 0.5)[3]["codes"])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["toy", "tiny", "tiny-merged-phonemes"])
def test_the_tokenizer_matches_the_model_and_encodes_each_text(shape):
    """Mistake: ids without an embedding, merges that differ between processes, or an unknown letter."""
    tokenizer, config = model_shapes.tokenizer(shape), model_shapes.config(shape)
    assert len(tokenizer) == config.text_vocab_size
    assert tokenizer.convert_tokens_to_ids(list(model_shapes.SPECIAL_TOKENS[:4])) == [
        config.bos_token_id, config.pad_token_id, config.audio_token_id, config.audio_eos_token_id]
    text = "Wann? «Morgen» um 7 in Zürich, 東京 \N{GRINNING FACE}!"
    if not model_shapes.SHAPES[shape].get("pronunciations"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    evaluated = " ".join(sentences.evaluation_set().sentences)
    assert len(tokenizer.encode(evaluated)) < (1.01 if shape == "toy" else 0.45) * len(evaluated)
    script = ("from sample_data.build import model_shapes\n"
              f"print(sorted(model_shapes.tokenizer({shape!r}).get_vocab().items()))")
    vocabulary = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": "7"}).stdout
    assert vocabulary.strip() == str(sorted(tokenizer.get_vocab().items()))


def test_a_codec_of_another_shape_is_refused(tmp_path, codec):
    """Mistake: a model is trained for hours on codes that its codec cannot decode."""
    codec.config.sampling_rate = 16_000
    with pytest.raises(KitError, match="not of the shape 'toy'"):
        csm_training.train(make_clips(), codec, tmp_path / "model", Run("pretrain", tmp_path), CPU, CONFIG, "toy")
    assert not (tmp_path / "model").exists()
