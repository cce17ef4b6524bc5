"""A voice that leaves the house: as an adapter or merged, on any base, beside other voices, with its card, or refused."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_generate import GREEDY, prompts

from tts_kit import __main__ as verbs
from tts_kit import runtime, story
from tts_kit.comparison import clips
from tts_kit.model import generate, lean, load, lora
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.release import card, consent, export, facts
from tts_kit.run import Run, read_json, read_rows, write_json, write_rows
from tts_kit.speech import speak, voices

CPU = runtime.choose("cpu", "float32")
SPEAKER = "3"


@pytest.fixture(scope="module")
def told(loud, tmp_path_factory):
    """A run with everything: data, codes, an adapter, a comparison without judges, and consent."""
    root = tmp_path_factory.mktemp("release") / "runs"
    source = root / "source"
    source.mkdir(parents=True)
    rows = (story.VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    some = [*rows[1:7], *rows[8:11]]
    for row in some:
        shutil.copy(story.VOICE / row.split(",")[0], source)
    (source / "metadata.csv").write_text("\n".join([rows[0], *some]) + "\n", encoding="utf-8")
    recipe = Recipe(base=loud, rank=4, alpha=8, steps=2, warmup_steps=0, learning_rate=0.05, tokens_per_batch=400,
                    evaluate_every=2, save_every=2, sample_every=0)
    run = Run("told", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_KIT_JUDGES", "none")
        story.tell(source, recipe, run, CPU, sentences=2, seeds=(1,))
    consent.record(run, "Kokoro-82M", "synthetic", "No person spoke these clips.")
    return run


@pytest.fixture
def copied(told, tmp_path):
    """The run to do with as one likes."""
    shutil.copytree(told.folder, tmp_path / "runs" / "told")
    return Run("told", tmp_path / "runs")


def codes(voice, tuned=True):
    with voice.speaking(tuned):
        return [take.codes.tolist() for take in generate.takes(
            voice.base.model, voice.base.physics, prompts(voice.base, "One.", "Two, longer."), GREEDY, [0, 0], [8, 8])]


def make_adapter(place, folder, seed, targets="both", rank=4, scale=0.2):
    """An adapter with weights of chance, as a voice."""
    base = load.base(place, CPU)
    model = lora.attach(base.model, rank, 8.0, targets)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, scale, generator=torch.Generator().manual_seed(sum(name.encode()) + seed))
    lora.save(model, folder, base, Recipe(base=place).to_json(), {"speaker": SPEAKER})
    return speak.Voice(base, model)


@pytest.fixture(scope="module")
def three(loud, tmp_path_factory):
    """Three adapters for one base, one of another rank and of the backbone alone; and what each says."""
    root = tmp_path_factory.mktemp("voices")
    said = {"a": codes(make_adapter(loud, root / "a", 1)), "b": codes(make_adapter(loud, root / "b", 2, "backbone", 2)),
            "c": codes(make_adapter(loud, root / "c", 3))}
    return root, said


def test_voices_share_a_base_and_stay_themselves(loud, three):
    """Mistake: after a switch a voice keeps something of the one before it, or the base of the adapters beside it."""
    root, said = three
    plain = load.base(loud, CPU)
    said = said | {"base": codes(speak.Voice(plain, plain.model))}
    made = voices.load(CPU, {"base": loud, "b": root / "b", "a": str(root / "a"), "c": root / "c"})
    assert len({id(voice.base) for voice in made.values()}) == 1 and len({str(each) for each in said.values()}) == 4
    for name in ("base", "a", "b", "a", "c", "base", "b", "c", "a"):
        assert codes(made[name]) == said[name], name
    assert codes(made["a"], tuned=False) == said["base"] and codes(made["a"]) == said["a"]
    assert made["a"].speaker == SPEAKER and made["base"].speaker == "0" and not made["base"].is_tuned
    assert not any(weight.requires_grad for weight in made["a"].model.parameters())


def test_a_base_that_has_spoken_takes_an_adapter_on(loud, three):
    """Mistake: what a bare model speaks with is kept, and the adapter that came later is never heard."""
    root, said = three
    voice = speak.load_voice(CPU, base=loud)
    before = codes(voice)
    assert codes(voices.beside(voice, root / "a")) == said["a"] != before
    assert codes(voice) == before


def test_a_later_adapter_is_followed_in_place_and_computed_lean(three):
    """Mistake: weights that came after the first sentence are not watched, or go PEFT's slow way."""
    root, said = three
    first = speak.load_voice(CPU, root / "b")
    assert codes(first) == said["b"]
    later = voices.beside(first, root / "a")
    assert codes(later) == said["a"]
    layers = [module for module in later.model.modules() if isinstance(module, lora.LoraLayer)]
    assert len(layers) == 28 and all(type(layer) is lean.Lean for layer in layers)
    weights = next(layer for layer in layers if later.adapter in layer.lora_B).lora_B[later.adapter].weight
    with torch.no_grad():
        weights.neg_()
    assert codes(later) != said["a"]
    with torch.no_grad():
        weights.neg_()
    assert codes(later) == said["a"] and codes(first) == said["b"]


