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


def switches() -> list[str]:
    """What torch would do in each place; an old switch that it refuses to read is 'mixed'."""
    seen = [switch.fp32_precision for switch in (
        BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)]
    for read in (torch.get_float32_matmul_precision, lambda: BACKENDS.cuda.matmul.allow_tf32,
                 lambda: BACKENDS.cudnn.allow_tf32):
        try:
            seen.append(str(read()))
        except RuntimeError:
            seen.append("mixed")
    return seen


@pytest.fixture
def torch_as_it_starts():
    yield
    if hasattr(BACKENDS, "fp32_precision"):
        BACKENDS.fp32_precision = "none"
        BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"
        BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


@pytest.mark.parametrize("setting", SETTINGS)
def test_precise_turns_tf32_off_and_sets_it_back(setting, torch_as_it_starts):
    """Mistake: codes made under TF32, training left slow afterwards, or torch left with switches it refuses to read."""
    SETTINGS[setting]()
    before = switches()
    with device.full_float32():
        inside = switches()
    assert inside == ["ieee"] * 5 + ["highest", "False", "False"]
    assert switches() == before


def test_precise_sets_back_after_an_error(torch_as_it_starts):
    """Mistake: a clip that fails in the codec would leave TF32 off for the rest of the process."""
    torch.set_float32_matmul_precision("high")
    before = switches()
    with pytest.raises(ValueError, match="a broken clip"), device.full_float32():
        raise ValueError("a broken clip")
    assert switches() == before


def test_precise_leaves_autocast_and_returns_to_it():
    """Mistake: the codec inside a trainer's autocast would compute in 16 bits and give other codes."""
    square = torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with device.full_float32():
            assert (square @ square).dtype == torch.float32
        assert (square @ square).dtype == torch.bfloat16


def test_cpu_is_chosen_in_float32_with_the_reason():
    """16-bit training on a CPU, or a choice nobody explains."""
    chosen = device.choose("cpu")
    assert (chosen.device, chosen.dtype, chosen.attention) == ("cpu", torch.float32, "sdpa")
    assert "GB" in chosen.reason and chosen.reason.endswith(".")


def test_auto_takes_the_best_device_present():
    """Mistake: a GPU that is there and is not used, or one that is not there and is asked for."""
    wanted = "cuda" if torch.cuda.is_available() else "mps" if BACKENDS.mps.is_available() else "cpu"
    assert device.choose().device == wanted


def test_a_card_without_bf16_gets_float16_and_says_so():
    """bfloat16 on a Tesla T4, which only emulates it, ten times slower; or float16 on a card that has better."""
    old, new = device.for_cuda("Tesla T4", 15_835_660_288, bf16=False), device.for_cuda("NVIDIA A100", 85 * 10**9, bf16=True)
    assert old.dtype == torch.float16 and "float16 with a loss scaler, as it has no bfloat16" in old.reason
    assert "16 GB" in old.reason
    assert new.dtype == torch.bfloat16 and "NVIDIA A100 (85 GB)" in new.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bf16_is_taken_exactly_from_compute_capability_8():
    """Mistake: trusting torch's default answer, which counts emulated bf16 as support."""
    native = torch.cuda.get_device_capability()[0] >= 8 or torch.version.hip is not None
    assert device.choose("cuda").dtype == (torch.bfloat16 if native else torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
def test_a_missing_gpu_is_a_sentence():
    """Mistake: a run asked to use a GPU that falls back to the CPU in silence, or dies in torch with a traceback."""
    with pytest.raises(KitError, match=r"'cuda' was requested.*sees only .*cpu.*Use device 'auto'"):
        device.choose("cuda")


def test_an_unknown_device_is_refused():
    """Mistake: a misspelt device that falls through to some default."""
    with pytest.raises(KitError, match="'gpu'; it must be one of auto, cuda, mps, cpu"):
        device.choose("gpu")


def test_colab_is_recognised_by_its_module(monkeypatch):
    """Mistake: colab-only steps that run elsewhere, or do not run there."""
    assert not colab.is_colab()
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert colab.is_colab()


def test_results_can_name_versions_and_machine():
    """Mistake: a number whose machine and versions nobody can tell afterwards."""
    found = device.versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"transformers", "peft", "numpy", "soundfile"} <= set(found)
    assert "cores" in device.machine() and "GB" in device.machine()
