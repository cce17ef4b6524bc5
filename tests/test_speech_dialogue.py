"""Dialogue: the prompt of alternating speakers, its limits, the script and the command line."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from test_generation_engine import stock_codes
from test_model_lora import randomize_adapter
from test_tokens_cache import tone

from tts_kit import audio, device
from tts_kit.cli import main
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.generation.engine import Generation
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.speech import dialogue, speak
from tts_kit.speech.dialogue import Conversation, Line
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Voice, find_reference, load_voices
from tts_kit.tokens.prompt import Turn

CPU = device.choose("cpu")
LONG = "This is one sentence of the line, and it is a rather long one, so that not two of them fit. " * 3
GREEDY = Sampling(0, 0)


@pytest.fixture(scope="module")
def sources(spread_toy, tmp_path_factory) -> dict:
    """Sources of four voices: two adapters for the toy, one in the folder of a run; a clip with its transcript; the base."""
    root, sources = tmp_path_factory.mktemp("voices"), {}
    for number, (name, folder) in enumerate((("anna", root / "runs" / "anna" / "adapter"), ("ben", root / "ben")), 1):
        base = load.load_base(spread_toy, CPU)
        model = lora.add_lora(base.model, 4, 8.0)
        randomize_adapter(model)
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                weight.data.mul_(number)
        lora.save(model, folder, base, Config(base=spread_toy).to_json(), {"speaker": "3"})
        sources[name] = folder
    sources["anna"] = root / "runs" / "anna"
    (root / "runs" / "anna" / "config.json").write_text("{}")
    audio.write(root / "carl.wav", tone(1.0), 24_000)
    (root / "carl.txt").write_text("These are my words.", encoding="utf-8")
    return sources | {"carl": root / "carl.wav", "dora": "base"}


@pytest.fixture(scope="module")
def voices(sources) -> dict:
    return {name: replace(voice, sampling=Sampling(0.9, 0.9, 8)) for name, voice in load_voices(CPU, sources).items()}


def complete(frames: int, seed: int = 0) -> Generation:
    """A generation that ended by itself, of random codes."""
    codes = torch.randint(1, 32, (frames, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    return Generation(codes, ended_with_eos=True)


@pytest.fixture
def all_complete(monkeypatch):
    """Every generation counts as complete, which those of untrained weights never are."""
    monkeypatch.setattr(Generation, "is_complete", property(lambda self: True))


# the prompt

def test_two_turns_equal_transformers_on_a_prompt_built_by_hand(base, stock, all_complete):
    """Mistake: a turn under the wrong speaker, in the wrong order, without its codes or its EOS frame."""
    from conftest import spread_logits

    spread_logits(base, stock)
    voice = Voice(base, base.model, sampling=GREEDY)
    spoken = dialogue.dialogue([("anna", "Hello, Ben."), ("ben", "Hi.")], {"anna": voice, "ben": voice})
    first, second = [turn.generations[0].codes for turn in spoken.turns]
    tokens = base.prompt_builder.tokenizer
    ids = tokens("<|begin_of_text|>[0]Hello, Ben.<|end_of_text|>", add_special_tokens=False).input_ids
    frames = torch.cat([first.long(), torch.zeros(1, 4, dtype=torch.long)])
    ids_of_second = tokens("<|begin_of_text|>[1]Hi.<|end_of_text|>", add_special_tokens=False).input_ids
    example = base.prompt_builder.build("by hand", [Turn("Hello, Ben.", "0", first), Turn("Hi.", "1")])
    assert example.input_ids.tolist() == [*ids, *[base.spec.audio_token_id] * len(first), base.spec.audio_eos_token_id,
                                          *ids_of_second]
    assert example.codes[len(ids):len(ids) + len(frames)].tolist() == frames.tolist()
    assert stock_codes(stock, base, example, len(second)).tolist() == second.tolist() and len(second.unique()) > 3
    alone = speak.speak("Hi.", voice).generations[0].codes
    assert alone.tolist() != second.tolist(), "the conversation has no effect"


@pytest.mark.parametrize(("name", "text"), [("anna", "Hello."), ("carl", "Hello."), ("dora", LONG)])
def test_one_turn_equals_speak(voices, name, text):
    """Mistake: a dialogue speaks with other seeds, contexts or pauses than `speak`."""
    spoken = dialogue.dialogue([(name, text)], voices, seed=5)
    np.testing.assert_array_equal(spoken.samples, speak.speak(text, voices[name], seed=5).samples)


def test_each_speaker_keeps_its_voice(voices, all_complete):
    """Mistake: an adapter stays on for the next speaker, or the turns are not those of the file."""
    lines = [("anna", "One."), ("ben", "Two."), ("dora", "Three."), ("anna", "Four.")]
    spoken = dialogue.dialogue(lines, voices, seed=1, pause_seconds=0.25)
    assert spoken.seconds == pytest.approx(sum(turn.seconds for turn in spoken.turns) + 3 * 0.25)
    again = dialogue.dialogue(lines, voices, seed=1, pause_seconds=0.25)
    np.testing.assert_array_equal(again.samples, spoken.samples)
    swapped = dialogue.dialogue([("anna", "One."), ("anna", "Two.")], voices, seed=1)
    np.testing.assert_array_equal(swapped.turns[0].samples, spoken.turns[0].samples)
    assert swapped.turns[1].samples.tobytes() != spoken.turns[1].samples.tobytes()


def test_who_was_trained_as_a_speaker_speaks_as_that_one(voices):
    """Mistake: an adapter is prompted as another speaker than it was trained as, or two people share one number."""
    conversation = Conversation({name: voices[name] for name in ("anna", "ben", "carl", "dora")})
    for name, text in (("anna", "A."), ("ben", "B."), ("carl", "C."), ("dora", "D.")):
        conversation.add(name, [Request(text)], [complete(3)])
    for name in ("anna", "ben", "carl", "dora"):
        voice, turns = conversation.context(name, [Request("Well.")])
        speakers = {turn.text: turn.speaker for turn in turns}
        numbers = [speakers[text] for text in ("A.", "B.", "C.", "D.")]
        assert len({*numbers}) == 4 and voice.speaker == speakers[f"{name[0].upper()}."]
        assert speakers["These are my words."] == speakers["C."]
        assert voice.speaker == "3" or name in ("carl", "dora")


def test_the_oldest_turns_are_dropped_and_no_reference(voices):
    """Mistake: a long conversation exceeds the model's positions, or pushes out the clip that makes the voice."""
    conversation = Conversation({name: voices[name] for name in ("anna", "carl")})
    for number in range(12):
        conversation.add("anna", [Request(f"Turn number {number}.")], [complete(40, number)])
    voice, turns = conversation.context("carl", [Request("Well, then.")])
    texts = [turn.text for turn in turns]
    assert texts[0] == "These are my words." and 2 < len(texts) < 13
    assert texts[1:] == [f"Turn number {number}." for number in range(13 - len(texts), 12)]
    prompt, max_frames = speak.build_prompt(voice, Request("Well, then."), turns)
    assert len(prompt) + max_frames <= voice.base.spec.max_positions
    assert max_frames == round(speak.max_speech_seconds("Well, then.") * voice.base.spec.frame_rate)
    assert not any(turn.in_loss for turn in turns)


