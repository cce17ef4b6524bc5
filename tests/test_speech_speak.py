"""`speak`: four arms with one loaded model, long text, limits, retries, files."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from test_model_lora import randomize_adapter
from test_tokens_cache import tone

from tts_kit import audio, device
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.generation.engine import Generation, InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import lora
from tts_kit.speech import speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, Voice, load_voice


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


def test_four_arms_of_one_model_differ(voice, reference):
    """Mistake: the adapter stays on for the base arm, or the reference has no effect."""
    arms = {(finetuned, bool(arm_reference)): speak.speak("Hello.", voice, arm_reference, finetuned, seed=3).samples
            for finetuned in (False, True) for arm_reference in (None, reference)}
    names = list(arms)
    for number, one in enumerate(names):
        for other in names[number + 1:]:
            assert len(arms[one]) != len(arms[other]) or np.abs(arms[one] - arms[other]).max() > 1e-3, (one, other)


def test_the_adapter_is_on_again_after_the_base(voice):
    """Mistake: one base clip switches the adapter off for all later ones."""
    before = speak.speak("Hello.", voice, seed=3).samples
    speak.speak("Hello.", voice, finetuned=False, seed=3)
    np.testing.assert_array_equal(speak.speak("Hello.", voice, seed=3).samples, before)


def test_speech_is_float_audio_at_the_models_rate(voice, tmp_path):
    """Mistake: integers, another sample rate, or a file with other audio than was returned."""
    speech = speak.speak("Hello.", voice)
    speech.save(tmp_path / "hello.wav", watermarked=False)
    samples, rate = soundfile.read(tmp_path / "hello.wav", dtype="float32")
    assert speech.samples.dtype == np.float32 and rate == speech.sample_rate == 24_000
    np.testing.assert_allclose(samples, speech.samples.clip(-1, 1), atol=1e-4)
    assert speech.seconds == len(samples) / rate > 0


def test_the_limit_depends_on_the_text(voice):
    """Mistake: a fixed ten seconds cuts long sentences, and short ones go on without EOS."""
    short = speak.speak("No.", voice)
    long = speak.speak("This is a sentence of rather more words than the other one has.", voice)
    assert not short.ended_with_eos and not long.ended_with_eos
    assert short.seconds < 3.5 < long.seconds < 13


def test_long_text_is_spoken_in_sentences_with_pauses(voice):
    """Mistake: long text is cut at the model's positions, or sentences are lost or joined without a pause."""
    text = " ".join(f"This is sentence number {word}, which is here to fill the page a little." for word in
                    ("one", "two", "three", "four", "five", "six"))
    speech = speak.speak(text, voice, seed=1)
    from tts_kit.text import normalize, split_sentences
    assert speech.attempts == len(split_sentences(normalize(text))) > 1
    assert speech.seconds > 0.1 * speech.attempts


def test_a_failed_sample_is_tried_again_and_counted(voice):
    """Mistake: the attempts are not reported, or a sample without audio counts as a success."""
    voice.sampling = Sampling(0, 0)
    assert speak.speak("No end.", voice, retries=2).attempts == 3
    voice.base.model.lm_head.weight.data.zero_()
    voice.base.model.depth_decoder.codebooks_head.weight.data.zero_()
    empty = speak.speak("It ends at once.", voice, retries=1)
    assert empty.attempts == 2 and not empty.ended_with_eos and empty.seconds == 0


def test_long_text_is_generated_in_small_batches(voice, monkeypatch):
    """Mistake: a chapter becomes one batch of a hundred sentences and runs out of memory."""
    sizes = []
    generate = InferenceEngine.generate
    monkeypatch.setattr(InferenceEngine, "generate", lambda self, prompts, *args: (
        sizes.append(len(prompts)), generate(self, prompts, *args))[1])
    speak.speak("What? " * 60 + "This is one sentence. " * 80, voice)
    assert max(sizes) <= speak.BATCH_SIZE and sum(sizes) > speak.BATCH_SIZE


