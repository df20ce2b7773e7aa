from pathlib import Path

import pytest

from lcs import config
from lcs.config import PRESETS, SLIMMABLE, UNITS, ConfigError, TrainConfig


@pytest.mark.parametrize("option", PRESETS, ids=lambda option: option.name)
def test_preset_fills_option(option):
    method = option.methods[-1]
    for preset in ("default", "paper"):
        compression = option.compression or ("structured" if method in SLIMMABLE else "unstructured")
        target = (
            {f"target_{UNITS[compression]}": 4 if compression == "quantized" else 0.1} if method == "target" else {}
        )
        given = {"method": method, "compression": compression, "preset": preset, **target}
        resolved = TrainConfig(**given).resolved()
        assert getattr(resolved, option.name) == getattr(option, preset)
    assert option.default != option.paper
    assert option.name in config.presets_table() and option.name in config.presets_help()


def test_explicit_option_beats_preset():
    assert TrainConfig(preset="paper", keep_rounding="half_even").resolved().keep_rounding == "half_even"


def test_subspaces_have_group_norm_in_both_presets():
    assert {TrainConfig(preset=preset).resolved().norm for preset in ("default", "paper")} == {"group"}


@pytest.mark.parametrize(
    "data, epochs, weight_decay", [("cifar10", 200, 5e-4), ("imagenet", 90, 5e-5)], ids=["cifar10", "imagenet"]
)
def test_paper_recipe(data, epochs, weight_decay):
    resolved = TrainConfig(data=data).resolved()
    assert (resolved.epochs, resolved.weight_decay, resolved.lr, resolved.momentum) == (epochs, weight_decay, 0.1, 0.9)
    assert (resolved.batch_size, resolved.beta, resolved.warmup_fraction) == (128, 1.0, 0.8)
    assert (resolved.endpoint_probability, resolved.density) == (0.5, (0.025, 1.0))


def test_vgg19_trains_on_imagenet_in_larger_batches():
    batches = [TrainConfig(model=model, data="imagenet").resolved().batch_size for model in ("vgg19", "resnet18")]
    assert batches == [256, 128]


def test_resolved_survives_yaml(tmp_path):
    resolved = TrainConfig(data="cifar10", data_root=Path("images").resolve(), preset="paper").resolved()
    file = tmp_path / "config.yaml"
    file.write_text(resolved.to_yaml())
    assert config.load(file) == resolved


@pytest.mark.parametrize(
    "text, key",
    [
        ("epoks: 3", "epoks"),
        ("epochs: three", "epochs"),
        ("epochs: true", "epochs"),
        ("epochs: 0", "epochs"),
        ("batch_size: 1.5", "batch_size"),
        ("lr: -1", "lr"),
        ("lr: .nan", "lr"),
        ("seed: 99999999999999999999", "seed"),
        ("density: [0.1, 1.5]", "density.1"),
        ("density: [0.1]", "density.1"),
        ("method: lcs", "method"),
        ("resume: perhaps", "resume"),
    ],
)
def test_wrong_yaml_names_file_and_key(tmp_path, text, key):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert str(error.value).startswith(f"{file}: {key}: ")


@pytest.mark.parametrize("text", ["- 1", "a: [", "just words"])
def test_yaml_that_holds_no_settings(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="run.yaml"):
        config.load(file)


def test_a_run_finds_its_data_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(TrainConfig(data="cifar10", data_root=Path("images")).to_yaml())
    assert config.load(tmp_path / "run.yaml").data_root == tmp_path / "images"


