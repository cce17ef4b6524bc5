"""Distributed training: every step equals that of one process, and rank 0 alone writes and prints.

The processes run on the CPU with gloo; with several GPUs only the device and the backend (NCCL) differ."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import process
import pytest
import torch
from conftest import make_clip
from test_training_finetune import CPU, adapter, same, with_codes

from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import read_rows, write_text
from tts_kit.run import Run
from tts_kit.tokens.cache import EncodedClip
from tts_kit.training import callbacks, dataset, distributed, finetune

SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from transformers import TrainerCallback
from tts_kit import config, device, errors
from tts_kit.model import load
from tts_kit.run import Run
from tts_kit.training import distributed, finetune, generation_eval, trackers

class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print(f"step {state.global_step} of {name}", file=sys.stderr, flush=True)
        if name == "dying" and state.global_step == 3 and not distributed.is_rank_zero():
            os.kill(os.getpid(), signal.SIGKILL)

class Tracker(TrainerCallback):
    trackers = ()
    def __init__(self, config, *_):
        print(f"tracking {name} with {config.report_to[0]}", file=sys.stderr)

class Evaluation(generation_eval.GenerationEvalCallback):
    def _evaluate(self, step, model, generate=True):
        assert distributed.is_rank_zero()
        print(f"evaluated step {step} of {name}", file=sys.stderr)
        return step == 4

def log_writes(event, arguments):
    writes = event == "open" and (set(str(arguments[1])) & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(root):
        print(f"wrote {arguments[0]}", file=sys.stderr)

def build(base, config, run, clips):
    return Evaluation(base, config, run, clips, None) if config.generation_eval_steps else None

def poisoned_base(*arguments, **options):
    base = load_base(*arguments, **options)
    if name == "poisoned":
        tilde = base.prompt_builder.tokenizer("~", add_special_tokens=False).input_ids[0]
        base.model.embed_text_tokens.weight.data[tilde] = float("nan")
    return base

@errors.report_errors
def main(arguments=None):
    global root, name
    root, *names = sys.argv[1:]
    sys.addaudithook(log_writes)
    for name in names:
        print(f"beginning {name}", file=sys.stderr)
        settings = config.read_config(Path(root, name + ".json"))
        try:
            finetune.finetune(settings, Run(name, root), device.choose("cpu"), [Steps()])
        except errors.KitError as error:
            if name != "poisoned":
                raise
            print(f"{name}: {error}", file=sys.stderr)

generation_eval.build = build
trackers.TrackerCallback, trackers.check_installed = Tracker, lambda config: None
generation_eval.load_best = lambda evaluation, trainer, load_best=generation_eval.load_best: load_best(None, trainer)
load_base, load.load_base = load.load_base, poisoned_base
sys.exit(main())
"""
ROOT = str(Path(__file__).parent.parent)


def uneven_clips(*more: EncodedClip) -> list[EncodedClip]:
    """Clips of uneven lengths; a step of one micro-batch may hold a single one of them."""
    return [*(make_clip(f"clip{number}", 5 + 3 * number, "Hello.", "held_out" if number < 2 else "train")
              for number in range(10)), *more]


@pytest.fixture
def clips():
    return uneven_clips()


@dataclasses.dataclass
class Pair:
    """The results of two processes that trained several runs, until the second process was killed."""
    root: Path
    configs: dict[str, Config]
    codes: list[int]
    stdout: list[str]
    stderr: list[str]

    def of(self, rank: int, name: str) -> str:
        """Return what a process wrote to stderr during one run."""
        return re.search(rf"(?ms)^beginning {name}$(.*?)(?=^beginning |\Z)", self.stderr[rank])[1]


