"""What a GPU does, proven without one: on fake CUDA tensors, operations that mix devices or make the host wait raise.

torch's FakeTensorMode computes shapes, dtypes and devices without data. A build for the CPU lacks only CUDA's device guard;
the two lines of C++ below register one that does nothing. What needs numbers replays its graphs on the CPU."""

import contextlib
import ctypes
import gc
import random
import shutil
import subprocess
import weakref
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_clip, spread_logits
from safetensors.torch import load_file, save_file
from test_generation_engine import GREEDY, prompts
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface

from sample_data.build import model_shapes
from tts_kit import device, text
from tts_kit.generation import engine as engine_module
from tts_kit.generation.engine import InferenceEngine, graph_key
from tts_kit.generation.sampling import Sampling
from tts_kit.model import attention, load, lora, loss
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.server.queue import JobQueue, Worker
from tts_kit.speech import speak
from tts_kit.speech.voice import Voice
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder, Turn
from tts_kit.tokens.streaming import StreamingDecoder
from tts_kit.training import callbacks, dataset, generation_eval, trainer

GUARD = """#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>); }
"""
HALF_DTYPES = [torch.float16, torch.bfloat16]
SAMPLED = Sampling(0.9, 0.9, 8)


class FakeStream:
    current = "main"

    def __init__(self, *_, **__):
        self.name = "side"

    def wait_stream(self, other):
        pass


class FakeEvent:
    def record(self, *_):
        pass

    def synchronize(self):
        pass


class FakeGraph:
    replays, captures, destroyed = 0, [], 0

    def replay(self):
        FakeGraph.replays += 1

    def __del__(self):
        FakeGraph.destroyed += 1


@contextlib.contextmanager
def fake_stream_context(stream):
    before, FakeStream.current = FakeStream.current, stream.name
    yield
    FakeStream.current = before


@contextlib.contextmanager
def fake_capture(graph, **options):
    FakeGraph.captures.append(options)
    yield


@pytest.fixture(scope="module")
def device_guard(tmp_path_factory):
    if torch.cuda.is_available():
        pytest.skip("torch sees a real GPU")
    compiler = shutil.which("g++") or pytest.skip("no g++ to build a device guard with")
    folder, installed = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    subprocess.run([compiler, "-shared", "-fPIC", "-std=c++17", f"-I{installed}/include", folder / "guard.cpp", "-o",
                    folder / "guard.so", f"-L{installed}/lib", "-lc10", f"-Wl,-rpath,{installed}/lib"], check=True)
    ctypes.CDLL(str(folder / "guard.so"))


@pytest.fixture
def fake_cuda(device_guard, monkeypatch):
    """Streams, events and graphs that do nothing, and a mode in which CUDA tensors have no data."""
    FakeGraph.replays, FakeGraph.captures, FakeGraph.destroyed = 0, [], 0
    main = FakeStream()
    main.name = "main"
    for name, value in {"Stream": FakeStream, "current_stream": lambda *_: main, "Event": FakeEvent,
                        "stream": fake_stream_context, "CUDAGraph": FakeGraph, "graph": fake_capture,
                        "graph_pool_handle": object}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(engine_module, "bool", lambda _: False, raising=False)  # of a mask on the CPU: there is padding
    monkeypatch.setattr(engine_module, "draw_gumbel_noise", lambda noise, generators: noise.log_().neg_())
    monkeypatch.setattr(torch, "Generator", lambda *_, generator=torch.Generator: generator())
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def engines_are_fresh():
    """Instead of conftest's: the weights of fake tensors cannot be compared."""


def move_to_fake_cuda(model: torch.nn.Module) -> None:
    """Replace all weights and buffers by fake CUDA tensors, tied ones by the same."""
    fakes = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    fakes[id(tensor)] = tensor, torch.nn.Parameter(fake, tensor.requires_grad) if isinstance(
                        tensor, torch.nn.Parameter) else fake
                tensors[name] = fakes[id(tensor)][1]


