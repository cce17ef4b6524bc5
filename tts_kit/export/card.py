"""The model card: what the voice is, how it sounds, how it was judged, and what it may be used for; nothing empty."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from tts_kit import audio, hub, watermark
from tts_kit.comparison.arms import ARMS, GENERATED_ARMS
from tts_kit.export.summary import ComparisonSummary, RunSummary
from tts_kit.html import markdown
from tts_kit.model import license

FILE, SAMPLES = "README.md", "samples"
PLAYED, SENTENCES = sorted(GENERATED_ARMS, key=lambda arm: not ARMS[arm].adapter), 4
"""Arms whose clips travel, and of how many sentences; recordings of the person themselves stay at home."""
KIT = """```sh
tts-kit speak "It is raining in Oslo again." --adapter {place}
```"""
# what stands in the programs is quoted by json, whose strings are Python's
WITH_PEFT = """With transformers and PEFT alone (transformers below 5, or 5.21 and later: those between load the base with a
random table):

```python
from peft import PeftModel
from transformers import AutoProcessor, CsmForConditionalGeneration

base = CsmForConditionalGeneration.from_pretrained({base}{revision})
model = PeftModel.from_pretrained(base, {place}).merge_and_unload()
processor = AutoProcessor.from_pretrained({base}{revision})
{speak}```"""
WITH_TRANSFORMERS = """With transformers alone (4.52 or later):

