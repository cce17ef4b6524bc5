"""What 8-bit weights cost: python -m tests.benchmarks.int8

The bundled model predicts every code of clips that it was not trained on, once with its weights and once with rounded
ones, through the stacks that speak; the losses of both are compared clip by clip.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tests.benchmarks import measure
from tts_kit import audio, device, text
from tts_kit.generation import fused_decoder
from tts_kit.generation.engine import InferenceEngine
from tts_kit.io import write_json
from tts_kit.model import load, loss
from tts_kit.tokens.prompt import Turn

DATA = Path(__file__).parents[2] / "sample_data"
HELD_OUT = DATA / "held_out"


@torch.inference_mode()
def losses(base: load.Base, talker: InferenceEngine, words: str, codes: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy of codebook 0, and of the others, of one clip (frames, codebooks)."""
    prompt = base.prompt_builder.build("clip", [Turn(words, "0", codes)])
    batch = {"input_ids": prompt.input_ids[None], "codes": prompt.codes[None], "audio_mask": prompt.audio_mask[None]}
    length = len(prompt)
    room, places = talker.backbone.room(1, length), slice(0, length)
    states = talker.backbone(loss.embed_inputs(base.model, batch), talker.backbone.turns(length), room, places, length)[0]
    frames = prompt.audio_mask.nonzero()[:, 0]
    states, said = states[frames - 1], prompt.codes[frames]
    first = cross_entropy(talker.first_head(states), said[:, 0])
    books = said.shape[1]
    before = talker.depth_table(said[:, :-1] + torch.arange(books - 1) * talker.words)
    inputs = talker.projector(torch.cat([states[:, None], before], dim=1))
    room = talker.depth.room(len(said), books)
    out = talker.depth(inputs, talker.depth.turns(books), room, slice(0, books), books)
    logits = torch.bmm(out[:, 1:].transpose(0, 1), talker.heads.weight)
    return first.item(), cross_entropy(logits.flatten(0, 1), said[:, 1:].T.flatten()).item()


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12, help="of the bundled voice, held out")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    base = load.load_base(str(DATA / "tiny-csm"), device.choose("cpu"))
    talkers = [InferenceEngine(base.model, base.spec, int8) for int8 in (False, True)]
    with open(HELD_OUT / "metadata.csv", encoding="utf-8", newline="") as file:
        clips = list(csv.DictReader(file))[:options.clips]
    found = []
    for clip in tqdm(clips, desc="clips"):
        codes, = base.codec.encode([audio.read(HELD_OUT / clip["file_name"], base.spec.sample_rate)])
        # every product as in speaking, where few positions come at once
        with mock.patch.object(fused_decoder, "FEW", 1_000_000):
            found.append([losses(base, talker, text.normalize(clip["text"]), codes) for talker in talkers])
    means = torch.tensor(found).mean(0)
    result = {"what": "8-bit weights", "shape": "tiny", "clips": len(found),
              "loss": {"codebook 0": means[0, 0].item(), "others": means[0, 1].item()},
              "loss_8_bit": {"codebook 0": means[1, 0].item(), "others": means[1, 1].item()},
              "most_apart": (torch.tensor(found)[:, 1] - torch.tensor(found)[:, 0]).abs().max().item(),
              "machine": device.machine(), "versions": device.versions(), "command": measure.command()}
    write_json(options.out / "int8.json", result)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
