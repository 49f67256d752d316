"""SlidingKeyValueCache: what the window sees, in memory that does not grow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitlayers import SlidingKeyValueCache


@given(window=st.integers(1, 6), parts=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_gives_what_the_window_sees_and_the_new(window: int, parts: list[int]) -> None:
    cache = SlidingKeyValueCache(2, 3, window, 4)
    keys, values = torch.randn(2, 2, 3, sum(parts), 4)
    for _ in range(2):
        end = 0
        for new in parts:
            begin = max(0, end - (window - 1))
            assert cache.length == end - begin
            got = cache.append(keys[:, :, end : end + new], values[:, :, end : end + new])
            end += new
            assert torch.equal(got[0], keys[:, :, begin:end])
            assert torch.equal(got[1], values[:, :, begin:end])
        assert cache.keys.shape == (2, 3, 2 * window - 1, 4)
        cache.reset()
        assert cache.length == 0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="window is 0, expected 1 or more"):
        SlidingKeyValueCache(1, 1, 0, 4)
    cache = SlidingKeyValueCache(1, 1, 3, 4)
    with pytest.raises(ShapeError, match="values is of shape"):
        cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 1, 4))
    with pytest.raises(DtypeError, match=r"keys is torch\.float16"):
        cache.append(torch.zeros(1, 1, 2, 4).half(), torch.zeros(1, 1, 2, 4))
    assert cache.length == 0
