"""Larger judges, whose weights come from the model hub: Whisper large-v3, ECAPA-TDNN, WavLM, UTMOS; DistillMOS and DNSMOS
stay, so that a figure of that name means the same in both sets.

All networks but Whisper are ONNX files: SpeechBrain's ECAPA, microsoft's WavLM and UTMOS itself exist as pickles only, and
want torchaudio, speechbrain or fairseq. On the machines where this was written no hub answers: every judge was tried with a
small network of its kind, none with its real weights.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_kit import device as runtime
from tts_kit.errors import KitError
from tts_kit.evaluation import bundled, dnsmos, metrics
from tts_kit.evaluation.metrics import MetricModels

PACKAGES = ("faster_whisper", "jiwer", "whisper_normalizer", "scipy", "distillmos", "xls_r_sqa", "speechmos", "onnxruntime",
            "kaldi_native_fbank", "huggingface_hub")
INSTALL = f"{metrics.INSTALL} && pip install -r requirements-judges-online.txt -c constraints.txt"
BIG = 20e9
"""Bytes of a GPU on which the largest Whisper has room beside the model that is judged."""
SECONDS_TO_ANSWER = 5
BANDS = 80
SHORTEST = 400
"""Samples that UTMOS and WavLM need to see anything at all."""


@dataclass(frozen=True)
class Weights:
    """Files of one judge on the hub."""
    name: str
    place: str
    revision: str
    files: tuple[str, ...]
    """The network first."""
    hash: str = ""
    """sha256 of the network, where it is known."""


SPOKEN = ("model.bin", "config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.json")
TURBO = Weights("Whisper large-v3-turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
                "0c94664816ec82be77b20e824c8e8675995b0029", SPOKEN)
LARGE = Weights("Whisper large-v3", "Systran/faster-whisper-large-v3", "edaa852ec7e145841d8ffdb056a99866b5f0a478", SPOKEN)
# of WeSpeaker's two sizes this is the one whose hash could be learnt
ECAPA = Weights("ECAPA-TDNN 512 of WeSpeaker", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn512",
                "89426e111abc9ffcc40279baf808e087693c6e9b", ("voxceleb_ECAPA512.onnx",),
                "f901ae3571912bad4e11e157744cb8b7d77a0b46923b83c410bdbb6c77d69736")
# transformers.js' export of microsoft/wavlm-base-plus-sv, whose own repository holds a pickle only
WAVLM = Weights("WavLM base plus SV", "Xenova/wavlm-base-plus-sv", "839012c1abfd543d1f5178201a444706e85d3b07",
                ("onnx/model.onnx", "preprocessor_config.json"))
# its commit could not be learnt without the hub: the one that was fetched stands in the judge's name
UTMOS = Weights("UTMOS22 strong", "TigreGotico/utmos-onnx", "main", ("utmos22_strong.onnx",))


def missing() -> list[str]:
    """The packages that are not installed."""
    return [package for package in PACKAGES if importlib.util.find_spec(package) is None]


def lacking(device: str) -> str:
    """Why the online set cannot be had here, empty where it can; asks the hub only for what was never fetched."""
    if lost := missing():
        return f"the online one needs packages that are not installed ({', '.join(lost)})"
    return "" if is_here(device) else _unanswered()


def is_here(device: str) -> bool:
    """Whether all weights have been fetched before."""
    return all(_found(weights, file) for weights in _wanted(device) for file in weights.files)


def names(device: str) -> dict[str, str]:
    """Measure -> judge and version; scores made by others are made anew."""
    version = importlib.metadata.version
    spoken = f"{_whisper(device).name} {_kind(device)[1]} (faster-whisper {version('faster-whisper')})"
    return {"wer": spoken, "sim": _named(ECAPA), "sim_2": _named(WAVLM),
            "mos": f"DistillMOS {version('distillmos')}", "mos_2": _named(UTMOS),
            "noise_mos": f"DNSMOS {version('speechmos')}"}


@functools.cache
def load(threads: int, device: str) -> MetricModels:
    """The judges, on the GPU what runs there, the rest on at most `threads` threads; fetches what is not here yet."""
    from faster_whisper import WhisperModel

    for weights in _wanted(device):
        _fetch(weights)
    where, kind = _kind(device)
    spoken = WhisperModel(str(_folder(_whisper(device))), device=where, compute_type=kind, cpu_threads=threads)
    return MetricModels(names(device), bundled.words(spoken), ecapa(_path(ECAPA), threads), bundled.mos(), threads,
                  dnsmos.load(threads), wavlm(_path(WAVLM), _folder(WAVLM) / WAVLM.files[1], threads),
                  utmos(_path(UTMOS), threads))


def ecapa(network: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A judge of the voice of (samples,) at 16 kHz, by WeSpeaker's network over its 80 spectra a frame."""
    session = _session(network, threads)

    def embed_speaker(wave: np.ndarray) -> np.ndarray:
        return session.run(None, {session.get_inputs()[0].name: spectra(wave)[None]})[0][0]

    return embed_speaker


