"""Compiled loops notice on disk what changes in any file that is compiled into them."""

from opbyte.core.loops import compiled, source_stamp


def twice(x):
    return 2 * x


def test_the_stamp_changes_with_any_of_the_files(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("A = 1")
    second.write_text("B = 1")
    before = source_stamp((first, second))
    source_stamp.cache_clear()
    assert source_stamp((first, second)) == before
    second.write_text("B = 2")
    source_stamp.cache_clear()
    assert source_stamp((first, second)) != before


def test_a_loop_of_other_source_is_another_one(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("A = 1")
    second.write_text("A = 2")
    assert compiled(twice, [first]) is compiled(twice, [first])
    assert compiled(twice, [first]) is not compiled(twice, [second])


def test_what_is_compiled_does_what_the_function_does(tmp_path):
    from opbyte.core.loops import part

    source = tmp_path / "a.py"
    source.write_text("A = 1")
    assert compiled(part(twice), [source])(21) == 42
