"""The inference engine: prompts in, codes out; equal to transformers' `generate` when greedy.

A frame is one backbone step that gives codebook 0, and a loop of the depth decoder for the others. No frame makes the host
wait for the device; on a GPU a frame is one CUDA graph, unless that fails or TTS_KIT_GRAPHS is 0. With guidance the rows of
unconditional prompts are part of the same batch, and get the same codes."""

import contextlib
import gc
import itertools
import os
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import pad
from transformers import CsmForConditionalGeneration

from tts_kit.errors import KitError, reason
from tts_kit.generation.fused_decoder import FusedDecoder
from tts_kit.generation.sampling import Sampling, draw_gumbel_noise, guide, sample_token
from tts_kit.model.embed import embed_inputs
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.prompt import Example

KV_LENGTH_BUCKET = 256
"""Cache lengths on a GPU are multiples of this, so that one captured graph serves prompts of many lengths."""
GRAPH_BATCH_SIZES = (1, 2, 4, 8)  # batches are filled up to one of these, larger ones stay; the added rows are not read
MAX_CACHED_GRAPHS = 16
GRAPHS_VARIABLE = "TTS_KIT_GRAPHS"  # environment variable; 0: no CUDA graphs
PIPELINE_DEPTH = 4  # frames that a GPU may be ahead of the host, which looks for EOS; at the end as many are thrown away
MIN_FRAMES = 2  # an utterance of fewer frames counts as failed: nothing was said


class ModelBusyError(KitError):
    """An engine that is asked for a second generation while the first is running."""


@dataclass
class Generation:
    """One generated utterance."""
    codes: torch.Tensor  # (frames, codebooks) int16, without the EOS frame
    ended_with_eos: bool  # whether the model ended it, rather than the frame limit
    attempts: int = 1  # generations it took, failed ones included
    wall_seconds: float = 0.0
    choice: str = ""  # why it was chosen among several takes

    @property
    def is_complete(self) -> bool:
        """Whether it says something and ended with EOS."""
        return self.ended_with_eos and len(self.codes) >= MIN_FRAMES


@dataclass
class DecodeState:
    """All tensors that change from frame to frame, at fixed addresses, so that a captured graph can be replayed on them.

    Its rows are those of B prompts, and with guidance as many again of each kind of unconditional prompts."""
    sampling: Sampling
    kv_cache: list[torch.Tensor]
    depth_kv_cache: list[torch.Tensor]
    rope_freqs: torch.Tensor  # of every position of the cache
    attention_mask: torch.Tensor  # (rows, 1, 1, length), added to the attention scores
    position_ids: torch.Tensor  # (rows, 1) position of the newest frame, not counting padding
    cache_position: torch.Tensor  # (1,) where in the cache the newest frame stands
    codes: torch.Tensor  # (B, codebooks) the newest frame
    noise: torch.Tensor  # (B, codebooks, top_k) for sampling that frame
    kv_len: int  # positions of the cache that are attended to: those in use, or with a graph all
    is_padded: bool = True
    graph: torch.cuda.CUDAGraph | None = None


class PendingFrame:
    """A frame (B, codebooks) on its way to the host, which does not wait for it until asked."""

    def __init__(self, codes: torch.Tensor):
        self.copied = torch.cuda.Event() if codes.device.type == "cuda" else None
        self.frame = codes.to("cpu", non_blocking=self.copied is not None, copy=True)
        if self.copied:
            self.copied.record()

    def wait(self) -> torch.Tensor:
        if self.copied:
            self.copied.synchronize()
        return self.frame


