"""The speech server with OpenAI's client, curl, a browser and hostile requests."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from test_model_lora import randomize_adapter

from tts_kit import audio, device, watermark
from tts_kit.config import Config
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.generation.engine import Generation, InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.server import app
from tts_kit.server.app import Server
from tts_kit.server.audio_format import encode
from tts_kit.server.queue import Job, JobQueue
from tts_kit.speech import best_of, dialogue, speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, load_voices, parse_voices

ROOT = Path(__file__).parents[1]
TINY = ROOT / "sample_data" / "tiny-csm"
SHORT = "Hello there."
LONG = "The dog ran home because it was late and very dark. " * 5
KEY = "a-key-of-more-than-sixteen"


@contextlib.contextmanager
def running(voices, **settings) -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server(voices, port=0, **settings)
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Server]:
    """The bundled model with watermark."""
    voices = load_voices(device.choose("cpu"), {"tiny": TINY})
    voices["tiny"].normalize_loudness = False  # which whole and streamed speech differ in
    with running(voices) as server:
        yield server


@pytest.fixture(scope="module")
def voices(spread_toy, tmp_path_factory) -> dict:
    """Three voices on one toy: the base and two adapters, sampled greedily."""
    paths = {"plain": spread_toy}
    for number, name in enumerate(("anna", "ben"), 1):
        base = load.load_base(spread_toy, device.choose("cpu"))
        model = lora.add_lora(base.model, 4, 8.0)
        randomize_adapter(model)
        lora.set_strength(model, number)
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                weight.data.mul_(number)
        paths[name] = tmp_path_factory.mktemp("adapters") / name
        lora.save(model, paths[name], base, Config(base=spread_toy).to_json(), {"speaker": "0"})
    voices = load_voices(device.choose("cpu"), paths)
    for voice in voices.values():
        voice.sampling, voice.normalize_loudness = Sampling(0, 0), False
    return voices


@pytest.fixture
def toys(voices) -> Iterator[Server]:
    with running(voices, watermarked=False) as server:
        yield server


def client(server: Server, key: str = "none"):
    openai = pytest.importorskip("openai", reason="openai is not installed (the extra `dev`)")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=600)


def post(server: Server, body: dict | bytes | None = None, path: str = "/v1/audio/speech", headers: dict | None = None,
         method: str = "POST") -> tuple[int, bytes, dict]:
    """Return status, content and headers of a response, without a client library."""
    default = {"model": "tts-1", "input": SHORT, "voice": [*server.worker.voices][-1], "response_format": "wav"}
    body = body if isinstance(body, bytes) else json.dumps(default | (body or {})).encode()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=600)
    with contextlib.closing(connection):
        connection.request(method, path, body if method == "POST" else None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


def decode(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def clip(seconds: float, loudness: float = 0.3) -> str:
    """Return a reference clip as requests carry it: a tone as FLAC in base64."""
    samples = (loudness * np.sin(np.arange(round(seconds * 24_000)) * 0.05)).astype(np.float32)
    return base64.b64encode(audio.encode(samples, 24_000, "flac")).decode()


def many_channels() -> str:
    """Return a WAV of 200 channels in base64."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full((2400, 200), 0.3, np.float32), 24_000, format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def same_audio(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one.clip(-1, 1) - other.clip(-1, 1)).max(initial=0) < 2e-3)


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.01)


@pytest.fixture
def paused(monkeypatch) -> Iterator[threading.Event]:
    """The worker waits before each batch until this is set; `sizes` has the number of prompts of each batch."""
    resume, stream = threading.Event(), InferenceEngine.stream
    resume.sizes = []

    def waiting(*arguments):
        resume.sizes.append(len(arguments[1]))
        assert resume.wait(30)
        yield from stream(*arguments)

    monkeypatch.setattr(InferenceEngine, "stream", waiting)
    yield resume
    resume.set()


# OpenAI's client and curl

def decode_any(content: bytes, audio_format: str) -> np.ndarray:
    """Return what a player plays, at 24 kHz, by the decoder that is not the encoder where there are two."""
    if audio_format == "pcm":
        return np.frombuffer(content, "<i2").astype(np.float32) / 32768
    if audio_format == "aac":
        with av.open(io.BytesIO(content)) as container:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            return audio.resample(samples, container.streams.audio[0].rate, 24_000)
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    return audio.resample(samples, rate, 24_000)


def delay(one: np.ndarray, other: np.ndarray) -> int:
    """Return by how many samples `one` is later than `other`: codecs begin with silence."""
    size = 2 * max(len(one), len(other))
    correlation = np.fft.irfft(np.fft.rfft(one, size) * np.fft.rfft(other, size).conj())
    return (int(correlation.argmax()) + size // 2) % size - size // 2


@pytest.mark.parametrize("stream_whole", [False, True])
def test_the_server_normalizes_loudness(tiny, stream_whole):
    """Mistake: the server's speech is not leveled, whole or streamed, or not by the voice's setting."""
    voice = tiny.worker.voices["tiny"]
    wait_for(lambda: not voice.engine._lock.locked())  # what the test before this one cancelled ends at its next frame
    raw = audio.loudness(speak.speak(LONG, voice).samples, 16_000)
    voice.normalize_loudness = True
    try:
        content = client(tiny).audio.speech.create(model="tiny-csm", voice="tiny", input=LONG, response_format="wav",
                                                   extra_body={} if stream_whole else {"stream": False}).content
    finally:
        voice.normalize_loudness = False
    # streamed it is within 1 LU, as the gain of a sentence is only known once it has begun
    assert audio.loudness(decode_any(content, "wav"), 24_000) == pytest.approx(-18, abs=1.5) and abs(raw + 18) > 1.5


@pytest.mark.parametrize("audio_format", ["mp3", "wav", "flac", "opus", "aac", "pcm"])
def test_openais_client_gets_every_format(tiny, audio_format):
    """Mistake: a format that no player opens, that loses the end of the speech, or that has seams where chunks join."""
    voice = tiny.worker.voices["tiny"]
    expected = audio.resample(watermark.apply(speak.speak(SHORT, voice).samples, 16_000), 16_000, 24_000)
    request = {"model": "tiny-csm", "voice": "tiny", "input": SHORT, "response_format": audio_format}
    whole = client(tiny).audio.speech.create(**request, extra_body={"stream": False})
    streamed = client(tiny).audio.speech.create(**request)
    for answer in (whole, streamed):
        samples = decode_any(answer.content, audio_format)
        late = delay(samples, expected)
        assert -20 < late < 2500 and len(samples) >= len(expected) + late - 20
        assert len(samples) - len(expected) < (3500 if audio_format in ("mp3", "aac") else 50)
        common = min(len(samples) - max(late, 0), len(expected))
        difference = samples[max(late, 0):][:common] - expected[:common]
        assert np.abs(difference).max() < (0.03 if audio_format in ("wav", "flac", "pcm") else 0.2)
        assert np.square(difference).mean() < 0.02 * np.square(expected).mean()
        assert answer.response.headers["content-type"].startswith("audio/")
    assert whole.response.headers["x-ended-with-eos"] == "true" and "content-length" in whole.response.headers


def test_mp3_is_the_default_format(tiny):
    """Mistake: another default than OpenAI's, so that a saved .mp3 has another format."""
    content = client(tiny).audio.speech.create(model="tts-1", voice={"id": "tiny"}, input=SHORT).content
    assert soundfile.info(io.BytesIO(content)).format == "MP3"


@pytest.mark.parametrize("fields", [{}, {"stream_format": "audio"}], ids=["default", "explicit"])
@pytest.mark.parametrize("audio_format", ["wav", "pcm", "mp3", "opus", "aac"])
def test_openais_client_streams(tiny, audio_format, fields):
    """Mistake: a stream that starts only when everything is generated, as OpenAI's documented form does not."""
    request = {"model": "tiny-csm", "voice": "tiny", "input": LONG[:104], "response_format": audio_format} | fields
    with client(tiny).audio.speech.with_streaming_response.create(**request) as answer:
        parts = answer.iter_bytes()
        assert next(parts) + next(parts)
        assert len(tiny.queue) == 1, "the first audio came when everything was generated"
        assert sum(map(len, parts)) > 1000


def test_openais_client_can_read_the_events(toys):
    """Mistake: server-sent events that OpenAI's clients cannot read, or without an end."""
    whole = decode(post(toys)[1])
    status, content, headers = post(toys, {"stream_format": "sse"})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in content.decode().split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"} and events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > usage["input_tokens"] > 0
    streamed = decode(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]))
    assert len(events) > 3 and same_audio(streamed, whole)


