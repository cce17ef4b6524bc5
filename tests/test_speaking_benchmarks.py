"""The benchmarks of generation, encoding and growth on the toy model, and the script that runs all of them on a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import encode, generate, growth, measure, serve, train_step
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling
from tts_kit.text import max_speech_seconds

ROOT = Path(__file__).parents[1]
CPU = device.choose("cpu")
QUICK = ["--shape", "toy", "--device", "cpu", "--repeats", "1"]
MISSING = ("soundfile", "soxr", "matplotlib", "datasets", "pytest", "trl", "pyloudnorm", "conftest", "faster_whisper",
           "librosa")
"""Packages that the benchmarks must not need."""


def toy_task(prompts: int = 2, frames: int = 3) -> generate.Task:
    toy_speaker = generate.speaker("toy", CPU)
    return generate.Task(toy_speaker, toy_speaker.prompts(prompts), frames, "cpu")


def test_generation_is_compared_end_to_end(tmp_path):
    """Mistake: the command runs only on the machine it was written on, or its figures contradict each other."""
    rows = generate.main([*QUICK, "--batch", "1", "3", "--frames", "4", "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("generate_batch_*-toy-transformers*-cpu.json"))) == len(rows) == 4
    for row in rows:
        batch, kit, rate = row["settings"]["batch"], row["kit"], 12.5
        assert row["settings"]["greedy_codes"].startswith("equal")
        assert kit["frames_per_second"] == kit["speed"] == pytest.approx(4 * batch / kit["seconds"])
        assert kit["audio_seconds_per_second"] == pytest.approx(batch / kit["rtf"]) == pytest.approx(kit["speed"] / rate)
        assert kit["peak_bytes"] > 0 and kit["first_audio_seconds"] > 0
        assert row["ratio"] == kit["speed"] / row["other"]["speed"]
        # transformers gives no audio before the last frame
        assert row["other"]["first_audio_seconds"] > row["other"]["seconds"]


def test_both_sides_generate_the_requested_frames():
    """Mistake: a side stops at EOS and is timed for frames that it never generated."""
    task = toy_task(frames=5)
    task.speaker.model.lm_head.weight.data.zero_()  # greedy decoding gives only EOS frames
    task.speaker.model.depth_decoder.codebooks_head.weight.data.zero_()
    greedy = Sampling(0, 0)
    end = task.speaker.model.config.codebook_eos_token_id
    for codes in (task.kit(greedy), task.stock(greedy)):
        assert codes.shape == (2, 5, 4) and not codes.any()
    assert task.speaker.model.config.codebook_eos_token_id == end


def test_sampling_is_the_same_on_both_sides():
    """Mistake: after the greedy check transformers' depth decoder stays greedy or suppresses tokens while it is timed."""
    task = toy_task(frames=6)
    task.stock(Sampling(0, 0))
    task.stock(Sampling(0.7, 0.6, 9))
    generation_config = task.speaker.model.depth_decoder.generation_config
    assert (generation_config.do_sample, generation_config.temperature, generation_config.top_k) == (True, 0.6, 9)
    assert not torch.equal(task.stock(), task.stock())


def test_sides_with_different_codes_are_not_timed(monkeypatch):
    """Mistake: a loop is faster because it generates different codes."""
    kit = generate.Task.kit
    monkeypatch.setattr(generate.Task, "kit", lambda self, *args, **kwargs: (kit(self, *args, **kwargs) + 1) % 32)
    with pytest.raises(KitError, match="different codes for toy"):
        generate.greedy_equality("toy", "cpu")


def test_a_failure_of_transformers_is_recorded(monkeypatch):
    """Mistake: an error of transformers' cache ends the command, and the kit's figures are lost."""
    monkeypatch.setitem(generate.CACHES, "static", {"cache_implementation": "nonsense"})
    row = generate.compare("toy", toy_task(), "equal", 1, cache="static")
    assert row["other"]["not_measured"].startswith("not run: ValueError: ") and "\n" not in row["other"]["not_measured"]
    assert row["ratio"] is None and row["kit"]["speed"] > 0


def test_encoding_is_compared_end_to_end(tmp_path):
    """Mistake: clips encoded in a batch get other codes than alone, or are returned in another order."""
    encode.main([*QUICK, "--clips", "5", "--batch", "2", "--out", str(tmp_path)])
    file, = tmp_path.glob("*.json")
    rows = measure.rows_of(json.loads(file.read_text(encoding="utf-8")))
    assert {row["settings"]["by"] for row in rows} == {"kit's codec", "transformers"}
    assert all(row["settings"]["unequal_codes"] <= encode.MAX_UNEQUAL and row["ratio"] > 0 for row in rows)


