"""A long recording becomes clips: no word is cut, nothing disappears without a reason, and memory does not grow."""

import csv
import dataclasses
import importlib.util
import itertools
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import process
import pytest
import soundfile

from tts_kit import audio
from tts_kit.data import segment
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.segment import VadTrack
from tts_kit.errors import KitError
from tts_kit.run import read_inputs

RECORDING = Path(__file__).parent.parent / "sample_data" / "recording.flac"
VAD = pytest.mark.skipif(not importlib.util.find_spec("faster_whisper"),
                         reason='faster-whisper is not installed: pip install "tts-kit[audio]"')
FFMPEG = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed (apt-get install ffmpeg)")


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return audio.read(RECORDING, SAMPLE_RATE)


def true_spans() -> list[tuple[float, float]]:
    """Start and end of every sentence of the recording in seconds."""
    with open(RECORDING.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return [(float(row["start"]), float(row["end"])) for row in csv.DictReader(file) if row["text"]]


@VAD
def test_no_word_is_cut_and_no_sentence_is_lost(segmented_recording):
    """Mistake: cuts at the VAD's own borders, which lie inside quiet first and last sounds."""
    segments = segment.read_segments(segmented_recording)
    for start, end in true_spans():
        overlapping = [part for part in segments if part.start < end and part.end > start]
        assert overlapping, f"the sentence at {start} s is in no clip"
        assert all(part.start <= start + 0.03 and part.end >= end - 0.03 for part in overlapping), f"cut near {start} s"


@VAD
def test_clips_are_what_the_recording_holds_there(segmented_recording, recording):
    """Mistake: clips shifted by a block's border, fades that eat a sound, or a different gain for every clip."""
    segments, gains, fade = segment.read_segments(segmented_recording), [], round(segment.FADE * SAMPLE_RATE)
    for part in segments:
        clip, rate = soundfile.read(segmented_recording / part.file, dtype="float32")
        original = recording[round(part.start * SAMPLE_RATE):round(part.end * SAMPLE_RATE)]
        assert rate == SAMPLE_RATE and len(clip) == len(original)
        assert abs(clip[0]) < 1e-3 and abs(clip[-1]) < 1e-3
        clip, original = clip[fade:-fade], original[fade:-fade]
        gains.append(float(clip @ original / (original @ original)))
        assert np.abs(clip - gains[-1] * original).max() < 1e-3
    assert max(gains) == pytest.approx(min(gains), rel=0.01)
    assert all(left.end <= right.start for left, right in itertools.pairwise(segments))


@VAD
def test_segments_record_their_origin_and_measurements(segmented_recording):
    """Mistake: the origin of a clip cannot be traced later."""
    assert read_inputs(segmented_recording)["recording"] == RECORDING.name
    segments = segment.read_segments(segmented_recording)
    assert all(part.snr_db > 20 and part.edge_db > segment.CUT_WORD_DB for part in segments)


@VAD
def test_segments_are_reused_and_a_changed_recording_is_refused(tmp_path):
    """Mistake: an hour is segmented again in every run, or clips of two recordings are mixed under one name."""
    source = tmp_path / "take.flac"
    samples, rate = soundfile.read(RECORDING, frames=20 * 24_000)
    soundfile.write(source, samples, rate)
    first = segment.segment_recording(source, tmp_path / "segments")
    clip = tmp_path / "segments" / "take" / first[0].file
    modified = clip.stat().st_mtime_ns
    assert segment.segment_recording(source, tmp_path / "segments") == first
    source.write_bytes(source.read_bytes()[:-1000] + bytes(1000))
    with pytest.raises(KitError, match=r"cut from another version of take.flac"):
        segment.segment_recording(source, tmp_path / "segments")
    assert clip.stat().st_mtime_ns == modified


@VAD
def test_two_recordings_of_one_name_are_both_segmented(tmp_path, recording):
    """Mistake: a recorder gives every day's file the same name: the second is refused, or taken for the first."""
    for day, start in (("monday", 0), ("tuesday", 30)):
        audio.write(tmp_path / day / "ZOOM0001.wav", recording[start * SAMPLE_RATE:(start + 15) * SAMPLE_RATE], SAMPLE_RATE)
        segment.segment_recording(tmp_path / day / "ZOOM0001.wav", tmp_path / "segments")
    assert [folder.name for folder in segment.segment_folders(tmp_path / "segments")] == ["ZOOM0001", "ZOOM0001-2"]
    for day, name in (("monday", "ZOOM0001"), ("tuesday", "ZOOM0001-2")):
        assert segment.segment_folder(tmp_path / day / "ZOOM0001.wav", tmp_path / "segments").name == name
    shutil.move(tmp_path / "tuesday", tmp_path / "moved")
    assert segment.segment_folder(tmp_path / "moved" / "ZOOM0001.wav", tmp_path / "segments").name == "ZOOM0001-2"


@VAD
def test_an_hour_without_a_pause_is_not_held_in_memory(tmp_path, recording, monkeypatch):
    """Mistake: background music keeps the VAD active, and the whole hour is one segment, upsampled when measured."""
    lengths = []
    monkeypatch.setattr(segment, "plan", lambda track: [segment.Segment("", 0.0, track.seconds, 40, 40)])
    monkeypatch.setattr(audio, "true_peak", lambda samples: lengths.append(len(samples)) or 0.5)
    audio.write(tmp_path / "long.wav", np.tile(recording[10 * SAMPLE_RATE:20 * SAMPLE_RATE], 12), SAMPLE_RATE)
    [part] = segment.segment_recording(tmp_path / "long.wav", tmp_path / "segments")
    assert part.reason.startswith("too long: 120.0 s") and part.end == 120.0
    assert max(lengths) < 35 * SAMPLE_RATE


@VAD
@pytest.mark.parametrize("reason, damage", [
    ("clipped", lambda samples, noise: np.clip(40 * samples, -1, 1)),
    ("noisy", lambda samples, noise: samples + 0.9 * samples.std() * noise)])
def test_unusable_segments_are_rejected_with_their_reason(tmp_path, recording, reason, damage):
    """Mistake: distorted or buried speech is trained on, or segments vanish and cannot be listened to."""
    noise = np.random.default_rng(0).normal(0, 1, 20 * SAMPLE_RATE).astype(np.float32)
    audio.write(tmp_path / "take.wav", damage(recording[:20 * SAMPLE_RATE], noise), SAMPLE_RATE)
    segments = segment.segment_recording(tmp_path / "take.wav", tmp_path / "segments")
    assert {part.reason.partition(":")[0] for part in segments} == {reason}
    files = [tmp_path / "segments" / "take" / part.file for part in segments]
    assert all(file.is_file() and file.parent.name == "rejected" for file in files)
    assert f"0 clips, 0.0 minutes; rejected: {len(segments)} {reason}" in segment.summary(segments)


@VAD
def test_only_the_clipped_part_is_rejected(tmp_path, recording):
    """Mistake: clipped samples are attributed to the wrong frames, as when the VAD's context counts too."""
    start, end = true_spans()[1]
    samples = recording[:30 * SAMPLE_RATE].copy()
    samples[round(start * SAMPLE_RATE):round(end * SAMPLE_RATE)] *= 40
    audio.write(tmp_path / "take.flac", np.clip(samples, -1, 1), SAMPLE_RATE)
    segments = segment.segment_recording(tmp_path / "take.flac", tmp_path / "segments")
    rejected = [part for part in segments if part.reason.startswith("clipped")]
    assert rejected and all(part.clipped == 0 for part in segments if part not in rejected)
    assert all(start - 0.5 < part.start and part.end < end + 0.5 for part in rejected)


@pytest.mark.parametrize("edge_db, snr_db, may_be_cut", [(30, 40, False), (5, 40, True), (8, 10, False), (3, 20, True)])
def test_an_edge_as_quiet_as_the_noise_cuts_no_word(edge_db, snr_db, may_be_cut):
    """Mistake: every clip of a noisy recording is flagged for a cut word, and real cuts are overlooked."""
    assert segment.Segment("", 0, 5, snr_db, edge_db).may_cut_a_word == may_be_cut


def test_segments_of_a_bad_length_are_rejected():
    """Mistake: speech without a pause is cut in the middle of a word, or half a word becomes a clip."""
    assert segment.rejection_reason(segment.Segment("", 0.9, 45.25, 40, 40)) == (
        "too long: 44.4 s without a pause to cut in, wanted 29.85 s at most")
    assert segment.rejection_reason(segment.Segment("", 0, 0.9, 40, 40)).startswith("too short: 0.9 s")
    assert not segment.rejection_reason(segment.Segment("", 0, 5, 40, 40))


def test_neighbours_do_not_overlap():
    """Mistake: the end of a clip contains the first sound of the next."""
    speech_prob = np.zeros(6000, np.float32)
    speech_prob[100:1200] = speech_prob[1230:2400] = 1
    track = VadTrack(np.where(speech_prob > 0, -20, -60).astype(np.float32), speech_prob, np.zeros_like(speech_prob))
    first, second = segment.plan(track)
    assert 12 < first.end <= second.start < 12.3


def bad_files(folder: Path) -> dict[str, str]:
    """Write unusable files; return each name with a part of its error."""
    (folder / "empty.wav").touch()
    soundfile.write(folder / "header.wav", np.zeros(0), 16_000)
    (folder / "text.wav").write_text("this is no audio", encoding="utf-8")
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(folder / "silence.wav", np.zeros(5 * 16_000), 16_000)
    soundfile.write(folder / "telephone.wav", np.random.default_rng(1).normal(0, 0.1, 8_000), 8_000)
    return {"telephone.wav": "sampled at 8 kHz", "empty.wav": "is empty", "header.wav": "zero length",
            "text.wav": "cannot be read", "nan.wav": "NaN", "silence.wav": "nobody speaks", "absent.wav": "no such file"}


@VAD
def test_bad_files_get_a_message_of_one_line(tmp_path):
    """Mistake: a traceback, or an incomplete folder."""
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(KitError, match=message) as caught:
            segment.segment_recording(tmp_path / name, tmp_path / "segments")
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "segments").exists() or not any((tmp_path / "segments").iterdir())


