"""A run's data as others get it: read back by `datasets` itself."""

import importlib
import shutil
from pathlib import Path

import hub
import numpy as np
import pytest

from tts_kit import audio
from tts_kit.cli import main
from tts_kit.config import Config
from tts_kit.data import consent, export, manifest, prepare
from tts_kit.errors import KitError
from tts_kit.hub import RELEASE_FILE
from tts_kit.run import Run, write_inputs

VOICE = Path(__file__).parent.parent / "sample_data" / "voice"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Run:
    made = Run("emma", tmp_path_factory.mktemp("house"))
    prepare.prepare(VOICE, made, Config(held_out=0.1))
    return made


def loadable() -> str:
    """Why `datasets` cannot read sounds here, empty where it can."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        return f"datasets reads sounds with torchcodec, which does not load: {str(error).splitlines()[0]}"
    return ""


@pytest.mark.skipif(bool(loadable()), reason=loadable())
def test_datasets_loads_what_was_exported(place, tmp_path):
    """Mistake: a folder that looks like a dataset, and loads with texts and sounds in another order, or not at all."""
    import datasets

    folder = export.export(place, tmp_path / "out")
    loaded = datasets.load_dataset("audiofolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    for split, name in export.SPLITS.items():
        mine = [each for each in manifest.read(place.data) if each.split == split]
        assert len(loaded[name]) == len(mine) > 0
        said = {row["text"]: row for row in loaded[name]}
        assert said.keys() == {each.text for each in mine}
        for each in mine[:3]:
            sound = said[each.text]["audio"].get_all_samples()
            assert np.allclose(sound.data[0].numpy(), audio.read(each.audio, manifest.SAMPLE_RATE), atol=1e-4)
            assert said[each.text]["source"] == each.speaker


def test_an_export_replaces_nothing(place, tmp_path):
    """Mistake: a folder of somebody's own that is gone after an export."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(KitError, match="exists already"):
        export.export(place, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_refused_push_says_what_to_do(place, tmp_path):
    """Mistake: a traceback out of the hub's library, or data that are public because nobody asked."""
    folder = export.export(place, tmp_path / "out")
    with hub.push_hub(tmp_path / "hub") as server:
        server.is_refusing = True
        with pytest.raises(KitError, match=r"could not be pushed to 'me/voice' \(.*stays where it is"):
            export.push(folder, "me/voice")
    assert '"visibility":"private"' in server.post_bodies[0].replace(" ", "")
    with pytest.raises(KitError, match="is not a hub repository id"):
        export.push(folder, "no name at all/..")


def test_recordings_are_public_only_with_consent(place, tmp_path):
    """Mistake: a person's recordings for everybody, and nobody was asked; or the answer stays at home."""
    mine = Run("emma", tmp_path)
    shutil.copytree(place.data, mine.data)
    write_inputs(mine.data, source="/clips", eval_source="")  # no longer the bundled voice, whose consent is known
    silent = export.export(mine, tmp_path / "silent")
    with hub.push_hub(tmp_path / "hub") as server, pytest.raises(KitError, match="only with consent.*exported without"):
        export.push(silent, "me/voice", public=True)
    assert not server.post_bodies and export.NO_CONSENT in (silent / export.CARD).read_text(encoding="utf-8")
    said = consent.record(mine, "Emma *", "own", "I am <b>Emma</b>.")
    folder = export.export(mine, tmp_path / "said")
    assert consent.read(folder) == said
    assert r"Emma \* (my own voice)" in (card := (folder / export.CARD).read_text(encoding="utf-8")) and "<b>" not in card
    with hub.push_hub(tmp_path / "hub") as server:
        assert export.push(folder, "me/voice", public=True) == f"{server.url}/me/voice"
        assert "voice" in server.public and consent.FILE in {path.name for path in server.files("voice")}


def test_what_cannot_be_pushed_is_not_written_first(place, tmp_path, monkeypatch, capsys):
    """Mistake: a folder that was made for nothing, and is in the way when the consent is there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place.data, Run("emma").data)
    write_inputs(Run("emma").data, source="/clips", eval_source="")
    for given, said in ((["me/voice", "--public"], "only with consent. No consent"),
                        (["voice"], "is not a hub repository id")):
        assert main(["export-dataset", "--run", "emma", "--push-to-hub", *given]) == 1 and said in capsys.readouterr().err
    assert not (Run("emma").folder / "dataset").exists()


def test_a_dataset_of_somebody_is_not_replaced(place, tmp_path):
    """Mistake: a dataset of that name, with other recordings in its `train`, is wiped."""
    folder = export.export(place, tmp_path / "out")
    theirs = tmp_path / "hub" / "voice" / "train" / "years_of_work.wav"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"work")
    with hub.push_hub(tmp_path / "hub"):
        with pytest.raises(KitError, match="holds something else"):
            export.push(folder, "me/voice")
        assert theirs.read_bytes() == b"work"
        theirs.unlink()
        export.push(folder, "me/voice")
        (folder / "test" / "metadata.jsonl").unlink()
        export.push(folder, "me/voice")
        (folder / RELEASE_FILE).unlink()
        with pytest.raises(KitError, match="has no release.json.*Export again"):
            export.push(folder, "me/voice")
    left = {path.relative_to(tmp_path / "hub" / "voice").as_posix() for path in (tmp_path / "hub").rglob("*.jsonl")}
    assert left == {"train/metadata.jsonl"}, "what was taken out is gone there too"
