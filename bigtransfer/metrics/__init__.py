"""Numpy in, numbers out: accuracy, mAP, calibration, label issues, comparison."""
