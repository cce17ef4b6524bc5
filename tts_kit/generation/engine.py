"""One frame after the other: backbone, codebook 0, then the depth decoder's codebooks, without asking the host anything."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer

from tts_kit.generation.fused_decoder import Dense, FusedDecoder, Rounded
from tts_kit.generation.sampling import GumbelNoise, Sampling, sample_token
from tts_kit.spec import ModelSpec

KV_LENGTH_BUCKET = 256
"""On a GPU places for keys and values come in multiples of this, so that one recorded graph serves many lengths."""
MAX_CACHED_GRAPHS = 4
"""Recorded graphs that are kept for the next sentences."""


class InferenceEngine:
    """What a model speaks with: its layers merged and fused in copies, its tables and heads as they are."""

    def __init__(self, model: torch.nn.Module, spec: ModelSpec, int8: bool = False):
        depth = model.depth_decoder
        self.spec, self.parts, self.matrix = spec, (model.backbone_model, depth), Rounded if int8 else Dense
        self.weights, self.adapted = self._now()
        self.backbone, self.depth = self._stacks()
        self.first_head, self.table = model.lm_head, model.backbone_model.embed_tokens
        self.heads, self.depth_table, self.words = depth.codebooks_head, depth.model.embed_tokens, depth.config.vocab_size
        self.projector = depth.model.inputs_embeds_projector
        self.device = self.first_head.weight.device
        self.weights_as_of = self._signs_of_change()
        self.idle: OrderedDict[tuple, DecodeState] = OrderedDict()
        # the depth decoder begins with two places, the backbone's state and codebook 0, and goes on one by one
        turns = self.depth.turns(spec.num_codebooks)
        places = [slice(0, 2), *(slice(place, place + 1) for place in range(2, spec.num_codebooks))]
        self.steps = [(few, turns[few]) for few in places]

    def refresh(self) -> None:
        """Follow the model where weights or adapters have changed since."""
        before = self.adapted
        # until here the weights of before are held, so that no new one can lie where one of them did and pass for it
        self.weights, self.adapted = self._now()
        if (signs := self._signs_of_change()) == self.weights_as_of:
            return
        self.weights_as_of = signs
        if list(map(id, before)) == list(map(id, self.adapted)):
            self.backbone.refresh()
            self.depth.refresh()
        else:  # projections have been wrapped for an adapter, or unwrapped: the copies were made of modules that are gone
            self.idle.clear()
            self.backbone = self.depth = None
            self.backbone, self.depth = self._stacks()

    @contextlib.contextmanager
    def conversation(self, prompts: int, places: int, sampling: Sampling) -> Iterator["DecodeState"]:
        """Room for so many prompts and places; where graphs are recorded they are lent out and taken back."""
        if self.device.type != "cuda":
            yield DecodeState(self, prompts, places, sampling)
            return
        key = (prompts, -(-places // KV_LENGTH_BUCKET) * KV_LENGTH_BUCKET, sampling)
        lent, backbone = self.idle.pop(key, None) or DecodeState(self, *key), self.backbone
        lent.record()
        try:
            yield lent
        finally:
            if self.backbone is backbone:  # else its graph computes with copies that are gone
                self.idle[key] = lent
            while len(self.idle) > MAX_CACHED_GRAPHS:
                self.idle.popitem(last=False)

    def rest_of_frame(self, state: torch.Tensor, sampling: Sampling, luck: torch.Tensor, room: list) -> torch.Tensor:
        """Backbone state (prompts, hidden) and luck (prompts, codebooks, candidates) -> a frame (prompts, codebooks)."""
        known = self.spec.codebook_size  # words that the codec does not know are never chosen
        codes = [sample_token(self.first_head(state)[:, :known], sampling.temperature, luck[:, 0])]
        inputs = torch.stack([state, self.depth_table(codes[0])], dim=1)
        for book, (places, turns) in enumerate(self.steps, 1):
            out = self.depth(self.projector(inputs), turns, room, places, book + 1)[:, -1]
            logits = out @ self.heads.weight[book - 1]
            codes.append(sample_token(logits[:, :known], sampling.depth_temperature, luck[:, book]))
            inputs = self.depth_table(codes[-1] + book * self.words)[:, None]
        return torch.stack(codes, dim=1)

    def _stacks(self) -> tuple[FusedDecoder, FusedDecoder]:
        backbone, depth = self.parts
        return FusedDecoder(backbone, self.matrix), FusedDecoder(depth.model, self.matrix)

    def _now(self) -> tuple[list[torch.nn.Parameter], list[LoraLayer]]:
        """The weights that count and the projections with adapters, of which there may be more than there were."""
        return ([weight for part in self.parts for weight in part.parameters()],
                [module for part in self.parts for module in part.modules() if isinstance(module, LoraLayer)])

    def _signs_of_change(self) -> tuple:
        """Another one whenever a weight was written to, an adapter switched or its strength set."""
        # fused optimizers do not count what they write, so weights that are being learnt are measured
        learnt = [torch.linalg.vector_norm(weight, dtype=torch.float32) for weight in self.weights if weight.requires_grad]
        return (tuple((weight.data_ptr(), weight._version) for weight in self.weights),
                tuple(torch.stack(learnt).tolist()) if learnt else (),
                tuple((module.disable_adapters, module.merged, *module.active_adapters, *module.scaling.values())
                      for module in self.adapted))


@dataclass
class PendingFrame:
    """A frame (prompts, codebooks) on its way to the CPU."""
    frame: torch.Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> torch.Tensor:
        if self.arrived:
            self.arrived.synchronize()
        return self.frame


class DecodeState:
    """Everything that changes from frame to frame, in places that stay, so that a GPU can replay one frame as one graph."""

    def __init__(self, talker: InferenceEngine, prompts: int, places: int, sampling: Sampling):
        self.talker, self.sampling, self.places = talker, sampling, places
        spec, device, dtype = talker.spec, talker.device, talker.first_head.weight.dtype
        self.room = talker.backbone.room(prompts, places)
        self.depth_room = talker.depth.room(prompts, spec.num_codebooks)
        self.turns = talker.backbone.turns(places)
        self.mask = torch.zeros(prompts, 1, 1, places, dtype=dtype, device=device)
        self.positions = torch.zeros(prompts, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.codes = torch.zeros(prompts, spec.num_codebooks, dtype=torch.long, device=device)
        self.luck = torch.ones(prompts, spec.num_codebooks, sampling.top_k, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.seen, self.masked = places, True

    def record(self) -> None:
        """Record one frame as a graph: thousands of launches become one."""
        if self.graph:
            return
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels on the first calls, which cannot be recorded
                self._next()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._next()
        self.graph = graph

    def frames(self, inputs: torch.Tensor, real: torch.Tensor, seeds: Sequence[int], most: int) -> Iterator[PendingFrame]:
        """Hear prompts (prompts, positions, hidden), padded on the left where `real` is false, and speak frame after frame,
        one each time another is asked for."""
        luck = GumbelNoise(seeds, self.luck) if self.sampling.draws else None
        state = self._hear(inputs, real)
        for count in range(most):
            if luck:
                luck.draw()
            if not count:
                self._speak(state)
            elif self.graph:
                self.graph.replay()
            else:
                self.seen += 1
                self._next()
            yield self._send()

    def _hear(self, inputs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The prompts into the first places; the backbone's last state (prompts, hidden)."""
        length, device = inputs.shape[1], inputs.device
        positions = (real.cumsum(1) - 1).clamp(min=0)
        padded = not bool(real.all())
        mask = _who_sees_whom(real).to(device, inputs.dtype) if padded else None
        positions, real = positions.to(device), real.to(device)
        self.mask.fill_(-torch.inf)
        self.mask[..., :length].masked_fill_(real[:, None, None], 0)
        self.positions.copy_(positions[:, -1:])
        self.place.fill_(length - 1)
        if not self.graph:
            self.seen, self.masked = length, padded
        places = torch.arange(length, device=device)
        return self.talker.backbone(inputs, self.turns[positions], self.room, places, length, mask)[:, -1]

    def _next(self) -> None:
        """The frame after that in `codes`, into `codes`."""
        self.place += 1
        self.positions += 1
        self.mask.index_fill_(3, self.place, 0)
        out = self.talker.backbone(self.talker.table(self.codes[:, None]), self.turns[self.positions], self.room, self.place,
                                   self.seen, self.mask[..., :self.seen] if self.masked else None)
        self._speak(out[:, -1])

    def _speak(self, state: torch.Tensor) -> None:
        self.codes.copy_(self.talker.rest_of_frame(state, self.sampling, self.luck, self.depth_room))

    def _send(self) -> PendingFrame:
        if self.codes.device.type != "cuda":
            return PendingFrame(self.codes.to("cpu", copy=True), None)
        frame, arrived = self.codes.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return PendingFrame(frame, arrived)


def _who_sees_whom(real: torch.Tensor) -> torch.Tensor:
    """(prompts, 1, positions, positions) to be added: what is real sees what is real before it; what is padding sees itself,
    as a row that sees nothing at all would be no number."""
    own = torch.eye(real.shape[1], dtype=torch.bool)
    seen = (torch.ones_like(own).tril() & real[:, None, None]) | own
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
