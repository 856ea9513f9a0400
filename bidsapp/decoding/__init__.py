"""From responses to targets: ridge regression and the calibration of its predictions."""
