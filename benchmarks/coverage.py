"""Connectivity on every network of torchvision, and on one or more of every family of timm.

For each it is tried: the effective masks of the dense network at every element; whether other
values of the connections found dead change the output (they must not); and whether, for channels
and random scores, one threshold of the (max, min) pass gives the effective masks of that threshold.
Writes a table into docs/connectivity.md. Networks of more than 100 million parameters run only
without --quick.

    python -m benchmarks.coverage [--quick] [NAME ...]
"""

import argparse
import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torchvision.models import get_model, get_model_builder, list_models

from lit_prune import Connectivity, LitPruneError, Masks, prunable

__all__ = ["Case", "Row", "cases", "examined"]

PAGE = Path(__file__).parents[1] / "docs" / "connectivity.md"
BEGIN, END = "<!-- written by benchmarks/coverage.py: begin -->", "<!-- end -->"
LARGE = 100_000_000
SIDES = (64, 75, 128, 224, 256, 299)

# The smallest member of each family of timm 1.0.31, and others that are built differently.
TIMM = """
    beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny
    convmixer_768_32 convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
    cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mobilenetv2_035 efficientvim_m1
    efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0
    hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
    mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050
    mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
    nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18
    rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
    tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224
    samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception
    xception41p xcit_nano_12_p8_224

    bat_resnext26ts botnet26t_256 caformer_s18 coatnet_nano_rw_224 convnextv2_atto
    deit_tiny_distilled_patch16_224 densenetblur121d dla60_res2net eca_nfnet_l0 ecaresnet26t
    efficientnet_b0_g16_evos efficientnet_cc_b0_4e eva02_tiny_patch14_224 gcresnet33ts
    ghostnetv2_100 gmixer_12_224 lambda_resnet26t lamhalobotnet50ts_256 levit_conv_128s
    maxvit_tiny_tf_224 mixer_s32_224 mixnet_s mobilenetv4_conv_small mobilenetv4_hybrid_medium
    mobilevitv2_050 nf_resnet50 pit_ti_distilled_224 poolformer_s12 repvgg_a0 res2net50_26w_4s
    resmlp_12_224 resnetaa50d resnetv2_50d_evos resnetv2_50x1_bit seresnext26d_32x4d
    skresnext50_32x4d tf_efficientnet_b0 tf_efficientnetv2_b0 tnt_s_patch16_224
    twins_pcpvt_small vit_base_patch16_siglip_224 vit_medium_patch16_gap_256
    vit_relpos_small_patch16_224 wide_resnet50_2
"""


@dataclass(frozen=True)
class Case:
    """One network: its library, its family, its name, and how it is built."""

    library: str
    family: str
    name: str
    build: Callable[[], nn.Module]


@dataclass
class Row:
    """What was found of one network; ``error`` says in one line why nothing was."""

    case: Case
    input: str = ""
    connections: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    error: str = ""


def cases() -> Iterator[Case]:
    """Yield every network, by library."""
    for module in (torchvision.models, torchvision.models.segmentation):
        for name in list_models(module=module):
            options = {"weights": None}
            if module is not torchvision.models:
                options["weights_backbone"] = None
            family = get_model_builder(name).__module__.rpartition(".")[2]
            yield Case("torchvision", family, name, partial(get_model, name, **options))
    try:
        timm = import_module("timm")
    except ImportError:
        print("timm is not installed; its networks are left out", file=sys.stderr)
        return
    for name in TIMM.split():
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        yield Case("timm", family, name, partial(timm.create_model, name, pretrained=False))


def examined(case: Case, quick: bool = False) -> Row | None:
    """Return what is found of one network; None if it is too large to be quick."""
    torch.manual_seed(0)
    row = Row(case)
    try:
        model = case.build().eval()
        if quick and sum(p.numel() for p in model.parameters()) > LARGE:
            return None
        _awaken(model)
        x = _example(model)
        row.input = "x".join(str(n) for n in x.shape[1:])
        connectivity = Connectivity(model, x)
        dense = Masks.dense(model)
        effective = connectivity.effective(dense)
        row.connections = dense.total
        row.dead = _reasons(model, x, effective)
        _require_equal_thresholds(model, x)
    except (LitPruneError, AssertionError) as error:
        row.error = " ".join(str(error).split())
    return row


