"""A run's data as a dataset for others: a folder that `load_dataset("audiofolder", data_dir=...)` reads, and the hub.

In go the utterances of a run; out come `train/` and `test/`, each with `metadata.jsonl` beside its clips, and a card.
"""

import shutil
import string
from pathlib import Path

from tts_kit import html, hub, io
from tts_kit.data import consent, manifest
from tts_kit.data.manifest import HELD_OUT, TRAIN
from tts_kit.errors import KitError
from tts_kit.run import Run

SPLITS = {TRAIN: "train", HELD_OUT: "test"}
TABLE, CARD = "metadata.jsonl", "README.md"
TEXT = string.Template("""---
task_categories: [text-to-speech]
configs:
- config_name: default
  data_files:
  - {split: train, path: "train/**"}
  - {split: test, path: "test/**"}
---

# $name

One voice for text-to-speech: $clips clips, $minutes minutes, mono, 24 kHz, at one loudness. `text` is what is said, `source`
the speaker, `session` the sitting that a clip was cut from. No sitting is in both `train` and `test` where there are
enough of them.

```python
from datasets import load_dataset

clips = load_dataset("audiofolder", data_dir="...")  # or the dataset's name on the hub
```

$allowed
""")
NOBODY = "Whose voice this is, who allowed its use and under which licence, is to be written here by whoever shares it."


def export(place: Run, out: str | Path) -> Path:
    """Write the data of a run to a new folder; one that is there is left as it is."""
    out = Path(out)
    if out.exists():
        raise KitError(f"{out} is there already and was left as it is. Choose another --out.")
    clips = [each for each in manifest.read(place.data) if each.split in SPLITS]
    with io.atomic_folder(out) as beside:
        for split, name in SPLITS.items():
            mine = [each for each in clips if each.split == split]
            (beside / name).mkdir()
            for each in mine:
                shutil.copyfile(each.audio, beside / name / each.audio.name)
            io.write_rows(beside / name / TABLE, (
                {"file_name": each.audio.name, "text": each.text, "source": each.speaker or each.source,
                 "session": each.session} for each in mine))
        minutes = f"{sum(each.seconds for each in clips) / 60:.1f}"
        hub.write_release_file(beside, "dataset", voice=place.name)
        allowed = consent.attach(place, beside)
        said = f"Consent: {html.markdown(str(allowed))}" if allowed else NOBODY
        io.write_text(beside / CARD, TEXT.substitute(name=place.name, clips=len(clips), minutes=minutes, allowed=said))
    return out


def check_push(place: Run, name: str, public: bool) -> None:
    """What can be known to go wrong before anything is written: a name that is none, or a public voice without consent."""
    hub.check_repo_id(name)
    if public and (wrong := consent.problem(place)):
        raise KitError(f"A voice is made public only with consent. {wrong}")


def push(folder: Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the hub as dataset `owner/name`, public only with consent; returns its address."""
    if not (folder / SPLITS[TRAIN] / TABLE).is_file():
        raise KitError(f"{folder} is no exported dataset: no {SPLITS[TRAIN]}/{TABLE}. Choose another --out.")
    if public and not consent.read(folder):
        raise KitError(f"A voice is made public only with consent, and {folder} was exported without. Record it (python -m "
                      "tts_kit consent --run NAME), and export to another --out.")
    return hub.push(folder, name, "dataset", "Data of one voice", public)
