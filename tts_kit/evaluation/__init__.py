"""How clips are scored: judges of words, voice and naturalness, the figures of an arm, and how sure they are."""
