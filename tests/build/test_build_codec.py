"""Codec training at toy size: the codebooks are trained, plain Mimi loads them, and a killed training resumes exactly."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from transformers import MimiModel

from sample_data.build import checkpoint, codec_evaluation, codec_training, corpus, model_shapes, processes, quantizer
from sample_data.build.codec_config import CodecConfig
from sample_data.build.codec_loss import Discriminators, SpectralLoss
from sample_data.build.codec_trainer import CodecTrainer
from sample_data.build.crops import CropSampler
from tts_kit import device, pretrained
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.codec import Codec

pytestmark = pytest.mark.slow
RATE, FRAME = 24_000, 1920
CPU = device.choose("cpu")
SMALL = CodecConfig(shape="toy", steps=6, batch_size=4, crop_seconds=0.32, speed_perturbation=0.05, learning_rate=3e-3,
                    warmup_steps=2, unquantized_steps=2, kmeans_seconds=8, save_steps=2, eval_steps=100)


def vowels(seed: int, seconds: float = 1.6) -> np.ndarray:
    """Return a synthetic voice that changes its vowel every 160 ms."""
    rng = np.random.default_rng(seed)
    times, pitch, steps = np.arange(round(seconds * RATE)) / RATE, rng.uniform(90, 220), round(seconds / 0.16)
    loudness = np.repeat(rng.uniform(0, 1, (steps, 9)) ** 2, round(0.16 * RATE), axis=0)[:len(times)]
    tones = np.sin(2 * np.pi * pitch * times[:, None] * np.arange(1, 10)) / np.arange(1, 10)
    return (0.1 * (tones * loudness).sum(1)).astype(np.float32)


@pytest.fixture(scope="module")
def waves():
    return [vowels(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def trained(waves):
    """A toy trained long enough for meaningful codes, and its losses."""
    training = CodecTrainer(waves, SMALL.replace(steps=90, unquantized_steps=40, warmup_steps=10, kmeans_seconds=20), CPU)
    return training, [training.step() for _ in range(90)]


@pytest.fixture
def codec():
    """An untrained toy codec with initialized codebooks."""
    torch.manual_seed(1)
    with pretrained.quiet():
        model = MimiModel(model_shapes.config("toy").codec_config)
    quantizer.init_projections(model, 0)
    quantizer.init_codebooks(model, torch.randn(400, 16), np.random.default_rng(0))
    return model


def all_weights(training: CodecTrainer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.clone() for name, module in training.modules.items()
            for key, value in module.state_dict().items()}


def test_training_computes_the_same_as_plain_mimi(trained, waves):
    """Mistake: training encodes and decodes differently from `MimiModel.encode` and `decode`, which users call."""
    training, _ = trained
    batch = dict(training.crops.sample(7))
    for num_codebooks in (1, 2, 4):
        batch["levels"] = torch.full((SMALL.batch_size,), num_codebooks)
        with torch.no_grad():
            decoded, branches, _ = training._decode(training._encode(batch["waves"]), batch)
            codes = training.codec.encode(batch["waves"][:, None]).audio_codes
            plain = training.codec.decode(codes[:, :num_codebooks]).audio_values[:, 0]
        assert torch.equal(torch.cat([branch.codes for branch in branches]).transpose(0, 1), codes)
        torch.testing.assert_close(decoded, plain, rtol=1e-4, atol=1e-5)


def test_the_exported_codec_is_the_trained_one(trained, waves, tmp_path):
    """Mistake: the folder lacks the codebooks, normalizing them changes the codes, or the JSON has wrong figures."""
    training, _ = trained
    result = codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.config, {"finished": True})
    spec = ModelSpec.of(model_shapes.config("toy"))
    plain = Codec(MimiModel.from_pretrained(tmp_path / "codec"), spec)
    with torch.no_grad():
        codes = training.codec.encode(torch.from_numpy(waves[0])[None, None]).audio_codes[0].T
    [plain_codes] = plain.encode(waves[:1])
    assert torch.equal(plain_codes.long(), codes)
    assert all((codebook.cluster_usage == 1).all() for codebook in quantizer.codebooks(plain.model))
    assert list(result["spectral_loss"]) == ["1", "2", "4"]
    for num_codebooks in (1, 4):
        decoded = [plain.decode(plain.encode([wave]), num_codebooks)[0][:len(wave)] for wave in waves[:2]]
        losses = [SpectralLoss(RATE)(torch.from_numpy(decoded_wave)[None], torch.from_numpy(wave)[None]).item()
                  for decoded_wave, wave in zip(decoded, waves)]
        assert result["spectral_loss"][str(num_codebooks)] == pytest.approx(np.mean(losses), abs=1e-4)
    assert codec_evaluation.read(tmp_path / "codec")["perplexity"] == result["perplexity"]


def test_training_can_start_from_a_trained_codec(trained, waves, tmp_path):
    """Mistake: the trained codebooks are initialized anew, or the first steps are not quantized."""
    training, losses = trained
    codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.config, {})
    second = CodecTrainer(waves, SMALL.replace(init_from=str(tmp_path / "codec"), learning_rate=1e-6), CPU)
    before = [codebook.embed.clone() for codebook in quantizer.codebooks(second.codec)]
    first_losses = second.step()
    assert second.is_quantizing and "commitment" in first_losses
    assert first_losses["spectral"].item() < 1.3 * np.mean([step["spectral"].item() for step in losses[-5:]])
    is_close = [(old - codebook.embed).abs().max(1).values < 0.3 * old.std() for old, codebook in
                zip(before, quantizer.codebooks(second.codec))]
    assert torch.cat(is_close).float().mean() > 0.9


def test_the_decoder_can_be_trained_without_changing_codes(trained, waves, tmp_path):
    """Mistake: the codes that a language model was trained on change."""
    training, _ = trained
    codec_evaluation.export(training.codec, tmp_path / "codec", waves[:2], training.config, {})
    config = SMALL.replace(init_from=str(tmp_path / "codec"), decoder_only=True, discriminator_start=0.0)
    second, unchanged = CodecTrainer(waves, config, CPU), CodecTrainer(waves, config, CPU)
    for _ in range(3):
        second.step()
    wave = torch.from_numpy(waves[0])[None, None]
    with torch.no_grad():
        codes, second_codes = (trainer.codec.encode(wave).audio_codes for trainer in (unchanged, second))
        decoded = [trainer.codec.decode(codes).audio_values for trainer in (unchanged, second)]
    assert torch.equal(codes, second_codes) and not torch.allclose(*decoded, atol=1e-3)
    for codebook, second_codebook in zip(quantizer.codebooks(unchanged.codec), quantizer.codebooks(second.codec)):
        assert torch.equal(codebook.embed, second_codebook.embed)


def test_training_lowers_the_loss_and_uses_the_codebooks(trained):
    """Mistake: nothing is learned, or only a few codes are used."""
    training, losses = trained
    spectral = [step["spectral"].item() for step in losses]
    assert np.mean(spectral[-5:]) < 0.75 * np.mean(spectral[:5])
    assert quantizer.codebook_usage(training.codec) > 0.5


def test_each_level_lowers_the_error(codec):
    """Mistake: a level quantizes the latents again instead of their residual."""
    latents = torch.randn(4, 16, 50, generator=torch.Generator().manual_seed(3))
    _, (_, acoustic) = quantizer.quantize(codec, latents)
    energy = [residual.square().mean().item() for residual in acoustic.residuals]
    assert all(after < 0.8 * before for before, after in itertools.pairwise(energy))


def test_gradients_pass_straight_through(codec):
    """Mistake: the encoder is not trained, or a crop that uses one codebook has gradients from the others."""
    latents = torch.randn(2, 16, 5, requires_grad=True)
    quantized, _ = quantizer.quantize(codec, latents, torch.tensor([4, 1]))
    gradient = torch.randn_like(quantized)
    (quantized * gradient).sum().backward()
    semantic, acoustic = ((branch.output_proj.weight[:, :, 0] @ branch.input_proj.weight[:, :, 0]).T
                          for branch in quantizer.branches(codec))
    torch.testing.assert_close(latents.grad[0], (semantic + acoustic) @ gradient[0])
    torch.testing.assert_close(latents.grad[1], semantic @ gradient[1])


def test_the_commitment_loss_is_of_all_levels_together(codec):
    """Mistake: the distance of each level is counted; the encoder then leaves no residual for the later levels."""
    latents = 4 * torch.randn(2, 16, 9)
    _, outputs = quantizer.quantize(codec, latents)
    for branch, output in zip(quantizer.branches(codec), outputs):
        vectors = branch.input_proj(latents)
        decoded = sum(layer.codebook.decode(codes).transpose(1, 2) for layer, codes in zip(branch.layers, output.codes))
        assert torch.allclose(output.commitment, (vectors - decoded).square().mean())


def test_codes_move_to_the_mean_of_their_vectors(codec):
    """Mistake: moving averages that are updated but not used, or that decay at the wrong rate."""
    latents = torch.randn(4, 16, 50)
    _, outputs = quantizer.quantize(codec, latents)
    codebook = quantizer.codebooks(codec)[0]
    code = int(outputs[0].codes.flatten().mode().values)
    mean = outputs[0].residuals[0][(outputs[0].codes.flatten() == code)].mean(0)
    before = (codebook.embed[code] - mean).norm()
    usage, count = codebook.cluster_usage[code].item(), int((outputs[0].codes == code).sum())
    quantizer.update_codebooks(codec, outputs, 0.9, np.random.default_rng(0))
    assert codebook.cluster_usage[code].item() == pytest.approx(0.9 * usage + 0.1 * count, rel=1e-5)
    share = 0.9 * usage / (0.9 * usage + 0.1 * count)
    assert (codebook.embed[code] - mean).norm().item() == pytest.approx(share * before.item(), rel=1e-3, abs=1e-5)


def test_dead_codes_are_replaced(codec):
    """Mistake: codes far from all latents are never used again."""
    codebook = quantizer.codebooks(codec)[0]
    codebook.embed_sum[5:] = 1000.0
    codebook._embed = None
    latents = torch.randn(4, 16, 50)
    replaced = 0
    for seed in range(60):
        _, outputs = quantizer.quantize(codec, latents)
        replaced += int(quantizer.update_codebooks(codec, outputs, 0.8, np.random.default_rng(seed)))
    assert replaced >= 27
    assert len(outputs[0].codes.unique()) > 16


def test_too_few_latents_for_k_means_are_an_error(codec):
    """Mistake: k-means over fewer latents than codes fails inside numpy."""
    with pytest.raises(KitError, match="Raise --kmeans-seconds"):
        quantizer.init_codebooks(codec, torch.randn(31, 16), np.random.default_rng(0))


def test_collapsed_latents_are_an_error():
    """Mistake: a training whose latents are constant continues to its end."""
    silence = [np.zeros(RATE, np.float32)] * 3
    training = CodecTrainer(silence, SMALL.replace(steps=400, unquantized_steps=400, batch_size=1), CPU)
    with pytest.raises(KitError, match="collapsed"):
        for _ in range(200):
            training.step()


def test_the_weights_depend_on_the_seed_alone(waves):
    """Mistake: a result that cannot be reproduced."""
    config = SMALL.replace(discriminator_start=0.5, discriminator_channels=2)
    trainers = [CodecTrainer(waves, config.replace(seed=seed), CPU) for seed in (0, 0, 1)]
    for training in trainers:
        torch.manual_seed(time.time_ns())
        for _ in range(config.steps):
            training.step()
    weights, same_seed, other_seed = map(all_weights, trainers)
    assert all(torch.equal(value, same_seed[name]) for name, value in weights.items())
    codebook = "codec.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"
    assert not torch.equal(weights[codebook], other_seed[codebook])


TRAINING_SCRIPT = """
import sys
sys.path[:0] = ['tests', 'tests/build']
import torch
torch.set_num_threads(1)
import test_build_codec as test
test.codec_training.train([test.vowels(seed) for seed in range(8)], [test.vowels(9)], sys.argv[1],
                          test.SMALL.replace(steps=400, discriminator_start=0.005, discriminator_channels=2), test.CPU)
