"""The codec's training at toy size: its codebooks learn, plain Mimi reads them, and a killed training goes on exactly."""

import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from transformers import MimiModel

from sample_data.build import checkpoint, codec_evaluation, codec_training, corpus, model_shapes, quantizer
from sample_data.build.codec_config import CodecRecipe
from sample_data.build.codec_loss import Adversary, Spectra
from sample_data.build.codec_trainer import Training
from sample_data.build.crops import Crops
from tts_kit import device, pretrained
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.codec import Codec

RATE, FRAME = 24_000, 1920
CPU = device.choose("cpu")
SMALL = CodecRecipe(shape="toy", steps=6, batch=4, seconds=0.32, speed=0.05, learning_rate=3e-3, warmup_steps=2,
                    free_steps=2, pool_seconds=8, save_steps=2, eval_steps=100)


def vowels(number: int, seconds: float = 1.6) -> np.ndarray:
    """A voice that changes its vowel every 160 ms."""
    chance = np.random.default_rng(number)
    time_, pitch, steps = np.arange(round(seconds * RATE)) / RATE, chance.uniform(90, 220), round(seconds / 0.16)
    loudness = np.repeat(chance.uniform(0, 1, (steps, 9)) ** 2, round(0.16 * RATE), axis=0)[:len(time_)]
    tones = np.sin(2 * np.pi * pitch * time_[:, None] * np.arange(1, 10)) / np.arange(1, 10)
    return (0.1 * (tones * loudness).sum(1)).astype(np.float32)


@pytest.fixture(scope="module")
def waves():
    return [vowels(number) for number in range(8)]


@pytest.fixture(scope="module")
def trained(waves):
    """A toy trained long enough for its codes to mean something, with its losses."""
    training = Training(waves, SMALL.replace(steps=90, free_steps=40, warmup_steps=10, pool_seconds=20), CPU)
    return training, [training.step() for _ in range(90)]


@pytest.fixture
def codec():
    """An untrained toy codec whose codebooks hold something."""
    torch.manual_seed(1)
    with pretrained.quiet():
        model = MimiModel(model_shapes.config("toy").codec_config)
    quantizer.prepare(model, 0)
    quantizer.start(model, torch.randn(400, 16), np.random.default_rng(0))
    return model


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.clone() for name, module in training.modules.items()
            for key, value in module.state_dict().items()}


def test_training_says_what_plain_mimi_says(trained, waves):
    """Mistake: training hears its codes otherwise than `MimiModel.encode` and `decode`, which users have."""
    training, _ = trained
    batch = dict(training.crops.make(7))
    for books in (1, 2, 4):
        batch["levels"] = torch.full((SMALL.batch,), books)
        with torch.no_grad():
            generated, branches, _ = training._rebuild(training._latents(batch["waves"]), batch)
            codes = training.codec.encode(batch["waves"][:, None]).audio_codes
            plain = training.codec.decode(codes[:, :books]).audio_values[:, 0]
        assert torch.equal(torch.cat([branch.codes for branch in branches]).transpose(0, 1), codes)
        torch.testing.assert_close(generated, plain, rtol=1e-4, atol=1e-5)


def test_exported_codec_is_the_trained_one(trained, waves, tmp_path):
    """Mistake: the folder lacks the codebooks, or settling them changes the codes; the JSON promises what is not so."""
    training, _ = trained
    result = codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.recipe, {"finished": True})
    spec = ModelSpec.of(model_shapes.config("toy"))
    plain = Codec(MimiModel.from_pretrained(tmp_path / "codec"), spec)
    with torch.no_grad():
        codes = training.codec.encode(torch.from_numpy(waves[0])[None, None]).audio_codes[0].T
    [read] = plain.encode(waves[:1])
    assert torch.equal(read.long(), codes)
    assert all((book.cluster_usage == 1).all() for book in quantizer.codebooks(plain.model))
    assert list(result["spectral_loss"]) == ["1", "2", "4"]
    for books in (1, 4):
        generated = [plain.decode(plain.encode([wave]), books)[0][:len(wave)] for wave in waves[:2]]
        losses = [Spectra(RATE)(torch.from_numpy(decoded)[None], torch.from_numpy(wave)[None]).item()
                  for decoded, wave in zip(generated, waves)]
        assert result["spectral_loss"][str(books)] == pytest.approx(np.mean(losses), abs=1e-4)
    assert codec_evaluation.read(tmp_path / "codec")["perplexity"] == result["perplexity"]


