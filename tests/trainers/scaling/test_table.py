import json

import pyarrow as pa
import pyarrow.parquet as pq
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
    with pytest.raises(
        DataError, match=r"no column for loss, tokens or flops; it has parameters, size.*val_loss.*--column loss=NAME"
    ):
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


RUNS = [{"parameters": 10.0, "tokens": 100.0, "loss": 2.5}, {"parameters": 20.0, "tokens": 100.0, "loss": 2.4}]


def _lines(between, end="\n"):
    return end.join(between.join(map(str, row)) for row in ([*RUNS[0]], *(run.values() for run in RUNS))) + end


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", _lines("; ")),
        ("a.tsv", _lines("\t", "\r\n")),
        ("a.csv", _lines(",", "\n\n")),
        ("a.json", json.dumps(RUNS, indent=1)),
        ("a.jsonl", "\n\n".join(map(json.dumps, RUNS)) + "\n\n"),
    ],
)
def test_every_form_of_a_table_gives_the_same_runs(written, name, text):
    assert table.read_runs(written(text, name)).loss.tolist() == [2.5, 2.4]


def test_parquet_is_a_table(tmp_path):
    pq.write_table(pa.Table.from_pylist(RUNS), tmp_path / "a.parquet")
    assert table.read_runs(str(tmp_path / "a.parquet")).parameters.tolist() == [10, 20]
    (tmp_path / "b.parquet").write_text("parameters")
    with pytest.raises(DataError, match=r"b\.parquet: neither CSV"):
        table.read_runs(str(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("header", "row"),
    [("Params,Tokens,Val Loss", "10,100,2.5"), ("N,C,L", "10,6000,2.5"), ("Model Size (B),D (K),loss", "1e-8,.1,2.5")],
)
def test_usual_names_in_any_case_and_with_units_are_understood(written, header, row):
    runs = table.read_runs(written(f"{header}\n{row}\n"))
    assert (runs.parameters[0], runs.tokens[0], runs.loss[0]) == pytest.approx((10, 100, 2.5))


def test_two_losses_are_a_choice(written):
    path = written("N,D,loss,val_loss,losses\n10,100,2.5,2.6,3\n")
    with pytest.raises(RecipeError, match="loss may be loss or val_loss: choose with --column loss=loss"):
        table.read_runs(path)
    assert table.read_runs(path, named={"loss": "val_loss"}).loss[0] == 2.6
    with pytest.raises(RecipeError, match="--column loss=lossess: no such column; did you mean 'losses'"):
        table.read_runs(path, named={"loss": "lossess"})
    with pytest.raises(DataError, match="two columns are called loss"):
        table.read_runs(written("N,D,loss,loss\n10,100,2.5,2.6\n"))


def test_nested_values_have_dotted_names(written):
    path = written(json.dumps({"N": 10, "D": 100, "losses": [{"loss": 3.0}, {"loss": 2.5}]}) + "\n", "a.jsonl")
    assert table.read_runs(path, named={"loss": "losses.1.loss"}).loss[0] == 2.5


def test_conditions_compare_numbers(written):
    path = written(HEAD + "10,100,2.5,a\n20,100,2.4,b\n30,100,2.3,a\n")
    assert table.read_runs(path, ["parameters>=20", "setup!=b"]).parameters.tolist() == [30]
    assert table.read_runs(path, ["parameters=10.0"]).parameters.tolist() == [10]
    assert table.read_runs(path, ["parameters <= 20"]).parameters.tolist() == [10, 20]


def test_a_row_that_is_there_twice_counts_once(written):
    runs = table.read_runs(written(HEAD + "10,100,2.5,a\n" * 3 + "10,100,2.5,b\n"))
    assert (len(runs), runs.repeats) == (2, 2)


def test_epochs_say_how_many_tokens_are_different(written):
    assert table.read_runs(written("N,D,loss,epochs\n10,100,2.5,4\n10,100,2.5,.5\n")).unique_tokens.tolist() == [
        25,
        100,
    ]