def test_a_format_without_streaming_is_sent_in_one_piece(toys):
    """Mistake: the client's default format is refused as soon as it requests a stream."""
    status, content, _ = post(toys, {"stream_format": "audio", "response_format": "flac"})
    assert status == 200 and same_audio(decode(content), decode(post(toys)[1]))


def test_curl_is_served(tiny, tmp_path):
    """Mistake: only the kit's own client is understood."""
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    body = json.dumps({"model": "tts-1", "input": SHORT, "voice": "tiny", "response_format": "flac"})
    out = subprocess.run([curl, "-sS", "--fail-with-body", f"{tiny.address}/v1/audio/speech", "-d", body, "-H",
                          "Content-Type: application/json", "-o", tmp_path / "hello.flac"], capture_output=True, timeout=600,
                         check=False)
    assert out.returncode == 0 and soundfile.info(tmp_path / "hello.flac").duration > 1
    out = subprocess.run([curl, "-sS", f"{tiny.address}/v1/audio/speech", "-d", body.replace("tiny", "other")],
                         capture_output=True, timeout=600, check=False)
    assert json.loads(out.stdout)["error"]["param"] == "voice"


def test_served_speech_is_watermarked(tiny, toys):
    """Mistake: served speech cannot be recognized as synthetic."""
    whole = client(tiny).audio.speech.create(model="tts-1", voice="tiny", input=LONG[:104], response_format="wav")
    with client(tiny).audio.speech.with_streaming_response.create(
            model="tts-1", voice="tiny", input=LONG[:104], response_format="wav", stream_format="audio") as answer:
        streamed = answer.read()
    assert watermark.detect(decode(whole.content), 16_000) > watermark.MIN_SCORE
    assert watermark.detect(decode(streamed), 16_000) > watermark.MIN_SCORE
    assert watermark.detect(decode(post(toys)[1]), 24_000) < watermark.MIN_SCORE


def test_a_long_text_equals_speak(toys, voices):
    """Mistake: sentences are lost, out of order, or without the first one as context."""
    whole = speak.speak(LONG, voices["anna"], seed=3)
    for fields in ({}, {"stream_format": "audio"}):
        status, content, headers = post(toys, {"input": LONG, "voice": "anna", "seed": 3} | fields)
        assert status == 200 and same_audio(decode(content), whole.samples), fields
    assert headers["content-type"] == "audio/wav" and len(toys.queue) == 0


