"""Speech of many voices -> a Mimi codec of a chosen shape: python -m sample_data.build.codec_training --corpus DIR."""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from sample_data.build import checkpoint, codec_config, codec_evaluation, corpus, model_shapes, quantizer, teacher
from sample_data.build.codec_config import CodecRecipe
from sample_data.build.codec_trainer import Training
from tts_kit import audio, device
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, report_errors
from tts_kit.io import check_replaceable, write_rows
from tts_kit.pretrained import ModelSpec

Teacher = Callable[[np.ndarray], np.ndarray]
"""A wave at the codec's rate -> (frames, width) that the first codebook shall know."""
LOG_EVERY = 50
JUDGED = 40
"""Held-out waves that an evaluation listens to."""


def train(waves: Sequence[np.ndarray], held_out: Sequence[np.ndarray], out: Path, config: CodecRecipe,
          device_config: DeviceConfig,
          teach: Teacher | None = None) -> Path:
    """Train a codec on float32 waves at its rate, or go on where it stopped; returns `out`, a folder for `MimiModel`.

    Checkpoints and the log lie beside it in `out`-training."""
    out = Path(out)
    check_replaceable(out, codec_evaluation.FILE)
    work = out.with_name(f"{out.name}-training")
    if (done := codec_evaluation.read(out)).get("finished"):
        config.agree(done["recipe"], out)
        print(f"{out} is already trained with these settings. To train again choose another --out.")
        return out
    features = None if teach is None else heard(teach, waves, work / "teacher.safetensors")
    training = Training(waves, config, device_config, features)
    rows = _go_on(training, work, waves)
    every = max(1, len(held_out) // JUDGED)
    with _bar(training) as bar:
        while training.progress < 1:
            _advance(training, rows, bar)
            if training.steps % config.save_steps == 0:
                _save(training, work, waves, rows)
            if training.steps % config.eval_steps == 0 and training.progress < 1:
                _export(training, out, held_out[::every])
    _save(training, work, waves, rows)
    found = _export(training, out, held_out[::every])
    print(f"Spectral loss on held-out speech by codebooks: {found['spectral_loss']}. Codec: {out}")
    return out


def heard(teach: Teacher, waves: Sequence[np.ndarray], cache: Path) -> list[np.ndarray]:
    """The teacher's features of every wave, (frames, width) float16 with mean 0 and deviation 1; made once."""
    if not cache.exists():
        made = [np.asarray(teach(wave), np.float32) for wave in tqdm(waves, desc="teacher listens", unit="clip")]
        every = np.concatenate(made)
        centre, scale = every.mean(0), every.std(0) + 1e-5
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside = cache.with_suffix(".part")
        save_file({str(number): np.ascontiguousarray((each - centre) / scale, np.float16)
                   for number, each in enumerate(made)}, beside)
        beside.replace(cache)
    features = load_file(cache)
    if len(features) != len(waves):
        raise KitError(f"{cache} holds the features of {len(features)} waves, the corpus has {len(waves)}. Remove it, or "
                      "choose another --out.")
    return [features[str(number)] for number in range(len(waves))]


def split(rows: Iterable[tuple[str, str, np.ndarray]], share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Waves to learn from and held-out ones, by whole speakers, always the same; of one speaker the last clips."""
    speakers: dict[str, list[np.ndarray]] = {}
    for speaker, _, wave in rows:
        speakers.setdefault(speaker, []).append(wave)
    total = sum(map(len, speakers.values()))
    wanted = max(1, round(share * total))
    if total < 2:
        raise KitError(f"the corpus holds {total} clips; wanted at least two, one to learn from and one to judge by.")
    if len(speakers) == 1:
        [clips] = speakers.values()
        return clips[:-wanted], clips[-wanted:]
    learnt, kept = [], []
    for speaker in sorted(speakers, key=lambda name: hashlib.sha256(name.encode()).digest()):
        (kept if len(kept) < wanted else learnt).extend(speakers[speaker])
    return learnt, kept


def _go_on(training: Training, work: Path, waves: Sequence[np.ndarray]) -> list[dict]:
    """Put the newest checkpoint into `training`; returns the rows logged so far."""
    found = checkpoint.steps(work)
    if not found:
        return []
    facts = checkpoint.facts(found[-1])
    training.recipe.agree(facts["recipe"], found[-1])
    if facts["speech"] != _extent(waves):
        raise KitError(f"{found[-1]} was trained on {facts['speech']}, the corpus now is {_extent(waves)} (clips and "
                      "samples). Give the same corpus, or choose another --out.")
    checkpoint.load(found[-1], training.modules, training.optimizers)
    training.resume(facts["step"], facts["seconds"], facts["spreads"])
    print(f"Going on from {found[-1].name}.")
    return facts["rows"]


def _advance(training: Training, rows: list[dict], bar: tqdm) -> None:
    parts = training.step()
    if training.steps % LOG_EVERY == 0:
        speech = training.steps * training.recipe.batch * training.crops.samples / training.spec.sample_rate
        rows.append({"step": training.steps, "seconds": round(training.seconds, 1),
                     **{name: round(value.item(), 4) for name, value in parts.items()},
                     "codebook_use": round(quantizer.use(training.codec), 4), "speech_seconds": round(speech, 1)})
        used = f"{rows[-1]['codebook_use']:.0%}" if training.quantizing else "not yet"
        bar.set_postfix({"step": training.steps, "spectral": f"{rows[-1]['spectra']:.3f}", "codebook use": used,
                         "audio s/s": f"{speech / training.seconds:.0f}"}, refresh=False)
    bar.update(min(training.progress, 1) * bar.total - bar.n)


def _bar(training: Training) -> tqdm:
    total = training.recipe.steps or 60 * training.recipe.minutes
    return tqdm(total=total, initial=training.progress * total, desc="codec", unit="step" if training.recipe.steps else "s",
                bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}{postfix}]")


def _save(training: Training, work: Path, waves: Sequence[np.ndarray], rows: list[dict]) -> None:
    facts = {"recipe": dataclasses.asdict(training.recipe), "speech": _extent(waves), "seconds": training.seconds,
             "spreads": training.spreads, "rows": rows}
    checkpoint.save(work, training.steps, training.modules, training.optimizers, facts)
    write_rows(work / "log.jsonl", rows)


def _export(training: Training, out: Path, held_out: Sequence[np.ndarray]) -> dict:
    facts = {"finished": training.progress >= 1, "steps": training.steps, "train_seconds": round(training.seconds, 1),
             "speech_seconds": round(training.crops.ends[-1] / training.spec.sample_rate),
             "machine": device.machine(), "versions": device.versions()}
    return codec_evaluation.export(training.codec, out, held_out, training.recipe, facts)


def _extent(waves: Sequence[np.ndarray]) -> list[int]:
    return [len(waves), sum(map(len, waves))]


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = CodecRecipe(**{field.name: getattr(options, field.name) for field in dataclasses.fields(CodecRecipe)})
    device_config = device.choose(options.device, options.dtype)
    rate = ModelSpec.of(model_shapes.config(config.shape)).sample_rate
    learnt, held_out = split(_hours(corpus.read(options.corpus), options.hours), options.held_out)
    learnt, held_out = ([audio.resample(wave, corpus.RATE, rate) for wave in waves] for waves in (learnt, held_out))
    print(f"{device_config.reason} {len(learnt)} clips to learn from ({sum(map(len, learnt)) / rate / 3600:.2f} hours), "
          f"{len(held_out)} of other speakers held out.")
    train(learnt, held_out, options.out, config, device_config, teacher.load(options.teacher, rate) if options.teacher
          else None)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sample_data.build.codec_training", description=__doc__)
    top.add_argument("--corpus", type=Path, default=corpus.OUT, help=f"folder that {corpus.__name__} made")
    top.add_argument("--out", type=Path, default=corpus.OUT.with_name("codec"), help="folder for the codec")
    top.add_argument("--hours", type=float, default=0.0, help="use only the first hours of the corpus; 0 for all")
    top.add_argument("--held-out", type=float, default=0.02, help="share of the clips to judge by, by whole speakers")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 pays on CPUs with units for it")
    top.add_argument("--threads", type=int, default=0, help="CPU threads; 1 is faster where others keep the cores busy")
    top.add_argument("--teacher", help="a Whisper whose encoder the first codebook follows: its folder for "
                     "faster-whisper, or `bundled`")
    group = top.add_argument_group("recipe")
    for field, text in zip(dataclasses.fields(CodecRecipe), codec_config.explanations()):
        kind = {"action": argparse.BooleanOptionalAction} if field.default is False else {"type": type(field.default)}
        group.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind,
                           help=f"{text} (default: {field.default})".replace("%", "%%"))
    return top


def _hours(rows: Iterable[tuple[str, str, np.ndarray]], hours: float) -> Iterator[tuple[str, str, np.ndarray]]:
    """The first `hours` of a corpus, so that one that still grows gives the same speech again."""
    heard = 0
    for row in rows:
        yield row
        heard += len(row[2])
        if hours and heard >= hours * 3600 * corpus.RATE:
            return


if __name__ == "__main__":
    sys.exit(main())
