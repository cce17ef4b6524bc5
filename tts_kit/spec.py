"""The numbers that a checkpoint decides and nobody may choose: rates, codebooks, special ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    sample_rate: int
    """Samples per second of the codec."""
    samples_per_frame: int
    """Samples in one frame of codes."""
    num_codebooks: int
    """Codes in one frame; the backbone predicts the first, the depth decoder the others."""
    codebook_size: int
    """Codes the codec knows; the model's own vocabulary is a little larger."""
    max_positions: int
    """Positions (text and frames) that fit into the backbone."""
    audio_token_id: int
    """Text id that stands for one frame."""
    audio_eos_token_id: int
    """Text id that stands for the frame that ends an utterance."""

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame

    @classmethod
    def of(cls, config) -> "ModelSpec":
        """Read them from a CsmConfig."""
        codec = config.codec_config
        return cls(sample_rate=codec.sampling_rate, samples_per_frame=round(codec.sampling_rate / codec.frame_rate),
                   num_codebooks=config.num_codebooks, codebook_size=codec.codebook_size,
                   max_positions=config.max_position_embeddings, audio_token_id=config.audio_token_id,
                   audio_eos_token_id=config.audio_eos_token_id)
