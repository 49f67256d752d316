import pytest
from torch import nn

from bitcore.exceptions import ArgumentError
from bitlayers import BitLinear, convert
from bitlayers.training import stem_and_head


def net() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "0": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
            "router": nn.Linear(8, 2),
            "head": nn.Linear(8, 4),
        }
    )


def converted(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, BitLinear)}


@pytest.mark.parametrize(
    ("stem", "head", "expected"),
    [
        (1, 1, {"0.0", "0.2", "router"}),
        (0, 1, {"0.0", "0.2", "router"}),
        (2, 0, {"0.2", "router", "head"}),
        (0, 2, {"0.0", "0.2"}),
    ],
)
@pytest.mark.parametrize("inplace", [True, False])
def test_keeps_the_ends_in_floating_point(stem: int, head: int, expected: set[str], inplace: bool) -> None:
    model = net()
    assert converted(convert(model, exclude=stem_and_head(model, stem, head), inplace=inplace)) == expected


def test_stands_beside_globs_and_callables() -> None:
    model = net()
    convert(model, exclude=(stem_and_head(model), "router", lambda name, module: name == "0.2"))
    assert converted(model) == {"0.0"}
    model = net()
    convert(model, include=("0", stem_and_head(model, 0, 1)), exclude=None)
    assert converted(model) == {"0.0", "0.2", "head"}


def test_names_are_whole() -> None:
    """The first layer of this model is called 0; others have a 0 in their names."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4))
    assert converted(convert(model, exclude=stem_and_head(model))) == {"1.0", "1.1"}


def test_a_model_that_would_keep_all_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model is with 2 layers to convert, expected more than the 2 to be kept"):
        stem_and_head(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ArgumentError, match="stem and head is -1 and 1"):
        stem_and_head(net(), stem=-1)
