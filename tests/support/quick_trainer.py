"""Settings under which the real trainer makes a version of few votes, whatever it has learnt."""

from tests.support.stack import ROOT

VOTES = 32

QUICK = {
    "PLAUDIT_TRAINER_MIN_RECORDS": str(VOTES),
    "PLAUDIT_TRAINER_MAX_NEW_TOKENS": "32",
    "PLAUDIT_TRAINER_ROLLOUT_PROMPTS": "8",
    "PLAUDIT_TRAINER_GATE_ANSWERS": "8",
    # The loop is under test, not what 32 votes can teach: what it learnt is the demo's affair. These bounds let any
    # finite policy through, so that the swap of a really trained adapter can be proven.
    "PLAUDIT_TRAINER_REWARD_BAR": "0",
    "PLAUDIT_TRAINER_GATE_WIN_RATE": "0",
    "PLAUDIT_TRAINER_GATE_LENGTH_GROWTH": "10",
    "PLAUDIT_TRAINER_GATE_END_OF_TEXT_DROP": "1",
    "PLAUDIT_TRAINER_GATE_DISAGREEMENT_GROWTH": "100",
    "PLAUDIT_TRAINER_GATE_ENTROPY_CHANGE": "100",
    "PLAUDIT_TRAINER_GATE_REFUSAL_GROWTH": "1",
    "PLAUDIT_TRAINER_KL_CEILING": "1000",
}


def questions() -> list[str]:
    """As many as the trainer waits for votes."""
    lines = (ROOT / "benchmarks" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")][:VOTES]
