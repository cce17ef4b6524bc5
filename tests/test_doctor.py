import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tts_kit import device, doctor
from tts_kit.doctor import base_model, machine, packages

KIT = Path(doctor.__file__).parents[2]
GB = 10**9


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers like the hub does for the configuration file of a model; the model's name says how."""

    def do_HEAD(self):
        name = self.path.split("/")[2]
        if name == "hangs":
            time.sleep(3)
        codes = {"gated": (401, "GatedRepo"), "gated-with-token": (403, "GatedRepo"), "absent": (401, "RepoNotFound"),
                 "forbidden": (403, ""), "without-config": (404, "EntryNotFound"), "busy": (503, "")}
        status, code = codes.get(name, (200, ""))
        with contextlib.suppress(BrokenPipeError):
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def ask(expression: str, home: Path, **environment: str):
    """A doctor's answer from a fresh process, because the hub's client reads the environment once."""
    program = ("import json; from tts_kit import doctor; from tts_kit.doctor import base_model; "
               f"print(json.dumps({expression}, default=vars))")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=KIT, timeout=60,
                           env=clean | {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | environment, check=False)
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout)


def checkpoint(folder: Path, weights: int = 8) -> Path:
    """A folder with the files of a checkpoint; `weights` bytes of them, which take no room on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(weights)
    return folder


def test_the_hub_is_asked_and_each_answer_understood(hub, tmp_path):
    """A gated or absent model found out only after the data is prepared, or a busy hub taken for a missing model."""
    names = ("open", "gated", "gated-with-token", "absent", "forbidden", "without-config", "busy")
    answers = ask(f"[base_model.on_hub('org/' + name) for name in {names}]", tmp_path, HF_ENDPOINT=hub)
    seen = dict(zip(names, answers))
    assert {name: answer["state"] for name, answer in seen.items()} == {
        "open": "ok", "gated": "fail", "gated-with-token": "fail", "absent": "fail", "forbidden": "fail",
        "without-config": "fail", "busy": "warn"}
    for name in ("gated", "gated-with-token"):
        assert "is gated" in seen[name]["seen"]
        assert "hf auth login" in seen[name]["do"] and "unsloth/csm-1b" in seen[name]["do"]
    assert "Check the spelling" in seen["absent"]["do"] and "503" in seen["busy"]["seen"]


def test_a_hub_that_hangs_costs_no_more_than_the_timeout(hub, tmp_path):
    """A doctor that waits for minutes behind a firewall, or dies of the client's own error class."""
    now = "__import__('time').monotonic()"
    before, answer, after = ask(f"[{now}, base_model.on_hub('org/hangs', timeout=0.3), {now}]", tmp_path, HF_ENDPOINT=hub)
    assert answer["state"] == "warn" and "not reached" in answer["seen"] and "give a folder" in answer["do"]
    assert after - before < 2.5


