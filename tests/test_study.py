import os
from pathlib import Path

import pytest

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.options import Training
from histocrypt.predictors.registry import BASELINES, MODELS, model_class
from histocrypt.study import load_study, parse_study

GOOD = {"name": "mine", "sections": [{"path": "a.h5ad", "patient": "P1"}]}


def test_every_study_in_the_repository_is_valid():
    studies = sorted((paths.repository() / "studies").glob("*.yaml"))
    assert [path.stem for path in studies if path.stem == "demo"] == ["demo"]
    for path in studies:
        assert load_study(path).name == path.stem


def test_baselines_are_always_trained():
    assert parse_study(GOOD).model_names == list(BASELINES)
    assert parse_study({**GOOD, "models": {"resnet18": {}}}).model_names == [*BASELINES, "resnet18"]


def test_a_model_may_override_training_and_set_its_own_options():
    study = parse_study({**GOOD, "models": {"resnet18": {"epochs": 3, "average_pool": False}}})
    assert study.training_of("resnet18").epochs == 3
    assert study.training_of("vision_mlp").epochs == Training().epochs
    assert study.options_of("resnet18") == {"average_pool": False}


def test_bootstrapped_models_are_tried_encrypted_where_spots_are_asked_for():
    models = {"fhe_cnn": {}, "resnet18": {}, "fhe_resnet18": {}}
    study = parse_study({**GOOD, "models": models})
    assert study.encrypted_models == ["fhe_cnn"]
    more = parse_study({**GOOD, "models": models, "encrypted": {"bootstrapped_spots": 4}})
    assert more.encrypted_models == ["fhe_cnn", "fhe_resnet18"]
    assert (more.encrypted_spots("fhe_cnn"), more.encrypted_spots("fhe_resnet18")) == ("all", 4)
    assert parse_study({**GOOD, "encrypted": {"bootstrapped_spots": 0}}).hash() == parse_study(GOOD).hash()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pannel": {}}, ["unknown key 'pannel'", "did you mean 'panel'"]),
        ({"panel": {"siz": 3}}, ["panel: unknown key 'siz'", "file, method, size"]),
        ({"sections": [{"path": "a", "patent": "P"}]}, ["sections.0", "'patent'", "did you mean 'patient'"]),
        ({"sections": []}, ["sections", "at least 1"]),
        ({"models": {"resnet": {}}}, ["unknown model 'resnet'", "did you mean 'resnet18'"]),
        ({"models": {"resnet18": {"epoch": 3}}}, ["models.resnet18", "'epoch'", "did you mean 'epochs'"]),
        ({"models": {"resnet18": {"epochs": 0}}}, ["models.resnet18.epochs", "found 0", "greater than 0"]),
        ({"preprocessing": {"tile_px": 100}}, ["preprocessing.tile_px", "found 100", "divisible by 3"]),
        ({"name": "../escape"}, ["name", "'../escape'"]),
        ({"target": {"transforms": ["log"]}}, ["target.transforms.0", "'log1p'"]),
    ],
)
def test_a_wrong_study_is_refused_in_one_sentence(change, words):
    with pytest.raises(InputError) as refused:
        parse_study({**GOOD, **change}, file="studies/mine.yaml")
    sentence = str(refused.value)
    assert sentence.startswith("studies/mine.yaml: ")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("models", "field"),
    [
        ({"encoder_ridge": {"encoder": "morphology~320+efficientnet"}}, "models.encoder_ridge.encoder"),
        ({"fusion_ridge": {"families": ["coluor"]}}, "models.fusion_ridge.families"),
        ({"fusion_ridge": {"families": ["colour~320"]}}, "models.fusion_ridge.families"),
    ],
)
def test_features_that_nobody_has_are_refused_before_any_work(models, field):
    with pytest.raises(InputError) as error:
        parse_study({**GOOD, "models": models}, file="s.yaml")
    assert error.value.field == field
    assert parse_study({**GOOD, "models": {"encoder_ridge": {"encoder": "uni+colour~100@4"}}}).models


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: study cannot be read"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InputError, match=r"broken\.yaml: study is not valid YAML"):
        load_study(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="empty or not a mapping"):
        load_study(tmp_path / "empty.yaml")


def test_a_study_of_the_repository_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study("studies/demo.yaml").name == "demo"


def test_the_hash_changes_with_the_part_that_changed_only():
    one, other = parse_study(GOOD), parse_study({**GOOD, "panel": {"size": 7}})
    assert one.hash() != other.hash()
    assert one.hash("panel") != other.hash("panel")
    assert one.hash("preprocessing", "training") == other.hash("preprocessing", "training")