"""


def test_a_killed_training_resumes_to_the_same_weights(waves, tmp_path):
    """Mistake: a resumed training repeats its crops, loses an optimizer, or reads an incomplete checkpoint."""
    process = subprocess.Popen([sys.executable, "-c", TRAINING_SCRIPT, str(tmp_path / "codec")], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    work = tmp_path / "codec-training"
    limit = time.monotonic() + 120
    while len(checkpoint.list_folders(work)) < 2 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [*_, last] = checkpoint.list_folders(work)
    last_step = checkpoint.read_metadata(last)["step"]
    config = SMALL.replace(steps=400, discriminator_start=0.005, discriminator_channels=2)
    resumed, whole = CodecTrainer(waves, config, CPU), CodecTrainer(waves, config, CPU)
    codec_training._resume(resumed, work, waves)
    for _ in range(3):
        resumed.step()
    for _ in range(last_step + 3):
        whole.step()
    resumed_weights, whole_weights = all_weights(resumed), all_weights(whole)
    assert resumed.steps == whole.steps and last_step >= 4
    assert all(torch.equal(value, whole_weights[name]) for name, value in resumed_weights.items())


def test_batches_depend_on_the_step_alone(waves):
    """Mistake: crops that depend on those before them, so that a resumed training gets others."""
    spec = ModelSpec.of(model_shapes.config("toy"))
    first, resumed = CropSampler(waves, spec, SMALL), CropSampler(waves, spec, SMALL)
    for step in range(4):
        expected = first.batch(step)
    result = resumed.batch(3)
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert not torch.equal(resumed.batch(4)["waves"], result["waves"])
    assert result["waves"].shape == (4, 4 * FRAME) and result["waves"].dtype == torch.float32


def test_crops_cover_clips_to_their_ends_and_short_clips_are_padded():
    """Mistake: ends of clips are never used, or a short clip breaks the batch."""
    ramp, short = np.linspace(0.1, 0.9, 3 * 4 * FRAME, dtype=np.float32), np.full(100, 0.5, np.float32)
    config = SMALL.replace(speed_perturbation=0.0, batch_size=200)
    crops = CropSampler([ramp, short], ModelSpec.of(model_shapes.config("toy")), config)
    batch = crops.sample(0)["waves"].numpy()
    padded = batch[batch[:, -1] == 0]
    assert all((row[100:] == 0).all() for row in padded)
    # the ratio of the last sample to the first is independent of the gain
    ratios = [row[-1] / row[0] for row in batch if row[-1] > 0]
    assert min(ratios) == pytest.approx(0.9 / (0.9 - 0.8 / 3), rel=0.01) and max(ratios) > 2.5


def test_many_of_the_crops_with_fewer_codebooks_have_only_the_first():
    """Mistake: the first codebook alone is hardly ever decoded, although its words are a goal; or no crop has them all."""
    config = SMALL.replace(batch_size=2000, all_codebooks=0.5)
    crops = CropSampler([np.ones(40 * FRAME, np.float32)], ModelSpec.of(model_shapes.config("toy")), config)
    levels = crops.sample(0)["levels"].numpy()
    assert set(levels) == {1, 2, 3, 4}
    assert (levels == 4).mean() == pytest.approx(0.5 + 0.5 * (1 - 0.75 ** 0.5), abs=0.04)
    assert (levels == 1).mean() == pytest.approx(0.5 * 0.25 ** 0.5, abs=0.04)


def test_features_of_a_crop_are_those_of_its_time():
    """Mistake: the teacher's features are of another time than the crop, or ignore its speed."""
    wave = np.ones(40 * FRAME, np.float32)
    # the feature of a frame is the time of its centre, in frames
    centres = (np.arange(40) + 0.5).astype(np.float16)[:, None]
    crops = CropSampler([wave], ModelSpec.of(model_shapes.config("toy")), SMALL, [centres])
    for start, speed in ((0, 1.0), (5 * FRAME, 1.0), (5 * FRAME + 700, 1.1)):
        expected = start / FRAME + (np.arange(4) + 0.5) * speed
        np.testing.assert_allclose(crops._features_at(0, start, speed)[:, 0], expected, rtol=2e-3)
    assert (crops._features_at(0, 39 * FRAME, 1.0)[2:] == 0).all()


