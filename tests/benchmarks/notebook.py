"""The other side of train_step: Trainer and PEFT as the public notebook uses them, its known bugs fixed.

Fixed: the depth loss weighs as much as the backbone's, the codec has no adapter, the audio embedding tables are tied, the
EOS frame is trained, padding is masked.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.functional import pad
from transformers import TrainingArguments

from sample_data.build import model_shapes
from tests.benchmarks import shapes
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.model import lora
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import IGNORE_INDEX, Example, PromptBuilder
from tts_kit.training import dataset

RANK, SEED = 32, 3407
SECONDS, POSITIONS, MICRO_BATCH = 10, 256, 2
"""Seconds to which audio is padded, positions to which text is padded, clips of one micro-batch."""
SIDES = {"stock": "transformers' Trainer and PEFT, the public notebook's way, its bugs mended",
         "unsloth": "unsloth's FastModel with transformers' Trainer, the public notebook's way, its bugs mended"}
OPTIMIZER = "fused AdamW on both sides; the notebook's adamw_8bit would need bitsandbytes"


class StockTrainer(transformers.Trainer):
    """Transformers' own training loop and forward; a step's loss is the mean over all of its frames."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # so that the step's frames are counted

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # the count stays out of the forward, where it would weigh the depth loss once for each of its codebooks
        return model(**inputs).loss * (inputs["labels"] != IGNORE_INDEX).sum() / num_items_in_batch


def arguments(batch: int, steps: int, device_config: DeviceConfig, folder: Path) -> TrainingArguments:
    """Return the notebook's arguments, except for the optimizer and the order of clips, which are the kit's."""
    if batch > 1 and batch % MICRO_BATCH:
        raise KitError(f"--batch is {batch}; the notebook takes {MICRO_BATCH} clips at a time. Give 1 or a multiple of it.")
    return TrainingArguments(
        output_dir=str(folder / "stock"), per_device_train_batch_size=min(MICRO_BATCH, batch),
        gradient_accumulation_steps=max(1, batch // MICRO_BATCH), max_steps=steps, warmup_steps=10,
        learning_rate=2e-4, weight_decay=0.001, lr_scheduler_type="linear", optim="adamw_torch_fused", seed=SEED,
        bf16=device_config.dtype == torch.bfloat16, fp16=device_config.dtype == torch.float16,
        use_cpu=device_config.device == "cpu", logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False, train_sampling_strategy="sequential",
        dataloader_pin_memory=device_config.device == "cuda")


def padded_examples(clips: Sequence[EncodedClip], raw_clips: Sequence[shapes.AudioClip],
                    prompt_builder: PromptBuilder) -> list[dict]:
    """Return clips as the notebook's processor does: ids and labels of one width, and the waveform, which is encoded in the
    forward. (The forward cuts each waveform to its clip, so padded audio costs only memory and copying.)"""
    spec = prompt_builder.spec
    return [_padded_example(dataset.build_example(clip, prompt_builder), audio_clip, SECONDS * spec.sample_rate + 1)
            for clip, audio_clip in zip(clips, raw_clips)]


def _padded_example(example: Example, audio_clip: shapes.AudioClip, samples: int) -> dict:
    text_padding, audio_padding = POSITIONS - len(example), samples - len(audio_clip.wave)
    if text_padding < 0 or audio_padding < 0:
        raise KitError(f"a clip has {len(example)} positions and {len(audio_clip.wave)} samples; the notebook pads to "
                       f"{POSITIONS} and {samples}. Use --seconds {SECONDS} or less.")
    labels = torch.where(example.audio_mask, example.input_ids, IGNORE_INDEX)
    return {"input_ids": pad(example.input_ids, (0, text_padding), value=int(example.input_ids[0])),
            "attention_mask": pad(torch.ones_like(example.input_ids), (0, text_padding)),
            "labels": pad(labels, (0, text_padding), value=IGNORE_INDEX),
            "input_values": pad(torch.from_numpy(audio_clip.wave), (0, audio_padding))[None],
            "input_values_cutoffs": torch.tensor([len(audio_clip.wave)])}


def stock_model(name: str, device_config: DeviceConfig):
    """Return the notebook's network: the codec in float32 and without an adapter."""
    model = shapes.network(name, device_config.device)
    for part in (model.embed_text_tokens, model.backbone_model, model.depth_decoder, model.lm_head):
        shapes.cast(part, device_config.dtype)
    torch.manual_seed(SEED)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0,
                                            target_modules=lora.target_pattern("both")))


def unsloth_model(name: str, device_config: DeviceConfig, folder: Path):
    """Return the same network through unsloth, with the notebook's options."""
    from unsloth import FastModel

    model_folder = model_shapes.build(name, folder / name)
    model, _ = FastModel.from_pretrained(str(model_folder), auto_model=transformers.CsmForConditionalGeneration,
                                         dtype=device_config.dtype, max_seq_length=2048, load_in_4bit=False)
    table = model.depth_decoder.model.embed_tokens
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = table.weight
    return FastModel.get_peft_model(model, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", random_state=SEED,
                                    target_modules=lora.target_pattern("both"), use_gradient_checkpointing="unsloth")


def missing_requirement(against: str, device_config: DeviceConfig) -> str:
    """Return why the other side cannot run on this machine, "" if it can."""
    if against != "unsloth":
        return ""
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed"
    return "" if device_config.device == "cuda" else f"unsloth needs an NVIDIA GPU, and the device is {device_config.device}"
