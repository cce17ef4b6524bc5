"""Score clips: rows of scores.jsonl get their metrics, and rows become the table of metrics of each arm.

An overfitted model repeats its training sentences. Such a clip sounds exactly like the voice and scores well in SIM and MOS;
it is marked as memorized."""

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from tts_kit.evaluation import backends, metrics, stats, wer
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels
from tts_kit.evaluation.stats import Estimate
from tts_kit.progress import tqdm

METRICS = "metrics"  # field of a row that names the metric models
MIN_REFERENCES = 5
MAX_REFERENCES = 50
MARGINS = {"sim": 0.02, "wer": 0.03}  # differences that matter, and as much as each other
SAVE_EVERY = 10
MAX_EDIT_RATE, MIN_EDIT_RATE = 0.35, 0.5
"""Of the words of a memorized clip: at most to the training sentence that it repeats, at least to the text it should say."""
MIN_WORDS = 3  # of a training sentence; shorter ones occur by chance
References = Mapping[str, ClipMetrics]  # sentence -> metrics of its recording
SimilarityRange = tuple[float, float]  # SIM of other speakers to the voice, and of the voice to itself


@dataclass(frozen=True)
class Column:
    """A metric of an arm, as a column of tables."""
    heading: str
    form: str
    meaning: str  # with the metric whose model measured it in braces
    numerator: str = ""  # field of a row that is summed, if it is not named as the metric
    denominator: str = ""  # field whose sum it is divided by; the number of clips if empty
    always: bool = False  # whether the column stays where no arm has a value


COLUMNS = {
    "wer": Column("WER", "{:.1%}", "word error rate, of what {WER} transcribes", "word_errors", "ref_words", always=True),
    "cer": Column("CER", "{:.1%}", "character error rate of the same transcripts", "char_errors", "ref_chars"),
    "sim": Column("SIM", "{:.3f}", "speaker similarity, the cosine of a clip's {SIM} embedding to the mean of recordings of "
                  "the voice", always=True),
    "sim_norm": Column("SIM norm.", "{:.2f}", "SIM with 0 for other speakers and 1 for the voice itself"),
    "sim_2": Column("SIM 2", "{:.3f}", "the same by {SIM 2}"),
    "mos": Column("MOS", "{:.2f}", "mean opinion score of naturalness, 1 to 5, as {MOS} predicts it", always=True),
    "mos_2": Column("MOS 2", "{:.2f}", "the same by {MOS 2}"),
    "noisy": Column("noisy", "{:.0%}", "clips with more background noise than the recordings, by {NOISE MOS}"),
    "duration_ratio": Column("dur. ratio", "{:.2f}", "duration of the speech, relative to the recording of the same "
                             "sentence"),
    "f0_difference": Column("dF0 (st)", "{:+.1f}", "median pitch, in semitones above the recordings"),
    "rate_ratio": Column("rate ratio", "{:.2f}", "words per second, relative to the recordings"),
    "ended_with_eos": Column("EOS", "{:.0%}", "clips that the model ended itself, with an end-of-speech frame", always=True),
    "memorized": Column("memorized", "{:.0%}", "clips that repeat a training sentence instead of their text")}
SCORE_FIELDS = {"transcript", "failure", "noise_mos", "speech_seconds", "f0", "speech_rate", "metric_failed", METRICS,
                "training_text", *(field for name, column in COLUMNS.items() if name != "ended_with_eos"
                                   for field in (column.numerator or name, column.denominator))}
"""Fields that scoring writes; a row loses all of them before it is scored again."""


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


def similarity(embedding: np.ndarray | None, others: Iterable[np.ndarray | None]) -> float | None:
    """Return SIM: the cosine to the mean embedding of recordings of other sentences, so that no clip is compared with itself
    or its own words. 0 for a clip without sound; None without other sentences."""
    targets = [target for target in others if target is not None]
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
    scored = rows
    if sim_range and sim_range[0] < sim_range[1]:
        scored = [row if row.get("sim") is None else
                  row | {"sim_norm": round(normalized_similarity(row["sim"], *sim_range), 4)} for row in rows]
    if pending or scored != rows:
        save(scored)
    return scored


