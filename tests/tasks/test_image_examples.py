"""Images and labels from original files and from the hub, against the files read by other means."""

import csv
import dataclasses
import gzip
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import small_cifar10, small_mnist, write_idx
from PIL import Image
from scipy.io import savemat
from task_files import one_line

from rmbook.errors import TaskError
from rmbook.runs import fingerprints
from rmbook.tasks.catalog import find_task, load_examples
from rmbook.tasks.image_example import ImageExample
from rmbook.tasks.images import IMAGE_TASKS
from rmbook.tasks.splits import sample_splits


def pixels(example) -> np.ndarray:
    return np.asarray(example.read())


def test_mnists_files_hold_real_digits(shared, tmp_path):
    folder = small_mnist(tmp_path / "mnist", shared)
    train, test = (load_examples("mnist", split, folder) for split in ("train", "validation"))
    assert [example.gold for example in train[:10]] == [(label,) for label in (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)]
    assert (len(train), len(test)) == (60, 40) and {example.task for example in train} == {"MNIST"}
    seven = pixels(train[0])
    assert seven.shape == (28, 28, 3) and (seven == seven[..., :1]).all()
    assert seven[8, 8:20].min() > 150 and not seven[:7].any()  # the bar of the seven, and nothing above
    whole = load_examples("MNIST", "validation", shared / "data/mnist")
    assert len(whole) == 10_000 and (pixels(whole[60]) == pixels(test[0])).all()


def test_cifar10_from_kaggles_list_and_from_folders_of_classes(shared, tmp_path):
    folder = small_cifar10(tmp_path / "cifar", shared)
    train, test = (load_examples("CIFAR10", split, folder) for split in ("train", "validation"))
    names = find_task("CIFAR10").classes
    rows = list(csv.reader(open(folder / "trainLabels.csv")))[1:]
    assert [names[example.gold[0]] for example in train] == [label for _, label in rows]
    assert (pixels(train[5]) == np.asarray(Image.open(folder / "train" / f"{rows[5][0]}.png").convert("RGB"))).all()
    assert [example.gold[0] for example in test] == [number for number in range(10) for _ in range(100)]
    assert pixels(test[0]).shape == (32, 32, 3)


def test_gtsrb_in_its_own_layout(shared):
    train, test = (load_examples("GTSRB", split, shared / "data/gtsrb") for split in ("train", "validation"))
    images = shared / "data/gtsrb/GTSRB/Final_Test/Images"
    assert (len(train), len(test)) == (411, 200) and [r.gold[0] for r in test[:2]] == [16, 1]
    for example in train[::50]:
        assert f"/{example.gold[0]:05d}/" in example.where
    assert (pixels(test[1]) == np.asarray(Image.open(images / "00001.ppm"))).all()  # not cut to the sign
    assert load_examples("GTSRB", "train", shared / "data/gtsrb/GTSRB")[7].where == train[7].where


def folders(base, classes, split="train", ending="png"):
    for number, name in enumerate(classes):
        (base / split / name).mkdir(parents=True)
        for index in range(2):
            image = Image.fromarray(np.full((4, 6, 3), 5 * number + index, np.uint8))
            image.save(base / split / name / f"{index}.{ending}")
    return base


@pytest.mark.parametrize(
    ("task", "classes", "numbers"),
    [
        ("RESISC45", ["baseball_diamond", "Airport", "storage tank"], [1, 1, 2, 2, 40, 40]),
        ("SVHN", ["0", "9", "3"], [0, 0, 3, 3, 9, 9]),
        ("GTSRB", ["00042", "00007"], [7, 7, 42, 42]),
        ("CIFAR10", ["truck", "4"], [4, 4, 9, 9]),
        ("MNIST", ["1"], [1, 1]),
    ],
)
def test_folders_are_named_after_classes_or_their_numbers(task, classes, numbers, tmp_path):
    for base in (tmp_path, tmp_path / task):  # the folder itself, or one that holds it
        found = load_examples(task, "train", folders(base, classes))
        assert sorted(example.gold[0] for example in found) == numbers
        shutil.rmtree(base / "train")


