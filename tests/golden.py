"""Golden outputs: record what the kit computes, and check that it still computes the same.

    python tests/golden.py record                     # write tests/golden.json
    python tests/golden.py check                      # recompute everything; exit code 1 if anything differs
    python tests/golden.py check --only data speech   # some sections
    python tests/golden.py check --exact              # a difference in the last bits fails too
    python tests/golden.py check --demo               # also run the demo (5 minutes) and compare its figures

Everything runs on the CPU in float32 with one thread and fixed seeds. Codes, ids, counts, splits and texts must be equal.
Other numbers may differ by the relative tolerance RELATIVE. A differing digest of floats (a name ending in _float_sha256) is
only a note, because the numbers next to it are compared.

golden.json was recorded on one machine: another processor or other package versions may round differently, which can change
a greedy code. The file names its machine, and `check` reports when it runs on another one.

Only the first part, the adapter layer, uses tts_kit: it translates between the package's names and those of golden.json. A
rename in the package changes that part and never golden.json.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import CsmForConditionalGeneration
from transformers.utils import logging

from sample_data.build import model_shapes
from tts_kit import audio, config, device, errors, io, run, text, watermark
from tts_kit.comparison import verdict
from tts_kit.data import manifest, prepare, quality_flags, report, segment, transcribe
from tts_kit.evaluation import backends, scoring, stats, wer
from tts_kit.generation import sampling
from tts_kit.model import load, lora, loss
from tts_kit.speech import speak
from tts_kit.speech.voice import Reference, load_voice
from tts_kit.tokens import cache, codec, prompt, streaming
from tts_kit.training import callbacks, dataset, finetune

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_suffix(".json")
RELATIVE, ABSOLUTE = 1e-5, 1e-9
MAX_PRINTED = 20
"""Differences of a section that are printed at most."""
SAMPLES = ROOT / "sample_data"
TINY = str(SAMPLES / "tiny-csm")
SCRATCH = Path(tempfile.mkdtemp(prefix="golden-"))

# ---------------------------------------------------------------------------------------------------- the adapter layer

TOY = dict(rank=4, alpha=8, steps=4, warmup_steps=0, tokens_per_batch=150, depth_frame_fraction=1.0, learning_rate=1e-2,
           eval_steps=2, save_steps=100, sample_steps=0)
TOY_TRAININGS = {
    "packed": {}, "padded": dict(packing=False),
    "accumulated": dict(gradient_accumulation_steps=2, context_probability=0.5, depth_frame_fraction=0.5,
                        depth_loss_weight=0.5, gradient_checkpointing=True),
    "depth_only": dict(lora_targets="depth", steps=2)}
FEW_STEPS = dict(base=TINY, rank=8, alpha=16, steps=3, warmup_steps=0, learning_rate=5e-3, tokens_per_batch=700,
                 depth_frame_fraction=0.5, eval_steps=3, save_steps=3, sample_steps=0)
"""Settings of the package's Config."""
LOGGED = {"step": "step", "loss": "loss", "backbone_loss": "backbone_loss", "depth_loss": "depth_loss",
          "grad_norm": "gradient_norm", "learning_rate": "learning_rate", "epoch": "epoch", "eval_loss": "held_out_loss",
          "eval_backbone_loss": "held_out_backbone_loss", "eval_depth_loss": "held_out_depth_loss",
          "eval_loss_by_codebook": "held_out_loss_by_codebook"}
ARMS = {"base": "base", "cloned": "clone", "finetuned": "finetuned", "finetuned_cloned": "finetuned+clone", "rival": "rival"}
QUESTIONS = [*verdict.PRIMARY_COMPARISONS, ("rival", ARMS["cloned"]), ("rival", ARMS["base"])]
ROW = {"arm": "arm", "sentence": "sentence", "text": "text", "seed": "seed", "file": "file",
       "ended_with_eos": "ended_with_eos",
       "reference_words": "ref_words", "word_errors": "word_errors", "reference_characters": "ref_chars",
       "character_errors": "char_errors", "SIM": "sim", "SIM_normalised": "sim_norm", "MOS": "mos",
       "DNSMOS_BAK": "noise_mos", "noisy": "noisy", "transcript": "transcript", "failure": "failure",
       "seconds_spoken": "speech_seconds", "duration_ratio": "duration_ratio", "pitch_hz": "f0",
       "pitch_semitones": "f0_difference", "speaking_rate": "speech_rate",
       "speaking_rate_ratio": "rate_ratio", "memorized": "memorized", "metric_models": scoring.METRICS}
"""Name in golden.json -> the package's name in a scored row, and below in its figures."""
FIGURES = {"WER": "wer", "CER": "cer", "SIM": "sim", "SIM_normalised": "sim_norm", "MOS": "mos", "noisy": "noisy",
           "duration_ratio": "duration_ratio", "pitch_semitones": "f0_difference", "speaking_rate_ratio": "rate_ratio",
           "memorized": "memorized", "ended_with_eos": "ended_with_eos"}
OUTCOMES = {verdict.HIGHER_SIM: "higher_SIM", verdict.LOWER_SIM: "lower_SIM", verdict.HIGHER_WER: "higher_WER",
            verdict.LOWER_WER: "lower_WER"}
