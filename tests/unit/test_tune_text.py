"""Exactly the response carries loss: its tokens and the end token, no prompt, no padding. Token by token."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_trainer.tune.data import BadData, Example
from plaudit_trainer.tune.evaluate import response_nats
from plaudit_trainer.tune.text import Language, Row, encode_all, read_language
from plaudit_trainer.tune.train import Lesson, Recipe, load_model, seq2seq_trainer, sft_trainer
from tests.support.tiny_models import END, save_tiny_base, tiny_config, tiny_gpt2
from tests.support.tiny_seq2seq import END as T5_END
from tests.support.tiny_seq2seq import save_tiny_t5

SHORT = Example((("user", "ab"),), "yes", "ab", False, "d:1")
LONG = Example((("user", "a much longer prompt"),), "no no no", "x", False, "d:2")
IGNORED = -100


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


def lesson(folder: Path, language: Language, rows: list[Row], scratch: Path) -> Lesson:
    recipe = Recipe(
        kind="full", epochs=1, lr=1e-3, batch=len(rows), rank=4, seed=0, checkpointing=False, scratch=scratch
    )
    return Lesson(folder, rows, language, recipe, tiny_config(), lambda step, figures: None)


def collated(trainer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of the one batch that the trainer will see."""
    batch = next(iter(trainer.get_train_dataloader()))
    return batch["input_ids"], batch["attention_mask"], batch["labels"]


def texts(language: Language, ids: torch.Tensor) -> list[str]:
    return language.tokenizer.convert_ids_to_tokens(ids.tolist())


def test_the_padding_token_is_the_end_token_as_in_the_bundled_model(base: Path) -> None:
    language = read_language(base)
    assert language.tokenizer.pad_token_id == language.ends[0] == END


def test_prompt_and_response_are_the_templates_and_the_end_token(base: Path) -> None:
    row = read_language(base).encode(SHORT)
    tokenizer = read_language(base).tokenizer
    assert tokenizer.convert_ids_to_tokens(list(row.prompt_ids)) == ["a", "b", ":"]
    assert tokenizer.convert_ids_to_tokens(list(row.response_ids)) == ["y", "e", "s", "</s>"]


def test_trl_learns_the_response_with_its_end_and_nothing_else(base: Path, tmp_path: Path) -> None:
    language = read_language(base)
    rows, _ = encode_all([SHORT, LONG], language, 100)
    trainer = sft_trainer(
        load_model(base, language, tiny_config(), torch.float32), lesson(base, language, rows, tmp_path)
    )
    ids_BT, mask_BT, labels_BT = collated(trainer)
    by_prompt = {int(mask.sum()): (ids, labels) for ids, mask, labels in zip(ids_BT, mask_BT, labels_BT, strict=True)}
    for row in rows:
        ids, labels = by_prompt[len(row)]
        learnt = labels != IGNORED
        assert learnt.tolist() == [False] * len(row.prompt_ids) + [True] * len(row.response_ids) + [False] * (
            len(ids) - len(row)
        )
        assert texts(language, ids[learnt]) == [*row.example.response, "</s>"]
        assert torch.equal(labels[learnt], ids[learnt])
        assert set(ids[len(row) :].tolist()) <= {END}  # the padding looks like the end token, and carries no loss


def test_trls_loss_is_the_mean_of_our_nats(base: Path, tmp_path: Path) -> None:
    """An independent sum: −Σ log P(y_i | x_i, I_i) over response tokens, as the evaluation computes it."""
    language = read_language(base)
    rows, _ = encode_all([SHORT, LONG], language, 100)
    model = load_model(base, language, tiny_config(), torch.float32)
    trainer = sft_trainer(model, lesson(base, language, rows, tmp_path))
    ids_BT, mask_BT, labels_BT = collated(trainer)
    with torch.no_grad():
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        loss = trainer.compute_loss(trainer.model, inputs)
    tokens = sum(len(row.response_ids) for row in rows)
    assert loss.item() == pytest.approx(sum(response_nats(model, rows, language)) / tokens, rel=1e-5)


def test_an_encoder_reads_the_prompt_and_the_decoder_learns_all_it_writes(t5: Path, tmp_path: Path) -> None:
    language = read_language(t5)
    assert language.is_seq2seq
    rows, _ = encode_all([SHORT, LONG], language, 100)
    model = load_model(t5, language, tiny_config(), torch.float32)
    trainer = seq2seq_trainer(model, lesson(t5, language, rows, tmp_path))
    ids_BT, mask_BT, labels_BT = collated(trainer)
    for ids, mask, labels in zip(ids_BT, mask_BT, labels_BT, strict=True):
        row = next(r for r in rows if len(r.prompt_ids) == int(mask.sum()))
        assert texts(language, ids[mask.bool()]) == [*row.example.messages[0][1], "</s>"]
        assert texts(language, labels[labels != IGNORED]) == [*row.example.response, "</s>"]
        assert row.response_ids[-1] == T5_END
    with torch.no_grad():
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        loss = trainer.compute_loss(trainer.model, inputs)
    tokens = sum(len(row.response_ids) for row in rows)
    assert loss.item() == pytest.approx(sum(response_nats(model, rows, language)) / tokens, rel=1e-5)


def test_nats_do_not_depend_on_who_shares_the_batch(base: Path) -> None:
    language = read_language(base)
    rows, _ = encode_all([SHORT, LONG], language, 100)
    model = load_model(base, language, tiny_config(), torch.float32)
    alone = [response_nats(model, [row], language)[0] for row in rows]
    assert response_nats(model, rows, language) == pytest.approx(alone, rel=1e-5)


def test_long_rows_are_left_out_not_cut(base: Path) -> None:
    language = read_language(base)
    length = len(language.encode(LONG))
    assert encode_all([SHORT, LONG], language, length)[1] == [0, 1]
    rows, places = encode_all([LONG, SHORT], language, length - 1)
    assert (places, [row.example for row in rows]) == ([1], [SHORT])


def test_a_models_positions_limit_the_length(base: Path) -> None:
    language = read_language(base)
    endless = Example((("user", "a" * 300),), "b", "a", False, "d:1")
    assert language.limit == 256
    assert encode_all([endless], language, 1000) == ([], [])


def test_a_causal_model_without_template_gets_a_plain_one(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path, tiny_gpt2())
    (tmp_path / "chat_template.jinja").unlink()
    language = read_language(base)
    assert not language.has_own_template
    rendered = language.tokenizer.apply_chat_template(SHORT.as_messages(), add_generation_prompt=True, tokenize=False)
    assert rendered == "### user\nab\n\n### assistant\n"
    assert language.encode(SHORT).prompt_ids == tuple(language.tokenizer(rendered)["input_ids"])


def test_a_template_that_refuses_is_told_with_the_row(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    ruled = Example((("system", "be kind"), ("user", "a")), "b", "a", False, "d.jsonl:7")
    with pytest.raises(BadData, match=r"d\.jsonl:7: .* refuses this conversation: no system here"):
        read_language(base).encode(ruled)


def test_the_end_that_is_learnt_is_the_templates(tmp_path: Path) -> None:
    """Llama 3 names three end tokens, and its template writes the third behind an answer."""
    base = save_tiny_base(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert read_language(base).ends == (2, 1)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8"
    )
    assert read_language(base).ends == (1, 2)


def test_a_folder_without_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    with pytest.raises(BadData, match=r"--base .*: no tokenizer there"):
        read_language(tmp_path)


def test_a_folder_of_an_unknown_model_is_a_clear_error(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}', encoding="utf-8")
    with pytest.raises(BadData, match=r"--base .*cannot be read"):
        read_language(base)
