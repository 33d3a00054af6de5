"""Image classification with the encouraging loss: long tails, out-of-distribution detection, adversarial attacks.

Guangxiang Zhao, Wenkai Yang, Xuancheng Ren, Lei Li, Yunfang Wu, Xu Sun, "Well-classified Examples are Underestimated in
Classification with Deep Neural Networks", arXiv:2110.06537.
"""

from vision_language.image_classification.attacks import Attack, vanishing_gradients
from vision_language.image_classification.detection import detection_metrics, false_positive_rate
from vision_language.image_classification.long_tail import group_metrics, long_tail_counts, long_tail_subset
from vision_language.image_classification.model import ImageClassifier, load
from vision_language.image_classification.scores import expected_calibration_error, log_odds, margin, ood_scores

__all__ = [
    "Attack",
    "ImageClassifier",
    "detection_metrics",
    "expected_calibration_error",
    "false_positive_rate",
    "group_metrics",
    "load",
    "log_odds",
    "long_tail_counts",
    "long_tail_subset",
    "margin",
    "ood_scores",
    "vanishing_gradients",
]
