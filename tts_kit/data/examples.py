"""Example voices: example:emma is bundled and synthetic; example:allison is a human voice, downloaded from Debian by apt."""

import gzip
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tts_kit import audio, io
from tts_kit.errors import KitError, reason
from tts_kit.progress import tqdm
from tts_kit.run import SAMPLE_HELD_OUT, SAMPLE_VOICE

PREFIX = "example:"
CACHE = Path.home() / ".cache" / "tts_kit" / "allison"
AUDIO_PACKAGE, TEXT_PACKAGE = "asterisk-core-sounds-en-g722", "asterisk-core-sounds-en"
POOL = "https://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/"
TABLE = "metadata.jsonl"
MIN_SECONDS, MAX_SECONDS = 1.2, 30.0  # a shorter prompt is a word or a tone
G722_RATE, G722_BYTES_PER_SECOND = 16_000, 8_000
LICENSE = """The prompts of example:allison were spoken by Allison Smith (theivrvoice.com) for Asterisk, with financial
contributions by Digium, Inc. They come from Debian's package asterisk-core-sounds-en-g722 and are licensed under
CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/): who passes them or what is made of them on names her,
says what was changed, and does so under the same licence.
"""


def resolve(source: str, eval_source: str) -> tuple[str, str]:
    """Return the sources of training and held-out clips if `source` is example:NAME; else both as they are."""
    if not source.startswith(PREFIX):
        return source, eval_source
    name = source.removeprefix(PREFIX)
    if name == "allison":
        return str(allison()), eval_source
    if name != "emma":
        raise KitError(f"{source}: no such example; wanted {PREFIX}emma (bundled, synthetic) or {PREFIX}allison (a human "
                       "voice, downloaded). Check the name.")
    if eval_source:
        raise KitError(f"{source} brings its own held-out clips; --eval-source {eval_source} would be others. Leave it out, "
                       f"or give {SAMPLE_VOICE} as the source.")
    return str(SAMPLE_VOICE), str(SAMPLE_HELD_OUT)


def allison() -> Path:
    """Return the folder of Allison Smith's prompts with their texts, downloaded and decoded if it is not there yet."""
    folder = CACHE / "voice"
    if not (folder / TABLE).is_file():
        with tempfile.TemporaryDirectory() as unpacked, io.atomic_folder(folder) as staging:
            unpack(TEXT_PACKAGE, Path(unpacked))
            unpack(AUDIO_PACKAGE, Path(unpacked))
            texts, rows = _read_texts(Path(unpacked)), []
            for name, path in tqdm(list(prompts(Path(unpacked))), desc="decoding", unit="clip"):
                # the texts of sounds and of silence have signs
                if (text := texts.get(name)) and not set(text) & set("[]<>()*#@"):
                    audio.write(staging / f"{name}.flac", decode(path), G722_RATE)
                    # prompts of one family share half sentences, so families are held out as a whole
                    rows.append({"file_name": f"{name}.flac", "text": text, "source": "allison",
                                 "session": re.split("[-/]", name)[0]})
            io.write_rows(staging / TABLE, rows)
            io.write_text(staging / "LICENSE.txt", LICENSE)
        print(f"{folder}: {len(rows)} prompts; left out: sounds, silence, prompts with signs or without a text, and those "
              f"shorter than {MIN_SECONDS} s or longer than {MAX_SECONDS:.0f} s.")
    print(LICENSE)
    return folder


def unpack(package: str, folder: Path) -> None:
    """Unpack a Debian package into a folder, downloaded by apt if CACHE does not hold it yet; nothing is installed."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        if not list(CACHE.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=CACHE, check=True, capture_output=True, text=True)
        for path in CACHE.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "--extract", path, folder], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        output = (getattr(error, "stderr", "") or reason(error)).strip()
        raise KitError(f"{package}, a package of Debian and Ubuntu, cannot be downloaded by apt-get and unpacked by "
                       f"dpkg-deb ({output}). Try `sudo apt-get update`, or download it from {POOL} (the file ends "
                       f"in _all.deb) into {CACHE}, in place of what is there.") from error


def prompts(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every prompt of a useful duration in an unpacked package."""
    for path in sorted(folder.glob("usr/share/asterisk/sounds/*/**/*.g722")):
        if not path.is_symlink() and MIN_SECONDS <= path.stat().st_size / G722_BYTES_PER_SECOND <= MAX_SECONDS:
            yield "/".join(path.relative_to(folder).with_suffix("").parts[5:]), path


def decode(path: Path) -> np.ndarray:
    """Decode a G.722 file to (samples,) at G722_RATE."""
    return np.concatenate(list(audio.read_blocks(path, G722_RATE)))


def _read_texts(folder: Path) -> dict[str, str]:
    """Return the text of each prompt by its name."""
    content = next(folder.glob("usr/share/doc/*/core-sounds-en.txt.gz")).read_bytes()
    lines = gzip.decompress(content).decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":")[::2] for line in lines if not line.startswith(";"))
    return {prompt.strip(): " ".join(text.split()) for prompt, text in pairs}
