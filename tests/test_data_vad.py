"""Stretches of speech and how they are merged to clips."""

import dataclasses

import numpy as np

from tts_kit.data import vad
from tts_kit.data.vad import VadTrack


def track_of(*spans: tuple[float, float], seconds: float = 60.0) -> VadTrack:
    """Speech at -20 dB between these seconds, over noise at -60 dB."""
    speech_prob = np.zeros(round(seconds / vad.FRAME), np.float32)
    for start, end in spans:
        speech_prob[round(start / vad.FRAME):round(end / vad.FRAME)] = 1
    return VadTrack(np.where(speech_prob > 0, -20, -60).astype(np.float32), speech_prob, np.zeros_like(speech_prob))


def merged(track: VadTrack) -> list[tuple[float, float]]:
    """Start and end of the speech in each clip, in tenths of seconds: levels are smoothed over 50 ms."""
    return [(round(start * vad.FRAME, 1), round(end * vad.FRAME, 1))
            for start, end in vad.merge_segments(track, vad.speech_segments(track))]


def test_sentences_are_merged_to_clips_that_train_well():
    """Mistake: clips of one word, of half a minute, or with a long silence inside."""
    assert merged(track_of((1, 2), (2.5, 4), (4.4, 5))) == [(1, 5)]
    assert merged(track_of((1, 8), (8.3, 15), (15.6, 22))) == [(1, 8), (8.3, 15), (15.6, 22)]
    assert merged(track_of((1, 5), (6.5, 10))) == [(1, 5), (6.5, 10)]
    assert merged(track_of((1, 5), (5.1, 9))) == [(1, 9)], "a pause of 0.1 s is no place to cut"
    assert merged(track_of((1, 20), (20.5, 39), (39.3, 41))) == [(1, 20), (20.5, 41)]
    assert merged(track_of((1, 45))) == [(1, 45)], "there is no pause to cut in"


def test_a_clipped_sentence_is_merged_with_no_other():
    """Mistake: one shouted sentence is merged with its neighbours, and all of them are rejected."""
    track = track_of((1, 3), (3.4, 5.4), (5.8, 7.8))
    assert len(merged(track)) == 1
    track.clipped[350:540] = 0.01
    assert len(merged(track)) == 3
    track.clipped[:] = 0.0005
    assert len(merged(track)) == 1, "a few samples at full scale do no harm"


def test_onset_and_offset_have_different_thresholds():
    """Mistake: one threshold, which chops a word where the VAD is unsure for a moment; or a breath counted as a word."""
    speech_prob = np.zeros(300, np.float32)
    speech_prob[50:100], speech_prob[100:110], speech_prob[110:150], speech_prob[220:225] = 0.9, 0.4, 0.9, 0.9
    track = VadTrack(np.full(300, -60, np.float32), speech_prob, np.zeros(300, np.float32))
    assert vad.speech_segments(track) == [(50, 150)]


def test_quiet_sounds_at_the_edges_belong_to_the_word():
    """Mistake: the s of "yes" is left out because the VAD ends before it."""
    track = track_of((1, 2))
    level_db = track.level_db.copy()
    level_db[200:215], level_db[96:100] = -45, -45
    assert vad.speech_segments(dataclasses.replace(track, level_db=level_db)) == [(94, 217)]  # smoothed over 50 ms


def test_a_cut_lies_where_it_is_quietest():
    """Mistake: a cut in the middle of a pause, through a breath or a click."""
    level_db = np.full(100, -40, np.float32)
    level_db[60:70] = -70
    assert 60 <= vad.lowest_energy_frame(VadTrack(level_db, *np.zeros((2, 100), np.float32)), 20, 90) < 70
