"""The choice of device and dtype, full float32 precision, and the versions in results."""

import sys

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
