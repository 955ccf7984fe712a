"""The machine that a process runs on: its cores and devices, and which code runs there."""

import contextlib
import functools
import os
import pathlib
import platform
import subprocess

from bhcnet_jax.errors import UserError
from bhcnet_jax.version import __version__


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def make_every_core_a_device() -> None:
    """Makes each CPU core a JAX device, unless JAX's own settings say how many there are. Call it before JAX is used.

    Devices that train side by side keep cores busier than one device with as many threads (docs/benchmarks.md).
    """
    import jax

    said = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    if not said and 'JAX_NUM_CPU_DEVICES' not in os.environ:
        jax.config.update('jax_num_cpu_devices', cores())


# What a promise of equal bits needs, whatever the shell says: JAX_ENABLE_X64=1 and the like change results.
JAX_SETTINGS = {
    'jax_default_prng_impl': 'threefry2x32',
    'jax_threefry_partitionable': True,
    'jax_random_seed_offset': 0,
    'jax_enable_x64': False,
    'jax_default_matmul_precision': None,
    'jax_disable_jit': False,
    'jax_numpy_rank_promotion': 'allow',
}


def set_up_jax() -> None:
    """Sets JAX_SETTINGS. Call it before JAX is used. UserError: JAX does not start with what its variables say."""
    try:
        import jax
    except ValueError as error:
        raise UserError(f'JAX does not start: {error} Unset that JAX_ variable, or correct it.') from error
    for name, value in JAX_SETTINGS.items():
        jax.config.update(name, value)


def cache_folder() -> pathlib.Path:
    """Where a user's programs and tables are kept; perhaps not there yet. RuntimeError: there is no home directory."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'bhcnet_jax'


def variables() -> dict[str, str]:
    """The environment variables that JAX and XLA read."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(('JAX_', 'XLA_'))}


def compiler_flags() -> str:
    """XLA_FLAGS without the number of CPU devices; others may change bits."""
    flags = os.environ.get('XLA_FLAGS', '').split()
    return ' '.join(flag for flag in flags if not flag.startswith('--xla_force_host_platform_device_count='))


def refuse_missing_devices() -> None:
    """UserError if JAX has none of the devices that it was told to use."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts that there is a plugin for CUDA
        said = f'JAX_PLATFORMS={jax.config.jax_platforms}' if jax.config.jax_platforms else 'JAX'
        reason = error if str(error) else 'it has no plugin for it'
        raise UserError(f'{said} finds no device ({reason}). Unset JAX_PLATFORMS, or correct it.') from error


@functools.cache
def hardware() -> str:
    """The devices and the processor cores of this process, in a few words; on CPUs equal bits need as many cores."""
    import jax

    devices = jax.devices()
    return f'{len(devices)} x {devices[0].device_kind}, {cores()} cores, {_processor()}'


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache  # of the code that runs, whatever becomes of the checkout
def code_version() -> str:
    """The version, and the commit where the code lies in a git checkout; '+' marks uncommitted changes."""
    root = pathlib.Path(__file__).resolve().parents[1]
    commands = (['rev-parse', '--short=12', 'HEAD'], ['status', '--porcelain', '--untracked-files=no'])
    try:
        commit, changes = (
            subprocess.run(['git', '-C', root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
            if (root / '.git').exists()
        )
    except (OSError, ValueError, subprocess.CalledProcessError):
        return __version__
    return f'{__version__} {commit}{"+" if changes else ""}'
