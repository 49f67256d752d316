"""Which tile is chosen: tables are read, never made, and a broken one says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

pytest.importorskip("triton", reason="triton is not installed")

from bitcore.kernels.triton import tiles
from bitcore.kernels.triton.tiles import GemvTile, Tile, TunedRow


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles.tuned_rows.cache_clear()
    tiles.choose_tile.cache_clear()
    yield tiles.own_folder()
    tiles.tuned_rows.cache_clear()
    tiles.choose_tile.cache_clear()


def row(tokens: int, out_features: int, in_features: int, tile: Tile | GemvTile) -> TunedRow:
    return TunedRow(
        storage_format="2bit",
        activations="int8",
        tokens=tokens,
        out_features=out_features,
        in_features=in_features,
        tile=tile,
        microseconds=1.0,
    )


def test_the_nearest_shape_of_the_token_class_is_taken(own_folder: Path) -> None:
    small, large, gemv = Tile(8, 16, 4, 64, 4, 3), Tile(8, 64, 1, 64, 4, 3), GemvTile(8, 4, 2, 128)
    rows = [row(8, 1024, 1024, small), row(8, 16384, 4096, large), row(1, 1024, 1024, gemv)]
    tiles.write_rows(own_folder / tiles.table_name("Some GPU"), rows)
    assert tiles.tuned_rows("Some GPU") == tuple(rows)
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 8, 2000, 2000, False) == small
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 8, 9000, 4096, False) == large
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 1, 9000, 4096, True) == gemv
    # Without a row that can serve, the default.
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 1, 9000, 4096, False) == tiles.default_tile("int8", 1)
    assert tiles.choose_tile("Other GPU", "2bit", "int8", 8, 9000, 4096, False) == tiles.default_tile("int8", 8)


def test_base3_does_not_take_tiles_of_2bit_that_may_be_too_large(own_folder: Path) -> None:
    tile, gemv = Tile(64, 64, 1, 128, 4, 3, 2), GemvTile(8, 4, 2, 128)
    rows = [row(64, 4096, 4096, tile), row(1, 4096, 4096, tile), row(1, 4096, 4096, gemv)]
    tiles.write_rows(own_folder / tiles.table_name("Some GPU"), rows)
    assert tiles.choose_tile("Some GPU", "int4", "int8", 64, 4096, 4096, False) == tile
    assert tiles.choose_tile("Some GPU", "base3", "int8", 64, 4096, 4096, False) == tiles.default_tile("int8", 64)
    assert tiles.choose_tile("Some GPU", "base3", "int8", 1, 4096, 4096, True) == gemv


def test_one_launch_is_not_a_matter_of_tables(own_folder: Path) -> None:
    """Its numbers are others than those of products."""
    tiles.write_rows(own_folder / tiles.table_name("Some GPU"), [row(1, 4096, 14336, Tile(8, 16, 4, 64, 4, 3))])
    assert isinstance(tiles.choose_tile("Some GPU", "2bit", "int8", 1, 4096, 8192, True), GemvTile)


def test_a_table_of_shorter_tiles_is_read(own_folder: Path) -> None:
    """As tune.py wrote them before tiles had boxes, words and rows ahead."""
    path = own_folder / tiles.table_name("Some GPU")
    tiles.write_rows(path, [row(8, 64, 64, Tile(8, 16, 4, 64, 4, 3)), row(1, 64, 64, GemvTile(8, 4, 2))])
    text = path.read_text().replace("[8,16,4,64,4,3,0]", "[8,16,4,64,4,3]").replace("[8,4,2,256,0]", "[8,4,2]")
    path.write_text(text)
    assert "[8,4,2]" in path.read_text()
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 8, 64, 64, False) == Tile(8, 16, 4, 64, 4, 3)
    assert tiles.choose_tile("Some GPU", "2bit", "int8", 1, 64, 64, True) == GemvTile(8, 4, 2)


def test_token_classes_serve_all_numbers() -> None:
    assert [tiles.token_class(tokens) for tokens in (1, 2, 8, 9, 64, 65, 4096, 10**6)] == [
        1,
        8,
        8,
        16,
        64,
        256,
        4096,
        4096,
    ]


def test_a_broken_table_is_an_error(own_folder: Path) -> None:
    path = own_folder / tiles.table_name("Some GPU")
    path.parent.mkdir(parents=True)
    path.write_text('[{"storage_format": "3bit"}]')
    with pytest.raises(ValidationError, match="storage_format"):
        tiles.choose_tile("Some GPU", "2bit", "int8", 8, 64, 64, False)


def test_shipped_tables_are_whole() -> None:
    paths = list(tiles.SHIPPED.glob("*.json"))
    assert paths
    for path in paths:
        rows = tiles.ROWS.validate_json(path.read_bytes())
        assert {row.tokens for row in rows if row.storage_format == "2bit"} == set(tiles.TOKEN_CLASSES)
        for row in rows:
            if isinstance(row.tile, Tile):
                assert row.tile.bytes % 32 == 0
