"""Golden outputs: what the kit computed before it was rebuilt, and whether it still computes the same.

    python tests/golden.py record                     # write tests/golden.json
    python tests/golden.py check                      # compute everything again; exit code 1 if anything differs
    python tests/golden.py check --only data speech   # some sections
    python tests/golden.py check --exact              # a difference in the last bits fails too
    python tests/golden.py check --demo               # also run the demo (5 minutes) and compare its figures

Everything runs on the CPU in float32 with one thread and fixed seeds. Codes, ids, counts, splits and texts must be equal.
Other numbers may differ by RELATIVE of their size. A digest of floats (a name ending in _float_sha256) that differs is only
a note, because the numbers beside it are compared.

golden.json was recorded on one machine: another processor or other package versions may round otherwise, and a greedy code
may then tip over. The file names its machine, and `check` says when it runs on another one.

Only the first part, the adapter layer, touches tts_kit: it translates between the package's names and the words of the field
that golden.json uses. A rename changes that part and never golden.json.
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

from sample_data.build import shape
from tts_kit import audio, config, device, errors, io, run, text, watermark
from tts_kit.comparison import verdict
from tts_kit.data import manifest, prepare, quality_flags, report, segment, transcribe
from tts_kit.evaluation import memorization, metrics, scoring, stats, wer
from tts_kit.generation import sampling
from tts_kit.model import load, lora, loss
from tts_kit.speech import speak, stream
from tts_kit.speech.voice import Reference, load_voice
from tts_kit.tokens import cache, codec, prompt, streaming
from tts_kit.training import callbacks, dataset, finetune

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_suffix(".json")
RELATIVE, ABSOLUTE = 1e-5, 1e-9
SHOWN = 20
"""Differences of a section that are printed."""
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
"""Fields of the package's recipe."""
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
       "speaking_rate_ratio": "rate_ratio", "memorised": "memorized", "judges": scoring.METRICS}
"""Word of the field -> the package's name in a scored row, and below in its figures."""
FIGURES = {"WER": "wer", "CER": "cer", "SIM": "sim", "SIM_normalised": "sim_norm", "MOS": "mos", "noisy": "noisy",
           "duration_ratio": "duration_ratio", "pitch_semitones": "f0_difference", "speaking_rate_ratio": "rate_ratio",
           "memorised": "memorized", "ended_with_eos": "ended_with_eos"}
OUTCOMES = {verdict.HIGHER_SIM: "higher_SIM", verdict.LOWER_WER: "lower_WER", verdict.TIE: "tie",
            verdict.LOWER_SIM: "lower_SIM",
            verdict.HIGHER_WER: "higher_WER", verdict.HIGHER_SIM_AND_WER: "higher_SIM_and_WER",
            verdict.LOWER_SIM_AND_WER: "lower_SIM_and_WER"}
DEMO = ("WER", "CER", "SIM", "SIM_normalised", "MOS", "noisy", "duration_ratio", "pitch_semitones", "speaking_rate_ratio",
        "ended_with_eos", "memorised")
"""Columns of the demo's table, as they follow each other."""


def kit_cpu():
    return device.choose("cpu")


@functools.cache
def kit_toy() -> str:
    """The folder of an untrained CSM of two layers."""
    return str(shape.build("toy", SCRATCH / "toy"))


def kit_toy_clip(name: str, frames: int, words: str = "Hello there.", split: str = "train"):
    generator = torch.Generator().manual_seed(sum(name.encode()) * 1000 + frames)
    codes = torch.randint(0, 32, (frames, 4), generator=generator, dtype=torch.int16)
    return cache.EncodedClip(name, words, "0", "", name, split, codes)