def test_voices_and_models_are_listed(toys):
    """Mistake: clients that fill their lists from the server find nothing, or paths of this machine."""
    assert [model.id for model in client(toys).models.list()] == [toys.models[0], "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    for path in ("/v1/voices", "/v1/audio/voices"):
        status, content, _ = post(toys, path=path, method="GET")
        listed = json.loads(content)
        assert status == 200 and [voice["id"] for voice in listed["data"] if "alias_of" not in voice] == [*toys.voices]
        assert {"id": "alloy", "object": "voice", "name": "alloy", "alias_of": "plain"} in listed["data"]
        assert b"/" not in content and listed["voices"] == listed["data"]  # Open WebUI reads `voices` and `models`
    models = json.loads(post(toys, path="/v1/audio/models", method="GET")[1])["models"]
    assert [model["id"] for model in models] == toys.models
    assert json.loads(post(toys, path="/health", method="GET")[1]) == {"status": "ok", "waiting": 0}


def test_every_voice_names_its_own_model(tiny, voices):
    """Mistake: with two bases, one speaks under the other one's name."""
    with running({"anna": voices["anna"], "tiny": tiny.worker.voices["tiny"]}, watermarked=False) as server:
        entries = json.loads(post(server, path="/v1/voices", method="GET")[1])["data"]
        models = {voice["id"]: voice["model"] for voice in entries if "model" in voice}
        assert [*models.values(), *app.MODEL_ALIASES] == server.models and models["tiny"] == "tiny-csm" != models["anna"]
        for model, status in ((models["anna"], 200), ("tts-1", 200), ("tiny-csm", 404)):
            assert post(server, {"voice": "anna", "model": model})[0] == status


def test_names_that_front_ends_send_are_understood(toys, voices):
    """Mistake: a front end whose model, voice and fields are OpenAI's cannot be used, or ignored fields go unnoticed."""
    expected = speak.speak(SHORT, voices["plain"], seed=4).samples
    fields = {"instructions": "Whisper.", "user": "me", "volume_multiplier": 2, "a\r\nb: c": 1, "stream": True, "seed": 4}
    for model, voice in (("tts-1-hd", "alloy"), ("gpt-4o-mini-tts", "nova"), ("tts-1", "plain")):
        status, content, headers = post(toys, {"model": model, "voice": voice} | fields)
        assert status == 200 and same_audio(decode(content), expected)
        assert headers["x-ignored-fields"] == "instructions, user, volume_multiplier" and "b" not in headers
    with running({"anna": voices["anna"], "alloy": voices["ben"]}, watermarked=False) as server:
        own = decode(post(server, {"voice": "alloy"})[1])
        assert same_audio(own, speak.speak(SHORT, voices["ben"]).samples)


@pytest.mark.parametrize("speed", [2.0, *(pytest.param(speed, marks=pytest.mark.slow) for speed in (0.5, 1.3))])
def test_speed_changes_the_duration_and_not_the_pitch(tiny, speed):
    """Mistake: faster speech is higher, loses its end or its watermark, or differs when it is streamed."""
    text = LONG[:104] if speed > 1 else LONG[:51]
    normal = decode(post(tiny, {"input": text})[1])
    for fields in ({}, {"stream": False}):
        changed = decode(post(tiny, {"input": text, "speed": speed} | fields)[1])
        assert len(changed) == pytest.approx(len(normal) / speed, rel=0.03)
        assert audio.median_f0(changed, 16_000) == pytest.approx(audio.median_f0(normal, 16_000), rel=0.08)
        assert watermark.detect(changed, 16_000) > watermark.MIN_SCORE


def test_a_request_may_carry_a_reference_clip(toys, voices, tmp_path):
    """Mistake: the clip has no effect, stays for the next request, or is not what `speak` makes of the same clip."""
    path = tmp_path / "clip.flac"
    path.write_bytes(base64.b64decode(clip(2)))
    fields = {"reference_audio": clip(2), "reference_text": "These are the words."}
    for voice in ("plain", "anna"):
        expected = speak.speak(SHORT, voices[voice], Reference(path, "These are the words."))
        for more in ({}, {"stream": False}, {"reference_audio": f"data:audio/flac;base64,{clip(2)}"}):
            status, content, _ = post(toys, {"voice": voice} | fields | more)
            assert status == 200 and same_audio(decode(content), expected.samples)
        without = speak.speak(SHORT, voices[voice]).samples
        assert same_audio(decode(post(toys, {"voice": voice})[1]), without) and not same_audio(without, expected.samples)
    sampling = dataclasses.replace(voices["plain"].sampling, reference_guidance=3.0)
    reference = Reference(path, "These are the words.")
    guided = speak.speak(SHORT, dataclasses.replace(voices["plain"], sampling=sampling), reference).samples
    _, content, _ = post(toys, {"voice": "plain", "reference_guidance": 3.0} | fields)
    assert same_audio(decode(content), guided)
    assert not same_audio(guided, speak.speak(SHORT, voices["plain"], reference).samples)


def test_a_voice_can_be_a_clip(spread_toy, tmp_path):
    """Mistake: a preset clip is not used, or a request's own clip is added to it."""
    for name in ("carl", "eve"):
        (tmp_path / f"{name}.flac").write_bytes(base64.b64decode(clip(1 + (name == "eve"))))
    (tmp_path / "carl.txt").write_text("My words.", encoding="utf-8")
    voices = load_voices(device.choose("cpu"), {"carl": tmp_path / "carl.flac", "plain": spread_toy})
    for voice in voices.values():
        voice.sampling, voice.normalize_loudness = Sampling(0, 0), False
    with running(voices, watermarked=False) as server:
        own, other = (speak.speak(SHORT, voices["plain"], Reference(tmp_path / f"{name}.flac", text)).samples
                      for name, text in (("carl", "My words."), ("eve", "Others.")))
        assert same_audio(decode(post(server, {"voice": "carl"})[1]), own) and not same_audio(own, other)
        request = {"voice": "carl", "reference_audio": clip(2), "reference_text": "Others."}
        assert same_audio(decode(post(server, request)[1]), other)


def test_a_dialogue_equals_the_kits_own(toys, voices, monkeypatch):
    """Mistake: turns in another voice or order, or without the ones before; other requests wait for its end."""
    # untrained weights never end by themselves, and what failed is no context
    monkeypatch.setattr(Generation, "is_complete", property(lambda self: True))
    lines = [("anna", "Hello, Ben."), ("ben", "Hi."), ("plain", "And me?")]
    turns = [{"voice": "alloy" if name == "plain" else name, "input": text} for name, text in lines]
    expected = dialogue.dialogue(lines, voices, seed=2).samples
    for fields in ({}, {"stream": False}, {"stream_format": "audio"}):
        status, content, _ = post(toys, {"turns": turns, "seed": 2} | fields, "/v1/audio/dialogue")
        assert status == 200 and same_audio(decode(content), expected), fields


def test_a_dialogue_alternates_with_other_requests(toys, paused):
    """Mistake: a dialogue of a hundred turns blocks the server for all others."""
    turns = [{"voice": name, "input": "Hi."} for name in ("anna", "ben", "anna")]
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(post, toys, {"turns": turns}, "/v1/audio/dialogue")
        wait_for(lambda: paused.sizes == [1])
        other = threads.submit(post, toys, {"voice": "plain", "stream": False})
        wait_for(lambda: len(toys.queue) == 2)
        order = [job.voice for job in toys.queue.jobs]
        paused.set()
        assert long.result()[0] == other.result()[0] == 200 and order == ["anna", "plain"]


@pytest.mark.parametrize(("body", "param", "message"), [
    ({"turns": []}, "turns", "at least 1"), ({"turns": [{"voice": "anna", "input": "Hi."}] * 101}, "turns", "at most 100"),
    ({"turns": [{"voice": "anna", "input": "x" * 4000}] * 2}, "turns", "more than 4096 characters together"),
    ({"turns": [{"voice": "carl", "input": "Hi."}]}, "voice", "no voice 'carl'"),
    ({"turns": [{"voice": "anna", "input": "Hi."}, {"voice": "ben", "input": "..."}]}, "input", "turn 2: .* no letter"),
    ({"turns": [{"voice": "anna"}]}, "turns", "required"), ({"turns": "x"}, "turns", "array"), ({}, "turns", "required"),
])
def test_bad_dialogues_are_refused(toys, body, param, message):
    """Mistake: a traceback, or a dialogue without the turn that cannot be spoken."""
    status, content, _ = post(toys, body, "/v1/audio/dialogue")
    error = json.loads(content)["error"]
    assert status == 400 and error["param"] == param and re.search(message, error["message"]) and len(toys.queue) == 0


def test_the_words_of_a_clip_are_recognized(toys, monkeypatch):
    """Mistake: a transcript is invented without Whisper, two at once take all threads, or a bad clip is a server error."""
    path = "/v1/audio/reference_text"
    assert post(toys, {"reference_audio": "AAAA"}, path)[0] == post(toys, {}, path)[0] == 400
    speech = base64.b64encode((ROOT / "sample_data" / "held_out" / "later01_01.flac").read_bytes()).decode()
    if transcribe.is_installed():
        assert "sleep" in json.loads(post(toys, {"reference_audio": speech}, path)[1])["text"]
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    status, content, _ = post(toys, {"reference_audio": speech}, path)
    assert status == 501 and "Or type them" in json.loads(content)["error"]["message"]


# several clients and several voices

def test_voices_do_not_mix(toys, voices):
    """Mistake: an adapter of another request is used, or the base is used with the previous adapter."""
    single = {name: speak.speak(SHORT, voice).samples for name, voice in voices.items()}
    names = list(voices)
    assert not any(same_audio(single[one], single[other]) for one, other in zip(names, names[1:] + names[:1]))
    requests = [{"voice": name} | ({"stream_format": "audio"} if number % 3 == 2 else {})
                for number in range(6) for name in names]
    with ThreadPoolExecutor(len(requests)) as threads:
        answers = list(threads.map(lambda request: post(toys, request), requests))
    for name, (status, content, _) in zip(names * 6, answers):
        assert status == 200 and same_audio(decode(content), single[name]), name


def test_the_base_is_loaded_once(voices):
    """Mistake: every voice loads a model of its own, and the third runs out of memory."""
    assert len({id(voice.base) for voice in voices.values()}) == 1


def test_requests_for_one_voice_share_a_batch(toys, paused):
    """Mistake: requests are processed one after another although a batch would cost the same."""
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(post, toys)
        wait_for(lambda: paused.sizes == [1])
        rest = [threads.submit(post, toys, {"seed": seed}) for seed in range(8)]
        wait_for(lambda: len(toys.queue) == 9)
        paused.set()
        assert {future.result()[0] for future in [first, *rest]} == {200}
    assert paused.sizes == [1, 8]


def test_a_long_stream_delays_others_by_one_sentence(toys, monkeypatch):
    """Mistake: a client that streams a chapter blocks the server for all others."""
    sentences, original = [], InferenceEngine.stream

    def slow(*arguments):
        sentences.append("sentence")
        for frame in original(*arguments):
            time.sleep(0.002)
            yield frame

    monkeypatch.setattr(InferenceEngine, "stream", slow)
    with ThreadPoolExecutor(1) as threads:
        long = threads.submit(post, toys, {"input": LONG, "stream_format": "audio"}, headers={"Connection": "close"})
        wait_for(lambda: sentences)
        assert post(toys, {"voice": "plain"})[0] == 200
        assert not long.done() and len(speak.split_requests(LONG)) == 2
        assert long.result()[0] == 200


def test_unfinished_jobs_go_behind_newer_ones():
    """Mistake: a long text holds the server until its last sentence, or a batch mixes voices or contains a stream."""
    async def fill() -> JobQueue:
        queue = JobQueue()
        for voice, streaming in (("anna", False), ("ben", False), ("anna", True), ("anna", False)):
            queue.put(Job([(voice, [Request("x.")])], streaming))
        return queue

    queue = asyncio.run(fill())
    first, ben, stream, last = queue.jobs
    assert [queue.next_batch() for _ in range(4)] == [[first, last], [ben], [stream], [first, last]]


# overload

def test_a_full_queue_answers_503_with_retry_after(voices, paused):
    """Mistake: requests accumulate until memory runs out, or are refused without a message."""
    with running(voices, watermarked=False, max_jobs=3) as server, ThreadPoolExecutor(3) as threads:
        running_requests = [threads.submit(post, server) for _ in range(3)]
        wait_for(lambda: len(server.queue) == 3)
        status, content, headers = post(server)
        assert status == 503 and int(headers["retry-after"]) >= 1
        assert json.loads(content)["error"]["code"] == "overloaded"
        paused.set()
        assert {future.result()[0] for future in running_requests} == {200} and post(server)[0] == 200


def test_a_request_that_waits_too_long_is_refused(voices, paused):
    """Mistake: a client waits until the batch before it is finished, only to be refused then."""
    with running(voices, watermarked=False, queue_timeout=0.2) as server, ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, server)
        wait_for(lambda: paused.sizes)
        status, content, headers = post(server, {"voice": "plain"})
        assert status == 503 and b"did not start within 0.2 s" in content and int(headers["retry-after"]) >= 1
        assert len(server.queue) == 1, "a request that has started is not given up"
        paused.set()
        assert first.result()[0] == 200


