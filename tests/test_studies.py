"""Studies: what they reckon on matrices, their pages, and what they say without runs."""

import json

import numpy as np
import pytest
import torch

from records import RecordError
from records.judge.compare import published_side
from records.publish.pictures import Picture
from records.run.instrument_log import InstrumentLog
from records.run.recipe import parse_seeds
from records.run.recipe_files import read_table
from records.run.track import RECORDS, read_track, shipped_tracks
from records.studies import (
    of_budgets,
    of_comparisons,
    of_designs,
    of_noise,
    of_proxies,
    of_stages,
    of_trainings,
    page,
)
from records.studies.__main__ import STUDIES, main
from records.studies.differences import last_losses
from records.studies.of_matrices import first_update, gaussian, spectrum
from records.studies.of_noise import GROUPS, Setting, parts_of_variance, started
from records.studies.of_proxies import CHOOSE, JUDGE, METHODS, agreement, contradictions
from records.studies.page import Findings, Study, Table, write_page
from tests.log_text import log_text, run_text, write
from tests.made_logs import write_log
from train_gpt import ROOT, load_recipe


def test_spectrum_of_an_orthogonal_matrix_and_of_a_stretched_one():
    Q = torch.linalg.qr(gaussian(0, (8, 8))).Q
    rank, condition, left = spectrum(Q)
    assert (rank, condition) == (pytest.approx(8), pytest.approx(1))
    assert left < 0.35  # the quintic does not converge
    assert spectrum(Q * torch.tensor([[1e-3]] + [[1.0]] * 7))[1] == pytest.approx(1e3, rel=1e-6)


def test_the_first_update_of_muon_is_the_polar_factor_and_u_normuons_rows_are_even():
    X = gaussian(1, (12, 4), row_spread=1.0)
    muon, even = (first_update(name, X, {}) for name in ("muon", "u_normuon"))
    assert muon["polar_alignment"] == pytest.approx(1, abs=1e-4)
    assert even["row_variation"] < 1e-6 < muon["row_variation"]


def test_a_page_holds_claim_verdict_command_figure_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    picture = Picture([1.0], lambda figure: None)
    table = Table("T", ["a", "b"], [["x", 1.23456]])
    findings = Findings("Shows.", "seed 0", [table], {"f.svg": picture}, [1])
    text = write_page(Study("made", "A claims B", "P", lambda train: findings), findings, 0.1).read_text()
    for told in (
        "A claims B",
        "**Here:** Shows.",
        "made`, seed 0; this page took 0.1 minutes.",
        "(f.svg)",
        "1.235",
    ):
        assert told in text
    assert json.loads((tmp_path / "made" / "numbers.json").read_text()) == [1]


def test_a_page_says_how_long_its_trainings_took(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "log.txt", log_text(run_text(seed=0), run_text(seed=1)))
    assert page.training_minutes(tmp_path) == pytest.approx(4 * 400 * 0.157 / 60)


def test_without_runs_a_study_of_trainings_names_the_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(of_trainings, "FOLDER", tmp_path)
    assert main(["dying_neurons"]) == 2
    assert "--instruments --compile --out" in capsys.readouterr().err


def test_a_study_of_trainings_reads_its_runs_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(of_trainings, "FOLDER", tmp_path)
    for name, dead in (("muon", (5, 6)), ("aurora", (1, 2))):
        log = tmp_path / "dying_neurons" / name / "a.txt"
        write_log(log)
        for seed, of_seed in enumerate(dead):
            for step in (0, 25):
                numbers = {f"blocks.{i}.mlp": {"units": 8, "dead": of_seed, "faint": 7} for i in (0, 1)}
                InstrumentLog(log, seed, 2).write(step, numbers, {})
    found = STUDIES["dying_neurons"].find(False)
    assert found.verdict == "Dead of 16 units, by seed: muon 10, 12; aurora 2, 4; the claim shows."
    assert found.tables[0].rows[0][0] == "muon" and found.tables[1].rows[1] == ["muon", 1, 16, 12, 14]
    assert found.missing == "2 of 4 runs: muon-16x, aurora-16x"
    assert found.pictures["curves.svg"].svg().startswith(b"<?xml")


def test_what_settings_share_and_what_a_part_adds_are_told_apart():
    rng = np.random.default_rng(0)
    table = rng.normal(0, 0.01, (400, 1)) + rng.normal(0, 0.002, (400, 8)) + rng.normal(0, 1, (1, 8))
    assert parts_of_variance(table) == pytest.approx((0.01, 0.002), rel=0.1)


