"""Write the listening page: sentences in rows, arms in columns, one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tts_kit import audio, html, io
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.html import escape
from tts_kit.progress import tqdm

SAMPLE_RATE = 24_000  # the same for every arm, so that only the voice differs
COMPRESSION = 0.4  # about 60 kbit/s: twenty sentences of ten seconds in six arms stay below 15 MB
SPECTROGRAM_SIZE = (256, 64)


def write(path: Path, rows: Sequence[dict], title: str, lead: str, arms: Mapping[str, str], columns: Mapping[str, str],
          sort_columns: Mapping[str, str] | None = None, details: Sequence[str] = (), table: Sequence[Sequence[str]] = (),
          legend: Mapping[str, str] | None = None, plots: Sequence[tuple[bytes, str]] = (),
          facts: Mapping[str, object] | None = None) -> Path:
    """Write the page of `rows`, whose files lie in the folder of `path`; return `path`.

    `lead` is the result in one sentence, `details` its evidence; `arms` are in order, with descriptions; `columns` (field ->
    heading) are shown in each cell and averaged below, `sort_columns` only averaged and sorted by; `table` has its headings
    first, `legend` explains them; `plots` are PNGs with descriptions; `facts` say how all this was made."""
    path = Path(path)
    fields = {field: (heading, in_cell) for group, in_cell in ((columns, True), (sort_columns or {}, False))
              for field, heading in group.items() if any(row.get(field) is not None for row in rows)}
    clips = [_clip(row, path.parent, list(fields)) for row in tqdm(rows, desc="listening page", unit="clip")]
    if broken := [row["file"] for row, clip in zip(rows, clips) if "problem" in clip]:
        print(f"{len(broken)} of {len(rows)} clips cannot be played and are marked so on the page, first {broken[0]!r}.")
    sentences = {}
    for row, clip in zip(rows, clips):
        sentences.setdefault((row["sentence"], row["text"]), []).append(clip)
    names = {row["arm"] for row in rows}
    ordered = dict.fromkeys([*(arm for arm in arms if arm in names), *(row["arm"] for row in rows)])
    data = {"arms": [{"name": arm, "meaning": arms.get(arm, "")} for arm in ordered],
            "columns": [{"heading": heading, "in_cell": in_cell, "meaning": (legend or {}).get(heading, "")}
                        for heading, in_cell in fields.values()],
            "sentences": [{"number": number, "text": text, "clips": sentences[number, text]}
                          for number, text in sorted(sentences)]}
    parts = {"lead": escape(lead), "table": _table(table, legend or {}), "legend": _definitions(legend or {}),
             "details": "".join(f'<li dir="auto">{escape(detail)}</li>' for detail in details),
             "plots": "".join(f'<img src="{html.data_uri(png, "image/png")}" alt="{escape(text)}">' for png, text in plots),
             "facts": _definitions(facts or {})}
    content, _ = html.page(__file__, title, ("player.js", "page.js"), data, ("media-src data:", "img-src data:"),
                           **parts)
    io.write_text(path, content)
    return path


def read_clip(row: dict, folder: Path, rate: int) -> np.ndarray:
    """Read a row's clip as (samples,); a page, which may be published, holds only what is inside its folder."""
    path = manifest.resolve_inside(folder, row["file"])
    if path is None:
        raise KitError(f"{row['file']!r} lies outside the page's folder. Copy it there.")
    return audio.read(path, rate)


def _clip(row: dict, folder: Path, fields: Sequence[str]) -> dict:
    """Return one clip with its values, and either its sound and spectrogram or the reason why it has none."""
    values = [row.get(field) for field in fields]
    clip = {"arm": row["arm"], "seconds": row.get("seconds"), "ended_with_eos": row.get("ended_with_eos"), "values": values,
            # as text, because a browser would round a long seed
            "seed": None if row.get("seed") is None else str(row["seed"])}
    if row.get("transcript") is not None:
        clip |= {"transcript": row["transcript"], "transcript_is_right": row.get("word_errors") == 0}
    try:
        samples = audio.normalize_loudness(read_clip(row, folder, SAMPLE_RATE), SAMPLE_RATE)
    except KitError as error:  # the page names no folder of this machine
        return clip | {"problem": str(error).replace(str(folder / row["file"]), row["file"])}
    return clip | {"sound": html.data_uri(*audio.encode_lossy(samples, SAMPLE_RATE, COMPRESSION)),
                   "picture": html.data_uri(audio.spectrogram_png(samples, SAMPLE_RATE, *SPECTROGRAM_SIZE), "image/png")}


def _table(table: Sequence[Sequence[str]], legend: Mapping[str, str]) -> str:
    if not table:
        return ""
    titles = {heading: f' title="{escape(legend[heading])}"' for heading in table[0] if heading in legend}
    head = "".join(f'<th scope="col"{titles.get(heading, "")}>{escape(heading)}</th>' for heading in table[0])
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
                   for name, *cells in table[1:])
    return ('<div class="figures" tabindex="0" role="region" aria-label="Metrics of every arm"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _definitions(items: Mapping[str, object]) -> str:
    return "\n".join(f'<div><dt>{escape(name)}</dt><dd dir="auto">{escape(_plain(value))}</dd></div>'
                     for name, value in items.items())


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
