"""The listening page: sentences in rows, arms in columns, one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tqdm.auto import tqdm

from tts_kit import audio, html, io
from tts_kit.errors import KitError
from tts_kit.html import escape

ARMS = {
    "ground_truth": "The recording itself.",
    "codec": "The recording through the codec and back: the ceiling, which no spoken arm can pass.",
    "base": "The model as downloaded.",
    "clone": "The base model with a reference clip of the voice.",
    "finetuned": "The fine-tuned model.",
    "finetuned+clone": "The fine-tuned model with the reference clip.",
}
"""What each arm is, in the order of the columns; arms not named here come after these."""

MEASURES = ("seconds", "wall_seconds", "takes")
NOT_MEASURES = ("sentence", "seed", "ref_words", "ref_chars", "char_errors", "sim_norm", "noise_mos", "speech_seconds", "duration_ratio",
                "f0", "f0_difference", "speech_rate", "rate_ratio", "nearest_similarity")
"""Numbers of a row that say something of an arm and little of a clip."""
WANTED = {"arm": (str,), "sentence": (int,), "text": (str,), "file": (str,), "seed": (int, type(None)),
          "ended_with_eos": (bool, type(None))}
LARGEST = 1e15  # beyond it the browser rounds
RATE = 24_000  # one rate for every arm, so that only the voice differs
SAVING = 0.4  # about 60 kbit/s: twenty sentences of ten seconds in six arms stay below 15 MB, and speech sounds the same
PICTURE = (256, 64)


def write(rows: list[dict], folder: str | Path, title: str, sentence: str, facts: dict,
          figures: list[list[str]] | None = None, pictures: Sequence[tuple[bytes, str]] = (),
          meanings: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write folder/index.html from the rows of scores.jsonl, whose files lie in `folder`; returns its path.

    `sentence` is what was found, in short in its first line, with the evidence in the others. `figures` is a table of text,
    the names of its columns first; `pictures` are PNGs with their descriptions; `meanings` say what arms are that ARMS does
    not know.
    """
    folder = Path(folder)
    if not rows:
        raise KitError(f"{folder / 'scores.jsonl'} has no rows; a page wants at least one clip. "
                      "Run the comparison first.")
    paths = [_path(row, number, folder) for number, row in enumerate(rows, 1)]
    _refuse_twins(rows, folder)
    columns = _columns(rows)
    clips = [_clip(row, path, columns)
             for row, path in zip(rows, tqdm(paths, desc="listening page", unit="clip"))]
    if lost := [row["file"] for row, clip in zip(rows, clips) if "problem" in clip]:
        print(f"{len(lost)} of {len(rows)} clips cannot be played and are marked so on the page, first {lost[0]!r}.")
    data = {"arms": _arms(rows, meanings), "columns": columns, "sentences": _sentences(rows, clips)}
    page = folder / "index.html"
    io.write_text(page, _filled(data, title, sentence, facts, _figures(figures or []) + _pictures(pictures)))
    return page


def _path(row: dict, number: int, folder: Path) -> Path:
    """Where the row's clip lies, once the row is known to be whole and to stay inside the folder."""
    where = f"{folder / 'scores.jsonl'} row {number}"
    for name, kinds in WANTED.items():
        if type(row.get(name)) not in kinds or row.get(name) == "":
            wanted = " or ".join({str: "some text", int: "a whole number", bool: "true or false"}.get(kind, "null")
                                 for kind in kinds)
            raise KitError(f"{where}: {name} is {row.get(name)!r}; wanted {wanted}. Run the comparison again, or repair "
                          "the row.")
    path = folder / row["file"]
    try:
        inside = ".." not in path.relative_to(folder).parts and path.resolve().is_relative_to(folder.resolve())
    except ValueError:  # an absolute path, or a name with a null byte
        inside = False
    if not inside:
        raise KitError(f"{where}: the file {row['file']!r} lies outside {folder}; only clips inside it go onto the "
                      "page. Copy the clip there and name it from there.")
    return path


