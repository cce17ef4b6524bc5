"""Score clips: rows of scores.jsonl get their metrics, and rows become the table of metrics of each arm."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics, stats
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels
from tts_kit.evaluation.stats import Estimate

METRICS = "metrics"
"""Field of a row that names the metric models."""
MIN_REFERENCES = 5
MAX_REFERENCES = 50
SAVE_EVERY = 10
FIGURES = {"wer": ("word_errors", "ref_words"), "cer": ("char_errors", "ref_chars"), "sim": ("sim", ""),
           "sim_2": ("sim_2", ""), "sim_norm": ("sim_norm", ""), "mos": ("mos", ""), "mos_2": ("mos_2", ""),
           "noisy": ("noisy", ""), "duration_ratio": ("duration_ratio", ""), "f0_difference": ("f0_difference", ""),
           "rate_ratio": ("rate_ratio", ""), "memorized": ("memorized", "")}
"""Metric of an arm -> (field that is summed, field it is divided by or "" for the number of clips)."""
SCORE_FIELDS = {"transcript", "failure", "noise_mos", "speech_seconds", "f0", "speech_rate", "metric_failed", "nearest_clip",
                "nearest_similarity", METRICS, *(field for fields in FIGURES.values() for field in fields)}
"""Fields that scoring writes; a row loses all of them before it is scored again."""
COLUMNS = {
    "wer": ("WER", "{:.1%}", True), "cer": ("CER", "{:.1%}", False), "sim": ("SIM", "{:.3f}", True),
    "sim_norm": ("SIM norm.", "{:.2f}", False), "sim_2": ("SIM 2", "{:.3f}", False), "mos": ("MOS", "{:.2f}", True),
    "mos_2": ("MOS 2", "{:.2f}", False), "noisy": ("noisy", "{:.0%}", False),
    "duration_ratio": ("dur. ratio", "{:.2f}", False), "f0_difference": ("dF0 (st)", "{:+.1f}", False),
    "rate_ratio": ("rate ratio", "{:.2f}", False), "ended_with_eos": ("EOS", "{:.0%}", True),
    "memorized": ("memorised", "{:.0%}", False)}
"""Metric of an arm -> (heading, format, whether the column stays where no arm has a value)."""
HEADINGS = {name: heading for name, (heading, _, _) in COLUMNS.items()}
HEADING_WIDTH = 9
References = Mapping[str, ClipMetrics]
"""Sentence -> metrics of its recording."""
SimilarityRange = tuple[float, float]
"""SIM of other speakers to the voice, and of the voice to itself."""


def measure_references(clips: Mapping[str, Path], models: MetricModels) -> References:
    """Measure recordings of the voice, sentence -> file, which all clips are compared with."""
    clips = dict(list(clips.items())[:MAX_REFERENCES])
    progress = tqdm(clips.items(), desc="recordings", unit="clip", disable=len(clips) < 4)
    references = {text: models.measure_reference(metrics.read(path), metrics.SAMPLE_RATE, text) for text, path in progress}
    for text, reference in references.items():
        for metric, reason in reference.failed.items():
            print(f"The recording {clips[text].name} is not used for {metric}: {reason}.")
    return references


def other_speakers(paths: Iterable[Path], models: MetricModels) -> list[np.ndarray]:
    """Return the speaker embeddings of other speakers' clips, without those that cannot be read."""
    embeddings = [models.embed(metrics.read(path), metrics.SAMPLE_RATE) for path in paths]
    return [embedding for embedding in embeddings if embedding is not None]


def embeddings(references: References) -> dict[str, np.ndarray]:
    """Return sentence -> speaker embedding, where there is one."""
    return {text: clip.embedding for text, clip in references.items() if clip.embedding is not None}


