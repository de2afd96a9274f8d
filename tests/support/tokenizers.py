"""Small tokenizers of the kinds that published models have, trained on a few sentences."""

import re
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = [
    "The keeper writes the weather into a blue book every evening at eight.\n\n",
    "Question: What is the harbour code?\nAnswer: amber",
    "What does room 12 hold, and who isn't there?\n\nQuestion: Who?\nAnswer: Ines.\n\n",
    "def f(x):\n    return x + 1\n\n\nprint(f(3.14))\n",
    "user\nThe log.\n\nWhat?\nassistant\n[INST] Who? [/INST]  two  spaces\t\t,,,...!!!???",
]


def _words(pattern: str) -> list[str]:
    return sorted({word for text in SENTENCES for word in re.findall(pattern, text.lower() + text)})


def _wrapped(backend: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **options
    )


def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2, SmolLM2 and Pythia have it."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE as Llama 3 and Qwen have it: punctuation takes the line breaks behind it."""
    return _byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|start|>", "<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 20, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return _wrapped(backend, bos_token="<|begin|>", eos_token="<|end|>")


def llama2_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE whose normalizer puts a space before every stretch of text."""
    backend = _sentencepiece_bpe()
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    return _wrapped(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE that puts a space before the first stretch of text alone."""
    backend = _sentencepiece_bpe()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrapped(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE without a space before the text, and runs of white space as tokens."""
    backend = _sentencepiece_bpe()
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    runs = ["\n" * n for n in (1, 2, 3, 4)] + [SPACE * n for n in (2, 3, 4)]
    backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
    return _wrapped(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _sentencepiece_bpe() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 20, trainer)
    # The bytes are tokens for characters that are not in the vocabulary, not control tokens.
    state = backend.model.__getstate__()
    model = models.BPE.__new__(models.BPE)
    model.__setstate__(state)
    plain = Tokenizer(model)
    plain.add_special_tokens(["<unk>", "<s>", "</s>"])
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", plain.token_to_id("<s>"))]
    )
    return plain


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece Unigram as T5 and XLM-R have it; ends a text with a token."""
    words = _words(r"[ \n]?[^ \n]+|\S\n")
    pieces = [word.replace(" ", SPACE) for word in words]
    # No two segmentations of a text have the same score: rounding would choose between them.
    scores = [(piece, -3.0 - 0.7 * len(piece) - n / 1e3) for n, piece in enumerate(pieces)]
    alphabet = [SPACE, *_words(r"\S|\n")]
    characters = [(character, -4.0 - n / 1e3) for n, character in enumerate(alphabet)]
    control = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    backend = Tokenizer(models.Unigram([*control, *characters, *scores], unk_id=0))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return _wrapped(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it: it drops white space and control characters."""
    characters = _words(r"\S")
    pieces = ["[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *_words(r"[^\W\d]{2,6}")])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _wrapped(backend, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make
    for make in (
        gpt2_like,
        llama3_like,
        llama2_like,
        mistral_like,
        gemma_like,
        unigram,
        word_piece,
    )
}
