"""Measures top-1, top-5, loss, calibration and confusion on the test images, or on the validation images.

Balanced top-1 is the mean over classes, in which a rare class counts as much as a frequent one.

`evaluate.split=validation` is for choosing settings; the labels that it reads are counted.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from fasthebb_cli.settings.evaluate import EvaluateConfig
from fasthebb_cli.stages.images import images_of_split
from fasthebb_cli.stages.scores import RANKED, Calibration, Confusion, add_batch
from fasthebb_cli.stages.task import Batch, Context, Task, results
from fasthebb_cli.stages.totals import Totals, check_scores

LARGEST_CONFUSION = 200  # classes: more would make results.json megabytes


def evaluate(context: Context) -> Task:
    settings, classes = context.settings, context.dataset.classes
    assert isinstance(settings, EvaluateConfig)
    indices = images_of_split(context.dataset, settings, context.config)
    totals = Totals(context.compute.device)
    calibration, confusion = Calibration(), Confusion(len(classes))
    context.network.eval()

    def step(epoch: int, step: int, batch: Batch) -> None:
        predictions, confidence = add_batch(totals, context, batch)
        calibration.add(confidence, predictions == batch.labels)
        confusion.add(batch.labels, predictions)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        by_class = confusion.accuracy()
        return results(
            top1=last["top1"],
            top5=last["top5"] if len(classes) > RANKED else None,
            loss=last["loss"],
            samples=len(indices),
            labels_validation=len(indices) if settings.split == "validation" else 0,
            calibration_error=calibration.error(len(indices)),
            split=settings.split,
            classes=list(classes),
            top1_by_class=by_class,
            balanced_top1=statistics.fmean(right for right in by_class if right is not None),
            imbalance=confusion.imbalance(),
            confusion=confusion.total().tolist() if len(classes) <= LARGEST_CONFUSION else None,
        )

    return Task(
        epochs=1,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=lambda epoch, start: context.batches(indices, settings.batch_size, start=start),
        step=step,
        end_epoch=lambda epoch: check_scores(totals.means()),
        finish=finish,
        state={"totals": totals, "calibration": calibration, "confusion": confusion},
    )