def test_a_trained_codec_can_be_trained_on(trained, waves, tmp_path):
    """Mistake: the codes that were learnt are drawn anew, or pass unquantized for the first steps."""
    training, parts = trained
    codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.recipe, {})
    again = Training(waves, SMALL.replace(begin_with=str(tmp_path / "codec"), learning_rate=1e-6), CPU)
    before = [book.embed.clone() for book in quantizer.codebooks(again.codec)]
    first = again.step()
    assert again.quantizing and "commitment" in first
    assert first["spectra"].item() < 1.3 * np.mean([item["spectra"].item() for item in parts[-5:]])
    kept = [(was - book.embed).abs().max(1).values < 0.3 * was.std() for was, book in
            zip(before, quantizer.codebooks(again.codec))]
    assert torch.cat(kept).float().mean() > 0.9


def test_a_decoder_is_trained_without_changing_a_code(trained, waves, tmp_path):
    """Mistake: a language model was trained on codes that this codec no longer makes, or no longer says in that way."""
    training, _ = trained
    codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.recipe, {})
    config = SMALL.replace(begin_with=str(tmp_path / "codec"), keep_codes=True, adversary_from=0.0)
    again, before = Training(waves, config, CPU), Training(waves, config, CPU)
    for _ in range(3):
        again.step()
    frames = torch.from_numpy(waves[0])[None, None]
    with torch.no_grad():
        codes, same = (item.codec.encode(frames).audio_codes for item in (before, again))
        sounds = [item.codec.decode(codes).audio_values for item in (before, again)]
    assert torch.equal(codes, same) and not torch.allclose(*sounds, atol=1e-3)
    for one, other in zip(quantizer.codebooks(before.codec), quantizer.codebooks(again.codec)):
        assert torch.equal(one.embed, other.embed)


def test_training_lowers_the_loss_and_uses_its_codes(trained):
    """Mistake: nothing is learnt, or a handful of codes says everything."""
    training, parts = trained
    losses = [item["spectra"].item() for item in parts]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert quantizer.use(training.codec) > 0.5


def test_each_level_takes_from_the_error(codec):
    """Mistake: a level names the latents again instead of what is left of them."""
    latents = torch.randn(4, 16, 50, generator=torch.Generator().manual_seed(3))
    _, (_, acoustic) = quantizer.quantize(codec, latents)
    energy = [residual.square().mean().item() for residual in acoustic.residuals]
    assert all(after < 0.8 * before for before, after in itertools.pairwise(energy))


def test_gradients_pass_straight_through(codec):
    """Mistake: the encoder learns nothing, or a crop that keeps one codebook teaches through the others."""
    latents = torch.randn(2, 16, 5, requires_grad=True)
    out, _ = quantizer.quantize(codec, latents, torch.tensor([4, 1]))
    pull = torch.randn_like(out)
    (out * pull).sum().backward()
    semantic, acoustic = ((branch.output_proj.weight[:, :, 0] @ branch.input_proj.weight[:, :, 0]).T
                          for branch in quantizer.branches(codec))
    torch.testing.assert_close(latents.grad[0], (semantic + acoustic) @ pull[0])
    torch.testing.assert_close(latents.grad[1], semantic @ pull[1])


def test_commitment_asks_for_all_levels_at_once(codec):
    """Mistake: each level's own distance is counted; the encoder then leaves nothing over for the later levels, which
    fall silent."""
    latents = 4 * torch.randn(2, 16, 9)
    _, generated = quantizer.quantize(codec, latents)
    for branch, done in zip(quantizer.branches(codec), generated):
        vectors = branch.input_proj(latents)
        rebuilt = sum(layer.codebook.decode(codes).transpose(1, 2) for layer, codes in zip(branch.layers, done.codes))
        assert torch.allclose(done.commitment, (vectors - rebuilt).square().mean())