def test_every_task_has_names_sentences_and_a_pinned_commit():
    paper = {"CIFAR10": 10, "GTSRB": 43, "MNIST": 10, "SVHN": 10, "RESISC45": 45}
    assert {name: len(set(task.classes)) for name, task in IMAGE_TASKS.items()} == paper
    for task in IMAGE_TASKS.values():
        assert len(task.revision) == 40 and int(task.revision, 16) and len(task.classes) == paper[task.name]
        assert len(set(task.templates)) >= 3 and all(text.count("{}") == 1 for text in task.templates)
    assert find_task("cifar-10").name == "CIFAR10" and find_task("resisc 45").name == "RESISC45"


@pytest.mark.parametrize("names", ["own", "other order", "other names", "none"])
def test_the_hubs_parquet_gives_the_same_records(names, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: it reads the hub's files")
    task = IMAGE_TASKS["CIFAR10"]
    base = folders(tmp_path / "files", task.classes, "test")
    plain = load_examples("CIFAR10", "validation", base)
    known = {"own": task.classes, "other order": task.classes[::-1], "other names": [f"class {i}" for i in range(10)]}
    label = datasets.ClassLabel(names=list(known[names])) if names != "none" else datasets.Value("int64")
    numbers = [9 - r.gold[0] if names == "other order" else r.gold[0] for r in plain]
    images = [{"bytes": Path(example.where).read_bytes(), "path": None} for example in plain]
    columns = {"img": images, "label": numbers, "extra": numbers}
    features = datasets.Features({"img": datasets.Image(), "label": label, "extra": datasets.Value("int64")})
    repository = tmp_path / "repository"
    (repository / "plain_text").mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(repository / "plain_text" / "test.parquet")
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n  - split: test\n"
        "    path: plain_text/test.parquet\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = dataclasses.replace(task, repository=str(repository)).load_examples("validation")
    assert [example.gold for example in found] == [example.gold for example in plain]
    assert all((pixels(one) == pixels(other)).all() for one, other in zip(found, plain, strict=True))


def test_records_are_drawn_as_those_of_language(tmp_path):
    found = load_examples("SVHN", "train", folders(tmp_path, [str(digit) for digit in range(10)]))
    splits = sample_splits(found, found, seed=3, train_size=1_000_000, dev_size=4, test_size=5)
    order = np.random.RandomState(3).permutation(20)
    assert splits.train + splits.dev == [found[number] for number in order] and len(splits.dev) == 4
    assert splits.test == [found[number] for number in order[:5]]


def test_the_identity_is_of_all_images_and_not_of_their_folder(tmp_path):
    base = folders(folders(tmp_path / "a", ["1", "2"]), ["1", "2"], "test")
    moved = tmp_path / "b" / "SVHN"
    shutil.copytree(base, moved)
    before = fingerprints.data_fingerprint("SVHN", str(base))
    assert fingerprints.data_fingerprint("SVHN", str(moved)) == before
    assert fingerprints.data_fingerprint("SVHN", str(moved.parent)) == before
    (moved / "test" / "2" / "0.png").write_bytes((moved / "test" / "2" / "1.png").read_bytes())
    assert fingerprints.data_fingerprint("SVHN", str(moved)) != before
    assert IMAGE_TASKS["SVHN"].revision in fingerprints.data_fingerprint("SVHN", None)


# ------------------------------------------------------------------------------------------------------- what is wrong


def kaggle(base, text):
    (base / "train").mkdir()
    Image.new("RGB", (4, 4)).save(base / "train" / "1.png")
    (base / "trainLabels.csv").write_text(text)


def idx(base, images, labels):
    write_idx(base / "train-images-idx3-ubyte.gz", images)
    write_idx(base / "train-labels-idx1-ubyte.gz", labels)


def torn(base):
    idx(base, np.zeros((3, 4, 4)), np.zeros(3))
    path = base / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])


def no_image(base):
    (folders(base, ["cat"]) / "train" / "cat" / "1.png").write_text("no image")


