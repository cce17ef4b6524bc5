"""A voice that leaves the house: as an adapter or merged, with its card, in a folder or on the hub, or refused."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from test_generation_engine import GREEDY
from test_speech_voice import change, codes, make_adapter

from tts_kit import cli, device, pipeline
from tts_kit.comparison import synthesis
from tts_kit.config import Config
from tts_kit.data import consent
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.export import adapter, card
from tts_kit.hub import RELEASE_FILE
from tts_kit.io import read_json, read_rows, write_json, write_rows
from tts_kit.model import license, load, lora
from tts_kit.run import SAMPLE_VOICE, TINY_CSM, Run
from tts_kit.speech import speak
from tts_kit.speech.voice import load_voice

CPU = device.choose("cpu", "float32")
SPEAKER = "3"


@pytest.fixture(scope="module")
def told(spread_toy, tmp_path_factory):
    """A run with everything: data, codes, an adapter, a comparison without judges, and consent."""
    root = tmp_path_factory.mktemp("release") / "runs"
    source = root / "source"
    source.mkdir(parents=True)
    rows = (SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    some = [*rows[1:7], *rows[8:11]]
    for row in some:
        shutil.copy(SAMPLE_VOICE / row.split(",")[0], source)
    (source / "metadata.csv").write_text("\n".join([rows[0], *some]) + "\n", encoding="utf-8")
    config = Config(base=spread_toy, rank=4, alpha=8, steps=2, warmup_steps=0, learning_rate=0.05, tokens_per_batch=400,
                    eval_steps=2, save_steps=2, sample_steps=0)
    run = Run("told", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_KIT_METRICS", "none")
        pipeline.run_all(source, config, run, CPU, sentences=2, seeds=(1,))
    consent.record(run, "Kokoro-82M", "synthetic", "No person spoke these clips.")
    return run


@pytest.fixture
def memorized(told, tmp_path):
    """The run to do with as one likes."""
    shutil.copytree(told.folder, tmp_path / "runs" / "told")
    return Run("told", tmp_path / "runs")


def test_merged_speaks_the_same_in_plain_transformers(tmp_path):
    """Mistake: merged weights of another strength, an audio table drawn at random, or keys that only the kit knows; or a
    card whose program does not run."""
    run = Run("tiny", tmp_path / "runs")
    # the bundled base, as an untrained one says words that its codec does not know, which transformers does not mind
    make_adapter(str(TINY_CSM), run.adapter, 1, scale=0.005)
    out = adapter.export(run, merge=True, location=str(run.folder / "release" / "merged"))
    with safe_open(out / "model.safetensors", "pt") as file:
        tables = [file.get_tensor(name) for name in (load.BACKBONE_TABLE, load.DEPTH_TABLE)]
    assert torch.equal(*tables)
    snippet = re.search(r"```python\n(.*?)```", (out / card.FILE).read_text(encoding="utf-8"), re.DOTALL).group(1)
    script = tmp_path / "plain.py"
    script.write_text(snippet + (
        "import json, sys\nassert 'tts_kit' not in sys.modules\n"
        "told = [model.generation_config.temperature, model.depth_decoder.generation_config.temperature]\n"
        "codes = model.generate(**inputs, do_sample=False, depth_decoder_do_sample=False, max_new_tokens=40)\n"
        "print(json.dumps([inputs['input_ids'][0].tolist(), codes[0].tolist(), told]))\n"))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    ids, frames, temperatures = json.loads(ran.stdout.splitlines()[-1])
    spoken = soundfile.info(tmp_path / "speech.wav")
    assert spoken.duration > 0.5 and spoken.samplerate == 16_000
    for place in (run.adapter, str(out)):
        voice = load_voice(CPU, place)
        assert [voice.sampling.temperature, voice.sampling.depth_temperature] == temperatures
        prompt, _ = speak.build_prompt(voice, speak.Request("It is raining in Oslo again."), [])
        with voice.acquire_engine() as engine:
            take, = engine.generate([prompt], GREEDY, [0], [40])
        with voice.acquire_engine(finetuned=False) as engine:
            base, = engine.generate([prompt], GREEDY, [0], [40])
        assert prompt.input_ids.tolist() == ids and take.codes.tolist() == frames[:len(take.codes)] and len(take.codes) > 10
        assert (base.codes.tolist() != take.codes.tolist()) == voice.is_finetuned


def test_the_program_for_an_adapter_speaks_the_same(tmp_path, monkeypatch):
    """Mistake: a card whose program does not run with PEFT alone, or speaks as the base."""
    run = Run("tiny", tmp_path / "runs")
    make_adapter(str(TINY_CSM), run.adapter, 1, scale=0.005)
    out = adapter.export(run, location=str(run.folder / "release" / "adapter"))
    program = re.search(r"```python\n(.*?)```", (out / card.FILE).read_text(encoding="utf-8"), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    # in float32 as here, where transformers would take the 16 bits of the file
    found = {}
    exec(program.replace('"tiny-csm")\nmodel', f'{str(TINY_CSM)!r}, dtype="float32")\nmodel').replace(
        '"tiny-csm"', repr(str(TINY_CSM))), found)
    assert soundfile.info(tmp_path / "speech.wav").duration > 0.5
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 20}
    frames = found["model"].generate(**found["inputs"], **greedy)[0].tolist()
    voice = load_voice(CPU, run.adapter)
    prompt, _ = speak.build_prompt(voice, speak.Request("It is raining in Oslo again."), [])
    with voice.acquire_engine() as engine:
        take, = engine.generate([prompt], GREEDY, [0], [20])
    assert take.codes.tolist() == frames[:len(take.codes)] and len(take.codes) > 10


def test_merged_is_loaded_like_any_voice(told, memorized, tmp_path):
    """Mistake: merged weights are sampled as the base and not as the voice, or speak as somebody else."""
    change(memorized.adapter, "config.json", temperature=0.3, depth_temperature=0.0, top_k=7)
    change(memorized.adapter, lora.METADATA_FILE, speaker=SPEAKER)
    out = adapter.export(memorized, merge=True, watermarked=False)
    voice = load_voice(CPU, out)
    assert voice.speaker == SPEAKER and not voice.is_finetuned
    assert (voice.sampling.temperature, voice.sampling.top_k) == (0.3, 7)
    assert read_json(out / "generation_config.json", "")["depth_decoder_do_sample"] is False
    with pytest.raises(KitError, match="is a complete model.*Leave --base out"):
        load_voice(CPU, out, base="sesame/csm-1b")
    assert voice.sampling == load_voice(CPU, memorized.adapter).sampling


def test_strength_and_precision_are_merged_in(told, spread_toy, tmp_path):
    """Mistake: the slider is forgotten at the door; or 16 bits reach the codec, and its codes are others."""
    out = adapter.export(told, tmp_path / "merged", merge=True, strength=0.0, dtype="bfloat16", watermarked=False)
    with (safe_open(out / "model.safetensors", "pt") as file,
          safe_open(Path(spread_toy) / "model.safetensors", "pt") as plain):
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            assert weight.dtype == (torch.float32 if name.startswith("codec_model") else torch.bfloat16), name
            if name in plain.keys():  # noqa: SIM118
                assert torch.equal(weight, plain.get_tensor(name).to(weight.dtype)), name
    assert load.load_base(str(out), CPU).codec.fingerprint() == load.load_base(spread_toy, CPU).codec.fingerprint()
    with pytest.raises(KitError, match="Give --merged too"):
        adapter.export(told, tmp_path / "other", strength=0.5)


def test_an_exported_adapter_is_the_contract(told, spread_toy, tmp_path):
    """Mistake: something is missing that others need; the names of this machine's folders are not."""
    out = adapter.export(told, tmp_path / "out", watermarked=False)
    assert {path.name for path in out.iterdir()} == {
        lora.WEIGHTS_FILE, lora.CONFIG_FILE, lora.METADATA_FILE, "config.json", "data.json", "release.json", consent.FILE,
        card.FILE, card.SAMPLES}
    for path in (path for path in out.iterdir() if path.suffix in (".json", ".md")):
        assert str(tmp_path) not in path.read_text() and str(Path(spread_toy).parent) not in path.read_text(), path
    with pytest.raises(KitError, match="needs the base it was trained for, spread.*give --base"):
        load_voice(CPU, out)
    assert codes(load_voice(CPU, out, base=spread_toy)) == codes(load_voice(CPU, told.adapter))
    known = read_json(out / "data.json", "")
    counts = [int(known[split].split()[0]) for split in ("training", "held out for evaluation", "excluded, next to these")
              if known[split]]
    assert known["source"] == "source" and sum(counts) == 9
    assert read_json(out / lora.METADATA_FILE, "")["metrics"]["after"]