def test_codes_move_to_the_mean_of_what_they_name(codec):
    """Mistake: running means that are updated but never read, or that forget at the wrong rate."""
    latents = torch.randn(4, 16, 50)
    _, done = quantizer.quantize(codec, latents)
    book = quantizer.codebooks(codec)[0]
    code = int(done[0].codes.flatten().mode().values)
    mean = done[0].residuals[0][(done[0].codes.flatten() == code)].mean(0)
    before = (book.embed[code] - mean).norm()
    usage, count = book.cluster_usage[code].item(), int((done[0].codes == code).sum())
    quantizer.learn(codec, done, 0.9, np.random.default_rng(0))
    assert book.cluster_usage[code].item() == pytest.approx(0.9 * usage + 0.1 * count, rel=1e-5)
    share = 0.9 * usage / (0.9 * usage + 0.1 * count)
    assert (book.embed[code] - mean).norm().item() == pytest.approx(share * before.item(), rel=1e-3, abs=1e-5)


def test_dead_codes_begin_anew(codec):
    """Mistake: codes far from every latent stay there for ever."""
    book = quantizer.codebooks(codec)[0]
    book.embed_sum[5:] = 1000.0
    book._embed = None
    latents = torch.randn(4, 16, 50)
    renewed = 0
    for round_ in range(60):
        _, done = quantizer.quantize(codec, latents)
        renewed += int(quantizer.learn(codec, done, 0.8, np.random.default_rng(round_)))
    assert renewed >= 27
    assert len(done[0].codes.unique()) > 16


def test_a_pool_too_small_for_the_codebooks_is_said(codec):
    """Mistake: k-means over fewer latents than codes fails deep inside numpy."""
    with pytest.raises(KitError, match="Raise --pool-seconds"):
        quantizer.start(codec, torch.randn(31, 16), np.random.default_rng(0))


@pytest.mark.slow
def test_collapse_is_noticed():
    """Mistake: a training whose latents are a constant runs on for half an hour and is unintelligible."""
    silence = [np.zeros(RATE, np.float32)] * 3
    training = Training(silence, SMALL.replace(steps=400, free_steps=400, batch=1), CPU)
    with pytest.raises(KitError, match="collapsed"):
        for _ in range(200):
            training.step()


def test_same_seed_same_weights_other_seed_other_weights(waves):
    """Mistake: a result nobody can get again."""
    config = SMALL.replace(adversary_from=0.5, adversary_channels=2)
    first, again, other = (Training(waves, config.replace(seed=seed), CPU) for seed in (0, 0, 1))
    for training in (first, again, other):
        torch.manual_seed(time.time_ns())
        for _ in range(config.steps):
            training.step()
    first_weights, second_weights, other_weights = weights(first), weights(again), weights(other)
    assert all(torch.equal(value, second_weights[name]) for name, value in first_weights.items())
    assert not torch.equal(first_weights["codec.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"],
                           other_weights["codec.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"])


