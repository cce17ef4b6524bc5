"""All stages in one call: data, codes, adapter, comparison; each stage continues where it stopped."""

from collections.abc import Sequence
from pathlib import Path

from tts_kit.comparison import compare
from tts_kit.config import Config
from tts_kit.data import ingest, prepare
from tts_kit.device import DeviceConfig
from tts_kit.run import TINY_CSM, Run
from tts_kit.speech.voice import load_voice
from tts_kit.tokens import cache
from tts_kit.training import finetune

TINY_PRESET = dict(rank=16, alpha=32.0, steps=60, learning_rate=8e-4, tokens_per_batch=700, depth_frame_fraction=1 / 2,
                   eval_steps=20, save_steps=20, sample_steps=20, generation_eval_steps=20)
"""Config for fine-tuning the bundled model."""


def run_all(source: str | Path, config: Config, run: Run, device_config: DeviceConfig, sentences: int = 10,
            seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """Run all stages on recordings or on clips with transcripts; return the comparison's page."""
    prepare_data(source, config, run, device_config)
    cache.tokenize(config, run, device_config)
    adapter = finetune.finetune(config, run, device_config)
    voice = load_voice(device_config, adapter, config.base)
    return compare.compare(run, voice, sentences, seeds).page


def prepare_data(source: str | Path, config: Config, run: Run, device_config: DeviceConfig) -> None:
    """Prepare a run's data from clips with transcripts, or from recordings whose transcripts are used as they stand."""
    is_recording = ingest.is_recording(source)
    if is_recording:
        models = ingest.asr_models(run) or {"asr_model": "bundled" if Path(config.base) == TINY_CSM else ""}
        source_folder = ingest.ingest(source, run, device_config, **models, speaker=config.speaker)
        print("The review is skipped. To correct the transcripts before training, take a run of another name: "
              f"tts-kit prepare {source} --run NAME, tts-kit review --run NAME, then tts-kit demo --source {source} "
              "--run NAME.")
    prepare.prepare(source_folder if is_recording else source, run, config, skip_bad=is_recording)
