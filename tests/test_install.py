"""requirements/install.sh, with a stand-in for the environment's Python.

It notes what pip is told: nothing is downloaded and nothing compiled.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILED = 'onedl_mmcv-{version}-cp311-cp311-linux_x86_64.whl'
WITHOUT_OPS = 'onedl_mmcv-{version}-py3-none-any.whl'

PYTHON = """#!/bin/sh
case "$*" in
    '-m pip '*' --version') ;;
    '-m pip '*' wheel '*)
        echo "$*" >>"$CHECKOUT/pip.log"
        eval "$BUILD"
        while [ "$1" != -w ]; do shift; done
        touch "$2/$WHEEL" ;;
    '-m pip '*) echo "$*" >>"$CHECKOUT/pip.log" ;;
    -) cat >/dev/null; echo torch9.9-cp311-cpu ;;
    *include_paths*|*'import acmix_mm'*|*Python.h*) ;;
    *) exec {python} "$@" ;;
esac
"""


class Checkout:
    """A folder with what the script reads, and an environment that it takes for a working one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cache = folder / 'cache'
        for name in ('requirements', 'setup.py'):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        (folder / 'acmix_mm').mkdir()
        pins = (folder / 'requirements' / 'pins.txt').read_text()
        version = pins.partition('onedl-mmcv==')[2].split()[0]
        self.environment = {
            'PATH': os.environ['PATH'],
            'CHECKOUT': str(folder),
            'ACMIX_WHEEL_CACHE': str(self.cache),
            'TMPDIR': str(folder / 'tmp'),
            'CXX': 'true',  # a compiler that accepts everything
            'BUILD': '',
            'WHEEL': COMPILED.format(version=version),
        }
        (folder / 'tmp').mkdir()
        self.version = version

    def add_venv(self, name: str = '.venv') -> None:
        python = self.folder / name / 'bin' / 'python'
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON.format(python=sys.executable))
        python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        script = self.folder / 'requirements' / 'install.sh'
        return subprocess.Popen(
            [str(shutil.which('bash')), str(script), *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell starts background jobs with interrupts ignored, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def install(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs the script: its exit status, and what it printed."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def pip_calls(self) -> list[str]:
        """What pip was told since the last look."""
        log = self.folder / 'pip.log'
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return calls

    def wheels(self) -> list[str]:
        return [path.name for path in self.cache.rglob('*') if path.is_file()]


@pytest.fixture
def bare_checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def checkout(bare_checkout):
    bare_checkout.add_venv()
    return bare_checkout


def tools_without_python(folder: Path) -> str:
    """A folder for PATH with the commands that the script calls, but no Python."""
    folder.mkdir()
    for name in ('dirname', 'grep', 'sed', 'cat', 'cksum', 'find', 'rm', 'sort'):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def stand_in_python(folder: Path, version: str) -> Path:
    """A Python that is too old to be asked anything but its version."""
    python = folder / 'python3'
    python.write_text(f'#!/bin/sh\ncase "$2" in *print*) echo {version} ;; *) exit 1 ;; esac\n')
    python.chmod(0o755)
    return python


def test_missing_python_is_one_clear_line(bare_checkout, tmp_path):
    code, output = bare_checkout.install(PATH=tools_without_python(tmp_path / 'bin'))
    assert code == 1
    assert output.splitlines() == [
        'install: no Python 3.10 to 3.13 was found on PATH: install one, or name it '
        '(make install PYTHON=/path/to/python3)'
    ]


def test_old_python_is_passed_over(bare_checkout, tmp_path):
    path = tools_without_python(tmp_path / 'bin')
    stand_in_python(tmp_path / 'bin', '3.8')
    code, output = bare_checkout.install(PATH=path)
    assert code == 1
    assert output.startswith('install: no Python 3.10 to 3.13 was found')


@pytest.mark.parametrize(
    ('version', 'found'),
    [('3.8', '3.8'), (None, 'not a Python that runs'), ('', 'not a Python that runs')],
    ids=['old', 'missing', 'silent'],
)
def test_unfit_python_asked_for_is_one_clear_line(bare_checkout, tmp_path, version, found):
    python = tmp_path / 'python3'
    if version is not None:
        stand_in_python(tmp_path, version)
    code, output = bare_checkout.install(PYTHON=str(python))
    assert code == 1
    assert output.splitlines() == [
        f'install: PYTHON={python} is {found}; Python 3.10 to 3.13 is needed'
    ]


def test_home_is_not_needed(bare_checkout, tmp_path):
    python = stand_in_python(tmp_path, '3.8')
    del bare_checkout.environment['ACMIX_WHEEL_CACHE']
    code, output = bare_checkout.install(PYTHON=str(python))
    assert code == 1
    assert output.startswith(f'install: PYTHON={python} is 3.8')


def test_lost_connection_is_shown(checkout):
    retry = 'WARNING: Retrying (Retry(total=4, connect=None, read=None)) after connection broken'
    code, output = checkout.install(BUILD=f'echo "{retry}"; sleep 11')
    assert code == 0
    assert ' s  no connection to the package index, trying again\n' in output


def test_other_python_than_the_environment_has_is_refused(checkout, tmp_path):
    for version, shown in (('3.99', '3.99'), ('', 'that does not run')):
        python = stand_in_python(tmp_path, version)
        code, output = checkout.install(PYTHON=str(python))
        assert code == 1
        assert len(output.splitlines()) == 1
        assert f'PYTHON={python} is Python {shown}, but .venv holds Python 3.' in output
    assert "run 'make clean' first" in output


@pytest.mark.parametrize(
    ('compiler', 'problem'),
    [
        ('no-such-compiler', 'no C++ compiler (no-such-compiler) was found'),
        ('false', 'does not compile C++17'),
    ],
)
def test_unfit_compiler_is_one_clear_line_before_any_download(checkout, compiler, problem):
    code, output = checkout.install(CXX=compiler)
    assert code == 1
    assert len(output.splitlines()) == 1
    assert problem in output
    assert 'install g++' in output
    assert checkout.pip_calls() == []


def test_compiler_is_not_needed_with_the_wheel_at_hand(checkout):
    assert checkout.install()[0] == 0
    (checkout.folder / '.venv' / 'installed').unlink()
    assert checkout.install(CXX='no-such-compiler')[0] == 0


def test_second_run_does_nothing_and_changed_pins_install_anew(checkout):
    code, output = checkout.install()
    assert code == 0, output
    calls = checkout.pip_calls()
    assert [call.split()[3] for call in calls] == ['install', 'wheel', *['install'] * 3]
    assert checkout.wheels() == [COMPILED.format(version=checkout.version)]
    assert checkout.wheels()[0] in calls[2]
    assert list((checkout.folder / 'tmp').iterdir()) == []

    assert checkout.install() == (0, '')
    assert checkout.pip_calls() == []

    with (checkout.folder / 'requirements' / 'pins.txt').open('a') as pins:
        pins.write('another==1.0\n')
    assert checkout.install()[0] == 0
    assert [call.split()[3] for call in checkout.pip_calls()] == ['install'] * 4  # no new wheel


def test_wheel_without_ops_is_refused(checkout):
    wheel = WITHOUT_OPS.format(version=checkout.version)
    code, output = checkout.install(WHEEL=wheel)
    assert code == 1
    assert f'mmcv was built without its compiled ops ({wheel})' in output.splitlines()[-1]
    assert checkout.wheels() == []


def test_failed_build_shows_the_end_of_the_log(checkout):
    code, output = checkout.install(BUILD='echo fatal error: torch.h; exit 1')
    assert code == 1
    assert 'fatal error: torch.h' in output
    assert 'failed: the end of the log is above' in output.splitlines()[-1]
    assert not (checkout.folder / '.venv' / 'installed').exists()


@pytest.mark.parametrize('signal_name', ['SIGTERM', 'SIGINT'])
def test_interrupted_build_stops_at_once_and_runs_again(checkout, signal_name):
    beats = checkout.folder / 'beats'
    process = checkout.start(BUILD=f'for i in $(seq 200); do echo beat >>{beats}; sleep 0.1; done')
    while not beats.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(getattr(signal, signal_name))
    process.communicate(timeout=60)
    assert process.returncode > 0
    count = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == count  # what it had started has stopped too
    assert checkout.wheels() == []
    assert list((checkout.folder / 'tmp').iterdir()) == []

    code, output = checkout.install()
    assert code == 0, output
    assert len(checkout.wheels()) == 1


def test_unknown_stack_is_one_clear_line(checkout):
    code, output = checkout.install('modern')
    assert (code, output) == (1, 'install: no stack modern; the only name is classic\n')


def test_classic_stack_has_its_own_pins_environment_and_copy_of_the_checkout(checkout):
    checkout.add_venv('.venv-classic')
    packages = checkout.folder / '.venv-classic' / 'lib' / 'python3.11' / 'site-packages'
    packages.mkdir(parents=True)
    git = ['git', '-C', str(checkout.folder)]
    (checkout.folder / '.gitignore').write_text('/.venv*/\n*.so\n')
    (checkout.folder / 'acmix_mm' / 'module.py').write_text('old')
    (checkout.folder / 'acmix_mm' / 'other_torch.so').touch()
    subprocess.run([*git, 'init', '--quiet'], check=True)
    subprocess.run([*git, 'add', 'acmix_mm', 'setup.py', 'requirements'], check=True)
    wheel = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    code, output = checkout.install('classic', WHEEL=wheel)
    assert code == 0, output
    calls = checkout.pip_calls()
    copy = checkout.folder / '.venv-classic' / 'checkout'
    assert all('-c requirements/classic.txt' in call for call in calls if '--no-deps' not in call)
    assert checkout.wheels() == [wheel]
    assert calls[3].endswith(f'-r requirements/classic.txt -e {copy}')
    assert not (checkout.folder / '.venv' / 'installed').exists()
    assert (copy / 'setup.py').exists()
    assert not (copy / 'acmix_mm' / 'other_torch.so').exists()
    assert (packages / 'acmix_mm').readlink() == copy / 'acmix_mm'

    # A second run installs nothing, but takes over what has changed and keeps what was built.
    (copy / 'acmix_mm' / '_C.so').touch()
    (checkout.folder / 'acmix_mm' / 'new.py').touch()
    (checkout.folder / 'acmix_mm' / 'module.py').unlink()
    assert checkout.install('classic') == (0, '')
    assert checkout.pip_calls() == []
    names = {path.name for path in (copy / 'acmix_mm').iterdir()}
    assert names == {'_C.so', 'new.py'}
