"""Audio to codes and back, always in true float32: 16-bit arithmetic would change the codes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import MimiModel

from tts_kit import device as devices
from tts_kit import pretrained
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec


class Codec:
    """Mimi in evaluation mode; takes and returns float32 waves at `spec.sample_rate`."""

    def __init__(self, model: MimiModel, spec: ModelSpec):
        self.model = model.float().eval().requires_grad_(False)
        self.spec = spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    def fingerprint(self) -> str:
        """Return what identifies the weights: other weights make other codes."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Encode waves of any lengths in one batch; returns one (frames, codebooks) int16 tensor per wave."""
        frame_size = self.spec.samples_per_frame
        frames = [-(-len(wave) // frame_size) for wave in waves]
        # padded to full frames, so that a clip's codes do not depend on its neighbours in the batch
        batch = np.zeros((len(waves), 1, max(frames) * frame_size), dtype=np.float32)
        for row, wave in zip(batch, waves):
            row[0, :len(wave)] = wave
        with devices.full_float32():
            codes = self.model.encode(torch.from_numpy(batch).to(self.device)).audio_codes
        codes = codes.transpose(1, 2).to("cpu", torch.int16).contiguous()
        return [row[:count].clone() for row, count in zip(codes, frames)]

    @torch.inference_mode()
    def decode(self, codes: Sequence[torch.Tensor], num_codebooks: int | None = None) -> list[np.ndarray]:
        """Decode (frames, codebooks) codes to waves; `num_codebooks` uses only the first ones, to hear what they carry."""
        frames = [len(clip) for clip in codes]
        if not max(frames, default=0):
            return [np.zeros(0, dtype=np.float32) for _ in codes]
        batch = pad_sequence([clip.long() for clip in codes], batch_first=True)
        batch = batch[..., :num_codebooks].transpose(1, 2).to(self.device)
        with devices.full_float32():
            waves = self.model.decode(batch).audio_values[:, 0].cpu().numpy()
        return [wave[:count * self.spec.samples_per_frame].copy() for wave, count in zip(waves, frames)]


def load(base: str, revision: str = "", device: str = "cpu") -> Codec:
    """Load only the codec of a CSM checkpoint, Mimi's own where it has none; the other weights are not kept in memory."""
    config, source, folder = pretrained.config(base, revision), base, ""
    if pretrained.original_weights(base, revision):
        source, revision, folder = pretrained.codec_source(base, revision)
    elif hasattr(config, "transformers_weights"):  # of several files, as sesame/csm-1b has them, the one in this layout
        config.codec_config.transformers_weights = config.transformers_weights
    model, report = pretrained.weights(MimiModel, source, revision, config=config.codec_config, dtype=torch.float32,
                                       key_mapping={r"^codec_model\.": ""}, subfolder=folder)
    if report["missing_keys"]:
        raise KitError(f"{source} lacks {len(report['missing_keys'])} of the codec's weights "
                       f"({sorted(report['missing_keys'])[0]}, ...). Download it again, or use another checkpoint.")
    return Codec(model.to(device), ModelSpec.of(config))
