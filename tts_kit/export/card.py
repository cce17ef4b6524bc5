"""The model card of an exported voice: samples, evaluation, usage, training, data, consent, license; no empty sections."""

import dataclasses
import json
import re
import shlex
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from tts_kit import audio, hub, watermark
from tts_kit.comparison import compare, listening_test, synthesis, verdict
from tts_kit.comparison.arms import ARMS, GENERATED_ARMS
from tts_kit.comparison.verdict import Verdict
from tts_kit.config import CONFIG_FILE, Config, read_config
from tts_kit.data import consent, ingest, manifest
from tts_kit.data.manifest import EXCLUDED, HELD_OUT, TRAIN
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.generation.sampling import Sampling
from tts_kit.html import markdown
from tts_kit.io import read_json, write_text
from tts_kit.model import license, lora
from tts_kit.run import TINY_CSM, Run, read_inputs
from tts_kit.tokens import cache

FILE, SAMPLES = "README.md", "samples"
SAMPLE_ARMS, MAX_SAMPLE_SENTENCES = sorted(GENERATED_ARMS, key=lambda arm: not ARMS[arm].adapter), 4
"""Arms and sentences whose clips are on the card; recordings of the speaker are not."""
HUB_METRICS = {"wer": ("WER, %", 100, 1), "cer": ("CER, %", 100, 1), "sim": ("SIM", 1, 3), "mos": ("MOS", 1, 2)}
"""Metrics that the hub shows: name, scale and decimals."""


@dataclass(frozen=True)
class RunSummary:
    """What is known of a trained voice."""
    name: str
    metadata: dict  # of the adapter: base, speaker, metrics of the training
    base: str  # as others find it
    config: Config
    data: dict  # empty if the run's data is gone, or is not what the adapter was trained on
    languages: list[str]  # two letters each; empty if unknown
    consent: consent.Consent | None
    verdict: Verdict | None  # of the comparison, if there is one of this adapter
    rows: list[dict]  # its clips
    arm: str  # of the comparison: the one that speaks as the export does
    comparison: Path  # folder of the files that the rows name
    sampling: dict  # settings of the comparison


def summarize(run: Run, base: str, language: str = "", strength: float = 1.0) -> RunSummary:
    """Gather what the run still holds about its adapter; what is missing or belongs to another is left out, and named."""
    if language and not re.fullmatch("[a-z]{2,3}", language):
        raise KitError(f"language is {language[:20]!r}; give its two letters, such as en or de.")
    metadata = lora.read_metadata(run.adapter)
    if reason := consent_problem(run, metadata):
        print(reason)
    decision, rows = _comparison(run)
    compared = read_inputs(run.comparison) if rows else {}
    data = summarize_data(run, metadata)
    languages = [language] if language else data.get("language", "").split(", ")
    return RunSummary(run.name, metadata, display_name(base), read_config(run.adapter / CONFIG_FILE), data,
                      [*filter(None, languages)], None if reason else consent.for_run(run), decision, rows,
                      "finetuned" if strength == compared.get("strength", 1.0) else f"finetuned:strength={strength:g}",
                      run.comparison, {name: compared[name] for name in (*vars(Sampling()), "strength") if name in compared})


def display_name(base: str) -> str:
    """A hub id as it is; of a folder its name without the path, which is of this machine."""
    return Path(base).name if Path(base).expanduser().exists() or Path(base).is_absolute() else base


def consent_problem(run: Run, metadata: dict) -> str:
    """Why no recorded consent covers what the adapter was trained on, and what to do; empty if one does."""
    if (run.data / manifest.MANIFEST).is_file() and (reason := data_problem(run, metadata)):
        return f"Consent cannot be checked: {reason}. Train again from this data, or move {run.data} away."
    if reason := consent.problem(run):
        return reason
    record = consent.for_run(run)
    if metadata.get("recordings", "") not in ("", record.sha256):
        return (f"{run.adapter} was trained on other recordings than the {record.clips} clips that {record.who} consented "
                f"to on {record.when[:10]}. Train again from those, in another run.")
    return ""


def data_problem(run: Run, metadata: dict) -> str:
    """Why the run's data cannot be shown to be what the adapter was trained on; empty if it is."""
    if not (run.data / manifest.MANIFEST).is_file() or not (run.codes / cache.INDEX).is_file():
        return f"{run.data} or {run.codes} is gone"
    if not cache.matches_data(run) or cache.digest(run.codes) != metadata.get("codes"):
        return f"{run.data} or {run.codes} is not what {run.adapter} was trained on"
    return ""


