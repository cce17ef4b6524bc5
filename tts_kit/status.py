"""What a run has and lacks, and the command that comes next; read from its files, without torch."""

import difflib
import re
from pathlib import Path

from tts_kit import io
from tts_kit.config import CONFIG_FILE
from tts_kit.data import manifest
from tts_kit.errors import KitError, reason
from tts_kit.run import NAME, Run, changed_inputs

CODES, ADAPTER, PAGE = "index.jsonl", "adapter_meta.json", "index.html"  # files that say that a stage is done
MAX_LISTED = 12


def runs() -> list[Run]:
    """Return the runs of the working folder, by name."""
    folders = sorted(Path("runs").iterdir()) if Path("runs").is_dir() else []
    return [Run(folder.name) for folder in folders if folder.is_dir() and re.fullmatch(NAME, folder.name)]


def stages(run: Run) -> dict[str, str]:
    """Return what each finished or begun stage holds."""
    done = {}
    if (run.data / manifest.MANIFEST).is_file():
        rows = io.read_rows(run.data / manifest.MANIFEST)
        done["data"] = f"{len(rows)} clips, {sum(row['seconds'] for row in rows) / 60:.1f} minutes"
    if (run.codes / CODES).is_file():
        is_current = "data" not in done or not changed_inputs(run.codes, manifest=manifest.digest(run.data))
        done["codes"] = f"{len(io.read_rows(run.codes / CODES))} clips" if is_current else "of other data"
    steps, planned = [int(path.parent.name.partition("-")[2]) for path in run.training.glob("checkpoint-*/complete")], None
    if steps and (run.training / CONFIG_FILE).is_file():
        planned = io.read_json(run.training / CONFIG_FILE, "Restore it.").get("steps")
        done["training"] = f"step {max(steps)} of {planned}"
    if (run.adapter / ADAPTER).is_file():
        metrics = io.read_json(run.adapter / ADAPTER, "Restore it.").get("metrics", {})
        if planned in (None, metrics.get("steps", planned)):  # else it is that of a training that goes on
            done["adapter"] = f"step {metrics.get('selected_step', '?')}"
    if (run.comparison / PAGE).is_file():
        done["comparison"] = str(run.comparison / PAGE)
    return done


def next_command(run: Run) -> str:
    """Return the command that continues a run."""
    done = stages(run)
    codes = done.get("codes", "of other data")
    for is_done, command in (("data" in done or codes != "of other data", "prepare SOURCE"),
                             (codes != "of other data", "tokenize"), ("adapter" in done, "train"),
                             ("comparison" in done or "data" not in done, "compare")):
        if not is_done:
            return f"tts-kit {command} --run {run.name}"
    return f'tts-kit speak "Hello there." --run {run.name}'


def describe_runs() -> str:
    """Return a line for every run: its stages and the next command."""
    lines = []
    for run in runs():
        try:
            done = "; ".join(f"{name} {content}" for name, content in stages(run).items()) or "empty"
            lines.append(f"{run.name}: {done}. Next: {next_command(run)}")
        except (KitError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            lines.append(f"{run.name}: cannot be read ({reason(error)}).")
    return "\n".join(lines) or "runs holds no run. Begin with: tts-kit prepare SOURCE --run NAME"


def missing_run_hint(name: str) -> str:
    """Return which runs have a similar name, or which there are, if there is none of this name; else nothing."""
    names = [run.name for run in runs()]
    if name in names or not names:
        return ""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"There is no run {name}. " + (
        f"Did you mean {' or '.join(near)}?" if near else f"Runs: {', '.join(names[:MAX_LISTED])}.")
