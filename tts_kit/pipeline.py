"""The whole story in one call: data, codes, adapter, comparison; each stage goes on where it stopped."""

from pathlib import Path

from tts_kit import tokens
from tts_kit.comparison import compare
from tts_kit.config import Config
from tts_kit.data import prepare
from tts_kit.device import DeviceConfig
from tts_kit.run import Run
from tts_kit.speech import speak
from tts_kit.training import finetune

SAMPLES = Path(__file__).parent.parent / "sample_data"
VOICE = SAMPLES / "voice"
BUNDLED = SAMPLES / "tiny-csm"
TINY_PRESET = dict(rank=16, alpha=32, steps=60, learning_rate=8e-4, tokens_per_batch=700, depth_frame_fraction=1 / 2, eval_steps=20,
             save_steps=20, sample_steps=20, generation_eval_steps=20)
"""Recipe fields for the bundled base."""


def run_all(source: str | Path, config: Config, run: Run, device_config: DeviceConfig, sentences: int = 10,
         seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    """From clips with transcripts to a page to listen to; returns the page."""
    prepare.prepare(source, run, config)
    tokens.encode(config, run, device_config)
    adapter = finetune.finetune(config, run, device_config)
    voice = speak.load_voice(device_config, adapter, config.base)
    return compare.compare(run, voice, sentences, seeds)


def choose_base(name: str) -> str:
    """The base asked for, or the bundled one."""
    return name or str(BUNDLED)
