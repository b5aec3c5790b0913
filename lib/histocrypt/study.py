"""A study: one validated YAML file that says everything a run depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import Field, ValidationError

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_yaml
from histocrypt.options import (
    Audit,
    DemoTissue,
    Encrypted,
    Evaluation,
    Folds,
    Others,
    PanelChoice,
    Part,
    Preprocessing,
    SectionSource,
    Stacking,
    Synthesis,
    Target,
    Tissue,
    Training,
    first_problem,
)
from histocrypt.predictors.registry import (
    BASELINES,
    BOOTSTRAPPED,
    ENCRYPTED,
    MODELS,
    NEEDS_COUNTS,
    STACKS,
    check_averages,
    checked_options,
)
from histocrypt.targets.matrix import check_target

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class Study(Part):
    """Everything a run depends on."""

    later = ("stacking", "synthesis", "audit", "tissue", "others")
    name: Annotated[str, Field(pattern=NAME)]
    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    sections: Annotated[list[SectionSource], Field(min_length=1)]
    tissue: Tissue = Tissue()
    demo: DemoTissue = DemoTissue()
    preprocessing: Preprocessing = Preprocessing()
    panel: PanelChoice = PanelChoice()
    target: Target = Target()
    folds: Folds = Folds()
    training: Training = Training()
    models: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="models by registered name, each with overrides of `training` and its own options",
    )
    stacking: Stacking | None = Field(None, description="stack the models' predictions; null: no stack")
    encrypted: Encrypted = Encrypted()
    synthesis: Synthesis | None = Field(None, description="synthetic tiles; null: none")
    audit: Audit | None = Field(None, description="membership inference and memorisation; null: none")
    evaluation: Evaluation = Evaluation()
    others: dict[Annotated[str, Field(pattern=NAME)], Others] = Field(
        {},
        description="predictions that others made of the sections, by a name of your choice: scored beside the models",
    )
    folder: str = Field("", exclude=True, description="folder of the study file; relative paths start there")

    @property
    def run(self) -> paths.RunFolder:
        """The run folder of this study."""
        return paths.RunFolder.of(self.name)

    @property
    def model_names(self) -> list[str]:
        """Baselines first, then the study's own models, in the order given."""
        return [*BASELINES, *(name for name in self.models if name not in BASELINES)]

    @property
    def families(self) -> list[str]:
        """The models whose predictions are stacked; none where the study does not stack."""
        if self.stacking is None:
            return []
        able = [name for name in self.model_names if name != NEEDS_COUNTS]
        return able if self.stacking.families == "all" else [name for name in able if name in self.stacking.families]

    @property
    def inner_models(self) -> list[str]:
        """The models that are trained on inner folds: the stacked families and their teachers."""
        wanted = set(self.families)
        for name in self.families:
            while (name := self.teacher_of(name)) is not None:
                wanted.add(name)
        return [name for name in self.model_names if name in wanted]

    @property
    def scored_names(self) -> list[str]:
        """Everything that makes predictions: the models, then what is stacked from them."""
        return [*self.model_names, *(STACKS if self.stacking is not None else ())]

    @property
    def encrypted_models(self) -> list[str]:
        """The models that are tried on ciphertexts."""
        able = (*ENCRYPTED, *(BOOTSTRAPPED if self.encrypted.bootstrapped_spots else ()))
        return [name for name in self.models if name in able]

    def encrypted_spots(self, model: str) -> int | str:
        """Return how many spots of a section a model predicts on ciphertexts."""
        return self.encrypted.bootstrapped_spots if model in BOOTSTRAPPED else self.encrypted.spots

    def training_of(self, model: str) -> Training:
        """Return the training settings of a model, with the model's own overrides."""
        own = {key: value for key, value in self.models.get(model, {}).items() if key in Training.model_fields}
        return Training(**{**self.training.model_dump(), **own})

    def teacher_of(self, model: str) -> str | None:
        """Return the model that another one learns from, if any."""
        return self.training_of(model).teacher

    def options_of(self, model: str) -> dict[str, Any]:
        """Return the constructor options of a model: whatever it was given beyond training settings."""
        return {key: value for key, value in self.models.get(model, {}).items() if key not in Training.model_fields}

    @property
    def around_um(self) -> float:
        """Around which spots rings of tiles are cut, micrometres (`tissue.ring.ring_reach`); 0: no model asks."""
        from histocrypt.data.features import reaches_of
        from histocrypt.tissue.ring import ring_reach

        read = [checked_options(name, self.options_of(name)).features for name in self.model_names]
        return ring_reach(reach for features in read for reach in reaches_of(features))

    def others_file(self, name: str, section: str) -> Path:
        """Return where predictions of others of a section would lie."""
        return self.resolve(self.others[name].path.replace("{section}", section))

    def others_files(self, sections: Iterable[str]) -> list[Path]:
        """Return the files of others that are there; a name without any is an `InputError`."""
        sections, found = list(sections), []
        for name in self.others:
            own = list(dict.fromkeys(self.others_file(name, section) for section in sections))
            there = [path for path in own if path.is_file()]
            if own and not there:
                raise InputError("no predictions of others are there", file=own[0], field=f"others.{name}.path")
            found += there
        return found

    def hash(self, *parts: str) -> str:
        """Return a short hash of the whole study, or of the named parts (`"preprocessing"`, `"panel"`, ...).

        A stage that depends on some parts only is rerun only when these change.
        """
        content = self.model_dump(mode="json")
        chosen = {part: content[part] for part in parts} if parts else content
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def resolve(self, path: str) -> Path:
        """Return a path as an absolute one: `data:` is HISTOCRYPT_DATA, relative ones start at the study file."""
        return paths.resolve(path, self.folder)


