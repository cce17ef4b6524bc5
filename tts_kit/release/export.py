"""A trained voice as a folder for others, adapter or merged weights, with its card; and on the hub when asked."""

import re
import shutil
from pathlib import Path

from tts_kit import checkpoint, runtime
from tts_kit import recipe as recipes
from tts_kit.model import lora, parcel
from tts_kit.problem import Problem
from tts_kit.release import card, consent, facts, merged, terms
from tts_kit.run import Run, read_json, refuse_to_replace, write_json, writing_folder

FILE, DATA = "release.json", "data.json"
"""What was exported, and how much speech was learnt, from where, and what was checked."""
NAMES = {False: "adapter", True: "merged"}


def export(run: Run, out: str | Path = "", merge: bool = False, base: str = "", revision: str = "", strength: float = 1.0,
           dtype: str = "auto", place: str = "", marked: bool = True) -> Path:
    """Write a run's voice with its card to a folder, by default in the run's own; an older one there is replaced.

    `base` is the base as others call it, or where it lies now; `place` is where others will find the folder."""
    out = Path(out) if out else run.folder / "release" / NAMES[merge]
    if strength != 1.0 and not merge:
        raise Problem(f"strength {strength:g} can be merged in; of an adapter whoever speaks sets it. Give --merged too.")
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
        consent.accompany(run, beside)
        write_json(beside / FILE, {"voice": run.name, "kind": NAMES[merge], "base": known.base, "strength": strength,
                                   "watermarked samples": marked, "versions": runtime.versions()})
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
    if not re.fullmatch(checkpoint.HUB_ID, name):
        raise Problem(f"{name!r} could not be pushed to: it is no name on the hub. Wanted: OWNER/NAME.")
    if public:
        consent.require(run)


def push(run: Run, folder: Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the hub as model `owner/name`; returns its address.

    A new one is private unless told otherwise, and public only with consent; an older voice there is replaced."""
    import httpx
    from huggingface_hub import HfApi

    refuse_to_push(run, name, public)
    try:
        hub = HfApi()
        made = hub.create_repo(name, private=not public, exist_ok=True)
        there = hub.repo_info(made.repo_id)
        _refuse_other_model(name, there.private, {file.rfilename for file in there.siblings}, public)
        # all that the last one had goes, or a consent that was taken back and weights of another kind would stay
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="One voice", delete_patterns="*")
    # errors of the hub are HTTPErrors, a token that was copied by half is a ValueError
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise Problem(f"{folder} could not be pushed to {name!r} ({checkpoint.reason(error)}). It stays where it is. Log in "
                      "(hf auth login) with a token that may write, check the name (owner/name) and the network, and push "
                      "again.") from error
    return str(made)


def _refuse_other_voice(out: Path, voice: str, kind: str) -> None:
    """An export replaces an older one of the same voice and kind, and nothing else."""
    refuse_to_replace(out, FILE)
    there = read_json(out / FILE, "Choose another --out.") if (out / FILE).is_file() else {}
    if there and (there.get("voice"), there.get("kind")) != (voice, kind):
        raise Problem(f"{out} holds the voice {there.get('voice')} as {there.get('kind')}, which would be replaced by "
                      f"{voice} as {kind}. Choose another --out, or remove it.")


def _refuse_other_model(name: str, is_private: bool, files: set[str], public: bool) -> None:
    """On the hub too a voice replaces a voice, or fills what was just made; and is not seen by more than was asked."""
    if not public and not is_private:
        raise Problem(f"{name} is there and everybody can see it. Give --public if that is what you want, or another name.")
    if FILE not in files and (other := files - {".gitattributes", card.FILE}):
        raise Problem(f"{name} is there and holds something else ({min(other)}, and no {FILE}). All of it would be "
                      "replaced; push to another name.")
    if public and is_private:
        print(f"{name} was there already and is private; its settings on the hub make it public.")
