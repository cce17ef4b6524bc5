"""All stages in one call: data, codes, adapter, comparison; each stage continues where it stopped."""

from collections.abc import Sequence
from pathlib import Path

from tts_kit.comparison import compare
from tts_kit.config import Config
from tts_kit.data import prepare
from tts_kit.device import DeviceConfig
from tts_kit.run import Run
from tts_kit.speech.voice import load_voice
from tts_kit.tokens import cache
from tts_kit.training import finetune

TINY_PRESET = dict(rank=16, alpha=32.0, steps=60, learning_rate=8e-4, tokens_per_batch=700, depth_frame_fraction=1 / 2,
                   eval_steps=20, save_steps=20, sample_steps=20, generation_eval_steps=20)
"""Config for fine-tuning the bundled model."""


def run_all(source: str | Path, config: Config, run: Run, device_config: DeviceConfig, sentences: int = 10,
            seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """Run all stages on clips with transcripts; return the comparison's page."""
    prepare.prepare(source, run, config)
    cache.tokenize(config, run, device_config)
    adapter = finetune.finetune(config, run, device_config)
    voice = load_voice(device_config, adapter, config.base)
    return compare.compare(run, voice, sentences, seeds).page
