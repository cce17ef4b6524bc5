"""The choice of device and dtype, full float32 precision, and the versions in results."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tts_kit import colab, device
from tts_kit.errors import KitError

BACKENDS = torch.backends
SETTINGS = {
    "as torch starts": lambda: None,
    "old switch on": lambda: torch.set_float32_matmul_precision("high"),
    "old switch medium": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn off": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "new switch on everywhere": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "new switch on for matmul": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "new switch off for convolutions": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
}


def read_precision_settings() -> list[str]:
    """Return torch's precision settings, new and old; an old one that cannot be read is "mixed"."""
    values = [switch.fp32_precision for switch in (
        BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)]
    for read in (torch.get_float32_matmul_precision, lambda: BACKENDS.cuda.matmul.allow_tf32,
                 lambda: BACKENDS.cudnn.allow_tf32):
        try:
            values.append(str(read()))
        except RuntimeError:
            values.append("mixed")
    return values


@pytest.fixture
def restore_torch_settings():
    """Restore torch's defaults after the test."""
    yield
    if hasattr(BACKENDS, "fp32_precision"):
        BACKENDS.fp32_precision = "none"
        BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"
        BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


@pytest.mark.parametrize("setting", SETTINGS)
def test_full_float32_disables_tf32_and_restores_it(setting, restore_torch_settings):
    """Mistake: codes computed in TF32, slow training afterwards, or torch settings that can no longer be read."""
    SETTINGS[setting]()
    before = read_precision_settings()
    with device.full_float32():
        inside = read_precision_settings()
    assert inside == ["ieee"] * 5 + ["highest", "False", "False"]
    assert read_precision_settings() == before


def test_full_float32_restores_after_an_error(restore_torch_settings):
    """Mistake: a clip that fails in the codec disables TF32 for the rest of the process."""
    torch.set_float32_matmul_precision("high")
    before = read_precision_settings()
    with pytest.raises(ValueError, match="a broken clip"), device.full_float32():
        raise ValueError("a broken clip")
    assert read_precision_settings() == before


def test_full_float32_suspends_autocast():
    """Mistake: the codec inside a trainer's autocast computes in 16 bits and gives other codes."""
    matrix = torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with device.full_float32():
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == torch.bfloat16


def test_the_cpu_is_used_in_float32_with_a_reason():
    """Mistake: 16-bit training on a CPU, or a choice without a reason."""
    chosen = device.choose("cpu")
    assert (chosen.device, chosen.dtype) == ("cpu", torch.float32)
    assert "GB" in chosen.reason and chosen.reason.endswith(".")


def test_auto_chooses_the_best_device():
    """Mistake: an existing GPU is not used, or a missing one is chosen."""
    if device.unusable_gpu_reason():
        pytest.skip("torch cannot use the GPU of this machine")
    expected = "cuda" if torch.cuda.is_available() else "mps" if BACKENDS.mps.is_available() else "cpu"
    assert device.choose().device == expected