def summarize_data(run: Run, metadata: dict) -> dict:
    """Source and amount of the training data."""
    if reason := data_problem(run, metadata):
        print(f"{reason}: the card has no data section.")
        return {}
    utterances = manifest.read(run.data)
    source, languages = read_inputs(run.data).get("source", ""), ""
    if Path(source).parts[-2:] == run.reviewed.parts[-2:]:  # by its name: the run may have been made elsewhere
        source, languages = "recordings", ", ".join(ingest.languages(run))
    amounts = {}
    for name, split in (("training", TRAIN), ("held out for evaluation", HELD_OUT), ("excluded, next to these", EXCLUDED)):
        seconds = [utterance.seconds for utterance in utterances if utterance.split == split]
        amounts[name] = f"{len(seconds)} clips, {sum(seconds) / 60:.1f} minutes" if seconds else ""
    return {"source": display_name(source), "transcribed by": ingest.asr_models(run).get("asr_model", ""),
            "language": languages,
            "sessions": len({utterance.session for utterance in utterances}), **amounts}


def _comparison(run: Run) -> tuple[Verdict | None, list[dict]]:
    """Verdict and rows of the run's comparison, if it is one of the adapter as it is now."""
    rows = synthesis.finished_rows(run.comparison)
    if not rows:
        print(f"{run.comparison} holds no comparison: the card has no verdict and no samples. Make one first: tts-kit "
              f"compare --run {run.name}")
        return None, []
    if read_inputs(run.comparison).get("adapter_weights") != lora.fingerprint(run.adapter):
        print(f"{run.comparison} compared another adapter than {run.adapter} holds now: the card leaves it out. Move it "
              "away and compare again.")
        return None, []
    decision, responses = verdict.decide(rows), run.comparison / compare.RESPONSES_FILE
    if decision.headline == verdict.UNMEASURED:  # which also says how to install metric models
        decision = dataclasses.replace(decision, headline="Whether fine-tuning helped was not measured.")
    if responses.is_file():
        results = read_json(responses, "Read the responses again: tts-kit compare --responses.")
        decision = dataclasses.replace(decision, details=[*decision.details, *listening_test.describe(results)])
    return decision, rows


def write(summary: RunSummary, folder: Path, location: str, license_name: str, kind: str = "adapter",
          watermarked: bool = True) -> None:
    """Write the card and the clips it plays; `location` is where others find the folder."""
    samples = _write_samples(summary, folder, watermarked)
    base, decision, revision = markdown(summary.base), summary.verdict, summary.metadata["revision"]
    subject = f"a voice, as an adapter (LoRA) for {base}" if kind == "adapter" else f"{base} with a voice merged in"
    headline = f"\n\n**{markdown(decision.headline)}**" if decision and decision.headline else ""
    is_found = hub.is_repo_id(summary.base) or summary.base == TINY_CSM.name
    usage = string.Template(Path(__file__).with_name(f"usage_{kind}.txt").read_text(encoding="utf-8")).substitute(
        shell_location=shlex.quote(location),
        base_option="" if is_found else f" --base {shlex.quote(f'/path/to/{summary.base}')}",
        # strings in the programs are quoted by json, whose strings are Python's
        location=json.dumps(location), base=json.dumps(summary.base), speaker=json.dumps(str(summary.metadata["speaker"])),
        revision=f", revision={json.dumps(revision)}" if revision else "", space=" " * summary.config.prefix_space)
    sections = {"": f"Text-to-speech: {subject}. Made with tts_kit.{headline}", "Samples": _samples_table(samples),
                "Evaluation": _evaluation(summary) if decision else "", "Usage": usage.strip(),
                "Training": _training(summary), "Data": _key_value_table(summary.data),
                "Consent": markdown(str(summary.consent)) if summary.consent else "",
                "License": "\n\n".join(license.prohibited_uses(summary.base, license_name))}
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    metadata = front_matter(summary, license_name, kind, samples).to_yaml()
    write_text(folder / FILE, "\n\n".join([f"---\n{metadata}\n---", f"# {markdown(summary.name)}", *texts]) + "\n")


def front_matter(summary: RunSummary, license_name: str, kind: str, samples: Sequence[tuple[str, dict]]) -> ModelCardData:
    """The metadata that the hub reads."""
    on_hub, results = hub.is_repo_id(summary.base), eval_results(summary)
    source = summary.data.get("source", "").partition(":")[0]  # a dataset is named with its split
    widget = [{"text": text, "output": {"url": files["finetuned"]}} for text, files in samples if "finetuned" in files]
    return ModelCardData(
        license=license_name or None, base_model=summary.base if on_hub else None,
        base_model_relation=("adapter" if kind == "adapter" else "finetune") if on_hub else None,
        library_name={"adapter": "peft", "merged": "transformers"}.get(kind), pipeline_tag="text-to-speech",
        language=summary.languages or None, model_name=summary.name if results else None, eval_results=results or None,
        tags=["csm", "tts_kit", *["lora"] * (kind == "adapter")],
        datasets=[source] if hub.is_repo_id(source) else None, widget=widget or None)


