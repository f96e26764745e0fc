import subprocess
import sys
import time

import pytest

from vlalign.cli.main import main
from vlalign.registry import OBJECTIVES

HEAVY = ("transformers", "open_clip", "timm", "peft", "accelerate", "deepspeed", "datasets", "faiss")


def run(*words: str, code: int = 0, capsys=None) -> str:
    """What the command line prints on both streams; its exit code is checked."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["vlalign", *words])
        main()
        raise SystemExit(0)
    told = capsys.readouterr()
    assert (left.value.code or 0) == code, told
    return told.out + told.err


def test_help_is_quick_and_imports_no_torch():
    code = "import sys, vlalign.cli.main; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert done.stdout.strip() == "[]"
    assert min(times) < 0.5


def test_checking_every_shipped_recipe_imports_nothing_heavy():
    code = (
        "import sys\nfrom vlalign.cli.recipes import check\ncheck()\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "align/quickstart.yaml: ok" in done.stdout


def test_a_recipe_with_mistakes_exits_2_without_a_traceback(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "verb: train\nout: x\nstep: 3\noptim: {name: adamw, lr: fast}\nschedule: {name: cosin}\n"
        "task:\n  name: align\n  targets: identity\n  terms:\n    - objective: {name: infonce}\n"
        "    - objective: {name: info_nce, label_smooting: 0.1}\n"
        "    - objective: dcl\n      weighters: [{name: focal, gamma: -1.0}]\n"
        "model: {name: open_clip, id: ViT-B-32}\ndata: {train: {name: emoji, style: google}, batch: 8}\n"
    )
    told = run("train", str(bad), code=2, capsys=capsys).splitlines()
    assert told == [
        f"{bad}: 6 mistakes",
        f"  {bad}:3: step: TrainRecipe has no field 'step'. Did you mean 'steps'?",
        f"  {bad}:4: optim.lr: expected float, got 'fast' (str)",
        f"  {bad}:5: schedule.name: unknown schedule 'cosin'. Did you mean 'cosine'? Known: cosine",
        f"  {bad}:10: task.terms.0.objective.name: unknown objective 'infonce'. Did you mean 'info_nce'? "
        f"Known: {', '.join(OBJECTIVES.names())}",
        f"  {bad}:11: task.terms.1.objective.label_smooting: InfoNCE has no field 'label_smooting'. "
        "Did you mean 'label_smoothing'?",
        f"  {bad}:13: task.terms.2.weighters.0.gamma: must be >= 0, got -1.0",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: there is no such recipe"),
        (
            ["train", "recipes/align/quickstart.yaml", "steps"],
            "'steps' is no override; write dotted.path=value",
        ),
        (
            ["train", "recipes/align/quickstart.yaml", "task.term=1"],
            "Align has no field 'term'. Did you mean 'terms'?",
        ),
        (["train", "recipes/align/quickstart.yaml", "out="], "out: must not be empty"),
        (["train", "recipes/align/quickstart.yaml", "seed=-1"], "seed: must be >= 0"),
        (["push", "recipes/push.yaml", "model=", "repo="], "repo: must not be empty"),
        (
            ["eval", "recipes/align/quickstart.yaml"],
            "this is a recipe for 'vlalign train', not for 'vlalign eval'",
        ),
        (["recipes", "check", "nowhere.yaml"], "there is no such recipe"),
        (["methods", "show", "info_nse"], "Did you mean 'info_nce'?"),
        (["methods", "list", "objectiv"], "Did you mean 'objective'?"),
        (["data", "fetch", "emojis"], "Did you mean 'emojibase-data'?"),
        (["plan", "recipes/tiny/clip.yaml", "--device", "h10"], "Did you mean 'h100'?"),
        (["plan", "recipes/tiny/clip.yaml", "--strategy", "zero4"], "--strategy: unknown 'zero4'"),
        (["plan", "recipes/tiny/clip.yaml", "--processes", "3"], "shared by 3 processes; use 30 or 33"),
        (["plan", "recipes/tiny/clip.yaml", "--processes", "0"], "processes: must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(words, told, capsys):
    said = run(*words, code=2, capsys=capsys)
    assert told in said and "Traceback" not in said


def test_what_every_process_of_a_machine_meets_is_told_by_one(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not run("train", "nowhere.yaml", code=2, capsys=capsys)


def test_methods_list_and_show_print_what_the_code_says(capsys):
    assert "  dcl " in run("methods", "list", "objective", capsys=capsys)
    shown = run("methods", "show", "info_nce", capsys=capsys)
    assert "label_smoothing: float" in shown and "default 0.0" in shown


def test_recipes_list_show_and_diff(capsys):
    assert "recipes/align/quickstart.yaml" in run("recipes", "list", capsys=capsys)
    assert "verb: train" in run("recipes", "show", "recipes/align/quickstart.yaml", capsys=capsys)
    same = ["recipes/align/quickstart.yaml"] * 2
    assert "no difference" in run("recipes", "diff", *same, capsys=capsys)
    other = ["recipes/align/quickstart.yaml", "recipes/align/lit.yaml"]
    assert "model" in run("recipes", "diff", *other, code=1, capsys=capsys)


def test_plan_prints_memory_messages_and_speed_by_a_launch_file(capsys):
    words = ["plan", "recipes/tiny/clip.yaml", "--launch", "recipes/launch/zero2.yaml", "--device", "l4"]
    told = run(*words, "--processes", "4", capsys=capsys)
    assert "4 x NVIDIA L4, ZeRO-2, bf16" in told and "It fits." in told
    for word in ("weights", "score table", "sent: gathered embeddings", "samples a second"):
        assert word in told


def test_plan_says_what_to_change(capsys):
    words = ["plan", "recipes/align/clip.yaml", "model.id=ViT-L-14", "data.batch=1024", "data.chunk=512"]
    told = run(*words, "--device", "l4", capsys=capsys)
    assert "It does not fit" in told and "data.chunk=" in told