@VAD
def test_music_alone_is_no_speech(tmp_path):
    """Mistake: an intro becomes clips, and the model learns to sing."""
    seconds = np.arange(20 * SAMPLE_RATE) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * 220 * ratio * seconds) for ratio in (1, 1.25, 1.5)) * (1 + np.sin(seconds)) / 20
    audio.write(tmp_path / "music.wav", chord.astype(np.float32), SAMPLE_RATE)
    with pytest.raises(KitError, match="nobody speaks"):
        segment.segment_recording(tmp_path / "music.wav", tmp_path / "segments")


@VAD
def test_a_file_that_grows_is_refused(tmp_path, recording, monkeypatch):
    """Mistake: half of a running recording is segmented as if it were all of it, and reused for ever."""
    audio.write(tmp_path / "take.wav", recording[:10 * SAMPLE_RATE], SAMPLE_RATE)
    original = audio.amplify

    def append_and_amplify(samples, gain):
        with (tmp_path / "take.wav").open("ab") as file:
            file.write(bytes(1000))
        return original(samples, gain)

    monkeypatch.setattr(audio, "amplify", append_and_amplify)
    with pytest.raises(KitError, match="has changed while it was read"):
        segment.segment_recording(tmp_path / "take.wav", tmp_path / "segments")
    assert not list((tmp_path / "segments").iterdir())


