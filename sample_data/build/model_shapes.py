"""Create an untrained CSM of a chosen shape, as a folder for `CsmForConditionalGeneration.from_pretrained`."""

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

from sample_data.build import pronunciation, sentences
from tts_kit import pretrained
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, read_json, write_json

SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>", "<|finetune_right_pad_id|>")
CHAT_TEMPLATE = ("{% for turn in messages %}<|begin_of_text|>[{{ turn.role }}]{{ turn.content[0].text }}<|end_of_text|>"
                 "{% if turn.content | length > 1 %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}")

TINY = dict(
    num_codebooks=8, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
    depth=dict(hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=4, head_dim=48),
    codec=dict(sampling_rate=16000, num_filters=32, hidden_size=256, codebook_dim=64, codebook_size=512,
               vector_quantization_hidden_dimension=64, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=4, head_dim=64, intermediate_size=768, upsample_groups=256,
               upsampling_ratios=[20, 32], sliding_window=100))
SHAPES = {
    # two layers of everything, for tests
    "toy": dict(
        num_codebooks=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        depth=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=8),
        codec=dict(sampling_rate=24000, num_filters=4, hidden_size=16, codebook_dim=8, codebook_size=32,
                   vector_quantization_hidden_dimension=8, num_hidden_layers=1, num_attention_heads=2,
                   num_key_value_heads=2, head_dim=8, intermediate_size=32, upsample_groups=16),
    ),
    # trained from scratch on a laptop; BPE merges make its sentences a third as long
    "tiny": TINY | {"merges": 512},
    # the real codec with its 32 codebooks and a small network, for speed measurements on a CPU
    "small": dict(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        head_dim=64,
        depth=dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=1, head_dim=64),
        codec={},
    ),
    # the sizes of the real model, with random weights
    "csm-1b": dict(text_vocab_size=128256, depth={}, codec={}),
}
TRAINED_FOR_HOURS = TINY | {"codec": TINY["codec"] | dict(upsampling_ratios=[4, 5, 32], layer_scale_initial_scale=0.1)}
"""A codec of three stages, which is better than that of "tiny" after an hour; its language model can read in four ways."""
SHAPES |= {"tiny-merges": TRAINED_FOR_HOURS | {"merges": 512}, "tiny-letters": TRAINED_FOR_HOURS,
           "tiny-phonemes": TRAINED_FOR_HOURS | {"pronunciations": True},
           "tiny-merged-phonemes": TRAINED_FOR_HOURS | {"pronunciations": True, "merges": 256}}
DEFAULT_TEMPERATURES = (0.9, 0.9)
TEMPERATURES = {shape: (0.15, 0.1) for shape in SHAPES if shape.startswith("tiny")}
"""Sampling temperatures of backbone and depth decoder; a small model needs low ones."""
TOKENIZER_SENTENCES = 5000  # sentences of the grammar that the tokenizer learns its merges from


def config(shape: str) -> CsmConfig:
    """Return the configuration of a shape, with the ids of its tokenizer."""
    sizes = {"text_vocab_size": 0, "merges": 0, "pronunciations": False, **SHAPES[shape]}
    first_special_id = 256 + sizes.pop("merges")
    del sizes["pronunciations"]
    sizes["text_vocab_size"] = sizes["text_vocab_size"] or first_special_id + len(SPECIAL_TOKENS)
    depth, codec = sizes.pop("depth"), {"model_type": "mimi", **sizes.pop("codec")}
    codec.setdefault("codebook_size", 2048)
    codec["num_quantizers"] = sizes.get("num_codebooks", 32)
    vocab_size = codec["codebook_size"] + 3
    depth |= dict(num_codebooks=codec["num_quantizers"], backbone_hidden_size=sizes.get("hidden_size", 2048),
                  vocab_size=vocab_size, max_position_embeddings=codec["num_quantizers"] + 1)
    bos_id, eos_id, audio_id, audio_eos_id, _ = range(first_special_id, first_special_id + len(SPECIAL_TOKENS))
    return CsmConfig(**sizes, vocab_size=vocab_size, depth_decoder_config=depth, codec_config=codec, bos_token_id=bos_id,
                     pad_token_id=eos_id, audio_token_id=audio_id, audio_eos_token_id=audio_eos_id,
                     codebook_pad_token_id=vocab_size - 1, codebook_eos_token_id=0)