def make_toy(dtype: torch.dtype):
    """The toy with an adapter, its weights as the kit loads them in `dtype`, its prompt builder and spec."""
    model = model_shapes.untrained("toy").requires_grad_(False).eval()
    model.codec_model = None
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    if dtype == torch.float16:
        load.keep_residual_in_float32(model)
    attention.install(model)
    spec = ModelSpec.of(model_shapes.config("toy"))
    return lora.add_lora(model, 4, 8.0), PromptBuilder(model_shapes.tokenizer("toy"), spec), spec


def make_engine(fake_cuda: FakeTensorMode, dtype: torch.dtype = torch.bfloat16) -> tuple[InferenceEngine, PromptBuilder]:
    """An engine on fake CUDA tensors, and a prompt builder."""
    model, prompt_builder, spec = make_toy(dtype)
    with fake_cuda:
        move_to_fake_cuda(model)
        return InferenceEngine(lora.unwrap(model), spec, lora.DEFAULT_ADAPTER), prompt_builder


def generate_frames(fake_cuda: FakeTensorMode, engine: InferenceEngine, prompt_builder: PromptBuilder,
                    count: int = 2) -> list[torch.Tensor]:
    """Six frames of each of a few prompts."""
    texts = ("Hello.", "Hello there, you.", "Why?", "No.", "Yes.")[:count]
    batch = [prompt_builder.build(line, [Turn(line, "0")]) for line in texts]
    with fake_cuda:
        return list(engine.stream(batch, SAMPLED, range(count), 6))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_frames_are_generated_without_waiting_for_the_device(fake_cuda, monkeypatch, dtype, is_padded):
    """Mistake: a tensor of the CPU inside a frame, a boolean index or `.item()`, which a CUDA graph cannot capture."""
    monkeypatch.setattr(engine_module, "bool", lambda _: not is_padded, raising=False)
    engine, prompt_builder = make_engine(fake_cuda, dtype)
    frames = generate_frames(fake_cuda, engine, prompt_builder)
    assert [tuple(frame.shape) for frame in frames] == [(2, engine.spec.num_codebooks)] * 6
    assert FakeGraph.replays == 5


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_losses_are_computed_without_waiting_for_the_device(fake_cuda, monkeypatch, dtype, packing):
    """Mistake: an index of the CPU in the loss, a question to the device in every step, or a head whose rows forbid wide
    loads."""
    heads, cross_entropy = [], loss.codebook_cross_entropy
    monkeypatch.setattr(loss, "codebook_cross_entropy", lambda hidden, head, *rest: (
        heads.append(head.shape[2]), cross_entropy(hidden, head, *rest))[1])
    model, prompt_builder, _ = make_toy(dtype)
    examples = [dataset.build_example(make_clip(f"clip{frames}", frames), prompt_builder) for frames in (20, 30, 12)]
    batch = dataset.collate(examples, dataset.sample_depth_frames(examples, 0.5, 0), packing)
    with fake_cuda, torch.no_grad(), cuda_autocast(dtype):
        move_to_fake_cuda(model)
        batch = tree_map_only(torch.Tensor, lambda real: torch.empty(real.shape, dtype=real.dtype, device="cuda"), batch)
        sums = loss.loss_sums(lora.unwrap(model), batch)
    assert sums.backbone.device.type == sums.depth.device.type == "cuda" and sums.backbone.dtype == torch.float32
    assert heads == [40]  # of 35 ids


