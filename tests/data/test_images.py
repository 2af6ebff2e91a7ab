"""Real data in its exact form on the disk, a few pictures of each."""

import gzip
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from course.data import emoji, images
from course.errors import CheckpointError, UsageError

RED, BLUE = (200, 30, 30), (20, 40, 220)


def picture(path, color=RED, size=(20, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def is_color(image, color):
    return (image.permute(1, 2, 0).int() - torch.tensor(color)).abs().max() <= 3


def test_folder_of_classes(tmp_path):
    picture(tmp_path / "big_dog" / "1.png"), picture(tmp_path / "cat" / "x.jpg", BLUE)
    found = images.load(str(tmp_path), 8, root=tmp_path / "root")
    assert found.images.shape == (2, 3, 8, 8) and found.images.dtype == torch.uint8
    assert found.captions == [["a picture of a big dog"], ["a picture of a cat"]]
    assert is_color(found.images[0], RED) and is_color(found.images[1], BLUE)


def test_folder_with_metadata_or_sidecars(tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png", BLUE), picture(tmp_path / "c.png")
    lines = ['{"file_name": "a.png", "text": "red"}', "", '{"file_name": "b.png", "caption": ["x", "y"]}', ""]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.txt").write_text("one\ntwo\n")
    found = images.load(str(tmp_path), 8, root=tmp_path / "root")
    assert found.captions == [["red"], ["x", "y"], ["one", "two"]]
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png"}\n')
    with pytest.raises(CheckpointError, match="metadata.jsonl, line 1"):
        images.load(str(tmp_path), 8, root=tmp_path / "root")


def test_broken_pictures_are_skipped_counted_and_named(tmp_path):
    picture(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    picture(tmp_path / "a" / "cut.png", size=(64, 64))
    whole = (tmp_path / "a" / "cut.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "text.jpg").write_text("no picture")
    found = images.load(str(tmp_path / "a"), 8, root=tmp_path / "root")
    assert len(found) == 1 and len(found.broken) == 3
    assert "3 could not be read" in found.report() and "empty.png" in found.report()
    (tmp_path / "a" / "good.png").unlink()
    with pytest.raises(CheckpointError, match="no picture could be read"):
        images.load(str(tmp_path / "a"), 8, root=tmp_path / "root")


def test_the_cache_follows_the_folder(tmp_path, monkeypatch):
    picture(tmp_path / "d" / "1.png")
    first = images.load(str(tmp_path / "d"), 8, root=tmp_path / "root")
    with monkeypatch.context() as m:
        m.setattr(images, "collect", lambda *a: pytest.fail("the cache was not used"))
        assert torch.equal(images.load(str(tmp_path / "d"), 8, root=tmp_path / "root").images, first.images)
    picture(tmp_path / "d" / "2.png", BLUE)
    assert len(images.load(str(tmp_path / "d"), 8, root=tmp_path / "root")) == 2
    cache, = (p for p in (tmp_path / "root" / "cache").iterdir())
    cache.write_bytes(cache.read_bytes()[:-5])
    assert len(images.load(str(tmp_path / "d"), 8, root=tmp_path / "root")) == 2


def test_transparent_and_rotated_pictures(tmp_path):
    picture(tmp_path / "a.png", (0, 0, 0, 0), mode="RGBA")
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6                                           # the camera was held upright
    image.save(tmp_path / "b.jpg", exif=exif, quality=100, subsampling=0)
    found = images.load(str(tmp_path), 8, root=tmp_path / "root")
    assert is_color(found.images[0], (255, 255, 255))
    assert is_color(found.images[1][:, :2], BLUE) and is_color(found.images[1][:, 6:], RED)


def test_tar_with_sidecars(tmp_path):
    picture(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "1.txt").write_text("a red thing")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in", "in")
    found = images.load(str(tmp_path / "x.tar"), 8, root=tmp_path / "root")
    assert found.captions == [["a red thing"]] and is_color(found.images[0], RED)


def test_emoji_names():
    assert emoji.captions("emoji_u1f600.png")[0] == "grinning face"
    assert emoji.captions("emoji_u1f469_1f3fd_200d_1f680.png")[0] == "woman, rocket, medium skin"
    assert emoji.captions("emoji_u1f1f0_1f1f7.png")[0] == "flag kr" and emoji.captions("cat.png") == []


@pytest.mark.slow
def test_noto_emoji(test_data, tmp_path):
    found = images.load(str(test_data / "noto-emoji-72.tar"), 64, root=tmp_path)
    assert len(found) == 3583 and not found.broken and all(found.captions)


def test_fashion_mnist(tmp_path):
    pytest.importorskip("torchvision")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = np.full((2, 28, 28), 77, np.uint8), np.array([9, 0], np.uint8)
    whole = (("images-idx3-ubyte", 2051, pixels), ("labels-idx1-ubyte", 2049, labels))
    for name, magic, data in [(f"{split}-{name}", *rest) for split in ("train", "t10k") for name, *rest in whole]:
        shape = data.shape
        (raw / name).write_bytes(struct.pack(f">I{len(shape)}I", magic, *shape) + data.tobytes())
        with gzip.open(raw / f"{name}.gz", "wb") as file:
            file.write((raw / name).read_bytes())
    found = images.load("fashion-mnist", 32, root=tmp_path)
    assert found.captions == [["a picture of an ankle boot"], ["a picture of a t-shirt"]] and (found.images == 77).all()


def test_cifar(tmp_path, monkeypatch):
    sets = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 6):
        data = np.full((1, 3072), 10 * i, np.uint8)
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps({"data": data, "labels": [i]}))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(images.CIFAR)}))
    monkeypatch.setattr(sets.CIFAR10, "_check_integrity", lambda self: True)     # our files have other checksums
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    found = images.load("cifar-10", 32, root=tmp_path)
    assert len(found) == 5 and found.captions[1] == ["a picture of a bird"] and (found.images[4] == 50).all()


