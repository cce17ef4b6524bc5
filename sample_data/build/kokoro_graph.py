"""Split Kokoro's 8-bit ONNX file into three graphs with float convolutions, so that the vocoder can run in bfloat16.

The int8 convolutions have no fast kernel on CPUs. In float the vocoder takes nine tenths of the time, and half of that on a
CPU with bfloat16 units; the graph before it (pitch, phase) and the one after it (the inverse transform) need float32.
OpenVINO has no fast kernel for the sine either, a third of the vocoder's time; a polynomial of it is as exact as bfloat16."""

import hashlib
from pathlib import Path

from tts_kit.errors import KitError
from tts_kit.io import atomic_folder

EXCITATION = "/decoder/decoder/generator/noise_convs.0/Conv_quant_float"
HIDDEN = "/decoder/decoder/generator/ups.0/ConvTranspose"
SPECTRUM = "/decoder/decoder/generator/conv_post/Conv"
CHANNELS = (22, 512, 22)  # channels of the tensors between the graphs: excitation, hidden state, spectrum
SINE = """
<domain: "kokoro", opset_import: ["": 20]>
sine (x) => (y) {
    pi = Constant <value_float = 3.14159265> ()
    c1 = Constant <value_float = 1.0> ()
    c3 = Constant <value_float = -0.16666667> ()
    c5 = Constant <value_float = 0.00833333> ()
    c7 = Constant <value_float = -0.00019841> ()
    half_periods = Div (x, pi)
    nearest = Round (half_periods)
    offset = Mul (nearest, pi)
    r = Sub (x, offset)
    r2 = Mul (r, r)
    t7 = Mul (c7, r2)
    s5 = Add (c5, t7)
    t5 = Mul (s5, r2)
    s3 = Add (c3, t5)
    t3 = Mul (s3, r2)
    s1 = Add (c1, t3)
    y = Mul (s1, r)
}"""
"""The sine by its series, except for its sign in every second half period: the vocoder only uses the square."""
GRAPH_FILES = ("before.onnx", "vocoder.onnx", "after.onnx")


def split_model(model: Path, cache: Path) -> list[Path]:
    """Return the paths of the three graphs of `model`, written once for each version of it and of this module."""
    import onnx

    folder = cache / hashlib.sha256(model.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    if not folder.exists():
        whole = onnx.load(model)
        _dequantize_convolutions(whole.graph)
        with atomic_folder(folder) as staging:
            before, vocoder, after = _split(whole)
            for name, graph in zip(GRAPH_FILES, (before, _approximate_sines(vocoder), after)):
                onnx.save(graph, staging / name)
    return [folder / name for name in GRAPH_FILES]


def _dequantize_convolutions(graph) -> None:
    """Replace each quantized convolution, with the nodes that rescale its output, by the equivalent float one."""
    from onnx import helper, numpy_helper

    producers, constants = _producers(graph), {constant.name: constant for constant in graph.initializer}
    consumers = {name: node for node in graph.node for name in node.input}
    for old in [node for node in graph.node if node.op_type == "ConvInteger"]:
        bias, following = [], consumers[old.output[0]]
        if following.op_type == "Add":
            name = following.input[1]
            while name not in constants:  # through rounding and scaling back to the float bias
                name = producers[name].input[0]
            bias, following = [name], consumers[following.output[0]]
        scaled = consumers[following.output[0]]
        scale = numpy_helper.to_array(constants[producers[scaled.input[1]].input[1]])
        integers, zero_point = (numpy_helper.to_array(constants[old.input[index]]).astype("float32") for index in (1, 3))
        graph.initializer.append(numpy_helper.from_array((integers - zero_point) * scale, f"{old.name}_weight"))
        float_input = producers[old.input[0]].input[0]
        new = helper.make_node("Conv", [float_input, f"{old.name}_weight", *bias], [scaled.output[0]],
                               name=f"{old.name}_float")
        new.attribute.extend(old.attribute)
        graph.node.insert(list(graph.node).index(scaled), new)
        graph.node.remove(scaled)


def _approximate_sines(model):
    """Return the model with `SINE` for each sine; an error if one is not squared."""
    from onnx import inliner, parser

    consumers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type == "Sin":
            if consumers[node.output[0]].op_type != "Pow":
                raise KitError(f"{node.name} of this Kokoro is not squared; it is another export than the supported one. "
                               "Install the version that the extra `build` names.")
            node.op_type, node.domain = "sine", "kokoro"
    model.functions.append(parser.parse_function(SINE))
    model.opset_import.add(domain="kokoro", version=1)
    return inliner.inline_local_functions(model)


def _split(whole) -> list:
    """Return the graphs before the vocoder, of it, and after it."""
    from onnx import TensorProto, helper, utils

    nodes = {node.name: node for node in whole.graph.node}
    if missing := {EXCITATION, HIDDEN, SPECTRUM} - set(nodes):
        raise KitError(f"this Kokoro has no node {sorted(missing)[0]}; it is another export than the supported one. "
                      "Install the version that the extra `build` names.")
    edges = [nodes[EXCITATION].input[0], nodes[HIDDEN].input[0], nodes[SPECTRUM].output[0]]
    excitation, hidden, spectrum = edges
    extract = utils.Extractor(whole).extract_model
    graphs = [extract(["tokens", "style", "speed"], [excitation, hidden]),
              extract([excitation, hidden, "style"], [spectrum]),
              extract([spectrum], [whole.graph.output[0].name])]
    input_types = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, f"length_{index}"])
                   for index, (name, channels) in enumerate(zip(edges, CHANNELS))}
    for graph in graphs:
        for graph_input in graph.graph.input:
            if graph_input.name in input_types:
                graph_input.CopyFrom(input_types[graph_input.name])
    return graphs


def _producers(graph) -> dict:
    """Return name of a tensor -> the node whose output it is."""
    return {name: node for node in graph.node for name in node.output}
