"""The review store: no edit is lost or applied twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SEGMENT_TEXTS, make_segments

from tts_kit import io
from tts_kit.data import review, segment, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review import CHECKED, DROPPED, NEW, ReviewStore
from tts_kit.errors import KitError


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_segments(tmp_path)


def state(store: ReviewStore) -> dict:
    return {clip.id: (clip.text, clip.state, clip.spans) for clip in store.clips}


def edit(store: ReviewStore, id: str, **request) -> list:
    return store.edit({"id": id} | request)


def test_clips_are_the_segments_with_their_transcripts(folder):
    """Mistake: rejected segments among the clips, or texts of one recording with clips of another."""
    clips = ReviewStore(folder, "base").clips
    assert [clip.text for clip in clips] == list(SEGMENT_TEXTS)
    assert [clip.id for clip in clips][3:5] == ["monday/00004", "tuesday/00001"]
    assert {clip.state for clip in clips} == {NEW}


def test_edits_add_up(folder):
    """Mistake: an edit that changes another clip, or one that is forgotten when the process ends."""
    store = ReviewStore(folder, "base")
    edit(store, "monday/00001", action="text", text="He lost  two “wooden” chairs")
    edit(store, "monday/00002", action="check")
    edit(store, "monday/00003", action="drop")
    edit(store, "tuesday/00001", action="drop")
    edit(store, "tuesday/00001", action="restore")
    result = state(store)
    assert result["monday/00001"][:2] == ('He lost two "wooden" chairs.', CHECKED)
    assert [result[f"monday/0000{number}"][1] for number in (2, 3, 4)] == [CHECKED, DROPPED, NEW]
    assert result["tuesday/00001"][:2] == (SEGMENT_TEXTS[4], NEW)
    assert state(ReviewStore(folder, "base")) == result


def test_a_split_and_a_merge_lose_no_sound(folder):
    """Mistake: halves that overlap or miss samples, clips that change their order, or a merge across recordings."""
    store = ReviewStore(folder, "base")
    original = store.read_audio("monday/00002")
    edit(store, "monday/00002", action="split", at=1.1, texts=["The dog", "ran away."])
    assert [clip.id for clip in store.clips][:4] == ["monday/00001", "monday/00002a", "monday/00002b", "monday/00003"]
    halves = [store.read_audio(f"monday/00002{letter}") for letter in "ab"]
    assert len(halves[0]) == round(1.1 * SAMPLE_RATE) and np.array_equal(np.concatenate(halves), original)
    edit(store, "monday/00002b", action="merge", other="monday/00003")
    merged = next(clip for clip in store.clips if clip.id == "monday/00002b")
    assert merged.text == "ran away. Who is that girl?" and merged.state == NEW
    assert np.array_equal(store.read_audio("monday/00002b"), np.concatenate([halves[1], store.read_spans(merged.spans[1:])]))
    edit(store, "monday/00002b", action="split", at=2.0, texts=["one", "two"])
    assert sum(clip.seconds for clip in store.clips) == pytest.approx(2 * (2 + 2.5 + 3 + 3.5))
    with pytest.raises(KitError, match="only neighbours can be merged"):
        edit(store, "monday/00004", action="merge", other="tuesday/00001")
    with pytest.raises(KitError, match="only neighbours can be merged"):
        edit(store, "monday/00001", action="merge", other="monday/00004")


def test_undo_takes_back_one_edit_after_the_other(folder):
    """Mistake: undo of an undo, or an undo that leaves half of a split."""
    store = ReviewStore(folder, "base")
    states = [state(store)]
    edit(store, "monday/00001", action="text", text="Other words.")
    states.append(state(store))
    edit(store, "monday/00001", action="split", at=1.0, texts=["Other", "words"])
    states.append(state(store))
    edit(store, "monday/00001b", action="merge", other="monday/00002")
    for expected in states[::-1]:
        store.edit({"action": "undo"})
        assert state(store) == expected == state(ReviewStore(folder, "base"))
    store.edit({"action": "undo", "id": ["ignored"]})
    assert state(store) == states[0] == state(ReviewStore(folder, "base"))


def test_two_tabs_see_the_edits_of_each_other(folder):
    """Mistake: a second tab corrects a clip that no longer exists, and the review cannot be opened again."""
    first, second = ReviewStore(folder, "base"), ReviewStore(folder, "base")
    edit(first, "monday/00001", action="split", at=1.0, texts=["First", "tab"])
    with pytest.raises(KitError, match="no clip 'monday/00001' any more"):
        edit(second, "monday/00001", action="text", text="Second tab.")
    edit(second, "monday/00002", action="text", text="Second tab.")
    assert state(first) == state(second) == state(ReviewStore(folder, "base"))
    second.edit({"action": "undo"})
    edit(first, "monday/00001b", action="drop")
    assert state(first) == state(second) and state(second)["monday/00002"][0] == SEGMENT_TEXTS[1]


def test_half_a_line_of_a_killed_process_is_no_edit(folder):
    """Mistake: a broken last line makes the whole review unreadable, or is continued by the next edit."""
    store = ReviewStore(folder, "base")
    edit(store, "monday/00001", action="text", text="Kept.")
    with open(folder / review.HISTORY, "ab") as file:
        file.write(b'{"action": "text", "id": "monday/0000')
    reopened = ReviewStore(folder, "base")
    assert state(reopened)["monday/00001"][0] == "Kept."
    edit(reopened, "monday/00002", action="drop")
    lines = (folder / review.HISTORY).read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["text", "drop"]


@pytest.mark.parametrize("invalid, message", [
    ({"action": "text", "text": "  "}, "text is empty"), ({"action": "text", "text": 7}, "at most 2000"),
    ({"action": "text", "text": "x" * 2001}, "at most 2000"), ({"action": "text", "text": "a\u202eb"}, "cannot be spoken"),
    ({"action": "split", "at": 0.1, "texts": ["a", "b"]}, "on each side"), ({"action": "split", "at": "1"}, "on each side"),
    ({"action": "split", "at": float("nan"), "texts": ["a", "b"]}, "on each side"),
    ({"action": "split", "at": 1.0, "texts": ["a"]}, "two texts"), ({"action": "rm -rf"}, "is no edit"), ({}, "is no edit"),
    ({"action": "merge", "other": "monday/00009"}, "no clip 'monday/00009'"),
    ({"action": "merge", "other": ["x"]}, "no clip")])
def test_invalid_requests_are_refused(folder, invalid, message):
    """Mistake: an invalid request is stored in the history, and the review cannot be opened again."""
    store = ReviewStore(folder, "base")
    with pytest.raises(KitError, match=message):
        store.edit({"id": "monday/00001"} | invalid)
    assert not (folder / review.HISTORY).exists() and state(store) == state(ReviewStore(folder, "base"))


def test_an_old_review_is_not_applied_to_new_segments(folder):
    """Mistake: corrections of one segmentation on the clips of another."""
    edit(ReviewStore(folder, "base"), "monday/00004", action="text", text="Mine.")
    segments = folder / "monday" / segment.SEGMENTS
    io.write_rows(segments, io.read_rows(segments)[:3])
    with pytest.raises(KitError, match="is about other clips than monday holds now"):
        ReviewStore(folder, "base")


def test_equally_many_clips_of_another_recording_are_not_the_same_clips(folder):
    """Mistake: a recording is replaced and segmented again, and old corrections apply to other audio, as checked."""
    edit(ReviewStore(folder, "base"), "monday/00001", action="text", text="Mine.")
    segments = folder / "monday" / segment.SEGMENTS
    io.write_rows(segments, [row | {"start": row["start"] + 1.0} for row in io.read_rows(segments)])
    with pytest.raises(KitError, match="is about other clips than monday holds now"):
        ReviewStore(folder, "base")
    (folder / review.HISTORY).unlink()
    assert ReviewStore(folder, "base").clips[0].text == SEGMENT_TEXTS[0]


def test_an_interrupted_transcription_is_reported(folder):
    """Mistake: a traceback when a transcription was stopped half-way."""
    table = folder / "tuesday" / transcribe.transcripts_file("base")
    io.write_rows(table, io.read_rows(table)[:2])
    with pytest.raises(KitError, match=r"00003.flac has no transcript yet"):
        ReviewStore(folder, "base")
