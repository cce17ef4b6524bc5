"""Streaming: chunks without discontinuities, bounded memory, and the same speech as `speak` generates."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model_lora import randomize_adapter
from test_tokens_cache import tone
from torch import nn
from transformers import MimiModel
from transformers.models.mimi.modeling_mimi import MimiLayerScale

from sample_data.build import model_shapes
from tts_kit import audio, device
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import lora
from tts_kit.pretrained import ModelSpec
from tts_kit.speech import speak
from tts_kit.speech.voice import Reference, Voice, load_voice
from tts_kit.tokens import codec as codecs
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.streaming import StreamingDecoder

TINY = Path(__file__).parents[1] / "sample_data" / "tiny-csm"
LONG = " ".join(f"This is sentence number {word} of three, each too long to be said together with the one that comes after."
                for word in ("one", "two", "three"))


@pytest.fixture
def voice(spread_base):
    """The toy with spread logits and an adapter of random weights."""
    model = lora.add_lora(spread_base.model, 4, 8.0)
    randomize_adapter(model)
    return Voice(spread_base, model, "0", Sampling(0.9, 0.9, 8), normalize_loudness=False)


@pytest.fixture
def reference(tmp_path):
    audio.write(tmp_path / "reference.wav", tone(1.0), 24_000)
    return Reference(tmp_path / "reference.wav", "This is the reference.")


def make_codec(size: str = "toy", **changes) -> Codec:
    """An untrained codec in which every layer has an effect: codebooks and layer scales are initialized near zero."""
    torch.manual_seed(0)
    config = model_shapes.config(size)
    for name, value in changes.items():
        setattr(config.codec_config, name, value)
    model = MimiModel(config.codec_config)
    for part in (model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer):
        for layer in part.layers:
            layer.codebook.embed_sum.normal_()
    for module in model.modules():
        if isinstance(module, MimiLayerScale):
            nn.init.constant_(module.scale, 0.5)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3 if size == "toy" else 0.03)
    return Codec(model, ModelSpec.of(config))


def make_codes(codec: Codec, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, codec.spec.codebook_size, (frames, codec.spec.num_codebooks), generator=generator)


def decode_in_chunks(codec: Codec, codes: torch.Tensor, sizes: list[int]) -> np.ndarray:
    """Decode codes in chunks of these sizes, repeated."""
    decoder, chunks, decoded_frames = StreamingDecoder(codec), [], 0
    while decoded_frames < len(codes):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(decoder.decode(codes[decoded_frames:decoded_frames + size]))
        assert len(chunks[-1]) == len(codes[decoded_frames:decoded_frames + size]) * codec.spec.samples_per_frame
        decoded_frames += size
    return np.concatenate(chunks)


def check_seamless(codec: Codec, codes: torch.Tensor, sizes: list[int]) -> None:
    [whole] = codec.decode([codes])
    joined = decode_in_chunks(codec, codes, sizes)
    assert joined.dtype == np.float32 and joined.shape == whole.shape
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-5 * max(1.0, np.abs(whole).max()))


@pytest.mark.parametrize("sizes", [[1], [3], [2, 1, 7, 4], [100]], ids=str)
@pytest.mark.parametrize("changes", [
    {}, {"num_residual_layers": 3}, {"use_conv_shortcut": True}, {"pad_mode": "replicate"}, {"upsample_groups": 4},
    {"residual_kernel_size": 7, "last_kernel_size": 5, "dilation_growth_rate": 3, "num_residual_layers": 2},
    {"upsampling_ratios": [5, 3, 16, 4]},
], ids=lambda changes: " ".join(changes) or "as it is")
def test_joined_chunks_equal_the_whole(changes, sizes):
    """Mistake: a click between chunks, because a context, tail, shortcut, group or bias is lost, doubled or late."""
    codec = make_codec(**changes)
    check_seamless(codec, make_codes(codec, 30), sizes)


@pytest.mark.parametrize("sizes", [[1], [3], [2, 2, 3, 4, 6, 9, 12]], ids=str)
def test_the_bundled_codec_has_no_seams(sizes):
    """Mistake: only the toy codec is seamless, and not a trained one with other rates and ratios."""
    codec = codecs.load(str(TINY))
    check_seamless(codec, make_codes(codec, 70), sizes)


def test_a_codec_of_real_sizes_has_no_seams():
    """Mistake: 32 codebooks, eight layers or 512 groups, which the small codecs do not have, are not seamless."""
    codec = make_codec("csm-1b")
    check_seamless(codec, make_codes(codec, 12), [1, 3, 2])


def test_the_attention_window_slides():
    """Mistake: after ten seconds the chunks attend to more, or less, of the past than the whole does."""
    narrow = make_codec(sliding_window=7)
    codes = make_codes(narrow, 60)
    for sizes in ([1], [5], [4, 11]):
        check_seamless(narrow, codes, sizes)
    wide = make_codec(sliding_window=250)
    assert np.abs(narrow.decode([codes])[0] - wide.decode([codes])[0]).max() > 0.01


def held_bytes(value) -> int:
    """Return the bytes that a stream holds, without the codec's own weights."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, (nn.Module, Codec)):
        return 0
    if isinstance(value, (list, tuple)):
        return sum(held_bytes(item) for item in value)
    return sum(held_bytes(item) for item in vars(value).values()) if hasattr(value, "__dict__") else 0


