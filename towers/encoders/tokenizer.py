"""Tokenizers: trained on the corpus, or read from a local folder. Nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Algorithm = Literal["wordpiece", "bpe"]

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def train_tokenizer(
    texts: Sequence[str], algorithm: Algorithm, vocabulary: int, max_length: int
) -> "PreTrainedTokenizerFast":
    """Return a tokenizer trained on the texts; the same texts give the same tokenizer.

    It normalises by itself (NFKC, lower case), so that whoever loads it reads raw text.

    Args:
        texts: What to learn from.
        algorithm: `wordpiece` over words and single Chinese characters, or byte-level `bpe`, which knows no
            unknown token.
        vocabulary: Largest number of tokens.
        max_length: Recorded in the tokenizer, special tokens included.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds, and feature towers do not need it

    tokenizer = (_wordpiece if algorithm == "wordpiece" else _bpe)(texts, vocabulary)
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    special = {f"{name}_token": token for name, token in _SPECIAL.items()}
    build: Any = PreTrainedTokenizerFast  # untyped
    trained: PreTrainedTokenizerFast = build(
        tokenizer_object=tokenizer, model_max_length=max_length, **special
    )
    return trained


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of a local folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _wordpiece(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
            ),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # The trainer numbers the pieces "##a" in the order of a hash map that is different each time, and settles
    # ties by number. Named first, they are numbered in our order; the model is then built anew, because
    # what is named first also becomes special.
    first = [*_SPECIAL.values(), *_continuations(tokenizer, texts)]
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=max(vocabulary, len(first)), special_tokens=first, show_progress=False
        ),
    )
    settled = Tokenizer(models.WordPiece(vocab=tokenizer.get_vocab(), unk_token=_SPECIAL["unk"]))
    settled.normalizer, settled.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    settled.decoder = tokenizer.decoder
    return settled


def _continuations(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return "##" and each character that follows another one in a word, in the order of the characters."""
    inner: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            inner.update(word[1:])
    return [f"##{character}" for character in sorted(inner)]


def _bpe(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(_SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer
