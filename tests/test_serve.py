"""The server, asked by OpenAI's own client, by curl, by a browser, and by those who mean no good."""

import asyncio
import base64
import contextlib
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

import numpy as np
import pytest
import soundfile
from test_lora import shake

from tts_kit import audio, device, watermark
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.generation import generate
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.server import app, queue, serve
from tts_kit.server.auth import AuthMiddleware
from tts_kit.server.queue import Job, JobQueue
from tts_kit.server.serve import Server
from tts_kit.speech import adapters, speak
from tts_kit.speech.speak import Request

ROOT = Path(__file__).parents[1]
TINY = ROOT / "sample_data" / "tiny-csm"
SHORT = "Hello there."
LONG = "The dog ran home because it was late and very dark. " * 5
KEY = "a-key-of-more-than-sixteen"


@contextlib.contextmanager
def running(cast, **settings) -> Iterator[Server]:
    """A server on a free port of this machine."""
    made = Server(cast, port=0, **settings)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Server]:
    """The bundled model, with the mark, as people start it."""
    with running(adapters.load_voices(device.choose("cpu"), {"tiny": TINY})) as made:
        yield made


@pytest.fixture(scope="module")
def cast(loud, tmp_path_factory) -> dict:
    """Three voices on one toy that differ: its own, and two adapters; each always says the same."""
    places = {"plain": loud}
    for number, name in enumerate(("anna", "ben"), 1):
        base = load.load_base(loud, device.choose("cpu"))
        model = lora.add_lora(base.model, 4, 8.0)
        shake(model)
        lora.set_strength(model, number)
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                weight.data.mul_(number)
        places[name] = tmp_path_factory.mktemp("adapters") / name
        lora.save(model, places[name], base, Config(base=loud).to_json(), {"speaker": "0"})
    found = adapters.load_voices(device.choose("cpu"), places)
    for voice in found.values():
        voice.sampling = Sampling(0, 0)
    return found


@pytest.fixture
def toys(cast) -> Iterator[Server]:
    with running(cast, marked=False) as made:
        yield made


def client(server: Server, key: str = "none"):
    openai = pytest.importorskip("openai", reason="openai is not installed (requirements-dev.txt)")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=60)


def ask(server: Server, wanted: dict | bytes | None = None, path: str = "/v1/audio/speech", headers: dict | None = None,
        method: str = "POST") -> tuple[int, bytes, dict]:
    """Status, content and headers of an answer, without a library's help."""
    told = {"model": "tts-1", "input": SHORT, "voice": [*server.worker.cast][-1], "response_format": "wav"}
    body = wanted if isinstance(wanted, bytes) else json.dumps(told | (wanted or {})).encode()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body if method == "POST" else None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


def heard(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one.clip(-1, 1) - other.clip(-1, 1)).max(initial=0) < 2e-3)


def until(seen: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.01)


@pytest.fixture
def held(monkeypatch) -> Iterator[threading.Event]:
    """The worker stops before its next batch until this is set; how many prompts each batch had is in `sizes`."""
    go, real = threading.Event(), generate.generate
    go.sizes = []

    def waiting(*arguments):
        go.sizes.append(len(arguments[2]))
        assert go.wait(30)
        return real(*arguments)

    monkeypatch.setattr(generate, "generate", waiting)
    yield go
    go.set()


# what OpenAI's client and curl get

@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "opus", "pcm"])
def test_openais_client_gets_every_format_whole(tiny, kind):
    """Mistake: a format that no player opens, or that loses the end of the speech."""
    wanted = speak.speak(SHORT, tiny.worker.cast["tiny"])
    answer = client(tiny).audio.speech.create(model="tiny-csm", voice="tiny", input=SHORT, response_format=kind)
    if kind == "pcm":
        seconds = len(answer.content) / 2 / 24_000
    else:
        samples, rate = soundfile.read(io.BytesIO(answer.content))
        seconds = len(samples) / rate
    assert seconds == pytest.approx(wanted.seconds, abs=0.1 if kind == "mp3" else 0.01)
    assert answer.response.headers["content-type"].startswith("audio/")
    assert answer.response.headers["x-ended-by-itself"] == "true"


def test_mp3_is_what_is_sent_when_nothing_is_said_of_it(tiny):
    """Mistake: another default than OpenAI's, so that a saved .mp3 is none."""
    content = client(tiny).audio.speech.create(model="tts-1", voice={"id": "tiny"}, input=SHORT).content
    assert soundfile.info(io.BytesIO(content)).format == "MP3"


