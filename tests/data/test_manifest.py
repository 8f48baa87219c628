"""The manifest, and the tables of patients that users bring."""

import pytest

from cervseg_jax.data.manifest import Record, groups_from_csv, read_manifest, write_manifest
from cervseg_jax.errors import ConfigError, DataError

RECORD = Record("train", "a_00", "p1", -1, "", "images/a.png", "a.json", 9, 9, 9, 9, "", 2, 0.5, "h", "i")


def groups(tmp_path, text, stems=("a", "b")):
    (tmp_path / "g.csv").write_text(text)
    return groups_from_csv(stems, tmp_path / "g.csv")


@pytest.mark.parametrize(
    "text",
    [
        "stem,group\nb,p2\na,p1\n",
        "image;patient\nb.png;p2\na.PNG;p1\n",
        "File,Slide\nimages/b.tif, p2\nC:\\data\\a.tif,p1 \n",
        "stem,group\nb,p2\na,p1\na,p1\nunused,p9\n",
    ],
)
def test_groups_of_many_kinds_of_tables(tmp_path, text):
    assert groups(tmp_path, text) == [{"group": "p1"}, {"group": "p2"}]


def test_a_stem_with_a_dot_and_one_in_decomposed_unicode_are_found(tmp_path):
    found = groups(tmp_path, "image,patient\nslide.1,p1\nzelle_u\u0308.png,p2\n", ("slide.1", "zelle_\u00fc"))
    assert [row["group"] for row in found] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("stem,group\na,p1\nb\n", ConfigError, "g.csv: row 3 has no group"),
        ("stem,group\na,\nb,p2\n", ConfigError, "g.csv: row 2 has no group"),
        ("stem,dose\na,1\n", ConfigError, "g.csv: lacks the columns group; it has stem, dose"),
        ("stem,group\na,p1\na.png,p2\nb,p2\n", ConfigError, "g.csv: a is listed with two groups, p1 and p2"),
        ("stem,group\na,p1\n", DataError, "g.csv: has no group for 1 of 2 images, the first: b"),
    ],
)
def test_groups_that_cannot_be_used_are_explained(tmp_path, text, error, message):
    with pytest.raises(error) as caught:
        groups(tmp_path, text)
    assert message in str(caught.value)


def test_further_columns_reach_the_manifest_and_none_of_its_own_is_replaced(tmp_path):
    (row, _) = groups(tmp_path, "image,patient,stain,fold\na,p1,H&E,7\nb,p2,Pap,8\n")
    write_manifest(tmp_path / "m.csv", [RECORD, RECORD._replace(stem="c", source_path="c.png")], {"images/a.png": row})
    first, second = read_manifest(tmp_path / "m.csv")
    assert (first["stain"], first["fold"], first["group"]) == ("H&E", "-1", "p1")
    assert second["stain"] == ""
    assert list(first) == [*Record._fields, "stain", "group_fold"]
    assert first["group_fold"] == "7"