class InferenceEngine:
    """Generates codes with a CSM, out of merged and fused copies of its layers; embeddings and heads are the model's own.

    The copies are made for the next generation after `load_adapter` or `invalidate`, and else never looked at: whoever
    changes weights (an optimizer step, a strength, a merge) has to call `invalidate`."""

    def __init__(self, model: CsmForConditionalGeneration, spec: ModelSpec, adapter: str | None = None):
        self.model, self.spec, self.adapter = model, spec, adapter
        depth_decoder = model.depth_decoder
        self.backbone, self.depth = FusedDecoder(model.backbone_model), FusedDecoder(depth_decoder.model)
        self.embed_frame, self.embed_code = model.backbone_model.embed_tokens, depth_decoder.model.embed_tokens
        self.project_inputs = depth_decoder.model.inputs_embeds_projector
        self.depth_vocab_size, self.depth_heads = depth_decoder.config.vocab_size, None
        self.device = model.lm_head.weight.device
        self.uses_graphs = self.device.type == "cuda" and os.environ.get(GRAPHS_VARIABLE) != "0"
        # the depth decoder starts with two positions, the backbone's state and codebook 0, and goes on one by one
        self.depth_rope_freqs = self.depth.rope_freqs(spec.num_codebooks).split([2] + [1] * (spec.num_codebooks - 2))
        self.graph_pool: OrderedDict[tuple, DecodeState] = OrderedDict()
        self.graph_memory = torch.cuda.graph_pool_handle() if self.uses_graphs else None  # shared: one graph runs at a time
        self._is_stale = True
        self._lock = threading.Lock()

    def load_adapter(self, adapter: str | None) -> None:
        """Generate with this one of the model's adapters from now on; with None, as the base model."""
        self._is_stale = self._is_stale or adapter != self.adapter
        self.adapter = adapter

    def invalidate(self) -> None:
        """Copy the weights again before the next generation: the model's have changed."""
        self._is_stale, self.depth_heads = True, None
        self.graph_pool.clear()  # embeddings and heads, which graphs read where they were, may have moved

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Reserve the engine for one caller; any other is refused meanwhile."""
        if not self._lock.acquire(blocking=False):
            raise ModelBusyError("the model is still generating something else, in this voice or one that shares it, and "
                                 "would mix the two. Wait for the end, close the stream, or load the voice on its own.")
        try:
            yield
        finally:
            self._lock.release()

    def generate(self, prompts: Sequence[Example], sampling: Sampling, seeds: Sequence[int],
                 max_frames: Sequence[int]) -> list[Generation]:
        """Generate several prompts in one batch; each result depends on its own seed only, not on its neighbours.

        `max_frames` is read at every frame, so that a caller may lower a limit meanwhile."""
        frames, ends = [], [None] * len(prompts)
        with contextlib.closing(self.stream(prompts, sampling, seeds, max(max_frames))) as stream:
            for count, frame in enumerate(stream):
                frames.append(frame)
                for row, is_eos in enumerate(is_eos_frame(frame).tolist()):
                    if ends[row] is None and (is_eos or count + 1 >= max_frames[row]):
                        ends[row] = (count, True) if is_eos else (count + 1, False)
                if None not in ends:
                    break
        codes = torch.stack(frames, dim=1).to(torch.int16)
        return [Generation(codes[row, :end].clone(), ended_with_eos) for row, (end, ended_with_eos) in enumerate(ends)]

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Example], sampling: Sampling, seeds: Sequence[int],
               max_frames: int | None = None) -> Iterator[torch.Tensor]:
        """Yield frames (B, codebooks) on the CPU, EOS frames included, until closed or `max_frames` are generated."""
        self._copy_weights()
        batch, kinds = len(prompts), len(sampling.guidance_scales)
        rows = [prompts, *zip(*(prompt.unconditional for prompt in prompts))]
        assert len(rows) == 1 + kinds, f"{len(rows) - 1} unconditional prompts for {kinds} guidance scales"
        inputs, is_real = left_pad_prompts(self.model, [*itertools.chain(*rows)])
        max_frames = max_frames or self.spec.max_positions - inputs.shape[1]
        with self._acquire_state(batch, inputs.shape[1] + max_frames, sampling) as state:
            if len(state.codes) > batch:
                filled = (torch.arange(1 + kinds)[:, None] * batch + torch.arange(len(state.codes)) % batch).flatten()
                inputs, is_real = inputs[filled], is_real[filled]
            generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
            pending, pipeline_depth = deque(), PIPELINE_DEPTH if self.device.type == "cuda" else 0
            # (1) prefill
            hidden = self.prefill(state, inputs, is_real)
            # (2) decode loop
            for count in range(max_frames):
                if sampling.do_sample:
                    draw_gumbel_noise(state.noise[:batch], generators)
                if count == 0:
                    self.sample_into_codes(state, hidden)
                elif state.graph:
                    state.graph.replay()
                else:
                    state.kv_len += 1
                    self.decode_step(state)
                pending.append(PendingFrame(state.codes[:batch]))
                if len(pending) > pipeline_depth:
                    yield pending.popleft().wait()
            # (3) the frames that are still on their way
            for frame in pending:
                yield frame.wait()

    def prefill(self, state: DecodeState, inputs: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        """Fill the cache with rows (rows, T, H), padded where `is_real` is false; returns their last states (rows, H)."""
        length, device = inputs.shape[1], inputs.device
        position_ids = (is_real.cumsum(1) - 1).clamp(min=0)
        is_padded = not bool(is_real.all())  # on the CPU
        mask = prefill_attention_mask(is_real).to(device, state.attention_mask.dtype) if is_padded else None
        position_ids, is_real = position_ids.to(device), is_real.to(device)
        state.attention_mask.fill_(-torch.inf)
        state.attention_mask[..., :length].masked_fill_(is_real[:, None, None], 0)
        state.position_ids.copy_(position_ids[:, -1:])
        state.cache_position.fill_(length - 1)
        if state.graph:
            for cache in state.kv_cache:  # the graph attends to all of it, and a masked NaN still makes the sum NaN
                cache.zero_()
        else:
            state.kv_len, state.is_padded = length, is_padded
        return self.backbone(inputs, state.rope_freqs[position_ids], state.kv_cache, torch.arange(length, device=device),
                             length, mask)[:, -1]

    def decode_step(self, state: DecodeState) -> None:
        """Replace the frame in `state.codes` by the next one."""
        state.cache_position += 1
        state.position_ids += 1
        state.attention_mask.index_fill_(3, state.cache_position, 0)
        mask = state.attention_mask[..., :state.kv_len] if state.is_padded else None
        frame = self.embed_frame(state.codes[:, None]).repeat(1 + len(state.sampling.guidance_scales), 1, 1)
        hidden = self.backbone(frame, state.rope_freqs[state.position_ids], state.kv_cache, state.cache_position,
                               state.kv_len, mask)
        self.sample_into_codes(state, hidden[:, -1])

    def sample_into_codes(self, state: DecodeState, hidden: torch.Tensor) -> None:
        """Sample a frame from the backbone's states (rows, H): codebook 0, and the others by the depth decoder."""
        sampling, codebook_size = state.sampling, self.spec.codebook_size  # ids beyond are no codes, and never sampled
        depth_scales = sampling.depth_guidance_scales
        logits = self.model.lm_head(hidden.to(self.backbone.dtype))[:, :codebook_size]
        codes = [sample_token(guide(logits, sampling.guidance_scales), sampling.temperature, state.noise[:, 0])]
        depth_rows = 1 + len(depth_scales)
        hidden = hidden[:len(state.codes) * depth_rows]
        inputs, cache_position = torch.stack([hidden, self.embed_code(codes[0]).repeat(depth_rows, 1)], dim=1), slice(0, 2)
        for codebook, rope_freqs in enumerate(self.depth_rope_freqs, 1):
            out = self.depth(self.project_inputs(inputs), rope_freqs, state.depth_kv_cache, cache_position,
                             kv_len=codebook + 1)[:, -1]
            logits = (out.to(self.depth.dtype) @ self.depth_heads[codebook - 1])[:, :codebook_size]
            codes.append(sample_token(guide(logits, depth_scales), sampling.depth_temperature, state.noise[:, codebook]))
            inputs = self.embed_code(codes[-1] + codebook * self.depth_vocab_size).repeat(depth_rows, 1)[:, None]
            cache_position = slice(codebook + 1, codebook + 2)
        state.codes.copy_(torch.stack(codes, dim=1))

    @torch.inference_mode()
    def warm_up(self, sampling: Sampling) -> None:
        """Capture the graphs of short prompts before anybody waits for them; without graphs do nothing."""
        if self.uses_graphs:
            self._copy_weights()
            for batch in GRAPH_BATCH_SIZES:
                with self._acquire_state(batch, KV_LENGTH_BUCKET, sampling):
                    pass

    def capture_graph(self, state: DecodeState) -> None:
        """Capture `decode_step` as a CUDA graph: one launch instead of thousands."""
        gc.collect()  # a graph that the collector destroys during a capture ends that capture
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(2):  # libraries choose their kernels in the first calls, which cannot be captured
                self.decode_step(state)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # the outer context restores the stream where torch.cuda.graph does not: when ending a failed capture raises
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(
                graph, pool=self.graph_memory, capture_error_mode="thread_local"):  # other threads may allocate meanwhile
            self.decode_step(state)
        state.graph = graph

    @contextlib.contextmanager
    def _acquire_state(self, batch: int, length: int, sampling: Sampling) -> Iterator[DecodeState]:
        """Provide a state for a batch and a cache length; those with a captured graph come from the pool, and go back."""
        key = graph_key(batch, length, sampling)
        state = self._captured_state(key) if self.uses_graphs else None
        if not state:
            yield self._new_state(batch, length, sampling)
            return
        try:
            yield state
        finally:
            self.graph_pool[key] = state
            while len(self.graph_pool) > MAX_CACHED_GRAPHS:
                self.graph_pool.popitem(last=False)

    def _captured_state(self, key: tuple[int, int, Sampling]) -> DecodeState | None:
        """Return a state with a graph, from the pool or captured now; where that fails None, and no graphs from then on."""
        if key in self.graph_pool:
            return self.graph_pool.pop(key)
        try:
            state = self._new_state(*key)
            self.capture_graph(state)
            return state
        except RuntimeError as error:  # a driver without graphs, too little memory
            self.graph_pool.clear()
            self.uses_graphs = False
            warnings.warn(f"No CUDA graph could be captured ({reason(error)}). Speech is generated without graphs, which is "
                          f"slower; {GRAPHS_VARIABLE}=0 leaves them out from the start.", stacklevel=2)
            return None

    def _new_state(self, batch: int, length: int, sampling: Sampling) -> DecodeState:
        device, codebooks = self.device, self.spec.num_codebooks
        rows, depth_rows = (batch * (1 + len(scales))
                            for scales in (sampling.guidance_scales, sampling.depth_guidance_scales))
        return DecodeState(
            sampling, self.backbone.new_kv_cache(rows, length), self.depth.new_kv_cache(depth_rows, codebooks),
            self.backbone.rope_freqs(length),
            attention_mask=torch.zeros(rows, 1, 1, length, dtype=self.backbone.dtype, device=device),
            position_ids=torch.zeros(rows, 1, dtype=torch.long, device=device),
            cache_position=torch.zeros(1, dtype=torch.long, device=device),
            codes=torch.zeros(batch, codebooks, dtype=torch.long, device=device),
            noise=torch.ones(batch, codebooks, sampling.top_k, device=device), kv_len=length)

    def _copy_weights(self) -> None:
        """Make the copies anew where they are stale."""
        if self.depth_heads is None:
            heads = self.model.depth_decoder.codebooks_head.weight  # (codebooks - 1, H, vocab)
            # on a GPU without the ids that are no codes: rows of 2051 numbers forbid wide loads
            self.depth_heads = heads[..., :self.spec.codebook_size].contiguous() if self.device.type == "cuda" else heads
        if not self._is_stale:
            return
        adapters = {name for module in self.model.modules() if isinstance(module, LoraLayer) for name in module.lora_A}
        assert self.adapter is None or self.adapter in adapters, f"no adapter {self.adapter!r} among {sorted(adapters)}"
        self.backbone.load_weights(self.adapter)
        self.depth.load_weights(self.adapter)
        self._is_stale = False


