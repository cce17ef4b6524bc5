"""What several tests share: an untrained toy model on disk, loaded, and codes without meaning."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network

import pytest
import torch

from tts_kit import runtime
from tts_kit.model import load
from tts_kit.pretrain import shape
from tts_kit.recipe import Recipe
from tts_kit.tokens.cache import Clip

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The folder of an untrained CSM of two layers."""
    return str(shape.build("toy", tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture
def base(toy):
    """The toy, freshly loaded on the CPU."""
    return load.base(toy, runtime.choose("cpu"))


@pytest.fixture
def recipe(toy):
    """A recipe small enough for the toy."""
    return Recipe(base=toy, rank=4, alpha=8, steps=4, warmup_steps=0, tokens_per_batch=150, depth_ratio=1.0,
                  evaluate_every=2, save_every=2, sample_every=0)


@pytest.fixture
def stock(toy):
    """Transformers' own model of the toy with the tie repaired, the reference of the proofs."""
    from transformers import CsmForConditionalGeneration

    model = CsmForConditionalGeneration.from_pretrained(toy)
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    return model.eval()


def make_clip(name: str, frames: int, text: str = "Hello there.", split: str = "train", books: int = 4,
              speaker: str = "") -> Clip:
    """A clip with random codes, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(name.encode()) * 1000 + frames)
    codes = torch.randint(0, 32, (frames, books), generator=generator, dtype=torch.int16)
    return Clip(name, text, "0", speaker, name, split, codes)