def load_study(path: str | Path) -> Study:
    """Read and validate a study file; a relative path that is not there is looked for in the repository.

    (A notebook opened in JupyterLab runs in ``notebooks/``, not where ``studies/demo.yaml`` starts.)

    Raises
    ------
    InputError
        If the file is missing, is not YAML, has an unknown key (the known ones are listed) or a value out of range.
    """
    path = Path(path)
    if not path.is_file() and (paths.repository() / path).is_file():
        path = paths.repository() / path
    if path.is_dir() or (path.is_file() and path.suffix.lower() not in (".yaml", ".yml", ".json")):
        fix = f"for sections, write a study file first: histocrypt new NAME {path}"
        raise InputError("is not a study file", file=path, expected="a .yaml file, e.g. studies/demo.yaml", fix=fix)
    content = read_yaml(path, "study", prepare=lambda tree: _keep_texts(tree, Study))
    if not isinstance(content, dict):
        raise InputError(
            "study is empty or not a mapping", file=path, expected="keys such as name, sections, panel, models"
        )
    return parse_study(content, file=path)


def _keep_texts(node: yaml.Node, kind: Any) -> None:
    """Mark what a study holds where a text is wanted as the text that is written: 007, 1e5, no and 2021-03-04, too."""
    inner = get_args(kind)
    if isinstance(node, yaml.MappingNode):
        part = next((one for one in (kind, *inner) if isinstance(one, type) and issubclass(one, Part)), None)
        for key, value in node.value if part is not None else ():
            if isinstance(key, yaml.ScalarNode) and key.value in part.model_fields:
                _keep_texts(value, part.model_fields[key.value].annotation)
    elif isinstance(node, yaml.SequenceNode):
        of = next((get_args(one)[0] for one in (kind, *inner) if get_origin(one) is list), None)
        for value in node.value:
            _keep_texts(value, of)
    elif str in (kind, *inner) and node.style is None and node.tag != "tag:yaml.org,2002:null":
        node.tag = "tag:yaml.org,2002:str"


def parse_study(content: dict[str, Any], *, file: str | Path = "study") -> Study:
    """Validate the content of a study; ``file`` is what errors name."""
    content = {**content, "folder": str(Path(file).resolve().parent)}
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, Study, file=file) from error
    for name, options in study.models.items():
        _check_model(name, options, file)
    for name in study.models:
        check_averages(name, study.training_of(name), file=file)
    _check_teachers(study, file)
    check_target(study.target, study.panel, file)
    _check_stacking(study, file)
    _check_encrypted(study, file)
    _check_synthesis(study, file)
    _check_audit(study, file)
    _check_others(study, file)
    return study


def _check_model(name: str, options: dict[str, Any], file: str | Path) -> None:
    if name in STACKS:
        raise InputError(
            "is a combination of the other models",
            file=file,
            field=f"models.{name}",
            fix="remove it, and add the part `stacking`",
        )
    if name not in MODELS:
        raise unknown_name("model", name, MODELS, file=file, field="models")
    own = MODELS[name].options
    for key in options:
        if key not in Training.model_fields and key not in own.model_fields:
            known = [*Training.model_fields, *own.model_fields]
            raise unknown_name("option", key, known, file=file, field=f"models.{name}")
    for part in (Training, own):
        try:
            part(**{key: value for key, value in options.items() if key in part.model_fields})
        except ValidationError as error:
            raise first_problem(error, part, file=file, prefix=f"models.{name}.") from error
    for key in ("encoder", "families"):  # known now, and not after an hour of preprocessing
        if key in options and key in own.model_fields:
            from histocrypt.data.features import check_families

            value, where = options[key], {"file": file, "field": f"models.{name}.{key}"}
            check_families(value if isinstance(value, str) else "+".join(value), **where)


# What no single value of a study can tell: whether its models, their teachers and its stack go together.


def _check_teachers(study: Study, file: str | Path) -> None:
    """Refuse a teacher that the study does not train, a model that has nothing to learn with, and circles."""
    if study.training.teacher is not None:
        raise InputError(
            "a teacher is set per model, because no model can teach itself",
            file=file,
            field="training.teacher",
            fix="move it to the model under `models`",
        )
    for name in study.models:
        teacher, seen = study.teacher_of(name), [name]
        where = {"file": file, "field": f"models.{name}.teacher"}
        if teacher is not None and MODELS[name].kind != "network":
            raise InputError("is fitted in closed form and takes no teacher", **where, value=teacher, fix="remove it")
        while teacher is not None:
            if teacher not in study.model_names:
                raise unknown_name("teacher", teacher, study.model_names, **where)
            if teacher in seen:
                raise InputError("a model is, by way of its teachers, its own teacher", **where, value=teacher)
            seen.append(teacher)
            teacher = study.teacher_of(teacher)
        _check_lesson(study, name, where)


