"""Utterances become codes, once; training never touches sound again."""

from tts_kit.config import Config, save_config
from tts_kit.device import DeviceConfig
from tts_kit.run import Run


def encode(config: Config, run: Run, device_config: DeviceConfig) -> dict[str, int]:
    """Encode a run's data into its codes folder; returns how many clips were kept, encoded and repaired."""
    from tts_kit.data import manifest
    from tts_kit.tokens import cache, codec

    utterances = manifest.read(run.data)
    counts = cache.encode_missing(utterances, run.codes, codec.load(config.base, config.revision, device_config.device))
    repaired = f", {counts['damaged']} of the encoded replaced damaged entries" * (counts["damaged"] > 0)
    print(f"{len(utterances)} clips: {counts['encoded']} encoded, {counts['kept']} already there{repaired}. In {run.codes}.")
    save_config(run, config)
    return counts


def encode_part(config: Config, run: Run, device_config: DeviceConfig, part: int, parts: int) -> dict[str, int]:
    """Encode every so many-th clip of a run's data, from clip `part` on; `encode` then finds them, and writes the index."""
    from tts_kit.data import manifest
    from tts_kit.tokens import cache, codec

    utterances = manifest.read(run.data)[part::parts]
    return cache.add(utterances, run.codes, codec.load(config.base, config.revision, device_config.device))[1]
