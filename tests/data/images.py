"""Small generated images and folders for the tests of `data`."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """RGB noise, width x height, that can be told from that of other seeds."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path)
    return path


def class_folders(root: Path, classes: dict[str, int], first: int = 0) -> None:
    """`classes[name]` different png files in root/name."""
    for name, count in classes.items():
        for i in range(count):
            save(root / name / f"{i:03}.png", first)
            first += 1


def photographs(root: Path, counts: dict[str, int]) -> None:
    """`counts[folder]` JPEG files of 500 x 375, smooth with some noise, so that they take about as much as photographs
    do. Classes, named by the last part of the folder, differ in brightness.
    """
    random = np.random.default_rng(0)
    classes = sorted({Path(folder).name for folder in counts})
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
            noisy = smooth + random.integers(-12, 13, smooth.shape) + 10 * classes.index(Path(folder).name)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / folder / f"{i:03}.jpg", quality=90)


def tiny_imagenet(root: Path, train: int = 10, val: int = 4) -> Path:
    """A copy of tiny-imagenet-200 with two classes in the real layout, below root."""
    top, wnids = root / "tiny-imagenet-200", ["n02", "n01"]
    for k, wnid in enumerate(wnids):
        for i in range(train):
            save(top / f"train/{wnid}/images/{wnid}_{i}.JPEG", 100 * k + i)
        (top / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
    lines = []
    for i in range(val):
        save(top / f"val/images/val_{i}.JPEG", 500 + i)
        lines.append(f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t0\t7\t7\n")
    (top / "val/val_annotations.txt").write_text("".join(lines))
    (top / "wnids.txt").write_text("n02\nn01\n")
    (top / "words.txt").write_text("n01\tgoldfish\nn02\tcentipede\n")
    return top


def write_cifar(cls: Any, root: Path, train: int = 50, classes: int = 10) -> Path:
    """`train` and ten images in the files of CIFAR-10 or CIFAR-100; the first pixel is the label."""
    folder: Path = root / cls.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = "labels" if cls.base_folder == "cifar-10-batches-py" else "fine_labels"
    for name, _ in cls.train_list + cls.test_list:
        count = 10 if name.startswith("test") else train // len(cls.train_list)
        data = rng.integers(0, 256, (count, 3072), np.uint8)
        data[:, 0] = np.arange(count) % classes
        data[:, 1] = 77  # to the right of it
        (folder / name).write_bytes(pickle.dumps({"data": data, key: data[:, 0].tolist()}))
    names = {cls.meta["key"]: [f"class {k}" for k in range(classes)]}
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps(names))
    return folder
