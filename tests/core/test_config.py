import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bitcore import BitQuantConfig
from bitcore.config import QUANTIZERS_OF
from bitcore.exceptions import ConfigError


@st.composite
def configs(draw: st.DrawFn) -> BitQuantConfig:
    weight_dtype = draw(st.sampled_from(["ternary", "int4", "int8"]))
    return BitQuantConfig(
        weight_dtype=weight_dtype,
        weight_granularity=draw(st.sampled_from(["per_tensor", "per_channel", "per_group"])),
        weight_quantizer=draw(st.sampled_from(QUANTIZERS_OF[weight_dtype])),
        threshold_factor=draw(st.floats(0, 0.99)),
        group_size=draw(st.integers(1, 512)),
        activation_dtype=draw(st.sampled_from(["int8", "float32"])),
        activation_granularity=draw(st.sampled_from(["per_token", "per_tensor"])),
        storage_format=draw(st.sampled_from(["2bit", "base3"])) if weight_dtype == "ternary" else "2bit",
        weight_scale_dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        ste=draw(st.sampled_from(["identity", "clipped"])),
    )


def test_default_is_bitnet_b158() -> None:
    config = BitQuantConfig()
    assert config == BitQuantConfig.bitnet_b158()
    assert (config.weight_dtype, config.weight_granularity, config.weight_quantizer) == (
        "ternary",
        "per_tensor",
        "absmean",
    )
    assert (config.activation_dtype, config.activation_granularity) == ("int8", "per_token")
    assert (config.threshold_factor, config.group_size, config.storage_format) == (0.05, 128, "2bit")
    assert (config.weight_scale_dtype, config.ste) == ("float32", "identity")


@given(configs())
def test_json_round_trip_and_hash(config: BitQuantConfig) -> None:
    again = BitQuantConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert hash(again) == hash(config)
    assert len({config, again}) == 1


def test_frozen() -> None:
    with pytest.raises(ConfigError, match="frozen"):
        BitQuantConfig().weight_dtype = "int4"  # type: ignore[misc]


def test_presets() -> None:
    assert BitQuantConfig.weight_only().activation_dtype == "float32"
    assert BitQuantConfig.int8_per_tensor().activation_granularity == "per_tensor"
    int4 = BitQuantConfig.int4(64)
    assert (int4.weight_dtype, int4.weight_granularity, int4.group_size, int4.weight_quantizer) == (
        "int4",
        "per_group",
        64,
        "absmax",
    )


def test_older_name_of_per_token_is_read() -> None:
    assert BitQuantConfig(activation_granularity="per_channel") == BitQuantConfig()


@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_integers_get_their_own_quantizer_and_format(weight_dtype: str) -> None:
    config = BitQuantConfig(weight_dtype=weight_dtype)
    assert (config.weight_quantizer, config.packed_format) == ("absmax", weight_dtype)
    assert BitQuantConfig(storage_format="base3").packed_format == "base3"


def test_wrong_value_names_field_value_and_choices() -> None:
    with pytest.raises(ValidationError) as error:
        BitQuantConfig(weight_dtype="binary")
    assert all(part in str(error.value) for part in ("weight_dtype", "binary", "ternary", "int4"))


def test_misspelt_field_names_the_field_and_a_near_one() -> None:
    with pytest.raises(ConfigError, match="weight_dtpye is not a field; did you mean weight_dtype") as error:
        BitQuantConfig(weight_dtpye="ternary")
    assert error.type is ValidationError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"weight_dtype": "int4", "weight_quantizer": "absmean"},
            "weight_quantizer is absmean, expected one of absmax, minmax",
        ),
        ({"weight_quantizer": "absmax"}, "weight_quantizer is absmax, expected one of absmean, absmedian, threshold"),
        ({"weight_dtype": "int4", "storage_format": "base3"}, "storage_format is base3, which stores ternary weights"),
        ({"weight_dtype": "int8", "storage_format": "base3"}, "storage_format is base3.*weight_dtype is int8"),
        ({"weight_dtype": "int8", "weight_quantizer": "minmax"}, "is minmax, expected one of absmax for int8 weights"),
        ({"threshold_factor": 1.5}, "threshold_factor"),
        ({"threshold_factor": float("nan")}, "threshold_factor"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_impossible_combinations_say_why(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitQuantConfig(**fields)


def test_text_names_what_differs_from_the_default() -> None:
    text = str(BitQuantConfig(weight_scale_dtype="bfloat16", ste="clipped"))
    assert "with bfloat16 scales" in text
    assert "clipped STE" in text
    assert "float32" not in str(BitQuantConfig())