@pytest.mark.parametrize("kind", ["wav", "pcm"])
def test_openais_client_streams(tiny, kind):
    """Mistake: a stream that begins when all is said, or that says something else than the whole file."""
    asked = {"model": "tiny-csm", "voice": "tiny", "input": LONG[:104], "response_format": kind}
    whole = client(tiny).audio.speech.create(**asked).content
    with client(tiny).audio.speech.with_streaming_response.create(**asked, stream_format="audio") as answer:
        parts = answer.iter_bytes()
        got = next(parts) + next(parts)
        assert kind == "pcm" or heard(got).size
        assert len(tiny.waiting) == 1, "the first sound came when all was said"
        got += b"".join(parts)
    if kind == "wav":
        whole, got = heard(whole), heard(got)
    else:
        whole, got = (np.frombuffer(each, "<i2") / 32768 for each in (whole, got))
    assert abs(len(whole) - len(got)) < 50
    assert np.abs(whole[:len(got)] - got[:len(whole)]).max() < 0.02  # the mark hears a little less ahead in a stream


def test_openais_events(toys):
    """Mistake: server-sent events that OpenAI's clients cannot read, or without an end."""
    whole = heard(ask(toys)[1])
    status, content, headers = ask(toys, {"stream_format": "sse"})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    found = [json.loads(line.removeprefix("data: ")) for line in content.decode().split("\n\n") if line]
    assert {each["type"] for each in found[:-1]} == {"speech.audio.delta"} and found[-1]["type"] == "speech.audio.done"
    usage = found[-1]["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > usage["input_tokens"] > 0
    sound = heard(b"".join(base64.b64decode(each["audio"]) for each in found[:-1]))
    assert len(found) > 3 and alike(sound, whole)


def test_a_format_that_cannot_grow_is_streamed_in_one_piece(toys):
    """Mistake: the client's default format is refused as soon as it says that it streams."""
    status, content, _ = ask(toys, {"stream_format": "audio", "response_format": "flac"})
    assert status == 200 and alike(heard(content), heard(ask(toys)[1]))


def test_curl(tiny, tmp_path):
    """Mistake: only our own client is understood."""
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    body = json.dumps({"model": "tts-1", "input": SHORT, "voice": "tiny", "response_format": "flac"})
    out = subprocess.run([curl, "-sS", "--fail-with-body", f"{tiny.address}/v1/audio/speech", "-d", body, "-H",
                          "Content-Type: application/json", "-o", tmp_path / "hello.flac"], capture_output=True, timeout=60,
                         check=False)
    assert out.returncode == 0 and soundfile.info(tmp_path / "hello.flac").duration > 1
    out = subprocess.run([curl, "-sS", f"{tiny.address}/v1/audio/speech", "-d", body.replace("tiny", "other")],
                         capture_output=True, timeout=60, check=False)
    assert json.loads(out.stdout)["error"]["param"] == "voice"


def test_speech_that_leaves_is_marked(tiny, toys):
    """Mistake: nobody can tell any more that a machine spoke."""
    said = client(tiny).audio.speech.create(model="tts-1", voice="tiny", input=LONG[:104], response_format="wav")
    with client(tiny).audio.speech.with_streaming_response.create(
            model="tts-1", voice="tiny", input=LONG[:104], response_format="wav", stream_format="audio") as answer:
        streamed = answer.read()
    assert watermark.detect(heard(said.content), 16_000) > watermark.SURE
    assert watermark.detect(heard(streamed), 16_000) > watermark.SURE
    assert watermark.detect(heard(ask(toys)[1]), 24_000) < watermark.SURE


def test_a_long_text_is_what_speak_says(toys, cast):
    """Mistake: sentences that are lost, out of order, or without the first one's voice."""
    whole = speak.speak(LONG, cast["anna"], seed=3)
    for told in ({}, {"stream_format": "audio"}):
        status, content, headers = ask(toys, {"input": LONG, "voice": "anna", "seed": 3} | told)
        assert status == 200 and alike(heard(content), whole.samples), told
    assert headers["content-type"] == "audio/wav" and len(toys.waiting) == 0


def test_what_there_is_to_ask_for(toys):
    """Mistake: clients that fill their lists by asking find nothing, or places of this machine."""
    assert [each.id for each in client(toys).models.list()] == [toys.models[0], "tts-1"]
    assert client(toys).models.retrieve("tts-1").object == "model"
    for path in ("/v1/voices", "/v1/audio/voices"):
        status, content, _ = ask(toys, path=path, method="GET")
        assert status == 200 and [each["id"] for each in json.loads(content)["data"]] == ["plain", "anna", "ben"]
        assert b"/" not in content
    assert json.loads(ask(toys, path="/health", method="GET")[1]) == {"status": "ok", "waiting": 0}


def test_every_voice_names_its_own_model(tiny, cast):
    """Mistake: with two bases, one speaks under the other one's name."""
    with running({"anna": cast["anna"], "tiny": tiny.worker.cast["tiny"]}, marked=False) as server:
        found = {each["id"]: each["model"] for each in json.loads(ask(server, path="/v1/voices", method="GET")[1])["data"]}
        assert [*found.values(), "tts-1"] == server.models and found["tiny"] == "tiny-csm" != found["anna"]
        for model, status in ((found["anna"], 200), ("tts-1", 200), ("tiny-csm", 404)):
            assert ask(server, {"voice": "anna", "model": model})[0] == status


# several clients and several voices

def test_voices_do_not_mix(toys, cast):
    """Mistake: an adapter of another request speaks, or the base speaks with the adapter that spoke before."""
    alone = {name: speak.speak(SHORT, voice).samples for name, voice in cast.items()}
    names = list(cast)
    assert not any(alike(alone[one], alone[other]) for one, other in zip(names, names[1:] + names[:1]))
    wanted = [(name, {"stream_format": "audio"} if number % 3 == 2 else {}) for number in range(6) for name in names]
    with ThreadPoolExecutor(len(wanted)) as many:
        answers = list(many.map(lambda each: ask(toys, {"voice": each[0]} | each[1]), wanted))
    for (name, _), (status, content, _) in zip(wanted, answers):
        assert status == 200 and alike(heard(content), alone[name]), name


def test_the_base_is_loaded_once(cast):
    """Mistake: every voice brings a network of its own, and memory ends at the third."""
    assert len({id(voice.base) for voice in cast.values()}) == 1


def test_requests_for_one_voice_are_said_together(toys, held):
    """Mistake: a queue that says one request after the other while a batch would cost the same."""
    with ThreadPoolExecutor(9) as many:
        first = many.submit(ask, toys)
        until(lambda: held.sizes == [1])
        rest = [many.submit(ask, toys, {"seed": seed}) for seed in range(8)]
        until(lambda: len(toys.waiting) == 9)
        held.set()
        assert {each.result()[0] for each in [first, *rest]} == {200}
    assert held.sizes == [1, 8] and toys.worker.batches == [1, 8]


def test_a_long_stream_holds_others_up_for_a_sentence_only(toys, monkeypatch):
    """Mistake: whoever streams a chapter has the server for himself."""
    spoken, real = [], generate.stream

    def slow(*arguments):
        spoken.append("sentence")
        for frame in real(*arguments):
            time.sleep(0.002)
            yield frame

    monkeypatch.setattr(generate, "stream", slow)
    with ThreadPoolExecutor(1) as many:
        long = many.submit(ask, toys, {"input": LONG, "stream_format": "audio"}, headers={"Connection": "close"})
        until(lambda: spoken)
        assert ask(toys, {"voice": "plain"})[0] == 200
        assert not long.done() and len(speak.split_requests(LONG)) == 2
        assert long.result()[0] == 200


def test_turns_go_round_between_clients():
    """Mistake: one client with many requests is served before another one with a single request."""
    waiting = JobQueue(most=40)
    for client_name, voice, count in (("greedy", "anna", 20), ("modest", "ben", 1), ("other", "anna", 2)):
        for _ in range(count):
            waiting.put(Job(client_name, voice, [Request("x.")], False, print))
    first, second = waiting.take(), waiting.take()
    assert [each.client for each in first[:3]] == ["greedy", "other", "greedy"] and len(first) == 8
    assert [each.client for each in second] == ["modest"]
    assert len(queue.next_batch([Job("a", "v", [Request("x.")] * 9, False, print, said=1) for _ in range(2)])) == 8


# too much

def test_a_full_queue_says_when_to_come_again(cast, held):
    """Mistake: requests pile up until memory ends, or are refused without a word."""
    with running(cast, marked=False, most=4) as server, ThreadPoolExecutor(3) as many:
        going = [many.submit(ask, server) for _ in range(3)]
        until(lambda: len(server.waiting) == 3)
        status, content, headers = ask(server)
        assert status == 503 and int(headers["retry-after"]) >= 1
        assert json.loads(content)["error"]["code"] == "overloaded"
        held.set()
        assert {each.result()[0] for each in going} == {200} and ask(server)[0] == 200


def test_who_waited_too_long_is_told(cast, held):
    """Mistake: a client waits for minutes, until what is being said is said, to hear then that it waited in vain."""
    with running(cast, marked=False, queue_timeout=0.2) as server, ThreadPoolExecutor(1) as many:
        first = many.submit(ask, server)
        until(lambda: held.sizes)
        status, content, headers = ask(server, {"voice": "plain"})
        assert status == 503 and b"not begun in 0.2 s" in content and int(headers["retry-after"]) >= 1
        assert len(server.waiting) == 1, "what was begun is not given up"
        held.set()
        assert first.result()[0] == 200


def test_too_many_requests_at_once_are_refused_and_nothing_breaks(cast, held):
    """Mistake: every request that comes is read and kept, and the machine goes down with them."""
    with running(cast, marked=False, most=4, most_requests=8) as server, ThreadPoolExecutor(40) as many:
        going = [many.submit(ask, server) for _ in range(40)]
        until(lambda: sum(each.done() for each in going) >= 36)
        held.set()
        statuses = [each.result()[0] for each in going]
        assert sorted(set(statuses)) == [200, 503] and 1 <= statuses.count(200) <= 4
        assert ask(server)[0] == 200


def test_two_hundred_open_connections_are_only_connections(toys):
    """Mistake: connections that say nothing keep others out."""
    with contextlib.ExitStack() as opened:
        for _ in range(200):
            made = opened.enter_context(socket.create_connection((toys.host, toys.port), timeout=10))
            made.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n")
        assert ask(toys)[0] == 200
    assert ask(toys)[0] == 200


# bad input

@pytest.mark.parametrize(("wanted", "status", "about", "says"), [
    ({"voice": "../../etc/passwd"}, 400, "voice", "there are plain, anna, ben"),
    ({"voice": {"id": "x" * 500}}, 400, "voice", "no voice"), ({"voice": ""}, 400, "voice", "no voice"),
    ({"voice": 5}, 400, "voice", "valid"), ({"model": "gpt-9"}, 404, "model", "not served here"),
    ({"input": ""}, 400, "input", "empty"), ({"input": " \n\t"}, 400, "input", "empty"),
    ({"input": "😀🎉"}, 400, "input", "letter"),
    ({"input": "a\x00b"}, 400, "input", r"U\+0000"), ({"input": "a\u202eb"}, 400, "input", r"U\+202E"),
    ({"input": "x" * 4097}, 400, "input", "4097 characters; at most 4096"), ({"input": 7}, 400, "input", "string"),
    ({"input": ["a"]}, 400, "input", "string"), ({"input": "x" * 1_000_000}, 413, "input", "larger"),
    ({"response_format": "aac"}, 400, "response_format", "wav, flac, opus, pcm"), ({"speed": 1.5}, 400, "speed", "one pace"),
    ({"speed": "fast"}, 400, "speed", "number"), ({"instructions": "whisper"}, 400, "instructions", "no instructions"),
    ({"seed": -1}, 400, "seed", "0"), ({"seed": 2**70}, 400, "seed", "less"),
    ({"stream_format": "x"}, 400, "stream_format", "sse"), ({"pitch": 2}, 400, "pitch", "not permitted"),
    (b"{", 400, None, "JSON"), (b"[]", 400, None, "object"), (b"", 400, None, "JSON"), (b"[" * 60_000, 400, None, "JSON"),
    (b'{"input": "\\ud800"}', 400, None, "JSON"), (b"\xff\xfe{}", 400, None, "JSON"),
    (b"x" * 1_000_000, 413, "input", "larger"),
])
def test_bad_requests_get_a_sentence_in_openais_shape(toys, wanted, status, about, says):
    """Mistake: a traceback, a hang, noise as speech, or an error that clients cannot read."""
    seen, content, headers = ask(toys, wanted)
    error = json.loads(content)["error"]
    assert seen == status and headers["content-type"] == "application/json"
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert re.search(says, error["message"]) and len(error["message"]) < 400
    assert error["param"] == about and len(toys.waiting) == 0


def test_emoji_among_words_is_no_reason_to_refuse(toys):
    """Mistake: a text from a chat is refused for a smile."""
    assert ask(toys, {"input": "Well done 🎉, café!"})[0] == 200


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/v1/audio/speech", "GET", 405),
                                                       ("/v1/models/none", "GET", 404), ("/docs", "GET", 404),
                                                       ("/v1/voices/", "GET", 404),
                                                       ("/../../etc/passwd", "GET", 404)])
