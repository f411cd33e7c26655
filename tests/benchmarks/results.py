"""Measurements as rows of CSV files in `results/`, whose names contain the machine and the versions.

One number is one row, so that a file of last year and one of today can be compared line by line. `--output`
of each benchmark takes a `.csv` file, to which rows are added, or a folder, in which the file is named.
"""

import csv
import importlib.metadata
import os
import pathlib
import platform
import re

COLUMNS = ("benchmark", "case", "row", "precision", "quantity", "value")
LIBRARIES = ("tensorflow", "keras", "torch", "openvino")


def add_output(parser):
    """Adds `--output` to the options of a benchmark."""
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FILE.csv",
        help="adds the numbers to this file; of a folder: to the file of this machine and these versions",
    )


def write_results(path, benchmark, rows):
    """Adds rows to a CSV file, with a header if the file is new.

    Args:
        path: a `.csv` file or an existing folder; None writes nothing.
        benchmark: the module that measured, such as "inference".
        rows: tuples of case, row, precision, quantity and value.

    Raises:
        ValueError: if a row has another length, or the file other columns.
    """
    if path is None:
        return
    path = pathlib.Path(path)
    path = path / name_file() if path.is_dir() else path
    is_new = not path.exists()
    if not is_new:
        read_results(path)
    rows = [(benchmark, *row) for row in rows]
    wrong = [row for row in rows if len(row) != len(COLUMNS)]
    if wrong:
        raise ValueError(f"a row must hold {list(COLUMNS[1:])}. Received: {wrong[0][1:]}")
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows] if is_new else rows)
    print(f"{len(rows)} numbers were added to {path}")


def read_results(path):
    """Returns the rows of a CSV file as dicts, with `value` as a float.

    Args:
        path: what `write_results` wrote.

    Raises:
        ValueError: if the file has other columns.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"columns must be {list(COLUMNS)}. Received: {reader.fieldnames} in {path}")
        return [{**row, "value": float(row["value"])} for row in reader]


def name_file():
    """Returns `<machine>_<versions>.csv` for this machine and the installed libraries."""
    machine = re.sub(r"[^a-z0-9]+", "-", f"{_name_processor()} {os.cpu_count()} cores".lower()).strip("-")
    versions = []
    for library in LIBRARIES:
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions.append(library + ".".join(re.findall(r"\d+", version)[:2]))
    return f"{machine}_{'-'.join(versions)}.csv"


def _name_processor():
    path = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
