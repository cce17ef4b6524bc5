"""What a training would need on the usual cards: the batch that fits, minutes, memory, dollars, and how each is known."""

import shlex
import textwrap
from dataclasses import dataclass
from math import ceil

from tts_kit.config import Config, load_config
from tts_kit.doctor import gpus, measured_speed, memory_model, step_cost
from tts_kit.doctor.gpus import GPUS, Gpu
from tts_kit.doctor.measured_speed import Measured
from tts_kit.doctor.memory_model import CostCurve
from tts_kit.run import Run

FILL = 0.9
"""Share of a card's memory that a batch may take, because what is freed is not always of the size that is wanted next."""
ADAPTER_BYTES = 16
"""Of a trained parameter: weight, gradient and AdamW's two moments, all in float32."""
CONTEXT = 0.8e9
"""Bytes that CUDA and its libraries take for themselves: assumed."""
LOADING = 1.0
"""Minutes to start the machine and load the base: assumed."""


@dataclass(frozen=True)
class MemoryOption:
    """How to save memory; the first way that fits is taken."""
    text_off: bool = False
    """The text embeddings stay in the machine's own memory."""
    gradient_checkpointing: bool = False

    def __str__(self) -> str:
        return ", ".join(["text embeddings off the GPU"] * self.text_off + ["gradient_checkpointing"] * self.gradient_checkpointing)


@dataclass(frozen=True)
class Row:
    """One card, or the machine that the run was trained on."""
    name: str
    card: Gpu | None
    seconds: float
    """Of a step."""
    minutes: float
    source: str
    """computed or measured."""
    way: MemoryOption | None = None
    fits: int = 0
    """Positions of the largest batch."""
    micro: int = 0
    """Positions of a micro-batch that is planned."""
    gradient_accumulation_steps: int = 1
    memory: float = 0.0
    """GB that it takes."""

    @property
    def dollars(self) -> float | None:
        return self.minutes / 60 * self.card.price if self.card else None


class Plan:
    """A recipe over a voice, card by card."""

    def __init__(self, config: Config, run: Run | None = None):
        self.config, self.run = config, run
        self.voice = memory_model.training_data(config, run)
        self.ladders: dict[bool, CostCurve] = {}
        found, self.said = measured_speed.for_run(run, config) if run else (None, "No row is measured.")
        self.rows = [self._row(card, found if found and found.card == card else None) for card in GPUS]
        self.too_small = [card for card, row in zip(GPUS, self.rows) if row is None]
        self.rows = [row for row in self.rows if row]
        if found and not found.card:
            self.rows.append(Row(found.name, None, found.seconds, self._minutes(found.seconds), "measured"))

    def ladder(self, gradient_checkpointing: bool) -> CostCurve:
        if gradient_checkpointing not in self.ladders:
            self.ladders[gradient_checkpointing] = CostCurve(self.voice, gradient_checkpointing)
        return self.ladders[gradient_checkpointing]

    def weights(self, way: MemoryOption) -> float:
        """Bytes on the card whatever the batch: base, adapter and optimizer, CUDA."""
        model = self.ladder(way.gradient_checkpointing).model
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
        return frozen + ADAPTER_BYTES * trained + CONTEXT - way.text_off * model.embed_text_tokens.weight.nbytes

    def _row(self, card: Gpu, found: Measured | None) -> Row | None:
        """The planned batch is that of the recipe, in as few micro-batches as the card can take."""
        config, room = self.config, FILL * card.memory * 1e9
        ways = (MemoryOption(text_off, gradient_checkpointing) for gradient_checkpointing in (False, True) if gradient_checkpointing >= config.gradient_checkpointing
                for text_off in (False, True) if text_off >= config.offload_text_embeddings)
        way = next((way for way in ways if self.ladder(way.gradient_checkpointing).largest(room - self.weights(way))), None)
        if way is None:
            return found and Row(card.name, card, found.seconds, self._minutes(found.seconds), "measured")
        ladder = self.ladder(way.gradient_checkpointing)
        fits = ladder.largest(room - self.weights(way))
        wanted = config.tokens_per_batch * config.gradient_accumulation_steps
        # no batch is larger than all the clips
        gradient_accumulation_steps = 1 if fits == self.voice.whole else ceil(wanted / fits)
        micro = ceil(wanted / gradient_accumulation_steps)
        seconds = found.seconds if found else self._seconds(ladder, card, micro, gradient_accumulation_steps)
        more = 0.0 if found else self._evaluation(ladder, card, micro)
        largest = min(max(micro, self.voice.longest), self.voice.whole)
        memory = (self.weights(way) + ladder.peak(largest)) / 1e9
        source = "measured" if found else "computed"
        return Row(card.name, card, seconds, self._minutes(seconds, more), source, way, fits, micro, gradient_accumulation_steps, memory)

    def _seconds(self, ladder: CostCurve, card: Gpu, micro: int, gradient_accumulation_steps: int) -> float:
        usual = min(self.voice.mean * micro / self.config.tokens_per_batch, self.voice.whole)
        return gradient_accumulation_steps * ladder.seconds(usual, card)

    def _evaluation(self, ladder: CostCurve, card: Gpu, micro: int) -> float:
        """Seconds of all evaluations on the held-out clips."""
        positions = sum(map(len, self.voice.held_out))
        count = max(1, ceil(positions / micro))
        times = self.config.steps // self.config.eval_steps + 1
        return times * count * ladder.seconds(positions / count, card, learns=False)

    def _minutes(self, seconds: float, more: float = 0.0) -> float:
        return LOADING + (self.config.steps * seconds + more) / 60


