"""What may keep a fine-tuned model reading: rehearsal of other speakers' clips, and KL divergence to the base model.

Both change a trainer of the kit before it starts; see `lora_recipe`, which measures whether they help."""

import itertools
import random
from collections.abc import Sequence

import torch
from torch.nn.functional import kl_div

from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import lora
from tts_kit.model.embed import embed_inputs
from tts_kit.model.load import Base
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import Turn
from tts_kit.training import dataset
from tts_kit.training.trainer import CsmTrainer

KL_EXAMPLES = 2  # sequences in each step


def add_rehearsal(trainer: CsmTrainer, base: Base, clips: Sequence[EncodedClip], share: float) -> None:
    """Replace a share of the training's examples by pairs of clips of another speaker, as the base was trained on."""
    train_set = trainer.train_dataset
    pairs = [dataset.join(dataset.without_labels(dataset.build_example(first, base.prompt_builder)),
                          dataset.build_example(second, base.prompt_builder))
             for first, second in itertools.pairwise(clips) if first.speaker == second.speaker]
    own = len(train_set.examples)
    train_set.examples = [*train_set.examples, *pairs]
    train_set.examples_without_text = [*train_set.examples_without_text, *pairs] if train_set.examples_without_text else []
    rng = random.Random(train_set.config.seed)
    train_set.plan = [[(own + rng.randrange(len(pairs)), None) if rng.random() < share else item for item in items]
                      for items in train_set.plan]


def add_kl(trainer: CsmTrainer, base: Base, texts: Sequence[str], weight: float) -> None:
    """Add the divergence of codebook 0 from the base model's, on speech that the base generates from texts alone."""
    model = lora.unwrap(trainer.model)
    with trainer.model.disable_adapter():
        batches = [_generated_batch(base, text, seed) for seed, text in enumerate(texts)]
        with torch.no_grad():
            targets = [_log_probabilities(model, batch) for batch in batches]
    own_loss = trainer.compute_loss

    def compute_loss(model_to_train, inputs, return_outputs=False, num_items_in_batch=None):
        loss = own_loss(model_to_train, inputs, return_outputs, num_items_in_batch)
        if not model_to_train.training:
            return loss
        start = KL_EXAMPLES * trainer.state.global_step
        for index in (number % len(batches) for number in range(start, start + KL_EXAMPLES)):
            divergence = kl_div(_log_probabilities(model, batches[index]), targets[index], reduction="batchmean",
                                log_target=True)
            loss = loss + weight / KL_EXAMPLES * divergence
        return loss

    trainer.compute_loss = compute_loss


def _generated_batch(base: Base, text: str, seed: int) -> dict:
    """Return a sentence that the model speaks in a voice of its own, as a batch."""
    prompt = base.prompt_builder.build(text, [Turn(text, "0")])
    engine = InferenceEngine(base.model, base.spec)
    [generation] = engine.generate([prompt], Sampling.from_generation_config(base.generation_config), [seed], [125])
    example = base.prompt_builder.build(text, [Turn(text, "0", generation.codes)])
    return dataset.collate([example], dataset.sample_depth_frames([example], 0.0, 0), packing=False)


def _log_probabilities(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Return the log probabilities (frames, codes) of codebook 0."""
    hidden = model.backbone_model(inputs_embeds=embed_inputs(model, batch), position_ids=batch["position_ids"],
                                  use_cache=False).last_hidden_state
    states = hidden.flatten(0, 1).index_select(0, batch["predictor_index"])
    return model.lm_head(states).float().log_softmax(-1)
