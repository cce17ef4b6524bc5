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


@pytest.fixture(scope="session")
def loud(tmp_path_factory):
    """The folder of a toy whose every code depends on all it heard."""
    model = shape.untrained("toy")
    spread_logits(model)
    return str(shape.save(model, tmp_path_factory.mktemp("models") / "loud", "toy"))


@pytest.fixture
def base(toy):
    """The toy, freshly loaded on the CPU."""
    return load.base(toy, runtime.choose("cpu"))


@pytest.fixture
def loud_base(loud):
    """The loud toy, freshly loaded on the CPU."""
    return load.base(loud, runtime.choose("cpu"))


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


def spread_logits(*models):
    """Untrained weights are near zero and repeat one code; larger ones make the codes depend on everything."""
    for holder in models:
        model = getattr(holder, "model", holder)
        generator = torch.Generator().manual_seed(5)
        for name, weight in sorted(model.named_parameters()):
            if "codec" not in name and "lora_" not in name and weight.dim() > 1 and "embed_audio_tokens" not in name:
                weight.data.normal_(0, 0.25, generator=generator)
