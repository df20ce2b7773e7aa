import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import lcs
from lcs import measure
from lcs.evaluate import Evaluation, Row
from lcs.measure import MeasureError, check_layers, measure_speed, measure_switch
from lcs.plot import plot
from lcs.table import print_table
from lcs_kernels import costs, formats

X = torch.randn(2, 3, 8, 8)


@pytest.fixture
def subspace(monkeypatch):
    monkeypatch.setattr("lcs.sparse_packing._FEW", 0)  # else convolutions of few products are sparse anyway
    monkeypatch.setattr(costs, "pays", lambda op, x_shape, weight_shape, density, stride: density < 0.3)
    monkeypatch.setattr(measure, "ROUNDS", (3, 3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 4))
    return lcs.convert(model, lcs.Unstructured(), init="independent")


def levels(subspace, *densities):
    return [subspace.recipe.level(density) for density in densities]


def test_every_level_is_timed_next_to_the_dense_network(subspace):
    found = measure_speed(subspace, X, levels(subspace, 0.1, 1.0), seconds=0)
    assert (found.device, found.threads, found.batch, found.rounds) == ("cpu", 1, 2, 3)
    assert [(row.value, row.packed_layers, row.compressed_layers) for row in found.rows] == [(0.1, 2, 2), (1, 1, 2)]
    weights = 3 * 8 * 9 + 8 + 8 + 8 + 288 * 4 + 4
    assert found.dense.resident_bytes == 4 * weights
    assert found.rows[1].resident_bytes == 4 * weights + 3 * 9 * 16 * 4  # a block as the dense kernel reads it
    assert found.rows[0].resident_bytes < 2 * weights
    for row in found.rows:
        assert 0 < row.median_ms <= row.p90_ms and 0 <= row.undisturbed <= 3
        assert row.speedup == found.dense.median_ms / row.median_ms
    assert subspace.level is None and subspace.training


def test_modules_that_are_not_part_of_the_subspace_count_as_resident(subspace):
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(7), nn.Linear(4, 2))
    point = lcs.convert(model, lcs.Unstructured(line=False), dense="2")
    found = measure_speed(point, torch.randn(1, 7, 4), levels(point, 1.0), seconds=0)
    assert found.dense.resident_bytes == found.rows[0].resident_bytes == 4 * (20 + 7 + 10)


def test_a_row_that_fell_back_has_no_speed_up(subspace, tmp_path):
    one = lcs.convert(nn.Sequential(nn.Conv1d(3, 4, 3)), lcs.Unstructured())
    speed = measure_speed(one, torch.randn(2, 3, 8), levels(one, 0.1), seconds=0)
    assert speed.rows[0].speedup is None
    console = Console(record=True, width=100)
    print_table(evaluation(speed), console)
    assert "fell back" in console.export_text()
    plot(evaluation(speed), tmp_path / "plot.png")


def evaluation(speed):
    rows = [Row(row.value, row.value, 0.9, 0.1, 0.5, 1, 2) for row in speed.rows]
    return Evaluation("runs/x", "lcs_l", "density", 1, 100, rows, rows[:1], rows[-1], speed)


def test_table_json_and_plot(subspace, tmp_path):
    speed = measure_speed(subspace, X, levels(subspace, 0.1, 0.5, 1.0), seconds=0)
    slow, fast = replace(speed.rows[0], speedup=0.5), replace(speed.rows[1], speedup=2.25)
    speed = replace(speed, rows=[slow, fast, speed.rows[2]])
    console = Console(record=True, width=80)
    print_table(evaluation(speed), console)
    shown = console.export_text()
    assert "0.50x" in shown and "2.25x" in shown and "plain" in shown and "…" not in shown
    assert json.loads(evaluation(speed).to_json())["speed"]["rows"][0]["speedup"] == 0.5
    (
        plot(evaluation(speed), tmp_path / "with.png"),
        plot(replace(evaluation(speed), speed=None), tmp_path / "without.png"),
    )
    pictures = [Image.open(tmp_path / f"{name}.png").convert("RGB").tobytes() for name in ("with", "without")]
    assert pictures[0] != pictures[1]


def test_the_plain_network_has_no_bit_width_of_one():
    point = lcs.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), lcs.Quantized(line=False))
    with point.at(bits=8):
        point(X)  # which finds the ranges of inputs
    speed = measure_speed(point, X, [point.recipe.level(8)], seconds=0)
    rows = [Row(8, 0.0, 0.9, 0.1, 0.5, 1, 2)]
    console = Console(record=True, width=80)
    print_table(Evaluation("runs/x", "lcs_p", "bits", 1, 100, rows, [], None, speed), console)
    plain = next(line for line in console.export_text().splitlines() if "plain" in line)
    assert speed.dense.value == 32 and [cell.strip() for cell in plain.split("│")][1:3] == ["plain", "32"]


def test_a_quiet_machine_is_asked_for_where_calls_were_disturbed(subspace):
    speed = measure_speed(subspace, X, levels(subspace, 1.0), seconds=0)
    for undisturbed in (2, 3):
        rows = [replace(row, undisturbed=undisturbed) for row in (speed.dense, *speed.rows)]
        console = Console(record=True, width=100)
        print_table(evaluation(replace(speed, dense=rows[0], rows=rows[1:])), console)
        assert ("~" in console.export_text(clear=False)) == (undisturbed == 2)
        assert ("quiet machine" in " ".join(console.export_text().split())) == (undisturbed == 2)


def test_a_wrong_layer_is_named_and_nothing_is_timed(subspace, monkeypatch):
    pack = formats.SparseWeight.pack.__func__

    def wrong(cls, w, mask_bits=None):
        return pack(cls, w * (1 + 1e-3), mask_bits)

    monkeypatch.setattr(formats.SparseWeight, "pack", classmethod(wrong))
    monkeypatch.setattr(measure, "interleave", lambda *_: pytest.fail("timed"))
    with pytest.raises(MeasureError, match="^0 at Level.*wrong by more than rounding"):
        measure_speed(subspace, X, levels(subspace, 0.1))


def test_only_packed_layers_are_compared(subspace):
    frozen = subspace.freeze()
    assert [check_layers(frozen, X, level) for level in levels(subspace, 0.1, 0.5)] == [2, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_first_layers_by_winograd_may_round_as_often_as_they_do(channels):
    """The errors of its products, next to those of the sums of a dark image, too."""
    torch.manual_seed(0)
    stem = nn.Conv2d(channels, 64, 7, 2, 3), nn.InstanceNorm2d(64, affine=True)
    model = nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    frozen = lcs.convert(model, lcs.Structured(), dense=["4"]).freeze()
    x = torch.randn(2, channels, 64, 64)
    x[..., :40, :40] *= 1e-4
    assert check_layers(frozen, x, frozen.recipe.level(1.0)) == 1


def test_what_a_switch_costs(subspace):
    found = measure_switch(subspace, X, [0.1, 0.5], rounds=3)
    assert [row.density for row in found] == [0.1, 0.5]
    assert all(value > 0 for row in found for value in vars(row).values())
