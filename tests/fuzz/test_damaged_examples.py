"""Damaged files of examples and images: each is read, or refused in one line that names the file."""

import gzip
import io
import json
import random

import numpy as np
import pytest
from fuzzing import contents, damaged_bytes, damaged_value, refusal, seeds
from image_files import write_idx
from PIL import Image
from task_files import MADE

from rmbook.offline.sentences import write_generated_examples
from rmbook.tasks.catalog import find_task

SQUAD = {"title": "T", "paragraphs": [{"context": "Warsaw lies on a river.", "qas": []}]}
FOUND = [{"text": "on a river", "answer_start": 12}]
SQUAD["paragraphs"][0]["qas"] = [{"id": str(number), "question": "Where? ", "answers": FOUND} for number in (1, 2)]
ANSWER = {"number": "", "date": {"day": "", "month": "May", "year": "1066"}, "spans": []}
DROP = {"section": {"passage": "A battle.", "qa_pairs": [{"query_id": "1", "question": "When?", "answer": ANSWER}]}}
DROP["section"]["qa_pairs"][0]["validated_answers"] = [ANSWER, ANSWER]
TEXTS = {
    "RTE": [{"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0}] * 2,
    "BoolQ": [{"question": "is it", "passage": "It is.", "answer": True}] * 2,
    "COPA": [{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1, "idx": 0}] * 2,
    "ReCoRD": [
        {
            "passage": {"text": "Ann met Bob.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]},
            "qas": [{"query": "@placeholder met Bob", "answers": [{"text": "Ann", "start": 0, "end": 2}]}],
        }
    ],
    "SQuAD": {"data": [SQUAD], "version": "1.1"},
    "DROP": DROP,
    **MADE,
}


def original(task: str, value) -> bytes:
    if isinstance(TEXTS[task], list):
        value = value if isinstance(value, list) else [value]
        return "".join(json.dumps(line) + "\n" for line in value).encode()
    return json.dumps(value).encode()


def read_all(task, folder):
    examples = task.load_examples("train", folder)
    for example in examples:
        if hasattr(example, "read"):
            image = example.read()
            assert image.mode == "RGB" and image.width * image.height < 90_000_000
        else:
            assert example.task == task.name and example.texts
            str(example.texts).encode()


@pytest.mark.parametrize("name", ["SST-2", *TEXTS])
def test_texts(name, tmp_path):
    task, draw = find_task(name), random.Random(name)
    if name == "SST-2":
        path = write_generated_examples(tmp_path, train=8, test=4) / "SST-2/train.tsv"
        content = path.read_bytes()
    else:
        path, content = tmp_path / task.files["train"], original(name, TEXTS[name])
    path.write_bytes(content)
    read_all(task, tmp_path)
    for number in seeds(60):
        forged = name != "SST-2" and draw.random() < 0.5
        path.write_bytes(original(name, damaged_value(draw, TEXTS[name])) if forged else damaged_bytes(draw, content))
        before = contents(tmp_path)
        error = refusal(lambda: read_all(task, tmp_path), (name, number))
        assert error is None or path.name in str(error), (name, number, str(error)[:300])
        assert contents(tmp_path) == before


def test_deep_and_huge_texts(tmp_path):
    for name in ("RTE", "SQuAD"):
        task = find_task(name)
        for content in (b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**6, b'"' + b"x" * 10**7, b'{"data": [[[[[1]]]]]}'):
            (tmp_path / task.files["train"]).write_bytes(content)
            assert refusal(lambda: read_all(task, tmp_path), (name, content[:20]))  # noqa: B023


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV")
KINDS = {"PNG": "png", "JPEG": "jpg", "PPM": "ppm", "BMP": "bmp", "TIFF": "tif", "GIF": "gif", "WEBP": "webp"}


def image(draw: random.Random) -> bytes:
    size = draw.choice(((1, 1), (8, 8), (28, 28), (1, 200), (300, 2)))
    pixels = Image.fromarray(np.frombuffer(draw.randbytes(3 * size[0] * size[1]), np.uint8).reshape(*size[::-1], 3))
    for mode, kind in ((draw.choice(MODES), draw.choice([*KINDS])), ("RGB", "PNG")):
        try:
            file = io.BytesIO()
            gray = mode in ("I;16", "I", "F")
            (pixels.convert("L").convert(mode) if gray else pixels.convert(mode)).save(file, kind)
            return file.getvalue()
        except (OSError, ValueError):  # there is no such file
            continue
    raise AssertionError("RGB in PNG can always be written")


def test_images_in_folders(tmp_path):
    task, folder = find_task("CIFAR10"), tmp_path / "train" / "airplane"
    folder.mkdir(parents=True)
    for number in seeds(400):
        draw = random.Random(number)
        content = image(draw)
        if draw.random() < 0.7:
            content = damaged_bytes(draw, content)
        if draw.random() < 0.2 and content[:4] == b"\x89PNG":  # other sizes, with the right checksum or not
            content = content[:16] + draw.choice((b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\x86\xa0")) * 2 + content[24:]
        path = folder / f"a.{draw.choice([*KINDS.values()][:5])}"
        path.write_bytes(content)
        before = contents(tmp_path)
        error = refusal(lambda: read_all(task, tmp_path), number)
        assert error is None or path.name in str(error), (number, str(error)[:300])
        assert contents(tmp_path) == before
        path.unlink()


def test_idx_files(tmp_path):
    task, paths = find_task("MNIST"), [tmp_path / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    write_idx(paths[0], np.arange(4 * 28 * 28).reshape(4, 28, 28) % 256)
    write_idx(paths[1], np.arange(4))
    good = [path.read_bytes() for path in paths]
    read_all(task, tmp_path)
    for number in seeds(200):
        draw = random.Random(number)
        for path, content in zip(paths, good, strict=True):
            path.write_bytes(content)
        which = draw.randrange(2)
        if draw.random() < 0.5:
            paths[which].write_bytes(damaged_bytes(draw, good[which]))
        else:
            paths[which].write_bytes(gzip.compress(damaged_bytes(draw, gzip.decompress(good[which])), 1))
        error = refusal(lambda: read_all(task, tmp_path), number)
        assert error is None or "-ubyte.gz" in str(error), (number, str(error)[:300])


def test_lists_of_images(tmp_path):
    """Kaggle's trainLabels.csv, and GTSRB's lists, may name anything."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.png").write_bytes(image(random.Random(0)))
    content = b"id,label\n1,cat\n1,dog\n"
    for number in seeds(150):
        draw = random.Random(number)
        odd = (b"../1", b"/etc/passwd", b"1\0", b"\xff", b'"1', b"~", b"9" * 5000, b"", b"\xef\xbb\xbf1", "²".encode())
        rows = content.replace(b"1", draw.choice(odd), 1) if draw.random() < 0.3 else damaged_bytes(draw, content)
        rows = rows.replace(b"dog", draw.choice(odd), 1) if draw.random() < 0.3 else rows
        (tmp_path / "trainLabels.csv").write_bytes(rows)
        refusal(lambda: read_all(find_task("CIFAR10"), tmp_path), number)
