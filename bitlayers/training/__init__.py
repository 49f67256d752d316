"""Pieces of recipes for quantization-aware training (QAT). Each works in any training loop and needs no other."""

from bitlayers.training.anomaly import detect_non_finite
from bitlayers.training.distillation import attention_relation_loss, logits_distillation_loss
from bitlayers.training.filters import stem_and_head
from bitlayers.training.parameter_groups import parameter_groups
from bitlayers.training.schedule import TwoStageSchedule
from bitlayers.training.warmup import QuantizationWarmup

__all__ = [
    "QuantizationWarmup",
    "TwoStageSchedule",
    "attention_relation_loss",
    "detect_non_finite",
    "logits_distillation_loss",
    "parameter_groups",
    "stem_and_head",
]
