"""CSM-1B's real shape with random weights on the CPU: saved, loaded, one training step, three frames, in 20 GB.

Not part of `make test`: it needs 20 GB of memory, 4 GB of disk and some minutes. Run it with `make test-full`.
"""

import json
import subprocess
import sys

from tts_kit import device
from tts_kit.config import Config

BUILD = """
import sys, torch
from sample_data.build import model_shapes
torch.set_default_dtype(torch.bfloat16)
model_shapes.save(model_shapes.untrained("csm-1b"), sys.argv[1], "csm-1b")
"""

TRAIN_AND_SPEAK = """
import json, resource, sys, time, torch
from tts_kit import device
from tts_kit.config import read_config
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import lora
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.tokens.prompt import Turn
from tts_kit.training import finetune
config, run = read_config(sys.argv[1]), Run("full", sys.argv[2])
figures, start = {}, time.monotonic()
base, trainer = finetune.prepare(config, run, cache.load_run(run), device.choose("cpu"))
figures["load_seconds"] = time.monotonic() - start
start = time.monotonic()
trainer.args.eval_strategy = "no"
trainer.train()
figures["step_seconds"] = time.monotonic() - start
figures["trainable"] = sum(count["trainable"] for count in lora.count_parameters(trainer.model).values())
figures["losses"] = {name: trainer.state.log_history[0][name] for name in ("backbone_loss", "depth_loss")}
start = time.monotonic()
prompt = base.prompt_builder.build("three frames", [Turn("Hello.", "0")])
generation, = InferenceEngine(base.model, base.spec, lora.DEFAULT_ADAPTER).generate([prompt], Sampling(), [0], [3])
figures["frames"] = list(generation.codes.shape)
figures["wave_samples"] = len(base.codec.decode([generation.codes])[0])
figures["three_frames_seconds"] = time.monotonic() - start
figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps(figures))
"""


def test_the_real_shape_trains_and_speaks(tmp_path):
    """Mistake: memory, the layout of a head, RoPE, 32 codebooks or 2048 positions work at toy size only."""
    from conftest import make_clip
    from test_training_finetune import with_codes

    from tts_kit.run import Run
    from tts_kit.tokens import codec

    folder = tmp_path / "csm-1b"
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True)
    fingerprint = codec.load(str(folder)).fingerprint()
    clips = [make_clip(f"clip{number}", 32, split="held_out" if number > 1 else "train", books=32) for number in range(4)]
    with_codes(Run("full", tmp_path), clips, fingerprint)
    config = Config(base=str(folder), steps=1, warmup_steps=0, sample_steps=0, depth_frame_fraction=1.0,
                    tokens_per_batch=100)
    (tmp_path / "config.json").write_text(config.to_json())
    out = subprocess.run([sys.executable, "-c", TRAIN_AND_SPEAK, str(tmp_path / "config.json"), str(tmp_path)], check=True,
                         stdout=subprocess.PIPE, text=True)
    figures = json.loads(out.stdout.splitlines()[-1])
    print(json.dumps(figures | {"machine": device.machine(), "versions": device.versions()}, indent=2))
    assert figures["trainable"] == 26_935_296
    assert figures["frames"] == [3, 32] and figures["wave_samples"] == 3 * 1920
    assert 6 < figures["losses"]["backbone_loss"] < 10 and 6 < figures["losses"]["depth_loss"] < 10  # ln 2051 = 7.6
    assert figures["peak_gb"] < 20
