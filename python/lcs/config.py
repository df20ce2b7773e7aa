"""What a training run is made of: one schema for YAML files, flags and the Python API (arXiv 2110.04252)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from . import optional

optional.require("pydantic")
optional.require("yaml")
import pydantic  # noqa: E402
import yaml  # noqa: E402
from pydantic import ConfigDict, Field, StrictBool  # noqa: E402

Count = Annotated[int, Field(strict=True, gt=0)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[int, Field(strict=True, ge=2, le=8)]
Norm = Literal["group", "instance", "batch"]

BASELINES = ("target", "dense")
SUBSPACES = ("lcs_l", "lcs_p")
# Baselines of width, with batch norms: trained at random widths, at fixed ones, or slimmed after training.
SLIMMABLE = ("us", "ns", "lec")
UNITS = {"unstructured": "density", "structured": "width", "quantized": "bits"}  # of the levels, by compression
OWN = {  # settings of one compression
    "unstructured": ("density", "target_density", "endpoint_probability"),
    "structured": ("width", "target_width", "samples", "fixed_widths"),
    "quantized": ("bits", "target_bits", "nested"),
}
OF_METHOD = {"beta": "lcs_l", "endpoint_probability": "lcs_l", "fixed_widths": "ns", "scale_l1": "lec"}


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names file and key."""


@dataclass(frozen=True)
class PresetOption:
    """An option whose value follows from `preset` unless given; `methods` are those that it applies to, of one
    `compression` or all."""

    name: str
    default: str
    paper: str
    methods: tuple[str, ...]
    meaning: str
    compression: str | None = None

    def applies(self, config: TrainConfig) -> bool:
        return config.method in self.methods and self.compression in (None, config.compression)

    @property
    def where(self) -> str:
        return ", ".join(self.methods) + (f" ({self.compression})" if self.compression else "")


PRESETS = (
    PresetOption(
        "keep_rounding",
        "half_even",
        "truncate",
        (*SUBSPACES, *BASELINES),
        "weights kept in a layer of n: density * n rounded half to even, or n minus (1 - density) * n truncated",
        "unstructured",
    ),
    PresetOption(
        "warmup_evaluation",
        "requested",
        "shifted",
        ("lcs_l", "target"),
        "evaluation before the density warm-up ends: at the density asked for, or shifted as training's densities are",
        "unstructured",
    ),
    PresetOption(
        "norm",
        "group",
        "batch",
        BASELINES,
        "norm layers of the target and dense runs; of structured ones instance, or batch; batch norms of quantized "
        "ones are folded into the weights before these are rounded",
    ),
    PresetOption(
        "running_statistics",
        "per_width",
        "shared",
        ("ns",),
        "running statistics of the batch norms: of each of the fixed widths, or one set for all of them",
    ),
    PresetOption(
        "slimming",
        "exact",
        "strict",
        ("lec",),
        "norm channels chosen of n: width * n rounded half to even; or those of a scale strictly above the one at "
        "place int((1 - width) * n), so that one goes even at width 1",
    ),
    PresetOption(
        "bits_drawn",
        "per_step",
        "per_layer",
        ("lcs_p",),
        "bit widths drawn in a step once inputs are rounded: one for all layers, or one for each",
        "quantized",
    ),
    PresetOption(
        "norm_place",
        "before",
        "after",
        (*SUBSPACES, "target"),
        "norms of cpreresnet20: before the convolutions of a block, as in its other runs; or after them, with a "
        "shortcut of the block's input after ReLU",
        "quantized",
    ),
    PresetOption(
        "lr_warmup",
        "at_most_half",
        "five",
        (*SUBSPACES, *SLIMMABLE, *BASELINES),
        "epochs in which the learning rate rises: 5, or half of a run shorter than 10 epochs; or always 5",
    ),
)


@dataclass(frozen=True)
class DataDefaults:
    epochs: int
    weight_decay: float


