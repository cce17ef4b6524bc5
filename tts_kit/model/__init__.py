"""CSM: loading it, its input embedding and licence, packed attention, LoRA and its losses."""
