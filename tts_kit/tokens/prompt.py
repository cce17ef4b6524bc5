"""Text, speaker and codes -> the sequence CSM reads: `<bos>[speaker]text<eos>`, frames of codes, an EOS frame of zeros."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.spoken_text import to_spoken

IGNORE_INDEX = -100
PROMPT_OPTIONS = ("prefix_space", "spoken_text", "lexicon")  # fields of Config that say how a text becomes a prompt
LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")


@dataclass(frozen=True)
class Turn:
    """One utterance of a prompt; without codes it asks for speech, with `in_loss` false it is only context."""
    text: str
    speaker: str
    codes: torch.Tensor | None = None
    in_loss: bool = True


@dataclass(frozen=True)
class Example:
    """A sequence of positions, each a text token or a frame of codes."""
    name: str
    input_ids: torch.Tensor  # (positions,) text ids; the audio token at frames
    codes: torch.Tensor  # (positions, codebooks) codes; zeros at text and at the EOS frame
    audio_mask: torch.Tensor  # (positions,) true at frames
    labels: torch.Tensor  # (positions, codebooks) the codes to predict, IGNORE_INDEX elsewhere
    unconditional: tuple["Example", ...] = ()  # of a guided prompt: the same without its text, without its context

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def target_frames(self) -> int:
        return int((self.labels[:, 0] != IGNORE_INDEX).sum())


class PromptBuilder:
    """Builds examples for one tokenizer and one model; `prefix_space` puts a space between speaker and text, `spoken_text`
    writes out numbers and the like, `lexicon` has rows (word, spoken as)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, prefix_space: bool = False,
                 spoken_text: bool = True, lexicon: Sequence[Sequence[str]] = ()):
        self.tokenizer = tokenizer
        self.spec = spec
        self.options = {"prefix_space": prefix_space, "spoken_text": spoken_text, "lexicon": tuple(map(tuple, lexicon))}
        begin, separator, end = turn_format(tokenizer)
        self.separator = separator or " " * prefix_space
        self.begin, self.end = (tokenizer(text, add_special_tokens=False).input_ids for text in (begin, end))

    def spoken(self, text: str) -> str:
        """Return the words that the model reads for a text."""
        return to_spoken(text, self.options["lexicon"], self.options["spoken_text"])

    def text_ids(self, text: str, speaker: str) -> list[int]:
        """Return the ids of one turn's text; special tokens spelled out in it stay plain text."""
        ids = self.tokenizer(f"[{speaker}]{self.separator}{self.spoken(text)}", add_special_tokens=False,
                             split_special_tokens=True).input_ids
        return [*self.begin, *ids, *self.end]

    def build(self, name: str, turns: Sequence[Turn]) -> Example:
        """Build one example of the turns in order; the last may ask for speech."""
        columns = zip(*[self._columns(turn) for turn in turns])
        example = Example(name, *[torch.cat(column) for column in columns])
        if len(example) > self.spec.max_positions:
            raise KitError(f"{name}: {len(example)} positions (text and frames); the model holds {self.spec.max_positions}. "
                           "Use a shorter text, clip or reference.")
        return example

    def _columns(self, turn: Turn) -> tuple[torch.Tensor, ...]:
        """Return input_ids, codes, audio_mask and labels of one turn."""
        text = torch.tensor(self.text_ids(turn.text, turn.speaker))
        frames = torch.zeros(0, self.spec.num_codebooks, dtype=torch.long)
        if turn.codes is not None:
            frames = torch.cat([turn.codes.long(), frames.new_zeros(1, self.spec.num_codebooks)])
        audio_ids = torch.full((len(frames),), self.spec.audio_token_id)
        audio_ids[-1:] = self.spec.audio_eos_token_id
        no_codes = frames.new_zeros(len(text), self.spec.num_codebooks)
        labels = frames if turn.in_loss else torch.full_like(frames, IGNORE_INDEX)
        return (torch.cat([text, audio_ids]), torch.cat([no_codes, frames]),
                torch.arange(len(text) + len(frames)) >= len(text),
                torch.cat([torch.full_like(no_codes, IGNORE_INDEX), labels]))


def prompt_options(config: Config) -> dict:
    """Return the arguments of PromptBuilder that a config sets."""
    return {name: getattr(config, name) for name in PROMPT_OPTIONS}


def turn_format(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Return what stands before `[speaker]`, between it and the text, and after the text.

    The checkpoint's chat template says so; a tokenizer without CSM's has Llama's tokens, or its own bos and eos."""
    text, end = "Hello.", ""
    if tokenizer.chat_template:
        turn = [{"role": "0", "content": [{"type": "text", "text": text}]}]
        with contextlib.suppress(TemplateError, TypeError):  # a template for chats with plain texts as content
            begin, _, rest = tokenizer.apply_chat_template(turn, tokenize=False).partition("[0]")
            separator, _, end = rest.partition(text)
    if end:
        return begin, separator, end
    # the eos of some Llama tokenizers is that of a chat
    names = LLAMA_TOKENS if {*LLAMA_TOKENS} <= {*tokenizer.get_vocab()} else (tokenizer.bos_token, tokenizer.eos_token)
    if None in names:
        raise KitError("the tokenizer has neither a chat template for [speaker]text nor begin and end tokens (bos_token, "
                       "eos_token). Wanted: the tokenizer files that the checkpoint was published with.")
    return names[0], "", names[1]
