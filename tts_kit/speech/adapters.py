"""Several voices at once: adapters for one base share it, and are switched without loading it again."""

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel

from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.device import DeviceConfig
from tts_kit.model import lora
from tts_kit.speech import resolve, speak
from tts_kit.speech.speak import Voice


def load_voices(device_config: DeviceConfig, wanted: Mapping[str, str | Path], base: str = "", revision: str = "") -> dict[str, Voice]:
    """Voices by name from their places, of which those with the same base share one network.

    Voices that share it take turns: what one says has to end before the next one begins, which else is refused."""
    made: dict[str, Voice] = {}
    for name, place in wanted.items():
        made[name] = _shared(place, [*made.values()]) or speak.load_voice(device_config, place, base, revision)
    return made


def add_adapter(voice: Voice, folder: Path) -> Voice:
    """The voice of one more adapter on the network of another voice, which goes on speaking as it did."""
    shared, belongs = voice.base, lora.read_metadata(folder)
    config = read_config(folder / CONFIG_FILE)
    if isinstance(voice.model, PeftModel):
        model, adapter = voice.model, lora.add(voice.model, shared, folder)
    else:
        model, adapter = lora.load(shared, folder), lora.DEFAULT_ADAPTER
    return Voice(shared, model, belongs["speaker"], shared.sampling.asked(config), voice.int8, adapter)


def _shared(place: str | Path, others: list[Voice]) -> Voice | None:
    """The voice at a place on a network that is loaded already, if one fits."""
    folder = resolve.find_adapter(place)
    if folder is None:
        fitting = next((other for other in others if other.base.name == str(place)), None)
        return fitting and Voice(fitting.base, fitting.base.model, adapter="", int8=fitting.int8,
                                 **resolve.speaker_and_sampling(fitting.base.name, fitting.base.revision, fitting.base.sampling))
    weights = lora.read_metadata(folder)["base_fingerprint"]
    fitting = [other for other in others if other.base.fingerprint == weights]
    # one whose network carries adapters already comes first: a bare one is wrapped only once
    fitting.sort(key=lambda other: not isinstance(other.model, PeftModel))
    return add_adapter(fitting[0], folder) if fitting else None