def test_offline_is_a_warning_and_a_whole_cache_is_enough(tmp_path):
    """Refusing to work offline with a model that is in the cache, or promising one whose download was cut short."""
    cache = tmp_path / "hub" / "models--org--cached"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    snapshot = checkpoint(cache / "snapshots" / ("a" * 40))
    asked = "[base_model.on_hub('org/cached'), base_model.on_hub('org/other')]"
    cached, other = ask(asked, tmp_path, HF_HUB_OFFLINE="1")
    assert cached["state"] == "ok" and "in the cache" in cached["seen"]
    assert other["state"] == "warn" and "HF_HUB_OFFLINE" in other["do"]
    (snapshot / "model.safetensors").unlink()
    assert ask(asked, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")[0]["state"] == "warn"


def test_the_token_is_never_shown(tmp_path):
    """A token printed into a notebook that is then shared."""
    found = ask("base_model.token()", tmp_path, HF_TOKEN="hf_secretsecretsecret")
    assert found["state"] == "ok" and found["seen"] == "present"
    assert "none" in ask("base_model.token()", tmp_path)["seen"]


@pytest.mark.parametrize("base", ["./no-such-folder", "/no/such/folder", "~/nowhere", "a/b/c", "two words/model"])
def test_a_path_that_is_no_folder_is_not_looked_up_as_a_model(base):
    """A misspelt path answered by advice about hub accounts, or by a traceback of the client."""
    answer = base_model.on_hub(base)
    assert answer.state == "fail" and base in answer.seen and "no folder" in answer.seen


def test_a_folder_must_hold_a_whole_checkpoint(tmp_path):
    """A copy that lacks a shard, weights or tokenizer, found out only when the model is loaded."""
    folder = checkpoint(tmp_path / "model")
    assert base_model.in_folder(folder).state == "ok"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    answer = base_model.in_folder(folder)
    assert answer.state == "fail" and "lacks model.safetensors" in answer.seen and ".bin" in answer.do
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model-1-of-2.safetensors").touch()
    assert "lacks model-2-of-2.safetensors" in base_model.in_folder(folder).seen
    (folder / "model.safetensors.index.json").write_text("{cut", encoding="utf-8")
    assert "readable model.safetensors.index.json" in base_model.in_folder(folder).seen
    assert base_model.in_folder(tmp_path).seen.endswith("lacks config.json, model.safetensors, tokenizer.json")


@pytest.mark.parametrize("name, version, state, words", [
    ("transformers", "4.51.3", "fail", "no CSM"),
    ("transformers", "4.52.4", "fail", "never learns to stop"),
    ("transformers", "4.53.0", "warn", "tested with transformers 5"),
    ("transformers", "4.57.1", "warn", "tested with transformers 5"),
    ("transformers", "5.0.0", "warn", "asks for 5.17"),
    ("transformers", "5.16.2", "warn", "asks for 5.17"),
    ("transformers", "5.17.0", "ok", "repaired at load"),
    ("transformers", "5.20.1", "ok", "repaired at load"),
    ("transformers", "5.21.0rc1", "ok", "5.21.0rc1"),
    ("peft", "0.9.0", "fail", "no longer has"),
    ("peft", "0.18.1", "warn", "0.19.1"),
    ("peft", "0.19.1", "ok", "0.19.1"),
    ("torch", "2.4.1+cu121", "fail", "below 2.5"),
    ("torch", "2.5.0", "warn", "asks for 2.9"),
    ("torch", "2.8.0+cu128", "warn", "asks for 2.9"),
    ("torch", "2.9.0", "ok", "2.9.0"),
    ("torch", "2.13.0+cpu", "ok", "2.13.0+cpu"),
    ("accelerate", "0.34.2", "fail", "needs 1.1"),
    ("accelerate", "1.9.0", "warn", "asks for 1.10"),
    ("accelerate", "1.10.0", "ok", "1.10.0"),
    ("datasets", "4.1.0", "ok", "4.1.0"),
    ("soundfile", None, "fail", "not installed"),
])
def test_versions_known_to_be_bad(name, version, state, words):
    """0.9 sorted above 0.18 as text, a boundary off by one, or a version refused that the kit repairs."""
    answer = packages.package(name, version)
    assert answer.state == state and words in answer.seen
    assert bool(answer.do) == (state != "ok")


@pytest.mark.parametrize("name", sorted({rule[0] for rule in packages.RULES}))
def test_versions_are_accepted_from_where_the_requirements_begin(name):
    """A doctor that is content with versions which the requirements no longer ask for, or refuses what they do."""
    wanted = re.search(rf"^{name}>=(\S+)", (KIT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert [rule[2] for rule in packages.RULES if rule[0] == name and rule[3] != "ok"][-1] == wanted
    assert packages.package(name, wanted).state == "ok"


@pytest.mark.parametrize("torch, torchvision, requirements, system, state", [
    ("2.13.0+cpu", None, [], "linux", "ok"),
    (None, "0.28.0", ["torch==2.13.0"], "linux", "ok"),
    ("2.13.0+cpu", "0.28.0+cpu", ["numpy", "torch==2.13.0"], "linux", "ok"),
    ("2.13.0", "0.28.0", ["torch==2.13.0"], "linux", "ok"),
    ("2.13.0+cu130", "0.28.0", ["torch==2.13.0"], "linux", "ok"),
    ("2.13.0+cpu", "0.28.0", ["torch==2.13.0"], "win32", "ok"),
    ("2.13.0+cpu", "0.28.0", ["torch==2.13.0"], "linux", "fail"),
    ("2.13.0+cpu", "0.28.0+cu130", ["torch==2.13.0"], "linux", "fail"),
    ("2.13.0+cu130", "0.28.0+cpu", ["torch==2.13.0"], "linux", "fail"),
    ("2.13.0", "0.26.0", ["torch (==2.11.0)"], "linux", "fail"),
    ("2.13.0+cu130", "0.26.0+cu130", ["torch==2.11.0"], "linux", "fail"),
])
def test_a_torchvision_for_another_torch(torch, torchvision, requirements, system, state):
    """The 'torchvision::nms does not exist' that stops transformers, or a false alarm over a pair that works."""
    answer = packages.vision(torch, torchvision, requirements, system)
    assert answer.state == state
    assert ("pip uninstall torchvision" in answer.do) == (state == "fail")


@pytest.mark.parametrize("version, state", [
    ((3, 9, 18), "fail"), ((3, 10, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warn"),
])
def test_python_versions(version, state):
    """3.10 compared as a decimal, which is below 3.9."""
    assert packages.python(version).state == state


@pytest.mark.parametrize("total, free, small, state", [
    (16, 15, False, "ok"), (16, 3, False, "warn"), (16, None, False, "warn"), (6, 6, False, "warn"), (4, 4, False, "fail"),
    (4, 4, True, "ok"),
])
def test_gpu_memory(total, free, small, state):
    """A card too small or held by another notebook, found out by a crash; or a tiny model refused on a small card."""
    assert machine.gpu("a card", total * GB, None if free is None else free * GB, small).state == state


def test_a_machine_without_a_gpu():
    """Days of CSM-1B on a CPU begun without a word, or a warning on the laptop that runs the tiny model."""
    assert "GPU" in machine.device("cpu", "why.", small=False, driver=False, colab=False).do
    assert "Change runtime type" in machine.device("cpu", "why.", small=False, driver=False, colab=True).do
    assert machine.device("cpu", "why.", small=True, driver=False, colab=False).state == "ok"
    assert "torch build for CUDA" in machine.device("cpu", "why.", small=True, driver=True, colab=False).do
    assert machine.ram(4 * GB, small=False).state == "warn" and machine.ram(4 * GB, small=True).state == "ok"
    assert packages.unsloth("2026.10.7", "cpu").state == "warn" and packages.unsloth("2026.10.7", "cuda").state == "ok"


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path):
    """A crash on the first run, whose folder is not there, or a full disk found out at the first checkpoint."""
    folder = tmp_path / "not" / "yet"
    assert machine.disk(folder, "disk", 1, "x").state == "ok"
    short = machine.disk(folder, "disk", 1e18, "everything")
    assert short.state == "warn" and "for everything" in short.seen and "HF_HOME" in short.do
    assert not folder.exists()


def test_a_missing_package_is_a_line_and_not_a_crash(tmp_path):
    """The doctor dying of the very thing it should report: here soundfile, psutil and the hub's client are gone."""
    hidden = tmp_path / "site"
    hidden.mkdir()
    for name in ("soundfile", "psutil", "huggingface_hub"):
        (hidden / f"{name}.py").write_text(f"raise ImportError('No module named {name}')", encoding="utf-8")
    answers = ask("doctor.examine('org/model')", tmp_path, PYTHONPATH=str(hidden))
    failed = {answer["name"]: answer["seen"] + answer["do"] for answer in answers if answer["state"] == "fail"}
    assert {"libsndfile", "device", "hub token", "base model"} <= set(failed)
    assert "soundfile" in failed["libsndfile"] and "psutil" in failed["device"]
    assert all("pip install -r requirements.txt" in failed[name] for name in ("libsndfile", "device", "base model"))


def test_a_tiny_model_in_a_folder_asks_nothing_special(tmp_path):
    """A demo on a plain laptop refused for what CSM-1B would need; or a big model in a folder waved through."""
    tiny, big = checkpoint(tmp_path / "tiny"), checkpoint(tmp_path / "big", weights=7 * GB)
    checks = {check.name: check for check in doctor.run_checks(str(tiny), tmp_path / "runs")}
    assert checks["base model"].state == checks["memory"].state == "ok"
    assert "disk for models" not in checks
    kind = device.choose().device
    if kind == "cpu":
        assert checks["device"].state in ("ok", "warn") and "CSM-1B needs" not in checks["device"].seen
        large = {check.name: check for check in doctor.run_checks(str(big), tmp_path / "runs")}
        assert large["device"].state == "warn"


def test_the_report_is_aligned_and_each_line_that_is_not_ok_says_what_to_do():
    """A red line that leaves its reader alone, or columns that wander."""
    text = doctor.report([doctor.Check("a", "ok", "fine"), doctor.Check("a long name", "fail", "broken", "Mend it.")])
    lines = text.splitlines()
    assert lines[0] == "ok    a            fine" and lines[1] == "fail  a long name  broken"
    assert lines[2].strip() == "-> Mend it." and lines[2].index("->") == lines[1].index("broken")
    assert lines[-1] == "1 to repair, 0 to know about, 1 in order."
