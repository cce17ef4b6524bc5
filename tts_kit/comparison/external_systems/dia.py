"""Dia-1.6B by Nari Labs through transformers."""

from collections.abc import Callable

NAME = "nari-labs/Dia-1.6B-0626"
LONGEST = 3072
"""Frames, at 86 a second, the reference's included."""


def load(reference: str, words: str) -> Callable:
    """Clones by going on where the reference ends."""
    import soundfile
    import torch
    from transformers import AutoProcessor, DiaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(NAME)
    model = DiaForConditionalGeneration.from_pretrained(NAME, dtype=torch.bfloat16)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    heard, _ = soundfile.read(reference, dtype="float32")

    def say(text: str, seed: int):
        asked = processor(text=[f"[S1] {words} {text}"], audio=[heard], sampling_rate=44_100, return_tensors="pt")
        asked = asked.to(model.device)
        skipped = processor.get_audio_prompt_len(asked["decoder_attention_mask"])
        made = model.generate(**asked, max_new_tokens=LONGEST, do_sample=True, guidance_scale=3.0, temperature=1.8,
                              top_p=0.90, top_k=45)
        return processor.batch_decode(made, audio_prompt_len=skipped)[0].float().flatten(), 44_100

    return say
