"""Where the bundled sample data is: sample_data/ of a checkout, or its copy inside an installed wheel."""

from pathlib import Path

_CHECKOUT = Path(__file__).parents[1] / "sample_data"
SAMPLE_DATA = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "sample_data"
VOICE = SAMPLE_DATA / "voice"
HELD_OUT = SAMPLE_DATA / "held_out"
RECORDING = SAMPLE_DATA / "recording.flac"
TINY_CSM = SAMPLE_DATA / "tiny-csm"
OTHER_SPEAKERS = SAMPLE_DATA / "strangers"
