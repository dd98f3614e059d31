import pytest

from acmix_mm.runtime.markdown import replace_between_marks, table

PAGE = 'before\n<!-- ap: written by x.py -->\nold\n<!-- ap: end -->\nafter\n'


def test_only_the_part_between_the_marks_changes():
    assert replace_between_marks(PAGE, 'ap', 'x.py', 'new\n') == PAGE.replace('old', 'new')


@pytest.mark.parametrize('page', ['', PAGE + PAGE, PAGE.replace('end', 'start')])
def test_page_must_have_each_mark_once(page):
    with pytest.raises(ValueError, match=r'must have the lines .* exactly once each'):
        replace_between_marks(page, 'ap', 'x.py', 'new\n')


def test_table():
    assert table(['a', 'b'], [['1', '2']]) == '| a | b |\n|---|---|\n| 1 | 2 |\n'
