"""Orpheus-3B by Canopy Labs through transformers: a Llama that writes SNAC's codes, seven to a frame."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAME = "canopylabs/orpheus-3b-0.1-ft"
VOICE = "tara"
BEGIN, END, FIRST = [128259], [128009, 128260, 128261, 128257], 128266
"""Marks around the text, and the id of the first code."""
STOP, CODES = 128258, 4096
LEVELS = ((0,), (1, 4), (2, 3, 5, 6))
"""Which codes of a frame belong to which of SNAC's three levels."""


def load(reference: str, words: str) -> Callable:
    """The tuned Orpheus does not clone: one of its own voices speaks."""
    import torch
    from snac import SNAC
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = AutoTokenizer.from_pretrained(NAME)
    model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.bfloat16)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    codec = SNAC.from_pretrained("hubertsiuzdak/snac_24khz").eval()

    @torch.inference_mode()
    def say(text: str, seed: int):
        asked = torch.tensor([BEGIN + reader(f"{VOICE}: {text}").input_ids + END], device=model.device)
        written = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=2048, do_sample=True,
                                 temperature=0.6, top_p=0.8, repetition_penalty=1.3, eos_token_id=STOP, pad_token_id=STOP)
        return codec.decode([level[None] for level in levels(written[0, asked.shape[1]:].cpu())]).flatten(), 24_000

    return say


def levels(written: "torch.Tensor") -> list:
    """Ids as SNAC's three rows of codes: one, two and four to a frame; an unfinished frame is left out."""
    codes = written[written >= FIRST] - FIRST
    frames = codes[:len(codes) // 7 * 7].reshape(-1, 7)
    if not len(frames):
        raise ValueError("it wrote no whole frame of sound")
    return [(frames[:, list(places)] % CODES).flatten() for places in LEVELS]
