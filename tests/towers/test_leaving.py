from towers.leaving import EnterConfig, Leaving, PlateauConfig, SeparationConfig


def test_a_plateau_is_so_many_measurements_without_a_better_loss() -> None:
    rule, state = PlateauConfig(improvement=0.1, patience=2), Leaving()
    seen = []
    for loss in (1.0, 0.8, 0.75, 0.5, 0.49, 0.48):  # 0.75 is no tenth below 0.8
        state.take(loss, None, rule, None)
        seen.append(state.reason(rule))
    assert seen == [None, None, None, None, None, "plateau"]


def test_separation_must_be_measured_in_a_row() -> None:
    rule, state = SeparationConfig(gap=0.1, measurements=2), Leaving()
    seen = []
    for gap in (0.2, 0.05, 0.2, 0.11, None):
        state.take(1.0, gap, rule, None)
        seen.append(state.reason(rule))
    assert seen == [None, None, None, "separated", None]


def test_the_next_stage_is_entered_once_its_own_gap_was_measured() -> None:
    following, state = EnterConfig(gap=0.1, measurements=2), Leaving()
    assert Leaving().may_enter(None)
    for gap, ready in ((0.2, False), (0.3, True), (0.1, False)):
        state.take(1.0, gap, None, following)
        assert state.may_enter(following) is ready
    assert state.reason(None) is None
