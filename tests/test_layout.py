"""The layout of the package: imports point one way, and nothing lies around unused."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'bhcnet_jax'
# From above to below: a room imports from itself and from those below it. Commands stand above all rooms.
ROOMS = (
    'report', 'inference', 'run', 'display', 'training', 'plan', 'datasets', 'records', 'models', 'statistics', 'paper',
)  # fmt: skip
SHARED = ('command_line', 'machine', 'keys', 'files', 'configs', 'startup', 'errors', 'version')  # below all


def module_name(file):
    parts = file.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(file): ast.parse(file.read_text()) for file in PACKAGE.rglob('*.py')}


def imported(tree):
    """The modules of the package that a module imports, wherever in it; 'configs' for any of the configs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'bhcnet_jax':
            base = node.module.partition('.')[2]
            for alias in node.names:
                name = f'{base}.{alias.name}'.lstrip('.')
                found = name if name in MODULES else base
                yield 'configs' if name.split('.')[0] == 'configs' else found


IMPORTS = {name: set(imported(tree)) - {name} for name, tree in MODULES.items()}


def is_command(name):
    """Whether it is run as `python -m`, so that nobody has to import it."""
    return name.endswith('__main__') or "__name__ == '__main__'" in ast.unparse(MODULES[name])


def rank(name):
    """The higher a module stands, the lower its rank. Above all: commands, and '', what the package itself offers."""
    order = (*ROOMS, *SHARED)
    room = name.split('.')[0]
    return 1 + order.index(room) if room in order else 0


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_point_down(name):
    # A command stands above its room, wherever it lies.
    mine = 0 if is_command(name) and not any(name in others for others in IMPORTS.values()) else rank(name)
    up = [other for other in IMPORTS[name] if rank(other) < mine]
    assert not up, f'{name} imports {up} from above it'


def test_no_modules_import_each_other():
    graph = {name: {other for other in others if other != 'configs'} for name, others in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_every_module_is_imported_or_is_a_command():
    used = set().union(*IMPORTS.values())
    packages = {module_name(file) for file in PACKAGE.rglob('__init__.py')}
    assert sorted(name for name in MODULES if name not in used | packages and not is_command(name)) == []


def aliases(tree):
    """What the imports of a piece of code bind: name -> (module, function), or (module, '') for a module itself."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'bhcnet_jax':
            base = node.module.partition('.')[2]
            for alias in node.names:
                inside = f'{base}.{alias.name}'.lstrip('.')
                bound[alias.asname or alias.name] = (inside, '') if inside in MODULES else (base, alias.name)
    return bound


def used_functions(tree, module=''):
    """(module, name) of the functions that a piece of code mentions; ('', name) for an attribute of anything else."""
    bound = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield bound.get(node.id, (module, node.id))
        elif isinstance(node, ast.Attribute):
            found = bound.get(node.value.id) if isinstance(node.value, ast.Name) else None
            yield (found[0] if found and not found[1] else '', node.attr)


def public_functions(tree):
    """Names of the public functions of a module, and of the methods of its classes."""
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = [node.name for each in classes for node in each.body if isinstance(node, ast.FunctionDef)]
    return ({name for name in found if not name.startswith('_')} for found in (functions, methods))


def test_no_public_function_is_called_by_tests_only():
    used = set()
    for folder in ('launch', 'configs'):
        for file in (ROOT / folder).rglob('*.py'):
            used |= set(used_functions(ast.parse(file.read_text())))
    for module, tree in MODULES.items():
        used |= set(used_functions(tree, module))
    attributes = {name for _, name in used}
    templates = ' '.join(file.read_text() for file in PACKAGE.rglob('*.j2'))
    entry_points = re.findall(r'= bhcnet_jax\.(\w+):(\w+)', (ROOT / 'setup.cfg').read_text())
    unused = []
    for module, tree in MODULES.items():
        if not module:  # what the package offers is for its users
            continue
        functions, methods = public_functions(tree)
        unused += [f'{module}.{name}' for name in functions if (module, name) not in {*used, *entry_points}]
        unused += [f'{module}: {name}' for name in methods if name not in attributes and f'.{name}' not in templates]
    assert sorted(unused) == []
