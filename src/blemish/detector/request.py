"""What `fit` is asked for: the config of a method, and all options, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from blemish import config as configs
from blemish.area import Area
from blemish.data.areas import read_area
from blemish.data.geometry import Resize, check_resize
from blemish.data.tiling import AUTO, OVERLAP, Tiling
from blemish.detector.calibrate import DEFAULT_RATE
from blemish.detector.thresholds import pictures_needed
from blemish.errors import ConfigError, unknown_name
from blemish.methods import METHODS, Method, MethodConfig, method_class
from blemish.methods.student import Distillation, StudentConfig
from blemish.training.budget import Budget
from blemish.types import Progress

C = TypeVar("C")
FOREGROUNDS = ("none", "auto")
FEW_SHOT_ROTATIONS = 16  # each of them also mirrored: 32 copies of every shot


def configure(
    method: str,
    *,
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    shots: int | None = None,
) -> MethodConfig:
    """The config of a method: a recipe, then `values` (None entries are skipped), then key=value
    `assignments`.

    With `shots` the recipe is the one for few pictures: each learned at 16 angles, plain and
    mirrored.

    Raises: ConfigError for an unknown method, recipe or key (the nearest name is suggested) or a
    bad value.
    """
    few = {} if shots is None else {"rotations": FEW_SHOT_ROTATIONS, "flips": True}
    kinds = {name: kind.Config for name, kind in METHODS.items()}
    recipes = method_class(method).Config.recipes()
    return of_recipe(method, recipes, recipe, kinds, values, assignments, **few)


def of_recipe(
    name: str,
    recipes: Mapping[str, Callable[[], C]],
    recipe: str,
    kinds: Mapping[str, type],
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    **changes: Any,
) -> C:
    """A config as of `configure`: one of the `recipes` of what is called `name`, with `changes` to
    it before `values` and `assignments`.

    Args: kinds: the configs among which it is one, by name; a setting that only others of them have
        is told as theirs.
    """
    if recipe not in recipes:
        raise unknown_name(f"recipe of {name}", recipe, recipes)
    base = dataclasses.replace(recipes[recipe](), **changes)  # type: ignore[type-var]
    given = {key: value for key, value in (values or {}).items() if value is not None}
    assignments = list(assignments)
    _check_whose(name, base, kinds, [*given, *configs.assigned(assignments)])
    return configs.override(configs.from_dict(type(base), given, base=base), assignments)


def _check_whose(name: str, config: object, kinds: Mapping[str, type], keys: Iterable[str]) -> None:
    """Raises: ConfigError for a setting that others of the `kinds` have, and this config not."""
    own = _settings_of(type(config))
    for key in keys:
        having = [other for other, kind in kinds.items() if key in _settings_of(kind)]
        if having and key not in own:
            what = "leave it out, or choose another method"
            if "normality_settings" in own:
                what = (
                    f"one of the normality detector is given as normality_settings={key}=VALUE, "
                    "others are left out"
                )
            raise ConfigError(
                f"{name} has no setting {key!r}, which only {', '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'}; {what}. "
                f"Settings of {name}: {', '.join(sorted(own))}"
            )


def _settings_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def check_whole(config: object, recipe: str, settings: Mapping[str, Any]) -> None:
    """Raises: ConfigError for a whole config beside a recipe or single settings."""
    if config is not None and (settings or recipe != "best"):
        raise ConfigError("give either a whole config, or a recipe and single settings, not both")


def check_window(window: tuple[float, float] | None) -> None:
    """Raises: ConfigError for what is no range of pixel values."""
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"window: two numbers (lo, hi) with lo < hi are needed, got {window}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `fit`.

    Attributes:
        method: a name of `blemish.METHODS`.
        good: a path (a flat folder, a data set of any known layout, of which the good training
            pictures are taken, a picture), or a list of paths, PIL images, arrays or `Sample`s. Two
            or more categories, as those of a data set that names them or as several folders
            (bottle/train/good is "bottle"), give one detector for all of them, with a threshold for
            each and a common one.
        anomalies: pictures of known defects, named as `good` is, for methods that learn from them:
            all pictures of a flat folder, the defective ones of a data set. Masks are used where
            they are known and the method can.
        anomaly_count: learn from so many of them, drawn by the seed; `evaluate` then leaves these
            out, and the others of the same folder test it. None = from all.
        anomaly_type: only from defects of this type.
        recipe, settings: the recipe and single settings of it, as `backbone="focus_vits14"`,
            `image_size=224`; or `config`, a whole config object.
        weights: a local weights file instead of the backbone's own source; "random" only where that
            is meant.
        seed: of everything random: shots, split, sampling, training; None = that of the config.
        shots: learn from this many pictures of each category, drawn by the seed; none of them is
            held out unless `calibration_fraction` is given. Every one is learned at 16 angles,
            plain and mirrored, unless `rotations` or `flips` are given.
        false_alarm_rate: share of normal pictures that may raise an alarm; None = 0.05, without a
            threshold where the pictures are too few for it. A category with too few is judged by
            the common threshold.
        calibration_fraction: share of the pictures held out for the threshold, of each category.
            None = what the method does best: leave-one-out (nothing held out) for memory banks,
            padim and spade, else 0.2. 0 = no threshold.
        smallest_region: the share of a picture that a region of its map has at least, in [0, 1):
            smaller ones are neither shown nor counted, for the threshold of the regions either.
        window: (lo, hi) of the pixel values, for 16-bit and DICOM pictures; stored and used at
            prediction.
        roi, ignore: look only there, and not there; as of `blemish.data.areas.read_area`. Stored:
            what lies outside is neither learned nor scored nor shown, at prediction either.
        tile, overlap: cut pictures into squares of so many pixels (of their own), which overlap by
            this share of their side at least, and look at each of them as at a picture: for defects
            that are small in large pictures. "auto" = whether, and how large, as
            `blemish.data.cutting.chosen` has it; None = pictures are looked at whole. Stored.
        resize: how pictures come into the input: "stretch", "fit", "pad" or "crop"; see
            `blemish.data.geometry`.
        foreground: "auto": only the part is scored and shown, told from its background by the
            encoder; see `blemish.methods.foreground`, and `detector.record.foreground.abstains`
            where it says why not. "none" = whole pictures.
        student: whether a smaller encoder is distilled first from the backbone, a ViT, on the good
            pictures kept to learn from, and the method fitted on it (`methods.student`); a
            `StudentConfig` where not all of its settings are the defaults.
        device, precision: see `blemish.load`.
        batch_size: pictures encoded at once.
        time_budget: minutes that training may take; its schedules are shaped to end there. Where
            the backbone is pre-trained first (`pretraining` of `guided`) each of the two gets half
            of them. Trained methods and students only.
        compute_budget: in place of it, the arithmetic of training in TFLOP, as of
            `blemish.training.budget.Budget`: as many steps on every machine.
        checkpoint: file in which training is kept so that it can be gone on from, a pre-training in
            a second one beside it; None = nowhere. Trained methods and students only. Both stay
            when the training is done: whoever has saved the detector removes them, see
            `checkpoints`.
        resume: go on from there. A pre-training that had ended is not repeated.
        log: as of `blemish.pretrain`, of a pre-training where there is one.
        progress: called with (stage, done, total).
    Raises: ConfigError for what can be seen to be wrong before any work.
    """

    method: str
    good: Any
    anomalies: Any
    anomaly_count: int | None
    anomaly_type: str | None
    recipe: str
    config: MethodConfig | None
    settings: Mapping[str, Any]
    weights: str | Path | None
    seed: int | None
    shots: int | None
    false_alarm_rate: float | None
    calibration_fraction: float | None
    smallest_region: float
    window: tuple[float, float] | None
    roi: Any
    ignore: Any
    tile: int | str | None
    overlap: float | None
    resize: Resize
    foreground: str
    student: bool | StudentConfig
    device: str
    precision: str
    batch_size: int
    time_budget: float | None
    compute_budget: float | None
    checkpoint: str | Path | None
    resume: bool
    log: str | Path | None
    progress: Progress

    def __post_init__(self) -> None:
        trained, fraction = self.chosen.learns_by_gradient, self.calibration_fraction
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(
                f"calibration_fraction: a fraction in [0, 1) is needed, got {fraction}"
            )
        if not 0 <= self.smallest_region < 1:
            raise ConfigError(
                "smallest_region: a share of the picture in [0, 1) is needed, got "
                f"{self.smallest_region}"
            )
        if fraction == 0 and self.false_alarm_rate is not None:
            raise ConfigError(
                "a false-alarm rate needs calibration pictures, and calibration_fraction is 0"
            )
        pictures_needed(self.rate)  # refuses a rate outside (0, 1)
        check_window(self.window)
        self._check_resize()
        _ = self.area  # reads it
        self._check_tiles()
        self._check_foreground()
        if self.student and self.chosen.no_student:
            instead = "choose patchcore, knn, padim, spade, or lda with one of these"
            if not self.chosen.learns_by_gradient:  # so it is a setting that does not go with it
                instead = "that setting"
            raise ConfigError(
                f"student: {self.method} with these settings takes none, as "
                f"{self.chosen.no_student}; leave it out, or {instead}"
            )
        trained = trained or bool(self.student)
        given = {
            "time_budget": self.time_budget is not None,
            "compute_budget": self.compute_budget is not None,
            "checkpoint": self.checkpoint is not None,
            "resume": self.resume,
        }
        if not trained and any(given.values()):
            names = " and ".join(option for option, is_given in given.items() if is_given)
            raise ConfigError(f"{names}: {self.method} is not trained step by step; leave it out")
        _ = self.budget  # refuses what is none
        if self.resume and self.checkpoint is None:
            raise ConfigError("resume: name the checkpoint to go on from")
        which = (self.anomaly_count, self.anomaly_type)
        asked = any(option is not None for option in (self.anomalies, *which))
        if asked and not self.kind.takes_defects:
            raise ConfigError(
                f"{self.method} does not learn from labelled defects; lda does, with any method to "
                f"know what is normal (--set normality={self.method})"
            )
        if self.anomalies is None and any(which):
            raise ConfigError(
                "anomaly_count and anomaly_type say which of the anomalies to learn from; name "
                "those too"
            )

    def _check_resize(self) -> None:
        """Raises: ConfigError for an unknown name, and for a shape that the method cannot take."""
        check_resize(self.resize)
        if self.resize != "fit":
            return
        instead = "the input takes the shape of the pictures; choose pad or crop"
        if self.chosen.needs_squares:
            raise ConfigError(f"resize fit: `scales` are sides of squares, and {instead}")
        if self.chosen.logs_pretraining:
            raise ConfigError(f"resize fit: `pretraining` looks at squares, and {instead}")

    def _check_foreground(self) -> None:
        """Raises: ConfigError for an unknown name, and where pictures are not looked at as they
        are."""
        if self.foreground not in FOREGROUNDS:
            raise unknown_name("foreground", str(self.foreground), FOREGROUNDS)
        if self.foreground != "none" and (self.tile is not None or self.resize != "stretch"):
            raise ConfigError(
                "foreground: is told in whole pictures that fill the input; leave it out, or "
                "`tile` and `resize`"
            )

    def _check_tiles(self) -> None:
        """Raises: ConfigError for what cannot be, and for what tiles cannot have."""
        if self.tile is None:
            if self.overlap is not None:
                raise ConfigError("overlap: is that of tiles; name `tile`, too")
            return
        if isinstance(self.tile, str) and self.tile != AUTO:
            raise ConfigError(f"tile: a number of pixels or {AUTO!r} is needed, got {self.tile!r}")
        _ = self.tiling  # refuses what is out of range
        height, width = self.chosen.height_width
        if height != width:
            raise ConfigError(
                f"tile: tiles are squares, and image_size is {height} × {width}; make it one number"
            )
        if self.resize != "stretch":
            raise ConfigError(
                f"tile: tiles keep the pictures' shape by themselves; leave `resize` "
                f"{self.resize} out, or `tile`"
            )

    @property
    def kind(self) -> type[Method]:
        """The class of the method. Raises: ConfigError for an unknown one."""
        return method_class(self.method)

    @cached_property
    def chosen(self) -> MethodConfig:
        """The whole config, with the seed that counts. Raises: ConfigError."""
        check_whole(self.config, self.recipe, self.settings)
        chosen = self.config
        if chosen is None:
            chosen = configure(
                self.method, recipe=self.recipe, values=self.settings, shots=self.shots
            )
        wanted = self.kind.Config
        if not isinstance(chosen, wanted):
            raise ConfigError(
                f"{self.method} takes a {wanted.__name__}, got a {type(chosen).__name__}"
            )
        return chosen if self.seed is None else dataclasses.replace(chosen, seed=self.seed)

    @property
    def distillation(self) -> Distillation | None:
        """How a student is made, where one is: as the method has it, or as the size of the input
        and the method's seed have it, unless all of it is given."""
        if isinstance(self.student, StudentConfig):
            return self.student
        if not self.student:
            own = self.chosen.pretraining_config
            return own if isinstance(own, Distillation) else None
        height, width = self.chosen.height_width
        return StudentConfig.for_input(height, width, seed=self.chosen.seed)

    @property
    def budget(self) -> Budget:
        """Of all training. Raises: ConfigError."""
        return Budget(minutes=self.time_budget, teraflops=self.compute_budget)

    @cached_property
    def area(self) -> Area | None:
        """Where to look; None = everywhere. Raises: ConfigError, ImageError."""
        return read_area(self.roi, self.ignore)

    @property
    def share_in_common(self) -> float:
        """The overlap of tiles."""
        return OVERLAP if self.overlap is None else self.overlap

    @property
    def tiling(self) -> Tiling | None:
        """The tiles that were asked for; None where there are none, or still to be chosen.

        Raises: ConfigError.
        """
        side = self.tile if isinstance(self.tile, int) else 448
        made = None if self.tile is None else Tiling(side=side, overlap=self.share_in_common)
        return None if self.tile == AUTO else made

    @property
    def rate(self) -> float:
        """The false-alarm rate."""
        return DEFAULT_RATE if self.false_alarm_rate is None else self.false_alarm_rate


def checkpoints(path: str | Path) -> tuple[Path, Path]:
    """Where `fit` keeps a training whose `checkpoint` is `path`, and the pre-training before it.

    Example:
        >>> [place.name for place in checkpoints("part.blemish.training")]
        ['part.blemish.training', 'part.blemish.training.pretraining']
    """
    return Path(path), Path(f"{path}.pretraining")
