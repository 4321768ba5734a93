"""The mistakes that tests/mutants.py makes in a source: in its syntax tree."""

import ast
import collections

OPERATORS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv), (ast.Mod, ast.Mult)),
)
OTHER = {b: a for a, b in OPERATORS} | dict(OPERATORS)
OTHER_NAME = {"any": "all", "all": "any", "min": "max", "max": "min"}


def mutants(source):
    """Yields each mutant of a source: its name, the lines that it changes, and what :func:`tree` needs."""
    seen = collections.Counter()
    for i, (where, node) in enumerate(_places(ast.parse(source))):
        for j, (_, what) in enumerate(_variants(node)):
            seen[where, what] += 1
            again = f" ({seen[where, what]})" if seen[where, what] > 1 else ""
            read = getattr(node, "iter", getattr(node, "test", node))  # a loop's or a condition's first line
            yield f"{where or 'module'}: {what}{again}", range(read.lineno, read.end_lineno + 1), (i, j)


def tree(source, mutant):
    """Returns the tree of a source with the mutant in it."""
    whole = ast.parse(source)
    i, j = mutant
    old = [node for _, node in _places(whole)][i]
    new = [node for node, _ in _variants(old)][j]
    for node in ast.walk(whole):
        for field, value in ast.iter_fields(node):
            if value is old:
                setattr(node, field, new)
            elif isinstance(value, list):
                value[:] = [new if item is old else item for item in value]
    return ast.fix_missing_locations(ast.copy_location(new, old) and whole)


def _places(node, where=""):
    """Yields the nodes that may be changed, each with its function: no messages and no types."""
    yield where, node
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = f"{where}.{node.name}".lstrip(".")
    for field, value in () if isinstance(node, (ast.Raise, ast.JoinedStr)) else ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in ("annotation", "returns", "decorator_list"):
                yield from _places(child, where)


def _variants(node):
    """Yields what may stand in the place of a node, and what to call that."""
    others = []
    match node:
        case ast.BoolOp(values=values):
            rests = [values[:i] + values[i + 1 :] for i in range(len(values))]
            others = [ast.BoolOp(node.op, rest) if rest[1:] else rest[0] for rest in rests]
        case ast.Tuple(elts=[_, _, *_], ctx=ast.Load()) if (
            len({type(e) for e in node.elts}) == 1
        ):  # alternatives
            others = [ast.Tuple(elts, node.ctx) for elts in _without_one(node.elts)]
        case ast.Call(keywords=keywords) if keywords:
            others = [ast.Call(node.func, node.args, rest) for rest in _without_one(keywords)]
        case ast.Dict():
            others = list(map(ast.Dict, _without_one(node.keys), _without_one(node.values)))
        case ast.Compare(ops=[op]):
            others = [ast.Compare(node.left, [OTHER[type(op)]()], node.comparators)]
        case ast.BinOp() if type(node.op) in OTHER:
            others = [ast.BinOp(node.left, OTHER[type(node.op)](), node.right)]
        case ast.UnaryOp():
            others = [node.operand]
        case ast.Constant(value=bool()):
            others = [ast.Constant(not node.value)]
        case ast.Constant(value=int()):
            others = [ast.Constant(node.value + 1)]
        case ast.Name() if node.id in OTHER_NAME:
            others = [ast.Name(OTHER_NAME[node.id], node.ctx)]
        case ast.IfExp():
            others = [node.body, node.orelse]
        case ast.If() | ast.While() if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            others = [type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)]
        case ast.comprehension(ifs=[_, *_]):
            others = [ast.comprehension(node.target, node.iter, [], node.is_async)]
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Expr(value=ast.Call()):
            others = [ast.Pass()]
        case ast.Raise() | ast.Break() | ast.Continue() | ast.AugAssign():
            others = [ast.Pass()]
    for other in others:
        yield other, _described(*(ast.unparse(n).strip().partition("\n")[0] for n in (node, other)))


def _without_one(items):
    return [items[:i] + items[i + 1 :] for i in range(len(items))]


def _described(old, new):
    """Returns both texts; of long ones what is different, with a little before."""
    same = 0
    while len(old) > 80 and old[same:][:1] == new[same:][:1]:
        same += 1
    start = max(0, same - 30)
    return f"{old[start:][:80]} -> {new[start:][:80]}"
