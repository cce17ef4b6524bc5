"""Audio to codes: independent of the batch, cached by content, complete after a kill."""

import dataclasses
import hashlib
import shutil
import time

import numpy as np
import process
import pytest
import torch

from tts_kit import audio, device
from tts_kit.data import prepare
from tts_kit.data.manifest import Utterance
from tts_kit.errors import KitError
from tts_kit.io import read_rows
from tts_kit.run import Run
from tts_kit.tokens import cache


def tone(seconds: float, seed: int = 0, rate: int = 24_000) -> np.ndarray:
    """Noise with energy at all frequencies, different for every seed."""
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


@pytest.fixture
def utterances(tmp_path):
    """Five clips on disk and their utterances."""
    utterances = []
    for number in range(5):
        path = tmp_path / f"{number}.flac"
        audio.write(path, tone(0.3 + 0.17 * number, number), 24_000)
        utterances.append(Utterance(id=f"clip{number}", audio=path, text="Hello.", original_text="Hello", source="0",
                                    speaker="", session="one", split="train", seconds=0.3 + 0.17 * number, row=number,
                                    file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    return utterances


def test_batched_codes_equal_single_codes(base):
    """Mistake: padding inside a batch changes the codes of the shorter clips (a partial last frame does)."""
    waves = [tone(seconds, number) for number, seconds in enumerate((0.31, 1.0, 0.08, 0.555, 2.0))]
    batched = base.codec.encode(waves)
    for wave, codes in zip(waves, batched):
        assert codes.shape == (-(-len(wave) // base.spec.samples_per_frame), 4)
        assert torch.equal(codes, base.codec.encode([wave])[0])
    assert len(torch.cat(batched).unique()) > 10


def test_codes_equal_transformers(base):
    """Mistake: another sample rate, channel order or number of codebooks than the model was trained with."""
    wave = tone(0.8)
    expected = base.codec.model.encode(torch.from_numpy(wave)[None, None]).audio_codes[0].T
    assert torch.equal(base.codec.encode([wave])[0].long(), expected)


def test_codes_do_not_change_under_autocast(base):
    """Mistake: a training's 16-bit autocast reaches the codec and gives other codes."""
    wave = tone(1.0)
    expected = base.codec.encode([wave])[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base.codec.encode([wave])[0], expected)


def test_decoding_in_a_batch_or_with_fewer_codebooks(base):
    """Mistake: a neighbour in the batch changes a clip, or `num_codebooks` keeps others than the first."""
    codes = base.codec.encode([tone(0.4, 1), tone(1.2, 2)])
    batched = base.codec.decode(codes)
    for clip, wave in zip(codes, batched):
        assert len(wave) == len(clip) * base.spec.samples_per_frame
        np.testing.assert_allclose(wave, base.codec.decode([clip])[0], atol=2e-5)
    first = codes[0].clone()
    first[:, 2:] = 7
    np.testing.assert_allclose(base.codec.decode([first], num_codebooks=2)[0],
                               base.codec.decode(codes[:1], num_codebooks=2)[0], atol=1e-6)
    assert np.abs(base.codec.decode([first])[0] - batched[0]).max() > 1e-5


def read_codes(utterances, folder, codec) -> dict:
    """Return the cached codes of each utterance."""
    fingerprint = codec.fingerprint()
    return {clip.id: cache.open_entry(cache.entry_path(folder, cache.cache_key(clip, fingerprint))) for clip in utterances}


def rewrite(utterance: Utterance, samples: np.ndarray) -> Utterance:
    audio.write(utterance.audio, samples, 24_000)
    return dataclasses.replace(utterance, sha256=hashlib.sha256(utterance.audio.read_bytes()).hexdigest())


def test_only_new_clips_are_encoded(base, utterances, tmp_path):
    """Mistake: everything is encoded again each time, or a changed clip is not."""
    folder = tmp_path / "codes"
    assert cache.encode_missing(utterances, folder, base.codec) == {"cached": 0, "encoded": 5, "corrupt": 0}
    before = read_codes(utterances, folder, base.codec)
    assert cache.encode_missing(utterances, folder, base.codec) == {"cached": 5, "encoded": 0, "corrupt": 0}
    utterances[2] = rewrite(utterances[2], tone(0.5, 99))
    assert cache.encode_missing(utterances, folder, base.codec) == {"cached": 4, "encoded": 1, "corrupt": 0}
    after = read_codes(utterances, folder, base.codec)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["clip2"]


def test_a_clip_that_differs_from_the_manifest_is_refused(base, utterances, tmp_path):
    """Mistake: a clip edited in the data folder is trained on, while manifest and consent refer to the original."""
    rewrite(utterances[1], tone(0.5, 98))
    with pytest.raises(KitError, match=r"1\.flac is not the clip that the manifest lists.*prepare"):
        cache.encode_missing(utterances, tmp_path / "codes", base.codec)


def test_another_codec_has_other_entries(base, utterances, tmp_path):
    """Mistake: codes of one base are used for another."""
    cache.encode_missing(utterances, tmp_path / "codes", base.codec)
    next(base.codec.model.parameters()).data.add_(0.5)
    assert cache.encode_missing(utterances, tmp_path / "codes", base.codec)["encoded"] == 5


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_damaged_entries_are_encoded_again(base, utterances, tmp_path, damage):
    """Mistake: half a file, or another clip's codes under this name, is trained on."""
    folder = tmp_path / "codes"
    cache.encode_missing(utterances, folder, base.codec)
    before = read_codes(utterances, folder, base.codec)
    one, other = (cache.entry_path(folder, cache.cache_key(utterance, base.codec.fingerprint()))
                  for utterance in utterances[:2])
    content = {"truncated": one.read_bytes()[:-9], "foreign": other.read_bytes(), "empty": b""}[damage]
    one.write_bytes(content)
    assert cache.encode_missing(utterances, folder, base.codec) == {"cached": 4, "encoded": 1, "corrupt": 1}
    assert all(torch.equal(codes, before[name]) for name, codes in read_codes(utterances, folder, base.codec).items())


def test_a_kill_loses_only_the_current_clip(toy, tmp_path):
    """Mistake: a killed run leaves half entries, or starts from the beginning."""
    for number in range(40):
        audio.write(tmp_path / "in" / f"take{number:02d}.wav", tone(4.0, number), 24_000)
    rows = "".join(f"take{number:02d}.wav,Some words here.\n" for number in range(40))
    (tmp_path / "in" / "metadata.csv").write_text("file_name,text\n" + rows)
    from tts_kit.config import Config
    run, config = Run("one", tmp_path), Config(base=toy)
    prepare.prepare(tmp_path / "in", run, config)
    script = ("import sys, torch; torch.set_num_threads(1)\n"
              "from tts_kit import device; from tts_kit.tokens import cache\n"
              "from tts_kit.config import Config; from tts_kit.run import Run\n"
              "cache.tokenize(Config(base=sys.argv[1]), Run('one', sys.argv[2]), device.choose('cpu'))\n")
    killed = process.Process(["-c", script, toy, tmp_path])
    deadline = time.monotonic() + 900
    while len(list(run.codes.glob("entries/*.safetensors"))) < 5 and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    encoded = len(list(run.codes.glob("entries/*.safetensors")))
    counts = cache.tokenize(config, run, device.choose("cpu"))
    assert counts == {"cached": encoded, "encoded": 40 - encoded, "corrupt": 0} and encoded >= 5
    assert len(cache.read(run.codes)) == len(read_rows(run.data / "manifest.jsonl")) == 40


def test_missing_data_names_the_command(toy, tmp_path):
    """Mistake: a traceback about a missing manifest."""
    from tts_kit.config import Config

    with pytest.raises(KitError, match="tts-kit prepare"):
        cache.tokenize(Config(base=toy), Run("none", tmp_path), device.choose("cpu"))
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