def _check_lesson(study: Study, name: str, where: dict[str, Any]) -> None:
    """Refuse a teacher that cannot teach as a model asks it to."""
    settings, teacher = study.training_of(name), study.teacher_of(name)
    if teacher is None:
        return
    network = MODELS[teacher].kind == "network"
    if network and settings.distil_held_out:
        raise InputError(
            "a network would be trained anew without each part that it is held out from",
            **{**where, "field": f"models.{name}.distil_held_out"},
            value=True,
            fix="remove it, or name a teacher that is fitted in closed form",
        )
    if network and settings.replace_over and study.training_of(teacher).seeds > 1:
        raise InputError(
            f"{name} starts from the weights of one network, and this teacher is the mean of several",
            **where,
            value=teacher,
            fix=f"set models.{teacher}.seeds to 1",
        )


def _check_stacking(study: Study, file: str | Path) -> None:
    """Refuse families that the study does not train, that need measured counts, or that are too few."""
    if study.stacking is None:
        return
    where = {"file": file, "field": "stacking.families"}
    named = [] if study.stacking.families == "all" else study.stacking.families
    for name in named:
        if name == NEEDS_COUNTS:
            raise InputError(
                f"{name} needs the measured counts of the spots that it predicts, and cannot take part in a stack",
                **where,
                fix="remove it",
            )
        if name not in study.model_names:
            raise unknown_name("model", name, study.model_names, **where)
        if named.count(name) > 1:
            raise InputError("a model appears twice", **where, value=name)
    if len(study.families) < 2:
        raise InputError("a stack needs two models", **where, value=named, expected="two names or more, or all")


def _check_encrypted(study: Study, file: str | Path) -> None:
    """Refuse one-party experiments without networks or without a number of spots."""
    part, able = study.encrypted, [name for name in study.models if name in ENCRYPTED]
    for name in part.beside_orion:
        if name not in able:
            raise unknown_name("network", name, able, file=file, field="encrypted.beside_orion")
    if part.engine != "orion":
        return
    wrong = partial(InputError, file=file)
    if not able:
        problem, named = "there is no network that orion-fhe could evaluate", " or ".join(ENCRYPTED)
        raise wrong(problem, field="encrypted.engine", value="orion", expected=f"{named} under `models`")
    if part.spots == "all":
        problem = "orion-fhe evaluates one spot after the other, seconds each"
        raise wrong(problem, field="encrypted.spots", value="all", expected="a number of spots, e.g. 5")
    if part.bootstrapped_spots:
        problem, value = "orion-fhe is not tried with bootstrapping", part.bootstrapped_spots
        raise wrong(problem, field="encrypted.bootstrapped_spots", value=value, fix="remove it, or the engine")
    if part.beside_orion:
        problem = "stands beside the two parties, and this study has one"
        raise wrong(problem, field="encrypted.beside_orion", value=part.beside_orion, fix="remove it, or the engine")


def _check_synthesis(study: Study, file: str | Path) -> None:
    """Refuse a label that does not say where it is found, and tiles that the generator cannot halve."""
    from histocrypt.targets.matrix import Label

    part = study.synthesis
    if part is None:
        return
    try:
        Label(part.label, tuple(part.label_is), part.label_above, field="synthesis.label")
    except InputError as error:
        raise error.of_file(file) from error
    plan = part.generator
    if part.side % plan.least_side:
        raise InputError(
            f"tiles cannot be halved {len(plan.multipliers) - 1} times in patches of {plan.patch}",
            file=file,
            field="synthesis.side",
            value=part.side,
            expected=f"a multiple of {plan.least_side}",
        )


def _check_audit(study: Study, file: str | Path) -> None:
    """Refuse models that the study does not train, and shadows of what is not attacked."""
    part = study.audit
    if part is None:
        return
    attacked = study.model_names if part.models == "all" else part.models
    for field, names, known in (
        ("audit.models", attacked, study.model_names),
        ("audit.shadowed", part.shadowed, attacked),
    ):
        for name in names:
            if name not in known:
                raise unknown_name("model", name, known, file=file, field=field)


def _check_others(study: Study, file: str | Path) -> None:
    """Refuse names that are taken, and predictions of others where the study does not predict counts."""
    if study.others and study.target.matrix is not None:
        problem = "predictions of others are of genes, and this study predicts a named matrix"
        raise InputError(problem, file=file, field="others", value=study.target.matrix, fix="remove it")
    for name in study.others:
        if name in MODELS or name in STACKS:
            problem = "is the name of a model of this project"
            raise InputError(problem, file=file, field=f"others.{name}", fix="choose another name")