@pytest.fixture(scope="module")
def pair(toy, tmp_path_factory) -> Pair:
    root = tmp_path_factory.mktemp("pair") / "runs"
    base_config = Config(base=toy, rank=4, alpha=8.0, steps=5, warmup_steps=0, tokens_per_batch=60, depth_frame_fraction=0.5,
                         eval_steps=5, save_steps=5, sample_steps=0)
    configs = {"halves": base_config.replace(context_probability=0.5, sample_steps=5, sample_texts=("Hello.",),
                                             report_to=("trackio",)),
               "turns": base_config.replace(gradient_accumulation_steps=2, lora_targets="backbone"),
               "dealt": base_config.replace(gradient_accumulation_steps=3, packing=False, lora_targets="depth"),
               "evaluated": base_config.replace(generation_eval_steps=2, early_stopping_patience=1),
               "poisoned": base_config.replace(steps=12, spoken_text=False),  # the tilde stays a token of its own
               "dying": base_config.replace(gradient_accumulation_steps=2, save_steps=2)}
    for name, config in configs.items():
        write_text(root / f"{name}.json", config.to_json())
        with_codes(Run(name, root), uneven_clips(*[make_clip("poisoned", 8, "A tilde ~ in it.")] * (name == "poisoned")))
    write_text(root / "train.py", SCRIPT)
    processes = [process.Process([root / "train.py", root, *configs], env=environment) for environment in environments(2)]
    results = [running.wait(process.TIMEOUT) for running in processes]
    return Pair(root, configs, *([getattr(result, name) for result in results]
                                 for name in ("returncode", "stdout", "stderr")))