BAD = {
    "nothing": ("MNIST", lambda base: None, "train-images-idx3-ubyte.gz"),
    "no such folder": ("SVHN", lambda base: base.rmdir(), "train/CLASS/"),
    "empty folders": ("SVHN", lambda base: (base / "train" / "3").mkdir(parents=True), "train/CLASS/"),
    "pickles": ("CIFAR10", lambda base: (base / "data_batch_1").write_bytes(b"\x80"), "pickles"),
    "unknown class": ("RESISC45", lambda base: folders(base, ["volcano"]), "'volcano' is unknown"),
    "number too large": ("GTSRB", lambda base: folders(base, ["00043"]), "0 to 42"),
    "no image": ("CIFAR10", no_image, "1.png is no image"),
    "unknown label": ("CIFAR10", lambda base: kaggle(base, "id,label\n1,gnu\n"), "'gnu' is unknown"),
    "missing image": ("CIFAR10", lambda base: kaggle(base, "id,label\n2,cat\n"), "2.png"),
    "no label": ("CIFAR10", lambda base: kaggle(base, "id,label\n1\n"), "line 2"),
    "other columns": ("CIFAR10", lambda base: kaggle(base, "name;class\n1;2\n"), "expected id and label"),
    "no text": ("CIFAR10", lambda base: (base / "trainLabels.csv").write_bytes(b"id,label\n\xff\xff"), "no table"),
    "torn": ("MNIST", torn, "cannot be read"),
    "another kind": ("MNIST", lambda base: idx(base, np.zeros((3, 4)), np.zeros(3)), "idx3"),
    "other counts": ("MNIST", lambda base: idx(base, np.zeros((3, 4, 4)), np.zeros(2)), "3 images"),
    "label out of range": ("MNIST", lambda base: idx(base, np.zeros((1, 4, 4)), np.array([10])), "out of range"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_files_is_said_in_one_line(case, tmp_path):
    task, make, part = BAD[case]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(TaskError, match=part) as error:
        load_examples(task, "train", tmp_path / "data")
    one_line(error)


def test_cifars_own_batches_are_refused(shared):
    for folder in ("hf_dummy", "hf_dummy/cifar-10-batches-py"):
        with pytest.raises(TaskError, match="PNG files") as error:
            load_examples("cifar10", "train", shared / "data/cifar10" / folder)
        one_line(error)


def test_an_image_that_is_cut_short_is_named_when_it_is_read(tmp_path):
    path = folders(tmp_path, ["cat"], ending="jpg") / "train" / "cat" / "0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-5000])
    example = load_examples("CIFAR10", "train", tmp_path)[0]
    with pytest.raises(TaskError, match="0.jpg is no image") as error:
        example.read()
    one_line(error)


def test_other_splits_are_refused(tmp_path):
    with pytest.raises(TaskError, match="got 'test'"):
        load_examples("MNIST", "test", tmp_path)


# -------------------------------------------------------------------------------------------- images of any origin

RAMP = (np.add.outer(np.arange(32), np.arange(32)) * 4).astype(np.uint8)  # grey values, 0 to 248


def one_image(folder) -> ImageExample:
    (example,) = load_examples("CIFAR10", "train", folder)
    return example


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", lambda: Image.fromarray(RAMP)),
        ("a.png", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("a.tif", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("a.ppm", lambda: b"P5 32 32 65535\n" + (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes()),
    ],
)
def test_sixteen_bits_are_scaled_to_eight(name, content, tmp_path):
    path = tmp_path / "train" / "cat" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content()) if isinstance(content(), bytes) else content().save(path)
    assert (pixels(one_image(tmp_path)) == RAMP[:, :, None]).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_without_a_known_white_are_refused(kind, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.fromarray((RAMP / 255).astype(kind)).save(tmp_path / "train" / "cat" / "a.tif")
    with pytest.raises(TaskError, match="a.tif is no image.*32 bits a pixel: save it with 8 or 16 bits") as error:
        one_image(tmp_path)
    one_line(error)


def test_a_photo_is_turned_upright_from_a_folder_and_from_the_hub_alike(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: it reads the hub's files")
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :20] = (255, 0, 0)
    exif = Image.Exif()
    exif[274] = 6  # turn by a quarter, as phones write
    path = tmp_path / "train" / "cat" / "a.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(wide).save(path, exif=exif, quality=95)
    found = pixels(one_image(tmp_path))
    assert found.shape == (40, 20, 3) and found[:18, :, 0].min() > 200 and found[22:].max() < 50
    table = datasets.Dataset.from_dict(
        {"img": [{"bytes": path.read_bytes(), "path": None}, None], "label": [3, 3]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}),
    )
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train.parquet")
    hub = dataclasses.replace(IMAGE_TASKS["CIFAR10"], repository=str(tmp_path / "hub"), configuration=None)
    with pytest.raises(TaskError, match="row 1 holds no image") as error:
        hub.load_examples("train")
    one_line(error)
    table.select([0]).to_parquet(tmp_path / "hub" / "train.parquet")
    (first,) = hub.load_examples("train")
    assert (pixels(first) == found).all()


def test_only_the_formats_that_are_named_are_decoded_and_a_pipe_is_not_waited_for(tmp_path):
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    for kind in ("GIF", "ICO", "EPS"):
        Image.fromarray(RAMP).convert("RGB").save(folder / "a.png", format=kind)
        with pytest.raises(TaskError, match="a.png is no image that can be read"):
            one_image(tmp_path)
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    with pytest.raises(TaskError, match="a.png is no image that can be read"):
        one_image(tmp_path)


def test_a_list_names_files_of_its_own_folder_alone(tmp_path):
    (tmp_path / "trainLabels.csv").write_bytes(b"\xef\xbb\xbfid,label\r\n../secret,cat\r\n")  # with a byte order mark
    with pytest.raises(TaskError, match="names '../secret.png': expected the name of a file in that folder"):
        one_image(tmp_path)


def test_an_idx_file_is_unpacked_no_further_than_its_head_promises(tmp_path):
    for kind, head in (("images-idx3", [1, 28, 28]), ("labels-idx1", [1])):
        content = bytes((0, 0, 8, len(head))) + b"".join(size.to_bytes(4, "big") for size in head)
        (tmp_path / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(content + bytes(5 * 10**7), 1))
    tracemalloc.start()
    with pytest.raises(TaskError, match="no whole idx3-ubyte file"):
        load_examples("MNIST", "train", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    tracemalloc.stop()


def test_what_is_passed_over_is_reported_with_counts(tmp_path, caplog):
    base = folders(tmp_path, [str(number) for number in range(10)])
    plain = load_examples("CIFAR10", "train", base)
    assert not caplog.messages
    train = base / "train"
    for name in (".hidden.png", "._0.png", ".DS_Store"):
        (train / "3" / name).write_bytes(b"no image")
    (train / "__MACOSX").mkdir()
    assert len(load_examples("CIFAR10", "train", base)) == len(plain) and not caplog.messages
    (train / "3" / "deeper").mkdir()
    for name in ("a.webp", "b.webp", "notes.txt"):
        (train / "4" / name).write_bytes(b"no image")
    (train / "loose.png").write_bytes(b"no image")
    for path in (train / "5").iterdir():
        path.unlink()
    found = load_examples("CIFAR10", "train", base)
    assert {example.gold[0] for example in found} == {*range(10)} - {5}
    (message,) = caplog.messages
    for part in ("2 files .webp", "1 files .txt", "1 folders within", "1 files beside", "no image in 5", "such as dog"):
        assert part in message


@pytest.mark.parametrize("text", ["id,label\n", ""])
def test_a_list_without_images_is_refused(text, tmp_path):
    kaggle(tmp_path, text)
    with pytest.raises(TaskError, match="trainLabels.csv lists no train images of CIFAR10") as error:
        load_examples("CIFAR10", "train", tmp_path)
    one_line(error)


def test_the_digit_0_of_svhn_is_its_class_10(tmp_path):
    found = load_examples("SVHN", "train", folders(tmp_path, [str(number) for number in range(1, 11)]))
    assert all(example.gold == (int(Path(example.where).parent.name) % 10,) for example in found)
    with pytest.raises(TaskError, match="label '11' is unknown"):
        load_examples("SVHN", "train", folders(tmp_path / "other", ["11"]))


def test_other_forms_of_the_sets_are_refused_by_name(tmp_path):
    (tmp_path / "faces.mat").write_bytes(b"MATLAB 5.0")
    (tmp_path / "original" / "airplane").mkdir(parents=True)
    for task, folder, part in (("SVHN", tmp_path, "MATLAB"), ("CIFAR10", tmp_path / "original", "not split")):
        with pytest.raises(TaskError, match=f"{part}.*save the images as train/CLASS/ and test/CLASS/") as error:
            load_examples(task, "train", folder)
        one_line(error)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhns_own_files_hold_its_digits(compressed, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 7), dtype=np.uint8)
    labels = np.array([[1, 2, 9, 10, 10, 3, 5]], np.uint8).T
    for name, count in (("train", 7), ("test", 1)):  # MATLAB drops the last size of a single image
        arrays = {"X": images[..., :count].squeeze(), "y": labels[:count]}
        savemat(tmp_path / f"{name}_32x32.mat", arrays, do_compression=compressed)
    found = load_examples("SVHN", "train", tmp_path)
    assert [example.gold[0] for example in found] == [1, 2, 9, 0, 0, 3, 5]
    assert all((pixels(example) == images[..., number]).all() for number, example in enumerate(found))
    (one,) = load_examples("SVHN", "validation", tmp_path)
    assert (pixels(one) == images[..., 0]).all() and list(find_task("SVHN").original_files(tmp_path)) == [
        "train/train_32x32.mat",
        "validation/test_32x32.mat",
    ]


def test_mat_files_of_another_kind_or_damaged_ones_are_one_line(tmp_path):
    path, images, labels = tmp_path / "train_32x32.mat", np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1))
    wrong = [
        {"X": images.astype(float), "y": labels},
        {"X": images[:16], "y": labels},
        {"X": images, "y": labels[:3]},
        {"X": images, "y": labels * 11},
        {"X": images, "y": labels + 0.5},
        {"X": images, "y": np.array([["a"]] * 4, object)},
        {"X": np.array([[images]], object), "y": labels},
        {"y": labels},
    ]
    for arrays in wrong:
        savemat(path, arrays, do_compression=True)
        with pytest.raises(TaskError, match="no whole file of SVHN") as error:
            load_examples("SVHN", "train", tmp_path)
        one_line(error)
    savemat(path, {"X": images, "y": labels}, do_compression=True)
    whole = path.read_bytes()
    for part in (b"", whole[:60], whole[:150], whole[:-9], b"MATLAB 5.0", bytes(128) + whole[128:], os.urandom(500)):
        path.write_bytes(part)
        with pytest.raises(TaskError) as error:
            load_examples("SVHN", "train", tmp_path)
        one_line(error)


