"""CSM: loading it, packed attention, its input embedding, LoRA and its losses."""
