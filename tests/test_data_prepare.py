"""`prepare`: what is read, what is refused with which message, and what is held out."""

import dataclasses
import itertools
import json
import signal
from pathlib import Path

import datasets
import numpy as np
import process
import pytest
import soundfile

from tts_kit import audio
from tts_kit.config import Config
from tts_kit.data import ingest, manifest, prepare, sources
from tts_kit.errors import KitError
from tts_kit.run import Run

RATE = 24_000
ROOT = Path(__file__).parents[1]
WAV = "wavs/LJ001-0001.wav"


def voice(number: int, seconds: float = 1.0, rate: int = RATE, amplitude: float = 0.2) -> np.ndarray:
    """A tone that differs from that of any other number."""
    return amplitude * np.sin(2 * np.pi * (150 + 7 * number) * np.arange(round(seconds * rate)) / rate)


def write_clips(folder: Path, count: int = 8, recordings: int = 1) -> list[dict]:
    """Write good clips; return the rows of their table."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for number in range(1, count + 1):
        name = f"clips/tape{chr(65 + number % recordings)}_{number:03d}.wav"
        soundfile.write(folder / name, voice(number), RATE)
        rows.append({"file_name": name, "text": f"Sentence number {number}"})
    return rows


def write_csv(folder: Path, rows: list[dict], delimiter: str = ",", name: str = "metadata.csv") -> Path:
    lines = [delimiter.join(rows[0]), *(delimiter.join(str(cell) for cell in row.values()) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


@pytest.fixture
def run(tmp_path):
    return Run("voice", tmp_path / "runs")


@pytest.fixture
def good(tmp_path):
    """A folder of eight good clips."""
    folder = tmp_path / "recordings"
    write_csv(folder, write_clips(folder))
    return folder


def refusal(folder: Path, run: Run, config: Config | None = None) -> str:
    """Return the message with which `prepare` refuses; the source is unchanged and nothing was written."""
    before = contents(folder)
    with pytest.raises(KitError) as caught:
        prepare.prepare(str(folder), run, config or Config())
    assert contents(folder) == before
    assert not run.folder.exists() or not list(run.folder.iterdir())
    return str(caught.value)


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# the prepared clips


def test_clips_are_mono_normalized_and_trimmed(tmp_path, run, capsys):
    """Mistake: clips are stored as they are: another sample rate, two channels, long silences, different loudness."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder)
    quiet = np.concatenate([np.zeros(44_100), voice(2, 1.0, 44_100, 0.02), np.zeros(88_200)])
    soundfile.write(folder / rows[1]["file_name"], np.stack([quiet, quiet], axis=1), 44_100, subtype="PCM_24")
    write_csv(folder, rows)
    utterances = prepare.prepare(folder, run, Config())
    summary = ("8 clips, 0.2 minutes, 1 speaker (unnamed); 4 to train on; held out: 2 clips from 1 session; 2 neighbours of "
               "them excluded")
    assert summary in capsys.readouterr().out
    second = utterances[1]
    assert (second.id, second.row, second.file) == ("00002-tapeA-002", 2, "clips/tapeA_002.wav")
    assert (second.text, second.original_text) == ("Sentence number 2.", "Sentence number 2")
    assert (second.source, second.speaker, second.session) == ("0", "", "tapeA")
    assert soundfile.info(second.audio).samplerate == RATE and soundfile.info(second.audio).channels == 1
    assert second.seconds == pytest.approx(1.35, abs=0.05) == soundfile.info(second.audio).duration
    loudness = [audio.loudness(audio.read(utterance.audio, RATE), RATE) for utterance in utterances]
    assert np.median(loudness) == pytest.approx(-20, abs=0.3)
    assert loudness[0] - loudness[1] == pytest.approx(20, abs=0.5), "one gain for the voice, not one for each clip"
    assert manifest.read(run.data) == utterances


