"""Reading what the plug-in for transformers saved into a BitTransformerModel: its tensors are those of BitLab's own."""

from fnmatch import fnmatchcase

from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import CheckpointError, ConfigError
from bitmodels.adapters import adapt
from bitmodels.adapters.foreign_model import PROJECTIONS
from bitmodels.checkpoint import load_tensors
from bitmodels.foreign_loading import check_layer_count
from bitmodels.formats import HuggingFaceCheckpoint
from bitmodels.layer_groups import LayerGroup
from bitmodels.meta_device import on_meta_device
from bitmodels.transformer import BitTransformerModel
from bitmodels.transformer_config import BitTransformerConfig

HEAD = "lm_head"
OTHER_READER = "AutoModelForCausalLM reads it after import bitmodels.plugins.transformers"


def load_plugin_checkpoint(checkpoint: HuggingFaceCheckpoint, *, deploy: bool = True) -> BitTransformerModel:
    """The model in `checkpoint`, in eval mode; see AutoBitModel.from_pretrained.

    Raises:
        CheckpointError: the architecture is unknown, its layers differ from each other as those of no
            BitTransformerModel do, masters are wanted and there are none, or tensors are missing, unexpected, misshapen
            or damaged.
    """
    foreign = adapt(checkpoint)
    check_layer_count(checkpoint, foreign.config)
    groups = checkpoint.layers or ()
    if not deploy and any(group.deployed for group in groups):
        expected = "True: the checkpoint has packed weights, which cannot be trained"
        raise CheckpointError(f"{checkpoint.path}: deploy is False, expected {expected}")
    try:
        config, quant_config = _configs(foreign.config, groups)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{checkpoint.path}: quantization_config: {error}") from error
    with on_meta_device():
        model = BitTransformerModel(config, quant_config).eval()
        if deploy:
            model.deploy()
    load_tensors(model, _tensors(checkpoint, foreign.ignored), checkpoint.path)
    return model


def _configs(
    config: BitTransformerConfig, groups: tuple[LayerGroup, ...]
) -> tuple[BitTransformerConfig, BitQuantConfig]:
    """`config` with what `groups` say, and the one config of the layers; ternary ones may differ in granularity."""
    recorded = {name for group in groups for name in group.modules}
    projections = [f"model.layers.{layer}.{name}" for layer in range(config.num_layers) for name in PROJECTIONS]
    others = sorted(recorded - {*projections, HEAD})
    if others:
        raise CheckpointError(
            f"layers has {', '.join(others[:3])}, which a BitTransformer has as no Bit layer: {OTHER_READER}"
        )
    kinds = {(_without_granularity(group.quant_config), group.norm_eps) for group in groups if group.modules}
    if len(kinds) != 1:
        raise CheckpointError(f"layers of {len(kinds)} kinds, expected one in a BitTransformer: {OTHER_READER}")
    changes = {
        "full_precision": tuple(name for name in projections if name not in recorded),
        "linear_norm_eps": groups[0].norm_eps,
        "head_dtype": "ternary" if HEAD in recorded else "float",
    }
    return BitTransformerConfig.model_validate({**config.model_dump(), **changes}), groups[0].quant_config


def _without_granularity(config: BitQuantConfig) -> BitQuantConfig:
    """What ternary layers of a BitTransformer have in common; a file's scales say the granularity of each."""
    if config.weight_dtype != "ternary":
        return config
    return config.model_copy(update={"weight_granularity": "per_tensor", "group_size": BitQuantConfig().group_size})


def _tensors(checkpoint: HuggingFaceCheckpoint, ignored: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    for name in checkpoint.entries:
        if not any(fnmatchcase(name, glob) for glob in ignored):
            tensor = checkpoint.read(name)
            assert isinstance(tensor, Tensor)  # without a quantization that says otherwise
            tensors[name] = tensor
    return tensors
