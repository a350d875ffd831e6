"""tests/mutations.py breaks code that is still there, and names tests that are."""

from pathlib import Path

from mutations import BREAKS, ROOT


def test_each_break_is_of_code_that_stands_once_and_has_tests() -> None:
    assert len(BREAKS) >= 18
    for one in BREAKS:
        code = (ROOT / "src" / "limner" / one.file).read_text(encoding="utf-8")
        assert code.count(one.code) == 1, one.name
        assert one.broken != one.code, one.name
        assert one.tests, one.name
        assert all(Path(ROOT, test).is_file() for test in one.tests), one.name
