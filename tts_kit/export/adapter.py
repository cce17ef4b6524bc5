"""Export a trained voice as a folder for others, adapter or merged weights, with its model card; push it to the hub."""

import shutil
from pathlib import Path

from tts_kit import device, hub
from tts_kit.config import CONFIG_FILE
from tts_kit.data import consent
from tts_kit.errors import KitError
from tts_kit.export import card, merged
from tts_kit.io import atomic_folder, check_replaceable, read_json, write_json, write_text
from tts_kit.model import license, lora
from tts_kit.run import Run
from tts_kit.speech.voice import recommended_settings

DATA_FILE = "data.json"  # how much data the adapter was trained on, and its source
LAYOUTS = ("transformers", "original")


def export(run: Run, out: str | Path = "", merge: bool = False, base: str = "", revision: str = "",
           strength: float | None = None, dtype: str = "auto", location: str = "", watermarked: bool = True,
           language: str = "", layout: str = LAYOUTS[0]) -> Path:
    """Write a run's voice with its card to a folder, by default in the run's own; replaces an older export of it.

    `base` is the base model as others find it, or its folder here; `location` is where others will find the export. Merged
    weights have the adapter at `strength`: by default the recommended one, or 1."""
    kind = "adapter" if not merge else "merged" if layout == LAYOUTS[0] else layout
    out = Path(out) if out else run.folder / "release" / kind
    if layout != LAYOUTS[0] and not merge:
        raise KitError("an adapter has the layout of transformers; only merged weights can have the original one. Give "
                       "--merged too.")
    if strength is not None and not merge:
        raise KitError(f"strength {strength:g} can be merged in; the strength of an adapter is set when it speaks (speak "
                       "--strength). Give --merged too.")
    check_replaceable(out, hub.RELEASE_FILE)
    release = read_json(out / hub.RELEASE_FILE, "Choose another --out.") if (out / hub.RELEASE_FILE).is_file() else {}
    if release and (release.get("voice"), release.get("kind")) != (run.name, kind):
        raise KitError(f"{out} holds the voice {release.get('voice')} as {release.get('kind')}, which would be replaced by "
                       f"{run.name} as {kind}. Choose another --out, or remove it.")
    metadata = lora.read_metadata(run.adapter)
    base = base or metadata["base"]
    strength = recommended_settings(metadata).get("strength", 1.0) if strength is None else strength
    summary = card.summarize(run, base, language, strength)
    license_name = license.license_of(summary.base, base)
    with atomic_folder(out) as staging:
        if merge:
            merged.write(run.adapter, staging, base, revision, strength, dtype, layout)
        else:
            copy_adapter(run.adapter, staging, summary, revision)
        if summary.data:
            write_json(staging / DATA_FILE, summary.data)
        if summary.consent:
            consent.write(summary.consent, staging)
        hub.write_release_file(staging, kind, voice=run.name, base=summary.base, strength=strength,
                               watermarked_samples=watermarked, versions=device.versions())
        # folders of this machine are not named
        location = location or (out.name if out.is_absolute() else str(out))
        card.write(summary, staging, location, license_name, kind, watermarked)
    return out


def copy_adapter(adapter: Path, folder: Path, summary: card.RunSummary, revision: str = "") -> None:
    """Copy the adapter's files; they name the base model as others find it, and no folder of this machine."""
    revision_field = {"revision": revision} if revision else {}
    shutil.copyfile(adapter / lora.WEIGHTS_FILE, folder / lora.WEIGHTS_FILE)
    write_json(folder / lora.METADATA_FILE, summary.metadata | {"base": summary.base} | revision_field)
    peft_config = read_json(adapter / lora.CONFIG_FILE, lora.RESTORE)
    write_json(folder / lora.CONFIG_FILE, peft_config | {"base_model_name_or_path": summary.base} | revision_field)
    write_text(folder / CONFIG_FILE, summary.config.replace(base=summary.base).to_json())


def check_push(run: Run, name: str, public: bool) -> None:
    """Refuse, before anything is written, a malformed repository name and a public voice without consent."""
    hub.check_repo_id(name)
    if public and (reason := card.consent_problem(run, lora.read_metadata(run.adapter))):
        raise KitError(f"A voice is made public only with consent. {reason}")


def push(run: Run, folder: Path, name: str, public: bool = False) -> str:
    """Push an exported folder to the hub as model `owner/name`, public only with consent; returns its URL."""
    check_push(run, name, public)
    if public and consent.read(folder) != consent.for_run(run):
        raise KitError(f"A voice is made public only with consent, and {folder} was exported without this run's. "
                       "Export again.")
    return hub.push(folder, name, "model", "One voice", public)