def test_too_many_simultaneous_requests_are_refused(voices, paused):
    """Mistake: every request is read and kept, and the machine runs out of memory."""
    with running(voices, watermarked=False, max_jobs=4, max_connections=8) as server, ThreadPoolExecutor(40) as threads:
        running_requests = [threads.submit(post, server) for _ in range(40)]
        wait_for(lambda: sum(future.done() for future in running_requests) >= 36)
        paused.set()
        statuses = [future.result()[0] for future in running_requests]
        assert sorted(set(statuses)) == [200, 503] and 1 <= statuses.count(200) <= 4
        assert post(server)[0] == 200


def test_idle_connections_do_not_block_others(toys):
    """Mistake: connections without a complete request block other clients."""
    with contextlib.ExitStack() as opened:
        for _ in range(200):
            idle = opened.enter_context(socket.create_connection((toys.host, toys.port), timeout=10))
            idle.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n")
        assert post(toys)[0] == 200
    assert post(toys)[0] == 200


def test_guidance_is_of_one_request(toys, voices):
    """Mistake: a request's guidance is ignored, stays with the voice, or is given to others in its batch."""
    guided = dataclasses.replace(voices["plain"], sampling=dataclasses.replace(voices["plain"].sampling, guidance=3.0))
    expected, plain = speak.speak(LONG, guided, seed=2).samples, speak.speak(LONG, voices["plain"], seed=2).samples
    assert len(expected) != len(plain) or not np.array_equal(expected, plain)
    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(post, toys, {"voice": "plain", "input": LONG, "seed": 2} | fields)
                   for fields in ({"guidance": 3.0}, {}, {"guidance": 3.04}, {"guidance": 1.0})]
        for answer, samples in zip(answers, (expected, plain, expected, plain)):
            assert same_audio(decode(answer.result()[1]), samples)


