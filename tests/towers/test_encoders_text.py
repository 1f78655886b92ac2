import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from features.errors import ConfigError
from towers.encoders.encoder import Side
from towers.encoders.pooling import pool
from towers.encoders.text import Architecture, TextEncoder, TextTowerConfig, start_transformer
from towers.encoders.tokenizer import train_tokenizer

TEXTS = ["red shoe", "a shirt of blue cotton with long sleeves and a collar", "", "手机 😀", "x"]
QUERIES = pd.DataFrame({"query_text": TEXTS})
SMALL = Architecture(layers=2, hidden=16, intermediate=32, vocabulary=300)


def build(*, dimension: int = 8, unit: bool = True, side: Side = Side.QUERY, **config: object) -> TextEncoder:
    torch.manual_seed(0)
    settings = TextTowerConfig.model_validate({"architecture": SMALL, "max_length": 16, **config})
    return TextEncoder(settings, dimension, side, *start_transformer(settings, TEXTS), unit).eval()


@torch.no_grad()
def encode(encoder: TextEncoder, frame: pd.DataFrame) -> torch.Tensor:
    return encoder(encoder.prepare(frame))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_equals_a_loop_over_the_tokens_that_are_no_padding(pooling):
    hidden_NLH = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) - 3
    lengths = [5, 1, 3]
    mask_NL = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    for row, length in enumerate(lengths):
        tokens = hidden_NLH[row, :length]
        naive = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0).values}[pooling]
        torch.testing.assert_close(pool(hidden_NLH, mask_NL, pooling)[row], naive)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_a_vector_does_not_depend_on_its_batch_mates(pooling, tokenizer):
    encoder = build(pooling=pooling, architecture=SMALL.model_copy(update={"tokenizer": tokenizer}))
    together = encode(encoder, QUERIES)
    for row in range(len(TEXTS)):
        torch.testing.assert_close(
            encode(encoder, QUERIES.iloc[[row]])[0], together[row], atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_the_saved_folder_loads_with_sentence_transformers_and_gives_the_same_vectors(
    pooling, unit, prefix, tmp_path
):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = build(pooling=pooling, unit=unit, prefix=prefix)
    encoder.save(tmp_path)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    ours = encode(encoder, QUERIES)
    ours = torch.nn.functional.normalize(ours, dim=1) if unit else ours
    torch.testing.assert_close(theirs.encode(TEXTS, convert_to_tensor=True), ours, atol=1e-5, rtol=1e-5)
    assert theirs.similarity_fn_name == ("cosine" if unit else "dot")


def test_a_folder_without_projector_loads_with_sentence_transformers(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = build(projector=False, dimension=16, unit=False)
    encoder.save(tmp_path)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    torch.testing.assert_close(
        theirs.encode(TEXTS, convert_to_tensor=True), encode(encoder, QUERIES), atol=1e-5, rtol=1e-5
    )
    assert not (tmp_path / "2_Dense").exists()


def test_a_loaded_tower_gives_bit_identical_vectors_and_is_in_evaluation_mode(tmp_path):
    encoder = build(prefix="query: ")
    encoder.save(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(encode(loaded, QUERIES), encode(encoder, QUERIES))


def test_a_tower_starts_from_a_local_model_folder(tmp_path):
    first = build()
    first.save(tmp_path)
    second = build(path=tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True)
    )


def test_a_path_that_is_no_model_is_refused_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(ConfigError, match=r"not a model folder \(no config.json\); nothing is downloaded"):
        build(path=tmp_path / "bert-base-uncased")


def test_a_model_whose_weights_are_not_safetensors_is_refused(tmp_path):
    build().save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        build(path=tmp_path)
    assert "\n" not in str(error.value)


def test_documents_are_read_by_the_text_template():
    encoder = build(side=Side.DOCUMENT)
    frame = pd.DataFrame({"title": ["red shoe", None], "text": [None, "red shoe"]})
    prepared = encoder.prepare(frame).ragged["tokens"]
    assert torch.equal(prepared.take(torch.tensor([0])).values, prepared.take(torch.tensor([1])).values)
    assert len(prepared.take(torch.tensor([0])).values) > 2


@pytest.mark.timeout(20)
def test_a_text_of_a_megabyte_is_cut_to_the_longest_length():
    encoder = build()
    prepared = encoder.prepare(
        pd.DataFrame({"query_text": ["red " * 250_000, "x" * 1_000_000, "手" * 300_000]})
    )
    assert prepared.ragged["tokens"].lengths.tolist() == [16, 3, 16]


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_the_same_texts_train_the_same_tokenizer(algorithm):
    texts = [f"word{i % 37} other{i % 11} 手机" for i in range(500)]
    trained = {train_tokenizer(texts, algorithm, 300, 16).backend_tokenizer.to_str() for _ in range(5)}
    assert len(trained) == 1


def test_pieces_of_words_are_no_special_tokens():
    tokenizer = train_tokenizer(TEXTS, "wordpiece", 300, 16)
    assert sorted(tokenizer.all_special_tokens) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]
    assert tokenizer.tokenize("##o")[:2] == ["[UNK]", "[UNK]"]


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_tokenizers_know_chinese_and_fold_case(algorithm):
    tokenizer = train_tokenizer(TEXTS, algorithm, 400, 16)
    assert tokenizer("RED Shoe")["input_ids"] == tokenizer("red shoe")["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer("手机")["input_ids"]


def test_no_texts_give_no_vectors():
    assert encode(build(), QUERIES.iloc[:0]).shape == (0, 8)


def test_dropout_is_active_in_training_only():
    encoder = build()
    features = encoder.prepare(QUERIES)
    assert torch.equal(encoder(features), encoder(features))
    encoder.train()
    assert not torch.equal(encoder(features), encoder(features))


def test_a_dimension_that_the_transformer_does_not_have_needs_a_projector():
    with pytest.raises(ConfigError, match="size 16 is not dimension 8; set projector: true"):
        build(projector=False)


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValidationError, match="hidden 10 is not a multiple of heads 3"):
        Architecture(hidden=10, heads=3)
