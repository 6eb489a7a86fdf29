"""Rewrites a parsed template so that running it goes through functions of ours where jinja offers no hook.

The functions are filters whose names no template can write (they begin with a space), because a filter is the one
thing that jinja compiles to a direct call with the rendering's context.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

STEP, COMPARE, CONCAT, SLICE, KEY = " step", " compare", " concat", " slice", " key"

# Other templates cannot be reached from a model file, and prompts are not HTML.
REFUSED: dict[type[nodes.Node], str] = {
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.ScopedEvalContextModifier: "autoescape",
}
BODIES = ("body", "else_")
# Ten times what the largest known templates have; compiling takes about 0.1 ms and 10 KB a node.
MAX_NODES = 15_000


def rewrite(template: nodes.Template) -> nodes.Template:
    """The template, changed in place: every list of statements begins by paying for itself."""
    if sum(1 for _ in template.find_all(nodes.Node)) > MAX_NODES:
        raise TemplateSyntaxError(f"it has more than {MAX_NODES} parts", template.lineno)
    _Rewriter().visit(template)
    return template


def _call(value: nodes.Expr, name: str, args: Sequence[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _constant(value: object, lineno: int) -> nodes.Const:
    return nodes.Const(value, lineno=lineno)


class _Rewriter(NodeTransformer):
    def generic_visit(self, node: nodes.Node, *args: object, **kwargs: object) -> nodes.Node:
        if name := REFUSED.get(type(node)):
            raise TemplateSyntaxError(f"the tag {name!r} has no use in a chat template", node.lineno)
        super().generic_visit(node)
        extra = getattr(node, "defaults", [])  # of a macro's arguments, evaluated at each call
        for field in BODIES:
            body = getattr(node, field, None)
            if body or (field == "body" and body is not None):
                body.insert(0, nodes.ExprStmt(_payment([*body, *extra], node.lineno), lineno=node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is not None:
            payment = _payment([node.test], node.lineno)
            self.generic_visit(node)
            node.test = nodes.And(payment, node.test, lineno=node.lineno)
            return node
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands = [part for op in node.ops for part in (_constant(op.op, node.lineno), op.expr)]
        return _call(node.expr, COMPARE, operands)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(node.nodes[0], CONCAT, node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return _call(node.node, SLICE, [bound or _constant(None, node.lineno) for bound in bounds])
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call(node.key, KEY, [])
        return node


def _payment(body: Sequence[nodes.Node], lineno: int) -> nodes.Filter:
    """What a list of statements costs by itself: its nodes, without nested lists, and its literal text."""
    steps, chars, todo = 1, 0, list(body)
    while todo:
        node = todo.pop()
        steps += 1
        chars += len(node.data) if isinstance(node, nodes.TemplateData) else 0
        todo.extend(node.iter_child_nodes(exclude=BODIES))
    return _call(_constant(steps, lineno), STEP, [_constant(chars, lineno)])