DEMO = ("WER", "CER", "SIM", "SIM_normalised", "MOS", "noisy", "duration_ratio", "pitch_semitones", "speaking_rate_ratio",
        "ended_with_eos", "memorized")
"""Columns of the demo's table, in order."""


def kit_cpu():
    return device.choose("cpu")


@functools.cache
def kit_toy() -> str:
    """Return the folder of an untrained CSM with two layers."""
    return str(model_shapes.build("toy", SCRATCH / "toy"))


def kit_toy_clip(name: str, frames: int, transcript: str = "Hello there.", split: str = "train"):
    generator = torch.Generator().manual_seed(sum(name.encode()) * 1000 + frames)
    codes = torch.randint(0, 32, (frames, 4), generator=generator, dtype=torch.int16)
    return cache.EncodedClip(name, transcript, "0", "", name, split, codes)


def kit_train_toy(name: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Train the toy model; return the log and the adapter's tensors."""
    texts = ("Hello.", "A longer sentence, said slowly.", "Why?", "Four words are here.")
    clips = [kit_toy_clip(f"clip{index}", 5 + index, texts[index % 4], "held_out" if index < 2 else "train")
             for index in range(12)]
    toy_run = run.Run(name, SCRATCH)
    run.write_inputs(toy_run.codes, codec=codec.load(kit_toy()).fingerprint())
    settings = config.Config(base=kit_toy(), **{**TOY, **TOY_TRAININGS[name]})
    _, training = finetune.prepare(settings, toy_run, clips, kit_cpu())
    training.args.eval_on_start = True
    training.train()
    return kit_logged(training.state.log_history), get_peft_model_state_dict(training.model, save_embedding_layers=False)


def kit_logged(rows) -> list[dict]:
    return [{field: row[name] for name, field in LOGGED.items() if name in row} for row in rows]


@functools.cache
def kit_prepared():
    """Return a run with the data and codes of sample_data/voice, its config, and how many clips were encoded or cached."""
    voice_run, settings = run.Run("voice", SCRATCH), config.Config(**FEW_STEPS)
    prepare.prepare(SAMPLES / "voice", voice_run, settings)
    counts = cache.tokenize(settings, voice_run, kit_cpu()), cache.tokenize(settings, voice_run, kit_cpu())
    return voice_run, settings, [(count["encoded"], count["cached"]) for count in counts]


@functools.cache
def kit_adapter() -> Path:
    """Return the folder of an adapter trained on that run in a few steps."""
    voice_run, settings, _ = kit_prepared()
    return finetune.finetune(settings, voice_run, kit_cpu())


def kit_adapter_log() -> list[dict]:
    kit_adapter()
    return kit_logged(io.read_rows(kit_prepared()[0].training / callbacks.LOG_FILE))


def kit_adapter_tensors() -> dict[str, torch.Tensor]:
    return load_file(kit_adapter() / "adapter_model.safetensors")


def kit_manifest(run) -> list[dict]:
    return [{"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker, "recording": utterance.session,
             "split": {"excluded": "gap"}.get(utterance.split, utterance.split),
             "duration_seconds": utterance.seconds, "row": utterance.row, "file": utterance.file}
            for utterance in manifest.read(run.data)]


def kit_stored_clips(run) -> list[np.ndarray]:
    return [soundfile.read(utterance.audio, dtype="int16")[0] for utterance in manifest.read(run.data)]


def kit_codes_of(run) -> dict[str, torch.Tensor]:
    return {clip.id: clip.codes for clip in cache.load_run(run)}


def kit_prepare_table(source: Path, held_out_from: Path) -> tuple[list[dict], list[int]]:
    """Return the manifest of a table with bad rows, and the numbers of the rejected rows."""
    table_run = run.Run("bad", SCRATCH)
    prepare.prepare(source, table_run, config.Config(base=TINY), skip_bad=True, eval_source=held_out_from)
    return kit_manifest(table_run), [row["row"] for row in io.read_rows(table_run.data / prepare.REJECTED)]


def kit_split(recordings: list[str], share: float, seed: int) -> list[str]:
    """Return the split of each clip, given the recording it was cut from."""
    utterances = [manifest.Utterance(f"{index:03d}", Path("x"), "A.", "A.", "0", "", recording, "", 1.0, index,
                                     f"{recording}_{index:03d}.wav", "") for index, recording in enumerate(recordings)]
    utterances = manifest.assign_splits(utterances, share, seed)
    return [{"excluded": "gap"}.get(utterance.split, utterance.split) for utterance in utterances]


def kit_segments() -> list[dict]:
    """Return the segments of the sample recording, cut without a transcript."""
    segments = segment.segment_recording(SAMPLES / "recording.flac", SCRATCH / "segments")
    folder = segment.segment_folder(SAMPLES / "recording.flac", SCRATCH / "segments")
    return [{"start": row.start, "end": row.end, "SNR_dB": row.snr_db, "edge_dB": row.edge_db, "clipped": row.clipped,
             "LUFS": row.lufs, "rejected": bool(row.reason), "may_cut_a_word": row.may_cut_a_word,
             "samples_sha256": sha256(soundfile.read(folder / row.file, dtype="int16")[0])} for row in segments]


def kit_quality(count: int) -> dict:
    clips = manifest.read(kit_prepared()[0].data)
    return {"clips": [{"id": row.clip.id, "characters_per_second": row.chars_per_second, "LUFS": row.lufs,
                       "SNR_dB": row.snr_db, "pitch_hz": row.f0, "bandwidth_hz": row.bandwidth_hz,
                       "speaker_outlier": row.speaker_distance}
                      for row in report.measure(clips[:count])],
            "near_duplicates": [clip.id for clip in report.duplicates(clips)]}


def kit_transcript_flags(clips: list[tuple]) -> list[dict]:
    """Return the flags of each transcript; a clip is (text, seconds, confidence, edge, second text)."""
    # edge is None where no word can be cut: the edge is as quiet as the noise
    clip_flags = quality_flags.flag_clips([
        (segment.Segment("", 0.0, seconds, 40.0, 40.0 if edge is None else edge),
         transcribe.Transcript("", transcript, transcript, confidence), second_text, None)
        for transcript, seconds, confidence, edge, second_text in clips])
    return [{"weights": [flag.weight for flag in flags], "suspicion": quality_flags.combined_score(flags)}
            for flags in clip_flags]


@functools.cache
def kit_voice(finetuned: bool = False):
    voice = load_voice(kit_cpu(), kit_adapter()) if finetuned else load_voice(kit_cpu(), base=TINY)
    voice.normalize_loudness = False
    return voice


def kit_reference():
    return Reference(SAMPLES / "held_out" / "later01_01.flac", "Do you always sleep before breakfast?")


def kit_generate(texts, reference=None, finetuned=False, greedy=True, seed=0, strength=1.0) -> list[tuple]:
    """Return the codes (frames, codebooks) of each text and whether it ended with EOS; all texts in one batch."""
    voice = kit_voice(finetuned)
    if finetuned:
        voice.set_strength(strength)
    requests = [speak.Request(text.normalize(sentence), seed + index, reference, finetuned)
                for index, sentence in enumerate(texts)]
    prompts, limits = zip(*(speak.build_prompt(voice, request, speak.context_turns(voice, reference))
                            for request in requests))
    sampling_config = sampling.Sampling(0.0, 0.0, 50) if greedy else voice.sampling
    with voice.acquire_engine(finetuned) as engine:
        generations = engine.generate(prompts, sampling_config, [request.seed for request in requests], limits)
    return [(generation.codes, generation.ended_with_eos) for generation in generations]


def kit_speak(sentences: str, reference=None) -> tuple[np.ndarray, bool]:
    """Return the samples of a text of several sentences, with the checkpoint's sampling, and whether it ended with EOS."""
    speech = speak.speak(sentences, kit_voice(), reference, finetuned=False, seed=7)
    return speech.samples, speech.ended_with_eos


def kit_stream(sentences: str) -> list[np.ndarray]:
    return list(speak.stream_speech(sentences, kit_voice(), finetuned=False, seed=7))


def kit_decode(codes: torch.Tensor, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return samples decoded at once, and in chunks of frames of these sizes, repeated."""
    base, chunks, decoded_frames = kit_voice().base, [], 0
    decoder = streaming.StreamingDecoder(base.codec)
    while decoded_frames < len(codes):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(decoder.decode(codes[decoded_frames:decoded_frames + size]))
        decoded_frames += size
    return base.codec.decode([codes])[0], np.concatenate(chunks)


def kit_encode(path: Path) -> torch.Tensor:
    base = kit_voice().base
    return base.codec.encode([audio.read(path, base.spec.sample_rate)])[0]


def kit_conversation(conversation: list[tuple]) -> dict[str, list]:
    """Return the model's input sequence of a conversation; a turn is (text, speaker, codes or None, scored)."""
    example = kit_voice().base.prompt_builder.build("conversation", [prompt.Turn(*turn) for turn in conversation])
    return {"ids": example.input_ids.tolist(), "is_frame": example.audio_mask.int().tolist(),
            "codes_sha256": sha256(example.codes.numpy()),
            "labels_sha256": sha256(example.labels.numpy()), "scored_frames": example.target_frames}


def kit_read_audio(path: Path, rate: int) -> np.ndarray:
    return audio.read(path, rate)


def kit_apply_watermark(samples: np.ndarray, rate: int, chunk: int = 0) -> np.ndarray:
    """Apply the watermark at once or in chunks."""
    if not chunk:
        return watermark.apply(samples, rate)
    chunks = (samples[start:start + chunk] for start in range(0, len(samples), chunk))
    return np.concatenate([*watermark.apply_stream(chunks, rate)])


def kit_watermark_score(samples: np.ndarray, rate: int) -> float:
    return watermark.detect(samples, rate)


def kit_sentences(raw_text: str) -> dict | str:
    """Return the text normalized and split into sentences, or "refused"."""
    try:
        return {"normalised": text.normalize(raw_text), "sentences": text.split_sentences(raw_text, 60),
                "budget_seconds": text.max_speech_seconds(text.normalize(raw_text))}
    except errors.KitError:
        return "refused"


def kit_word_errors(reference: str, hypothesis: str) -> dict:
    (ref_words, ref_chars), errors = wer.length(reference), wer.edit_counts(reference, hypothesis)
    return {"normalised": [wer.normalize(reference), wer.normalize(hypothesis)], "reference_words": ref_words,
            "word_errors": errors[0], "reference_characters": ref_chars, "character_errors": errors[1]}


def kit_matched_training_text(transcript: str, sentence: str, training_texts: list[str]) -> str:
    words = {training_text: wer.normalize(training_text).split() for training_text in training_texts}
    return scoring.matched_training_text(transcript, sentence, words)


def kit_package_rows(rows: list[dict]) -> list[dict]:
    return [{ROW[field]: ARMS[value] if field == "arm" else value for field, value in row.items()} for row in rows]


def kit_figures(rows: list[dict]) -> dict[str, dict]:
    """Return the figures of each arm."""
    rows_by_arm = scoring.group_by_arm(kit_package_rows(rows))
    return {arm: kit_estimates(scoring.aggregate(rows_by_arm[name])) for arm, name in ARMS.items() if name in rows_by_arm}


def kit_estimates(estimates: dict) -> dict[str, dict]:
    return {field: {"value": estimates[name].value, "ci95": [estimates[name].low, estimates[name].high],
                    "sentences": estimates[name].sentences} for field, name in FIGURES.items() if name in estimates}


def kit_verdicts(rows: list[dict]) -> list[dict]:
    """Return the verdict of each comparison, with the statistics of each difference."""
    results, arms = [], {name: field for field, name in ARMS.items()}
    for comparison in verdict.compare_arms(kit_package_rows(rows), QUESTIONS):
        estimates = kit_estimates(comparison.differences)
        for field, statistics in estimates.items():
            difference = comparison.differences[FIGURES[field]]
            statistics |= {"standard_error": difference.standard_error, "p_value": difference.p_value(),
                           "p_value_beyond_0.03": difference.p_value(0.03),
                           "minimum_detectable_difference": difference.minimum_detectable_difference(),
                           "of_4_tests": difference.minimum_detectable_difference(4),
                           "required_sentences_for_0.02": difference.required_sentences(0.02)}
        results.append({"arms": [arms[comparison.arm], arms[comparison.other]], "verdict": kit_outcome(comparison),
                        "differences": estimates})
    return results


def kit_outcome(comparison) -> str:
    """Return what is decided on voice and words; tie if nothing is."""
    decided = [OUTCOMES[outcome] for outcome in (comparison.voice, comparison.words) if outcome in OUTCOMES]
    return "_and_".join(decided) or "tie"


def kit_verdict_numbers(rows: list[dict]) -> list[list[str]]:
    """Return the numbers in each line of the verdict, without its words."""
    lines = [re.sub(r"95 % CI|80 % power|p [<=] [\d.]+", "", line)
             for line in verdict.decide(kit_package_rows(rows), QUESTIONS).details]
    return [re.findall(r"[-+]?\d+(?:\.\d+)?", line) for line in lines]


def kit_holm(p_values: list[float]) -> list[float]:
    return stats.holm(p_values)


def kit_score_rows(rows: list[dict], folder: Path, recordings: dict[str, Path],
                   other_speaker_files: list[Path]) -> tuple[list, list]:
    """Return rows scored by the bundled metric models, and the SIM of other speakers and of the voice itself."""
    metric_models = backends.load_bundled(1)
    references = scoring.measure_references(recordings, metric_models)
    scale = scoring.similarity_range(references, scoring.other_speakers(other_speaker_files, metric_models))
    scored_rows = scoring.score_rows(kit_package_rows(rows), folder, metric_models, references, lambda rows: None, scale)
    return [{field: row[name] for field, name in ROW.items() if name in row and field not in ("arm", "metric_models")}
            for row in scored_rows], [float(value) for value in scale]


def kit_toy_losses(packing: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the kit's losses of three clips, and the gradients of an adapter with random weights."""
    base = load.load_base(kit_toy(), kit_cpu())
    model = lora.add_lora(base.model, 4, 8.0)
    randomize_adapter(model)
    examples = kit_toy_examples(base)
    depth_frames = [torch.ones(example.target_frames, dtype=torch.bool) for example in examples]
    sums = loss.loss_sums(lora.unwrap(model), dataset.collate(examples, depth_frames, packing))
    backbone, depth = sums.backbone / sums.frames, sums.depth / sums.depth_frames / (len(sums.by_codebook) - 1)
    (backbone + depth).backward()
    return {"backbone_loss": backbone.item(), "depth_loss": depth.item()}, gradients(model)


def kit_transformers_losses() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the same by transformers' own forward, one clip at a time."""
    stock_model = CsmForConditionalGeneration.from_pretrained(kit_toy())
    stock_model.backbone_model.embed_tokens.embed_audio_tokens.weight = stock_model.depth_decoder.model.embed_tokens.weight
    stock_model.codec_model = None
    model = lora.add_lora(stock_model.requires_grad_(False).eval(), 4, 8.0)
    randomize_adapter(model)
    examples = kit_toy_examples(load.load_base(kit_toy(), kit_cpu()))
    frames, backbone, depth = sum(example.target_frames for example in examples), 0, 0
    for example in examples:
        embeds = torch.where(example.audio_mask[:, None], stock_model.backbone_model.embed_tokens(example.codes[None])[0],
                             stock_model.embed_text_tokens(example.input_ids))
        outputs = stock_model(inputs_embeds=embeds[None], labels=example.labels[None], use_cache=False)
        backbone = backbone + outputs.backbone_loss * example.target_frames / frames
        depth = depth + outputs.depth_decoder_loss * example.target_frames / frames
    (backbone + depth).backward()
    return {"backbone_loss": backbone.item(), "depth_loss": depth.item()}, gradients(model)


def kit_toy_examples(base):
    clips = (("a", 9, "One."), ("b", 5, "Another one?"), ("c", 12, "A third, longer one."))
    return [dataset.build_example(kit_toy_clip(*clip), base.prompt_builder) for clip in clips]


def kit_demo_figures(printed: list[str]) -> dict:
    """Parse the demo's output: its table by arm, and the held-out losses before and after training."""
    first_row = next(index for index, line in enumerate(printed) if line.startswith("arm ")) + 1
    table = [line.split() for line in printed[first_row:first_row + 6]]
    losses = next(re.findall(r"(\d+\.\d+) -> (\d+\.\d+)", line) for line in printed if line.startswith("Held-out loss"))
    return {"held_out_backbone_loss": [float(value) for value in losses[0]],
            "held_out_depth_loss": [float(value) for value in losses[1]],
            "arms": [dict(zip(DEMO, map(parse_cell, cells))) for _, *cells in table]}


def kit_run_demo() -> list[str]:
    """Run the demo in the scratch folder and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    output = subprocess.run([sys.executable, "-m", "tts_kit", "demo", "--run", "golden"], cwd=SCRATCH, check=True,
                            stdout=subprocess.PIPE, text=True, env=environment | {"PYTHONPATH": str(ROOT)}).stdout
    return output.splitlines()


# -------------------------------------------------------------------------------------------------------- small helpers


def sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def tensor_digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tensor_summary(tensors: dict[str, torch.Tensor]) -> dict:
    """Return a digest of names and values, and norms that do not depend on names."""
    flattened = [tensor.detach().double().flatten() for _, tensor in sorted(tensors.items())]
    return {"tensors": len(tensors), "adapter_float_sha256": tensor_digest(tensors),
            "norms": sorted(tensor.norm().item() for tensor in flattened),
            "total_norm": math.sqrt(sum(tensor.square().sum().item() for tensor in flattened))}


def code_summary(generations: list[tuple[torch.Tensor, bool]]) -> list[dict]:
    return [{"frames": len(codes), "ended_with_eos": ended_with_eos, "every_16th_frame": codes[::16].tolist(),
             "codes_sha256": sha256(codes.numpy())} for codes, ended_with_eos in generations]


def audio_summary(samples: np.ndarray) -> dict:
    doubles = samples.astype(np.float64)
    return {"samples": len(samples), "rms": float(np.sqrt(np.mean(doubles ** 2))), "peak": float(np.abs(doubles).max()),
            "samples_float_sha256": sha256(samples)}


def samples_are_close(samples: np.ndarray, reference: np.ndarray) -> bool:
    return samples.shape == reference.shape and bool(np.allclose(samples, reference, rtol=0, atol=1e-4))


def randomize_adapter(model) -> None:
    """Set random adapter weights: an initialized adapter is zero."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def parse_cell(cell: str) -> float | None:
    return None if cell == "-" else round(float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1), 6)


# ------------------------------------------------------------------------------------------------------------- sections

TEXTS = ("The small garden behind my house is full of yellow flowers.", "Where did Thomas put the keys?",
         "Four birds sat on the old bridge.")
PARAGRAPH = ("The small garden behind my house is full of yellow flowers. My sister has four heavy boxes and one old clock. "
             "Nobody said that the bridge to the island was closed.")


def section_training() -> dict:
    """Mistake: another loss, order of clips or initialization of the adapter, or padding that changes training."""
    results = {}
    for name in TOY_TRAININGS:
        log, tensors = kit_train_toy(name)
        results[name] = {"log": log, "adapter": tensor_summary(tensors)}
    return results | {"tiny_csm": {"log": kit_adapter_log(), "adapter": tensor_summary(kit_adapter_tensors())}}


def section_transformers_equality() -> dict:
    """Mistake: the loss or its gradient differs from that of transformers: a shifted label, a wrong head or mask."""
    stock_losses, stock_gradients = kit_transformers_losses()
    results = {"transformers": stock_losses}
    for name, packing in (("packed", True), ("padded", False)):
        kit_losses, kit_gradients = kit_toy_losses(packing)
        equal = [torch.allclose(gradient, stock_gradients[key], rtol=1e-4, atol=1e-6)
                 for key, gradient in kit_gradients.items()]
        norms = {key: gradient.norm().item() for key, gradient in sorted(kit_gradients.items())[::7]}
        results[name] = kit_losses | {
            "losses_are_equal": all(math.isclose(kit_losses[key], stock_losses[key], rel_tol=1e-5) for key in kit_losses),
            "gradients": len(equal), "gradients_are_equal": all(equal), "some_gradient_norms": list(norms.values()),
            "gradient_norms": tensor_summary(kit_gradients)["norms"]}
    return results


def section_speech() -> dict:
    """Mistake: another prompt, cache, sampling or adapter scale, or a sentence that depends on the rest of its batch."""
    single, batch = kit_generate(TEXTS[:1]), kit_generate(TEXTS)
    finetuned = kit_generate(TEXTS[:2], finetuned=True)
    return {"greedy_alone": code_summary(single), "greedy_batch": code_summary(batch),
            "greedy_cloned": code_summary(kit_generate(TEXTS[:2], kit_reference())),
            "greedy_finetuned": code_summary(finetuned),
            "greedy_finetuned_strength_0.5": code_summary(kit_generate(TEXTS[1:2], finetuned=True, strength=0.5)),
            "greedy_finetuned_cloned": code_summary(kit_generate(TEXTS[1:2], kit_reference(), finetuned=True)),
            "adapter_changes_codes": not torch.equal(finetuned[1][0], batch[1][0]),
            "sampled": code_summary(kit_generate(TEXTS, greedy=False, seed=11)),
            "sampled_cloned": code_summary(kit_generate(TEXTS[:1], kit_reference(), greedy=False, seed=11))}


def section_sound() -> dict:
    """Mistake: a discontinuity between chunks, a lost pause or sentence, other decoded samples, an undetected watermark."""
    codes = kit_encode(SAMPLES / "held_out" / "later01_02.flac")
    decoded, chunks = kit_decode(codes, [2, 1, 7, 4])
    speech, (streamed, rate) = kit_speak(PARAGRAPH), (kit_stream(PARAGRAPH), 24_000)
    wave = kit_read_audio(SAMPLES / "held_out" / "later01_01.flac", rate)
    marked = kit_apply_watermark(wave, rate)
    return {"encoded": code_summary([(codes, True)]), "decoded": audio_summary(decoded),
            "decoded_in_chunks": {"samples": len(chunks), "is_the_whole": samples_are_close(chunks, decoded)},
            "paragraph": audio_summary(speech[0]) | {"ended_with_eos": speech[1]},
            "paragraph_streamed": {"chunks": [len(chunk) for chunk in streamed],
                                   "is_the_whole": samples_are_close(np.concatenate(streamed), speech[0])},
            "watermark": {"marked": audio_summary(marked), "added_rms": float(np.sqrt(np.mean((marked - wave) ** 2))),
                          "in_chunks_is_the_whole": samples_are_close(kit_apply_watermark(wave, rate, 5_000), marked),
                          "score_unmarked": kit_watermark_score(wave, rate),
                          "score_marked": kit_watermark_score(marked, rate)}}


def section_prompts() -> dict:
    """Mistake: a template, tokenizer, EOS frame or label that differs from what the adapter was trained with."""
    codes = kit_encode(SAMPLES / "held_out" / "later01_01.flac")
    return {"one_clip": kit_conversation([("Do you always sleep before breakfast?", "0", codes)]),
            "with_context": kit_conversation([("Do you always sleep before breakfast?", "0", codes, False),
                                              ("Never <|end_of_text|> again.", "1", codes[:3]), ("Is that so?", "0")])}


def section_texts() -> dict:
    """Mistake: text that is normalized, split or counted differently, so that training and speaking use other tokens."""
    texts = ("Hello", "  two\tlines\r\nof\u00a0text\u2028here ", "“Don’t” — she said… 10–20", "cafe\u0301", "हिन्दी",
             "It costs 3 €.", "Mr. Smith met Dr. J. Doe at 5 p.m. They talked, e.g. about fig. 3.",
             "", "...?!", "zero\u200bwidth", "One! Two? Three... (Four.) \"Five.\" 漢字。漢字！",
             "A sentence that has no full stop but commas, many of them, goes on and on, until it is cut; then it ends",
             "averyveryverylongwordwithoutanyspaceinsidethatcannotbecutanywherebutinthemiddleofit")
    return {"sentences": [{"text": raw_text, "found": kit_sentences(raw_text)} for raw_text in texts]}


def section_data() -> dict:
    """Mistake: another split, trim, level or code for the same clips; a bad row is accepted or a good one rejected."""
    voice_run, _, counts = kit_prepared()
    stored, codes = kit_stored_clips(voice_run), kit_codes_of(voice_run)
    single_recording, five_recordings = ["take"] * 20, [f"session{number % 5}" for number in range(40)]
    table, rejected = kit_prepare_table(table_with_bad_rows(), SAMPLES / "held_out")
    return {"manifest": kit_manifest(voice_run), "clips_sha256": sha256(*stored),
            "clips_rms": [float(np.sqrt(np.mean((clip / 32768.0) ** 2))) for clip in stored[:10]],
            "encoded_and_kept": counts, "frames": [len(clip) for clip in codes.values()],
            "codes_sha256": sha256(*(clip.numpy() for _, clip in sorted(codes.items()))),
            "split_of_one_recording": kit_split(single_recording, 0.2, 3),
            "split_of_five_recordings": kit_split(five_recordings, 0.1, 3),
            "table_with_bad_rows": {"manifest": table, "rejected_rows": rejected}}


def section_recordings() -> dict:
    """Mistake: a recording is segmented differently, or quality flags are raised for other clips."""
    sentences = [f"The {adjective} dog ran away from the house." for adjective in ("old", "red", "big", "new", "sad")]
    clips = [(sentence, 2.5, 0.95, None, sentence) for sentence in sentences]
    clips += [("", 2.0, 0.1, None, None), ("The dog.", 4.0, 0.5, 6.0, "A frog."),
              ("It is 20-10 & late.", 1.0, 0.8, None, None), clips[0]]
    return {"segments": kit_segments(), "quality": kit_quality(8), "transcript_flags": kit_transcript_flags(clips)}


def section_statistics() -> dict:
    """Mistake: another bootstrap, correction or threshold, which turns a tie into a difference or the reverse."""
    rows = synthetic_rows(10)
    two_sentences = [row for row in rows if row["sentence"] < 2]
    return {"figures": kit_figures(rows), "findings": kit_verdicts(rows), "verdict_numbers": kit_verdict_numbers(rows),
            "two_sentences": {"findings": kit_verdicts(two_sentences),
                              "verdict_numbers": kit_verdict_numbers(two_sentences)},
            "holm": kit_holm([0.01, 0.04, 0.03, 0.2, 0.001])}


def section_scoring() -> dict:
    """Mistake: words counted differently, another loudness or padding before a metric model, a clip compared with itself."""
    recordings = recorded_clips()
    texts = list(recordings)
    first, second = list(recordings.values())[:2]
    samples, rate = soundfile.read(first)
    soundfile.write(SCRATCH / "cut.flac", samples[:len(samples) * 2 // 5], rate)
    soundfile.write(SCRATCH / "silent.flac", np.zeros(rate), rate)
    files = [(str(first), texts[0]), (str(second), texts[1]), (str(SCRATCH / "cut.flac"), texts[0]),
             (str(SCRATCH / "silent.flac"), texts[0])]
    rows = [{"arm": "base", "sentence": number, "text": transcript, "seed": 1, "file": file}
            for number, (file, transcript) in enumerate(files)]
    rows, scale = kit_score_rows(rows, SCRATCH, recordings, sorted((SAMPLES / "other_speakers").glob("*.flac"))[:2])
    pairs = (("The train leaves at 3:30 o'clock.", "the train leaves at three thirty"), ("One, two.", "1 2 3"),
             ("Don’t go (now)!", "do not go"), ("Okay.", ""))
    training_texts = ["The dog ran away from the house.", "Who is that girl?"]
    return {"clips": [row | {"file": Path(row["file"]).name} for row in rows], "SIM_of_strangers_and_of_itself": scale,
            "word_errors": [kit_word_errors(*pair) for pair in pairs],
            "memorized": [kit_matched_training_text(hypothesis, "Count from one to ten.", training_texts)
                          for hypothesis in ("The dog ran away from a house.", "Count from one to ten.", "Who is that?")]}


def section_demo(printed: list[str] | None = None) -> dict:
    """Mistake: the same demo gives other figures."""
    committed = ROOT / "tests" / "benchmarks" / "results" / "demo.json"
    return kit_demo_figures(printed or json.loads(committed.read_text(encoding="utf-8"))["printed"])


SECTIONS = {section.__name__.removeprefix("section_"): section for section in (
    section_texts, section_prompts, section_statistics, section_transformers_equality, section_data, section_recordings,
    section_training, section_speech, section_sound, section_scoring, section_demo)}


def synthetic_rows(count: int) -> list[dict]:
    """Return scored rows of five arms with two samples of each sentence; some arms are better, some worse, some the same."""
    gains = {"base": (0.0, 0.3), "cloned": (0.1, 0.3), "finetuned": (0.12, 0.05), "finetuned_cloned": (0.1, 0.6),
             "rival": (0.1, 0.3)}
    difficulty, rows = np.random.default_rng(99).normal(0.6, 0.04, count), []
    for arm_index, (arm, (gain, error_rate)) in enumerate(gains.items()):
        rng = np.random.default_rng([5, arm_index])
        for sentence in range(count):
            for seed in (1, 2):
                similarity = difficulty[sentence] + gain + rng.normal(0, 0.03)
                errors = int(rng.binomial(9 + sentence % 3, error_rate))
                rows.append({"arm": arm, "sentence": sentence, "text": f"sentence {sentence}", "seed": seed,
                             "file": f"{arm}{sentence}-{seed}", "SIM": round(float(similarity), 4),
                             "SIM_normalised": round(float(similarity) * 2 - 1, 4), "word_errors": errors,
                             "reference_words": 9 + sentence % 3, "character_errors": 3 * errors, "reference_characters": 40,
                             "MOS": round(float(rng.normal(3, 0.2)), 3), "noisy": bool(rng.integers(2)),
                             "duration_ratio": 1.1, "pitch_semitones": 0.3, "speaking_rate_ratio": 0.9, "failure": "",
                             "memorized": arm == "finetuned" and sentence == 1, "ended_with_eos": sentence != 3,
                             "metric_models": "simulated"})
    return rows


def table_with_bad_rows() -> Path:
    """Write a table with eight good clips and five rows that cannot be used."""
    folder = SCRATCH / "table"
    folder.mkdir(exist_ok=True)
    good = sorted((SAMPLES / "voice").glob("session0[12]_0[1-4].flac"))
    for path in good:
        shutil.copy(path, folder)
    shutil.copy(good[0], folder / "again_01.flac")
    soundfile.write(folder / "short_01.flac", 0.3 * np.sin(np.arange(4_800) / 10), 24_000)
    soundfile.write(folder / "silent_01.flac", np.zeros(48_000), 24_000)
    rows = [(path.name, f"Clip {number} says   this", "emma") for number, path in enumerate(good)]
    rows[3:3] = [("again_01.flac", "The first again.", "emma"), ("short_01.flac", "Short.", "emma")]
    rows += [("silent_01.flac", "Silence.", "emma"), ("missing_01.flac", "Missing.", "emma"), (good[7].name, "...", "emma")]
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text", "source"), *rows])
    return folder


def recorded_clips() -> dict[str, Path]:
    """Return six recordings of the voice by their text."""
    with open(SAMPLES / "held_out" / "metadata.csv", encoding="utf-8", newline="") as file:
        return {row["text"]: SAMPLES / "held_out" / row["file_name"] for row in list(csv.DictReader(file))[:6]}


# --------------------------------------------------------------------------------------------------- recording, checking


def to_json_values(value):
    """Convert numpy's numbers to Python's and infinities to strings."""
    if isinstance(value, dict):
        return {str(name): to_json_values(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_values(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def format_json(value, indent: str = "") -> str:
    """Format as JSON, with each value that fits on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= 240 or not isinstance(value, (dict, list)):
        return line
    inner_indent = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(name, ensure_ascii=False)}: {format_json(item, inner_indent)}"
                 for name, item in value.items()]
    else:
        items = [format_json(item, inner_indent) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner_indent}" + f",\n{inner_indent}".join(items) + f"\n{indent}{closing}"


def compute(names: list[str], with_demo: bool) -> dict:
    """Compute the sections with these names."""
    results = {}
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for name in names:
        start, captured = time.monotonic(), StringIO()
        torch.manual_seed(0)
        # messages of the kit are not part of the outputs
        with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = section_demo(kit_run_demo()) if name == "demo" and with_demo else SECTIONS[name]()
            results[name] = to_json_values(values)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return results


def differences(golden, current, path: str = "") -> list[tuple[str, str]]:
    """Return (path, difference) of all values that are not equal, or not within RELATIVE for floats."""
    if isinstance(golden, dict) and isinstance(current, dict):
        return [item for name in {**golden, **current} for item in differences(
            golden.get(name, "nothing"), current.get(name, "nothing"), f"{path}/{name}")]
    if isinstance(golden, list) and isinstance(current, list) and len(golden) == len(current):
        return [item for index, (golden_item, current_item) in enumerate(zip(golden, current))
                for item in differences(golden_item, current_item, f"{path}/{index}")]
    numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in (golden, current))
    if numbers and float in (type(golden), type(current)):
        equal = math.isclose(golden, current, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        equal = type(golden) is type(current) and golden == current
    return [] if equal else [(path, f"{json.dumps(golden)[:120]} is now {json.dumps(current)[:120]}")]


def machine() -> dict[str, str]:
    """Return the processor and the versions that can change the last bits of a result."""
    names = ("torch", "transformers", "peft", "numpy", "scipy", "soxr", "pyloudnorm", "faster-whisper", "onnxruntime")
    processor = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"processor": processor, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names}


def check(names: list[str], with_demo: bool, exact: bool) -> int:
    """Print the differences from golden.json; return the exit code."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if machine_changes := differences(golden["machine"], machine()):
        print("Recorded on another machine, where rounding may differ:")
        print(*(f"  {path} {change}" for path, change in machine_changes), sep="\n")
    changes = differences({name: golden["sections"].get(name) for name in names}, compute(names, with_demo))
    notes = [] if exact else [(path, change) for path, change in changes if path.endswith("_float_sha256")]
    for name in names:
        section_changes = [(path, change) for path, change in changes if path.split("/")[1] == name]
        for path, change in section_changes[:MAX_PRINTED]:
            print(f"{'note, other bytes of floats' if (path, change) in notes else 'DIFFERS'}: {path}: {change}")
        if len(section_changes) > MAX_PRINTED:
            print(f"... and {len(section_changes) - MAX_PRINTED} more of {name}")
    print(f"{len(changes) - len(notes)} differences and {len(notes)} notes in {len(names)} sections.")
    return int(len(changes) > len(notes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--exact", action="store_true", help="differences in the last bits also fail")
    parser.add_argument("--demo", action="store_true", help="run the demo, which takes 5 minutes")
    options = parser.parse_args()
    names = options.only or list(SECTIONS)
    try:
        if options.command == "check":
            return check(names, options.demo, options.exact)
        old_sections = json.loads(GOLDEN.read_text(encoding="utf-8"))["sections"] if options.only else {}
        content = {"machine": machine(), "sections": old_sections | compute(names, options.demo)}
        GOLDEN.write_text(format_json(content) + "\n", encoding="utf-8")
        return 0
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
