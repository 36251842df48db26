"""The paper's sections 4 and 6.5, and what goes beyond, over plain Python floats, one token at a time.

The rows of a text are its targets; logits are lists of floats.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

Logits = list[list[float]]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((value - top) / temperature) for value in row]
    return [value / sum(exps) for value in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def argmax(row: list[float]) -> int:
    return row.index(max(row))


def single(number: float) -> float:
    """As float32 has it."""
    return ctypes.c_float(number).value


@dataclass(frozen=True)
class Text:
    """One text of an item."""

    student: Logits
    old: Logits
    new: Logits
    gold: list[int]
    item: int = 0
    right: bool = True

    def likelihood(self, model: str) -> float:
        """Of all its targets together, in nats."""
        return sum(math.log(softmax(z)[y]) for z, y in zip(getattr(self, model), self.gold, strict=True))

    def trust(self, model: str) -> float:
        """Geometric mean of the targets' likelihoods."""
        product: float = math.prod(softmax(z)[y] for z, y in zip(getattr(self, model), self.gold, strict=True))
        return product ** (1 / len(self.gold))


def weights(name: str, texts: Sequence[Text], a: float = 0.5) -> list[float]:
    """Of every row of every text, how much the old teacher rules it."""
    found = []
    for text in texts:
        item = [other for other in texts if other.item == text.item and other.gold]
        found += [weight(name, text, i, item, a) for i in range(len(text.gold))]
    return found


def weight(name: str, text: Text, i: int, item: list[Text], a: float) -> float:
    """Of row i; with 1 and 0 the masks of table 7."""
    z_c, z_1, y = text.student[i], text.old[i], text.gold[i]
    match name:
        case "student_wrong":
            return float(argmax(z_c) != y)
        case "old_right":
            return float(argmax(z_1) == y)
        case "always_old":
            return 1.0
        case "token_likelihood":
            return float(softmax(z_c)[y] < softmax(z_1)[y])
        case "sequence_likelihood":
            return float(text.likelihood("student") < text.likelihood("old"))
        case "mixture":
            return a
        case "old_right_else_mixture":
            return 1.0 if text.right and argmax(z_1) == y else a
        case "old_right_item_else_mixture":
            return 1.0 if old_gets_right(item) else a
        case "likelier":
            old, new = a * text.trust("old"), (1 - a) * text.trust("new")
            return old / (old + new) if text.right else a
    raise KeyError(name)


def old_gets_right(item: list[Text]) -> bool:
    if len(item) == 1:
        (text,) = item
        return text.right and all(argmax(z) == y for z, y in zip(text.old, text.gold, strict=True))
    best = max(text.likelihood("old") for text in item)
    return any(text.right and text.likelihood("old") == best for text in item)


def emphases(name: str | None, texts: Sequence[Text], beta: float) -> list[float]:
    """Of every row of every text, how many times its distance from the teacher counts."""
    return [emphasis(name, text, i, beta) for text in texts for i in range(len(text.gold))]


def emphasis(name: str | None, text: Text, i: int, beta: float) -> float:
    z_c, z_1, y = text.student[i], text.old[i], text.gold[i]
    match name:
        case None:
            return 1.0
        case "focal":
            return 1 + beta if text.right and argmax(z_1) == y else 1.0
        case "constrained":
            return float(softmax(z_c)[y] < softmax(z_1)[y])
        case "old_likelihood":
            return text.trust("old")
    raise KeyError(name)


def mixed(w: float, old: list[float], new: list[float]) -> list[float]:
    """The logits of the log-linear mixture; weights are float32."""
    share, rest = single(w), single(1 - single(w))
    return [share * x + rest * y for x, y in zip(old, new, strict=True)]


def away(student: list[float], teacher: list[float], distance: str, temperature: float) -> tuple[float, list[float]]:
    """A token's distance from its teacher, and the gradient by the student's logits, by hand."""
    if distance == "divergence":
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        return kl(p, q), [(y - x) / temperature for x, y in zip(p, q, strict=True)]
    largest = sorted(range(len(teacher)), key=lambda v: -teacher[v])[:10]
    mean = sum(student[v] - teacher[v] for v in largest) / len(largest)
    centred = {v: student[v] - teacher[v] - mean for v in largest}
    value = sum(x * x for x in centred.values()) / len(largest) / 2
    return value, [centred.get(v, 0.0) / len(largest) for v in range(len(student))]


def choices(texts: Sequence[Text], teacher: Sequence[Logits], temperature: float) -> tuple[float, float, list[float]]:
    """Sums over items of KL(p || q) and of -log q[right], and q at T = 1 of each text.

    Args:
        texts: Texts without targets are no choices.
        teacher: By text, the logits that rule it.
        temperature: Of p and q in the divergence.
    """
    divergence = likelihood = 0.0
    q_of: dict[int, float] = {}
    for item in {text.item for text in texts if text.gold}:
        numbers = [k for k, text in enumerate(texts) if text.item == item and text.gold]
        ours = [texts[k].likelihood("student") for k in numbers]
        theirs = [Text([], teacher[k], [], texts[k].gold).likelihood("old") for k in numbers]
        divergence += kl(softmax(theirs, temperature), softmax(ours, temperature))
        for k, q in zip(numbers, softmax(ours), strict=True):
            q_of[k] = q
            likelihood -= math.log(q) if texts[k].right else 0.0
    return divergence, likelihood, [q_of.get(k, 0.0) for k in range(len(texts))]
