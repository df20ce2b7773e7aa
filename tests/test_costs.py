"""The cost table: which shape is the most similar, whose table is read, and what a damaged one says."""

import json

import pytest
from lcs_kernels.benchmarks import calibrate

from lcs_kernels import costs, isa


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a calibrated table, and forgets it afterwards."""
    monkeypatch.setenv("LCS_CACHE", str(tmp_path))

    def write(**tables):
        content = {name: {"breaks": breaks} for name, breaks in tables.items()}
        costs.calibrated().write_text(json.dumps(content))
        costs.reset()

    yield write
    monkeypatch.undo()
    costs.reset()


def linear(rows, features, density):
    return {"op": "sparse_linear", "size": [rows, features, features], "density": density}


@pytest.fixture
def vectors(monkeypatch):
    """A machine with AVX2 alone, whichever this one is."""
    monkeypatch.setattr(isa, "max_name", lambda: "avx2")


@pytest.mark.parametrize(("rows", "density"), [(1, 0.6), (2, 0.6), (9, 0.3), (500, 0.3)])
def test_the_most_similar_shape_decides(table, vectors, rows, density):
    table(avx2=[linear(1, 512, 0.6), linear(16, 512, 0.3)])
    assert costs.break_even("sparse_linear", (rows, 600), (700, 600)) == density
    assert costs.pays("sparse_linear", (rows, 600), (700, 600), density - 0.01)
    assert not costs.pays("sparse_linear", (rows, 600), (700, 600), density)


def test_leading_dimensions_are_rows(table, vectors):
    table(avx2=[linear(1, 512, 0.6), linear(64, 512, 0.3)])
    assert costs.break_even("sparse_linear", (8, 8, 512), (512, 512)) == 0.3


def test_sizes_of_a_convolution():
    assert costs.size_of("sparse_conv2d", (2, 8, 5, 7), (16, 4, 3, 3)) == (2, 4, 16, 35, 9, 1)
    assert costs.size_of("sparse_conv2d", (2, 8, 5, 7), (16, 4, 3, 3), 2) == (2, 4, 16, 35, 9, 2)


def test_a_strided_convolution_is_like_a_strided_one(table, vectors):
    sizes = {1: [1, 8, 8, 64, 9, 1], 2: [1, 8, 8, 64, 9, 2]}
    table(avx2=[{"op": "sparse_conv2d", "size": size, "density": 0.1 * stride} for stride, size in sizes.items()])
    for stride, density in ((1, 0.1), (2, 0.2), (3, 0.2)):
        assert costs.break_even("sparse_conv2d", (1, 8, 7, 8), (8, 8, 3, 3), stride) == density
        assert costs.pays("sparse_conv2d", (1, 8, 7, 8), (8, 8, 3, 3), density - 0.01, stride=stride)


def test_an_op_that_was_not_measured_runs_dense(table, vectors):
    table(avx2=[linear(1, 512, 0.6)])
    assert not costs.pays("sparse_conv2d", (1, 8, 9, 9), (8, 8, 3, 3), 0.0)


@pytest.fixture
def amx(monkeypatch):
    """A machine with AMX, whichever this one is."""
    monkeypatch.setattr(isa, "max_name", lambda: "amx")


@pytest.mark.parametrize(
    ("rows", "density", "pays"), [(16, 0.05, True), (500, 1.0, True), (15, 1, False), (16, 0.04, 0)]
)
def test_tiles_without_a_measurement_follow_the_rule(table, amx, rows, density, pays):
    table(avx2=[linear(1, 512, 0.6)])
    assert costs.tiles_pay((rows, 512), (512, 512), density) == pays


def test_a_measurement_of_tiles_replaces_the_rule(table, amx):
    entry = linear(4, 512, 0.3) | {"op": "sparse_linear_tiles"}
    table(amx=[entry, entry | {"size": [64, 512, 512], "density": 0.01}, linear(1, 512, 0.6)])
    for rows, density in ((4, 0.3), (64, 0.01)):
        assert costs.tiles_pay((rows, 512), (512, 512), density + 0.01)
        assert not costs.tiles_pay((rows, 512), (512, 512), density)


def test_tiles_need_amx(table, vectors):
    table(avx2=[linear(64, 512, 0.3) | {"op": "sparse_linear_tiles"}])
    assert not costs.tiles_pay((64, 512), (512, 512), 0.5)


def test_calibration_on_amx_measures_tiles(table, amx, monkeypatch):
    """The kernels stay those of this machine, which are right with a prepack of tiles wherever they run."""
    table()
    monkeypatch.setattr(calibrate, "cases", lambda: [])
    monkeypatch.setattr(calibrate, "LINEAR", [(2, 32)])
    said = []
    calibrate.calibrate(costs.calibrated(), 1, said.append)
    ((only,),) = costs.load(costs.calibrated()).values()
    assert (only.op, only.size) == ("sparse_linear_tiles", (2, 32, 32)) and "tiles win above" in said[0]
    assert costs.tiles_pay((2, 32), (32, 32), 1.0) == (only.density < 1.0)


def test_break_even_of_tiles():
    timings = {f"tiles {d}": 1.0 for d in calibrate.DENSITIES} | {f"stored {d}": 5 * d for d in calibrate.DENSITIES}
    assert calibrate.tiles_break_even(timings) == pytest.approx(0.2)


def test_scalar_kernels_never_pay(table):
    table(avx2=[linear(1, 512, 0.6)])
    before = isa.max_name()
    isa.set_max("scalar")
    try:
        assert not costs.pays("sparse_linear", (1, 512), (512, 512), 0.01)
        assert "dense" in costs.source()
    finally:
        isa.set_max(before)


def test_a_better_instruction_set_comes_before_the_machines_own_table(table, monkeypatch):
    table(avx2=[linear(1, 512, 0.9)])
    monkeypatch.setattr(isa, "max_name", lambda: "avx512")
    assert costs.source() == "costs.json (shipped, avx512)"
    monkeypatch.setattr(isa, "max_name", lambda: "avx2")
    assert costs.source() == "costs.json (this machine, avx2)"


def test_the_shipped_table_is_read_without_a_calibrated_one(tmp_path, monkeypatch, vectors):
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "none"))
    costs.reset()
    assert "shipped" in costs.source()
    assert costs.pays("sparse_linear", (1, 4096), (4096, 4096), 0.05)
    monkeypatch.undo()
    costs.reset()


def test_the_shipped_table_has_every_case():
    for name, breaks in costs.load(costs.SHIPPED).items():
        assert name in isa.NAMES
        measured = {(b.op, b.size) for b in breaks}
        wanted = {(op, costs.size_of(op, x, w, stride)) for op, x, w, stride in calibrate.cases()}
        tiles = {("sparse_linear_tiles", (rows, n, n)) for rows, n in calibrate.LINEAR if name == "amx"}
        assert measured == wanted | tiles
        assert all(0 <= b.density <= 1 for b in breaks)


OLD = '{"avx2": {"breaks": [{"op": "sparse_conv2d", "size": [1, 8, 8, 64, 9], "density": 0.5}]}}'  # without a stride


def breaks(**changes):
    return json.dumps({"avx2": {"breaks": [linear(1, 512, 0.5) | changes]}})


DAMAGED = ["", "[]", '{"avx2": {}}', '{"avx2": {"breaks": [{"op": "x"}]}}', OLD]
WRONG = [breaks(density=-7), breaks(density=float("nan")), breaks(size="123")]


@pytest.mark.parametrize(
    "content", [*WRONG, "", "[]", '{"avx2": {}}', '{"avx2": {"breaks": [{"op": "x"}]}}', OLD], ids=repr
)
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is not a cost table.*lcs bench --calibrate"):
        costs.load(path)


def test_calibration_replaces_a_damaged_table(table, vectors, monkeypatch):
    table()
    costs.calibrated().write_text("{")
    monkeypatch.setattr(calibrate, "cases", lambda: [("sparse_linear", (2, 8), (8, 8), 1)])
    said = []
    calibrate.calibrate(costs.calibrated(), 1, said.append)
    assert "is not a cost table" in said[-1] and costs.load(costs.calibrated()).keys() == {"avx2"}


def test_an_op_without_a_table_is_named():
    with pytest.raises(ValueError, match="no op 'interpolate_prune' has a cost table"):
        costs.pays("interpolate_prune", (1,), (1,), 0.5)


@pytest.mark.parametrize(
    ("sparse", "density"),
    [
        ({0.1: 1.0, 0.4: 4.0}, 0.2),
        ({0.1: 3.0, 0.4: 4.0}, 0.0),
        ({0.1: 1.0, 1.0: 1.5}, 1.0),
        ({0.1: 2.0, 0.4: 2.5}, 0.0),
    ],
)
def test_break_even(sparse, density):
    assert calibrate.break_even(2.0, sparse) == pytest.approx(density)


def test_calibration_writes_what_is_read(table, vectors, monkeypatch):
    table(scalar=[linear(1, 4, 0.5)])
    case = ("sparse_linear", (2, 8), (8, 8), 1)
    monkeypatch.setattr(calibrate, "cases", lambda: [case])
    said = []
    calibrate.calibrate(costs.calibrated(), 1, said.append)
    tables = costs.load(costs.calibrated())
    assert tables.keys() == {"scalar", isa.max_name()}
    (only,) = tables[isa.max_name()]
    assert (only.op, only.size) == ("sparse_linear", (2, 8, 8)) and len(said) == 1
    assert costs.break_even(*case) == only.density and "this machine" in costs.source()