KILLED = """
import sys
sys.path[:0] = ['tests', 'tests/build']
import torch
torch.set_num_threads(1)
import test_build_codec as here
here.codec_training.train([here.vowels(number) for number in range(8)], [here.vowels(9)], sys.argv[1],
                          here.SMALL.replace(steps=400, adversary_from=0.005, adversary_channels=2), here.CPU)
"""


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_weights(waves, tmp_path):
    """Mistake: a resumed training repeats its crops, forgets an optimizer, or reads half a checkpoint."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "codec")], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    work = tmp_path / "codec-training"
    limit = time.monotonic() + 120
    while len(checkpoint.steps(work)) < 2 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [*_, last] = checkpoint.steps(work)
    reached = checkpoint.facts(last)["step"]
    config = SMALL.replace(steps=400, adversary_from=0.005, adversary_channels=2)
    resumed, whole = Training(waves, config, CPU), Training(waves, config, CPU)
    codec_training._go_on(resumed, work, waves)
    for _ in range(3):
        resumed.step()
    for _ in range(reached + 3):
        whole.step()
    first_weights, second_weights = weights(resumed), weights(whole)
    assert resumed.steps == whole.steps and reached >= 4
    assert all(torch.equal(value, second_weights[name]) for name, value in first_weights.items())


def test_batches_depend_on_the_step_alone(waves):
    """Mistake: crops that depend on what was drawn before, so that a resumed training sees others."""
    spec = ModelSpec.of(model_shapes.config("toy"))
    first, later = Crops(waves, spec, SMALL), Crops(waves, spec, SMALL)
    for step in range(4):
        wanted = first.batch(step)
    result = later.batch(3)
    assert all(torch.equal(result[name], value) for name, value in wanted.items())
    assert not torch.equal(later.batch(4)["waves"], result["waves"])
    assert result["waves"].shape == (4, 4 * FRAME) and result["waves"].dtype == torch.float32


def test_crops_reach_everything_and_pad_what_is_short():
    """Mistake: ends of clips are never heard, or a short clip breaks the batch."""
    ramp, short = np.linspace(0.1, 0.9, 3 * 4 * FRAME, dtype=np.float32), np.full(100, 0.5, np.float32)
    crops = Crops([ramp, short], ModelSpec.of(model_shapes.config("toy")), SMALL.replace(speed=0.0, batch=200))
    batch = crops.make(0)["waves"].numpy()
    padded = batch[batch[:, -1] == 0]
    assert all((row[100:] == 0).all() for row in padded)
    # a ramp's last sample over its first is that of the cut, whatever its gain
    ends = [row[-1] / row[0] for row in batch if row[-1] > 0]
    assert min(ends) == pytest.approx(0.9 / (0.9 - 0.8 / 3), rel=0.01) and max(ends) > 2.5


def test_features_of_a_crop_are_those_of_its_moment():
    """Mistake: the teacher speaks of another moment than the crop's, or at another speed."""
    wave = np.ones(40 * FRAME, np.float32)
    # the feature of a frame is the time of its middle, in frames
    middles = (np.arange(40) + 0.5).astype(np.float16)[:, None]
    crops = Crops([wave], ModelSpec.of(model_shapes.config("toy")), SMALL, [middles])
    for begin, speed in ((0, 1.0), (5 * FRAME, 1.0), (5 * FRAME + 700, 1.1)):
        expected = begin / FRAME + (np.arange(4) + 0.5) * speed
        np.testing.assert_allclose(crops._heard(0, begin, speed)[:, 0], expected, rtol=2e-3)
    assert (crops._heard(0, 39 * FRAME, 1.0)[2:] == 0).all()