def test_an_adapter_in_the_place_of_another_is_heard(three):
    """Mistake: new weights lie where freed ones lay, and pass for them."""
    root, said = three
    first = speak.load_voice(CPU, root / "a")
    for name in ("c", "b", "c"):
        other = voices.beside(first, root / name)
        assert codes(other) == said[name]
        lora.remove(other.model, other.adapter)
    assert codes(first) == said["a"] and list(first.model.peft_config) == [lora.FIRST]


def test_strength_is_each_voices_own(three):
    """Mistake: the slider of one voice turns all of them."""
    root, said = three
    made = voices.load(CPU, {"a": root / "a", "c": root / "c"})
    lora.set_strength(made["c"].model, 0.0, made["c"].adapter)
    assert codes(made["a"]) == said["a"] and codes(made["c"]) == codes(made["a"], tuned=False)
    lora.set_strength(made["c"].model, 1.0, made["c"].adapter)
    assert codes(made["c"]) == said["c"]


def test_voices_of_different_bases_are_loaded_apart(loud, toy, three):
    """Mistake: an adapter is put on whatever base came first."""
    made = voices.load(CPU, {"a": three[0] / "a", "base": toy, "loud": loud})
    assert made["a"].base is made["loud"].base is not made["base"].base


def test_a_refused_adapter_leaves_the_others_as_they_were(three, tmp_path):
    """Mistake: half of a broken adapter stays in the model, and everybody sounds of it."""
    root, said = three
    voice = speak.load_voice(CPU, root / "a")
    assert codes(voice) == said["a"]
    for spoil, message in REFUSED.values():
        folder = shutil.copytree(root / "c", tmp_path / spoil.__name__)
        spoil(folder)
        with pytest.raises(Problem, match=message):
            voices.beside(voice, folder)
    assert codes(voice) == said["a"] and list(voice.model.peft_config) == [lora.FIRST]


