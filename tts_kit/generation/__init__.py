"""Autoregressive generation: sampling, fused decoder layers with a static KV cache, the inference engine."""
