"""The whole story in one call: data, codes, adapter, comparison; each stage goes on where it stopped."""

from pathlib import Path

from tts_kit import data, tokens
from tts_kit.comparison import contest
from tts_kit.recipe import Recipe
from tts_kit.run import Run
from tts_kit.runtime import Runtime
from tts_kit.speech import speak
from tts_kit.tuning import finetune

SAMPLES = Path(__file__).parent.parent / "sample_data"
VOICE = SAMPLES / "voice"
BUNDLED = SAMPLES / "tiny-csm"
SMALL = dict(rank=16, alpha=32, steps=60, learning_rate=8e-4, tokens_per_batch=700, depth_ratio=1 / 2, evaluate_every=20,
             save_every=20, sample_every=20, listen_every=20)
"""Recipe fields for the bundled base."""


def tell(source: str | Path, recipe: Recipe, run: Run, runtime: Runtime, sentences: int = 10,
         seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    """From clips with transcripts to a page to listen to; returns the page."""
    data.prepare(source, run, recipe)
    tokens.encode(recipe, run, runtime)
    adapter = finetune.fit(recipe, run, runtime)
    voice = speak.load_voice(runtime, adapter, recipe.base)
    return contest.compare(run, voice, sentences, seeds)


def choose_base(name: str) -> str:
    """The base asked for, or the bundled one."""
    return name or str(BUNDLED)
