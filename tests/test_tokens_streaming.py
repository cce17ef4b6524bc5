"""Streaming: chunks of sound without seams, bounded memory, and the same speech as when it is made whole."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_model_lora import randomize_adapter
from test_tokens_cache import tone
from torch import nn
from transformers import MimiModel
from transformers.models.mimi.modeling_mimi import MimiLayerScale

from sample_data.build import model_shapes
from tts_kit import audio, device
from tts_kit.cli import main
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import lora
from tts_kit.pretrained import ModelSpec
from tts_kit.speech import speak, stream
from tts_kit.speech.voice import Reference, Voice, load_voice
from tts_kit.tokens import codec as codecs
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.streaming import StreamingDecoder

TINY = Path(__file__).parents[1] / "sample_data" / "tiny-csm"
LONG = " ".join(f"This is sentence number {word} of three, each too long to be said together with the one that comes after."
                for word in ("one", "two", "three"))


@pytest.fixture
def voice(spread_base):
    """A tuned toy that says something definite."""
    model = lora.add_lora(spread_base.model, 4, 8.0)
    randomize_adapter(model)
    return Voice(spread_base, model, "0", Sampling(0.9, 0.9, 8))


@pytest.fixture
def reference(tmp_path):
    audio.write(tmp_path / "reference.wav", tone(1.0), 24_000)
    return Reference(tmp_path / "reference.wav", "This is the reference.")


def make_codec(size: str = "toy", **changes) -> Codec:
    """An untrained codec in which every layer is heard: codebooks and layer scales begin near zero."""
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


def in_chunks(codec: Codec, codes: torch.Tensor, sizes: list[int]) -> np.ndarray:
    """Codes decoded in chunks of these sizes, over and over."""
    decoder, pieces, done = StreamingDecoder(codec), [], 0
    while done < len(codes):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(decoder.decode(codes[done:done + size]))
        assert len(pieces[-1]) == len(codes[done:done + size]) * codec.spec.samples_per_frame
        done += size
    return np.concatenate(pieces)


def assert_seamless(codec: Codec, codes: torch.Tensor, sizes: list[int]) -> None:
    [whole] = codec.decode([codes])
    got = in_chunks(codec, codes, sizes)
    assert got.dtype == np.float32 and got.shape == whole.shape
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-5 * max(1.0, np.abs(whole).max()))


@pytest.mark.parametrize("sizes", [[1], [3], [2, 1, 7, 4], [100]], ids=str)
@pytest.mark.parametrize("changes", [
    {}, {"num_residual_layers": 3}, {"use_conv_shortcut": True}, {"pad_mode": "replicate"}, {"upsample_groups": 4},
    {"residual_kernel_size": 7, "last_kernel_size": 5, "dilation_growth_rate": 3, "num_residual_layers": 2},
    {"upsampling_ratios": [5, 3, 16, 4]},
], ids=lambda changes: " ".join(changes) or "as it is")
def test_chunks_joined_are_the_whole(changes, sizes):
    """Mistake: a click at every seam, since a context, tail, shortcut, group or bias is lost, doubled or late."""
    codec = make_codec(**changes)
    assert_seamless(codec, make_codes(codec, 30), sizes)


@pytest.mark.parametrize("sizes", [[1], [3], [2, 2, 3, 4, 6, 9, 12]], ids=str)
def test_the_bundled_codec_has_no_seams(sizes):
    """Mistake: a trained codec, other rates and ratios than the toy's, are seamless in theory only."""
    codec = codecs.load(str(TINY))
    assert_seamless(codec, make_codes(codec, 70), sizes)


def test_a_codec_of_real_sizes_has_no_seams():
    """Mistake: 32 codebooks, eight layers, 512 groups: what the small codecs do not have."""
    codec = make_codec("csm-1b")
    assert_seamless(codec, make_codes(codec, 12), [1, 3, 2])


