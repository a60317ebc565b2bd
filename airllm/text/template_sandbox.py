"""A Jinja sandbox for templates that nobody has read, with a bound on their time and memory.

A chat template is a program inside a model's file. Jinja's own sandbox keeps it from reaching
Python's internals, but not from `'a' * 10**10`, from a hundred nested loops or from twenty lists
that each hold the one before twice. Here a rendering has a budget of steps, and each thing a
template does pays for itself before it is done:

- every block of statements (a loop's body, a branch, a macro) pays, each time that it runs, for the
  expressions and the text in it. The compiled template is rewritten for this: see `template_meter`.
- every operation whose cost grows with its operands (concatenation, comparison, calls, filters)
  pays for their size, and a result larger than MAX_VALUE is refused before it is made.

What a template may call is listed rather than what it may not: the functions, filters, tests and
methods that chat templates use, each known to be bounded by what it paid.

A budget and not a clock, so that a template fails on every machine or on none.
"""

import functools
import json
import threading
import warnings
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from airllm.text.template_meter import SIZE_PER_STEP, metered

MAX_TEMPLATE = 40_000  # characters; the longest in use have about 20,000
MAX_NODES = 10_000  # of its syntax tree; the time that compiling takes
MAX_STEPS = 400_000  # some 0.3 s; a conversation of a hundred messages takes about 10,000
MAX_VALUE = 2**20  # size of one value, in characters
MAX_INT_BITS = 4096

# A step is about a microsecond. What one costs in other currencies:
CALL_STEPS = 4
ITEM_SIZE = 16  # of an item in a list, in characters

_STR_METHODS = (
    "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit islower"
    " isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix"
    " replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase"
    " title upper"
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
}
_PLAIN_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower"
    " map max min reject rejectattr reverse select selectattr sort trim truncate unique upper"
)
_JINJAS_OWN = ("_loop_vars", "_block_vars")  # what compiled templates pass beside arguments


_Functions = dict[str, Callable[..., Any]]