def test_the_card_is_valid_and_plays_what_is_beside_it(told, tmp_path):
    """Mistake: front matter that the hub refuses, players without sound, or the person's own recordings on the net."""
    out = adapter.export(told, tmp_path / "out", watermarked=False)
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
    # and no advice for whoever made it
    assert "**Whether fine-tuning helped was not measured.**" in read.text


def test_what_judges_said_is_on_the_card(memorized):
    """Mistake: figures that are left out, or a dataset on the hub that the hub is not told of."""
    rows = read_rows(memorized.comparison / synthesis.SCORES)
    judged = {scoring.METRICS: "Whisper and others", "ref_words": 8, "word_errors": 2, "sim": 0.5, "mos": 3.0}
    write_rows(memorized.comparison / synthesis.SCORES, [row | judged for row in rows])
    change(memorized.data, "inputs.json", source="me/clips:train")
    read = ModelCard.load(adapter.export(memorized, watermarked=False) / card.FILE)
    for text in ("## Evaluation", "| finetuned | 25.0% |", "Metric models: Whisper and others."):
        assert text in read.text
    assert read.data.datasets == ["me/clips"] and "| source | me/clips:train |" in read.text


def test_a_comparison_without_clips_is_none(memorized, capsys):
    """Mistake: a traceback where the clips were thrown away to save space."""
    shutil.rmtree(memorized.comparison / "clips")
    out = adapter.export(memorized, watermarked=False)
    assert "holds no comparison" in capsys.readouterr().out and "## Samples" not in (out / card.FILE).read_text()


