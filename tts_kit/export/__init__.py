"""Export: the adapter or merged weights with their model card, to a folder or the hub."""
