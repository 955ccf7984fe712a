"""What the commands share: --config, --workdir, --sweep, and mistakes answered in one line."""

import ast
import pathlib
import re
import runpy
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from bhcnet_jax import configs
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError, fail


class _ConfigFile(flags.ArgumentParser):
    """Reads a config file; whatever goes wrong in it is one line."""

    def parse(self, path: str) -> ConfigDict:
        """What its get_config() returns. UserError: it raises, or returns something else than a ConfigDict."""
        try:
            get_config = runpy.run_path(path).get('get_config')
            found = get_config() if callable(get_config) else None
        except (Exception, SystemExit) as error:
            told = str(error).strip('"')  # a KeyError quotes its message
            raise UserError(f'{_line(path, error)}{type(error).__name__}: {told}.') from None
        if get_config is None:
            raise UserError('no function get_config in it; expected one as in configs/smoke.py.')
        if not isinstance(found, ConfigDict):
            raise UserError(f'get_config() returns {found!r:.80}; expected a ConfigDict, as from configs/base.py.')
        return found.lock()


def _line(path: str, error: BaseException) -> str:
    """Where in a file an error was raised: 'line 7: ', or ''."""
    if isinstance(error, SyntaxError):
        return f'line {error.lineno}: ' if error.lineno else ''
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == path]
    return f'line {lines[-1]}: ' if lines else ''


CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'A config: the name of one that comes with the package, or the path of a .py file. Keys are overridden like '
    '--config.balanced.epochs=4.',
    lock_config=True,
)
flags.FLAGS['config'].parser = _ConfigFile()
WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Run directory; default: runs/<recipe>-<data set>, of baselines runs/baselines-<data set>.'
)
SWEEP = flags.DEFINE_string('sweep', '', "Axes over keys, like 'seed=0:10 split.fold=0:10'; see plan/sweep.py.")


def _available() -> dict[str, str]:
    """Name -> what a shipped config says of itself in its first line."""
    found = sorted(pathlib.Path(configs.__path__[0]).glob('*.py'))
    told = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or '' for path in found}
    return {name: text.partition('\n')[0] for name, text in told.items() if name != '__init__'}


def _find_config(value: str) -> str:
    """The path of a config from its path or name; 'imbalanced' and 'configs/imbalanced.py' work from any folder.

    A name is that of a shipped config, whatever lies in the folder: a path has a slash or ends in .py.
    """
    path = pathlib.Path(value)
    if (path.suffix == '.py' or '/' in value) and path.is_file():
        return value
    shipped = pathlib.Path(configs.__path__[0]) / f'{path.stem}.py'
    if path.parent in (pathlib.Path('.'), pathlib.Path('configs')) and shipped.is_file():
        return str(shipped)
    fail(
        f'--config={value}: no such file, and no config of that name; expected a path or one of '
        f'{", ".join(_available())}.'
    )


def _culprit(argv: list[str], message: str) -> str:
    """The argument whose key the config library complains of; it names the last part only."""
    named = re.search(r"\w+", message)
    keys = [argument.partition('=')[0] for argument in argv]
    return next((key for key in keys if named and named[0] in key.split('.')), '--config')


def _refuse_keys_of_values(argv: list[str]) -> None:
    """Ends the process if an argument sets a key inside a key that is no section."""
    for argument in argv:
        name = argument.partition('=')[0]
        value = base.get_config()
        for part in name.split('.')[1:]:
            if not isinstance(value, ConfigDict):
                fail(f'{name}: no such key; what comes before .{part} is a value. Every key is in configs/base.py.')
            value = value.get(part)


def _last_wins(argv: list[str]) -> list[str]:
    """Without arguments that set a key of the config which a later one sets; the library would join tuples."""
    kept, later = [], set()
    for place, argument in reversed(list(enumerate(argv))):
        key = re.match(r'--?(config\.[\w.]+)(=|$)', argument)
        if key and key[1] in later:
            takes_next = not key[2] and place + 1 < len(argv) and not argv[place + 1].startswith('-')
            kept = kept[:-1] if takes_next else kept
            continue
        if key:
            later.add(key[1])
        kept.append(argument)
    return kept[::-1]


HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')


def _help(module: str) -> str:
    """What --help shows of a command: what it is for, examples, configs, flags. module: its name."""
    command = sys.modules.get('__main__') if module == sys.argv[0] else sys.modules[module]
    listed = '\n'.join(f'  {name}: {told}' for name, told in _available().items())
    shown = flags.FLAGS.module_help(module).strip().partition('\n')[2]
    return (
        f'{command.__doc__.strip()}\n\nConfigs:\n{listed}\n\nEvery key with its default, unit and source: '
        f'{pathlib.Path(configs.__path__[0]) / "base.py"}\n\nFlags:\n{shown}'
    )


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them ends the process with one line."""
    argv = _last_wins(argv)
    if any(argument in HELP for argument in argv[1:]):
        # Flags are registered under what was run: the script, or the module that the console script imports.
        known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        print(_help(sys.argv[0] if known else 'bhcnet_jax.main'))
        sys.exit(0)
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config') and equals:
            argv[place] = f'{name}={_find_config(value)}'
        elif name in ('--config', '-config') and place + 1 < len(argv):
            argv[place + 1] = _find_config(argv[place + 1])
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        meant = re.search(r'Did you mean [^?]*\?', str(error))  # the rest of the message is quoted twice
        more = f'{meant[0]} ' if meant else ''
        fail(f'{_culprit(argv, str(error))}: no such key. {more}Every key is in configs/base.py.')
    except (flags.Error, TypeError, ValueError) as error:
        if isinstance(error, TypeError):
            _refuse_keys_of_values(argv)
        fail(str(error).removeprefix('flag '))
    if len(rest) > 1:
        fail(f'{rest[1]}: unexpected argument; keys are set like --config.seed=1.')
    if CONFIG.value is None:
        fail(f'--config is missing; expected a path or one of {", ".join(_available())}.')
    return rest
