"""Voices to try the kit with: example:emma travels with it, example:allison is a person's and is fetched."""

import csv
import difflib
import gzip
from collections import Counter
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np

from tts_kit import audio, io
from tts_kit.data import debian, g722
from tts_kit.errors import KitError

MARK = "example:"
SAMPLES = Path(__file__).parents[2] / "sample_data"
CACHE = Path.home() / ".cache" / "tts_kit" / "allison"
SPOKEN, WRITTEN = PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
POOL = "https://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/"
CLIPS = r"\./usr/share/asterisk/sounds/en[^/]*/((?:[\w-]+/)?[\w-]+)\.g722"
TEXTS = r"\./usr/share/doc/[^/]+/(core-sounds-en\.txt)\.gz"
LONGEST_TEXTS = 1_000_000
SHORTEST, LONGEST = 1.2, 30.0
"""Seconds; a shorter prompt is a word or a tone."""
LICENCE = """The prompts of example:allison were spoken by Allison Smith (theivrvoice.com) for Asterisk, with financial
contributions by Digium, Inc. They come from Debian's package asterisk-core-sounds-en-g722 and are licensed under
CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/): who passes them or what is made of them on names her,
says what was changed, and does so under the same licence.
"""


def resolve(source: str, held_out_from: str) -> tuple[str, str]:
    """Where the clips to learn and the clips to judge by are, if `source` is example:NAME; else both as they came."""
    if not source.startswith(MARK):
        return source, held_out_from
    name = source.removeprefix(MARK)
    if name == "allison":
        return str(allison()), held_out_from
    if name != "emma":
        near = difflib.get_close_matches(name, ("emma", "allison"), 1)
        hint = f" Did you mean {MARK}{near[0]}?" if near else ""
        raise KitError(f"{source}: no such example; wanted {MARK}emma (synthetic, travels with the kit) or {MARK}allison "
                      f"(a person's voice, fetched).{hint}")
    if held_out_from:
        raise KitError(f"{source} brings its own held-out clips; --eval-source {held_out_from} would be others. Leave it "
                      f"out, or give {SAMPLES / 'voice'} as the source.")
    if not (SAMPLES / "voice").is_dir():
        raise KitError(f"{SAMPLES} is missing: {source} travels with the kit's repository. Run in a clone of it.")
    return str(SAMPLES / "voice"), str(SAMPLES / "held_out")


def allison() -> Path:
    """The folder of Allison Smith's prompts with their texts, fetched and decoded where it is not there yet."""
    folder = CACHE / "voice"
    if not (folder / "metadata.csv").is_file():
        spoken, written = debian.fetch(PACKAGES, CACHE, POOL)
        texts, clips = dict(_texts(written)), dict(debian.files(spoken, CLIPS))
        reasons = {name: _reason(len(clips[name]) / g722.BYTES_A_SECOND, texts.get(name, "")) for name in sorted(clips)}
        kept = [name for name, reason in reasons.items() if not reason]
        if not kept:
            raise KitError(f"{spoken.name} and {written.name} hold no prompt with its text. Delete both in {CACHE} and run "
                          "the same command again.")
        _write(folder, [(name, texts[name], clips[name]) for name in kept])
        left_out = Counter(filter(None, reasons.values()))
        minutes = sum(len(clips[name]) for name in kept) / g722.BYTES_A_SECOND / 60
        print(f"{folder}: {len(kept)} of {len(clips)} prompts, {minutes:.1f} minutes; left out: "
              + ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) + ".")
    print(LICENCE)
    return folder


def _texts(package: Path) -> Iterator[tuple[str, str]]:
    """(name of the prompt, what is said in it)."""
    for name, content in debian.files(package, TEXTS):
        try:
            with gzip.open(BytesIO(content)) as file:
                lines = file.read(LONGEST_TEXTS).decode("utf-8", "replace").splitlines()
        except debian.BROKEN as error:
            raise KitError(f"{name}.gz in {package} cannot be read ({error}). Delete the package and run the same command "
                          "again.") from error
        for line in lines:
            prompt, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                yield prompt.strip(), " ".join(text.split())


def _reason(seconds: float, text: str) -> str:
    """Why a prompt is left out; nothing where it is plain speech of a useful length."""
    if not text:
        return "without a transcript"
    if set(text) & set("[]<>()*#@"):
        return "that are sounds or silence, or whose transcript has signs"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST} s"
    return f"longer than {LONGEST:.0f} s" if seconds > LONGEST else ""


def _write(folder: Path, prompts: list[tuple[str, str, bytes]]) -> None:
    """A source like any other: clips, metadata.csv, and the licence beside them."""
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file_name", "text", "source", "recording"))
    with io.atomic_folder(folder) as beside:
        decoded = g722.decode([content for _, _, content in prompts])
        for (name, text, _), samples in zip(prompts, decoded):
            audio.write(beside / f"{name}.flac", (samples / -float(np.iinfo(np.int16).min)).astype(np.float32), g722.RATE)
            # prompts of one family share half sentences, so whole families are held out
            writer.writerow((f"{name}.flac", text, "allison", name.replace("/", "-").split("-")[0]))
        io.write_text(beside / "metadata.csv", table.getvalue())
        io.write_text(beside / "LICENCE.txt", LICENCE)