def test_a_gpu_without_bf16_uses_float16_with_a_reason():
    """Mistake: bfloat16 on a Tesla T4, which emulates it ten times slower; or float16 on a GPU with native bfloat16."""
    t4, a100 = device.for_cuda("Tesla T4", 15_835_660_288, bf16=False), device.for_cuda("NVIDIA A100", 85 * 10**9, bf16=True)
    assert t4.dtype == torch.float16 and "float16 with a loss scaler, as it has no bfloat16" in t4.reason
    assert "16 GB" in t4.reason
    assert a100.dtype == torch.bfloat16 and "NVIDIA A100 (85 GB)" in a100.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bf16_needs_compute_capability_8():
    """Mistake: torch's default check counts emulated bf16 as supported."""
    native = torch.cuda.get_device_capability()[0] >= 8 or torch.version.hip is not None
    assert device.choose("cuda").dtype == (torch.bfloat16 if native else torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
def test_a_missing_gpu_is_an_error():
    """Mistake: a requested GPU is silently replaced by the CPU, or torch fails with a traceback."""
    with pytest.raises(KitError, match=r"'cuda' was requested.*sees only .*cpu.*Use device 'auto'"):
        device.choose("cuda")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine with an NVIDIA GPU and driver 550, beside a torch built for CUDA 13, which sees no device."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56")
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(device, "NVIDIA_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_a_gpu_that_torch_cannot_use_is_an_error(driver, monkeypatch):
    """Mistake: CSM-1B is trained for days on the CPU of a machine whose GPU has an old driver, or a torch without CUDA."""
    with pytest.raises(KitError, match=r"driver 550.54.15\), but torch \S+, built for CUDA 13.0, cannot use it. Update the "
                                       r"driver to 580 or newer.*--device cpu"):
        device.choose()
    assert device.choose("cpu").device == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(KitError, match="is built without CUDA. Install a build for CUDA"):
        device.choose()


@pytest.mark.parametrize("variable", ["", "-1"])
def test_a_hidden_or_absent_gpu_is_none(driver, monkeypatch, variable):
    """Mistake: a container on a machine with a GPU, or a user who hides it, is refused the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert device.choose().device == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (driver / "nvidia0").unlink()
    assert device.choose().device == "cpu"


@pytest.fixture
def gpu(monkeypatch):
    """A function that replaces torch's GPU by one of a name and compute capability, and what torch is built for."""
    def replace(name: str, capability: tuple[int, int], built_for: str) -> None:
        properties = SimpleNamespace(name=name, total_memory=16 * 10**9)
        for function, value in {"is_available": True, "current_device": 0, "get_device_properties": properties,
                                "get_device_name": name, "get_device_capability": capability,
                                "get_arch_list": built_for.split(), "is_bf16_supported": capability >= (8, 0)}.items():
            monkeypatch.setattr(torch.cuda, function, lambda *_, value=value, **__: value)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield replace
    torch.backends.cuda.enable_cudnn_sdp(before)


CUDA_13 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"


@pytest.mark.parametrize(("name", "capability", "built_for", "is_usable"), [
    ("Tesla V100", (7, 0), CUDA_13, False), ("Tesla T4", (7, 5), CUDA_13, True), ("L4", (8, 9), CUDA_13, True),
    ("RTX 5090", (12, 0), "sm_50 sm_80 sm_86 sm_90", False), ("RTX 5090", (12, 0), "sm_80 sm_90 compute_90", True),
    ("Tesla V100", (7, 0), "sm_50 sm_60 sm_70 sm_90a", True), ("MI300X", (9, 4), "gfx942 gfx1100", True)])
def test_a_gpu_needs_kernels(gpu, name, capability, built_for, is_usable):
    """Mistake: a V100 beside a torch for CUDA 13 is taken, and the first operation fails: no kernel image is available."""
    gpu(name, capability, built_for)
    if is_usable:
        assert name in device.choose().reason
    else:
        with pytest.raises(KitError, match=rf"{name} has compute capability {capability[0]}.0.*no kernels.*--device cpu"):
            device.choose()


def test_bfloat16_on_a_gpu_without_it_is_refused(gpu):
    """Mistake: `--dtype bfloat16` on a T4 is emulated, many times slower, without a word."""
    gpu("Tesla T4", (7, 5), CUDA_13)
    assert device.choose("cuda", "float32").dtype == torch.float32
    with pytest.raises(KitError, match="'bfloat16' was requested, and Tesla T4 has no bfloat16.*'auto'"):
        device.choose("cuda", "bfloat16")
    gpu("NVIDIA L4", (8, 9), CUDA_13)
    assert device.choose("cuda", "bfloat16").dtype == torch.bfloat16


def test_an_unknown_device_is_refused():
    """Mistake: a misspelled device is replaced by a default."""
    with pytest.raises(KitError, match="'gpu'; it must be one of auto, cuda, mps, cpu"):
        device.choose("gpu")


def test_colab_is_recognized_by_its_module(monkeypatch):
    """Mistake: steps for Colab run elsewhere, or do not run on Colab."""
    assert not colab.is_colab()
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert colab.is_colab()


def test_versions_and_machine_are_complete():
    """Mistake: a result without the machine and versions that it was measured with."""
    versions = device.versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"transformers", "peft", "numpy", "soundfile"} <= set(versions)
    assert "cores" in device.machine() and "GB" in device.machine()
