"""Rollouts, their segments of constant weight, and the segment that each answer belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INDEX = "ix_interactions_segment_end_user_arm"


def upgrade() -> None:
    _create_rollouts()
    _create_segments()
    # Both may be NULL, so that a server of the release before goes on writing answers into this schema.
    op.add_column("interactions", sa.Column("segment", _COUNTER, nullable=True))
    op.add_column("interactions", sa.Column("refused", sa.Boolean(), nullable=True))
    drawn = sa.text("segment IS NOT NULL")
    columns = ["segment", "end_user", "arm"]
    op.create_index(op.f(_INDEX), "interactions", columns, unique=False, sqlite_where=drawn, postgresql_where=drawn)


def downgrade() -> None:
    op.drop_index(op.f(_INDEX), table_name="interactions")
    op.drop_column("interactions", "refused")
    op.drop_column("interactions", "segment")
    op.drop_table("rollout_segments")
    op.drop_table("rollouts")


def _create_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("live", sa.Integer(), nullable=True),
        sa.Column("candidate", sa.String(length=16), nullable=False),
        sa.Column("stable", sa.String(length=16), nullable=False),
        sa.Column("stable_etag", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("steps", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("min_raters", sa.Integer(), nullable=False),
        sa.Column("max_duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("guardrails", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("auto_promote", sa.Boolean(), nullable=False),
        sa.Column("auto_rollback", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("paused_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("segment", _COUNTER, nullable=False),
        sa.Column("segment_started_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["candidate"], ["versions.name"], name=op.f("fk_rollouts_candidate")),
        sa.ForeignKeyConstraint(["stable"], ["versions.name"], name=op.f("fk_rollouts_stable")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
        sa.UniqueConstraint("live", name=op.f("uq_rollouts_live")),
    )


def _create_segments() -> None:
    op.create_table(
        "rollout_segments",
        sa.Column("id", _COUNTER, autoincrement=True, nullable=False),
        sa.Column("rollout_id", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_rollout_segments_rollout_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout_segments")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_rollout_segments_rollout_id"), "rollout_segments", ["rollout_id"], unique=False)
