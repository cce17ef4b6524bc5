"""A trained voice as a folder for others, adapter or merged weights, with its card; and on the hub when asked."""

import shutil
from pathlib import Path

from tts_kit import hub, runtime
from tts_kit import recipe as recipes
from tts_kit.data import consent
from tts_kit.model import lora, parcel, terms
from tts_kit.problem import Problem
from tts_kit.release import card, facts, merged
from tts_kit.run import Run, read_json, refuse_to_replace, write_json, writing_folder

DATA = "data.json"
"""How much speech was learnt, from where, and what was checked."""
NAMES = {False: "adapter", True: "merged"}


def export(run: Run, out: str | Path = "", merge: bool = False, base: str = "", revision: str = "", strength: float = 1.0,
           dtype: str = "auto", place: str = "", marked: bool = True) -> Path:
    """Write a run's voice with its card to a folder, by default in the run's own; an older one there is replaced.

    `base` is the base as others call it, or where it lies now; `place` is where others will find the folder."""
    out = Path(out) if out else run.folder / "release" / NAMES[merge]
    if strength != 1.0 and not merge:
        raise Problem(f"strength {strength:g} can be merged in; of an adapter whoever speaks sets it (speak "
                      "--strength). Give --merged too.")
    _refuse_other_voice(out, run.name, NAMES[merge])
    belongs = lora.read_voice(run.adapter)
    known = facts.gather(run, base or belongs["base"])
    licence = terms.licence(known.base, base or belongs["base"])
    with writing_folder(out) as beside:
        if merge:
            merged.write(run.adapter, beside, base, revision, strength, dtype)
        else:
            copy(run.adapter, beside, known, revision)
        if known.data:
            write_json(beside / DATA, known.data)
        if known.consent:
            consent.put(known.consent, beside)
        hub.sign(beside, NAMES[merge], voice=run.name, base=known.base, strength=strength, watermarked_samples=marked,
                 versions=runtime.versions())
        # the names of this machine's folders stay at home
        card.write(known, beside, place or (out.name if out.is_absolute() else str(out)), licence, merge, marked)
    return out


def copy(adapter: Path, folder: Path, known: facts.Facts, revision: str = "") -> None:
    """The adapter's files, which name their base as others know it and no folder of this machine."""
    shutil.copyfile(adapter / lora.WEIGHTS, folder / lora.WEIGHTS)
    named = {"base": known.base} | ({"revision": revision} if revision else {})
    write_json(folder / lora.VOICE, known.belongs | named)
    config = read_json(adapter / parcel.CONFIG, parcel.RESTORE)
    write_json(folder / parcel.CONFIG, config | {"base_model_name_or_path": known.base} | (
        {"revision": revision} if revision else {}))
    (folder / recipes.FILE).write_text(known.recipe.but(base=known.base).to_json(), encoding="utf-8")


def refuse_to_push(run: Run, name: str, public: bool) -> None:
    """What can be known to go wrong before anything is written: a name that is none, or a public voice without consent."""
    hub.refuse_name(name)
    if public and (wrong := facts.fault_of_consent(run, lora.read_voice(run.adapter))):
        raise Problem(f"A voice is made public only with consent. {wrong}")


def push(run: Run, folder: Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the hub as model `owner/name`, public only with consent; returns its address."""
    refuse_to_push(run, name, public)
    if public and consent.read(folder) != consent.of(run):
        raise Problem(f"A voice is made public only with consent, and {folder} was exported without this run's. "
                      "Export again.")
    return hub.push(folder, name, "model", "One voice", public)


def _refuse_other_voice(out: Path, voice: str, kind: str) -> None:
    """An export replaces an older one of the same voice and kind, and nothing else."""
    refuse_to_replace(out, hub.SIGN)
    there = read_json(out / hub.SIGN, "Choose another --out.") if (out / hub.SIGN).is_file() else {}
    if there and (there.get("voice"), there.get("kind")) != (voice, kind):
        raise Problem(f"{out} holds the voice {there.get('voice')} as {there.get('kind')}, which would be replaced by "
                      f"{voice} as {kind}. Choose another --out, or remove it.")
