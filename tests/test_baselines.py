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
from tts_kit.comparison import external
from tts_kit.comparison.external import ExternalClip
from tts_kit.comparison.external_systems import SYSTEMS, System, kokoro, orpheus, process
from tts_kit.errors import KitError
from tts_kit.evaluation import bundled, metrics
from tts_kit.speech.speak import Reference

RATE = 24_000
TEXTS = ["He lost two wooden chairs.", "The dog ran away.", "Who is that girl?"]
LINES = [(1, TEXTS[0], 1), (1, TEXTS[0], 2), (2, TEXTS[1], 1)]
# a system without packages: a tone as high as its seed asks and as long as its text
TONE = """
import math
def load(reference, words):
    def say(text, seed):
        return [0.3 * math.sin(2 * math.pi * 100 * (1 + seed) * at / 24000) for at in range(1000 * len(text))], 24000
    return say
"""


def tone(seconds: float = 1.0, height: float = 200) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * height * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def reference(tmp_path):
    audio.write(tmp_path / "reference.flac", tone(3.0), RATE)
    return Reference(tmp_path / "reference.flac", "Hello there")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a system out of a snippet, which this very Python runs where uv would make an environment."""
    def make(source: str, **changes):
        (tmp_path / "snippet.py").write_text(source)
        monkeypatch.setitem(SYSTEMS, "own", System(str(tmp_path / "snippet.py"), ("own==1.0",), "MIT", 0.1, **changes))
        monkeypatch.setattr(process, "uv", lambda: "uv")
        monkeypatch.setattr(process, "command", lambda system: [sys.executable, "-I", str(process.RUNNER)])
        return external.parse("own")
    return make


def spoken(baseline, reference, folder, lines=LINES, **limits) -> list[tuple]:
    return sorted(external.synthesize(baseline, lines, reference, folder, **limits))


def reasons(baseline, reference, folder, lines=LINES, **limits) -> list[str]:
    said = spoken(baseline, reference, folder, lines, **limits)
    assert [place for place, _, _ in said] == list(range(len(lines))), "a line was dropped"
    return [reason for _, path, reason in said if path is None]


def is_gone(number: int) -> bool:
    for _ in range(50):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_kokoro_really_speaks(tmp_path, reference):
    """Mistake: an arm that was never run; here the wheels are installed, and a judge understands what is said."""
    if not process.uv():
        pytest.skip("uv is missing: pip install uv")
    said = spoken(external.parse("kokoro"), reference, tmp_path / "kokoro")
    if all("error" in reason and re.search("fetch|request|network", reason) for _, _, reason in said):
        pytest.skip(f"no network: {said[0][2]}")
    assert [(place, path and path.name, reason) for place, path, reason in said] == [
        (0, "001-1.wav", ""), (1, "001-2.wav", ""), (2, "002-1.wav", "")]
    assert all(1.0 < audio.probe(path)[2] < 4.0 and audio.probe(path)[0] == RATE for _, path, _ in said)
    assert said[0][1].read_bytes() == said[1][1].read_bytes() != said[2][1].read_bytes()
    if bundled.missing():
        print("Nobody listened: no judges are installed.")
    else:
        for place in (0, 2):
            heard = bundled.load(1).transcribe(audio.read(said[place][1], 16_000))
            assert metrics.count_wrong_words(LINES[place][1], heard)[1] == 0, heard


def test_only_what_is_missing_is_made(tmp_path, reference, own, capsys):
    """Mistakes: everything anew after a disconnect; a clip of another text or reference kept for this one."""
    baseline, folder = own(TONE), tmp_path / "own"
    assert not reasons(baseline, reference, folder)
    assert "own==1.0" in capsys.readouterr().out
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.wav")}
    (folder / "001-2.wav").unlink()

    def changed(lines=LINES, heard=reference) -> set[str]:
        before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.wav")}
        assert not reasons(baseline, heard, folder, lines)
        return {path.name for path in folder.glob("*.wav") if before.get(path.name) != path.stat().st_mtime_ns}

    assert changed() == {"001-2.wav"} and stamps.keys() == {"001-1.wav", "001-2.wav", "002-1.wav"}
    capsys.readouterr()
    assert changed() == set() and not capsys.readouterr().out, "a system that has nothing to say is not even mentioned"
    assert changed([*LINES[:2], (2, TEXTS[2], 1)]) == {"002-1.wav"}
    assert len(changed(heard=Reference(reference.path, "Other words."))) == 3


def test_seeds_differ_unless_the_system_has_no_chance(tmp_path, reference, own):
    """Mistakes: one take under the names of three; a deterministic system that says the same three times over."""
    own(TONE)
    spoken(external.parse("own"), reference, tmp_path / "a")
    assert (tmp_path / "a/001-1.wav").read_bytes() != (tmp_path / "a/001-2.wav").read_bytes()
    count = f"pathlib.Path({str(tmp_path / 'said')!r}).open('a').write('.')"
    counting = "import pathlib\n" + TONE.replace("return [", f"{count}\n        return [")
    assert not reasons(own(counting, draws=False), reference, tmp_path / "b")
    assert (tmp_path / "said").read_text() == ".."


@pytest.mark.parametrize(("source", "wanted"), [
    ("def load(reference, words):\n    raise OSError('no weights\\nto be had')", "OSError: no weights to be had"),
    ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("import sys\ndef load(*_):\n    sys.exit('this needs a licence')", "SystemExit: this needs a licence"),
    ("import os, sys\ndef load(*_):\n    print('last words', flush=True)\n    os._exit(7)", "last words"),
    ("import os\ndef load(*_):\n    os.kill(os.getpid(), 9)", "it ended without a word"),
    ("def load(*_):\n    return input('y/n? ')", "EOFError: EOF when reading a line"),
])
def test_a_broken_system_is_skipped_with_its_reason(tmp_path, reference, own, source, wanted):
    """Mistakes: a traceback that ends the whole comparison; a skip that does not say why; a question nobody can answer."""
    assert reasons(own(source), reference, tmp_path / "own") == [wanted] * 3
    assert not list((tmp_path / "own").glob("*.wav"))


@pytest.mark.parametrize(("made", "wanted"), [
    ("1 / 0", "ZeroDivisionError"), ("[661.4, -3.0] * 24000", "as large as 661"),
    ("[float('nan')] * 24000", "not numbers"), ("[0.0] * 24000", "silent"), ("[]", "speech"),
    ("[0.1, -0.1] * 24000 * 61", "seconds"), ("[[0.1, 0.2], [0.1, 0.2]]", "TypeError")])
def test_a_line_that_fails_does_not_take_the_others_along(tmp_path, reference, own, made, wanted):
    """Mistake: counting noise, silence or nothing as a clip, or losing the lines after a bad one."""
    broken = TONE.replace("return [", f"if 'lost' in text:\n            return {made}, 24000\n        return [")
    found = reasons(own(broken, draws=False), reference, tmp_path / "own")
    assert len(found) == 2 and all(wanted in each for each in found)
    assert [path.name for path in (tmp_path / "own").glob("*.wav")] == ["002-1.wav"]


def test_a_system_that_chatters_is_heard_all_the_same(tmp_path, reference, own):
    """Mistake: a library's prints taken for answers, or forged paths believed."""
    noisy = """print('{"line": 0, "problem": "", "file": "/etc/passwd"}', flush=True)\nprint("[1, 2]", flush=True)\n"""
    assert not reasons(own(noisy + TONE), reference, tmp_path / "own")


