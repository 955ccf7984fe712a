"""What the programs of a config have in common: --config, --workdir, --sweep, and mistakes answered in one line."""

import pathlib
import re
import sys
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from bhcnet_jax import configs

CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'A config: the name of one that comes with the package, or the path of a .py file. Keys are overridden like '
    '--config.balanced.epochs=4.',
    lock_config=True,
)
WORKDIR = flags.DEFINE_string('workdir', '', 'Run directory; default: runs/<recipe>-<data set>.')
SWEEP = flags.DEFINE_string('sweep', '', "Axes over keys, like 'seed=0:10 split.fold=0:10'; see plan/sweep.py.")


def _available() -> list[str]:
    return sorted(path.stem for path in pathlib.Path(configs.__path__[0]).glob('*.py') if path.stem != '__init__')


def _find_config(value: str) -> str:
    """The path of a config from its path or name; 'imbalanced' and 'configs/imbalanced.py' work from any folder."""
    path = pathlib.Path(value)
    if path.is_file():
        return value
    shipped = pathlib.Path(configs.__path__[0]) / f'{path.stem}.py'
    if path.parent in (pathlib.Path('.'), pathlib.Path('configs')) and shipped.is_file():
        return str(shipped)
    fail(
        f'--config={value}: no such file, and no config of that name; expected a path or one of '
        f'{", ".join(_available())}.'
    )


def fail(message: str) -> NoReturn:
    """Ends the process with a mistake of the user, in one line."""
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    sys.exit(2)


def _culprit(argv: list[str], message: str) -> str:
    """The argument whose key the config library complains of; it names the last part only."""
    named = re.search(r"\w+", message)
    keys = [argument.partition('=')[0] for argument in argv]
    return next((key for key in keys if named and named[0] in key.split('.')), '--config')


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them is said in one line."""
    argv = list(argv)
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config') and equals:
            argv[place] = f'{name}={_find_config(value)}'
        elif name in ('--config', '-config') and place + 1 < len(argv):
            argv[place + 1] = _find_config(argv[place + 1])
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        fail(f'{_culprit(argv, str(error))}: no such key. {error} Every key is in configs/base.py.')
    except (flags.Error, TypeError, ValueError) as error:
        fail(str(error))
    if len(rest) > 1:
        fail(f'{rest[1]}: unexpected argument; keys are set like --config.seed=1.')
    if CONFIG.value is None:
        fail(f'--config is missing; expected a path or one of {", ".join(_available())}.')
    return rest
