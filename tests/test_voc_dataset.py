"""VOC folders, whole and spoiled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_folder import add_picture, small_set, xml

from benchmarks import voc_dataset
from benchmarks.voc_dataset import parse_annotation, read_split, read_voc
from deploy.errors import InputError


def skipped(folder) -> dict[str, str]:
    return {one.id: one.reason for one in read_voc(folder, "test").skipped}


def test_reads_pictures_in_the_order_of_the_list(tmp_path):
    data = read_voc(small_set(tmp_path), "test")
    assert [picture.id for picture in data.pictures] == ["000", "001", "002", "003"]
    assert data.names == ("blue", "red")
    assert data.skipped == ()
    first = data.pictures[0]
    assert first.path == tmp_path / "JPEGImages" / "000.png"
    assert first.annotation.size == (40, 20)
    np.testing.assert_array_equal(first.annotation.boxes, [[1, 1, 40, 20]])
    assert first.annotation.difficult.tolist() == [False]


def test_a_line_may_carry_a_flag_and_lines_may_be_blank(tmp_path):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/car_test.txt").write_text("000 -1\r\n\n002  1\n")
    assert read_split(tmp_path, "car_test") == ["000", "002"]


def test_a_missing_split_names_those_that_exist(tmp_path):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("000\n")
    with pytest.raises(InputError, match="no 'val'; existing: test, train"):
        read_voc(tmp_path, "val")


@pytest.mark.parametrize("split", ["../Main/test", "/etc/passwd", "", ".", "a\0b", "..\\test"])
def test_a_split_is_no_path(tmp_path, split):
    small_set(tmp_path)
    with pytest.raises(InputError, match="existing: test"):
        read_voc(tmp_path, split)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_split_is_an_error(tmp_path, text):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/none.txt").write_text(text)
    with pytest.raises(InputError, match="lists at least one picture"):
        read_voc(tmp_path, "none")


def test_a_split_that_is_no_text_is_an_error(tmp_path):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        read_voc(tmp_path, "bad")


def test_a_huge_split_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(voc_dataset, "SPLIT_LIMIT", 4)
    with pytest.raises(InputError, match="is larger"):
        read_voc(small_set(tmp_path), "test")


def test_a_folder_without_voc_layout_is_an_error_that_points_at_the_right_one(tmp_path):
    with pytest.raises(InputError, match="ImageSets/Main, Annotations and JPEGImages"):
        read_voc(tmp_path, "test")
    small_set(tmp_path / "VOC2007")
    with pytest.raises(InputError, match="did you mean its folder VOC2007"):
        read_voc(tmp_path, "test")


@pytest.mark.parametrize("picture_id", ["../000", "/etc/passwd", "..", "a/b", "C:\\x", "\33[2J", "a\0b"])
def test_an_id_that_leads_elsewhere_is_refused(tmp_path, picture_id):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/bad.txt").write_text(f"000\n{picture_id}\n")
    with pytest.raises(InputError, match="entry 2 of .*leads elsewhere"):
        read_voc(tmp_path, "bad")


def test_an_id_that_stands_twice_counts_once(tmp_path):
    small_set(tmp_path)
    (tmp_path / "ImageSets/Main/test.txt").write_text("000\n001\n000\n")
    data = read_voc(tmp_path, "test")
    assert [picture.id for picture in data.pictures] == ["000", "001"]
    assert skipped(tmp_path) == {"000": "stands more than once in the split; counted once"}


def test_pictures_without_annotation_or_file_are_skipped_with_the_reason(tmp_path):
    small_set(tmp_path)
    (tmp_path / "Annotations/000.xml").unlink()
    (tmp_path / "JPEGImages/001.png").unlink()
    assert skipped(tmp_path) == {"000": "its annotation 000.xml is missing", "001": "its picture 001.jpg is missing"}
    assert read_voc(tmp_path, "test").names == ("blue", "red")


def test_no_usable_picture_is_an_error_with_the_first_reason(tmp_path):
    small_set(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text("")
    with pytest.raises(InputError, match=r"'test' in .* has none, 4 .* \(000\) because its XML cannot be read"):
        read_voc(tmp_path, "test")


def test_the_xml_may_name_the_file_but_not_one_elsewhere(tmp_path):
    small_set(tmp_path)
    (tmp_path / "JPEGImages/000.png").rename(tmp_path / "JPEGImages/other.gif")
    (tmp_path / "Annotations/000.xml").write_text(xml((40, 20), [], "other.gif"))
    (tmp_path / "JPEGImages/001.png").rename(tmp_path / "001.gif")
    (tmp_path / "Annotations/001.xml").write_text(xml((40, 20), [], "../001.gif"))
    data = read_voc(tmp_path, "test")
    assert data.pictures[0].path.name == "other.gif"
    assert skipped(tmp_path) == {"001": "its XML names the file '../001.gif', which leads out of the folder"}


BOMB = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">' + b"".join(
    b'<!ENTITY l%d "%s">' % (step, b"&l%d;" % (step - 1) * 10) for step in range(1, 12)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB + b"]><annotation><filename>&l11;</filename></annotation>",
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><filename>&x;</filename></annotation>',
        b'<!DOCTYPE annotation SYSTEM "http://127.0.0.1/a.dtd"><annotation/>',
        '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE annotation><annotation/>'.encode("utf-16"),
    ],
)
def test_a_document_type_is_refused(content):
    with pytest.raises(InputError, match="declares a document type"):
        parse_annotation(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read: no element found"),
        (b"\xff\xd8\xff", "cannot be read: not well-formed"),
        (b"<annotation><object>", "cannot be read: no element found"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "cannot be read: unknown encoding"),
        (b"<html/>", "is no annotation but <html>"),
        (xml((9, 9), [("", (1, 1, 2, 2), 0)]).encode(), "has no name"),
        (xml((9, 9), [("cat", (1, 1, "nan", 2), 0)]).encode(), "xmax in its XML is a number of pixels, not 'nan'"),
        (xml((9, 9), [("cat", (1, "1e99", 2, 2), 0)]).encode(), "ymin in its XML is a number of pixels, not '1e99'"),
        (xml((9, 9), [("cat", ("", 1, 2, 2), 0)]).encode(), "xmin in its XML is a number of pixels, not ''"),
        (xml((9, 9), [("cat", (1, 1, 2, 2), 7)]).encode(), "difficult in its XML is 0 or 1, not '7'"),
        (b"<annotation><object><name>cat</name></object></annotation>", "xmin in its XML is a number of pixels"),
    ],
)
def test_a_spoiled_annotation_is_refused_with_the_reason(content, reason):
    with pytest.raises(InputError) as caught:
        parse_annotation(content)
    assert reason in str(caught.value)


def test_what_voc_leaves_open_has_a_default():
    annotation = parse_annotation(
        b"<annotation><size><width>0</width><height>x</height></size><object><name> tv  monitor </name>"
        b"<bndbox><xmin>1.5</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    assert annotation.size is None
    assert annotation.filename == ""
    assert annotation.names == ("tv monitor",)
    assert annotation.difficult.tolist() == [False]
    assert annotation.boxes.tolist() == [[1.5, 1, 2, 2]]
    assert parse_annotation(b"<annotation/>").boxes.shape == (0, 4)


def test_an_oversized_annotation_is_skipped_unread(tmp_path, monkeypatch):
    small_set(tmp_path)
    monkeypatch.setattr(voc_dataset, "XML_LIMIT", 1000)
    (tmp_path / "Annotations/002.xml").write_bytes(b" " * 1001)
    assert list(skipped(tmp_path)) == ["002"]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_annotation_or_an_input_error(content):
    for text in (content, b"<annotation>" + content + b"</annotation>"):
        try:
            annotation = parse_annotation(text)
        except InputError:
            continue
        assert len(annotation.names) == len(annotation.boxes) == len(annotation.difficult)


def test_suffixes_in_their_order(tmp_path):
    add_picture(tmp_path, "000", suffix=".png")
    add_picture(tmp_path, "001", suffix=".jpg")
    (tmp_path / "JPEGImages/000.JPG").write_bytes((tmp_path / "JPEGImages/001.jpg").read_bytes())
    assert [picture.path.name for picture in read_voc(tmp_path, "test").pictures] == ["000.JPG", "001.jpg"]


@pytest.mark.real_data
def test_the_real_set(real_data):
    data = read_voc(real_data / "voc2007" / "test991", "test")
    assert (len(data.pictures), len(data.skipped), len(data.names)) == (991, 0, 20)
    assert sum(len(picture.annotation.names) for picture in data.pictures) == 2988
    assert sum(int((~picture.annotation.difficult).sum()) for picture in data.pictures) == 2420