def test_other_addresses(toys, path, method, status):
    """Mistake: a page of the framework with scripts from elsewhere, or an error in another shape."""
    seen, content, _ = ask(toys, path=path, method=method)
    assert seen == status and json.loads(content)["error"]["message"]


def test_openais_client_raises_its_own_errors(toys):
    """Mistake: errors that OpenAI's client takes for a broken connection."""
    import openai

    with pytest.raises(openai.BadRequestError, match="there is no voice"):
        client(toys).audio.speech.create(model="tts-1", voice="alloy", input=SHORT)
    with pytest.raises(openai.NotFoundError):
        client(toys).audio.speech.create(model="tts-9", voice="anna", input=SHORT)


def test_a_failure_is_told_and_the_next_is_served(toys, monkeypatch, caplog):
    """Mistake: one bad request ends the thread that speaks, and the server answers no more; or its insides are sent out."""
    with monkeypatch.context() as broken:
        broken.setattr(generate, "generate", lambda *arguments: 1 / 0)
        broken.setattr(generate, "stream", lambda *arguments: 1 / 0)
        for told in ({}, {"stream_format": "audio"}):
            status, content, _ = ask(toys, told)
            assert status == 500 and json.loads(content)["error"]["type"] == "server_error" and b"division" not in content
    assert "division by zero" in caplog.text
    assert ask(toys)[0] == 200 and len(toys.waiting) == 0


