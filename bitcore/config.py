"""BitQuantConfig: what a layer computes. How a machine computes it is a kernel's business (bitcore.kernels)."""

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

WeightDtype = Literal["ternary", "int4", "int8"]
WeightGranularity = Literal["per_tensor", "per_channel", "per_group"]
WeightQuantizer = Literal["absmean", "absmedian", "threshold", "absmax", "minmax"]
ActivationDtype = Literal["int8", "float32"]
ActivationGranularity = Literal["per_token", "per_tensor"]
StorageFormat = Literal["2bit", "base3"]
ScaleDtype = Literal["float32", "bfloat16", "float16"]
StraightThroughEstimator = Literal["identity", "clipped"]

QUANTIZERS_OF = {"ternary": ("absmean", "absmedian", "threshold"), "int4": ("absmax", "minmax"), "int8": ("absmax",)}


class BitQuantConfig(BaseModel):
    """How weights and activations are quantized and how packed weights are stored.

    The default is BitNet b1.58 (arXiv 2402.17764): ternary weights with one absmean scale, int8 activations with one
    absmax scale a token. Instances are frozen and hashable; `model_dump_json` and `model_validate_json` round-trip.

    Raises:
        ConfigError: (pydantic's ValidationError) a field is unknown or wrong, or fields contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_dtype: WeightDtype = "ternary"
    weight_granularity: WeightGranularity = "per_tensor"
    weight_quantizer: WeightQuantizer = Field(
        default="absmean",
        description="ternary: absmean, absmedian, threshold; int4: absmax, minmax (with a zero point); int8: absmax",
    )
    threshold_factor: float = Field(default=0.05, ge=0.0, lt=1.0, description="used by threshold alone")
    group_size: int = Field(default=128, ge=1, description="input features a scale; used by per_group alone")
    activation_dtype: ActivationDtype = Field(default="int8", description="float32 leaves activations as they come")
    activation_granularity: ActivationGranularity = "per_token"
    storage_format: StorageFormat = Field(default="2bit", description="of ternary weights; the others have one")
    weight_scale_dtype: ScaleDtype = Field(
        default="float32", description="what weight scales are rounded to, for checkpoints that store them so"
    )
    ste: StraightThroughEstimator = Field(
        default="identity", description="clipped: no gradient to weights beyond the quantized range; training alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    close = get_close_matches(str(name), cls.model_fields, n=1)
                    hint = f"did you mean {close[0]}? " if close else ""
                    raise ValueError(f"{name} is not a field; {hint}expected one of {', '.join(cls.model_fields)}")
            if data.get("weight_dtype") in ("int4", "int8") and "weight_quantizer" not in data:
                return {**data, "weight_quantizer": "absmax"}
        return data

    @field_validator("activation_granularity", mode="before")
    @classmethod
    def _read_older_name(cls, value: Any) -> Any:
        return "per_token" if value == "per_channel" else value

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        served = QUANTIZERS_OF[self.weight_dtype]
        if self.weight_quantizer not in served:
            raise ValueError(
                f"weight_quantizer is {self.weight_quantizer}, "
                f"expected one of {', '.join(served)} for {self.weight_dtype} weights"
            )
        if self.weight_dtype != "ternary" and self.storage_format == "base3":
            raise ValueError(
                f"storage_format is base3, which stores ternary weights; weight_dtype is {self.weight_dtype}"
            )
        return self

    @property
    def packed_format(self) -> str:
        """How packed weights lie in memory: "2bit", "base3", "int4" or "int8" (bitcore.packing)."""
        return self.storage_format if self.weight_dtype == "ternary" else self.weight_dtype

    @classmethod
    def bitnet_b158(cls) -> Self:
        """BitNet b1.58: ternary absmean weights, int8 activations a token. The default."""
        return cls()

    @classmethod
    def weight_only(cls) -> Self:
        """Ternary absmean weights; activations stay in floating point."""
        return cls(activation_dtype="float32")

    @classmethod
    def int8_per_tensor(cls) -> Self:
        """Ternary absmean weights; int8 activations with one scale for the whole input."""
        return cls(activation_granularity="per_tensor")

    @classmethod
    def int4(cls, group_size: int = 128) -> Self:
        """Symmetric int4 weights, a scale for each `group_size` input features; floating-point activations."""
        return cls(
            weight_dtype="int4", weight_granularity="per_group", group_size=group_size, activation_dtype="float32"
        )

    def __str__(self) -> str:
        granularity = (
            f"per_group({self.group_size})" if self.weight_granularity == "per_group" else self.weight_granularity
        )
        weights = f"{self.weight_dtype} {granularity} {self.weight_quantizer} weights"
        storage = f" in {self.storage_format}" if self.weight_dtype == "ternary" else ""
        if self.weight_scale_dtype != "float32":
            storage += f" with {self.weight_scale_dtype} scales"
        if self.ste == "clipped":
            storage += ", clipped STE"
        if self.activation_dtype == "float32":
            return f"{weights}{storage}, floating-point activations"
        return f"{weights}{storage}, {self.activation_dtype} {self.activation_granularity} activations"
