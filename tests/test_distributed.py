"""Several processes on one training: every step as one process makes it, and one of them that writes and speaks.

They run on the processor and talk by gloo; with several GPUs only the device and the messenger (NCCL) are others."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_clip
from test_training import CPU, adapter, same, with_codes

from tts_kit.problem import Problem
from tts_kit.run import Run, read_rows
from tts_kit.tuning import batches, finetune, processes, trainer, watch

SCRIPT = """
import os, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from transformers import TrainerCallback
from tts_kit import problem, recipe, runtime
from tts_kit.model import load
from tts_kit.run import Run
from tts_kit.tuning import choosing, ears, finetune, processes

class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print(f"step {state.global_step} of {name}", file=sys.stderr, flush=True)
        time.sleep(float(os.environ.get("SLOWLY", "0")))

class Listener(ears.Ears):
    def listen(self, step, model):
        print(f"heard step {step} of {name}", file=sys.stderr)

    def _is_over(self, now):
        assert processes.is_first()
        return now == 4

    def settle(self, trainer):
        return choosing.Choice(trainer.state.global_step, choosing.LAST, "")

def written(event, told):
    writes = event == "open" and (set(str(told[1])) & set("wax+") or told[2] & (os.O_WRONLY | os.O_RDWR))
    if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(told[0]).startswith(root):
        print(f"wrote {told[0]}", file=sys.stderr)

def listening(base, recipe, run, clips):
    return Listener(base, recipe, run, clips, None) if recipe.listen_every else None

@problem.command
def main(arguments=None):
    global root, name
    root, *names = sys.argv[1:]
    sys.addaudithook(written)
    ears.of = listening
    for name in names:
        told = recipe.read(Path(root, name + ".json"))
        finetune.fit(told, Run(name, root), runtime.choose("cpu"), [Steps()])

sys.exit(main())
"""
POISON = """
whole = load.base
def poisoned(*arguments, **named):
    made = whole(*arguments, **named)
    tilde = made.writer.tokenizer("~", add_special_tokens=False).input_ids[0]
    made.model.embed_text_tokens.weight.data[tilde] = float("nan")
    return made
