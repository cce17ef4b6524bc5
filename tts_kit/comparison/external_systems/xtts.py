"""XTTS-v2 by Coqui, as Idiap keeps it alive."""

from collections.abc import Callable


def load(reference: str, words: str) -> Callable:
    """Clones the reference, whose words it need not know."""
    import torch
    from TTS.api import TTS

    model = TTS("tts_models/multilingual/multi-dataset/xtts_v2").to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda text, seed: (model.tts(text, speaker_wav=reference, language="en", split_sentences=False),
                               model.synthesizer.output_sample_rate)
