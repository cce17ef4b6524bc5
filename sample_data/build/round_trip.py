"""Measure what a codec loses: WER, SIM and MOS of speech that it encodes and decodes, by codebooks and by voice.

    python -m sample_data.build.round_trip --codec runs/pretrain/codec --corpus runs/pretrain/corpus --out round_trip.json

The first part is on the evaluation sentences. The second is on each synthetic voice that a language model is to hear: one
that the codec makes unintelligible would teach it nothing.
"""

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import MimiModel

from sample_data.build import corpus, evaluation_clips, goals, model_shapes
from tts_kit import audio, device, pretrained
from tts_kit.errors import report_errors
from tts_kit.evaluation import metrics, scoring, wer
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import write_json
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.codec import Codec

MAX_WER_LOSS = 0.10  # a voice whose round trip costs more is not used to train a language model
CLIPS_PER_VOICE = 12
ORIGINAL = "original"


def load_codec(folder: Path, shape: str) -> Codec:
    """Load a trained codec with its weights rounded to float16, as they are bundled."""
    model, _ = pretrained.weights(MimiModel, str(folder), dtype=torch.float16)
    model_shapes.check_codec(model, shape)
    return Codec(model.float(), ModelSpec.of(model_shapes.config(shape)))


def evaluate(codec: Codec, models: MetricModels, work: Path, levels: Sequence[int]) -> dict:
    """Return WER, SIM and MOS of the evaluation clips, of the originals and decoded from the first codebooks."""
    clips = evaluation_clips.ground_truth(work / "originals")
    references = {speaker: scoring.measure_references({clip.text: clip.path for clip in group}, models)
                  for speaker, group in itertools.groupby(sorted(clips, key=lambda clip: clip.speaker),
                                                          key=lambda clip: clip.speaker)}
    rows = []
    for clip in tqdm(clips, desc="round trip", unit="clip"):
        original = audio.read(clip.path, codec.spec.sample_rate)
        others = [reference.embedding for text, reference in references[clip.speaker].items() if text != clip.text]
        for arm, samples in {ORIGINAL: original, **_decode(codec, original, levels)}.items():
            measured = models.measure(audio.resample(samples, codec.spec.sample_rate, metrics.SAMPLE_RATE),
                                      metrics.SAMPLE_RATE, clip.text)
            rows.append({"arm": arm, "sentence": clip.text, "seed": None, "file": arm, "ref_words": measured.ref_words,
                         "word_errors": measured.word_errors, "sim": scoring.similarity(measured.embedding, others),
                         "mos": measured.mos, scoring.METRICS: models.name})
    return {arm: {name: goals.estimate_values(estimate) for name, estimate in scoring.aggregate(arm_rows).items()}
            for arm, arm_rows in scoring.group_by_arm(rows).items()}


def evaluate_voices(codec: Codec, models: MetricModels, folders: Sequence[Path]) -> dict[str, dict]:
    """Return voice -> WER before and after the round trip, and whether a language model may hear it.

    A mixture counts for its first voice."""
    clips: dict[str, list] = {}
    for speaker, text, samples in itertools.chain.from_iterable(map(corpus.read, folders)):
        voice_clips = clips.setdefault(voice_name(speaker), [])
        if len(voice_clips) < CLIPS_PER_VOICE:
            voice_clips.append((text, samples))
    results = {}
    for voice, voice_clips in tqdm(sorted(clips.items()), desc="voices", unit="voice"):
        counts = np.zeros((2, 2))
        for text, samples in voice_clips:
            decoded = codec.decode(codec.encode([samples]))[0][:len(samples)]
            for index, version in enumerate((samples, decoded)):
                transcript = models.transcribe(metrics.normalized(version, corpus.RATE))
                counts[index] += [wer.edit_counts(text, transcript)[0], wer.length(text)[0]]
        original, decoded = (counts[:, 0] / counts[:, 1]).round(4).tolist()
        results[voice] = {"clips": len(voice_clips), "wer": original, "wer_decoded": decoded,
                          "used": decoded - original <= MAX_WER_LOSS}
    return results


def voice_name(speaker: str) -> str:
    """Return the voice of a corpus's speaker: af_bella for af_bella-bm_lewis-40, flite-slt for flite-slt-170-104."""
    return "-".join(speaker.split("-")[:2 if speaker.startswith("flite") else 1])


def _decode(codec: Codec, samples: np.ndarray, levels: Sequence[int]) -> dict[str, np.ndarray]:
    codes = codec.encode([samples])
    return {f"{level} codebooks" if level > 1 else "1 codebook": codec.decode(codes, level)[0][:len(samples)]
            for level in levels}


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    command_arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(command_arguments)
    codec, models = load_codec(options.codec, options.shape), metrics.load(options.threads)
    levels = [level for level in (1, 2, 4) if level < codec.spec.num_codebooks] + [codec.spec.num_codebooks]
    results = {"command": f"python -m sample_data.build.round_trip {shlex.join(command_arguments)}",
               "metrics": models.name, "date": datetime.date.today().isoformat(), "machine": device.machine(),
               "versions": device.versions(), "evaluation": evaluate(codec, models, options.work, levels),
               "voices": evaluate_voices(codec, models, options.corpus)}
    write_json(options.out, results)
    rows = [[arm, *(f"{values[name]['value']:.3f}" for name in ("wer", "sim", "mos"))]
            for arm, values in results["evaluation"].items()]
    print(scoring.print_table([["", "WER", "SIM", "MOS"], *rows]))
    unused = [voice for voice, values in results["voices"].items() if not values["used"]]
    print(f"{len(results['voices'])} voices; unintelligible after the codec: {', '.join(unused) or 'none'}.")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.round_trip", description=__doc__.split("\n")[0])
    top.add_argument("--codec", type=Path, required=True, help="folder of a trained codec")
    top.add_argument("--shape", default="tiny", choices=model_shapes.SHAPES, help="shape of its model (default tiny)")
    top.add_argument("--corpus", type=Path, nargs="*", default=[], help="folders of speech whose voices are measured")
    top.add_argument("--out", type=Path, required=True, help="results as JSON")
    top.add_argument("--work", type=Path, default=Path("runs/evaluate"), help="folder of the clips")
    top.add_argument("--threads", type=int, default=2, help="of the metric models (default 2)")
    return top


if __name__ == "__main__":
    sys.exit(main())