def test_the_best_take_is_sent_whole(toys, voices, monkeypatch):
    """Mistake: the first take is sent, or one that another request chose."""
    models = best_of.ChoiceModels(lambda takes, text: [0.1, 0.9], lambda samples, rate: np.ones(2))
    monkeypatch.setattr(best_of, "load_models", lambda: models)
    status, content, headers = post(toys, {"voice": "plain", "best_of": 2, "seed": 5})
    assert status == 200 and "content-length" in headers
    expected = speak.speak(SHORT, voices["plain"], seed=5 + speak.TAKE_SEED_STEP).samples
    assert same_audio(decode(content), expected)


def test_missing_judges_are_an_error_of_one_request(toys, monkeypatch):
    """Mistake: a request for the best of several takes ends the worker, or answers with the first take."""
    monkeypatch.setattr(best_of.backends, "missing_packages", lambda: ["faster-whisper"])
    best_of.load_models.cache_clear()
    status, content, _ = post(toys, {"voice": "plain", "best_of": 2})
    assert status == 400 and "faster-whisper are not installed" in json.loads(content)["error"]["message"]
    assert post(toys)[0] == 200


# bad input

@pytest.mark.parametrize(("body", "status", "param", "message"), [
    ({"voice": "../../etc/passwd"}, 400, "voice", "there are plain, anna, ben"),
    ({"voice": {"id": "x" * 500}}, 400, "voice", "no voice"), ({"voice": ""}, 400, "voice", "no voice"),
    ({"voice": 5}, 400, "voice", "valid"), ({"model": "gpt-9"}, 404, "model", "not served here"),
    ({"input": ""}, 400, "input", "empty"), ({"input": " \n\t"}, 400, "input", "empty"),
    ({"input": "😀🎉"}, 400, "input", "letter"),
    ({"input": "a\x00b"}, 400, "input", r"U\+0000"), ({"input": "a\u202eb"}, 400, "input", r"U\+202E"),
    ({"input": "x" * 4097}, 400, "input", "at most 4096"), ({"input": 7}, 400, "input", "string"),
    ({"input": ["a"]}, 400, "input", "string"), ({"input": "x" * 1_000_000}, 400, "input", "at most 4096"),
    ({"response_format": "m4a"}, 400, "response_format", "'aac', 'flac', 'wav'"),
    ({"speed": 2.5}, 400, "speed", "equal to 2"), ({"speed": 0.25}, 400, "speed", "equal to 0.5"),
    ({"speed": "fast"}, 400, "speed", "number"), ({"speed": float("nan")}, 400, "speed", "than or equal"),
    ({"seed": -1}, 400, "seed", "0"), ({"seed": 2**70}, 400, "seed", "less"),
    ({"guidance": -0.1}, 400, "guidance", "equal to 0"), ({"guidance": 5.1}, 400, "guidance", "equal to 5"),
    ({"reference_guidance": 5.1}, 400, "reference_guidance", "equal to 5"),
    ({"best_of": 0}, 400, "best_of", "equal to 1"), ({"best_of": 9}, 400, "best_of", "equal to 8"),
    ({"stream_format": "x"}, 400, "stream_format", "sse"), ({"stream": "loud"}, 400, "stream", "boolean"),
    ({"reference_audio": "AAAA"}, 400, None, "belong together"),
    ({"reference_text": "Hello."}, 400, None, "belong together"),
    ({"reference_audio": "!", "reference_text": "x"}, 400, "reference_audio", "not base64"),
    ({"reference_audio": "AAAA", "reference_text": "x"}, 400, "reference_audio", "cannot be read as audio"),
    ({"reference_audio": "data:,", "reference_text": "x"}, 400, "reference_audio", "not base64"),
    ({"reference_audio": clip(25), "reference_text": "x"}, 400, "reference_audio", "lasts 25.0 s; the limit is 20 s"),
    ({"reference_audio": many_channels(), "reference_text": "x"}, 400, "reference_audio", "200 channels of 24000 Hz"),
    ({"reference_audio": clip(1, 0), "reference_text": "x"}, 400, "reference_audio", "silent"),
    ({"reference_audio": clip(1), "reference_text": "..."}, 400, "input", "no letter"),
    (b"{", 400, None, "JSON"), (b"[]", 400, None, "object"), (b"", 400, None, "JSON"), (b"[" * 60_000, 400, None, "JSON"),
    (b'{"input": "\\ud800"}', 400, None, "JSON"), (b"\xff\xfe{}", 400, None, "JSON"),
    (b"x" * 5_000_000, 413, "input", "larger"),
])
def test_bad_requests_get_an_error_in_openais_shape(toys, body, status, param, message):
    """Mistake: a traceback, a hang, generated noise, or an error that clients cannot read."""
    response_status, content, headers = post(toys, body)
    error = json.loads(content)["error"]
    assert response_status == status and headers["content-type"] == "application/json"
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert re.search(message, error["message"]) and len(error["message"]) < 400
    assert error["param"] == param and len(toys.queue) == 0


def test_emoji_among_words_are_accepted(toys):
    """Mistake: a text from a chat is refused because of a smiley."""
    assert post(toys, {"input": "Well done 🎉, café!"})[0] == 200


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/v1/audio/speech", "GET", 405),
                                                        ("/v1/models/none", "GET", 404), ("/docs", "GET", 404),
                                                        ("/v1/voices/", "GET", 404),
                                                        ("/../../etc/passwd", "GET", 404)])
def test_other_paths_are_refused_as_json(toys, path, method, status):
    """Mistake: a page of the framework with scripts from elsewhere, or an error in another shape."""
    response_status, content, _ = post(toys, path=path, method=method)
    assert response_status == status and json.loads(content)["error"]["message"]


def test_openais_client_raises_its_own_errors(toys):
    """Mistake: OpenAI's client takes errors for a broken connection."""
    import openai

    with pytest.raises(openai.BadRequestError, match="there is no voice"):
        client(toys).audio.speech.create(model="tts-1", voice="carl", input=SHORT)
    with pytest.raises(openai.NotFoundError):
        client(toys).audio.speech.create(model="tts-9", voice="anna", input=SHORT)


