"""The example voices: their names, and the Debian packages of the second one."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_kit import cli
from tts_kit.config import Config
from tts_kit.data import examples, prepare
from tts_kit.errors import KitError
from tts_kit.run import Run

SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
NEEDS_DPKG = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing here")


def prompt(number: int, seconds: float = 0.6) -> bytes:
    """A coded clip that differs from that of any other number."""
    return np.random.default_rng(number).integers(0, 256, round(seconds * 8000), dtype=np.uint8).tobytes()


PROMPTS = {f"{family}-{number}": prompt(10 * index + number) for index, family in enumerate("abcd", 1) for number in (1, 2)}
AUDIO_MEMBERS = {f"./{SOUNDS}/{name}.g722": content for name, content in {
    **PROMPTS, "letters/at": prompt(1), "beep": prompt(2), "short": prompt(3, 0.5), "long": prompt(4, 30.1),
    "untold": prompt(5), "silence/1": prompt(6)}.items()}
LINES = ["; Sounds", "", *(f"{name}: What {name}  says." for name in PROMPTS), "a-3: A link.", "letters/at: at [@]",
         "beep: [a tone]", "short: Short.", "long: Long.", "silence/1: (1 second of silence)"]
TEXT_MEMBERS = {f"./{TEXTS}": gzip.compress("\n".join(LINES).encode())}


def build_package(cache: Path, name: str, members: dict) -> None:
    """Build a Debian package with Debian's own tool; a Path among the contents becomes a link."""
    tree = cache.parent / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(f"Package: {name}\nVersion: 1.6\nArchitecture: all\nMaintainer: A <a@b.c>\n"
                                             "Description: sounds\n")
    for path, content in members.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            (tree / path).symlink_to(content)
        else:
            (tree / path).write_bytes(content)
    subprocess.run(["dpkg-deb", "-Zxz", "--build", "--root-owner-group", tree, cache / f"{name}_1.6_all.deb"], check=True,
                   capture_output=True, timeout=600)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a minimum duration so short that the tests are fast."""
    monkeypatch.setattr(examples, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(examples, "MIN_SECONDS", 0.55)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def fetched(cache, tmp_path):
    """Both packages, small."""
    (tmp_path / "secret").write_bytes(prompt(9))
    build_package(cache, examples.AUDIO_PACKAGE, AUDIO_MEMBERS | {f"./{SOUNDS}/a-3.g722": tmp_path / "secret"})
    build_package(cache, examples.TEXT_PACKAGE, TEXT_MEMBERS)
    return cache


# decoding


def test_the_decoder_equals_ffmpeg(tmp_path):
    """Mistake: the wrong mode of the codec, or samples lost at the end. The digest was taken from FFmpeg's output."""
    clips = [np.random.default_rng(number).integers(0, 256, 700 + 300 * number, dtype=np.uint8).tobytes()
             for number in range(4)]
    decoded = []
    for clip in clips:
        (tmp_path / "clip.g722").write_bytes(clip)
        decoded.append((examples.decode(tmp_path / "clip.g722") * 2 ** 15).astype("<i2"))
    assert [len(clip) for clip in decoded] == [1400, 2000, 2600, 3200]
    assert hashlib.sha256(b"".join(clip.tobytes() for clip in decoded)).hexdigest()[:16] == "e7f0147d34e52b2b"


# from packages to data


@NEEDS_DPKG
def test_prompts_become_a_source(fetched, tmp_path, monkeypatch, capsys):
    """Mistake: tones, silence, clips without a text or files behind a link are trained on; the license is lost."""
    run = Run("allison", tmp_path / "runs")
    utterances = prepare.prepare("example:allison", run, Config())
    output = capsys.readouterr().out
    assert ": 8 prompts" in output and "CC BY-SA 3.0" in output and "Allison Smith" in output
    assert "sounds, silence, prompts with signs or without a text" in output and "shorter than 0.55 s" in output
    assert [utterance.text for utterance in utterances] == [f"What {name} says." for name in PROMPTS]
    assert {utterance.speaker for utterance in utterances} == {"allison"}
    assert {utterance.session for utterance in utterances} == set("abcd")
    assert "CC BY-SA 3.0" in (fetched / "voice" / "LICENSE.txt").read_text(encoding="utf-8")
    clip, rate = soundfile.read(fetched / "voice" / "a-1.flac", dtype="int16")
    (tmp_path / "a-1.g722").write_bytes(PROMPTS["a-1"])
    assert rate == 16_000 and np.array_equal(clip, examples.decode(tmp_path / "a-1.g722") * 2 ** 15)


