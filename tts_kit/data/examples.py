"""Example voices: example:emma is bundled and synthetic; example:allison is a human voice, downloaded from Debian by apt."""

import gzip
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, io
from tts_kit.errors import KitError, reason
from tts_kit.run import SAMPLE_HELD_OUT, SAMPLE_VOICE

PREFIX = "example:"
CACHE = Path.home() / ".cache" / "tts_kit" / "allison"
AUDIO_PACKAGE, TEXT_PACKAGE = PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
POOL = "https://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/"
CLIPS = r"\./usr/share/asterisk/sounds/en[^/]*/((?:[\w-]+/)?[\w-]+)\.g722"
TABLE = "metadata.jsonl"
TEXTS = r"\./usr/share/doc/[^/]+/(core-sounds-en\.txt)\.gz"
MAX_TEXT_BYTES = 1_000_000
MAX_PACKAGE_BYTES = 100_000_000
MIN_SECONDS, MAX_SECONDS = 1.2, 30.0
"""A shorter prompt is a word or a tone."""
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
        audio_package, text_package = download_packages(PACKAGES)
        texts, clips = _read_texts(text_package), dict(package_files(audio_package, CLIPS))
        usable = {name: texts[name] for name in sorted(clips) if _is_usable(len(clips[name]), texts.get(name, ""))}
        if not usable:
            raise KitError(f"{audio_package.name} and {text_package.name} hold no prompt with its text. Delete both in "
                           f"{CACHE} and run the same command again.")
        with io.atomic_folder(folder) as staging:
            for name in tqdm(usable, desc="decoding", unit="clip"):
                audio.write(staging / f"{name}.flac", decode_g722(clips[name]), G722_RATE)
            # prompts of one family share half sentences, so families are held out as a whole
            io.write_rows(staging / TABLE, ({"file_name": f"{name}.flac", "text": text, "source": "allison",
                                             "session": re.split("[-/]", name)[0]} for name, text in usable.items()))
            io.write_text(staging / "LICENSE.txt", LICENSE)
        minutes = sum(len(clips[name]) for name in usable) / G722_BYTES_PER_SECOND / 60
        print(f"{folder}: {len(usable)} of {len(clips)} prompts, {minutes:.1f} minutes; left out: sounds, silence, prompts "
              f"with signs or without a text, and those shorter than {MIN_SECONDS} s or longer than {MAX_SECONDS:.0f} s.")
    print(LICENSE)
    return folder


def download_packages(names: Sequence[str]) -> list[Path]:
    """Return Debian packages as files in CACHE, downloaded by apt if they are not there yet; nothing is installed."""
    def find(name: str) -> Path | None:
        return next((path for path in sorted(CACHE.glob(f"{name}_*.deb")) if path.is_file()), None)

    if missing := [name for name in names if find(name) is None]:
        remedy = (f"Download {' and '.join(missing)} from {POOL} (the files end in _all.deb), put them into {CACHE}, and "
                  "run the same command again.")
        if not shutil.which("apt-get"):
            raise KitError(f"{' and '.join(missing)} are packages of Debian and Ubuntu, and apt-get is missing. {remedy}")
        with io.explain_os_errors(CACHE):
            CACHE.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(["apt-get", "download", *missing], cwd=CACHE, capture_output=True, text=True, check=False)
        if result.returncode or not all(map(find, names)):
            errors = [line for line in result.stderr.splitlines() if line.startswith("E:")] or ["E: no reason given"]
            raise KitError(f"apt-get download {' '.join(missing)} failed ({errors[0][2:].strip()}). Refresh its lists with "
                           f"`sudo apt-get update` and try again. {remedy}")
    return [find(name) for name in names]


def package_files(package: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield (first group, content) of each plain file of a Debian package whose path matches; nothing is written to disk."""
    if not shutil.which("dpkg-deb"):
        raise KitError(f"{package} is unpacked by dpkg-deb, which is missing. Install dpkg, or give your own clips.")
    remedy = f"Delete {package} and run the same command again: it is downloaded anew."
    size = 0
    command = ["dpkg-deb", "--fsys-tarfile", package]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|*") as archive:
                for member in archive:
                    size += max(0, member.size)
                    if size > MAX_PACKAGE_BYTES:
                        raise KitError(f"{package} holds more than {MAX_PACKAGE_BYTES / 1e6:.0f} MB, so it is not the "
                                       f"expected package. {remedy}")
                    if (match := re.fullmatch(pattern, member.name)) and member.isfile():
                        yield match[1], archive.extractfile(member).read()
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise KitError(f"{package} cannot be read as a Debian package ({reason(error)}). {remedy}") from error
        finally:
            process.kill()


def decode_g722(content: bytes) -> np.ndarray:
    """Decode G.722 at 64 kbit/s to (samples,) float32 at G722_RATE."""
    try:
        import av
    except ImportError as error:
        raise KitError("the prompts of example:allison are G.722, which PyAV decodes. Install it: pip install av") from error
    decoder = av.CodecContext.create("g722", "r")
    frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 2 ** 15


def _read_texts(package: Path) -> dict[str, str]:
    """Return the text of each prompt by its name."""
    content = b"".join(content for _, content in package_files(package, TEXTS))
    try:
        with gzip.open(BytesIO(content)) as file:
            lines = file.read(MAX_TEXT_BYTES).decode("utf-8", "replace").splitlines()
    except (EOFError, OSError, zlib.error) as error:
        raise KitError(f"the texts in {package} cannot be read ({error}). Delete it and start again.") from error
    pairs = (line.partition(":")[::2] for line in lines if not line.startswith(";"))
    return {prompt.strip(): " ".join(text.split()) for prompt, text in pairs}


def _is_usable(size: int, text: str) -> bool:
    """Whether a prompt is plain speech of a useful duration; the texts of sounds and of silence have signs."""
    return bool(text) and not set(text) & set("[]<>()*#@") and MIN_SECONDS <= size / G722_BYTES_PER_SECOND <= MAX_SECONDS
