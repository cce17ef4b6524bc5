"""A trained codec as a folder that plain `MimiModel.from_pretrained` loads, and how well it does on speech it never met."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import MimiModel

from tts_kit import checkpoint
from tts_kit.physics import Physics
from tts_kit.pretrain import quantizer, shape
from tts_kit.pretrain.codec_recipe import CodecRecipe
from tts_kit.pretrain.spectra import Spectra
from tts_kit.run import write_json, writing_folder
from tts_kit.tokens.codec import Codec

FILE = "evaluation.json"


def export(model: MimiModel, folder: Path, held_out: Sequence[np.ndarray], recipe: CodecRecipe, facts: dict) -> dict:
    """Write weights, configuration and evaluation; `model` stays as it is. Returns the evaluation."""
    settled = copy.deepcopy(model)
    quantizer.settle(settled)
    with checkpoint.quiet(), writing_folder(folder) as beside:
        settled.save_pretrained(beside)
        plain = MimiModel.from_pretrained(beside).to(model.device)
        found = evaluate(Codec(plain, Physics.of(shape.config(recipe.shape))), held_out)
        write_json(beside / FILE, found | facts | {"recipe": dataclasses.asdict(recipe)})
    return found


def read(folder: Path) -> dict:
    """What `export` wrote last, empty where there is nothing yet."""
    path = Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@torch.inference_mode()
def evaluate(codec: Codec, waves: Sequence[np.ndarray]) -> dict:
    """Spectral loss of whole waves through plain encode and decode with 1, 2, 4, ... codebooks, and how codes are used."""
    physics, spectra = codec.physics, Spectra(codec.physics.sample_rate).to(codec.device)
    levels = sorted({min(2 ** power, physics.codebooks) for power in range(physics.codebooks.bit_length() + 1)})
    losses, codes = {level: [] for level in levels}, []
    for wave in waves:
        [clip] = codec.encode([wave])
        codes.append(clip)
        real = torch.from_numpy(wave).to(codec.device)[None]
        for level in levels:
            made = torch.from_numpy(codec.decode([clip], level)[0]).to(codec.device)[None, :len(wave)]
            losses[level].append(spectra(made, real).item())
    counts = [torch.bincount(book, minlength=physics.codebook_size) for book in torch.cat(codes).long().T]
    return {"clips": len(waves), "held_out_seconds": round(sum(map(len, waves)) / physics.sample_rate, 1),
            "spectral_loss": {str(level): round(float(np.mean(each)), 4) for level, each in losses.items()},
            "perplexity": [round(quantizer.perplexity(each), 1) for each in counts],
            "codes_used": [round(float((each > 0).float().mean()), 3) for each in counts]}
