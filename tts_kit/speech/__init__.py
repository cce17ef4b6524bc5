"""Text to speech: voices (a base with or without an adapter), speaking a text, and streaming it while it is generated."""
