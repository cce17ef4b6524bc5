"""tts_kit: teach a token-based text-to-speech model one new voice, and know whether it worked."""
