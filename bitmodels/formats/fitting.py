"""Which format can hold a matrix of which shape."""

from bitcore.exceptions import ShapeError

BLOCK_SIZES = {"TQ1_0": 256, "TQ2_0": 256, "I2_S": 128, "Q2_0": 64}  # a row is a whole number of blocks
ROW_MULTIPLES = {"bitnet": 4}


def fits(format_name: str, out_features: int, in_features: int) -> bool:
    """Whether the format `format_name` can hold a matrix [out_features, in_features]."""
    return in_features % BLOCK_SIZES.get(format_name, 1) == 0 and out_features % ROW_MULTIPLES.get(format_name, 1) == 0


def check_fits(format_name: str, out_features: int, in_features: int) -> None:
    """Raises ShapeError, naming the formats that can hold the matrix, if `format_name` cannot."""
    if out_features * in_features == 0:
        raise ShapeError("weight", f"of shape {[out_features, in_features]}", "at least one weight")
    if fits(format_name, out_features, in_features):
        return
    others = [name for name in (*BLOCK_SIZES, *ROW_MULTIPLES) if fits(name, out_features, in_features)]
    can = f"it fits {', '.join(others)}" if others else "no foreign format can hold it"
    size, multiple, axis = (
        (in_features, BLOCK_SIZES[format_name], "in_features")
        if format_name in BLOCK_SIZES
        else (out_features, ROW_MULTIPLES[format_name], "out_features")
    )
    raise ShapeError(
        axis, size, f"a multiple of {multiple} for {format_name}; {can}, and BitLab's own format holds any shape"
    )
