"""Measure how well models read: WER of sentences of training words, and of sentences with a word that is new to them.

    python -m sample_data.build.reading --model runs/letters runs/phonemes --corpus runs/pretrain/corpus --out reading.json

The voices are the held-out speakers of the corpus, by one reference clip each. Neither these sentences nor these voices
score the final model, so tokenizers and sampling temperatures may be chosen by them."""

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sample_data.build import corpus, csm_training, goals, open_text, sentences
from tts_kit import audio, device
from tts_kit.errors import report_errors
from tts_kit.evaluation import metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import write_json
from tts_kit.speech import speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, Voice, load_voice

SEED = 70_003  # of the sentences
KNOWN, NEW = "known words", "a new word"
REFERENCE_SECONDS = (2.0, 4.0)


def development_sentences(training_words: set[str], count: int, seed: int = SEED) -> dict[str, list[str]]:
    """Return `count` sentences of words that occur in the training, and as many with at least one that does not."""
    groups = {KNOWN: [], NEW: []}
    for text in open_text.generate(seed):
        group = groups[KNOWN if set(sentences.words(text)) <= training_words else NEW]
        if len(group) < count:
            group.append(text)
        if all(len(texts) == count for texts in groups.values()):
            return groups


def references(folder: Path, work: Path, count: int) -> list[Reference]:
    """Return a clip of each of `count` held-out speakers of a corpus, written to `work`."""
    held_out = csm_training.held_out_speakers({speaker for speaker, _, _ in corpus.read(folder)})
    found = {}
    for speaker, text, samples in corpus.read(folder):
        seconds = len(samples) / corpus.RATE
        if speaker in held_out and speaker not in found and REFERENCE_SECONDS[0] < seconds < REFERENCE_SECONDS[1]:
            audio.write(work / f"{speaker}.flac", samples, corpus.RATE)
            found[speaker] = Reference(work / f"{speaker}.flac", text)
    return list(itertools.islice(found.values(), count))


def measure(voice: Voice, texts: dict[str, Sequence[str]], clips: Sequence[Reference], seeds: Sequence[int],
            models: MetricModels) -> dict:
    """Return the WER of each group of sentences, cloned and without a reference, and how often the model ends by itself."""
    results = {}
    for group, group_texts in texts.items():
        for arm, arm_clips in (("clone", clips), ("base", [None])):
            requests = [Request(text, seed, arm_clips[index % len(arm_clips)])
                        for index, text in enumerate(group_texts) for seed in seeds]
            rows = []
            for index, speech in speak.speak_requests(requests, voice, f"{group}, {arm}"):
                measured = models.measure(audio.resample(speech.samples, speech.sample_rate, metrics.SAMPLE_RATE),
                                          metrics.SAMPLE_RATE, requests[index].text)
                rows.append({"arm": arm, "sentence": requests[index].text, "seed": requests[index].seed, "file": "",
                             "ref_words": measured.ref_words, "word_errors": measured.word_errors,
                             "ended_with_eos": speech.ended_with_eos, scoring.METRICS: models.name})
            estimates = scoring.aggregate(rows)
            results[f"{group}, {arm}"] = {name: goals.estimate_values(estimates[name]) for name in ("wer", "ended_with_eos")}
    return results


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    command_arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(command_arguments)
    models, results = metrics.load_for_selection(), {}
    training_words = {word for _, text, _ in corpus.read(options.corpus) for word in sentences.words(text)}
    texts = development_sentences(training_words, options.sentences)
    clips = references(options.corpus, options.work, options.speakers)
    for folder in options.model:
        voice = load_voice(device.choose("cpu"), base=str(folder))
        for temperature, depth_temperature in itertools.product(options.temperature, options.depth_temperature):
            name = folder.name
            if temperature >= 0:
                voice.apply({"temperature": temperature, "depth_temperature": depth_temperature})
                name += f", temperatures {temperature:g} and {depth_temperature:g}"
            results[name] = measure(voice, texts, clips, options.seeds, models)
            write_json(options.out, {
                "command": f"python -m sample_data.build.reading {shlex.join(command_arguments)}", "metrics": models.name,
                "sentences": options.sentences, "seeds": options.seeds, "date": datetime.date.today().isoformat(),
                "machine": device.machine(), "versions": device.versions(), "models": results})
    arms = list(next(iter(results.values())))
    print(scoring.print_table([["WER", *arms], *([name, *(f"{values[arm]['wer']['value']:.3f}" for arm in arms)]
                                                 for name, values in results.items())]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.reading", description=__doc__.split("\n")[0])
    top.add_argument("--model", type=Path, nargs="+", required=True, help="folders of trained models")
    top.add_argument("--corpus", type=Path, required=True, help="folder of the speech that they were trained on")
    top.add_argument("--out", type=Path, required=True, help="results as JSON")
    top.add_argument("--work", type=Path, default=Path("runs/reading"), help="folder of the reference clips")
    top.add_argument("--sentences", type=int, default=30, help="sentences of each group (default 30)")
    top.add_argument("--speakers", type=int, default=6, help="voices (default 6)")
    top.add_argument("--seeds", type=int, nargs="+", default=[1], help="takes of each sentence (default one)")
    top.add_argument("--temperature", type=float, nargs="+", default=[-1.0], help="of codebook 0; several are compared "
                     "(default: the model's)")
    top.add_argument("--depth-temperature", type=float, nargs="+", default=[0.1], help="of the others, with --temperature")
    return top


if __name__ == "__main__":
    sys.exit(main())
