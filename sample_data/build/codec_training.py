"""Train a Mimi codec of a chosen shape on speech of many speakers.

    python -m sample_data.build.codec_training --corpus DIR
"""

import argparse
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from sample_data.build import checkpoint, codec_config, codec_evaluation, corpus, model_shapes, processes, quantizer, teacher
from sample_data.build.codec_config import CodecConfig
from sample_data.build.codec_trainer import CodecTrainer
from tts_kit import audio, device
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, report_errors
from tts_kit.io import check_replaceable, write_rows
from tts_kit.pretrained import ModelSpec
from tts_kit.training import distributed

MAX_JOINED_SECONDS = 28  # clips are joined up to this length, because Whisper's encoder takes 30 s at once
Teacher = Callable[[np.ndarray], np.ndarray]
"""A wave at the codec's rate -> features (frames, width) that the first codebook is trained to predict."""
LOG_EVERY = 50
EVALUATION_CLIPS = 40  # held-out waves of an evaluation


def train(waves: Sequence[np.ndarray], held_out: Sequence[np.ndarray], out: Path, config: CodecConfig,
          device_config: DeviceConfig, teach: Teacher | None = None) -> Path:
    """Train a codec on float32 waves at its rate, or resume; returns `out`, a folder for `MimiModel.from_pretrained`.

    Checkpoints and the log are in the folder `out`-training."""
    out = Path(out)
    check_replaceable(out, codec_evaluation.FILE)
    work = out.with_name(f"{out.name}-training")
    if (finished := codec_evaluation.read(out)).get("finished"):
        config.check_same(finished["recipe"], out)
        print(f"{out} is already trained with these settings. To train again, choose another --out.")
        return out
    is_first = distributed.is_rank_zero()
    with processes.first_process_first():
        features = None if teach is None else teacher_features(teach, waves, work / "teacher.safetensors")
    trainer = CodecTrainer(waves, config, device_config, features)
    rows = _resume(trainer, work, waves)
    stride = max(1, len(held_out) // EVALUATION_CLIPS)
    with _progress_bar(trainer) as bar:
        while trainer.progress < 1:
            _step(trainer, rows, bar)
            if is_first and trainer.steps % config.save_steps == 0:
                _save(trainer, work, waves, rows)
            if is_first and trainer.steps % config.eval_steps == 0 and trainer.progress < 1:
                _export(trainer, out, held_out[::stride])
    if is_first:
        _save(trainer, work, waves, rows)
        evaluation = _export(trainer, out, held_out[::stride])
        print(f"Spectral loss on held-out speech, by number of codebooks: {evaluation['spectral_loss']}. Codec: {out}")
    return out


def teacher_features(teach: Teacher, waves: Sequence[np.ndarray], cache: Path) -> list[np.ndarray]:
    """Return the teacher's features of each wave, (frames, width) float16 with mean 0 and deviation 1; cached on disk."""
    if not cache.exists():
        features = [np.asarray(teach(wave), np.float32) for wave in tqdm(waves, desc="teacher", unit="clip")]
        frames = np.concatenate(features)
        mean, deviation = frames.mean(0), frames.std(0) + 1e-5
        cache.parent.mkdir(parents=True, exist_ok=True)
        staging = cache.with_suffix(".part")
        save_file({str(index): np.ascontiguousarray((clip_features - mean) / deviation, np.float16)
                   for index, clip_features in enumerate(features)}, staging)
        staging.replace(cache)
    normalized = load_file(cache)
    if len(normalized) != len(waves):
        raise KitError(f"{cache} holds the features of {len(normalized)} waves, the corpus has {len(waves)}. Remove it, or "
                      "choose another --out.")
    return [normalized[str(index)] for index in range(len(waves))]


def split(rows: Iterable[tuple[str, str, np.ndarray]], share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Split waves into those to train on and held-out ones, by whole speakers, always in the same way.

    If there is only one speaker, its last clips are held out."""
    speakers: dict[str, list[np.ndarray]] = {}
    for speaker, _, wave in rows:
        speakers.setdefault(speaker, []).append(wave)
    total = sum(map(len, speakers.values()))
    held_out_count = max(1, round(share * total))
    if total < 2:
        raise KitError(f"the corpus holds {total} clips; at least two are needed, one to train on and one held out.")
    if len(speakers) == 1:
        [clips] = speakers.values()
        return clips[:-held_out_count], clips[-held_out_count:]
    train_waves, held_out = [], []
    for speaker in sorted(speakers, key=lambda name: hashlib.sha256(name.encode()).digest()):
        (held_out if len(held_out) < held_out_count else train_waves).extend(speakers[speaker])
    return train_waves, held_out


def join(waves: Iterable[np.ndarray], samples: int) -> list[np.ndarray]:
    """Join consecutive waves to longer ones of at most `samples`."""
    joined: list[list[np.ndarray]] = [[]]
    for wave in waves:
        if joined[-1] and sum(map(len, joined[-1])) + len(wave) > samples:
            joined.append([])
        joined[-1].append(wave)
    return [np.concatenate(parts) for parts in joined if parts]


def _resume(trainer: CodecTrainer, work: Path, waves: Sequence[np.ndarray]) -> list[dict]:
    """Load the newest checkpoint into `trainer`; returns the rows logged so far."""
    folders = checkpoint.list_folders(work)
    if not folders:
        return []
    metadata = checkpoint.read_metadata(folders[-1])
    trainer.config.check_same(metadata["recipe"], folders[-1])
    if metadata["speech"] != _corpus_size(waves):
        raise KitError(f"{folders[-1]} was trained on {metadata['speech']}, the corpus now is {_corpus_size(waves)} (clips "
                      "and samples). Give the same corpus, or choose another --out.")
    checkpoint.load(folders[-1], trainer.modules, trainer.optimizers)
    trainer.resume(metadata)
    print(f"Resuming from {folders[-1].name}.")
    return metadata["rows"]


def _step(trainer: CodecTrainer, rows: list[dict], bar: tqdm) -> None:
    """Train one step, log it, and update the progress bar."""
    losses = trainer.step()
    if trainer.steps % LOG_EVERY == 0:
        crops = trainer.steps * trainer.config.batch_size * trainer.config.processes
        speech = crops * trainer.crops.samples / trainer.spec.sample_rate
        rows.append({"step": trainer.steps, "seconds": round(trainer.seconds, 1),
                     **{name: round(value.item(), 4) for name, value in losses.items()},
                     "codebook_use": round(quantizer.codebook_usage(trainer.codec), 4), "speech_seconds": round(speech, 1)})
        usage = f"{rows[-1]['codebook_use']:.0%}" if trainer.is_quantizing else "not yet"
        bar.set_postfix({"step": trainer.steps, "spectral": f"{rows[-1]['spectral']:.3f}", "codebook use": usage,
                         "audio s/s": f"{speech / trainer.seconds:.0f}"}, refresh=False)
    bar.update(min(trainer.progress, 1) * bar.total - bar.n)


def _progress_bar(trainer: CodecTrainer) -> tqdm:
    total = trainer.config.steps or 60 * trainer.config.minutes
    return tqdm(total=total, initial=trainer.progress * total, desc="codec", unit="step" if trainer.config.steps else "s",
                bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}{postfix}]",
                disable=not distributed.is_rank_zero())


def _save(trainer: CodecTrainer, work: Path, waves: Sequence[np.ndarray], rows: list[dict]) -> None:
    metadata = {"recipe": dataclasses.asdict(trainer.config), "speech": _corpus_size(waves), **trainer.counters(),
                "rows": rows}
    checkpoint.save(work, trainer.steps, trainer.modules, trainer.optimizers, metadata)
    write_rows(work / "log.jsonl", rows)


def _export(trainer: CodecTrainer, out: Path, held_out: Sequence[np.ndarray]) -> dict:
    facts = {"finished": trainer.progress >= 1, "steps": trainer.steps, "train_seconds": round(trainer.seconds, 1),
             "speech_seconds": round(trainer.crops.ends[-1] / trainer.spec.sample_rate),
             "machine": device.machine(), "versions": device.versions()}
    return codec_evaluation.export(trainer.averaged.module, out, held_out, trainer.config, facts)


def _corpus_size(waves: Sequence[np.ndarray]) -> list[int]:
    """Return the number of clips and of samples."""
    return [len(waves), sum(map(len, waves))]


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    processes.run(_train_on_corpus, options.processes, options)


def _train_on_corpus(options: argparse.Namespace) -> None:
    config = CodecConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(CodecConfig)})
    device_config = device.choose(options.device, options.dtype)
    rate = ModelSpec.of(model_shapes.config(config.shape)).sample_rate
    rows = [_first_hours(corpus.read(folder), hours)
            for folder, hours in itertools.zip_longest(options.corpus, options.hours[:len(options.corpus)], fillvalue=0.0)]
    train_waves, held_out = split(itertools.chain.from_iterable(rows), options.held_out)
    train_waves, held_out = ([audio.resample(wave, corpus.RATE, rate) for wave in waves]
                             for waves in (train_waves, held_out))
    if distributed.is_rank_zero():
        print(f"{device_config.reason} {len(train_waves)} clips to train on ({sum(map(len, train_waves)) / rate / 3600:.2f} "
                  f"hours), {len(held_out)} of other speakers held out.")
    train(join(train_waves, MAX_JOINED_SECONDS * rate), held_out, options.out, config, device_config,
          teacher.load(options.teacher, rate) if options.teacher else None)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; each field of CodecConfig is an option."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.codec_training", description=__doc__.split("\n")[0])
    top.add_argument("--corpus", type=Path, nargs="+", default=[corpus.OUT], help=f"folders that {corpus.__name__} wrote")
    top.add_argument("--out", type=Path, default=corpus.OUT.with_name("codec"), help="folder for the codec")
    top.add_argument("--hours", type=float, nargs="+", default=[], help="use only the first hours of each corpus; 0 for all")
    top.add_argument("--held-out", type=float, default=0.02, help="share of the clips that is held out, by whole speakers")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 is faster on CPUs with bfloat16 units")
    top.add_argument("--threads", type=int, default=0, help="CPU threads; 1 is faster if other processes use the cores")
    top.add_argument("--teacher", help="a Whisper whose encoder features the first codebook is trained to predict: its "
                     "folder for faster-whisper, or `bundled`")
    group = top.add_argument_group("settings")
    for field, text in zip(dataclasses.fields(CodecConfig), codec_config.explanations()):
        kind = {"action": argparse.BooleanOptionalAction} if field.default is False else {"type": type(field.default)}
        group.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind,
                           help=f"{text} (default: {field.default})".replace("%", "%%"))
    return top


def _first_hours(rows: Iterable[tuple[str, str, np.ndarray]], hours: float) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the first `hours` of a corpus, all of it if 0; the same rows although the corpus may still grow."""
    samples = 0
    for row in rows:
        yield row
        samples += len(row[2])
        if hours and samples >= hours * 3600 * corpus.RATE:
            return


if __name__ == "__main__":
    sys.exit(main())
