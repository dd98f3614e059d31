# SPDX-License-Identifier: Apache-2.0
"""Dataclasses as the lines of CSV files."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import TypeVar

from .output import write_output

Row = TypeVar('Row')


def read_rows(file: Path, row_type: type[Row]) -> list[Row]:
    """Read a CSV file whose columns are the fields of a dataclass.

    Args:
        file: The file.
        row_type: Dataclass whose fields are strings and numbers.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has other columns, or a value is not of the type of its field.
    """
    with file.open(newline='') as lines:
        reader = csv.DictReader(lines)
        columns = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
        if reader.fieldnames != columns:
            raise ValueError(
                f'{file} has the columns {", ".join(reader.fieldnames or ["none"])}; '
                f'needed are {", ".join(columns)}'
            )
        try:
            return [
                row_type(**{field.name: field.type(row[field.name]) for field in fields(row_type)})  # type: ignore[arg-type,operator]
                for row in reader
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f'{file}, line {reader.line_num}: {error}') from error


def write_rows(file: Path, rows: Sequence[Row], row_type: type[Row]) -> None:
    """Write a CSV file with a line for each row, or end the process with one message.

    Args:
        file: The file.
        rows: Instances of the dataclass.
        row_type: The dataclass.
    """
    sheet = StringIO()
    columns = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    writer = csv.DictWriter(sheet, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)  # type: ignore[call-overload]
    write_output(file, sheet.getvalue())