def test_loud_peaks_stay_below_full_scale(tmp_path, run):
    """Mistake: one gain for all clips of the voice clips its loudest one."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder)
    for number, row in enumerate(rows[1:]):
        soundfile.write(folder / row["file_name"], voice(number, amplitude=0.01), RATE, subtype="FLOAT")
    write_csv(folder, rows)
    first = prepare.prepare(folder, run, Config())[0]
    assert 0.85 < np.abs(audio.read(first.audio, RATE)).max() <= 10 ** (-1 / 20) + 1e-3


@pytest.mark.parametrize("text", [
    'clips/a1.wav,"Hello, ""you"", said she"', 'clips/a1.wav|Hello, "you", said she',
    'clips/a1.wav|"Hello, ""you"", said she"', '"clips/a1.wav","Hello, ""you"", said she"',
])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_with_commas_and_bars(tmp_path, text, ending, mark):
    """Mistake: a byte-order mark in the first column's name, lost quotation marks and cut texts."""
    delimiter = "|" if "|" in text else ","
    path = tmp_path / "metadata.csv"
    path.write_bytes(f"{mark}file_name{delimiter}text{ending}{ending}{text}{ending}".encode())
    rows = list(sources.rows(str(path)))
    assert [(row.number, row.file, row.text) for row in rows] == [(1, "clips/a1.wav", 'Hello, "you", said she')]


@pytest.mark.parametrize("opening", ['"Hello," he said', '"Never closed', 'Inch: 3" wide', '"Two\nb.wav|rows"'])
def test_an_unquoted_table_loses_no_rows(tmp_path, opening):
    """Mistake: a quotation mark in an unquoted | table swallows the rows after it."""
    path = tmp_path / "metadata.csv"
    path.write_text(f"file_name|text\na.wav|{opening}\nc.wav|Last")
    lines = [f"{row.file}|{row.text}" for row in sources.rows(str(path))]
    assert "\n".join(lines) == f"a.wav|{opening}\nc.wav|Last"


@pytest.mark.parametrize(("table", "ignored"), [
    ("file_name;text;speaker\na.wav;Hi;anna\n", ""), ("path\tsentence\tspeaker_id\tage\na.wav\tHi\tanna\t7\n", "age"),
    ("filename,text,sentence,source\na.wav,Hi,HI!,anna\n", "sentence")])
def test_columns_of_other_tools_are_read(tmp_path, capsys, table, ignored):
    """Mistake: a table of Common Voice or of a spreadsheet is refused, or a column is silently ignored."""
    (tmp_path / "metadata.csv").write_text(table)
    assert [(row.file, row.text, row.speaker) for row in sources.rows(str(tmp_path))] == [("a.wav", "Hi", "anna")]
    message = f"metadata.csv: columns that are not needed are ignored: {ignored}.\n"
    assert capsys.readouterr().out == message * bool(ignored)


@pytest.mark.parametrize(("file", "lines", "columns", "row"), [
    ("metadata.csv", ["LJ001-0001|In 1455, a press|In fourteen fifty-five, a press", "LJ001-0002|Dr. B|Doctor B"],
     "file_name, text as written, text", ("wavs/LJ001-0001.wav", "In fourteen fifty-five, a press", "")),
    ("metadata.csv", ["LJ001-0001|A press", "LJ001-0002|Doctor B"], "file_name, text", (WAV, "A press", "")),
    ("metadata.csv", ["LJ001-0001.wav;\"A; press\"", "LJ001-0002.wav;B"], "file_name, text",
     (WAV, "A; press", "")),
    ("metadata.csv", ["LJ001-0001,A; press", "LJ001-0002,B"], "file_name, text", (WAV, "A; press", "")),
    ("metadata.csv", ["LJ001-0001|anna|A press", "LJ001-0002|anna|Doctor B"], "file_name, speaker, text",
     ("wavs/LJ001-0001.wav", "A press", "anna")),
    ("metadata.txt", ["wavs/LJ001-0001.wav|A press|0", "wavs/LJ001-0002.wav|Doctor B|0"], "file_name, text, speaker",
     ("wavs/LJ001-0001.wav", "A press", "0")),
    ("slicer.list", ["D:\\out\\LJ001-0001.wav|anna|EN|A press", "/root/out/LJ001-0002.wav|anna|EN|B"],
     "file_name, speaker, language, text", ("wavs/LJ001-0001.wav", "A press", "anna")),
    ("metadata.tsv", ["LJ001-0001\tA press", "LJ001-0002\tDoctor B"], "file_name, text", (WAV, "A press", "")),
])
def test_tables_of_other_tools_without_a_header_are_read(tmp_path, capsys, file, lines, columns, row):
    """Mistake: LJSpeech, a file list of Piper or VITS, or GPT-SoVITS's .list is refused or loses its first row."""
    (tmp_path / "wavs").mkdir()
    for number in (1, 2):
        soundfile.write(tmp_path / f"wavs/LJ001-000{number}.wav", voice(number), RATE)
    (tmp_path / file).write_text("\n".join(lines))
    rows = list(sources.rows(str(tmp_path)))
    assert (rows[0].file, rows[0].text, rows[0].speaker) == row
    assert len(rows) == 2 and not rows[1].problem and rows[1].audio() == tmp_path / "wavs/LJ001-0002.wav"
    assert f"{file} has no header; its columns are taken for {columns}.\n" in capsys.readouterr().out
    assert not ingest.is_recording(tmp_path) and not ingest.is_recording(tmp_path / file)