def kit_train_toy(name: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What was logged, and the adapter's tensors."""
    texts = ("Hello.", "A longer sentence, said slowly.", "Why?", "Four words are here.")
    clips = [kit_toy_clip(f"clip{number}", 5 + number, texts[number % 4], "held_out" if number < 2 else "train")
             for number in range(12)]
    place = run.Run(name, SCRATCH)
    run.write_inputs(place.codes, codec=codec.load(kit_toy()).fingerprint())
    told = config.Config(base=kit_toy(), **{**TOY, **TOY_TRAININGS[name]})
    _, training = finetune.prepare(told, place, clips, kit_cpu())
    training.args.eval_on_start = True
    training.train()
    return kit_logged(training.state.log_history), get_peft_model_state_dict(training.model, save_embedding_layers=False)


def kit_logged(rows) -> list[dict]:
    return [{word: row[name] for name, word in LOGGED.items() if name in row} for row in rows]


@functools.cache
def kit_prepared():
    """A run with the data and the codes of sample_data/voice; its recipe; how many clips were encoded."""
    place, told = run.Run("voice", SCRATCH), config.Config(**FEW_STEPS)
    prepare.prepare(SAMPLES / "voice", place, told)
    counts = cache.tokenize(told, place, kit_cpu()), cache.tokenize(told, place, kit_cpu())
    return place, told, [(each["encoded"], each["cached"]) for each in counts]


@functools.cache
def kit_adapter() -> Path:
    """The folder of an adapter that few steps on tiny-csm made of that run."""
    place, told, _ = kit_prepared()
    return finetune.finetune(told, place, kit_cpu())


def kit_adapter_log() -> list[dict]:
    kit_adapter()
    return kit_logged(io.read_rows(kit_prepared()[0].training / callbacks.LOG_FILE))


def kit_adapter_tensors() -> dict[str, torch.Tensor]:
    return load_file(kit_adapter() / "adapter_model.safetensors")


def kit_manifest(place) -> list[dict]:
    return [{"id": each.id, "text": each.text, "speaker": each.speaker, "recording": each.session,
             "split": {"excluded": "gap"}.get(each.split, each.split),
             "duration_seconds": each.seconds, "row": each.row, "file": each.file} for each in manifest.read(place.data)]


def kit_stored_clips(place) -> list[np.ndarray]:
    return [soundfile.read(each.audio, dtype="int16")[0] for each in manifest.read(place.data)]


def kit_codes_of(place) -> dict[str, torch.Tensor]:
    return {each.id: each.codes for each in cache.load_run(place)}


def kit_prepare_table(source: Path, held_out_from: Path) -> tuple[list[dict], list[int]]:
    """The manifest of a table with bad rows, and the rows that were left out."""
    place = run.Run("bad", SCRATCH)
    prepare.prepare(source, place, config.Config(base=TINY), skip_bad=True, eval_source=held_out_from)
    return kit_manifest(place), [row["row"] for row in io.read_rows(place.data / prepare.REJECTED)]


def kit_split(recordings: list[str], share: float, seed: int) -> list[str]:
    """Which split each clip gets, given the recording it was cut from."""
    made = [manifest.Utterance(f"{number:03d}", Path("x"), "A.", "A.", "0", "", name, "", 1.0, number,
                                f"{name}_{number:03d}.wav", "") for number, name in enumerate(recordings)]
    return [{"excluded": "gap"}.get(each.split, each.split) for each in manifest.assign_splits(made, share, seed)]


def kit_segments() -> list[dict]:
    """The pieces of the sample recording, cut without any transcript."""
    found = segment.segment_recording(SAMPLES / "recording.flac", SCRATCH / "segments")
    place = segment.segment_folder(SAMPLES / "recording.flac", SCRATCH / "segments")
    return [{"start": each.start, "end": each.end, "SNR_dB": each.snr_db, "edge_dB": each.edge_db, "clipped": each.clipped,
             "LUFS": each.lufs, "rejected": bool(each.reason), "may_cut_a_word": each.may_cut_a_word,
             "samples_sha256": sha256(soundfile.read(place / each.file, dtype="int16")[0])} for each in found]


def kit_quality(count: int) -> dict:
    clips = manifest.read(kit_prepared()[0].data)
    return {"clips": [{"id": each.clip.id, "characters_per_second": each.chars_per_second, "LUFS": each.lufs,
                       "SNR_dB": each.snr_db,
                       "pitch_hz": each.f0, "bandwidth_hz": each.bandwidth_hz, "speaker_outlier": each.speaker_distance}
                      for each in report.measure(clips[:count])],
            "near_duplicates": [clip.id for clip in report.duplicates(clips)]}


def kit_transcript_flags(clips: list[tuple]) -> list[dict]:
    """(text, seconds, confidence, edge, second text) -> how suspicious each transcript is."""
    # the edge is None where no word can have been cut: an edge as quiet as the noise
    found = quality_flags.flag_clips([
        (segment.Segment("", 0.0, seconds, 40.0, 40.0 if edge is None else edge),
         transcribe.Transcript("", words, words, confidence, 0.0), second_text, None)
        for words, seconds, confidence, edge, second_text in clips])
    return [{"weights": [each.weight for each in some], "suspicion": quality_flags.combined_score(some)} for some in found]


@functools.cache
def kit_voice(finetuned: bool = False):
    return load_voice(kit_cpu(), kit_adapter()) if finetuned else load_voice(kit_cpu(), base=TINY)


def kit_reference():
    return Reference(SAMPLES / "held_out" / "later01_01.flac", "Do you always sleep before breakfast?")


def kit_said(texts, given=None, finetuned=False, greedy=True, seed=0, strength=1.0) -> list[tuple]:
    """Codes (frames, codebooks) of each text, and whether it ended by itself; all texts in one batch."""
    speaker = kit_voice(finetuned)
    if finetuned:
        speaker.set_strength(strength)
    lines = [speak.Request(text.normalize(each), seed + number, given, finetuned) for number, each in enumerate(texts)]
    prompts, limits = zip(*(speak.build_prompt(speaker, line, speak.context_turns(speaker, given)) for line in lines))
    how = sampling.Sampling(0.0, 0.0, 50) if greedy else speaker.sampling
    with speaker.acquire_engine(finetuned) as engine:
        generations = engine.generate(prompts, how, [line.seed for line in lines], limits)
    return [(generation.codes, generation.ended_with_eos) for generation in generations]


def kit_spoken(words: str, given=None) -> tuple[np.ndarray, bool]:
    """Samples of a text of several sentences, sampled as the checkpoint recommends."""
    found = speak.speak(words, kit_voice(), given, finetuned=False, seed=7)
    return found.samples, found.ended_with_eos


def kit_streamed(words: str) -> list[np.ndarray]:
    return list(stream.stream(words, kit_voice(), finetuned=False, seed=7))


def kit_decoded(codes: torch.Tensor, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Samples decoded whole, and in chunks of these numbers of frames over and over."""
    base, pieces, done = kit_voice().base, [], 0
    decoder = streaming.StreamingDecoder(base.codec)
    while done < len(codes):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(decoder.decode(codes[done:done + size]))
        done += size
    return base.codec.decode([codes])[0], np.concatenate(pieces)


def kit_encoded(path: Path) -> torch.Tensor:
    base = kit_voice().base
    return base.codec.encode([audio.read(path, base.spec.sample_rate)])[0]


def kit_conversation(turns: list[tuple]) -> dict[str, list]:
    """(text, speaker, codes or None, scored) of each turn -> the sequence that the model reads."""
    made = kit_voice().base.prompt_builder.build("conversation", [prompt.Turn(*each) for each in turns])
    return {"ids": made.input_ids.tolist(), "is_frame": made.audio_mask.int().tolist(),
            "codes_sha256": sha256(made.codes.numpy()),
            "labels_sha256": sha256(made.labels.numpy()), "scored_frames": made.target_frames}


def kit_read_sound(path: Path, rate: int) -> np.ndarray:
    return audio.read(path, rate)


def kit_marked(samples: np.ndarray, rate: int, chunk: int = 0) -> np.ndarray:
    """Watermarked, at once or chunk by chunk."""
    if not chunk:
        return watermark.apply(samples, rate)
    chunks = (samples[start:start + chunk] for start in range(0, len(samples), chunk))
    return np.concatenate([*watermark.apply_stream(chunks, rate)])


def kit_watermark_score(samples: np.ndarray, rate: int) -> float:
    return watermark.detect(samples, rate)


def kit_sentences(words: str) -> dict | str:
    """The text normalised and split, or that it is refused."""
    try:
        return {"normalised": text.normalize(words), "sentences": text.split_sentences(words, 60),
                "budget_seconds": text.max_speech_seconds(text.normalize(words))}
    except errors.KitError:
        return "refused"


def kit_word_errors(words: str, heard: str) -> dict:
    (count, characters), wrong = wer.length(words), wer.edit_counts(words, heard)
    return {"normalised": [wer.normalize(words), wer.normalize(heard)], "reference_words": count,
            "word_errors": wrong[0], "reference_characters": characters, "character_errors": wrong[1]}


def kit_memorised(heard: str, asked: str, training_texts: list[str]) -> str:
    return memorization.matched_training_text(heard, asked, {each: wer.normalize(each).split() for each in training_texts})


def kit_package_rows(rows: list[dict]) -> list[dict]:
    return [{ROW[word]: ARMS[value] if word == "arm" else value for word, value in row.items()} for row in rows]


def kit_figures(rows: list[dict]) -> dict[str, dict]:
    """Arm -> figure -> estimate."""
    found, arms = scoring.group_by_arm(kit_package_rows(rows)), {name: word for word, name in ARMS.items()}
    return {arms[arm]: kit_estimates(scoring.aggregate(mine)) for arm, mine in found.items()}


def kit_estimates(found: dict) -> dict[str, dict]:
    return {word: {"value": found[name].value, "ci95": [found[name].low, found[name].high],
                   "sentences": found[name].sentences} for word, name in FIGURES.items() if name in found}


def kit_findings(rows: list[dict]) -> list[dict]:
    """The answer to each question, with the statistics of each difference."""
    made, arms = [], {name: word for word, name in ARMS.items()}
    for each in verdict.compare_arms(kit_package_rows(rows), QUESTIONS):
        told = kit_estimates(each.differences)
        for word, statistics in told.items():
            seen = each.differences[FIGURES[word]]
            statistics |= {"standard_error": seen.standard_error, "p_value": seen.p_value(),
                           "p_value_beyond_0.03": seen.p_value(0.03),
                           "minimum_detectable_difference": seen.minimum_detectable_difference(),
                           "of_4_tests": seen.minimum_detectable_difference(4),
                           "required_sentences_for_0.02": seen.required_sentences(0.02)}
        made.append({"arms": [arms[each.arm], arms[each.other]], "verdict": OUTCOMES[each.outcome], "differences": told})
    return made


def kit_verdict_numbers(rows: list[dict]) -> list[list[str]]:
    """The numbers of each line of the verdict, whatever words stand between them."""
    lines = [re.sub(r"95 % CI|80 % power|p [<=] [\d.]+", "", line)
             for line in verdict.decide(kit_package_rows(rows), QUESTIONS).details]
    return [re.findall(r"[-+]?\d+(?:\.\d+)?", line) for line in lines]


def kit_holm(p_values: list[float]) -> list[float]:
    return stats.holm(p_values)


def kit_judged(rows: list[dict], folder: Path, real: dict[str, Path], strangers: list[Path]) -> tuple[list, list]:
    """Rows scored by the offline judges, and the SIM of strangers and of the voice itself."""
    metric_models = metrics.load(1, "cpu", "bundled")
    known = scoring.measure_references(real, metric_models)
    scale = scoring.similarity_range(known, scoring.other_speakers(strangers, metric_models))
    found = scoring.score_rows(kit_package_rows(rows), folder, metric_models, known, lambda rows: None, scale)
    return [{word: row[name] for word, name in ROW.items() if name in row and word not in ("arm", "judges")}
            for row in found], [float(each) for each in scale]


def kit_toy_losses(packing: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The kit's losses of three clips, and the gradients of a shaken adapter."""
    base = load.load_base(kit_toy(), kit_cpu())
    model = lora.add_lora(base.model, 4, 8.0)
    shake(model)
    examples = kit_toy_examples(base)
    chosen = [torch.ones(example.target_frames, dtype=torch.bool) for example in examples]
    found = loss.loss_sums(lora.unwrap(model), dataset.collate(examples, chosen, packing))
    backbone, depth = found.backbone / found.frames, found.depth / found.depth_frames / (len(found.by_codebook) - 1)
    (backbone + depth).backward()
    return {"backbone_loss": backbone.item(), "depth_loss": depth.item()}, gradients(model)


def kit_transformers_losses() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The same by transformers' own forward, clip by clip."""
    stock = CsmForConditionalGeneration.from_pretrained(kit_toy())
    stock.backbone_model.embed_tokens.embed_audio_tokens.weight = stock.depth_decoder.model.embed_tokens.weight
    stock.codec_model = None
    model = lora.add_lora(stock.requires_grad_(False).eval(), 4, 8.0)
    shake(model)
    examples = kit_toy_examples(load.load_base(kit_toy(), kit_cpu()))
    frames, backbone, depth = sum(example.target_frames for example in examples), 0, 0
    for example in examples:
        embeds = torch.where(example.audio_mask[:, None], stock.backbone_model.embed_tokens(example.codes[None])[0],
                             stock.embed_text_tokens(example.input_ids))
        out = stock(inputs_embeds=embeds[None], labels=example.labels[None], use_cache=False)
        backbone = backbone + out.backbone_loss * example.target_frames / frames
        depth = depth + out.depth_decoder_loss * example.target_frames / frames
    (backbone + depth).backward()
    return {"backbone_loss": backbone.item(), "depth_loss": depth.item()}, gradients(model)


def kit_toy_examples(base):
    clips = (("a", 9, "One."), ("b", 5, "Another one?"), ("c", 12, "A third, longer one."))
    return [dataset.build_example(kit_toy_clip(*each), base.prompt_builder) for each in clips]


def kit_demo_figures(printed: list[str]) -> dict:
    """Figures of the demo by arm, out of what it prints: its table, and the held-out losses before and after."""
    begin = next(number for number, line in enumerate(printed) if line.startswith("arm ")) + 1
    table = [line.split() for line in printed[begin:begin + 6]]
    moved = next(re.findall(r"(\d+\.\d+) -> (\d+\.\d+)", line) for line in printed if line.startswith("Held-out loss"))
    return {"held_out_backbone_loss": [float(each) for each in moved[0]],
            "held_out_depth_loss": [float(each) for each in moved[1]],
            "arms": [dict(zip(DEMO, map(number_of, cells))) for _, *cells in table]}


def kit_run_demo() -> list[str]:
    """What the demo prints now; its run is made anew in the scratch folder."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    out = subprocess.run([sys.executable, "-m", "tts_kit", "demo", "--run", "golden"], cwd=SCRATCH, check=True,
                         stdout=subprocess.PIPE, text=True, env=environment | {"PYTHONPATH": str(ROOT)}).stdout
    return out.splitlines()


# -------------------------------------------------------------------------------------------------------- small helpers


def sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(repr((each.shape, str(each.dtype))).encode() + np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()


def tensor_digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def about_tensors(tensors: dict[str, torch.Tensor]) -> dict:
    """A digest of names and values, and norms that do not depend on names."""
    double = [tensor.detach().double().flatten() for _, tensor in sorted(tensors.items())]
    return {"tensors": len(tensors), "adapter_float_sha256": tensor_digest(tensors),
            "norms": sorted(each.norm().item() for each in double),
            "total_norm": math.sqrt(sum(each.square().sum().item() for each in double))}


def about_codes(takes: list[tuple[torch.Tensor, bool]]) -> list[dict]:
    return [{"frames": len(codes), "ended_with_eos": ended_with_eos, "every_16th_frame": codes[::16].tolist(),
             "codes_sha256": sha256(codes.numpy())} for codes, ended_with_eos in takes]


def about_sound(samples: np.ndarray) -> dict:
    double = samples.astype(np.float64)
    return {"samples": len(samples), "rms": float(np.sqrt(np.mean(double ** 2))), "peak": float(np.abs(double).max()),
            "samples_float_sha256": sha256(samples)}


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-4))


def shake(model) -> None:
    """Values for an adapter, which begins at zero."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def number_of(cell: str) -> float | None:
    return None if cell == "-" else round(float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1), 6)


# ------------------------------------------------------------------------------------------------------------- sections

TEXTS = ("The small garden behind my house is full of yellow flowers.", "Where did Thomas put the keys?",
         "Four birds sat on the old bridge.")
PARAGRAPH = ("The small garden behind my house is full of yellow flowers. My sister has four heavy boxes and one old clock. "
             "Nobody said that the bridge to the island was closed.")


def section_training() -> dict:
    """Mistake: another loss, another order of clips, another start of the adapter, or padding that trains otherwise."""
    found = {}
    for name in TOY_TRAININGS:
        log, tensors = kit_train_toy(name)
        found[name] = {"log": log, "adapter": about_tensors(tensors)}
    return found | {"tiny_csm": {"log": kit_adapter_log(), "adapter": about_tensors(kit_adapter_tensors())}}


def section_transformers_equality() -> dict:
    """Mistake: the loss or its gradient is no longer that of transformers: a shifted label, a wrong head or mask."""
    theirs, their_gradients = kit_transformers_losses()
    found = {"transformers": theirs}
    for name, packing in (("packed", True), ("padded", False)):
        ours, our_gradients = kit_toy_losses(packing)
        closeness = [torch.allclose(each, their_gradients[key], rtol=1e-4, atol=1e-6)
                     for key, each in our_gradients.items()]
        norms = {key: each.norm().item() for key, each in sorted(our_gradients.items())[::7]}
        found[name] = ours | {"losses_are_equal": all(math.isclose(ours[each], theirs[each], rel_tol=1e-5) for each in ours),
                              "gradients": len(closeness), "gradients_are_equal": all(closeness),
                              "some_gradient_norms": list(norms.values()),
                              "gradient_norms": about_tensors(our_gradients)["norms"]}
    return found


def section_speech() -> dict:
    """Mistake: another prompt, cache, sampling or adapter scale, or a sentence that depends on others in its batch."""
    alone, batch = kit_said(TEXTS[:1]), kit_said(TEXTS)
    finetuned = kit_said(TEXTS[:2], finetuned=True)
    return {"greedy_alone": about_codes(alone), "greedy_batch": about_codes(batch),
            "greedy_cloned": about_codes(kit_said(TEXTS[:2], kit_reference())), "greedy_finetuned": about_codes(finetuned),
            "greedy_finetuned_strength_0.5": about_codes(kit_said(TEXTS[1:2], finetuned=True, strength=0.5)),
            "greedy_finetuned_cloned": about_codes(kit_said(TEXTS[1:2], kit_reference(), finetuned=True)),
            "adapter_changes_codes": not torch.equal(finetuned[1][0], batch[1][0]),
            "sampled": about_codes(kit_said(TEXTS, greedy=False, seed=11)),
            "sampled_cloned": about_codes(kit_said(TEXTS[:1], kit_reference(), greedy=False, seed=11))}


def section_sound() -> dict:
    """Mistake: a seam between chunks, a pause or sentence lost, other samples out of the codec, a mark that is not found."""
    codes = kit_encoded(SAMPLES / "held_out" / "later01_02.flac")
    whole, chunks = kit_decoded(codes, [2, 1, 7, 4])
    at_once, (pieces, rate) = kit_spoken(PARAGRAPH), (kit_streamed(PARAGRAPH), 24_000)
    wave = kit_read_sound(SAMPLES / "held_out" / "later01_01.flac", rate)
    with_mark = kit_marked(wave, rate)
    return {"encoded": about_codes([(codes, True)]), "decoded": about_sound(whole),
            "decoded_in_chunks": {"samples": len(chunks), "is_the_whole": alike(chunks, whole)},
            "paragraph": about_sound(at_once[0]) | {"ended_with_eos": at_once[1]},
            "paragraph_streamed": {"chunks": [len(each) for each in pieces],
                                   "is_the_whole": alike(np.concatenate(pieces), at_once[0])},
            "watermark": {"marked": about_sound(with_mark), "added_rms": float(np.sqrt(np.mean((with_mark - wave) ** 2))),
                          "in_chunks_is_the_whole": alike(kit_marked(wave, rate, 5_000), with_mark),
                          "score_unmarked": kit_watermark_score(wave, rate),
                          "score_marked": kit_watermark_score(with_mark, rate)}}


def section_prompts() -> dict:
    """Mistake: a template, tokenizer, end frame or label that is written otherwise than the adapter was trained with."""
    codes = kit_encoded(SAMPLES / "held_out" / "later01_01.flac")
    return {"one_clip": kit_conversation([("Do you always sleep before breakfast?", "0", codes)]),
            "with_context": kit_conversation([("Do you always sleep before breakfast?", "0", codes, False),
                                          ("Never <|end_of_text|> again.", "1", codes[:3]), ("Is that so?", "0")])}


def section_texts() -> dict:
    """Mistake: text that is normalised, split or counted otherwise, so that training and speaking read other tokens."""
    given = ("Hello", "  two\tlines\r\nof\u00a0text\u2028here ", "“Don’t” — she said… 10–20", "cafe\u0301", "हिन्दी",
             "It costs 3 €.", "Mr. Smith met Dr. J. Doe at 5 p.m. They talked, e.g. about fig. 3.",
             "", "...?!", "zero\u200bwidth", "One! Two? Three... (Four.) \"Five.\" 漢字。漢字！",
             "A sentence that has no full stop but commas, many of them, goes on and on, until it is cut; then it ends",
             "averyveryverylongwordwithoutanyspaceinsidethatcannotbecutanywherebutinthemiddleofit")
    return {"sentences": [{"text": each, "found": kit_sentences(each)} for each in given]}


def section_data() -> dict:
    """Mistake: another split, trim, level or code for the same clips; a bad row that gets in, a good one that is refused."""
    place, _, counts = kit_prepared()
    stored, codes = kit_stored_clips(place), kit_codes_of(place)
    one, several = ["take"] * 20, [f"session{number % 5}" for number in range(40)]
    table, rejected = kit_prepare_table(table_with_bad_rows(), SAMPLES / "held_out")
    return {"manifest": kit_manifest(place), "clips_sha256": sha256(*stored),
            "clips_rms": [float(np.sqrt(np.mean((each / 32768.0) ** 2))) for each in stored[:10]],
            "encoded_and_kept": counts, "frames": [len(each) for each in codes.values()],
            "codes_sha256": sha256(*(each.numpy() for _, each in sorted(codes.items()))),
            "split_of_one_recording": kit_split(one, 0.2, 3), "split_of_five_recordings": kit_split(several, 0.1, 3),
            "table_with_bad_rows": {"manifest": table, "rejected_rows": rejected}}


def section_recordings() -> dict:
    """Mistake: a recording that is cut elsewhere, or a flag of quality that is raised for other clips."""
    heard = [(f"The {each} dog ran away from the house.", 2.5, 0.95, None, f"The {each} dog ran away from the house.")
             for each in ("old", "red", "big", "new", "sad")]
    odd = [("", 2.0, 0.1, None, None), ("The dog.", 4.0, 0.5, 6.0, "A frog."), ("It is 20-10 & late.", 1.0, 0.8, None, None),
           heard[0]]
    return {"segments": kit_segments(), "quality": kit_quality(8), "transcript_flags": kit_transcript_flags([*heard, *odd])}


def section_statistics() -> dict:
    """Mistake: another bootstrap, correction or threshold, which calls a tie a win or a win a tie."""
    rows = synthetic_rows(10)
    few = [row for row in rows if row["sentence"] < 2]
    return {"figures": kit_figures(rows), "findings": kit_findings(rows), "verdict_numbers": kit_verdict_numbers(rows),
            "two_sentences": {"findings": kit_findings(few), "verdict_numbers": kit_verdict_numbers(few)},
            "holm": kit_holm([0.01, 0.04, 0.03, 0.2, 0.001])}


def section_judging() -> dict:
    """Mistake: other words counted, another loudness or pad before a judge, a clip compared with itself."""
    real = real_clips()
    texts = list(real)
    whole = list(real.values())[:2]
    samples, rate = soundfile.read(whole[0])
    soundfile.write(SCRATCH / "cut.flac", samples[:len(samples) * 2 // 5], rate)
    soundfile.write(SCRATCH / "silent.flac", np.zeros(rate), rate)
    files = [(str(whole[0]), texts[0]), (str(whole[1]), texts[1]), (str(SCRATCH / "cut.flac"), texts[0]),
             (str(SCRATCH / "silent.flac"), texts[0])]
    rows, scale = kit_judged([{"arm": "base", "sentence": number, "text": words, "seed": 1, "file": file}
                          for number, (file, words) in enumerate(files)], SCRATCH, real,
                         sorted((SAMPLES / "strangers").glob("*.flac"))[:2])
    pairs = (("The train leaves at 3:30 o'clock.", "the train leaves at three thirty"), ("One, two.", "1 2 3"),
             ("Don’t go (now)!", "do not go"), ("Okay.", ""))
    learnt = ["The dog ran away from the house.", "Who is that girl?"]
    return {"clips": [row | {"file": Path(row["file"]).name} for row in rows], "SIM_of_strangers_and_of_itself": scale,
            "word_errors": [kit_word_errors(*each) for each in pairs],
            "memorised": [kit_memorised(heard, "Count from one to ten.", learnt)
                          for heard in ("The dog ran away from a house.", "Count from one to ten.", "Who is that?")]}


def section_demo(printed: list[str] | None = None) -> dict:
    """Mistake: the same demo ends with other figures."""
    committed = ROOT / "tests" / "benchmarks" / "results" / "demo.json"
    return kit_demo_figures(printed or json.loads(committed.read_text(encoding="utf-8"))["printed"])


SECTIONS = {each.__name__.removeprefix("section_"): each for each in (
    section_texts, section_prompts, section_statistics, section_transformers_equality, section_data, section_recordings,
    section_training, section_speech, section_sound, section_judging, section_demo)}


def synthetic_rows(count: int) -> list[dict]:
    """Scored rows of five arms, two takes of each sentence: some better, some worse, some the same."""
    gains = {"base": (0.0, 0.3), "cloned": (0.1, 0.3), "finetuned": (0.12, 0.05), "finetuned_cloned": (0.1, 0.6),
             "rival": (0.1, 0.3)}
    hard, rows = np.random.default_rng(99).normal(0.6, 0.04, count), []
    for place, (arm, (gain, share)) in enumerate(gains.items()):
        chance = np.random.default_rng([5, place])
        for number in range(count):
            for seed in (1, 2):
                similarity, wrong = hard[number] + gain + chance.normal(0, 0.03), int(chance.binomial(9 + number % 3, share))
                rows.append({"arm": arm, "sentence": number, "text": f"sentence {number}", "seed": seed,
                             "file": f"{arm}{number}-{seed}", "SIM": round(float(similarity), 4),
                             "SIM_normalised": round(float(similarity) * 2 - 1, 4), "word_errors": wrong,
                             "reference_words": 9 + number % 3, "character_errors": 3 * wrong, "reference_characters": 40,
                             "MOS": round(float(chance.normal(3, 0.2)), 3), "noisy": bool(chance.integers(2)),
                             "duration_ratio": 1.1, "pitch_semitones": 0.3, "speaking_rate_ratio": 0.9, "failure": "",
                             "memorised": arm == "finetuned" and number == 1, "ended_with_eos": number != 3,
                             "judges": "constructed"})
    return rows


def table_with_bad_rows() -> Path:
    """Eight good clips, and five rows that cannot be used."""
    folder = SCRATCH / "table"
    folder.mkdir(exist_ok=True)
    good = sorted((SAMPLES / "voice").glob("session0[12]_0[1-4].flac"))
    for each in good:
        shutil.copy(each, folder)
    shutil.copy(good[0], folder / "again_01.flac")
    soundfile.write(folder / "short_01.flac", 0.3 * np.sin(np.arange(4_800) / 10), 24_000)
    soundfile.write(folder / "silent_01.flac", np.zeros(48_000), 24_000)
    rows = [(each.name, f"Clip {number} says   this", "emma") for number, each in enumerate(good)]
    rows[3:3] = [("again_01.flac", "The first again.", "emma"), ("short_01.flac", "Short.", "emma")]
    rows += [("silent_01.flac", "Silence.", "emma"), ("missing_01.flac", "Missing.", "emma"), (good[7].name, "...", "emma")]
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text", "source"), *rows])
    return folder


def real_clips() -> dict[str, Path]:
    """Text -> clip of six recordings of the voice."""
    with open(SAMPLES / "held_out" / "metadata.csv", encoding="utf-8", newline="") as file:
        return {row["text"]: SAMPLES / "held_out" / row["file_name"] for row in list(csv.DictReader(file))[:6]}


# --------------------------------------------------------------------------------------------------- recording, checking


def plain(value):
    """A value as JSON holds it: numbers of numpy become Python's, infinities become words."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def written(value, indent: str = "") -> str:
    """JSON, in which whatever fits stands in one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= 240 or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {written(each, inner)}" for name, each in value.items()]
    else:
        parts = [written(each, inner) for each in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{last}"


def compute(names: list[str], with_demo: bool) -> dict:
    """The sections of these names."""
    found = {}
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for name in names:
        start, quiet = time.monotonic(), StringIO()
        torch.manual_seed(0)
        # what the kit says meanwhile is not part of the outputs
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = plain(section_demo(kit_run_demo()) if name == "demo" and with_demo else SECTIONS[name]())
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return found


def differences(golden, found, path: str = "") -> list[tuple[str, str]]:
    """(place, what differs) of all that is not equal, or within RELATIVE where it is a number with a fraction."""
    if isinstance(golden, dict) and isinstance(found, dict):
        return [each for name in {**golden, **found} for each in differences(
            golden.get(name, "nothing"), found.get(name, "nothing"), f"{path}/{name}")]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        return [each for place, (one, other) in enumerate(zip(golden, found))
                for each in differences(one, other, f"{path}/{place}")]
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (golden, found))
    if numbers and float in (type(golden), type(found)):
        equal = math.isclose(golden, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        equal = type(golden) is type(found) and golden == found
    return [] if equal else [(path, f"{json.dumps(golden)[:120]} is now {json.dumps(found)[:120]}")]


def machine() -> dict[str, str]:
    """What can change the last bits of a result."""
    names = ("torch", "transformers", "peft", "numpy", "scipy", "soxr", "pyloudnorm", "faster-whisper", "onnxruntime")
    processor = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"processor": processor, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names}


def check(names: list[str], with_demo: bool, exact: bool) -> int:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if other := differences(golden["machine"], machine()):
        print("Recorded on another machine, where rounding may differ:")
        print(*(f"  {place} {how}" for place, how in other), sep="\n")
    found = differences({name: golden["sections"].get(name) for name in names}, compute(names, with_demo))
    notes = [] if exact else [each for each in found if each[0].endswith("_float_sha256")]
    for name in names:
        mine = [each for each in found if each[0].split("/")[1] == name]
        for place, how in mine[:SHOWN]:
            print(f"{'note, other bytes of floats' if (place, how) in notes else 'DIFFERS'}: {place}: {how}")
        if len(mine) > SHOWN:
            print(f"... and {len(mine) - SHOWN} more of {name}")
    print(f"{len(found) - len(notes)} differences and {len(notes)} notes in {len(names)} sections.")
    return int(len(found) > len(notes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--exact", action="store_true", help="differences in the last bits fail too")
    parser.add_argument("--demo", action="store_true", help="run the demo, which takes 5 minutes")
    options = parser.parse_args()
    names = options.only or list(SECTIONS)
    try:
        if options.verb == "check":
            return check(names, options.demo, options.exact)
        before = json.loads(GOLDEN.read_text(encoding="utf-8"))["sections"] if options.only else {}
        made = {"machine": machine(), "sections": before | compute(names, options.demo)}
        GOLDEN.write_text(written(made) + "\n", encoding="utf-8")
        return 0
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
