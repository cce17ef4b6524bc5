"""Some of the bundled voice's clips, as a folder to prepare."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tts_kit.run import SAMPLE_VOICE


def copy(folder: Path, lines: Iterable[int]) -> list[str]:
    """Copy the clips of these lines of the bundled voice's table, and the table's lines; returns the clips' file names."""
    table = (SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = [table[line] for line in lines]
    names = [row.split(",")[0] for row in rows]
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(SAMPLE_VOICE / name, folder)
    (folder / "metadata.csv").write_text("\n".join([table[0], *rows]) + "\n", encoding="utf-8")
    return names