def similarity(embedding: np.ndarray | None, references: Mapping[str, np.ndarray | None], text: str) -> float | None:
    """Return SIM: the cosine to the mean embedding of the recordings of other sentences than `text`.

    So no clip is compared with itself or with its own words. 0 for a clip without sound; None without other sentences.
    """
    targets = [target for sentence, target in references.items() if sentence != text and target is not None]
    if not targets:
        return None
    if embedding is None:
        return 0.0
    mean = np.mean(targets, axis=0)
    return float(embedding @ mean / np.linalg.norm(mean))


def score_rows(rows: Sequence[dict], folder: Path, models: MetricModels, references: References,
               save: Callable[[list[dict]], None], sim_range: SimilarityRange | None = None) -> list[dict]:
    """Return the rows with scores; rows scored by the same models are kept. `save` is called now and then."""
    rows = list(rows)
    pending = [index for index, row in enumerate(rows) if row.get(METRICS) != models.name]
    for count, index in enumerate(tqdm(pending, desc="scoring", unit="clip", disable=len(pending) < 4), 1):
        row = {name: value for name, value in rows[index].items() if name not in SCORE_FIELDS}
        rows[index] = row | _score(row, folder, models, references)
        if count % SAVE_EVERY == 0:
            save(rows)
    scored = [row | _normalized(row, sim_range) for row in rows]
    if pending or scored != rows:
        save(scored)
    return scored


def _score(row: dict, folder: Path, models: MetricModels, references: References) -> dict:
    clip = models.measure(metrics.read(folder / row["file"]), metrics.SAMPLE_RATE, row["text"])
    recording = references.get(row["text"])
    of_other_texts = [reference for text, reference in references.items() if text != row["text"]]
    embeddings_2 = {text: reference.embedding_2 for text, reference in references.items()}
    f0, rate = (_median(getattr(reference, field) for reference in of_other_texts)
                for field in ("f0", "speech_rate"))
    values = {
        "sim": None if "sim" in clip.failed else similarity(clip.embedding, embeddings(references), row["text"]),
        "sim_2": None if "sim_2" in clip.failed else similarity(clip.embedding_2, embeddings_2, row["text"]),
        "mos": clip.mos, "mos_2": clip.mos_2, "noise_mos": clip.noise_mos, "speech_seconds": clip.speech_seconds or None,
        "duration_ratio": _ratio(clip.speech_seconds, recording and recording.speech_seconds),
        "f0": clip.f0, "f0_difference": 12 * float(np.log2(clip.f0 / f0)) if clip.f0 and f0 else None,
        "speech_rate": clip.speech_rate, "rate_ratio": _ratio(clip.speech_rate, rate)}
    noisy = backends.is_noisy(clip.noise_mos, [reference.noise_mos for reference in of_other_texts])
    return {"transcript": clip.transcript, "ref_words": clip.ref_words, "word_errors": clip.word_errors,
            "ref_chars": clip.ref_chars, "char_errors": clip.char_errors, "failure": clip.failure, "sim": None, "mos": None,
            **{name: round(value, 4) for name, value in values.items() if value is not None},
            **({} if noisy is None else {"noisy": noisy}), **({"metric_failed": clip.failed} if clip.failed else {}),
            METRICS: models.name}


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value and reference else None


def _median(values: Iterable[float | None]) -> float | None:
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def _normalized(row: dict, sim_range: SimilarityRange | None) -> dict:
    """Return the field sim_norm, where SIM and a range that makes sense were measured."""
    if sim_range is None or row.get("sim") is None or sim_range[1] <= sim_range[0]:
        return {}
    return {"sim_norm": round(normalized_similarity(row["sim"], *sim_range), 4)}


def per_metric_sums(rows: Sequence[dict]) -> Iterator[tuple[str, stats.SentenceSums]]:
    """Yield (metric, sums by sentence) of one arm; a clip without a score is left out of that metric alone."""
    scored = all(METRICS in row for row in rows)
    for name, (numerator, denominator) in FIGURES.items() if scored else ():
        if measured := [row for row in rows if row.get(numerator) is not None]:
            yield name, stats.sums_by_sentence(measured, numerator, denominator)
    if all(row.get("ended_with_eos") is not None for row in rows):
        yield "ended_with_eos", stats.sums_by_sentence(rows, "ended_with_eos")


