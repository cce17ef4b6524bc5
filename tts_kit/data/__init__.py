"""Recordings or clips with transcripts -> a manifest of checked, loudness-normalized, split utterances."""
