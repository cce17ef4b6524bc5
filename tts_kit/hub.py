"""The model hub: repository ids, and pushing folders without replacing or publishing anything unasked."""

import re
from pathlib import Path

from tts_kit.errors import KitError, reason

REPO_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
RELEASE_FILE = "release.json"  # in every exported folder: what it holds; only folders and repositories with it are replaced
EMPTY = {".gitattributes", "README.md"}  # files that a repository without content may have


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME."""
    return bool(re.fullmatch(REPO_ID, name))


def push(folder: Path, name: str, kind: str, message: str, public: bool = False) -> str:
    """Push an exported folder to the hub as the `model` or `dataset` OWNER/NAME; return its URL. A new repository is private
    unless `public`; only an empty one, or one that the kit pushed, is replaced."""
    import httpx
    from huggingface_hub import HfApi

    check_repo_id(name)
    if not (folder / RELEASE_FILE).is_file():
        raise KitError(f"{folder} has no {RELEASE_FILE}: it was not made by this version of tts_kit. Export again to "
                       "another --out.")
    try:
        hub = HfApi()
        repo = hub.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        info = hub.repo_info(repo.repo_id, repo_type=kind)
        if not public and not info.private:
            raise KitError(f"{name} exists and is public. Give --public if that is what you want, or another name.")
        files = {file.rfilename for file in info.siblings}
        if RELEASE_FILE not in files and (other := files - EMPTY):
            raise KitError(f"{name} exists and holds something else ({min(other)}, and no {RELEASE_FILE}). All of it "
                           "would be replaced; push to another name.")
        if public and info.private:
            print(f"{name} exists and is private; change its visibility in its settings on the hub.")
        # delete everything older, or a withdrawn consent and deleted clips would stay
        hub.upload_folder(repo_id=repo.repo_id, repo_type=kind, folder_path=folder, commit_message=message,
                          delete_patterns="*")
    # hub errors are HTTPErrors; a malformed token is a ValueError
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise KitError(f"{folder} could not be pushed to {name!r} ({reason(error)}). It stays where it is. Log in (hf auth "
                      "login) with a token that may write, check the name (owner/name) and the network, and push "
                      "again.") from error
    return str(repo)


def check_repo_id(name: str) -> None:
    if not is_repo_id(name):
        raise KitError(f"{name!r} is not a hub repository id. Wanted: OWNER/NAME.")
