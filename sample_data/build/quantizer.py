"""Teaching Mimi's codebooks, which transformers can only read: straight-through gradients and running means."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import MimiModel

from tts_kit.errors import KitError

EXPIRED = 0.1
"""A code used less than this share of the mean is dead."""


@dataclass
class Branch:
    """What one of Mimi's two residual quantizers made of a batch."""

    output: torch.Tensor
    """(batch, width, frames) in the codebooks' space; gradients pass straight through to the encoder."""
    commitment: torch.Tensor
    """Mean square distance of the latents to what all levels make of them. Asked of fewer levels, it would teach the
    encoder to leave nothing over for the levels behind them."""
    residuals: list[torch.Tensor]
    """Per level, the (vectors, width) that it had to name."""
    codes: torch.Tensor
    """(levels, batch, frames)."""


def branches(model: MimiModel) -> tuple:
    """The semantic quantizer (the first codebook) and the acoustic one (the others)."""
    return model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer


def codebooks(model: MimiModel) -> list:
    """All codebooks, in the order of the codes."""
    return [layer.codebook for branch in branches(model) for layer in branch.layers]


def prepare(model: MimiModel, seed: int) -> None:
    """Orthogonal projections in and out: transformers' std of 0.02 starves the signal, and the latents collapse."""
    generator = torch.Generator().manual_seed(seed)
    for branch in branches(model):
        if branch.input_proj is None:
            raise KitError("this codec's vector_quantization_hidden_dimension equals its hidden_size, so it has no "
                          "projections to teach. Choose a shape where it is smaller.")
        width, hidden, _ = branch.input_proj.weight.shape
        inward = torch.linalg.qr(torch.randn(hidden, width, generator=generator)).Q.T
        branch.input_proj.weight.data.copy_(inward[:, :, None])
        # two branches are summed
        branch.output_proj.weight.data.copy_(inward.T[:, :, None] * 0.5 ** 0.5)


def bypass(model: MimiModel, latents: torch.Tensor) -> torch.Tensor:
    """Latents (batch, hidden, frames) through the projections alone: how a training begins."""
    return sum(branch.output_proj(branch.input_proj(latents)) for branch in branches(model))


def quantize(model: MimiModel, latents: torch.Tensor,
             levels: torch.Tensor | None = None) -> tuple[torch.Tensor, list[Branch]]:
    """Latents (batch, hidden, frames) as plain Mimi would hand them to its decoder, and both branches.

    `levels` (batch,) says for each row how many codebooks its output keeps; every codebook is still asked."""
    done, out, first = [], 0, 0
    for branch in branches(model):
        kept = None if levels is None else (levels - first).clamp(0, len(branch.layers))
        made = _descend(branch.input_proj(latents), branch.layers, kept)
        done.append(made)
        out = out + branch.output_proj(made.output)
        first += len(branch.layers)
    return out, done


def _descend(vectors: torch.Tensor, layers: Sequence, kept: torch.Tensor | None) -> Branch:
    """Down the levels of one branch, each naming what those before it left over."""
    wanted = vectors.detach()
    sofar, output = torch.zeros_like(wanted), torch.zeros_like(wanted)
    residuals, codes = [], []
    for level, layer in enumerate(layers):
        left = (wanted - sofar).transpose(1, 2)
        chosen = layer.codebook.encode(left)
        named = layer.codebook.decode(chosen).transpose(1, 2)
        residuals.append(left.reshape(-1, left.shape[-1]))
        codes.append(chosen)
        sofar = sofar + named
        output = output + (named if kept is None else named * (kept > level)[:, None, None])
    silent = torch.ones_like(vectors[:, :1, :1]) if kept is None else (kept > 0)[:, None, None]
    return Branch(output + (vectors - wanted) * silent, F.mse_loss(vectors, sofar), residuals, torch.stack(codes))


