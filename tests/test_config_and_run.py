"""Config, run folders and atomic writing."""

import dataclasses
from pathlib import Path

import process
import pytest

from tts_kit import cli
from tts_kit.config import CONFIG_FILE, Config, load_config, read_config, save_config
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, read_rows, write_rows, write_text
from tts_kit.run import Run, changed_inputs, write_inputs


@pytest.mark.parametrize(("change", "message"), [
    ({"rank": 0}, "rank is 0; it must be above 0"),
    ({"depth_frame_fraction": 1.5}, "depth_frame_fraction is 1.5; it must be at most 1"),
    ({"lora_targets": "codec"}, "lora_targets is 'codec'; it must be one of both, backbone, depth"),
    ({"held_out": 1.0}, "held_out is 1.0; it must be below 1"), ({"temperature": -0.5}, "temperature is -0.5"),
    ({"backend": "fast"}, "backend is 'fast'"), ({"steps": -1}, "steps is -1; it must be above 0"),
    ({"steps": 1.5}, "it must be of type int"),
    ({"sample_texts": "One."}, "of type tuple"), ({"sample_texts": ()}, "a tuple of sentences"),
])
def test_invalid_values_are_named(change, message):
    """Mistake: an invalid value is noticed after the first epoch, as a NaN or a division by zero."""
    with pytest.raises(KitError, match=message):
        Config(**change)


def test_a_config_is_loaded_as_it_was_saved(tmp_path):
    """Mistake: a tuple comes back as a list, and every resume is refused for another config."""
    config = Config(sample_texts=("One.", "Two."), rank=7)
    write_text(tmp_path / "config.json", config.to_json())
    assert read_config(tmp_path / "config.json") == config
    assert config.differences(config.replace(rank=9)) == {"rank": (7, 9)}


def test_an_unknown_field_is_named(tmp_path):
    """Mistake: a TypeError about an unexpected keyword."""
    write_text(tmp_path / "config.json", '{"rank": 4, "warp": 9}')
    with pytest.raises(KitError, match="does not know: warp"):
        read_config(tmp_path / "config.json")


def test_a_run_stores_its_config(tmp_path):
    """Mistake: the base given to one command is unknown to the next, or a refused value is stored."""
    run = Run("one", tmp_path)
    assert load_config(run) == Config()
    save_config(run, load_config(run, base="some/base"))
    assert load_config(run, rank=4) == Config(base="some/base", rank=4)
    assert load_config(run).rank == Config.rank
    write_text(run.training / CONFIG_FILE, Config(base="some/base", rank=16).to_json())
    assert load_config(run).rank == 16


def test_every_field_is_an_option_with_its_help_and_default():
    """Mistake: a field that can only be changed by editing code, or an option without an explanation."""
    actions = {action.dest: action for sub in cli.build_parser()._subparsers._group_actions[0].choices.values()
               for action in sub._actions}
    for field in dataclasses.fields(Config):
        assert len(actions[field.name].help) > 20, field.name
    assert actions["rank"].help.endswith("(default 32)") and actions["rank"].default is None


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 65, "sp ace", "null\0"])
def test_run_names_stay_inside_runs(name):
    """Mistake: a run name writes outside the runs folder."""
    with pytest.raises(KitError, match="run name"):
        Run(name)


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    """Mistake: the old result is deleted before the new one is complete."""
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """Mistake: a file of zero bytes replaces the result. The kernel itself refuses the write here."""
    write_text(tmp_path / "result", "whole")
    script = ("import resource, sys; from tts_kit.io import write_bytes\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
              "write_bytes(sys.argv[1], b'x' * 100000)\n")
    out = process.run(["-c", script, tmp_path / "result"])
    assert "the disk is full" in out.stderr and "is untouched" in out.stderr
    assert (tmp_path / "result").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_broken_row_is_named(tmp_path):
    """Mistake: a JSONDecodeError without file or line."""
    write_rows(tmp_path / "rows", [{"a": 1}])
    write_text(tmp_path / "rows", (tmp_path / "rows").read_text() + "{broken\n")
    with pytest.raises(KitError, match="rows line 2 is not JSON"):
        read_rows(tmp_path / "rows")


def test_a_row_may_contain_any_character(tmp_path):
    """Mistake: a line separator inside a transcript splits its row."""
    rows = [{"text": "one\u2028two\x85three"}, {"text": "four"}]
    write_rows(tmp_path / "rows", rows)
    assert read_rows(tmp_path / "rows") == rows


def test_remains_of_a_killed_write_are_deleted(tmp_path):
    """Mistake: every kill leaves a hidden copy of the data for ever."""
    (tmp_path / ".out.new.killed").mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    """Mistake: the process is killed after the old folder was renamed, and the next write deletes it."""
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_failed_rename_restores_the_old_folder(tmp_path, monkeypatch):
    """Mistake: both copies are gone when the disk fails at the last moment."""
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("old")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: rename(self, target) if ".new." not in self.name else (
        _ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input"), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    """Mistake: a traceback of FileExistsError or PermissionError."""
    (tmp_path / "file").write_text("here")
    for path in (tmp_path / "file" / "inside" / "x.txt", Path("/proc/none/x.txt")):
        with pytest.raises(KitError, match="could not be written: .*Choose a place"):
            write_text(path, "text")
    with pytest.raises(KitError, match="could not be written"), atomic_folder(tmp_path / "file" / "inside" / "out"):
        pass


def test_changed_inputs_are_named(tmp_path):
    """Mistake: a stage continues with outputs that were made from other data."""
    write_inputs(tmp_path / "codes", data="1", codec="2")
    assert changed_inputs(tmp_path / "codes", data="1", codec="2") == []
    assert changed_inputs(tmp_path / "codes", data="1", codec="3") == ["codec"]
    assert changed_inputs(tmp_path / "missing", data="1") == ["data"]


def test_older_run_folders_are_refused_in_one_sentence(tmp_path):
    """Mistake: files of another layout are read as if they had the current one."""
    (tmp_path / "codes").mkdir()
    with pytest.raises(KitError, match=r"older version of tts_kit \(run format 1, wanted 2\)"):
        changed_inputs(tmp_path / "codes", data="1")
