"""The tiny model's tokenizer: byte-level BPE, so that any text can be encoded."""

from typing import Any

from refine_server.ttt.training import corpus

SPLIT = (
    # The prompt's own lines are one token each, so that a question's words are within the window of
    # the short convolutions when the answer begins.
    r"\n\nQuestion: |\nAnswer:"
    r"|\n+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
)


def train_tokenizer(seed: int, vocab_size: int, texts: int = 3000) -> Any:
    """Train on the corpus; return a transformers tokenizer. Token 0 ends a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[corpus.EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus.tokenizer_texts(seed, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=corpus.EOS, clean_up_tokenization_spaces=False
    )
