# SPDX-License-Identifier: Apache-2.0
"""Check and measure acmix-mm on a CUDA GPU: operators, layers and backbones.

    python -m benchmarks.check_gpu --out work_dirs/gpu

It needs torch 2.9 or newer with its Triton, and torchvision, and takes less than nine minutes. Each
part is a process of its own with a time limit. ``gpu.json`` in the output folder is written after
each part, and ``gpu.md`` at the end. Parts that ended well in there, with the same commit on the
same GPU, are not run again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from acmix_mm.atomic_write import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# The parts of a group run at the same time: they check, or fill the caches of compilers. Seconds.
TOGETHER = (
    *(f'warm-{stage}' for stage in range(4)), 'warm-flex', 'tiny', 'correct-0', 'correct-1',
    'correct-2', 'correct-half', 'correct-other', 'correct-layer', 'layers',
)  # fmt: skip
GROUPS: tuple[dict[str, int], ...] = (
    {'machine': 60}, dict.fromkeys(TOGETHER, 150), {'attention': 60}, {'conv': 60}, {'layer': 90},
    {'backbone': 80}, {'profile': 40}, {'hygiene': 50}, {'flex': 60}, {'compiled': 80},
    {'sanitizer': 150},
)  # fmt: skip
# A dry run leaves out what only fills caches.
DRY_PARTS = [n for group in GROUPS for n in group if not n.startswith(('warm', 'correct-1'))]


def _parts() -> dict[str, Callable[..., Any]]:
    """All parts by name. Importing them imports torch."""
    from .gpu import checks, hygiene, timings

    def attention(cases: Sequence[tuple[int, ...]], *kinds: str) -> Callable[..., Any]:
        return partial(checks.check_attention, cases=cases, kinds=kinds)

    half = (*checks.CASES[:6:2], checks.CASES[8])
    return {
        'machine': timings.machine,
        'tiny': attention(checks.TINY, 'fp32', 'fp16'),
        **{f'correct-{i}': attention(checks.CASES[i::3], 'fp32') for i in range(3)},
        'correct-half': attention(half, 'fp16', 'bf16', 'fp64'),
        'correct-other': checks.check_other_operators,
        'correct-layer': checks.check_one_operator,
        'layers': checks.check_layers,
        'attention': timings.attention,
        **{f'warm-{i}': partial(timings.attention, only=i) for i in range(4)},
        'flex': timings.flex,
        'warm-flex': timings.flex,
        'conv': timings.conv,
        'layer': timings.layer,
        'backbone': timings.backbone,
        'compiled': timings.compiled,
        'profile': hygiene.profile,
        'hygiene': hygiene.hygiene,
        'sanitizer': hygiene.sanitizer,
    }


def run_parts(names: Sequence[str], dry: bool, records: Path, limit: float) -> None:
    """Run parts in this process and write a line of JSON for each measurement.

    Args:
        names: Names of the parts.
        dry: Whether this is a dry run.
        records: File that is written.
        limit: Seconds after which no other measurement is begun.
    """
    import torch

    from .gpu.device import Setting, use_tf32

    end, setting, parts = time.monotonic() + limit, Setting(dry), _parts()
    with records.open('w', buffering=1) as file:
        for name in names:
            torch.manual_seed(0)
            use_tf32(not name.startswith(('tiny', 'correct', 'layers')))
            for record, measure in parts[name](setting):
                if end - time.monotonic() < 2:
                    sys.exit('no time left')
                found = record | dict(part=name)
                try:
                    found |= measure()
                except Exception as error:  # the other measurements go on
                    found |= dict(error=f'{type(error).__name__}: {error}'[:300])
                    traceback.print_exc()
                file.write(json.dumps(found) + '\n')
                torch.use_deterministic_algorithms(False)  # some measurements switch these on
                if not dry:
                    torch.cuda.set_sync_debug_mode('default')


class Check:
    """Starts the parts and gathers what they write.

    Args:
        out: Folder of the results.
        dry: Whether this is a dry run.
        budget: Seconds for everything.
    """

    def __init__(self, out: Path, dry: bool, budget: float) -> None:
        self.out, self.dry = out, dry
        self._deadline = time.monotonic() + budget
        self._lock = threading.Lock()
        out.mkdir(parents=True, exist_ok=True)
        file, about = out / 'gpu.json', _about(dry)
        self.results = json.loads(file.read_text()) if file.exists() else {}
        # Only what the same code measured on the same card is of the same run.
        if about['commit'].endswith('dirty') or not _same(self.results.get('about', {}), about):
            self.results = dict(about=about, parts={})

    def run(self, groups: Sequence[dict[str, int]], jobs: int) -> None:
        """Run groups of parts, ``jobs`` at a time, and write the tables."""
        for group in groups:
            todo = [name for name in group if not self._ended_well(name)]
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(lambda name, group=group: self._start([name], group[name]), todo))
        self._write_tables()

    def run_dry(self, names: Sequence[str]) -> None:
        """Run parts in one process, which imports torch once."""
        self._start(names, limit=600)
        self._write_tables()

    @property
    def failed(self) -> list[str]:
        """What did not end well: parts, and measurements that found an error."""
        parts = self.results['parts']
        return [name for name in parts if self._status(name) != 'ok'] + [
            f'{name}: {record}' for name, part in parts.items() for record in _bad(part)
        ]

    def _ended_well(self, name: str) -> bool:
        return self._status(name) == 'ok' and not _bad(self.results['parts'][name])

    def _status(self, name: str) -> str | None:
        return self.results['parts'].get(name, {}).get('status')

    def _start(self, names: Sequence[str], limit: float) -> None:
        """Run parts in a process; what they wrote counts even if it had to be killed."""
        limit, begun = min(limit, self._deadline - time.monotonic() - 3), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            records, log = Path(folder, 'records'), Path(folder, 'log')
            command = [sys.executable, '-m', 'benchmarks.check_gpu', '--run', *names]
            command += ['--records', str(records), '--limit', str(limit)]
            command += ['--cpu-dry-run'] * self.dry
            status = self._call(command, names, log, limit)
            lines = records.read_text().splitlines(keepends=True) if records.exists() else []
            found = [json.loads(line) for line in lines if line.endswith('}\n')]
            seconds, text = time.monotonic() - begun, log.read_text() if log.exists() else ''
        with self._lock:
            for name in names:
                mine = [record for record in found if record['part'] == name]
                part = dict(status=status, seconds=seconds, records=mine, log=text[-3000:])
                self.results['parts'][name] = part
            write_atomically(self.out / 'gpu.json', json.dumps(self.results, indent=1).encode())
        print(f'{", ".join(names)}: {status}, {seconds:.0f} s', flush=True)

    def _call(self, command: list[str], names: Sequence[str], log: Path, limit: float) -> str:
        env = os.environ | dict(OMP_NUM_THREADS='2', CUBLAS_WORKSPACE_CONFIG=':4096:8')
        if 'sanitizer' in names:
            env |= dict(PYTORCH_NO_CUDA_MEMORY_CACHING='1')
        if self.dry:
            env |= dict(TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')
        if limit < 8:
            return 'no time left'
        with log.open('w') as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                return 'time out'
            finally:
                with suppress(ProcessLookupError):  # what it has started may still run
                    os.killpg(process.pid, signal.SIGKILL)
        return f'exit {code}' if code else 'ok'

    def _write_tables(self) -> None:
        from .gpu.report import markdown

        write_atomically(self.out / 'gpu.md', markdown(self.results).encode())


def _bad(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in part['records'] if 'error' in r or r.get('ok') is False]


def _about(dry: bool) -> dict[str, str]:
    import torch

    git = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty']
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    card = 'none, a dry run' if dry else torch.cuda.get_device_name()
    about = dict(GPU=card, commit=commit, date=time.strftime('%Y-%m-%d'))
    return about | {name: _version(name) for name in ('torch', 'triton')}


def _same(about: dict[str, str], other: dict[str, str]) -> bool:
    return {**about, 'date': ''} == {**other, 'date': ''}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return 'none'


def main(argv: Sequence[str] | None = None) -> None:
    """Run the checks that the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu'), help='folder')
    parser.add_argument('--parts', nargs='+', metavar='PART', help='run these parts alone')
    parser.add_argument('--budget', type=float, default=530, help='seconds for everything')
    parser.add_argument('--jobs', type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument('--cpu-dry-run', action='store_true', help='tiny inputs, on the CPU')
    for hidden in ('--run', '--records', '--limit'):
        parser.add_argument(
            hidden, nargs='+' if hidden == '--run' else None, help=argparse.SUPPRESS
        )
    args = parser.parse_args(argv)
    if args.run:
        run_parts(args.run, args.cpu_dry_run, Path(args.records), float(args.limit or 100))
        return
    known = [name for group in GROUPS for name in group]
    if unknown := [name for name in args.parts or () if name not in known]:
        parser.error(f'no part {", ".join(unknown)}; choose from {", ".join(known)}')
    import torch

    if not (args.cpu_dry_run or torch.cuda.is_available()):
        sys.exit('no CUDA GPU; --cpu-dry-run runs every part with tiny inputs on the CPU')
    check = Check(args.out, args.cpu_dry_run, args.budget)
    if args.cpu_dry_run:
        check.run_dry(args.parts or DRY_PARTS)
    else:
        wanted = args.parts or known
        groups = [{n: s for n, s in group.items() if n in wanted} for group in GROUPS]
        check.run(groups, args.jobs)
    print((args.out / 'gpu.md').read_text())
    if check.failed:
        sys.exit('\n'.join(['These did not end well:', *check.failed]))


if __name__ == '__main__':
    main()