def environments(count: int) -> list[dict]:
    """Return the environments that a launcher sets, on this machine."""
    variables = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1",
                 "HF_HUB_OFFLINE": "1", "PYTHONPATH": ROOT}
    return [os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def free_port() -> str:
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        return str(free_socket.getsockname()[1])


def names(parts: list[dict]) -> list[str]:
    return [name for part in parts for name in part["clip_ids"]]


def losses(run: Run) -> list[dict]:
    return [row for row in read_rows(run.training / callbacks.LOG_FILE) if "backbone_loss" in row or "eval_loss" in row]


def check_same_training(one: Run, other: Run) -> None:
    rows, other_rows = losses(one), losses(other)
    assert [row["step"] for row in rows] == [row["step"] for row in other_rows] and len(rows) > 4
    for row, other_row in zip(rows, other_rows):
        for key in ("backbone_loss", "depth_loss", "loss", "eval_loss", "grad_norm", "learning_rate"):
            assert row.get(key) == (other_row.get(key) and pytest.approx(other_row[key], rel=1e-4)), (row["step"], key)
    same(adapter(one.adapter), adapter(other.adapter), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["halves", "turns", "dealt"])
def test_two_processes_train_like_one(pair, clips, name, tmp_path):
    """Mistake: gradients are averaged over processes, a share is lost or counted twice, the schedule runs at double speed,
    or a process without a clip, or without a gradient of one part, hangs."""
    finetune.finetune(pair.configs[name].replace(report_to=("none",)), with_codes(Run(name, tmp_path), clips), CPU)
    check_same_training(Run(name, pair.root), Run(name, tmp_path))
    assert re.findall(r"(?m)^step (\d+)", pair.of(1, name)) == ["1", "2", "3", "4", "5"]


def test_only_rank_0_writes_and_prints(pair):
    """Mistake: both processes write the same files, or print everything twice."""
    first, second = pair.stdout
    assert second == "" and first.count("Starting from the base model.") == 6 and "shared by 2 processes" in first
    assert (pair.root / "halves" / "training" / "samples" / "step-000005" / "1.wav").is_file()
    tracked = [re.findall(r"tracking .*", stderr) for stderr in pair.stderr]
    assert tracked == [["tracking halves with trackio"], []], "every process logs to a tracker, or none does"
    assert "wrote" in pair.stderr[0] and "wrote" not in pair.stderr[1]


def test_early_stopping_stops_both_processes(pair):
    """Mistake: the process that did not evaluate goes on, and waits for one that has ended."""
    rank_0, rank_1 = pair.of(0, "evaluated"), pair.of(1, "evaluated")
    assert [row["step"] for row in losses(Run("evaluated", pair.root)) if "eval_loss" in row] == [0, 2, 4]
    assert "evaluated step 4 of evaluated" in rank_0 and "evaluated step" not in rank_1
    assert "step 4 of evaluated" in rank_1 and "step 5 of evaluated" not in rank_0 + rank_1


def test_a_broken_clip_is_named_by_every_process(pair):
    """Mistake: after the all-reduce every process has only NaN, and each names its own clips."""
    for rank in (0, 1):
        assert "poisoned: step" in pair.of(rank, "poisoned")
        assert re.search(r"the loss is not a finite number for a batch of the clips .*poisoned", pair.of(rank, "poisoned"))


def test_a_process_that_dies_stops_the_others(pair):
    """Mistake: the others wait for ever for a killed process, or report success."""
    assert pair.codes == [1, -signal.SIGKILL], pair.stderr
    assert "process 0 of 2: another process has stopped" in pair.of(0, "dying")
    assert "Traceback" not in pair.stderr[0] and not Run("dying", pair.root).adapter.exists()


@pytest.mark.parametrize("launched", [pytest.param(True, marks=pytest.mark.slow), False],
                         ids=["by the launcher", "by one process"])
def test_an_interrupted_training_resumes(pair, clips, launched, tmp_path, capsys):
    """Mistake: the run starts again or continues at another step; `accelerate launch -m tts_kit train` fails, hangs or
    prints everything twice; or only the same number of processes can resume."""
    run = Run("dying", tmp_path / "runs")
    shutil.copytree(Run("dying", pair.root).folder, run.folder)
    if launched:
        launch = f"-m accelerate.commands.launch --multi_gpu --num_processes=2 --main_process_port={free_port()}"
        out = subprocess.run([sys.executable, *f"{launch} -m tts_kit train --run=dying --device=cpu".split()], cwd=tmp_path,
                             timeout=1500, capture_output=True, text=True, check=False,
                             env=os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"})
        assert out.returncode == 0, out.stderr
        assert out.stdout.count("Held-out loss: backbone") == 1 and out.stdout.count("shared by 2 processes") == 1
    else:
        finetune.finetune(pair.configs["dying"], run, CPU)
    assert (out.stdout if launched else capsys.readouterr().out).count("Resuming from checkpoint-2.") == 1
    single = with_codes(Run("dying", tmp_path / "single"), clips)
    finetune.finetune(pair.configs["dying"], single, CPU)
    check_same_training(run, single)


@pytest.mark.parametrize(("gradient_accumulation_steps", "count"), [(1, 2), (1, 4), (2, 2), (3, 2), (4, 2), (2, 3)])
def test_micro_batches_of_all_ranks_are_the_step(config, base, clips, gradient_accumulation_steps, count):
    """Mistake: clips are left out or used twice, or other depth frames are sampled than by one process."""
    config = config.replace(steps=9, tokens_per_batch=60, gradient_accumulation_steps=gradient_accumulation_steps,
                            depth_frame_fraction=0.5)
    training_clips = [clip for clip in clips if clip.split == "train"]
    single, shared = (dataset.MicroBatchDataset(training_clips, base.prompt_builder, config, number)
                      for number in (1, count))
    assert len(shared) == 9 * shared.micro_batches_per_step and shared.micro_batches_per_step % count == 0
    for step in range(9):
        whole, parts = ([micro_batches[step * micro_batches.micro_batches_per_step + part]
                         for part in range(micro_batches.micro_batches_per_step)] for micro_batches in (single, shared))
        counted = [part for part in parts if part["loss_weight"]]
        assert counted and names(counted) == names(whole)
        targets, expected = (torch.cat([part["targets"][part["depth_frame_index"]] for part in parts_of_step])
                             for parts_of_step in (counted, whole))
        assert torch.equal(targets, expected)
        assert {(part["frames_in_step"], part["depth_frames_in_step"]) for part in parts} == {
            (sum(len(part["targets"]) for part in counted), len(targets))}


def test_clips_are_distributed_evenly(base, clips):
    """Mistake: one process has nearly all clips of a step, and the others wait for it."""
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in clips]
    parts = dataset.reshard([examples], 3)
    sizes = [sum(map(len, part)) for part in parts]
    assert [example for part in parts for example in part] == examples
    assert max(sizes) - min(sizes) <= 2 * max(map(len, examples))
    assert [len(part) for part in dataset.reshard([examples[:2]], 2)] == [1, 1]
    assert [len(part) for part in dataset.reshard([examples[:1]], 3)] == [1, 0, 0]


def test_processes_that_cannot_start_are_refused_with_a_reason(monkeypatch):
    """Mistake: two processes share a GPU, and the second one ends in a traceback or out of memory."""
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(KitError, match=r"3 processes were started for 2 GPU\(s\).*--num_processes 2, or fewer"):
        distributed.init(dataclasses.replace(CPU, device="cuda"))
    with pytest.raises(KitError, match="a Mac has one GPU"):
        distributed.init(dataclasses.replace(CPU, device="mps"))
