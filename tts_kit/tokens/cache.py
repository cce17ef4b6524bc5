"""Codes on disk: one small file per clip, named by clip and codec, so that a rerun encodes only what is missing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tts_kit.config import Config, save_config
from tts_kit.data import manifest
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.io import read_rows, write_bytes, write_rows
from tts_kit.progress import tqdm
from tts_kit.run import Run, changed_inputs, read_inputs, write_inputs
from tts_kit.tokens import codec as codecs

INDEX = "index.jsonl"
SECONDS_PER_BATCH = 120.0


@dataclass(frozen=True)
class EncodedClip:
    """An utterance whose audio has become codes."""
    id: str
    text: str
    source: str  # the speaker id that CSM reads
    speaker: str  # the speaker's name; a clip is context only for clips of the same name
    session: str
    split: str
    codes: torch.Tensor  # (frames, codebooks) int16


def tokenize(config: Config, run: Run, device_config: DeviceConfig) -> dict[str, int]:
    """Encode a run's data into its codes folder; returns how many clips were cached, encoded and corrupt."""
    utterances = manifest.read(run.data)
    codec = codecs.load(config.base, config.revision, device_config.device)
    save_config(run, config)  # an interrupted run goes on with the same base
    counts, fingerprint = encode_missing(utterances, run.codes, codec), codec.fingerprint()
    write_rows(run.codes / INDEX, (
        {"id": utterance.id, "text": utterance.text, "source": utterance.source, "speaker": utterance.speaker,
         "session": utterance.session, "split": utterance.split, "key": cache_key(utterance, fingerprint)}
        for utterance in utterances))
    write_inputs(run.codes, manifest=manifest.digest(run.data), codec=fingerprint)
    repaired = f", {counts['corrupt']} of them to replace a corrupt entry" * (counts["corrupt"] > 0)
    print(f"{len(utterances)} clips: {counts['encoded']} encoded{repaired}, {counts['cached']} already there. "
          f"In {run.codes}.")
    return counts


def encode_missing(utterances: Sequence[manifest.Utterance], folder: Path, codec: codecs.Codec) -> dict[str, int]:
    """Write the entries that are missing or corrupt and touch nothing else; returns the counts of `tokenize`."""
    from tts_kit import audio  # training reads codes on machines without an audio library

    counts = {"cached": 0, "encoded": 0, "corrupt": 0}
    missing, fingerprint, spec = [], codec.fingerprint(), codec.spec
    for utterance in utterances:
        key = cache_key(utterance, fingerprint)
        try:
            open_entry(entry_path(folder, key))
            counts["cached"] += 1
        except KitError:
            counts["encoded"] += 1
            counts["corrupt"] += entry_path(folder, key).exists()
            missing.append((utterance, key))
    # longest first: a batch holds clips of similar length, and running out of memory shows at once
    missing.sort(key=lambda pair: -pair[0].seconds)
    # a CPU is faster with one clip, which fits its cache, than with many: see tests/benchmarks/encode.py
    seconds_per_batch = SECONDS_PER_BATCH if codec.device.type != "cpu" else 0.0
    with tqdm(total=len(missing), desc="encoding", unit="clip", disable=not missing) as bar:
        while missing:
            count = max(1, int(seconds_per_batch / max(missing[0][0].seconds, 0.1)))
            batch, missing = missing[:count], missing[count:]
            waves = [audio.read(manifest.read_audio(utterance), spec.sample_rate, name=str(utterance.audio))
                     for utterance, _ in batch]
            for codes, (_, key) in zip(codec.encode(waves), batch):
                write_bytes(entry_path(folder, key), save({"codes": codes}, metadata={"key": key}))
            bar.update(len(batch))
    return counts


def read(folder: Path) -> list[EncodedClip]:
    """Return the clips of a codes folder, every entry checked."""
    if not (folder / INDEX).is_file():
        raise KitError(f"{folder} holds no codes. Run `tts-kit tokenize --run {folder.parent.name}` first.")
    read_inputs(folder)  # refuses older formats
    clips = []
    for row in read_rows(folder / INDEX):
        path = entry_path(folder, row.pop("key"))
        try:
            clips.append(EncodedClip(**row, codes=open_entry(path)))
        except KitError as error:
            raise KitError(f"{path} (clip {row['id']}) {error}. Run `tts-kit tokenize --run {folder.parent.name}` again: it "
                           "encodes only what is missing or corrupt.") from error
    return clips


def load_run(run: Run) -> list[EncodedClip]:
    """Return the clips of a run, provided that they were made from the data it holds, if it still holds any."""
    has_data = (run.data / manifest.MANIFEST).exists()
    if not has_data and not run.codes.exists():
        raise KitError(f"{run.folder} holds neither data nor codes. Begin with `tts-kit prepare SOURCE --run {run.name}`, "
                       f"then `tts-kit tokenize --run {run.name}`.")
    clips = read(run.codes)
    if has_data and not matches_data(run):
        raise KitError(f"{run.codes} was made from other data than {run.data} holds now. Run `tts-kit tokenize --run "
                       f"{run.name}` again: it encodes only what is missing.")
    return clips


def matches_data(run: Run) -> bool:
    """Return whether a run's codes were made from the data it holds now."""
    return not changed_inputs(run.codes, manifest=manifest.digest(run.data))


def digest(folder: Path) -> str:
    """Return what identifies all codes of a run and their texts."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()[:16]


def cache_key(utterance: manifest.Utterance, codec_fingerprint: str) -> str:
    """Return the name of the codes of this clip by this codec."""
    return hashlib.sha256(f"{codec_fingerprint} {utterance.sha256}".encode()).hexdigest()[:32]


def entry_path(folder: Path, key: str) -> Path:
    return Path(folder) / "entries" / f"{key}.safetensors"


def open_entry(path: Path) -> torch.Tensor:
    """Return the codes (frames, codebooks) of an entry; a KitError says what is wrong, if anything is."""
    try:
        with safe_open(path, "pt") as file:
            # a copy, because safetensors returns a view of the mapped file, which does not outlive it
            key, codes = (file.metadata() or {}).get("key"), file.get_tensor("codes").clone()
    except FileNotFoundError as error:
        raise KitError("is missing") from error
    except (SafetensorError, OSError) as error:
        raise KitError(f"cannot be read ({error})") from error
    if key != path.stem or codes.dtype != torch.int16 or codes.dim() != 2:
        raise KitError("holds something else than its name says")
    return codes