def _example(model: nn.Module) -> Tensor:
    """Return an image of the smallest size that the network takes."""
    config = getattr(model, "pretrained_cfg", {})
    channels, *sides = config.get("input_size") or (3, SIDES[-1], SIDES[-1])
    tried = [sides] if config.get("fixed_input_size") else [[n, n] for n in SIDES] + [sides]
    for size in tried:
        x = torch.randn(1, channels, *size)
        try:
            with torch.no_grad():
                model(x)
        except Exception as error:
            reason = error
        else:
            return x
    raise LitPruneError(f"it takes no image of sides {tried}: {reason}")


def _awaken(model: nn.Module) -> None:
    """Give numbers to what starts at zero or nearly, so that no branch is silent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and float(parameter.abs().max()) < 1e-3:
                parameter.normal_(0, 0.1)


# Why connections of the dense network are dead.

UNUSED = "never used"
AUXILIARY = "auxiliary head, not used in eval mode"
CONSTANT = "acts on constants alone"
IGNORED = "its result is not used"
PADDING = "kernel taps that only touch padding"
OTHER = "leads to elements that are not used"


def _reasons(model: nn.Module, x: Tensor, effective: Masks) -> Counter[str]:
    """Return how many connections are dead, by reason.

    Connections that are dead for any reason but one must not change the output, whatever their
    values; this is checked.
    """
    weights = prunable(model)
    dead = {name: ~mask for name, mask in effective.items() if not bool(mask.all())}
    used = _used(model, x)
    training = _used_in_training(model, x) if any(n not in used for n in dead) else used
    found: Counter[str] = Counter()
    for name, mask in dead.items():
        whole = bool(mask.all())
        if name not in used:
            reason = AUXILIARY if name in training else UNUSED
        elif whole:
            is_heard = _changes(model, x, {weights[name]: mask})
            reason = CONSTANT if is_heard else IGNORED
        else:
            by_tap = mask.flatten(2).all(0).all(0) if mask.dim() > 2 else mask.new_zeros(1)
            is_tap = by_tap.view(1, 1, *mask.shape[2:]) == mask
            reason = PADDING if bool(is_tap.all()) else OTHER
        found[reason] += int(mask.sum())
        if reason == CONSTANT:
            mask.zero_()
    assert not _changes(model, x, {weights[n]: m for n, m in dead.items()}), "dead ones matter"
    return found


def _changes(model: nn.Module, x: Tensor, places: dict[nn.Parameter, Tensor]) -> bool:
    """Whether other numbers at some places of the weights change the output at all."""
    before = _run(model, x)
    assert all(bool(y.isfinite().all()) for y in before), "the output is not finite"
    aside = [(weight, weight[mask].clone()) for weight, mask in places.items()]
    with torch.no_grad():
        for weight, mask in places.items():
            weight[mask] = torch.randn(int(mask.sum()))
        after = _run(model, x)
        for (weight, values), mask in zip(aside, places.values(), strict=True):
            weight[mask] = values
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [y for y in tree_iter(model(x)) if isinstance(y, Tensor)]


def _used(model: nn.Module, x: Tensor) -> set[str]:
    """Return the prunable weights that any operation reads."""
    homes = {w.untyped_storage()._cdata: name for name, w in prunable(model).items()}
    with torch.no_grad(), _Seen(homes) as seen:
        model(x)
    return seen.names


def _used_in_training(model: nn.Module, x: Tensor) -> set[str]:
    """Return the same in training mode, where some networks only take larger images."""
    larger = nn.functional.interpolate(x, SIDES[-1])
    model.train()
    try:
        return _used(model, torch.cat([x, x]))
    except Exception:
        return _used(model, torch.cat([larger, larger]))
    finally:
        model.eval()


class _Seen(TorchDispatchMode):
    """Notes which weights are read."""

    def __init__(self, homes: dict[int, str]) -> None:
        super().__init__()
        self.homes, self.names = homes, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor) and (name := self.homes.get(x.untyped_storage()._cdata)):
                self.names.add(name)
        return func(*args, **(kwargs or {}))


def _require_equal_thresholds(model: nn.Module, x: Tensor) -> None:
    """At a median threshold, both ways to the effective masks of channels must agree."""
    connectivity = Connectivity(model, x, "channel")
    scores = {name: torch.rand(weight.shape) for name, weight in prunable(model).items()}
    widest = connectivity.effective_scores(scores)
    sample = torch.cat([w.flatten()[:: max(1, w.numel() // 1000)] for w in widest.values()])
    threshold = float(sample[sample > 0].median())
    masks = connectivity.effective(Masks({n: s >= threshold for n, s in scores.items()}))
    agree = all(torch.equal(mask, widest[n] >= threshold) for n, mask in masks.items())
    assert agree, "a threshold of the effective scores gives other masks"


# The page.


def page(rows: Sequence[Row]) -> str:
    """Return the tables."""
    lines = [
        "| library | networks | families | that run | connections |",
        "|---|---|---|---|---|",
        *(_summary(library, [r for r in rows if r.case.library == library])
          for library in dict.fromkeys(r.case.library for r in rows)),
    ]  # fmt: skip
    failed = [r for r in rows if r.error]
    if failed:
        lines += ["", "What does not run:", "", "| network | why |", "|---|---|"]
        lines += [f"| {r.case.library} `{r.case.name}` | {r.error} |" for r in failed]
    lines += ["", "Networks with connections that are dead when nothing is pruned:", ""]
    lines += ["| network | input | connections | dead | why |", "|---|---|---|---|---|"]
    lines += [_dead(r) for r in rows if r.dead and not r.error]
    for library, group in groupby(rows, key=lambda r: r.case.library):
        whole = [f"`{r.case.name}`" for r in group if not r.dead and not r.error]
        lines += ["", *wrap(f"No dead connection, {library}: {', '.join(whole)}.", 100)]
    return "\n".join(lines)


def _summary(library: str, rows: Sequence[Row]) -> str:
    families = len({r.case.family for r in rows})
    run = sum(not r.error for r in rows)
    total = sum(r.connections for r in rows)
    return f"| {library} | {len(rows)} | {families} | {run} | {total:,} |"


def _dead(row: Row) -> str:
    total = sum(row.dead.values())
    whys = (
        f"{why} ({number / total:.1%})" if len(row.dead) > 1 else why
        for why, number in row.dead.most_common()
    )
    name = f"{row.case.library} `{row.case.name}`"
    share = f"{total / row.connections:.2%}"
    return f"| {name} | {row.input} | {row.connections:,} | {share} | {'; '.join(whys)} |"


def written(text: str, tables: str) -> str:
    """Return the page with the tables between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="leave out the large ones")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; writes no page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # others may be at work here
    rows, left_out = [], []
    for case in cases():
        if options.names and case.name not in options.names:
            continue
        start = time.perf_counter()
        row = examined(case, options.quick)
        gc.collect()
        if row is None:
            left_out.append(case.name)
            continue
        rows.append(row)
        verdict = row.error or ", ".join(f"{why}: {n:,}" for why, n in row.dead.items()) or "ok"
        seconds = time.perf_counter() - start
        print(f"{case.library} {case.name} {row.input} {seconds:.0f} s: {verdict}", flush=True)
    if left_out:
        print(f"left out, since they are large: {', '.join(left_out)}")
    if not options.names:
        PAGE.write_text(written(PAGE.read_text(), page(rows)))
    sys.exit(any(row.error for row in rows))


if __name__ == "__main__":
    main()
