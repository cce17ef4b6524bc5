"""The other side of train_step: Trainer and PEFT as the public notebook uses them, its known bugs mended.

Mended: the depth loss weighs as much as the backbone's, no adapter sits on the codec, the audio tables are one, the end
frame is learnt, padding is masked.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.functional import pad
from transformers import TrainingArguments

from sample_data.build import shape
from tests.benchmarks import shapes
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.model import lora
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import IGNORE_INDEX, Example, PromptBuilder
from tts_kit.training import dataset

RANK, SEED = 32, 3407
SECONDS, POSITIONS, MICRO_BATCH = 10, 256, 2
"""To which sound and text are padded, and the clips of one micro-batch."""
SIDES = {"stock": "transformers' Trainer and PEFT, the public notebook's way, its bugs mended",
         "unsloth": "unsloth's FastModel with transformers' Trainer, the public notebook's way, its bugs mended"}
OPTIMIZER = "fused AdamW on both sides; the notebook's adamw_8bit would need bitsandbytes"


class StockTrainer(transformers.Trainer):
    """Transformers' own loop and forward; a step's loss is the mean over all of its frames."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # so that the step's frames are counted

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # the count stays out of the forward, where it would weigh the depth loss once for each of its codebooks
        return model(**inputs).loss * (inputs["labels"] != IGNORE_INDEX).sum() / num_items_in_batch


def arguments(batch: int, steps: int, taken: DeviceConfig, folder: Path) -> TrainingArguments:
    """The notebook's, but for the optimizer and the order of clips, which is the kit's."""
    if batch > 1 and batch % MICRO_BATCH:
        raise KitError(f"--batch is {batch}; the notebook takes {MICRO_BATCH} clips at a time. Give 1 or a multiple of it.")
    return TrainingArguments(
        output_dir=str(folder / "stock"), per_device_train_batch_size=min(MICRO_BATCH, batch),
        gradient_accumulation_steps=max(1, batch // MICRO_BATCH), max_steps=steps, warmup_steps=10,
        learning_rate=2e-4, weight_decay=0.001, lr_scheduler_type="linear", optim="adamw_torch_fused", seed=SEED,
        bf16=taken.dtype == torch.bfloat16, fp16=taken.dtype == torch.float16, use_cpu=taken.device == "cpu",
        logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        train_sampling_strategy="sequential", dataloader_pin_memory=taken.device == "cuda")


def padded(clips: Sequence[EncodedClip], sounds: Sequence[shapes.Sound], prompt_builder: PromptBuilder) -> list[dict]:
    """Clips as the notebook's processor gives them: ids and labels of one width, and the wave, which is encoded in the
    forward. (The forward cuts each wave to its clip, so that only memory and copying pay for the padding of sound.)"""
    numbers = prompt_builder.spec
    return [_padded(dataset.build_example(clip, prompt_builder), sound, SECONDS * numbers.sample_rate + 1)
            for clip, sound in zip(clips, sounds)]


def _padded(example: Example, sound: shapes.Sound, samples: int) -> dict:
    room, silence = POSITIONS - len(example), samples - len(sound.wave)
    if room < 0 or silence < 0:
        raise KitError(f"a clip has {len(example)} positions and {len(sound.wave)} samples; the notebook pads to "
                       f"{POSITIONS} "
                      f"and {samples}. Use --seconds {SECONDS} or less.")
    return {"input_ids": pad(example.input_ids, (0, room), value=int(example.input_ids[0])),
            "attention_mask": pad(torch.ones_like(example.input_ids), (0, room)),
            "labels": pad(torch.where(example.audio_mask, example.input_ids, IGNORE_INDEX), (0, room), value=IGNORE_INDEX),
            "input_values": pad(torch.from_numpy(sound.wave), (0, silence))[None],
            "input_values_cutoffs": torch.tensor([len(sound.wave)])}


def stock_model(name: str, taken: DeviceConfig):
    """The notebook's network: its codec inside in float32, no adapter on that."""
    model = shapes.network(name, taken.device)
    for part in (model.embed_text_tokens, model.backbone_model, model.depth_decoder, model.lm_head):
        shapes.cast(part, taken.dtype)
    torch.manual_seed(SEED)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0,
                                            target_modules=lora.target_pattern("both")))


def unsloth_model(name: str, taken: DeviceConfig, folder: Path):
    """The same network through unsloth, with the notebook's options."""
    from unsloth import FastModel

    saved = shape.build(name, folder / name)
    model, _ = FastModel.from_pretrained(str(saved), auto_model=transformers.CsmForConditionalGeneration, dtype=taken.dtype,
                                         max_seq_length=2048, load_in_4bit=False)
    table = model.depth_decoder.model.embed_tokens
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = table.weight
    return FastModel.get_peft_model(model, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", random_state=SEED,
                                    target_modules=lora.target_pattern("both"), use_gradient_checkpointing="unsloth")


def why_not(against: str, taken: DeviceConfig) -> str:
    """Why the other side cannot run here; empty where it can."""
    if against == "stock":
        return ""
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed"
    return f"unsloth needs an NVIDIA GPU, and the device is {taken.device}" * (taken.device != "cuda")