@pytest.mark.parametrize("inside", ["", "NWPU-RESISC45"])
def test_resisc45s_one_folder_is_split_by_class_and_name_or_by_its_lists(inside, tmp_path):
    base = tmp_path / inside
    for name in ("airplane", "sea_ice"):
        (base / name).mkdir(parents=True)
        for number in range(1, 11):
            Image.new("RGB", (4, 4)).save(base / name / f"{name}_{number:03d}.{'JPG' if number % 2 else 'jpg'}", "JPEG")
    train, test = (load_examples("RESISC45", split, tmp_path) for split in ("train", "validation"))
    numbers = [[int(Path(example.where).stem[-3:]) for example in part] for part in (train, test)]
    assert numbers == [[*range(1, 7)] * 2, [9, 10] * 2]
    assert [example.gold[0] for example in test] == [0, 0, 35, 35]
    (base / "resisc45-train.txt").write_text("airplane_009.JPG\nsea_ice_002.jpg\n")
    listed = load_examples("RESISC45", "train", tmp_path)
    assert [Path(example.where).name for example in listed] == ["airplane_009.JPG", "sea_ice_002.jpg"]


def test_capitals_of_an_ending_are_no_difference_in_a_list(shared, tmp_path):
    folder = small_cifar10(tmp_path / "cifar", shared)
    before = load_examples("CIFAR10", "train", folder)
    for path in (folder / "train").glob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    after = load_examples("CIFAR10", "train", folder)
    assert [example.gold for example in after] == [example.gold for example in before]
    assert (pixels(after[3]) == np.asarray(Image.open(after[3].where).convert("RGB"))).all()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
def test_a_pipe_among_mnists_files_is_not_waited_for(name, tmp_path):
    idx(tmp_path, np.zeros((1, 4, 4)), np.zeros(1))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(TaskError):
        load_examples("MNIST", "train", tmp_path)


def test_an_image_of_more_than_89_million_pixels_is_refused_without_a_warning(tmp_path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    path = tmp_path / "train" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(TaskError, match="144000000 pixels"):
        one_image(tmp_path)
