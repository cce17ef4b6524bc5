"""Train Mimi's codebooks, which transformers only reads: straight-through gradients, moving averages and k-means."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import MimiModel

from tts_kit.errors import KitError
from tts_kit.training import distributed

DEAD_BELOW = 0.1  # share of the mean usage below which a code is dead


@dataclass
class Branch:
    """The output of one of Mimi's two residual quantizers for a batch."""

    output: torch.Tensor
    """(batch, width, frames) in the space of the codebooks; gradients pass straight through to the encoder."""
    anchor: torch.Tensor  # see `anchor`
    commitment: torch.Tensor
    """Mean square distance of the latents to the sum of the codes of all levels. With fewer levels it would train the
    encoder to leave no residual for the later levels."""
    residuals: list[torch.Tensor]  # per level, the (vectors, width) that it quantized
    codes: torch.Tensor  # (levels, batch, frames)


def branches(model: MimiModel) -> tuple:
    """Return the semantic quantizer (the first codebook) and the acoustic one (the other codebooks)."""
    return model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer


def codebooks(model: MimiModel) -> list:
    """Return all codebooks, in the order of the codes."""
    return [layer.codebook for branch in branches(model) for layer in branch.layers]


def init_projections(model: MimiModel, seed: int) -> None:
    """Make the projections orthogonal: with the std of 0.02 of transformers the signal vanishes and the latents collapse."""
    generator = torch.Generator().manual_seed(seed)
    for branch in branches(model):
        if branch.input_proj is None:
            raise KitError("this codec's vector_quantization_hidden_dimension equals its hidden_size, so it has no "
                          "projections to train. Choose a shape in which it is smaller.")
        width, hidden, _ = branch.input_proj.weight.shape
        projection = torch.linalg.qr(torch.randn(hidden, width, generator=generator)).Q.T
        branch.input_proj.weight.data.copy_(projection[:, :, None])
        # the outputs of two branches are added
        branch.output_proj.weight.data.copy_(projection.T[:, :, None] * 0.5 ** 0.5)


def bypass(model: MimiModel, latents: torch.Tensor) -> torch.Tensor:
    """Project latents (batch, hidden, frames) in and out without quantizing them, as in the first steps."""
    return sum(branch.output_proj(branch.input_proj(latents)) for branch in branches(model))


def quantize(model: MimiModel, latents: torch.Tensor,
             levels: torch.Tensor | None = None) -> tuple[torch.Tensor, list[Branch]]:
    """Quantize latents (batch, hidden, frames); returns the decoder's input, as in plain Mimi, and both branches.

    `levels` (batch,) is the number of codebooks in the output of each row; all codebooks are computed in any case."""
    outputs, total, first_level = [], 0, 0
    for branch in branches(model):
        branch_levels = None if levels is None else (levels - first_level).clamp(0, len(branch.layers))
        output = _quantize_residual(branch.input_proj(latents), branch.layers, branch_levels)
        outputs.append(output)
        total = total + branch.output_proj(output.output)
        first_level += len(branch.layers)
    return total, outputs


def _quantize_residual(vectors: torch.Tensor, layers: Sequence, levels: torch.Tensor | None) -> Branch:
    """Run the levels of one branch, each on the residual of the levels before it."""
    target = vectors.detach()
    quantized, output = torch.zeros_like(target), torch.zeros_like(target)
    residuals, codes = [], []
    for level, layer in enumerate(layers):
        residual = (target - quantized).transpose(1, 2)
        level_codes = layer.codebook.encode(residual)
        decoded = layer.codebook.decode(level_codes).transpose(1, 2)
        residuals.append(residual.reshape(-1, residual.shape[-1]))
        codes.append(level_codes)
        quantized = quantized + decoded
        output = output + (decoded if levels is None else decoded * (levels > level)[:, None, None])
    is_used = torch.ones_like(vectors[:, :1, :1]) if levels is None else (levels > 0)[:, None, None]
    return Branch(output + (vectors - target) * is_used, anchor(vectors), F.mse_loss(vectors, quantized), residuals,
                  torch.stack(codes))


def anchor(vectors: torch.Tensor) -> torch.Tensor:
    """Penalize latents (batch, width, frames) whose mean wanders, whose energy is not 1, or that lie in few dimensions.

    Straight-through gradients move the latents wherever the decoder wants them, and no other loss moves them back."""
    flat = vectors.transpose(1, 2).reshape(-1, vectors.shape[1])
    covariance = torch.cov(flat.T, correction=0)
    concentration = covariance.square().sum() / covariance.trace().square().clamp(min=1e-12)  # 1 / effective dimensions
    return flat.mean(0).square().mean() + (flat.square().mean() - 1).square() + concentration


