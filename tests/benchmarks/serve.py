"""The server with requests that come at once, against one after the other: python -m tests.benchmarks.serve --shape tiny

Every request is another sentence, generated until its length limit: EOS is off, since a network with random weights has
none. One more request is streamed, for the time to the first audio that a client receives. No watermark is applied.
"""

import contextlib
import http.client
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch

from tests.benchmarks import generate, measure
from tts_kit import device as devices
from tts_kit.generation import engine
from tts_kit.model.load import Base

REQUESTS = 8
SAMPLE_BYTES = 2
"""Of the format pcm."""


def ask(port: int, text: str, **fields) -> tuple[int, float]:
    """Send a request; return the samples of its answer, and the seconds to the first of them."""
    body = {"model": "tts-1", "voice": "voice", "input": text, "seed": 1, "response_format": "pcm", **fields}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        start = time.perf_counter()
        connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.read(SAMPLE_BYTES)
        seconds = time.perf_counter() - start
        content = first + response.read()
    if response.status != 200:
        raise RuntimeError(f"the server answered {response.status}: {content.decode(errors='replace')[:300]}")
    return len(content) // SAMPLE_BYTES, seconds


def compare(shape: str, requests: int, repeats: int, device_config: devices.DeviceConfig) -> dict:
    """Return the row of all requests at once against one after the other."""
    from tts_kit.server.app import Server
    from tts_kit.speech.voice import Voice

    speaker = generate.speaker(shape, device_config)
    base = Base(speaker.model, speaker.codec, speaker.prompt_builder, speaker.spec, device_config, shape, "", {}, "")
    texts = [*itertools.islice(itertools.cycle(generate.SENTENCES), requests)]
    server = Server({"voice": Voice(base, base.model, sampling=speaker.sampling)}, port=0, watermarked=False)
    server.start()
    try:
        with mock.patch.object(engine, "is_eos_frame", lambda frame: torch.zeros(len(frame), dtype=torch.bool)), \
                ThreadPoolExecutor(requests) as pool:
            def send(*, at_once: bool) -> int:
                answers = (pool.map if at_once else map)(lambda text: ask(server.port, text), texts)
                return sum(samples for samples, _ in answers)

            seconds = send(at_once=True) / speaker.spec.sample_rate
            durations = measure.alternate({
                "kit": measure.timer(lambda: send(at_once=True), device_config.device),
                "other": measure.timer(lambda: send(at_once=False), device_config.device)}, repeats)
            first = statistics.median(ask(server.port, texts[0], stream_format="audio")[1] for _ in range(repeats))
    finally:
        server.close()
    settings = {"batch": requests, "seconds_of_audio": round(seconds, 2), "dtype": str(device_config.dtype),
                "by": "one request after the other", "threads": torch.get_num_threads()}
    kit, other = (measure.speed(durations[name], seconds, "s of audio/s") for name in ("kit", "other"))
    return measure.row("serve", shape, "one by one", settings, kit | {"first_audio_seconds": first}, other)


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = measure.parser(__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    device_config = devices.choose(options.device)
    try:
        row = compare(options.shape, options.requests, options.repeats, device_config)
    except ModuleNotFoundError as error:
        print(f"serve is not measured: {error}.")
        missing = measure.not_measured(f"{error.name} is not installed")
        row = measure.row("serve", options.shape, "one by one", {}, missing, missing)
    return measure.report([row], device_config.device, options.out)


if __name__ == "__main__":
    main()