def test_programs_on_the_card_say_nothing_else(memorized, tmp_path):
    """Mistake: a name of a speaker or a folder that ends a string, and runs with the program."""
    nasty = 'a"]); print("```") #'
    change(memorized.adapter, lora.METADATA_FILE, speaker=nasty, revision=nasty)
    out = adapter.export(memorized, tmp_path / "my \"voice's", watermarked=False)
    text = (out / card.FILE).read_text(encoding="utf-8")
    shell, program = (re.search(rf"^```{tongue}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE).group(1)
                      for tongue in ("sh", "python"))
    said = [each.value for each in ast.walk(ast.parse(program)) if isinstance(each, ast.Constant)]
    assert said.count(nasty) == 3 and out.name in said
    assert shlex.split(shell)[-1] == out.name


def test_nothing_empty_is_on_the_card(memorized, capsys):
    """Mistake: headings over nothing, or figures of other clips and of another adapter."""
    shutil.rmtree(memorized.data)
    (memorized.folder / consent.FILE).unlink()
    (memorized.adapter / consent.FILE).unlink(missing_ok=True)
    settings = memorized.comparison / "inputs.json"
    write_json(settings, read_json(settings, "") | {"adapter_weights": "another"})
    out = adapter.export(memorized, watermarked=False)
    told = capsys.readouterr().out
    text = (out / card.FILE).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Usage", "Training", "License"]
    assert "compared another adapter" in told and "no data section" in told and "No consent" in told
    assert not re.search(r"^(#.*\n\s*)+(#|\Z)", text.split("---")[-1], re.MULTILINE)
    assert not (out / "data.json").exists() and not (out / card.SAMPLES).exists()


def test_words_stay_words_on_the_card(memorized):
    """Mistake: a sentence or a statement that brings a script, a table or a heading along."""
    rows = read_rows(memorized.comparison / synthesis.SCORES)
    nasty = "<script>x</script> | a [b](c)\n# d `e` --- é"
    write_rows(memorized.comparison / synthesis.SCORES, [row | {"text": nasty} for row in rows])
    consent.record(memorized, "A <b>", "own", nasty)
    out = adapter.export(memorized, watermarked=False)
    read = ModelCard.load(out / card.FILE)
    assert "<script" not in read.text and "\n# d" not in read.text and "[b](" not in read.text.replace(r"\[b\]", "")
    assert read.data.widget[0]["text"] == nasty and "é" in read.text


def test_the_hub_files_it_under_its_base(told):
    """Mistake: terms of the base that are not passed on; a folder's name as if it were on the hub."""
    known = card.summarize(told, "sesame/csm-1b")
    head = card.front_matter(known, "apache-2.0", merged=True, samples=[])
    assert (head.base_model, head.base_model_relation, head.license) == ("sesame/csm-1b", "finetune", "apache-2.0")
    assert card.front_matter(card.summarize(told, told.folder), "", False, []).base_model is None
    assert any("impersonation" in each for each in license.prohibited_uses("sesame/csm-1b", "apache-2.0"))
    assert license.license_of("tiny-csm", str(TINY_CSM)) == "apache-2.0"


def test_clips_beside_the_card_are_marked(told, tmp_path):
    """Mistake: speech leaves the house without the mark of a machine."""
    watermark = pytest.importorskip("tts_kit.watermark")
    try:
        watermark.network()
    except KitError as problem:
        pytest.skip(f"the mark cannot be made here: {problem}")
    verbs_out = tmp_path / "out"
    adapter.export(told, verbs_out)
    plain = adapter.export(told, tmp_path / "plain", watermarked=False)
    for path in sorted((verbs_out / card.SAMPLES).iterdir()):
        assert path.read_bytes() != (plain / card.SAMPLES / path.name).read_bytes()


def test_an_export_replaces_only_exports(told, tmp_path):
    """Mistake: a folder of somebody's own, or the run's adapter itself, that is gone after an export."""
    for folder in (tmp_path / "mine", told.adapter):
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("years of work")
        with pytest.raises(KitError, match="holds something else"):
            adapter.export(told, folder)
        assert (folder / "README.md").read_text() == "years of work"
    (told.adapter / "README.md").unlink()
    adapter.export(told, tmp_path / "out", watermarked=False)
    change(tmp_path / "out", RELEASE_FILE, voice="anna")
    with pytest.raises(KitError, match="holds the voice anna as adapter"):
        adapter.export(told, tmp_path / "out", watermarked=False)
    change(tmp_path / "out", RELEASE_FILE, voice="told")
    with pytest.raises(KitError, match="by told as merged"):
        adapter.export(told, tmp_path / "out", merge=True, watermarked=False)
    adapter.export(told, tmp_path / "out", watermarked=False)


def test_an_export_that_fails_leaves_what_was_there(told, tmp_path, monkeypatch):
    """Mistake: a folder that is half old and half new, or half written where there was none."""
    out = adapter.export(told, tmp_path / "out", watermarked=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(adapter.card, "write", lambda *_: 1 / 0)
    for place in (out, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            adapter.export(told, place, watermarked=False)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_verb_exports(memorized, monkeypatch, capsys):
    """Mistake: the command line says something else than the function it calls."""
    monkeypatch.chdir(memorized.folder.parent.parent)
    assert cli.main(["export", "--run", "told", "--no-watermark"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/told/release/adapter"
    assert "--adapter runs/told/release/adapter" in Path("runs/told/release/adapter/README.md").read_text()
    assert cli.main(["export", "--run", "nobody"]) == 1
    assert "nothing was trained there yet" in capsys.readouterr().err


def test_a_voice_without_an_adapter_has_no_strength(spread_toy):
    """Mistake: a strength that nothing heeds is taken without a word."""
    with pytest.raises(KitError, match="strength is 0.5.*without an adapter"):
        load_voice(CPU, base=spread_toy).set_strength(0.5)


def test_the_verb_speaks_as_strongly_as_told(memorized, monkeypatch, capsys):
    """Mistake: the strength that whoever speaks sets cannot be set, or is not heard."""
    monkeypatch.chdir(memorized.folder.parent.parent)
    given = ["speak", "Hello there.", "--run", "told", "--device", "cpu", "--no-watermark"]
    said = {}
    for name, more in (("as trained", []), ("off", ["--strength", "0"]), ("base", ["--no-adapter"]),
                       ("loud", ["--strength", "3"])):
        assert cli.main([*given, "--out", "said.wav", *more]) == 0
        said[name] = Path("said.wav").read_bytes()
    assert said["off"] == said["base"] and len({*said.values()}) == 3
    assert cli.main([*given, "--out", "said.wav", "--no-adapter", "--strength", "2"]) == 1
    assert "--no-adapter leaves it out" in capsys.readouterr().err and Path("said.wav").read_bytes() == said["loud"]


def test_a_push_is_private_and_public_only_with_consent(memorized, tmp_path):
    """Mistake: a voice that everybody has because nobody asked; or files of the last push, such as a consent that was taken
    back, that stay beside the new ones."""
    folder = adapter.export(memorized, watermarked=False)
    with hub.push_hub(tmp_path / "hub") as server:
        assert adapter.push(memorized, folder, "me/voice") == f"{server.url}/me/voice"
        assert '"visibility":"private"' in server.post_bodies[0].replace(" ", "")
        there = {path.relative_to(tmp_path / "hub" / "voice").as_posix(): path for path in server.files("voice")}
        mine = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in there.items()} == {
            name: path.read_bytes() for name, path in mine.items()} and consent.FILE in there
        (memorized.folder / consent.FILE).unlink()
        (memorized.adapter / consent.FILE).unlink(missing_ok=True)
        adapter.push(memorized, adapter.export(memorized, merge=True, watermarked=False), "me/voice")
        left = {path.name for path in server.files("voice")}
        assert "model.safetensors" in left and not left & {consent.FILE, lora.CONFIG_FILE, lora.WEIGHTS_FILE}
        consent.record(memorized, "Anna", "own", "I agree.")
        rows = (memorized.codes / "index.jsonl").read_text(encoding="utf-8")
        (memorized.codes / "index.jsonl").write_text(rows.replace('"text": "', '"text": "Not '), encoding="utf-8")
        sent = len(server.post_bodies)
        with pytest.raises(KitError, match="public only with consent. Consent cannot be checked: .* was trained on"):
            adapter.push(memorized, folder, "me/voice", public=True)
        (memorized.codes / "index.jsonl").write_text(rows, encoding="utf-8")
        (memorized.folder / consent.FILE).unlink()
        (memorized.adapter / consent.FILE).unlink()
        with pytest.raises(KitError, match="public only with consent"):
            adapter.push(memorized, folder, "me/voice", public=True)
        with pytest.raises(KitError, match="is not a hub repository id"):
            adapter.push(memorized, folder, "no name at all/..")
        assert len(server.post_bodies) == sent


def slip_words(run: Run) -> None:
    """The same words by somebody else, prepared again, where the codes are still of the first one."""
    rows = read_rows(run.data / "manifest.jsonl")
    write_rows(run.data / "manifest.jsonl", [rows[0] | {"sha256": "0" * 64}, *rows[1:]])


def slip_all(run: Run) -> None:
    """Another's recordings, to which that one consents, and which are then moved away."""
    slip_words(run)
    consent.record(run, "Ben", "own", "I agree.")
    shutil.rmtree(run.data)


@pytest.mark.parametrize("slip, message", [(slip_words, "is not what .* was trained on"),
                                           (slip_all, "other recordings than")])
def test_no_consent_is_slipped_under_what_was_learnt(memorized, tmp_path, slip, message):
    """Mistake: somebody agrees, and it is another whose voice everybody gets."""
    slip(memorized)
    folder = adapter.export(memorized, watermarked=False)
    assert not (folder / consent.FILE).exists() and "Ben" not in (folder / card.FILE).read_text(encoding="utf-8")
    with hub.push_hub(tmp_path / "hub") as server, pytest.raises(KitError, match=f"public only with consent.*{message}"):
        adapter.push(memorized, folder, "me/voice", public=True)
    assert not server.post_bodies


def test_an_export_from_before_the_consent_stays_private(memorized, tmp_path):
    """Mistake: a folder that knows of no consent is public, as the run has one by now."""
    folder = adapter.export(memorized, watermarked=False)
    (folder / consent.FILE).unlink()
    with hub.push_hub(tmp_path / "hub") as server:
        with pytest.raises(KitError, match="exported without this run's. Export again"):
            adapter.push(memorized, folder, "me/voice", public=True)
    assert not server.post_bodies


def test_a_push_replaces_only_voices_and_shows_none(memorized, tmp_path, capsys):
    """Mistake: a model of somebody's own that is gone from the hub, or a private voice that lands where all can see it."""
    folder = adapter.export(memorized, watermarked=False)
    with hub.push_hub(tmp_path / "hub") as server:
        (tmp_path / "hub" / "thesis").mkdir(parents=True)
        (tmp_path / "hub" / "thesis" / "model.safetensors").write_text("years of work")
        with pytest.raises(KitError, match=r"holds something else \(model.safetensors, and no release.json\)"):
            adapter.push(memorized, folder, "me/thesis")
        assert [path.read_text() for path in server.files("thesis")] == ["years of work"]
        (tmp_path / "hub" / "shop").mkdir()
        (tmp_path / "hub" / "shop" / "README.md").write_text("made by hand, for everybody")
        server.public.add("shop")
        with pytest.raises(KitError, match="exists and is public"):
            adapter.push(memorized, folder, "me/shop")
        assert len(server.files("shop")) == 1
        adapter.push(memorized, folder, "me/shop", public=True)
        assert len(server.files("shop")) > 5 and "settings on the hub" not in capsys.readouterr().out
        adapter.push(memorized, folder, "me/new")
        adapter.push(memorized, folder, "me/new", public=True)
        assert "change its visibility in its settings on the hub" in capsys.readouterr().out


@pytest.mark.parametrize("token, is_refusing, said", [("hf_none", True, "403"), ("", False, "401"),
                                                      ("hf_tru\u2026", False, "codec")])
def test_a_push_that_fails_says_what_to_do(told, tmp_path, token, is_refusing, said):
    """Mistake: a traceback out of the hub's library, for one without a token, with half of one, or who may not write."""
    folder = adapter.export(told, tmp_path / "out", watermarked=False)
    with hub.push_hub(tmp_path / "hub", token) as server:
        server.is_refusing = is_refusing
        with pytest.raises(KitError, match=rf"not be pushed to 'me/voice' \(.*{said}.*stays where it is.*hf auth login"):
            adapter.push(told, folder, "me/voice")
    with hub.push_hub(tmp_path / "hub") as server:
        server.server_close()
        with pytest.raises(KitError, match="could not be pushed.*the network"):
            adapter.push(told, folder, "me/voice")