def format_plan(run: Run | None = None, **given: object) -> str:
    """The table and what stands behind it, for a run's clips and recipe, changed by what is given; without a run, for an
    example."""
    made = Plan(load_config(run, **given) if run else Config(**given), run)
    return "\n".join([*_table(made), "", *_about(made), "", *_advice(made)])


def _table(made: Plan) -> list[str]:
    width = max(10, *(len(row.name) for row in [*made.rows, *made.too_small]))
    lines = [_line(width, "", "batch that fits", "planned", "GB", "s/step", "minutes", "dollars", "from")]
    for row in made.rows:
        fits, planned, memory = _batch(made, row) if row.way else "---"
        dollars = f"{row.dollars:.2f}" if row.card else "-"
        seconds = f"{row.seconds:.3f}" if row.seconds < 1 else f"{row.seconds:.2f}"
        lines.append(_line(width, row.name, fits, planned, memory, seconds, f"{row.minutes:.1f}", dollars, row.source))
        if row.way and str(row.way):
            lines.append(f"{'':<{width}} with {row.way}")
    return lines + [f"{card.name:<{width}} does not hold the longest clip, {made.voice.longest:,} positions"
                    for card in made.too_small]


def _line(width: int, name: str, *cells: str) -> str:
    numbers = (f"{cell:>{size}}" for cell, size in zip(cells, (18, 9, 12, 6, 7, 7)))
    return " ".join([f"{name:<{width}}", *numbers, f" {cells[-1]}"])


def _batch(made: Plan, row: Row) -> tuple[str, str, str]:
    """What fits, what is planned, and the memory that takes."""
    fits = "all clips" if row.fits == made.voice.whole else f"{row.fits:,} = {row.fits / made.voice.of_clip:,.0f} clips"
    return (fits, f"{row.micro:,}" + f" x {row.gradient_accumulation_steps}" * (row.gradient_accumulation_steps > 1),
            f"{row.memory:.1f} of {row.card.memory:.0f}")


def _about(made: Plan) -> list[str]:
    config, voice, ladder = made.config, made.voice, made.ladder(made.config.gradient_checkpointing)
    count, seconds, _ = memory_model.EXAMPLE
    total = config.tokens_per_batch * config.gradient_accumulation_steps
    step = ladder.near(total).training
    whose = f"{made.run.folder}" if made.run else f"Example, as no --run was given: {count} clips of {seconds:g} s, an hour"
    said = [
        f"{whose}; {len(voice.clips)} clips to learn from, {voice.seconds / 60:.1f} minutes, {voice.of_clip:.0f} positions "
        f"(text and frames) each. {config.steps} steps of {total:,} positions pass them {voice.steps.epochs:.1f} times. "
        f"Base {config.base}, rank {config.rank}, depth ratio {config.depth_frame_fraction:.3g}.",
        f"{made.said} computed: never measured on such a card. The kit's own step was counted without a GPU, "
        f"{step.flops / 1e12:.3g} TFLOP in {step.launches:,} operations at {step.positions:,} positions; assumed is that "
        f"each reaches {step_cost.OF_PEAK:.0%} of the card's dense 16-bit peak or {step_cost.OF_BANDWIDTH:.0%} of its bandwidth, and "
        f"takes {step_cost.LAUNCH * 1e6:.0f} microseconds to send.",
        f"GB: 16-bit weights without codec, {ADAPTER_BYTES} bytes a trained parameter, {CONTEXT / 1e9:g} GB for CUDA, and "
        f"the step's peak, counted at {len(ladder.rungs)} sizes and taken as linear. A batch fits if it all takes "
        f"{FILL:.0%} of the card.",
        f"minutes: training, evaluations and {LOADING:g} minute to start and load; downloads, spoken samples and listening "
        f"come on top. dollars: the card alone, at {gpus.PRICES}.",
    ]
    return [textwrap.fill(line, 99, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) for line in said]


def _advice(made: Plan) -> list[str]:
    priced = [row for row in made.rows if row.way]
    if not priced:
        return ["None of the cards holds the longest clip. Split long clips, or lower --rank or --depth-frame-fraction."]
    row = min(priced, key=lambda row: (round(row.dollars, 2), row.minutes))
    fastest = min(priced, key=lambda row: (round(row.minutes, 1), row.dollars))
    others = f"; fastest: {fastest.name}, {fastest.minutes:.1f} minutes for ${fastest.dollars:.2f}" if fastest != row else ""
    lines = [f"Cheapest: {row.name}, {row.minutes:.1f} minutes for ${row.dollars:.2f}{others}. For the {row.name} type:",
             f"  {command(made, row)}"]
    return lines


def command(made: Plan, row: Row) -> str:
    """What to type for a row: the recipe's fields that are not what the run remembers."""
    remembered = load_config(made.run) if made.run else Config()
    wanted = made.config.replace(gradient_checkpointing=row.way.gradient_checkpointing, offload_text_embeddings=row.way.text_off)
    if row.gradient_accumulation_steps != made.config.gradient_accumulation_steps:
        wanted = wanted.replace(tokens_per_batch=row.micro, gradient_accumulation_steps=row.gradient_accumulation_steps)
    words = ["python", "-m", "tts_kit", "train", "--run", made.run.name if made.run else "NAME"]
    for name, (value, _) in wanted.differences(remembered).items():
        option = name.replace("_", "-")
        words += [f"--{option if value else f'no-{option}'}"] if isinstance(value, bool) else [f"--{option}", f"{value}"]
    return shlex.join(words)