@contextlib.contextmanager
def cuda_autocast(dtype: torch.dtype):
    """Autocast for CUDA tensors, which `torch.autocast` leaves off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def test_a_codec_decodes_chunks_without_waiting_for_the_device(fake_cuda):
    """Mistake: a streamed chunk mixes devices, or waits for the device between its layers."""
    codec = Codec(model_shapes.untrained("toy").codec_model, None)
    with fake_cuda, torch.no_grad():
        move_to_fake_cuda(codec.model)
        decoder = StreamingDecoder(codec)
        for _ in range(3):
            hidden = codec.model.quantizer.decode(torch.zeros(1, 4, 2, dtype=torch.long, device="cuda"))
            for layer in decoder.layers:
                hidden = layer(hidden)
    assert hidden.device.type == "cuda"


def test_a_failed_capture_falls_back_to_eager_frames(fake_cuda, monkeypatch):
    """Mistake: a driver that refuses graphs, or too little memory for one, makes all speech impossible; or every sentence
    tries and warns again."""
    @contextlib.contextmanager
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: operation not supported")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    engine, prompt_builder = make_engine(fake_cuda)
    with pytest.warns(UserWarning, match=r"No CUDA graph.*operation not supported.*TTS_KIT_GRAPHS=0") as warned:
        assert [len(generate_frames(fake_cuda, engine, prompt_builder)) for _ in range(2)] == [6, 6]
    assert len(warned) == 1 and FakeGraph.replays == 0 and not engine.graph_pool and FakeStream.current == "main"


def test_graphs_can_be_switched_off(fake_cuda, monkeypatch):
    """Mistake: whoever meets a broken driver has no way to speak without graphs."""
    monkeypatch.setenv(engine_module.GRAPHS_VARIABLE, "0")
    engine, prompt_builder = make_engine(fake_cuda)
    with fake_cuda:
        engine.warm_up(SAMPLED)
    assert len(generate_frames(fake_cuda, engine, prompt_builder)) == 6
    assert not FakeGraph.captures and not engine.graph_pool


def test_a_capture_bears_other_threads_and_shares_memory(fake_cuda, monkeypatch):
    """Mistake: an allocation of another thread ends the capture, every graph keeps memory of its own, or the collector
    destroys an old graph during a capture."""
    collected, collect = [], gc.collect
    monkeypatch.setattr(gc, "collect", lambda: (collected.append(len(FakeGraph.captures)), collect()))
    engine, prompt_builder = make_engine(fake_cuda)
    for count in (1, 3):  # three prompts fill up a batch of four
        assert len(generate_frames(fake_cuda, engine, prompt_builder, count)[0]) == count
    assert {options["capture_error_mode"] for options in FakeGraph.captures} == {"thread_local"}
    assert [options["pool"] for options in FakeGraph.captures] == [engine.graph_memory] * 2
    assert collected == [0, 1]


def test_an_engine_and_its_graphs_are_freed_at_once(fake_cuda):
    """Mistake: copies of 2 GB and the graphs wait for Python's cyclic collector, beside the training or the next voice."""
    engine, prompt_builder = make_engine(fake_cuda)
    generate_frames(fake_cuda, engine, prompt_builder)
    assert engine.graph_pool
    reference = weakref.ref(engine)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert reference() is None and FakeGraph.destroyed == 1
    finally:
        gc.enable()


def test_the_engine_of_training_samples_is_freed_after_them(base, config, monkeypatch):
    """Mistake: what generates samples stays in memory for the rest of the training."""
    lora.add_lora(base.model, 4, 8.0)
    engines, init = [], InferenceEngine.__init__
    monkeypatch.setattr(InferenceEngine, "__init__", lambda engine, *args: (
        engines.append(weakref.ref(engine)), init(engine, *args))[1])
    gc.collect()
    gc.disable()
    try:
        assert len(callbacks.generate_samples(base, config, "0", ["Hello."])) == 1
        assert len(engines) == 1 and engines[0]() is None
    finally:
        gc.enable()


@pytest.fixture
def replayed_base(spread_base, monkeypatch):
    """A base on the CPU whose engines replay graphs: the same frames over the whole cache, with a mask, as on a GPU."""
    init = InferenceEngine.__init__

    def use_graphs(engine, *args):
        init(engine, *args)
        engine.uses_graphs = True

    def capture(engine, state):
        state.graph = SimpleNamespace(replay=lambda: engine.decode_step(state))

    monkeypatch.setattr(InferenceEngine, "__init__", use_graphs)
    monkeypatch.setattr(InferenceEngine, "capture_graph", capture)
    return spread_base


def engine_codes(engine, batch, sampling=GREEDY):
    generations = engine.generate(batch, sampling, range(len(batch)), [8] * len(batch))
    return [generation.codes.tolist() for generation in generations]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rows_that_fill_up_a_batch_change_nothing(replayed_base, sampling):
    """Mistake: added rows are returned, draw from another row's noise, or a graph in use again keeps the last sentence."""
    engine = InferenceEngine(replayed_base.model, replayed_base.spec)
    eager = InferenceEngine(replayed_base.model, replayed_base.spec)
    eager.uses_graphs = False
    for texts in (["One.", "Two, but longer.", "Three?"], ["Another one."], ["Five."] * 5, ["No.", "Yes, there.", "And?"]):
        batch = prompts(replayed_base, *texts)
        assert engine_codes(engine, batch, sampling) == engine_codes(eager, batch, sampling)
    assert [key[0] for key in engine.graph_pool] == [1, 8, 4]


