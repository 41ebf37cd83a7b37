"""Regenerated answers are leased once, and a rater's first vote is found without reading every vote."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The default lets a server of the release before go on writing events into this schema.
    op.add_column("events", sa.Column("spent", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index(op.f("ix_events_type_spent"), "events", ["type", "spent"], unique=False)
    op.create_index(op.f("ix_feedback_end_user_received_at"), "feedback", ["end_user", "received_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_feedback_end_user_received_at"), table_name="feedback")
    op.drop_index(op.f("ix_events_type_spent"), table_name="events")
    op.drop_column("events", "spent")
