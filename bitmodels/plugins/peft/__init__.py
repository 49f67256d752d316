"""The plug-in for Hugging Face PEFT: LoRA on top of Bit layers."""

from bitmodels.plugins.peft.lora import LoraBitConv2d, LoraBitEmbedding, LoraBitLinear, prepare_model_for_lora

__all__ = ["LoraBitConv2d", "LoraBitEmbedding", "LoraBitLinear", "prepare_model_for_lora"]
