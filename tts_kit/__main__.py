"""python -m tts_kit VERB: a stage of the story, or what is done with its voice; --help behind a verb explains its knobs."""

import argparse
import dataclasses
import sys
from pathlib import Path

from tts_kit import options as told
from tts_kit import verbs as does
from tts_kit.config import Config
from tts_kit.errors import report_errors

DATA = ("speaker", "split_seed", "max_seconds", "max_characters", "held_out")
BASE = ("base", "revision")


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Run one verb."""
    top = parser()
    options = top.parse_args(arguments)
    if options.verb is None:
        top.print_help()
        return 2
    return options.verb(options) or 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tts_kit", description=__doc__)
    top.set_defaults(verb=None)
    verbs = top.add_subparsers(metavar="verb")
    everything = tuple(field.name for field in dataclasses.fields(Config))

    verb = told.verb(verbs, "doctor", does.doctor, "is this machine ready? what to do where it is not", run=False)
    told.planner(verb)

    _data_verbs(verbs)
    told.config(told.verb(verbs, "tokenize", does.tokenize, "utterances -> codes, made once"), BASE)

    verb = told.verb(verbs, "train", does.train, "codes -> adapter")
    verb.add_argument("--dry-run", action="store_true", help="count what would be trained, and load no weights")
    verb.add_argument("--json", action="store_true", help="print the dry run as one JSON object")
    told.config(verb, tuple(name for name in everything if name not in DATA))

    verb = told.verb(verbs, "speak", does.speak, "text -> speech")
    verb.add_argument("text", help="what to say, of any length")
    verb.add_argument("--adapter", help="adapter folder; default: the run's")
    verb.add_argument("--no-adapter", action="store_true", help="speak with the base alone")
    verb.add_argument("--strength", type=float, default=1.0, help="how much of the adapter is heard: 0 is the base, 1 as "
                      "trained (default), more is more")
    verb.add_argument("--reference", help="a clip to clone")
    verb.add_argument("--reference-text", help="what is said in that clip")
    verb.add_argument("--retries", type=told.count, default=0, help="tries again for a sentence that does not end by itself")
    verb.add_argument("--int8", action="store_true", help="8-bit weights: faster where memory is slow, a little less exact")
    verb.add_argument("--stream", action="store_true", help="write while speaking, and never try again")
    verb.add_argument("--out", default="speech.wav", help="file to write, .wav or .flac")
    verb.add_argument("--no-watermark", dest="watermark", action="store_false", help="leave out the mark of a machine")
    verb.add_argument("--seed", type=told.count, default=0, help="another seed is another take (default 0)")
    told.config(verb, BASE + does.SAMPLING)

    verb = told.verb(verbs, "compare", does.compare, "held-out sentences in every arm -> a page to listen to, and a verdict")
    told.comparison(verb, 10, [1, 2, 3])
    told.contest(verb)
    told.config(verb, BASE + does.SAMPLING)

    verb = told.verb(verbs, "demo", does.demo, "the whole story on the bundled voice", default="demo")
    verb.add_argument("--source", help="other clips than the bundled voice (see the verb data)")
    told.comparison(verb, 10, [1, 2])
    told.config(verb, everything)

    _verbs_of_release(verbs)
    return top


def _data_verbs(verbs) -> None:
    verb = told.verb(verbs, "data", does.prepare,
                     "a recording, or clips with transcripts -> checked, levelled, split utterances")
    verb.add_argument("source", help="a recording, a folder of them or an address, which are cut and written down; a "
                      "folder with metadata.csv, a .jsonl file, a hub dataset (owner/name), or an example: example:emma is "
                      "the bundled voice, example:allison a person's, which is fetched")
    verb.add_argument("--transcriber", default="", help="of recordings: a Whisper by name or folder, or `bundled` where "
                      "there is no hub (default large-v3-turbo on a GPU, else small)")
    verb.add_argument("--second-transcriber", default="", help="another one, to doubt the first where they differ "
                      "(default: a smaller one; none: nothing is heard twice)")
    verb.add_argument("--language", default="", help="of recordings, as two letters (default: told by their beginning)")
    verb.add_argument("--held-out-from", metavar="SOURCE", default="",
                      help="another source, whose clips are held out instead of a share of the first one's")
    verb.add_argument("--skip-bad", action="store_true", help="leave bad clips out, with a list, instead of stopping")
    told.config(verb, DATA)

    verb = told.verb(verbs, "review", does.review, "a page to put right what was written down of recordings",
                     computes=False)
    verb.add_argument("--port", type=int, default=0, help="of the page (default: any that is free)")

    told.verb(verbs, "report", does.report, "the run's data as a page: how much, how clean, what to listen to first",
              computes=False)

    verb = told.verb(verbs, "dataset", does.export_dataset, "the run's data as a folder that `datasets` loads, or on the hub",
                     computes=False)
    verb.add_argument("--out", type=Path, help="a new folder (default: dataset, in the run's folder)")
    verb.add_argument("--push", metavar="OWNER/NAME", help="put it on the hub too, as this dataset; what was exported "
                      "before is pushed as it is")
    verb.add_argument("--public", action="store_true", help="for everybody on the hub to see; else it is private")


def _verbs_of_release(verbs) -> None:
    verb = told.verb(verbs, "consent", does.consent,
                     "whose voice it is and who allowed a model of it; travels with the voice", computes=False)
    verb.add_argument("--who", default="", help="name of the speaker, or of the system that spoke")
    verb.add_argument("--kind", default="", metavar="KIND", help="own (my voice), written (permission), licensed (a corpus "
                      "whose licence allows it, or public domain), synthetic (a machine's)")
    verb.add_argument("--statement", default="", help="what was said or written, word for word")

    verb = told.verb(verbs, "export", does.export, "the run's voice as a folder for others, with its card; or on the hub",
                     computes=False)
    verb.add_argument("--merged", action="store_true", help="the whole model with the voice merged in, for plain "
                      "transformers (default: the adapter alone, which is small and needs its base)")
    verb.add_argument("--strength", type=float, default=1.0, help="how much of the adapter is merged in (default 1)")
    verb.add_argument("--dtype", default="auto", choices=("auto", *told.DTYPES[1:], "float16"),
                      help="of merged weights (auto: float32, which is exact; 16 bits are half as large)")
    verb.add_argument("--out", default="", help="folder (default: release/adapter or release/merged, in the run's folder)")
    verb.add_argument("--push", metavar="OWNER/NAME", default="", help="put it on the hub too, as this model")
    verb.add_argument("--public", action="store_true", help="for everybody on the hub to see, which wants a consent; else "
                      "it is private")
    verb.add_argument("--no-watermark", dest="watermark", action="store_false", help="leave the mark of a machine out of "
                      "the clips beside the card")
    told.config(verb, BASE)

    _serve_verb(verbs)

    verb = told.verb(verbs, "detect", does.detect_watermark, "whether files carry the mark of machine-made speech; exit status 0: all "
                     "do, 1: one does not, 2: one cannot be read", run=False)
    verb.add_argument("files", nargs="+", metavar="FILE", help="sound of any length: WAV, FLAC, MP3, OGG, Opus; "
                      "M4A and others where PyAV is")


def _serve_verb(verbs) -> None:
    verb = told.verb(verbs, "serve", does.serve, "voices for programs, as OpenAI's interface has it, and a page to try them")
    verb.add_argument("--voice", action="append", default=[], metavar="NAME=PLACE",
                      help="one more voice: an adapter's folder, a base or merged weights, or a hub id; may be given often "
                      "(default: the run's alone)")
    verb.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1, this machine only)")
    verb.add_argument("--port", type=told.count, default=8000, help="of the server (default 8000; 0: any that is free)")
    verb.add_argument("--key", action="append", default=[], help="what clients have to know; may be given often. Wanted "
                      "where others can reach the server. The variable TTS_KIT_KEY is one too, and more private")
    verb.add_argument("--int8", action="store_true", help="8-bit weights: faster where memory is slow, a little less exact")
    verb.add_argument("--queue-timeout", type=float, default=120.0, metavar="SECONDS",
                      help="how long a request may wait for its turn before it is refused (default 120)")
    verb.add_argument("--no-watermark", dest="watermark", action="store_false", help="leave out the mark of a machine")
    told.config(verb, BASE + does.SAMPLING)


if __name__ == "__main__":
    sys.exit(main())
