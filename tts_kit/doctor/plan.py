"""Plan of a training on common GPUs: the batch that fits, memory, minutes and dollars, computed by a formula."""

import bisect
import shlex
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from transformers import CsmConfig

from tts_kit import pretrained, text
from tts_kit.config import Config, load_config
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.generation import engine
from tts_kit.model import license, load, lora, loss
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.tokens.prompt import PromptBuilder, prompt_options
from tts_kit.training import dataset, generation_eval


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # GB that torch reports, a little less than the nominal size
    tflops: float  # dense 16-bit TFLOP/s of the tensor cores, from NVIDIA's data sheets
    bandwidth: float  # GB/s of its memory, from NVIDIA's data sheets
    price: float  # dollars an hour: Modal's list prices of late 2025
    bf16: bool = True  # without it training computes in float16, with embeddings and norms in float32


GPUS = (
    Gpu("T4", 15.6, 65, 320, 0.59, bf16=False),
    Gpu("L4", 23.6, 121, 300, 0.80),
    Gpu("A10G", 23.6, 70, 600, 1.10),  # AWS's variant, slower than the A10
    Gpu("A100 40 GB", 42.3, 312, 1555, 2.10),
    Gpu("A100 80 GB", 85.0, 312, 2039, 2.50),
    Gpu("H100", 85.0, 989, 3350, 3.95),
    Gpu("H200", 150.0, 989, 4800, 4.54),
)

# Counted on the training step of CSM-1B on torch's meta device, by tests/op_counter.py; tests/test_doctor_plan.py compares.
# Each pair: backbone, depth decoder; per position, layer and unit of the hidden size.
ACTIVATION_BYTES = {False: (55, 95), True: (2.5, 35)}  # kept for the backward pass, without and with gradient checkpointing
TRAFFIC_BYTES = (700, 880)  # read and written by operations that memory bandwidth limits
LAUNCHES_PER_LAYER = 180
CHECKPOINTING_COST = 1.5  # time of a step with gradient checkpointing, relative to one without
TRAINABLE_BYTES = 16  # weight, gradient and AdamW's two moments, in float32

# Assumed, never measured on such a GPU.
PEAK_SHARE, BANDWIDTH_SHARE = 0.5, 0.7  # shares of a GPU's arithmetic and bandwidth that a step reaches
LAUNCH_SECONDS = 8e-6  # host time to launch one operation
CUDA_BYTES = 0.8e9
FILL = 0.9  # share of the GPU memory that a plan may use; the rest is lost to fragmentation
STARTUP_MINUTES = 1.0
CHARACTERS_PER_TOKEN, MARKER_TOKENS = 4, 5  # of English in Llama 3's tokenizer; begin, end and [speaker]
EXAMPLE = 600, 6.0, "The ferry to Oslo leaves at half past seven, and the last one back leaves at midnight."
"""Number of clips, seconds and text of each, planned for when no run is given."""


@dataclass(frozen=True)
class Row:
    """What is planned for one GPU; batches are in positions."""
    gpu: Gpu
    checkpointing: bool
    max_batch: int  # the largest micro-batch that fits
    micro_batch: int  # the planned one
    accumulation: int
    memory: float  # GB that the planned micro-batch takes
    step_seconds: float
    minutes: float

    @property
    def dollars(self) -> float:
        return self.minutes / 60 * self.gpu.price


class Decoder:
    """Sizes of the backbone or the depth decoder."""

    def __init__(self, decoder, config):
        weights = {name: weight.numel() for name, weight in decoder.layers.named_parameters()}
        self.lora = sum(count for name, count in weights.items() if ".lora_" in name)
        self.weights = sum(weights.values()) - self.lora
        self.layers, self.units = config.num_hidden_layers, config.num_hidden_layers * config.hidden_size
        self.cached = 2 * self.layers * config.num_key_value_heads * config.head_dim  # keys and values of a position