def test_a_stream_that_fails_is_no_whole_one(toys, monkeypatch, caplog):
    """Mistake: speech that broke off looks like speech that ended, or what broke it takes the server down."""
    real = generate.stream

    def breaks(*arguments):
        for number, frame in enumerate(real(*arguments)):
            assert number < 6, "broken on purpose"
            yield frame

    with monkeypatch.context() as broken:
        broken.setattr(generate, "stream", breaks)
        with pytest.raises(http.client.IncompleteRead):
            ask(toys, {"stream_format": "audio", "input": LONG})
    assert "broken on purpose" in caplog.text and "an answer was broken off" in caplog.text
    assert ask(toys, {"stream_format": "audio"})[0] == 200 and len(toys.waiting) == 0


# clients that leave

@contextlib.contextmanager
def asking(server: Server, wanted: dict) -> Iterator[socket.socket]:
    """A client that has asked; it hangs up at the end."""
    body = json.dumps({"model": "tts-1", "input": LONG, "voice": "anna", "response_format": "wav"} | wanted).encode()
    with socket.create_connection((server.host, server.port), timeout=20) as made:
        made.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        yield made


def leave(server: Server, wanted: dict, read: int) -> None:
    """Ask, read a little, and hang up."""
    with asking(server, wanted) as made:
        while read > 0:
            read -= len(made.recv(read))


