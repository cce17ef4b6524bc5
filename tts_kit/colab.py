"""What is special in Google Colab: the hub token from its secrets, Drive, pages served by the kernel."""

import contextlib
import os
import sys
from pathlib import Path

from tts_kit.errors import KitError

DRIVE = Path("/content/drive")


def is_colab() -> bool:
    """Whether this process is a Google Colab notebook."""
    return "google.colab" in sys.modules


def load_hf_token() -> bool:
    """Return whether HF_TOKEN is set; in Colab, set it from the notebook's secrets."""
    if is_colab() and not os.environ.get("HF_TOKEN"):
        from google.colab import errors, userdata

        # no such secret, no access granted, or no browser to ask: open models need no token
        with contextlib.suppress(errors.Error, userdata.NotebookAccessError):
            os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN").strip()
    return bool(os.environ.get("HF_TOKEN"))


def runs_dir(on_drive: bool = False) -> Path:
    """Return the folder for runs: ./runs, or on Google Drive, which outlives a Colab machine."""
    if not on_drive:
        return Path("runs")
    if not is_colab():
        raise KitError("DRIVE is Google Drive, and this is no Colab notebook. Set it to False: runs are kept in "
                       f"{Path('runs').absolute()}.")
    from google.colab import drive, errors

    try:
        drive.mount(str(DRIVE))
    except (ValueError, errors.Error) as error:
        raise KitError(f"Google Drive could not be mounted ({error}). Run the cell again and allow access to Drive, or set "
                       "DRIVE to False; then results last as long as this machine.") from error
    return DRIVE / "MyDrive" / "tts_kit" / "runs"


def find(source: str) -> str:
    """Return a source as it is or, in Colab, where its file browser or Drive has it."""
    folders = [DRIVE.parent, DRIVE / "MyDrive"] if is_colab() and not Path(source).exists() else []
    if source and (found := next((folder / source for folder in folders if (folder / source).exists()), None)):
        print(f"{source} was found as {found}.")
        return str(found)
    return source


def embed_iframe(port: int, path: str, height: int):
    """Show a page served by this machine on `port` in a notebook, with the microphone; in Colab through its proxy."""
    from IPython.display import HTML, IFrame

    if is_colab():
        from google.colab import output

        output.serve_kernel_port_as_iframe(port, path=path, height=height)
        # without the microphone, which a tab of its own may use
        output.serve_kernel_port_as_window(port, path=path, anchor_text="Open in a tab")
        return HTML("")  # Colab has displayed it
    return IFrame(f"http://127.0.0.1:{port}{path}", "100%", height, extras=['allow="microphone"'])