def test_one_overflow_does_not_silence_later_sentences(replayed_base):
    """Mistake: keys and values of a sentence that overflowed stay in the cache of its graph, masked; 0 x NaN is NaN, and
    every later frame is all zeros, the EOS frame."""
    engine, batch = InferenceEngine(replayed_base.model, replayed_base.spec), prompts(replayed_base, "One.")
    before = engine_codes(engine, batch)
    (state,) = engine.graph_pool.values()
    with torch.inference_mode():
        for cache in state.kv_cache:
            cache.fill_(torch.nan)
    assert engine_codes(engine, batch) == before and before[0]


def test_weights_that_moved_get_new_graphs(replayed_base):
    """Mistake: an embedding table or head is replaced, and graphs go on reading where the old one was."""
    engine, batch = InferenceEngine(replayed_base.model, replayed_base.spec), prompts(replayed_base, "One.")
    before = engine_codes(engine, batch)
    head = replayed_base.model.depth_decoder.codebooks_head
    head.weight.data = -head.weight.data
    engine.invalidate()
    assert not engine.graph_pool and engine_codes(engine, batch) != before


def test_a_server_captures_few_graphs():
    """Mistake: a graph for every batch size and four kept: every other batch of a busy server captures anew."""
    sentences = generation_eval.SENTENCES.read_text(encoding="utf-8").splitlines()
    rng, pool, misses = random.Random(0), OrderedDict(), 0
    for _ in range(200):
        lines = rng.choices(sentences, k=rng.randint(1, 8))
        frames = max(len(line) // 4 + round(text.max_speech_seconds(line) * 12.5) for line in lines)
        key = graph_key(len(lines), 4 + frames + rng.choice((0, 160)), SAMPLED)
        misses += key not in pool
        pool[key] = pool.pop(key, None)
        while len(pool) > engine_module.MAX_CACHED_GRAPHS:
            pool.popitem(last=False)
    assert misses <= 8
    assert [graph_key(batch, 1, SAMPLED)[0] for batch in (1, 3, 5, 8, 9, 32)] == [1, 4, 8, 8, 9, 32]


def test_a_server_captures_graphs_before_the_first_request(fake_cuda, monkeypatch, base):
    """Mistake: the first clients of a server wait for a second until the graphs of each batch size are captured."""
    engine, _ = make_engine(fake_cuda)
    monkeypatch.setattr(engine, "capture_graph", lambda state: setattr(state, "graph", FakeGraph()))
    with fake_cuda:
        engine.warm_up(SAMPLED)
    assert [key[:2] for key in engine.graph_pool] == [(batch, 256) for batch in (1, 2, 4, 8)]
    warmed = []
    monkeypatch.setattr(InferenceEngine, "warm_up", lambda engine, sampling: warmed.append(sampling))
    queue, voice = JobQueue(), Voice(base, base.model, sampling=SAMPLED)
    queue.close()
    Worker({"anna": voice}, queue).run()
    with voice.acquire_engine():
        Worker({"anna": voice}, queue).run()  # a voice that speaks outside the server already needs none
    assert warmed == [SAMPLED]


def test_a_streamed_chunk_does_not_wait_for_later_frames(monkeypatch, spread_base, fake_cuda):
    """Mistake: the first chunk is decoded on the CUDA stream on which four more frames are waiting already."""
    seen, decode = [], StreamingDecoder.decode

    def record(decoder, codes):
        seen.append(FakeStream.current)
        return decode(decoder, codes)

    voice = Voice(spread_base, spread_base.model, sampling=GREEDY)
    chunks = list(speak.stream_speech("Hello.", voice))
    speak._cuda_stream.cache_clear()
    monkeypatch.setattr(StreamingDecoder, "decode", record)
    context = speak.decoding_stream
    monkeypatch.setattr(speak, "decoding_stream", lambda _: context(torch.device("cuda")))
    np.testing.assert_array_equal(next(speak.stream_speech("Hello.", voice)), chunks[0])
    assert set(seen) == {"side"} and FakeStream.current == "main"
    speak._cuda_stream.cache_clear()


def test_heads_for_generation_hold_only_codes(fake_cuda):
    """Mistake: rows of 2051 numbers, which forbid wide loads, are multiplied with 31 times a frame."""
    engine, prompt_builder = make_engine(fake_cuda)
    generate_frames(fake_cuda, engine, prompt_builder)
    assert engine.depth_heads.shape[2] == engine.spec.codebook_size == 32


def test_padding_of_the_heads_changes_no_loss():
    """Mistake: a column of padding takes part in the softmax or in the gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 16, 35, generator=generator)
    codes, results = torch.randint(0, 35, (3, 5), generator=generator), []
    for columns in (35, 40):
        inputs = hidden.clone().requires_grad_()
        sums = loss.codebook_cross_entropy(inputs, torch.nn.functional.pad(head, (0, columns - 35)), codes, 35)
        sums.sum().backward()
        results.append((sums, inputs.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("major", "repeats"), [(7, True), (9, False)])
def test_grouped_queries_reach_a_fused_kernel_on_every_card(monkeypatch, base, major, repeats):
    """Mistake: on a T4 grouped queries fall to the math kernel, whose float32 scores are kept for the backward pass."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda query, key, *args, **kwargs: (
        calls.append((key.shape[1], kwargs.get("enable_gqa", False))), sdpa(query, key, *args, **kwargs))[1])
    module, implementation = base.model.backbone_model.layers[0].self_attn, attention.NAME
    card = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16, set_attn_implementation=lambda _: None)
    attention.install(card)
    attend, generator = AttentionInterface()[implementation], torch.Generator().manual_seed(0)
    attention.install(base.model)
    query, key, value = (torch.randn(1, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    clips = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.arange(6)
    causal = torch.empty(1, 1, 1, 1)
    for packed_clips in (None, clips):
        out = [function(module, query, key, value, causal, packed_clips, dropout=0.0, scaling=module.scaling)[0]
               for function in (attend, attention.packed_attention)]
        torch.testing.assert_close(*out)
        assert calls[-2:] == [(4, False) if repeats else (2, True), (2, True)]


@pytest.fixture
def a_card(monkeypatch):
    """A card that torch sees, as far as the choice of a device asks."""
    card = SimpleNamespace(name="NVIDIA H100", total_memory=85 * 10**9, major=9, minor=0)
    for name, value in {"is_available": lambda: True, "get_device_properties": lambda *_: card, "current_device": lambda: 0,
                        "is_bf16_supported": lambda including_emulation: True, "get_arch_list": lambda: ["sm_90"],
                        "get_device_capability": lambda *_: (9, 0), "get_device_name": lambda *_: card.name}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield card
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_cudnn_attention_is_off_where_a_gpu_is_chosen(a_card):
    """Mistake: from cuDNN 9.15 on torch prefers it on H100, where it plans for 30 ms at every new length: in every step of a
    training and 31 times in the first frame of a batch."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert device.choose("cuda").device == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


FLOAT16 = device.DeviceConfig("cpu", torch.float16, "")


def test_float16_keeps_the_residual_stream_in_float32(spread_toy):
    """Mistake: embeddings, norms and the sum of all layers in float16, which ends at 65504: training ends without a finite
    loss, and speech is empty without a word."""
    half, full = load.load_base(spread_toy, FLOAT16), load.load_base(spread_toy, device.choose("cpu"))
    dtypes = {name: weight.dtype for name, weight in half.model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float16} == {
        name for name in dtypes if name.endswith(("_proj.weight", "head.weight"))}
    backbone_embeddings = half.model.backbone_model.embed_tokens.embed_audio_tokens
    assert backbone_embeddings.weight is half.model.depth_decoder.model.embed_tokens.weight
    codes = []
    for base in (half, full):
        model = base.model
        for table in (model.embed_text_tokens, model.depth_decoder.model.embed_tokens):
            table.weight.data *= 1e6  # float16 cannot hold such a sum
        codes.append(InferenceEngine(model, base.spec).generate(prompts(base, "One."), GREEDY, [0], [4])[0].codes)
    assert codes[0].tolist() == codes[1].tolist() and len(codes[0]) == 4


def test_weights_that_overflow_in_float16_are_loaded_in_float32(spread_toy, tmp_path, capsys):
    """Mistake: a base that overflows in float16 says nothing, ends every sentence at its first frame, and trains on NaN."""
    folder = shutil.copytree(spread_toy, tmp_path / "large")
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    weights["depth_decoder.codebooks_head.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = load.load_base(str(folder), FLOAT16)
    assert "overflows in float16" in capsys.readouterr().out
    assert base.device_config.dtype == torch.float32
    assert {weight.dtype for weight in base.model.parameters()} == {torch.float32}
    assert load.load_base(spread_toy, FLOAT16).device_config.dtype == torch.float16


def test_the_loss_scale_is_never_waited_for(base, config, tmp_path, monkeypatch):
    """Mistake: in float16 every micro-batch asks the device for the scale, and the host cannot run ahead."""
    model = lora.add_lora(base.model, 4, 8.0)
    spread_logits(base.model)
    clips = [make_clip(f"clip{number}", 5 + number) for number in range(6)]
    micro_batches = dataset.MicroBatchDataset(clips, base.prompt_builder, config)
    arguments = trainer.training_arguments(config, Run("one", tmp_path), base.device_config)
    csm_trainer = trainer.CsmTrainer(model, arguments, micro_batches, [], base.device_config)
    csm_trainer.current_gradient_accumulation_steps = 1
    gradients = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        if scaler:
            monkeypatch.setattr(scaler, "get_scale", lambda: pytest.fail("the host waits for the device"))
        csm_trainer.accelerator.scaler = scaler
        csm_trainer.compute_loss(model.train(), micro_batches[0]).backward()
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        gradients.append([weight.grad.clone() for weight in trainable])
        model.zero_grad()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_the_adapter_is_cast_once_a_step(base, monkeypatch, checkpointing):
    """Mistake: each of 280 matrices is cast to 16 bits by an operation of its own, and its gradient back; or casting all of
    them at once gives other gradients, or a later forward has the weights of the last step."""
    base.model.to(torch.bfloat16)
    model = lora.add_lora(base.model, 4, 8.0).train()
    if checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))
    examples = [dataset.build_example(make_clip(f"clip{frames}", frames), base.prompt_builder) for frames in (20, 30)]
    batch = dataset.collate(examples, dataset.sample_depth_frames(examples, 1.0, 0), True)
    monkeypatch.setitem(loss.CHUNK, "cpu", 16)  # several chunks share the copies
    layers, results = [module for module in model.modules() if isinstance(module, lora.FusedLoraLinear)], []
    for dtype in (torch.float32, torch.bfloat16):
        with CastCounter({weight.shape for weight in trainable}) as counter, torch.autocast("cpu", torch.bfloat16):
            with lora.cast_once(layers, dtype):
                sums = loss.loss_sums(base.model, batch)
            if not checkpointing:
                assert counter.casts == 0 if dtype == torch.bfloat16 else counter.casts >= 56, counter.casts
            (sums.backbone + sums.depth).backward()
        results.append([sums.backbone.detach(), sums.depth.detach(), *(weight.grad for weight in trainable)])
        model.zero_grad()
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert len(layers) == 28 and all(layer.cast_weights is None for layer in layers)
    assert {weight.grad.dtype if weight.grad is not None else torch.float32 for weight in trainable} == {torch.float32}


class CastCounter(TorchDispatchMode):
    """Counts the casts of tensors of some shapes."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.casts = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.casts += function is torch.ops.aten._to_copy.default and args[0].shape in self.shapes
        return function(*args, **(kwargs or {}))


@pytest.mark.timeout(1200)  # the compiler, beside two other processes
def test_all_variants_of_a_layer_are_compiled(base, monkeypatch):
    """Mistake: torch compiles eight variants of a layer, training and evaluation need as many, and the ninth stays eager."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    load.compile_layers(base.model)
    assert torch._dynamo.config.recompile_limit == 16
