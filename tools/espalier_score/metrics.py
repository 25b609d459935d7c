# SPDX-License-Identifier: Apache-2.0
"""The text metrics by name. Packages load when their metric is asked for."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from .references import References

Texts = Sequence[str]
TextReferences = Sequence[Sequence[str]]


class Unavailable(Exception):
    """The metric cannot be computed here; the text says why."""


def squad_words(text: str) -> list[str]:
    """Lower case, without punctuation and articles: as SQuAD's published code makes answers alike."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _exact_match(text: str, reference: str) -> float:
    return float(squad_words(text) == squad_words(reference))


def _token_f1(text: str, reference: str) -> float:
    own, its = squad_words(text), squad_words(reference)
    if not own or not its:
        return float(own == its)
    shared = sum((Counter(own) & Counter(its)).values())
    return 2 * shared / (len(own) + len(its))


def _mean_of_best(score: Callable[[str, str], float]) -> Callable[[Texts, TextReferences], float]:
    def mean(texts: Texts, references: TextReferences) -> float:
        best = [max(score(text, one) for one in of_row) for text, of_row in zip(texts, references, strict=True)]
        return sum(best) / len(best)

    return mean


def _bleu(texts: Texts, references: TextReferences) -> float:
    import sacrebleu

    most = max(len(of_row) for of_row in references)
    streams = [[of_row[at] if at < len(of_row) else None for of_row in references] for at in range(most)]
    return sacrebleu.corpus_bleu(list(texts), streams).score


def _rouge_l(texts: Texts, references: TextReferences) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return _mean_of_best(lambda text, reference: scorer.score(reference, text)["rougeL"].fmeasure)(texts, references)


def _nist(texts: Texts, references: TextReferences) -> float:
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    split = Tokenizer13a()
    words = [split(text).split() for text in texts]
    reference_words = [[split(reference).split() for reference in of_row] for of_row in references]
    longest = max(len(of_row) for of_row in words)
    if longest == 0 or not any(of_one for of_row in reference_words for of_one in of_row):
        return 0.0
    # The package divides by the n-grams there are: longer ones than any text has would add 0.
    return float(corpus_nist(reference_words, words, min(5, longest)))


def _cider(texts: Texts, references: TextReferences) -> float:
    from .cider import cider

    if len(texts) < 2:
        raise Unavailable("needs two rows or more: it weighs words by how few rows have them")
    return cider(texts, references)


def _meteor(texts: Texts, references: TextReferences) -> float:
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    from .cider import words_of

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise Unavailable("needs the word list wordnet: python -m nltk.downloader wordnet") from None
    scores = [
        meteor_score([words_of(reference) for reference in of_row], words_of(text))
        for text, of_row in zip(texts, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


def _vqa(texts: Texts, references: TextReferences) -> float:
    from .vqa import vqa_accuracy

    return sum(vqa_accuracy(text, of_row) for text, of_row in zip(texts, references, strict=True)) / len(texts)


METRICS: dict[str, Callable[[Texts, TextReferences], float]] = {
    "exact_match": _mean_of_best(_exact_match),
    "token_f1": _mean_of_best(_token_f1),
    "bleu": _bleu,
    "rouge_l": _rouge_l,
    "nist": _nist,
    "cider": _cider,
    "meteor": _meteor,
    "vqa_accuracy": _vqa,
}


def usual_metrics(references: References) -> list[str]:
    """Those that say something about these references."""
    if references.class_texts:
        return []
    if references.is_vqa:
        return ["vqa_accuracy"]
    return [name for name in METRICS if name != "vqa_accuracy"]
