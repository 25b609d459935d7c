# SPDX-License-Identifier: Apache-2.0
"""CIDEr-D (Vedantam et al., CVPR 2015, section 6), with the numbers of its published code: n-grams up to 4, sigma 6,
times 10. Words come from a Treebank tokenizer in place of Stanford's, which needs Java; punctuation is left out as
there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from nltk.tokenize import TreebankWordTokenizer

_LONGEST_NGRAM = 4
_SIGMA = 6.0
_PUNCTUATION = frozenset("'' ' `` ` ( ) { } . ? ! , : - -- ... ;".split())
_TOKENIZER = TreebankWordTokenizer()

Ngram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    return [word for word in _TOKENIZER.tokenize(text.lower()) if word not in _PUNCTUATION]


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    sizes = range(1, _LONGEST_NGRAM + 1)
    return Counter(tuple(words[at : at + size]) for size in sizes for at in range(len(words) - size + 1))


class _Vector:
    """The n-grams of a text, each weighed by how few of the rows have it; one vector for each length of n-gram."""

    def __init__(self, words: Sequence[str], num_rows_with: Counter[Ngram], num_rows: int) -> None:
        self.num_words = len(words)
        self.weights: list[dict[Ngram, float]] = [{} for _ in range(_LONGEST_NGRAM)]
        for ngram, count in _ngrams(words).items():
            rarity = math.log(num_rows) - math.log(max(1, num_rows_with[ngram]))
            self.weights[len(ngram) - 1][ngram] = count * rarity
        self.norms = [math.sqrt(sum(weight**2 for weight in weights.values())) for weights in self.weights]

    def similarity(self, reference: _Vector) -> float:
        """The mean over the lengths of n-gram. An n-gram counts no more often than the reference has it."""
        total = 0.0
        for own, its, own_norm, its_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            product = sum(min(weight, its[ngram]) * its[ngram] for ngram, weight in own.items() if ngram in its)
            total += product / (own_norm * its_norm) if own_norm and its_norm else 0.0
        difference = self.num_words - reference.num_words
        return total / _LONGEST_NGRAM * math.exp(-(difference**2) / (2 * _SIGMA**2))


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean over all rows. Requires: at least two rows, for one row alone has nothing rare in it."""
    reference_words = [[words_of(reference) for reference in of_row] for of_row in references]
    num_rows_with: Counter[Ngram] = Counter()
    for of_row in reference_words:
        num_rows_with.update({ngram for words in of_row for ngram in _ngrams(words)})
    total = 0.0
    for text, of_row in zip(texts, reference_words, strict=True):
        own = _Vector(words_of(text), num_rows_with, len(texts))
        scores = [own.similarity(_Vector(words, num_rows_with, len(texts))) for words in of_row]
        total += 10 * sum(scores) / len(scores)
    return total / len(texts)