def eval_results(summary: RunSummary) -> list[EvalResult]:
    """The metrics that the comparison measured of the exported voice, for the hub's model-index."""
    source = summary.data.get("source", "")
    dataset = source.partition(":")[0]
    estimates = summary.verdict.figures.get(summary.arm, {}) if summary.verdict else {}
    return [EvalResult(task_type="text-to-speech", dataset_name=f"held-out sentences{f' of {source}' * bool(source)}",
                       dataset_type=dataset if hub.is_repo_id(dataset) else "audiofolder", metric_type=metric,
                       metric_name=name, metric_value=round(scale * estimates[metric].value, decimals),
                       metric_config=summary.rows[0].get(scoring.METRICS))
            for metric, (name, scale, decimals) in HUB_METRICS.items() if metric in estimates]


def markdown_table(rows: Iterable[Sequence[object]]) -> str:
    """Rows, the first of them the head, as a Markdown table; its cells are Markdown already."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _write_samples(summary: RunSummary, folder: Path, watermarked: bool) -> list[tuple[str, dict[str, str]]]:
    """Copy clips of the comparison, the lowest seed of each sentence and arm; returns each text with arm -> file."""
    takes = {}
    for row in sorted(summary.rows, key=lambda row: row["seed"] or 0):
        if row["arm"] in SAMPLE_ARMS:
            takes.setdefault((row["sentence"], row["text"]), {}).setdefault(row["arm"], summary.comparison / row["file"])
    samples = []
    for (number, text), paths in sorted(takes.items())[:MAX_SAMPLE_SENTENCES]:
        files = {arm: f"{SAMPLES}/{number:02d}-{arm.replace('+', '-')}.flac" for arm in SAMPLE_ARMS if arm in paths}
        for arm, file in files.items():
            rate = audio.probe(paths[arm])[0]
            wave = audio.read(paths[arm], rate)
            audio.write(folder / file, watermark.apply(wave, rate) if watermarked else wave, rate)
        samples.append((text, files))
    return samples


def _samples_table(samples: Sequence[tuple[str, dict[str, str]]]) -> str:
    arms = [arm for arm in SAMPLE_ARMS if any(arm in files for _, files in samples)]
    rows = [[markdown(text), *(f'<audio controls preload="none" src="{files[arm]}"></audio> [file]({files[arm]})'
                               if arm in files else "" for arm in arms)] for text, files in samples]
    return markdown_table([["", *(ARMS[arm].short_name for arm in arms)], *rows]) if rows else ""


def _evaluation(summary: RunSummary) -> str:
    texts = ["\n".join(f"- {markdown(detail)}" for detail in summary.verdict.details)]
    if metric_models := summary.rows[0].get(scoring.METRICS):
        settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in summary.sampling.items())
        texts += [markdown_table([[markdown(cell) for cell in row] for row in scoring.table(summary.verdict.figures)]),
                  f"Metric models: {markdown(metric_models)}. Generated with {settings}."]
    return "\n\n".join(filter(None, texts))


def _training(summary: RunSummary) -> str:
    config, metrics = summary.config, summary.metadata.get("metrics", {})
    before, after = metrics.get("before", {}), metrics.get("after", {})
    losses = {f"held-out {part} loss": f"{before[name]:.3f} -> {after[name]:.3f}" for part in ("backbone", "depth")
              if (name := f"eval_{part}_loss") in before and name in after}
    return _key_value_table({
        "LoRA rank, alpha": f"{config.rank}, {config.alpha:g}", "LoRA targets": config.lora_targets,
        "steps": metrics.get("selected_step", config.steps), "epochs": metrics.get("epochs"),
        "learning rate": f"{config.learning_rate:g}", **losses,
        "recommended settings": (summary.metadata.get("recommended") or {}).get("reason"), "machine": metrics.get("machine"),
        "versions": ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items()),
        "base weights": summary.metadata["base_fingerprint"], "base revision": summary.metadata["revision"]})


def _key_value_table(values: dict) -> str:
    """Names and values as a Markdown table, without empty ones; empty itself without values."""
    rows = [(name, markdown(value)) for name, value in values.items() if value not in (None, "", 0)]
    return markdown_table([("", ""), *rows]) if rows else ""
