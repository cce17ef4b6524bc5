"""How good a small model is: sentences and voices it never met, judged, with the goals it reached and missed.

    python -m sample_data.build.evaluate --model sample_data/tiny-csm --out runs/pretrain/results.json
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sample_data.build import bundled_voice, corpus, evaluation_clips, goals, sentences
from sample_data.build.evaluation_clips import Original, Say
from sample_data.build.goals import Group
from tts_kit import device
from tts_kit.comparison import arms, verdict
from tts_kit.errors import KitError, report_errors
from tts_kit.evaluation import metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.evaluation.scoring import References
from tts_kit.io import write_json, write_rows
from tts_kit.model import lora
from tts_kit.speech.voice import Voice, load_voice

STAGES = tuple(arms.ARMS)
UNSEEN, TUNED = "unseen voices", "bundled voice"
HELD_OUT = Path(__file__).parents[2] / "sample_data" / "held_out"


@dataclass(frozen=True)
class Wish:
    """What is to be evaluated."""
    model: Path
    adapter: Path | None = None
    """Of the bundled voice."""
    held_out: Path = HELD_OUT
    """Clips of the bundled voice that no adapter has met."""
    work: Path = Path("runs/evaluate")
    sentences: int = 50
    seeds: tuple[int, ...] = field(default_factory=lambda: sentences.evaluation_set().seeds)
    stages: tuple[str, ...] = STAGES
    device: str = "auto"
    threads: int = 2


def evaluate(wish: Wish, say: Say = corpus.utter) -> tuple[dict, list[dict]]:
    """(results, rows of all clips); what was made and judged before under wish.work is used again."""
    metric_models = metrics.load(wish.threads)
    clips = evaluation_clips.originals(wish.work / "originals", say)
    cloned = evaluation_clips.references(wish.work / "originals", say)
    voice = load_voice(device.choose(wish.device), wish.adapter, str(wish.model))
    folder = wish.work / evaluation_clips.digest(wish.model, voice)
    real = _real(clips, metric_models)
    some, own = clips[:wish.sentences], [stage for stage in wish.stages if stage in (*arms.GIVEN_ARMS, "base", "clone")]
    planned = evaluation_clips.plan(some, cloned, wish.seeds, own)
    groups = {UNSEEN: _group(planned, folder / "unseen", voice, metric_models, real, real)}
    if wish.adapter is not None:
        theirs = evaluation_clips.own_clips(wish.held_out, bundled_voice.VOICE)
        planned = evaluation_clips.plan(some, cloned, wish.seeds, wish.stages, bundled_voice.VOICE, theirs)
        place = folder / f"tuned-{lora.fingerprint(voice.model)}"
        groups[TUNED] = _group(planned, place, voice, metric_models, _real(theirs, metric_models), real)
    rows = [row | {"group": name} for name, group in groups.items() for row in group.rows]
    return _results(wish, voice, metric_models, groups), rows


def report(found: dict) -> str:
    """The results as tables for a terminal."""
    parts = [f"Metrics: {found['metrics']}."]
    for name, each in found["groups"].items():
        parts += ["", f"{name}, {each['sentences']} sentences:", scoring.print_table(goals.arm_lines(each))]
        if "verdict" in each:
            parts.append(each["verdict"])
    reached = sum(each["reached"] for each in found["goals"])
    return "\n".join([*parts, "", scoring.print_table(goals.lines(found["goals"])),
                      f"{reached} of {len(found['goals'])} goals reached."])


def _real(clips: Sequence[Original], metric_models: MetricModels) -> dict[str, References]:
    """Voice -> what its real clips sound like, by their sentences."""
    gathered = {}
    for each in clips:
        gathered.setdefault(each.speaker, {})[each.text] = each.path
    return {name: scoring.measure_references(paths, metric_models) for name, paths in gathered.items()}


def _group(planned: Sequence[dict], folder: Path, voice: Voice, metric_models: MetricModels, real: Mapping[str, References],
           everybody: Mapping[str, References]) -> Group:
    """Make and judge the planned clips; a voice is no stranger to itself."""
    made = evaluation_clips.make(planned, folder, voice)
    rows = {row["file"]: row for row in made}

    def save(scored: Sequence[dict]) -> None:
        rows.update((row["file"], row) for row in scored)
        evaluation_clips.keep(folder, list(rows.values()))

    for speaker, references in real.items():
        own = [row for row in made if row["speaker"] == speaker]
        save(scoring.score_rows(own, folder, metric_models, references, save))
    strangers = {name: [clip.embedding for other in everybody if other != name for clip in everybody[other].values()]
                 for name in real}
    return Group(list(rows.values()), real, strangers)


def _results(wish: Wish, voice: Voice, metric_models: MetricModels, groups: Mapping[str, Group]) -> dict:
    found = {name: goals.results(group) for name, group in groups.items()}
    if TUNED in groups:
        found[TUNED]["verdict"] = "\n".join(verdict.decide(groups[TUNED].rows, verdict.PRIMARY_COMPARISONS).details)
    judged = [goal for name, group in groups.items()
              for goal in goals.judge(goals.TUNED if name == TUNED else goals.UNSEEN, group, found[name])]
    return {"model": wish.model.name, "weights": voice.base.fingerprint, "clips of": evaluation_clips.digest(wish.model, voice),
            "adapter": lora.fingerprint(voice.model) if voice.is_finetuned else None, "seeds": list(wish.seeds),
            "metrics": metric_models.name, "date": datetime.date.today().isoformat(), "machine": device.machine(),
            "versions": device.versions(), "goals": judged, "groups": found}


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.evaluate", description=__doc__.split("\n")[0])
    top.add_argument("--model", type=Path, required=True, help="folder of the model")
    top.add_argument("--out", type=Path, required=True, help="results as JSON; the clips' scores go beside it as .jsonl")
    top.add_argument("--adapter", type=Path, help="an adapter of the bundled voice, to be judged as well")
    top.add_argument("--held-out", type=Path, default=HELD_OUT, help="clips of the bundled voice that it never met")
    top.add_argument("--sentences", type=int, default=50, help="how many of the judged sentences (default 50: all)")
    top.add_argument("--seeds", type=int, nargs="+", help="takes of each sentence (default: the judged ones)")
    top.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="arms to make (default all)")
    top.add_argument("--work", type=Path, default=Path("runs/evaluate"), help="folder where clips are kept")
    top.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where the model computes")
    top.add_argument("--threads", type=int, default=2, help="of the judges (default 2)")
    return top


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    told = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(told)
    named = {name: value for name, value in vars(options).items() if name not in ("out", "seeds") and value is not None}
    seeds = {} if options.seeds is None else {"seeds": tuple(dict.fromkeys(options.seeds))}
    if options.out.suffix != ".json" or options.sentences < 1:
        raise KitError(f"--out {options.out} --sentences {options.sentences}: wanted a name that ends in .json, and one "
                      "sentence or more. Change them.")
    found, rows = evaluate(Wish(**named | seeds))
    asked = f"python -m sample_data.build.evaluate {shlex.join(told)}"
    write_json(options.out, {"command": asked} | found)
    write_rows(options.out.with_suffix(".jsonl"), rows)
    print(f"{report(found)}\n{options.out} and its .jsonl hold all of it.")


if __name__ == "__main__":
    sys.exit(main())
