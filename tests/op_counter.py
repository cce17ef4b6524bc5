"""Counts the operations and peak memory of a training step on the meta device, to check the constants of `doctor --plan`."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from tts_kit.config import Config
from tts_kit.model import load, lora, loss

aten = torch.ops.aten
LOOKUPS = {aten.embedding, aten._embedding_bag, aten._embedding_bag_forward_only, aten.index, aten.index_select, aten.gather}
"""These read as much as they write, however large the table is."""


class OpCounter(TorchDispatchMode):
    """Counts every operation inside the block, and the bytes alive at the worst moment."""

    def __init__(self, existing: Iterable = ()):
        """Tensors among `existing` were allocated before, and are not counted."""
        super().__init__()
        self.operations = Counter()
        """(FLOPs, bytes read and written) of an operation -> how often it ran."""
        self.allocated, self.peak = 0, 0
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in existing if isinstance(tensor, torch.Tensor)}

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.operations.items())

    @property
    def traffic(self) -> int:
        return sum(moved * count for (_, moved), count in self.operations.items())

    @property
    def launches(self) -> int:
        return self.operations.total()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is aten._local_scalar_dense.default and arguments[0].is_meta:
            # there are no values: transformers asks whether a row holds one clip alone, and it does not
            return False if arguments[0].dtype == torch.bool else 0
        result = function(*arguments, **(options or {}))
        written = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        is_new = [self._track(tensor) for tensor in written]
        if any(is_new) or function._schema.is_mutable:  # the others are views
            self._count(function.overloadpacket, arguments, options or {}, result, written)
        return result

    def _track(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor's memory is new; it is alive until its last owner, autograd included, drops it."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.alive:
            return False
        self.alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata).atexit = False
        self.allocated += storage.nbytes()
        self.peak = max(self.peak, self.allocated)
        return True

    def _free(self, key: int) -> None:
        self.allocated -= self.alive.pop(key)

    def _count(self, function, arguments: tuple, options: dict, result, written: list[torch.Tensor]) -> None:
        formula = flop_registry.get(function)
        flops = formula(*arguments, **options, out_val=result) if formula else 0
        out = sum(map(_bytes, written))
        read = [tensor for tensor in tree_leaves((arguments, options)) if isinstance(tensor, torch.Tensor)]
        self.operations[flops, out + (out if function in LOOKUPS else sum(map(_bytes, read)))] += 1


def meta_model(config: Config, gradient_checkpointing: bool = False) -> torch.nn.Module:
    """Return the config's model with its adapter in 16 bits, as it trains on a GPU, without weights."""
    model = load.without_weights(config.base, config.revision)
    model.codec_model = None
    load.tie(model, {load.BACKBONE_TABLE}, config.base)
    model.requires_grad_(False)
    finetuned = lora.add_lora(model, config.rank, config.alpha, config.lora_targets).to(torch.bfloat16).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return lora.unwrap(finetuned)


def count_step(model: torch.nn.Module, batch: dict, training: bool = True) -> OpCounter:
    """Count one micro-batch, forward and backward or forward alone."""
    batch = tree_map_only(torch.Tensor, lambda tensor: tensor.to(model.device), batch)
    existing = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    with torch.set_grad_enabled(training), fused_attention(), OpCounter(existing) as counter:
        sums = loss.loss_sums(model, batch)
        if training:
            (sums.backbone + sums.depth).backward()
    model.zero_grad(set_to_none=True)
    return counter


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as one kernel, as on a GPU; the meta device would keep all its scores in memory."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _attend, "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:  # torch turns it into numbers for every layer, and keeps them
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p,
                                                        is_causal, scale=scale)[0]


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; a value that is expanded without a copy counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
