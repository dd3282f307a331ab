"""Chat templates run with a limit of work and of size.

A template is a program of the checkpoint, and nobody vouches for it: a nested loop runs for ever,
and `'a' * 4e9` cannot even be interrupted. So every operation is charged to an allowance by the
size of what it is given, before it runs: loops, calls, filters and operators, comparisons and what
is written. A long conversation has a larger allowance, so that limits follow what is to be written.
That nothing but the template's own values is reached is what Jinja's own sandbox sees to.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any, TypeVar, cast

from jinja2 import TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mindformers_glm.tokenizer.template_allowance import (
    CHARACTERS_OF_A_UNIT,
    MAX_BITS,
    TEXTS_AND_SIZED,
    Allowance,
    TemplateLimitError,
)
from mindformers_glm.tokenizer.template_operations import (
    charge_method,
    charge_percent,
    charged_filter,
    charged_test,
    to_json,
    write_time,
)

_MAX_SOURCE_CHARACTERS = 2**16  # takes 2 s to compile; the longest in use have 30,000
_COMPARING_TESTS = (
    *("eq", "equalto", "==", "ne", "!=", "in", "lt", "lessthan", "<", "le", "<="),
    *("gt", "greaterthan", ">", "ge", ">="),
)
# Of HTML and of chance, and slow: no prompt needs them.
_REMOVED_FILTERS = (
    *("filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"),
)
_Node = TypeVar("_Node", bound=nodes.Node)


def render_template(source: str, values: Mapping[str, Any], allowance: Allowance) -> str:
    """Render a template as `apply_chat_template` of transformers 4.51.3 does, within limits.

    Args:
        values: messages, tools and what else the template may read.
        allowance: what it may do.
    Raises:
        TemplateSyntaxError: the template is broken.
        TemplateLimitError: it does or writes too much.
        Exception: anything else that a template may raise.
    """
    code = _compile(source)
    environment = _Environment(allowance)
    template = environment.template_class.from_code(environment, code, environment.globals)
    written = template.render(values)
    if len(written) > environment.allowance.max_written:
        raise TemplateLimitError(f"it writes {len(written)} characters")
    return written


@lru_cache(maxsize=16)
def _compile(source: str) -> CodeType:
    with _bounded(source):
        return _Environment(Allowance(())).compile(source)


@contextmanager
def _bounded(source: str) -> Iterator[None]:
    """Make a syntax error of what is too much for Jinja or Python."""
    if len(source) > _MAX_SOURCE_CHARACTERS:
        raise TemplateSyntaxError(f"it has more than {_MAX_SOURCE_CHARACTERS} characters", 1)
    try:
        yield
    except (RecursionError, MemoryError):
        raise TemplateSyntaxError("it is nested too deeply", 1) from None
    except (SyntaxError, ValueError) as problem:  # of the Python that Jinja makes of it
        raise TemplateSyntaxError(str(problem), 1) from None


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; here it writes what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox that charges every operation to one allowance."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, allowance: Allowance) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,  # what the template computes is computed when it is charged
        )
        self.allowance = allowance
        self.filters["tojson"] = to_json
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = charged_filter(name, function, allowance)
        for name in _COMPARING_TESTS:
            self.tests[name] = charged_test(cast(Any, self.tests[name]), allowance)
        self.filters |= {_WEIGH: _weigh, _COUNT: _count, _SLICE: _count_slice, _CHARGE: _charge}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": write_time}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _charge_nodes(template)
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.allowance.weigh(left)
        if operator == "%" and isinstance(left, str | bytes):
            charge_percent(left, right, self.allowance)
        self.allowance.weigh(right)
        if operator == "*":
            for many, times in (left, right), (right, left):
                if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                    self.allowance.charge(len(many) * max(times, 0) // 8)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.allowance.weigh(1 << min(left.bit_length() * abs(right), MAX_BITS))
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # is hashed
            self.allowance.weigh(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        allowance = __self.allowance
        allowance.charge(10)
        if not isinstance(__obj, Macro):  # what a macro does is charged in its body
            allowance.weigh((args, kwargs))
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            args = charge_method(method.__name__, owner, args, kwargs, allowance)
        elif isinstance(owner, list | tuple):
            allowance.weigh(owner)
        return super().call(__context, __obj, *args, **kwargs)


# The blank: no template can name these filters.
_WEIGH, _COUNT, _SLICE, _CHARGE = "weigh ", "count ", "slice ", "charge "


# They take the context, without which Jinja computes them when it compiles.
@pass_context
def _weigh(context: Context, value: Any) -> Any:
    return _allowance_of(context).weigh(value)


@pass_context
def _count(context: Context, values: Any, units: int) -> Any:
    return _allowance_of(context).count(values, units)


@pass_context
def _count_slice(context: Context, values: Any) -> Any:
    if isinstance(values, TEXTS_AND_SIZED):
        _allowance_of(context).charge_text(len(values))
    return values


@pass_context
def _charge(context: Context, units: int) -> None:
    _allowance_of(context).charge(units)


def _allowance_of(context: Context) -> Allowance:
    return cast(_Environment, context.environment).allowance


def _charge_nodes(template: nodes.Template) -> None:
    """Write charges into a parsed template, for what no method of the environment sees."""
    found: Callable[[type[nodes.Node]], Iterator[Any]] = template.find_all
    for loop in found(nodes.For):
        loop.iter = _filtered(loop.iter, _COUNT, _cost(loop.test) if loop.test else 1)
        loop.body.insert(0, _charge_for(loop))
    for kind in (nodes.Macro, nodes.CallBlock, nodes.Block):
        for body in found(kind):
            body.body.insert(0, _charge_for(body))
    for comparison in found(nodes.Compare):
        operands = [comparison, *comparison.ops]
        is_short = len(operands) == 2 and any(isinstance(o.expr, nodes.Const) for o in operands)
        for operand in comparison.ops if is_short else operands:
            if not is_short or operand.op in ("in", "notin"):
                operand.expr = _filtered(operand.expr, _SLICE if is_short else _WEIGH)
    for output in (*found(nodes.Output), *found(nodes.Concat)):
        output.nodes = [
            part if isinstance(part, nodes.TemplateData) else _filtered(part, _WEIGH)
            for part in output.nodes
        ]
    for pair in found(nodes.Pair):
        if not isinstance(pair.key, nodes.Const):  # is hashed
            pair.key = _filtered(pair.key, _WEIGH)
    for item in found(nodes.Getitem):
        if isinstance(item.arg, nodes.Slice):
            item.node = _filtered(item.node, _SLICE)


def _filtered(value: nodes.Expr, name: str, *arguments: int) -> nodes.Filter:
    constants: list[nodes.Expr] = [_at(nodes.Const(argument), value) for argument in arguments]
    return _at(nodes.Filter(value, name, constants, [], None, None), value)


def _charge_for(node: nodes.Node) -> nodes.ExprStmt:
    cost = _at(nodes.Const(_cost(node)), node)
    return _at(nodes.ExprStmt(_filtered(cost, _CHARGE)), node)


def _at(node: _Node, other: nodes.Node) -> _Node:
    node.set_lineno(other.lineno)
    return node


def _cost(node: nodes.Node) -> int:
    """Units that the nodes below one take, each run once."""
    below = list(node.find_all(nodes.Node))
    data = sum(len(text.data) for text in below if isinstance(text, nodes.TemplateData))
    return 1 + len(below) // 4 + data // CHARACTERS_OF_A_UNIT


def _raise(message: str) -> None:
    raise TemplateError(message)
