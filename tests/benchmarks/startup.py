"""Start-up of the command line: user CPU seconds of fresh processes, which other work on the machine hardly changes.

    python -m tests.benchmarks.startup

First come parts of `speak`: Python, torch and transformers' CSM. The fastest run counts; caches are warm.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import measure
from tts_kit import device
from tts_kit.io import write_json
from tts_kit.run import TINY_CSM

SPEAK = ["-m", "tts_kit", "speak", "Hi.", "--no-adapter", "--base", str(TINY_CSM)]
PROCESSES = {"python": ["-c", "pass"], "import torch": ["-c", "import torch"],
             "import torch and transformers' CSM": ["-c", "import transformers.models.csm.modeling_csm"],
             "tts-kit --help": ["-m", "tts_kit", "--help"], "tts-kit status": ["-m", "tts_kit", "status"],
             'tts-kit speak "Hi.", tiny-csm': SPEAK}


def cpu_seconds(arguments: list[str], folder: str) -> float:
    """Return the user CPU seconds of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=measure.REPEATS, help="runs of each process, after a warm-up run")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: [cpu_seconds(arguments, folder) for _ in range(options.repeats + 1)][1:]
                for name, arguments in PROCESSES.items()}
    result = {"what": "startup", "clock": "user CPU seconds, fastest run",
              "seconds": {name: round(min(values), 2) for name, values in runs.items()},
              "runs": {name: [round(value, 2) for value in values] for name, values in runs.items()},
              "machine": device.machine(), "versions": device.versions(), "command": measure.command()}
    write_json(options.out / "startup.json", result)
    print("\n".join(f"{name}: {seconds} s" for name, seconds in result["seconds"].items()))


if __name__ == "__main__":
    main()
