"""Folds: over random studies, no patient is ever on two sides."""

import json

import numpy as np
import pytest

from histocrypt.data.folds import (
    BY_SECTION,
    final_fold,
    group_k_fold,
    held_out_sections,
    load_fold,
    load_folds,
    make_folds,
    questions,
    read_questions,
    save_folds,
    uncounted_sections,
)
from histocrypt.errors import InputError
from histocrypt.options import Folds


def random_patients(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    return {f"S{i}": f"P{i % n if i < n else rng.integers(n)}" for i in range(int(rng.integers(n, 20)))}


@pytest.mark.parametrize("scheme", ["leave_one_patient_out", "group_k_fold"])
def test_a_patient_is_never_on_two_sides(tmp_path, scheme):
    for seed in range(40):
        patients = random_patients(seed)
        choice = Folds(scheme=scheme, n=3 if scheme == "group_k_fold" else None)
        folds = make_folds(patients, choice, seed)
        assert_sound(folds, patients)
        assert folds == make_folds(dict(reversed(patients.items())), choice, seed)
        folds.append(final_fold(patients))
        save_folds(tmp_path / "folds.json", folds, patients)
        assert load_folds(tmp_path / "folds.json") == folds


def assert_sound(folds, patients):
    for fold in folds:
        sides = [
            {patients[s] for s in part} for part in (fold.train_sections, fold.validation_sections, fold.test_sections)
        ]
        assert all(sides)
        assert not sides[2] & (sides[0] | sides[1])
        left = set(patients.values()) - sides[2]
        assert sides[0] & sides[1] == (left if len(left) == 1 else set())
        assert set(fold.training_sections) | set(fold.test_sections) == set(patients)
        assert set(fold.test_patients) == sides[2]
    tested = [section for fold in folds for section in fold.test_sections]
    assert sorted(tested) == sorted(patients)  # everybody is tested exactly once
    assert len({fold.name for fold in folds}) == len(folds)


def test_groups_are_dealt_as_scikit_learn_deals_them():
    from sklearn.model_selection import GroupKFold

    for seed in range(100):
        rng = np.random.default_rng(seed)
        n, groups = int(rng.integers(2, 5)), np.array([*"abcd", *rng.choice([*"abcdefghij"], rng.integers(0, 40))])
        theirs = [test for _, test in GroupKFold(n).split(groups, groups=groups)]
        assert all(map(np.array_equal, group_k_fold(groups, n), theirs))


def test_every_patient_validates_once():
    patients = {f"S{i}": f"P{i}" for i in range(6)}
    folds = make_folds(patients, Folds(), 0)
    assert sorted(fold.validation_sections[0] for fold in folds) == sorted(patients)
    assert [f.validation_sections for f in folds] != [f.validation_sections for f in make_folds(patients, Folds(), 1)]


def test_with_one_patient_left_a_section_validates():
    patients = {"a1": "A", "a2": "A", "b1": "B", "b2": "B", "b3": "B"}
    for fold in make_folds(patients, Folds(), 0):
        assert len(fold.validation_sections) == 1
        assert fold.train_sections


def test_what_cannot_be_split_is_refused_with_a_reason():
    three, k_fold = {"a": "A", "b": "B", "c": "C"}, Folds(scheme="group_k_fold")
    for patients, choice, field in (
        ({"a1": "A", "a2": "A"}, Folds(), "sections"),  # one patient
        ({"a": "A", "b": "B"}, Folds(), "folds"),  # with A held out, one section is left
        (three, k_fold.model_copy(update={"n": 5}), "folds.n"),
        (three, k_fold, "folds.n"),
        ({"a1": "A", "a2": "A"}, Folds(scheme=BY_SECTION), "folds.scheme"),
    ):
        with pytest.raises(InputError) as refused:
            make_folds(patients, choice, 0)
        assert refused.value.field == field


@pytest.fixture
def task(tmp_path):
    """Splits of a task of hest-bench: two of four patients are tested, one of them with two sections."""
    (tmp_path / "IDC" / "splits").mkdir(parents=True)
    halves = {"train_0": "bcd", "test_0": ["a1", "a2"], "train_1": ["a1", "c", "d"], "test_1": "b"}
    for name, samples in halves.items():
        rows = [f"{one},patches/{one}.h5,adata/{one}.h5ad" for one in samples]
        text = "\n".join(["sample_id,patches_path,expr_path", *rows])
        (tmp_path / "IDC" / "splits" / f"{name}.csv").write_text(text)
    return tmp_path


BY_TASK = Folds(scheme="hest_splits", splits="IDC")
OF_TASK = {"a1": "A", "a2": "A", "b": "B", "c": "C", "d": "D", "unused": "E"}


def test_splits_of_a_task_are_folds(task, tmp_path):
    first, second = make_folds(OF_TASK, BY_TASK, 0, folder=task)
    assert (first.name, first.test_sections, first.training_sections) == ("fold_0", ("a1", "a2"), ("b", "c", "d"))
    assert (second.name, second.test_patients, second.training_sections) == ("fold_1", ("B",), ("a1", "c", "d"))
    assert all(len(fold.validation_sections) == 1 for fold in (first, second))
    save_folds(tmp_path / "folds.json", [first, second], OF_TASK, scheme="hest_splits")
    assert load_folds(tmp_path / "folds.json") == [first, second]


def test_splits_that_do_not_go_with_the_study_are_refused(task):
    def refused(patients, choice=BY_TASK):
        with pytest.raises(InputError) as raised:
            make_folds(patients, choice, 0, folder=task)
        return raised.value

    assert refused({**OF_TASK, "b": "A"}).value == "A"  # one patient on two sides
    assert refused({name: whose for name, whose in OF_TASK.items() if name != "d"}).value == "d"
    assert refused(OF_TASK, Folds(scheme="hest_splits")).field == "folds.splits"
    assert refused(OF_TASK, Folds(scheme="hest_splits", splits="LUAD")).field == "folds.splits"
    twice = task / "IDC" / "splits" / "test_1.csv"
    twice.write_text(twice.read_text().replace("b", "a2"))
    assert refused(OF_TASK).value == "A"
    (task / "IDC" / "splits" / "train_1.csv").write_text((task / "IDC" / "splits" / "train_0.csv").read_text())
    assert refused(OF_TASK).value == "a2"  # tested twice


def test_names_are_safe_in_file_names_and_never_shared():
    folds = make_folds({"1": "a/b", "2": "a b", "3": "A-B", "4": "c"}, Folds(), 0)
    names = [fold.name for fold in folds]
    assert len({name.lower() for name in names}) == 4
    assert not any(set(name) & set("/ \\:") for name in names)


def test_a_file_that_leaks_is_refused(tmp_path):
    patients = {"a1": "A", "a2": "A", "b": "B", "c": "C"}
    path = tmp_path / "folds.json"
    save_folds(path, make_folds(patients, Folds(), 0), patients)
    content = json.loads(path.read_text())
    content["patients"]["b"] = "A"  # somebody finds out later that B is A
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="'A' is both trained on and tested") as refused:
        load_fold(path, "fold_A")
    assert refused.value.file == path


