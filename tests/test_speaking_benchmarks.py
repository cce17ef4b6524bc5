"""The benchmarks of speaking, encoding and growth on the toy, and the script that runs everything on a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import encode, generate, growth, measure, train_step
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling

ROOT = Path(__file__).parents[1]
CPU = device.choose("cpu")
QUICK = ["--shape", "toy", "--device", "cpu", "--repeats", "1"]
MISSING = ("soundfile", "soxr", "matplotlib", "datasets", "pytest", "trl", "pyloudnorm", "conftest")
"""What a lent GPU machine need not have."""


def task(prompts: int = 2, frames: int = 3) -> generate.Task:
    speaking = generate.speaker("toy", CPU)
    return generate.Task(speaking, speaking.prompts(prompts), frames, "cpu")


def test_speaking_is_compared_from_end_to_end(tmp_path):
    """Mistake: the command runs only on the machine it was written on, or its figures contradict one another."""
    rows = generate.main([*QUICK, "--batch", "1", "3", "--frames", "4", "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("generate_batch_*-toy-transformers*-cpu.json"))) == len(rows) == 4
    for row in rows:
        batch, kit, rate = row["settings"]["batch"], row["kit"], 12.5
        assert row["settings"]["greedy_codes"].startswith("equal")
        assert kit["frames_per_second"] == kit["speed"] == pytest.approx(4 * batch / kit["seconds"])
        assert kit["audio_seconds_per_second"] == pytest.approx(batch / kit["rtf"]) == pytest.approx(kit["speed"] / rate)
        assert kit["peak_bytes"] > 0 and kit["first_audio_seconds"] > 0
        assert row["ratio"] == kit["speed"] / row["other"]["speed"]
        # transformers gives no sound before the last frame
        assert row["other"]["first_audio_seconds"] > row["other"]["seconds"]


def test_both_sides_say_all_the_frames_asked_for():
    """Mistake: a side that stops by itself is timed for frames that it never said."""
    speaking = task(frames=5)
    speaking.speaker.model.lm_head.weight.data.zero_()  # greedy, it says nothing but end frames
    speaking.speaker.model.depth_decoder.codebooks_head.weight.data.zero_()
    greedy = Sampling(0, 0)
    end = speaking.speaker.model.config.codebook_eos_token_id
    for codes in (speaking.kit(greedy), speaking.other(greedy)):
        assert codes.shape == (2, 5, 4) and not codes.any()
    assert speaking.speaker.model.config.codebook_eos_token_id == end


def test_sampling_is_the_same_on_both_sides():
    """Mistake: after the greedy check transformers' depth decoder stays greedy, or forbids words, and is timed like that."""
    speaking = task(frames=6)
    speaking.other(Sampling(0, 0))
    speaking.other(Sampling(0.7, 0.6, 9))
    told = speaking.speaker.model.depth_decoder.generation_config
    assert (told.do_sample, told.temperature, told.top_k) == (True, 0.6, 9)
    assert not torch.equal(speaking.other(), speaking.other())


def test_two_that_differ_are_not_timed(monkeypatch):
    """Mistake: a faster loop that says something else is celebrated."""
    said = generate.Task.kit
    monkeypatch.setattr(generate.Task, "kit", lambda self, *given, **more: (said(self, *given, **more) + 1) % 32)
    with pytest.raises(KitError, match="different codes for toy"):
        generate.check("toy", "cpu")


def test_what_transformers_cannot_do_is_written_down(monkeypatch):
    """Mistake: an error of transformers' cache ends the command, and the kit's own figures are lost with it."""
    monkeypatch.setitem(generate.CACHES, "static", {"cache_implementation": "nonsense"})
    row = generate.row("toy", task(), "equal", 1, cache="static")
    assert row["other"]["not_measured"].startswith("not run: ValueError: ") and "\n" not in row["other"]["not_measured"]
    assert row["ratio"] is None and row["kit"]["speed"] > 0


def test_encoding_is_compared_from_end_to_end(tmp_path):
    """Mistake: clips encoded together get other codes than alone, or are returned in another order."""
    encode.main([*QUICK, "--clips", "5", "--batch", "2", "--out", str(tmp_path)])
    file, = tmp_path.glob("*.json")
    rows = measure.rows_of(json.loads(file.read_text(encoding="utf-8")))
    assert {row["settings"]["by"] for row in rows} == {"kit's codec", "transformers"}
    assert all(row["settings"]["unequal_codes"] <= encode.MOST_UNEQUAL and row["ratio"] > 0 for row in rows)


