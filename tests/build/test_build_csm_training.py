"""A model trained from nothing at toy size: it learns, it can be stopped, and plain transformers loads it."""

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

from sample_data.build import csm_training, model_shapes
from sample_data.build import sentences as sentences_of
from tts_kit import device, pretrained
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import check_replaceable, read_rows
from tts_kit.model import load
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import callbacks

CPU = device.choose("cpu")
RECIPE = Config(steps=60, learning_rate=1e-2, warmup_steps=3, tokens_per_batch=300, packing=False, context_probability=0.5,
                depth_frame_fraction=1.0, eval_steps=20, save_steps=20, sample_steps=0)


def sentences() -> list:
    """Eight sentences of each of three speakers of two kinds of voice, a code each; the last speaker is held out."""
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


def test_it_learns_and_plain_transformers_loads_it(tmp_path, codec):
    """Mistake: an audio table untied in training, weights that are not trained, or a folder that only the kit can read."""
    run = Run("pretrain", tmp_path)
    folder = csm_training.train(sentences(), codec, tmp_path / "model", run, CPU, RECIPE, "toy")
    losses = [row["eval_loss"] for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert min(losses) < 0.7 * 2 * 3.56
    base = load.load_base(str(folder), CPU)
    untouched = model_shapes.untrained("toy", RECIPE.seed)
    for name, weight in base.model.named_parameters():
        if weight.dim() > 1 and "text" not in name:
            assert not torch.equal(weight, untouched.get_parameter(name)), f"{name} was not trained"
    plain, report = CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(plain.backbone_model.embed_tokens.embed_audio_tokens.weight,
                       plain.depth_decoder.model.embed_tokens.weight)
    assert torch.equal(load_file(folder / "model.safetensors")["codec_model.encoder.layers.0.conv.weight"],
                       codec.state_dict()["encoder.layers.0.conv.weight"].half())


@pytest.mark.slow
def test_a_voice_is_copied_from_context_only(tmp_path, codec):
    """Mistake: the speaker stands in the text, so that nothing is learnt from context and new voices cannot be cloned."""
    ids = {clip.source for clip in sentences()} | {csm_training.SPEAKER}
    assert ids == {"0"}
    run = Run("pretrain", tmp_path)
    folder = csm_training.train(sentences(), codec, tmp_path / "model", run, CPU, RECIPE.replace(steps=120), "toy")
    from tts_kit.generation.engine import InferenceEngine
    from tts_kit.generation.sampling import Sampling
    from tts_kit.tokens.prompt import Turn
    base = load.load_base(str(folder), CPU)
    outputs = []
    for speaker in (0, 1):
        inputs = Turn("Hello there.", "0", torch.full((6, 4), 3 + 2 * speaker), in_loss=False)
        prompt = base.prompt_builder.build("clone", [inputs, Turn("Hello there.", "0")])
        outputs.append(InferenceEngine(base.model, base.spec).generate([prompt], Sampling(0, 0), [0],
                                                                    [3])[0].codes[0, 0].item())
    assert outputs == [3, 5]


@pytest.mark.slow
def test_stopped_and_started_again_is_the_same(tmp_path, codec):
    """Mistake: a resumed training loses the tied table, the optimizer or its place."""
    whole = csm_training.train(sentences(), codec, tmp_path / "all at once", Run("whole", tmp_path), CPU, RECIPE, "toy")
    run = Run("halves", tmp_path)

    class Stop(Exception):
        pass

    real = callbacks.ProgressCallback.on_step_end

    def stop(self, args, state, control, **rest):
        real(self, args, state, control, **rest)
        if state.global_step == 45:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(callbacks.ProgressCallback, "on_step_end", stop)
        csm_training.train(sentences(), codec, tmp_path / "parts", run, CPU, RECIPE, "toy")
    parts = csm_training.train(sentences(), codec, tmp_path / "parts", run, CPU, RECIPE, "toy")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_of_something_else_is_not_replaced(tmp_path, codec):
    """Mistake: hours of speech vanish because --out names the folder they lie in; a model made before can be replaced."""
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "shard.flac").write_bytes(b"precious")
    with pytest.raises(KitError, match="holds something else: no training.json"):
        csm_training.train(sentences(), codec, tmp_path / "speech", Run("pretrain", tmp_path), CPU, RECIPE, "toy")
    assert (tmp_path / "speech" / "shard.flac").read_bytes() == b"precious"
    for name, allowed in (("absent", True), ("empty", True), ("own", True), ("file", False)):
        if name == "file":
            (tmp_path / name).touch()
        elif name != "absent":
            (tmp_path / name).mkdir()
        if name == "own":
            (tmp_path / name / csm_training.FACTS).touch()
        with contextlib.nullcontext() if allowed else pytest.raises(KitError):
            check_replaceable(tmp_path / name, csm_training.FACTS)


