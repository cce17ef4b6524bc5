"""Speech over HTTP with OpenAI's interface: `app` answers requests, `schemas` checks them, `queue` generates their audio in
batches and `audio_format` encodes it."""
