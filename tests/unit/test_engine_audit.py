"""What a replica holds against what we believe."""

from plaudit_server.engine.audit import Believed, Held, compare, removable, version_of

ONE = {"v1": Believed("v1-aa-1", frozenset({1})), "v2": Believed("v2-bb-2", frozenset({2}))}


def held(*names: str, workers: list[set[int]] | None = None) -> Held:
    return Held({"base", *names}, workers)


def test_all_is_well() -> None:
    found = compare(ONE, held("v1-aa-1", "v2-bb-2", workers=[{1, 2}, {1, 2}]))
    assert found.lost == {} and not found.strange_names and not found.strange_numbers and not found.restarted


def test_a_name_that_is_gone_is_a_lost_version() -> None:
    found = compare(ONE, held("v1-aa-1"))
    assert set(found.lost) == {"v2"} and not found.restarted


def test_all_names_gone_is_a_restart() -> None:
    assert compare(ONE, held()).restarted
    assert not compare({}, held()).restarted


def test_one_worker_that_dropped_it_is_enough_and_no_restart() -> None:
    found = compare(ONE, held("v1-aa-1", "v2-bb-2", workers=[{1, 2}, {1}]))
    assert found.lost == {"v2": "a worker no longer holds it"} and not found.restarted
    assert found.strange_names == {"v2-bb-2"}, "its name is taken away, so that it can be loaded afresh"
    assert found.strange_numbers == {2}


def test_strangers_are_found_by_name_and_by_number() -> None:
    found = compare(ONE, held("v1-aa-1", "v2-bb-2", "who", workers=[{1, 2}, {1, 2, 9}]))
    assert found.strange_names == {"who"} and found.strange_numbers == {9} and not found.lost


def test_numbers_are_not_judged_when_workers_were_not_asked() -> None:
    assert compare(ONE, held("v1-aa-1", "v2-bb-2")).strange_numbers == frozenset()


def rid(names: set[str], *, ours: bool = False, now: float = 100, **since: float) -> frozenset[str]:
    first_seen = {name.replace("_", "-"): at for name, at in since.items()}
    return removable(names, ours=ours, claimed={"v5"}, first_seen=first_seen, now=now, grace_s=60)


def test_the_only_gateway_takes_every_stranger_away_at_once() -> None:
    assert rid({"v5-a-1", "who"}, ours=True) == {"v5-a-1", "who"}


def test_what_another_gateway_claims_stays() -> None:
    assert rid({"v5-a-1", "v6-a-1"}, v5_a_1=0, v6_a_1=0) == {"v6-a-1"}


def test_what_is_new_may_be_claimed_in_a_moment() -> None:
    assert rid({"v6-a-1"}, v6_a_1=41) == frozenset()
    assert rid({"v6-a-1"}, v6_a_1=40) == {"v6-a-1"}
    assert rid({"v6-a-1"}) == frozenset()


def test_names_tell_their_version() -> None:
    assert (version_of("v12-0a1b-ff"), version_of("who")) == ("v12", "who")
