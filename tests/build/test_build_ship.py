"""The bundled folder: transformers loads it, and its model card has the results of its weights."""

import pytest
import torch
from transformers import CsmForConditionalGeneration

from sample_data.build import __main__, csm_training, model_shapes, ship
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.io import write_json, write_rows
from tts_kit.model import load


@pytest.fixture
def trained(tmp_path):
    """A model of toy size and its results, with the files that training and evaluation write."""
    model = model_shapes.save(load.untie(model_shapes.untrained("toy").half()), tmp_path / "model", "toy")
    write_json(model / csm_training.TRAINING_FILE, {
        "hours": 1.5, "hours of auxiliary speech": 0.5, "steps": 70, "best step": 50, "machine": "a laptop",
        "initialized from": {"steps": 1200, "initialized from": None}})
    wer = {"value": 0.123, "low": 0.1, "high": 0.15}
    results = tmp_path / "results.json"
    write_json(results, {
        "weights": load.load_base(str(model), device.choose("cpu")).fingerprint, "metrics": "two models", "seeds": [1, 2, 3],
        "date": "2026-01-02", "machine": "a server",
        "goals": [{"goal": "clone: low WER", "measured": wer, "reached": False, "margin": -0.023}],
        "groups": {"unseen voices": {"sentences": 50, "arms": {"clone": {"clips": 150, "wer": wer}}}}})
    write_rows(results.with_suffix(".jsonl"), [{"arm": "clone"}])
    return model, results


def test_the_bundled_folder_loads_and_its_card_has_the_results(trained, tmp_path):
    """Mistake: a file that transformers needs is not copied, or the card has figures of another source."""
    model, results = trained
    out = ship.ship(model, results, tmp_path / "bundled")
    bundled = CsmForConditionalGeneration.from_pretrained(out, dtype=torch.float16)
    original_weights = CsmForConditionalGeneration.from_pretrained(model, dtype=torch.float16).state_dict()
    assert all(torch.equal(weight, original_weights[name]) for name, weight in bundled.state_dict().items())
    card = (out / "README.md").read_text(encoding="utf-8")
    for phrase in ("0.123 [0.10, 0.15]", "missed | -0.023", "two models", "50 unseen sentences, each generated with 3 seeds",
                   "1.5 hours", "1,200 + 70 steps"):
        assert phrase in card, phrase
    assert (out / "results.json").is_file() and (out / "results.jsonl").is_file()
    assert (out / csm_training.TRAINING_FILE).is_file() and (out / "processor_config.json").is_file()


def test_results_of_another_model_are_refused(trained, tmp_path):
    """Mistake: new weights are bundled with the figures of old ones."""
    _, results = trained
    other = model_shapes.save(model_shapes.untrained("toy", seed=1).half(), tmp_path / "other", "toy")
    with pytest.raises(KitError, match="evaluates another model"):
        ship.ship(other, results, tmp_path / "bundled")
    assert not (tmp_path / "bundled").exists()


def test_a_model_too_large_to_bundle_is_refused(trained, tmp_path, monkeypatch):
    """Mistake: a folder that makes each clone of the project slow."""
    monkeypatch.setattr(ship, "MAX_BYTES", 1000)
    with pytest.raises(KitError, match="limit"):
        ship.ship(*trained, tmp_path / "bundled")


@pytest.mark.parametrize(("failing_stage", "stages"), [
    ("csm_training", ["corpus", "flite", "codec_training", "round_trip", "csm_training"]), (None, [*__main__.STAGES])])
def test_one_command_runs_all_stages_and_stops_at_a_failure(failing_stage, stages, tmp_path, monkeypatch):
    """Mistake: options that a stage does not have, or a stage that continues with the output of a failed one."""
    called = []

    def record(stage, arguments):
        stage.parser().parse_args(arguments)
        called.append(stage.__name__.rpartition(".")[2])
        return called[-1] == failing_stage

    for name in __main__.STAGES:
        stage = getattr(__main__, name)
        monkeypatch.setattr(stage, "main", lambda arguments, stage=stage: record(stage, arguments))
    assert __main__.main(["--out", str(tmp_path), "--budget", "0.01"]) == int(failing_stage is not None)
    assert called == stages
    called.clear()
    __main__.main(["--out", str(tmp_path), "--stages", "corpus", "flite"])
    assert called == ["corpus", "flite"]
