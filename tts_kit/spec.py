"""The numbers that a checkpoint fixes: sample rate, codebooks, positions, special token ids."""

from dataclasses import dataclass

from transformers import CsmConfig


@dataclass(frozen=True)
class ModelSpec:
    sample_rate: int
    samples_per_frame: int
    num_codebooks: int
    """Codes in a frame; the backbone predicts the first, the depth decoder the others."""
    codebook_size: int
    """Codes that the codec knows; the model's vocabulary is a little larger."""
    max_positions: int
    """Positions (text tokens and frames) of the backbone."""
    audio_token_id: int
    """Text token id that stands for a frame."""
    audio_eos_token_id: int
    """Text token id that stands for the frame that ends an utterance."""

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame

    @classmethod
    def of(cls, config: CsmConfig) -> "ModelSpec":
        codec = config.codec_config
        return cls(codec.sampling_rate, round(codec.sampling_rate / codec.frame_rate), config.num_codebooks,
                   codec.codebook_size, config.max_position_embeddings, config.audio_token_id, config.audio_eos_token_id)
