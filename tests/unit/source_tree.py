"""What a tree of Python files imports, says and counts; rules over it for test_architecture.py.

Every rule takes a tree and returns one sentence for each violation.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE_NAME = "mindformers_glm"
# Parts from the top down; a part may import its own level and those below it.
ORDER = (
    ("serving", "evaluation"),
    ("launcher",),
    ("quantizer",),
    ("models",),
    ("engine",),
    ("backends",),
    ("weights", "quantization", "tokenizer"),
    ("config",),
    ("core",),
    ("system",),
)
# Parts of one level that do not know each other.
STRANGERS = ({"weights", "quantization", "tokenizer"},)
# Files of no part: they may import everything. To import them is to import what they reach.
OUTSIDE = {
    "__init__": "models",
    "plugin": "models",
    "vllm_mindspore_plugin": "models",
    "__main__": "serving",
    "version": "system",
}
READ_THE_ENVIRONMENT = {
    "serving/doctor/command.py",
    "config/run_config.py",
    "config/launch_config.py",
    "config/environment.py",
    "backends/cpu/library.py",  # the instruction set and the threads, when the kernels are loaded
}
HEAVY_PACKAGES = {"mindspore", "mindformers"}

_LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
# A row of a table of lazy names, "module" or "module:name"; the beginning of an f-string.
_MODULE_IN_TEXT = re.compile(rf"({PACKAGE_NAME}(?:\.\w+)+\.?)(?::\w+)?")
_DEVICE_NAME = re.compile(r"_*(is|has|use|uses)_(ascend|cpu|npu)(_available)?")
_DEVICE_LITERALS = {"CPU", "Ascend"}
_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


@dataclass(frozen=True)
class Import:
    """One module that a file names.

    name: dotted; the longest prefix of it that is a module, unless it is of another package or an
        unfinished text ("mindformers_glm.backends." before a name that is put in).
    runs: whether importing the file imports it: not in a function, for types only or in a text.
    is_text: whether a string literal names it.
    """

    name: str
    line: int
    runs: bool
    is_text: bool = False


class SourceFile:
    """A parsed file of a package.

    Attributes:
        path: relative to the package, with slashes.
        module: its dotted name; a package's is that of its folder.
    """

    def __init__(self, package: Path, path: Path) -> None:
        self.path = path.relative_to(package).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        pieces = self.path.removesuffix(".py").split("/")
        self.is_package = pieces[-1] == "__init__"
        self.module = ".".join([PACKAGE_NAME, *(pieces[:-1] if self.is_package else pieces)])
        self.part = pieces[0]
        self._lazy_nodes = _find_lazy_nodes(self.tree)

    @cached_property
    def docstrings(self) -> set[int]:
        """Ids of the nodes of docstrings, and of other texts that stand alone."""
        nodes = ast.walk(self.tree)
        return {id(node.value) for node in nodes if isinstance(node, ast.Expr)}

    def texts(self) -> Iterator[ast.Constant]:
        """Every string literal that is not a docstring."""
        for node in ast.walk(self.tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in self.docstrings:
                yield node

    @cached_property
    def named_modules(self) -> list[Import]:
        """Every dotted name of something that the file imports, at once, later or by a text."""
        return list(self._find_named_modules())

    def _find_named_modules(self) -> Iterator[Import]:
        bound: dict[str, str] = {}  # local name -> what it stands for
        for node in ast.walk(self.tree):
            for name, local in self._names_of_import(node):
                bound[local or name.split(".")[0]] = name if local else name.split(".")[0]
                yield Import(name, node.lineno, id(node) not in self._lazy_nodes)
        attributes = [node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)]
        inner = {id(node.value) for node in attributes}  # the "a.b" in "a.b.c"
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                root, _, rest = ast.unparse(node).partition(".")
                if root in bound:
                    yield Import(f"{bound[root]}.{rest}", node.lineno, False)
            elif isinstance(node, ast.Call):
                yield from self._relative_text(node)
        for text in self.texts():
            if match := _MODULE_IN_TEXT.fullmatch(text.value):
                yield Import(match[1], text.lineno, False, is_text=True)

    def environment_reads(self) -> set[tuple[int, str]]:
        """Line and name of every use of the environment, such as "os.environ"."""
        named = [(found.line, found.name.split(".")[:2]) for found in self.named_modules]
        return {
            (line, ".".join(pieces))
            for line, pieces in named
            if pieces[0] == "os" and _ENVIRONMENT & set(pieces)
        }

    def _names_of_import(self, node: ast.AST) -> Iterator[tuple[str, str | None]]:
        """Dotted names of an import statement, each with the local name that is its own."""
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = self._resolve("." * node.level + module, self.module)
            for alias in node.names:
                whole = module if alias.name == "*" else f"{module}.{alias.name}"
                yield whole, alias.asname or alias.name

    def _relative_text(self, call: ast.Call) -> Iterator[Import]:
        """import_module(".engine", __package__): the only literal form without the package."""
        texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        is_import = ast.unparse(call.func).split(".")[-1] == "import_module"
        if is_import and texts and texts[0].startswith("."):
            base = f"{texts[1]}.x" if len(texts) > 1 else self.module
            yield Import(self._resolve(texts[0], base), call.lineno, False, is_text=True)

    def _resolve(self, relative: str, module: str) -> str:
        rest = relative.lstrip(".")
        drop = len(relative) - len(rest) - (self.is_package and module == self.module)
        pieces = module.split(".")
        return ".".join([*pieces[: len(pieces) - drop], *([rest] if rest else [])])


class SourceTree:
    """All files of a package and who imports whom."""

    def __init__(self, package: Path) -> None:
        paths = sorted(package.rglob("*.py"))
        self.files = [SourceFile(package, path) for path in paths]
        self.by_module = {file.module: file for file in self.files}
        # Folders without __init__.py are modules, too.
        folders = {path.parent.relative_to(package).as_posix() for path in paths} - {"."}
        names = (f"{PACKAGE_NAME}.{folder.replace('/', '.')}" for folder in folders)
        self.modules = {PACKAGE_NAME, *self.by_module, *names}
        # Code of one device each.
        self.devices = {
            folder.split("/")[1] for folder in folders if folder.startswith("backends/")
        }

    def imports(self, file: SourceFile) -> list[Import]:
        """What a file imports of the package, every module once."""
        seen: dict[str, Import] = {}
        known_names = {*_LEVEL, *OUTSIDE, *self.modules}
        for found in file.named_modules:
            if found.name.split(".")[0] != PACKAGE_NAME:
                continue
            pieces = found.name.split(".")
            # A text may go on with names of one's own, and a part may be named that is not there.
            while len(pieces) > 2 and ".".join(pieces) not in self.modules and pieces[-1]:
                pieces.pop()
            if len(pieces) == 2 and not {pieces[1], ".".join(pieces)} & known_names:
                pieces.pop()  # a name that the package itself offers
            if found.is_text and len(pieces) == 1:
                continue  # a name of something else, such as of a logger
            known = Import(".".join(pieces), found.line, found.runs)
            if known.name not in seen or (known.runs and not seen[known.name].runs):
                seen[known.name] = known
        return list(seen.values())

    def edges(self, file: SourceFile, only_running: bool = False) -> dict[str, int]:
        """Paths of the files that are imported with a file, each with the line that does it.

        An import runs the __init__.py of every package it passes, but those of the file itself.
        """
        edges = {}
        own = f"{file.module}."
        for found in self.imports(file):
            if only_running and not found.runs:
                continue
            pieces = found.name.rstrip(".").split(".")
            for end in range(1, len(pieces) + 1):
                passed = ".".join(pieces[:end])
                is_own = own.startswith(f"{passed}.") and end < len(pieces)
                target = self.by_module.get(passed)
                if target is not None and target is not file and not is_own:
                    edges.setdefault(target.path, found.line)
        return edges


def check_direction(tree: SourceTree) -> list[str]:
    """Imports go down the order, and strangers do not know each other."""
    problems = []
    for file in tree.files:
        if file.path.removesuffix(".py") in OUTSIDE:
            continue
        if file.part not in _LEVEL:
            problems.append(f"{file.path}: {file.part} has no place in the order")
            continue
        for found in tree.imports(file):
            part = [*found.name.split("."), "__init__"][1]
            part = OUTSIDE.get(part, part)
            where = f"{file.path}:{found.line}: imports {found.name}"
            if part not in _LEVEL:
                problems.append(f"{where}, which has no place in the order")
            elif _LEVEL[part] < _LEVEL[file.part]:
                problems.append(f"{where}, which stands above it")
            elif part != file.part and any({part, file.part} <= group for group in STRANGERS):
                problems.append(f"{where}: {file.part} and {part} do not know each other")
    return problems


def find_circles(tree: SourceTree) -> list[str]:
    """A shortest circle of files that import each other in each group of such, and of parts."""
    files = {file.path: set(tree.edges(file)) for file in tree.files}
    parts: dict[str, set[str]] = {}
    for path, targets in files.items():
        if "/" in path:
            beside = {target.split("/")[0] for target in targets if "/" in target}
            parts.setdefault(path.split("/")[0], set()).update(beside - {path.split("/")[0]})
    return [circle for graph in (files, parts) for circle in _describe_circles(graph)]


def check_devices_imports(tree: SourceTree) -> list[str]:
    """A device's code is known to itself and to one file directly in backends/.

    Nor does any of the files there import MindSpore, or what imports it, nor the package itself: a
    program that only asks what there is answers at once.
    """
    problems = []
    tables = set()
    for file in tree.files:
        pieces = file.path.split("/")
        in_backends = pieces[0] == "backends"
        own = pieces[1] if in_backends and len(pieces) > 2 else None
        for found in tree.imports(file):
            names = found.name.split(".")
            if len(names) < 3 or names[1] != "backends":
                continue
            if (names[2] not in tree.devices and names[2]) or names[2] == own:
                continue
            if in_backends and own is None:
                tables.add(file.path)
            else:
                problems.append(f"{file.path}:{found.line}: imports a device's {found.name}")
        is_light = file.path == "__init__.py" or (in_backends and own is None)
        if is_light and (chain := _find_heavy_chain(tree, file)):
            problems.append(f"importing {' -> '.join(chain)}")
    if len(tables) > 1:
        problems.append(f"more than one file names the devices' code: {', '.join(sorted(tables))}")
    return problems


def check_device_words(tree: SourceTree) -> list[str]:
    """No decision for a device outside backends/.

    Meant are the literals "CPU" and "Ascend" (not prose that has them), names such as `is_cpu` and
    comparisons of a `device_target`. In config/, which reads that setting, the literals may stand
    as data of a module, where the table of settings is, and not in functions or comparisons.
    """
    problems = []
    for file in tree.files:
        if file.part == "backends":
            continue
        inside = set()  # what runs, or decides
        for node in ast.walk(file.tree):
            if isinstance(node, (*_FUNCTIONS, ast.Compare, ast.match_case, ast.IfExp)):
                inside |= {id(below) for below in ast.walk(node)}
        for text in file.texts():
            is_data = file.part == "config" and id(text) not in inside
            if text.value in _DEVICE_LITERALS and not is_data:
                problems.append(f'{file.path}:{text.lineno}: the device "{text.value}"')
        for node in ast.walk(file.tree):
            for name in _identifiers(node):
                if _DEVICE_NAME.fullmatch(name):
                    problems.append(f"{file.path}:{node.lineno}: the name {name}")
            is_compare = isinstance(node, ast.Compare) and file.part != "config"
            if is_compare and _compares_device_target(node):
                problems.append(f"{file.path}:{node.lineno}: compares a device_target")
    return problems


def check_environment(tree: SourceTree) -> list[str]:
    """Few files read the environment."""
    problems = []
    for file in tree.files:
        if file.path not in READ_THE_ENVIRONMENT:
            for line, name in sorted(file.environment_reads()):
                problems.append(f"{file.path}:{line}: reads {name}")
    return problems


def find_long_functions(tree: SourceTree, max_lines: int) -> list[str]:
    """Functions of more lines than that; signature and docstring do not count."""
    problems = []
    for file in tree.files:
        for node in ast.walk(file.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1 if ast.get_docstring(node) is not None else 0 :]
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > max_lines:
                    problems.append(f"{file.path}:{node.lineno}: {node.name} has {lines} lines")
    return problems


def count_lines(tree: SourceTree) -> int:
    """Lines of Python, docstrings and comments included."""
    return sum(len(file.text.splitlines()) for file in tree.files)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _find_lazy_nodes(tree: ast.Module) -> set[int]:
    """Ids of the nodes that do not run when the module is imported."""
    lazy = set()
    for node in ast.walk(tree):
        below: Iterable[ast.AST] = ()
        if isinstance(node, _FUNCTIONS):
            below = [node]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            below = node.body
        lazy |= {id(inner) for start in below for inner in ast.walk(start)}
    return lazy


def _find_heavy_chain(tree: SourceTree, start: SourceFile) -> list[str]:
    """From a file to a heavy package along imports that run at once; empty if there is no way."""
    graph = {file.path: set(tree.edges(file, only_running=True)) for file in tree.files}
    heavy = {
        file.path: found.name.split(".")[0]
        for file in tree.files
        for found in file.named_modules
        if found.runs and found.name.split(".")[0] in HEAVY_PACKAGES
    }
    ways = [[*way, heavy[path]] for path, way in _walk(graph, start.path).items() if path in heavy]
    return min(ways, key=len, default=[])


def _identifiers(node: ast.AST) -> Iterator[str]:
    for field in ("id", "attr", "arg", "name", "asname"):
        value = getattr(node, field, None)
        if isinstance(value, str) and hasattr(node, "lineno"):
            yield value


def _compares_device_target(node: ast.Compare) -> bool:
    kinds = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    is_target = any(re.search(r"\bdevice_target\b", side) for side in sides)
    return is_target and any(isinstance(op, kinds) for op in node.ops)


def _describe_circles(graph: dict[str, set[str]]) -> Iterator[str]:
    """One sentence for each group of more than one node that all reach each other."""
    reach = {node: set(_walk(graph, node)) - {node} for node in graph}
    groups = {
        (node, *(other for other in reach[node] if node in reach.get(other, ()))) for node in graph
    }
    for group in sorted({tuple(sorted(group)) for group in groups if len(group) > 1}):
        ways = (
            _walk(graph, node)[before]
            for node in group
            for before in group
            if node in graph[before]
        )
        shortest = min(ways, key=len)
        yield f"{' -> '.join([*shortest, shortest[0]])} ({len(group)} import each other)"


def _walk(graph: dict[str, set[str]], start: str) -> dict[str, list[str]]:
    """Every node that is reached from `start`, with a shortest way to it."""
    ways = {start: [start]}
    queue = [start]
    for node in queue:
        for target in sorted(graph.get(node, set()) - set(ways)):
            ways[target] = [*ways[node], target]
            queue.append(target)
    return ways
