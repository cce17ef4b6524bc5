"""CSM: loading it, its licence, its input embedding, packed attention, LoRA and its losses."""