@VAD
def test_a_full_disk_leaves_nothing_half_made(tmp_path):
    """Mistake: a traceback, and a folder of the first clips that is taken for the whole recording next time."""
    script = ("import resource, signal, sys\nfrom tts_kit.data import segment\nfrom tts_kit.errors import KitError\n"
              "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
              "try:\n    segment.segment_recording(sys.argv[1], sys.argv[2])\nexcept KitError as error:\n    print(error)")
    output = process.run(["-c", script, RECORDING, tmp_path / "segments"]).stdout
    assert "the disk is full" in output and output.count("\n") == 1
    assert not list((tmp_path / "segments").iterdir())


def test_folder_names_contain_no_path():
    """Mistake: a name with dots, quotes or newlines leads out of the folder, or two recordings share one folder."""
    names = ["../../evil.wav", "a b.wav", "a-b.wav", "a\nb.wav", "'\".wav", "....wav"]
    folders = [segment.folder_name(Path(name)) for name in names]
    assert len(set(folders)) == len(names)
    assert all("/" not in folder and not folder.startswith(".") and folder.isprintable() for folder in folders)


@pytest.mark.slow
@VAD
def test_memory_does_not_grow_with_the_recording(tmp_path, recording):
    """Mistake: the whole recording is read before it is segmented."""
    from faster_whisper.vad import get_vad_model

    get_vad_model()
    peaks = []
    for times in (2, 6):
        soundfile.write(tmp_path / f"{times}.flac", np.tile(recording, times), SAMPLE_RATE)
        tracemalloc.start()
        segment.segment_recording(tmp_path / f"{times}.flac", tmp_path / "segments")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("rate, channels", [(16_000, 1), (44_100, 2), (96_000, 6)])
