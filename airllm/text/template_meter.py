"""Rewrites a parsed template so that running it pays from the sandbox's budget.

Calls of the sandbox's methods are put in front of each block of statements, and around the
expressions that would take time in proportion to their operands without the sandbox's notice:

    {% for m in messages %} [pay(12)] {{ concat_texts(m.role, ": ", weighed(m.role) == "user") }}

Binary operators, calls, filters and tests go through the sandbox anyway.
"""

from typing import cast

from jinja2 import TemplateError, nodes
from jinja2.visitor import NodeTransformer

SIZE_PER_STEP = 64  # characters that are copied or compared in a step, which is about a microsecond

_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


def metered(tree: nodes.Template) -> nodes.Template:
    """The rewritten tree; TemplateError for what the sandbox does not run."""
    return cast(nodes.Template, _Meter().visit(tree))


class _Meter(NodeTransformer):
    def generic_visit(self, node: nodes.Node) -> nodes.Node:
        if isinstance(node, _REFUSED):
            raise TemplateError(f"it may not use {{% {type(node).__name__.lower()} %}}")
        prices = {name: sum(map(_price, block)) for name, block in _blocks(node).items()}
        if isinstance(node, (nodes.Macro, nodes.CallBlock)):
            prices["body"] = prices.get("body", 0) + sum(map(_price, node.defaults))
        super().generic_visit(node)
        for name, price in prices.items():
            paying = nodes.ExprStmt(_sandbox_call("pay", nodes.Const(price)))
            setattr(node, name, [paying, *getattr(node, name)])
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        node.body = node.body or [nodes.Output([])]  # so that it pays
        price = 0 if node.test is None else _price(node.test)
        self.generic_visit(node)
        if node.test is not None:
            node.test = _sandbox_call("tested", nodes.Const(price), node.test)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise TemplateError("it may not call with * or **")
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _sandbox_call("concat_texts", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _sandbox_call("checked", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _sandbox_call("checked", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _sandbox_call("checked", node)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _weighed(node.key)  # it is hashed
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _sandbox_call("checked", node)
        node.arg = _weighed(node.arg)
        return node


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _sandbox_call("weighed", node)


def _sandbox_call(method: str, *args: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(args), [], None, None)


def _blocks(node: nodes.Node) -> dict[str, list[nodes.Stmt]]:
    """The lists of statements in a node by the names of its fields; `elif_` is a list of branches,
    each with a block of its own."""
    return {
        name: value
        for name, value in node.iter_fields()
        if name != "elif_"
        and isinstance(value, list)
        and value
        and isinstance(value[0], nodes.Stmt)
    }


def _price(node: nodes.Node) -> int:
    """Steps for a statement or expression, without the blocks of statements in it."""
    if isinstance(node, nodes.TemplateData):
        return 1 + len(node.data) // SIZE_PER_STEP
    inner = {id(part) for block in _blocks(node).values() for part in block}
    parts = [part for part in node.iter_child_nodes() if id(part) not in inner]
    return 1 + sum(map(_price, parts))