def test_a_mirrored_start_differs_in_one_matrix_of_a_block_and_other_ends_in_theirs():
    recipe = load_recipe("muon", (), shipped_tracks()["nano"])
    plain, mirrored, others = (
        started(recipe, setting).state_dict()
        for setting in (Setting(), Setting(mirrored=True), Setting(ends=1))
    )
    differing = {name for name in plain if not torch.equal(plain[name], mirrored[name])}
    assert differing == {f"blocks.{i}.mlp.fc.weight" for i in range(4)}
    assert {name for name in plain if not torch.equal(plain[name], others[name])} == {"embed.weight"}


def test_the_page_of_noise_is_made_of_the_trainings_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(of_noise, "FOLDER", tmp_path)
    assert main(["noise"]) == 2
    rng = np.random.default_rng(0)
    kept = {name: rng.normal(2, 0.01, (len(group), 8)).tolist() for name, group in GROUPS.items()}
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "numbers.json").write_text(json.dumps({"losses": kept}))
    found = STUDIES["noise"].find(False)
    assert f"spreads by {np.std([row[0] for row in kept['initialisation']], ddof=1):.4f}" in found.verdict
    assert [row[1] for row in found.tables[0].rows] == [12] * 6 + [6]
    assert found.pictures["noise.svg"].svg().startswith(b"<?xml")


def test_a_stage_taken_out_is_compared_on_the_seeds_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(of_stages, "FOLDER", tmp_path)
    monkeypatch.setattr(of_stages, "RECORDS", tmp_path)

    def run(seed: int, more: float) -> str:
        last = 2 + seed + more * (1 + 0.01 * seed)
        return run_text({0: 5.5, 9: last}, 9, seed, f" raw_val_loss:{last + 0.002:.5f}")

    write(tmp_path / "nano" / "row_floor" / "a.txt", log_text(*(run(seed, 0.0) for seed in range(4))))
    assert main(["row_floor"]) == 2
    write(tmp_path / "row_floor" / "without_soap" / "a.txt", log_text(*(run(seed, 0.1) for seed in range(3))))
    found = STUDIES["row_floor"].find(False)
    of_soap, of_average = found.tables[0].rows
    assert of_soap[:3] == ["without_soap", 3, pytest.approx(0.101)] and "without_floor" in found.missing
    assert of_average[1:3] == [4, pytest.approx(0.002)]


@pytest.mark.parametrize("study", of_stages.WITHOUT)
def test_what_is_taken_out_changes_the_stack(study):
    entry = of_stages.ENTRIES[study]
    whole = load_recipe(RECORDS / f"{entry}.toml")
    for name, options in of_stages.WITHOUT[study].items():
        said = dict(zip(options[::2], options[1::2], strict=True))
        changes = [said["--set"]] if "--set" in said else []
        changes += [f"train_steps={said['--steps']}"] if "--steps" in said else []
        without = load_recipe(ROOT / said.get("--recipe", f"records/{entry}.toml"), changes)
        assert without.track == whole.track and without.train_steps == whole.train_steps
        assert without.toml() != whole.toml(), name


def synthetic(design, worth, noise=0.0):
    """Losses of all points of a design: a seed's own, less what the changes of the point are worth."""
    rng = np.random.default_rng(0)
    return {
        at: {
            seed: 1.3 + 0.01 * seed - sum(worth.get(name, 0.0) for name in has) + noise * rng.normal()
            for seed in parse_seeds(design.seeds)
        }
        for at, has in design.points().items()
    }


@pytest.mark.parametrize("name", of_designs.DESIGNS)
def test_in_a_design_every_two_changes_meet_as_often_as_not(name):
    design = of_designs.DESIGNS[name]
    table = np.array(
        [[1 if change in has else -1 for change in design.changes] for has in design.points().values()]
    )
    assert (table.T @ table == 32 * np.eye(16)).all()
    assert design.points()["0"] == design.there
    triples = np.einsum("ij,ik,il->jkl", table, table, table)  # a change alone and two changes together
    assert not triples.any()


@pytest.mark.parametrize("name", of_designs.DESIGNS)
def test_every_change_of_a_design_alters_its_recipe(name):
    design, nano = of_designs.DESIGNS[name], shipped_tracks()["nano"]
    base = str(of_designs.HOME / f"{name}.toml")
    told = [load_recipe(base, changes, nano).toml() for changes in design.settings().values()]
    assert len(set(told)) == len(told) == 32 + len(design.alone)


