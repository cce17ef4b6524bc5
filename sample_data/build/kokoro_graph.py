"""Kokoro's 8-bit file as three graphs: its convolutions in float again, its vocoder apart so that it may run in bfloat16.

The int8 convolutions have no fast kernel on CPUs. In float the vocoder is nine tenths of the work, and on a CPU with
bfloat16 units it takes half the time; what comes before it (pitch, phase) and after it (the inverse transform) must
not be rounded."""

import hashlib
from pathlib import Path

from tts_kit.errors import KitError
from tts_kit.io import atomic_folder

EXCITATION = "/decoder/decoder/generator/noise_convs.0/Conv_quant_float"
HIDDEN = "/decoder/decoder/generator/ups.0/ConvTranspose"
SPECTRUM = "/decoder/decoder/generator/conv_post/Conv"
CHANNELS = (22, 512, 22)
"""Of what passes between the graphs: excitation, hidden state, spectrum."""
PARTS = ("before.onnx", "vocoder.onnx", "after.onnx")


def parts(model: Path, cache: Path) -> list[Path]:
    """The three graphs that `model` becomes, made once for this very file."""
    import onnx

    folder = cache / hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        whole = onnx.load(model)
        _float(whole.graph)
        with atomic_folder(folder) as beside:
            for name, graph in zip(PARTS, _cut(whole)):
                onnx.save(graph, beside / name)
    return [folder / name for name in PARTS]


def _float(graph) -> None:
    """Replace each quantized convolution, from its integers to their scaling, by the float one it stands for."""
    from onnx import helper, numpy_helper

    maker, known = _makers(graph), {each.name: each for each in graph.initializer}
    users = {name: node for node in graph.node for name in node.input}
    for old in [node for node in graph.node if node.op_type == "ConvInteger"]:
        bias, following = [], users[old.output[0]]
        if following.op_type == "Add":
            name = following.input[1]
            while name not in known:  # through rounding and scaling back to the float bias
                name = maker[name].input[0]
            bias, following = [name], users[following.output[0]]
        scaled = users[following.output[0]]
        scale = numpy_helper.to_array(known[maker[scaled.input[1]].input[1]])
        integers, zero = (numpy_helper.to_array(known[old.input[place]]).astype("float32") for place in (1, 3))
        graph.initializer.append(numpy_helper.from_array((integers - zero) * scale, f"{old.name}_weight"))
        wave = maker[old.input[0]].input[0]
        new = helper.make_node("Conv", [wave, f"{old.name}_weight", *bias], [scaled.output[0]], name=f"{old.name}_float")
        new.attribute.extend(old.attribute)
        graph.node.insert(list(graph.node).index(scaled), new)
        graph.node.remove(scaled)


def _cut(whole) -> list:
    """The graphs before, in and after the vocoder."""
    from onnx import TensorProto, helper, utils

    named = {node.name: node for node in whole.graph.node}
    if missing := {EXCITATION, HIDDEN, SPECTRUM} - set(named):
        raise KitError(f"this Kokoro has no node {sorted(missing)[0]}; it is another export than the one that is known "
                      "here. Install the version that the extra `build` names.")
    edges = [named[EXCITATION].input[0], named[HIDDEN].input[0], named[SPECTRUM].output[0]]
    excitation, hidden, spectrum = edges
    extract = utils.Extractor(whole).extract_model
    graphs = [extract(["tokens", "style", "speed"], [excitation, hidden]),
              extract([excitation, hidden, "style"], [spectrum]),
              extract([spectrum], [whole.graph.output[0].name])]
    shapes = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, f"length_{place}"])
              for place, (name, channels) in enumerate(zip(edges, CHANNELS))}
    for graph in graphs:
        for each in graph.graph.input:
            if each.name in shapes:
                each.CopyFrom(shapes[each.name])
    return graphs


def _makers(graph) -> dict:
    return {name: node for node in graph.node for name in node.output}