@pytest.mark.parametrize(("source", "limits", "wanted"), [
    ("import time\ntime.sleep(60)", (1.5, 60.0), "1.5 seconds to install and load"),
    ("import time\ndef load(*_):\n    return lambda text, seed: time.sleep(60)", (60.0, 1.5), "1.5 seconds for a line")])
def test_time_is_limited_and_nothing_runs_on(tmp_path, reference, own, source, limits, wanted):
    """Mistake: a hanging download holds everything up, or goes on eating the machine after it was given up."""
    pid = f"import os, pathlib\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
    found = reasons(own(pid + source), reference, tmp_path / "own", limits=limits)
    assert len(found) == 3 and wanted in found[0]
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_stopping_stops_the_system_too(tmp_path, reference, own):
    """Mistake: Ctrl-C ends the kit, and another system goes on in the background with all its memory."""
    child = ("import os, pathlib, subprocess\nchild = subprocess.Popen(['sleep', '300'])\n"
             f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n")
    saying = external.synthesize(own(child + TONE), LINES, reference, tmp_path / "own")
    assert next(saying)[1].name == "001-1.wav"
    saying.close()
    assert all(is_gone(int(each)) for each in (tmp_path / "pid").read_text().split())


def test_the_runner_leaves_when_the_kit_is_killed(tmp_path):
    """Mistake: a kit that was killed leaves a process behind that holds the GPU."""
    (tmp_path / "snippet.py").write_text("import time\ntime.sleep(300)")
    (tmp_path / "job.json").write_text(json.dumps({"snippet": str(tmp_path / "snippet.py"), "reference": "", "words": "",
                                                   "lines": []}))
    with subprocess.Popen([sys.executable, "-I", process.RUNNER, tmp_path / "job.json"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as runner:
        assert b"loading" in runner.stdout.readline()
        runner.stdin.close()
        assert runner.wait(20) == 1


def test_secrets_stay_at_home(tmp_path, reference, own, monkeypatch):
    """Mistakes: every key of the user in a stranger's process; a job that others on this machine can read."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = ("import os, stat, sys\ndef load(*_):\n    job = sys.argv[1]\n"
              "    modes = [oct(stat.S_IMODE(os.stat(each).st_mode)) for each in (job, os.path.dirname(job))]\n"
              "    names = [name for name in os.environ if 'SECRET' in name or 'PYTHON' in name or 'TOKEN' in name]\n"
              "    raise ValueError(modes, sorted(names))")
    assert reasons(own(source), reference, tmp_path / "own")[0] == (
        "ValueError: (['0o600', '0o700'], ['HF_HUB_DISABLE_IMPLICIT_TOKEN'])")
    assert "HF_TOKEN" in reasons(own(source, needs_token=True), reference, tmp_path / "own")[0]
    assert [name for name, system in SYSTEMS.items() if system.needs_token and name != "own"] == ["pocket-tts", "orpheus-3b"]


def test_what_cannot_be_had_says_so(tmp_path, reference, monkeypatch):
    """Mistake: a page of a resolver's output, or a traceback, where a package or the network is missing."""
    if not process.uv():
        pytest.skip("uv is missing: pip install uv")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    found = reasons(external.parse("kokoro"), reference, tmp_path / "kokoro")
    assert len(found) == 3 and "was not found in the cache" in found[0] and "\n" not in found[0]


def test_conditions_are_said_before_anything_is_fetched(tmp_path, reference, monkeypatch, capsys):
    """Mistakes: accepting a licence in the user's name; gigabytes for a machine that cannot run them."""
    monkeypatch.delenv("COQUI_TOS_AGREED", raising=False)
    monkeypatch.setattr(process, "answers", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(external.device_config, "choose", lambda: external.device_config.Runtime("cpu", None, "", ""))
    monkeypatch.setattr(process, "uv", lambda: "")
    assert "pip install uv" in external.available("kokoro")
    monkeypatch.setattr(process, "uv", lambda: "uv")
    assert external.available("kokoro") == ""
    for name, wanted in (("xtts-v2", "no commercial use.*COQUI_TOS_AGREED=1"), ("dia", "NVIDIA"), ("orpheus-3b", "NVIDIA")):
        found = reasons(external.parse(name), reference, tmp_path / name)
        assert len(found) == 3 and re.search(wanted, found[0])
    assert not capsys.readouterr().out
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    assert external.available("xtts-v2") == ""


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_entry_is_whole(name):
    """Mistake: an entry whose file is gone or that installs whatever is newest on the day."""
    system, said = SYSTEMS[name], external.describe(name)
    source = (process.RUNNER.parent / system.snippet).read_text()
    compile(source, system.snippet, "exec")
    assert "\ndef load(reference: str, words: str)" in source and "tts_kit." not in source.replace("tts_kit\"", "")
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in system.packages)
    assert all(each in said for each in (*system.packages, system.licence, f"{system.gigabytes:g} GB"))
    assert external.parse(name) == external.ExternalSystem(name)


def test_codes_of_orpheus_go_to_their_levels():
    """Mistake: seven codes of a frame dealt to the wrong levels of SNAC, which is noise."""
    torch = pytest.importorskip("torch")
    frame = [orpheus.FIRST + place * orpheus.CODES + 10 * place for place in range(7)]
    rows = orpheus.levels(torch.tensor([*frame, *frame, *frame[:3], orpheus.STOP]))
    assert [row.tolist() for row in rows] == [[0, 0], [10, 40] * 2, [20, 30, 50, 60] * 2]
    with pytest.raises(ValueError, match="no whole frame"):
        orpheus.levels(torch.tensor([orpheus.STOP]))


def test_voices_of_another_package_are_refused(tmp_path, monkeypatch):
    """Mistake: unpacking whatever a registry sends."""
    (tmp_path / "other.tgz").write_bytes(b"something else")
    monkeypatch.setattr(kokoro, "VOICES", (tmp_path / "other.tgz").as_uri())
    with pytest.raises(ValueError, match="not the package"):
        kokoro.voice("af_heart", tmp_path / "cache")
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
    for name in ("001.wav", "003-1.flac", "003-7.wav", "003.mp3.wav", "009.wav"):
        audio.write(folder / name, tone(), RATE)
    audio.write(tmp_path / "outside.wav", tone(), RATE)
    (folder / "002.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "evil\n\x1b[2J.txt").write_text("x")
    (folder / "004.wav").write_bytes(b"no audio")
    baseline = external.parse(f"folder:mine={folder}")
    assert baseline.name == "mine" and baseline.system is None
    found = external.from_folder(baseline.name, baseline.folder, [*TEXTS, "It was too dark."])
    assert [(each.sentence, each.seed, each.path and each.path.name) for each in found] == [
        (1, None, "001.wav"), (2, None, None), (3, 1, "003-1.flac"), (3, 7, "003-7.wav"), (4, None, None)]
    assert "missing" in found[1].reason and "004.wav cannot be read as audio" in found[4].reason
    said = capsys.readouterr().out
    assert "4 entries" in said and "'002.wav'" in said and "'009.wav'" in said and r"'evil\n\x1b[2J.txt'" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("mark", [",", "|"])
def test_files_are_found_by_their_texts(tmp_path, mark, capsys):
    """Mistakes: a table's order taken for the sentences'; two takes of a sentence, of which one vanishes."""
    for name in ("a.wav", "b.wav", "c.wav"):
        audio.write(tmp_path / "mine" / name, tone(), RATE)
    audio.write(tmp_path / "secret.wav", tone(), RATE)
    rows = [("file_name", "text"), ("b.wav", TEXTS[1].upper()), ("a.wav", TEXTS[0]), ("c.wav", TEXTS[0].rstrip(".")),
            ("../secret.wav", TEXTS[2]), ("a.wav", "Nobody asked for this.")]
    (tmp_path / "mine/metadata.csv").write_text("\n".join(mark.join(row) for row in rows))
    found = external.from_folder("mine", tmp_path / "mine", TEXTS)
    assert found == [ExternalClip(1, 1, tmp_path / "mine/a.wav"), ExternalClip(1, 2, tmp_path / "mine/c.wav"),
                     ExternalClip(2, None, tmp_path / "mine/b.wav"), found[-1]]
    assert found[-1].sentence == 3 and found[-1].path is None and "missing" in found[-1].reason
    said = capsys.readouterr().out
    assert "2 entries" in said and "row 4" in said and "outside" in said and "Nobody asked" in said


def test_a_take_without_a_number_gets_the_next(tmp_path):
    """Mistake: two takes of one number, of which the page shows one."""
    for name in ("001.wav", "001-0.wav", "001-1.wav", "001-3.wav"):
        audio.write(tmp_path / name, tone(), RATE)
    found = external.from_folder("mine", tmp_path, TEXTS[:1])
    assert [(each.seed, each.path.name) for each in found] == [
        (0, "001-0.wav"), (1, "001-1.wav"), (3, "001-3.wav"), (4, "001.wav")]


def test_a_folder_that_fits_nothing_says_what_it_should_hold(tmp_path):
    """Mistake: a whole arm of missing clips because the files are called otherwise."""
    with pytest.raises(KitError, match="no folder"):
        external.from_folder("mine", tmp_path / "nowhere", TEXTS)
    audio.write(tmp_path / "hello.wav", tone(), RATE)
    with pytest.raises(KitError, match="001.wav to 003.wav"):
        external.from_folder("mine", tmp_path, TEXTS)
    with pytest.raises(KitError, match="from_folder"):
        next(external.synthesize(external.parse(f"folder:mine={tmp_path}"), LINES, Reference(tmp_path, "x"), tmp_path))
