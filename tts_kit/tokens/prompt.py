"""Text, speaker and codes -> the sequence CSM reads: `<bos>[speaker]text<eos>` frames, and one frame of zeros at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tts_kit.errors import KitError
from tts_kit.spec import ModelSpec

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Turn:
    """One utterance; without codes it is the prompt that asks for speech, unscored it is only heard."""
    text: str
    speaker: str
    codes: torch.Tensor | None = None
    scored: bool = True


@dataclass(frozen=True)
class Example:
    """A sequence of positions, each a text token or a frame of codes."""
    name: str
    ids: torch.Tensor
    """(positions,) text ids; the audio id where a frame stands."""
    codes: torch.Tensor
    """(positions, codebooks) codes; zeros at text and at the end frame."""
    is_frame: torch.Tensor
    """(positions,) true where codes count."""
    labels: torch.Tensor
    """(positions, codebooks) the codes to be predicted, UNSCORED elsewhere."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored_frames(self) -> int:
        return int((self.labels[:, 0] != IGNORE_INDEX).sum())


class PromptBuilder:
    """Writes examples for one tokenizer and one model."""

    def __init__(self, tokenizer, spec: ModelSpec):
        self.tokenizer = tokenizer
        self.spec = spec
        self.begin, self.end = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>"])

    def text_ids(self, text: str, speaker: str) -> list[int]:
        """Ids of one turn's text; special tokens spelled out inside it stay plain letters."""
        inner = self.tokenizer(f"[{speaker}]{text}", add_special_tokens=False, split_special_tokens=True).input_ids
        return [self.begin, *inner, self.end]

    def write(self, name: str, turns: Sequence[Turn]) -> Example:
        """One example out of turns in order; the last may ask for speech."""
        parts = [self._turn(turn) for turn in turns]
        example = Example(name, *(torch.cat(columns) for columns in zip(*parts)))
        if len(example) > self.spec.max_positions:
            raise KitError(f"{name}: {len(example)} positions (text and frames); the model holds {self.spec.max_positions}. "
                          "Use a shorter text, clip or reference.")
        return example

    def _turn(self, turn: Turn) -> tuple[torch.Tensor, ...]:
        width = self.spec.num_codebooks
        text = torch.tensor(self.text_ids(turn.text, turn.speaker))
        nothing = torch.zeros(len(text), width, dtype=torch.long)
        no_label = torch.full_like(nothing, IGNORE_INDEX)
        if turn.codes is None:
            return text, nothing, torch.zeros(len(text), dtype=torch.bool), no_label
        frames = torch.cat([turn.codes.long(), torch.zeros(1, width, dtype=torch.long)])
        ids = torch.full((len(frames),), self.spec.audio_token_id)
        ids[-1] = self.spec.audio_eos_token_id
        labels = frames if turn.scored else torch.full_like(frames, IGNORE_INDEX)
        is_frame = torch.arange(len(text) + len(frames)) >= len(text)
        return torch.cat([text, ids]), torch.cat([nothing, frames]), is_frame, torch.cat([no_label, labels])
