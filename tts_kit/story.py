"""The whole story in one call: data, codes, adapter, comparison; each stage goes on where it stopped."""

from pathlib import Path

from tts_kit import data, tokens
from tts_kit.comparison import arms
from tts_kit.pretrain import shape
from tts_kit.recipe import Recipe
from tts_kit.run import Run
from tts_kit.runtime import Runtime
from tts_kit.speech import speak
from tts_kit.tuning import trainer

SAMPLES = Path(__file__).parent.parent / "sample_data"
VOICE = SAMPLES / "voice"
BUNDLED = SAMPLES / "tiny-csm"
SMALL = dict(rank=8, alpha=16, steps=40, learning_rate=5e-4, tokens_per_batch=1400, evaluate_every=20, save_every=20,
             sample_every=20)
"""Recipe fields for a laptop."""


def tell(source: str | Path, recipe: Recipe, run: Run, runtime: Runtime, sentences: int = 10,
         seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    """From clips with transcripts to a page to listen to; returns the page."""
    data.prepare(source, run, recipe)
    tokens.encode(recipe, run, runtime)
    adapter = trainer.fit(recipe, run, runtime)
    voice = speak.load_voice(runtime, adapter, recipe.base)
    return arms.compare(run, voice, sentences, seeds)


def choose_base(name: str, run: Run) -> str:
    """The base asked for; without a name the bundled model or, while there is none, an untrained one of its size."""
    if name:
        return name
    if BUNDLED.is_dir():
        print("The base is the bundled tiny-csm.")
        return str(BUNDLED)
    folder = run.folder / "untrained-csm"
    if not folder.exists():
        shape.build("tiny", folder)
    print("The base is an untrained model of laptop size: every stage is real, but all it can say is noise. For speech "
          "give a trained base, for example unsloth/csm-1b on a GPU.")
    return str(folder)
