import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain.darknet_cfg import parse_cfg
from toolchain.darknet_keys import KEYS
from toolchain.darknet_sections import (
    Convolutional,
    Detection,
    Dropout,
    MaxPool,
    Net,
    Reorg,
    Route,
    Scale,
    Section,
    Shortcut,
    Upsample,
)

NET = "[net]\nwidth=64\nheight=32\nchannels=3\n"


def sections(text: str) -> tuple[Section, ...]:
    return parse_cfg((NET + text).encode(), "a.cfg")[1]


def test_every_spelling_of_a_line():
    text = (
        "\ufeff# made by hand\r\n; another comment\r\n  [ net ]\r\n\twidth = 6 4\r\nheight=32 # pixels\r\n"
        "channels=3;\r\n\r\n"
        "[convolutional] # the first\r\nfilters = 8\r\n size\t=3\r\nactivation = leaky\r\n[max]\nstride=2"
    )
    net, found = parse_cfg(text.encode(), "a.cfg")
    assert net == Net(line=3, height=32, width=64)
    assert found == (
        Convolutional(8, 8, 3, (1, 1), 0, 1, 1, False, "leaky"),
        MaxPool(line=12, size=2, stride=(2, 2), padding=1),
    )


def test_missing_keys_have_darknets_defaults():
    found = sections("[conv]\n[maxpool]\n[upsample]\n[reorg]\n[shortcut]\nfrom=-1\n[dropout]\n")
    assert found == (
        Convolutional(5, 1, 1, (1, 1), 0, 1, 1, False, "logistic"),
        MaxPool(6, 1, (1, 1), 0),
        Upsample(7, 2),
        Reorg(8, 1),
        Shortcut(9, (-1,), "linear"),
        Dropout(11),
    )


@pytest.mark.parametrize(
    ("keys", "padding"), [("", 0), ("pad=1", 2), ("padding=1", 1), ("pad=1\npadding=1", 2), ("pad=0\npadding=1", 1)]
)
def test_pad_is_a_switch_that_overrides_padding(keys, padding):
    (convolution,) = sections(f"[convolutional]\nsize=5\n{keys}\n")
    assert convolution.padding == padding


def test_strides_dilation_and_batch_norms():
    found = sections(
        "[conv]\nsize=3\nstride=2\nstride_x=1\ndilation=4\nbatch_normalize=1\n[conv]\nsize=1\ndilation=4\ncbn=1\n"
        "[maxpool]\nsize=3\nstride_x=2\nstride_y=1\npadding=0\n"
    )
    assert found[0].stride == (2, 1) and found[0].dilation == 4 and found[0].batch_normalize
    assert found[1].dilation == 1 and found[1].batch_normalize
    assert found[2] == MaxPool(15, 3, (1, 2), 0)


def test_routes_shortcuts_and_scales():
    found = sections(
        "[route]\nlayers = -1, 23,\ngroups=2\ngroup_id=1\n[shortcut]\nfrom=-3, -5\nactivation=mish\n"
        "[scale_channels]\nfrom=-4\nscale_wh=1\n[scale_channels]\nfrom=-4\n[sam]\nfrom=-2\nactivation=logistic\n"
    )
    assert found == (
        Route(5, (-1, 23), 2, 1),
        Shortcut(9, (-3, -5), "mish"),
        Scale(12, -4, "pixel", "linear"),
        Scale(15, -4, "channel", "linear"),
        Scale(17, -2, "element", "logistic"),
    )


@pytest.mark.parametrize(
    "anchors", ["1,2, 3,4, 5.5,6", "1,2,3,4,5.5,6,", "1, 2,\n  3,4,\n5.5,\n6", "1,2,3,4,5.5,6,7,8 # x"]
)
def test_anchors_and_mask(anchors):
    keys = f"mask = 2,0\nanchors = {anchors}\nnum=3\nclasses=7\nscale_x_y=1.05\nnew_coords=1\n"
    (detection,) = sections(f"[yolo]\n{keys}")
    assert detection == Detection(5, ((5.5, 6.0), (1.0, 2.0)), 7, 1.05, True, False)


def test_without_a_mask_all_anchors_are_used():
    assert sections("[yolo]\nanchors=1,2,3,4\nnum=2\n")[0].anchors == ((1.0, 2.0), (3.0, 4.0))