def test_a_failure_is_reported_and_the_next_request_served(toys, monkeypatch, caplog):
    """Mistake: one bad request ends the worker thread and the server answers no more, or internals are sent to the
    client."""
    with monkeypatch.context() as broken:
        broken.setattr(InferenceEngine, "generate", lambda *arguments: 1 / 0)
        broken.setattr(InferenceEngine, "stream", lambda *arguments: 1 / 0)
        for fields in ({}, {"stream_format": "audio"}):
            status, content, _ = post(toys, fields)
            assert status == 500 and json.loads(content)["error"]["type"] == "server_error" and b"division" not in content
    assert "division by zero" in caplog.text
    assert post(toys)[0] == 200 and len(toys.queue) == 0


def test_a_failed_stream_is_incomplete_for_the_client(toys, monkeypatch, caplog):
    """Mistake: interrupted speech looks complete, or the failure ends the server."""
    original = InferenceEngine.stream

    def fail_after_six_frames(*arguments):
        for number, frame in enumerate(original(*arguments)):
            assert number < 6, "broken on purpose"
            yield frame

    with monkeypatch.context() as broken:
        broken.setattr(InferenceEngine, "stream", fail_after_six_frames)
        with pytest.raises(http.client.IncompleteRead):
            post(toys, {"stream_format": "audio", "input": LONG})
    assert "broken on purpose" in caplog.text
    assert post(toys, {"stream_format": "audio"})[0] == 200 and len(toys.queue) == 0


# clients that disconnect

@contextlib.contextmanager
def open_request(server: Server, fields: dict) -> Iterator[socket.socket]:
    """Send a request; the client disconnects at the end of the block."""
    body = json.dumps({"model": "tts-1", "input": LONG, "voice": "anna", "response_format": "wav"} | fields).encode()
    with socket.create_connection((server.host, server.port), timeout=300) as connection:
        connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        yield connection


def post_and_disconnect(server: Server, body: dict, read: int) -> None:
    """Send a request, read a little, and disconnect."""
    with open_request(server, body) as connection:
        while read > 0:
            read -= len(connection.recv(read))


@pytest.fixture
def slow_frames(monkeypatch) -> list[int]:
    """Slow generation in the worker; holds the number of prompts of each frame."""
    batch_sizes, original = [], InferenceEngine.stream

    def slow(*arguments):
        for frame in original(*arguments):
            if threading.current_thread().name == "tts-worker":
                batch_sizes.append(len(frame))
                time.sleep(0.02)
            yield frame

    monkeypatch.setattr(InferenceEngine, "stream", slow)
    return batch_sizes


def test_a_batch_without_clients_is_stopped(toys, voices, slow_frames):
    """Mistake: a batch is generated to its end after all its clients have disconnected, and all others wait."""
    with open_request(toys, {}), open_request(toys, {"seed": 1}):
        wait_for(lambda: slow_frames and len(toys.queue) == 2)
    wait_for(lambda: len(toys.queue) == 0)
    frames, frame_rate = len(slow_frames), voices["anna"].base.spec.frame_rate
    assert post(toys)[0] == 200
    assert len(slow_frames) - frames <= 5 + speak.speak(SHORT, voices["ben"]).seconds * frame_rate
    assert speak.speak(LONG, voices["anna"]).seconds * frame_rate > 50, "the text is too short for this test"


def test_a_disconnect_does_not_cut_the_rest_of_a_batch(toys, voices, paused, slow_frames):
    """Mistake: one client disconnects, and the rest of its batch is cut short too."""
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(post, toys)
        wait_for(lambda: paused.sizes)
        with open_request(toys, {"input": SHORT}):
            remaining = threads.submit(post, toys, {"voice": "anna"})
            wait_for(lambda: len(toys.queue) == 3)
            paused.set()
            wait_for(lambda: slow_frames and slow_frames[-1] == 2)
        assert first.result()[0] == 200
        assert same_audio(decode(remaining.result()[1]), speak.speak(SHORT, voices["anna"]).samples)
    assert paused.sizes[:2] == [1, 2]


def test_speech_outside_the_server_is_waited_for(toys, voices):
    """Mistake: a notebook that uses a voice it also serves makes the server refuse valid texts."""
    with voices["anna"].acquire_engine():
        status, content, headers = post(toys)
        assert status == 503 and b"outside the server" in content and headers["retry-after"] == "5"
    assert post(toys)[0] == 200


def test_a_disconnect_during_a_stream_frees_the_voice(toys, voices, slow_frames):
    """Mistake: a long text is generated to the end without a client, and all others wait."""
    for _ in range(3):
        post_and_disconnect(toys, {"stream_format": "audio"}, 500)
    wait_for(lambda: len(toys.queue) == 0)
    frames, (_, content, _) = len(slow_frames), post(toys)
    whole = speak.speak(LONG, voices["anna"]).seconds * voices["anna"].base.spec.frame_rate
    assert frames < 1.5 * whole and same_audio(decode(content), speak.speak(SHORT, voices["ben"]).samples)


def test_a_disconnect_while_waiting_removes_the_job(toys, paused):
    """Mistake: speech is generated for clients that have disconnected."""
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, toys)
        wait_for(lambda: paused.sizes)
        for _ in range(5):
            post_and_disconnect(toys, {"voice": "plain"}, 0)
        wait_for(lambda: len(toys.queue) == 1)
        paused.set()
        assert first.result()[0] == 200
    assert post(toys)[0] == 200 and paused.sizes == [1, 1]


# access

