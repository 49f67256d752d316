"""Reading Hugging Face checkpoints: config.json beside safetensors, packed as `bitnet` or in floating point."""

from math import prod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bitcore.exceptions import ArgumentError, CheckpointError, ConfigError
from bitmodels.formats.bitnet import BITNET, BITNET_UNPACKED, BitNetQuantization, check_orientation
from bitmodels.formats.checkpoint import Checkpoint, TensorEntry
from bitmodels.formats.encoded_weight import EncodedWeight
from bitmodels.formats.safetensors_dtypes import TORCH_DTYPES
from bitmodels.formats.safetensors_files import SafetensorsFiles, read_json
from bitmodels.layer_groups import METHOD, LayerGroup, read_groups

CONFIG_FILE = "config.json"
SCALE_SUFFIX = ".weight_scale"


class HuggingFaceCheckpoint(Checkpoint):
    """A directory with config.json and model.safetensors (or shards under an index), or one safetensors file.

    With a `bitnet` quantization_config, a `X.weight` with a `X.weight_scale` is a ternary weight, and the scale has no
    entry of its own. All else, such as the master weights of the online mode, comes as the tensor that it is.

    A `bitlab` quantization_config, of the plug-in for transformers, is in `layers`; its tensors come as they are,
    without the empty one that makes transformers refuse the checkpoint where the plug-in is not imported.

    Raises:
        CheckpointError: a file is missing or damaged, the quantization is none that BitLab reads, or it contradicts
            the tensors.
    """

    container: ClassVar[str] = "safetensors"

    def __init__(self, path: Path) -> None:
        directory = path if path.is_dir() else path.parent
        config_path = directory / CONFIG_FILE
        config = read_json(config_path) if path.is_dir() or config_path.exists() else {}
        self.quantization, self.layers = _quantization(config, config_path)
        self._files = SafetensorsFiles(path)
        self.metadata = self._files.metadata
        for name in self._files.shapes:
            problem = self._contradiction(name)
            if problem is not None:
                raise CheckpointError(f"{path}: {problem}")
        paired = self._scales()
        self._scale_of = {f"{name.removesuffix(SCALE_SUFFIX)}.weight": name for name in paired}
        names = [name for name in self._files.shapes if name not in paired and not self._is_marker(name)]
        super().__init__(path, config, {name: self._entry_of(name) for name in names})
        if self.quantization is not None:
            check_orientation({name: self._scale(name) for name in self._scale_of}, self.quantization)

    def read(self, name: str) -> Tensor | EncodedWeight:
        """As Checkpoint.read. The bias of an autobitlinear layer comes multiplied by the weight's scale, in float32."""
        entry = self._entry(name)
        tensor = self._files.read(name)
        weight = f"{name.removesuffix('.bias')}.weight"
        if name in self._scale_of:
            encoding = BITNET if self._files.dtypes[name] == "U8" else BITNET_UNPACKED
            return EncodedWeight(name, encoding, entry.shape[0], entry.shape[1], tensor, self._scale(name))
        if name.endswith(".bias") and weight in self._scale_of and self._bitnet.multiplies_bias:
            return tensor.float() * self._scale(weight)
        return tensor

    def _rows(self, name: str, tensor: Tensor, part: slice) -> Tensor:
        # Of a mapped tensor all that was touched stays in memory until it is dropped, so each part is mapped anew.
        return self._files.read_rows(name, part.start, part.stop) if tensor.dim() == 2 else tensor[part]

    @property
    def _bitnet(self) -> BitNetQuantization:
        assert self.quantization is not None
        return self.quantization

    def _is_marker(self, name: str) -> bool:
        """Whether it is the empty tensor of the plug-in."""
        return self.layers is not None and self._files.dtypes[name] == "U8" and self._files.shapes[name] == (0, 0)

    def _scales(self) -> set[str]:
        """The names of the weight scales."""
        if self.quantization is None:
            return set()
        return {name for name in self._files.shapes if name.endswith(SCALE_SUFFIX)}

    def _scale(self, weight: str) -> Tensor:
        name = self._scale_of[weight]
        try:
            return self._bitnet.scale_of_stored(self._files.read(name))
        except ArgumentError as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from error

    def _entry_of(self, name: str) -> TensorEntry:
        shape, dtype = self._files.shapes[name], self._files.dtypes[name]
        known = TORCH_DTYPES.get(dtype)
        encoding = dtype if known is None else str(known).removeprefix("torch.")
        nbytes = prod(shape) * (1 if known is None else known.itemsize)
        if name not in self._scale_of:
            return TensorEntry(name, shape, encoding, nbytes)
        if dtype == "U8":
            return TensorEntry(name, (4 * shape[0], *shape[1:]), BITNET.name, nbytes)
        return TensorEntry(name, shape, BITNET_UNPACKED.name, nbytes)

    def _contradiction(self, name: str) -> str | None:
        """What speaks against the packed weight or the weight scale `name`; None for any other tensor."""
        base, _, kind = name.rpartition(".")
        packed = kind == "weight" and self._files.dtypes[name] == "U8" and not self._is_marker(name)
        if not packed and (kind != "weight_scale" or self.quantization is None):
            return None
        if self.quantization is None:
            return f"{name} is packed, and config.json has no quantization_config, which says how to read it"
        if self.quantization.is_online:
            return f"{name} is of a packed layer; quantization_mode online, as config.json has it, knows none"
        for partner in (f"{base}.weight", f"{base}{SCALE_SUFFIX}"):
            if partner not in self._files.shapes:
                return f"{partner} is missing beside {name}"
        shape = self._files.shapes[f"{base}.weight"]
        if len(shape) != 2 or 0 in shape:
            return f"{base}.weight is of shape {list(shape)}, expected two dimensions and at least one weight"
        return None


def _quantization(
    config: dict[str, Any], path: Path
) -> tuple[BitNetQuantization | None, tuple[LayerGroup, ...] | None]:
    """A `bitnet` quantization_config, or the layers of a `bitlab` one."""
    found = config.get("quantization_config")
    if found is None:
        return None, None
    method = found.get("quant_method") if isinstance(found, dict) else None
    try:
        if method == METHOD:
            return None, read_groups(found.get("layers"))
        if method == "bitnet":
            return BitNetQuantization.model_validate(found), None
    except ConfigError as error:
        raise CheckpointError(f"{path}: quantization_config: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(f"{path}: quantization_config has quant_method {method!r}, expected 'bitnet' or {METHOD!r}")
