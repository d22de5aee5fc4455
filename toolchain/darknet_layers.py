"""The sections of a darknet cfg -> nodes, and what is needed to give them weights and a head.

What darknet computes, exactly, with the fewest nodes. Its paddings are not TensorFlow's:

- A convolution has p*dilation zeros on each side and floor((n + 2p - k)/s) + 1 outputs. With stride 2, kernel 3 and
  even n the first window begins one pixel earlier than with TensorFlow's "same": there the zeros are a node.
- A max-pool's windows stand out by `padding` pixels together, floor(padding/2) of them before the first pixel, and
  there are floor((n + padding - k)/s) + 1; what lies outside never is the maximum. Where that is not "same" either, the
  edges are mirrored: the mirrored pixels of a window lie in it anyway, so no maximum changes, whatever the signs.

On the far side both take only what a window reads. Nodes are called <type>_<index>, with the section's index as darknet
counts it; beside conv_3 may stand conv_3_pad, conv_3_bn and conv_3_activation.
"""

from __future__ import annotations

import dataclasses

from deploy.contract import Scale
from deploy.errors import GraphError
from toolchain import darknet_sections as cfg
from toolchain.darknet_weights import ConvolutionShape
from toolchain.graph import Node

#: Added to the variance: darknet's own versions differ (1e-6, 1e-5), OpenCV's reader has this one.
_EPSILON = 1e-6
#: Most elements of one layer's output.
_MAX_ELEMENTS = 2**31

_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "swish": "silu", "mish": "mish", "logistic": "sigmoid"}
_ACTIVATIONS |= {"tanh": "tanh", "elu": "elu"}
_SLOPES = {"leaky": 0.1, "relie": 0.01}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A node's output."""

    node: str
    height: int
    width: int
    channels: int


@dataclasses.dataclass
class Network:
    """What has been read so far."""

    file: str
    net: cfg.Net
    nodes: list[Node]
    #: By section; None for a detection, which nothing can read.
    outputs: list[Tensor | None] = dataclasses.field(default_factory=list)
    convolutions: list[ConvolutionShape] = dataclasses.field(default_factory=list)
    detections: list[tuple[cfg.Detection, Scale]] = dataclasses.field(default_factory=list)

    def add(self, name: str, op: str, inputs: tuple[str, ...], **attributes: object) -> str:
        self.nodes.append(Node(name, op, inputs, attributes))
        return name

    def error(self, section: cfg.Section, sentence: str) -> GraphError:
        return GraphError(f"{self.file}:{section.line}: {sentence}")


def read_sections(net: cfg.Net, sections: tuple[cfg.Section, ...], file: str) -> Network:
    """Nodes without weights for every section; file names the cfg in messages.

    Raises GraphError with file and line for layers that do not fit together.
    """
    network = Network(file, net, [Node("image", "InputLayer", (), {"shape": [net.height, net.width, 3]})])
    current: Tensor | None = Tensor("image", net.height, net.width, 3)
    for index, section in enumerate(sections):
        if isinstance(section, cfg.Route):
            current = _route(network, section, index)
        elif current is None:
            sentence = f"layer {index} reads the detection before it, whose output is boxes; put a [route] between"
            raise network.error(section, sentence)
        else:
            current = _section(network, section, index, current)
        if current is not None and current.height * current.width * current.channels > _MAX_ELEMENTS:
            shape = f"{current.height}x{current.width}x{current.channels}"
            raise network.error(section, f"an output has at most {_MAX_ELEMENTS:,} elements; this one is {shape}")
        network.outputs.append(current)
    return network


def _section(network: Network, section: cfg.Section, index: int, source: Tensor) -> Tensor | None:
    match section:
        case cfg.Convolutional():
            return _convolutional(network, section, index, source)
        case cfg.MaxPool():
            return _maxpool(network, section, index, source)
        case cfg.AvgPool():
            node = network.add(f"avgpool_{index}", "GlobalAveragePooling2D", (source.node,), keepdims=True)
            return Tensor(node, 1, 1, source.channels)
        case cfg.Upsample(stride=stride):
            if stride == 1:
                return source
            size = [stride, stride]
            node = network.add(f"upsample_{index}", "UpSampling2D", (source.node,), size=size, interpolation="nearest")
            return Tensor(node, source.height * stride, source.width * stride, source.channels)
        case cfg.Reorg():
            return _reorg(network, section, index, source)
        case cfg.Shortcut():
            return _shortcut(network, section, index, source)
        case cfg.Scale():
            return _scale(network, section, index, source)
        case cfg.Detection():
            _detection(network, section, source)
            return None
        case _:
            return source


def _layer(network: Network, section: cfg.Section, index: int, number: int) -> Tensor:
    """The output that a section names by number."""
    target = number if number >= 0 else index + number
    if not 0 <= target < index:
        problem = "itself" if target == index else "a later one, a cycle" if target > index else "none"
        raise network.error(section, f"layer {index} reads earlier layers, 0 to {index - 1}; {number} is {problem}")
    if (output := network.outputs[target]) is None:
        raise network.error(section, f"layer {index} reads layer {target}, a detection, whose output is boxes")
    return output