def test_region():
    keys = "anchors=1,2,3,.4\nnum=2\nclasses=3\nsoftmax=1\ncoords=4\nbias_match=1\nthresh=.5\n"
    (detection,) = sections(f"[region]\n{keys}")
    assert detection == Detection(5, ((1.0, 2.0), (3.0, 0.4)), 3, 1.0, False, True)


def test_keys_of_training_are_not_looked_at():
    for kind, keys in KEYS.items():
        lines = "".join(f"{key}=anything,at all\n" for key in sorted(keys.training))
        needed = {"route": "layers=0", "shortcut": "from=0", "scale_channels": "from=0", "sam": "from=0"}
        needed |= dict.fromkeys(("yolo", "region"), "anchors=1,1\nsoftmax=1" if kind == "region" else "anchors=1,1")
        if kind in ("net", "network"):
            with_keys, without = (parse_cfg(f"{NET}{keys}".encode() + b"[conv]\n", "a.cfg")[0] for keys in (lines, ""))
        else:
            with_keys, without = (sections(f"[{kind}]\n{needed.get(kind, '')}\n{keys}") for keys in (lines, ""))
        assert with_keys == without


def test_a_key_that_changes_the_network_is_accepted_where_it_does_not():
    for kind, keys in {
        "conv": "antialiasing=0\nflipped = 0 # no\nxnor=0\n",
        "upsample": "scale=1.0\n",
        "shortcut": "weights_type=none\nalpha=1\n",
    }.items():
        needed = "from=0\n" if kind == "shortcut" else ""
        assert sections(f"[{kind}]\n{needed}{keys}") == sections(f"[{kind}]\n{needed}")


def test_a_key_may_stand_twice_when_it_says_the_same():
    assert sections("[conv]\nfilters=4\nfilters = 4\n")[0].filters == 4


