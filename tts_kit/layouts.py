"""The original layout of CSM checkpoints, with torchtune's names and RoPE: config from shapes, weights converted."""

import re
from collections.abc import Mapping

import torch
from transformers import CsmConfig

from tts_kit.errors import KitError

ORIGINAL_ONLY = "codebook0_head.weight"  # a weight whose name tells the original layout
LLAMA_3_VOCABULARY = 128256
NAMES = (  # in the original layout, in transformers'
    ("backbone.layers.", "backbone_model.layers."), ("backbone.norm.scale", "backbone_model.norm.weight"),
    ("decoder.layers.", "depth_decoder.model.layers."), ("decoder.norm.scale", "depth_decoder.model.norm.weight"),
    (".sa_norm.scale", ".input_layernorm.weight"), (".mlp_norm.scale", ".post_attention_layernorm.weight"),
    (".attn.output_proj.", ".self_attn.o_proj."), (".attn.", ".self_attn."),
    (".mlp.w1.", ".mlp.gate_proj."), (".mlp.w2.", ".mlp.down_proj."), (".mlp.w3.", ".mlp.up_proj."),
    ("text_embeddings.", "embed_text_tokens."),
    ("audio_embeddings.", "backbone_model.embed_tokens.embed_audio_tokens."),
    ("codebook0_head.", "lm_head."), ("audio_head", "depth_decoder.codebooks_head.weight"),
    ("projection.", "depth_decoder.model.inputs_embeds_projector."))
FLAVORS = {  # hidden and intermediate size -> flavor, head_dim, which no shape tells
    (2048, 8192): ("llama-1B", 64), (1024, 8192): ("llama-100M", 128),  # sesame/csm-1b
    (4096, 14336): ("llama-8B", 128), (1536, 6912): ("llama-300M", 64),  # MisoLabs/MisoTTS
    (1536, 8192): ("llama-250M", 128), (1024, 4096): ("llama-60M", 128)}  # Marvis-AI/marvis-tts-250m
ORIGINAL_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
"""RoPE of every original checkpoint: torchtune's for Llama 3.2, whose low, high and original length are 1, 4 and 8192."""


def config_from_shapes(shapes: Mapping[str, list[int]], codec_config: dict, source: str) -> CsmConfig:
    """Return the config of an original checkpoint, of which no shape tells head_dim and the tokenizer's ids."""
    text_vocabulary, (depth_heads, _, vocabulary) = shapes["text_embeddings.weight"][0], shapes["audio_head"]
    if text_vocabulary != LLAMA_3_VOCABULARY:
        raise KitError(f"{source} has the original layout and {text_vocabulary} text tokens; the ids of its special tokens "
                       f"are known for Llama 3's {LLAMA_3_VOCABULARY} only. {_give_config(source)}")
    shared = {"num_codebooks": depth_heads + 1, "vocab_size": vocabulary}
    backbone, depth = (_sizes(shapes, part, length, source) for part, length in (("backbone", 1024), ("decoder", 16)))
    return CsmConfig(**shared, **backbone, text_vocab_size=text_vocabulary, codebook_pad_token_id=vocabulary - 1,
                     depth_decoder_config=shared | depth | {"backbone_hidden_size": backbone["hidden_size"],
                                                            "max_position_embeddings": depth_heads + 2},
                     codec_config={"model_type": "mimi"} | codec_config | {"num_quantizers": depth_heads + 1})


def _sizes(shapes: Mapping[str, list[int]], part: str, rope_length: int, source: str) -> dict:
    """Return the sizes of backbone or depth decoder.

    transformers wants RoPE's original length below the part's positions; the factors are scaled with it, so that the
    frequencies stay the same."""
    hidden, intermediate = shapes[f"{part}.norm.scale"][0], shapes[f"{part}.layers.0.mlp.w1.weight"][0]
    if (hidden, intermediate) not in FLAVORS:
        raise KitError(f"{source} has the original layout, and its {part} the unknown sizes {hidden} and {intermediate}: "
                       f"whether it has heads of 64 or 128 cannot be seen. {_give_config(source)}")
    _, head_dim = FLAVORS[hidden, intermediate]
    heads, kv_heads = (shapes[f"{part}.layers.0.attn.{name}_proj.weight"][0] // head_dim for name in "qk")
    rope = {"original_max_position_embeddings": rope_length, "low_freq_factor": rope_length / 8192,
            "high_freq_factor": 4 * rope_length / 8192}
    return {"hidden_size": hidden, "intermediate_size": intermediate, "head_dim": head_dim, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "rope_parameters": ORIGINAL_ROPE | rope,
            "num_hidden_layers": sum(name.startswith(f"{part}.layers.") and name.endswith(".sa_norm.scale")
                                     for name in shapes)}


def _give_config(source: str) -> str:
    return f"Put a config.json of transformers' CsmConfig with the right sizes beside the weights of {source} (a folder)."


def flavor_fields(config: CsmConfig) -> dict:
    """Return what the original code reads from config.json; without flavors for sizes that it does not know."""
    parts = {"backbone_flavor": config, "decoder_flavor": config.depth_decoder_config}
    flavors = {name: FLAVORS.get((part.hidden_size, part.intermediate_size)) for name, part in parts.items()}
    return {"text_vocab_size": config.text_vocab_size, "audio_vocab_size": config.vocab_size,
            "audio_num_codebooks": config.num_codebooks, **{name: flavor[0] for name, flavor in flavors.items() if flavor}}


def convert(weights: Mapping[str, torch.Tensor], config: CsmConfig, to_original: bool = False) -> dict[str, torch.Tensor]:
    """Return weights by their names in the other layout; only those of queries and keys are copied.

    Their rows change order: the original RoPE rotates neighbouring rows of a head, transformers' the halves."""
    converted = {}
    for name, weight in weights.items():
        if projection := re.search(r"\.([qk])_proj\.weight$", name):
            part = config.depth_decoder_config if "decoder" in name else config
            heads = part.num_attention_heads if projection[1] == "q" else part.num_key_value_heads
            weight = weight.unflatten(0, (heads, 2, -1) if to_original else (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        for original, transformers in NAMES:
            name = name.replace(transformers, original) if to_original else name.replace(original, transformers)
        converted[name] = weight
    return converted