def test_it_learns_on_from_a_trained_model(tmp_path, codec):
    """Mistake: the trained weights are not taken, the tables come apart, or a model of another shape is half loaded."""
    first = csm_training.train(sentences(), codec, tmp_path / "model", Run("first", tmp_path), CPU, RECIPE, "toy")
    second = Run("second", tmp_path)
    little = RECIPE.replace(steps=20, learning_rate=1e-5)
    other = csm_training.train(sentences(), codec, tmp_path / "other model", second, CPU, little, "toy", begin_with=str(first))
    assert csm_training.facts(other)["begun with"] == csm_training.facts(first), "where its weights come from is forgotten"
    last, now = (min(row["eval_loss"] for row in read_rows(Run(name, tmp_path).training / callbacks.LOG_FILE)
                     if "eval_loss" in row) for name in ("first", "second"))
    assert now == pytest.approx(last, rel=0.02)
    with pytest.raises(KitError, match="not of the shape 'tiny'"):
        csm_training._beginning("tiny", 0, str(first))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler to fuse operations with")
def test_fused_layers_learn_the_same(tmp_path, codec):
    """Mistake: compiled layers that are saved under other names, or that compute something else."""
    short = RECIPE.replace(steps=3, eval_steps=3, save_steps=3)
    names, losses = [], []
    for name in ("plain", "fused"):
        run = Run(name, tmp_path)
        folder = csm_training.train(sentences(), codec, tmp_path / f"{name}-model", run, CPU, short, "toy",
                                compiled=name == "fused")
        names.append(set(load_file(folder / "model.safetensors")))
        losses += [row["eval_loss"] for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert names[0] == names[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_codes_of_a_corpus_and_their_speakers(tmp_path, codec, monkeypatch):
    """Mistake: codes cut at the wrong frames, a sentence heard at the same moments each time, a voice whose speed changes
    between its sentences, or a speaker in training and held out at once."""
    spoken = [(f"s{number % 40}", f"Sentence {number}.",
               np.random.default_rng(number).normal(0, 0.1, 3000 + 100 * number).astype(np.float32)) for number in range(80)]
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter(spoken))
    codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    folder = csm_training.encode(tmp_path, codec, tmp_path / "codes", variants=2)
    encoded = csm_training.clips(folder)
    inputs = list(csm_training._varied(spoken, 2, codec.spec.frame_rate))
    for clip, (speaker, text, samples) in zip(encoded, inputs, strict=True):
        assert (clip.speaker, clip.text) == (speaker, text)
        assert torch.equal(clip.codes, codec.encode([samples])[0])
    speeds = {}
    for (name, _, samples), (speaker, _, altered) in zip([item for item in spoken for _ in range(2)], inputs):
        speed = float(speaker.partition("@")[2])
        assert speaker.startswith(f"{name}@") and csm_training.SLOWEST <= speed <= csm_training.FASTEST
        speeds.setdefault(name, set()).add(speed)
        assert 0 <= len(altered) - len(samples) / speed < 2 + 16000 / codec.spec.frame_rate
    assert all(len(item) == 2 for item in speeds.values())
    assert len({np.flatnonzero(altered)[0] for *_, altered in inputs}) > 40
    splits = {split: {clip.speaker.split("@")[0] for clip in encoded if clip.split == split}
              for split in ("train", "held_out")}
    assert len(splits["held_out"]) == 2 and not splits["train"] & splits["held_out"]


def test_codes_of_another_codec_are_refused(tmp_path, codec, monkeypatch):
    """Mistake: a new codec is trained, and the network learns on with the codes of the old one."""
    monkeypatch.setattr(csm_training.corpus, "read", lambda folder: iter([("s", "One.", np.ones(2000, np.float32))]))
    mine = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    out = csm_training.encode(tmp_path, mine, tmp_path / "codes", variants=1)
    assert csm_training.encode(tmp_path, mine, out, variants=1) == out
    other = Codec(model_shapes.untrained("toy", 1).codec_model, mine.spec)
    with pytest.raises(KitError, match="codes of another codec"):
        csm_training.encode(tmp_path, other, out, variants=1)


def test_practice_is_learnt_and_never_judged(tmp_path, codec, monkeypatch):
    """Mistake: practice changes who is held out, so that trainings with and without it cannot be compared."""
    codec = Codec(codec, ModelSpec.of(model_shapes.config("toy")))
    folders = []
    for kind in ("voice", "aaa"):
        monkeypatch.setattr(csm_training.corpus, "read", lambda folder, kind=kind: iter(
            [(f"{kind}{number}", "One.", np.ones(2000, np.float32)) for number in range(30)]))
        folders.append(csm_training.encode(tmp_path, codec, tmp_path / kind, variants=1))
    alone, both = csm_training.clips(folders[0]), csm_training.clips(*folders)
    assert [clip.split for clip in both[:30]] == [clip.split for clip in alone]
    assert [clip.text for clip in both] == ["One."] * 60 and {clip.split for clip in both[30:]} == {"train"}
    assert len({clip.id for clip in both}) == 60


def test_both_sentences_teach_and_noise_is_only_heard(codec):
    """Mistake: half of the speech is read for nothing, or the model is taught to say the noise."""
    prompt_builder = PromptBuilder(model_shapes.tokenizer("toy"), ModelSpec.of(model_shapes.config("toy")))
    clips = [clip for clip in sentences() if clip.split == "train"]
    config = RECIPE.replace(context_probability=1.0)
    clean, noisy = (csm_training.Steps(clips, prompt_builder, config, noise)[3] for noise in (0.0, 0.5))
    lengths = {clip.id: len(clip.codes) + 1 for clip in clips}
    assert len(clean["targets"]) > sum(lengths[name] for name in clean["clip_ids"])
    assert torch.equal(clean["targets"], noisy["targets"]) and torch.equal(clean["input_ids"], noisy["input_ids"])
    inputs = clean["audio_mask"]
    assert 0.3 < (clean["codes"] != noisy["codes"])[inputs].float().mean() < 0.7
    assert torch.equal(noisy["codes"], csm_training.Steps(clips, prompt_builder, config, 0.5)[3]["codes"])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["toy", "tiny"])
