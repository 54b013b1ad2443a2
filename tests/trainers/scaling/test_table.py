import pytest

from cluster.errors import DataError, RecipeError
from trainers.scaling import table

HEAD = "parameters,tokens,loss,setup\n"


@pytest.fixture
def written(tmp_path):
    def write(text, name="runs.csv"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_compute_is_six_times_size_and_length_where_it_is_not_given(written):
    runs = table.read_runs(written(HEAD + "10,100,2.5,a\n"))
    assert (runs.flops[0], runs.unique_tokens[0]) == (6000, 100)
    runs = table.read_runs(written("N,C,loss\n10,6000,2.5\n"))
    assert runs.tokens[0] == 100


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("10,100,nan,a", "run 2: loss is nan, a positive number was expected"),
        ("10,100,-1,a", "run 2: loss is -1, a positive number"),
        ("0,100,2,a", "run 2: parameters is 0, a positive number"),
        ("10,inf,2,a", "run 2: tokens is inf, a positive number"),
        ("10,100,,a", "run 2: no number as loss"),
        ("10,100", "run 2: no number as loss"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_its_run(written, row, said):
    with pytest.raises(DataError, match=said):
        table.read_runs(written(HEAD + "10,100,2.5,a\n" + row + "\n"))


def test_a_missing_column_is_named_with_what_is_there_and_what_is_understood(written):
    with pytest.raises(DataError, match=r"no column for loss, tokens or flops; it has parameters, size.*val_loss"):
        table.read_runs(written("parameters,size\n1,2\n"))


def test_conditions_choose_runs_and_wrong_ones_are_explained(written):
    path = written(HEAD + "10,100,2.5,a\n20,100,2.4,b\n30,100,2.3,a\n")
    assert table.read_runs(path, ["setup=a"]).parameters.tolist() == [10, 30]
    with pytest.raises(RecipeError, match="no run with it; setup is one of a, b"):
        table.read_runs(path, ["setup=c"])
    with pytest.raises(RecipeError, match="did you mean 'setup'"):
        table.read_runs(path, ["setpu=a"])


def test_a_table_with_a_byte_order_mark_is_read(written):
    assert table.read_runs(written("\ufeff" + HEAD + "10,100,2.5,a\n")).loss[0] == 2.5