@pytest.mark.slow
def test_a_teacher_is_followed_by_the_first_codebook(waves, tmp_path):
    """Mistake: the hook is called but its features never reach the first codebook."""
    edges = [0, 12, 32, 80]  # of bands, in bins of 12.5 Hz

    def spectral(wave):
        energy = np.abs(np.fft.rfft(np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME))) ** 2
        return np.log(np.add.reduceat(energy, edges, axis=1)[:, :3] + 0.1)

    features = codec_training.heard(spectral, waves, tmp_path / "teacher.safetensors")
    assert np.concatenate(features).astype(np.float32).mean() == pytest.approx(0, abs=0.01)
    config = SMALL.replace(steps=80, batch=16, free_steps=70, warmup_steps=5, pool_seconds=20, learning_rate=0.01)
    training = Training(waves, config, CPU, features)
    losses = [training.step()["teacher"].item() for _ in range(config.steps)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    batch = training.crops.make(0)
    training.optimizers["builder"].zero_grad()
    training._rebuild(training._latents(batch["waves"]), batch)[2]["teacher"].backward()
    semantic, acoustic = quantizer.branches(training.codec)
    assert semantic.input_proj.weight.grad.abs().sum() > 0 and acoustic.input_proj.weight.grad is None
    assert training.codec.encoder.layers[0].conv.weight.grad.abs().sum() > 0

    def forgotten(wave):
        raise AssertionError("the features lie on disk already")

    again = codec_training.heard(forgotten, waves, tmp_path / "teacher.safetensors")
    assert all(np.array_equal(decoded, second_weights) for decoded, second_weights in zip(features, again))


def test_spectra_know_likeness():
    """Mistake: a loss that is not zero for the same sound, does not grow with noise, or has no gradient in silence."""
    spectra, wave = Spectra(16_000), torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    noise = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    losses = [spectra(wave + amount * noise, wave).item() for amount in (0, 0.01, 0.1)]
    assert losses[0] < 1e-5 and losses[0] < losses[1] < losses[2]
    silent = torch.zeros(2, 8000, requires_grad=True)
    spectra(silent, wave).backward()
    assert torch.isfinite(silent.grad).all()
    assert all((getattr(spectra, f"mel_{window}").sum(1) > 0).all() for window in spectra.windows)


def test_discriminators_learn_and_teach():
    """Mistake: discriminators that cannot tell noise from a tone, or whose verdict does not reach the codec."""
    torch.manual_seed(0)
    adversary = Adversary(windows=(256, 512), channels=4)
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    real = torch.from_numpy(np.stack([vowels(number, 0.32) for number in range(4)]))
    generated = (torch.randn(real.shape) * 0.05).requires_grad_()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = adversary.unmasking(generated, real)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and generated.grad is None
    deceit, likeness = adversary.deceit(generated, real)
    (deceit + likeness).backward()
    assert generated.grad.abs().sum() > 0
    same = adversary.deceit(real, real)
    assert same[1].item() == pytest.approx(0, abs=1e-6) and same[0] < deceit


def test_held_out_speakers_are_not_learnt_from():
    """Mistake: the codec is judged on voices it was trained on."""
    rows = [(f"speaker {number % 9}", "", np.full(10, number % 9, np.float32)) for number in range(90)]
    learnt, kept = codec_training.split(rows, 0.15)
    assert {wave[0] for wave in learnt}.isdisjoint({wave[0] for wave in kept})
    assert len(learnt) + len(kept) == 90 and len(kept) == 20
    learnt, kept = codec_training.split([("one", "", np.ones(10))] * 10, 0.15)
    assert (len(learnt), len(kept)) == (8, 2)


def test_the_command_trains_once_and_keeps_to_its_settings(tmp_path, capsys):
    """Mistake: the command does not fit the corpus room, trains over a finished codec, or mixes two trainings."""
    def speak(text, speaker, speed):
        return vowels(len(text), 0.8)[::2]

    corpus.fill(tmp_path / "corpus", 1, speak)
    common = ["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "codec"), "--shape", "toy", "--device", "cpu",
              "--steps", "4", "--free-steps", "2", "--batch", "2", "--seconds", "0.32", "--pool-seconds", "6"]
    assert codec_training.main([*common, "--hours", "0.01"]) == 0
    evaluation = json.loads((tmp_path / "codec" / codec_evaluation.FILE).read_text())
    assert evaluation["finished"] and evaluation["steps"] == 4 and evaluation["recipe"]["batch"] == 2
    assert 20 < evaluation["speech_seconds"] < 40
    assert codec_training.main([*common, "--hours", "0.01"]) == 0
    assert "already trained" in capsys.readouterr().out
    assert codec_training.main([*common, "--hours", "0.01", "--seed", "5"]) == 1
    assert "seed is 5, there it is 0" in capsys.readouterr().err


def test_half_a_checkpoint_is_no_checkpoint(tmp_path):
    """Mistake: a checkpoint whose writing was killed is loaded, or old ones fill the disk."""
    module = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"module": module}, {}, {})
    (tmp_path / "step-000004").mkdir()
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-000002", "step-000003"]
    (tmp_path / "step-000003" / checkpoint.TENSORS).write_bytes(b"cut")
    with pytest.raises(KitError, match="Remove that folder"):
        checkpoint.load(tmp_path / "step-000003", {"module": module}, {})


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("decay", 1.5), ("speed", 0.7), ("minutes", -1.0)])
def test_senseless_settings_are_refused(field, value):
    """Mistake: a wrong number is noticed after an hour, or never."""
    with pytest.raises(KitError, match=f"{field} is"):
        SMALL.replace(**{field: value})