def test_the_tokenizer_fits_the_model_and_knows_every_text(size):
    """Mistake: ids that the embedding does not have, merges that differ from process to process, or an unknown letter."""
    tokenizer, config = model_shapes.tokenizer(size), model_shapes.config(size)
    assert len(tokenizer) == config.text_vocab_size
    assert tokenizer.convert_tokens_to_ids(list(model_shapes.SPECIAL_TOKENS[:4])) == [config.bos_token_id, config.pad_token_id,
                                                                 config.audio_token_id, config.audio_eos_token_id]
    outputs = "Wann? «Morgen» um 7 in Zürich, 東京 \N{GRINNING FACE}!"
    assert tokenizer.decode(tokenizer.encode(outputs, add_special_tokens=False)) == outputs
    judged = " ".join(sentences_of.evaluation_set().sentences)
    assert len(tokenizer.encode(judged)) < (0.45 if size == "tiny" else 1.01) * len(judged)
    script = f"from sample_data.build import model_shapes; print(sorted(model_shapes.tokenizer({size!r}).get_vocab().items()))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": "7"}).stdout
    assert other.strip() == str(sorted(tokenizer.get_vocab().items()))


def test_a_codec_of_another_shape_is_refused(tmp_path, codec):
    """Mistake: a model is trained for hours on codes that its codec cannot speak."""
    codec.config.sampling_rate = 16_000
    with pytest.raises(KitError, match="not of the shape 'toy'"):
        csm_training.train(sentences(), codec, tmp_path / "model", Run("pretrain", tmp_path), CPU, RECIPE, "toy")
    with pretrained.quiet():
        assert not (tmp_path / "model").exists()
