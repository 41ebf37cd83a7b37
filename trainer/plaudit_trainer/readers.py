"""What reads answers for the reward model beside the policy's own backbone.

Shapes: B answers, T positions, D hidden, E features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit_trainer.architecture import UnsupportedModel
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import Backbone, Exchange
from plaudit_trainer.precision import pick_device
from plaudit_trainer.relevance import RelevanceReader
from plaudit_trainer.reward_model import Reader

_TOKENS_A_PASS = 4096
_LONGEST = 512


def reader_for(backbone: Backbone, tokenizer: Any, config: TrainerConfig) -> Reader | None:
    """What is configured; None where the backbone reads alone."""
    readers: list[Reader] = []
    if config.reward_relevance:
        has_encoder = backbone.model.config.is_encoder_decoder
        words_VD = backbone.model.get_input_embeddings().weight
        readers.append(RelevanceReader(words_VD, tokenizer, has_encoder=has_encoder))
    if config.reward_encoder is not None:
        readers.append(EncoderReader.load(config.reward_encoder, tokenizer, config))
    return Readers(readers) if readers else None


class Readers:
    """Several readers as one: their features side by side."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self.name = " + ".join(reader.name for reader in readers)
        self.width = sum(reader.width for reader in readers)
        self.weight_E = torch.cat([reader.weight_E for reader in readers])

    def read(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, E), on the CPU."""
        return torch.cat([reader.read(exchanges) for reader in self._readers], dim=1)


class EncoderReader:
    """A frozen encoder (BERT class): mean of its last layer, its first token's state, and its own scores if it has any.

    Prompt and answer go in as a pair of texts, cut to what the encoder takes, from the left: the end of an answer, and
    the question just before it, say most.

    Args:
        model: an encoder, with or without a classification head.
        own: the encoder's tokenizer.
        policys: the policy's tokenizer, which the ids are of.
    """

    def __init__(self, name: str, model: Any, own: Any, policys: Any) -> None:
        self.name = f"encoder {name}"
        self._model = model.eval().requires_grad_(False)
        self._own, self._policys = own, policys
        self._own.truncation_side = "left"
        if self._own.pad_token is None:  # what stands there does not matter: the mask hides it
            self._own.pad_token = self._own.sep_token or self._own.eos_token or self._own.unk_token
        self._length = min(_LONGEST, getattr(model.config, "max_position_embeddings", _LONGEST), own.model_max_length)
        self._has_scores = "SequenceClassification" in type(model).__name__
        self.width = 2 * model.config.hidden_size + (model.config.num_labels if self._has_scores else 0)
        self.weight_E = torch.full((self.width,), self.width**-0.5)

    @classmethod
    def load(cls, place: str, policys: Any, config: TrainerConfig) -> "EncoderReader":
        """From a folder or the hub.

        Raises:
            UnsupportedModel: it is no encoder.
        """
        from transformers import (
            MODEL_FOR_MASKED_LM_MAPPING,
            AutoConfig,
            AutoModel,
            AutoModelForSequenceClassification,
            AutoTokenizer,
        )

        shape = AutoConfig.from_pretrained(place)
        # What can fill in a masked word sees an answer whole; nothing in a configuration says so more plainly.
        if type(shape) not in MODEL_FOR_MASKED_LM_MAPPING or shape.is_encoder_decoder:
            raise UnsupportedModel(
                f"reward_encoder {place} is a {shape.model_type}, no encoder: give a BERT-class model or leave it unset"
            )
        scores = any("SequenceClassification" in name for name in shape.architectures or [])
        model = (AutoModelForSequenceClassification if scores else AutoModel).from_pretrained(place)
        return cls(place, model.to(pick_device(config)), AutoTokenizer.from_pretrained(place), policys)

    @torch.no_grad()
    def read(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, E), on the CPU."""
        found: dict[int, Tensor] = {}
        lengths = [len(e) for e in exchanges]
        order = sorted(range(len(exchanges)), key=lambda row: lengths[row])
        while order:
            widest = min(lengths[order[-1]], self._length)
            rows = [order.pop() for _ in range(min(len(order), max(1, _TOKENS_A_PASS // max(widest, 1))))]
            found.update(zip(rows, self._pass([exchanges[row] for row in rows]), strict=True))
        return torch.stack([found[row] for row in range(len(exchanges))]) if found else torch.zeros(0, self.width)

    def _pass(self, exchanges: Sequence[Exchange]) -> Tensor:
        prompts = [self._policys.decode(e.prompt_ids, skip_special_tokens=True) for e in exchanges]
        answers = [self._policys.decode(e.response_ids, skip_special_tokens=True) for e in exchanges]
        inputs = self._own(
            prompts, answers, truncation="longest_first", max_length=self._length, padding=True, return_tensors="pt"
        ).to(self._model.device)
        outputs = self._model(**inputs, output_hidden_states=True)
        last_BTD, mask_BT = outputs.hidden_states[-1].float(), inputs["attention_mask"].float()
        mean_BD = (last_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
        parts = [mean_BD, last_BTD[:, 0]]
        if self._has_scores:
            parts.append(outputs.logits.float())
        return torch.cat(parts, dim=1).cpu()