class TemplateLimitError(TemplateError):
    """The template does more than a chat template has reason to."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders templates with the settings that Hugging Face's library gives them."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self.text,
            extensions=[_Generation, loopcontrols],
        )
        self._lock = threading.Lock()  # one rendering at a time has the budget
        self._reset(0)
        plain: _Functions = {name: FILTERS[name] for name in _PLAIN_FILTERS.split()}
        own: _Functions = {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "round": _round,
            "safe": self.text,
            "string": self.text,
            "sum": self._sum,
            "title": self._title,
            "tojson": self._tojson,
        }
        self.filters = {name: self._metered(f) for name, f in (plain | own).items()}
        self.tests = {name: self._metered(test) for name, test in TESTS.items()}
        self.globals = {
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": safe_range,
            "strftime_now": _strftime_now,
        }
        self._functions = tuple(self.globals.values())

    def template(self, source: str) -> Template:
        """Compile; TemplateError for anything that is wrong with it."""
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(
                f"it has {len(source):,} characters; at most {MAX_TEMPLATE:,} may be"
            )
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of Python, about the compiled template
            self._reset(0)
            try:
                tree = self.parse(source)
                if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
                    raise TemplateError(f"it has more than {MAX_NODES:,} parts")
                code = self.compile(metered(tree))
                return Template.from_code(self, code, self.make_globals(None))
            except (RecursionError, SyntaxError, MemoryError) as error:  # from Python's compiler
                raise TemplateError(f"it is nested too deeply ({error})") from None
            except ValueError as error:  # a number of too many digits
                raise TemplateError(str(error)) from None

    def run(self, template: Template, variables: Mapping[str, object]) -> str:
        """Render; any fault of the template is an exception, of whatever kind it caused."""
        with self._lock:
            self._reset(0)
            given = sum(map(self._size, variables.values()))
            self._reset(given)
            pieces = []
            for piece in template.generate(variables):
                self._pay_for(piece)
                pieces.append(piece)
            return "".join(pieces)

    # The budget.

    def _reset(self, given: int) -> None:
        """A conversation buys budget for its own size: a template may go over it some 30 times."""
        self._steps = MAX_STEPS + given // 2
        self._max_value = MAX_VALUE + 4 * given
        self._sizes: dict[int, tuple[object, int]] = {}

    def pay(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimitError("it takes too long; it may loop without end")

    def _pay_for(self, *values: object) -> None:
        self.pay(1 + sum(map(self._size, values)) // SIZE_PER_STEP)

    def _reserve(self, size: int) -> None:
        """Pay for a value before it is made."""
        if size > self._max_value:
            raise TemplateLimitError(f"it would make a value of size {size:,}")
        self.pay(1 + size // SIZE_PER_STEP)

    def _size(self, value: object) -> int:
        """About the length of str(value): what it costs to copy, compare, hash or write."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise TemplateLimitError(f"it has made a number of {value.bit_length():,} bits")
            return 1 + value.bit_length() // 3
        if not isinstance(value, (list, tuple, dict)):
            return 32
        # Each container is counted once and kept, so that its id stays its own. None can change:
        # templates have no way to, and the conversation is the caller's.
        known = self._sizes.get(id(value))
        if known is None:
            parts = value if not isinstance(value, dict) else (*value.keys(), *value.values())
            self.pay(1 + len(parts) // 4)
            known = (value, 2 + ITEM_SIZE * len(parts) + sum(map(self._size, parts)))
            self._sizes[id(value)] = known
        return known[1]

    # What the compiled template calls. `template_meter` put the calls there.

    def checked(self, value: object) -> object:
        """A value that was just made; by parts that had paid, so that it is not much too large."""
        if isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
            value = list(value)
        self._reserve(self._size(value))
        return value

    def weighed(self, value: object) -> object:
        """An operand of something that takes time in proportion to it."""
        self._pay_for(value)
        return value

    def tested(self, price: int, value: object) -> object:
        """The condition of `{% for ... if condition %}`, which runs for each item."""
        self.pay(price)
        return value

    def concat_texts(self, *values: object) -> str:
        self._reserve(sum(map(self._size, values)))
        return "".join(map(self.text, values))

    def text(self, value: object) -> str:
        self._reserve(self._size(value))
        return value if type(value) is str else str(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        self, owner = __self, getattr(__obj, "__self__", None)
        if owner is self:
            return __obj(*args)
        self.pay(CALL_STEPS)
        self._pay_for(*args, *(kwargs[name] for name in kwargs if name not in _JINJAS_OWN))
        if isinstance(__obj, (Macro, LoopContext)) or isinstance(owner, LoopContext):
            return super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, str) and __obj.__name__ == "join":
            (values,) = args
            return self._join(values, owner)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return self._replace(owner, *args)
        is_method = owner is not None and _has_method(owner, __obj.__name__)
        is_function = any(__obj is function for function in self._functions)
        if not (is_method or is_function or isinstance(__obj, Undefined)):
            raise SecurityError(f"it may not call {__obj!r:.60}")
        self._pay_for(owner)
        return self.checked(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (_Namespace, LoopContext, Macro)):
            return super().is_safe_attribute(obj, attr, value)
        return _has_method(obj, attr)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.pay(1)
        sizes = self._size(left), self._size(right)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it may not format with %; use ~ to join texts")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 1))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*" and isinstance(right, int):
            self._reserve(sizes[0] * max(right, 0))
        elif operator == "*" and isinstance(left, int):
            self._reserve(sizes[1] * max(left, 0))
        else:
            self._reserve(sum(sizes))
        return self.checked(super().call_binop(context, operator, left, right))

    # Filters.

    def _metered(self, function: Any) -> Callable[..., Any]:
        """A filter or test that pays for its arguments and its result."""

        @functools.wraps(function)
        def paying(*args: Any, **kwargs: Any) -> Any:
            self.pay(CALL_STEPS)
            self._pay_for(*args, *kwargs.values())
            if args and isinstance(args[0], (list, tuple, dict)):
                self.pay(len(args[0]))
            return self.checked(function(*args, **kwargs))

        return paying

    def _join(self, values: Any, d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            values = [self.getitem(value, attribute) for value in values]
        values = list(values)
        self._reserve(sum(map(self._size, values)) + len(values) * self._size(d))
        return self.text(d).join(map(self.text, values))

    def _replace(self, s: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = self.text(s), self.text(old), self.text(new)
        found = text.count(old) if count < 0 else min(count, text.count(old))
        self._reserve(len(text) + found * len(new))
        return text.replace(old, new, count)

    def _indent(
        self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self.text(s)
        n_spaces = len(width) if isinstance(width, str) else max(width, 0)
        self._reserve(len(text) + (1 + len(text.splitlines())) * n_spaces)
        indented: str = FILTERS["indent"](text, width, first, blank)
        return indented

    def _sum(self, values: Any, attribute: str | int | None = None, start: float = 0) -> Any:
        if attribute is not None:
            values = [self.getitem(value, attribute) for value in values]
        values = [start, *values]
        if not all(isinstance(value, (int, float)) for value in values):
            raise TypeError("sum takes numbers")
        return sum(values)

    def _title(self, s: Any) -> str:
        words = self.text(s)
        self.pay(len(words) // 4)  # a regular expression's steps, and a slice for each word
        title: str = FILTERS["title"](words)
        return title

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Sequence[str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Without Jinja's HTML escapes, as Hugging Face's library has it."""
        if indent is not None:
            self._reserve(self._size(value) * (1 + max(indent, 0)))
        pair = None if separators is None else (separators[0], separators[1])
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
        )


class _Namespace(Namespace):
    """The one thing that templates can change, so it is never written or counted by its content."""

    def __repr__(self) -> str:
        return "<namespace>"


def _has_method(value: object, name: str) -> bool:
    return any(isinstance(value, kind) and name in names for kind, names in METHODS.items())


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateLimitError(f"it would make a number of {bits:,} bits")


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 15:
        raise SecurityError("it may not round to more than 15 digits")
    rounded: float = FILTERS["round"](value, precision, method)
    return rounded


def _strftime_now(layout: str) -> str:
    if len(layout) > 100:
        raise SecurityError("it may not format a date with more than 100 characters")
    return datetime.now().strftime(layout)


class _Generation(Extension):
    """`{% generation %}` marks the model's own words for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