def test_a_failed_sentence_is_no_context(voices):
    """Mistake: noise without an end spoils all turns after it."""
    conversation = Conversation({"anna": voices["anna"]})
    conversation.add("anna", [Request("Cut."), Request("Whole.")], [replace(complete(9), ended_with_eos=False), complete(9)])
    assert [turn.text for turn in conversation.context("anna", [Request("Next.")])[1]] == ["Whole."]


# voices

def test_voices_share_one_model(voices):
    """Mistake: each speaker loads the model again."""
    assert len({id(voice.base.model) for voice in voices.values()}) == 1
    assert len({id(voice.engine) for voice in voices.values()}) == 1
    assert [*voices] == ["anna", "ben", "carl", "dora"] and [len(voice.context) for voice in voices.values()] == [0, 0, 1, 0]
    assert voices["anna"].speaker == "3" and voices["anna"].is_trained and not voices["dora"].is_finetuned


def test_voices_of_two_models_are_refused(voices, toy):
    """Mistake: codes of one codec are given to another model."""
    other = load_voices(CPU, {"eve": toy})["eve"]
    with pytest.raises(KitError, match="share one base model; these have 2: .*Use adapters of one base"):
        dialogue.dialogue([("anna", "Hello."), ("eve", "Hi.")], voices | {"eve": other})


def test_a_clip_needs_its_transcript(tmp_path):
    """Mistake: a clip without words clones badly, without a message; a Windows path is cut at its colon."""
    audio.write(tmp_path / "clip.wav", tone(1.0), 24_000)
    clip = tmp_path / "clip.wav"
    with pytest.raises(KitError, match=r"clip.wav has no transcript. Write its exact words into .*clip.txt"):
        find_reference(clip)
    assert find_reference(f"{clip}:Ten to one: go.").text == "Ten to one: go."
    assert find_reference("C:\\voices\\ben.flac:Words.").path.name.endswith("ben.flac")
    clip.with_suffix(".txt").write_bytes("Wörter.".encode("latin-1"))
    with pytest.raises(KitError, match="clip.txt is not UTF-8 text"):
        find_reference(clip)
    assert find_reference(tmp_path) is None and find_reference("owner/name") is None