def test_sections_are_held_out_only_where_asked_for(tmp_path):
    patients = {f"a{i}": "A" for i in range(4)} | {"b1": "B"}
    folds = make_folds(patients, Folds(scheme=BY_SECTION), 0)
    assert [fold.test_sections for fold in folds] == [(section,) for section in sorted(patients)]
    assert sorted(fold.validation_sections[0] for fold in folds) == sorted(patients)  # everyone validates once
    for fold in folds:
        assert fold.test_patients == (patients[fold.test_sections[0]],)
        assert sorted((*fold.training_sections, *fold.test_sections)) == sorted(patients)
        assert fold.train_sections
    path = tmp_path / "folds.json"
    with pytest.raises(InputError, match="'A' is both trained on and tested"):
        save_folds(path, folds, patients)
    save_folds(path, folds, patients, scheme=BY_SECTION)
    assert load_folds(path) == folds
    content = json.loads(path.read_text())
    content["folds"][0]["train_sections"].append(content["folds"][0]["test_sections"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="on two sides"):
        load_folds(path)


def test_sections_without_counts_are_noted_where_there_are_any(tmp_path):
    patients = {"a": "A", "b": "B", "c": "C"}
    folds = make_folds(patients, Folds(), 0)
    save_folds(tmp_path / "f.json", folds, patients, scheme="leave_one_patient_out")
    assert set(json.loads((tmp_path / "f.json").read_text())) == {"patients", "folds"}  # as it always was
    assert uncounted_sections(tmp_path / "f.json") == []
    save_folds(tmp_path / "f.json", folds, patients, uncounted=["c", "b"])
    assert uncounted_sections(tmp_path / "f.json") == ["b", "c"]


def test_an_unknown_fold_lists_the_known_ones(tmp_path):
    patients = {"a": "A", "b": "B", "c": "C"}
    save_folds(tmp_path / "f.json", make_folds(patients, Folds(), 0), patients)
    with pytest.raises(InputError, match="'fold_D'.*fold_A, fold_B, fold_C") as refused:
        load_fold(tmp_path / "f.json", "fold_D")
    assert refused.value.file == tmp_path / "f.json"


def test_held_out_sections_come_from_all_folds_before_a_second_of_any():
    patients = {"S1": "P1", "S2": "P1", "S3": "P2", "S4": "P3"}
    folds = [*make_folds(patients, Folds(scheme="leave_one_patient_out"), seed=0), final_fold(patients)]
    assert held_out_sections(folds, 3) == {"S1": "fold_P1", "S3": "fold_P2", "S4": "fold_P3"}
    assert list(held_out_sections(folds, 99)) == ["S1", "S3", "S4", "S2"]


LABORATORIES = {"A1": "X", "A2": "X", "B1": "X", "C1": "Y", "C2": "Y"}
OF = {"A1": "A", "A2": "A", "B1": "B", "C1": "C", "C2": "C"}


def test_no_laboratory_is_on_two_sides_and_folds_say_which_question_they_answer(tmp_path):
    folds = make_folds(OF, Folds(scheme="leave_one_laboratory_out"), 0, laboratories=LABORATORIES)
    assert [fold.name for fold in folds] == ["fold_X", "fold_Y"]
    for fold in folds:
        sides = [fold.train_sections, fold.validation_sections, fold.test_sections]
        assert all(sides)
        assert not {LABORATORIES[s] for s in fold.training_sections} & {LABORATORIES[s] for s in fold.test_sections}
    folds.append(final_fold(OF))
    save_folds(tmp_path / "folds.json", folds, OF, laboratories=LABORATORIES)
    assert set(json.loads((tmp_path / "folds.json").read_text())["questions"].values()) == {"new laboratory"}
    assert read_questions(tmp_path / "folds.json") == dict.fromkeys(OF, "new laboratory")


def test_a_question_needs_what_is_stated():
    folds = make_folds(OF, Folds(scheme="leave_one_patient_out"), 0)
    asked = questions(folds, OF, LABORATORIES)
    assert (asked["A1"], asked["B1"], asked["C1"]) == (*["new patient, known laboratory"] * 2, "new laboratory")
    partly = {section: name for section, name in LABORATORIES.items() if section != "B1"}
    asked = questions(folds, OF, partly)
    assert (asked["A1"], asked["B1"], asked["C1"]) == ("laboratory unknown",) * 3
    by_section = make_folds(OF, Folds(scheme=BY_SECTION), 0)
    assert questions(by_section, OF, LABORATORIES)["A1"] == "new section, known patient"


@pytest.mark.parametrize(("change", "value"), [({"B1": None}, "B1"), ({"A2": "Y"}, "A"), (dict.fromkeys(OF, "X"), "X")])
def test_laboratories_that_cannot_be_held_out_are_named(change, value):
    given = {section: name for section, name in {**LABORATORIES, **change}.items() if name}
    with pytest.raises(InputError) as error:
        make_folds(OF, Folds(scheme="leave_one_laboratory_out"), 0, laboratories=given)
    assert (error.value.field, error.value.value) == ("laboratory", value)


def test_one_laboratory_in_two_spellings_is_not_new_to_itself():
    with pytest.raises(InputError) as error:
        make_folds(OF, Folds(scheme="leave_one_patient_out"), 0, laboratories={**LABORATORIES, "B1": "x"})
    assert (error.value.field, error.value.value) == ("laboratory", "'X' and 'x'")


def test_a_file_with_a_laboratory_on_two_sides_is_refused(tmp_path):
    path, scheme = tmp_path / "folds.json", "leave_one_laboratory_out"
    folds = make_folds(OF, Folds(scheme=scheme), 0, laboratories=LABORATORIES)
    save_folds(path, folds, OF, scheme=scheme, laboratories=LABORATORIES)
    assert [fold.name for fold in load_folds(path)] == ["fold_X", "fold_Y"]
    content = json.loads(path.read_text())
    content["laboratories"]["B1"] = "Y"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="'Y' is both trained on and tested"):
        load_folds(path)