def _score(row: dict, folder: Path, models: MetricModels, references: References) -> dict:
    clip = models.measure(metrics.read(folder / row["file"]), metrics.SAMPLE_RATE, row["text"])
    recording = references.get(row["text"])
    others = [reference for text, reference in references.items() if text != row["text"]]
    f0, rate = _median([other.f0 for other in others]), _median([other.speech_rate for other in others])
    values = {
        "sim": None if "sim" in clip.failed else similarity(clip.embedding, [other.embedding for other in others]),
        "sim_2": None if "sim_2" in clip.failed else similarity(clip.embedding_2, [other.embedding_2 for other in others]),
        "mos": clip.mos, "mos_2": clip.mos_2, "noise_mos": clip.noise_mos, "speech_seconds": clip.speech_seconds or None,
        "duration_ratio": _ratio(clip.speech_seconds, recording and recording.speech_seconds),
        "f0": clip.f0, "f0_difference": 12 * float(np.log2(clip.f0 / f0)) if clip.f0 and f0 else None,
        "speech_rate": clip.speech_rate, "rate_ratio": _ratio(clip.speech_rate, rate)}
    noisy = backends.is_noisy(clip.noise_mos, [other.noise_mos for other in others])
    return {"transcript": clip.transcript, "ref_words": clip.ref_words, "word_errors": clip.word_errors,
            "ref_chars": clip.ref_chars, "char_errors": clip.char_errors, "failure": clip.failure, "sim": None, "mos": None,
            **{name: round(value, 4) for name, value in values.items() if value is not None},
            **({} if noisy is None else {"noisy": noisy}), **({"metric_failed": clip.failed} if clip.failed else {}),
            METRICS: models.name}


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value and reference else None


def _median(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None


def per_metric_sums(rows: Sequence[dict]) -> Iterator[tuple[str, stats.SentenceSums]]:
    """Yield (metric, sums by sentence) of one arm; a clip without a score is left out of that metric alone."""
    is_scored = all(METRICS in row for row in rows)
    for name, column in COLUMNS.items():
        numerator = column.numerator or name
        measured = [row for row in rows if row.get(numerator) is not None]
        if len(measured) == len(rows) if name == "ended_with_eos" else is_scored and measured:
            yield name, stats.sums_by_sentence(measured, numerator, column.denominator)


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


def similarity_range(references: References, impostors: Sequence[np.ndarray]) -> SimilarityRange | None:
    """Return the mean SIM of other speakers' clips to the voice, and of each of its recordings to the others; None where
    there are fewer than two recordings."""
    voice = [clip.embedding for clip in references.values() if clip.embedding is not None]
    if len(voice) < 2:
        return None
    return (float(np.mean([similarity(embedding, voice) for embedding in impostors])),
            float(np.mean([similarity(one, voice[:index] + voice[index + 1:]) for index, one in enumerate(voice)])))


def normalized_similarity(value: float, floor: float, ceiling: float) -> float:
    """Scale SIM to 0 for other speakers and 1 for the voice itself, so that two speaker models can be compared."""
    return (value - floor) / (ceiling - floor)


def check_memorization(rows: Sequence[dict], training_texts: Iterable[str]) -> list[dict]:
    """Return the scored rows; generated ones with words in them say whether they repeat a training sentence, and which."""
    words = {text: wer.normalize(text).split() for text in training_texts}
    checked = []
    for row in rows:
        if row["seed"] is not None and row.get("transcript"):
            repeated = matched_training_text(row["transcript"], row["text"], words)
            row = row | {"memorized": bool(repeated), "training_text": repeated}
        checked.append(row)
    return checked


def matched_training_text(transcript: str, text: str, training: Mapping[str, Sequence[str]]) -> str:
    """Return the training sentence (of sentence -> its words) that a clip says instead of `text`, empty for none."""
    words = wer.normalize(transcript).split()
    # a misrecognized word can turn one sentence into another much like it; that is no repetition
    if Levenshtein.normalized_distance(wer.normalize(text).split(), words) < MIN_EDIT_RATE:
        return ""
    rates = {sentence: Levenshtein.normalized_distance(other, words) for sentence, other in training.items()
             if len(other) >= MIN_WORDS}
    best = min(rates, key=rates.get, default="")
    return best if best and rates[best] <= MAX_EDIT_RATE else ""


def table(arms: Mapping[str, Mapping[str, Estimate]], metric_names: Collection[str] = (), heading: str = "arm"
          ) -> list[list[str]]:
    """Return metrics of every arm (`aggregate`) as text, headings first; "-" where something was not measured.

    By default all metrics that any arm has, and those that always have a column."""
    metric_names = metric_names or [name for name, column in COLUMNS.items()
                                    if column.always or any(name in estimates for estimates in arms.values())]
    columns = {name: COLUMNS[name] for name in metric_names}
    return [[heading, *(column.heading for column in columns.values())]] + [
        [arm, *(column.form.format(estimates[name].value) if name in estimates else "-" for name, column in columns.items())]
        for arm, estimates in arms.items()]


def print_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text in columns of equal width for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
