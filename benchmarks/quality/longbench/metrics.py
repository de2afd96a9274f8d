"""LongBench's metrics; each compares one prediction with one answer and returns 0 to 1.

They equal those of github.com/THUDM/LongBench (``metrics.py``) exactly: ROUGE-L is the package
``rouge``, Chinese words are split by ``jieba``, and the edit similarity is rapidfuzz's ``ratio``
rounded to whole percents (``fuzzywuzzy`` gives the same numbers with python-Levenshtein; without
it, it falls back to difflib, whose numbers differ).
"""

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import jieba
from rapidfuzz import fuzz
from rouge import Rouge

jieba.setLogLevel(logging.WARNING)

Metric = Callable[[str, str, Sequence[str]], float]
"""Returns the score of a prediction, given an answer and the task's classes."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE_PUNCTUATION = str.maketrans(
    "",
    "",
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"  # noqa: RUF001
    + "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.",  # noqa: RUF001
)


def qa_f1(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return the F1 of words, without case, punctuation and articles (as for SQuAD)."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return the F1 of Chinese words, without punctuation."""
    return _f1(_chinese_words(prediction), _chinese_words(answer))


def rouge(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return ROUGE-L: the F1 of the union of longest common subsequences over sentences."""
    try:
        scores = _rouge().get_scores([prediction], [answer], avg=True)
    # Officially, empty texts and sentences too long for the package's recursion score 0.
    except (ValueError, RecursionError):
        return 0.0
    return float(scores["rouge-l"]["f"])


def rouge_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return ROUGE-L over Chinese words."""
    return rouge(" ".join(jieba.cut(prediction)), " ".join(jieba.cut(answer)), classes)


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 / (number of classes that the prediction names) if the right one is among them."""
    named = [name for name in classes if name in prediction]
    # A class whose name is part of the right one's is not counted. The official scorer removes
    # these from the list while it iterates over it, so it skips the class after a removed one.
    position = 0
    while position < len(named):
        if named[position] in answer and named[position] != answer:
            del named[position]
        position += 1
    return 1.0 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return the share of the prediction's numbers that name the paragraph ("Paragraph 3")."""
    paragraph = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    if paragraph is None:
        raise ValueError(f"answers: {answer!r} does not name a paragraph")
    return _share_of_numbers(prediction, paragraph[1])


def count(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return the share of the prediction's numbers that equal the answer."""
    return _share_of_numbers(prediction, answer)


def code(prediction: str, answer: str, _: Sequence[str]) -> float:
    """Return the edit similarity of the first line that is neither a comment nor Markdown."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not re.search("`|#|//", line)), "")
    return round(fuzz.ratio(line, answer)) / 100


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (qa_f1, qa_f1_zh, rouge, rouge_zh, classification, retrieval, count, code)
}


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _chinese_words(text: str) -> list[str]:
    words = ("".join(w.lower().translate(CHINESE_PUNCTUATION).split()) for w in jieba.cut(text))
    return [word for word in words if word]


def _f1(predicted: list[str], right: list[str]) -> float:
    same = (Counter(predicted) & Counter(right)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(right)
    return 2 * precision * recall / (precision + recall)


def _share_of_numbers(text: str, right: str) -> float:
    numbers = re.findall(r"\d+", text)
    return numbers.count(right) / len(numbers) if numbers else 0.0


@cache
def _rouge() -> Rouge:
    return Rouge(metrics=["rouge-l"])
