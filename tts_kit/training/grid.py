"""What each step of a training sounds like: sentences in rows, steps in columns, one HTML file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from tts_kit import audio, html, io
from tts_kit.errors import KitError
from tts_kit.evaluation import stats
from tts_kit.training import checkpoint_selection

PAGE = "ears.html"
RATE = 24_000


def write(rows: Sequence[dict], folder: Path, title: str, sentence: str, chosen: int) -> Path:
    """Write folder/ears.html from the rows of ears.jsonl, whose files lie in `folder`; returns its path."""
    steps = checkpoint_selection.by_step(rows)
    sentences = {row["sentence"]: row["text"] for row in rows}
    clips = {(row["sentence"], row["step"]): _clip(row, folder / row["file"]) for row in rows}
    data = {"steps": [_column(step, some, step == chosen) for step, some in steps.items()],
            "sentences": [{"number": number, "text": text, "clips": [clips.get((number, step)) for step in steps]}
                          for number, text in sorted(sentences.items())]}
    page = folder / PAGE
    io.write_text(page, html.page(__file__, title, ["grid.js"], data, ["media-src data:"],
                                    sentence=html.escape(sentence))[0])
    return page


def _column(step: int, rows: Sequence[dict], chosen: bool) -> dict:
    """A step and its figures, each with the bounds between which it surely lies."""
    voice, words = (stats.bootstrap_ratio(stats.sums_by_sentence(rows, *names)) for names in (("sim",), ("word_errors", "ref_words")))
    sure = f" ({voice.low:.2f} to {voice.high:.2f})", f" ({max(words.low, 0):.0%} to {words.high:.0%})"
    known = sure if voice.sentences >= stats.MIN_SENTENCES else ("", "")
    return {"name": f"step {step}" if step else "base", "chosen": chosen,
            "figures": [f"similarity {voice.value:.2f}{known[0]}", f"wrong words {words.value:.0%}{known[1]}"]}


def _clip(row: dict, path: Path) -> dict:
    """What judges heard in a clip, and either its sound or the reason why it has none."""
    clip = {"heard": row["transcript"], "right": row["word_errors"] == 0, "ended": row["ended_with_eos"],
            "figures": f"{row['word_errors']} of {row['ref_words']} words wrong, similarity {row['sim']:.2f}"}
    if not path.is_file():
        return clip | {"problem": "missing"}
    try:
        samples = audio.normalize_loudness(audio.read(path, RATE), RATE)
    except KitError as problem:  # the page may travel, and the names of this machine's folders stay at home
        return clip | {"problem": row["failure"] or str(problem).replace(str(path), row["file"])}
    return clip | {"sound": html.data_uri(*audio.encode_lossy(samples, RATE))}