def test_with_an_api_key_every_request_needs_it(voices):
    """Mistake: anyone who reaches the port uses these voices, or learns their names."""
    with running(voices, watermarked=False, api_keys=[KEY, KEY + "2"]) as server:
        for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {KEY[:-1]}"},
                        {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer \xff"}):
            for path, method in (("/v1/audio/speech", "POST"), ("/v1/voices", "GET"), ("/v1/models", "GET"),
                                 ("/docs", "GET")):
                status, content, answer = post(server, path=path, method=method, headers=headers)
                assert status == 401 and answer["www-authenticate"] == "Bearer" and b"anna" not in content
                assert json.loads(content)["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/"):
            status, content, _ = post(server, path=path, method="GET")
            assert status == 200 and not any(name in content for name in (b"anna", server.models[0].encode()))
        for key in (KEY, KEY + "2"):
            assert client(server, key).audio.speech.create(model="tts-1", voice="anna", input=SHORT).content


def test_without_an_api_key_only_this_machine_is_served(toys):
    """Mistake: a page in the browser, or a name that another DNS resolves to 127.0.0.1, uses the server."""
    port = toys.port
    for host, status in ((f"localhost:{port}", 200), (f"127.0.0.1:{port}", 200), (f"[::1]:{port}", 200), ("127.0.0.1", 200),
                         (f"evil.example:{port}", 400), ("127.0.0.1.evil.example", 400), ("", 400), ("[", 400)):
        assert post(toys, path="/v1/voices", method="GET", headers={"Host": host})[0] == status, host
    for origin, status in ((f"http://127.0.0.1:{port}", 200), ("https://evil.example", 403), ("null", 403),
                           ("http://127.0.0.1:9", 403), ("http://[", 403), ("", 403)):
        assert post(toys, headers={"Origin": origin, "Host": f"127.0.0.1:{port}"})[0] == status, origin


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_other_hosts_need_an_api_key(voices, host):
    """Mistake: --host 0.0.0.0 opens the voices to everybody on the network."""
    with pytest.raises(KitError, match="no API key was given. Give --api-key"):
        Server(voices, host, 0)
    with pytest.raises(KitError, match="shorter than 16"):
        Server(voices, host, 0, api_keys=["secret"])


def test_a_port_in_use_is_named(toys, voices):
    """Mistake: a traceback of the socket, after minutes of loading."""
    with pytest.raises(KitError, match=f"port {toys.port} of 127.0.0.1 cannot be used: .*in use.*another number"):
        app.run_server(lambda: pytest.fail("loaded before the port was found free"), port=toys.port)
    with pytest.raises(KitError, match="port must be 0-65535"):
        Server(voices, port=70_000)


@pytest.mark.parametrize("queue_timeout", [0.0, -1.0, float("nan")])
def test_the_queue_timeout_must_be_positive(queue_timeout):
    """Mistake: a server that refuses every request, or none, because of a typing error on the command line."""
    with pytest.raises(KitError, match="--queue-timeout is .* must be a number of seconds above 0"):
        app.run_server(lambda: pytest.fail("loaded"), port=0, queue_timeout=queue_timeout)


def test_a_missing_requirement_fails_at_the_start(voices, monkeypatch):
    """Mistake: in a notebook or in the cloud the server's thread ends because of a missing package, without a message."""
    def missing() -> None:
        raise KitError("no watermark")

    monkeypatch.setattr(watermark, "network", missing)
    with pytest.raises(KitError, match="no watermark"):
        Server(voices, port=0)


@pytest.mark.parametrize("pairs", [["anna"], ["anna="], ["=x"], ["../x=y"], ["a=x", "a=y"], ["a b=x"]])
def test_voices_are_given_as_name_and_path(pairs):
    """Mistake: a voice without a name, or one name for two."""
    with pytest.raises(KitError, match="NAME=PATH"):
        parse_voices(pairs)
    assert parse_voices(["a=runs/a=b", "b.c=owner/name"]) == {"a": "runs/a=b", "b.c": "owner/name"}


def test_the_model_name_contains_no_path(tmp_path, monkeypatch):
    """Mistake: paths of this machine are sent to every client."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert app.model_name("sesame/csm-1b") == "sesame/csm-1b"
    assert app.model_name("models/tiny") == app.model_name(str(tmp_path / "models" / "tiny")) == "tiny"


@pytest.mark.parametrize("stop_signal", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(toy, tmp_path, stop_signal):
    """Mistake: Ctrl-C, or a service manager, leaves clients without a response, or ends in a traceback or a long wait for
    current jobs; the key of the environment is not used."""
    command = [sys.executable, "-m", "tts_kit", "serve", "--voice", f"toy={toy}", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "TTS_KIT_KEY": KEY},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first_line = process.stdout.readline()
        port = int(re.search(r"Voices: toy\. Model: toy\. Open http://127\.0\.0\.1:(\d+) .* with a key", first_line)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 200)):
            connection.request("GET", "/v1/voices", headers=headers)
            response = connection.getresponse()
            assert response.status == status and response.read()
        body = json.dumps({"model": "tts-1", "input": LONG * 15, "voice": "toy", "stream": False})
        connection.request("POST", "/v1/audio/speech", body, {"Authorization": f"Bearer {KEY}"})
        time.sleep(0.3)
        process.send_signal(stop_signal)
        response = connection.getresponse()
        assert response.status == 503 and "being stopped" in response.read().decode() and response.headers["Retry-After"]
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0 and out.endswith("Stopped.\n") and not errors
    finally:
        process.kill()


# the page

def test_the_page_loads_and_runs_nothing_foreign(voices):
    """Mistake: a script from a CDN, a voice's name inserted as markup, or a page that others may frame."""
    hostile = {'<img src=x onerror="window.hurt=1">': voices["anna"]}
    with running(hostile, watermarked=False) as server:
        status, content, headers = post(server, path="/", method="GET")
    text = content.decode()
    assert status == 200 and "<img" not in text and text.count("<script") == text.count("</script>") == 1
    assert not re.search(r"https?:|//[a-z]|@import|<link|\b(src|href)=", text.replace("&lt;img src=x", ""))
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy and "unsafe" not in policy


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["open", "locked"])
def test_a_text_typed_on_the_page_is_spoken(chromium, voices, keys):
    """Mistake: a page that plays nothing, loses its results, or cannot be used with a key."""
    with running(voices, watermarked=False, api_keys=keys) as server:
        chromium.set_viewport(1280, 800)
        chromium.open(f"{server.address}/")
        if keys:
            chromium.wait("!document.getElementById('login').hidden")
            chromium.click("#key")
            chromium.call("Input.insertText", text=KEY)
            chromium.press("Enter")
        chromium.wait("document.querySelectorAll('#voice option').length === 3")
        assert chromium.run("ui.speak.disabled && ui.login.hidden")
        chromium.run("ui.voice.value = 'ben'")
        chromium.click("#text")
        chromium.call("Input.insertText", text=SHORT)
        chromium.click("#speak")
        chromium.wait("document.querySelector('#results audio')?.readyState >= 2")
        expected = speak.speak(SHORT, voices["ben"]).seconds
        assert chromium.run("document.querySelector('#results audio').duration") == pytest.approx(expected, abs=0.15)
        assert chromium.run("document.querySelector('#results a').download") == "ben-0.mp3"
        chromium.run("ui.text.value = '😀'; update()")
        chromium.click("#speak")
        chromium.wait("ui.error.textContent.includes('no letter')")
        assert chromium.run("document.querySelectorAll('#results li').length") == 1
        console_errors = [error for error in chromium.console_errors() if not re.search("40[01]", json.dumps(error))]
        assert console_errors == []
        urls = {event["params"]["request"]["url"] for event in chromium.events
                if event["method"] == "Network.requestWillBeSent"}
        assert all(url.startswith((f"{server.address}/", "blob:", "data:")) for url in urls)


