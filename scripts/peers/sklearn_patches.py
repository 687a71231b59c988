"""What a user without a GPU writes in scikit-learn: centres of patches, then logistic regression (Coates et al. 2011).

    python scripts/peers/sklearn_patches.py split.npz --clusters 200

split.py writes split.npz. The last line of output is the accuracy on the test images, as JSON.
"""

import argparse
import json
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SIDE, QUADRANTS = 6, 2


def patches(images: np.ndarray) -> np.ndarray:
    """All patches of images (N, H, W, C), normalised for contrast: (N, positions down, positions across, inputs)."""
    windows = sliding_window_view(images, (SIDE, SIDE), axis=(1, 2))
    rows = windows.reshape(*windows.shape[:3], -1).astype(np.float32)
    rows -= rows.mean(-1, keepdims=True)
    return rows / np.sqrt(rows.var(-1, keepdims=True) + 10)


def features(images: np.ndarray, whitening: PCA, centres: MiniBatchKMeans) -> np.ndarray:
    """How much nearer than the average each centre is, summed over each quadrant of an image (Triangle)."""
    found = []
    for start in range(0, len(images), 50):
        rows = patches(images[start : start + 50])
        distance = centres.transform(whitening.transform(rows.reshape(-1, rows.shape[-1])))
        near = np.maximum(distance.mean(1, keepdims=True) - distance, 0).reshape(*rows.shape[:3], -1)
        halves = [part for down in np.array_split(near, QUADRANTS, 1) for part in np.array_split(down, QUADRANTS, 2)]
        found.append(np.concatenate([half.sum((1, 2)) for half in halves], 1))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("split")
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--patches", type=int, default=100_000)
    given = parser.parse_args()
    split = np.load(given.split)
    images, labels, random = split["images"], split["labels"], np.random.default_rng(0)
    few = images[random.permutation(len(images))[:2000]]
    rows = patches(few).reshape(-1, SIDE * SIDE * images.shape[-1])
    rows = rows[random.permutation(len(rows))[: given.patches]]
    whitening = PCA(0.99, whiten=True, random_state=0).fit(rows)
    centres = MiniBatchKMeans(given.clusters, batch_size=4096, n_init=1, random_state=0).fit(whitening.transform(rows))
    known = labels >= 0
    classifier = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=10, cv=3, max_iter=200, n_jobs=-1))
    classifier.fit(features(images[known], whitening, centres), labels[known])
    top1 = classifier.score(features(split["test_images"], whitening, centres), split["test_labels"])
    sys.stdout.write(json.dumps({"top1": top1}) + "\n")


if __name__ == "__main__":
    main()
