"""The frozen model where it has an encoder beside its decoder (T5 and its kin): `models.Backbone` for that case.

Shapes as in models.py; S prompt positions. The layers count as one stack, the encoder's below the decoder's, so that
"the upper third" means the same as elsewhere. Where adapters change decoder layers only, which is so unless more than
half of the stack is adapted, the encoder's output is the trunk: computed once an answer, without a backward pass.

An exchange's response ids are what the decoder draws: the end-of-text token is among them, the start token that the
decoder is begun with is not. State t is what the decoder knew before it drew token t, as in a causal model.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plaudit_trainer.architecture import UnsupportedModel, read_layers
from plaudit_trainer.lora_linear import LoraLinear
from plaudit_trainer.models import Backbone, Encoded, Exchange

_STACK = re.compile(r"(?:^|\.)(encoder|decoder)\.\w+\.(\d+)\.")
_TOLERANCE = 1e-3
"""Largest difference (nats) between our log-probabilities and the model's own at start, float32."""


class Seq2SeqBackbone(Backbone):
    """A `Backbone` on a model with an encoder.

    Raises:
        UnsupportedModel: what this class makes of the model is not what the model itself says.
    """

    def _check_head(self) -> None:
        super()._check_head()
        config = self.model.config
        self.start_token = _start_token(self.model)
        # T5 shares its output matrix with the embeddings and makes up for their size here; v1.1 and Flan do not.
        scaled = getattr(config, "scale_decoder_outputs", False)
        self.head_scale = float(config.d_model**-0.5) if scaled else 1.0

    def _wrap(self, layers: nn.ModuleList) -> None:
        """Wrap the stack's linear layers from the cut upwards. `layers` is one of its halves."""
        encoder, decoder = layer_lists(self.model)
        self.encoder_depth, self.depth = len(encoder[1]), len(encoder[1]) + len(decoder[1])
        for index in range(self.cut, self.depth):
            upper = index >= self.encoder_depth
            path, found = decoder if upper else encoder
            place = index - self.encoder_depth if upper else index
            self._wrap_layer(f"{path}.{place}", found[place])

    def _wrap_layer(self, at: str, layer: nn.Module) -> None:
        for path, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent = layer.get_submodule(path.rpartition(".")[0])
                wrapped = LoraLinear(module, self.switch)
                setattr(parent, path.rpartition(".")[2], wrapped)
                self.linears[f"{at}.{path}"] = wrapped

    def _split(self) -> tuple[Any, Any]:
        """Encoder and decoder. Checked against the model's own forward pass, which may do more than we know of."""
        encoder, decoder = self.model.get_encoder(), self.model.get_decoder()
        self.middle, self.high = read_layers(self.depth - self.encoder_depth)
        self._lower, self._upper = encoder, decoder
        sample = Exchange((5, 6, 7), (8, 9, 10))
        with torch.no_grad():
            whole_TV = self.model(
                input_ids=torch.tensor([sample.prompt_ids], device=self.device),
                decoder_input_ids=torch.tensor([[self.start_token, *sample.response_ids]], device=self.device),
                use_cache=False,
            ).logits[0]
            states_TD = self.states(self.encode([sample]))
            ours_TV = nn.functional.linear(states_TD, self.unembedding_VD)
            gap = (whole_TV.float().log_softmax(-1) - ours_TV.float().log_softmax(-1)).abs().max().item()
        if gap > _TOLERANCE * (1 if whole_TV.dtype == torch.float32 else 100):
            raise UnsupportedModel(
                f"{self.model.config.model_type} computes its logits in a way that is not known here"
            )
        return encoder, decoder

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no adapter changes the encoder."""
        return self.cut >= self.encoder_depth

    def layers(self) -> nn.ModuleList:
        """The whole stack's layers, lowest first."""
        return nn.ModuleList([layer for _, half in layer_lists(self.model) for layer in half])

    @torch.no_grad()
    def encode(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """Run the base model over each exchange, once and for all."""
        encoded: dict[int, Encoded] = {}
        with self.using(None):
            for rows, _ in self.passes([len(e) for e in exchanges]):
                part = [exchanges[row] for row in rows]
                prompts_BSD, mask_BS = self._encoder_pass(part)
                layers = self._decoder_pass(part, prompts_BSD, mask_BS, output_hidden_states=True).hidden_states
                for place, row in enumerate(rows):
                    prompt_SD = prompts_BSD[place, : len(exchanges[row].prompt_ids)]
                    encoded[row] = self._with_features(exchanges[row], prompt_SD, [layer[place] for layer in layers])
        encoded = self.crew.gathered(encoded, self.device)
        return [encoded[row] for row in range(len(exchanges))]

    def _with_features(self, exchange: Exchange, prompt_SD: Tensor, layers: Sequence[Tensor]) -> Encoded:
        """What reward model and critic read: see `Encoded`. Position t + 1 of the decoder has just read token t."""
        end = len(exchange.response_ids) + 1
        response_TF = torch.cat([layers[0][1:end].float(), layers[self.middle][1:end].float()], dim=1)
        high_TD = layers[self.high][1:end].float()
        count_T = torch.arange(1, end, device=self.device)
        return Encoded(
            exchange=exchange,
            trunk_TD=prompt_SD.clone() if self.encoder_is_frozen else None,
            context_D=prompt_SD.float().mean(0),
            prefix_TF=response_TF.cumsum(0) / count_T[:, None],
            whole_E=torch.cat([high_TD[-1], high_TD.mean(0)]),
        )

    def states(self, batch: Sequence[Encoded]) -> Tensor:
        """Final hidden states (N, D), scaled for the output matrix: before each token, and after the last."""
        exchanges = [e.exchange for e in batch]
        if self.encoder_is_frozen:
            trunks = [e.trunk_TD for e in batch if e.trunk_TD is not None]
            prompts_BSD = nn.utils.rnn.pad_sequence(trunks, batch_first=True)
            mask_BS = self._mask(exchanges)
        else:
            prompts_BSD, mask_BS = self._encoder_pass(exchanges)
        hidden_BTD = self._decoder_pass(exchanges, prompts_BSD, mask_BS)[0] * self.head_scale
        kept = [hidden_TD[: len(e.response_ids) + 1] for hidden_TD, e in zip(hidden_BTD, exchanges, strict=True)]
        return torch.cat(kept)

    def _encoder_pass(self, exchanges: Sequence[Exchange]) -> tuple[Tensor, Tensor]:
        ids_BS, mask_BS = self._padded([e.prompt_ids for e in exchanges]), self._mask(exchanges)
        return self._lower(input_ids=ids_BS, attention_mask=mask_BS)[0], mask_BS

    def _decoder_pass(self, exchanges: Sequence[Exchange], prompts_BSD: Tensor, mask_BS: Tensor, **more: bool) -> Any:
        """The decoder over start token and answer. It is causal, so padding on the right is never seen."""
        ids_BT = self._padded([(self.start_token, *e.response_ids) for e in exchanges])
        return self._upper(
            input_ids=ids_BT,
            encoder_hidden_states=prompts_BSD,
            encoder_attention_mask=mask_BS,
            use_cache=False,
            **more,
        )

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids = [torch.tensor(row, device=self.device) for row in rows]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True)

    def _mask(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, S): 1 where there is prompt. Made from lengths, since padding may be a token of the vocabulary."""
        ones = [torch.ones(len(e.prompt_ids), dtype=torch.long, device=self.device) for e in exchanges]
        return nn.utils.rnn.pad_sequence(ones, batch_first=True)

    def peft_placement(self) -> dict[str, Any]:
        """Fields of adapter_config.json that say where the adapter sits. Encoder and decoder layers share their
        numbers, so modules are named in full."""
        return {
            "task_type": "SEQ_2_SEQ_LM",
            "target_modules": sorted(self.linears),
            "layers_to_transform": None,
            "layers_pattern": None,
        }


def layer_lists(model: Any) -> tuple[tuple[str, nn.ModuleList], tuple[str, nn.ModuleList]]:
    """(path, layers) of the encoder and of the decoder.

    Raises:
        UnsupportedModel: there is no list of layers named after either.
    """
    found: dict[str, tuple[str, nn.ModuleList]] = {}
    for path, module in model.named_modules():
        half = next((name for name in path.split(".") if name in ("encoder", "decoder")), None)
        if half is not None and isinstance(module, nn.ModuleList):
            found.setdefault(half, (path, module))  # the outermost comes first; a layer's own lists come later
    if len(found) != 2:
        raise UnsupportedModel(f"{type(model).__name__} has no encoder and decoder layers that can be told apart")
    return found["encoder"], found["decoder"]


def stack_depth(model: Any) -> int:
    """Layers of encoder and decoder together."""
    encoder, decoder = layer_lists(model)
    return len(encoder[1]) + len(decoder[1])


def lowest_adapted_layer(model: Any, weights: Mapping[str, Tensor]) -> int:
    """The lowest layer of the stack that an adapter changes."""
    offset = {"encoder": 0, "decoder": len(layer_lists(model)[0][1])}
    return min(offset[found[1]] + int(found[2]) for name in weights if (found := _STACK.search(name)))


def _start_token(model: Any) -> int:
    for source in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(found := getattr(source, name, None), int):
                return found
    raise UnsupportedModel(f"{model.config.model_type} names no decoder_start_token_id: put one into its config.json")