def test_the_first_codebook_learns_the_features_of_a_teacher(waves, tmp_path):
    """Mistake: the teacher is called, but its features do not train the first codebook."""
    edges = [0, 12, 32, 80]  # of bands, in bins of 12.5 Hz

    def band_energies(wave):
        energy = np.abs(np.fft.rfft(np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME))) ** 2
        return np.log(np.add.reduceat(energy, edges, axis=1)[:, :3] + 0.1)

    features = codec_training.teacher_features(band_energies, waves, tmp_path / "teacher.safetensors")
    assert np.concatenate(features).astype(np.float32).mean() == pytest.approx(0, abs=0.01)
    config = SMALL.replace(steps=80, batch_size=16, unquantized_steps=70, warmup_steps=5, kmeans_seconds=20,
                           learning_rate=0.01)
    training = CodecTrainer(waves, config, CPU, features)
    losses = [training.step()["teacher"].item() for _ in range(config.steps)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    batch = training.crops.sample(0)
    training.optimizers["codec_optimizer"].zero_grad()
    training._decode(training._encode(batch["waves"]), batch)[2]["teacher"].backward()
    semantic, acoustic = quantizer.branches(training.codec)
    assert semantic.input_proj.weight.grad.abs().sum() > 0 and acoustic.input_proj.weight.grad is None
    assert training.codec.encoder.layers[0].conv.weight.grad.abs().sum() > 0

    def fail(wave):
        raise AssertionError("the features are cached")

    cached = codec_training.teacher_features(fail, waves, tmp_path / "teacher.safetensors")
    assert all(np.array_equal(clip_features, cached_features) for clip_features, cached_features in zip(features, cached))


def test_the_spectral_loss_measures_distance():
    """Mistake: a loss that is not zero for equal waves, does not grow with noise, or has no gradient at silence."""
    spectral_loss, wave = SpectralLoss(16_000), torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    noise = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    losses = [spectral_loss(wave + amount * noise, wave).item() for amount in (0, 0.01, 0.1)]
    assert losses[0] < 1e-5 and losses[0] < losses[1] < losses[2]
    silent = torch.zeros(2, 8000, requires_grad=True)
    spectral_loss(silent, wave).backward()
    assert torch.isfinite(silent.grad).all()
    assert all((getattr(spectral_loss, f"mel_{window}").sum(1) > 0).all() for window in spectral_loss.windows)


def test_discriminators_learn_and_have_gradients():
    """Mistake: discriminators that do not separate noise from a tone, or whose losses have no gradient for the codec."""
    torch.manual_seed(0)
    discriminators = Discriminators(windows=(256, 512), channels=4)
    optimizer = torch.optim.Adam(discriminators.parameters(), 1e-2)
    real = torch.from_numpy(np.stack([vowels(number, 0.32) for number in range(4)]))
    noise = (torch.randn(real.shape) * 0.05).requires_grad_()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        own, adversarial, feature_matching = discriminators.losses(noise, real)
        own.backward()
        optimizer.step()
        losses.append(own.item())
    assert losses[-1] < 0.5 * losses[0]
    noise.grad = None
    _, adversarial, feature_matching = discriminators.losses(noise, real)
    (adversarial + feature_matching).backward()
    assert noise.grad.abs().sum() > 0
    _, real_adversarial, real_matching = discriminators.losses(real, real)
    assert real_matching.item() == pytest.approx(0, abs=1e-6) and real_adversarial < adversarial


def test_discriminators_have_their_share_of_the_gradient(waves):
    """Mistake: the losses of the discriminators are added as they are, and their gradient drowns or is drowned."""
    config = SMALL.replace(discriminator_start=0.0, adversarial_weight=0.7, feature_matching_weight=0.0)
    training = CodecTrainer(waves, config, CPU)
    training.adversarial_steps = 10 ** 6  # past the warm-up
    real = training.crops.sample(0)["waves"]
    decoded = real + 0.05 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    with_discriminators, losses = training._wave_gradient(decoded.clone().requires_grad_(), real)
    assert set(losses) == {"spectral", "waveform", "discriminators"}
    training.config = config.replace(discriminator_start=1.0)
    without, _ = training._wave_gradient(decoded.clone().requires_grad_(), real)
    assert (with_discriminators - without).norm().item() == pytest.approx(0.7 * without.norm().item(), rel=1e-3)


def test_the_exported_weights_are_the_average(waves, tmp_path):
    """Mistake: the last weights are exported, whose noise the average does not have."""
    training = CodecTrainer(waves, SMALL.replace(weight_ema_decay=0.9), CPU)
    history = []
    for _ in range(9):
        training.step()
        history.append(training.codec.encoder.layers[0].conv.weight.detach().clone())
    # the first update copies the weights, the next ones are four steps apart
    expected, decay = history[0], 0.9 ** 4
    for weight in (history[4], history[8]):
        expected = decay * expected + (1 - decay) * weight
    codec_training._export(training, tmp_path / "codec", waves[:1])
    exported = MimiModel.from_pretrained(tmp_path / "codec")
    torch.testing.assert_close(exported.encoder.layers[0].conv.weight, expected)
    for codebook, trained_codebook in zip(quantizer.codebooks(exported), quantizer.codebooks(training.codec)):
        torch.testing.assert_close(codebook.embed, trained_codebook.embed)


def test_latents_are_anchored():
    """Mistake: latents that wander off, grow, or use one dimension cost nothing."""
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(4, 8, 100, generator=generator)
    direction = torch.randn(1, 8, 1, generator=generator)
    flat = direction * 8 ** 0.5 / direction.norm() * torch.randn(4, 1, 100, generator=generator)
    costs = [quantizer.anchor(latents).item() for latents in (good, good + 2, 2 * good, flat)]
    assert costs[0] < 0.2 and all(cost > 0.9 for cost in costs[1:])


def _train_two(folder):
    training = CodecTrainer([vowels(seed) for seed in range(8)], SMALL.replace(processes=2, batch_size=2), CPU)
    for _ in range(4):
        training.step()
    torch.save(all_weights(training), folder / f"{os.environ['RANK']}.pt")


def test_processes_stay_equal(tmp_path):
    """Mistake: gradients or codebooks of the processes are not combined, and each trains a codec of its own."""
    processes.run(_train_two, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def _fail():
    raise KitError("the corpus is empty.")


def test_an_error_of_a_process_is_reported():
    """Mistake: a traceback of torch's launcher in place of the sentence that says what to do."""
    with pytest.raises(KitError, match="^the corpus is empty.$"):
        processes.run(_fail, 2)


def test_clips_are_joined_to_the_length_of_the_teacher():
    """Mistake: the teacher pads each short clip to 30 s, or samples are lost."""
    waves = [np.full(size, index, np.float32) for index, size in enumerate((5, 3, 4, 20, 1))]
    joined = codec_training.join(waves, 10)
    assert [len(wave) for wave in joined] == [8, 4, 20, 1]
    assert np.array_equal(np.concatenate(joined), np.concatenate(waves))


def test_held_out_speakers_are_not_trained_on():
    """Mistake: the codec is evaluated on voices that it was trained on."""
    rows = [(f"speaker {index % 9}", "", np.full(10, index % 9, np.float32)) for index in range(90)]
    train, held_out = codec_training.split(rows, 0.15)
    assert {wave[0] for wave in train}.isdisjoint({wave[0] for wave in held_out})
    assert len(train) + len(held_out) == 90 and len(held_out) == 20
    train, held_out = codec_training.split([("one", "", np.ones(10))] * 10, 0.15)
    assert (len(train), len(held_out)) == (8, 2)


def test_the_command_trains_once_and_checks_its_settings(tmp_path, capsys):
    """Mistake: the command cannot read the corpus, replaces a finished codec, or mixes two trainings."""
    def synthesize(text, speaker, speed):
        return vowels(len(text), 0.8)[::2]

    corpus.make_shards(tmp_path / "corpus", 1, synthesize)
    common = ["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "codec"), "--shape", "toy", "--device", "cpu",
              "--steps", "4", "--unquantized-steps", "2", "--batch-size", "2", "--crop-seconds", "0.32",
              "--kmeans-seconds", "6"]
    assert codec_training.main([*common, "--hours", "0.01"]) == 0
    evaluation = json.loads((tmp_path / "codec" / codec_evaluation.FILE).read_text())
    assert evaluation["finished"] and evaluation["steps"] == 4 and evaluation["recipe"]["batch_size"] == 2
    assert 20 < evaluation["speech_seconds"] < 40
    assert codec_training.main([*common, "--hours", "0.01"]) == 0
    assert "already trained" in capsys.readouterr().out
    assert codec_training.main([*common, "--hours", "0.01", "--seed", "5"]) == 1
    assert "seed was 0, now it is 5" in capsys.readouterr().err


def test_incomplete_checkpoints_are_ignored(tmp_path):
    """Mistake: a checkpoint whose writing was interrupted is loaded, or old ones fill the disk."""
    module = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"module": module}, {}, {})
    (tmp_path / "step-000004").mkdir()
    assert [path.name for path in checkpoint.list_folders(tmp_path)] == ["step-000002", "step-000003"]
    (tmp_path / "step-000003" / checkpoint.TENSORS).write_bytes(b"cut")
    with pytest.raises(KitError, match="Remove that folder"):
        checkpoint.load(tmp_path / "step-000003", {"module": module}, {})


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("ema_decay", 1.5), ("speed_perturbation", 0.7),
                                              ("minutes", -1.0)])
def test_invalid_settings_are_refused(field, value):
    """Mistake: an invalid value has an effect after an hour, or none."""
    with pytest.raises(KitError, match=f"{field} is"):
        SMALL.replace(**{field: value})
