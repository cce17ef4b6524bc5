"""What one training step costs, counted on the kit's own step: on the meta device, where nothing is computed."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from tts_kit.config import Config
from tts_kit.doctor.gpus import Gpu
from tts_kit.model import load, lora, loss

aten = torch.ops.aten
LOOKUPS = {aten.embedding, aten._embedding_bag, aten._embedding_bag_forward_only, aten.index, aten.index_select, aten.gather}
"""Read as much as they write, however large the table is."""
OF_PEAK, OF_BANDWIDTH = 0.5, 0.7
"""What an operation reaches of a card's arithmetic and of its memory's speed: assumed."""
LAUNCH = 8e-6
"""Seconds that Python and torch take to send one operation to the card: assumed."""


@dataclass(frozen=True)
class StepCost:
    """One micro-batch, forward and backward, or forward alone."""
    positions: int
    peak: int
    """Bytes alive at the worst moment, without the weights."""
    work: Counter
    """(floating-point operations, bytes read and written) of an operation -> how many there are."""

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.work.items())

    @property
    def launches(self) -> int:
        return self.work.total()

    def busy(self, card: Gpu) -> float:
        """Seconds in which the card computes: each operation takes the longer of its arithmetic and its traffic."""
        arithmetic, bandwidth = card.arithmetic * 1e12 * OF_PEAK, card.bandwidth * 1e9 * OF_BANDWIDTH
        return sum(max(flops / arithmetic, moved / bandwidth) * count for (flops, moved), count in self.work.items())


class OpCounter(TorchDispatchMode):
    """Writes down every operation inside the block, and how many bytes are alive at the worst moment."""

    def __init__(self, known: Iterable = ()):
        """`known`: the tensors among these were there before, and are not counted."""
        super().__init__()
        self.work, self.now, self.peak = Counter(), 0, 0
        self.alive = {each.untyped_storage()._cdata: 0 for each in known if isinstance(each, torch.Tensor)}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is aten._local_scalar_dense.default and arguments[0].is_meta:
            # without values nothing can be asked: transformers asks whether a row holds one clip alone, and it does not
            return False if arguments[0].dtype == torch.bool else 0
        made = function(*arguments, **(options or {}))
        written = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        is_new = [self._meet(each) for each in written]
        if any(is_new) or function._schema.is_mutable:  # the others only look at memory in another way
            self._write_down(function.overloadpacket, arguments, options or {}, made, written)
        return made

    def _meet(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor's memory is new; it is alive until the last who knows it, autograd too, lets go of it."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.alive:
            return False
        self.alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata).atexit = False
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return True

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def _write_down(self, function, arguments: tuple, options: dict, made, written: list[torch.Tensor]) -> None:
        formula = flop_registry.get(function)
        flops = formula(*arguments, **options, out_val=made) if formula else 0
        out = sum(map(_size, written))
        read = [each for each in tree_leaves((arguments, options)) if isinstance(each, torch.Tensor)]
        self.work[flops, out + (out if function in LOOKUPS else sum(map(_size, read)))] += 1


def network(config: Config, gradient_checkpointing: bool = False) -> torch.nn.Module:
    """The recipe's model with its adapter, as it trains on a card, without any weight.

    All of it is in 16 bits, as what is computed is; that the adapter is kept in float32 the plan adds.
    """
    model = load.without_weights(config.base, config.revision)
    model.codec_model = None
    load.tie(model, {load.BACKBONE_TABLE}, config.base)
    model.requires_grad_(False)
    finetuned = lora.add_lora(model, config.rank, config.alpha, config.lora_targets).to(torch.bfloat16).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return lora.unwrap(finetuned)


def step(model: torch.nn.Module, batch: dict, learns: bool = True) -> StepCost:
    """Count one micro-batch of `tuning.batches`; the gradients that it leaves in the model are taken away again."""
    batch = tree_map_only(torch.Tensor, lambda each: each.to(model.device), batch)
    known = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    with torch.set_grad_enabled(learns), fused_attention(), OpCounter(known) as ledger:
        sums = loss.loss_sums(model, batch)
        if learns:
            (sums.backbone + sums.depth).backward()
    model.zero_grad(set_to_none=True)
    return StepCost(batch["input_ids"].numel(), ledger.peak, ledger.work)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as one kernel, as on a card; the meta device would spell it out, with all its scores in memory."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _attend, "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:  # torch turns it into numbers for every layer, and keeps them
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p,
                                                        is_causal, scale=scale)[0]


def _size(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; a value that is repeated without being copied counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
