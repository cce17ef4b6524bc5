"""The model hub: what names look like there, and putting a folder there without harm to what others have or may see."""

import re
from pathlib import Path

from tts_kit.errors import KitError, reason
from tts_kit.io import write_json

REPO_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
RELEASE_FILE = "release.json"
"""In every folder that the kit makes for others: what it holds, and that the kit may replace it."""
EMPTY = {".gitattributes", "README.md"}
"""What a repository holds at most in which nothing has been put."""


def is_repo_id(place: str) -> bool:
    """Whether it has the form OWNER/NAME."""
    return bool(re.fullmatch(REPO_ID, place))


def write_release_file(folder: Path, kind: str, **more) -> None:
    """Say of a folder for others what it holds."""
    write_json(folder / RELEASE_FILE, {"kind": kind, **more})


def push(folder: Path, name: str, kind: str, message: str, public: bool = False) -> str:
    """Put a signed folder on the hub as the `model` or `dataset` OWNER/NAME, which is then what the folder is; returns its
    address.

    A new one is private unless told otherwise; only what is empty or has a sign itself is replaced."""
    import httpx
    from huggingface_hub import HfApi

    check_repo_id(name)
    if not (folder / RELEASE_FILE).is_file():
        raise KitError(f"{folder} does not say what it holds: no {RELEASE_FILE}. An older version of the kit, or somebody else, made "
                      "it; export again to another --out.")
    try:
        hub = HfApi()
        made = hub.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        there = hub.repo_info(made.repo_id, repo_type=kind)
        _refuse_other(name, there.private, {file.rfilename for file in there.siblings}, public)
        # all that the last one had goes, or a consent that was taken back and clips that were deleted would stay
        hub.upload_folder(repo_id=made.repo_id, repo_type=kind, folder_path=folder, commit_message=message,
                          delete_patterns="*")
    # errors of the hub are HTTPErrors, a token that was copied by half is a ValueError
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise KitError(f"{folder} could not be pushed to {name!r} ({reason(error)}). It stays where it is. Log in (hf auth "
                      "login) with a token that may write, check the name (owner/name) and the network, and push "
                      "again.") from error
    return str(made)


def check_repo_id(name: str) -> None:
    if not is_repo_id(name):
        raise KitError(f"{name!r} could not be pushed to: it is no name on the hub. Wanted: OWNER/NAME.")


def _refuse_other(name: str, is_private: bool, files: set[str], public: bool) -> None:
    if not public and not is_private:
        raise KitError(f"{name} is there and everybody can see it. Give --public if that is what you want, or another name.")
    if RELEASE_FILE not in files and (other := files - EMPTY):
        raise KitError(f"{name} is there and holds something else ({min(other)}, and no {RELEASE_FILE}). All of it would be "
                      "replaced; push to another name.")
    if public and is_private:
        print(f"{name} was there already and is private; its settings on the hub make it public.")