```python
from transformers import AutoProcessor, CsmForConditionalGeneration

model = CsmForConditionalGeneration.from_pretrained({place})
processor = AutoProcessor.from_pretrained({place})
{speak}```"""
SPEAK = """
said = [{{"role": {speaker}, "content": [{{"type": "text", "text": "It is raining in Oslo again."}}]}}]
inputs = processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt")
speech = model.generate(**inputs, output_audio=True)
processor.save_audio(speech, "speech.wav", sampling_rate=model.config.codec_config.sampling_rate)
"""


def write(facts: RunSummary, folder: Path, place: str, licence: str, merged: bool = False, marked: bool = True) -> None:
    """Put the card into a folder, and beside it the clips that it plays; `place` is where others find the folder."""
    players = _players(facts.comparison, folder, marked) if facts.comparison else []
    sections = {"": _said(facts, merged), "Listen": _listen(players), "Judged": _judged(facts.comparison),
                "Use": _use(facts, place, merged), "Training": _training(facts), "Data": _data(facts.data),
                "Consent": markdown(str(facts.consent)) if facts.consent else "",
                "Terms": "\n\n".join(license.prohibited_uses(facts.base, licence))}
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    head = front_matter(facts, licence, merged, players).to_yaml()
    content = "\n\n".join([f"---\n{head}\n---", f"# {markdown(facts.name)}", *texts])
    (folder / FILE).write_text(content + "\n", encoding="utf-8")


def front_matter(facts: RunSummary, licence: str, merged: bool, players: Sequence[tuple]) -> ModelCardData:
    """What the hub files the voice under."""
    on_hub = hub.is_repo_id(facts.base)
    source = facts.data.get("source", "").partition(":")[0]  # a dataset is named with its split
    played = [{"text": text, "output": {"url": file}} for text, files in players for arm, file in files if arm == "finetuned"]
    return ModelCardData(
        license=licence or None, base_model=facts.base if on_hub else None,
        base_model_relation=("finetune" if merged else "adapter") if on_hub else None,
        library_name="transformers" if merged else "peft", pipeline_tag="text-to-speech",
        tags=["csm", "tts_kit", *["lora"] * (not merged)],
        datasets=[source] if hub.is_repo_id(source) else None, widget=played or None)


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows as a Markdown table, the first of them its head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _said(facts: RunSummary, merged: bool) -> str:
    base = markdown(facts.base)
    what = f"{base} with a voice merged in" if merged else f"a voice, as an adapter (LoRA) for {base}"
    verdict = f"\n\n**{markdown(facts.comparison.said[0])}**" if facts.comparison and facts.comparison.said else ""
    return f"Text-to-speech: {what}. Made with tts_kit.{verdict}"


def _players(found: ComparisonSummary, folder: Path, marked: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """Clips copied beside the card, by sentence and arm; of each the take with the lowest seed."""
    takes = {}
    for row in sorted(found.rows, key=lambda row: row["seed"] or 0):
        if row["arm"] in PLAYED:
            takes.setdefault((row["sentence"], row["text"]), {}).setdefault(row["arm"], row["file"])
    players = []
    for (number, text), files in sorted(takes.items())[:SENTENCES]:
        memorized = []
        for arm in (arm for arm in PLAYED if arm in files):
            rate = audio.probe(found.folder / files[arm])[0]
            samples = audio.read(found.folder / files[arm], rate)
            name = f"{SAMPLES}/{number:02d}-{arm.replace('+', '-')}.flac"
            audio.write(folder / name, watermark.apply(samples, rate) if marked else samples, rate)
            memorized.append((arm, name))
        players.append((text, memorized))
    return players


def _listen(players: Sequence[tuple[str, list[tuple[str, str]]]]) -> str:
    arms = [arm for arm in PLAYED if any(arm in dict(files) for _, files in players)]
    rows = [[markdown(text), *(_player(dict(files).get(arm)) for arm in arms)] for text, files in players]
    return table([["", *(ARMS[arm].short_name for arm in arms)], *rows]) if rows else ""


def _player(file: str | None) -> str:
    return f'<audio controls preload="none" src="{file}"></audio> [file]({file})' if file else ""


def _judged(found: ComparisonSummary | None) -> str:
    if not found:
        return ""
    evidence = "\n".join(f"- {markdown(each)}" for each in found.said[1:])
    judges = f"Judges: {markdown(found.judges)}." if found.judges else ""
    figures = table([[markdown(cell) for cell in row] for row in found.table]) if found.table else ""
    return "\n\n".join(each for each in (evidence, figures, judges) if each)


def _use(facts: RunSummary, place: str, merged: bool) -> str:
    speak = SPEAK.format(speaker=json.dumps(str(facts.belongs["speaker"])))
    others = WITH_TRANSFORMERS if merged else WITH_PEFT
    named = f", revision={json.dumps(facts.belongs['revision'])}" if facts.belongs["revision"] else ""
    written = others.format(place=json.dumps(place), base=json.dumps(facts.base), revision=named, speak=speak)
    return f"{KIT.format(place=shlex.quote(place))}\n\n{written}"


def _training(facts: RunSummary) -> str:
    """Figures of the training, as far as the adapter has them."""
    config, metrics = facts.config, facts.belongs.get("metrics", {})
    rows = [("rank, alpha", f"{config.rank}, {config.alpha:g}"), ("what learnt", config.lora_targets),
            ("steps", metrics.get("chosen_step", config.steps)), ("passes over the data", metrics.get("passes")),
            ("learning rate", f"{config.learning_rate:g}"), *_losses(metrics), ("machine", metrics.get("machine")),
            ("versions", ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())),
            ("base weights", facts.belongs["base_fingerprint"]), ("base revision", facts.belongs["revision"])]
    return table([("", ""), *((name, markdown(value)) for name, value in rows if value not in (None, ""))])


def _losses(metrics: dict) -> Iterator[tuple[str, str]]:
    for part in ("backbone", "depth"):
        before, after = (metrics.get(when, {}).get(f"eval_{part}_loss") for when in ("before", "after"))
        if before is not None and after is not None:
            yield f"held-out loss of {part}", f"from {before:.3f} to {after:.3f}"


def _data(data: dict) -> str:
    if not data:
        return ""
    rows = [("from", data["source"]), ("written down by", data.get("written down by"))]
    names = {"train": "learnt", "held_out": "held out, to judge by", "gap": "unused beside held-out ones"}
    rows += [(names[split], f"{each['clips']} clips, {each['minutes']} minutes") for split, each in data["clips"].items()]
    rows += [(name, data.get(name)) for name in data if name.startswith(("recordings", "median", "clips that"))]
    rows += [(f"left out: {reason}", f"{count} clips") for reason, count in data["left out"].items()]
    return table([("", ""), *((name, markdown(value)) for name, value in rows if value not in (None, "", 0))])