@pytest.fixture
def slowly(monkeypatch) -> list[int]:
    """The server's frames take their time; how many prompts each was made for is kept."""
    made, real = [], generate.stream

    def slow(*arguments):
        for frame in real(*arguments):
            if threading.current_thread().name == "speaking":
                made.append(len(frame))
                time.sleep(0.02)
            yield frame

    monkeypatch.setattr(generate, "stream", slow)
    return made


def test_a_batch_for_nobody_is_broken_off(toys, cast, slowly):
    """Mistake: a batch is said to its end for clients that have all hung up, and all others wait."""
    with asking(toys, {}), asking(toys, {"seed": 1}):
        until(lambda: slowly and len(toys.waiting) == 2)
    until(lambda: len(toys.waiting) == 0)
    made = len(slowly)
    until(lambda: toys.worker.batches)
    assert len(slowly) - made <= 3 and ask(toys)[0] == 200
    assert speak.speak(LONG, cast["anna"]).seconds * cast["anna"].base.spec.frame_rate > 50, "too short a text to tell"


def test_who_stays_in_a_batch_hears_all(toys, cast, held, slowly):
    """Mistake: one client hangs up, and what was said with his is cut short too."""
    with ThreadPoolExecutor(2) as many:
        first = many.submit(ask, toys)
        until(lambda: held.sizes)
        with asking(toys, {"input": SHORT}):
            stays = many.submit(ask, toys, {"voice": "anna"})
            until(lambda: len(toys.waiting) == 3)
            held.set()
            until(lambda: slowly and slowly[-1] == 2)
        assert first.result()[0] == 200 and alike(heard(stays.result()[1]), speak.speak(SHORT, cast["anna"]).samples)
    assert held.sizes[:2] == [1, 2]