def test_a_list_names_nothing_outside_its_folder(tmp_path):
    """Mistake: the paths in a list that somebody else wrote lead to any file of this machine."""
    (tmp_path / "clips").mkdir()
    for path in (tmp_path / "secret.wav", tmp_path / "clips/a.wav"):
        soundfile.write(path, voice(1), RATE)
    (tmp_path / "clips/x.list").write_text(f"a.wav|anna|EN|Hi\n../secret.wav|anna|EN|Hi\n{tmp_path}/secret.wav|anna|EN|Hi\n")
    rows = list(sources.rows(str(tmp_path / "clips")))
    assert ["leads outside" in row.problem for row in rows] == [False, True, True]
    assert [row.audio() for row in rows[1:]] == [None, None]


def test_texts_beside_the_clips_are_read(tmp_path, run, capsys):
    """Mistake: clip.txt beside clip.wav is ignored, and the clips are transcribed again."""
    folder = tmp_path / "clips"
    for row in write_clips(folder):
        path = folder / row["file_name"]
        path.with_suffix(".lab" if "001" in path.name else ".txt").write_text("\ufeff" + row["text"] + "\n")
    assert not ingest.is_recording(folder)
    utterances = prepare.prepare(folder, run, Config())
    assert [utterance.text for utterance in utterances] == [f"Sentence number {number}." for number in range(1, 9)]
    assert "has no metadata.csv: the text of each audio file is read from" in capsys.readouterr().out
    (folder / "clips/tapeA_001.lab").unlink()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "clips/tapeA_002.txt").unlink()
    (folder / "clips/tapeA_002.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "clips/tapeA_003.txt").write_bytes(b"caf\xe9")
    problems = [row.problem for row in sources.rows(str(folder))]
    assert "tapeA_001.wav has no .txt or .lab" in problems[0] and "is a link out of clips" in problems[1]
    assert "tapeA_003.txt line 1 is not UTF-8" in problems[2] and not any(problems[3:])


def test_json_lines_are_read(tmp_path, run):
    """Mistake: JSON lines are read by other rules than CSV, or a numeric speaker becomes something else."""
    folder = tmp_path / "recordings"
    rows = [{"audio": row["file_name"], "text": row["text"], "speaker_id": 7} for row in write_clips(folder)]
    path = folder / "clips.jsonl"
    path.write_text("\n".join(json.dumps({**row, "text": "Wide\u2028line"}, ensure_ascii=False) for row in rows))
    utterances = prepare.prepare(path, run, Config())
    assert {(utterance.source, utterance.speaker, utterance.text) for utterance in utterances} == {("7", "7", "Wide line.")}
    assert manifest.read(run.data) == utterances


@pytest.mark.parametrize("kind", ["one split", "splits", "parquet"])
def test_datasets_are_read_without_decoding(tmp_path, run, kind, capsys, monkeypatch):
    """Mistake: torchcodec is needed, or a dataset's extra columns are refused or silently dropped."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "recordings"
    rows = write_clips(folder, 6)
    dataset = datasets.Dataset.from_list([
        {"audio": {"bytes": (folder / row["file_name"]).read_bytes(), "path": f"x_{number}.wav"}, "text": row["text"],
         "speaker_id": 3, "mood": "calm"} for number, row in enumerate(rows)])
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    if kind == "parquet":
        (tmp_path / "set").mkdir()
        dataset.to_parquet(tmp_path / "set" / "train.parquet")
    else:
        decoding = dataset.cast_column("audio", datasets.Audio())
        (decoding if kind == "one split" else datasets.DatasetDict(train=decoding)).save_to_disk(tmp_path / "set")
    utterances = prepare.prepare(tmp_path / "set", run, Config())
    assert "are ignored: mood" in capsys.readouterr().out
    assert (utterances[0].id, utterances[0].source, utterances[0].session) == ("00001-x-0", "3", "x")
    assert len(utterances) == 6 and prepare.prepare(tmp_path / "set", run, Config()) == utterances
    with pytest.raises(KitError, match="split test. could not be opened"):
        prepare.prepare(f"{tmp_path / 'set'}:test", Run("other", tmp_path / "runs"), Config())


def test_a_dataset_cannot_name_files_outside(tmp_path, run):
    """Mistake: a downloaded dataset takes a private file of this machine for training."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder, 6)
    datasets.Dataset.from_list([{"audio": str(folder / row["file_name"]), "text": row["text"]} for row in rows]
                               ).save_to_disk(tmp_path / "set")
    message = refusal(tmp_path / "set", run)
    assert "row 1" in message and "tapeA_001.wav" in message and "inside the dataset" in message


def test_a_hub_dataset_is_loaded_by_its_split(tmp_path, run, monkeypatch):
    """Mistake: another split than the requested one, or cached audio of a hub dataset that is refused as outside."""
    cache = tmp_path / "cache"
    rows = [{"audio": str(cache / row["file_name"]), "text": row["text"]} for row in write_clips(cache, 6)]
    calls = []

    def load_from_hub(name, split):
        calls.append((name, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets, "load_dataset", load_from_hub)
    assert len(prepare.prepare("owner/voices:clean", run, Config())) == 6
    assert calls == [("owner/voices", "clean")]
    with pytest.raises(KitError, match="made with source .owner/voices:clean., not .owner/voices:train"):
        prepare.prepare("owner/voices", run, Config())
    (cache / "clips" / "tapeA_002.wav").unlink()
    with pytest.raises(KitError, match="owner/voices:clean row 2: tapeA_002.wav is missing"):
        prepare.prepare("owner/voices:clean", Run("other", tmp_path / "runs"), Config())


def test_a_dataset_without_text_is_refused_with_its_columns(tmp_path, run):
    """Mistake: a bare KeyError where a column has another name."""
    datasets.Dataset.from_list([{"audio": "a.wav", "words": "Hi"}]).save_to_disk(tmp_path / "set")
    message = refusal(tmp_path / "set", run)
    assert "columns audio, words; text is missing" in message and "rename_column" in message


# unusable rows


def write_float(path, samples, rate=RATE):
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, subtype="FLOAT")


BAD_CLIPS = {
    "missing": (lambda path: path.unlink(), ["is missing", "Put it there"]),
    "unreadable": (lambda path: path.write_bytes(b"no sound" * 99), ["cannot be read as audio", "export it again"]),
    "no bytes": (lambda path: path.write_bytes(b""), ["is empty", "Copy it again"]),
    "zero length": (lambda path: write_float(path, []), ["zero length", "Record it again"]),
    "silent": (lambda path: write_float(path, np.zeros(RATE)), ["is silent", "-60 dBFS", "Record it again"]),
    "NaN": (lambda path: write_float(path, [0.1, np.nan] * RATE), ["NaN", "Export it again"]),
    "8 kHz": (lambda path: write_float(path, voice(3, 1.0, 8_000), 8_000),
              ["8 kHz telephone audio has nothing above 4 kHz", "16 kHz or more", "Use the original"]),
    "long": (lambda path: write_float(path, voice(3, 31.2)),
             ["lasts 31.2 s; the limit is 30 s. Split it or raise max_seconds."]),
    "short": (lambda path: write_float(path, voice(3, 0.4)), ["0.40 s", "the minimum is 0.5 s", "Join it"]),
    "a click": (lambda path: write_float(path, [0.0] * RATE + [0.5] * 99 + [0.0] * RATE),
                ["the minimum is 0.5 s"]),
    "same content": (lambda path: path.write_bytes((path.parent / "tapeA_001.wav").read_bytes()),
                     ["sounds exactly like clips/tapeA_001.wav of row 1", "Remove one"]),
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_bad_clips_are_refused_with_row_and_remedy(tmp_path, run, kind):
    """Mistake: a broken clip is trained on, or the error does not say where it is and what to do."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder)
    write_csv(folder, rows)
    damage, messages = BAD_CLIPS[kind]
    damage(folder / rows[2]["file_name"])
    message = refusal(folder, run)
    for part in ("1 of 8 clips", "metadata.csv row 3: clips/tapeA_003.wav", "--skip-bad", *messages):
        assert part in message


BAD_CELLS = {
    "empty text": ({"text": " "}, ["clips/tapeA_003.wav: the text is empty", "Write what is said"]),
    "wordless text": ({"text": "..."}, ["no letter and no digit"]),
    "long text": ({"text": "word " * 130}, ["650 characters; the limit is 600", "raise max_characters"]),
    "control character": ({"text": "be\x07ll"}, ["U+0007", "position 3", "Remove it"]),
    "no file name": ({"file_name": ""}, ["no file name", "Fill it in"]),
    "same file": ({"file_name": "clips/../clips/tapeA_001.wav"}, ["sounds exactly like clips/tapeA_001.wav of row 1"]),
    "parent folder": ({"file_name": "../../secret.wav"}, ["leads outside", "Copy the file there"]),
    "absolute path": ({"file_name": "/etc/passwd"}, ["'/etc/passwd' leads outside", "Copy the file there"]),
    "link": ({"file_name": "clips/link.wav"}, ["leads outside", "Copy the file there"]),
    "loop": ({"file_name": "clips/loop.wav"}, ["is missing"]),
    "nul": ({"file_name": "clips/a\0.wav"}, ["leads outside"]),
    "endless name": ({"file_name": "x" * 5000}, ["is missing"]),
    "unquoted comma": ({"text": "Hello, you"}, ["3 cells; the header names 2 columns", "double quotes"]),
    "huge cell": ({"text": "x" * 120_000}, ["120001 characters; the limit is 600"]),
}


@pytest.mark.parametrize("kind", BAD_CELLS)
def test_bad_cells_are_refused_with_row_and_remedy(tmp_path, run, kind):
    """Mistake: bad texts and paths that lead out of the folder, or errors that do not name the row."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder)
    soundfile.write(tmp_path / "secret.wav", voice(99), RATE)
    (folder / "clips" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "clips" / "loop.wav").symlink_to(folder / "clips" / "loop.wav")
    cells, messages = BAD_CELLS[kind]
    rows[2] = {**rows[2], **cells}
    write_csv(folder, rows)
    message = refusal(folder, run)
    for part in ("1 of 8 clips", "metadata.csv row 3: ", *messages):
        assert part in message


def test_all_problems_are_reported_at_once(tmp_path, run):
    """Mistake: forty clips have to be fixed one error at a time."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder, 30)
    write_csv(folder, rows)
    for row in rows[4:]:
        (folder / row["file_name"]).unlink()
    lines = refusal(folder, run).splitlines()
    assert lines[0].startswith("26 of 30 clips") and lines[-2] == "... and 6 more."
    assert [line.split(":")[0] for line in lines[1:-2]] == [f"metadata.csv row {number}" for number in range(5, 25)]


def test_bad_clips_can_be_left_out(tmp_path, run, capsys):
    """Mistake: clips are dropped without a message, or good clips are dropped with them."""
    folder = tmp_path / "recordings"
    rows = write_clips(folder)
    write_csv(folder, rows)
    (folder / rows[2]["file_name"]).unlink()
    utterances = prepare.prepare(folder, run, Config(), skip_bad=True)
    assert [utterance.row for utterance in utterances] == [1, 2, 4, 5, 6, 7, 8]
    rejected = [json.loads(line) for line in (run.data / "rejected.jsonl").read_text().splitlines()]
    assert [(row["row"], row["file"]) for row in rejected] == [(3, "clips/tapeA_003.wav")]
    assert "is missing" in rejected[0]["reason"] and "1 of 8 clips were left out" in capsys.readouterr().out


def test_too_few_clips_are_refused(tmp_path, run):
    """Mistake: a voice is evaluated on sentences that it was trained on."""
    folder = tmp_path / "recordings"
    write_csv(folder, write_clips(folder, 5))
    message = refusal(folder, run)
    assert "5 usable clips; the minimum is 6" in message and "Add more clips" in message


# unusable tables


@pytest.mark.parametrize(("content", "messages"), [
    ("file_name,words\na.wav,Hi\n", ["has the columns file_name, words; text is missing", "The first line"]),
    ("LJ001-0001|Printing in the only sense|Printing\n", ["columns LJ001-0001", "file_name and text is missing"]),
    ("file_name,text,text\na.wav,Hi,Ho\n", ["a column twice"]),
    ("", ["has the columns (none)"]), ("file_name,text\n\n", ["no rows"]),
    ('file_name,text\na.wav,Hi\nb.wav,"open\nc.wav,Ho\n', ["line 3 is not well-formed CSV", "double quote"]),
    ("file_name,text\na.wav,caf\xe9\n".encode("latin-1"), ["line 2 is not UTF-8 (byte 0xE9)", "CSV UTF-8"]),
])
def test_bad_tables_are_refused(tmp_path, run, content, messages):
    """Mistake: a table without a header loses its first clip, or texts are garbled by another encoding."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(folder, run)
    for part in ("metadata.csv", *messages):
        assert part in message


@pytest.mark.parametrize(("line", "message"), [
    ("{", "not JSON"), ("[1]", "not an object"), ('{"file_name": "a.wav", "text": ["x"]}', "not an object"),
    ('{"text": "x"}', "no file name"), ('{"file_name": "../a.wav", "text": "x"}', "leads outside"),
    ("[" * 100_000, "not JSON"),
])
def test_bad_json_lines_are_named(tmp_path, line, message):
    """Mistake: one broken line hides the others, or stops everything with a traceback."""
    path = tmp_path / "clips.jsonl"
    path.write_text('{"file_name": "good.wav", "text": "Hi"}\n' + line + "\n")
    assert [message in row.problem for row in sources.rows(str(path))] == [False, True]


@pytest.mark.parametrize(("name", "message"), [
    ("nowhere", "no such file or folder"), ("empty", "has no metadata.csv, and no audio"), ("notes.doc", "is no table"),
    ("notes.txt", "columns x; .*or begin with the name of an audio file"),
])
def test_unusable_sources_are_named(tmp_path, name, message):
    """Mistake: a mistyped folder is looked up on the hub."""
    (tmp_path / "empty").mkdir()
    for file in ("notes.txt", "notes.doc"):
        (tmp_path / file).write_text("x")
    with pytest.raises(KitError, match=message) as caught:
        list(sources.rows(str(tmp_path / name)))
    assert name in str(caught.value)


# speakers


def test_several_speakers_need_a_choice(tmp_path, run, capsys):
    """Mistake: a voice is trained on two people, and a held-out clip is of the wrong one."""
    folder = tmp_path / "recordings"
    rows = [{**row, "source": "bob" if number % 3 else "anna"} for number, row in enumerate(write_clips(folder, 24))]
    write_csv(folder, rows)
    message = refusal(folder, run)
    assert "2 speakers: bob (16 clips), anna (8 clips)" in message and "--speaker NAME" in message
    assert "no speaker 'ana'; it has 2 speakers: bob" in refusal(folder, run, Config(speaker="ana"))
    utterances = prepare.prepare(folder, run, Config(speaker="bob"))
    assert len(utterances) == 16 and {(utterance.speaker, utterance.source) for utterance in utterances} == {("bob", "1")}
    message = capsys.readouterr().out
    assert "8 clips of other speakers" in message and "16 clips, 0.3 minutes, 1 speaker (bob)" in message


def test_rows_without_a_speaker_among_others_are_refused(tmp_path, run):
    """Mistake: an unnamed clip of another person is trained on."""
    folder = tmp_path / "recordings"
    rows = [{**row, "source": "" if number == 2 else "anna"} for number, row in enumerate(write_clips(folder))]
    write_csv(folder, rows)
    message = refusal(folder, run)
    assert "metadata.csv row 3: clips/tapeA_003.wav names no speaker" in message and "Fill in its source" in message


def test_a_speaker_option_for_a_table_without_speakers_is_refused(good, run):
    """Mistake: a mistyped --speaker has no effect."""
    assert "names no speakers; --speaker asks for 'anna'" in refusal(good, run, Config(speaker="anna"))


# the split


def make_utterances(names: list[str], session: str = "") -> list[manifest.Utterance]:
    return [manifest.Utterance(id=f"{row:05d}", audio=Path("x.flac"), text="x.", original_text="x", source="0", speaker="",
                               session=session or manifest.session_of(name), split="", seconds=1.0, row=row,
                               file=name, sha256="")
            for row, name in enumerate(names, 1)]


def neighbours(utterances):
    """Return pairs of clips that follow each other in one recording, by the number in the name."""
    ordered = sorted(utterances, key=lambda utterance: (utterance.session, int(utterance.file.split("_")[1])))
    return [(one, other) for one, other in itertools.pairwise(ordered) if one.session == other.session]


@pytest.mark.parametrize("sizes", [[6], [50], [3, 3], [30, 30, 1], [50, 50, 1, 1], [5, 1]])
def test_no_training_clip_is_next_to_a_held_out_one(sizes):
    """Mistake: a score is good because the neighbouring clip was trained on, whatever order the table has."""
    names = [f"tape{chr(65 + tape)}_{number}" for tape, size in enumerate(sizes) for number in range(size)]
    order = np.random.default_rng(1).permutation(len(names))
    for seed in range(30):
        utterances = manifest.assign_splits(make_utterances([names[index] for index in order]), 0.1, seed)
        for one, other in neighbours(utterances):
            assert {one.split, other.split} != {"train", "held_out"}
        count = {split: sum(utterance.split == split for utterance in utterances)
                 for split in ("train", "held_out", "excluded")}
        assert count["held_out"] >= 2 and count["train"] >= 1 and count["excluded"] <= 2
        assert count["held_out"] <= max(2, 0.15 * len(names))


@pytest.mark.parametrize(("sizes", "held"), [([1] * 40, {4}), ([10] * 10, {10}), ([4, 4, 4], {4}), ([20] * 3, {20}),
                                             ([9, 30, 30, 30, 1], {9, 10})])
def test_whole_recordings_are_held_out(sizes, held):
    """Mistake: one recording is divided where there are several, or far more is held out than requested."""
    names = [f"tape{chr(65 + tape)}_{number}" for tape, size in enumerate(sizes) for number in range(size)]
    for seed in range(10):
        utterances = manifest.assign_splits(make_utterances(names), 0.1, seed)
        splits = {}
        for utterance in utterances:
            splits.setdefault(utterance.session, set()).add(utterance.split)
        assert all(len(session_splits) == 1 and "excluded" not in session_splits for session_splits in splits.values())
        assert sum(utterance.split == "held_out" for utterance in utterances) in held


@pytest.mark.parametrize("sizes", [[50], [5] * 20])
def test_the_seed_decides_the_split(sizes):
    """Mistake: the split changes between two calls, or no seed changes it."""
    names = [f"tape{chr(65 + tape)}_{number}" for tape, size in enumerate(sizes) for number in range(size)]
    splits = [[utterance.split for utterance in manifest.assign_splits(make_utterances(names), 0.1, seed)]
              for seed in (1, 1, 2, 3, 4)]
    assert splits[0] == splits[1] and len(set(map(tuple, splits))) >= 3


def test_a_named_recording_keeps_the_order_of_the_table():
    """Mistake: names without numbers are sorted, although only the table knows their order."""
    names = [f"take{number % 7}b" for number in range(30)]
    utterances = manifest.assign_splits(make_utterances(names, session="sitting"), 0.1, 5)
    splits = [utterance.split for utterance in utterances]
    first = splits.index("held_out")
    assert splits[first:first + 3] == ["held_out"] * 3 and splits.count("held_out") == 3


def test_a_share_without_training_clips_is_refused():
    """Mistake: training on no clip at all."""
    with pytest.raises(KitError, match="held_out 0.95 leaves none of 6 clips"):
        manifest.assign_splits(make_utterances([f"tape_{number}" for number in range(6)]), 0.95, 1)


@pytest.mark.parametrize(("file", "session"), [
    ("LJ001-0001.wav", "LJ001"), ("clip_007.flac", "clip"), ("intro.wav", "intro"), ("tape2/001.wav", "tape2"),
    ("001.wav", "recording"), ("tape2/a_1.wav", "tape2/a"), ("1034_121119_000005_000001.wav", "1034_121119_000005"),
])
def test_the_session_is_part_of_the_file_name(file, session):
    """Mistake: every clip counts as a recording of its own, and neighbours are in both splits."""
    assert manifest.session_of(file) == session


# the data folder


def test_the_same_source_is_not_prepared_again(good, run, capsys):
    """Mistake: an hour of work is repeated, possibly while another stage reads the data."""
    first = prepare.prepare(good, run, Config())
    before = {path: path.stat().st_mtime_ns for path in run.data.rglob("*")}
    assert prepare.prepare(f"{good}/", run, Config(steps=7)) == first
    assert "used again" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.data.rglob("*")} == before


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: {"config": Config(max_seconds=20)}, "made with max_seconds 30.0, not 20"),
    (lambda folder: {"skip_bad": True}, "made with skip_bad False, not True"),
    (lambda folder: soundfile.write(folder / "clips/tapeA_001.wav", voice(50), RATE), "changed since"),
    (lambda folder: write_csv(folder, [{"file_name": "x.wav", "text": "New"}]), "changed since"),
    (lambda folder: {"source": folder / "metadata.csv"}, "made with source"),
])
def test_other_data_is_not_overwritten(good, run, change, message):
    """Mistake: an adapter's data folder is silently replaced by that of another source."""
    prepare.prepare(good, run, Config())
    before = contents(run.data)
    arguments = {"source": good, "run": run, "config": Config()}
    changed = change(good)
    with pytest.raises(KitError, match=message) as caught:
        prepare.prepare(**arguments | (changed if isinstance(changed, dict) else {}))
    assert "choose another run name" in str(caught.value) and f"delete {run.data}" in str(caught.value)
    assert contents(run.data) == before


