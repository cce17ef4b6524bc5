"""The export of a voice: as an adapter or merged, with its model card, to a folder or to the hub, or refused."""

import ast
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import sample_clips
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from test_generation_engine import GREEDY
from test_speech_voice import change, codes, make_adapter

from tts_kit import cli, device, pipeline
from tts_kit.comparison import synthesis
from tts_kit.config import Config
from tts_kit.data import consent, ingest, segment, transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.export import card, release
from tts_kit.hub import RELEASE_FILE
from tts_kit.io import read_json, read_rows, write_json, write_rows
from tts_kit.model import license, load, lora
from tts_kit.run import TINY_CSM, Run
from tts_kit.speech import speak
from tts_kit.speech.voice import load_voice

CPU = device.choose("cpu", "float32")
SPEAKER = "3"


@pytest.fixture(scope="module")
def exported_run(spread_toy, tmp_path_factory):
    """A complete run: data, codes, an adapter, a comparison without metric models, and consent."""
    root = tmp_path_factory.mktemp("release") / "runs"
    source = root / "source"
    sample_clips.copy(source, [*range(1, 7), *range(8, 11)])
    config = Config(base=spread_toy, rank=4, alpha=8, steps=2, warmup_steps=0, learning_rate=0.05, tokens_per_batch=400,
                    eval_steps=2, save_steps=2, sample_steps=0)
    run = Run("emma", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_KIT_METRICS", "none")
        pipeline.run_all(source, config, run, CPU, sentences=2, seeds=(1,))
    consent.record(run, "Kokoro-82M", "synthetic", "No person spoke these clips.")
    return run


@pytest.fixture
def run_copy(exported_run, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(exported_run.folder, tmp_path / "runs" / "emma")
    return Run("emma", tmp_path / "runs")


@pytest.mark.slow
def test_merged_speaks_the_same_in_plain_transformers(tmp_path):
    """Mistake: merged weights of another strength, a random audio table, or keys that only the kit knows; or the card's
    program does not run."""
    run = Run("tiny", tmp_path / "runs")
    # the bundled base: an untrained one generates ids that are no codes, which transformers does not suppress
    make_adapter(str(TINY_CSM), run.adapter, 1, scale=0.005)
    out = release.export(run, merge=True, location=str(run.folder / "release" / "merged"))
    with safe_open(out / "model.safetensors", "pt") as file:
        tables = [file.get_tensor(name) for name in (load.BACKBONE_TABLE, load.DEPTH_TABLE)]
    assert torch.equal(*tables)
    snippet = re.search(r"```python\n(.*?)```", (out / card.FILE).read_text(encoding="utf-8"), re.DOTALL).group(1)
    script = tmp_path / "plain.py"
    script.write_text(snippet + (
        "import json, sys\nassert 'tts_kit' not in sys.modules\n"
        "temperatures = [model.generation_config.temperature, model.depth_decoder.generation_config.temperature]\n"
        "codes = model.generate(**inputs, do_sample=False, depth_decoder_do_sample=False, max_new_tokens=40)\n"
        "print(json.dumps([inputs['input_ids'][0].tolist(), codes[0].tolist(), temperatures]))\n"))
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    ids, frames, temperatures = json.loads(process.stdout.splitlines()[-1])
    spoken = soundfile.info(tmp_path / "speech.wav")
    assert spoken.duration > 0.5 and spoken.samplerate == 16_000
    for source in (run.adapter, str(out)):
        voice = load_voice(CPU, source)
        assert [voice.sampling.temperature, voice.sampling.depth_temperature] == temperatures
        prompt, _ = speak.build_prompt(voice, speak.Request("It is raining in Oslo again."), [])
        with voice.acquire_engine() as engine:
            generation, = engine.generate([prompt], GREEDY, [0], [40])
        with voice.acquire_engine(finetuned=False) as engine:
            base, = engine.generate([prompt], GREEDY, [0], [40])
        assert prompt.input_ids.tolist() == ids and len(generation.codes) > 10
        assert generation.codes.tolist() == frames[:len(generation.codes)]
        assert (base.codes.tolist() != generation.codes.tolist()) == voice.is_finetuned


def test_the_program_for_an_adapter_speaks_the_same(tmp_path, monkeypatch):
    """Mistake: the card's program does not run with PEFT alone, or speaks as the base."""
    run = Run("tiny", tmp_path / "runs")
    make_adapter(str(TINY_CSM), run.adapter, 1, scale=0.005)
    out = release.export(run, location=str(run.folder / "release" / "adapter"))
    program = re.search(r"```python\n(.*?)```", (out / card.FILE).read_text(encoding="utf-8"), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    # in float32 as here; transformers would use the file's 16 bits
    namespace = {}
    exec(program.replace('"tiny-csm")\nmodel', f'{str(TINY_CSM)!r}, dtype="float32")\nmodel').replace(
        '"tiny-csm"', repr(str(TINY_CSM))), namespace)
    assert soundfile.info(tmp_path / "speech.wav").duration > 0.5
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 20}
    frames = namespace["model"].generate(**namespace["inputs"], **greedy)[0].tolist()
    voice = load_voice(CPU, run.adapter)
    prompt, _ = speak.build_prompt(voice, speak.Request("It is raining in Oslo again."), [])
    with voice.acquire_engine() as engine:
        generation, = engine.generate([prompt], GREEDY, [0], [20])
    assert generation.codes.tolist() == frames[:len(generation.codes)] and len(generation.codes) > 10


def test_merged_is_loaded_like_any_voice(exported_run, run_copy, tmp_path):
    """Mistake: a merged voice is sampled with the base's settings, not with those that are recommended for the adapter, or
    with another speaker id."""
    change(run_copy.adapter, "config.json", temperature=0.9, depth_temperature=0.0, top_k=7)
    change(run_copy.adapter, lora.METADATA_FILE, speaker=SPEAKER, recommended={
        "settings": {"temperature": 0.3, "strength": 0.5, "guidance": 2}, "reason": ""})
    out = release.export(run_copy, merge=True, watermarked=False)
    voice = load_voice(CPU, out)
    assert voice.speaker == SPEAKER and not voice.is_finetuned
    assert (voice.sampling.temperature, voice.sampling.top_k) == (0.3, 7)
    assert read_json(out / "generation_config.json", "")["depth_decoder_do_sample"] is False
    with pytest.raises(KitError, match="is a complete model.*Leave --base out"):
        load_voice(CPU, out, base="sesame/csm-1b")
    assert voice.sampling == load_voice(CPU, run_copy.adapter).sampling and voice.sampling.guidance == 2
    assert read_json(out / RELEASE_FILE, "")["strength"] == 0.5 and codes(voice) == codes(load_voice(CPU, run_copy.adapter))


def test_strength_and_dtype_are_merged_in(exported_run, spread_toy, tmp_path):
    """Mistake: the strength is lost in the export, or 16 bits reach the codec and change its codes."""
    out = release.export(exported_run, tmp_path / "merged", merge=True, strength=0.0, dtype="bfloat16", watermarked=False)
    with (safe_open(out / "model.safetensors", "pt") as file,
          safe_open(Path(spread_toy) / "model.safetensors", "pt") as plain):
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            assert weight.dtype == (torch.float32 if name.startswith("codec_model") else torch.bfloat16), name
            if name in plain.keys():  # noqa: SIM118
                assert torch.equal(weight, plain.get_tensor(name).to(weight.dtype)), name
    assert load.load_base(str(out), CPU).codec.fingerprint() == load.load_base(spread_toy, CPU).codec.fingerprint()
    with pytest.raises(KitError, match="Give --merged too"):
        release.export(exported_run, tmp_path / "other", strength=0.5)


def test_an_exported_adapter_is_complete(exported_run, spread_toy, tmp_path):
    """Mistake: a file is missing that others need, or paths of this machine are in it."""
    out = release.export(exported_run, tmp_path / "out", watermarked=False)
    assert {path.name for path in out.iterdir()} == {
        lora.WEIGHTS_FILE, lora.CONFIG_FILE, lora.METADATA_FILE, "config.json", "data.json", "release.json", consent.FILE,
        card.FILE, card.SAMPLES}
    for path in (path for path in out.iterdir() if path.suffix in (".json", ".md")):
        assert str(tmp_path) not in path.read_text() and str(Path(spread_toy).parent) not in path.read_text(), path
    with pytest.raises(KitError, match="needs the base it was trained for, spread.*give --base"):
        load_voice(CPU, out)
    assert codes(load_voice(CPU, out, base=spread_toy)) == codes(load_voice(CPU, exported_run.adapter))
    data = read_json(out / "data.json", "")
    counts = [int(data[split].split()[0]) for split in ("training", "held out for evaluation", "excluded, next to these")
              if data[split]]
    assert data["source"] == "source" and sum(counts) == 9
    assert read_json(out / lora.METADATA_FILE, "")["metrics"]["after"]


def test_the_card_is_valid_and_plays_its_samples(exported_run, tmp_path):
    """Mistake: front matter that the hub refuses, players without audio, or the person's own recordings in public."""
    out = release.export(exported_run, tmp_path / "out", watermarked=False)
    read = ModelCard.load(out / card.FILE)
    assert read.data.library_name == "peft" and read.data.pipeline_tag == "text-to-speech" and "lora" in read.data.tags
    played = re.findall(r'src="(.*?)"', read.text)
    assert len(played) == 2 * len(card.SAMPLE_ARMS) and all((out / file).stat().st_size > 1000 for file in played)
    assert {path.name for path in (out / card.SAMPLES).iterdir()} == {Path(file).name for file in played}
    assert not any("ground_truth" in file or "codec" in file for file in played)
    for widget in read.data.widget:
        assert (out / widget["output"]["url"]).is_file() and widget["text"]
    headings = re.findall(r"^## (.*)$", read.text, re.MULTILINE)
    assert headings == ["Samples", "Usage", "Training", "Data", "Consent", "License"]
    assert "Kokoro-82M" in read.text
    # and no advice for the author
    assert "**Whether fine-tuning helped was not measured.**" in read.text


def test_scores_are_on_the_card(run_copy):
    """Mistake: scores are left out, or a hub dataset is not in the card's metadata."""
    rows = read_rows(run_copy.comparison / synthesis.SCORES)
    scores = {scoring.METRICS: "Whisper and others", "ref_words": 8, "word_errors": 2, "sim": 0.5, "mos": 3.0}
    write_rows(run_copy.comparison / synthesis.SCORES, [row | scores for row in rows])
    change(run_copy.data, "inputs.json", source="me/clips:train")
    read = ModelCard.load(release.export(run_copy, watermarked=False) / card.FILE)
    for text in ("## Evaluation", "| finetuned | 25.0% |", "Metric models: Whisper and others."):
        assert text in read.text
    assert read.data.datasets == ["me/clips"] and "| source | me/clips:train |" in read.text


def test_the_hub_shows_the_metrics_of_the_exported_voice(run_copy):
    """Mistake: results only in the text, where the hub finds none; a WER as a fraction; metrics of another arm."""
    rows = read_rows(run_copy.comparison / synthesis.SCORES)
    measured = {scoring.METRICS: "Whisper and others", "ref_words": 8, "sim": 0.5, "mos": 3.0}
    write_rows(run_copy.comparison / synthesis.SCORES, [
        row | measured | {"word_errors": 2 if row["arm"] == "finetuned" else 8} for row in rows])
    change(run_copy.data, "inputs.json", source="me/clips:train")
    front = ModelCard.load(release.export(run_copy, watermarked=False) / card.FILE).data
    assert {result.metric_name: result.metric_value for result in front.eval_results} == {
        "WER, %": 25.0, "SIM": 0.5, "MOS": 3.0}
    for result in front.eval_results:
        assert (result.task_type, result.dataset_type, result.metric_config) == (
            "text-to-speech", "me/clips", "Whisper and others")
    weaker = card.summarize(run_copy, "sesame/csm-1b", strength=0.5)
    assert card.eval_results(weaker) == [] and card.front_matter(weaker, "", True, []).eval_results is None


def test_the_language_is_that_of_the_transcripts_or_as_given(run_copy, monkeypatch):
    """Mistake: no language on the card, so that no search finds the voice; or English where nothing is known."""
    assert card.summarize(run_copy, "sesame/csm-1b").languages == []
    change(run_copy.data, "inputs.json", source=str(run_copy.reviewed))
    for name, language in (("a", "nb"), ("b", "en"), ("c", "nb"), ("d", "")):
        folder = run_copy.segments / name
        write_rows(folder / segment.SEGMENTS, [])
        transcript = transcribe.Transcript("1.flac", "Hei.", "Hei.", 0.9, language)
        write_rows(folder / transcribe.transcripts_file("base"), [dataclasses.asdict(transcript)])
    write_json(run_copy.segments / ingest.ASR_MODELS, {"asr_model": "base", "verify_asr_model": ""})
    text = release.export(run_copy, watermarked=False) / card.FILE
    assert ModelCard.load(text).data.language == ["en", "nb"] and "| language | en, nb |" in text.read_text()
    monkeypatch.chdir(run_copy.folder.parent.parent)
    cli.main(["export", "--run", "emma", "--no-watermark", "--language", "de"])
    assert ModelCard.load(text).data.language == ["de"]
    with pytest.raises(KitError, match="language is 'German'; give its two letters"):
        release.export(run_copy, watermarked=False, language="German")


def test_a_comparison_without_clips_is_left_out(run_copy, capsys):
    """Mistake: a traceback where the clips were deleted to save space."""
    shutil.rmtree(run_copy.comparison / "clips")
    out = release.export(run_copy, watermarked=False)
    assert "holds no comparison" in capsys.readouterr().out and "## Samples" not in (out / card.FILE).read_text()


def test_programs_on_the_card_escape_names(run_copy, tmp_path):
    """Mistake: the name of a speaker or a folder ends a string literal, and runs with the program."""
    hostile = 'a"]); print("```") #'
    change(run_copy.adapter, lora.METADATA_FILE, speaker=hostile, revision=hostile)
    out = release.export(run_copy, tmp_path / "my \"voice's", watermarked=False)
    text = (out / card.FILE).read_text(encoding="utf-8")
    shell, program = (re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE).group(1)
                      for language in ("sh", "python"))
    strings = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    assert strings.count(hostile) == 3 and out.name in strings
    assert out.name in shlex.split(shell)


def test_the_card_has_no_empty_sections(run_copy, capsys):
    """Mistake: headings without content, or scores of other clips and of another adapter."""
    shutil.rmtree(run_copy.data)
    (run_copy.folder / consent.FILE).unlink()
    (run_copy.adapter / consent.FILE).unlink(missing_ok=True)
    settings = run_copy.comparison / "inputs.json"
    write_json(settings, read_json(settings, "") | {"adapter_weights": "another"})
    out = release.export(run_copy, watermarked=False)
    output = capsys.readouterr().out
    text = (out / card.FILE).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Usage", "Training", "License"]
    assert "compared another adapter" in output and "no data section" in output and "No consent" in output
    assert not re.search(r"^(#.*\n\s*)+(#|\Z)", text.split("---")[-1], re.MULTILINE)
    assert not (out / "data.json").exists() and not (out / card.SAMPLES).exists()


def test_texts_are_escaped_on_the_card(run_copy):
    """Mistake: a sentence or a statement adds a script, a table or a heading."""
    rows = read_rows(run_copy.comparison / synthesis.SCORES)
    hostile = "<script>x</script> | a [b](c)\n# d `e` --- é"
    write_rows(run_copy.comparison / synthesis.SCORES, [row | {"text": hostile} for row in rows])
    consent.record(run_copy, "A <b>", "own", hostile)
    out = release.export(run_copy, watermarked=False)
    read = ModelCard.load(out / card.FILE)
    assert "<script" not in read.text and "\n# d" not in read.text and "[b](" not in read.text.replace(r"\[b\]", "")
    assert read.data.widget[0]["text"] == hostile and "é" in read.text


def test_the_card_names_its_base_for_the_hub(exported_run):
    """Mistake: the license terms of the base are left out, or a local folder is named as a hub model."""
    summary = card.summarize(exported_run, "sesame/csm-1b")
    front_matter = card.front_matter(summary, "apache-2.0", kind="merged", samples=[])
    assert front_matter.base_model == "sesame/csm-1b" and front_matter.base_model_relation == "finetune"
    assert front_matter.license == "apache-2.0"
    assert card.front_matter(card.summarize(exported_run, exported_run.folder), "", "adapter", []).base_model is None
    assert any("impersonation" in use for use in license.prohibited_uses("sesame/csm-1b", "apache-2.0"))
    assert license.license_of("tiny-csm", str(TINY_CSM)) == "apache-2.0"


def test_samples_of_the_card_are_watermarked(exported_run, tmp_path):
    """Mistake: exported speech without a watermark."""
    watermark = pytest.importorskip("tts_kit.watermark")
    try:
        watermark.network()
    except KitError as error:
        pytest.skip(f"the watermark cannot be applied here: {error}")
    marked = tmp_path / "out"
    release.export(exported_run, marked)
    plain = release.export(exported_run, tmp_path / "plain", watermarked=False)
    for path in sorted((marked / card.SAMPLES).iterdir()):
        assert path.read_bytes() != (plain / card.SAMPLES / path.name).read_bytes()


def test_an_export_replaces_only_exports(exported_run, tmp_path):
    """Mistake: a user's folder, or the run's own adapter, is deleted by an export."""
    for folder in (tmp_path / "mine", exported_run.adapter):
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("years of work")
        with pytest.raises(KitError, match="holds something else"):
            release.export(exported_run, folder)
        assert (folder / "README.md").read_text() == "years of work"
    (exported_run.adapter / "README.md").unlink()
    release.export(exported_run, tmp_path / "out", watermarked=False)
    change(tmp_path / "out", RELEASE_FILE, voice="anna")
    with pytest.raises(KitError, match="holds the voice anna as adapter"):
        release.export(exported_run, tmp_path / "out", watermarked=False)
    change(tmp_path / "out", RELEASE_FILE, voice="emma")
    with pytest.raises(KitError, match="by emma as merged"):
        release.export(exported_run, tmp_path / "out", merge=True, watermarked=False)
    release.export(exported_run, tmp_path / "out", watermarked=False)


def test_a_failed_export_changes_nothing(exported_run, tmp_path, monkeypatch):
    """Mistake: a folder that is half old and half new, or half written where there was none."""
    out = release.export(exported_run, tmp_path / "out", watermarked=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(card, "write", lambda *_: 1 / 0)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            release.export(exported_run, folder, watermarked=False)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_exports(run_copy, monkeypatch, capsys):
    """Mistake: the command does something else than the function it calls."""
    monkeypatch.chdir(run_copy.folder.parent.parent)
    assert cli.main(["export", "--run", "emma", "--no-watermark"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/emma/release/adapter"
    # the base is a folder of this machine
    assert "--adapter runs/emma/release/adapter --base /path/to/spread\n" in Path(
        "runs/emma/release/adapter/README.md").read_text()
    assert cli.main(["export", "--run", "nobody"]) == 1
    assert "nothing was trained there yet" in capsys.readouterr().err


def test_a_voice_without_an_adapter_has_no_strength(spread_toy):
    """Mistake: a strength without effect is accepted silently."""
    with pytest.raises(KitError, match="strength is 0.5.*without an adapter"):
        load_voice(CPU, base=spread_toy).set_strength(0.5)


def test_the_command_applies_the_strength(run_copy, monkeypatch, capsys):
    """Mistake: the strength cannot be set, or has no effect."""
    monkeypatch.chdir(run_copy.folder.parent.parent)
    arguments = ["speak", "Hello there.", "--run", "emma", "--device", "cpu", "--no-watermark"]
    audio_of = {}
    for name, options in (("as trained", []), ("off", ["--strength", "0"]), ("base", ["--no-adapter"]),
                          ("strong", ["--strength", "3"])):
        assert cli.main([*arguments, "--out", "speech.wav", *options]) == 0
        audio_of[name] = Path("speech.wav").read_bytes()
    assert audio_of["off"] == audio_of["base"] and len({*audio_of.values()}) == 3
    change(run_copy.adapter, lora.METADATA_FILE, recommended={"settings": {"strength": 3, "guidance": 2.0}})
    for name, options in (("strong", ["--guidance", "1"]), ("as trained", ["--guidance", "1", "--strength", "1"])):
        assert cli.main([*arguments, "--out", "speech.wav", *options]) == 0
        assert Path("speech.wav").read_bytes() == audio_of[name], "an option wins over what is recommended"
    assert cli.main([*arguments, "--out", "speech.wav", "--strength", "3"]) == 0
    assert Path("speech.wav").read_bytes() not in audio_of.values()
    assert cli.main([*arguments, "--out", "speech.wav", "--guidance", "1"]) == 0
    assert cli.main([*arguments, "--out", "speech.wav", "--no-adapter", "--strength", "2"]) == 1
    assert "--no-adapter leaves it out" in capsys.readouterr().err and Path("speech.wav").read_bytes() == audio_of["strong"]


def test_a_push_is_private_and_public_only_with_consent(run_copy, tmp_path):
    """Mistake: a voice is public by default; or files of the last push, such as a withdrawn consent, stay on the hub."""
    folder = release.export(run_copy, watermarked=False)
    with hub.push_hub(tmp_path / "hub") as server:
        assert release.push(run_copy, folder, "me/voice") == f"{server.url}/me/voice"
        assert '"visibility":"private"' in server.post_bodies[0].replace(" ", "")
        pushed = {path.relative_to(tmp_path / "hub" / "voice").as_posix(): path for path in server.files("voice")}
        exported = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in pushed.items()} == {
            name: path.read_bytes() for name, path in exported.items()} and consent.FILE in pushed
        (run_copy.folder / consent.FILE).unlink()
        (run_copy.adapter / consent.FILE).unlink(missing_ok=True)
        release.push(run_copy, release.export(run_copy, merge=True, watermarked=False), "me/voice")
        names = {path.name for path in server.files("voice")}
        assert "model.safetensors" in names and not names & {consent.FILE, lora.CONFIG_FILE, lora.WEIGHTS_FILE}
        consent.record(run_copy, "Anna", "own", "I agree.")
        rows = (run_copy.codes / "index.jsonl").read_text(encoding="utf-8")
        (run_copy.codes / "index.jsonl").write_text(rows.replace('"text": "', '"text": "Not '), encoding="utf-8")
        count = len(server.post_bodies)
        with pytest.raises(KitError, match="public only with consent. Consent cannot be checked: .* was trained on"):
            release.push(run_copy, folder, "me/voice", public=True)
        (run_copy.codes / "index.jsonl").write_text(rows, encoding="utf-8")
        (run_copy.folder / consent.FILE).unlink()
        (run_copy.adapter / consent.FILE).unlink()
        with pytest.raises(KitError, match="public only with consent"):
            release.push(run_copy, folder, "me/voice", public=True)
        with pytest.raises(KitError, match="is not a hub repository id"):
            release.push(run_copy, folder, "no name at all/..")
        assert len(server.post_bodies) == count


def replace_a_clip(run: Run) -> None:
    """Prepare the same text by another speaker again, while the codes are still those of the first one."""
    rows = read_rows(run.data / "manifest.jsonl")
    write_rows(run.data / "manifest.jsonl", [rows[0] | {"sha256": "0" * 64}, *rows[1:]])


def replace_all_clips(run: Run) -> None:
    """Replace the recordings by those of somebody else, who consents, and then delete them."""
    replace_a_clip(run)
    consent.record(run, "Ben", "own", "I agree.")
    shutil.rmtree(run.data)


@pytest.mark.parametrize("replace, message", [(replace_a_clip, "is not what .* was trained on"),
                                              (replace_all_clips, "other recordings than")])
def test_consent_of_another_speaker_is_refused(run_copy, tmp_path, replace, message):
    """Mistake: somebody consents, and the voice of another person becomes public."""
    replace(run_copy)
    folder = release.export(run_copy, watermarked=False)
    assert not (folder / consent.FILE).exists() and "Ben" not in (folder / card.FILE).read_text(encoding="utf-8")
    with hub.push_hub(tmp_path / "hub") as server, pytest.raises(KitError, match=f"public only with consent.*{message}"):
        release.push(run_copy, folder, "me/voice", public=True)
    assert not server.post_bodies


def test_an_export_from_before_the_consent_stays_private(run_copy, tmp_path):
    """Mistake: a folder without consent becomes public because the run has one by now."""
    folder = release.export(run_copy, watermarked=False)
    (folder / consent.FILE).unlink()
    with hub.push_hub(tmp_path / "hub") as server:
        with pytest.raises(KitError, match="exported without this run's. Export again"):
            release.push(run_copy, folder, "me/voice", public=True)
    assert not server.post_bodies


def test_a_push_replaces_only_voices_and_keeps_visibility(run_copy, tmp_path, capsys):
    """Mistake: another model on the hub is deleted, or a private voice is pushed to a public repository."""
    folder = release.export(run_copy, watermarked=False)
    with hub.push_hub(tmp_path / "hub") as server:
        (tmp_path / "hub" / "thesis").mkdir(parents=True)
        (tmp_path / "hub" / "thesis" / "model.safetensors").write_text("years of work")
        with pytest.raises(KitError, match=r"holds something else \(model.safetensors, and no release.json\)"):
            release.push(run_copy, folder, "me/thesis")
        assert [path.read_text() for path in server.files("thesis")] == ["years of work"]
        (tmp_path / "hub" / "shop").mkdir()
        (tmp_path / "hub" / "shop" / "README.md").write_text("made by hand, for everybody")
        server.public.add("shop")
        with pytest.raises(KitError, match="exists and is public"):
            release.push(run_copy, folder, "me/shop")
        assert len(server.files("shop")) == 1
        release.push(run_copy, folder, "me/shop", public=True)
        assert len(server.files("shop")) > 5 and "settings on the hub" not in capsys.readouterr().out
        release.push(run_copy, folder, "me/new")
        release.push(run_copy, folder, "me/new", public=True)
        assert "change its visibility in its settings on the hub" in capsys.readouterr().out


@pytest.mark.parametrize("token, is_refusing, message", [("hf_none", True, "403"), ("", False, "401"),
                                                         ("hf_tru\u2026", False, "codec")])
def test_a_push_that_fails_says_what_to_do(exported_run, tmp_path, token, is_refusing, message):
    """Mistake: a traceback of the hub's library, for a user without a token, with half of one, or without write access."""
    folder = release.export(exported_run, tmp_path / "out", watermarked=False)
    with hub.push_hub(tmp_path / "hub", token) as server:
        server.is_refusing = is_refusing
        with pytest.raises(KitError, match=rf"not be pushed to 'me/voice' \(.*{message}.*stays where it is.*hf auth login"):
            release.push(exported_run, folder, "me/voice")
    with hub.push_hub(tmp_path / "hub") as server:
        server.server_close()
        with pytest.raises(KitError, match="could not be pushed.*the network"):
            release.push(exported_run, folder, "me/voice")


def test_weights_without_one_of_the_two_embedding_tables_are_refused(tmp_path):
    """Mistake: a transformers that saves equal tables once only, so that the other one is random where it is loaded."""
    save_file({load.BACKBONE_TABLE: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(KitError, match=f"does not save {load.DEPTH_TABLE}"):
        release.check_embeddings_saved(tmp_path)
    save_file({load.DEPTH_TABLE: torch.zeros(2, 2)}, tmp_path / "model-2.safetensors")
    release.check_embeddings_saved(tmp_path)