def test_other_codes_are_not_timed():
    """Mistake: batched encoding is fast because it encodes something else."""
    codes = [torch.zeros(100, 4), torch.zeros(50, 4)]
    with pytest.raises(KitError, match="50.00% of the codes differ"):
        encode.unequal(codes, [torch.tensor([0., 1.]).repeat(len(each), 2) for each in codes])
    with pytest.raises(KitError, match="numbers of frames"):
        encode.unequal(codes, codes[::-1])


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    """Mistake: figures that only a machine with matplotlib can have, or a picture too large to commit."""
    asked = [*QUICK, "--tokens", "350", "700", "--frames", "4", "8", "--out", str(tmp_path)]
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "matplotlib.figure", None)
        found = growth.main(asked)
    file = tmp_path / "growth_toy_cpu.json"
    assert "No picture" in capsys.readouterr().out and not file.with_suffix(".png").exists()
    assert found == json.loads(file.read_text(encoding="utf-8"))
    assert [(each["clips"], each["depth_frame_fraction"]) for each in found["training"]] == [
        (clips, ratio) for clips in (2, 4) for ratio in ("1/16", "1")]
    assert [each["frames"] for each in found["speaking"]] == [4, 8]
    assert found["last_over_first"]["tokens"] == found["last_over_first"]["frames"] == 2
    growth.main(["--draw", str(file)])
    assert 0 < file.with_suffix(".png").stat().st_size < 60_000


def test_benchmarks_begin_with_three_packages_only():
    """Mistake: on a lent GPU machine a benchmark ends at its first line, because a sound library or plotter is not there."""
    script = ("import sys\nfrom tests.benchmarks import encode, generate, growth, speed_table, train_step\n"
              "ours = [vars(module) for name, module in sys.modules.items() if name.startswith(('tts_kit', 'tests'))]\n"
              f"missing = {MISSING}\nprint([[own['__name__'], each] for own in ours for each in missing if each in own],"
              "[each for each in ('matplotlib', 'pytest') if each in sys.modules])")
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.stdout == "[] []\n", out.stdout + out.stderr


def test_the_gpu_script_goes_on_after_failures(tmp_path):
    """Mistake: one command that fails or hangs takes the rows of all others with it, or the 8 minutes."""
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {told}\ncase "$*" in\n'
                      '*train_step*) echo broken >&2; exit 3;;\n*encode*) sleep 60;;\nesac\n', encoding="utf-8")
    python.chmod(0o755)
    script = (ROOT / "tests/benchmarks/gpu.sh").read_text(encoding="utf-8").replace("run encode 50 ", "run encode 1 ")
    copy = tmp_path / "tests" / "benchmarks" / "gpu.sh"
    copy.parent.mkdir(parents=True)
    copy.write_text(script.replace('"$limit" -lt 5', '"$limit" -lt 1'), encoding="utf-8")
    out = subprocess.run(["bash", copy, "found"], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True,
                         check=True, timeout=50).stdout
    assert re.search(r"^train: failed \(3\): broken$", out, re.MULTILINE)
    assert "encode: stopped after its 1 s" in out and out.count("done in") == 3
    assert told.read_text(encoding="utf-8").count("tests.benchmarks.") == 7
    assert sum(int(each) for each in re.findall(r"^(?:speak|train|run) \w+ (\d+)", script, re.MULTILINE)) < 900
    assert "LIMIT:-470" in script


@pytest.mark.parametrize("module", [generate, encode, growth, train_step], ids=lambda module: module.__name__)
def test_the_gpu_script_tells_each_benchmark_what_it_knows(module, capsys):
    """Mistake: a benchmark's option is renamed, and the rows are missing only on the GPU."""
    with pytest.raises(SystemExit):
        module.main(["--help"])
    known = set(re.findall(r"--[a-z0-9]+", capsys.readouterr().out))
    script = (ROOT / "tests/benchmarks/gpu.sh").read_text(encoding="utf-8")
    name = module.__name__.rpartition(".")[2]
    word = {"generate": "speak", "train_step": "train"}.get(name, name)
    lines = [line for line in script.splitlines()
             if re.match(rf"(run \w+ \d+ {word} |{word} \w+ \d+|{word}\(\))", line)]
    asked = set(re.findall(r"--[a-z0-9]+", " ".join(lines))) | {"--shape", "--device", "--repeats"}
    assert len(lines) >= 1 and asked <= known