def test_data_of_unknown_origin_is_not_overwritten(good, run):
    """Mistake: a user's own files are deleted."""
    run.data.mkdir(parents=True)
    (run.data / "mine.txt").write_text("keep")
    with pytest.raises(KitError, match="older version of tts_kit"):
        prepare.prepare(good, run, Config())
    assert contents(run.data) == {Path("mine.txt"): b"keep"}


def test_a_missing_manifest_names_the_command(run):
    """Mistake: a later stage fails with a path and no remedy."""
    with pytest.raises(KitError, match=r"tts-kit prepare SOURCE --run voice"):
        manifest.read(run.data)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda row: {**row, "audio": "../../secret.flac"}, "leads outside"),
    (lambda row: {**row, "audio": "/etc/passwd"}, "leads outside"),
    (lambda row: {**row, "audio": "clips/gone.flac"}, "is missing"),
    (lambda row: {**row, "mood": "calm"}, "no utterance of this version"),
    (lambda row: {"id": row["id"]}, "no utterance of this version"), (lambda row: [1], "no utterance of this version"),
])
def test_a_manifest_is_validated(good, run, damage, message):
    """Mistake: a manifest from elsewhere names files outside the run, or clips that do not exist."""
    prepare.prepare(good, run, Config())
    path = run.data / "manifest.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(damage(json.loads(lines[3])))
    path.write_text("\n".join(lines))
    with pytest.raises(KitError, match=message) as caught:
        manifest.read(run.data)
    assert "manifest.jsonl line 4" in str(caught.value) and "tts-kit prepare" in str(caught.value)