def test_missing_yaml(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml"):
        config.load(tmp_path / "absent.yaml")


def test_every_wrong_key_is_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: -1\nepoks: 3")
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["lr", "epoks"]


def test_yaml_exponent_without_point(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("weight_decay: 5e-5")
    assert config.load(file).weight_decay == 5e-5


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"density": (0.9, 0.1)}, "density"),
        ({"method": "target"}, "target_density"),
        ({"target_density": 0.1}, "target_density"),
        ({"resume": True, "overwrite": True}, "overwrite"),
        ({"method": "us"}, "method"),
        ({"width": (0.5, 1.0)}, "width"),
        ({"samples": 7}, "samples"),
        ({"bits": (2, 4)}, "bits"),
        ({"nested": True}, "nested"),
        ({"compression": "structured", "density": (0.1, 0.5)}, "density"),
        ({"compression": "quantized", "fixed_widths": (0.5,)}, "fixed_widths"),
        ({"compression": "quantized", "endpoint_probability": 1.0}, "endpoint_probability"),
        ({"target_width": 0.5, "method": "target", "target_density": 0.5}, "target_width"),
        ({"compression": "structured", "method": "target"}, "target_width"),
        ({"compression": "structured", "width": (0.9, 0.5)}, "width"),
        ({"compression": "structured", "width": (0.0, 0.5)}, "width"),
        ({"compression": "structured", "width": (0.5, 0.5)}, "width"),
        ({"compression": "structured", "norm": "group"}, "norm"),
        ({"compression": "structured", "method": "ns", "fixed_widths": ()}, "fixed_widths"),
        ({"compression": "structured", "method": "lec", "norm": "instance"}, "norm"),
        ({"compression": "structured", "method": "us", "scale_l1": 1e-5}, "scale_l1"),
        ({"method": "lec"}, "method"),
        ({"compression": "quantized", "bits": (8, 3)}, "bits"),
        ({"compression": "quantized", "method": "target"}, "target_bits"),
        ({"compression": "quantized", "method": "dense"}, "method"),
        ({"compression": "quantized", "method": "us"}, "method"),
        ({"compression": "quantized", "norm": "batch"}, "norm"),
        ({"compression": "quantized", "model": "vgg19", "norm_place": "after"}, "norm_place"),
        ({"norm_place": "after"}, "norm_place"),
        ({"slimming": "strict"}, "slimming"),
        ({"compression": "structured", "method": "us", "running_statistics": "shared"}, "running_statistics"),
        ({"compression": "structured", "keep_rounding": "truncate"}, "keep_rounding"),
        ({"compression": "quantized", "warmup_evaluation": "shifted"}, "warmup_evaluation"),
        ({"method": "lcs_p", "beta": 0.5}, "beta"),
        ({"method": "target", "target_density": 0.1, "endpoint_probability": 0.3}, "endpoint_probability"),
        ({"compression": "structured", "fixed_widths": (1.0, 0.5)}, "fixed_widths"),
        ({"compression": "quantized", "bits_drawn": "per_layer"}, "bits_drawn"),
    ],
)
def test_contradictions(settings, key):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        TrainConfig(**settings).resolved()


def test_a_target_of_another_compression_asks_for_that():
    with pytest.raises(ConfigError, match="target_width: is of compression structured, .* --compression structured"):
        TrainConfig(method="target", target_width=0.5).resolved()


def test_wrong_settings_are_named_in_python_too():
    with pytest.raises(ConfigError, match="^epochs: Input should be greater than 0, got 0\nlr: .*, got -1$"):
        TrainConfig(epochs=0, lr=-1)


def test_identity_is_of_what_weights_depend_on():
    base = TrainConfig()
    same = TrainConfig(out=Path("elsewhere"), threads=3, checkpoint_interval=7, keep_rounding="half_even", epochs=30)
    assert base.identity() == same.identity()
    assert base.identity() != TrainConfig(seed=1).identity()


@pytest.mark.parametrize(
    ("method", "default", "paper"),
    [
        ("lcs_l", "instance", "instance"),
        ("lcs_p", "instance", "instance"),
        ("us", "batch", "batch"),
        ("ns", "batch", "batch"),
        ("lec", "batch", "batch"),
        ("dense", "instance", "batch"),
    ],
)
def test_norms_of_structured_runs(method, default, paper):
    for preset, norm in (("default", default), ("paper", paper)):
        assert TrainConfig(compression="structured", method=method, preset=preset).resolved().norm == norm


def test_only_lec_runs_have_an_l1_norm_of_the_scales():
    assert TrainConfig(compression="structured", method="lec").resolved().scale_l1 == 1e-5
    assert TrainConfig(compression="structured", method="us").resolved().scale_l1 is None


@pytest.mark.parametrize(("preset", "target_norm"), [("default", "group"), ("paper", "batch")])
def test_quantized_runs_learn_slower_and_subspaces_keep_group_norm(preset, target_norm):
    for given, norm in (({}, "group"), ({"method": "target", "target_bits": 4}, target_norm)):
        resolved = TrainConfig(compression="quantized", preset=preset, **given).resolved()
        assert (resolved.lr, resolved.norm) == (0.025, norm)
    assert TrainConfig(compression="quantized", lr=0.5).resolved().lr == 0.5


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_what_does_not_apply_to_a_run_is_not_of_its_identity(preset):
    base = TrainConfig(preset=preset).resolved()
    assert (base.bits_drawn, base.norm_place, base.slimming, base.scale_l1) == (None, None, None, None)
    other = TrainConfig(preset=preset, compression="quantized", model="vgg19").resolved()
    assert other.norm_place is None and other.bits_drawn is None