def aggregate(rows: Sequence[dict]) -> dict[str, Estimate]:
    """Return metric -> estimate of one arm; WER and CER are corpus rates, not means over clips."""
    return {name: stats.bootstrap_ratio(sums) for name, sums in per_metric_sums(rows)}


def differences(one: Sequence[dict], other: Sequence[dict]) -> dict[str, Estimate]:
    """Return metric -> estimate of the paired difference `one` minus `other`, of what was measured on both."""
    sums_of_other = dict(per_metric_sums(other))
    return {name: stats.paired_bootstrap_diff(sums, sums_of_other[name]) for name, sums in per_metric_sums(one)
            if name in sums_of_other}


def group_by_arm(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Return arm -> its rows, in the order of first appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(row["arm"], []).append(row)
    return groups


def failures(rows: Sequence[dict]) -> list[str]:
    """Return the clips that count as wholly wrong, each with the reason."""
    return [f"{row['file']} ({row['failure']})" for row in rows if row.get("failure")]


def missing_scores(rows: Sequence[dict]) -> list[str]:
    """Return the clips that a metric leaves out, each with the reason: a model failed, or a text has no words."""
    failed = [f"{row['file']} ({metric}: {reason})" for row in rows
              for metric, reason in row.get("metric_failed", {}).items()]
    return failed + [f"{row['file']} (wer: its text has no words)" for row in rows if row.get("ref_words") == 0]


def similarity_range(references: References, impostors: Sequence[np.ndarray]) -> SimilarityRange:
    """Return the SIM of other speakers' clips to the voice, and of the voice's recordings to each other."""
    return nontarget_similarity(impostors, embeddings(references)), target_similarity(embeddings(references))


def nontarget_similarity(impostors: Sequence[np.ndarray], references: Mapping[str, np.ndarray]) -> float:
    """Return the mean SIM of other speakers' clips to this voice: the floor."""
    if not impostors:
        raise KitError("no clips of other speakers were given; the floor of SIM is what they get. Give some.")
    return float(np.mean([similarity(embedding, references, "") for embedding in impostors]))


def target_similarity(references: Mapping[str, np.ndarray]) -> float:
    """Return the mean SIM of each recording to the others of its voice: the ceiling."""
    if len(references) < 2:
        raise KitError(f"there is {len(references)} recording of the voice; wanted two or more, to compare with each other.")
    return float(np.mean([similarity(embedding, references, text) for text, embedding in references.items()]))


def normalized_similarity(value: float, floor: float, ceiling: float) -> float:
    """Scale SIM to 0 for other speakers and 1 for the voice itself, so that two speaker models can be compared."""
    if ceiling <= floor:
        raise KitError(f"other speakers are as similar to the voice ({floor:.3f}) as its own recordings ({ceiling:.3f}); "
                       "wanted less. Either the recordings are of several voices, or the others are this voice: check both.")
    return (value - floor) / (ceiling - floor)


def table(arms: Mapping[str, Mapping[str, Estimate]]) -> list[list[str]]:
    """Return the metrics of every arm (`aggregate`) as text, headings first; "-" where something was not measured."""
    columns = {name: form for name, (_, form, always) in COLUMNS.items()
               if always or any(name in estimates for estimates in arms.values())}
    return [["arm", *(HEADINGS[name] for name in columns)]] + [
        [arm, *(form.format(estimates[name].value) if name in estimates else "-" for name, form in columns.items())]
        for arm, estimates in arms.items()]


def print_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text in columns of equal width for a terminal, with wrapped headings."""
    headings = [textwrap.wrap(name, HEADING_WIDTH, break_long_words=False) or [""] for name in rows[0]]
    height = max(map(len, headings))
    lines = [*zip(*([""] * (height - len(heading)) + heading for heading in headings)), *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) if column else cell.ljust(width)
                               for column, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)