FULL_DISK = """
import resource, sys
from pathlib import Path
from tts_kit.config import Config
from tts_kit.data import manifest, prepare
from tts_kit.run import Run
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
name, root, source = sys.argv[1:]
run = Run(name, root)
if source:
    prepare.prepare(source, run, Config())
else:
    manifest.write(run.data, manifest.read(run.data) * 20)
"""


@pytest.mark.parametrize("rewrite", [False, True])
def test_a_full_disk_loses_nothing(good, run, rewrite):
    """Mistake: half a data folder, or half a manifest over a whole one, when the kernel refuses to write."""
    utterances = prepare.prepare(good, run, Config())
    other = run if rewrite else Run("second", run.folder.parent)
    before = contents(run.folder.parent)
    done = process.run(["-c", FULL_DISK, other.name, run.folder.parent, "" if rewrite else good])
    assert "KitError" in done.stderr and "the disk is full" in done.stderr and done.returncode == 1
    assert contents(run.folder.parent) == before and manifest.read(run.data) == utterances
    assert not other.folder.exists() or {path.name for path in other.folder.iterdir()} <= {"data", "config.json"}
    assert len(prepare.prepare(good, other, Config())) == 8


KILLED = """
import os, signal, sys
from tts_kit import audio
from tts_kit.config import Config
from tts_kit.data import manifest, prepare
from tts_kit.run import Run
write, written = audio.write, []
def write_three(path, samples, rate):
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(write(path, samples, rate))
audio.write = write_three
prepare.prepare(sys.argv[2], Run("voice", sys.argv[1]), Config())
"""


