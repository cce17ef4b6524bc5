"""From clips to rows with scores, and from rows to the figures of each arm."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit.errors import KitError
from tts_kit.evaluation import dnsmos, metrics, prosody, stats
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels
from tts_kit.evaluation.stats import Estimate

METRICS = "metrics"
"""The field that names the judges of a row."""
MIN_REFERENCES = 5
MAX_REFERENCES = 50
SAVE_EVERY = 10
FIGURES = {"wer": ("word_errors", "ref_words"), "cer": ("char_errors", "ref_chars"),
           "sim": ("sim", ""), "sim_2": ("sim_2", ""), "sim_norm": ("sim_norm", ""),
           "mos": ("mos", ""), "mos_2": ("mos_2", ""), "noisy": ("noisy", ""),
           "duration_ratio": ("duration_ratio", ""), "f0_difference": ("f0_difference", ""),
           "rate_ratio": ("rate_ratio", ""), "memorized": ("memorized", "")}
"""Figure -> (field that is added up, field it is divided by, or the number of clips)."""
SCORES = {"transcript", "failure", "noise_mos", "speech_seconds", "f0", "speech_rate", "metric_failed", "nearest_clip",
          "nearest_similarity", METRICS, *(field for fields in FIGURES.values() for field in fields)}
"""The fields of a row that judging writes; all of them go before it is judged anew."""
COLUMNS = {"wer": ("{:.1%}", True), "cer": ("{:.1%}", False), "sim": ("{:.3f}", True),
           "sim_norm": ("{:.2f}", False), "sim_2": ("{:.3f}", False), "mos": ("{:.2f}", True),
           "mos_2": ("{:.2f}", False), "noisy": ("{:.0%}", False), "duration_ratio": ("{:.2f}", False),
           "f0_difference": ("{:+.1f}", False), "rate_ratio": ("{:.2f}", False), "ended_with_eos": ("{:.0%}", True),
           "memorized": ("{:.0%}", False)}
"""Figure -> (how it is written, whether its column is there even where nothing has it)."""
HEADINGS = {"wer": "WER", "cer": "CER", "sim": "SIM", "sim_norm": "SIM norm.", "sim_2": "SIM 2", "mos": "MOS", "mos_2": "MOS 2",
            "noisy": "noisy", "duration_ratio": "dur. ratio", "f0_difference": "dF0 (st)", "rate_ratio": "rate ratio",
            "ended_with_eos": "EOS", "memorized": "memorised"}
HEAD = 9
"""Letters of a column's name in one line."""
References = Mapping[str, ClipMetrics]
"""What a real clip says, one sentence -> what is known of it."""
Scale = tuple[float, float]
"""Similarity of strangers to a voice, and of the voice to itself."""


def measure_references(clips: Mapping[str, Path], metric_models: MetricModels) -> References:
    """What real clips sound like, by their sentences; those that all others are measured against."""
    some = list(clips.items())[:MAX_REFERENCES]
    bar = tqdm(some, desc="real voice", unit="clip", disable=len(some) < 4)
    known = {text: metric_models.know(metrics.read(path), metrics.SAMPLE_RATE, text) for text, path in bar}
    for text, each in known.items():
        for measure, how in each.failed.items():
            print(f"The real clip {clips[text].name} is compared with nothing in {measure}: {how}.")
    return known


def other_speakers(paths: Iterable[Path], metric_models: MetricModels) -> list[np.ndarray]:
    """The voices of other speakers' clips, for the floor of similarity; a clip without a voice is left out."""
    return [voice for path in paths if (voice := metric_models.voice(metrics.read(path), metrics.SAMPLE_RATE)) is not None]


def similarity(voice: np.ndarray | None, voices: Mapping[str, np.ndarray | None], text: str) -> float | None:
    """Cosine to the mean of the real clips of other sentences, so that no clip is compared with itself or its own words.

    A clip without sound is like nobody: 0. None where there is no other sentence to compare with.
    """
    others = [each for said, each in voices.items() if said != text and each is not None]
    if not others:
        return None
    if voice is None:
        return 0.0
    mean = np.mean(others, axis=0)
    return float(voice @ mean / np.linalg.norm(mean))


