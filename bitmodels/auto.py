"""AutoBitModel: a model from its config or from a checkpoint, without naming its class."""

from pathlib import Path
from typing import Literal

import torch

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError
from bitmodels.base import BitModelBase, BitModelConfig
from bitmodels.checkpoint import is_own, read_config
from bitmodels.foreign_loading import load_foreign
from bitmodels.formats import HuggingFaceCheckpoint, open_checkpoint
from bitmodels.head_conversion import convert_head
from bitmodels.hub import local_path
from bitmodels.plugin_loading import load_plugin_checkpoint
from bitmodels.registry import MODEL_REGISTRY, model_class
from bitmodels.repacking import repack
from bitmodels.transformer import BitTransformerModel


class AutoBitModel:
    """Finds the model class by its config's type or by the checkpoint's `model_type`."""

    @staticmethod
    def from_config(config: BitModelConfig, quant_config: BitQuantConfig | None = None) -> BitModelBase:
        """A new model. `quant_config` is BitNet b1.58 if None.

        Raises:
            ArgumentError: no model has a config of this type.
        """
        for model in MODEL_REGISTRY.values():
            if type(config) is model.config_class:
                return model(config, quant_config)
        known = ", ".join(sorted(model.config_class.__name__ for model in MODEL_REGISTRY.values()))
        raise ArgumentError("config", f"a {type(config).__name__}", f"one of {known}")

    @staticmethod
    def from_pretrained(
        path_or_repo: str | Path,
        *,
        dtype: torch.dtype | None = None,
        head_dtype: Literal["float", "int8", "int4"] | None = None,
        quant_config: BitQuantConfig | None = None,
        deploy: bool = True,
        revision: str | None = None,
        gguf_file: str | None = None,
    ) -> BitModelBase:
        """A saved model, in eval mode: BitLab's own, or a foreign one (docs/models.md says which), which is deployed.

        Args:
            path_or_repo: a directory, a GGUF file, or the "owner/name" of a repository on the Hugging Face hub.
            dtype: of what is not packed; None: as in the checkpoint, for GGUF float32 unless embeddings are bfloat16.
            head_dtype: of a language model's embeddings and head: int8 and int4 quantize them. None: as they are.
            quant_config: of the ternary layers: storage format and activations; the granularity is the checkpoint's
                own. None: as they are; of a foreign model 2bit, and activations as it was trained: int8, or
                floating-point for ternary floats without a quantization_config (TriLM).
            deploy: False keeps master weights, for training; a checkpoint of packed weights has none.
            revision: of a repository: a branch, tag or commit.
            gguf_file: a GGUF file in the directory or repository.

        Raises:
            CheckpointError: nothing is there, the architecture or quantization is unknown, or the checkpoint is
                damaged, incomplete or contradicts itself.
            ModelNotFoundError: BitLab's own config.json names a model that is not registered.
            ArgumentError: an option for foreign models is given for one of BitLab's own; there is no such `head_dtype`,
                or the model has no head that can be made so.
            DtypeError: `dtype` is no floating-point torch.dtype, or cannot hold an int8 or int4 head as floats.
            DependencyError: a package that is needed is not installed.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise DtypeError("dtype", repr(dtype), "a floating-point torch.dtype, such as torch.bfloat16")
        path = local_path(path_or_repo, revision, gguf_file)
        if path.is_dir() and gguf_file is None and is_own(path):
            if not deploy:
                raise ArgumentError("deploy", deploy, "True: a checkpoint of BitLab's own says whether it is deployed")
            model = model_class(read_config(path).model_type).from_pretrained(path)
            if quant_config is not None:
                repack(model, quant_config)
            return _changed(model, head_dtype, dtype)
        checkpoint = open_checkpoint(path)
        if isinstance(checkpoint, HuggingFaceCheckpoint) and checkpoint.layers is not None:
            if quant_config is not None:
                raise ArgumentError("quant_config", quant_config, "None: the checkpoint says what each layer is")
            return _changed(load_plugin_checkpoint(checkpoint, deploy=deploy), head_dtype, dtype)
        return load_foreign(checkpoint, dtype=dtype, head_dtype=head_dtype, quant_config=quant_config, deploy=deploy)

    @staticmethod
    def list_models() -> list[str]:
        """The names of the registered models."""
        return sorted(MODEL_REGISTRY)


def _changed(model: BitModelBase, head_dtype: str | None, dtype: torch.dtype | None) -> BitModelBase:
    """`model` with another head and in another dtype, where they are given."""
    if head_dtype is not None:
        if not isinstance(model, BitTransformerModel):
            raise ArgumentError("head_dtype", head_dtype, f"None: a {model.model_type} is no language model")
        convert_head(model, head_dtype, dtype)
    return model if dtype is None else model.to(dtype)
