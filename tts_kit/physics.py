"""The numbers that a checkpoint decides and nobody may choose: rates, codebooks, special ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Physics:
    sample_rate: int
    """Samples per second of the codec."""
    frame_samples: int
    """Samples in one frame of codes."""
    codebooks: int
    """Codes in one frame; the backbone predicts the first, the depth decoder the others."""
    codebook_size: int
    """Codes the codec knows; the model's own vocabulary is a little larger."""
    longest: int
    """Positions (text and frames) that fit into the backbone."""
    audio_id: int
    """Text id that stands for one frame."""
    audio_end_id: int
    """Text id that stands for the frame that ends an utterance."""

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.frame_samples

    @classmethod
    def of(cls, config) -> "Physics":
        """Read them from a CsmConfig."""
        codec = config.codec_config
        return cls(sample_rate=codec.sampling_rate, frame_samples=round(codec.sampling_rate / codec.frame_rate),
                   codebooks=config.num_codebooks, codebook_size=codec.codebook_size,
                   longest=config.max_position_embeddings, audio_id=config.audio_token_id,
                   audio_end_id=config.audio_eos_token_id)