def untrained(shape: str, seed: int = 0) -> CsmForConditionalGeneration:
    """Return a CSM with random weights and codebooks, its audio embeddings tied."""
    torch.manual_seed(seed)
    with pretrained.quiet():
        model = CsmForConditionalGeneration(config(shape))
    # transformers 5.0 to 5.20 do not tie the two tables
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    quantizer = model.codec_model.quantizer
    for branch in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        for layer in branch.layers:
            layer.codebook.embed_sum.normal_()  # transformers initializes them with zeros, and all codes would be 0
    sampling = dict(do_sample=True, top_k=50)
    backbone_temperature, depth_temperature = TEMPERATURES.get(shape, DEFAULT_TEMPERATURES)
    model.generation_config.update(**sampling, temperature=backbone_temperature, max_new_tokens=125)
    model.depth_decoder.generation_config.update(**sampling, temperature=depth_temperature)
    return model


@functools.cache
def tokenizer(shape: str, with_dictionary: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the merges of the shape, learned from the grammar, its pronouncing dictionary,
    and CSM's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = itertools.islice(sentences.generate(0), TOKENIZER_SENTENCES)
    if SHAPES[shape].get("pronunciations"):
        # ByteLevel's own expression would split words between the letters and digits of the symbols
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        texts = itertools.chain(map(pronunciation.to_symbols, texts), (f" {symbols}" for symbols in
                                                                       pronunciation.table().values()))
    if merges := SHAPES[shape].get("merges"):
        trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
        bpe.train_from_iterator(texts, trainer)
    if with_dictionary and SHAPES[shape].get("pronunciations"):
        bpe.normalizer = pronunciation.normalizer()
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1],
                                   pad_token=SPECIAL_TOKENS[1])


def save(model: CsmForConditionalGeneration, folder: Path, shape: str) -> Path:
    """Write weights, configuration, tokenizer and processor, in the format of the hub; returns the folder."""
    rate = model.config.codec_config.sampling_rate
    processor = CsmProcessor(EncodecFeatureExtractor(sampling_rate=rate), tokenizer(shape), chat_template=CHAT_TEMPLATE)
    with pretrained.quiet(), atomic_folder(folder) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        _remove_origin(staging / GENERATION_CONFIG_NAME)
    return Path(folder)


def _remove_origin(path: Path) -> None:
    """Remove the mark that the generation config was derived from a model config; with it, transformers ignores the depth
    decoder's part."""
    settings = read_json(path, "Save the model again.")
    write_json(path, {name: value for name, value in settings.items() if not name.endswith("_from_model_config")})


def check_codec(codec: MimiModel, shape: str) -> None:
    """Raise an error if the weights or rates of a codec are not those of the shape."""
    codec_config = config(shape).codec_config
    with torch.device("meta"):
        expected_sizes = {name: weight.shape for name, weight in MimiModel(codec_config).state_dict().items()}
    sizes = {name: weight.shape for name, weight in codec.state_dict().items()}
    rates = [(mimi_config.sampling_rate, mimi_config.frame_rate) for mimi_config in (codec_config, codec.config)]
    if expected_sizes != sizes or rates[0] != rates[1]:
        raise KitError(f"the codec is not of the shape {shape!r}. Train it with --shape {shape}, or give another codec.")


def build(shape: str, folder: Path, seed: int = 0) -> Path:
    """Write an untrained checkpoint; returns its folder."""
    return save(untrained(shape, seed), folder, shape)