def cut_short(folder):
    path = folder / lora.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def make_pointer(folder):
    (folder / lora.WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 134\n")


def make_pickle(folder):
    (folder / lora.WEIGHTS).rename(folder / "adapter_model.bin")


def change(folder, file, **fields):
    write_json(folder / file, read_json(folder / file, "") | fields)


def other_rank(folder):
    change(folder, lora.CONFIG, r=8)


def other_kind(folder):
    change(folder, lora.CONFIG, use_dora=True)


def lost_layers(folder):
    weights = load_file(folder / lora.WEIGHTS)
    save_file({name: weight for name, weight in weights.items() if "depth" not in name}, folder / lora.WEIGHTS)


REFUSED = {each[0].__name__: each for each in (
    (cut_short, r"downloaded by half: [\d,]+ bytes"), (make_pointer, "git lfs pull"),
    (make_pickle, r"as a pickle \(adapter_model.bin\).*Wanted: safetensors"),
    (other_rank, r"of rank 4 .*adapter_config.json says 8"), (other_kind, "use_dora True; wanted False"),
    (lost_layers, "disagree about .*depth"))}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_adapters_are_refused_by_name(three, tmp_path, name):
    """Mistake: a file that is half there, a pickle or another kind of adapter is loaded as far as it goes."""
    spoil, message = REFUSED[name]
    folder = shutil.copytree(three[0] / "a", tmp_path / "copy")
    spoil(folder)
    with pytest.raises(Problem, match=message):
        speak.load_voice(CPU, folder)


def test_a_base_of_pickles_is_refused_by_name(toy, tmp_path):
    """Mistake: the weights of a base are unpickled, or are said to be missing where they lie."""
    folder = shutil.copytree(toy, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Problem, match=r"as a pickle \(pytorch_model.bin\)"):
        speak.load_voice(CPU, str(folder))


def test_merged_speaks_the_same_in_plain_transformers(tmp_path):
    """Mistake: merged weights of another strength, an audio table drawn at random, or keys that only the kit knows; or a
    card whose program does not run."""
    run = Run("tiny", tmp_path / "runs")
    # the bundled base, as an untrained one says words that its codec does not know, which transformers does not mind
    make_adapter(str(story.BUNDLED), run.adapter, 1, scale=0.005)
    out = export.export(run, merge=True, place=str(run.folder / "release" / "merged"))
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
        voice = speak.load_voice(CPU, place)
        assert [voice.sampling.temperature, voice.sampling.depth_temperature] == temperatures
        prompt, _ = speak.prompt(voice, speak.Line("It is raining in Oslo again."), [])
        with voice.speaking():
            take, = generate.takes(voice.base.model, voice.base.physics, [prompt], GREEDY, [0], [40])
        with voice.speaking(False):
            base, = generate.takes(voice.base.model, voice.base.physics, [prompt], GREEDY, [0], [40])
        assert prompt.ids.tolist() == ids and take.codes.tolist() == frames[:len(take.codes)] and len(take.codes) > 10
        assert (base.codes.tolist() != take.codes.tolist()) == voice.is_tuned


def test_merged_is_loaded_like_any_voice(told, copied, tmp_path):
    """Mistake: merged weights are sampled as the base and not as the voice, or speak as somebody else."""
    change(copied.adapter, "recipe.json", temperature=0.3, depth_temperature=0.0, top_k=7)
    change(copied.adapter, lora.VOICE, speaker=SPEAKER)
    out = export.export(copied, merge=True, marked=False)
    voice = speak.load_voice(CPU, out)
    assert voice.speaker == SPEAKER and not voice.is_tuned
    assert (voice.sampling.temperature, voice.sampling.top_k) == (0.3, 7)
    assert read_json(out / "generation_config.json", "")["depth_decoder_do_sample"] is False
    with pytest.raises(Problem, match="is a whole model.*Leave --base out"):
        speak.load_voice(CPU, out, base="sesame/csm-1b")
    assert voice.sampling == speak.load_voice(CPU, copied.adapter).sampling


def test_strength_and_precision_are_merged_in(told, loud, tmp_path):
    """Mistake: the slider is forgotten at the door; or 16 bits reach the codec, and its codes are others."""
    out = export.export(told, tmp_path / "merged", merge=True, strength=0.0, dtype="bfloat16", marked=False)
    with safe_open(out / "model.safetensors", "pt") as file, safe_open(Path(loud) / "model.safetensors", "pt") as plain:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            assert weight.dtype == (torch.float32 if name.startswith("codec_model") else torch.bfloat16), name
            if name in plain.keys():  # noqa: SIM118
                assert torch.equal(weight, plain.get_tensor(name).to(weight.dtype)), name
    assert load.base(str(out), CPU).codec.fingerprint() == load.base(loud, CPU).codec.fingerprint()
    with pytest.raises(Problem, match="Give --merged too"):
        export.export(told, tmp_path / "other", strength=0.5)


def test_an_exported_adapter_is_the_contract(told, loud, tmp_path):
    """Mistake: something is missing that others need; the names of this machine's folders are not."""
    out = export.export(told, tmp_path / "out", marked=False)
    assert {path.name for path in out.iterdir()} == {
        lora.WEIGHTS, lora.CONFIG, lora.VOICE, "recipe.json", "data.json", "release.json", consent.FILE, card.FILE,
        card.SAMPLES}
    for path in (path for path in out.iterdir() if path.suffix in (".json", ".md")):
        assert str(tmp_path) not in path.read_text() and str(Path(loud).parent) not in path.read_text(), path
    with pytest.raises(Problem, match="needs the base it was trained for, loud.*give --base"):
        speak.load_voice(CPU, out)
    assert codes(speak.load_voice(CPU, out, base=loud)) == codes(speak.load_voice(CPU, told.adapter))
    known = read_json(out / "data.json", "")
    assert known["source"] == "source" and sum(each["clips"] for each in known["clips"].values()) == 9
    assert read_json(out / lora.VOICE, "")["metrics"]["after"]


def test_the_card_is_valid_and_plays_what_is_beside_it(told, tmp_path):
    """Mistake: front matter that the hub refuses, players without sound, or the person's own recordings on the net."""
    out = export.export(told, tmp_path / "out", marked=False)
    read = ModelCard.load(out / card.FILE)
    assert read.data.library_name == "peft" and read.data.pipeline_tag == "text-to-speech" and "lora" in read.data.tags
    played = re.findall(r'src="(.*?)"', read.text)
    assert len(played) == 2 * len(card.PLAYED) and all((out / file).stat().st_size > 1000 for file in played)
    assert {path.name for path in (out / card.SAMPLES).iterdir()} == {Path(file).name for file in played}
    assert not any("real" in file or "codec" in file for file in played)
    for widget in read.data.widget:
        assert (out / widget["output"]["url"]).is_file() and widget["text"]
    for heading in ("Listen", "Judged", "Use", "Training", "Data", "Consent", "Terms"):
        assert f"\n## {heading}\n" in read.text, heading
    assert "Kokoro-82M" in read.text and "was not measured: no judges listened" in read.text


def test_nothing_empty_is_on_the_card(copied, capsys):
    """Mistake: headings over nothing, or figures of other clips and of another adapter."""
    shutil.rmtree(copied.data)
    (copied.folder / consent.FILE).unlink()
    (copied.adapter / consent.FILE).unlink(missing_ok=True)
    settings = copied.comparison / "settings.json"
    write_json(settings, read_json(settings, "") | {"adapter weights": "another"})
    out = export.export(copied, marked=False)
    told = capsys.readouterr().out
    text = (out / card.FILE).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Use", "Training", "Terms"]
    assert "compared another adapter" in told and "says nothing of the data" in told and "No consent" in told
    assert not re.search(r"^(#.*\n\s*)+(#|\Z)", text.split("---")[-1], re.MULTILINE)
    assert not (out / "data.json").exists() and not (out / card.SAMPLES).exists()


def test_words_stay_words_on_the_card(copied):
    """Mistake: a sentence or a statement that brings a script, a table or a heading along."""
    rows = read_rows(copied.comparison / clips.SCORES)
    nasty = "<script>x</script> | a [b](c)\n# d `e` --- é"
    write_rows(copied.comparison / clips.SCORES, [row | {"text": nasty} for row in rows])
    consent.record(copied, "A <b>", "own", nasty)
    out = export.export(copied, marked=False)
    read = ModelCard.load(out / card.FILE)
    assert "<script" not in read.text and "\n# d" not in read.text and "[b](" not in read.text.replace(r"\[b\]", "")
    assert read.data.widget[0]["text"] == nasty and "é" in read.text


def test_the_hub_files_it_under_its_base(told):
    """Mistake: terms of the base that are not passed on; a folder's name as if it were on the hub."""
    known = facts.gather(told, "sesame/csm-1b")
    head = card.front_matter(known, "apache-2.0", merged=True, players=[])
    assert (head.base_model, head.base_model_relation, head.license) == ("sesame/csm-1b", "finetune", "apache-2.0")
    assert card.front_matter(facts.gather(told, told.folder), "", False, []).base_model is None
    assert any("impersonation" in each for each in card.terms.of("sesame/csm-1b", "apache-2.0"))
    assert card.terms.licence("tiny-csm", str(story.BUNDLED)) == "apache-2.0"


def test_clips_beside_the_card_are_marked(told, tmp_path):
    """Mistake: speech leaves the house without the mark of a machine."""
    watermark = pytest.importorskip("tts_kit.watermark")
    try:
        watermark.network()
    except Problem as problem:
        pytest.skip(f"the mark cannot be made here: {problem}")
    verbs_out = tmp_path / "out"
    export.export(told, verbs_out)
    plain = export.export(told, tmp_path / "plain", marked=False)
    for path in sorted((verbs_out / card.SAMPLES).iterdir()):
        assert path.read_bytes() != (plain / card.SAMPLES / path.name).read_bytes()


def test_an_export_replaces_only_exports(told, tmp_path):
    """Mistake: a folder of somebody's own, or the run's adapter itself, that is gone after an export."""
    for folder in (tmp_path / "mine", told.adapter):
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("years of work")
        with pytest.raises(Problem, match="holds something else"):
            export.export(told, folder)
        assert (folder / "README.md").read_text() == "years of work"
    (told.adapter / "README.md").unlink()


def test_the_verb_exports(copied, monkeypatch, capsys):
    """Mistake: the command line says something else than the function it calls."""
    monkeypatch.chdir(copied.folder.parent.parent)
    assert verbs.main(["export", "--run", "told", "--no-watermark"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/told/release/adapter"
    assert "--adapter runs/told/release/adapter" in Path("runs/told/release/adapter/README.md").read_text()
    assert verbs.main(["export", "--run", "nobody"]) == 1
    assert "nothing was trained there yet" in capsys.readouterr().err


def test_a_push_is_private_and_public_only_with_consent(copied, monkeypatch, capsys):
    """Mistake: a voice that everybody has because nobody asked, or a traceback out of the hub's library."""
    import huggingface_hub

    asked = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = functools.partial(huggingface_hub.HfApi, endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
        monkeypatch.setattr(huggingface_hub, "HfApi", hub)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        folder = export.export(copied, marked=False)
        with pytest.raises(Problem, match=r"could not be pushed to 'me/voice' \(.*stays where it is"):
            export.push(copied, folder, "me/voice")
        assert len(asked) == 1 and '"visibility":"private"' in asked[0].replace(" ", "")
        (copied.folder / consent.FILE).unlink()
        (copied.adapter / consent.FILE).unlink(missing_ok=True)
        with pytest.raises(Problem, match="public only with consent"):
            export.push(copied, folder, "me/voice", public=True)
        with pytest.raises(Problem, match="no name on the hub"):
            export.push(copied, folder, "no name at all/..")
        server.shutdown()
    assert len(asked) == 1


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: the adapters of a folder, one of which is behind a gate."""
    folder: Path

    def do_GET(self):
        parts = self.path.strip("/").split("?")[0].split("/")
        if len(parts) < 2:
            return self._answer(b"", 200, {})
        owner, name, *rest = parts[2:] if parts[0] == "api" else parts
        if name == "gated":
            return self._answer(b"", 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if not (self.folder / name).is_dir():
            return self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api" and "tree" in rest:
            files = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                     for path in sorted((self.folder / name).iterdir())]
            return self._answer(json.dumps(files).encode(), 200, {"Content-Type": "application/json"})
        if parts[0] == "api":
            files = [{"rfilename": path.name} for path in sorted((self.folder / name).iterdir())]
            told = {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": files, "private": False}
            return self._answer(json.dumps(told).encode(), 200, {"Content-Type": "application/json"})
        path = self.folder / name / rest[-1]
        asked.append(f"{name}/{rest[-1]}")
        if not path.is_file():
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        return self._answer(content, 200, {"ETag": f'"{hash(content) & 0xffff:040x}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def _answer(self, content, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


asked: list[str] = []


def test_adapters_come_from_the_hub_or_are_refused_clearly(three, tmp_path):
    """Mistake: a pickle is fetched, or a gate, a wrong name or a hub that is down end in a traceback."""
    shutil.copytree(three[0] / "a", tmp_path / "hub" / "voice")
    make_pickle(shutil.copytree(three[0] / "a", tmp_path / "hub" / "pickled"))
    Hub.folder = tmp_path / "hub"
    script = (
        "import sys\nfrom tts_kit.speech import places\nfrom tts_kit.problem import Problem\n"
        "for name in sys.argv[1:]:\n    try:\n        print(sorted(path.name for path in places.adapter(name).iterdir()))\n"
        "    except Problem as problem:\n        print(problem)\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path),
               "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        names = ["me/voice", "me/pickled", "me/gated", "me/nobody"]
        ran = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=False,
                             env=os.environ | own)
        server.shutdown()
    assert ran.returncode == 0, ran.stderr
    fetched, pickled, gated, nobody = ran.stdout.splitlines()[-4:]
    assert fetched == str(sorted([lora.WEIGHTS, lora.CONFIG, lora.VOICE, "recipe.json"]))
    assert "me/pickled has its weights as a pickle (adapter_model.bin)" in pickled
    assert "pickled/adapter_model.bin" not in asked
    assert "is gated" in gated and "hf auth login" in gated
    assert "neither as a folder nor on the hub" in nobody
    ran = subprocess.run([sys.executable, "-c", script, "me/other"], capture_output=True, text=True, check=False,
                         env=os.environ | own)
    assert "me/other is not on this machine" in ran.stdout and "the hub does not answer" in ran.stdout, ran.stderr