def test_a_round_of_requests_is_measured(tmp_path, monkeypatch, capsys):
    """Mistake: the server's row ends in a traceback on a machine without FastAPI, or times errors."""
    arguments = [*QUICK, "--requests", "3", "--out", str(tmp_path)]
    row = serve.main(arguments)
    assert row == json.loads((tmp_path / "serve-toy-one_by_one-cpu.json").read_text(encoding="utf-8"))
    texts = generate.SENTENCES[:3]
    frames = [round(max_speech_seconds(text) * 12.5) for text in texts]
    assert row["settings"]["seconds_of_audio"] == pytest.approx(sum(frames) / 12.5, abs=0.01)
    assert row["ratio"] > 0 and 0 < row["kit"]["first_audio_seconds"] < row["other"]["seconds"]
    with monkeypatch.context() as patch:
        patch.setattr(serve.generate, "SENTENCES", ("",))
        with pytest.raises(RuntimeError, match="the server answered 4"):
            serve.main(arguments)
    for name in ("tts_kit.server.app", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None) if name == "fastapi" else monkeypatch.delitem(sys.modules, name)
    assert serve.main(arguments)["kit"]["not_measured"] == "fastapi is not installed"
    assert "serve is not measured" in capsys.readouterr().out


def test_encoders_with_different_codes_are_not_timed():
    """Mistake: batched encoding is fast because its codes are different."""
    codes = [torch.zeros(100, 4), torch.zeros(50, 4)]
    with pytest.raises(KitError, match="50.00% of the codes differ"):
        encode.unequal_share(codes, [torch.tensor([0., 1.]).repeat(len(clip), 2) for clip in codes])
    with pytest.raises(KitError, match="numbers of frames"):
        encode.unequal_share(codes, codes[::-1])


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    """Mistake: the figures need matplotlib, or the plot is too large to commit."""
    arguments = [*QUICK, "--tokens", "350", "700", "--frames", "4", "8", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        result = growth.main(arguments)
    file = tmp_path / "growth_toy_cpu.json"
    assert "No picture" in capsys.readouterr().out and not file.with_suffix(".png").exists()
    assert result == json.loads(file.read_text(encoding="utf-8"))
    assert [(row["clips"], row["depth_frame_fraction"]) for row in result["training"]] == [
        (clips, ratio) for clips in (2, 4) for ratio in ("1/16", "1")]
    assert [row["frames"] for row in result["speaking"]] == [4, 8]
    assert result["last_over_first"]["tokens"] == result["last_over_first"]["frames"] == 2
    growth.main(["--draw", str(file)])
    assert 0 < file.with_suffix(".png").stat().st_size < 60_000


@pytest.mark.slow
def test_benchmarks_import_only_three_packages():
    """Mistake: a benchmark fails on a GPU machine at its imports, because an audio or plotting library is missing."""
    # None there makes an import fail
    script = (f"import sys; sys.modules.update(dict.fromkeys({MISSING}))\n"
              "from tests.benchmarks import encode, generate, growth, measure, notebook, serve, shapes, speed_table\n"
              "from tests.benchmarks import train_step")
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


def test_the_gpu_script_continues_after_failures(tmp_path):
    """Mistake: one command that fails or hangs loses the rows of all others, or uses up the 8 minutes."""
    command_log = tmp_path / "commands"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {command_log}\ncase "$*" in\n'
                      '*train_step*) echo broken >&2; exit 3;;\n*encode*) sleep 60;;\nesac\n', encoding="utf-8")
    python.chmod(0o755)
    script = (ROOT / "tests/benchmarks/gpu.sh").read_text(encoding="utf-8").replace("run encode 50 ", "run encode 1 ")
    copy = tmp_path / "tests" / "benchmarks" / "gpu.sh"
    copy.parent.mkdir(parents=True)
    copy.write_text(script.replace('"$limit" -lt 5', '"$limit" -lt 1'), encoding="utf-8")
    out = subprocess.run(["bash", copy, "found"], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True,
                         check=True, timeout=600).stdout
    assert re.search(r"^train: failed \(3\): broken$", out, re.MULTILINE)
    assert "encode: stopped after its 1 s" in out and out.count("done in") == 4
    assert command_log.read_text(encoding="utf-8").count("tests.benchmarks.") == 9
    assert sum(int(seconds) for seconds in re.findall(r"^(?:speak|train|run) \w+ (\d+)", script, re.MULTILINE)) < 900
    assert "LIMIT:-470" in script


@pytest.mark.parametrize("module", [generate, encode, growth, serve, train_step], ids=lambda module: module.__name__)
def test_the_gpu_script_uses_only_options_that_exist(module, capsys):
    """Mistake: an option of a benchmark is renamed, and its GPU rows are missing."""
    with pytest.raises(SystemExit):
        module.main(["--help"])
    options = set(re.findall(r"--[a-z0-9]+", capsys.readouterr().out))
    script = (ROOT / "tests/benchmarks/gpu.sh").read_text(encoding="utf-8")
    name = module.__name__.rpartition(".")[2]
    label = {"generate": "speak", "train_step": "train"}.get(name, name)
    lines = [line for line in script.splitlines()
             if re.match(rf"(run \w+ \d+ {label} |{label} \w+ \d+|{label}\(\))", line)]
    used = set(re.findall(r"--[a-z0-9]+", " ".join(lines))) | {"--shape", "--device", "--repeats"}
    assert len(lines) >= 1 and used <= options
