"""Codes on disk: one small file a clip, named by what it was made of, so that a rerun encodes only what is missing."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from tts_kit import audio
from tts_kit.data import manifest as utterance
from tts_kit.data.manifest import Utterance
from tts_kit.errors import KitError
from tts_kit.io import read_json, read_rows, write_bytes, write_json, write_rows
from tts_kit.run import Run
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.encoded_clip import EncodedClip

FORMAT = "1"
SECONDS_PER_BATCH = 120.0


class CorruptEntry(Exception):
    """A cache entry that is not what its name says."""


def encode_missing(utterances: list[Utterance], folder: Path, codec: Codec) -> dict[str, int]:
    """Encode what is missing and write the index; returns how many entries were kept, encoded and found damaged."""
    fingerprint, (keys, counts) = codec.fingerprint(), add(utterances, folder, codec)
    write_json(folder / "codec.json", {"codec": fingerprint, "format": FORMAT, **asdict(codec.spec)})
    write_rows(folder / "index.jsonl", (
        {"id": each.id, "text": each.text, "source": each.source, "speaker": each.speaker, "recording": each.recording,
         "split": each.split, "key": name} for each, name in zip(utterances, keys)))
    return counts


def add(utterances: list[Utterance], folder: Path, codec: Codec) -> tuple[list[str], dict[str, int]]:
    """Encode what is missing and touch nothing else, so that parts of a set can be added in several places at once;
    returns the keys, and the counts of `fill`."""
    fingerprint = codec.fingerprint()
    keys = [key(each.audio, fingerprint) for each in utterances]
    counts = {"kept": 0, "encoded": 0, "damaged": 0}
    missing = []
    for each, name in zip(utterances, keys):
        state = _state(entry(folder, name), name, codec)
        counts["kept" if state == "whole" else "encoded"] += 1
        counts["damaged"] += state == "damaged"
        if state != "whole":
            missing.append((each, name))
    _encode(missing, folder, codec, fingerprint)
    return keys, counts


def read(folder: Path) -> list[EncodedClip]:
    """The clips of a run, every entry checked."""
    if not (folder / "index.jsonl").is_file():
        raise KitError(f"{folder} holds no codes. Run `tts-kit tokenize --run {folder.parent.name}` first.")
    clips = []
    for row in read_rows(folder / "index.jsonl"):
        path = entry(folder, row.pop("key"))
        try:
            clips.append(EncodedClip(**row, codes=open_entry(path, path.stem)))
        except CorruptEntry as error:
            raise KitError(f"{path} (clip {row['id']}) {error}. Run `tts-kit tokenize` again: "
                          "it encodes only what is missing or damaged.") from error
    return clips


def load_run(run: Run) -> list[EncodedClip]:
    """The clips of a run, provided that they are those of its data."""
    manifest = run.data / utterance.MANIFEST
    if not manifest.exists() and not run.codes.exists():
        raise KitError(f"{run.folder} holds neither data nor codes. Begin with `tts-kit prepare SOURCE --run "
                      f"{run.name}`, then `tts-kit tokenize --run {run.name}`.")
    clips = read(run.codes)
    if manifest.exists() and not matches_data(run):
        raise KitError(f"{run.codes} was made from other data than {run.data} holds now. Run `tts-kit tokenize` "
                      "again: it encodes only what is missing.")
    return clips


def matches_data(run: Run) -> bool:
    """Whether a run's codes are those of its data, word by word, and sound by sound where the sounds are there."""
    said, codec = [*read_rows(run.data / utterance.MANIFEST)], codec_fingerprint(run.codes)
    known = [*read_rows(run.codes / "index.jsonl")]
    if [(row["id"], row["text"], row["split"]) for row in said] != [(row["id"], row["text"], row["split"]) for row in known]:
        return False
    sounds = [run.data / row.get("audio", "") for row in said]
    return all(key(sound, codec) == row["key"] for sound, row in zip(sounds, known) if sound.is_file())


def digest(folder: Path) -> str:
    """Names all the codes of a run and what is said in them."""
    return hashlib.sha256((folder / "index.jsonl").read_bytes()).hexdigest()[:16]


def codec_fingerprint(folder: Path) -> str:
    """The fingerprint of the codec that made a folder's codes."""
    return read_json(folder / "codec.json", "Run `tts-kit tokenize` again.").get("codec", "")


def key(clip: Path, fingerprint: str) -> str:
    """A name for the codes of this very file by this very codec."""
    return hashlib.sha256(f"{FORMAT} {fingerprint} ".encode() + clip.read_bytes()).hexdigest()[:32]


def entry(folder: Path, name: str) -> Path:
    return Path(folder) / "entries" / f"{name}.safetensors"


def open_entry(path: Path, name: str) -> torch.Tensor:
    """Codes (frames, codebooks) of one entry; raises Damaged when they are not the ones the name stands for."""
    try:
        with safe_open(path, "pt") as file:
            # a copy, because what safetensors gives is the mapped file itself, and dies with it
            label, codes = file.metadata() or {}, file.get_tensor("codes").clone()
    except FileNotFoundError as error:
        raise CorruptEntry("is missing") from error
    except (SafetensorError, OSError) as error:
        raise CorruptEntry(f"cannot be read ({error})") from error
    if label.get("key") != name or codes.dtype != torch.int16 or list(codes.shape) != [
            int(label.get("frames", -1)), int(label.get("codebooks", -1))]:
        raise CorruptEntry("holds something else than its name says")
    return codes


def _state(path: Path, name: str, codec: Codec) -> str:
    if not path.exists():
        return "missing"
    try:
        codes = open_entry(path, name)
    except CorruptEntry:
        return "damaged"
    inside = codes.numel() and codes.min() >= 0 and codes.max() < codec.spec.codebook_size
    return "whole" if inside and codes.shape[1] == codec.spec.num_codebooks else "damaged"


def _encode(missing: list[tuple[Utterance, str]], folder: Path, codec: Codec, fingerprint: str) -> None:
    """Longest clips first, so that a batch holds clips of like length and memory is tried at once."""
    missing = sorted(missing, key=lambda pair: -pair[0].seconds)
    with tqdm(total=len(missing), desc="encoding", unit="clip", disable=not missing) as bar:
        while missing:
            # a processor is faster with one clip, which its cache holds, than with many: see tests/benchmarks/encode.py
            at_once = SECONDS_PER_BATCH if codec.device.type != "cpu" else 0
            count = max(1, int(at_once / max(missing[0][0].seconds, 0.1)))
            batch, missing = missing[:count], missing[count:]
            waves = [audio.read(each.audio, codec.spec.sample_rate) for each, _ in batch]
            for codes, (_, name) in zip(codec.encode(waves), batch):
                label = {"key": name, "codec": fingerprint, "frames": str(codes.shape[0]),
                         "codebooks": str(codes.shape[1])}
                write_bytes(entry(folder, name), save({"codes": codes}, metadata=label))
            bar.update(len(batch))