def test_an_unknown_file_type_is_refused_before_speaking(tmp_path):
    """Mistake: minutes of speech are lost because of the file's name."""
    with pytest.raises(KitError, match="ends in '.xyz'"):
        speak.check_path(tmp_path / "hello.xyz")


def test_a_missing_reference_is_named(voice, tmp_path):
    """Mistake: the error asks to remove a row from a table that never contained the reference."""
    with pytest.raises(KitError, match="the reference .*none.wav is no file"):
        speak.speak("Hello.", voice, Reference(tmp_path / "none.wav", "Hello."))


def test_batched_requests_keep_their_order(voice, reference):
    """Mistake: batching by length returns clips under the wrong sentence, arm or seed."""
    requests = [Request(text, seed, request_reference, finetuned) for text in ("One.", "A longer second line.")
                for seed in (1, 2) for request_reference in (None, reference) for finetuned in (False, True)]
    results = dict(speak.speak_requests(requests, voice))
    assert sorted(results) == list(range(len(requests)))
    for index in (0, 5, 10, 15):
        request = requests[index]
        single = speak.speak(request.text, voice, request.references, request.finetuned, request.seed)
        assert single.samples.shape == results[index].samples.shape
        np.testing.assert_allclose(single.samples, results[index].samples, atol=1e-4)


def test_several_references_are_all_used(voice, reference, tmp_path):
    """Mistake: of several clips only the first or the last is given to the model."""
    audio.write(tmp_path / "other.flac", tone(0.7, 300), 24_000)
    other = Reference(tmp_path / "other.flac", "Something else.")
    samples = {references: speak.speak("Hello.", voice, references, seed=3).samples for references in
               (reference, (reference,), (reference, other), (other, reference))}
    np.testing.assert_array_equal(samples[reference], samples[(reference,)])
    assert len({clip.tobytes() for clip in samples.values()}) == 3


def test_the_first_sentence_is_the_context_of_the_rest_if_it_has_eos(voice):
    """Mistake: the voice changes from sentence to sentence, or a first sample without EOS spoils all later ones."""
    first = Generation(voice.base.codec.encode([tone(0.5)])[0], ended_with_eos=True)
    requests = [Request("The first."), Request("The second.")]
    [turn] = speak.context_after_first(voice, requests, [], first)
    assert turn.text == "The first." and not turn.in_loss and turn.codes is first.codes
    assert speak.context_after_first(voice, requests, [], Generation(first.codes, ended_with_eos=False)) == []
    assert speak.context_after_first(voice, [Request("a" * 200), Request("b" * 400)], [], first) == []


@pytest.mark.parametrize(("text", "message"), [
    ("", "empty"), (" \n", "empty"), ("a\x00b", r"U\+0000"), ("...", "no letter"),
])
def test_unspeakable_text_is_refused(voice, text, message):
    """Mistake: empty or broken text is sent to the model, which generates noise."""
    with pytest.raises(KitError, match=message):
        speak.speak(text, voice)


def test_a_too_long_reference_is_refused(voice, tmp_path):
    """Mistake: a reference of half a minute fills the model's positions, and the sentence is empty."""
    audio.write(tmp_path / "long.wav", tone(40.0), 24_000)
    with pytest.raises(KitError, match="shorter"):
        speak.speak("Hello.", voice, Reference(tmp_path / "long.wav", "Long."))


def test_a_base_is_sampled_with_its_own_settings(toy, tmp_path):
    """Mistake: a small model is sampled with the settings of CSM-1B, or the user's settings are overruled."""
    folder = tmp_path / "copy"
    shutil.copytree(toy, folder)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings |= {"temperature": 0.5, "depth_decoder_temperature": 0.25, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    voice = load_voice(device.choose("cpu"), base=str(folder))
    assert voice.sampling == Sampling(0.5, 0.25, 7)
    assert voice.sampling.override(Config(temperature=0.0, top_k=3)) == Sampling(0.0, 0.25, 3)
    assert load_voice(device.choose("cpu"), base=toy).sampling == Sampling(0.9, 0.9, 50)
