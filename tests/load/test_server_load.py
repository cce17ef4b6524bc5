"""Load test of `tts-kit serve` in a process of its own: make test-load

Writes its measurements to tests/benchmarks/results/serve_load.json.
"""

import asyncio
import collections
import contextlib
import datetime
import http.client
import importlib.metadata
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch

from tts_kit import device
from tts_kit.config import Config
from tts_kit.io import write_json
from tts_kit.model import load, lora

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "serve_load.json"
TINY = ROOT / "sample_data" / "tiny-csm"
REQUESTS, CLIENTS, IDLE, CROWD = 200, 20, 400, 800
"""The server takes 512 connections at once: the idle ones leave room, the crowd does not."""
TEXTS = ("Hello there.", "The dog ran home.", "Who is that girl?", "The river is deep.", "It was too dark.", "We met again.",
         "Count to ten.", "Her voice is known.", "Open the door.", "Two red chairs.")
VOICES = ("tiny", "other")
NEAR = 0.02
"""Largest difference of a sample from the same request sent alone: batches and streams round slightly differently."""


@dataclass
class Answer:
    status: int
    samples: np.ndarray
    seconds: float
    first_seconds: float


def adapter(folder: Path) -> Path:
    """A second voice on the bundled model: a random adapter, small enough to leave speech intelligible."""
    base = load.load_base(str(TINY), device.choose("cpu"))
    model = lora.add_lora(base.model, 4, 8.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(sum(name.encode())))
    lora.save(model, folder, base, Config(base=str(TINY)).to_json(), {"speaker": "0"})
    return folder


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start the server; yields its port and process."""
    command = [sys.executable, "-m", "tts_kit", "serve", "--voice", f"tiny={TINY}", "--voice", f"other={adapter(folder)}",
               "--port", "0", "--device", "cpu", "--queue-timeout", "900"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        yield port, psutil.Process(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()


def request_body(number: int) -> dict:
    """Request number: every text in every voice, always with the same seed."""
    text, voice = TEXTS[number % len(TEXTS)], VOICES[number // len(TEXTS) % len(VOICES)]
    return {"model": "tts-1", "input": text, "voice": voice, "seed": 5, "response_format": "wav"}


def post(connection: http.client.HTTPConnection, body: dict) -> Answer:
    start = time.monotonic()
    connection.request("POST", "/v1/audio/speech", json.dumps(body))
    answer = connection.getresponse()
    content = answer.read(1)
    first = time.monotonic() - start
    content += answer.read()
    samples = soundfile.read(io.BytesIO(content), dtype="float32")[0] if answer.status == 200 else np.zeros(0, np.float32)
    return Answer(answer.status, samples, time.monotonic() - start, first)


def client(port: int, numbers: list[int]) -> list[tuple[int, Answer]]:
    """Run one client: one connection, requests one after another, every third as a stream."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1200)) as connection:
        return [(number, post(connection, request_body(number) | ({"stream_format": "audio"} if number % 3 == 2 else {})))
                for number in numbers]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean distance of two waves, the shorter one followed by silence."""
    length = max(len(one), len(other))
    one, other = (np.pad(samples, (0, length - len(samples))) for samples in (one, other))
    return float(np.abs(one - other).mean())


async def crowd(port: int) -> collections.Counter:
    """Send a request on all CROWD connections at once; return how often each status was answered."""
    body = json.dumps(request_body(0)).encode()
    request = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body), body)
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(CROWD)))

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(request)
        content = await asyncio.wait_for(reader.read(), 1200)
        writer.close()
        head = content.partition(b"\r\n\r\n")[0]
        return head.split()[1].decode() if head else "closed without an answer"

    return collections.Counter(await asyncio.gather(*(one(reader, writer) for reader, writer in opened)))


def test_two_hundred_requests_of_twenty_clients_are_answered(tmp_path):
    """Mistake: under load responses are lost or sent to another client, memory grows, or too many connections stop the
    server."""
    with running_server(tmp_path / "other") as (port, process):
        single = {number: answer.samples for number, answer in client(port, [*range(len(TEXTS) * len(VOICES))])}
        with ThreadPoolExecutor(CLIENTS) as threads:  # the largest batches, so that their memory is counted as warm-up
            list(threads.map(lambda number: client(port, [number]), range(CLIENTS)))
            memory, start, used = process.memory_info().rss, time.monotonic(), sum(process.cpu_times()[:2])
            shares = [[*range(first, REQUESTS, CLIENTS)] for first in range(CLIENTS)]
            shares = [[(number * 7) % REQUESTS for number in share] for share in shares]
            answers = [answer for part in threads.map(lambda share: client(port, share), shares) for answer in part]
        seconds, used, after = time.monotonic() - start, sum(process.cpu_times()[:2]) - used, process.memory_info().rss
        with contextlib.ExitStack() as idle:
            for _ in range(IDLE):
                idle.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"POST / HTTP/1.1\r\n")
            [(_, served)] = client(port, [0])
        statuses = asyncio.run(crowd(port))
        [(_, last)] = client(port, [0])
        memory_after_crowd = process.memory_info().rss
    results = figures(single, answers) | {
        "seconds": round(seconds, 1), "processor seconds of the server": round(used, 1), "memory in MB": {
            "after warm-up": round(memory / 1e6, 1), "after the requests": round(after / 1e6, 1),
            "after the crowds": round(memory_after_crowd / 1e6, 1)},
        "idle connections": {"open": IDLE, "a request beside them": served.status},
        "requests at once": {"sent": CROWD, "answers": dict(statuses), "a request after them": last.status}}
    write_json(RESULTS, {
        "what": "the server under load", "command": "make test-load", "model": TINY.name, "voices": len(VOICES),
        "requests": REQUESTS, "clients": CLIENTS, **results, "machine": device.machine(), "threads": 1,
        "versions": device.versions() | {name: importlib.metadata.version(name) for name in ("fastapi", "uvicorn")},
        "date": datetime.date.today().isoformat()})
    print(json.dumps(results, indent=1))
    assert results["lost"] == results["mixed up"] == 0
    assert results["the same as alone"] >= 0.97 * REQUESTS
    assert after < 1.1 * memory and memory_after_crowd < 1.2 * memory
    assert served.status == last.status == 200
    assert set(statuses) == {"200", "503"} and sum(statuses.values()) == CROWD


def figures(single: dict[int, np.ndarray], answers: list[tuple[int, Answer]]) -> dict:
    """Return how many requests were answered, whether correctly, and how fast."""
    good = [(number % len(single), answer) for number, answer in answers if answer.status == 200]
    mixed_up = [number for number, answer in good
                if min(single, key=lambda other: difference(answer.samples, single[other])) != number]
    equal = [number for number, answer in good if len(answer.samples) == len(single[number])
             and np.abs(answer.samples - single[number]).max(initial=0) < NEAR]
    durations = sorted(answer.seconds for _, answer in answers)
    streams = [answer.first_seconds for number, answer in answers if number % 3 == 2]
    return {"lost": REQUESTS - len(good), "mixed up": len(mixed_up), "the same as alone": len(equal),
            "seconds of speech": round(sum(len(answer.samples) for _, answer in good) / 16_000, 1),
            "seconds for an answer": {"median": round(statistics.median(durations), 2),
                                      "95 of 100": round(durations[int(0.95 * len(durations))], 2),
                                      "longest": round(durations[-1], 2)},
            "seconds to the first sound of a stream": {"median": round(statistics.median(streams), 2),
                                                       "longest": round(max(streams), 2)}}


def test_mixed_up_responses_are_counted():
    """Mistake: a measure by which any response passes for any other."""
    waves = {number: np.sin(np.arange(16_000) * (0.01 + number / 100)).astype(np.float32) for number in range(3)}
    good = [(number, Answer(200, waves[number % 3], 1.0, 0.5)) for number in range(REQUESTS)]
    assert figures(waves, good) | {"lost": 0, "mixed up": 0, "the same as alone": REQUESTS} == figures(waves, good)
    swapped = figures(waves, [(0, Answer(200, waves[1], 1.0, 0.5)), (2, Answer(503, waves[2][:0], 1.0, 0.5))])
    assert swapped["mixed up"] == 1 and swapped["the same as alone"] == 0 and swapped["lost"] == REQUESTS - 1
    assert pytest.approx(0) == difference(waves[0], waves[0])