def voices(references: References) -> dict[str, np.ndarray]:
    """Sentence -> voice (width,) of the real clips in which it was heard."""
    return {text: each.embedding for text, each in references.items() if each.embedding is not None}


def score_rows(rows: Sequence[dict], folder: Path, metric_models: MetricModels, references: Callable[[dict], References],
          save: Callable[[list[dict]], None], scales: Callable[[dict], Scale | None] = lambda row: None) -> list[dict]:
    """The rows with scores; those that this set of judges has scored stay as they are. `save` is called now and then.

    `scales` says for a row what strangers and the voice itself reach, where that was measured; None where it was not.
    """
    rows = list(rows)
    wanted = [number for number, row in enumerate(rows) if row.get(METRICS) != metric_models.name]
    for count, number in enumerate(tqdm(wanted, desc="judging", unit="clip", disable=len(wanted) < 4), 1):
        kept = {name: value for name, value in rows[number].items() if name not in SCORES}
        rows[number] = kept | _score(kept, folder, metric_models, references(kept))
        if count % SAVE_EVERY == 0:
            save(rows)
    scaled = [row | _scaled(row, scales(row)) for row in rows]
    if wanted or scaled != rows:
        save(scaled)
    return scaled


def _score(row: dict, folder: Path, metric_models: MetricModels, references: References) -> dict:
    found = metric_models.judge(metrics.read(folder / row["file"]), metrics.SAMPLE_RATE, row["text"])
    others = [each for text, each in references.items() if text != row["text"]]
    same = references.get(row["text"])
    second = {text: each.embedding_2 for text, each in references.items()}
    noisy = dnsmos.is_noisier(found.noise_mos, [each.noise_mos for each in others])
    measured = {
        "sim": None if "sim" in found.failed else similarity(found.embedding, voices(references), row["text"]),
        "sim_2": None if "sim_2" in found.failed else similarity(found.embedding_2, second, row["text"]),
        "mos": found.mos, "mos_2": found.mos_2, "noise_mos": found.noise_mos,
        "speech_seconds": found.speech_seconds or None,
        "duration_ratio": prosody.ratio(found.speech_seconds, same and same.speech_seconds),
        "f0": found.f0, "f0_difference": prosody.semitones(found.f0, prosody.usual(each.f0 for each in others)),
        "speech_rate": found.speech_rate,
        "rate_ratio": prosody.ratio(found.speech_rate, prosody.usual(each.speech_rate for each in others))}
    return {"transcript": found.transcript, "ref_words": found.ref_words, "word_errors": found.word_errors,
            "ref_chars": found.ref_chars,
            "char_errors": found.char_errors, "failure": found.failure, "sim": None, "mos": None,
            **{name: round(value, 4) for name, value in measured.items() if value is not None},
            **({} if noisy is None else {"noisy": noisy}), **({"metric_failed": found.failed} if found.failed else {}),
            METRICS: metric_models.name}


def _scaled(row: dict, scale: Scale | None) -> dict:
    """The similarity between what strangers and the voice itself reach, where both were measured and differ."""
    if scale is None or row.get("sim") is None or scale[1] <= scale[0]:
        return {}
    return {"sim_norm": round(normalized_similarity(row["sim"], *scale), 4)}


def per_metric_sums(rows: Sequence[dict]) -> Iterator[tuple[str, stats.SentenceSums]]:
    """(name, sums and counts by sentence) of all that can be said of one arm; a clip without a score is left out of that
    measure alone, and `unjudged` names it."""
    judged = all(METRICS in row for row in rows)
    for name, (top, bottom) in FIGURES.items() if judged else ():
        known = [row for row in rows if row.get(top) is not None]
        if known:
            yield name, stats.sums_by_sentence(known, top, bottom)
    if all(row.get("ended_with_eos") is not None for row in rows):
        yield "ended_with_eos", stats.sums_by_sentence(rows, "ended_with_eos")