def test_the_worth_of_changes_comes_back_from_their_runs_though_points_lack():
    design = of_designs.DESIGNS["second"]
    worth = {"fast part .55": 0.006, "no weight decay": -0.005}
    losses = synthetic(design, worth, noise=1e-5)
    del losses["3"], losses["17"][1004]
    found = of_designs.worths(design, losses)
    assert list(found)[0] == "fast part .55" and list(found)[-1] == "no weight decay"
    for name, test in found.items():
        assert test.mean == pytest.approx(worth.get(name, 0.0), abs=2e-5)
        assert test.decided == (name in worth)
    few = {at: losses[at] for at in ("0", "1", "2")}
    with pytest.raises(RecordError, match="tell 16 changes apart, found 12"):
        of_designs.worths(design, few)


def test_chance_decides_one_change_in_a_hundred():
    design, found = of_designs.DESIGNS["first"], []
    rng = np.random.default_rng(1)
    for _ in range(60):
        losses = {at: {seed: rng.normal() for seed in range(1000, 1004)} for at in design.points()}
        found += [test.decided for test in of_designs.worths(design, losses).values()]
    assert 0 < sum(found) < 25  # 9.6 of 960 expected


def test_the_page_of_the_designs_is_made_of_the_losses_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(of_designs, "HOME", tmp_path)
    assert main(["own"]) == 2
    kept = synthetic(of_designs.DESIGNS["first"], {"radial brake": -0.01}, noise=1e-4)
    kept["floor by row"] = {seed: loss + 0.02 + 1e-4 * (seed % 2) for seed, loss in kept["0"].items()}
    (tmp_path / "numbers.json").write_text(json.dumps({"first": kept}))
    found = STUDIES["own"].find(False)
    assert (
        "128 runs of 32 points: at p below 0.01 the loss is lower in no case; higher with radial brake."
        in found.verdict
    )
    effects, alone, points = found.tables
    assert effects.rows[-1][:3] == ["radial brake", 128, pytest.approx(-0.01, abs=1e-4)]
    assert alone.rows[0][:3] == ["floor by row", 4, pytest.approx(-0.02, abs=1e-3)]
    assert "radial brake" not in points.rows[0][3] and len(points.rows) == 32
    assert found.pictures["first.svg"].svg().startswith(b"<?xml")
    assert found.missing == "32 of 32 points of the second design"


def test_polar_factors_are_compared_with_the_exact_one_on_its_seeds(tmp_path, monkeypatch):
    for module in (of_trainings, of_comparisons):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    for name, error, more in (("svd", 1e-6, 0.0), ("quintic-5", 0.2, 0.01), ("simple-3", 0.9, 0.1)):
        folder = tmp_path / "polar_error" / name
        lasts = {seed: 2 + 0.1 * seed + more * (1 + 0.01 * seed) for seed in range(3)}
        runs = [run_text({0: 5.5, 9: last}, 9, seed, "") for seed, last in lasts.items()]
        write(folder / "a.txt", log_text(*runs))
        InstrumentLog(folder / "a.txt", 0, 1).write(
            9, {"blocks.0.attn.q.weight": {"polar_error_rms": error}}, {}
        )
    found = STUDIES["polar_error"].find(False)
    assert "rank correlation of Muon's error with its loss is 1.00" in found.verdict
    assert "higher: quintic-5, simple-3; lower: none" in found.verdict
    assert [row[0] for row in found.tables[0].rows] == ["svd", "quintic-5", "simple-3"]
    assert "cans-8" in found.missing


def writing_expansion(folder, loss):
    """In place of a training: a log of the last losses that loss(method, ratio, lr, seed) gives."""

    def made(study, run, train):
        options = dict(zip(run.options[::2], run.options[1::2], strict=False))
        ratio = int(options["--track"].removesuffix(".toml").rpartition("mlp")[2])
        lr = float(options["--set"].partition("=")[2])
        seeds = [1000] if options["--seeds"] == "1000" else range(6)
        lasts = {seed: loss(run.name.partition("-")[0], ratio, lr, seed) for seed in seeds}
        runs = [run_text({0: 5.5, 9: last}, 9, seed, "") for seed, last in lasts.items()]
        write(folder / "expansion" / run.name / "a.txt", log_text(*runs))
        return True

    return made


