"""What is printed where."""

import pytest

from bitcli.output import print_table, say, size, track


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (999.7, "1 kB"), (1500, "1.5 kB"), (999_600, "1 MB"), (2.5e9, "2.5 GB")],
)
def test_sizes(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_text_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    say("note", "[red]a[/red]")
    print_table("t", {"[b]": "left", "n": "right"}, [("[i]x[/i]", 1), (None, 22)])
    captured = capsys.readouterr()
    assert captured.err == "note: [red]a[/red]\n"
    assert "[b]" in captured.out
    assert "[i]x[/i]" in captured.out


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")
