"""Runs of further voices, to measure fine-tuning with: Kokoro speaks the bundled sentences in them."""

from collections.abc import Sequence

from sample_data.build import bundled_voice, evaluation_clips, kokoro
from tts_kit import audio
from tts_kit.comparison.synthesis import Sentence
from tts_kit.config import Config
from tts_kit.data import prepare
from tts_kit.device import DeviceConfig
from tts_kit.run import Run
from tts_kit.tokens import cache


def make(run: Run, voice: str, config: Config, device_config: DeviceConfig) -> Run:
    """Synthesize, prepare and encode the clips of a voice; what exists is used again."""
    folder = run.folder / "clips"
    if not (folder / "held_out").exists():
        bundled_voice.write_clips(folder, voice, bundled_voice.synthesize_kokoro)
    prepare.prepare(folder / "voice", run, config, eval_source=folder / "held_out")
    cache.tokenize(config, run, device_config)
    return run


def recordings(run: Run, voice: str, texts: Sequence[str]) -> list[Sentence]:
    """Return sentences with a clip of each in a voice; synthesizes missing ones."""
    result = []
    for text in texts:
        path = evaluation_clips.clip_path(run.folder / "recordings", text, voice)
        if not path.is_file():
            audio.write(path, audio.trim(bundled_voice.synthesize_kokoro(text, voice, 0.9), kokoro.RATE), kokoro.RATE)
        result.append(Sentence(text, path))
    return result
