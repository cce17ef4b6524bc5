"""A trained codec as a folder that plain `MimiModel.from_pretrained` loads, and how well it does on speech it never met."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import MimiModel

from sample_data.build import model_shapes, quantizer
from sample_data.build.codec_config import CodecRecipe
from sample_data.build.codec_loss import Spectra
from tts_kit import pretrained
from tts_kit.io import atomic_folder, write_json
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.codec import Codec

FILE = "evaluation.json"


def export(model: MimiModel, folder: Path, held_out: Sequence[np.ndarray], config: CodecRecipe, facts: dict) -> dict:
    """Write weights, configuration and evaluation; `model` stays as it is. Returns the evaluation."""
    settled = copy.deepcopy(model)
    quantizer.settle(settled)
    with pretrained.quiet(), atomic_folder(folder) as beside:
        settled.save_pretrained(beside)
        plain = MimiModel.from_pretrained(beside).to(model.device)
        found = evaluate(Codec(plain, ModelSpec.of(model_shapes.config(config.shape))), held_out)
        write_json(beside / FILE, found | facts | {"recipe": dataclasses.asdict(config)})
    return found


def read(folder: Path) -> dict:
    """What `export` wrote last, empty where there is nothing yet."""
    path = Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@torch.inference_mode()
def evaluate(codec: Codec, waves: Sequence[np.ndarray]) -> dict:
    """Spectral loss of whole waves through plain encode and decode with 1, 2, 4, ... codebooks, and how codes are used."""
    spec, spectra = codec.spec, Spectra(codec.spec.sample_rate).to(codec.device)
    levels = sorted({min(2 ** power, spec.num_codebooks) for power in range(spec.num_codebooks.bit_length() + 1)})
    losses, codes = {level: [] for level in levels}, []
    for wave in waves:
        [clip] = codec.encode([wave])
        codes.append(clip)
        real = torch.from_numpy(wave).to(codec.device)[None]
        for level in levels:
            made = torch.from_numpy(codec.decode([clip], level)[0]).to(codec.device)[None, :len(wave)]
            losses[level].append(spectra(made, real).item())
    counts = [torch.bincount(book, minlength=spec.codebook_size) for book in torch.cat(codes).long().T]
    return {"clips": len(waves), "held_out_seconds": round(sum(map(len, waves)) / spec.sample_rate, 1),
            "spectral_loss": {str(level): round(float(np.mean(each)), 4) for level, each in losses.items()},
            "perplexity": [round(quantizer.perplexity(each), 1) for each in counts],
            "codes_used": [round(float((each > 0).float().mean()), 3) for each in counts]}
