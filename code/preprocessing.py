"""Make the training channel: handwritten digits as PNG files, `train/<digit>/…` and `validation/<digit>/…`.

    python code/preprocessing.py --output_dir data/digits

The digits are real: 1,797 of them, 8x8 pixels, from the UCI collection that scikit-learn ships, so no
network is needed. `--dataset mnist` takes MNIST's 70,000 through torchvision instead, which downloads it.
The split is fixed by the seed; run again with the same options, it finds its work done and does nothing.
"""

import argparse
import json
import os
import random
import shutil
import tempfile


def load_digits():
    """Yield (image, label) of scikit-learn's digits; every one of the 16 grey levels is kept."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for pixels, label in zip(digits.images, digits.target):
        yield Image.fromarray((pixels * (255 / 16)).astype(np.uint8)), int(label)


def load_mnist():
    """Yield (image, label) of MNIST, its training and its test part."""
    from torchvision.datasets import MNIST

    with tempfile.TemporaryDirectory() as download:
        for train in (True, False):
            yield from MNIST(download, train=train, download=True)


LOADERS = {"digits": load_digits, "mnist": load_mnist}


def split(labels, validation_fraction, seed):
    """Return the positions that are held out: the same share of every digit."""
    generator = random.Random(seed)
    held_out = set()
    for digit in sorted(set(labels)):
        positions = [position for position, label in enumerate(labels) if label == digit]
        generator.shuffle(positions)
        held_out.update(positions[: round(len(positions) * validation_fraction)])
    return held_out


def write(directory, samples, held_out):
    """Write the PNG files under `directory`."""
    for position, (image, label) in enumerate(samples):
        part = "validation" if position in held_out else "train"
        folder = os.path.join(directory, part, str(label))
        os.makedirs(folder, exist_ok=True)
        image.save(os.path.join(folder, f"{position:05d}.png"))


def main():
    # In a processing job the outputs are under /opt/ml/processing.
    processing = "/opt/ml/processing/output"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=sorted(LOADERS), default="digits")
    parser.add_argument("--output_dir", default=processing if os.path.isdir(processing) else "data/digits")
    parser.add_argument("--validation_fraction", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=20220917)
    args = parser.parse_args()

    about = {"dataset": args.dataset, "validation_fraction": args.validation_fraction, "seed": args.seed}
    marker = os.path.join(args.output_dir, "dataset.json")
    if os.path.exists(marker) and os.path.isdir(os.path.join(args.output_dir, "validation")):
        with open(marker) as file:
            if json.load(file).items() >= about.items():
                print(f"{args.output_dir}: already there")
                return

    samples = list(LOADERS[args.dataset]())
    held_out = split([label for _, label in samples], args.validation_fraction, args.seed)
    about.update(train=len(samples) - len(held_out), validation=len(held_out))

    # Written beside its place and moved there whole, so that nobody trains on half a data set.
    os.makedirs(args.output_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix=".making-") as making:
        write(making, samples, held_out)
        for part in ("train", "validation"):
            target = os.path.join(args.output_dir, part)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(os.path.join(making, part), target)
    with open(marker, "w") as file:
        json.dump(about, file, indent=2)
    print(f"{args.output_dir}: {about['train']} digits to train on, {about['validation']} held out")


if __name__ == "__main__":
    main()