def test_paths_start_at_the_study_file_or_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_DATA", str(tmp_path / "elsewhere"))
    study = parse_study(GOOD, file=tmp_path / "mine.yaml")
    assert study.resolve("a.h5ad") == tmp_path / "a.h5ad"
    assert study.resolve("data:a.h5ad") == tmp_path / "elsewhere" / "a.h5ad"


def test_every_registered_model_can_be_imported_and_takes_its_options():
    import inspect

    for name, entry in MODELS.items():
        accepted = inspect.signature(model_class(name).__init__).parameters
        if entry.kind == "fitted" or entry.predictor.endswith(":NetworkPredictor"):
            for option, field in entry.options.model_fields.items():
                assert accepted[option].default == field.default, (name, option)


def test_wrong_synthesis_and_audit_are_said_in_one_sentence():
    base = {"name": "s", "sections": [{"path": "demo"}]}
    for part, field, words in (
        ({"synthesis": {"label": "tumour"}}, "synthesis.label", ["tumour", "obs:COLUMN"]),
        ({"synthesis": {"sides": 32}}, "synthesis", ["sides", "side"]),
        ({"synthesis": {"generator": {"widht": 3}}}, "synthesis.generator", ["widht", "width"]),
        ({"synthesis": {"generator": {"dropout": "much"}}}, "synthesis.generator.dropout", ["much"]),
        ({"synthesis": {"side": 30}}, "synthesis.side", ["30", "a multiple of 8"]),
        ({"audit": {"models": ["resnet18"]}}, "audit.models", ["resnet18", "encoder_ridge"]),
        ({"audit": {"models": ["knn"], "shadowed": ["colour_ridge"]}}, "audit.shadowed", ["colour_ridge", "knn"]),
    ):
        with pytest.raises(InputError) as error:
            parse_study({**base, **part}, file="s.yaml")
        assert (error.value.file, error.value.field) == ("s.yaml", field)
        assert all(word in str(error.value) for word in words), error.value


WRITTEN = """
name: {0}
sections:
  - {{path: {0}, id: {0}, patient: {0}}}
evaluation: {{markers: [{0}]}}
"""


@pytest.mark.parametrize(
    "text", ["007", "151673", "1e5", "no", "0x10", "0o7", "7.0", "2021-03-04", "2021-13-45", "12:30:45", "1_000"]
)
def test_texts_are_read_as_they_are_written(text, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        WRITTEN.format(text) if ":" not in text else WRITTEN.format(text).replace(f"name: {text}", "name: a")
    )
    study = load_study(path)
    (section,) = study.sections
    assert (section.path, section.id, section.patient) == (text, text, text)
    assert study.evaluation.markers == [text]
    assert study.name in (text, "a")


@pytest.mark.parametrize("empty", ["", "~", "null"])
def test_what_is_left_empty_stays_so(empty, tmp_path):
    (tmp_path / "study.yaml").write_text(f"name: a\nsections:\n  - path: a.h5ad\n    patient: {empty}\n")
    assert load_study(tmp_path / "study.yaml").sections[0].patient is None


def test_numbers_are_numbers_still(tmp_path):
    (tmp_path / "study.yaml").write_text("name: a\nseed: 0x10\nsections: [{path: a, um_per_px: 0.5}]\n")
    study = load_study(tmp_path / "study.yaml")
    assert (study.seed, study.sections[0].um_per_px) == (16, 0.5)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (LAUGHS, "f", None),
        ("name: &a [*a]", "name.0", None),
        ("name: " + "[" * 2000, None, None),
        ("".join(" " * level + "a:\n" for level in range(60)), None, None),
        ("name: a\nname: b\n", None, "name"),
        ("name: a\nsections:\n - {path: a, path: b}\n", "sections.0", "path"),
        ("name: a\nsections:\n\t- path: a\n", None, None),
        ("name: a\n---\nname: b\n", None, None),
        ("? [a]\n: b\n", None, None),
        ("name: !!python/object/apply:os.getcwd []\n", None, None),
        ("seed: " + "9" * 5000, None, None),
        ('title: "\\ud800"', None, None),
        ("x" * 2**20, None, "1,048,576 bytes"),
        ("name: a\0b", None, None),
    ],
)
def test_hostile_or_clumsy_yaml_is_one_sentence(text, field, value, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_study(path)
    assert (refused.value.file, refused.value.field, refused.value.value) == (path, field, value)
    assert str(refused.value).isprintable()


def test_a_study_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(InputError) as refused:
            load_study(path)
        assert refused.value.file == path


def test_an_error_is_one_line_whatever_a_file_is_called():
    error = InputError("is odd", file="a\nb\x1b[31m\udcff.h5ad", value="c\u2028")
    assert str(error).isprintable()
    assert str(error).isascii()
