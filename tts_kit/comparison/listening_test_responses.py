"""Files of votes from the blind test -> ballots that count, and for every other file the reason why it does not.

A file's digest shows a slip of whoever edits it; it is no lock, and whoever wants to cheat can.
"""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import io
from tts_kit.comparison import listening_test, listening_test_design
from tts_kit.errors import KitError

LARGEST = 1_000_000
"""Bytes; a file of votes has some ten thousand."""
FIELDS = {"test": str, "rater": str, "started": str, "finished": str, "listener": dict, "votes": list, "digest": str}
FAR = {"cmos": 2}
"""From here on an answer about two equal clips is wrong."""
FAILED = 0.5
"""Who misses this share of the catch trials is set aside."""


@dataclass(frozen=True)
class Response:
    """What one listener answered, trial -> vote, and the share of the catch trials that went wrong."""
    file: str
    rater: str
    listener: dict
    votes: dict[str, dict]
    failed: float


@dataclass(frozen=True)
class Responses:
    key: dict
    ballots: list[Response]
    refused: list[dict]
    """{"file", "why"} of what was not counted."""

    def counted(self) -> list[Response]:
        """Those who listened, as far as catch trials tell."""
        return [each for each in self.ballots if each.failed < FAILED]


def read(paths: Sequence[str | Path], folder: str | Path) -> Responses:
    """All ballots in files, or in folders full of them, of the test whose key lies in `folder`; none is dropped silently."""
    paths = [each for path in map(Path, paths) for each in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    key = _key(Path(folder), paths)
    poll, seen = Responses(key, [], []), {}
    for path in paths:
        try:
            ballot = _ballot(path, key)
            if ballot.rater in seen:
                raise KitError(f"the listener {ballot.rater} handed in {seen[ballot.rater]} already")
            seen[ballot.rater] = path.name
            poll.ballots.append(ballot)
        except KitError as problem:
            poll.refused.append({"file": path.name, "why": str(problem)})
    return poll


def _key(folder: Path, paths: Sequence[Path]) -> dict:
    """The key of the test that the first file is of: the newest, or one that was kept when another took its place."""
    newest = io.read_json(folder / listening_test.KEY, "It is written with the blind test, beside its page; without it nobody knows "
                                               "which clip is which. Put it back.")
    kept = [newest, *(io.read_json(path, "Move it away.") for path in sorted(folder.glob("blind-*.json")))]
    keys = {each.get("test"): each for each in reversed(kept)}
    for path in paths:
        try:
            test = _parsed(path).get("test")
        except KitError:
            continue  # it is refused by name when its turn comes
        if isinstance(test, str) and test in keys:
            return keys[test]
    return newest


def digest(content: dict) -> str:
    """What the page writes below its votes: CRC-32 of the rest as ASCII JSON with sorted names."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode()):08x}"


def _ballot(path: Path, key: dict) -> Response:
    """One file, once it is known to be whole, of this test, and as the page wrote it."""
    content = _parsed(path)
    for name, kind in FIELDS.items():
        if type(content.get(name)) is not kind:
            raise KitError(f"{name} is {_short(content.get(name))}; it is no file of votes, or a part is gone")
    if content["test"] != key["test"]:
        raise KitError(f"it belongs to the test {_short(content['test'])}, and this one is {key['test']!r}")
    if content["digest"] != digest(content):
        raise KitError("its digest does not fit: it was changed after it was saved")
    if not re.fullmatch("[0-9a-f]{16}", content["rater"]):
        raise KitError(f"the listener's id is {_short(content['rater'])}; wanted 16 hexadecimal digits")
    votes = {}
    for number, vote in enumerate(content["votes"], 1):
        if why := _wrong(vote, key, content["rater"], votes):
            raise KitError(f"vote {number}: {why}")
        votes[vote["trial"]] = vote
    if len(votes) < len(key["trials"]):
        raise KitError(f"it answers {len(votes)} of {len(key['trials'])} questions; wanted all of them")
    missed = list(_missed(votes, key))
    return Response(path.name, content["rater"], content["listener"], votes, float(np.mean(missed)) if missed else 0.0)


def _parsed(path: Path) -> dict:
    def refuse(constant: str):
        raise ValueError(f"{constant} is no number")

    try:
        if not path.is_file():
            raise KitError("there is no such file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise KitError(f"it is larger than {LARGEST / 1e6:g} MB; a file of votes is not")
        content = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"it cannot be read as JSON ({_short(str(error))})") from error
    if not isinstance(content, dict):
        raise KitError("it holds no JSON object")
    return content


def _wrong(vote: object, key: dict, rater: str, votes: dict) -> str:
    """Why a vote cannot be the page's; empty where it can."""
    trial = key["trials"].get(vote["trial"]) if isinstance(vote, dict) and isinstance(vote.get("trial"), str) else None
    if trial is None:
        return f"the test has no such trial ({_short(vote)})"
    if vote["trial"] in votes:
        return "this trial was answered before"
    if vote.get("kind") != trial["kind"] or vote.get("clips") != (clips := listening_test_design.assign(key["test"], rater, trial)):
        return "these are not the clips that this listener was given"
    if not isinstance(vote.get("answer"), str) or vote["answer"] not in listening_test_design.TEST_TYPES[trial["kind"]].answers:
        return f"the answer is {_short(vote.get('answer'))}; wanted {' or '.join(listening_test_design.TEST_TYPES[trial['kind']].answers)}"
    plays, seconds = vote.get("plays"), vote.get("seconds")
    if not isinstance(plays, list) or len(plays) != len(clips) or not all(type(each) is int and each > 0 for each in plays):
        return f"the clips were played {_short(plays)} times; wanted each once or more"
    return "" if type(seconds) in (int, float) and seconds >= 0 else f"it took {_short(seconds)} seconds"


def _short(value: object) -> str:
    """Something from a stranger's file, as little of it as a line can take, and no control characters."""
    text = "absent" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _missed(votes: dict[str, dict], key: dict) -> Iterator[bool]:
    """Of each catch trial, whether it went wrong. A repetition is none: who finds two arms alike may answer either way."""
    rated = {"voice": [], "stranger": []}
    for name, trial in key["trials"].items():
        catch, vote = trial.get("catch"), votes[name]
        if catch == "identical":
            yield abs(int(vote["answer"])) >= FAR["cmos"] if trial["kind"] == "cmos" else vote["answer"] != "="
        elif trial["kind"] == "smos" and catch:
            rated[catch].append(int(vote["answer"]))
        elif catch == "stranger":
            yield not is_correct(vote)
    for own, strange in zip(rated["voice"], rated["stranger"]):
        yield own <= strange


def is_correct(vote: dict) -> bool:
    """Whether X was told; its two seats come before it."""
    first, second, memorized = vote["clips"]
    return {"A": first, "B": second}[vote["answer"]] == memorized


def score_for(vote: dict, key: dict, one: str) -> float:
    """A vote as a figure that is high where the arm `one` does well: 1, 1/2, 0 of a choice, -3 to 3 of a comparison."""
    if vote["kind"] == "abx":
        return float(is_correct(vote))
    is_b = key["clips"][vote["clips"][-1]]["arm"] == one
    if vote["kind"] == "cmos":
        return float(vote["answer"]) * (1 if is_b else -1)
    return 0.5 if vote["answer"] == "=" else float((vote["answer"] == "B") == is_b)


def table(ballots: Sequence[Response], key: dict, kind: str, question: Sequence[str]) -> np.ndarray:
    """What all listeners said on one question, (listeners, sentences): as `favour`, of scores the difference of the two."""
    asked = {name: trial for name, trial in key["trials"].items() if trial["kind"] == kind and not trial.get("catch")}
    if kind == "smos":
        one, other = (scores(ballots, key, arm) for arm in question)
        return one - other
    names = sorted((trial["sentence"], name) for name, trial in asked.items() if trial["question"] == list(question))
    return np.array([[score_for(each.votes[name], key, question[0]) for _, name in names] for each in ballots])


def scores(ballots: Sequence[Response], key: dict, arm: str) -> np.ndarray:
    """What all listeners gave one arm, or an anchor, (listeners, sentences)."""
    names = sorted((trial["sentence"], name) for name, trial in key["trials"].items()
                   if trial["kind"] == "smos" and arm in (trial.get("arm"), trial.get("catch")))
    return np.array([[float(each.votes[name]["answer"]) for _, name in names] for each in ballots])
