"""Export a run's data as a dataset: a folder that `load_dataset("audiofolder", data_dir=...)` reads, or on the hub."""

import string
from pathlib import Path

from tts_kit import html, hub, io
from tts_kit.data import consent, manifest
from tts_kit.data.manifest import HELD_OUT, TRAIN
from tts_kit.errors import KitError
from tts_kit.run import Run

SPLITS = {TRAIN: "train", HELD_OUT: "test"}
TABLE, CARD = "metadata.jsonl", "README.md"
CARD_TEMPLATE = string.Template("""---
task_categories: [text-to-speech]
configs:
- config_name: default
  data_files:
  - {split: train, path: "train/**"}
  - {split: test, path: "test/**"}
---

# $name

One voice for text-to-speech: $clips clips, $minutes minutes, mono, 24 kHz, normalized in loudness. `text` is what is said,
`source` the speaker, `session` the recording session of a clip. `train` and `test` share no session if there are enough.

```python
from datasets import load_dataset

clips = load_dataset("audiofolder", data_dir="...")  # or the dataset's name on the hub
```

$consent
""")
NO_CONSENT = "Whose voice this is, who allowed its use and under which licence, is to be written here by whoever shares it."


def export(run: Run, out: str | Path) -> Path:
    """Write `train/` and `test/`, each with clips and `metadata.jsonl`, and a card to a new folder; return it."""
    out = Path(out)
    if out.exists():
        raise KitError(f"{out} exists already and was left as it is. Choose another --out.")
    utterances = [utterance for utterance in manifest.read(run.data) if utterance.split in SPLITS]
    with io.atomic_folder(out) as staging:
        for split, name in SPLITS.items():
            rows = []
            (staging / name).mkdir()
            for utterance in (utterance for utterance in utterances if utterance.split == split):
                (staging / name / utterance.audio.name).write_bytes(manifest.read_audio(utterance))
                rows.append({"file_name": utterance.audio.name, "text": utterance.text,
                             "source": utterance.speaker or utterance.source, "session": utterance.session})
            io.write_rows(staging / name / TABLE, rows)
        io.write_json(staging / hub.RELEASE_FILE, {"kind": "dataset", "voice": run.name})
        record = consent.attach(run, staging)
        io.write_text(staging / CARD, CARD_TEMPLATE.substitute(
            name=run.name, clips=len(utterances), minutes=f"{sum(utterance.seconds for utterance in utterances) / 60:.1f}",
            consent=f"Consent: {html.markdown(str(record))}" if record else NO_CONSENT))
    return out


def check_push(run: Run, repo_id: str, public: bool) -> None:
    """Refuse what is known to fail before anything is written: an invalid name, or a public voice without consent."""
    hub.check_repo_id(repo_id)
    if public and (reason := consent.problem(run)):
        raise KitError(f"A voice is made public only with consent. {reason}")


def push(folder: Path, repo_id: str, public: bool = False) -> str:
    """Push an exported folder to the hub as a dataset, public only with consent; return its URL."""
    if public and not consent.read(folder):
        raise KitError(f"A voice is made public only with consent, and {folder} was exported without. Record it (tts-kit "
                       "consent --run NAME), and export to another --out.")
    return hub.push(folder, repo_id, "dataset", "Data of one voice", public)
