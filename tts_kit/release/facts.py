"""What is known of a trained voice, for those who get it: where it comes from, what it learnt, how it was judged."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tts_kit import recipe as recipes
from tts_kit.comparison import clips, contest, verdict, votes
from tts_kit.data import consent, desk, intake, report, utterance
from tts_kit.judging import scores
from tts_kit.model import lora
from tts_kit.recipe import Recipe
from tts_kit.run import Run, read_json
from tts_kit.tokens import cache


@dataclass(frozen=True)
class Comparison:
    """What the comparison of this very adapter found."""
    said: list[str]
    """The verdict in short, then the evidence."""
    table: list[list[str]]
    """Figures of every arm; empty where nobody judged."""
    rows: list[dict]
    folder: Path
    judges: str


@dataclass(frozen=True)
class Facts:
    name: str
    belongs: dict
    """What the adapter says of itself: base, speaker, figures of the training."""
    base: str
    """As others call it."""
    recipe: Recipe
    data: dict
    """Empty where the run's data are gone, or are not those that were learnt."""
    consent: consent.Consent | None
    comparison: Comparison | None


def gather(run: Run, base: str) -> Facts:
    """All that a run still knows of its adapter; what is not there or belongs to another is left out, and that is said."""
    belongs = lora.read_voice(run.adapter)
    if wrong := fault_of_consent(run, belongs):
        print(wrong)
    return Facts(run.name, belongs, called(base), recipes.read(run.adapter / recipes.FILE), data(run, belongs),
                 None if wrong else consent.of(run), comparison(run))


def called(place: str) -> str:
    """A hub id or address as it is; of a folder its name alone, as others have it elsewhere."""
    return Path(place).name if Path(place).expanduser().exists() or Path(place).is_absolute() else place


def fault_of_consent(run: Run, belongs: dict) -> str:
    """What is wrong with the consent to what the adapter has learnt, and what to do; nothing where a record covers it."""
    if (run.data / utterance.MANIFEST).is_file() and (other := fault_of_data(run, belongs)):
        return f"Whose voice it is cannot be told: {other}. Train again from what is there, or move {run.data} away."
    if wrong := consent.fault(run):
        return wrong
    found, learnt = consent.of(run), belongs.get("recordings")
    if learnt and found.sha256 != learnt:
        return (f"{run.adapter} has learnt from other recordings than the {found.clips} clips to which {found.who} "
                f"consented on {found.when[:10]}. Train again from those, in another run.")
    return ""


def fault_of_data(run: Run, belongs: dict) -> str:
    """Why the run's data cannot be shown to be what the adapter has learnt; nothing where they are."""
    if not (run.data / utterance.MANIFEST).is_file() or not (run.codes / "index.jsonl").is_file():
        return f"{run.data} or {run.codes} is gone"
    if not cache.are_of_data(run) or cache.digest(run.codes) != belongs.get("codes"):
        return f"{run.data} or {run.codes} is not what {run.adapter} has learnt"
    return ""


def data(run: Run, belongs: dict) -> dict:
    """How much speech was learnt, from where, and what was checked."""
    if wrong := fault_of_data(run, belongs):
        print(f"{wrong}: the card says nothing of the data.")
        return {}
    found = report.look(run)
    measured = found.clips
    return {"source": _source(run), **_written_down(run), "clips": _amounts(found),
            "recordings": len({each.clip.recording for each in measured}),
            "median seconds of a clip": round(median(each.clip.seconds for each in measured), 1),
            "median decibels of speech over the room": round(median(each.ratio for each in measured)),
            "left out": {reason.removeprefix("left out: "): left.clips for reason, left in found.left.items()},
            "clips that say nearly what another says": len(found.twins)} | (
                {"clips that sound like somebody else": len(found.strangers)} if found.compared else {})


def comparison(run: Run) -> Comparison | None:
    """The run's comparison, if one was made of the adapter as it is now."""
    rows, settings = clips.finished(run.comparison), run.comparison / "settings.json"
    if not rows or not settings.is_file():
        print(f"{run.comparison} holds no comparison: the card has no verdict and no players. Make one first: python -m "
              f"tts_kit compare --run {run.name}")
        return None
    if read_json(settings, "Compare again.").get("adapter weights") != lora.fingerprint(run.adapter):
        print(f"{run.comparison} compared another adapter than {run.adapter} holds now: the card leaves it out. Move it "
              "away and compare again.")
        return None
    said, judges = contest.summary(rows, contest.questions(rows)), rows[0].get(scores.JUDGED, "")
    if said == [verdict.UNMEASURED]:
        # how judges are installed is no concern of whoever reads the card
        said, judges = [verdict.UNMEASURED.partition(" Install")[0]], ""
    if (run.comparison / contest.VOTES).is_file():
        said += votes.describe(read_json(run.comparison / contest.VOTES, "Count the votes again."))
    return Comparison(said, scores.table(rows) if judges else [], rows, run.comparison, judges)


def _source(run: Run) -> str:
    origin = run.data / intake.ORIGIN
    source = read_json(origin, f"Delete {run.data} and make it again.").get("source", "") if origin.is_file() else ""
    # by its name, as the run may have been made elsewhere
    return "recordings" if Path(source).parts[-2:] == run.reviewed.parts[-2:] else called(source)


def _written_down(run: Run) -> dict:
    """By whom, where it was the kit that cut and wrote down recordings."""
    path = run.cuts / desk.SETTINGS
    told = read_json(path, f"Delete {path}.") if path.is_file() else {}
    return {"written down by": told["transcriber"]} if told.get("transcriber") else {}


def _amounts(found: report.Report) -> dict:
    count, seconds = Counter(), Counter()
    for each in found.clips:
        count[each.clip.split] += 1
        seconds[each.clip.split] += each.clip.seconds
    return {split: {"clips": count[split], "minutes": round(seconds[split] / 60, 1)} for split in count}