def test_the_gain_by_expansion_is_taken_at_each_methods_own_learning_rate(tmp_path, monkeypatch):
    def loss(method, ratio, lr, seed):
        best = {"muon": 0.0287, "aurora": 0.0287 * 1.6**3}[method]
        gain = 0.01 * np.log2(ratio) * (1 + 0.01 * (seed % 6)) if method == "aurora" else 0.0
        return 2 + 0.1 * (seed % 6) + np.log(lr / best) ** 2 - gain

    monkeypatch.setattr(of_comparisons, "FOLDER", tmp_path)
    monkeypatch.setattr(of_comparisons, "made", writing_expansion(tmp_path, loss))
    found = STUDIES["expansion"].find(True)
    rates = found.numbers[16]["lr"]
    assert rates == {"muon": pytest.approx(0.0287), "aurora": pytest.approx(0.0287 * 1.6**3)}
    assert [row[2] for row in found.tables[0].rows] == pytest.approx(
        [0, 0.0103, 0.0205, 0.0308, 0.041], abs=2e-4
    )
    assert "the claim shows" in found.verdict and not found.missing


def made_losses(methods, order: float, seeds=(0, 1)) -> dict:
    """Losses that follow the published order, or its opposite where `order` is -1."""
    return {
        method: {
            seed: 2 + order * 1e-4 * published_side(str(METHODS[method])).step + 0.001 * seed
            for seed in seeds
        }
        for method in methods
    }


def test_a_proxy_agrees_contradicts_and_counts_the_pairs_that_are_decided(monkeypatch):
    monkeypatch.setattr(of_proxies, "RESAMPLES", 20)
    assert agreement(made_losses(METHODS, 1.0), list(METHODS), (0, 1)).estimate > 0.95
    assert agreement(made_losses(METHODS, -1.0), list(METHODS), (0, 1)).estimate < -0.95
    assert agreement(made_losses(METHODS, 1.0), ["muon", "adamw"], (0,)) is None
    assert agreement(made_losses(METHODS, 1.0, (0,)), list(METHODS), (0, 1)) is None
    both, otherwise = contradictions(made_losses(METHODS, 1.0), (0, 1))
    assert both > 300 and otherwise == 0
    assert contradictions(made_losses(METHODS, -1.0), (0, 1)) == (both, both)
    assert contradictions(made_losses(METHODS, 1.0), (0,)) == contradictions({}, (0, 1)) == (0, 0)


def test_the_halves_share_no_method_and_every_method_has_an_entry_and_a_result():
    assert not set(CHOOSE) & set(JUDGE) and sorted([*CHOOSE, *JUDGE]) == sorted(METHODS)
    for method, number in METHODS.items():
        assert read_table(RECORDS / "nano" / f"{method}.toml")["published"] == number
    steps = [published_side(str(number)).step for number in METHODS.values()]
    assert steps == sorted(steps)