class Plan:
    """What training with a config costs on each GPU, for the clips of a run or for the example."""

    def __init__(self, config: Config, run: Run | None = None):
        self.config, self.run = config, run
        self._count_model()
        self._count_clips()
        rows = {gpu.name: self._plan(gpu) for gpu in GPUS}
        self.rows = [row for row in rows.values() if row]
        self.too_small = [name for name, row in rows.items() if row is None]

    def _count_model(self) -> None:
        with pretrained.quiet():  # transformers' defaults are CSM-1B's numbers, so that its plan needs no hub
            model_config = CsmConfig() if self.config.base in license.CSM else None
        model = load.without_weights(self.config.base, self.config.revision, model_config)
        model.codec_model = None
        load.tie(model, {load.BACKBONE_TABLE}, self.config.base)
        model.requires_grad_(False)
        model = lora.unwrap(lora.add_lora(model, self.config.rank, self.config.alpha, self.config.lora_targets))
        self.trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.frozen = sum(weight.numel() for weight in model.parameters()) - self.trainable
        self.text_table = model.embed_text_tokens.weight.numel()
        # embeddings and norms, on a GPU without bfloat16
        self.float32_weights = sum(weight.numel() for name, weight in model.named_parameters()
                                   if "embed_" in name or weight.dim() == 1)
        self.heads = model.depth_decoder.codebooks_head.weight.numel()
        self.backbone = Decoder(model.backbone_model, model.config)
        self.depth = Decoder(model.depth_decoder.model, model.config.depth_decoder_config)
        self.spec = ModelSpec.of(model.config)

    def _count_clips(self) -> None:
        config, run, rate = self.config, self.run, self.spec.frame_rate
        load_tokenizer = pretrained.cached_tokenizer if config.base in license.CSM else pretrained.tokenizer
        tokenizer = load_tokenizer(config.base, config.revision)
        self.builder = PromptBuilder(tokenizer, self.spec, **prompt_options(config)) if tokenizer else None
        if run is None:
            count, seconds, line = EXAMPLE
            held_out = max(manifest.MIN_HELD_OUT, round(count * config.held_out))
            clips = [(line, seconds, manifest.HELD_OUT if number < held_out else manifest.TRAIN) for number in range(count)]
        elif (run.data / manifest.MANIFEST).is_file():
            clips = [(utterance.text, utterance.seconds, utterance.split) for utterance in manifest.read(run.data)]
        else:
            clips = [(clip.text, len(clip.codes) / rate, clip.split) for clip in cache.load_run(run)]
        lengths = {manifest.TRAIN: [], manifest.HELD_OUT: [], manifest.EXCLUDED: []}
        for line, seconds, split in clips:  # text, frames, and the frame that ends the clip
            lengths[split].append(self.text_positions(line) + ceil(round(seconds * rate, 3)) + 1)
        self.lengths, self.held_out = lengths[manifest.TRAIN], sum(lengths[manifest.HELD_OUT])
        if not self.lengths:
            raise KitError(f"none of {len(clips)} clips is for training. Prepare the run's data again.")
        self.steps = config.steps or dataset.default_steps(self.lengths, config)
        self.seconds = sum(seconds for _, seconds, split in clips if split == manifest.TRAIN)
        self.clip = sum(self.lengths) / len(self.lengths) * (1 + config.context_probability)
        # with a clip before it as context
        self.longest = min(max(self.lengths) * (1 + ceil(config.context_probability)), self.spec.max_positions)
        self.total = max(self.longest, round(self.clip * len(self.lengths)))
        self.frame_share = self.seconds * rate / sum(self.lengths)

    def text_positions(self, line: str) -> int:
        """Positions of a turn's text; estimated where the tokenizer is not on this machine."""
        if self.builder is None:
            return ceil(len(line) / CHARACTERS_PER_TOKEN) + MARKER_TOKENS
        return len(self.builder.text_ids(line, "0"))

    def fixed_bytes(self, bf16: bool = True) -> float:
        """Memory of any batch: weights, adapter, optimizer, CUDA, and what generates samples."""
        offloaded = self.text_table if self.config.offload_text_embeddings else 0
        weights = 2 * (self.frozen - offloaded) + (0 if bf16 else 2 * (self.float32_weights - offloaded))
        return weights + TRAINABLE_BYTES * self.trainable + self.generation_bytes() + CUDA_BYTES

    def generation_bytes(self) -> float:
        """Memory of the merged copies of layers and heads and of the caches; 0 if training generates nothing."""
        config, sentences = self.config, []
        if config.sample_steps:
            sentences = list(config.sample_texts)
        if config.generation_eval_steps:
            sentences = max(sentences, generation_eval.read_sentences([]), key=len)
        if not sentences:
            return 0
        positions = max(self.text_positions(line) + ceil(text.max_speech_seconds(line) * self.spec.frame_rate)
                        for line in sentences)
        batch, positions, _ = engine.graph_key(len(sentences), positions, None)
        caches = batch * (self.backbone.cached * positions + self.depth.cached * self.spec.num_codebooks)
        return 2 * (self.backbone.weights + self.depth.weights + self.heads + caches)

    def activation_bytes(self, positions: float, checkpointing: bool) -> float:
        """Memory of one micro-batch; the depth decoder's is that of one chunk of frames at most."""
        backbone, depth = ACTIVATION_BYTES[checkpointing]
        frames = min(self._depth_frames(positions), loss.CHUNK["gpu"])
        return backbone * self.backbone.units * positions + depth * self.depth.units * self.spec.num_codebooks * frames

    def largest_batch(self, free: float, checkpointing: bool) -> int:
        """Positions of the largest micro-batch that `free` bytes hold, all clips at most; 0 if the longest does not fit."""
        sizes = range(1, self.total + 1)
        fitting = bisect.bisect_right(sizes, free, key=lambda size: self.activation_bytes(size, checkpointing))
        return fitting if fitting >= self.longest else 0

    def step_seconds(self, positions: float, gpu: Gpu, checkpointing: bool = False, training: bool = True) -> float:
        """Time of one micro-batch: arithmetic plus memory traffic, but at least the launches of its operations."""
        frames = self._depth_frames(positions) if training else positions * self.frame_share
        # two FLOPs a weight forward and two backward, and two more where the weight is trained
        flops = sum(count * (4 * part.weights + 6 * part.lora) for count, part in (
            (positions, self.backbone), (frames * self.spec.num_codebooks, self.depth)))
        traffic = (TRAFFIC_BYTES[0] * self.backbone.units * positions
                   + TRAFFIC_BYTES[1] * self.depth.units * self.spec.num_codebooks * frames)
        launches = LAUNCHES_PER_LAYER * (self.backbone.layers + self.depth.layers * ceil(frames / loss.CHUNK["gpu"]))
        seconds = max(flops / (gpu.tflops * 1e12 * PEAK_SHARE) + traffic / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE),
                      launches * LAUNCH_SECONDS)
        return seconds * (CHECKPOINTING_COST if checkpointing else 1) * (1 if training else 0.5)

    def _depth_frames(self, positions: float) -> float:
        return positions * self.frame_share * self.config.depth_frame_fraction

    def _plan(self, gpu: Gpu) -> Row | None:
        """Plan the config's batch in as few micro-batches as fit, with gradient checkpointing where it has to be."""
        config, fixed = self.config, self.fixed_bytes(gpu.bf16)
        free = FILL * gpu.memory * 1e9 - fixed
        checkpointing = config.gradient_checkpointing or not self.largest_batch(free, False)
        max_batch = self.largest_batch(free, checkpointing)
        if not max_batch:
            return None
        batch = config.tokens_per_batch * config.gradient_accumulation_steps
        accumulation = 1 if max_batch == self.total else ceil(batch / max_batch)
        micro_batch = ceil(batch / accumulation)
        memory = fixed + self.activation_bytes(min(max(micro_batch, self.longest), self.total), checkpointing)
        whole_clips = min(max(micro_batch // self.clip, 1) * self.clip, self.total)
        seconds = accumulation * self.step_seconds(whole_clips, gpu, checkpointing)
        evaluation = (self.steps // config.eval_steps + 1) * self.step_seconds(self.held_out, gpu, training=False)
        minutes = STARTUP_MINUTES + (self.steps * seconds + evaluation) / 60
        return Row(gpu, checkpointing, max_batch, micro_batch, accumulation, memory / 1e9, seconds, minutes)


def format_plan(run: Run | None = None, **changes: object) -> str:
    """Return the plan for a run's clips and config with some changes, or for the example without a run."""
    plan = Plan(load_config(run, **changes) if run else Config(**changes), run)
    config, batch = plan.config, plan.config.tokens_per_batch * plan.config.gradient_accumulation_steps
    lines = [f"{'':<11} {'batch that fits':>15} {'planned':>9} {'GB':>5} {'s/step':>7} {'minutes':>7}  dollars"]
    for row in plan.rows:
        planned = f"{row.micro_batch:,}" + f" x {row.accumulation}" * (row.accumulation > 1)
        saving = ", checkpointing" * row.checkpointing
        lines.append(f"{row.gpu.name:<11} {row.max_batch:>15,} {planned:>9} {row.memory:>5.1f} {row.step_seconds:>7.3g} "
                     f"{row.minutes:>7.1f}  {row.dollars:.2f}{saving}")
    lines += [f"{name:<11} does not hold the longest clip, {plan.longest:,} positions" for name in plan.too_small]
    clips = plan.run.folder if plan.run else f"Example, as no --run was given: {EXAMPLE[0]} clips of {EXAMPLE[1]:g} s"
    lines.append(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").format(
        plan=plan, config=config, clips=clips, train_clips=len(plan.lengths), minutes=plan.seconds / 60, batch=batch,
        epochs=plan.steps * batch / plan.total, peak_share=PEAK_SHARE, bandwidth_share=BANDWIDTH_SHARE,
        launch_microseconds=LAUNCH_SECONDS * 1e6, fill=FILL, startup=STARTUP_MINUTES))
    if plan.builder is None:
        lines.append(f"Text: {CHARACTERS_PER_TOKEN} characters a token, as the tokenizer is not on this machine.\n")
    if not plan.rows:
        return "\n".join([*lines, "Split long clips, or lower --rank or --depth-frame-fraction."])
    cheapest = min(plan.rows, key=lambda row: (round(row.dollars, 2), row.minutes))
    return "\n".join([*lines, f"Cheapest: {cheapest.gpu.name}, {cheapest.minutes:.1f} minutes for ${cheapest.dollars:.2f}. "
                      "Run there:", f"  {train_command(plan, cheapest)}"])


def train_command(plan: Plan, row: Row) -> str:
    """Return the command for a row; settings that the run stores already are left out."""
    config = plan.config.replace(gradient_checkpointing=row.checkpointing)
    if row.accumulation != plan.config.gradient_accumulation_steps:
        config = config.replace(tokens_per_batch=row.micro_batch, gradient_accumulation_steps=row.accumulation)
    words = ["tts-kit", "train", "--run", plan.run.name if plan.run else "NAME"]
    for name, (value, _) in config.differences(load_config(plan.run) if plan.run else Config()).items():
        option = name.replace("_", "-")
        words += [f"--{option if value else f'no-{option}'}"] if isinstance(value, bool) else [f"--{option}", f"{value}"]
    return shlex.join(words)
