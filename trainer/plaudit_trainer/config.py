"""Settings of the trainer: one class, read from `PLAUDIT_TRAINER_*` environment variables."""

from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DPO_LR_FACTOR = 5
"""DPO's default learning rate ÷ that of the others (docs/explanation/experiments.md, "A DPO too timid to pass")."""


class TrainerConfig(BaseSettings):
    """Everything that can be set. `docs/reference/settings.md` lists them; a test fails where it does not."""

    model_config = SettingsConfigDict(env_prefix="PLAUDIT_TRAINER_", extra="ignore")

    # Machine
    threads: int = Field(default=2, ge=1, description="CPU threads the learner may use")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the learner computes")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="of the frozen weights and activations; auto: bfloat16 where it is the faster (measured on CPUs)",
    )
    seed: int = Field(default=0, description="of every random draw of a run, together with the run's version")

    # Loop: server, folders, batches
    data: Path = Field(
        default=Path("data"),
        validation_alias=AliasChoices("PLAUDIT_TRAINER_DATA", "PLAUDIT_DATA", "data"),
        description="folder shared with the server: versions are published in it (also read from PLAUDIT_DATA)",
    )
    url: str = Field(default="http://127.0.0.1:8000", description="address of the server")
    key: SecretStr | None = Field(default=None, description="a key with the role trainer; unset: read from key_file")
    key_file: Path | None = Field(default=None, description="file that holds the key; unset: trainer.key in data")
    model: str | None = Field(
        default=None,
        validation_alias=AliasChoices("PLAUDIT_TRAINER_MODEL", "PLAUDIT_MODEL", "model"),
        description="Hugging Face id or folder, as the server has it; unset: the bundled model (also PLAUDIT_MODEL)",
    )
    worker: str | None = Field(default=None, description="name of this trainer; unset: made once, kept in data/trainer")
    min_records: int = Field(default=32, ge=1, le=100_000, description="voted answers to wait for before a run")
    max_records: int = Field(default=1024, ge=1, le=100_000, description="voted answers in a run at most")
    poll_s: float = Field(default=5, gt=0, description="pause between two looks for new feedback, seconds")
    lease_s: float = Field(default=300, ge=3, le=86_400, description="a silent trainer loses its batch after this")
    retry_s: float = Field(default=10, ge=0, description="pause after a failed run; doubles up to ten minutes")
    max_attempts: int = Field(default=3, ge=1, description="failed runs with the same record before it is set aside")
    patience_s: float = Field(
        default=600, ge=0, description="look again at votes that taught nothing after this, if no new ones came"
    )
    niceness: int = Field(default=10, ge=0, le=19, description="how far the trainer steps back for the server's sake")

    token_budget: int = Field(default=4096, ge=64, description="padded tokens that one pass of the model may hold")

    # Which votes count
    vote_key: str = Field(default="thumb", description="the feedback key that is learnt from")
    min_examples: int = Field(default=16, ge=2, description="fewest voted answers or pairs worth a run")
    min_users: int = Field(default=1, ge=1, description="fewest distinct raters; raise it where strangers vote")
    max_votes_per_user: int = Field(default=10, ge=0, description="votes of one rater in a batch; 0: no cap")
    max_weight_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of a batch's weight for one rater; 0: no cap"
    )
    young_days: float = Field(default=7, ge=0, description="a rater first seen less than this ago is a young account")
    max_young_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of a batch's weight for all young accounts; 1: no cap"
    )
    log_prompts: int = Field(
        default=256, ge=0, le=4096, description="prompts of the log leased along, of which held-out ones serve the gate"
    )
    heldout_share: float = Field(default=0.2, gt=0, lt=1, description="of raters and prompts kept for evaluation")

    # Reward model
    reward_encoder: str | None = Field(
        default=None,
        description="Hugging Face id or folder of an encoder (BERT class) that the reward model reads answers with too",
    )
    reward_relevance: bool = Field(
        default=True, description="the reward model also reads how far an answer stays on what was asked"
    )
    reward_bar: float = Field(default=0.60, ge=0, le=1, description="AUROC on unseen votes below which PPO is refused")
    reward_steps: int = Field(default=60, ge=1, description="iterations of L-BFGS of a fit")
    reward_prior: float = Field(
        default=1.0,
        gt=0,
        description="pull of the reward model towards what earlier batches made it, times what a batch itself suggests",
    )
    reward_folds: int = Field(default=8, ge=2, description="folds by rater and prompt that its quality is judged on")
    reward_heads: int = Field(default=4, ge=1, description="small heads of the ensemble")
    judge_batch: int = Field(
        default=128,
        ge=0,
        description="examples from which on votes on held-out prompts are kept from the policy's reward model, for an "
        "independent judge at the gate; 0: never",
    )
    judge_votes: int = Field(default=64, ge=1, description="votes that the independent judge must know to count")
    reward_pessimism: float = Field(default=0.5, ge=0, description="standard deviations of the heads taken off a score")
    vote_share: float = Field(
        default=0.5, ge=0, le=0.5, description="share of its own user's vote in an answer's reward (never above half)"
    )

    # Policy
    algorithm: Literal["ppo", "kto", "dpo", "grpo", "reinforce++", "reinforce", "sac"] = Field(
        default="ppo", description="how the policy is trained; docs/reference/algorithms.md compares them"
    )
    lora_rank: int = Field(default=16, ge=1, description="rank of a first adapter; later ones keep their parent's")
    lora_layers: float = Field(
        default=0.34, gt=0, le=1, description="share of the layers, from the top, that adapters change"
    )
    lr: float = Field(
        default=7e-4, gt=0, description="learning rate of the policy's adapter; unset with dpo: five times as much"
    )
    ppo_epochs: int = Field(
        default=2, ge=1, description="passes over the trajectories; each renews the proximal policy"
    )
    minibatch: int = Field(default=16, ge=1, description="trajectories an optimiser step")
    clip: float = Field(default=0.2, gt=0, description="ratio clip against the proximal policy")
    importance_cap: float = Field(default=2.0, ge=1, description="largest weight proximal / behaviour")
    value_clip: float = Field(default=0.2, gt=0, description="clip of the value's change")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lambda of GAE")
    kl_coefficient: float = Field(
        default=0.05, ge=0, description="first weight of the KL penalty, adapted to kl_target"
    )
    kl_anchor: Literal["base", "parent"] = Field(
        default="base",
        description="what the KL is measured from: the base model, so that drift cannot compound, or the parent",
    )
    kl_target: float = Field(default=6.0, gt=0, description="KL to the anchor aimed at, nats an answer")
    kl_ceiling: float = Field(
        default=8.0, gt=0, description="KL to the anchor that no candidate may exceed, nats an answer"
    )
    kl_answers: int = Field(
        default=48, ge=8, description="own answers of a candidate that its KL is measured on before the gate"
    )
    critic_warmup_rounds: int = Field(default=3, ge=1, description="fits of the critic before the first policy step")
    critic_steps: int = Field(default=20, ge=1, description="optimiser steps of one fit of the critic")
    critic_lr: float = Field(default=0.02, gt=0, description="learning rate of the critic")
    critic_prior: float = Field(default=0.01, ge=0, description="pull of the critic towards the reward model")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to it")
    gradient_checkpointing: bool = Field(
        default=False, description="compute adapted layers again in the backward pass: less memory, a third more work"
    )
    max_staleness: int = Field(
        default=8, ge=0, description="versions an answer may be behind the parent and still train the policy"
    )
    missing_end_penalty: float = Field(
        default=1.0, ge=0, description="taken off where an answer stopped without its end"
    )

    # Other learners than PPO
    preference_beta: float = Field(default=0.1, gt=0, description="beta of KTO and DPO: their hold to the parent")
    preference_epochs: int = Field(default=2, ge=1, description="passes of KTO and DPO over the votes")
    min_pairs: int = Field(default=8, ge=2, description="fewest pairs that DPO is run on")
    group_scale: Literal["group", "batch"] = Field(
        default="group",
        description="GRPO's scores are divided by the standard deviation of their group (the paper) or of the batch",
    )
    sac_backups: int = Field(default=8, ge=1, description="Bellman backups of SAC's critics before each pass")
    sac_prior: float = Field(default=1.0, gt=0, description="pull of SAC's critics towards the reward model, in votes")

    # Fresh rollouts
    rollout_prompts: int = Field(default=160, ge=0, description="prompts from the batch's log answered afresh a run")
    rollouts_per_prompt: int = Field(default=1, ge=1, description="answers to each of them")
    max_new_tokens: int = Field(default=64, ge=8, description="longest fresh answer")

    # Gate
    gate_answers: int = Field(default=144, ge=8, description="answers to held-out prompts, of candidate and of parent")
    gate_win_rate: float = Field(default=0.48, ge=0, le=1, description="lower bound that the win rate must clear")
    gate_length_growth: float = Field(default=0.15, ge=0, description="largest relative growth of the mean length")
    gate_end_of_text_drop: float = Field(default=0.15, ge=0, le=1, description="largest drop of the finished share")
    gate_refusal_growth: float = Field(
        default=0.05, ge=0, le=1, description="largest growth of the share of answers that refuse"
    )
    gate_entropy_change: float = Field(
        default=0.5, ge=0, description="largest relative change of the entropy a token, either way"
    )
    gate_disagreement_growth: float = Field(
        default=1.0, ge=0, description="largest relative growth of the reward heads' disagreement"
    )

    # Probe
    probe_precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="what the engine computes in; auto: float32 on the CPU, bfloat16 on a GPU"
    )
    probe_min_tokens: int = Field(default=1024, ge=64, description="response tokens in probe.json at least")
    probe_sequences: int = Field(default=128, ge=1, description="sequences in probe.json at most")
    probe_tokens: int = Field(default=4096, ge=64, description="response tokens in probe.json at most")

    @model_validator(mode="after")
    def _what_few_pairs_need(self) -> Self:
        """DPO's own default: a batch of votes has few pairs, so few steps; PPO's would move nothing in them."""
        if self.algorithm == "dpo" and "lr" not in self.model_fields_set:
            self.lr *= DPO_LR_FACTOR
        return self

    @field_validator("rollout_prompts", "rollouts_per_prompt", "minibatch")
    @classmethod
    def _what_the_algorithm_needs(cls, value: int, info: ValidationInfo) -> int:
        """Refuse what would train for hours and learn nothing."""
        algorithm = info.data.get("algorithm")
        if algorithm == "grpo" and info.field_name == "rollouts_per_prompt" and value < 2:
            raise ValueError(
                "grpo compares answers to the same prompt, and live traffic answers each once: set at least 2, "
                "or choose PLAUDIT_TRAINER_ALGORITHM=reinforce++"
            )
        if algorithm == "grpo" and info.field_name == "rollout_prompts" and value < 1:
            raise ValueError("grpo learns from fresh answers: set at least 1")
        if algorithm == "kto" and info.field_name == "minibatch" and value < 2:
            raise ValueError("kto estimates its KL between the answers of a minibatch: set at least 2")
        return value