def test_the_best_of_the_half_that_chooses_is_judged_on_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(of_proxies, "HOME", tmp_path)
    monkeypatch.setattr(of_proxies, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(of_proxies, "RESAMPLES", 20)
    assert main(["proxies"]) == 2
    losses = {"nano": made_losses(METHODS, -1.0), "micro": made_losses(METHODS, 1.0)}
    losses |= {"width": made_losses(CHOOSE[::2], -1.0), "batch": made_losses(CHOOSE[:-2] + CHOOSE[-1:], 1.0)}
    (tmp_path / "numbers.json").write_text(json.dumps({"losses": losses}))
    found = STUDIES["proxies"].find(False)
    assert "micro 1.00, batch 1.00, width -1.00. micro and batch go on." in found.verdict
    assert "micro is chosen." in found.verdict and "judges" not in found.verdict
    assert found.missing == "batch of 1 methods, warm of 8 methods, late of 8 methods"
    losses |= {"batch": made_losses(CHOOSE, 1.0)} | dict.fromkeys(("warm", "late"), losses["width"])
    (tmp_path / "numbers.json").write_text(json.dumps({"losses": losses}))
    found = STUDIES["proxies"].find(False)
    assert "micro 1.00, nano -1.00; micro has 2.00 (2.00 to 2.00) more." in found.verdict
    judged = {row[0].split(":")[0]: row[-2:] for row in found.tables[0].rows}
    assert judged["micro"][0] > 50 and judged["micro"][1] == 0 and judged["width"] == [0, 0]


def test_a_candidates_run_has_the_stretched_recipe_and_its_track(tmp_path, monkeypatch):
    monkeypatch.setattr(of_proxies, "RUNS", tmp_path)
    for name, candidate in of_proxies.CANDIDATES.items():
        words = of_proxies.command(name, "row_floor", (0, 1))
        made = read_table(tmp_path / name / "row_floor.toml")
        assert made["train_steps"] == candidate.steps and "--validate-ends" in words
        assert load_recipe(
            str(tmp_path / name / "row_floor.toml"),
            (),
            read_track(ROOT / candidate.track if "/" in candidate.track else "nano"),
        )


def test_more_trials_are_judged_by_final_runs_of_the_entrys_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(of_budgets, "METHODS", ("muon", "muonh"))
    monkeypatch.setattr(of_budgets, "FOLDER", tmp_path)
    usual = of_budgets.Trial(1.4, ("matrix.lr=0.02",))
    monkeypatch.setattr(of_budgets, "trials_of", lambda method: [usual] * 8)
    assert main(["budgets"]) == 2
    better = of_budgets.Trial(1.3, ("matrix.lr=0.03",))
    searches = {"muon": [usual] * 8 + [better] * 16, "muonh": [usual] * 24}
    monkeypatch.setattr(of_budgets, "trials_of", searches.__getitem__)
    entry = last_losses(RECORDS / "nano" / "muon")
    runs = [run_text({0: 5.5, 9: entry[seed] - 0.02 - 0.0001 * seed}, 9, seed, "") for seed in range(6)]
    write(tmp_path / "budgets" / "muon" / "a.txt", log_text(*runs))
    monkeypatch.setattr(of_budgets, "made", lambda *_: True)
    found = STUDIES["budgets"].find(False)
    assert "help muon at p below .01" in found.verdict and not found.missing
    assert found.tables[0].rows[0][4] == pytest.approx(0.02025, abs=1e-5)
    assert found.tables[0].rows[1][3] == "the same"


def test_the_list_of_studies_says_what_each_page_says(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    studies = [Study(name, f"claim of {name}", "P", lambda train: findings) for name in ("made", "other")]
    findings = Findings("It shows | here.", "seed 0", [], {}, [1])
    write_page(studies[0], findings, 0.1)
    text = page.write_index(studies).read_text()
    assert "| [made](made/README.md) | claim of made (P) | It shows \\| here. |" in text
    assert "| other | claim of other (P) | not run yet |" in text


def test_only_runs_that_came_to_their_end_have_a_last_loss(tmp_path):
    assert last_losses(tmp_path) == {}
    runs = [run_text({0: 5.5, 9: 2.5}, 9, 3, ""), run_text({0: 5.5, 5: 3.5}, 9, 4, "")]
    write(tmp_path / "a.txt", log_text(*runs))
    assert last_losses(tmp_path) == {3: 2.5}


def test_adaptive_scales_are_compared_over_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(of_trainings, "FOLDER", tmp_path)
    for name, values in (("namo", (0.4, 0.3, 0.2, 0.1)), ("namo-4x", (0.5, 0.4, 0.3, 0.2))):
        log = tmp_path / "noise_scales" / name / "a.txt"
        write_log(log)
        for step, value in enumerate(values):
            InstrumentLog(log, 0, 4).write(step, {"blocks.0.attn.q.weight": {"step_scale": value}}, {})
    verdict = STUDIES["noise_scales"].find(False).verdict
    assert "namo 0.25, namo-4x 0.35. That it grows with the batch shows" in verdict
    assert "first half of the run it is 0.35, in the second 0.15" in verdict and verdict.endswith("shows.")


def test_rows_turn_as_unevenly_as_the_fastest_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(of_trainings, "FOLDER", tmp_path)
    for name, fastest in (("muon", 0.3), ("nora_init", 0.2)):
        log = tmp_path / "nora_norms" / name / "a.txt"
        write_log(log)
        for step, mean in enumerate((0.0, 0.1, 0.1)):  # at first nothing turns
            values = {
                "row_angle": mean,
                "row_angle_max": fastest,
                "radial_part": 0.04,
                "row_norm_mean": 2.0 + step,
            }
            InstrumentLog(log, 0, 3).write(step, {"blocks.0.attn.q.weight": values}, {})
    verdict = STUDIES["nora_norms"].find(False).verdict
    assert "muon 3, nora_init 2; that rows turn more evenly under nora_init than under muon shows" in verdict
    assert verdict.endswith("over those at the first: muon 2, nora_init 2.")