@torch.no_grad()
def update_codebooks(model: MimiModel, outputs: Sequence[Branch], decay: float, rng: np.random.Generator) -> torch.Tensor:
    """Move each code towards the mean of its vectors, and replace dead codes by vectors of this batch.

    Returns the number of replaced codes."""
    replaced = torch.zeros((), dtype=torch.long, device=outputs[0].output.device)
    residuals = [residual for branch in outputs for residual in branch.residuals]
    codes = [level_codes for branch in outputs for level_codes in branch.codes]
    statistics = []
    for codebook, vectors, level_codes in zip(codebooks(model), residuals, codes):
        # a product, because index_add is not deterministic on GPUs
        one_hot = F.one_hot(level_codes.flatten(), codebook.codebook_size).to(vectors.dtype)
        # always drawn, so that the state of `rng` does not depend on which codes are dead; only the first process's are used
        indices = torch.from_numpy(rng.integers(len(vectors), size=codebook.codebook_size)).to(vectors.device)
        statistics += [one_hot.sum(0), one_hot.T @ vectors, vectors[indices] * distributed.is_rank_zero()]
    distributed.all_reduce_sum(statistics)
    for codebook, usage, embed_sum, candidates in zip(codebooks(model), *(statistics[index::3] for index in range(3))):
        codebook.cluster_usage.lerp_(usage, 1 - decay)
        codebook.embed_sum.lerp_(embed_sum, 1 - decay)
        replaced += _replace_dead_codes(codebook, candidates)
        codebook._embed = None  # transformers caches the quotient
    return replaced


def _replace_dead_codes(codebook, candidates: torch.Tensor) -> torch.Tensor:
    mean_usage = codebook.cluster_usage.mean()
    is_dead = codebook.cluster_usage < DEAD_BELOW * mean_usage
    codebook.cluster_usage.copy_(torch.where(is_dead, mean_usage, codebook.cluster_usage))
    codebook.embed_sum.copy_(torch.where(is_dead[:, None], candidates * mean_usage, codebook.embed_sum))
    return is_dead.sum()


@torch.no_grad()
def init_codebooks(model: MimiModel, latents: torch.Tensor, rng: np.random.Generator, iterations: int = 20) -> None:
    """Initialize the codebooks by k-means over latents (vectors, hidden), each level on the residual of those before it."""
    if len(latents) < codebooks(model)[0].codebook_size:
        raise KitError(f"each codebook has {codebooks(model)[0].codebook_size} codes, and there are only {len(latents)} "
                      "frames to initialize them from. Raise --kmeans-seconds.")
    for branch in branches(model):
        residual = latents @ branch.input_proj.weight[:, :, 0].T
        for layer in branch.layers:
            codebook = layer.codebook
            centres, counts = _k_means(residual, codebook.codebook_size, iterations, rng)
            # as if average batches had been counted for a long time; no code is dead before its first step
            usage = (counts / counts.mean()).clamp(min=2 * DEAD_BELOW)
            codebook.cluster_usage.copy_(usage)
            codebook.embed_sum.copy_(centres * usage[:, None])
            codebook._embed = None
            residual = residual - codebook.decode(codebook.encode(residual))


def _k_means(vectors: torch.Tensor, size: int, iterations: int,
             rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centres (size, width) and the number of vectors of each."""
    centres = vectors[torch.from_numpy(rng.choice(len(vectors), size, replace=False)).to(vectors.device)]
    for _ in range(iterations):
        one_hot = F.one_hot(torch.cdist(vectors, centres).argmin(1), size).to(vectors.dtype)
        counts = one_hot.sum(0)
        replacements = vectors[torch.from_numpy(rng.integers(len(vectors), size=size)).to(vectors.device)]
        means = (one_hot.T @ vectors) / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, replacements)
    return centres, counts


@torch.no_grad()
def normalize_codebooks(model: MimiModel) -> None:
    """Store each code itself in `embed_sum`, with a usage of 1, so that rounding the weights to 16 bit rounds it once."""
    for codebook in codebooks(model):
        codebook.embed_sum.copy_(codebook.embed)
        codebook.cluster_usage.fill_(1)
        codebook.initialized.fill_(1)
        codebook._embed = None


def perplexity(counts: torch.Tensor) -> float:
    """Return the perplexity of codes that are used `counts` (codes,) times."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum().exp())


def codebook_usage(model: MimiModel) -> float:
    """Return the perplexity of the recently used codes as a share of the codebook size, mean over the codebooks."""
    return float(np.mean([perplexity(codebook.cluster_usage) / codebook.codebook_size for codebook in codebooks(model)]))


def temporal_variance_ratio(latents: torch.Tensor) -> float:
    """Return the share of the energy of latents (batch, hidden, frames) that varies from frame to frame; 0 if constant."""
    vectors = latents.detach().float().transpose(1, 2).reshape(-1, latents.shape[1])
    return float(vectors.var(0, unbiased=False).sum() / vectors.square().mean(0).sum().clamp(min=1e-20))
