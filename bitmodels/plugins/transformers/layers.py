"""Bit layers for those of transformers' own layers that compute what nn.Linear does."""

from transformers.models.falcon.modeling_falcon import FalconLinear

from bitlayers import BitLinear, register_layer


@register_layer("BitFalconLinear")
class BitFalconLinear(BitLinear):
    """BitLinear in place of Falcon's subclass of nn.Linear, which `convert` would leave."""

    dense_type = FalconLinear
