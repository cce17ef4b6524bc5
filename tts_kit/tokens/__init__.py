"""Utterances as codec tokens: the codec, the codes on disk, and the sequences that the model reads."""