def test_comments_may_be_in_any_encoding():
    text = NET.encode() + "# 锚框\n".encode("gbk") + b"[conv]\nfilters=4\n"
    assert parse_cfg(text, "a.cfg")[1][0].filters == 4


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[convolutionl]\n", 5, "did you mean convolutional"),
        ("[connected]\noutput=3\n", 5, r"\[connected\] is not supported"),
        ("[Gaussian_yolo]\n", 5, "Gaussian_yolo.* is not supported; these are: net, .*, region$"),
        ("[softmax]\n", 5, "softmax.* is not supported; these are: "),
        ("[implicit]\n", 5, "implicit"),
        ("[conv]\n\nfilter=8\n", 7, "filter is not known.*did you mean filters"),
        ("[conv]\nwhatever_else=8\n", 6, "whatever_else is not known"),
        ("[conv]\nfilters=4\nsize=1\nfilters=8\n", 8, "filters is 4 in line 6 and 8 here"),
        ("[conv]\nfilters\n", 6, "key=value"),
        ("[conv]\nfilters=\n", 6, "key=value"),
        ("[conv\n", 5, "key=value"),
        ("[conv]\nfilters=4.0\n", 6, "whole number from 1 to"),
        ("[conv]\nfilters=-4\n", 6, "whole number from 1 to"),
        ("[conv]\nfilters=0\n", 6, "whole number from 1 to"),
        (f"[conv]\nfilters={'9' * 5000}\n", 6, "whole number"),
        ("[conv]\nfilters=4x\n", 6, "whole number"),
        ("[conv]\nsize=3\nstride=0\n", 7, "stride is a whole number from 1"),
        ("[conv]\nactivation=leaky # no\n", 6, "activation=leaky#no is not supported"),
        ("[conv]\nactivation=hard_mish\n", 6, "hard_mish is not supported; these are: linear, leaky"),
        ("[conv]\nactivation=gelu\n", 6, "gelu is not supported"),
        ("[conv]\nantialiasing=1\n", 6, "antialiasing=1 changes .* only antialiasing=0 is"),
        ("[conv]\nxnor=1\n", 6, "xnor=1 changes"),
        ("[conv]\nbinary=1\n", 6, "binary=1 changes"),
        ("[conv]\nsway=1\n", 6, "sway=1 changes"),
        ("[conv]\nflipped=1\n", 6, "flipped=1 changes"),
        ("[conv]\nshare_index=-3\n", 6, "share_index=-3 changes"),
        ("[conv]\ndontload=1\n", 6, "dontload=1 changes"),
        ("[maxpool]\nmaxpool_depth=1\n", 6, "maxpool_depth=1 changes"),
        ("[upsample]\nstride=-2\n", 6, "stride is a whole number from 1"),
        ("[upsample]\nscale=0.5\n", 6, "scale=0.5 changes"),
        ("[reorg]\nreverse=1\n", 6, "reverse=1 changes"),
        ("[route]\n", 5, "needs layers"),
        ("[route]\nlayers=1,,2\n", 6, "layers is a whole number"),
        ("[route]\nlayers=0\ngroups=2\ngroup_id=2\n", 8, "group_id is a whole number from 0 to 1"),
        ("[shortcut]\nfrom=-1\nweights_type=per_feature\n", 7, "weights_type=per_feature changes"),
        ("[scale_channels]\nfrom=-1,-2\n", 6, "one other layer, not 2"),
        ("[sam]\nfrom=-1\nactivation=mish\n", 7, "mish"),
        ("[yolo]\nclasses=2\n", 5, "needs anchors"),
        ("[yolo]\nanchors=1,2,3\nnum=1\n", 6, "num=1 anchors are 2 widths and heights, not 3"),
        ("[yolo]\nanchors=1,2\nnum=2\n", 6, "num=2 anchors are 4 widths and heights, not 2"),
        ("[yolo]\nanchors=1,-2\n", 6, "positive numbers, not '-2'"),
        ("[yolo]\nanchors=1,nan\n", 6, "positive numbers"),
        ("[yolo]\nanchors=1,2,\n[conv]\n3,4\n", 8, "key=value"),
        ("[yolo]\nanchors=1,2\nmask=1\n", 7, "mask picks from 1 anchors"),
        ("[yolo]\nanchors=1,2\nscale_x_y=0\n", 7, "positive"),
        ("[region]\nanchors=1,2\n", 5, "softmax=1"),
        ("[region]\nanchors=1,2\nsoftmax=1\ntree=9k.tree\n", 8, "tree=9k.tree changes"),
        ("[region]\nanchors=1,2\nsoftmax=1\nclassfix=1\n", 8, "classfix=1 changes"),
        ("[region]\nanchors=1,2\nsoftmax=1\ncoords=5\n", 8, "coords=5 changes"),
        ("[conv]\n[net]\nwidth=1\n", 6, "one"),
        ("[conv]\nfilters=\udce9\n", 6, "key=value"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text, line, words):
    content = (NET + text).encode("utf-8", "surrogateescape")
    with pytest.raises(InputError, match=rf"^a\.cfg:{line}: .*{words}"):
        parse_cfg(content, "a.cfg")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a.cfg:1: a cfg begins with"),
        ("# nothing\n", "a.cfg:1: a cfg begins with"),
        ("\0\0", "a.cfg:1: a line is"),
        ("width=3\n", "a.cfg:1: width=3 stands before"),
        ("[conv]\nfilters=3\n", "a.cfg:1: a cfg begins with"),
        ("[net]\nwidth=32\nheight=32\nchannels=3\n", "none after"),
        ("[net]\nwidth=32\nheight=32\n[conv]\n", "a.cfg:1: .*channels=3 is supported, not 0"),
        ("[net]\nwidth=32\nheight=32\nchannels=1\n[conv]\n", "a.cfg:4: .*channels=3 is supported, not 1"),
        ("[net]\nwidth=1000000000\nheight=32\nchannels=3\n[conv]\n", "a.cfg:2: .*width is a whole number from 1 to"),
        ("[net]\nheight=32\nchannels=3\n[conv]\n", "a.cfg:1: .*width is a whole number from 1"),
    ],
)
def test_a_cfg_begins_with_net(text, words):
    with pytest.raises(InputError, match=words):
        parse_cfg(text.encode(), "a.cfg")


def test_a_message_is_one_short_line():
    with pytest.raises(InputError) as caught:
        sections(f"[conv]\n{'x' * 5000}\n")
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


_WORDS = ["[net]", "[conv]", "[yolo]", "[route]", "[x]", "=", ",", "\n", "\n", " ", "#", ";", "-1", "3", "9" * 12, "é"]
_WORDS += ["width=", "height=32\n", "channels=3\n", "anchors=1,2", "layers=", "from=", "mask=", "num=", "size="]
_TEXTS = st.lists(st.sampled_from(_WORDS), max_size=40).map(lambda words: "".join(words).encode())


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=200), _TEXTS))
def test_any_text_is_read_or_refused_with_a_place(content):
    for text in (content, NET.encode() + content):
        try:
            _, found = parse_cfg(text, "a.cfg")
        except InputError as error:
            assert re.match(r"a\.cfg(:\d+)?: ", str(error))
        else:
            assert found
