"""Read listeners' responses: those that count, and for every other file the reason why it does not.

The digest in a file reveals accidental edits; it is no protection against cheating.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import io
from tts_kit.comparison.listening_test import page
from tts_kit.comparison.listening_test.page import GROUND_TRUTH, TEST_TYPES
from tts_kit.errors import KitError

MAX_BYTES = 1_000_000
"""A file of responses has some ten thousand."""
MAX_MISSED = 0.5
"""Listeners who fail this share of the catch trials are excluded."""
MAX_CMOS_OF_IDENTICAL = 1
"""Between identical clips; a larger score fails the catch trial."""


@dataclass(frozen=True)
class Response:
    """The answers of one listener."""
    file: str
    rater: str
    listener: dict
    answers: dict[str, dict]
    """Trial -> answer."""
    missed: float
    """Share of the catch trials that were failed."""


@dataclass(frozen=True)
class Responses:
    key: dict
    all: list[Response]
    rejected: list[dict]
    """{"file", "reason"} of what was not counted."""

    @property
    def counted(self) -> list[Response]:
        """Responses of those who passed the catch trials."""
        return [response for response in self.all if response.missed < MAX_MISSED]


def read(paths: Iterable[Path], folder: Path) -> Responses:
    """Read response files, or folders of them, to the test whose key is in `folder`; nothing is dropped silently."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    contents, rejected, responses = {}, {}, {}
    for file in files:
        try:
            contents[file] = _load(file)
        except KitError as error:
            rejected[file] = error
    key = _find_key(folder, contents.values())
    for file, content in contents.items():
        try:
            response = parse(content, file.name, key)
            if response.rater in responses:
                raise KitError(f"the listener {response.rater} already responded in {responses[response.rater].file}")
            responses[response.rater] = response
        except KitError as error:
            rejected[file] = error
    return Responses(key, list(responses.values()),
                     [{"file": file.name, "reason": str(error)} for file, error in rejected.items()])


def _load(path: Path) -> dict:
    if not path.is_file():
        raise KitError("there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise KitError(f"it is larger than {MAX_BYTES / 1e6:g} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"it cannot be read as JSON ({_short(str(error))})") from error
    if not isinstance(content, dict):
        raise KitError("it is no JSON object")
    return content


def _find_key(folder: Path, contents: Iterable[dict]) -> dict:
    """Return the key of the test that a file belongs to: the newest, or one that was kept when another replaced it."""
    newest = io.read_json(folder / page.KEY, "It is written beside the page of the listening test; without it nobody knows "
                                             "which clip is which. Put it back.")
    keys = [newest, *(io.read_json(path, "Move it away.") for path in sorted(folder.glob(page.OLD_KEYS)))]
    tests = [content.get("test") for content in contents]
    return next((key for test in tests for key in keys if key["test"] == test), newest)


def digest(content: dict) -> str:
    """Return what the page writes below the answers: CRC-32 of the rest as ASCII JSON with sorted names."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode()):08x}"


def parse(content: dict, file: str, key: dict) -> Response:
    """Return the response in a file, once it is complete and belongs to this test."""
    if content.get("test") != key["test"]:
        raise KitError(f"it belongs to the test {_short(content.get('test'))}, and this one is {key['test']!r}")
    if content.get("digest") != digest(content):
        raise KitError("its digest does not match: it was changed after it was saved")
    rater, listener, answers = content.get("rater"), content.get("listener"), {}
    if not re.fullmatch("[0-9a-f]{16}", str(rater)) or not isinstance(listener, dict):
        raise KitError(f"the listener is {_short(rater)}; wanted an id of 16 hexadecimal digits and a description")
    try:
        for answer in content["answers"]:
            trial = key["trials"][answer["trial"]]
            if answer["clips"] not in (trial["clips"], trial["clips"][::-1]):
                raise KitError("an answer names other clips than those of its trial")
            if answer["answer"] not in TEST_TYPES[trial["type"]].answers or answer["trial"] in answers:
                raise KitError(f"{_short(answer['answer'])} is no answer to its question, or not the only one")
            answers[answer["trial"]] = answer
    except (KeyError, TypeError) as error:
        raise KitError(f"its answers are not as the page writes them ({_short(error)})") from error
    if len(answers) < len(key["trials"]):
        raise KitError(f"it answers {len(answers)} of {len(key['trials'])} questions; wanted all of them")
    missed = list(_missed_catches(answers, key))
    return Response(file, rater, listener, answers, float(np.mean(missed)) if missed else 0.0)


def _short(value: object) -> str:
    """Return a value from a foreign file as one short line without control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _missed_catches(answers: dict[str, dict], key: dict) -> Iterator[bool]:
    """Yield for each catch trial whether it was failed; the two anchors of SMOS count together."""
    anchors = {}
    for name, trial in key["trials"].items():
        if trial.get("catch") == "identical":
            answer = answers[name]["answer"]
            yield abs(int(answer)) > MAX_CMOS_OF_IDENTICAL if trial["type"] == "cmos" else answer != "="
        elif trial.get("catch") == "anchor":
            anchors.setdefault(trial["sentence"], {})[trial["arm"] == GROUND_TRUTH] = int(answers[name]["answer"])
    for scores in anchors.values():
        yield scores[True] <= scores[False]


def pair_scores(responses: Sequence[Response], key: dict, test_type: str, pair: Sequence[str]) -> np.ndarray:
    """Return (listeners, sentences), high where the first arm of the pair does well.

    Of AB 1, 1/2 or 0; of CMOS -3 to 3; of SMOS the difference of the two scores.
    """
    if test_type == "smos":
        return smos(responses, key, pair[0]) - smos(responses, key, pair[1])
    names = sorted((trial["sentence"], name) for name, trial in key["trials"].items()
                   if trial["type"] == test_type and trial.get("pair") == list(pair))

    def score(answer: dict) -> float:
        is_b = key["clips"][answer["clips"][1]]["arm"] == pair[0]
        if test_type == "cmos":
            return float(answer["answer"]) * (1 if is_b else -1)
        return 0.5 if answer["answer"] == "=" else float((answer["answer"] == "B") == is_b)

    return np.array([[score(response.answers[name]) for _, name in names] for response in responses])


def smos(responses: Sequence[Response], key: dict, arm: str) -> np.ndarray:
    """Return the SMOS of an arm or an anchor, (listeners, sentences)."""
    names = sorted((trial["sentence"], name) for name, trial in key["trials"].items()
                   if trial["type"] == "smos" and trial["arm"] == arm)
    return np.array([[float(response.answers[name]["answer"]) for _, name in names] for response in responses])
