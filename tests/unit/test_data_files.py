"""Files as data sets ship them, and the choice of rows: every trap once, every refusal with its full text."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_training.data import files
from mars_training.data.picks import balanced_head, held_out


def refused(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(UsageError) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n  \n"])
def test_every_line_of_a_list_is_read_whatever_its_start_newline_and_end(
    tmp_path: Path, start: bytes, newline: bytes, end: bytes
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(start + newline.join([b"a b 1", b"c  d\t0"]) + end.replace(b"\n", newline))
    assert files.read_list(path, 3) == [(1, ["a", "b", "1"]), (2, ["c", "d", "0"])]
    path.write_bytes(start + newline.join([b"a,1", b'"b, ""c""' + newline + b'd",0']) + end.replace(b"\n  ", b"\n"))
    rows = [cells for _, cells in files.read_csv(path, 2)]
    assert rows == [["a", "1"], [f'b, "c"{newline.decode()}d', "0"]]


def test_a_broken_list_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    missing = f"no file {path}; give the folder of the data set with --data DIR"
    assert refused(files.read_list, path, 3) == missing
    assert refused(files.read_csv, path, 3) == missing
    path.write_text("\n\n")
    assert refused(files.read_list, path, 3) == f"{path} is empty"
    path.write_text("a b c\n\nd e\n")
    assert refused(files.read_list, path, 3) == f"{path}, line 3: 2 cells, expected 3"
    path.write_text('a,"b\nb",c\nd,e,f,g\n')
    assert refused(files.read_csv, path, 3) == f"{path}, line 3: 4 cells, expected 3"
    path.write_bytes(b"caf\xe9,1,2\n")
    assert refused(files.read_csv, path, 3).startswith(f"{path} is not UTF-8 text: ")
    assert refused(files.read_list, tmp_path, 3) == f"{tmp_path} is a folder, not a file"


def test_the_first_missing_file_is_named_and_the_others_counted(tmp_path: Path) -> None:
    here, listed = tmp_path / "here", tmp_path / "list.txt"
    here.touch()
    files.need_files([here], listed)
    gone = [tmp_path / "a", here, tmp_path / "b", tmp_path]
    assert refused(files.need_files, gone[:2], listed) == f"{listed} needs {gone[0]}, which is not there"
    expected = f"{listed} needs {gone[0]}, which is not there (nor are 2 more of its files)"
    assert refused(files.need_files, gone, listed) == expected


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    names = ["10.jpg", "9.jpg", "2.jpg", "frame_1.jpg"]
    assert [p.name for p in files.in_number_order(map(Path, names))] == ["frame_1.jpg", "2.jpg", "9.jpg", "10.jpg"]


def test_colours_come_in_the_order_of_the_camera_drivers_and_grey_in_one_channel(tmp_path: Path) -> None:
    red = np.zeros((4, 5, 3), np.uint8)
    red[:, :, 2] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red)
    assert files.read_colour(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]
    cv2.imwrite(str(tmp_path / "grey.jpg"), np.full((4, 5, 3), 77, np.uint8))
    grey = files.read_grey(tmp_path / "grey.jpg")
    assert grey.shape == (4, 5) and set(grey.ravel().tolist()) == {77}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_8_and_16_bits_both_span_0_to_1(tmp_path: Path, dtype: type) -> None:
    high = np.iinfo(dtype).max
    cv2.imwrite(str(tmp_path / "x.png"), np.array([[0, high // 5, high]], dtype))
    assert files.read_unit(tmp_path / "x.png", 1).tolist() == [[0.0, pytest.approx(0.2), 1.0]]


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "x.png"
    assert refused(files.read_colour, broken) == f"no file {broken}"
    broken.write_bytes(b"not an image")
    for read in (files.read_colour, files.read_grey, files.read_codes):
        assert refused(read, broken) == f"{broken} is not an image that OpenCV can read"
    cv2.imwrite(str(broken), np.zeros((2, 3, 3), np.uint8))
    assert (
        refused(files.read_codes, broken) == f"{broken} has shape (2, 3, 3) and type uint8; expected (H, W) and uint8"
    )
    assert refused(files.read_unit, broken, 1) == f"{broken} has shape (2, 3, 3) and type uint8; expected 1 channels"
    array = tmp_path / "x.npy"
    array.write_bytes(b"no")
    assert refused(files.read_map, array).startswith(f"{array} is not an .npy file of numbers: ")
    np.save(array, np.zeros((2, 3)))
    assert refused(files.read_map, array) == f"{array} has shape (2, 3) and type float64; expected (H, W) and float32"
    assert refused(files.read_map, tmp_path / "y.npy") == f"no file {tmp_path / 'y.npy'}"


def test_a_video_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.flv"
    path.write_bytes(b"FLV\x01")
    assert refused(files.read_middle_frame, path) == f"{path} is not a video that OpenCV can read"


def test_a_share_of_every_class_is_held_out_and_it_is_always_the_same_rows() -> None:
    labels = np.array([0] * 40 + [1] * 10 + [2] * 2 + [3])
    out = held_out(labels, 0.1, seed=0)
    assert [int(out[labels == c].sum()) for c in range(4)] == [4, 1, 1, 0]
    assert np.array_equal(out, held_out(labels, 0.1, seed=0))
    assert not np.array_equal(out, held_out(labels, 0.1, seed=1))


def test_a_limit_takes_the_first_rows_of_the_classes_in_turns() -> None:
    labels = np.array([2, 0, 0, 0, 1, 0, 1])
    assert balanced_head(labels, 4).tolist() == [0, 1, 2, 4]
    assert balanced_head(labels, 2).tolist() == [1, 4]
    assert balanced_head(labels, 6).tolist() == [0, 1, 2, 3, 4, 6]
    assert balanced_head(labels, 0).tolist() == balanced_head(labels, 99).tolist() == list(range(7))