@NEEDS_DPKG
def test_prompts_are_decoded_once(fetched):
    """Mistake: minutes of decoding in every run, or a download although the source exists."""
    folder = examples.allison()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in fetched.glob("*.deb"):
        path.unlink()
    assert examples.allison() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# fetching


def install_fake_apt(folder: Path, script: str, monkeypatch) -> None:
    """Put an apt-get with this script first on the PATH; the real one would need the network."""
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@NEEDS_DPKG
def test_packages_are_downloaded_and_not_installed(fetched, tmp_path, monkeypatch):
    """Mistake: an installation that needs root, or packages in the working folder."""
    shop = fetched.rename(tmp_path / "shop")
    script = f'[ "$1" = download ] || exit 9\nshift\nfor name in "$@"; do cp {shop}/$name''_*.deb .; done'
    install_fake_apt(tmp_path / "bin", script, monkeypatch)
    assert (examples.allison() / "a-1.flac").is_file()
    assert len(list(fetched.glob("*.deb"))) == 2


@pytest.mark.parametrize("apt_state", ["failing", "missing"])
def test_without_apt_the_error_says_what_to_do(cache, tmp_path, monkeypatch, apt_state):
    """Mistake: a traceback, or `apt-get not found`, on a Mac or behind a firewall."""
    if apt_state == "missing":
        monkeypatch.setenv("PATH", "")
    else:
        install_fake_apt(tmp_path / "bin", "echo 'E: Unable to locate it' >&2; exit 100", monkeypatch)
    with pytest.raises(KitError, match="No such file" if apt_state == "missing" else "Unable to locate it") as caught:
        examples.allison()
    for part in (examples.TEXT_PACKAGE, "https://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/", str(cache),
                 "sudo apt-get update", "dpkg-deb"):
        assert part in str(caught.value)
    assert not list(cache.iterdir())


@NEEDS_DPKG
@pytest.mark.parametrize("damage", ["cut short", "not a package"])
def test_a_bad_package_is_named_with_the_remedy(fetched, damage):
    """Mistake: a traceback, or a half-made source that is used the next time, after a broken download."""
    path = fetched / f"{examples.AUDIO_PACKAGE}_1.6_all.deb"
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2] if damage == "cut short" else b"<html>404</html>")
    with pytest.raises(KitError, match="in place of what is there") as caught:
        examples.allison()
    assert str(path) in str(caught.value) and not (fetched / "voice").exists()


# names


def test_the_bundled_voice_brings_its_held_out_clips(tmp_path, capsys):
    """Mistake: the demo trains on clips that evaluate it, or leaves clips unused that it could train on."""
    utterances = prepare.prepare("example:emma", Run("emma", tmp_path), Config())
    held_out = [utterance for utterance in utterances if utterance.split == "held_out"]
    assert len(held_out) == 12 and {utterance.session for utterance in held_out} == {"later01", "later02"}
    assert sum(utterance.split == "train" for utterance in utterances) == 70 == len(utterances) - 12
    assert "share their" not in capsys.readouterr().out


@pytest.mark.parametrize(("source", "options", "message"), [
    ("example:alison", [], "no such example; wanted .*example:allison"),
    ("example:", [], "wanted example:emma"),
    ("example:emma", ["--eval-source", "mine"], "example:emma brings its own held-out clips"),
])
def test_an_unknown_example_is_named(source, options, message, tmp_path, monkeypatch, capsys):
    """Mistake: a misspelt example is looked up on the hub."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", source, *options]) == 1
    assert re.search(message, capsys.readouterr().err)
