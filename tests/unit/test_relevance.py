"""What the reward model reads of how an answer fits its question."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_trainer.models import Exchange
from plaudit_trainer.relevance import RelevanceReader
from plaudit_trainer.reward_fit import Votes
from plaudit_trainer.reward_model import RewardModel
from tests.support.tiny_models import END, save_tiny_base, tiny_config

WORDS = 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_base(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.fixture(scope="module")
def reader(tokenizer: Any) -> RelevanceReader:
    """Words are as different as they can be."""
    return RelevanceReader(torch.eye(WORDS), tokenizer, has_encoder=False)


def template_ids(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def own_words(tokenizer: Any) -> list[int]:
    """Ids that the bare template does not use."""
    taken = {*template_ids(tokenizer), *tokenizer.all_special_ids}
    return [i for i in range(WORDS) if i not in taken]


def test_what_takes_up_the_question_scores_higher_than_what_does_not(reader: RelevanceReader, tokenizer: Any) -> None:
    words = own_words(tokenizer)
    asked, other = words[:3], words[10:16]
    faithful, drifting, astray = reader.read(
        [
            Exchange(tuple(asked), (*other[:2], *asked, *other[2:4], *asked)),
            Exchange(tuple(asked), (*asked, *other[:5])),
            Exchange(tuple(asked), tuple(other)),
        ]
    )
    first, second, least = slice(0, 3), slice(3, 6), slice(6, 9)
    assert (faithful > astray).all()
    assert (drifting[first] > astray[first]).all()
    torch.testing.assert_close(drifting[second], astray[second])
    torch.testing.assert_close(drifting[least], drifting[second])


def test_the_same_answer_reads_otherwise_after_another_question(reader: RelevanceReader, tokenizer: Any) -> None:
    words = own_words(tokenizer)
    answer = tuple(words[:4])
    own, other = reader.read([Exchange((words[0],), answer), Exchange((words[20],), answer)])
    assert own[0] > other[0]


def test_the_rarer_word_counts_more(reader: RelevanceReader, tokenizer: Any) -> None:
    words = own_words(tokenizer)
    frequent, rare, other = words[0], words[-1], words[10]
    a, b = reader.read([Exchange((frequent, rare), (rare, other)), Exchange((frequent, rare), (frequent, other))])
    assert a[0] > b[0] and a[1] > b[1]


def test_the_bare_template_weighs_nothing(reader: RelevanceReader, tokenizer: Any) -> None:
    words, template = own_words(tokenizer), template_ids(tokenizer)
    bare, dressed = reader.read(
        [
            Exchange((words[0],), (words[0], words[9])),
            Exchange((*template, words[0], *template), (words[0], words[9], END)),
        ]
    )
    torch.testing.assert_close(bare, dressed)


def test_where_there_is_nothing_to_compare_it_reads_zeros(reader: RelevanceReader, tokenizer: Any) -> None:
    word, template = own_words(tokenizer)[0], tuple(template_ids(tokenizer))
    features = reader.read([Exchange(template, (word,)), Exchange((word,), (END,))])
    assert not features.any()
    assert reader.read([]).shape == (0, reader.width)


def test_an_answer_of_one_word_has_two_equal_halves(reader: RelevanceReader, tokenizer: Any) -> None:
    word = own_words(tokenizer)[0]
    features = reader.read([Exchange((word,), (word, END))])[0]
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features[:3], features[3:6])


def test_a_model_without_a_chat_template_reads_the_bare_prompt(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_base(tmp_path / "base"))
    tokenizer.chat_template = None
    reader = RelevanceReader(torch.eye(WORDS), tokenizer, has_encoder=True)
    words = own_words_of(tokenizer)
    features = reader.read([Exchange((words[0], END), (words[0], words[5]))])
    assert features[0, 0] > 0.5


def own_words_of(tokenizer: Any) -> list[int]:
    return [i for i in range(WORDS) if i not in tokenizer.all_special_ids]


def test_votes_on_relevance_are_foretold_though_words_say_nothing(reader: RelevanceReader, tokenizer: Any) -> None:
    """Users like what answers the question; which words an answer has tells nothing of that."""
    words = own_words(tokenizer)[:12]
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Votes:
        exchanges, labels = [], []
        for row in range(count):
            order = [words[i] for i in torch.randperm(len(words), generator=generator).tolist()]
            asked, theme = order[:2], order[:2] if row % 2 else order[2:4]
            said = [order[4], *theme, order[5], *theme, order[6]]
            exchanges.append(Exchange(tuple(asked), tuple(said)))
            labels.append(float(row % 2))
        counts = torch.tensor([[float(e.response_ids.count(w)) for w in words] for e in exchanges])
        features = torch.cat([counts, reader.read(exchanges)], dim=1)
        none = torch.zeros(0, features.shape[1])
        return Votes(features, torch.tensor(labels), torch.ones(count), none, none, torch.zeros(0))

    config, votes, unseen = tiny_config(), draw(96), draw(200)
    with_it = RewardModel.fresh(votes.features_BF, config, reader).fitted(votes, config)
    right = ((with_it.logits(unseen.features_BF) > 0) == (unseen.label_B > 0.5)).float().mean()
    assert right > 0.95
    words_alone, words_unseen = _without(votes, len(words)), _without(unseen, len(words))
    without = RewardModel.fresh(words_alone.features_BF, config).fitted(words_alone, config)
    guessed = ((without.logits(words_unseen.features_BF) > 0) == (unseen.label_B > 0.5)).float().mean()
    assert guessed < 0.7


def _without(votes: Votes, width: int) -> Votes:
    none = torch.zeros(0, width)
    return Votes(votes.features_BF[:, :width], votes.label_B, votes.weight_B, none, none, votes.weight_P)
