"""Knowledge amalgamation: several fine-tuned classifiers and unlabelled texts become one classifier (MUKA, MUKI).

Lei Li, Yankai Lin, Xuancheng Ren, Guangxiang Zhao, Peng Li, Jie Zhou, Xu Sun, "Model Uncertainty-Aware Knowledge
Amalgamation for Pre-Trained Language Models", arXiv:2112.07327, and its revision "From Mimicking to Integrating:
Knowledge Integration for Pre-Trained Language Models", Findings of EMNLP 2022, arXiv:2210.05230.
"""

from vision_language.muka.baselines import ensemble_probabilities, uhc_loss, vanilla_kd_loss
from vision_language.muka.feature_amalgamation import CommonFeatureLearning, LayerwiseAmalgamation
from vision_language.muka.targets import (
    LabelUnion,
    amalgamation_loss,
    amalgamation_targets,
    margin_weights,
    union_of_labels,
)
from vision_language.muka.uncertainty import active_dropout, mc_dropout_probabilities, teacher_scores

__all__ = [
    "CommonFeatureLearning",
    "LabelUnion",
    "LayerwiseAmalgamation",
    "active_dropout",
    "amalgamation_loss",
    "amalgamation_targets",
    "ensemble_probabilities",
    "margin_weights",
    "mc_dropout_probabilities",
    "teacher_scores",
    "uhc_loss",
    "union_of_labels",
    "vanilla_kd_loss",
]
