"""What is said of rows that could not be used."""

from fathom.api.look import describe_set_aside
from fathom.core.config import as_dict
from fathom.data import SetAside


def test_lines_of_a_file_are_told_from_rows_of_its_table():
    found = [
        SetAside("cars.csv", 43, None, "it has 5 fields instead of 4"),
        SetAside("cars.csv", 1041, "price", "target 'price' is missing", unit="row"),
        SetAside("cars/a.pdf", None, None, "it is no image"),
    ]
    assert describe_set_aside([as_dict(one) for one in found]) == [
        "3 rows were set aside:",
        "  cars.csv, line 43: it has 5 fields instead of 4",
        "  cars.csv, row 1,041, column 'price': target 'price' is missing",
        "  cars/a.pdf: it is no image",
    ]