def test_blocks_are_the_whole_file(tmp_path, rate, channels):
    """Mistake: samples lost or doubled between blocks, one channel taken for all, or a new resampler for every block."""
    gains = np.random.default_rng(1).uniform(0.1, 0.2, channels)
    tone = np.sin(np.arange(70 * rate) * 2 * np.pi * 440 / rate)[:, None] * gains
    soundfile.write(tmp_path / "tone.wav", tone, rate, subtype="PCM_16")
    blocks = list(audio.read_blocks(tmp_path / "tone.wav", 16_000))
    samples = np.concatenate(blocks)
    assert len(blocks) > 1 and abs(len(samples) - 70 * 16_000) <= 1
    expected = audio.resample(tone.mean(axis=1).astype(np.float32), rate, 16_000)
    assert np.abs(samples[100:-100] - expected[100:len(samples) - 100]).max() < 2e-3


@FFMPEG
@pytest.mark.parametrize("suffix", ["m4a", "webm", "mp4"])
def test_containers_are_decoded_by_pyav(tmp_path, suffix):
    """Mistake: the audio of a phone or a video is refused."""
    pytest.importorskip("av")
    subprocess.run(["ffmpeg", "-v", "error", "-t", "5", "-i", RECORDING, tmp_path / f"take.{suffix}"], check=True)
    samples = np.concatenate(list(audio.read_blocks(tmp_path / f"take.{suffix}", SAMPLE_RATE)))
    assert len(samples) == pytest.approx(5 * SAMPLE_RATE, rel=0.03) and samples.std() > 0.01


@FFMPEG
def test_a_video_without_audio_is_named(tmp_path):
    """Mistake: "cannot be read" of a file that plays well."""
    pytest.importorskip("av")
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=size=32x32:duration=1", tmp_path / "mute.mp4"],
                   check=True)
    with pytest.raises(KitError, match="holds no audio, only video"):
        list(audio.read_blocks(tmp_path / "mute.mp4", SAMPLE_RATE))


def test_a_suffix_says_nothing_about_the_content(tmp_path, recording):
    """Mistake: a WAV that was named .mp3 is refused."""
    audio.write(tmp_path / "take.wav", recording[:SAMPLE_RATE], SAMPLE_RATE)
    (tmp_path / "take.wav").rename(tmp_path / "take.mp3")
    assert sum(map(len, audio.read_blocks(tmp_path / "take.mp3", SAMPLE_RATE))) == SAMPLE_RATE


# speech and how it is merged to clips


def track_of(*spans: tuple[float, float], seconds: float = 60.0) -> VadTrack:
    """Speech at -20 dB between these seconds, over noise at -60 dB."""
    speech_prob = np.zeros(round(seconds / segment.FRAME), np.float32)
    for start, end in spans:
        speech_prob[round(start / segment.FRAME):round(end / segment.FRAME)] = 1
    return VadTrack(np.where(speech_prob > 0, -20, -60).astype(np.float32), speech_prob, np.zeros_like(speech_prob))


def merged(track: VadTrack) -> list[tuple[float, float]]:
    """Start and end of the speech in each clip, in tenths of seconds: levels are smoothed over 50 ms."""
    return [(round(start * segment.FRAME, 1), round(end * segment.FRAME, 1))
            for start, end in segment.merge_segments(track, segment.speech_segments(track))]


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
    """Mistake: one threshold, which cuts a word where the VAD is uncertain for a moment, or a breath counts as a word."""
    speech_prob = np.zeros(300, np.float32)
    speech_prob[50:100], speech_prob[100:110], speech_prob[110:150], speech_prob[220:225] = 0.9, 0.4, 0.9, 0.9
    track = VadTrack(np.full(300, -60, np.float32), speech_prob, np.zeros(300, np.float32))
    assert segment.speech_segments(track) == [(50, 150)]


def test_quiet_sounds_at_the_edges_belong_to_the_word():
    """Mistake: the s of "yes" is left out because the VAD ends before it."""
    track = track_of((1, 2))
    level_db = track.level_db.copy()
    level_db[200:215], level_db[96:100] = -45, -45
    assert segment.speech_segments(dataclasses.replace(track, level_db=level_db)) == [(94, 217)]  # smoothed over 50 ms


def test_a_cut_lies_where_it_is_quietest():
    """Mistake: a cut in the middle of a pause, through a breath or a click."""
    level_db = np.full(100, -40, np.float32)
    level_db[60:70] = -70
    assert 60 <= segment.lowest_energy_frame(VadTrack(level_db, *np.zeros((2, 100), np.float32)), 20, 90) < 70