def _refuse_twins(rows: list[dict], folder: Path) -> None:
    """Two rows for one place on the page would hide one of them."""
    seen = {}
    for number, row in enumerate(rows, 1):
        place = (row["sentence"], row["text"], row["arm"], row.get("seed"))
        if place in seen:
            raise KitError(f"{folder / 'scores.jsonl'} rows {seen[place]} and {number} are both sentence {place[0]}, "
                          f"arm {place[2]!r}, seed {place[3]}; each may stand there once. Remove one of them.")
        seen[place] = number


def _columns(rows: list[dict]) -> list[str]:
    """Names of everything numeric in the rows: the known measures first, then as they appear."""
    found = {name for row in rows for name, value in row.items() if _number(value) is not None}
    appearing = dict.fromkeys([*MEASURES, *(name for row in rows for name in row)])
    return [name for name in appearing if name in found and name not in NOT_MEASURES]


def _number(value) -> float | int | None:
    """The value if it is a number that a page can show; JSON knows no NaN."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return value if numeric and abs(value) < LARGEST else None


def _arms(rows: list[dict], meanings: Mapping[str, str]) -> list[dict]:
    names = dict.fromkeys(row["arm"] for row in rows)
    order = [*(name for name in ARMS if name in names), *(name for name in names if name not in ARMS)]
    return [{"name": name, "meaning": ARMS.get(name) or meanings.get(name, "")} for name in order]


def _sentences(rows: list[dict], clips: list[dict]) -> list[dict]:
    """Clips gathered by sentence, ordered by number."""
    gathered = {}
    for row, clip in zip(rows, clips):
        gathered.setdefault((row["sentence"], row["text"]), []).append(clip)
    return [{"number": number, "text": text, "clips": gathered[number, text]} for number, text in sorted(gathered)]


def _clip(row: dict, path: Path, columns: list[str]) -> dict:
    """One clip with its figures, and either its sound and picture or the reason why it has none."""
    # a browser would round a long seed, so it travels as text
    seed = None if row.get("seed") is None else str(row["seed"])
    clip = {"arm": row["arm"], "seed": seed, "ended_with_eos": row.get("ended_with_eos"),
            "figures": [_number(row.get(name)) for name in columns]}
    if not path.is_file():
        return clip | {"problem": "missing"}
    try:
        samples = audio.normalize_loudness(audio.read(path, RATE), RATE)
    except KitError as problem:  # the page may travel, and the names of this machine's folders stay at home
        return clip | {"problem": str(problem).replace(str(path), row["file"])}
    sound, kind = audio.encode_lossy(samples, RATE, SAVING)
    picture = audio.spectrogram_png(samples, RATE, *PICTURE)
    return clip | {"sound": html.data_uri(sound, kind), "picture": html.data_uri(picture, "image/png")}


def _filled(data: dict, title: str, sentence: str, facts: dict, figures: str) -> str:
    listed = "\n".join(f"<div><dt>{escape(name)}</dt><dd dir=\"auto\">{escape(_plain(value))}</dd></div>"
                       for name, value in facts.items())
    first, *others = sentence.split("\n")
    evidence = "".join(f'<li dir="auto">{escape(each)}</li>' for each in others)
    return html.page(
        __file__, title, ("listening.js", "page.js"), data, ("media-src data:", "img-src data:"), sentence=escape(first),
        evidence=f'<ul class="evidence">{evidence}</ul>' if evidence else "", facts=listed, figures=figures)[0]


def _figures(figures: list[list[str]]) -> str:
    """The figures of the arms as an HTML table, nothing where there are none."""
    if not figures:
        return ""
    head, *lines = figures
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    cells = [(line[0], "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])) for line in lines]
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>' for name, rest in cells)
    return f'<table class="figures"><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>'


def _pictures(pictures: Sequence[tuple[bytes, str]]) -> str:
    """Pictures side by side, as wide as they fit."""
    shown = "".join(f'<img src="{html.data_uri(content, "image/png")}" alt="{escape(text)}">'
                    for content, text in pictures)
    return f'<div class="plots">{shown}</div>' if shown else ""


def _plain(value) -> str:
    """A fact as a person writes it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
