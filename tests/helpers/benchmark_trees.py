"""Tiny data sets in the true layouts of the four benchmarks, with the traps of the real files in them.

Every function fills an empty folder and returns it. What is in a file follows from its label, so that a small
network can tell the classes apart. `TRAPS` below says where each trap is.

TRAPS: a byte-order mark and CRLF (crema_d train.csv, food101 train titles), no last newline (casia_surf
train_list.txt, crema_d test.csv, mcubes val.txt), both path styles and a depth JPEG of three equal channels
(casia_surf), frames named 2 and 10, and a clip that is only a video (crema_d), titles with commas, quotes, line
breaks and no word (food101), 8- and 16-bit PNGs, ignored near-infrared pixels and the decoy SSGT4MS (mcubes).
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CASIA_ROWS = {"train": 9, "validation": 6, "test": 6}
CREMA_EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
CREMA_ACTORS = tuple(range(1001, 1011))
CREMA_VIDEO_CLIP = "1001_DFA_NEU_XX"
"""The clip of `crema_d` without a frame folder."""
FOOD_CLASSES = ("apple_pie", "baby_back_ribs", "waffles")
MCUBES_IDS = {"train": ("1_000001", "1_000002", "2_000001"), "val": ("3_000001",), "test": ("4_000001",)}
MCUBES_SIZE = (1024, 1224)


def casia_surf(folder: Path) -> Path:
    """CASIA-SURF: 9 training rows (4 live, two attack types, one row last without newline), 6 and 6 of the others."""
    real = "Training/real_part/CLKJ_CS0110/real.rssdk"
    flat, bent = (f"Training/fake_part/CLKJ_AS0005/{name}.rssdk" for name in ("03_en_f", "04_en_b"))
    rows = [(real, frame, 1) for frame in (9, 10, 91, 92)]
    rows += [(flat, 101, 0), (flat, 102, 0), (bent, 7, 0), (bent, 8, 0), (bent, 101, 0)]
    lines = [_casia_row(folder, [f"{at}/{name}/{n}.jpg" for name in _CASIA], label) for at, n, label in rows]
    _write(folder / "train_list.txt", "\n".join(lines))
    for name, file, newline in (("Val", "val_private_list.txt", "\r\n"), ("Testing", "test_private_list.txt", "\n")):
        lines = [_casia_row(folder, [f"{name}/{i // 3:04d}/{i:06d}-{m}.jpg" for m in _CASIA], i % 2) for i in range(4)]
        style = f"{name}/fake_part/CLKJ_AS0100/06_enm_b.rssdk"
        lines += [_casia_row(folder, [f"{style}/{m}/{n}.jpg" for m in _CASIA], 0) for n in (1, 2)]
        _write(folder / file, newline.join(lines) + newline)
    return folder


_CASIA = ("color", "depth", "ir")


def _casia_row(folder: Path, paths: list[str], label: int) -> str:
    size = (70 + 10 * label, 60)
    for channel, path in enumerate(paths):
        pixels = np.full((*size, 3), 60 + 100 * label + 20 * channel, dtype=np.uint8)
        if channel == 0:
            pixels[:, :, 2] = 250  # red, as OpenCV orders channels
        _image(folder / path, pixels if channel == 0 or "Val" in path else pixels[:, :, 0])
    return " ".join([*paths, str(label)])


def crema_d(folder: Path) -> Path:
    """CREMA-D: 10 actors, one clip of each emotion; the last take of each actor is a test row, so all are on both."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for actor in CREMA_ACTORS:
        for emotion, name in enumerate(CREMA_EMOTIONS):
            clip = f"{actor}_DFA_{name}_XX"
            rows["test" if emotion == actor % 6 else "train"].append(f"{clip},{name}")
            _wav(folder / "AudioWAV" / f"{clip}.wav", emotion, seconds=0.5 + 0.1 * emotion)
            if clip == CREMA_VIDEO_CLIP:
                _video(folder / "VideoFlash" / f"{clip}.flv", [10 * i for i in range(9)])
            else:
                for frame in (1, 2, 10):
                    pixels = np.full((36, 48, 3), 30 * emotion + frame, dtype=np.uint8)
                    _image(folder / "Image-01-FPS" / clip / f"{frame}.jpg", pixels)
    _write(folder / "train.csv", "\ufeff" + "\r\n".join(rows["train"]) + "\r\n")
    _write(folder / "test.csv", "\n".join(rows["test"]))
    return folder


def food101(folder: Path) -> Path:
    """UPMC Food-101: three of the classes, 10 training and 2 test rows each."""
    for split, count in (("train", 10), ("test", 2)):
        rows = []
        for at, name in enumerate(FOOD_CLASSES):
            for n in range(count):
                file = f"{name}_{n}.jpg"
                _image(folder / "images" / split / name / file, np.full((30, 40, 3), 40 + 60 * at, dtype=np.uint8))
                rows.append(f"{file},{_title(name, n)},{name}")
        text = "\r\n".join(rows)
        _write(folder / "texts" / f"{split}_titles.csv", "\ufeff" + text + "\r\n" if split == "train" else text)
    return folder


def _title(name: str, n: int) -> str:
    words = name.replace("_", " ")
    return {
        0: f'"The ""best"" {words}, ever"',
        1: f'"{words},\n easy"',
        2: '"?!"',
        3: f"Cr\u00e8me {words} \u2013 Rezept",
    }.get(n, f"{words} number {n}")


def mcubes(folder: Path) -> Path:
    """MCubeS at its full size: 3 training, 1 validation and 1 test image; material 3 left, 7 right, ignored below."""
    for name, ids in MCUBES_IDS.items():
        end = "" if name == "val" else "\n"
        _write(folder / "list_folder" / f"{name}.txt", "\n".join(ids) + end)
        for at in ids:
            _mcubes_scene(folder, at)
    return folder


def _mcubes_scene(folder: Path, name: str) -> None:
    height, width = MCUBES_SIZE
    left = np.arange(width)[None, :] < 192 + 500
    dropped = np.arange(width)[None, :] < 192
    whole = np.ones((height, 1), dtype=bool)
    labels = np.where(left, 3, 7) * whole
    labels[1000:] = 255
    labels[:, :192] = 19
    _image(folder / "GT" / f"{name}.png", labels.astype(np.uint8))
    _image(folder / "SSGT4MS" / f"{name}.png", np.full((height, width), 11, dtype=np.uint8))
    colour = np.zeros((height, width, 3), dtype=np.uint16 if name.startswith("2") else np.uint8)
    colour[:, :, 2] = np.iinfo(colour.dtype).max * (left & ~dropped)
    _image(folder / "polL_color" / f"{name}.png", colour)
    _image(folder / "NIR_warped" / f"{name}.png", (np.where(left, 60000, 257) * whole).astype(np.uint16))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:24, :] = 255
    _image(folder / "NIR_warped_mask" / f"{name}.png", mask)
    for key, values in (("aolp_sin", np.where(left, -1.0, 1.0)), ("aolp_cos", 0.0 * left), ("dolp", 0.25 + 0.5 * left)):
        path = folder / f"polL_{key}" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (values * whole).astype(np.float32))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def _image(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def _wav(path: Path, emotion: int, *, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * 16000)) / 16000
    samples = 8000 * np.sin(2 * np.pi * (300 + 500 * emotion) * t)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.astype("<i2").tobytes())


def _video(path: Path, greys: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # 2 is the codec's number within an FLV file.
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, 2, 30.0, (48, 36))
    assert writer.isOpened()
    for grey in greys:
        writer.write(np.full((36, 48, 3), grey, dtype=np.uint8))
    writer.release()
