# SPDX-License-Identifier: Apache-2.0
"""Tables of what the parts found, in Markdown."""

import json
from collections.abc import Iterator
from typing import Any

from acmix_mm.runtime.markdown import table

from .device import Record


def markdown(results: dict[str, Any]) -> str:
    """Write the tables of all parts.

    Args:
        results: ``about``, facts of the run, and ``parts`` by name, each with its ``status``,
            ``seconds`` and ``records``.
    """
    about = ', '.join(f'{name} {value}' for name, value in results['about'].items())
    parts = [
        [name, part['status'], f'{part["seconds"]:.0f}'] for name, part in results['parts'].items()
    ]
    return ''.join(
        [
            f'{about}\n\n',
            table(('part', 'status', 'seconds'), parts),
            '\nErrors, `||a - b|| / ||b||` with b in float64:\n\n',
            _checks(_records(results, 'check')),
            *_timings(results),
            '\nOther findings:\n\n',
            *(f'* {name}: {json.dumps(_content(r))}\n' for name, r in _records(results, 'note')),
        ]
    )


def _records(results: dict[str, Any], kind: str) -> Iterator[tuple[str, Record]]:
    for name, part in results['parts'].items():
        # Parts that only fill caches are of interest where they failed.
        warm = name.startswith('warm')
        yield from (
            (name, record)
            for record in part['records']
            if record['kind'] == kind and ('error' in record or not warm)
        )


def _content(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != 'kind'}


def _checks(records: Iterator[tuple[str, Record]]) -> str:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for _, record in records:
        groups.setdefault((record['what'], record['name'], record['dtype']), []).append(record)
    rows = []
    for key, group in groups.items():
        wrong = [f'{r["case"]} {_error(r)}'.strip() for r in group if not r.get('ok')]
        worst = [
            f'{max(values):.1e}' if values else ''
            for values in ([r[k] for r in group if k in r] for k in ('out', 'grads'))
        ]
        right = f'{len(group) - len(wrong)} of {len(group)}'
        rows.append([*key, right, *worst, '; '.join(wrong[:4])])
    heads = ('what', 'backend', 'dtype', 'right', 'worst result', 'worst gradient', 'wrong')
    return table(heads, rows)


def _timings(results: dict[str, Any]) -> Iterator[str]:
    parts: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for part, record in _records(results, 'timing'):
        cells = parts.setdefault(part, {}).setdefault((record['case'], record['mode']), {})
        keys = ('gpu_ms', 'cpu_ms', 'peak_mib')
        cells[record['name']] = _error(record) or ' / '.join(f'{record[k]:.3g}' for k in keys)
    for part, found in parts.items():
        names = list(dict.fromkeys(name for cells in found.values() for name in cells))
        yield f'\n{part}: milliseconds on the GPU / milliseconds to launch / peak MiB\n\n'
        rows = [[*key, *(cells.get(name, '') for name in names)] for key, cells in found.items()]
        yield table(('case', 'mode', *names), rows)


def _error(record: Record) -> str:
    return record.get('error', '')[:70].replace('|', '/').replace('\n', ' ')
