from __future__ import annotations

import numpy as np

from bigtransfer.train.calibration import calibration_of, multi_label_calibration_of
from fixtures.answers import drawn


def test_what_a_validation_split_says() -> None:
    logits, labels = drawn(1.0, 500)
    said = calibration_of(logits, labels, abstain_accuracy=0.9)
    assert said.images == 500
    assert said.top1 == (logits.argmax(1) == labels).mean()
    assert said.scores == {"top1": said.top1, "top5": 1.0}


def test_images_that_were_trained_on_say_nothing() -> None:
    logits, labels = drawn(1.0, 500)
    said = calibration_of(logits, labels, abstain_accuracy=0.9, held_out=False)
    assert (said.held_out, said.temperature, said.abstain_below) == (False, 1.0, None)


def test_with_several_labels_each_class_has_a_threshold() -> None:
    logits, labels = drawn(1.0, 500)
    several = np.stack([labels, np.full(500, -1)], axis=1)
    said = multi_label_calibration_of(logits, several)
    assert len(said.thresholds) == 5
    assert 0.2 < said.map < 1.0
    half = multi_label_calibration_of(logits, several, held_out=False)
    assert half.thresholds == (0.5,) * 5


def test_too_few_images_calibrate_nothing() -> None:
    logits, labels = drawn(1.0, 500)
    said = calibration_of(logits[:49], labels[:49], abstain_accuracy=0.5)
    assert (said.temperature, said.abstain_below, said.calibrated) == (1.0, None, False)
    assert said.why_not == "49 images are too few to calibrate"
    assert calibration_of(logits[:50], labels[:50], abstain_accuracy=0.1).calibrated
    trained_on = calibration_of(logits, labels, abstain_accuracy=0.5, held_out=False)
    assert not trained_on.calibrated
    assert "trained on the validation split" in trained_on.why_not
