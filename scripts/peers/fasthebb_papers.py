"""The public code of the FastHebb papers, from a checkout of it: Hebbian pre-training, then a linear classifier.

    python scripts/peers/fasthebb_papers.py split.npz --checkout HebbianLearning --epochs 2

Its own network of six layers and its own rule learn as in the papers (SGD, rate 1e-3, batches of 64). Logistic
regression on the maps of its second convolution, averaged to 4 x 4, then uses the labels: the papers' fine-tuning of
all layers takes longer and is worse with few labels. split.py writes split.npz. The checkout's own requirements must
be installed. The last line of output is the accuracy on the test images, as JSON.
"""

import argparse
import json
import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("split")
    parser.add_argument("--checkout", required=True)
    parser.add_argument("--rule", default="hpca", help="hpca or hwta, as its code calls them")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    sys.path.insert(0, given.checkout)
    from models.hebb.model_6l import Model
    from neurolab import params

    torch.manual_seed(0)
    split = np.load(given.split)
    images, test = (torch.from_numpy(split[name]).permute(0, 3, 1, 2) / 255 for name in ("images", "test_images"))
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images, test = (images - mean) / std, (test - mean) / std
    settings = {params.KEY_LOCAL_LRN_RULE: given.rule}
    network = Model(input_shape=tuple(images.shape[1:]), num_classes=10, hebb_param_dict=settings).train()
    layers = [layer for layer in network.modules() if hasattr(layer, "local_update")]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    with torch.no_grad():
        for _ in range(given.epochs):
            for part in torch.randperm(len(images)).split(64):
                network(images[part])
                for layer in layers:
                    layer.local_update()
                optimizer.step()
                optimizer.zero_grad()

    @torch.no_grad()
    def features(inputs: Tensor) -> np.ndarray:
        maps = [network.get_conv_output(part)["conv2"] for part in inputs.split(100)]
        return torch.cat([F.adaptive_avg_pool2d(part, 4).flatten(1) for part in maps]).numpy()

    network.eval()
    labels = split["labels"]
    classifier = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=10, cv=3, max_iter=200, n_jobs=-1))
    classifier.fit(features(images[torch.from_numpy(labels >= 0)]), labels[labels >= 0])
    top1 = classifier.score(features(test), split["test_labels"])
    sys.stdout.write(json.dumps({"top1": top1}) + "\n")


if __name__ == "__main__":
    main()