def test_the_window_slides():
    """Mistake: after ten seconds the chunks hear more, or less, of the past than the whole does."""
    narrow = make_codec(sliding_window=7)
    codes = make_codes(narrow, 60)
    for sizes in ([1], [5], [4, 11]):
        assert_seamless(narrow, codes, sizes)
    wide = make_codec(sliding_window=250)
    assert np.abs(narrow.decode([codes])[0] - wide.decode([codes])[0]).max() > 0.01


def kept(thing) -> int:
    """Bytes of everything a stream holds but the codec's own weights."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, (nn.Module, Codec)):
        return 0
    if isinstance(thing, (list, tuple)):
        return sum(kept(each) for each in thing)
    return sum(kept(each) for each in vars(thing).values()) if hasattr(thing, "__dict__") else 0


def test_memory_does_not_grow_with_what_was_said():
    """Mistake: an hour of reading aloud keeps every key, or every chunk through a view of its end."""
    codec = make_codec(sliding_window=40)
    decoder, sizes = StreamingDecoder(codec), []
    for count, frame in enumerate(make_codes(codec, 500), 1):
        decoder.decode(frame[None])
        if count in (50, 500):
            sizes.append(kept(decoder.layers))
    assert sizes[0] == sizes[1] > 1000
    convolutions = [step for step in decoder.layers if not hasattr(step, "kv_cache")]
    before = kept(convolutions)
    decoder.decode(make_codes(codec, 300))
    assert kept(convolutions) == before > 1000


def test_a_stream_uses_the_codecs_own_weights():
    """Mistake: every sentence copies the codec."""
    codec = make_codec()
    before = {weight.data_ptr() for weight in codec.model.parameters()}
    assert {step.conv.weight.data_ptr() for step in StreamingDecoder(codec).layers if hasattr(step, "conv")} <= before


def test_two_streams_of_one_codec_do_not_hear_each_other():
    """Mistake: the state lies in the codec, and a second listener garbles the first."""
    codec = make_codec()
    one, other = make_codes(codec, 12), make_codes(codec, 13)
    first, second, pieces = StreamingDecoder(codec), StreamingDecoder(codec), []
    for frame in range(12):
        pieces.append(first.decode(one[frame:frame + 1]))
        second.decode(other[frame:frame + 1])
        codec.decode([other])
    np.testing.assert_array_equal(np.concatenate(pieces), in_chunks(codec, one, [1]))


def test_no_frames_are_no_sound():
    """Mistake: an empty chunk is an error, or a gap."""
    codec = make_codec()
    decoder, codes = StreamingDecoder(codec), make_codes(codec, 4)
    pieces = [decoder.decode(part) for part in (codes[:0], codes[:2], codes[:0], codes[2:])]
    assert [len(piece) // codec.spec.samples_per_frame for piece in pieces] == [0, 2, 0, 2]
    np.testing.assert_allclose(np.concatenate(pieces), codec.decode([codes])[0], atol=1e-5)


@pytest.mark.parametrize(("changes", "seen"), [
    ({"use_causal_conv": False}, "use_causal_conv"), ({"trim_right_ratio": 0.5}, "trim_right_ratio 0.5"),
    ({"pad_mode": "reflect"}, "pad_mode 'reflect'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'dynamic'"),
])
def test_a_codec_that_cannot_be_streamed_is_refused(changes, seen):
    """Mistake: a codec that looks ahead is decoded in chunks all the same, and clicks."""
    with pytest.raises(KitError, match=seen):
        StreamingDecoder(make_codec(**changes))


def test_a_layer_that_nobody_knows_is_refused():
    """Mistake: a new kind of layer, which may keep something, is taken for one that does not."""
    codec = make_codec()
    holder = getattr(codec.model.decoder, "decoder_seanet", codec.model.decoder)
    holder.layers[1] = nn.LSTM(2, 2)
    with pytest.raises(KitError, match="a layer LSTM"):
        StreamingDecoder(codec)


@pytest.mark.parametrize("finetuned", [True, False])
@pytest.mark.parametrize("text", ["Hello.", LONG], ids=["one sentence", "several"])
def test_a_stream_says_what_speak_says(voice, reference, finetuned, text):
    """Mistake: other seeds, limits, contexts or pauses than in `speak`, or one arm for the other."""
    given = reference if finetuned else None
    whole = speak.speak(text, voice, given, finetuned, seed=4)
    flow = stream.SpeechStream(text, voice, given, finetuned, seed=4)
    got = np.concatenate(list(flow))
    assert whole.attempts == len(speak.split_requests(text)) == (1 if text == "Hello." else 3)
    assert got.dtype == np.float32 and got.shape == whole.samples.shape and flow.ended_with_eos == whole.ended_with_eos
    np.testing.assert_allclose(got, whole.samples, rtol=0, atol=1e-4)
    assert flow.seconds == pytest.approx(whole.seconds) and flow.sample_rate == whole.sample_rate
    assert 0 < flow.first_audio_seconds <= flow.wall_seconds


def test_the_first_sentence_is_the_context_of_the_rest_in_a_stream_too():
    """Mistake: a streamed chapter changes its voice from sentence to sentence, unlike one that is made whole."""
    tiny = load_voice(device.choose("cpu"), base=str(TINY))
    text = ("Who is that girl over there by the river, and why does she wait? " * 3 + "We met in the garden. "
            "The river is deep.")
    whole, flow = speak.speak(text, tiny, seed=1), stream.SpeechStream(text, tiny, seed=1)
    got = np.concatenate(list(flow))
    assert whole.attempts > 1 and whole.ended_with_eos and flow.ended_with_eos
    assert got.shape == whole.samples.shape
    np.testing.assert_allclose(got, whole.samples, rtol=0, atol=1e-4)


@pytest.fixture
def frames_made(monkeypatch):
    """How many frames were generated, and how many generations are still open."""
    seen, real, all_of_them = {"frames": 0, "open": 0}, InferenceEngine.stream, []

    def counted(*arguments):
        seen["open"] += 1
        try:
            for frame in real(*arguments):
                seen["frames"] += 1
                yield frame
        finally:
            seen["open"] -= 1

    def counting(*arguments):
        all_of_them.append(counted(*arguments))  # held here, so that only closing closes them
        return all_of_them[-1]

    monkeypatch.setattr(InferenceEngine, "stream", counting)
    return seen


def test_the_first_sound_comes_after_two_frames(voice, frames_made):
    """Mistake: streaming that makes the whole sentence, or a long chunk, before it hands out anything."""
    flow = stream.SpeechStream("This is a sentence of rather more words than the other one has.", voice)
    assert frames_made["frames"] == 0
    chunk = next(flow)
    assert frames_made["frames"] == 2 and len(chunk) == 2 * voice.base.spec.samples_per_frame
    rest = [len(chunk) // voice.base.spec.samples_per_frame for chunk in flow]
    assert rest[:8] == [2, 2, 3, 4, 6, 9, 12, 12] and max(rest) == 12 and frames_made["open"] == 0


def test_sound_that_is_made_fast_enough_never_pauses():
    """Mistake: chunks grow faster than the sound already handed out lasts."""
    heard, clock, handed = None, 0.0, 0
    while handed < 500:
        size = stream.next_chunk_frames(handed)
        clock += 0.7 * size
        heard = clock if heard is None else heard
        assert clock <= heard + handed + 1e-9
        handed += size


def test_a_listener_who_leaves_frees_the_voice(voice, frames_made):
    """Mistake: the adapter stays off, and the caches stay held, after a listener hung up."""
    before = speak.speak("Hello.", voice, seed=3).samples
    flow, others = stream.SpeechStream(LONG, voice, finetuned=False), frames_made["open"]
    next(flow)
    assert frames_made["open"] == others + 1
    flow.close()
    assert frames_made["open"] == others and list(flow) == []
    np.testing.assert_array_equal(speak.speak("Hello.", voice, seed=3).samples, before)


def test_the_end_frame_is_never_heard(voice, monkeypatch):
    """Mistake: the frame that ends an utterance, or one after it, is decoded as a click."""
    codes = make_codes(voice.base.codec, 8)
    codes[5, :-1] = 0
    monkeypatch.setattr(InferenceEngine, "stream", lambda *arguments: (frame[None] for frame in codes))
    flow = stream.SpeechStream("Hello.", voice)
    got = np.concatenate(list(flow))
    np.testing.assert_allclose(got, voice.base.codec.decode([codes[:5]])[0], atol=1e-5)
    assert flow.ended_with_eos
    codes[0] = 0
    nothing = stream.SpeechStream("Hello.", voice)
    assert list(nothing) == [] and not nothing.ended_with_eos and nothing.first_audio_seconds is None


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("...", "no letter")])
def test_a_text_that_cannot_be_said_is_refused_at_once(voice, text, message):
    """Mistake: a server has already answered 200 when the text turns out to be empty."""
    with pytest.raises(KitError, match=message):
        stream.SpeechStream(text, voice)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_stream_is_saved_as_what_was_heard(voice, tmp_path, suffix):
    """Mistake: another format, rate, length or loudness than `speak --out` writes."""
    path = stream.SpeechStream("Hello.", voice, seed=2).save(tmp_path / "new" / f"hello.{suffix}", watermarked=False)
    whole = speak.speak("Hello.", voice, seed=2)
    whole.save(tmp_path / f"whole.{suffix}", watermarked=False)
    for each in (path, tmp_path / f"whole.{suffix}"):
        samples, rate = soundfile.read(each, dtype="float32")
        assert rate == whole.sample_rate and soundfile.info(each).subtype == "PCM_16"
        np.testing.assert_allclose(samples, whole.samples.clip(-1, 1), atol=1e-4)
    assert [each.name for each in path.parent.iterdir()] == [path.name] and path.stat().st_mode & 0o777 == 0o644


def test_a_stream_that_breaks_off_leaves_what_was_there(voice, tmp_path, monkeypatch, frames_made):
    """Mistake: half a file under the name of a whole one, and its beginnings beside it."""
    path = tmp_path / "hello.wav"
    path.write_bytes(b"an older take")
    made = []
    real = StreamingDecoder.decode
    monkeypatch.setattr(StreamingDecoder, "decode", lambda self, codes: made.append(codes) or real(self, codes) * np.float32(
        np.nan if len(made) == 3 else 1.0))
    with pytest.raises(KitError, match="NaN or infinity"):
        stream.SpeechStream("This is a sentence of some words.", voice).save(path, watermarked=False)
    assert len(made) == 3 and frames_made["open"] == 0
    assert path.read_bytes() == b"an older take" and [each.name for each in tmp_path.iterdir()] == ["hello.wav"]
    with pytest.raises(KitError, match="ends in '.xyz'"):
        stream.SpeechStream("Hello.", voice).save(tmp_path / "hello.xyz")
    assert len(made) == 3


def test_the_verb_streams(toy, tmp_path, monkeypatch, capsys):
    """Mistake: `speak --stream` writes nothing, does not say when the first sound came, or takes --retries in silence."""
    monkeypatch.chdir(tmp_path)
    given = ["speak", "Hello.", "--no-adapter", "--base", toy, "--device", "cpu", "--stream"]
    assert main([*given, "--out", "hello.flac"]) == 0
    assert re.search(r"hello\.flac: \d+\.\d s in \d+\.\d s, first audio after \d\.\d\d s, (ended|reached)",
                     capsys.readouterr().out)
    assert soundfile.info("hello.flac").frames > 0
    assert main([*given, "--retries", "2"]) == 1
    assert "--retries" in capsys.readouterr().err
