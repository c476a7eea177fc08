"""The model's `python` tool: a calculator that reads an expression as a tree and walks a white list over it.

Nothing is ever evaluated by Python: the text is parsed to a syntax tree, and the few kinds of nodes named here are
computed. Whatever the model writes, the answer comes in bounded time and memory.
"""

import ast
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 1000  # of the expression
MAX_DEPTH = 100  # of the tree; a sum of 100 terms is 100 deep
MAX_BITS = 1024  # of a whole number: about 308 digits, the range that floats have too

Number = int | float

# What may stand outside string literals. Among other things this keeps names, keywords, hexadecimal and complex
# numbers, comments, line breaks and digits of other scripts away from the parser.
_STRING = re.compile(r"""("[^"\\\n]*"|'[^'\\\n]*')""")
_PLAIN = re.compile(r"(?:[0-9eE.+\-*/%(), ]|\.count)*")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


class _NotComputableError(Exception):
    pass


def calculate(expression: str) -> str | None:
    """Return the value of `expression` as Python prints it, or None where it can't be computed.

    Understood are decimal numbers (also with commas: `1,234.5`), `+ - * / // % **`, signs, parentheses and
    `"text".count("part")`. None is the answer to all else: division by zero, complex, infinite or huge results (whole
    numbers beyond 1024 bits), expressions longer than 1000 characters or nested deeper than 100 levels. Never raises.

    >>> calculate("37 * 24"), calculate("7 / 2"), calculate("'strawberry'.count('r')"), calculate("1 / 0")
    ('888', '3.5', '3', None)
    """
    if len(expression) > MAX_CHARACTERS:
        return None
    pieces = _STRING.split(expression.strip())
    if not all(_PLAIN.fullmatch(piece) for piece in pieces[::2]):  # the odd pieces are the string literals
        return None
    pieces[::2] = [_THOUSANDS.sub(lambda found: found[0].replace(",", ""), piece) for piece in pieces[::2]]
    try:
        tree = ast.parse("".join(pieces), mode="eval")
        return str(_value(tree.body, MAX_DEPTH))
    except (_NotComputableError, ArithmeticError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise _NotComputableError
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _value(operand, depth - 1)
            return -value if isinstance(sign, ast.USub) else +value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _bounded(_OPERATIONS[type(op)](_value(left, depth - 1), _value(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return text.count(part)
    raise _NotComputableError


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() <= MAX_BITS:
            return value
    elif isinstance(value, float) and abs(value) < float("inf"):  # complex and not-a-number fail here too
        return value
    raise _NotComputableError


def _power(base: Number, exponent: Number) -> Number:
    # |base| ≥ 2**(bits - 1), hence the power ≥ 2**((bits - 1)·exponent): refuse before the work is done, not after.
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise _NotComputableError
    return base**exponent


_OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
