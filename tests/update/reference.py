"""The paper's sections 4 and 6.5 over plain Python floats, one token at a time, for one sequence.

A sequence is a list of logits per position, and the gold next token of each position, None where it does not count.
"""

import math

Logits = list[list[float]]
Gold = list[int | None]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((value - top) / temperature) for value in row]
    return [value / sum(exps) for value in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def argmax(row: list[float]) -> int:
    return row.index(max(row))


def masks(name: str, student: Logits, old: Logits, gold: Gold) -> list[int | None]:
    """m_i of table 7, None where the position does not count."""
    student_sum = sum(math.log(softmax(z)[y]) for z, y in zip(student, gold, strict=True) if y is not None)
    old_sum = sum(math.log(softmax(z)[y]) for z, y in zip(old, gold, strict=True) if y is not None)

    def mask(z_c: list[float], z_1: list[float], y: int) -> bool:
        match name:
            case "student_wrong":
                return argmax(z_c) != y
            case "old_right":
                return argmax(z_1) == y
            case "always_old":
                return True
            case "token_likelihood":
                return softmax(z_c)[y] < softmax(z_1)[y]
            case "sequence_likelihood":
                return student_sum < old_sum
        raise KeyError(name)

    rows = zip(student, old, gold, strict=True)
    return [None if y is None else int(mask(z_c, z_1, y)) for z_c, z_1, y in rows]
