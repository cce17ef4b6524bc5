"""Lessons of the notebooks: codebooks, sequence, LoRA, losses and verdict of a run, as figures, players and tables."""

import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from tts_kit import audio
from tts_kit import html as pages
from tts_kit.comparison.plots import ACCENT, INK, png
from tts_kit.comparison.verdict import FORMS, Verdict
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.evaluation.stats import Estimate
from tts_kit.io import read_rows
from tts_kit.run import OTHER_SPEAKERS
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import IGNORE_INDEX, Example

MAX_RECORDINGS = 10  # of the voice, that SIM compares with
RECORDING, SWAPPED_FIRST, SWAPPED_OTHERS = ("the recording", "codebook 0 of another speaker, the others own",
                                            "own codebook 0, the others of another speaker")


@torch.inference_mode()
def residual_energy(codec: Codec, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return, for each quantizer of the codec, the share of its input's energy left after 0, 1, 2 ... of its codebooks.

    Measured in the space in which it quantizes: its output projection is learned for the decoder, not to give the input
    back. The sums go over all waves."""
    quantizer, latents = codec.model.quantizer, []
    quantizers = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
    # transformers 5.17 has it in the model, 5.23 in an encoder model of its own
    downsample, = (module for name, module in codec.model.named_modules() if name.rpartition(".")[2] == "downsample")
    handle = downsample.register_forward_hook(lambda module, inputs, output: latents.append(output))
    try:
        codes = [codec.encode([wave])[0] for wave in waves]
    finally:
        handle.remove()
    sums = [np.zeros(len(one.layers) + 1) for one in quantizers]
    for latent, clip in zip(latents, codes):
        rows = iter(clip.T[:, None].to(codec.device, torch.long))
        for one, energy in zip(quantizers, sums):
            residual = latent if one.input_proj is None else one.input_proj(latent)
            energy[0] += float(residual.square().sum())
            for number, (layer, indices) in enumerate(zip(one.layers, rows), 1):
                residual = residual - layer.decode(indices)
                energy[number] += float(residual.square().sum())
    return [energy / energy[0] for energy in sums]


def plot_residual_energy(codec: Codec, waves: Sequence[np.ndarray]):
    """Plot `residual_energy` as an image for a notebook."""
    figure, axis = _figure(6, 3)
    first, others = (100 * share for share in residual_energy(codec, waves))
    axis.plot(range(len(first)), first, marker="s", color=INK, label=f"codebook 0 alone: {first[-1]:.0f} % left")
    axis.plot(range(len(others)), others, marker="o", color=ACCENT,
              label=f"codebooks 1 to {len(others) - 1}: {others[-1]:.2g} % left")
    axis.set(xlabel="codebooks used, of each quantizer", ylabel="energy left, %", yscale="log")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    return _image(figure, "Share of the latent's energy left after each codebook.")


def codebook_slider(codec: Codec, codes: torch.Tensor):
    """Return a player whose slider chooses how many codebooks of (frames, codebooks) are decoded."""
    count = codec.spec.num_codebooks
    waves = [codec.decode([codes], number)[0] for number in range(1, count + 1)]
    return slider(waves, codec.spec.sample_rate, [f"{number} of {count} codebooks" for number in range(1, count + 1)])


def slider(waves: Sequence[np.ndarray], rate: int, labels: Sequence[str]):
    """Return a notebook player with a slider that switches between waveforms at the same position; begins with the last."""
    from IPython.display import HTML

    sources = [pages.data_uri(*audio.encode_lossy(wave, rate)) for wave in waves]
    labels = [pages.escape(label) for label in labels]
    template = string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return HTML(template.substitute(count=len(waves), label=labels[-1], source=sources[-1], options="".join(
        f'<option label="{label}" data-src="{source}"></option>' for label, source in zip(labels, sources))))


def swap(first: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return codebook 0 of one clip with the other codebooks of another, as long as the shorter one."""
    frames = min(len(first), len(others))
    return torch.cat([first[:frames, :1], others[:frames, 1:]], dim=1)


def measure_codebooks(codec: Codec, clips: Sequence[EncodedClip], recordings: Mapping[str, Path],
                      models: MetricModels) -> dict[str, dict[str, Estimate]]:
    """Return what was decoded -> metric -> estimate: from the first codebooks of the clips, and with codebooks of another
    speaker. `recordings` of the voice, by text, are what SIM compares with; the clips' own are among them."""
    rate, count = codec.spec.sample_rate, codec.spec.num_codebooks
    models = replace(models, predict_mos=None, predict_noise_mos=None, embed_speaker_2=None, predict_mos_2=None)
    others = codec.encode([audio.read(path, rate) for path in sorted(OTHER_SPEAKERS.glob("*.flac"))])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, clip in enumerate(clips):
            other = others[index % len(others)]
            other = other.repeat(-(-len(clip.codes) // len(other)), 1)  # to no shorter than the clip
            waves = {RECORDING: audio.read(recordings[clip.text], rate)}
            for number in sorted({1, 2, count // 2, count}):
                waves[f"the first {number} of {count} codebooks"] = codec.decode([clip.codes], number)[0]
            waves[SWAPPED_FIRST], waves[SWAPPED_OTHERS] = codec.decode([swap(other, clip.codes), swap(clip.codes, other)])
            for arm, wave in waves.items():
                rows.append({"arm": arm, "sentence": index, "text": clip.text, "file": f"{len(rows)}.wav"})
                audio.write(Path(folder) / rows[-1]["file"], wave, rate)
        references = scoring.measure_references(dict([*recordings.items()][:MAX_RECORDINGS]), models)
        rows = scoring.score_rows(rows, Path(folder), models, references, save=lambda _: None)
    return {arm: scoring.aggregate(of_arm) for arm, of_arm in scoring.group_by_arm(rows).items()}


def codebook_table(arms: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return WER and SIM of `measure_codebooks` as text."""
    return scoring.print_table(scoring.table(arms, ("wer", "sim"), "decoded from"))


def plot_sequence(example: Example, tokenizer: PreTrainedTokenizerBase):
    """Draw the sequence that CSM reads, and its labels: positions to the right, the text and the codebooks downwards."""
    codes, labels = (np.ma.array(part.T.numpy(), mask=hidden.T.numpy()) for part, hidden in (
        (example.codes, ~example.audio_mask[:, None].expand_as(example.codes)),
        (example.labels, example.labels == IGNORE_INDEX)))
    text = np.flatnonzero(~example.audio_mask.numpy())
    figure, (inputs, targets) = _figure(11, 4.6, 2)
    for axis, grid, top in ((inputs, codes, -2.5), (targets, labels, -0.5)):
        axis.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=codes.max())
        axis.set_yticks(range(0, len(grid), max(1, len(grid) // 8)))
        axis.set(ylim=(len(grid) - 0.5, top), xlim=(-0.5, len(example) - 0.5), ylabel="codebook")
    inputs.bar(text, 2, 0.9, -2.5, color=ACCENT)
    inputs.set_title("input: text tokens (red), then frames of codes, the last one the EOS frame of zeros")
    targets.set_title("labels: every frame with its codes; none at the text")
    frames = np.flatnonzero(example.audio_mask.numpy())
    ends = example.codes[frames].eq(0).all(dim=1).numpy()
    names = {int(position): tokenizer.decode([int(example.input_ids[position])]) for position in text}
    names |= {int(position): "EOS" if end else f"frame {number}" for number, (position, end) in enumerate(zip(frames, ends))
              if end or (number % 5 == 0 and not ends[number:number + 4].any())}
    inputs.set_xticks(list(names), [*names.values()], rotation=90, fontsize=7, parse_math=False)
    targets.set(xlabel="position")
    return _image(figure, "The sequence that the model reads, and the labels that it is trained on.")


def lora_table(parts: Mapping[str, Mapping[str, int]]) -> str:
    """Return what LoRA adds to each part (`finetune.dry_run`) as text."""
    total = {name: sum(part[name] for part in parts.values()) for name in ("modules", "parameters", "trainable")}
    return scoring.print_table([["part", "matrices", "parameters", "LoRA adds", "share"]] + [
        [name, str(part["modules"]), f"{part['parameters']:,}", f"{part['trainable']:,}",
         f"{part['trainable'] / max(1, part['parameters']):.2%}"] for name, part in [*parts.items(), ("together", total)]])


def plot_perplexity(log: Path, codebook_size: int):
    """Plot the held-out losses of training/log.jsonl as perplexities, and by codebook before and after."""
    rows = [row for row in read_rows(log) if "eval_loss_by_codebook" in row]
    if not rows:
        raise KitError(f"{log} holds no held-out loss yet. Train first.")
    figure, (course, codebooks) = _figure(10, 3.2, 1, 2)
    for name, label, color in (("eval_backbone_loss", "codebook 0 (backbone)", INK),
                               ("eval_depth_loss", "the others (depth decoder)", ACCENT)):
        course.plot([row["step"] for row in rows], np.exp([row[name] for row in rows]), marker="o", color=color, label=label)
    course.axhline(codebook_size, color="0.6", linestyle=":", label=f"guessing among {codebook_size} codes")
    course.set(xlabel="step", ylabel="perplexity", yscale="log", ylim=(1, 3 * codebook_size))
    course.xaxis.get_major_locator().set_params(integer=True)
    for row, label, color in ((rows[0], f"step {rows[0]['step']}", "0.6"), (rows[-1], f"step {rows[-1]['step']}", ACCENT)):
        codebooks.plot(row["eval_loss_by_codebook"], marker="o", color=color, label=label)
    codebooks.set(xlabel="codebook", ylabel="held-out loss")
    codebooks.xaxis.get_major_locator().set_params(integer=True)
    for axis in (course, codebooks):
        axis.legend(frameon=False, fontsize=8)
    return _image(figure, "Held-out perplexity by step, and held-out loss by codebook.")


def difference_table(verdict: Verdict) -> str:
    """Return each comparison's differences as text, with the interval that decides it and what could have been seen."""
    if not verdict.comparisons:
        return verdict.headline
    lines = [["comparison", "metric", "difference", "interval", "result", "detectable"]]
    for one in verdict.comparisons:
        for name, result in (("sim", one.voice), ("wer", one.words)):
            if name in one.differences:
                heading, _, scale, digits, _ = FORMS[name]
                difference, (low, high) = one.differences[name], one.intervals[name]
                values = (scale * value for value in (difference.value, low, high))
                value, low, high = (f"{value:+.{digits}f}" if np.isfinite(value) else "?" for value in values)
                smallest = scale * difference.minimum_detectable_difference(one.tests)
                lines.append([f"{one.arm} - {one.other}", heading, value, f"{low} to {high}", result,
                              f"{smallest:.{digits}f}" if np.isfinite(smallest) else "?"])
    return scoring.print_table(lines)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """Return a figure and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure, description: str):
    """Return a figure as a notebook image, with a description for who cannot see it."""
    from IPython.display import Image

    return Image(png(figure, 110), alt=description)