# the script

def test_a_script_is_read(tmp_path):
    """Mistake: empty lines, a byte order mark, spaces or brackets in the text are taken for errors."""
    path = tmp_path / "dialogue.txt"
    path.write_bytes("\ufeff[anna] Hello.\r\n\r\n  [ ben ]  Hi [smiling], all: well?\n".encode())
    assert dialogue.read_script(path) == [Line("anna", "Hello.", f"{path} line 1"),
                                          Line("ben", "Hi [smiling], all: well?", f"{path} line 3")]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "holds no line; wanted"), (b"\n \n", "holds no line"), (b"[anna] Hello.\nHi.", "line 2: 'Hi.' names no speaker"),
    (b"anna: Hello.", "line 1: 'anna: Hello.' names no speaker; wanted"), (b"[] Hello.", "line 1: .* names no speaker"),
    (b"[anna]", "line 1: the text is empty"), (b"[anna] Hi.\n[ben] ...", "line 2: the text '...' holds no letter"),
    (b"[anna] a\x00b", r"line 1: the text holds U\+0000"), ("[anna] Grüß".encode("latin-1"), "is not UTF-8 text .byte 10"),
    ("[anna] Hello.".encode("utf-16"), "is not UTF-8 text .byte 1.. Save it as UTF-8"),
    (None, "cannot be read: No such file"),
])
def test_a_bad_script_is_refused_with_its_line(tmp_path, content, message):
    """Mistake: a traceback, or a dialogue that lacks a line."""
    path = tmp_path / "dialogue.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KitError, match=message):
        dialogue.read_script(path)


def test_what_cannot_be_spoken_is_refused_before_the_first_turn(voices, monkeypatch):
    """Mistake: minutes of a dialogue are lost because its last line cannot be spoken."""
    monkeypatch.setattr(speak, "generate_turn", lambda *arguments: pytest.fail("spoken"))
    for lines, message in (([("anna", "Hi."), ("eve", "Hi.")], "line 2: the speaker .eve. has no voice; there are anna"),
                           ([("anna", "Hi."), ("ben", " ")], "line 2: the text is empty"), ([], "has no line")):
        with pytest.raises(KitError, match=message):
            dialogue.dialogue(lines, voices)
    long = replace(voices["carl"], context=[Turn("x" * 200, "0", complete(250).codes, in_loss=False)])
    with pytest.raises(KitError, match="line 2: .* take .* of the model's 512 positions; less than a second"):
        dialogue.dialogue([("anna", "Hi."), ("carl", "Words and more words, that are more than fit.")],
                          voices | {"carl": long})
    for seconds in (-1, 11, float("nan")):
        with pytest.raises(KitError, match="wanted 0 to 10"):
            dialogue.dialogue([("anna", "Hi.")], voices, pause_seconds=seconds)


# the command

def test_a_script_is_spoken_from_the_command_line(sources, tmp_path, monkeypatch, capsys):
    """Mistake: --script ignores the voices, writes no file, or overwrites what lies in the folder of turns."""
    monkeypatch.chdir(sources["anna"].parents[1])
    script, out, turns = tmp_path / "d.txt", tmp_path / "d.flac", tmp_path / "turns"
    script.write_text("[anna] Hello.\n[carl] Hi.\n", encoding="utf-8")
    command = ["speak", "--script", str(script), "--run", "anna", "--voice", f"carl={sources['carl']}", "--out", str(out),
               "--pause", "0.5", "--device", "cpu", "--no-watermark"]
    assert main([*command, "--turns", str(turns)]) == 0
    assert "2 turns" in capsys.readouterr().out
    seconds = [soundfile.info(turns / name).duration for name in ("01-anna.wav", "02-carl.wav")]
    assert soundfile.info(out).duration == pytest.approx(sum(seconds) + 0.5)
    for extra, message in ((["--turns", str(turns)], "not an empty folder"), (["Hello."], "give a text"),
                           (["--no-adapter"], "--no-adapter is not for"), (["--strength", "0.5"], "--strength is not"),
                           (["--voice", "x"], "wanted NAME=PATH"), (["--pause", "99"], "wanted 0 to 10")):
        assert main([*command, *extra]) == 1 and message in capsys.readouterr().err
    assert main(["speak", "--voice", "a=b", "Hello."]) == main(["speak"]) == 1
    script.write_text("[anna] Hello.\n[eve] Hi.\n", encoding="utf-8")
    assert main(command) == 1 and "line 2: the speaker 'eve' has no voice; there are anna, carl" in capsys.readouterr().err