DATA_DEFAULTS = {
    "digits": DataDefaults(epochs=30, weight_decay=5e-4),
    "synthetic": DataDefaults(epochs=2, weight_decay=5e-4),
    "cifar10": DataDefaults(epochs=200, weight_decay=5e-4),
    "imagenet": DataDefaults(epochs=90, weight_decay=5e-5),
}


class TrainConfig(pydantic.BaseModel):
    """Settings of a training run. An option left None follows from data, method and preset: see `resolved`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["cpreresnet20", "resnet18", "vgg19"] = Field("cpreresnet20", description="architecture")
    data: Literal["digits", "cifar10", "imagenet", "synthetic"] = Field("digits", description="data set")
    data_root: Path | None = Field(None, description="folder of cifar10 or imagenet")
    image_size: Count | None = Field(None, description="height and width of the images; the data set's if not given")
    limit: Count | None = Field(None, description="use only this many images of each split")
    compression: Literal["unstructured", "structured", "quantized"] = Field(
        "unstructured", description="what a level changes"
    )
    method: Literal["lcs_l", "lcs_p", "us", "ns", "lec", "target", "dense"] = Field(
        "lcs_l",
        description="subspace: line or point; or a baseline: universally slimmable, fixed widths, slimmed after "
        "training, one level, or none",
    )
    density: tuple[Fraction, Fraction] = Field((0.025, 1.0), description="range of densities trained (lcs_l, lcs_p)")
    target_density: Fraction | None = Field(None, description="the density of a target run")
    width: tuple[Fraction, Fraction] = Field((0.25, 1.0), description="range of widths trained (lcs_l, lcs_p, us)")
    samples: Annotated[int, Field(strict=True, ge=2)] = Field(
        4, description="widths of a step: both ends of the range, and random ones between"
    )
    fixed_widths: tuple[Fraction, ...] = Field((1.0, 0.75, 0.5, 0.25), description="widths of each step of an ns run")
    target_width: Fraction | None = Field(None, description="the width of a target run")
    bits: tuple[Bits, Bits] = Field((3, 8), description="range of bit widths trained (lcs_l, lcs_p)")
    target_bits: Bits | None = Field(None, description="the bit width of a target run")
    bits_drawn: Literal["per_step", "per_layer"] | None = Field(None, description="preset option")
    norm_place: Literal["before", "after"] | None = Field(None, description="preset option")
    nested: StrictBool = Field(False, description="round so that every bit width is a part of one 8-bit weight")
    running_statistics: Literal["per_width", "shared"] | None = Field(None, description="preset option")
    scale_l1: Rate | None = Field(None, description="of the norms' scales in the loss of a lec run; 1e-5")
    slimming: Literal["exact", "strict"] | None = Field(None, description="preset option")
    preset: Literal["default", "paper"] = Field("default", description="what the preset options below default to")
    keep_rounding: Literal["half_even", "truncate"] | None = Field(None, description="preset option")
    warmup_evaluation: Literal["requested", "shifted"] | None = Field(None, description="preset option")
    norm: Norm | None = Field(
        None,
        description="group, structured instance, us, ns and lec batch; a preset option in target and dense runs",
    )
    lr_warmup: Literal["at_most_half", "five"] | None = Field(None, description="preset option")
    init: Literal["independent", "copy"] = Field(
        "independent", description="second ends: drawn anew as in the paper, or equal to the first, for short runs"
    )
    epochs: Count | None = Field(None, description="200 for cifar10, 90 imagenet, 30 digits, 2 synthetic")
    batch_size: Count | None = Field(
        None, description="images per step, over all processes together; 128, vgg19 on imagenet 256"
    )
    lr: Rate | None = Field(None, description="peak learning rate; 0.1, quantized 0.025")
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        "sgd", description="sgd as in the paper; adamw or muon learn in fewer steps, at a lower lr"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd and muon; the first beta of adamw")
    weight_decay: Rate | None = Field(None, description="on every parameter; 5e-4, imagenet 5e-5")
    beta: Rate = Field(1.0, description="weight of the squared cosine between the ends of the line")
    warmup_fraction: Fraction = Field(
        0.8, description="share of training in which the density warms up, or no input is rounded yet"
    )
    endpoint_probability: Fraction = Field(0.5, description="how often lcs_l draws an end of the density range")
    seed: Seed = Field(0, description="of weights, data order, augmentation and levels")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    precision: Literal["fp32", "bf16", "fp64"] = Field("fp32", description="bf16: autocast; weights stay float32")
    threads: Count | None = Field(None, description="CPU threads of a process; PyTorch's own choice if not given")
    workers: Whole = Field(0, description="threads that prepare batches ahead")
    evaluation_interval: Whole = Field(10, description="epochs between evaluations, the last included; 0: none")
    checkpoint_interval: Whole = Field(0, description="steps between checkpoints, besides one after every epoch")
    out: Path = Field(Path("runs/train"), description="run directory")
    resume: StrictBool = Field(False, description="go on from the newest checkpoint in the run directory, if any")
    overwrite: StrictBool = Field(False, description="replace the run in the run directory")

    def __init__(self, **settings: Any) -> None:
        """Raises ConfigError naming every wrong setting."""
        try:
            super().__init__(**settings)
        except pydantic.ValidationError as error:
            raise ConfigError("\n".join(map(_line, error.errors()))) from error

    @property
    def unit(self) -> str:
        """What the levels are named by."""
        return UNITS[self.compression]

    def bounds(self) -> tuple[float, float]:
        """The lowest and highest level trained."""
        if self.method == "ns":
            return min(self.fixed_widths), max(self.fixed_widths)
        return getattr(self, self.unit)

    def target_level(self) -> float | None:
        """The level of a target run."""
        return getattr(self, f"target_{self.unit}")

    def resolved(self) -> TrainConfig:
        """The same run with every option that follows from data, method and preset written out.

        Raises ConfigError where settings contradict each other.
        """
        self._check_agreement()
        structured, quantized = self.compression == "structured", self.compression == "quantized"
        norm = "batch" if self.method in SLIMMABLE else "instance" if structured else "group"
        lr = 0.025 if quantized else 0.1
        batch_size = 256 if (self.model, self.data) == ("vgg19", "imagenet") else 128
        defaults: dict[str, Any] = {"norm": norm, "lr": lr, "batch_size": batch_size, **vars(DATA_DEFAULTS[self.data])}
        if self.method == "lec":
            defaults["scale_l1"] = 1e-5
        for option in PRESETS:
            if option.applies(self):
                defaults[option.name] = getattr(option, self.preset)
        if structured and defaults["norm"] == "group":
            defaults["norm"] = "instance"
        if quantized and self.model != "cpreresnet20":
            defaults["norm_place"] = None
        return self.model_copy(update={k: v for k, v in defaults.items() if getattr(self, k) is None})

    def _check_agreement(self) -> None:
        low, high = getattr(self, self.unit)
        if low > high:
            raise ConfigError(f"{self.unit}: the lower bound {low} lies above the upper bound {high}")
        target = f"target_{self.unit}"
        for compression, names in OWN.items():
            given = [name for name in names if self._given(name)]
            if given and compression != self.compression:
                raise ConfigError(
                    f"{given[0]}: is of compression {compression}, the run's is {self.compression}; give "
                    f"--compression {compression}, or leave it out"
                )
        if self.method == "target" and self.target_level() is None:
            raise ConfigError(f"{target}: method target needs one")
        if self.method != "target" and self.target_level() is not None:
            raise ConfigError(f"{target}: only method target takes one, the method is {self.method}")
        if self.compression == "structured":
            self._check_widths()
        elif self.method in SLIMMABLE:
            raise ConfigError(f"method: {self.method} needs compression structured, got {self.compression}")
        if self.compression == "quantized":
            self._check_bits()
        for name, method in OF_METHOD.items():
            if self._given(name) and self.method != method:
                raise ConfigError(f"{name}: only method {method} takes one, the method is {self.method}")
        for option in PRESETS:
            if option.name != "norm" and self._given(option.name) and not option.applies(self):
                raise ConfigError(
                    f"{option.name}: applies to {option.where}, the run is {self.method} ({self.compression})"
                )
        if self.resume and self.overwrite:
            raise ConfigError("overwrite: cannot be combined with resume")

    def _given(self, name: str) -> bool:
        return getattr(self, name) != TrainConfig.model_fields[name].default

    def _check_widths(self) -> None:
        if self.method == "lec" and self.norm not in (None, "batch"):
            raise ConfigError(f"norm: lec slims by the scales of batch norms, got {self.norm}; leave it out")
        if self.norm == "group":
            raise ConfigError("norm: groups of channels do not divide every width; use instance or batch")
        if not self.fixed_widths:
            raise ConfigError("fixed_widths: at least one is needed")
        for name in ("width", "fixed_widths", "target_width"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise ConfigError(f"{name}: a width lies in (0, 1], got {value}")
        if self.method == "lcs_l" and self.width[0] == self.width[1]:
            raise ConfigError(f"width: a line needs two widths, got {self.width}")

    def _check_bits(self) -> None:
        if self.norm == "batch" and self.method != "target":
            raise ConfigError(
                "norm: a batch norm is folded into the rounded weights, so its statistics must be of one bit width, of "
                f"a target run; for {self.method}, use group or instance"
            )
        if self.norm_place is not None and self.model != "cpreresnet20":
            raise ConfigError(f"norm_place: is of cpreresnet20, the model is {self.model}")
        if self.method == "dense":
            raise ConfigError("method: a dense run rounds nothing; train it with compression unstructured")

    def identity(self) -> dict[str, Any]:
        """The settings that the trained weights depend on, as JSON values: what a checkpoint must agree with."""
        elsewhere = {"data_root", "device", "threads", "workers", "out", "resume", "overwrite"}
        intervals = {"checkpoint_interval", "evaluation_interval"}
        return self.resolved().model_dump(mode="json", exclude=elsewhere | intervals)

    def to_yaml(self) -> str:
        """The run's file: all settings but the flags `resume` and `overwrite`."""
        settings = self.model_dump(mode="json", exclude={"resume", "overwrite"})
        if self.data_root is not None:  # wherever the run is read from
            settings["data_root"] = str(self.data_root.expanduser().resolve())
        return yaml.safe_dump(settings, sort_keys=False)


