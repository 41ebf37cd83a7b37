"""Settings of the trainer: one class, read from `PLAUDIT_TRAINER_*` environment variables."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerConfig(BaseSettings):
    """Everything that can be set. `docs/reference/settings.md` lists them; a test fails where it does not."""

    model_config = SettingsConfigDict(env_prefix="PLAUDIT_TRAINER_", extra="ignore")

    # Machine
    threads: int = Field(default=2, ge=1, description="CPU threads the learner may use")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the learner computes")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="of the frozen weights and activations; auto: bfloat16 where the machine has it"
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
        default=0.0, ge=0, le=1, description="largest share of a batch's weight for one rater; 0: no cap"
    )
    heldout_share: float = Field(default=0.2, gt=0, lt=1, description="of raters and prompts kept for evaluation")

    # Reward model
    reward_bar: float = Field(default=0.60, ge=0, le=1, description="AUROC on unseen votes below which PPO is refused")
    reward_steps: int = Field(default=60, ge=1, description="iterations of L-BFGS of a fit")
    reward_prior: float = Field(
        default=0.1, gt=0, description="pull of the reward model towards what earlier batches made it"
    )
    reward_folds: int = Field(default=8, ge=2, description="folds by rater and prompt that its quality is judged on")
    reward_heads: int = Field(default=4, ge=1, description="small heads of the ensemble")
    reward_pessimism: float = Field(default=0.5, ge=0, description="standard deviations of the heads taken off a score")
    vote_share: float = Field(
        default=0.5, ge=0, le=0.5, description="share of its own user's vote in an answer's reward (never above half)"
    )

    # Policy
    algorithm: Literal["ppo"] = Field(default="ppo", description="how the policy is trained")
    lora_rank: int = Field(default=16, ge=1, description="rank of a first adapter; later ones keep their parent's")
    lora_layers: float = Field(
        default=0.34, gt=0, le=1, description="share of the layers, from the top, that adapters change"
    )
    lr: float = Field(default=7e-4, gt=0, description="learning rate of the policy's adapter")
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
        default=0.02, ge=0, description="first weight of the KL penalty, adapted to kl_target"
    )
    kl_target: float = Field(default=4.0, gt=0, description="KL to the parent aimed at, nats an answer")
    kl_ceiling: float = Field(
        default=12.0, gt=0, description="KL to the parent at which training stops, nats an answer"
    )
    critic_warmup_rounds: int = Field(default=3, ge=1, description="fits of the critic before the first policy step")
    critic_steps: int = Field(default=20, ge=1, description="optimiser steps of one fit of the critic")
    critic_lr: float = Field(default=0.02, gt=0, description="learning rate of the critic")
    critic_prior: float = Field(default=0.01, ge=0, description="pull of the critic towards the reward model")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to it")
    missing_end_penalty: float = Field(
        default=1.0, ge=0, description="taken off where an answer stopped without its end"
    )

    # Fresh rollouts
    rollout_prompts: int = Field(default=32, ge=0, description="prompts from the batch's log answered afresh a run")
    rollouts_per_prompt: int = Field(default=1, ge=1, description="answers to each of them")
    max_new_tokens: int = Field(default=64, ge=8, description="longest fresh answer")

    # Gate
    gate_answers: int = Field(default=48, ge=8, description="answers to held-out prompts, of candidate and of parent")
    gate_win_rate: float = Field(default=0.48, ge=0, le=1, description="lower bound that the win rate must clear")
    gate_length_growth: float = Field(default=0.15, ge=0, description="largest relative growth of the mean length")
    gate_end_of_text_drop: float = Field(default=0.15, ge=0, le=1, description="largest drop of the finished share")
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