@torch.no_grad()
def learn(model: MimiModel, done: Sequence[Branch], decay: float, chance: np.random.Generator) -> torch.Tensor:
    """Move every code towards the mean of what it named; dead ones begin anew on a vector of this batch.

    Returns how many began anew."""
    renewed = torch.zeros((), dtype=torch.long, device=done[0].output.device)
    residuals = [residual for branch in done for residual in branch.residuals]
    codes = [chosen for branch in done for chosen in branch.codes]
    for codebook, vectors, chosen in zip(codebooks(model), residuals, codes):
        # a product, because index_add is not deterministic on GPUs
        member = F.one_hot(chosen.flatten(), codebook.codebook_size).to(vectors.dtype)
        codebook.cluster_usage.lerp_(member.sum(0), 1 - decay)
        codebook.embed_sum.lerp_(member.T @ vectors, 1 - decay)
        renewed += _renew(codebook, vectors, chance)
        codebook._embed = None  # transformers remembers the quotient
    return renewed


def _renew(codebook, vectors: torch.Tensor, chance: np.random.Generator) -> torch.Tensor:
    usual = codebook.cluster_usage.mean()
    dead = codebook.cluster_usage < EXPIRED * usual
    # drawn whether needed or not, so that chance does not depend on what is dead
    drawn = torch.from_numpy(chance.integers(len(vectors), size=codebook.codebook_size)).to(vectors.device)
    codebook.cluster_usage.copy_(torch.where(dead, usual, codebook.cluster_usage))
    codebook.embed_sum.copy_(torch.where(dead[:, None], vectors[drawn] * usual, codebook.embed_sum))
    return dead.sum()


@torch.no_grad()
def start(model: MimiModel, latents: torch.Tensor, chance: np.random.Generator, rounds: int = 20) -> None:
    """Codebooks by k-means over a pool of latents (vectors, hidden), each level on what the levels before it left."""
    if len(latents) < codebooks(model)[0].codebook_size:
        raise KitError(f"the codebooks have {codebooks(model)[0].codebook_size} codes each, and the pool to start them "
                      f"from only {len(latents)} frames. Raise --pool-seconds.")
    for branch in branches(model):
        left = latents @ branch.input_proj.weight[:, :, 0].T
        for layer in branch.layers:
            codebook = layer.codebook
            centres, counts = _k_means(left, codebook.codebook_size, rounds, chance)
            # as if a usual batch had been seen for long; no code is dead before its first step
            usage = (counts / counts.mean()).clamp(min=2 * EXPIRED)
            codebook.cluster_usage.copy_(usage)
            codebook.embed_sum.copy_(centres * usage[:, None])
            codebook._embed = None
            left = left - codebook.decode(codebook.encode(left))


def _k_means(vectors: torch.Tensor, size: int, rounds: int,
             chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (size, width) and how many vectors each has."""
    centres = vectors[torch.from_numpy(chance.choice(len(vectors), size, replace=False)).to(vectors.device)]
    for _ in range(rounds):
        member = F.one_hot(torch.cdist(vectors, centres).argmin(1), size).to(vectors.dtype)
        counts = member.sum(0)
        elsewhere = vectors[torch.from_numpy(chance.integers(len(vectors), size=size)).to(vectors.device)]
        means = (member.T @ vectors) / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, elsewhere)
    return centres, counts


@torch.no_grad()
def settle(model: MimiModel) -> None:
    """Write each code itself into `embed_sum`, so that rounding the weights to 16 bit rounds a code once."""
    for codebook in codebooks(model):
        codebook.embed_sum.copy_(codebook.embed)
        codebook.cluster_usage.fill_(1)
        codebook.initialized.fill_(1)
        codebook._embed = None


def perplexity(counts: torch.Tensor) -> float:
    """How many codes, equally used, would be as varied as codes used `counts` (codes,) times."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum().exp())


def use(model: MimiModel) -> float:
    """Share of the codebooks that is in use lately, by perplexity."""
    return float(np.mean([perplexity(codebook.cluster_usage) / codebook.codebook_size for codebook in codebooks(model)]))


def spread(latents: torch.Tensor) -> float:
    """Share of the energy of latents (batch, hidden, frames) that differs from frame to frame; 0 is a constant."""
    vectors = latents.detach().float().transpose(1, 2).reshape(-1, latents.shape[1])
    return float(vectors.var(0, unbiased=False).sum() / vectors.square().mean(0).sum().clamp(min=1e-20))
