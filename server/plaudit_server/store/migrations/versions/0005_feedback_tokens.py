"""Which feedback tokens were used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feedback_token_uses",
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_id", "key", name=op.f("pk_feedback_token_uses")),
    )
    op.create_index(op.f("ix_feedback_token_uses_expires_at"), "feedback_token_uses", ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_feedback_token_uses_expires_at"), table_name="feedback_token_uses")
    op.drop_table("feedback_token_uses")
