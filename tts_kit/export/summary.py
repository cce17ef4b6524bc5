"""What is known of a trained voice, for those who get it: where it comes from, what it learnt, how it was judged."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tts_kit.comparison import compare, listening_test_analysis, synthesis, verdict
from tts_kit.config import CONFIG_FILE, Config, read_config
from tts_kit.data import consent, ingest, manifest, prepare, report
from tts_kit.evaluation import scoring
from tts_kit.io import read_json
from tts_kit.model import lora
from tts_kit.run import Run, read_inputs
from tts_kit.tokens import cache


@dataclass(frozen=True)
class ComparisonSummary:
    """What the comparison of this very adapter found."""
    said: list[str]
    """The verdict in short, then the evidence."""
    table: list[list[str]]
    """Figures of every arm; empty where nobody judged."""
    rows: list[dict]
    folder: Path
    judges: str


@dataclass(frozen=True)
class RunSummary:
    name: str
    belongs: dict
    """What the adapter says of itself: base, speaker, figures of the training."""
    base: str
    """As others call it."""
    config: Config
    data: dict
    """Empty where the run's data are gone, or are not those that were learnt."""
    consent: consent.Consent | None
    comparison: ComparisonSummary | None


def gather(run: Run, base: str) -> RunSummary:
    """All that a run still knows of its adapter; what is not there or belongs to another is left out, and that is said."""
    belongs = lora.read_metadata(run.adapter)
    if wrong := consent_problem(run, belongs):
        print(wrong)
    return RunSummary(run.name, belongs, display_name(base), read_config(run.adapter / CONFIG_FILE), data(run, belongs),
                 None if wrong else consent.for_run(run), comparison(run))


def display_name(place: str) -> str:
    """A hub id or address as it is; of a folder its name alone, as others have it elsewhere."""
    return Path(place).name if Path(place).expanduser().exists() or Path(place).is_absolute() else place


def consent_problem(run: Run, belongs: dict) -> str:
    """What is wrong with the consent to what the adapter has learnt, and what to do; nothing where a record covers it."""
    if (run.data / manifest.MANIFEST).is_file() and (other := data_problem(run, belongs)):
        return f"Whose voice it is cannot be told: {other}. Train again from what is there, or move {run.data} away."
    if wrong := consent.problem(run):
        return wrong
    found, learnt = consent.for_run(run), belongs.get("recordings")
    if learnt and found.sha256 != learnt:
        return (f"{run.adapter} has learnt from other recordings than the {found.clips} clips to which {found.who} "
                f"consented on {found.when[:10]}. Train again from those, in another run.")
    return ""


def data_problem(run: Run, belongs: dict) -> str:
    """Why the run's data cannot be shown to be what the adapter has learnt; nothing where they are."""
    if not (run.data / manifest.MANIFEST).is_file() or not (run.codes / cache.INDEX).is_file():
        return f"{run.data} or {run.codes} is gone"
    if not cache.matches_data(run) or cache.digest(run.codes) != belongs.get("codes"):
        return f"{run.data} or {run.codes} is not what {run.adapter} has learnt"
    return ""


def data(run: Run, belongs: dict) -> dict:
    """How much speech was learnt, from where, and what was checked."""
    if wrong := data_problem(run, belongs):
        print(f"{wrong}: the card says nothing of the data.")
        return {}
    found = report.analyse(run)
    measured = found.clips
    return {"source": _source(run), **_written_down(run), "clips": _amounts(found),
            "recordings": len({each.clip.session for each in measured}),
            "median seconds of a clip": round(median(each.clip.seconds for each in measured), 1),
            "median decibels of speech over the room": round(median(each.ratio for each in measured)),
            "left out": {reason.removeprefix("left out: "): left.clips for reason, left in found.left.items()},
            "clips that say nearly what another says": len(found.twins)} | (
                {"clips that sound like somebody else": len(found.strangers)} if found.compared else {})


def comparison(run: Run) -> ComparisonSummary | None:
    """The run's comparison, if one was made of the adapter as it is now."""
    rows = synthesis.finished_rows(run.comparison)
    if not rows:
        print(f"{run.comparison} holds no comparison: the card has no verdict and no players. Make one first: python -m "
              f"tts_kit compare --run {run.name}")
        return None
    if read_inputs(run.comparison).get("adapter_weights") != lora.fingerprint(run.adapter):
        print(f"{run.comparison} compared another adapter than {run.adapter} holds now: the card leaves it out. Move it "
              "away and compare again.")
        return None
    decision, judges = verdict.decide(rows), rows[0].get(scoring.METRICS, "")
    said = [decision.headline, *decision.details]
    if decision.headline == verdict.UNMEASURED:
        # how judges are installed is no concern of whoever reads the card
        said, judges = [verdict.UNMEASURED.partition(" Install")[0]], ""
    if (run.comparison / compare.RESPONSES_FILE).is_file():
        said += listening_test_analysis.describe(read_json(run.comparison / compare.RESPONSES_FILE, "Count the votes again."))
    return ComparisonSummary(said, scoring.table(decision.figures) if judges else [], rows, run.comparison, judges)


def _source(run: Run) -> str:
    origin = run.data / prepare.ORIGIN
    source = read_json(origin, f"Delete {run.data} and make it again.").get("source", "") if origin.is_file() else ""
    # by its name, as the run may have been made elsewhere
    return "recordings" if Path(source).parts[-2:] == run.reviewed.parts[-2:] else display_name(source)


def _written_down(run: Run) -> dict:
    """By whom, where it was the kit that cut and wrote down recordings."""
    asr_model, _ = ingest.asr_models(run)
    return {"written down by": asr_model} if asr_model else {}


def _amounts(found: report.Report) -> dict:
    count, seconds = Counter(), Counter()
    for each in found.clips:
        count[each.clip.split] += 1
        seconds[each.clip.split] += each.clip.seconds
    return {split: {"clips": count[split], "minutes": round(seconds[split] / 60, 1)} for split in count}
