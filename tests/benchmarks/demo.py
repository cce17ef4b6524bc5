"""`make demo` after installing, timed, with what it printed: python -m tests.benchmarks.demo

A copy of what the demo says and how long each stage takes goes to results/demo.json; its page stays in runs/benchmark-demo.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tts_kit import device
from tts_kit.io import write_json
from tts_kit.run import Run

RUN = "benchmark-demo"
RESULTS = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    run = Run(RUN)
    if run.folder.exists():
        sys.exit(f"{run.folder} is there already; the demo would only go on where it stopped. Move it away.")
    begun = time.time()
    printed = subprocess.run([sys.executable, "-m", "tts_kit", "demo", "--run", RUN], check=True, stdout=subprocess.PIPE,
                             text=True).stdout
    ended = time.time()
    moments = [begun, *(path.stat().st_mtime for path in (run.data, run.codes / "index.jsonl", run.adapter)), ended]
    stages = dict(zip(("data", "tokenize", "train", "compare"), np.diff(moments).round().astype(int).tolist()))
    found = {"what": "make demo, after installing", "seconds": round(ended - begun),
             "stages": stages, "printed": [line for line in printed.splitlines() if "file://" not in line],
             "machine": device.machine(), "versions": device.versions(), "command": "python -m tests.benchmarks.demo"}
    write_json(RESULTS, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
