import ast
import re
from pathlib import Path

import pytest
from log_text import write
from made_logs import RECIPE, write_log

from records.__main__ import main
from records.judge.check import check_entry, val_digest
from records.judge.logs import read_entry
from records.judge.script_rules import decisions_on_val_loss, foreign_imports, parse, rebound
from records.run.track import shipped_tracks

ROOT = Path(__file__).resolve().parents[1]
SCRIPT, PARTS, DECISION, STEP, SIGNIFICANCE, COMPLETE = range(6)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log that keeps all rules: a flattened script, four seeds."""
    return write_log(tmp_path_factory.mktemp("sound") / "a.txt").read_text()


@pytest.fixture(scope="module")
def bare(sound: str) -> str:
    """Its runs alone, without the script that takes a second to look through."""
    return sound[sound.index("=" * 100) :]


def broken_rules(folder: Path, *texts: str) -> dict[int, str]:
    """Place of the rule -> what is told, of the rules that the logs break."""
    for i, text in enumerate(texts):
        write(folder / f"{'abcdef'[i]}.txt", text)
    return {i: rule.told for i, rule in enumerate(check_entry(read_entry(folder))) if not rule.passed}


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def at_script_end(text: str, code: str) -> str:
    """The log with more code in its script."""
    head, separator, rest = text.partition("=" * 100)
    return head.rstrip("\n") + "\n\n" + code + "\n" + separator + rest


def test_a_sound_entry_keeps_all_rules(tmp_path: Path, sound: str, capsys: pytest.CaptureFixture) -> None:
    assert broken_rules(tmp_path, sound) == {}
    assert main(["check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[:-1]] == ["pass"] * 6


def test_exit_code_1_and_one_line_each(tmp_path: Path, sound: str, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "a.txt", at_script_end(sound, "import dion"))
    assert main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[:-1]] == ["pass", "FAIL", "pass", "pass", "pass", "pass"]
    assert lines[-1].endswith("1 of 6 rules broken")


def test_scripts_may_differ_in_their_arguments(tmp_path: Path, sound: str) -> None:
    other = changed(sound, "ARGUMENTS = ['--seeds', '0,1,2,3']", "ARGUMENTS = ['--seeds', '4,5,6,7']")
    other = changed(other, "seeds: 0,1,2,3", "seeds: 4,5,6,7")
    for seed in range(4):
        other = changed(other, f"seed: {seed}\n", f"seed: {seed + 4}\n")
    other = re.sub(r"(val_loss:\d\.\d{3})\d\d", r"\g<1>99", other)
    assert broken_rules(tmp_path, sound, other) == {}


def test_different_scripts(tmp_path: Path, sound: str) -> None:
    broken = broken_rules(tmp_path, sound, at_script_end(sound, "print(1)"))
    assert "different scripts" in broken[SCRIPT]


def test_code_in_the_line_of_arguments(tmp_path: Path, sound: str) -> None:
    broken = broken_rules(tmp_path, changed(sound, "ARGUMENTS = ['--seeds',", "ARGUMENTS = [print('x'),"))
    assert "a.txt: expected one line ARGUMENTS = [...] with strings only" in broken[SCRIPT]


def test_a_recipe_that_is_not_the_script_s(tmp_path: Path, sound: str) -> None:
    head, separator, rest = sound.partition("=" * 100)
    broken = broken_rules(tmp_path, head + separator + changed(rest, "lr = 0.02", "lr = 0.03"))
    assert "the recipe in the script is not the effective recipe" in broken[SCRIPT]


def test_no_script(tmp_path: Path, bare: str) -> None:
    broken = broken_rules(tmp_path, bare)
    assert "no script at the head [a.txt]" in broken[SCRIPT]
    assert broken[PARTS] == broken[DECISION] == "no script to look at [a.txt]"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import dion", "imports dion"),
        ("from heavyball import ForeachSOAP", "imports heavyball"),
        ("from optimizers import STEPS", "imports optimizers"),
        ("def f():\n    from . import muon", "imports ."),
        ("import importlib", "imports importlib: what it loads cannot be seen"),
        ("exec('import dion')", "calls exec: what it runs cannot be seen"),
    ],
)
def test_foreign_code(code: str, told: str) -> None:
    assert told in " ".join(foreign_imports(ast.parse(code)))


def test_foreign_code_in_a_log_s_script(tmp_path: Path, sound: str) -> None:
    broken = broken_rules(tmp_path, at_script_end(sound, "from . import dion"))
    assert set(broken) == {PARTS}
    assert "imports ." in broken[PARTS]


def test_python_s_own_and_listed_packages_are_no_foreign_code() -> None:
    code = "import torch.nn\nimport numpy as np, math, os.path\nfrom torch import compile\nmodel.eval()"
    assert list(foreign_imports(ast.parse(code))) == []


def test_changed_parts(tmp_path: Path, sound: str) -> None:
    cases = {
        "batch": ("batch_tokens=2048", "batch_tokens=4096", "track nano, batch_tokens is 4096, here 2048"),
        "model": ("class MLP(nn.Module):", "class MLP(nn.Module):\n    width = 8\n", "versions: MLP"),
        "missing": ("def validate(", "def evaluate(", "does not define validate"),
        "track": ("track=Track(name='nano'", "track=Track(name='mini'", "holds no track nano"),
    }
    for name, (old, new, told) in cases.items():
        assert told in broken_rules(tmp_path / name, changed(sound, old, new))[PARTS]


def test_docstrings_are_free(tmp_path: Path, sound: str) -> None:
    text = changed(sound, "class MLP(nn.Module):", 'class MLP(nn.Module):\n    """Told otherwise."""\n')
    assert broken_rules(tmp_path, text) == {}


def test_scripts_from_before_tracks_were_files(tmp_path: Path) -> None:
    """Such a script holds all tracks in a table; only its own counts."""
    log = min((ROOT / "records" / "nano" / "muon").glob("*.txt")).read_text()
    other = changed(log, "batch_tokens=524288", "batch_tokens=1")
    assert PARTS not in broken_rules(tmp_path / "other", other)
    own = changed(log, "batch_tokens=2048", "batch_tokens=4096")
    assert broken_rules(tmp_path / "own", own)[PARTS].startswith(
        "changed against this checkout: track nano, batch_tokens is 4096, here 2048"
    )


def test_what_is_free_but_other_is_named(tmp_path: Path, sound: str) -> None:
    write(tmp_path / "a.txt", changed(sound, "def build_optimizers(", "def build_optimizers(extra, "))
    rule = check_entry(read_entry(tmp_path))[PARTS]
    assert rule.passed
    assert rule.told.endswith("free but other than here: build_optimizers")


@pytest.mark.parametrize(
    "code",
    [
        "GPT.forward = None",
        "class GPT:\n    pass",
        "import x as GPT",
        "if True:\n    GPT = 1",
        "for GPT in []:\n    pass",
        "def f():\n    global GPT\n    GPT = 1",
        "setattr(GPT, 'forward', None)",
        "del GPT.forward",
        "globals()['GPT'] = 1",
        "GPT: type = 1",
    ],
)
def test_replacing_a_fixed_part_afterwards(code: str) -> None:
    tree = ast.parse("class GPT:\n    pass\n\n\n" + code)
    assert rebound(tree, {"GPT"})


def test_a_second_recipe_in_the_script(tmp_path: Path, sound: str) -> None:
    text = at_script_end(sound, "RECIPE = ''")
    assert "replaces or alters RECIPE" in " ".join(broken_rules(tmp_path, text).values())


def test_using_a_fixed_part_is_no_replacement() -> None:
    tree = ast.parse(
        "class GPT:\n    def f(self):\n        rotate = GPT()\n        return rotate\n\nx = GPT().forward"
    )
    assert not rebound(tree, {"GPT", "rotate"})


@pytest.mark.parametrize(
    "code",
    [
        "for step in range(9):\n    val_loss = f()\n    if val_loss < 3.28:\n        break",
        "while val_loss > 3.28:\n    train()",
        "if validate(model) < 3.28:\n    raise SystemExit",
        "best = min(best, val_loss)\nif best < 3.28:\n    sys.exit()",
        "def train():\n    loss = validate(model)\n    done = loss < 3.28\n    if done:\n        return",
        "if losses['val_loss'] < 3.28:\n    for group in groups:\n        group['lr'] = 0",
        "group['lr'] = 0.1 * val_loss",
        "lr = 0.1 if val_loss > 4 else 0.01",
        "scheduler.step(val_loss)",
        "if self.val_loss < 3.5:\n    optimizer.step()",
        "assert val_loss < 3.28",
        "with f() as g:\n    x, y = 1, val_loss\n    if y < 3:\n        exit()",
        "match val_loss < 3:\n    case True:\n        exit()",
        "for i in r:\n    if stop:\n        break\n    stop = val_loss < 3.28",
    ],
)
def test_decisions_on_validation_loss_are_found(code: str) -> None:
    assert decisions_on_val_loss(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "val_loss = validate(model)\nprint(val_loss)\nif step == last:\n    break",
        "if val_loss <= target and reached is None:\n    reached = step\n    print('reached')",
        "if not math.isfinite(val_loss):\n    raise ValueError",
        "if val_loss is None:\n    return",
        "x = val_loss\nlog(x)\nx = step\nif x > 3:\n    break",
        "a, b = val_loss, step\nif b > 3:\n    break",
        "if train_loss > 9:\n    break",
        "log.record(val_loss=val_loss)\nself.val = f'{val_loss:.4f}'",
    ],
)
def test_telling_a_validation_loss_is_no_decision(code: str) -> None:
    assert decisions_on_val_loss(ast.parse(code)) == []


def test_a_decision_in_a_script(tmp_path: Path, sound: str) -> None:
    broken = broken_rules(
        tmp_path, at_script_end(sound, "def f(val_loss):\n    if val_loss < 3.28:\n        return")
    )
    assert set(broken) == {DECISION}
    assert re.search(r"line \d+: if a validation loss: return in line \d+", broken[DECISION])


def test_different_total_steps(tmp_path: Path, bare: str) -> None:
    head, mark, last = bare.rpartition("seed: 3")
    broken = broken_rules(tmp_path, head + mark + changed(last, "/200 ", "/300 "))
    assert "different total steps" in broken[STEP]


def test_no_common_step(tmp_path: Path, bare: str) -> None:
    head, mark, _ = bare.rpartition("seed: 3")
    broken = broken_rules(tmp_path, head + mark + "\nstep:7/200 val_loss:3.00000\n")
    assert "no validation is common to all runs" in broken[STEP]


def test_a_target_that_is_not_shown(tmp_path: Path) -> None:
    write_log(tmp_path / "a.txt", offset=0.03)
    (rule,) = (rule for rule in check_entry(read_entry(tmp_path)) if not rule.passed)
    assert re.fullmatch(
        r"step 200: \(1\.\d+ - 1\.\d+\) sqrt\(4\) = \S+ < \S+ \(the last common step\)", rule.told
    )


def test_runs_that_are_not_complete(tmp_path: Path, bare: str) -> None:
    head, mark, last = bare.rpartition("seed: 3")
    lines = last.splitlines(keepends=True)
    cases = {
        "early": (head + mark + "".join(lines[:-3]), "ends early"),
        "gap": (head + mark + "".join(lines[:3] + lines[4:]), r"no validation at step 50 \(1 lacking\)"),
        "planned": (head, "planned seeds that were not run: 3"),
        "nan": (head + mark + re.sub(r"val_loss:\d\.\d+", "val_loss:nan", last), "not finite from step 0"),
        "twice": (bare + bare[bare.rindex("seed: 3") :], "the same curve 2 times"),
        "unseeded": (re.sub(r"seeds?: .*\n", "", bare), "no seeds are stated"),
        "damaged": (bare + "step:200/200 val_loss:1.3x\n", "a number is damaged"),
    }
    for name, (text, told) in cases.items():
        assert re.search(told, broken_rules(tmp_path / name, text)[COMPLETE]), name


@pytest.mark.parametrize("script", ["def (", "x = '\0'", "(" * 5000, "-" * 100_000 + "1"])
def test_scripts_that_cannot_be_parsed_are_named(script: str) -> None:
    assert parse(script).startswith(("it is not Python", "it cannot be parsed"))


def test_a_script_nested_too_deeply_is_named(tmp_path: Path, sound: str) -> None:
    for i, code in enumerate(("x = " + "-" * 60_000 + "1", "x = 1" + " + 1" * 10_000, "x" + ".y" * 10_000)):
        told = broken_rules(tmp_path / str(i), at_script_end(sound, code))[PARTS]
        assert re.search("cannot be parsed|too deeply|not Python", told)


def test_a_script_of_somebody_else_cannot_be_verified(tmp_path: Path, bare: str) -> None:
    broken = broken_rules(tmp_path, "import torch\n\nprint(torch)\n" + bare)
    assert broken[PARTS].startswith("cannot be verified: the script does not define")


def test_nothing_of_a_script_is_run(tmp_path: Path, sound: str) -> None:
    proof = tmp_path / "proof"
    text = at_script_end(sound, f"open({str(proof)!r}, 'w')")
    write(tmp_path / "e" / "a.txt", text)
    for command in (["summarize"], ["check"], ["extract"], ["compare", str(tmp_path / "e" / "a.txt")]):
        main([*command, str(tmp_path / "e" / "a.txt")])
    assert not proof.exists()


def with_val_shard(text: str, digest: str) -> str:
    told = f"shard x_val_000000.bin: 9 tokens, digest {digest}"
    return changed(text, "world_size: 1\n", f"world_size: 1\n{told}\n")


def test_another_validation_shard_is_told(tmp_path: Path, sound: str) -> None:
    known = val_digest(shipped_tracks()["nano"])
    assert broken_rules(tmp_path / "same", with_val_shard(sound, known)) == {}
    told = broken_rules(tmp_path / "other", with_val_shard(sound, "0" * 16))[PARTS]
    assert f"x_val_000000.bin of digest {'0' * 16}, expected {known}" in told


def test_a_validation_shard_whose_digest_is_not_known_is_not_compared(tmp_path: Path) -> None:
    fineweb = shipped_tracks()["fineweb"]
    text = write_log(tmp_path / "a.txt", recipe=RECIPE | {"track": "fineweb"}, track=fineweb).read_text()
    write(tmp_path / "a.txt", with_val_shard(text, "0" * 16))
    told = check_entry(read_entry(tmp_path / "a.txt"))[PARTS].told
    assert ("is not known, so not compared" in told) == (not val_digest(fineweb))
