"""The command line: one run, its overrides, and one clear line for every mistake."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lit_prune import Connectivity, LitClassifier, Masks
from lit_prune.backbones import LeNet5, LeNet300100
from lit_prune.cli import main
from lit_prune.errors import TargetMissed

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SHORT = [
    *("--config", QUICKSTART),
    *("--trainer.max_epochs", "1"),
    *("--trainer.limit_train_batches", "3"),
    *("--trainer.log_every_n_steps", "1"),
    *("--pruning.criterion", "Random"),
]


def one_nan(probe):
    """A criterion that fails in one place."""
    scores = {name: torch.ones(mask.shape) for name, mask in probe.masks.items()}
    scores["backbone.fc2.weight"][3, 4] = float("nan")
    return scores


class Wide(nn.Module):
    """A backbone with an argument that it cannot do without."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(784, width)


@torch.library.custom_op("lit_prune_tests::unfollowed", mutates_args=())
def unfollowed(x: Tensor) -> Tensor:
    return x + 1


torch.library.register_autograd("lit_prune_tests::unfollowed", lambda context, gradient: gradient)


class Unfollowed(nn.Module):
    """A backbone with an operation that connectivity has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return unfollowed(self.fc(x.flatten(1)))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call ``main`` with a run folder of its own; return (exit code, stdout, stderr, folder)."""
    monkeypatch.setattr("sys.argv", ["train.py"])

    def call(*args: str, short: bool = True):
        folder = tmp_path / "run"
        capsys.readouterr()
        code = main([*(SHORT if short else []), *args, "--run_dir", str(folder)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err, folder

    return call


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def layers(folder: Path) -> list[dict[str, str]]:
    with (folder / "layers.csv").open() as file:
        return list(csv.DictReader(file))


def effective_of(masks: Masks, backbone: nn.Module) -> Masks:
    example = (1, 1, 28, 28)
    return Connectivity(LitClassifier(backbone), example, include=list(masks)).effective(masks)


def test_the_quickstart_is_a_hundred_times_compressed_by_what_is_effective(run):
    code, out, err, folder = run("--config", QUICKSTART, "--trainer.max_epochs", "1", short=False)
    assert (code, err) == (0, "")
    found = summary(folder)
    assert (found["effective_kept"], found["kept"], found["total"]) == (2662, 2675, 266_200)
    assert (found["effective_sparsity"], found["effective_compression"]) == (0.99, 100)
    assert (found["effective_flops"], found["flops"]) == (2 * 2662, 2 * 266_200)
    for words in ("2,675", "2,662", "99.0000%"):
        assert words in out


def test_a_run_leaves_settings_checkpoint_masks_layers_summary_and_curves(run):
    code, _, err, folder = run()
    assert (code, err) == (0, "")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    wanted = {
        "config.yaml",
        "checkpoints/last.ckpt",
        "masks.safetensors",
        "layers.csv",
        "summary.json",
    }
    assert wanted <= present
    assert not [name for name in present if name.endswith("~") or ".tmp" in name]

    masks = Masks.load(folder / "masks.safetensors")
    assert list(masks) == [f"backbone.fc{i}.weight" for i in (1, 2, 3)]
    assert masks.total == 266_200
    assert effective_of(masks, LeNet300100()).kept == 2662 < masks.kept
    assert [int(row["kept"]) for row in layers(folder)] == [row.kept for row in masks.layers()]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for name, mask in masks.items():
        assert (checkpoint["state_dict"][name][~mask] == 0).all()
        assert (checkpoint["state_dict"][name][mask] != 0).any()

    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= tags
    assert {"sparsity/direct", "test/accuracy"} <= tags
    assert events.Scalars("sparsity/direct")[-1].value == pytest.approx(masks.sparsity)
    assert events.Scalars("sparsity/effective")[-1].value == pytest.approx(0.99)
    assert events.Scalars("flops/effective")[-1].value == 2 * 2662
    assert len(events.Scalars("train/loss")) == 3


def test_the_table_at_the_end_says_what_matters(run):
    _, out, _, folder = run()
    found = summary(folder)
    accuracy, kept = f"{found['test_accuracy']:.2%}", f"{found['kept']:,}"
    direct = f"{found['direct_sparsity']:.4%}"
    for words in ("266,200", kept, direct, "2,662", "99.0000%", accuracy):
        assert words in out
    assert f"tensorboard --logdir {folder}" in out
    assert len(out.splitlines()) < 12


def test_the_config_of_a_run_can_be_run_again(run, tmp_path, capsys):
    _, _, _, folder = run()
    masks = Masks.load(folder / "masks.safetensors")
    again = tmp_path / "again"
    assert main(["--config", str(folder / "config.yaml"), "--run_dir", str(again)]) == 0
    assert Masks.load(again / "masks.safetensors") == masks
    assert summary(again)["test_accuracy"] == summary(folder)["test_accuracy"]


@pytest.mark.parametrize(
    ("args", "kept", "total"),
    [
        ("--pruning.target 10x --pruning.criterion SNIP --model.backbone LeNet5", 6147, 61_470),
        ("--pruning.target 2662 --pruning.quota IGQ", 2662, 266_200),
        ("--pruning.quota ERK --pruning.target 90%", 26_620, 266_200),
        ("--pruning.target.density 0.5", 133_100, 266_200),
        ("--pruning.target.keep 7 --pruning.allow_collapse true", 7, 266_200),
        ("--pruning.target 100% --pruning.allow_collapse true", 0, 266_200),
        ("--pruning.criterion Magnitude --pruning.rounds 3 --pruning.target 3x", 88_734, 266_200),
        ("--pruning.criterion SynFlow --pruning.rounds 2 --pruning.target 100x", 2662, 266_200),
        ("--pruning.include 'backbone.fc1*' --pruning.target 10x", 23_520, 235_200),
        ("--pruning.target 1x", 266_200, 266_200),
        ("--pruning.target 0%", 266_200, 266_200),
        ("--pruning.target 100x --pruning.schedule AtInit --pruning.batches 2", 2662, 266_200),
    ],
)
def test_an_override_replaces_what_the_config_says(run, args, kept, total):
    code, _, err, folder = run(*shlex.split(args))
    assert (code, err) == (0, "")
    found = summary(folder)
    assert (found["kept"], found["total"]) == (kept, total)
    assert found["effective_kept"] <= kept


@pytest.mark.parametrize(
    ("args", "effective"),
    [
        ("--pruning.target '1000x effective' --pruning.criterion SNIP", 267),
        ("--pruning.target '99.9% Effective' --pruning.criterion Magnitude", 267),
        ("--pruning.target '267 effective' --pruning.quota ERK", 267),
        ("--pruning.target.compression 1000 --pruning.target.measure effective", 267),
        ("--pruning.search reprune --pruning.quota Uniform", 2662),
        ("--pruning.prune_ineffective true", 2662),
        ("--pruning.criterion SynFlow --pruning.rounds 2", 2662),
        ("--pruning.batches 2 --pruning.criterion SNIP", 2662),
        ("--model.optimizer AdamW --model.scheduler null", 2662),
        ("--model.scheduler StepLR --model.scheduler.step_size 1", 2662),
        ("--model.backbone.batch_norm true --data.val_fraction 0 --data.rotate 5", 2662),
        ("--pruning.target '2x effective'", 133_100),
        ("--pruning.target '1x effective'", 266_200),
    ],
)
def test_an_effective_target_is_hit_or_its_miss_is_told(run, args, effective, recwarn):
    code, _, err, folder = run(*shlex.split(args))
    assert (code, err) == (0, "")
    found, masks = summary(folder), Masks.load(folder / "masks.safetensors")
    assert found["effective_kept"] == effective_of(masks, LeNet300100()).kept >= effective
    missed = [w for w in recwarn if issubclass(w.category, TargetMissed)]
    assert len(missed) == (found["effective_kept"] > effective)
    assert found["kept"] == masks.kept >= found["effective_kept"]
    if "ineffective" in args:
        assert masks.kept == found["effective_kept"]


def by_products(masks: Masks) -> list[Tensor]:
    """The effective connections of a chain of linear layers: products of booleans, no more."""
    weights = [mask.double() for mask in masks.values()]
    into, out = [torch.ones(weights[0].shape[1]).double()], [torch.ones(10).double()]
    for weight in weights:
        into.append((weight @ into[-1]).clamp(max=1))
    for weight in reversed(weights):
        out.insert(0, (out[0] @ weight).clamp(max=1))
    ends = zip(weights, into[:-1], out[1:], strict=True)
    return [after[:, None] * weight * before > 0 for weight, before, after in ends]


@pytest.mark.parametrize("target", ["100x", "100x effective"])
@pytest.mark.parametrize("quota", ["null", "IGQ"])
@pytest.mark.parametrize("backbone", [LeNet300100, LeNet5])
@pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")
def test_layers_and_summary_agree_with_the_stored_masks(run, backbone, quota, target):
    code, _, _, folder = run(
        *("--model.backbone", backbone.__name__, "--pruning.quota", quota),
        *("--pruning.target", target, "--pruning.criterion", "Magnitude"),
    )
    assert code == 0
    masks = Masks.load(folder / "masks.safetensors")
    effective = effective_of(masks, backbone())
    if backbone is LeNet300100:
        assert all(map(torch.equal, effective.values(), by_products(masks)))
    places = {"backbone.conv1.weight": 28 * 28, "backbone.conv2.weight": 10 * 10}
    rows = layers(folder)
    assert [row["name"] for row in rows] == list(masks)
    for row, kept, mask in zip(rows, masks.values(), effective.values(), strict=True):
        assert row["shape"] == "x".join(map(str, mask.shape))
        units = mask.flatten(2).any(2) if mask.dim() > 2 else mask
        once = 2 * places.get(row["name"], 1)
        assert {key: int(value) for key, value in row.items() if value.isdecimal()} == {
            "total": mask.numel(),
            "kept": kept.sum(),
            "effective": mask.sum(),
            "dead_in": (~units.any(0)).sum(),
            "dead_out": (~units.any(1)).sum(),
            "flops": once * mask.numel(),
            "effective_flops": once * mask.sum(),
        }
        assert float(row["sparsity"]) == (kept.numel() - int(kept.sum())) / kept.numel()

    found, total = summary(folder), masks.total
    assert {key: found[key] for key in found if "kept" in key or "flops" in key} == {
        "kept": masks.kept,
        "effective_kept": effective.kept,
        "flops": sum(int(row["flops"]) for row in rows),
        "effective_flops": sum(int(row["effective_flops"]) for row in rows),
        "other_flops": 0,
    }
    assert found["effective_sparsity"] == (total - effective.kept) / total
    assert found["effective_compression"] == total / effective.kept


def test_both_searches_find_the_same_masks_of_one_ranking(run):
    def masks(search):
        code, _, _, folder = run("--overwrite", "--pruning.search", search)
        assert code == 0
        return Masks.load(folder / "masks.safetensors")

    assert masks("curve") == masks("reprune")


def test_a_collapsed_network_runs_if_that_is_allowed(run):
    code, out, err, folder = run("--pruning.target", "100%", "--pruning.allow_collapse", "true")
    assert (code, err) == (0, "")
    assert Masks.load(folder / "masks.safetensors").kept == 0
    assert [(row["effective"], row["effective_flops"]) for row in layers(folder)] == [
        ("0", "0")
    ] * 3
    found = summary(folder)
    assert (found["effective_kept"], found["effective_sparsity"]) == (0, 1)
    assert found["effective_compression"] is None
    assert "100.0000%" in out


def test_a_backbone_that_cannot_be_followed_runs_and_is_not_measured(run):
    with pytest.warns(UserWarning, match="is not measured: lit_prune_tests::unfollowed"):
        code, out, err, folder = run(
            *("--model.backbone", f"{Path(__file__).stem}.Unfollowed", "--pruning.target", "10x")
        )
    assert (code, err) == (0, "")
    found = summary(folder)
    assert (found["kept"], found["total"], found["flops"]) == (784, 7840, 2 * 7840)
    effective = [found[key] for key in found if "effective" in key]
    assert effective == [None] * 4
    (row,) = layers(folder)
    assert (row["kept"], row["flops"]) == ("784", str(2 * 7840))
    assert [row[key] for key in ("effective", "dead_in", "dead_out", "effective_flops")] == [""] * 4
    assert out.count("not measured") == 2


def test_a_target_that_is_missed_is_one_clear_warning_on_stderr(tmp_path):
    """As a user sees it: in a process of its own. No path has less than three connections."""
    args = ["--pruning.target", "1 effective", "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SHORT, *args],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["effective_kept"] == 3
    lines = [line for line in done.stderr.splitlines() if "no threshold meets" in line]
    assert len(lines) == 1
    assert "1 effective" in lines[0]
    assert "3 are effective" in lines[0]
    assert "the next possible one is 100.000000%, with 0" in lines[0]
    assert "tqdm" not in done.stderr, "blames a library for it"
    assert done.stderr.count("\n") == 1, "shows a line of code that is not the user's"


def test_later_configs_win_key_by_key(run, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("pruning:\n  target: 10x\n  batches: 4\nseed_everything: 5\n")
    second.write_text("pruning:\n  target: 20x\n")
    _, _, _, folder = run("--config", str(first), "--config", str(second))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["pruning"]["batches"] == 4
    assert settings["pruning"]["criterion"]["class_path"] == "lit_prune.criteria.Random"
    assert (summary(folder)["kept"], summary(folder)["seed"]) == (13_310, 5)


def test_a_backbone_of_torchvision_comes_by_class_path(run):
    code, _, err, folder = run(
        *("--model.backbone", "torchvision.models.resnet18"),
        *("--model.backbone.dict_kwargs.num_classes", "10"),
        *("--data.channels", "3", "--data.batch_size", "4", "--pruning.target", "99%"),
        *("--trainer.enable_checkpointing", "false"),
        *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    )
    assert (code, err) == (0, "")
    masks = Masks.load(folder / "masks.safetensors")
    assert masks["backbone.conv1.weight"].shape == (64, 3, 7, 7)
    assert masks["backbone.fc.weight"].shape == (10, 512)
    assert masks.kept == masks.total - int(masks.total * 99 / 100)
    assert 0 < summary(folder)["effective_kept"] < masks.kept


def test_stored_masks_take_the_place_of_a_criterion(run, tmp_path):
    _, _, _, folder = run()
    (folder / "masks.safetensors").rename(tmp_path / "stored.safetensors")
    stored = Masks.load(tmp_path / "stored.safetensors")
    code, _, _, folder = run(
        *("--overwrite", "--seed_everything", "9"),
        *("--pruning.masks", str(tmp_path / "stored.safetensors")),
    )
    assert code == 0
    assert Masks.load(folder / "masks.safetensors") == stored


def test_seeds_change_the_masks_and_equal_seeds_do_not(run):
    def masks(*args):
        _, _, _, folder = run("--overwrite", *args)
        return Masks.load(folder / "masks.safetensors")

    assert masks() == masks()
    assert masks() != masks("--seed_everything", "1")


def test_the_default_folder_is_named_after_config_and_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    for args in ([], [], ["--pruning.target", "10x"]):
        assert main([*SHORT, *args]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("quickstart-") and len(name) == 19 for name in names)


def _exit_code(args: list[str]) -> int | None:
    try:
        return main(args)
    except SystemExit as stop:
        return stop.code or 0


def test_print_config_prints_settings_that_can_be_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    assert _exit_code([*SHORT, "--pruning.target", "77x", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert str(yaml.safe_load(printed)["pruning"]["target"]) == "77x"
    (tmp_path / "printed.yaml").write_text(printed)
    assert list(tmp_path.iterdir()) == [tmp_path / "printed.yaml"]
    assert main([*SHORT, "--pruning.target", "77x"]) == 0
    assert main(["--config", "printed.yaml"]) == 0
    one, other = (path.name.split("-") for path in (tmp_path / "runs").iterdir())
    assert {one[0], other[0]} == {"quickstart", "printed"}
    assert one[1] == other[1], "the same settings have the same hash"


def test_help_names_the_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    assert _exit_code(["--help"]) == 0
    out = capsys.readouterr().out
    for key in ("--pruning.target", "--pruning.criterion", "--model.backbone", "--run_dir"):
        assert key in out
    for key in ("--pruning.search", "--pruning.prune_ineffective", "--pruning.allow_collapse"):
        assert key in out
    assert list(tmp_path.iterdir()) == []


def _files(folder: Path) -> dict[str, str]:
    """Files that bad inputs point to."""
    save_file({"other.weight": torch.ones(2, 2).bool()}, folder / "other.safetensors")
    reshaped = {f"backbone.fc{i}.weight": torch.ones(2, 2).bool() for i in (1, 2, 3)}
    save_file(reshaped, folder / "reshaped.safetensors")
    dense = {
        f"backbone.{n}": torch.ones(p.shape).bool() for n, p in LeNet300100().named_parameters()
    }
    save_file({n: m for n, m in dense.items() if m.dim() > 1}, folder / "dense.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "other.safetensors").read_bytes()[:-1])
    torch.save({"fc1.weight": torch.ones(2)}, folder / "other.pt")
    content = (folder / "other.pt").read_bytes()
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])
    texts = {
        "two_targets": "pruning:\n  target:\n    sparsity: 0.5\n    keep: 3\n",
        "odd_target": "pruning:\n  target:\n    sparsty: 0.5\n",
        "odd_measure": "pruning:\n  target:\n    keep: 5\n    measure: efective\n",
        "key_in_group": "pruning:\n  targett: 3x\n",
        "top_key": "prunning:\n  target: 3x\n",
        "argument": "model:\n  backbone:\n    class_path: LeNet5\n    init_args:\n"
        "      num_clases: 10\n",
        "broken": "pruning: [\n  target: 3\n",
        "empty": "",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return {"here": str(folder), "tests": Path(__file__).stem}


# What is typed after a good command, and what the one line must name.
MISTAKES = {
    "unknown option": ("--trainer.max_eopchs 1", ["trainer.max_eopchs", "trainer.max_epochs"]),
    "shortened option": ("--trainer.max_epoch 1", ["trainer.max_epoch'", "trainer.max_epochs"]),
    "stray word": ("bogus", ["bogus"]),
    "unknown key in a group": (
        "--config {here}/key_in_group.yaml",
        ["pruning.targett", "pruning.target'"],
    ),
    "unknown key at the top": ("--config {here}/top_key.yaml", ["'prunning", "'pruning"]),
    "unknown argument": ("--config {here}/argument.yaml", ["num_clases", "num_classes"]),
    "unknown argument of data": ("--data.batch_siz 3", ["batch_siz", "batch_size"]),
    "unknown criterion": ("--pruning.criterion SNIPP", ["SNIPP", "'SNIP'"]),
    "unknown quota": ("--pruning.quota erk", ["'erk'", "ERK, ERKPlus, FromCriterion, IGQ"]),
    "unknown backbone": ("--model.backbone LeNet6", ["LeNet6", "LeNet5"]),
    "unknown data": ("--data MNST", ["MNST", "MNIST"]),
    "unknown schedule": ("--pruning.schedule AtInti", ["AtInti", "AtInit"]),
    "no validation interval": (
        "--trainer.val_check_interval 0",
        ["val_check_interval=0", "above 0"],
    ),
    "parameters in shards": (
        "--trainer.strategy fsdp",
        ["trainer.strategy=fsdp", "use auto or ddp"],
    ),
    "shards by another": ("--trainer.strategy deepspeed_stage_2", ["deepspeed_stage_2", "ddp"]),
    "processes out of reach": ("--trainer.strategy ddp_spawn", ["ddp_spawn", "use auto or ddp"]),
    "unknown optimizer": ("--model.optimizer torch.optim.SDG", ["SDG", "'SGD'"]),
    "unknown torchvision model": (
        "--model.backbone torchvision.models.resnet19",
        ["resnet19", "'resnet1"],
    ),
    "unknown argument by dict_kwargs": (
        "--model.backbone torchvision.models.resnet18 --model.backbone.dict_kwargs.bogus 7",
        ["bogus"],
    ),
    "120%": ("--pruning.target 120%", ["120%"]),
    "nan": ("--pruning.target nan", ["nan"]),
    "nan%": ("--pruning.target nan%", ["nan%"]),
    "0.5x": ("--pruning.target 0.5x", ["0.5x"]),
    "bare decimal": ("--pruning.target 0.5", ["0.5", "100x", "99%", "2662"]),
    "negative count": ("--pruning.target=-3", ["-3"]),
    "too many": ("--pruning.target 266201", ["266201", "266200"]),
    "two targets": ("--config {here}/two_targets.yaml", ["sparsity=0.5", "keep=3"]),
    "unknown target": ("--config {here}/odd_target.yaml", ["sparsty"]),
    "no target": ("--pruning.target null", ["target"]),
    "misspelt measure": (
        "--pruning.target '100x efective'",
        ["'100x efective'", "'100x'", "'99%'", "'2662'", "'effective'"],
    ),
    "unknown measure": (
        "--config {here}/odd_measure.yaml",
        ["pruning.target", "efective", "'direct' or 'effective'"],
    ),
    "bare decimal of effective ones": ("--pruning.target '0.5 effective'", ["0.5 effective"]),
    "too many effective": ("--pruning.target '266201 effective'", ["266201", "266200"]),
    "unknown search": (
        "--pruning.search fast",
        ["pruning.search", "fast", "'curve'", "'reprune'"],
    ),
    "everything": ("--pruning.target 100%", ["nothing effective is left", "allow_collapse"]),
    "everything effective": (
        "--pruning.target '100% effective'",
        ["nothing effective is left", "allow_collapse"],
    ),
    "too few for a path": ("--pruning.target 2", ["nothing effective is left", "allow_collapse"]),
    "no truth value": ("--pruning.allow_collapse maybe", ["pruning.allow_collapse", "maybe"]),
    "effective target that cannot be followed": (
        "--model.backbone {tests}.Unfollowed",
        ["lit_prune_tests::unfollowed", "no connectivity rule"],
    ),
    "masks of another effective count": (
        "--pruning.masks {here}/dense.safetensors",
        ["dense.safetensors", "266200", "100x effective", "2662"],
    ),
    "masks of another count": (
        "--pruning.masks {here}/dense.safetensors --pruning.target 5x",
        ["dense.safetensors", "266200", "5x", "53240"],
    ),
    "negative epochs": ("--trainer.max_epochs -1", ["max_epochs=-1"]),
    "no epochs": ("--trainer.max_epochs 0", ["max_epochs=0"]),
    "epochs in words": ("--trainer.max_epochs ten", ["trainer.max_epochs", "ten"]),
    "quota too small": ("--pruning.quota UniformPlus --pruning.target 10", ["200", "10"]),
    "missing config": ("--config {here}/none.yaml", ["none.yaml", "no such file"]),
    "broken config": ("--config {here}/broken.yaml", ["broken.yaml"]),
    "empty config": ("--config {here}/empty.yaml", ["empty.yaml"]),
    "no data": ("--data MNIST --data.root {here}", ["MNIST", "{here}", "--data.download true"]),
    "no cifar": ("--data CIFAR10 --data.root {here}", ["CIFAR10", "{here}", "download"]),
    "no folders": ("--data ImageFolder --data.root {here}", ["{here}", "train/"]),
    "input does not fit": ("--model.backbone LeNet5 --data.channels 3", ["LeNet5", "(3, 28, 28)"]),
    "output does not fit": ("--model.backbone.num_classes 7", ["LeNet300100", "7", "10 classes"]),
    "output is no logits": ("--model.backbone torch.nn.Identity", ["Identity", "10 classes"]),
    "missing argument": ("--model.backbone {tests}.Wide", ["Wide", "width"]),
    "no module": ("--model.backbone nowhere.Net", ["nowhere"]),
    "wrong type": ("--data.batch_size many", ["batch_size", "many"]),
    "batch size": ("--data.batch_size 0", ["batch_size=0"]),
    "nan score": ("--pruning.criterion {tests}.one_nan", ["backbone.fc2.weight", "NaN"]),
    "pattern": ("--pruning.include 'fc1*'", ["'fc1*'", "backbone.fc1.weight"]),
    "pattern out": ("--pruning.exclude 'backbone.fc4*'", ["backbone.fc4*", "backbone.fc"]),
    "nothing left": ("--pruning.exclude '*'", ["nothing to prune"]),
    "masks of another model": (
        "--pruning.masks {here}/other.safetensors",
        ["other.weight", "another model"],
    ),
    "masks of another shape": (
        "--pruning.masks {here}/reshaped.safetensors",
        ["backbone.fc1.weight", "(2, 2)", "(300, 784)"],
    ),
    "cut masks": ("--pruning.masks {here}/cut.safetensors", ["cut.safetensors", "cut"]),
    "no masks": ("--pruning.masks {here}/none.safetensors", ["none.safetensors", "no such file"]),
    "weights of another model": ("--model.weights {here}/other.pt", ["other.pt", "LeNet300100"]),
    "cut weights": ("--model.weights {here}/cut.pt", ["cut.pt", "cut"]),
    "no weights": ("--model.weights {here}/none.pt", ["none.pt", "no such file"]),
    "rounds": ("--pruning.rounds 0", ["rounds=0"]),
    "batches": ("--pruning.batches 0", ["batches=0"]),
    "optimizer that moves zeros": ("--model.optimizer Rprop", ["Rprop", "AdamW"]),
    "negative rate": ("--model.optimizer.lr=-1", ["-1"]),
    "smoothing": ("--model.label_smoothing 2", ["label_smoothing", "2"]),
    "negative seed": ("--seed_everything=-1", ["-1"]),
    "no training batch": ("--trainer.limit_train_batches 0", ["limit_train_batches"]),
    "learning rate in words": ("--model.optimizer.lr fast", ["optimizer.lr", "float", "'fast'"]),
    "argument of a scheduler": (
        "--model.scheduler torch.optim.lr_scheduler.StepLR --model.scheduler.step_size often",
        ["model.scheduler.step_size: expected int, got 'often'"],
    ),
    "argument of a schedule": (
        "--pruning.schedule AfterTraining --pruning.schedule.rate fast",
        ["pruning.schedule.rate: expected float or dict or null, got 'fast'"],
    ),
    "choice of an argument": (
        "--pruning.schedule Iterative --pruning.schedule.rewind back",
        ["pruning.schedule.rewind: expected 'weights' or 'learning_rate' or", "got 'back'"],
    ),
    "precision": ("--trainer.precision 8", ["trainer.precision", "'bf16-mixed'", "got '8'"]),
    "monitor": ("--monitor maybe", ["monitor: expected true or false, got 'maybe'"]),
    "a value with a dash": (
        "--pruning.schedule Iterative --pruning.schedule.rewind_to -1ep",
        ["lacks its value", "OPTION=VALUE"],
    ),
    "an option alone": ("--monitor", ["--monitor lacks its value"]),
    "a plateau of nothing": (
        "--model.scheduler torch.optim.lr_scheduler.ReduceLROnPlateau",
        ["lightning.pytorch.cli.ReduceLROnPlateau", "monitor"],
    ),
    "nothing to train on": ("--data.val_fraction 0.9999", ["val_fraction"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_code_2_and_no_folder(name, run, tmp_path, recwarn):
    fields = _files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    typed, named = MISTAKES[name]
    code, out, err, folder = run(*shlex.split(typed.format(**fields)))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) < 600
    for words in named:
        assert words.format(**fields) in err
    assert not folder.exists(), "a half-made run folder is left"
    assert sorted(tmp_path.rglob("*")) == before
    shown = [w for w in recwarn if not issubclass(w.category, DeprecationWarning | FutureWarning)]
    assert [str(w.message) for w in shown] == [], "more lines on stderr"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("", ["model.backbone", "data"]),
        ("--model.backbone LeNet5", ["data"]),
        ("--model.backbone LeNet5 --data Digits", ["criterion"]),
        (
            "--model.backbone LeNet5 --data Digits --pruning.criterion SNIP --pruning.target 9x",
            ["max_epochs"],
        ),
        (f"--config {QUICKSTART} --config none.yaml", ["none.yaml"]),
    ],
)
def test_a_command_without_the_least_is_told_what_is_missing(typed, named, run):
    code, out, err, folder = run(*shlex.split(typed), short=False)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(words in err for words in named)
    assert not folder.exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "file").write_text("text")
    for place in ("file", "file/inside"):
        code = main([*SHORT, "--run_dir", str(tmp_path / place)])
        captured = capsys.readouterr()
        assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)
        assert str(tmp_path / "file") in captured.err
    assert (tmp_path / "file").read_text() == "text"


def test_the_bar_says_which_round_is_scored_and_which_epoch_it_is(run):
    code, out, err, _ = run(
        *("--trainer.enable_progress_bar", "true", "--trainer.max_epochs", "2"),
        *("--pruning.criterion", "SynFlow", "--pruning.rounds", "7"),
    )
    assert code == 0
    assert re.search(r"scoring round: +\d+%.*/7 ", err)
    for words in ("epoch 1 of 2", "epoch 2 of 2", "val/accuracy="):
        assert words in out + err
    assert "v_num" not in out + err


def test_a_good_run_says_nothing_on_stderr(run):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        code, _, err, _ = run()
    assert (code, err) == (0, "")
    own = [w for w in shown if not issubclass(w.category, DeprecationWarning | FutureWarning)]
    assert [str(w.message) for w in own] == []
