from records.publish.recipe_table import disagreements, flat, side_by_side

EFFECTIVE = {"name": "x", "track": "nano", "matrix": {"step": "muon", "lr": 0.02, "betas": [0.9, 0.95]}}


def test_keys_are_dotted_and_descriptions_left_out():
    keys = list(flat({"description": "d", **EFFECTIVE}))
    assert keys == ["track", "matrix.step", "matrix.lr", "matrix.betas"]


def test_a_recipe_need_not_state_every_key():
    assert disagreements({"description": "mine", "matrix": {"lr": 0.02}}, EFFECTIVE) == []


def test_another_value_and_an_unknown_key_disagree():
    told = disagreements({"matrix": {"lr": 0.03, "momentum": 0.9}}, EFFECTIVE)
    assert ["matrix.lr" in told[0], "0.02" in told[0], "matrix.momentum" in told[1]] == [True] * 3


def test_side_by_side_marks_what_differs():
    rows = side_by_side([EFFECTIVE, {"track": "nano", "matrix": {"step": "nora", "lr": 0.02}}])
    assert [key for key, _, differs in rows if differs] == ["matrix.step", "matrix.betas"]
    assert ("matrix.betas", [[0.9, 0.95], None], True) in rows
