"""A trained voice as a folder for others, adapter or merged weights, with its card; and on the hub when asked."""

import shutil
from pathlib import Path

from tts_kit import device, hub
from tts_kit.config import CONFIG_FILE
from tts_kit.data import consent
from tts_kit.errors import KitError
from tts_kit.export import card, merged, summary
from tts_kit.io import atomic_folder, check_replaceable, read_json, write_json
from tts_kit.model import license, lora
from tts_kit.run import Run

DATA = "data.json"
"""How much speech was learnt, from where, and what was checked."""
NAMES = {False: "adapter", True: "merged"}


def export(run: Run, out: str | Path = "", merge: bool = False, base: str = "", revision: str = "", strength: float = 1.0,
           dtype: str = "auto", place: str = "", marked: bool = True) -> Path:
    """Write a run's voice with its card to a folder, by default in the run's own; an older one there is replaced.

    `base` is the base as others call it, or where it lies now; `place` is where others will find the folder."""
    out = Path(out) if out else run.folder / "release" / NAMES[merge]
    if strength != 1.0 and not merge:
        raise KitError(f"strength {strength:g} can be merged in; of an adapter whoever speaks sets it (speak "
                      "--strength). Give --merged too.")
    _refuse_other_voice(out, run.name, NAMES[merge])
    belongs = lora.read_metadata(run.adapter)
    known = summary.gather(run, base or belongs["base"])
    licence = license.license_of(known.base, base or belongs["base"])
    with atomic_folder(out) as beside:
        if merge:
            merged.write(run.adapter, beside, base, revision, strength, dtype)
        else:
            copy(run.adapter, beside, known, revision)
        if known.data:
            write_json(beside / DATA, known.data)
        if known.consent:
            consent.write(known.consent, beside)
        hub.write_release_file(beside, NAMES[merge], voice=run.name, base=known.base, strength=strength, watermarked_samples=marked,
                 versions=device.versions())
        # the names of this machine's folders stay at home
        card.write(known, beside, place or (out.name if out.is_absolute() else str(out)), licence, merge, marked)
    return out


def copy(adapter: Path, folder: Path, known: summary.RunSummary, revision: str = "") -> None:
    """The adapter's files, which name their base as others know it and no folder of this machine."""
    shutil.copyfile(adapter / lora.WEIGHTS_FILE, folder / lora.WEIGHTS_FILE)
    named = {"base": known.base} | ({"revision": revision} if revision else {})
    write_json(folder / lora.METADATA_FILE, known.belongs | named)
    config = read_json(adapter / lora.CONFIG_FILE, lora.RESTORE)
    write_json(folder / lora.CONFIG_FILE, config | {"base_model_name_or_path": known.base} | (
        {"revision": revision} if revision else {}))
    (folder / CONFIG_FILE).write_text(known.config.replace(base=known.base).to_json(), encoding="utf-8")


def check_push(run: Run, name: str, public: bool) -> None:
    """What can be known to go wrong before anything is written: a name that is none, or a public voice without consent."""
    hub.check_repo_id(name)
    if public and (wrong := summary.consent_problem(run, lora.read_metadata(run.adapter))):
        raise KitError(f"A voice is made public only with consent. {wrong}")


def push(run: Run, folder: Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the hub as model `owner/name`, public only with consent; returns its address."""
    check_push(run, name, public)
    if public and consent.read(folder) != consent.for_run(run):
        raise KitError(f"A voice is made public only with consent, and {folder} was exported without this run's. "
                      "Export again.")
    return hub.push(folder, name, "model", "One voice", public)


def _refuse_other_voice(out: Path, voice: str, kind: str) -> None:
    """An export replaces an older one of the same voice and kind, and nothing else."""
    check_replaceable(out, hub.RELEASE_FILE)
    there = read_json(out / hub.RELEASE_FILE, "Choose another --out.") if (out / hub.RELEASE_FILE).is_file() else {}
    if there and (there.get("voice"), there.get("kind")) != (voice, kind):
        raise KitError(f"{out} holds the voice {there.get('voice')} as {there.get('kind')}, which would be replaced by "
                      f"{voice} as {kind}. Choose another --out, or remove it.")
