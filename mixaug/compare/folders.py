"""The learner for a folder of images: fastai's own pipeline, nothing held in memory."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, Normalize, get_image_files
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage, imagenet_stats
from fastai.vision.data import ImageBlock
from fastai.vision.learner import model_meta, vision_learner
from PIL import Image, ImageOps
from torch import Tensor

from .learners import BadInputError, Task, class_metrics, noisy, small_cnn, split


class Picture(PILImage):
    """An image as RGB; 16-bit and float images are scaled to 8 bits, which Pillow cuts off."""

    @classmethod
    def create(cls, file: Any, **kwargs: Any) -> Any:
        """Open a file."""
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                values = np.asarray(image, dtype=np.float32)
                most = 65535 if image.mode[0] == "I" else max(float(values.max(initial=0)), 1e-9)
                image = Image.fromarray((values.clip(0, most) * (255 / most)).round().astype(np.uint8))
            return cast(Any, cls)(image.convert("RGB"))


def files_of(path: Path) -> list[list[tuple[str, Path]]]:
    """Return class and file of each image, of one folder or of its train/ and valid/.

    Raises:
        BadInputError: If there are no images of at least two classes.
    """
    if not path.is_dir():
        raise BadInputError(f"data must be a folder that exists, got {str(path)!r}")
    roots = [path / "train", path / "valid"]
    roots = roots if all(root.is_dir() for root in roots) else [path]
    folders = [[d for d in sorted(root.iterdir()) if d.is_dir() and d.name[0] != "."] for root in roots]
    files = [[(d.name, file) for d in part for file in sorted(get_image_files(d))] for part in folders]
    found = [Counter(name for name, _ in part) for part in files]
    if len(found[0]) < 2:
        raise BadInputError(f"data must have images in at least two class folders in {roots[0]}, got {list(found[0])}")
    if not found[-1] or found[-1].keys() - found[0].keys():
        raise BadInputError(f"data must have images of {list(found[0])} in {roots[-1]}, got {list(found[-1])}")
    if len(roots) == 1 and min(found[0].values()) < 2:
        raise BadInputError(f"data must have two images of each class or more in {path}, got {dict(found[0])}")
    return files


def unreadable(file: Path) -> str | None:
    """Return why an image cannot be read; None if it can."""
    try:
        Picture.create(file)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def folder_task(
    path: Path, size: int, arch: str, bs: int, noise: float, pretrained: bool, augment: bool, skip_bad: bool
) -> Task:
    """Return the task of a folder with a folder of images for each class, or with train/ and valid/ of such folders.

    Args:
        path: The folder. Without train/ and valid/, 20 % of each class are for validation.
        size: Images are resized to size x size.
        arch: "cnn", or a model of torchvision or timm; "auto": resnet18.
        bs: Batch size.
        noise: Fraction of the training labels to replace by another class, in [0, 1].
        pretrained: Start from downloaded weights.
        augment: Augment the training images as fastai does (`aug_transforms`).
        skip_bad: Leave images out that cannot be read; False: an error that names them all.

    Raises:
        BadInputError: If the folder, an image or the model cannot be used.
    """
    parts = files_of(path)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        reasons = [list(pool.map(unreadable, [file for _, file in part])) for part in parts]
    bad = [f"{file} ({why})" for part, whys in zip(parts, reasons, strict=True)
           for (_, file), why in zip(part, whys, strict=True) if why]  # fmt: skip
    if bad and not skip_bad:
        raise BadInputError(f"data must be images that can be read, say --skip-bad to leave out: {'; '.join(bad)}")
    parts = [[item for item, why in zip(part, whys, strict=True) if not why]
             for part, whys in zip(parts, reasons, strict=True)]  # fmt: skip
    items = [item for part in parts for item in part]
    names = [name for name, _ in items]
    train, valid = (
        split(names, 0.2) if len(parts) == 1 else torch.arange(len(items)).split([len(part) for part in parts])
    )
    classes = sorted(set(names))
    codes = torch.tensor([classes.index(name) for name in names])
    name = "resnet18" if arch == "auto" else arch
    model: Any = {f.__name__: f for f in model_meta}.get(name, name)
    normalize = [] if pretrained else [Normalize.from_stats(*imagenet_stats)]  # fastai adds a pretrained model's own

    def new_learner(seed: int) -> Learner:
        labels = codes.clone()
        labels[train] = noisy(codes[train], noise, len(classes), seed)
        image_block: Any = ImageBlock  # fastai's annotations are wrong
        options: dict[str, Any] = {
            "blocks": (image_block(Picture), CategoryBlock(classes)),
            "get_items": lambda _: range(len(items)),
            "splitter": IndexSplitter(valid.tolist()),
            "get_x": lambda i: items[i][1],
            "get_y": lambda i: classes[labels[i]],
            "item_tfms": Resize(size),
            "batch_tfms": [*(aug_transforms(size=size) if augment else []), *normalize],
        }
        dls = DataBlock(**options).dataloaders(path, bs=min(bs, len(train)))
        if arch == "cnn":
            return Learner(dls, small_cnn(3, len(classes)), loss_func=CrossEntropyLossFlat(), metrics=class_metrics())
        return vision_learner(dls, model, pretrained=pretrained, metrics=class_metrics())

    def samples() -> tuple[Tensor, list[str]]:
        some = [items[i] for i in train[torch.linspace(0, len(train) - 1, min(64, len(train))).long()].tolist()]
        images = [np.asarray(ImageOps.fit(Picture.create(file), (size, size))) for _, file in some]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, [name for name, _ in some]

    words = f"{path}: {len(train)} images for training, {len(valid)} for validation, {len(classes)} classes"
    known = {"files": [(name, file.stat().st_size) for name, file in items]}
    return Task(new_learner, words + f", {len(bad)} unreadable" * bool(bad), known, samples)
