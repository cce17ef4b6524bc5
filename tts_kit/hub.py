"""The model hub: what names look like there, and putting a folder there without harm to what others have or may see."""

import re
from pathlib import Path

from tts_kit.problem import Problem, reason
from tts_kit.run import write_json

NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
SIGN = "release.json"
"""In every folder that the kit makes for others: what it holds, and that the kit may replace it."""
EMPTY = {".gitattributes", "README.md"}
"""What a repository holds at most in which nothing has been put."""


def is_name(place: str) -> bool:
    """Whether it has the form OWNER/NAME."""
    return bool(re.fullmatch(NAME, place))


def sign(folder: Path, kind: str, **more) -> None:
    """Say of a folder for others what it holds."""
    write_json(folder / SIGN, {"kind": kind, **more})


def push(folder: Path, name: str, kind: str, message: str, public: bool = False) -> str:
    """Put a signed folder on the hub as the `model` or `dataset` OWNER/NAME, which is then what the folder is; returns its
    address.

    A new one is private unless told otherwise; only what is empty or has a sign itself is replaced."""
    import httpx
    from huggingface_hub import HfApi

    refuse_name(name)
    if not (folder / SIGN).is_file():
        raise Problem(f"{folder} does not say what it holds: no {SIGN}. An older version of the kit, or somebody else, made "
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
        raise Problem(f"{folder} could not be pushed to {name!r} ({reason(error)}). It stays where it is. Log in (hf auth "
                      "login) with a token that may write, check the name (owner/name) and the network, and push "
                      "again.") from error
    return str(made)


def refuse_name(name: str) -> None:
    if not is_name(name):
        raise Problem(f"{name!r} could not be pushed to: it is no name on the hub. Wanted: OWNER/NAME.")


def _refuse_other(name: str, is_private: bool, files: set[str], public: bool) -> None:
    if not public and not is_private:
        raise Problem(f"{name} is there and everybody can see it. Give --public if that is what you want, or another name.")
    if SIGN not in files and (other := files - EMPTY):
        raise Problem(f"{name} is there and holds something else ({min(other)}, and no {SIGN}). All of it would be "
                      "replaced; push to another name.")
    if public and is_private:
        print(f"{name} was there already and is private; its settings on the hub make it public.")