def graph_key(batch: int, length: int, sampling: Sampling) -> tuple[int, int, Sampling]:
    """Return the batch and cache length, both rounded up, and the sampling that one graph serves."""
    return (next((size for size in GRAPH_BATCH_SIZES if size >= batch), batch),
            -(-length // KV_LENGTH_BUCKET) * KV_LENGTH_BUCKET, sampling)


def is_eos_frame(frame: torch.Tensor) -> torch.Tensor:
    """Return for each row (B,) whether it ends the utterance: all codes but the last are 0, the rule of transformers."""
    return (frame[:, :-1] == 0).all(dim=1)


def left_pad_prompts(model: CsmForConditionalGeneration, prompts: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (B, T, H) of prompts padded on the left, and on the CPU (B, T), false where padding stands."""
    device, longest, rows = model.lm_head.weight.device, max(map(len, prompts)), []
    is_real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch = {name: getattr(prompt, name)[None].to(device) for name in ("input_ids", "codes", "audio_mask")}
        rows.append(pad(embed_inputs(model, batch)[0], (0, 0, longest - len(prompt), 0)))
        is_real[row, longest - len(prompt):] = True
    return torch.stack(rows), is_real


def prefill_attention_mask(is_real: torch.Tensor) -> torch.Tensor:
    """Return an additive causal mask (B, 1, T, T). Padding attends to itself, as a row without any position would be NaN."""
    diagonal = torch.eye(is_real.shape[1], dtype=torch.bool)
    allowed = (torch.ones_like(diagonal).tril() & is_real[:, None, None]) | diagonal
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)
