"""Fixtures that several tests share: an untrained toy model on disk and loaded, and random codes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
# the user's list of fonts is shared by all environments: one that is deleted while it runs leaves a list without fonts
os.environ["MPLCONFIGDIR"] = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "matplotlib")

import dataclasses
import shutil
from pathlib import Path

import browser
import numpy as np
import pytest
import torch

from sample_data.build import model_shapes
from tts_kit import audio, device, io
from tts_kit.config import Config
from tts_kit.data import segment, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.segment import Segment
from tts_kit.data.transcribe import Transcript
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.fused_decoder import FusedDecoder
from tts_kit.model import load
from tts_kit.run import write_inputs
from tts_kit.tokens.cache import EncodedClip

torch.set_num_threads(1)

SEGMENT_TEXTS = ("He lost two wooden chairs.", "The dog ran away.", "Who is that girl?", "Count from one to ten.",
                 "The river is deep.", "We met in the garden.", "Her voice is known here.", "It was too dark.")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The folder of an untrained CSM with two layers."""
    return str(model_shapes.build("toy", tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(scope="session")
def spread_toy(tmp_path_factory):
    """The folder of a toy model with spread logits: large weights, so that each code depends on the whole input."""
    model = model_shapes.untrained("toy")
    spread_logits(model)
    return str(model_shapes.save(model, tmp_path_factory.mktemp("models") / "spread", "toy"))


@pytest.fixture
def base(toy):
    """The toy model, loaded on the CPU."""
    return load.load_base(toy, device.choose("cpu"))


@pytest.fixture
def spread_base(spread_toy):
    """The toy model with spread logits, loaded on the CPU."""
    return load.load_base(spread_toy, device.choose("cpu"))


@pytest.fixture
def config(toy):
    """A config for training the toy model in seconds."""
    return Config(base=toy, rank=4, alpha=8, steps=4, warmup_steps=0, tokens_per_batch=150, depth_frame_fraction=1.0,
                  eval_steps=2, save_steps=2, sample_steps=0)


@pytest.fixture
def stock(toy):
    """Transformers' own model of the toy with repaired embedding tie, the reference for equality tests."""
    from transformers import CsmForConditionalGeneration

    model = CsmForConditionalGeneration.from_pretrained(toy)
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    return model.eval()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    binary = next(filter(None, map(shutil.which, browser.NAMES)), None)
    if not binary:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is on the PATH; apt-get install chromium")
    instance = browser.Browser(binary, tmp_path_factory.mktemp("profile"))
    yield instance
    instance.close()


@pytest.fixture(scope="session")
def segmented_recording(tmp_path_factory) -> Path:
    """The folder of the bundled recording's segments."""
    folder = tmp_path_factory.mktemp("segments")
    segment.segment_recording(Path(__file__).parents[1] / "sample_data" / "recording.flac", folder)
    return folder / "recording"


def make_clip(name: str, frames: int, text: str = "Hello there.", split: str = "train", books: int = 4,
              speaker: str = "") -> EncodedClip:
    """Return a clip with random codes, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(name.encode()) * 1000 + frames)
    codes = torch.randint(0, 32, (frames, books), generator=generator, dtype=torch.int16)
    return EncodedClip(name, text, "0", speaker, name, split, codes)


def make_segments(folder: Path) -> Path:
    """Write two recordings of four clips, segmented and transcribed; each clip is a tone with another pitch."""
    for recording_index, name in enumerate(("monday", "tuesday")):
        recording_folder, segments, transcripts = folder / name, [], []
        for clip_index in range(4):
            file = f"clips/{clip_index + 1:05d}.flac"
            seconds = 2.0 + 0.5 * clip_index
            frequency = 200 + 50 * clip_index + 400 * recording_index
            phase = np.arange(round(seconds * SAMPLE_RATE)) * 2 * np.pi * frequency / SAMPLE_RATE
            audio.write(recording_folder / file, (0.3 * np.sin(phase)).astype(np.float32), SAMPLE_RATE)
            segments.append(Segment(file, 10.0 * clip_index, 10.0 * clip_index + seconds, 40.0, 30.0, 0.0, 2.0))
            text = SEGMENT_TEXTS[4 * recording_index + clip_index]
            transcripts.append(Transcript(file, text, f" {text}", 0.95))
        segments.append(Segment("rejected/00005.flac", 50, 51, 3.0, 30.0, 0.0, 2.0, "noisy: speech 3 dB over the noise"))
        write_inputs(recording_folder, recording=name)
        io.write_rows(recording_folder / segment.SEGMENTS, [dataclasses.asdict(row) for row in segments])
        io.write_rows(recording_folder / transcribe.transcripts_file("base"),
                      [dataclasses.asdict(row) for row in transcripts])
    return folder


def spread_logits(*models):
    """Set large random weights: untrained ones are near zero and repeat one code whatever the input is."""
    for wrapper in models:
        model = getattr(wrapper, "model", wrapper)
        generator = torch.Generator().manual_seed(5)
        for name, weight in sorted(model.named_parameters()):
            if "codec" not in name and "lora_" not in name and weight.dim() > 1 and "embed_audio_tokens" not in name:
                weight.data.normal_(0, 0.25, generator=generator)


@pytest.fixture(autouse=True)
def engines_are_fresh(monkeypatch):
    """Fail any test in which an engine generates with weights that have changed since it copied them."""
    copy_weights = InferenceEngine._copy_weights

    def copy_and_compare(engine):
        copy_weights(engine)
        for decoder in (engine.backbone, engine.depth):
            fresh = FusedDecoder(decoder.decoder)
            fresh.load_weights(engine.adapter)
            for copied, current in zip(sum(decoder.layers, ()), sum(fresh.layers, ())):
                if not torch.equal(copied, current):
                    pytest.fail("the model's weights have changed and `invalidate` was not called on the engine")

    monkeypatch.setattr(InferenceEngine, "_copy_weights", copy_and_compare)


@pytest.fixture(autouse=True)
def threads_stay_the_same():
    """Fail any test that leaves torch with another number of threads, with which later ones compute other last digits."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"torch had {before} threads before the test and has {after} after it"