def open_page(chromium, server: Server) -> None:
    chromium.open(f"{server.address}/")
    chromium.wait(f"document.querySelectorAll('#voice option').length === {len(server.voices)}")


def add_clip(chromium, path: Path, words: str) -> None:
    """Choose a file on the page, type its words and add the voice."""
    chromium.run("ui.clone.open = true")
    node = chromium.call("DOM.getDocument")["root"]["nodeId"]
    node = chromium.call("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    chromium.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    chromium.wait("ui.status.textContent !== ''")
    chromium.run(f"ui.words.value = {json.dumps(words)}; ui.words.dispatchEvent(new Event('input'))")
    if chromium.run("!ui.add.disabled"):
        chromium.click("#add")


def test_a_clip_is_cloned_and_compared_on_the_page(chromium, voices, tmp_path):
    """Mistake: an uploaded clip has no effect, reaches the server's disk, or one of two compared voices is missing."""
    (tmp_path / "clip.flac").write_bytes(base64.b64decode(clip(2)))
    (tmp_path / "long.flac").write_bytes(base64.b64decode(clip(21)))
    (tmp_path / "bad.wav").write_bytes(b"RIFF" * 30)
    with running(voices, watermarked=False) as server:
        open_page(chromium, server)
        add_clip(chromium, tmp_path / "long.flac", "Too long.")
        assert chromium.run("ui.status.textContent.includes('lasts 21.0 s; wanted 1 to 20 s') && ui.add.disabled")
        chromium.run("ui.status.textContent = ''")
        add_clip(chromium, tmp_path / "bad.wav", "Broken.")
        assert chromium.run("ui.status.textContent.includes('cannot decode') && ui.add.disabled && ui.recognize.disabled")
        chromium.run("ui.status.textContent = ''")
        add_clip(chromium, tmp_path / "clip.flac", "These are the words.")
        assert chromium.run("ui.voice.value === 'clip 1' && ui.name.value === 'clip 2'")
        chromium.run("ui.other.value = 'ben'; ui.format.value = 'wav'; window.kept = []")
        chromium.run("window.create = URL.createObjectURL; "
                     "URL.createObjectURL = blob => (kept.push(blob), create.call(URL, blob)); 0")
        chromium.click("#text")
        chromium.call("Input.insertText", text=SHORT)
        chromium.click("#speak")
        chromium.wait("document.querySelectorAll('#results audio').length === 2")
        chromium.wait("[...document.querySelectorAll('#results audio')].every(audio => audio.readyState >= 1)")
        seconds = chromium.run("[...document.querySelectorAll('#results audio')].map(audio => audio.duration)")
        names = chromium.run("[...document.querySelectorAll('#results a')].map(link => link.download)")
        assert names == ["clip 1-0.wav", "ben-0.wav"] and chromium.console_errors() == []
        played = chromium.run("kept[0].arrayBuffer().then(buffer => "
                              "btoa([...new Uint8Array(buffer)].map(byte => String.fromCharCode(byte)).join('')))")
    expected = speak.speak(SHORT, voices["plain"], Reference(tmp_path / "clip.flac", "These are the words.")).samples
    assert seconds == pytest.approx([len(expected) / 24_000, speak.speak(SHORT, voices["ben"]).seconds], abs=0.01)
    assert same_audio(decode(base64.b64decode(played)), expected)


def test_a_clip_is_recorded_on_the_page(chromium, voices):
    """Mistake: the microphone's format is not understood, or stays on after the recording."""
    with running(voices, watermarked=False) as server:
        open_page(chromium, server)
        chromium.run("ui.clone.open = true")
        chromium.click("#record")
        chromium.wait("ui.record.textContent === 'Stop recording'")
        time.sleep(2)
        chromium.run("window.track = recorder.stream.getTracks()[0]")
        chromium.click("#record")
        chromium.wait("/^[123].. s/.test(ui.status.textContent) && !ui.clip.hidden && !ui.recognize.disabled")
        assert chromium.run("window.track.readyState === 'ended' && ui.record.textContent === 'Record'")
        assert chromium.run("clip.startsWith('data:audio/wav;base64,') && clip.length < 400000")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_width(chromium, voices, scheme):
    """Mistake: sideways scrolling on a phone, a control without a name for screen readers, or unreadable colours."""
    with running(voices, watermarked=False) as server:
        for width in (390, 768, 1024, 1440):
            chromium.set_viewport(width, 800, scheme)
            open_page(chromium, server)
            chromium.run("ui.clone.open = true; ui.clip.hidden = false")
            chromium.run("addResult({input: 'x'.repeat(200), seed: 1, response_format: 'wav'}, "
                         "['clip 1', 'ben'].map(label => ({label, blob: new Blob(), endedWithEos: false})))")
            assert chromium.run("document.documentElement.scrollWidth <= innerWidth"), width
            assert chromium.run("[...document.querySelectorAll('input,select,button,textarea,audio,summary')].every("
                                "element => element.labels?.length || element.ariaLabel || element.textContent.trim())")
            assert chromium.run("[...document.querySelectorAll('main *')].every(element => "
                                "element.getBoundingClientRect().right <= innerWidth + 1)"), width


def test_the_page_counts_the_seconds_and_can_be_stopped(chromium, voices, paused):
    """Mistake: no progress is shown while a long text is generated, or it cannot be stopped."""
    with running(voices, watermarked=False) as server:
        chromium.open(f"{server.address}/")
        chromium.wait("document.querySelectorAll('#voice option').length === 3")
        chromium.click("#text")
        chromium.call("Input.insertText", text=SHORT)
        chromium.press("Enter", control=True)
        chromium.wait("ui.speak.textContent === 'Stop' && /^[1-9] s$/.test(ui.count.textContent)")
        chromium.click("#speak")
        wait_for(lambda: paused.sizes and len(server.queue) == 0)
        chromium.wait("ui.speak.textContent === 'Speak' && ui.count.textContent === '12 of 4096'")
        paused.set()
        assert chromium.run("ui.error.textContent") == ""


def test_every_content_type_can_be_encoded():
    """Mistake: a format is offered that this libsndfile lacks, or samples are lost at a sample rate it does not support."""
    wave = (0.3 * np.sin(np.arange(22_050) * 0.1)).astype(np.float32)
    for name in ("mp3", "wav", "flac", "opus"):  # soundfile reads no AAC
        samples, rate = soundfile.read(io.BytesIO(asyncio.run(encode([wave], 22_050, name))))
        assert len(samples) / rate == pytest.approx(1, abs=0.06), name
