"""How many images a second are decoded, resized and cut for CLIP ViT-B/16, without worker processes and with them.

    python benchmarks/images.py [--images 2000] [--rounds 5] [--workers 0 1 2] [--write images_cpu]

The images are PNG files of 32 x 32 pixels in colour, as CIFAR-10's: noise on a smooth ground, in about as many bytes.
Each way takes its turn in each round. `images_per_second` is by the wall clock, in the best round: whatever else runs
on the machine makes it smaller. `milliseconds` is processor time an image, of this process and of its workers, in that
round. transformers' `CLIPImageProcessor` goes with them, in this process; so does the largest difference to it.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recorded import write_result
from transformers import CLIPImageProcessor

from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.tasks.image_batches import prepare_ahead
from rmbook.tasks.image_example import ImageExample, open_image

BATCH, SIDE = 128, 32
CLIP = Preprocessing(224, (224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def write_images(folder: Path, count: int) -> list[ImageExample]:
    """Write PNG files, and return them as examples."""
    random, examples = np.random.default_rng(0), []
    for number in range(count):
        ground = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        noise = random.normal(0, 8, (SIDE, SIDE, 3))
        path = folder / f"{number}.png"
        Image.fromarray((np.asarray(ground) + noise).clip(0, 255).astype(np.uint8)).save(path)
        examples.append(ImageExample("CIFAR10", (0,), str(path), partial(open_image, path)))
    return examples


def spent() -> np.ndarray:
    """Return wall time, and processor time of this process and of its finished workers, in seconds."""
    times = os.times()
    own, workers = times.user + times.system, times.children_user + times.children_system
    return np.array([time.perf_counter(), own, workers])


def main() -> None:
    """Measure, print, and perhaps store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", metavar="NAME", help="store as results/benchmarks/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    theirs = CLIPImageProcessor(image_mean=CLIP.mean, image_std=CLIP.std)
    with tempfile.TemporaryDirectory() as folder:
        examples = write_images(Path(folder), options.images)
        size = sum(Path(example.where).stat().st_size for example in examples) / len(examples)
        batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]

        def ours(workers: int) -> None:
            for _ in prepare_ahead(CLIP, batches, workers=workers):
                pass

        def transformers() -> None:
            for batch in batches:
                theirs(images=[example.read() for example in batch], return_tensors="pt")

        ways = {f"{workers} workers": partial(ours, workers) for workers in options.workers}
        ways["CLIPImageProcessor"] = transformers
        found = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = spent()
                way()
                found[name].append(spent() - start)
        pairs = [(CLIP(e.read()), theirs(images=e.read(), return_tensors="pt")["pixel_values"][0]) for e in examples]
        difference = max((one - other).abs().max().item() for one, other in pairs)
    rows = {}
    for name, rounds in found.items():
        wall, own, workers = min(rounds, key=lambda times: times[0])
        rows[name] = {"images_per_second": options.images / wall, "milliseconds": 1000 * own / options.images}
        rows[name] |= {"milliseconds_of_workers": 1000 * workers / options.images}
        print(f"{name:20}" + "".join(f"  {key} {value:.3f}" for key, value in rows[name].items()), flush=True)
    print(f"largest difference to CLIPImageProcessor {difference}, files of {size:.0f} bytes")
    if options.write:
        settings = {"images": options.images, "rounds": options.rounds, "side": SIDE, "bytes": round(size)}
        write_result(options.write, {"settings": settings, "difference": difference, "rows": rows})


if __name__ == "__main__":
    main()