def spectra(wave: np.ndarray) -> np.ndarray:
    """(samples,) -> (frames, 80) as WeSpeaker was taught on: 16-bit amplitudes, each band without its mean."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = metrics.SAMPLE_RATE, 0.0
    options.frame_opts.window_type, options.mel_opts.num_bins = "hamming", BANDS
    bank = kaldi_native_fbank.OnlineFbank(options)
    # digital silence, which no recording has, would be far from all that the network learnt; the same hiss each time
    hiss = np.random.default_rng(0).standard_normal(len(wave))
    bank.accept_waveform(metrics.SAMPLE_RATE, (wave * 2 ** 15 + hiss).tolist())
    bank.input_finished()
    found = np.stack([bank.get_frame(number) for number in range(bank.num_frames_ready)])
    return (found - found.mean(axis=0)).astype(np.float32)


def wavlm(network: Path, settings: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A second judge of the voice, by the network of transformers' WavLMForXVector."""
    session = _session(network, threads)
    is_normalised = json.loads(Path(settings).read_text(encoding="utf-8")).get("do_normalize", False)

    def embed_speaker(wave: np.ndarray) -> np.ndarray:
        if is_normalised:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        wave = _long_enough(wave)
        given = {"input_values": wave[None], "attention_mask": np.ones((1, len(wave)), np.int64)}
        return session.run(["embeddings"], {each.name: given[each.name] for each in session.get_inputs()})[0][0]

    return embed_speaker


def utmos(network: Path, threads: int) -> Callable[[np.ndarray], float]:
    """A second judge of naturalness; one clip a call, as the network knows no padding."""
    session = _session(network, threads)

    def rate(wave: np.ndarray) -> float:
        return float(np.ravel(session.run(None, {session.get_inputs()[0].name: _long_enough(wave)[None]})[0])[0])

    return rate


def _session(network: Path, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])


def _long_enough(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, (0, max(0, SHORTEST - len(wave)))).astype(np.float32)


def _kind(device: str) -> tuple[str, str]:
    """(device, numbers) for Whisper, which knows no other GPU than CUDA's."""
    return ("cuda", "float16") if runtime.choose(device).device == "cuda" else ("cpu", "int8")


def _whisper(device: str) -> Weights:
    """The largest that has room."""
    is_big = _kind(device)[0] == "cuda" and torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory >= BIG
    return LARGE if is_big else TURBO


def _wanted(device: str) -> tuple[Weights, ...]:
    return _whisper(device), ECAPA, WAVLM, UTMOS


def _named(weights: Weights) -> str:
    return f"{weights.name} {_folder(weights).name[:7]}"


def _found(weights: Weights, file: str) -> Path | None:
    """A file that has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.place, file, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None


def _folder(weights: Weights) -> Path:
    """Where the files lie; the folder is called as their commit."""
    path = _path(weights)
    return path.parents[weights.files[0].count("/")]


def _path(weights: Weights) -> Path:
    found = _found(weights, weights.files[0])
    if found is None:
        raise KitError(f"{weights.files[0]} of {weights.place} has not been fetched. Load the judges where the hub "
                      "answers.")
    return found


def _unanswered() -> str:
    """Why nothing can be fetched, empty where the hub answers."""
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(UTMOS.place, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # errors of the hub's client, and of whichever package it calls the net by
        return f"the weights of the online one are not here, and no hub gives them ({str(error) or type(error).__name__})"
    return ""


def _fetch(weights: Weights) -> None:
    """All files of a judge, where they are not here yet; other weights than the tested ones are refused."""
    from huggingface_hub import hf_hub_download

    for file in weights.files:
        if _found(weights, file) is None:
            try:
                hf_hub_download(weights.place, file, revision=weights.revision)
            except Exception as error:  # errors of the hub's client, of the net, of the disk
                raise KitError(f"{file} of {weights.place} could not be fetched ({error}). Try again later.") from error
    seen = weights.hash and hashlib.sha256(_path(weights).read_bytes()).hexdigest()
    if seen != weights.hash:
        raise KitError(f"{_path(weights)} is not the tested network (sha256 {seen[:12]}..., wanted {weights.hash[:12]}...). "
                      "Delete it, so that it is fetched again.")
