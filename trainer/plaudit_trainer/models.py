"""One frozen causal model in memory: policies are LoRA adapters on it, rewards and values are read off it.

Shapes: B answers, T positions of prompt and answer, N response positions laid end to end (no padding), D hidden, V
vocabulary, R rank, F features. Of every answer the states at the last prompt token and at each response token are
kept: state t is what the model knew before it drew response token t, the last what it knows of the whole answer.

The trunk, the layers below the lowest adapted one, gives the same activations whichever adapter is active. It is
computed once an answer and needs no backward pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plaudit_trainer import shared_prefix, short_attention
from plaudit_trainer.architecture import (
    UnsupportedModel,
    find_layers,
    has_windows,
    is_plain_stack,
    read_layers,
    with_layers,
)
from plaudit_trainer.distributed import ALONE, Crew, recast
from plaudit_trainer.lora_linear import LoraLinear, Switch
from plaudit_trainer.token_logprobs import TokenLogprobs, token_kls

POLICY, REFERENCE = "policy", "reference"
_DENSE_TOKENS = 512
"""A pass of so many tokens keeps the processor busy, so that from there on a new pass is better than more padding."""
_PADDING = 0.1
"""Share of a pass that may be padding once it is that large."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and an answer to it, as token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An exchange with what the frozen base model makes of it; no adapter changes any of this.

    Args:
        trunk_TD: activations that enter the lowest adapted layer; None where this architecture cannot be cut.
        context_D: the prompt, averaged at the middle layer.
        prefix_TF: row t is the mean over response tokens 0…t of [word embedding, middle layer]: what reward model
            and critic read. Measured on 48 to 192 votes it tells tastes apart far better than the last token's
            final state (docs/explanation/experiments.md).
        whole_E: of the whole answer, two thirds up: [the state at its last token, the mean over its tokens]. What the
            reward model reads besides: people's preferences show there.
    """

    exchange: Exchange
    trunk_TD: Tensor | None
    context_D: Tensor
    prefix_TF: Tensor
    whole_E: Tensor

    def to(self, device: torch.device | str) -> "Encoded":
        """The same on another device."""
        trunk_TD = None if self.trunk_TD is None else self.trunk_TD.to(device)
        rest = (tensor.to(device) for tensor in (self.context_D, self.prefix_TF, self.whole_E))
        return Encoded(self.exchange, trunk_TD, *rest)


class Backbone:
    """The frozen model, its adapters, and the passes over it.

    Args:
        model: a Hugging Face causal model; it is frozen, put in evaluation mode (no dropout) and its linear layers
            from layer `cut` upwards are wrapped.
        cut: lowest layer that adapters may change.
        token_budget: padded positions that one pass may hold.
        crew: the processes that share the passes, each of which holds this model.

    Raises:
        UnsupportedModel: the model's head is not a plain linear map, or no layers were found.
    """

    def __init__(self, model: Any, cut: int, token_budget: int = 4096, crew: Crew = ALONE) -> None:
        self.model = model.eval().requires_grad_(False)
        self.device: torch.device = model.device
        self.token_budget = token_budget
        self.crew = crew
        self.switch = Switch()
        self._check_head()
        short_attention.install(model)
        self.layers_path, layers = find_layers(model)
        self.depth = len(layers)
        self.transposed = False
        self.cut = cut
        self.linears: dict[str, LoraLinear] = {}
        self._wrap(layers)
        self.middle, self.high = read_layers(self.depth)
        self._lower, self._upper = self._split()
        # Processes that share a model must all make the same passes over it.
        self.shares_prefixes = self._upper is not None and crew.size == 1 and not has_windows(model.config)

    def _check_head(self) -> None:
        config, head = self.model.config, self.model.get_output_embeddings()
        if getattr(config, "final_logit_softcapping", None) or getattr(config, "logit_scale", 1) != 1:
            raise UnsupportedModel(f"{config.model_type} changes its logits after the output embedding")
        if head is None or getattr(head, "bias", None) is not None:
            raise UnsupportedModel(f"{config.model_type} has no plain output embedding")
        self.unembedding_VD: Tensor = head.weight
        head.register_forward_pre_hook(_dense)

    def _wrap(self, layers: nn.ModuleList) -> None:
        for index in range(self.cut, self.depth):
            for path, module in list(layers[index].named_modules()):
                if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                    parent = layers[index].get_submodule(path.rpartition(".")[0])
                    wrapped = LoraLinear(module, self.switch)
                    setattr(parent, path.rpartition(".")[2], wrapped)
                    self.linears[f"{self.layers_path}.{index}.{path}"] = wrapped
                    self.transposed = not isinstance(module, nn.Linear)

    def _split(self) -> tuple[Any, Any]:
        """The body as two: what features and trunk need, and the layers from the cut upwards with the final norm.

        The second is None, and the first the whole body, where the architecture does something between its layers
        so that the two do not add up to the one: checked by running both.
        """
        body = self.model.base_model
        if not is_plain_stack(body):
            return body, None
        upper = with_layers(body, slice(self.cut, None))
        lower = with_layers(body, slice(0, max(self.cut, self.high)))
        lower.norm = nn.Identity()
        ids_BT = torch.arange(1, 9, device=self.device)[None] % self.unembedding_VD.shape[0]
        with torch.no_grad():
            whole = body(input_ids=ids_BT, use_cache=False)[0]
            below = lower(input_ids=ids_BT, use_cache=False, output_hidden_states=True).hidden_states
            same = torch.equal(whole, upper(inputs_embeds=below[self.cut], use_cache=False)[0])
        return (lower, upper) if same else (body, None)

    # Adapters

    def add_adapter(self, name: str, rank: int, seed: int = 0) -> None:
        """A new adapter on every wrapped layer, which changes nothing yet."""
        generator = torch.Generator().manual_seed(seed)
        for linear in self.linears.values():
            linear.add(name, rank, generator)

    def adapter(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's weights, by the names PEFT gives them less its prefix `base_model.model.`."""
        weights: dict[str, nn.Parameter] = {}
        for path, linear in self.linears.items():
            if name in linear.lora_A:
                weights[f"{path}.lora_A.weight"] = linear.lora_A[name]
                weights[f"{path}.lora_B.weight"] = linear.lora_B[name]
        return weights

    def copy_adapter(self, source: str, target: str) -> None:
        """Set the target's weights to the source's."""
        theirs = self.adapter(source)
        with torch.no_grad():
            for path, weight in self.adapter(target).items():
                weight.copy_(theirs[path])

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Within the block the named adapter is active; None is the base model."""
        before, self.switch.active = self.switch.active, name
        try:
            yield
        finally:
            self.switch.active = before

    def layers(self) -> nn.ModuleList:
        """The decoder's layers, lowest first."""
        found = self.model.get_submodule(self.layers_path)
        assert isinstance(found, nn.ModuleList)
        return found

    def checkpoint_layers(self) -> None:
        """From now on adapted layers keep their input only and are computed again in the backward pass."""
        self.shares_prefixes = False  # computed again, a layer would add its keys and values twice
        for layer in self.layers()[self.cut :]:
            layer.forward = self._checkpointed(layer.forward)

    def _checkpointed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # By the time of the backward pass another adapter may be active: the second run needs that of the first.
            return nullcontext(), self.using(self.switch.active)

        def run(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

        return run

    def to_precision(self, dtype: torch.dtype) -> None:
        """Go on in this precision, in place. What was encoded before must be encoded again."""
        self.model.to(dtype)
        recast(self)
        self.unembedding_VD = self.model.get_output_embeddings().weight

    # Passes

    @torch.no_grad()
    def encode(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """Run the lower layers of the base model over each exchange, once and for all."""
        encoded: dict[int, Encoded] = {}
        with self.using(None):
            for rows, _ in self.passes([len(e) for e in exchanges]):
                layers = self._lower_layers([exchanges[row] for row in rows])
                for place, row in enumerate(rows):
                    encoded[row] = self._encoded(exchanges[row], {at: layers[at][place] for at in layers})
        encoded = self.crew.gathered(encoded, self.device)
        return [encoded[row] for row in range(len(exchanges))]

    def _lower_layers(self, exchanges: Sequence[Exchange]) -> dict[int, Tensor]:
        """What leaves the layers that are read later, by their place: (B, T, D) each."""
        wanted = {0, self.middle, self.high, self.cut if self._upper is not None else 0}
        shared = self.shared_prefix([e.prompt_ids for e in exchanges])
        if not shared:
            states = self._lower(input_ids=self._pad_ids(exchanges), use_cache=False, output_hidden_states=True)
            return {at: states.hidden_states[at] for at in wanted}
        head_1P = torch.tensor([exchanges[0].prompt_ids[:shared]], device=self.device)
        head, rest = shared_prefix.run(
            self._lower,
            {"input_ids": head_1P},
            {"input_ids": self._pad_ids(exchanges, shared)},
            depth=self.depth,
            lowest=0,
            output_hidden_states=True,
        )
        rows = len(exchanges)
        return {
            at: torch.cat([head.hidden_states[at].expand(rows, -1, -1), rest.hidden_states[at]], dim=1) for at in wanted
        }

    def shared_prefix(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Tokens that all prompts of a pass begin with, where computing them once is possible and worthwhile."""
        return shared_prefix.length(prompts) if self.shares_prefixes else 0

    def _encoded(self, exchange: Exchange, layers: Mapping[int, Tensor]) -> Encoded:
        start, end = len(exchange.prompt_ids), len(exchange)
        words_TD, meaning_TD = layers[0][:end].float(), layers[self.middle][:end].float()
        high_TD = layers[self.high][start:end].float()
        response_TF = torch.cat([words_TD[start:], meaning_TD[start:]], dim=1)
        count_T = torch.arange(1, end - start + 1, device=self.device)
        return Encoded(
            exchange=exchange,
            trunk_TD=None if self._upper is None else layers[self.cut][:end].clone(),
            context_D=meaning_TD[:start].mean(0),
            prefix_TF=response_TF.cumsum(0) / count_T[:, None],
            whole_E=torch.cat([high_TD[-1], high_TD.mean(0)]),
        )

    def states(self, batch: Sequence[Encoded]) -> Tensor:
        """Final hidden states (N, D): of each answer, those at its last prompt token and at its response tokens.

        Answers are padded on the right, so causal attention keeps the padding from being seen and positions count
        from the first token without further ado.
        """
        shared = self.shared_prefix([e.exchange.prompt_ids for e in batch])
        if self._upper is None:
            hidden_BTD = self.model.base_model(input_ids=self._pad_ids([e.exchange for e in batch]), use_cache=False)[0]
        else:
            trunks = [e.trunk_TD for e in batch if e.trunk_TD is not None]
            rest_BTD = nn.utils.rnn.pad_sequence([trunk_TD[shared:] for trunk_TD in trunks], batch_first=True)
            if shared:
                head, rest = {"inputs_embeds": trunks[0][None, :shared]}, {"inputs_embeds": rest_BTD}
                _, after = shared_prefix.run(self._upper, head, rest, depth=self.depth, lowest=self.cut)
                hidden_BTD = after[0]
            else:
                hidden_BTD = self._upper(inputs_embeds=rest_BTD, use_cache=False)[0]
        kept = [
            hidden_TD[len(e.exchange.prompt_ids) - 1 - shared : len(e.exchange) - shared]
            for hidden_TD, e in zip(hidden_BTD, batch, strict=True)
        ]
        return torch.cat(kept)

    def logprobs(self, batch: Sequence[Encoded], temperature_B: Sequence[float]) -> Tensor:
        """Log-probability (N, nats) of each response token under the active adapter, answers laid end to end."""
        return self._logprobs(batch, temperature_B, entropies=False)[0]

    def logprobs_and_entropies(self, batch: Sequence[Encoded], temperature_B: Sequence[float]) -> tuple[Tensor, Tensor]:
        """`logprobs`, and the entropy (N, nats, no gradient) of the distribution each token was drawn from."""
        return self._logprobs(batch, temperature_B, entropies=True)

    def _logprobs(
        self, batch: Sequence[Encoded], temperature_B: Sequence[float], *, entropies: bool
    ) -> tuple[Tensor, Tensor]:
        lengths = [len(e.exchange.response_ids) for e in batch]
        before_ND = self._before_tokens(batch)
        tokens_N = torch.tensor([t for e in batch for t in e.exchange.response_ids], device=self.device)
        temperature_N = torch.tensor(temperature_B, device=self.device).repeat_interleave(
            torch.tensor(lengths, device=self.device)
        )
        result: tuple[Tensor, Tensor] = TokenLogprobs.apply(
            before_ND, self.unembedding_VD, tokens_N, temperature_N, entropies
        )
        return result

    def _before_tokens(self, batch: Sequence[Encoded]) -> Tensor:
        """(N, D): of `states`, those that the head reads each response token's distribution off."""
        return torch.cat([s[:-1] for s in self.states(batch).split([len(e.exchange.response_ids) + 1 for e in batch])])

    @torch.no_grad()
    def all_logprobs(self, batch: Sequence[Encoded], temperature_B: Sequence[float]) -> list[Tensor]:
        """`logprobs` of any number of answers, without gradient: one tensor an answer."""
        result: dict[int, Tensor] = {}
        for rows, _ in self.passes([len(e.exchange) for e in batch]):
            part = [batch[row] for row in rows]
            flat_N = self.logprobs(part, [temperature_B[row] for row in rows])
            result.update(zip(rows, flat_N.split([len(e.exchange.response_ids) for e in part]), strict=True))
        result = self.crew.gathered(result, self.device)
        return [result[row] for row in range(len(batch))]

    @torch.no_grad()
    def answer_kls(self, batch: Sequence[Encoded], policy: str, reference: str | None) -> Tensor:
        """(B,): KL(policy ‖ reference), nats at temperature 1, summed over the tokens of each answer.

        The mean over answers that the policy itself gave is the KL an answer; see `token_kls`.
        """
        result: dict[int, Tensor] = {}
        for rows, _ in self.passes([len(e.exchange) for e in batch]):
            part = [batch[row] for row in rows]
            with self.using(policy):
                policy_ND = self._before_tokens(part)
            with self.using(reference):
                reference_ND = self._before_tokens(part)
            flat_N = token_kls(policy_ND, reference_ND, self.unembedding_VD)
            lengths = [len(e.exchange.response_ids) for e in part]
            result.update(zip(rows, [kl_N.sum() for kl_N in flat_N.split(lengths)], strict=True))
        result = self.crew.gathered(result, self.device)
        return torch.stack([result[row] for row in range(len(batch))])

    def passes(self, lengths: Sequence[int]) -> list[tuple[list[int], bool]]:
        """This process's passes over rows of these lengths, as (rows, whether they count); see `Crew.deal`."""
        return self.crew.deal(lengths, self.buckets)

    def buckets(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows grouped by length: no group's padded size exceeds the token budget (but for single rows), and groups
        large enough to be efficient have little padding."""
        groups: list[list[int]] = []
        real = 0
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            padded = lengths[groups[-1][0]] * (len(groups[-1]) + 1) if groups else 0
            wasteful = real >= _DENSE_TOKENS and real + lengths[row] < (1 - _PADDING) * padded
            if groups and padded <= self.token_budget and not wasteful:
                groups[-1].append(row)
                real += lengths[row]
            else:
                groups.append([row])
                real = lengths[row]
        return groups

    def _pad_ids(self, exchanges: Sequence[Exchange], start: int = 0) -> Tensor:
        """(B, T): the ids from `start` on."""
        rows = [torch.tensor((e.prompt_ids + e.response_ids)[start:], device=self.device) for e in exchanges]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class EncodedOnce:
    """Encodes as a backbone does, but no exchange twice: reward model and policy look at the same answers."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._known: dict[Exchange, Encoded] = {}

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """`Backbone.encode` of those not seen before, and what it was of the others."""
        new = [e for e in dict.fromkeys(exchanges) if e not in self._known]
        self._known.update(zip(new, self._backbone.encode(new), strict=True))
        return [self._known[e] for e in exchanges]


def _dense(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head's input, contiguous. `generate` hands it a slice, each row's last state, and for such a one PyTorch
    copies the whole matrix once a row (2.13, CPU): 1.7 GB and 1.5 s for 32 answers of a 135 M model."""
    return (args[0].contiguous(), *args[1:])