def aggregate(rows: Sequence[dict]) -> dict[str, Estimate]:
    """Name -> figure of one arm, over all its sentences and takes: words are counted over all clips, not clip by clip."""
    return {name: stats.bootstrap_ratio(parts) for name, parts in per_metric_sums(rows)}


def differences(one: Sequence[dict], other: Sequence[dict]) -> dict[str, Estimate]:
    """Name -> figure of `one` less that of `other`, sentence by sentence; only what was measured of both."""
    theirs = dict(per_metric_sums(other))
    return {name: stats.paired_bootstrap_diff(parts, theirs[name]) for name, parts in per_metric_sums(one) if name in theirs}


def group_by_arm(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Arm -> its rows, arms in the order in which they come."""
    gathered = {}
    for row in rows:
        gathered.setdefault(row["arm"], []).append(row)
    return gathered


def failures(rows: Sequence[dict]) -> list[str]:
    """The clips that count as wholly wrong because nothing could be heard, each with its reason."""
    return [f"{row['file']} ({row['failure']})" for row in rows if row.get("failure")]


def missing_scores(rows: Sequence[dict]) -> list[str]:
    """The clips that a figure leaves out, each with the measure and the reason: a judge broke down, a text has no words."""
    said = [f"{row['file']} ({measure}: {how})" for row in rows for measure, how in row.get("metric_failed", {}).items()]
    return said + [f"{row['file']} (wer: its text has no words)" for row in rows if row.get("ref_words") == 0]


def similarity_range(references: References, others: Sequence[np.ndarray]) -> Scale:
    """(floor, ceiling) of the similarity to a voice: what strangers get, and what its own clips get."""
    return nontarget_similarity(others, voices(references)), target_similarity(voices(references))


def nontarget_similarity(others: Sequence[np.ndarray], own: Mapping[str, np.ndarray]) -> float:
    """Mean similarity of other speakers' clips to this voice: what a stranger gets."""
    if not others:
        raise KitError("no clips of other speakers were given; the floor of similarity is what strangers get. Give some.")
    return float(np.mean([similarity(voice, own, "") for voice in others]))


def target_similarity(own: Mapping[str, np.ndarray]) -> float:
    """Mean similarity of each real clip to the others of its voice: what the voice itself gets."""
    if len(own) < 2:
        raise KitError(f"{len(own)} real clip of the voice; wanted two or more, to see how alike they are.")
    return float(np.mean([similarity(voice, own, text) for text, voice in own.items()]))


def normalized_similarity(value: float, floor: float, ceiling: float) -> float:
    """0 for a stranger, 1 for the voice itself; so that figures of two judges can be compared."""
    if ceiling <= floor:
        raise KitError(f"strangers are as like the voice ({floor:.3f}) as it is to itself ({ceiling:.3f}); wanted them less "
                      "alike. The real clips are of several voices, or the strangers are no strangers: look at both.")
    return (value - floor) / (ceiling - floor)


def table(rows: Sequence[dict]) -> list[list[str]]:
    """The figures of every arm as text, names of the columns first; '-' where something was not measured, and no column
    where nothing has it, but for the first ones of all."""
    found = {arm: aggregate(mine) for arm, mine in group_by_arm(rows).items()}
    shown = [name for name, (_, always) in COLUMNS.items() if always or any(name in each for each in found.values())]
    return [["arm", *(HEADINGS[name] for name in shown)]] + [
        [arm, *(COLUMNS[name][0].format(each[name].value) if name in each else "-" for name in shown)]
        for arm, each in found.items()]


def print_table(listed: Sequence[Sequence[str]]) -> str:
    """`table` in columns of equal width, for a terminal; names of columns in as many lines as they need."""
    heads = [textwrap.wrap(name, HEAD, break_long_words=False) or [""] for name in listed[0]]
    tallest = max(map(len, heads))
    lines = [*zip(*([""] * (tallest - len(head)) + head for head in heads)), *listed[1:]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) if place == 0 else cell.rjust(width)
                               for place, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)
