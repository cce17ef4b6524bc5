"""An untrained CSM of a chosen size, as a folder that plain `CsmForConditionalGeneration.from_pretrained` loads."""

import functools
import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    EncodecFeatureExtractor,
    MimiModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import GENERATION_CONFIG_NAME

from sample_data.build import sentences
from tts_kit import pretrained
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, read_json, write_json

SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>", "<|finetune_right_pad_id|>")
CHAT = ("{% for turn in messages %}<|begin_of_text|>[{{ turn.role }}]{{ turn.content[0].text }}<|end_of_text|>"
        "{% if turn.content | length > 1 %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}")

SHAPES = {
    # two layers of everything: for proofs, not for ears
    "toy": dict(
        num_codebooks=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        depth=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=8),
        codec=dict(sampling_rate=24000, num_filters=4, hidden_size=16, codebook_dim=8, codebook_size=32,
                   vector_quantization_hidden_dimension=8, num_hidden_layers=1, num_attention_heads=2,
                   num_key_value_heads=2, head_dim=8, intermediate_size=32, upsample_groups=16),
    ),
    # the size that is trained from scratch on a laptop; merged letters make its sentences a third as long
    "tiny": dict(
        merges=512,
        num_codebooks=8, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
        depth=dict(hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
                   num_key_value_heads=4, head_dim=48),
        codec=dict(sampling_rate=16000, num_filters=32, hidden_size=256, codebook_dim=64, codebook_size=512,
                   vector_quantization_hidden_dimension=64, num_hidden_layers=3, num_attention_heads=4,
                   num_key_value_heads=4, head_dim=64, intermediate_size=768, upsample_groups=256,
                   upsampling_ratios=[20, 32], sliding_window=100),
    ),
    # the real codec and its 32 codebooks under a network that a laptop can time: what speed is measured with on a CPU
    "small": dict(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        head_dim=64,
        depth=dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=1, head_dim=64),
        codec={},
    ),
    # the real thing's sizes, with random weights
    "csm-1b": dict(text_vocab_size=128256, depth={}, codec={}),
}
DEFAULT_TEMPERATURES, TEMPERATURES = (0.9, 0.9), {"tiny": (0.15, 0.1)}
"""At what backbone and depth decoder should be sampled: the smaller, the less can a second thought be trusted."""
TOKENIZER_SENTENCES = 5000
"""Sentences of the grammar from which the tokenizer learns which letters go together."""


def config(shape: str) -> CsmConfig:
    """The configuration of a shape, with the ids of its tokenizer."""
    sizes = {"text_vocab_size": 0, "merges": 0, **SHAPES[shape]}
    plain = 256 + sizes.pop("merges")
    sizes["text_vocab_size"] = sizes["text_vocab_size"] or plain + len(SPECIAL_TOKENS)
    depth, codec = sizes.pop("depth"), {"model_type": "mimi", **sizes.pop("codec")}
    codec.setdefault("codebook_size", 2048)
    codec["num_quantizers"] = sizes.get("num_codebooks", 32)
    words = codec["codebook_size"] + 3
    depth |= dict(num_codebooks=codec["num_quantizers"], backbone_hidden_size=sizes.get("hidden_size", 2048),
                  vocab_size=words, max_position_embeddings=codec["num_quantizers"] + 1)
    begin, end, audio, audio_end, _ = range(plain, plain + len(SPECIAL_TOKENS))
    return CsmConfig(**sizes, vocab_size=words, depth_decoder_config=depth, codec_config=codec, bos_token_id=begin,
                     pad_token_id=end, audio_token_id=audio, audio_eos_token_id=audio_end,
                     codebook_pad_token_id=words - 1, codebook_eos_token_id=0)


def untrained(shape: str, seed: int = 0) -> CsmForConditionalGeneration:
    """A CSM with random weights, its audio embeddings tied and its codec's codebooks filled."""
    torch.manual_seed(seed)
    with pretrained.quiet():
        model = CsmForConditionalGeneration(config(shape))
    # transformers 5.0 to 5.20 leave the two tables apart
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    quantizer = model.codec_model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        for layer in part.layers:
            layer.codebook.embed_sum.normal_()  # transformers starts them at zero, where every code is 0
    sampling, (first, others) = dict(do_sample=True, top_k=50), TEMPERATURES.get(shape, DEFAULT_TEMPERATURES)
    model.generation_config.update(**sampling, temperature=first, max_new_tokens=125)
    model.depth_decoder.generation_config.update(**sampling, temperature=others)
    return model


@functools.cache
def tokenizer(shape: str) -> PreTrainedTokenizerFast:
    """One token a byte, so that no text is unknown, and as many merged ones as the shape has, learnt from the grammar;
    the special tokens are named as in CSM."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if merges := SHAPES[shape].get("merges"):
        trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(itertools.islice(sentences.generate(0), TOKENIZER_SENTENCES), trainer)
    made.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1], pad_token=SPECIAL_TOKENS[1])


def save(model: CsmForConditionalGeneration, folder: Path, shape: str) -> Path:
    """Weights, configuration, tokenizer and processor of a shape, as the hub has them."""
    rate = model.config.codec_config.sampling_rate
    processor = CsmProcessor(EncodecFeatureExtractor(sampling_rate=rate), tokenizer(shape), chat_template=CHAT)
    with pretrained.quiet(), atomic_folder(folder) as beside:
        model.save_pretrained(beside)
        processor.save_pretrained(beside)
        _say_sampling(beside / GENERATION_CONFIG_NAME)
    return Path(folder)


def _say_sampling(path: Path) -> None:
    """Without what transformers overlooks the depth decoder's part for: that the file was derived from a model's config."""
    told = read_json(path, "Save the model again.")
    write_json(path, {name: value for name, value in told.items() if not name.endswith("_from_model_config")})


def check_codec(codec: MimiModel, shape: str) -> None:
    """A codec fits a model when its weights and rates are those that the model's configuration names."""
    wanted = config(shape).codec_config
    with torch.device("meta"):
        sizes = {name: weight.shape for name, weight in MimiModel(wanted).state_dict().items()}
    found = {name: weight.shape for name, weight in codec.state_dict().items()}
    rates = [(each.sampling_rate, each.frame_rate) for each in (wanted, codec.config)]
    if sizes != found or rates[0] != rates[1]:
        raise KitError(f"the codec is not of the shape {shape!r}. Train it with --shape {shape}, or give another codec.")


def build(shape: str, folder: Path, seed: int = 0) -> Path:
    """An untrained checkpoint on disk."""
    return save(untrained(shape, seed), folder, shape)
