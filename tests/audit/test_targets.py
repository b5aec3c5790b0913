"""Members are whom a model's weights were fitted on; losses are those of the model as it was trained."""

import anndata
import numpy as np
import pytest
from tests.training.conftest import make_study, write_section

from histocrypt.audit.predictors import predictor_bound
from histocrypt.audit.subjects import ASKED, Auditable, audited, group_of, losses, members_of
from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.data.folds import load_fold
from histocrypt.errors import InputError
from histocrypt.options import Audit
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.network import NetworkPredictor
from histocrypt.study import Study

FOLD = "fold_a"


MODELS = {
    "vision_mlp": {"width": 0.1, "epochs": 2},
    "resnet18": {},
    "fhe_cnn": {
        "depth": 3, "width": 0.25, "input_px": 24, "epochs": 1, "refit": True, "teacher": "colour_ridge", "distil": 1.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One section of each of four patients; every test reads the same few models. ResNet-18 is never trained."""
    study = make_study(models=MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path_factory.mktemp("targets")))
        for patient in "abcd":
            write_section(study.run, patient)
        prepare_folds(study)
        for model in ("mean_profile", "colour_ridge", "vision_mlp", "fhe_cnn"):
            train_fold(study, model, FOLD, device="cpu")
        yield study


def records(study, model, fold, **settings):
    return Auditable(study, model, fold, **settings).records


def refit(attacked, keep, *, seed):
    """Return the losses of a shadow."""
    return losses(attacked.spots().targets, attacked.predicted_by_shadow(keep, seed=seed))


def test_members_are_the_patients_of_the_fit(study):
    fold = load_fold(study.run.folds, FOLD)
    ridge, network = members_of(study, "colour_ridge", FOLD), members_of(study, "vision_mlp", FOLD)
    assert set(ridge.members) == set(fold.training_sections), "fitted again on validation: members"
    assert ridge.left_out == ()
    assert network.members == fold.train_sections
    assert network.left_out == fold.validation_sections != (), "chose the epochs, gave no gradient: neither"
    assert ridge.non_members == network.non_members == ("S_a",)

    found = records(study, "vision_mlp", FOLD, device="cpu")
    assert set(found.patients[~found.member]) == {"a"}
    assert not set(found.sections) & set(fold.validation_sections)
    assert len(found.subset(found.member)) == found.member.sum() == 50
    assert all(block.split(":")[0] == section for block, section in zip(found.blocks, found.sections, strict=True))


def test_losses_are_of_the_model_that_the_run_wrote(study):
    """The test predictions on disk, in standardised units and centred within the section, give the same losses."""
    found = records(study, "colour_ridge", FOLD)
    model = Auditable(study, "colour_ridge", FOLD)
    written = anndata.read_h5ad(study.run.prediction("colour_ridge", FOLD))
    values = np.concatenate([written.layers[name] for name in study.target.transforms], axis=1)
    predicted = (values - model.scaling.mean) / model.scaling.sd
    mine = found.subset(~found.member)
    assert mine.names.tolist() == written.obs_names.tolist()
    np.testing.assert_allclose(losses(mine.truth, predicted), mine.loss, rtol=1e-3)
    centred = [mine.truth[mine.sections == section].mean(axis=0) for section in set(mine.sections.tolist())]
    assert np.abs(centred).max() < 1e-5


def test_a_shadow_of_the_members_is_the_model_again(study):
    attacked = Auditable(study, "colour_ridge", FOLD)
    found = attacked.records
    again = refit(attacked, found.member, seed=study.seed)
    np.testing.assert_allclose(again, found.loss, rtol=1e-4)
    assert not np.allclose(refit(attacked, ~found.member, seed=study.seed), again)


def test_a_network_is_retrained_and_its_files_stay(study):
    weights = study.run.model("vision_mlp", FOLD) / "weights.safetensors"
    before = weights.read_bytes()
    found = records(study, "vision_mlp", FOLD, device="cpu")
    shadow = refit(Auditable(study, "vision_mlp", FOLD, device="cpu"), ~found.member, seed=1)
    assert shadow.shape == found.loss.shape
    assert not np.allclose(shadow, found.loss)
    assert weights.read_bytes() == before


def test_a_student_gets_a_shadow_teacher(study, monkeypatch):
    attacked = Auditable(study, "fhe_cnn", FOLD, device="cpu")
    assert attacked.sides.left_out == (), "refitted: validation patients are members"
    keep = ~np.isin(attacked.spots().sections, ["S_a", attacked.sides.members[0]])
    learnt = attacked.spots().subset(keep)
    teacher = attacked._shadow("colour_ridge", keep, 0)
    expected = teacher.predict(attacked.spots("colour_ridge").subset(keep))
    for section in set(learnt.sections.tolist()):
        own = learnt.sections == section
        expected[own] -= expected[own].mean(axis=0)
    lessons, fit = [], NetworkPredictor.fit

    def spied(student, spots, *given, **others):
        lessons.append(spots.targets)
        return fit(student, spots, *given, **others)

    monkeypatch.setattr(NetworkPredictor, "fit", spied)
    assert np.isfinite(refit(attacked, keep, seed=0)).all()
    np.testing.assert_allclose(lessons[0], expected, atol=1e-5)  # a share of 1: the teacher's word alone


def test_what_can_be_audited(study):
    names = [thing.name for thing in audited(study, FOLD)]
    assert names == ["mean_profile", "colour_ridge", "vision_mlp", "fhe_cnn"]
    home = study.run.synthesis(FOLD)
    (home / "generator").mkdir(parents=True)
    (home / "generator" / "model.json").write_text("{}")
    (home / "samples").mkdir()
    found = audited(study, FOLD, models=["colour_ridge"])
    assert [(thing.kind, thing.name) for thing in found] == [("predictor", "colour_ridge"), ("generator", "generator")]
    audit = study.model_copy(update={"audit": Audit(shadowed=["colour_ridge"])})
    everything = audited(study, FOLD)
    parts = {part: [thing.name for thing in audited(audit, FOLD, asked=part)] for part in (*ASKED, "all")}
    assert parts["shadowed"] == ["colour_ridge"]
    assert parts["predictors"] == ["mean_profile", "vision_mlp", "fhe_cnn"]
    assert parts["tiles"] == ["generator"]
    assert parts["all"] == [thing.name for thing in everything]
    with pytest.raises(InputError) as error:
        audited(audit, FOLD, asked="predictor")
    assert error.value.field == "asked"
    unfinished = audited(audit, FOLD, models=["resnet18", "colour_ridge"], asked="shadowed")
    assert [thing.name for thing in unfinished] == ["colour_ridge"], "a part waits for no model of another one"


def by_section(study):
    return Study.model_validate({**study.model_dump(), "folds": {"scheme": "leave_one_section_out"}})


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda study: audited(study, "final"), "nobody is held out"),
        (lambda study: audited(study, "fold_x"), "unknown fold"),
        (lambda study: audited(study, FOLD, models=["resnet81"]), "unknown model of the study"),
        (lambda study: audited(study, FOLD, models=["resnet18"]), "is not trained"),
        (lambda study: records(study, "resnet18", FOLD), "is not trained"),
        (lambda study: refit(Auditable(study, "colour_ridge", FOLD), np.ones(3, bool), seed=0), "keep"),
        (lambda study: refit(Auditable(study, "colour_ridge", FOLD), np.zeros(100, bool), seed=0), "keep"),
        (lambda study: refit(Auditable(study, "colour_ridge", FOLD), np.arange(100) < 30, seed=0), "splits a section"),
        (lambda study: audited(by_section(study), FOLD), "test spots are members too"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(study, ask, said):
    with pytest.raises(InputError, match=said):
        ask(study)


def test_a_section_may_tell_where_it_comes_from(study):
    section = anndata.read_h5ad(study.run.section("S_a"))
    assert group_of(section) == ""
    section.uns["dataset"] = "HER2ST"
    assert group_of(section) == "HER2ST"
    section.obs["centre"] = "A"
    assert group_of(section) == "A"


def test_a_gene_that_the_test_patients_lack_is_left_out(study):
    whole = Auditable(study, "colour_ridge", FOLD)
    before = whole.records
    file = study.run.section("S_a")
    kept = file.read_bytes()
    section = anndata.read_h5ad(file)
    gene = whole.panel.genes[1]
    try:
        section[:, section.var_names != gene].copy().write_h5ad(file)
        part = Auditable(study, "colour_ridge", FOLD)
        found = part.records
        assert refit(part, found.member, seed=0).shape == found.loss.shape
    finally:
        file.write_bytes(kept)
    assert part.unmeasured == (gene,)
    assert whole.unmeasured == ()
    columns = [before.outputs.index(output) for output in found.outputs]
    assert len(columns) == len(before.outputs) - len(study.target.transforms)
    assert np.array_equal(found.prediction, before.prediction[:, columns])
    members = found.member
    assert np.allclose(found.truth[members], before.truth[members][:, columns], atol=1e-6)


def test_every_patient_goes_in_by_a_coin_for_a_bound_on_epsilon(study, tmp_path):
    asked = study.model_copy(update={"audit": Audit(coin_runs=3)})
    able = Auditable(asked, "colour_ridge", FOLD)
    found = predictor_bound(able, folder=tmp_path)
    people = len(np.unique(able.records.patients))
    assert (found.canaries, found.guesses, found.delta) == (3 * people, 3 * people, 0.0)
    assert 0 <= found.epsilon <= found.most
    assert predictor_bound(able, folder=tmp_path) == found