def _activation(network: Network, name: str, tensor: Tensor, activation: str) -> Tensor:
    if activation == "linear":
        return tensor
    if activation in _SLOPES:
        node = network.add(f"{name}_activation", "LeakyReLU", (tensor.node,), negative_slope=_SLOPES[activation])
    else:
        node = network.add(f"{name}_activation", "Activation", (tensor.node,), activation=_ACTIVATIONS[activation])
    return dataclasses.replace(tensor, node=node)


def _convolutional(network: Network, section: cfg.Convolutional, index: int, source: Tensor) -> Tensor:
    name, channels, groups = f"conv_{index}", source.channels, section.groups
    if channels % groups or section.filters % groups:
        sentence = f"groups divide the channels; {groups} groups do not divide {channels} in and {section.filters} out"
        raise network.error(section, sentence)
    if section.dilation > 1 and max(section.stride) > 1:
        raise network.error(section, "a convolution has a stride or a dilation above 1, not both")
    sides = (source.height, source.width)
    reach = (section.size - 1) * section.dilation + 1
    before = section.padding * section.dilation
    outputs = [(side + 2 * before - reach) // stride + 1 for side, stride in zip(sides, section.stride)]
    # darknet counts its outputs as if there were no dilation: where that makes a difference it has no meaning itself.
    if outputs != [(n + 2 * section.padding - section.size) // s + 1 for n, s in zip(sides, section.stride)]:
        sentence = f"a dilated convolution keeps its input's size; with padding={section.padding} it does not"
        raise network.error(section, sentence)
    padding, pads = _padding(network, section, source, reach, section.stride, before, outputs)
    if pads:
        source_node = network.add(f"{name}_pad", "ZeroPadding2D", (source.node,), padding=pads)
    else:
        source_node = source.node
    # TensorFlow's depthwise convolution has one stride for both axes.
    depthwise = groups == channels > 1 and section.stride[0] == section.stride[1]
    own: dict[str, int] = {"depth_multiplier": section.filters // channels}
    network.add(
        name,
        "DepthwiseConv2D" if depthwise else "Conv2D",
        (source_node,),
        **(own if depthwise else {"filters": section.filters, "groups": groups}),
        kernel_size=[section.size, section.size],
        strides=list(section.stride),
        padding=padding,
        dilation_rate=[section.dilation, section.dilation],
        use_bias=not section.batch_normalize,
    )
    shape = ConvolutionShape(name, section.filters, channels // groups, section.size, section.batch_normalize)
    network.convolutions.append(shape)
    node = name
    if section.batch_normalize:
        node = network.add(f"{name}_bn", "BatchNormalization", (name,), axis=-1, epsilon=_EPSILON)
    return _activation(network, name, Tensor(node, outputs[0], outputs[1], section.filters), section.activation)


def _maxpool(network: Network, section: cfg.MaxPool, index: int, source: Tensor) -> Tensor:
    name, size, before = f"maxpool_{index}", section.size, section.padding // 2
    sides = (source.height, source.width)
    outputs = [(side + section.padding - size) // stride + 1 for side, stride in zip(sides, section.stride)]
    padding, pads = _padding(network, section, source, size, section.stride, before, outputs)
    node = source.node
    if pads:
        # Half the window at most, so that what is mirrored into it lies in it; and no more than there is.
        if any(2 * pad > size or pad > side for side, both in zip(sides, pads) for pad in both):
            sentence = f"half of a window lies inside its input; padding={section.padding} is too much"
            raise network.error(section, sentence)
        node = network.add(f"{name}_pad", "MirrorPad", (node,), padding=pads, mode="symmetric")
    strides = list(section.stride)
    network.add(name, "MaxPooling2D", (node,), pool_size=[size, size], strides=strides, padding=padding)
    return Tensor(name, outputs[0], outputs[1], source.channels)


def _padding(
    network: Network,
    section: cfg.Section,
    source: Tensor,
    reach: int,
    strides: tuple[int, int],
    before: int,
    outputs: list[int],
) -> tuple[str, list[list[int]]]:
    """Keras's padding, and the pads [[top, bottom], [left, right]] that must stand before it; [] for none."""
    pads, same = [], []
    for side, stride, count in zip((source.height, source.width), strides, outputs):
        if count < 1:
            raise network.error(section, f"a window of {reach} does not fit into {source.height}x{source.width} pixels")
        pads.append([before, max(0, (count - 1) * stride + reach - before - side)])
        count_same = -(-side // stride)
        around = max(0, (count_same - 1) * stride + reach - side)
        same.append(count_same == count and pads[-1] == [around // 2, around - around // 2])
    if pads == [[0, 0], [0, 0]]:
        return "valid", []
    return ("same", []) if all(same) else ("valid", pads)


def _reorg(network: Network, section: cfg.Reorg, index: int, source: Tensor) -> Tensor:
    stride = section.stride
    if source.height % stride or source.width % stride or source.channels % stride**2:
        shape = f"{source.height}x{source.width}x{source.channels}"
        sentence = f"reorg's stride divides both sides and, squared, the channels; {stride} and {shape} do not go"
        raise network.error(section, sentence)
    node = network.add(f"reorg_{index}", "DarknetReorg", (source.node,), stride=stride)
    return Tensor(node, source.height // stride, source.width // stride, source.channels * stride**2)


def _slice(network: Network, name: str, source: Tensor, start: int, stop: int) -> Tensor:
    node = network.add(name, "Slice", (source.node,), axis=-1, start=start, stop=stop)
    return dataclasses.replace(source, node=node, channels=stop - start)


def _route(network: Network, section: cfg.Route, index: int) -> Tensor:
    name = f"route_{index}"
    tensors = [_layer(network, section, index, number) for number in section.layers]
    if len({(tensor.height, tensor.width) for tensor in tensors}) > 1:
        found = ", ".join(f"{tensor.height}x{tensor.width}" for tensor in tensors)
        raise network.error(section, f"joined layers have one height and width; layer {index} joins {found}")
    if section.groups > 1:
        for position, tensor in enumerate(tensors):
            part, rest = divmod(tensor.channels, section.groups)
            if rest:
                sentence = f"groups divide the channels; {section.groups} do not divide {tensor.channels}"
                raise network.error(section, sentence)
            own = f"{name}_part_{position}" if len(tensors) > 1 else name
            start = part * section.group_id
            tensors[position] = _slice(network, own, tensor, start, start + part)
    if len(tensors) == 1:
        return tensors[0]
    node = network.add(name, "Concatenate", tuple(tensor.node for tensor in tensors), axis=-1)
    return dataclasses.replace(tensors[0], node=node, channels=sum(tensor.channels for tensor in tensors))


def _shortcut(network: Network, section: cfg.Shortcut, index: int, source: Tensor) -> Tensor:
    """The sum, with the channels of `source`: of the others what they have more is left out, what they lack is zero."""
    name = f"shortcut_{index}"
    addends = [source]
    for position, number in enumerate(section.layers):
        other = _layer(network, section, index, number)
        if (other.height, other.width) != (source.height, source.width):
            found = f"{source.height}x{source.width} and {other.height}x{other.width}"
            raise network.error(section, f"added layers have one height and width; layer {index} adds {found}")
        if other.channels > source.channels:
            other = _slice(network, f"{name}_part_{position}", other, 0, source.channels)
        addends.append(other)
    shared = min(tensor.channels for tensor in addends)
    if shared == source.channels:
        network.add(name, "Add", tuple(tensor.node for tensor in addends))
    elif len(addends) > 2:
        raise network.error(section, f"several layers are added with their channels alike; layer {index}'s are not")
    else:
        head = _slice(network, f"{name}_head", source, 0, shared)
        rest = _slice(network, f"{name}_rest", source, shared, source.channels)
        total = network.add(f"{name}_sum", "Add", (head.node, addends[1].node))
        network.add(name, "Concatenate", (total, rest.node), axis=-1)
    return _activation(network, name, dataclasses.replace(source, node=name), section.activation)


def _scale(network: Network, section: cfg.Scale, index: int, source: Tensor) -> Tensor:
    other = _layer(network, section, index, section.layer)
    wanted = {
        "channel": (1, 1, other.channels),
        "pixel": (other.height, other.width, 1),
        "element": (other.height, other.width, other.channels),
    }[section.by]
    found = (source.height, source.width, source.channels)
    if found != wanted:
        raise network.error(section, f"layer {index} scales by {section.by}: its input is {wanted}, not {found}")
    name = f"sam_{index}" if section.by == "element" else f"scale_channels_{index}"
    network.add(name, "Multiply", (other.node, source.node))
    return _activation(network, name, dataclasses.replace(other, node=name), section.activation)


def _detection(network: Network, section: cfg.Detection, source: Tensor) -> None:
    wanted = len(section.anchors) * (5 + section.classes)
    if source.channels != wanted:
        sentence = f"{len(section.anchors)} anchors with 5 + {section.classes} outputs each need {wanted} channels"
        raise network.error(section, f"{sentence}; the layer before has {source.channels}: correct its filters")
    net = network.net
    stride = net.height // source.height
    if (source.height * stride, source.width * stride) != (net.height, net.width):
        sentence = f"a grid of {source.height}x{source.width} does not divide the input of {net.height}x{net.width}"
        raise network.error(section, f"{sentence} evenly; give a width and height that are multiples of 32")
    node = source.node
    if section.new_coords:
        # Its boxes are made of sigmoids, which darknet leaves to the convolution; the head's outputs are before them.
        last = next(candidate for candidate in network.nodes if candidate.name == node)
        if last.attributes.get("activation") != "sigmoid":
            sentence = "new_coords=1 stands after a convolution with activation=logistic; this one does not"
            raise network.error(section, f"{sentence}: write it there if the network was trained with it")
        node = last.inputs[0]
    unit = stride if section.in_cells else 1
    anchors = tuple((width * unit, height * unit) for width, height in section.anchors)
    network.detections.append((section, Scale(stride, anchors, {"raw": node}, section.scale_x_y)))