def test_memory_does_not_grow_with_the_stream():
    """Mistake: an hour of speech keeps all keys and values, or every chunk through a view of its end."""
    codec = make_codec(sliding_window=40)
    decoder, sizes = StreamingDecoder(codec), []
    for count, frame in enumerate(make_codes(codec, 500), 1):
        decoder.decode(frame[None])
        if count in (50, 500):
            sizes.append(held_bytes(decoder.layers))
    assert sizes[0] == sizes[1] > 1000
    convolutions = [step for step in decoder.layers if not hasattr(step, "kv_cache")]
    before = held_bytes(convolutions)
    decoder.decode(make_codes(codec, 300))
    assert held_bytes(convolutions) == before > 1000


def test_a_stream_uses_the_codecs_own_weights():
    """Mistake: every sentence copies the codec."""
    codec = make_codec()
    before = {weight.data_ptr() for weight in codec.model.parameters()}
    assert {step.conv.weight.data_ptr() for step in StreamingDecoder(codec).layers if hasattr(step, "conv")} <= before


def test_two_streams_of_one_codec_are_independent():
    """Mistake: the state is in the codec, and a second stream changes the first."""
    codec = make_codec()
    one, other = make_codes(codec, 12), make_codes(codec, 13)
    first, second, chunks = StreamingDecoder(codec), StreamingDecoder(codec), []
    for frame in range(12):
        chunks.append(first.decode(one[frame:frame + 1]))
        second.decode(other[frame:frame + 1])
        codec.decode([other])
    np.testing.assert_array_equal(np.concatenate(chunks), decode_in_chunks(codec, one, [1]))


def test_no_frames_give_no_samples():
    """Mistake: an empty chunk is an error, or adds a gap."""
    codec = make_codec()
    decoder, codes = StreamingDecoder(codec), make_codes(codec, 4)
    chunks = [decoder.decode(part) for part in (codes[:0], codes[:2], codes[:0], codes[2:])]
    assert [len(chunk) // codec.spec.samples_per_frame for chunk in chunks] == [0, 2, 0, 2]
    np.testing.assert_allclose(np.concatenate(chunks), codec.decode([codes])[0], atol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_causal_conv": False}, "use_causal_conv"), ({"trim_right_ratio": 0.5}, "trim_right_ratio 0.5"),
    ({"pad_mode": "reflect"}, "pad_mode 'reflect'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'dynamic'"),
])
def test_a_codec_that_cannot_be_streamed_is_refused(changes, message):
    """Mistake: a codec with lookahead is decoded in chunks, and clicks."""
    with pytest.raises(KitError, match=message):
        StreamingDecoder(make_codec(**changes))


def test_an_unknown_layer_is_refused():
    """Mistake: a new kind of layer, which may have a state, is taken for one without."""
    codec = make_codec()
    decoder = getattr(codec.model.decoder, "decoder_seanet", codec.model.decoder)
    decoder.layers[1] = nn.LSTM(2, 2)
    with pytest.raises(KitError, match="a layer LSTM"):
        StreamingDecoder(codec)


