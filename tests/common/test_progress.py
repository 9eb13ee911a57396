"""Progress bars are seen on a terminal, and nowhere else."""

import sys

import pytest

from vidtok_plugin.common.progress import progress_bar


@pytest.mark.parametrize(
    ("terminal", "shown", "seen"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_bars_are_shown_on_stderr_and_only_on_a_terminal(
    terminal: bool, shown: bool, seen: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress_bar(shown) as bar:
        bar.advance(bar.add_task("frames", total=3), 3)
    out, err = capsys.readouterr()
    assert out == "" and ("3/3" in err) == seen and bool(err) == seen