def test_whoever_speaks_beside_the_server_is_waited_for(toys, cast):
    """Mistake: a notebook that speaks in a voice that it also serves makes the server call good texts unspeakable."""
    with cast["anna"].base.taken():
        status, content, headers = ask(toys)
        assert status == 503 and b"something else" in content and headers["retry-after"] == "2"
    assert ask(toys)[0] == 200


def test_a_client_that_hangs_up_mid_stream_frees_the_voice(toys, cast, slowly):
    """Mistake: the chapter is said to the end for nobody, and all others wait."""
    for _ in range(3):
        leave(toys, {"stream_format": "audio"}, 500)
    until(lambda: len(toys.waiting) == 0)
    made, (_, content, _) = len(slowly), ask(toys)
    whole = speak.speak(LONG, cast["anna"]).seconds * cast["anna"].base.spec.frame_rate
    assert made < 1.5 * whole and alike(heard(content), speak.speak(SHORT, cast["ben"]).samples)


def test_a_client_that_hangs_up_while_it_waits_loses_its_place(toys, held):
    """Mistake: speech is made for clients that went away."""
    with ThreadPoolExecutor(1) as many:
        first = many.submit(ask, toys)
        until(lambda: held.sizes)
        for _ in range(5):
            leave(toys, {"voice": "plain"}, 0)
        until(lambda: len(toys.waiting) == 1)
        held.set()
        assert first.result()[0] == 200
    assert ask(toys)[0] == 200 and held.sizes == [1, 1]


