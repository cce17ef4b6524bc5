"""Utterances become codes, once; training never touches sound again."""

from tts_kit import recipe as recipes
from tts_kit.recipe import Recipe
from tts_kit.run import Run
from tts_kit.runtime import Runtime


def encode(recipe: Recipe, run: Run, runtime: Runtime) -> dict[str, int]:
    """Encode a run's data into its codes folder; returns how many clips were kept, encoded and repaired."""
    from tts_kit.data import utterance
    from tts_kit.tokens import cache, codec

    utterances = utterance.read(run.data)
    counts = cache.fill(utterances, run.codes, codec.load(recipe.base, recipe.revision, runtime.device))
    repaired = f", {counts['damaged']} of the encoded replaced damaged entries" * (counts["damaged"] > 0)
    print(f"{len(utterances)} clips: {counts['encoded']} encoded, {counts['kept']} already there{repaired}. In {run.codes}.")
    recipes.remember(run, recipe)
    return counts


def encode_part(recipe: Recipe, run: Run, runtime: Runtime, part: int, parts: int) -> dict[str, int]:
    """Encode every so many-th clip of a run's data, from clip `part` on; `encode` then finds them, and writes the index."""
    from tts_kit.data import utterance
    from tts_kit.tokens import cache, codec

    utterances = utterance.read(run.data)[part::parts]
    return cache.add(utterances, run.codes, codec.load(recipe.base, recipe.revision, runtime.device))[1]
