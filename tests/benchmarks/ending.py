"""Whether speech is cut off at its end: python -m tests.benchmarks.ending

Sentences spoken with tiny-csm, with and without a reference clip. In dB relative to the loudest 50 ms of a sentence: the
last 50 ms, and what the codec makes of the EOS frame, which is not decoded otherwise. Writes results/ending.json.
"""

import argparse
import csv
import itertools
import statistics
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks import measure
from tts_kit import audio
from tts_kit import device as devices
from tts_kit.io import write_json
from tts_kit.progress import tqdm
from tts_kit.run import SAMPLE_VOICE, TINY_CSM
from tts_kit.speech import speak
from tts_kit.speech.voice import Reference, load_voice
from tts_kit.training import generation_eval

SECONDS = 0.05


def level(samples: np.ndarray) -> float:
    """Return the mean power of (samples,) in dB."""
    return 10 * float(np.log10(np.square(samples, dtype=np.float64).mean() + 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args()
    voice = load_voice(devices.choose("cpu"), base=str(TINY_CSM))
    rate = voice.base.spec.sample_rate
    with (SAMPLE_VOICE / "metadata.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    reference = Reference(SAMPLE_VOICE / row["file_name"], row["text"])
    last, eos_frame, unfinished = [], [], 0
    sentences = generation_eval.SENTENCES.read_text(encoding="utf-8").splitlines()
    for text, prompt in tqdm([*itertools.product(sentences, (None, reference))]):
        generation, = speak.speak(text, voice, prompt).generations
        if not generation.ended_with_eos:
            unfinished += 1
            continue
        codes = torch.cat([generation.codes, torch.zeros_like(generation.codes[:1])])
        samples, longer = (voice.base.codec.decode([each])[0] for each in (generation.codes, codes))
        loudest = max(map(level, audio.frame(samples, round(SECONDS * rate))))
        last.append(level(samples[-round(SECONDS * rate):]) - loudest)
        eos_frame.append(level(longer[len(samples):]) - loudest)
    dbs = {"last 50 ms": last, "EOS frame": eos_frame}
    result = {"what": "level at the end of a sentence, dB relative to its loudest 50 ms", "sentences": len(last),
              "without EOS": unfinished,
              "levels": {name: {"median": round(statistics.median(values), 1), "highest": round(max(values), 1)}
                         for name, values in dbs.items()},
              "machine": devices.machine(), "versions": devices.versions(), "command": measure.command()}
    write_json(options.out / "ending.json", result)
    print(result["levels"])


if __name__ == "__main__":
    main()