def test_nobody_holds_a_connection_in_silence(cast, monkeypatch):
    """Mistake: clients that never finish asking, or never take their answer, hold connections and memory for ever; or one
    that waits for its turn, or often asks, is taken for one of them."""
    async def app(scope, receive, send):
        await asyncio.sleep(4 if scope["path"] == "/late" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000 if scope["path"] == "/much" else 10)})

    monkeypatch.setattr(serve, "SILENT", 1.0)
    monkeypatch.setattr(serve.api, "app", lambda service: app)
    with running(cast, marked=False) as server, contextlib.ExitStack() as opened:
        busy = opened.enter_context(contextlib.closing(http.client.HTTPConnection(server.host, server.port, timeout=20)))
        _, half, much, late = (opened.enter_context(socket.create_connection((server.host, server.port), timeout=20))
                               for _ in range(4))
        for client_socket, path in ((much, b"much"), (late, b"late"), (half, b"half")):
            client_socket.sendall(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n" % path)
        much.sendall(b"\r\n")
        late.sendall(b"\r\n")
        connections = server._server.server_state.connections

        def only_two_are_left() -> bool:
            with contextlib.suppress(OSError):
                half.sendall(b"a: b\r\n")  # a little more, and never the end
            busy.request("GET", "/busy")
            return busy.getresponse().read() and len(connections) == 2

        until(lambda: len(connections) == 4)
        until(only_two_are_left)
        assert late.recv(100).startswith(b"HTTP/1.1 200")


# who may come in

def test_with_a_key_nobody_without(cast):
    """Mistake: whoever reaches the port speaks in these voices, or learns their names."""
    with running(cast, marked=False, keys=[KEY, KEY + "2"]) as server:
        for said in ({}, {"Authorization": KEY}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {KEY[:-1]}"},
                     {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer \xff"}):
            for path, method in (("/v1/audio/speech", "POST"), ("/v1/voices", "GET"), ("/v1/models", "GET"),
                                 ("/docs", "GET")):
                status, content, headers = ask(server, path=path, method=method, headers=said)
                assert status == 401 and headers["www-authenticate"] == "Bearer" and b"anna" not in content
                assert json.loads(content)["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/"):
            status, content, _ = ask(server, path=path, method="GET")
            assert status == 200 and not any(name in content for name in (b"anna", server.models[0].encode()))
        for key in (KEY, KEY + "2"):
            assert client(server, key).audio.speech.create(model="tts-1", voice="anna", input=SHORT).content


def test_without_a_key_only_for_this_machine(toys):
    """Mistake: a page in the browser, or a name that somebody else's DNS points at 127.0.0.1, speaks through the server."""
    port = toys.port
    for host, status in ((f"localhost:{port}", 200), (f"127.0.0.1:{port}", 200), (f"[::1]:{port}", 200), ("127.0.0.1", 200),
                         (f"evil.example:{port}", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[", 403)):
        assert ask(toys, path="/v1/voices", method="GET", headers={"Host": host})[0] == status, host
    for origin, status in ((f"http://127.0.0.1:{port}", 200), ("https://evil.example", 403), ("null", 403),
                           ("http://127.0.0.1:9", 403), ("http://[", 403), ("", 403)):
        assert ask(toys, headers={"Origin": origin, "Host": f"127.0.0.1:{port}"})[0] == status, origin


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_other_addresses_of_the_machine_want_a_key(cast, host):
    """Mistake: --host 0.0.0.0 opens the voices to everybody on the network."""
    with pytest.raises(KitError, match="no key was given. Give --api-key"):
        Server(cast, host, 0)
    with pytest.raises(KitError, match="shorter than 16"):
        Server(cast, host, 0, keys=["secret"])


def test_a_port_in_use_is_named(toys, cast):
    """Mistake: a traceback of the socket, after minutes of loading."""
    with pytest.raises(KitError, match=f"port {toys.port} of 127.0.0.1 is in use.*--port 0"):
        serve.run_server(lambda: pytest.fail("loaded before the port was found free"), port=toys.port)
    with pytest.raises(KitError, match="no address of this machine"):
        Server(cast, port=70_000)


@pytest.mark.parametrize("queue_timeout", [0.0, -1.0, float("nan")])
def test_patience_is_a_time(queue_timeout):
    """Mistake: a server that refuses every request, or none, for a slip on the command line."""
    with pytest.raises(KitError, match="--queue-timeout .* is no time to wait"):
        serve.run_server(lambda: pytest.fail("loaded"), port=0, queue_timeout=queue_timeout)


def test_what_cannot_begin_says_so_at_once(cast, monkeypatch):
    """Mistake: in a notebook or in the cloud the server's thread dies of what is missing, and nobody learns of it."""
    def missing() -> None:
        raise KitError("no mark can be made")

    monkeypatch.setattr(watermark, "network", missing)
    made = Server(cast, port=0)
    with contextlib.closing(made._socket), pytest.raises(KitError, match="no mark can be made"):
        made.start()


@pytest.mark.parametrize("pairs", [["anna"], ["anna="], ["=x"], ["../x=y"], ["a=x", "a=y"], ["a b=x"]])
def test_voices_are_told_by_name_and_place(pairs):
    """Mistake: a voice without a name, or one name for two."""
    with pytest.raises(KitError, match="NAME=PLACE"):
        serve.parse_voices(pairs)
    assert serve.parse_voices(["a=runs/a=b", "b.c=owner/name"]) == {"a": "runs/a=b", "b.c": "owner/name"}


def test_the_model_is_called_as_on_the_hub_and_no_place_is_told(tmp_path, monkeypatch):
    """Mistake: folders of this machine in what every client reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "tiny").mkdir(parents=True)
    assert app.model_name("sesame/csm-1b") == "sesame/csm-1b"
    assert app.model_name("here/tiny") == app.model_name(str(tmp_path / "here" / "tiny")) == "tiny"


def test_the_gate_counts_who_left():
    """Mistake: requests that failed are counted for ever, and at last nobody comes in."""
    async def fails(scope, receive, send):
        raise RuntimeError("inside")

    gate = AuthMiddleware(fails, most=1)
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    for _ in range(3):
        with pytest.raises(RuntimeError, match="inside"):
            asyncio.run(gate(dict(scope), None, None))
    assert gate.inside == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_verb_serves_until_it_is_stopped(toy, tmp_path, how):
    """Mistake: Ctrl-C, or a service manager, leaves clients without a word, or ends in a traceback or a long wait for what
    is being said; the key of the environment is not asked for."""
    command = [sys.executable, "-m", "tts_kit", "serve", "--voice", f"toy={toy}", "--port", "0", "--device", "cpu"]
    started = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "TTS_KIT_KEY": KEY},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = started.stdout.readline()
        port = int(re.search(r"Voices: toy\. Model: toy\. Open http://127\.0\.0\.1:(\d+) .* with a key", said)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 200)):
            connection.request("GET", "/v1/voices", headers=headers)
            answer = connection.getresponse()
            assert answer.status == status and answer.read()
        body = json.dumps({"model": "tts-1", "input": LONG * 15, "voice": "toy"})
        connection.request("POST", "/v1/audio/speech", body, {"Authorization": f"Bearer {KEY}"})
        time.sleep(0.3)
        started.send_signal(how)
        answer = connection.getresponse()
        assert answer.status == 503 and "being stopped" in answer.read().decode() and answer.headers["Retry-After"]
        out, errors = started.communicate(timeout=40)
        assert started.returncode == 0 and out.endswith("Stopped.\n") and not errors
    finally:
        started.kill()


# the page

def test_the_page_needs_nothing_and_runs_nothing_foreign(cast):
    """Mistake: a script from a CDN, a voice's name pasted as markup, or a page that others may frame."""
    hostile = {'<img src=x onerror="window.hurt=1">': cast["anna"]}
    with running(hostile, marked=False) as server:
        status, content, headers = ask(server, path="/", method="GET")
    text = content.decode()
    assert status == 200 and "<img" not in text and text.count("<script") == text.count("</script>") == 1
    assert not re.search(r"https?:|//[a-z]|@import|<link|\b(src|href)=", text.replace("&lt;img src=x", ""))
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy and "unsafe" not in policy


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["open", "locked"])
def test_type_and_hear(chromium, cast, keys):
    """Mistake: a page that looks well and says nothing, forgets what was said, or cannot be used with a key."""
    with running(cast, marked=False, keys=keys) as server:
        chromium.look(1280, 800)
        chromium.open(f"{server.address}/")
        if keys:
            chromium.wait("!document.getElementById('door').hidden")
            chromium.click("#key")
            chromium.call("Input.insertText", text=KEY)
            chromium.press("Enter")
        chromium.wait("document.querySelectorAll('#voice option').length === 3")
        assert chromium.run("part.say.disabled && part.door.hidden")
        chromium.run("part.voice.value = 'ben'")
        chromium.click("#text")
        chromium.call("Input.insertText", text=SHORT)
        chromium.click("#say")
        chromium.wait("document.querySelector('#takes audio')?.readyState >= 2")
        expected = speak.speak(SHORT, cast["ben"]).seconds
        assert chromium.run("document.querySelector('#takes audio').duration") == pytest.approx(expected, abs=0.15)
        assert chromium.run("document.querySelector('#takes a').download") == "ben-0.mp3"
        chromium.run("part.text.value = '😀'; ready()")
        chromium.click("#say")
        chromium.wait("part.said.textContent.includes('no letter')")
        assert chromium.run("document.querySelectorAll('#takes li').length") == 1
        complaints = [each for each in chromium.complaints() if not re.search("40[01]", json.dumps(each))]
        assert complaints == []
        asked = {event["params"]["request"]["url"] for event in chromium.events
                 if event["method"] == "Network.requestWillBeSent"}
        assert all(url.startswith((f"{server.address}/", "blob:", "data:")) for url in asked)


def test_the_page_counts_the_seconds_and_can_be_stopped(chromium, cast, held):
    """Mistake: nothing moves while a long text is said, and who changed his mind has to wait for it."""
    with running(cast, marked=False) as server:
        chromium.open(f"{server.address}/")
        chromium.wait("document.querySelectorAll('#voice option').length === 3")
        chromium.click("#text")
        chromium.call("Input.insertText", text=SHORT)
        chromium.press("Enter", control=True)
        chromium.wait("part.say.textContent === 'Stop' && /^[1-9] s$/.test(part.count.textContent)")
        chromium.click("#say")
        until(lambda: held.sizes and len(server.waiting) == 0)
        chromium.wait("part.say.textContent === 'Say it' && part.count.textContent === '12 of 4096'")
        held.set()
        assert chromium.run("part.said.textContent") == ""


def test_audio_knows_what_it_can_write():
    """Mistake: a kind is promised that this libsndfile lacks, or bytes are cut where the rate is not its own."""
    wave = (0.3 * np.sin(np.arange(22_050) * 0.1)).astype(np.float32)
    assert list(audio.available_formats()) == ["mp3", "wav", "flac", "opus"]
    for kind in audio.available_formats():
        samples, rate = soundfile.read(io.BytesIO(audio.encode(wave, 22_050, kind)))
        assert len(samples) / rate == pytest.approx(1, abs=0.06), kind