load.base = poisoned
sys.exit(main())
"""
ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def clips():
    """Of uneven lengths; a step of one micro-batch may hold a single one of them."""
    return [make_clip(f"clip{number}", 5 + 3 * number, "Hello.", "held_out" if number < 2 else "train")
            for number in range(10)]


def planned(place, name: str, recipe, clips) -> Run:
    """A run with codes, and its recipe where the processes find it."""
    (place / f"{name}.json").write_text(recipe.to_json())
    return with_codes(Run(name, place), clips)


def start(place, names, count: int = 2, script: str = "train.py", **environment) -> list[subprocess.Popen]:
    """As a launcher starts them, on this machine."""
    if script == "train.py":
        (place / script).write_text(SCRIPT)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "PYTHONPATH": ROOT}
    return [subprocess.Popen([sys.executable, str(place / script), str(place), *names], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             env=os.environ | told | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)]


def ends(process, seconds: float = 280.0) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"process {process.args} hung: {process.communicate()}")
    return process.returncode, out, err


def names(parts: list[dict]) -> list[str]:
    return [name for part in parts for name in part["names"]]


def losses(run: Run) -> list[dict]:
    return [row for row in read_rows(run.training / watch.RECORD) if "backbone_loss" in row or "eval_loss" in row]


def alike(one: Run, other: Run) -> None:
    mine, theirs = losses(one), losses(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] and len(mine) > 4
    for row, wanted in zip(mine, theirs):
        for key in ("backbone_loss", "depth_loss", "loss", "eval_loss", "grad_norm", "learning_rate"):
            assert row.get(key) == (wanted.get(key) and pytest.approx(wanted[key], rel=1e-4)), (row["step"], key)
    same(adapter(one.adapter), adapter(other.adapter), rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one(recipe, clips, tmp_path):
    """Mistake: gradients are averaged over processes, a share is lost or counted twice, the schedule runs at double speed,
    a process without a clip hangs, both write, or the one that did not listen trains on."""
    small = recipe.but(steps=5, tokens_per_batch=60, depth_ratio=0.5, evaluate_every=5, save_every=5)
    asked = {"halves": small.but(context_share=0.5, sample_every=5), "turns": small.but(accumulation=2),
             "dealt": small.but(accumulation=3, packing=False), "heard": small.but(listen_every=2, patience=1)}
    for name, one in asked.items():
        planned(tmp_path, name, one, clips)
    (first, said, seen), (second, other, did) = map(ends, start(tmp_path, asked))
    assert (first, second) == (0, 0), seen + did
    assert other == "" and said.count("Starting from the base model.") == 4 and "shared by 2 processes" in said
    for name in ("halves", "turns", "dealt"):
        finetune.fit(asked[name], with_codes(Run(name, tmp_path / "alone"), clips), CPU)
        alike(Run(name, tmp_path), Run(name, tmp_path / "alone"))
        assert [line for line in did.splitlines() if name in line] == [f"step {step} of {name}" for step in range(1, 6)]
    assert (tmp_path / "halves" / "training" / "samples" / "step-000005" / "1.wav").is_file()
    assert "wrote" in seen and "wrote" not in did
    assert [row["step"] for row in losses(Run("heard", tmp_path)) if "eval_loss" in row] == [0, 2, 4]
    assert "heard step 4 of heard" in seen and "heard step" not in did
    assert "step 4 of heard" in did and "step 5 of heard" not in seen + did


def test_a_process_that_dies_stops_the_others_and_all_go_on_later(recipe, clips, tmp_path):
    """Mistake: the others wait for ever; or the run starts anew, or goes on elsewhere in the plan."""
    asked = recipe.but(steps=8, tokens_per_batch=60, accumulation=2, depth_ratio=0.5, save_every=2, evaluate_every=8)
    run = planned(tmp_path, "one", asked, clips)
    both = start(tmp_path, ["one"], SLOWLY="0.5")
    deadline = time.monotonic() + 200
    while trainer.last_whole_checkpoint(run.training) is None:
        assert time.monotonic() < deadline and both[0].poll() is None, ends(both[0])
        time.sleep(0.02)
    both[1].send_signal(signal.SIGKILL)
    code, _, error = ends(both[0], 20)
    ends(both[1])
    assert code == 1 and "process 0 of 2 waits for the others, and one of them has stopped" in error, error
    assert "Traceback" not in error and not run.adapter.exists()
    again = [ends(process) for process in start(tmp_path, ["one"])]
    assert [code for code, _, _ in again] == [0, 0], again
    assert "Going on from checkpoint-" in again[0][1] and "step 1 of one" not in again[1][2]
    alone = with_codes(Run("one", tmp_path / "alone"), clips)
    finetune.fit(asked, alone, CPU)
    alike(run, alone)


def test_the_launchers_command(recipe, clips, tmp_path):
    """Mistake: it works for a script of ours, and `accelerate launch -m tts_kit train` fails, hangs or says all twice."""
    asked = recipe.but(steps=2)
    run = with_codes(Run("voice", tmp_path / "runs"), clips)
    told = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in (
        "base", "rank", "alpha", "steps", "warmup_steps", "tokens_per_batch", "sample_every")]
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    launch = f"-m accelerate.commands.launch --multi_gpu --num_processes=2 --main_process_port={port} -m tts_kit train"
    out = subprocess.run([sys.executable, *launch.split(), "--run=voice", "--device=cpu", *told], cwd=tmp_path, timeout=280,
                         capture_output=True, text=True, check=False,
                         env=os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr
    assert out.stdout.count("Held-out loss: backbone") == 1 and out.stdout.count("shared by 2 processes") == 1
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_a_broken_clip_is_named_whoever_has_it(recipe, clips, tmp_path):
    """Mistake: after the gradients are added up every process has nothing but NaN, and each calls its own clips guilty."""
    poisoned = make_clip("poisoned", 8, "Here is a tilde ~ in it.")
    asked = recipe.but(steps=12, tokens_per_batch=60)
    planned(tmp_path, "one", asked, [*clips, poisoned])
    (tmp_path / "poison.py").write_text(SCRIPT.replace("sys.exit(main())", POISON))
    both = [ends(process) for process in start(tmp_path, ["one"], script="poison.py")]
    for code, _, error in both:
        assert code == 1 and "the loss is not a finite number; clip poisoned. Listen" in error, error


@pytest.mark.parametrize(("accumulation", "count"), [(1, 2), (1, 4), (2, 2), (3, 2), (4, 2), (2, 3)])
def test_shares_are_the_step(recipe, base, clips, accumulation, count):
    """Mistake: clips are left out or heard twice, or another choice of depth frames is made than by one process."""
    asked = recipe.but(steps=9, tokens_per_batch=60, accumulation=accumulation, depth_ratio=0.5)
    learnt = [clip for clip in clips if clip.split == "train"]
    alone, shared = (batches.Steps(learnt, base.writer, asked, number) for number in (1, count))
    assert len(shared) == 9 * shared.parts and shared.parts % count == 0
    for step in range(9):
        whole, parts = ([steps[step * steps.parts + part] for part in range(steps.parts)] for steps in (alone, shared))
        counted = [part for part in parts if part["counts"]]
        assert counted and names(counted) == names(whole)
        chosen, wanted = (torch.cat([part["targets"][part["depth_rows"]] for part in some]) for some in (counted, whole))
        assert torch.equal(chosen, wanted)
        assert {(part["frames_in_step"], part["depth_in_step"]) for part in parts} == {
            (sum(len(part["targets"]) for part in counted), len(chosen))}


def test_clips_are_dealt_out_evenly(base, clips):
    """Mistake: one process has nearly all of a step, and the others wait for it."""
    examples = [batches.write(clip, base.writer) for clip in clips]
    parts = batches.deal([examples], 3)
    sizes = [sum(map(len, part)) for part in parts]
    assert [example for part in parts for example in part] == examples
    assert max(sizes) - min(sizes) <= 2 * max(map(len, examples))
    assert [len(part) for part in batches.deal([examples[:2]], 2)] == [1, 1]
    assert [len(part) for part in batches.deal([examples[:1]], 3)] == [1, 0, 0]


def test_processes_that_cannot_join_are_told_why(recipe, monkeypatch, tmp_path):
    """Mistake: two processes share a GPU, or each trains alone and they write over each other."""
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Problem, match=r"3 processes were started for 2 GPU\(s\).*--num_processes 2, or fewer"):
        processes.join(dataclasses.replace(CPU, device="cuda"))
    with pytest.raises(Problem, match="a Mac has one GPU"):
        processes.join(dataclasses.replace(CPU, device="mps"))
    with pytest.raises(Problem, match="WORLD_SIZE is 3: several processes were started for what one has to do"):
        trainer.arguments(recipe, Run("one", tmp_path), CPU)
