"""Tables from this program and from spreadsheets, and what is said of those that cannot be used."""

import pytest

from cervseg_jax.errors import CheckpointError, ConfigError, DataError
from cervseg_jax.files import write_text
from cervseg_jax.tables import csv_text, read_csv

ROWS = [{"stem": "a", "group": "p1"}, {"stem": "b", "group": "p2"}]


@pytest.mark.parametrize(
    "data",
    [
        b"stem,group\na,p1\nb,p2\n",
        b"stem;group\r\na;p1\r\nb;p2\r\n",
        b"sep=;\r\nstem;group\r\na;p1\r\nb;p2\r\n",
        b"stem\tgroup\na\tp1\nb\tp2",
        b"\xef\xbb\xbfstem,group\na,p1\nb,p2\n",
        "stem;group\na;p1\nb;p2\n".encode("utf-16"),
        b"\nstem,group\n\na,p1\n,\nb,p2\n\n",
        b" Stem ,GROUP\na,p1\nb,p2\n",
        b"stem,group,\na,p1,\nb,p2\n",
        b'"stem","group"\n"a","p1"\n"b","p2"\n',
    ],
)
def test_tables_of_spreadsheets_are_read_alike(tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    assert read_csv(tmp_path / "t.csv", columns=("stem", "group")) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,group\na,p1\nb\n", "t.csv: row 3 has no group"),
        ("stem,group\na,p1\nb, \n", "t.csv: row 3 has no group"),
        ("stem,group\n\na,p1\n,p2\n", "t.csv: row 4 has no stem"),
        ("stem,group\na,p1,x\n", "t.csv: row 2 has 3 values for 2 columns; quote values that hold ','"),
        ("name,note\na,1\n", "t.csv: lacks the columns stem, group; it has name, note"),
        ("", "t.csv: lacks the columns stem, group; it has nothing"),
        ("PK\3\4\0\0", "t.csv: is not text; a spreadsheet is to be saved as CSV"),
        ('stem,group\n"a' + "x" * 200_000 + '",p1\n', "t.csv: cannot be read as CSV: field larger than field limit"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path / "t.csv", columns=("stem", "group"))
    assert message in str(caught.value)


def test_a_missing_file_is_an_error_of_the_given_class(tmp_path):
    with pytest.raises(CheckpointError, match="t.csv: cannot be read: No such file"):
        read_csv(tmp_path / "t.csv", error=CheckpointError)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_csv(tmp_path, error=ConfigError)


def test_other_spellings_of_a_column_are_accepted_and_its_own_name_goes_first(tmp_path):
    spellings = {"stem": ("image",), "group": ("patient", "slide")}
    (tmp_path / "t.csv").write_text("slide,Image,patient\ns1,a,p1\n")
    assert read_csv(tmp_path / "t.csv", columns=spellings) == [{"slide": "s1", "stem": "a", "group": "p1"}]
    (tmp_path / "t.csv").write_text("patient,group,image\np1,g,a\n")
    assert read_csv(tmp_path / "t.csv", columns=spellings) == [{"patient": "p1", "group": "g", "stem": "a"}]
    (tmp_path / "t.csv").write_text("Slide-ID,Image Name\ns1,a\n")
    spellings = {"stem": ("image_name",), "group": ("slide_id",)}
    assert read_csv(tmp_path / "t.csv", columns=spellings) == [{"group": "s1", "stem": "a"}]


def test_tables_come_back_as_they_were_written(tmp_path):
    name = 'a;b, "c"\nd \udcff'  # a file name that is not UTF-8
    write_text(tmp_path / "t.csv", csv_text(["stem", "dice", "note"], [[name, 0.5, ""], [" b", 1, "x"]]))
    rows = read_csv(tmp_path / "t.csv", columns=("stem",))
    assert rows == [{"stem": name, "dice": "0.5", "note": ""}, {"stem": " b", "dice": "1", "note": "x"}]
