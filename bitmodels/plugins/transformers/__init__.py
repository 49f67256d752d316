"""The plug-in for Hugging Face transformers: quant_method "bitlab", registered when this is imported."""

from bitmodels.plugins.transformers.attach import attach_quantizer
from bitmodels.plugins.transformers.bitnet_checkpoints import serve_bitnet_checkpoints
from bitmodels.plugins.transformers.config import BitLabQuantConfig
from bitmodels.plugins.transformers.layers import BitFalconLinear
from bitmodels.plugins.transformers.own_checkpoints import refuse_own_checkpoints
from bitmodels.plugins.transformers.quantizer import BitLabHfQuantizer

__all__ = ["BitFalconLinear", "BitLabHfQuantizer", "BitLabQuantConfig", "attach_quantizer"]

serve_bitnet_checkpoints()
refuse_own_checkpoints()
