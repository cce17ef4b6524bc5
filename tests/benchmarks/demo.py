"""Time of `make demo` and what it prints: python -m tests.benchmarks.demo

The output of the demo and the seconds of each stage go to results/demo.json; its page stays in runs/benchmark-demo.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tts_kit import device
from tts_kit.io import write_json
from tts_kit.run import SAMPLE_DATA, Run

RUN = "benchmark-demo"
RESULTS = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    run = Run(RUN)
    if run.folder.exists():
        sys.exit(f"{run.folder} exists already; the demo would resume it. Move it away.")
    start = time.time()
    output = subprocess.run([sys.executable, "-m", "tts_kit", "demo", "--run", RUN], check=True, stdout=subprocess.PIPE,
                             text=True).stdout
    ended = time.time()
    timestamps = [start, *(path.stat().st_mtime for path in (run.data, run.codes / "index.jsonl", run.adapter)), ended]
    stages = dict(zip(("data", "tokenize", "train", "compare"), np.diff(timestamps).round().astype(int).tolist()))
    printed = output.replace(f"{SAMPLE_DATA.parent}/", "").splitlines()
    result = {"what": "make demo, after installing", "seconds": round(ended - start),
             "stages": stages, "printed": [line for line in printed if "file://" not in line],
             "machine": device.machine(), "versions": device.versions(), "command": "python -m tests.benchmarks.demo"}
    write_json(RESULTS, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
