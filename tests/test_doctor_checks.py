import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tts_kit import device, doctor
from tts_kit.doctor import checks
from tts_kit.doctor.checks import Check

KIT = Path(doctor.__file__).parents[2]
GB = 10**9


class Hub(http.server.BaseHTTPRequestHandler):
    """Responds like the hub to a request for a model's configuration file; the model's name selects the response."""

    def do_HEAD(self):
        name = self.path.split("/")[2]
        if name == "hangs":
            time.sleep(3)
        codes = {"gated": (401, "GatedRepo"), "gated-with-token": (403, "GatedRepo"), "absent": (401, "RepoNotFound"),
                 "forbidden": (403, ""), "without-config": (404, "EntryNotFound"), "busy": (503, "")}
        status, code = codes.get(name, (200, ""))
        if name == "weights-only" and not self.path.endswith("/model.safetensors"):
            status, code = 404, "EntryNotFound"
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


def evaluate(expression: str, home: Path, **environment: str):
    """Evaluate an expression in a fresh process, because the hub's client reads the environment once."""
    program = ("import json; from tts_kit.doctor import checks; "
               f"print(json.dumps({expression}, default=vars))")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=KIT, timeout=600,
                             env=clean | {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | environment, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def checkpoint(folder: Path, weights: int = 8) -> Path:
    """Create a folder with the files of a checkpoint; its weights have `weights` bytes, but use no disk space."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(weights)
    return folder


def test_every_response_of_the_hub_is_interpreted(hub, tmp_path):
    """Mistake: a gated or missing model is noticed only after the data is prepared, or a busy hub is taken for a missing
    one."""
    names = ("open", "gated", "gated-with-token", "absent", "forbidden", "without-config", "weights-only", "busy")
    results = evaluate(f"[checks.check_hub_model('org/' + name) for name in {names}]", tmp_path, HF_ENDPOINT=hub)
    by_name = dict(zip(names, results))
    assert {name: check["status"] for name, check in by_name.items()} == {
        "open": "ok", "gated": "fail", "gated-with-token": "fail", "absent": "fail", "forbidden": "warn",
        "without-config": "fail", "weights-only": "ok", "busy": "warn"}
    for name in ("gated", "gated-with-token"):
        assert "is gated" in by_name[name]["detail"]
        assert "hf auth login" in by_name[name]["fix"] and "unsloth/csm-1b" in by_name[name]["fix"]
    assert "Check the spelling" in by_name["absent"]["fix"] and "503" in by_name["busy"]["detail"]


def test_a_hub_that_hangs_costs_no_more_than_the_timeout(hub, tmp_path):
    """Mistake: a doctor that waits for minutes behind a firewall, or ends in the client's own exception class."""
    now = "__import__('time').monotonic()"
    before, check, after = evaluate(f"[{now}, checks.check_hub_model('org/hangs', timeout=0.3), {now}]", tmp_path,
                                    HF_ENDPOINT=hub)
    assert check["status"] == "warn" and "not reached" in check["detail"] and "give a folder" in check["fix"]
    assert after - before < 200  # it imports the client first, which takes seconds on a busy machine


def test_offline_is_a_warning_and_a_complete_cache_is_enough(tmp_path):
    """Mistake: offline work with a cached model is refused, or a model with an incomplete download is reported as usable."""
    cache = tmp_path / "hub" / "models--org--cached"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    snapshot = checkpoint(cache / "snapshots" / ("a" * 40))
    expression = "[checks.check_hub_model('org/cached'), checks.check_hub_model('org/other')]"
    cached, other = evaluate(expression, tmp_path, HF_HUB_OFFLINE="1")
    assert cached["status"] == "ok" and "in the cache" in cached["detail"]
    assert other["status"] == "warn" and "HF_HUB_OFFLINE" in other["fix"]
    (snapshot / "model.safetensors").unlink()
    assert evaluate(expression, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")[0]["status"] == "warn"


@pytest.mark.parametrize("base", ["./no-such-folder", "/no/such/folder", "~/nowhere", "a/b/c", "two words/model"])
def test_a_path_that_is_no_folder_is_not_looked_up_as_a_model(base):
    """Mistake: a misspelt path gets advice about hub accounts, or a traceback of the client."""
    check = checks.check_hub_model(base)
    assert check.status == "fail" and base in check.detail and "no folder" in check.detail


def test_a_folder_must_contain_a_complete_checkpoint(tmp_path):
    """Mistake: a copy that lacks a shard, weights or tokenizer is noticed only when the model is loaded."""
    folder = checkpoint(tmp_path / "model")
    assert checks.check_local_model(folder).status == "ok"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check = checks.check_local_model(folder)
    assert check.status == "fail" and "lacks model.safetensors" in check.detail and ".bin" in check.fix
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model-1-of-2.safetensors").touch()
    assert "lacks model-2-of-2.safetensors" in checks.check_local_model(folder).detail
    (folder / "model.safetensors.index.json").write_text("{cut", encoding="utf-8")
    assert "readable model.safetensors.index.json" in checks.check_local_model(folder).detail
    assert checks.check_local_model(tmp_path).detail.endswith("lacks config.json, model.safetensors, tokenizer.json")


@pytest.mark.parametrize("name, version, status, words", [
    ("transformers", "4.57.3", "fail", "requires >=5.17"),
    ("transformers", "5.17.0", "ok", "repaired at load"),
    ("transformers", "5.20.1", "ok", "repaired at load"),
    ("transformers", "5.21.0", "ok", "5.21.0"),
    ("peft", "0.9.0", "fail", "0.19.1"),
    ("peft", "0.19.1", "ok", "0.19.1"),
    ("torch", "2.8.0+cu128", "fail", "requires >=2.9"),
    ("torch", "2.13.0+cpu", "ok", "2.13.0+cpu"),
    ("torch", "2.14.0a0+git1", "ok", "2.14.0a0"),
    ("soundfile", None, "fail", "not installed"),
])
def test_bad_versions_are_reported(name, version, status, words):
    """Mistake: 0.9 is sorted above 0.18 as text, a build of one's own is refused, or a version that the kit repairs."""
    requirement, = (one for one in checks.requirements() if one.name == name)
    check = checks.check_package(requirement, version)
    assert check.status == status and words in check.detail
    assert ("repaired" in check.detail) == ("repaired" in words) and bool(check.fix) == (status != "ok")


def test_every_requirement_is_checked(monkeypatch, tmp_path):
    """Mistake: a package of requirements.txt that is missing is not named, or an installed wheel, which has no such file,
    checks nothing."""
    monkeypatch.setattr(checks, "_version", lambda name: None)
    in_checkout = {check.name for check in checks.run_checks(str(tmp_path)) if check.detail == "not installed"}
    assert {"torch", "num2words", "resemble-perth"} < in_checkout
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "tts_kit" / "doctor" / "checks.py"))
    monkeypatch.setattr(checks.importlib.metadata, "requires",
                        lambda name: ["torch>=2.9", 'av>=11; extra == "audio"', "num2words>=0.5"])
    assert [str(one) for one in checks.requirements()] == ["torch>=2.9", "num2words>=0.5"]