def test_a_killed_run_leaves_no_data_folder(good, run):
    """Mistake: the next stage takes a folder with half of the clips for complete."""
    done = process.run(["-c", KILLED, run.folder.parent, good])
    assert done.returncode == -signal.SIGKILL and len(list(run.folder.rglob("*.flac"))) == 3
    assert not run.data.exists()
    assert len(prepare.prepare(good, run, Config())) == 8


def test_ids_are_unique_safe_and_stable(tmp_path, run):
    """Mistake: two clips with one name overwrite each other, or a file name is invalid."""
    folder = tmp_path / "recordings"
    rows = []
    names = ["a/Ünï cödé 1.wav", "b/Ünï cödé 1.wav", "c/-x.wav", "d/漢字.wav", f"e/{'y' * 90}.wav", "f/z.wav"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True)
        soundfile.write(folder / name, voice(number), RATE)
        rows.append({"file_name": name, "text": "Hello"})
    write_csv(folder, rows)
    ids = [utterance.id for utterance in prepare.prepare(folder, run, Config())]
    assert ids[:4] == ["00001-n-c-d-1", "00002-n-c-d-1", "00003-x", "00004"] and len(set(ids)) == 6
    assert all(len(id) < 80 and id.isascii() for id in ids)


def test_utterances_are_immutable():
    """Mistake: a stage modifies clips that the manifest describes."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_utterances(["a_1"])[0].split = "train"
