"""Export a trained codec as a folder for `MimiModel.from_pretrained`, and evaluate it on held-out speech."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import MimiModel

from sample_data.build import model_shapes, quantizer
from sample_data.build.codec_config import CodecConfig
from sample_data.build.codec_loss import SpectralLoss
from tts_kit import pretrained
from tts_kit.io import atomic_folder, write_json
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.codec import Codec

FILE = "evaluation.json"


def export(model: MimiModel, folder: Path, held_out: Sequence[np.ndarray], config: CodecConfig, facts: dict) -> dict:
    """Write weights, configuration and evaluation without changing `model`; returns the evaluation."""
    exported = copy.deepcopy(model)
    quantizer.normalize_codebooks(exported)
    with pretrained.quiet(), atomic_folder(folder) as staging:
        exported.save_pretrained(staging)
        loaded = MimiModel.from_pretrained(staging).to(model.device)
        evaluation = evaluate(Codec(loaded, ModelSpec.of(model_shapes.config(config.shape))), held_out)
        write_json(staging / FILE, evaluation | facts | {"recipe": dataclasses.asdict(config)})
    return evaluation


def read(folder: Path) -> dict:
    """Return what `export` wrote last; empty if it has not written anything yet."""
    path = Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@torch.inference_mode()
def evaluate(codec: Codec, waves: Sequence[np.ndarray]) -> dict:
    """Return the spectral loss of whole waves, encoded and decoded with 1, 2, 4, ... codebooks, and the use of the codes."""
    spec, spectral_loss = codec.spec, SpectralLoss(codec.spec.sample_rate).to(codec.device)
    levels = sorted({min(2 ** power, spec.num_codebooks) for power in range(spec.num_codebooks.bit_length() + 1)})
    losses, codes = {level: [] for level in levels}, []
    for wave in waves:
        [clip] = codec.encode([wave])
        codes.append(clip)
        real = torch.from_numpy(wave).to(codec.device)[None]
        for level in levels:
            reconstructed = torch.from_numpy(codec.decode([clip], level)[0]).to(codec.device)[None, :len(wave)]
            losses[level].append(spectral_loss(reconstructed, real).item())
    counts = [torch.bincount(column, minlength=spec.codebook_size) for column in torch.cat(codes).long().T]
    return {"clips": len(waves), "held_out_seconds": round(sum(map(len, waves)) / spec.sample_rate, 1),
            "spectral_loss": {str(level): round(float(np.mean(values)), 4) for level, values in losses.items()},
            "perplexity": [round(quantizer.perplexity(code_counts), 1) for code_counts in counts],
            "codes_used": [round(float((code_counts > 0).float().mean()), 3) for code_counts in counts]}
