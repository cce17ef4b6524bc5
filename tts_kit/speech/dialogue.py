"""Dialogue: lines of several speakers, each spoken after what was said so far, as CSM was trained on conversations."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tts_kit import io
from tts_kit.errors import KitError
from tts_kit.generation.engine import Generation
from tts_kit.progress import tqdm
from tts_kit.speech import speak
from tts_kit.speech.speak import Request, Speech
from tts_kit.speech.voice import Voice
from tts_kit.text import normalize
from tts_kit.tokens.prompt import Turn

PAUSE_SECONDS = 0.4  # between two turns
LINE = re.compile(r"\[\s*([^\[\]]*?)\s*\]\s*(.*)")


@dataclass(frozen=True)
class Line:
    """What one speaker says; `label` names it in errors."""
    speaker: str
    text: str
    label: str = ""


@dataclass
class Dialogue(Speech):
    """The audio of a dialogue, and of each of its lines."""
    lines: list[Line]
    turns: list[Speech]

    def save_turns(self, folder: str | Path, watermarked: bool = True) -> list[Path]:
        """Write each turn to a file of its own, such as 01-anna.wav."""
        return [speech.save(Path(folder) / f"{number:02d}-{re.sub(r'[^A-Za-z0-9_-]', '_', line.speaker)}.wav", watermarked)
                for number, (line, speech) in enumerate(zip(self.lines, self.turns), 1)]


class Conversation:
    """What was said so far, as context for the next turn of any speaker."""

    def __init__(self, voices: Mapping[str, Voice]):
        self.history: list[tuple[str, str, torch.Tensor]] = []  # speaker, text, codes
        # who was trained as a speaker of CSM stays that one, others are numbered
        self.voices = {name: voice if voice.is_trained else replace(voice, speaker=str(number))
                       for number, (name, voice) in enumerate(voices.items())}
        bases = {id(voice.base.model): voice.base.name for voice in voices.values()}
        if len(bases) > 1:
            raise KitError(f"the voices of a dialogue share one base model; these have {len(bases)}: "
                           f"{', '.join(bases.values())}. Use adapters of one base, clips to clone, or the base itself.")

    def context(self, speaker: str, requests: Sequence[Request]) -> tuple[Voice, list[Turn]]:
        """Return a speaker's voice, and the turns before its next one: all references, then as many of the newest turns as
        leave the sentences to come room."""
        voice = self.voices[speaker]
        ids = self._speaker_ids(speaker)
        turns = [replace(turn, speaker=ids[name]) for name in self.voices for turn in self.voices[name].context]
        left = voice.base.spec.max_positions - speak.max_positions(voice, requests)
        left -= sum(speak.positions(voice, turn) for turn in turns)
        newest: list[Turn] = []
        for name, text, codes in reversed(self.history):
            turn = Turn(text, ids[name], codes, in_loss=False)
            left -= speak.positions(voice, turn)
            if left < 0:
                break
            newest.insert(0, turn)
        return voice, turns + newest

    def add(self, speaker: str, requests: Sequence[Request], generations: Sequence[Generation]) -> None:
        """Remember what a speaker has said; a failed sentence would spoil what follows."""
        self.history += [(speaker, request.text, generation.codes) for request, generation in zip(requests, generations)
                         if generation.is_complete]

    def _speaker_ids(self, speaker: str) -> dict[str, str]:
        """Return CSM's speaker of every name: the own one of who speaks, different ones of the others."""
        ids = {speaker: self.voices[speaker].speaker}
        for name, voice in self.voices.items():
            if name != speaker:
                numbers = [voice.speaker, *map(str, range(len(self.voices)))]
                ids[name] = next(number for number in numbers if number not in ids.values())
        return ids


def dialogue(lines: Sequence[Line | tuple[str, str]], voices: Mapping[str, Voice], seed: int = 0, retries: int = 0,
             pause_seconds: float = PAUSE_SECONDS) -> Dialogue:
    """Speak lines of (speaker, text), each after the conversation so far; `voices` by speaker, from `load_voices`."""
    lines = [line if isinstance(line, Line) else Line(*line, f"line {number}") for number, line in enumerate(lines, 1)]
    if not lines:
        raise KitError("the dialogue has no line; wanted at least one.")
    if not 0 <= pause_seconds <= 10:
        raise KitError(f"the pause between turns is {pause_seconds:g} s; wanted 0 to 10.")
    check_speakers(lines, voices)
    conversation = Conversation({line.speaker: voices[line.speaker] for line in lines})
    turns = split_turns(lines, seed)
    for line, requests in zip(lines, turns):
        voice, context = conversation.context(line.speaker, requests)
        with _explain(line):  # now, and not after minutes
            for request in requests:
                speak.build_prompt(voice, request, context)
    speeches = []
    for line, requests in zip(tqdm(lines, desc="speaking", unit="turn", disable=len(lines) < 2), turns):
        voice, context = conversation.context(line.speaker, requests)
        generations = speak.generate_turn(voice, requests, context, retries)
        conversation.add(line.speaker, requests, generations)
        speeches.append(speak.to_speech(voice, generations))
    rate = speeches[0].sample_rate
    pause = np.zeros(round(pause_seconds * rate), np.float32)
    samples = np.concatenate([piece for speech in speeches for piece in (speech.samples, pause)][:-1])
    return Dialogue(samples, rate, [generation for speech in speeches for generation in speech.generations], lines, speeches)


def split_turns(lines: Sequence[Line], seed: int = 0) -> list[list[Request]]:
    """Split each line into sentences, with seeds that go on from line to line."""
    turns: list[list[Request]] = []
    for line in lines:
        with _explain(line):
            turns.append(speak.split_requests(line.text, seed=seed))
        seed += len(turns[-1])
    return turns


def check_speakers(lines: Sequence[Line], names: Collection[str]) -> None:
    """Refuse a line of somebody who has no voice."""
    for line in lines:
        with _explain(line):
            if line.speaker not in names:
                raise KitError(f"the speaker {line.speaker[:60]!r} has no voice; there are {', '.join(names) or 'none'}. "
                               "Give one (--voice NAME=PATH), or correct the name.")


def read_script(path: str | Path) -> list[Line]:
    """Read a script, UTF-8 text with a line `[speaker] text` for every turn; empty lines are skipped."""
    lines = []
    for number, row in enumerate(io.read_text(path, f"the script {path}").splitlines(), 1):
        match, label = LINE.fullmatch(row.strip()), f"{path} line {number}"
        if not row.strip():
            continue
        if not match or not match[1]:
            raise KitError(f"{label}: {row.strip()[:60]!r} names no speaker; wanted [NAME] text, as in: [anna] Hello.")
        lines.append(Line(match[1], match[2], label))
        with _explain(lines[-1]):
            normalize(match[2])
    if not lines:
        raise KitError(f"{path} holds no line; wanted [NAME] text, as in: [anna] Hello.")
    return lines


@contextlib.contextmanager
def _explain(line: Line) -> Iterator[None]:
    """Put the line into the errors of a block."""
    try:
        yield
    except KitError as error:
        raise KitError(f"{line.label}: {error}" if line.label else str(error)) from error
