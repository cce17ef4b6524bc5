"""The export of a run's data as a dataset: read back by `datasets` itself, and pushed to a hub."""

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
def emma(tmp_path_factory) -> Run:
    run = Run("emma", tmp_path_factory.mktemp("house"))
    prepare.prepare(VOICE, run, Config(held_out=0.1))
    return run


def loadable() -> str:
    """Return why `datasets` cannot read audio here, or an empty string."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        return f"datasets reads audio with torchcodec, which does not load: {str(error).splitlines()[0]}"
    return ""


@pytest.mark.skipif(bool(loadable()), reason=loadable())
def test_datasets_loads_what_was_exported(emma, tmp_path):
    """Mistake: a folder that looks like a dataset, but loads with texts and audio in another order, or not at all."""
    import datasets

    folder = export.export(emma, tmp_path / "out")
    loaded = datasets.load_dataset("audiofolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    for split, name in export.SPLITS.items():
        utterances = [utterance for utterance in manifest.read(emma.data) if utterance.split == split]
        assert len(loaded[name]) == len(utterances) > 0
        rows = {row["text"]: row for row in loaded[name]}
        assert rows.keys() == {utterance.text for utterance in utterances}
        for utterance in utterances[:3]:
            decoded = rows[utterance.text]["audio"].get_all_samples()
            assert np.allclose(decoded.data[0].numpy(), audio.read(utterance.audio, manifest.SAMPLE_RATE), atol=1e-4)
            assert rows[utterance.text]["source"] == utterance.speaker


def test_an_export_replaces_no_other_folder(emma, tmp_path):
    """Mistake: a user's folder is deleted by an export."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(KitError, match="exists already"):
        export.export(emma, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_refused_push_says_what_to_do(emma, tmp_path):
    """Mistake: a traceback of the hub's library, or data that are public by default."""
    folder = export.export(emma, tmp_path / "out")
    with hub.push_hub(tmp_path / "hub") as server:
        server.is_refusing = True
        with pytest.raises(KitError, match=r"could not be pushed to 'me/voice' \(.*stays where it is"):
            export.push(folder, "me/voice")
    assert '"visibility":"private"' in server.post_bodies[0].replace(" ", "")
    with pytest.raises(KitError, match="is not a hub repository id"):
        export.push(folder, "no name at all/..")


def test_recordings_are_public_only_with_consent(emma, tmp_path):
    """Mistake: a person's recordings become public without consent, or the consent is not exported."""
    copy = Run("emma", tmp_path)
    shutil.copytree(emma.data, copy.data)
    write_inputs(copy.data, source="/clips", eval_source="")  # no longer the bundled voice, whose consent is known
    without_consent = export.export(copy, tmp_path / "without_consent")
    with hub.push_hub(tmp_path / "hub") as server, pytest.raises(KitError, match="only with consent.*exported without"):
        export.push(without_consent, "me/voice", public=True)
    assert not server.post_bodies and export.NO_CONSENT in (without_consent / export.CARD).read_text(encoding="utf-8")
    recorded = consent.record(copy, "Emma *", "own", "I am <b>Emma</b>.")
    folder = export.export(copy, tmp_path / "with_consent")
    assert consent.read(folder) == recorded
    assert r"Emma \* (my own voice)" in (card := (folder / export.CARD).read_text(encoding="utf-8")) and "<b>" not in card
    with hub.push_hub(tmp_path / "hub") as server:
        assert export.push(folder, "me/voice", public=True) == f"{server.url}/me/voice"
        assert "voice" in server.public and consent.FILE in {path.name for path in server.files("voice")}


def test_an_export_that_cannot_be_pushed_is_not_written(emma, tmp_path, monkeypatch, capsys):
    """Mistake: a folder is written for nothing, and is in the way once consent exists."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(emma.data, Run("emma").data)
    write_inputs(Run("emma").data, source="/clips", eval_source="")
    for arguments, message in ((["me/voice", "--public"], "only with consent. No consent"),
                               (["voice"], "is not a hub repository id")):
        assert main(["export-dataset", "--run", "emma", "--push-to-hub", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (Run("emma").folder / "dataset").exists()


def test_another_dataset_on_the_hub_is_not_replaced(emma, tmp_path):
    """Mistake: a dataset of that name, with other recordings in its `train`, is deleted."""
    folder = export.export(emma, tmp_path / "out")
    existing = tmp_path / "hub" / "voice" / "train" / "years_of_work.wav"
    existing.parent.mkdir(parents=True)
    existing.write_bytes(b"work")
    with hub.push_hub(tmp_path / "hub"):
        with pytest.raises(KitError, match="holds something else"):
            export.push(folder, "me/voice")
        assert existing.read_bytes() == b"work"
        existing.unlink()
        export.push(folder, "me/voice")
        (folder / "test" / "metadata.jsonl").unlink()
        export.push(folder, "me/voice")
        (folder / RELEASE_FILE).unlink()
        with pytest.raises(KitError, match="has no release.json.*Export again"):
            export.push(folder, "me/voice")
    remaining = {path.relative_to(tmp_path / "hub" / "voice").as_posix() for path in (tmp_path / "hub").rglob("*.jsonl")}
    assert remaining == {"train/metadata.jsonl"}, "a deleted file is deleted on the hub too"