def test_coco_captions(tmp_path):
    pytest.importorskip("pycocotools")
    picture(tmp_path / "coco" / "train2017" / "000000000001.jpg")
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir()
    (folder / "captions_train2017.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "000000000001.jpg"}],
        "annotations": [{"id": 5, "image_id": 1, "caption": "red"}, {"id": 6, "image_id": 1, "caption": "a red field"}]}))
    found = images.load("coco-captions", 8, root=tmp_path)
    assert found.captions == [["red", "a red field"]]


def test_flowers(tmp_path, monkeypatch):
    sets = pytest.importorskip("torchvision.datasets")
    savemat = pytest.importorskip("scipy.io").savemat
    folder = tmp_path / "flowers-102"
    for i in (1, 2, 3):
        picture(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 102]]})
    monkeypatch.setattr(sets.Flowers102, "_check_integrity", lambda self: True)  # our files have other checksums
    savemat(folder / "setid.mat", {"trnid": [[1, 1]], "valid": [[2, 2]], "tstid": [[3, 3]]})
    found = images.load("flowers-102", 8, root=tmp_path)
    names = getattr(sets.Flowers102, "classes", None)           # torchvision 0.21 does not know them yet
    assert [c[0] for c in found.captions[:3:2]] == (
        ["a picture of a pink primrose", "a picture of a blackberry lily"] if names else
        ["a picture of a kind 0", "a picture of a kind 101"])
    assert len(found) == 4 and len(images.load("flowers-102", 8, "test", root=tmp_path)) == 2


def test_celeba(tmp_path, monkeypatch):
    sets = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "celeba"
    for i in (1, 2):
        picture(folder / "img_align_celeba" / f"{i:06d}.jpg")
    rows = {"list_eval_partition.txt": "{} 0", "identity_CelebA.txt": "{} 7"}
    for name, row in rows.items():
        (folder / name).write_text("\n".join(row.format(f"{i:06d}.jpg") for i in (1, 2)) + "\n")
    (folder / "list_bbox_celeba.txt").write_text("2\nimage_id x_1 y_1 width height\n000001.jpg 0 0 8 8\n000002.jpg 0 0 8 8\n")
    (folder / "list_landmarks_align_celeba.txt").write_text("2\nlefteye_x lefteye_y\n000001.jpg  1  2\n000002.jpg  1  2\n")
    (folder / "list_attr_celeba.txt").write_text("2\nMale Smiling Young\n000001.jpg  1 -1  1\n000002.jpg -1  1 -1\n")
    monkeypatch.setattr(sets.CelebA, "_check_integrity", lambda self: True)      # our files have other checksums
    found = images.load("celeba", 8, root=tmp_path)
    assert found.captions == [["a portrait of a young man"], ["a portrait of a woman with smiling"]]


def test_celeba_caption():
    assert images.celeba_caption(["Smiling", "Young", "Brown_Hair"]) == ["a portrait of a young woman with smiling, brown hair"]
    assert images.celeba_caption(["Male"]) == ["a portrait of a man"]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    import io

    import pyarrow
    data = io.BytesIO()
    Image.new("RGB", (9, 9), RED).save(data, "PNG")
    table = pyarrow.table({"image": [{"bytes": data.getvalue(), "path": None}, {"bytes": b"broken", "path": None}],
                           "text": ["red", "nothing"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    found = images.load(str(tmp_path / "x.parquet"), 8, root=tmp_path / "root")
    assert found.captions == [["red"]] and is_color(found.images[0], RED) and len(found.broken) == 1


def test_missing_sets_and_unknown_sources(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(CheckpointError, match="fashion-mnist is not in .*datasets/fashion-mnist.md"):
        images.load("fashion-mnist", 32, root=tmp_path)
    with pytest.raises(UsageError, match="no data set 'imagenet'.*cifar-10"):
        images.load("imagenet", 32, root=tmp_path)