def parse(values: Mapping[str, Any], source: str) -> TrainConfig:
    """A checked TrainConfig. Raises ConfigError naming `source` and every wrong key."""
    try:
        return TrainConfig(**{str(key): value for key, value in values.items()})
    except ConfigError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from error


def _line(problem: Mapping[str, Any]) -> str:
    key = ".".join(map(str, problem["loc"]))
    unknown = problem["type"] == "extra_forbidden"
    reason = f"no such setting{_near(key)}" if unknown else f"{problem['msg']}, got {problem['input']!r}"
    return f"{key}: {reason}"


def _near(key: str) -> str:
    near = difflib.get_close_matches(key, TrainConfig.model_fields)
    return f"; near it: {', '.join(near)}" if near else "; see lcs train --help"


def load(path: str | Path) -> TrainConfig:
    """The settings in a YAML file. Raises ConfigError naming file and key."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not settings as `key: value`")
    return parse(values or {}, str(path))


def presets_table() -> str:
    """Every difference between the presets, as a Markdown table."""
    rows = ["| option | default | paper | applies to | meaning |", "| --- | --- | --- | --- | --- |"]
    rows += [f"| `{o.name}` | {o.default} | {o.paper} | {o.where} | {o.meaning} |" for o in PRESETS]
    return "\n".join(rows)


def presets_help() -> str:
    """The same differences as plain lines, for a terminal."""
    lines = [f"  {o.name}: {o.default} | {o.paper} ({o.where}): {o.meaning}" for o in PRESETS]
    return "\n".join(["Preset options, default | paper:", *lines])
