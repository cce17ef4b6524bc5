"""What guidance and best of n cost with tiny-csm: python -m tests.benchmarks.guidance

Both sides of each ratio alternate in one process. Guidance is timed per frame at batch 1, best of n per sentence with the
models that choose, which are loaded before. Writes results/guidance.json.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import generate, measure
from tts_kit import audio
from tts_kit import device as devices
from tts_kit.generation.sampling import guided_prompt
from tts_kit.io import write_json
from tts_kit.run import OTHER_SPEAKERS, TINY_CSM
from tts_kit.speech import speak
from tts_kit.speech.best_of import TakeChooser
from tts_kit.speech.voice import load_voice
from tts_kit.tokens.prompt import Turn

SETTINGS = {"text": {"guidance": 2.0}, "text, depth decoder too": {"guidance": 2.0, "depth_guidance": 0.5},
            "text and reference": {"guidance": 2.0, "reference_guidance": 1.5}}
TAKES = (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=measure.REPEATS, help="timed runs of each side, after a warm-up run")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args()
    device_config = devices.choose("cpu")
    speaker, target = generate.speaker("tiny", device_config), Turn(generate.SENTENCES[1], "0")
    clip = sorted(OTHER_SPEAKERS.glob("*.flac"))[0]
    codes, = speaker.codec.encode([audio.read(clip, speaker.spec.sample_rate)])
    context = [Turn(generate.SENTENCES[0], "0", codes, in_loss=False)]

    def frames(**settings: float):
        sampling = replace(speaker.sampling, **settings)
        prompt = guided_prompt(speaker.prompt_builder, "sentence", context, target, sampling)
        task = generate.Task(speaker, [prompt], generate.FRAMES, "cpu")
        return measure.timer(lambda: task.kit(sampling), "cpu")

    voice = load_voice(device_config, base=str(TINY_CSM))
    choosers = {takes: TakeChooser(takes, [clip]) for takes in TAKES}
    texts = iter(range(10 ** 6))

    def sentence(chooser: TakeChooser | None):
        return measure.timer(lambda: speak.speak(generate.SENTENCES[1], voice, seed=next(texts), chooser=chooser), "cpu")

    ratios = {}
    for name, plain, sides in (
            ("guidance", frames(), {name: frames(**settings) for name, settings in SETTINGS.items()}),
            ("best of", sentence(None), {f"{takes} takes": sentence(chooser) for takes, chooser in choosers.items()})):
        durations = measure.alternate({"plain": plain} | sides, options.repeats)
        middle = {side: statistics.median(values) for side, values in durations.items()}
        ratios[name] = {side: round(middle[side] / middle["plain"], 2) for side in sides}
    result = {"what": "cost of guidance and of best of n", "ratios": ratios, "clock": measure.clock("cpu")[1],
              "machine": devices.machine(), "versions": devices.versions(), "command": measure.command()}
    write_json(options.out / "guidance.json", result)
    print(ratios)


if __name__ == "__main__":
    main()