@pytest.mark.parametrize("finetuned", [True, False])
@pytest.mark.parametrize("text", ["Hello.", LONG], ids=["one sentence", "several"])
def test_a_stream_equals_speak(voice, reference, finetuned, text):
    """Mistake: other seeds, limits, contexts or pauses than in `speak`, or one arm for the other."""
    references = reference if finetuned else None
    whole = speak.speak(text, voice, references, finetuned, seed=4)
    streamed = np.concatenate(list(speak.stream_speech(text, voice, references, finetuned, seed=4)))
    assert whole.attempts == len(speak.split_requests(text)) == (1 if text == "Hello." else 3)
    assert streamed.dtype == np.float32 and streamed.shape == whole.samples.shape
    np.testing.assert_allclose(streamed, whole.samples, rtol=0, atol=1e-4)


def test_the_first_sentence_is_the_context_of_the_rest_in_a_stream_too():
    """Mistake: a streamed chapter changes its voice from sentence to sentence, unlike `speak`."""
    tiny = dataclasses.replace(load_voice(device.choose("cpu"), base=str(TINY)), normalize_loudness=False)
    text = ("Who is that girl over there by the river, and why does she wait? " * 3 + "We met in the garden. "
            "The river is deep.")
    whole, streamed = speak.speak(text, tiny, seed=1), np.concatenate(list(speak.stream_speech(text, tiny, seed=1)))
    assert whole.attempts > 1 and whole.ended_with_eos
    assert streamed.shape == whole.samples.shape
    np.testing.assert_allclose(streamed, whole.samples, rtol=0, atol=1e-4)


@pytest.fixture
def frame_counts(monkeypatch):
    """The numbers of generated frames and of open generations."""
    counts, original, generators = {"frames": 0, "open": 0}, InferenceEngine.stream, []

    def counted(*arguments):
        counts["open"] += 1
        try:
            for frame in original(*arguments):
                counts["frames"] += 1
                yield frame
        finally:
            counts["open"] -= 1

    def counting(*arguments):
        generators.append(counted(*arguments))  # held here, so that only closing closes them
        return generators[-1]

    monkeypatch.setattr(InferenceEngine, "stream", counting)
    return counts


def test_the_first_chunk_comes_after_two_frames(voice, frame_counts):
    """Mistake: the stream generates the whole sentence, or a long chunk, before its first chunk."""
    speech_stream = speak.stream_speech("This is a sentence of rather more words than the other one has.", voice)
    assert frame_counts["frames"] == 0
    chunk = next(speech_stream)
    assert frame_counts["frames"] == 2 and len(chunk) == 2 * voice.base.spec.samples_per_frame
    rest = [len(chunk) // voice.base.spec.samples_per_frame for chunk in speech_stream]
    assert rest[:8] == [2, 2, 3, 4, 6, 9, 12, 12] and max(rest) == 12 and frame_counts["open"] == 0


def test_chunks_arrive_before_the_last_one_ends():
    """Mistake: chunks grow faster than the audio that was already delivered lasts."""
    start, clock, played = None, 0.0, 0
    while played < 500:
        size = speak.next_chunk_frames(played)
        clock += 0.7 * size
        start = clock if start is None else start
        assert clock <= start + played + 1e-9
        played += size


def test_closing_a_stream_frees_the_voice(voice, frame_counts):
    """Mistake: the adapter stays off, and the caches stay allocated, after a client has disconnected."""
    before = speak.speak("Hello.", voice, seed=3).samples
    speech_stream, open_before = speak.stream_speech(LONG, voice, finetuned=False), frame_counts["open"]
    next(speech_stream)
    assert frame_counts["open"] == open_before + 1
    speech_stream.close()
    assert frame_counts["open"] == open_before and list(speech_stream) == []
    np.testing.assert_array_equal(speak.speak("Hello.", voice, seed=3).samples, before)


def test_the_eos_frame_is_never_decoded(voice, monkeypatch):
    """Mistake: the EOS frame, or one after it, is decoded as a click."""
    codes = make_codes(voice.base.codec, 8)
    codes[5, :-1] = 0
    monkeypatch.setattr(InferenceEngine, "stream", lambda *arguments: (frame[None] for frame in codes))
    streamed = np.concatenate(list(speak.stream_speech("Hello.", voice)))
    np.testing.assert_allclose(streamed, voice.base.codec.decode([codes[:5]])[0], atol=1e-5)
    codes[0] = 0
    assert list(speak.stream_speech("Hello.", voice)) == []
