"""The bundled folder: plain transformers loads it, and its card says what was measured of these very weights."""

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
    """A model of toy size with the files that training and judging leave."""
    model = model_shapes.save(load.untie(model_shapes.untrained("toy").half()), tmp_path / "model", "toy")
    write_json(model / csm_training.FACTS, {"hours": 1.5, "hours of practice": 0.5, "steps": 70, "best step": 50,
                                        "machine": "a laptop", "begun with": {"steps": 1200, "begun with": None}})
    seen = {"value": 0.123, "low": 0.1, "high": 0.15}
    results = tmp_path / "results.json"
    write_json(results, {
        "weights": load.load_base(str(model), device.choose("cpu")).fingerprint, "metrics": "two ears", "seeds": [1, 2, 3],
        "date": "2026-01-02", "machine": "a desk", "goals": [{"goal": "clone: few wrong words", "seen": seen,
                                                              "reached": False, "by": -0.023}],
        "groups": {"unseen voices": {"sentences": 50, "arms": {"clone": {"clips": 150, "wer": seen}}}}})
    write_rows(results.with_suffix(".jsonl"), [{"arm": "clone"}])
    return model, results


def test_what_is_bundled_loads_and_says_what_was_measured(trained, tmp_path):
    """Mistake: a file that transformers needs is left behind, or a card whose figures come from nowhere."""
    model, results = trained
    out = ship.ship(model, results, tmp_path / "bundled")
    loaded = CsmForConditionalGeneration.from_pretrained(out, dtype=torch.float16)
    before = CsmForConditionalGeneration.from_pretrained(model, dtype=torch.float16)
    wanted = before.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in loaded.state_dict().items())
    card = (out / "README.md").read_text(encoding="utf-8")
    for phrase in ("0.123 [0.10, 0.15]", "missed | -0.023", "two ears", "50 unseen sentences in 3 takes", "1.5 hours",
                 "1,200 + 70 steps"):
        assert phrase in card, phrase
    assert (out / "results.json").is_file() and (out / "results.jsonl").is_file()
    assert (out / csm_training.FACTS).is_file() and (out / "processor_config.json").is_file()


def test_results_of_another_model_are_refused(trained, tmp_path):
    """Mistake: new weights are bundled with the figures of the old ones."""
    _, results = trained
    other = model_shapes.save(model_shapes.untrained("toy", seed=1).half(), tmp_path / "other", "toy")
    with pytest.raises(KitError, match="judges another model"):
        ship.ship(other, results, tmp_path / "bundled")
    assert not (tmp_path / "bundled").exists()


def test_a_model_too_large_to_bundle_is_refused(trained, tmp_path, monkeypatch):
    """Mistake: a folder that makes every clone of the project slow."""
    monkeypatch.setattr(ship, "MAX_BYTES", 1000)
    with pytest.raises(KitError, match="at most"):
        ship.ship(*trained, tmp_path / "bundled")


def test_one_command_calls_every_stage_and_stops_where_one_fails(tmp_path, monkeypatch):
    """Mistake: options that a stage does not know, or a stage that goes on with what a failed one left."""
    called = []
    for stage in (__main__.corpus, __main__.flite, __main__.codec_training, __main__.csm_training, __main__.evaluate,
                  __main__.ship):
        monkeypatch.setattr(stage, "main", lambda _, name=stage.__name__: called.append(name) or name.endswith("csm_training"))
    assert __main__.main(["--out", str(tmp_path)]) == 1
    assert [name.rpartition(".")[2] for name in called] == ["corpus", "flite", "codec_training", "csm_training"]
