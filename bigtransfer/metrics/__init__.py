"""Numpy in, numbers out: accuracy, mAP, calibration, label suspects, comparison."""