def test_a_torchvision_for_another_torch_is_reported(tmp_path):
    """Mistake: 'torchvision::nms does not exist', which stops transformers, is noticed after the data is prepared."""
    assert evaluate("checks.check_torchvision()", tmp_path)["status"] == "ok"
    site = tmp_path / "site"
    (site / "torchvision-0.28.0.dist-info").mkdir(parents=True)
    (site / "torchvision-0.28.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.28.0\n")
    (site / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    check = evaluate("checks.check_torchvision()", tmp_path, PYTHONPATH=str(site))
    assert check["status"] == "fail" and "0.28.0 was not built for torch" in check["detail"]
    assert "torchvision::nms" in check["detail"] and "pip uninstall torchvision" in check["fix"]


@pytest.mark.parametrize("total, free, small, status", [
    (16, 15, False, "ok"), (16, 3, False, "warn"), (6, 6, False, "warn"), (4, 4, False, "fail"), (4, 4, True, "ok"),
])
def test_too_little_gpu_memory_is_reported(total, free, small, status):
    """Mistake: a GPU that is too small or used by another notebook is noticed by a crash, or a tiny model is refused on
    one."""
    assert checks.check_gpu("a card", total * GB, free * GB, small).status == status


def test_a_machine_without_a_gpu_is_reported():
    """Mistake: days of CSM-1B on a CPU start without a warning, or the laptop that runs the tiny model gets one."""
    assert "GPU" in checks.check_device("cpu", "why.", small=False, is_colab=False).fix
    assert "Change runtime type" in checks.check_device("cpu", "why.", small=False, is_colab=True).fix
    assert checks.check_device("cpu", "why.", small=True, is_colab=False).status == "ok"
    assert checks.check_memory(4 * GB, small=False).status == "warn"
    assert checks.check_memory(4 * GB, small=True).status == "ok"


def test_a_gpu_that_cannot_be_used(monkeypatch):
    """Mistake: an old driver, or a torch without kernels for the GPU, is a crash of the doctor or a note about the CPU."""
    monkeypatch.setattr(device, "unusable_gpu_reason", lambda: "the driver is 550. Update it to 580 or newer")
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    check, memory = checks.check_hardware(small=True)
    assert (check.status, check.detail) == ("fail", "the driver is 550") and check.fix.startswith("Update it to 580")
    assert memory.name == "memory"


@pytest.mark.parametrize(("version", "status"), [("0.10.0", "warn"), ("0.15.1", "warn"), ("0.16.0", None), (None, None)])
def test_an_old_torchao(version, status):
    """Mistake: the torchao of Colab's images, beside which PEFT adapts no model, is not named."""
    check = checks.check_torchao(version)
    assert (check and check.status) == status and (check is None or "pip uninstall torchao" in check.fix)


def test_the_disk_of_a_missing_folder_is_checked(tmp_path):
    """Mistake: a crash on the first run, whose folder does not exist, or a full disk that is noticed at the first
    checkpoint."""
    folder = tmp_path / "not" / "yet"
    assert checks.check_disk("disk", folder, 1, "x").status == "ok"
    short = checks.check_disk("disk", folder, 1e18, "everything")
    assert short.status == "warn" and "for everything" in short.detail and "HF_HOME" in short.fix
    assert not folder.exists()


def test_a_missing_package_is_a_line_and_not_a_crash(tmp_path):
    """Mistake: the doctor fails because of the problem it should report: here soundfile, psutil and the hub's client are
    missing."""
    hidden = tmp_path / "site"
    hidden.mkdir()
    for name in ("soundfile", "psutil", "huggingface_hub"):
        (hidden / f"{name}.py").write_text(f"raise ImportError('No module named {name}')", encoding="utf-8")
    results = evaluate("checks.run_checks('org/model')", tmp_path, PYTHONPATH=str(hidden))
    failed = {check["name"]: check["detail"] + check["fix"] for check in results if check["status"] == "fail"}
    assert {"libsndfile", "device", "base model"} <= set(failed)
    assert "soundfile" in failed["libsndfile"] and "psutil" in failed["device"]
    assert all("-m pip install" in failed[name] for name in ("libsndfile", "device", "base model"))


def test_a_tiny_model_needs_no_gpu(tmp_path):
    """Mistake: a demo on a laptop is refused for the requirements of CSM-1B, or a big model in a folder is accepted."""
    tiny, big = checkpoint(tmp_path / "tiny"), checkpoint(tmp_path / "big", weights=7 * GB)
    results = {check.name: check for check in checks.run_checks(str(tiny), tmp_path / "runs")}
    assert results["base model"].status == results["memory"].status == "ok"
    assert "disk for models" not in results
    kind = device.choose().device
    if kind == "cpu":
        assert results["device"].status in ("ok", "warn") and "CSM-1B needs" not in results["device"].detail
        large = {check.name: check for check in checks.run_checks(str(big), tmp_path / "runs")}
        assert large["device"].status == "warn"


def test_the_report_is_aligned_and_every_problem_has_a_fix():
    """Mistake: a failed check without a fix, or columns that are not aligned."""
    text = checks.format_report([Check("a", "ok", "fine"), Check("a long name", "fail", "broken", "Repair it.")])
    lines = text.splitlines()
    assert lines[0] == "ok    a            fine" and lines[1] == "fail  a long name  broken"
    assert lines[2].strip() == "-> Repair it." and lines[2].index("->") == lines[1].index("broken")
    assert lines[-1] == "1 failed, 0 warnings, 1 ok."
