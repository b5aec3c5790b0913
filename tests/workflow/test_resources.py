"""What jobs ask for grows with the study, stays with what one machine or profile has, and covers every stage."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.predictors.registry import BASELINES, MODELS
from histocrypt.sections.section import SectionSize
from histocrypt.study import load_study
from histocrypt.workflow import resources
from histocrypt.workflow.command import Profile
from histocrypt.workflow.resources import disk_bytes
from histocrypt.workflow.stages import STAGES

SMALL = SectionSize(spots=200, genes=1_000, values=50_000, decoded_mpx=4.0)
LARGE = SectionSize(spots=5_000, genes=20_000, values=10_000_000, decoded_mpx=400.0)


@pytest.fixture(scope="module")
def demo():
    return load_study(paths.repository() / "studies" / "demo_full.yaml")


def needs(stage, *arguments, **how):
    return resources.needs(STAGES[stage].needs, *arguments, **how)


def jobs(study):
    """Yield every stage, trainings once for each model."""
    for stage in STAGES:
        trained = stage in ("30_training", "38_inner_training")
        for model in ["baselines", *study.models] if trained else [""]:
            yield stage, model


def test_every_stage_asks_for_more_where_sections_are_larger_or_more(demo):
    for stage, model in jobs(demo):
        few, large, many = (needs(stage, demo, sizes, model=model) for sizes in ([SMALL], [LARGE], [LARGE] * 50))
        assert 1 < few.memory_gib <= large.memory_gib <= many.memory_gib, stage
        assert resources.START_S < few.seconds <= large.seconds <= many.seconds, stage
        assert stage == "72_viewer" or few.seconds < many.seconds, stage


@pytest.mark.parametrize("stage", ["10_eda", "20_preprocessing", "22_folds", "70_evaluation"])
def test_what_reads_one_section_at_a_time_hardly_grows_with_their_number(demo, stage):
    one, many = (needs(stage, demo, [LARGE] * number) for number in (1, 200))
    assert many.memory_gib < one.memory_gib + 2


def test_sections_not_yet_known_are_taken_for_large_ones(demo):
    assert needs("10_eda", demo, []) == needs("10_eda", demo, [SectionSize()])


def test_a_second_attempt_asks_for_twice_as_much(demo):
    need = needs("20_preprocessing", demo, [LARGE])
    assert need.memory_mb(2) == pytest.approx(2 * need.memory_mb(1), rel=0.1)
    assert need.minutes(2) == 2 * need.minutes(1)


def test_long_trainings_ask_for_a_gpu_where_there_is_one(demo):
    without = needs("30_training", demo, [LARGE] * 50, model="resnet18", threads=8)
    with_one = needs("30_training", demo, [LARGE] * 50, model="resnet18", threads=8, gpus=4)
    assert (without.gpus, with_one.gpus) == (0, 1)
    assert with_one.seconds < without.seconds
    assert needs("30_training", demo, [SMALL], model="resnet18", threads=8, gpus=4).gpus == 0
    assert needs("30_training", demo, [LARGE] * 50, model="baselines", threads=8, gpus=4).gpus == 0


@pytest.mark.parametrize(
    "model", [name for name, one in MODELS.items() if one.kind == "fitted" and name not in BASELINES]
)
def test_what_is_fitted_in_closed_form_is_not_taken_for_a_network(demo, model):
    network = needs("30_training", demo, [LARGE] * 50, model="resnet18")
    fitted = needs("30_training", demo, [LARGE] * 50, model=model, threads=8, gpus=4)
    assert fitted.seconds < network.seconds / 2, (fitted, network)
    assert (fitted.threads, fitted.gpus) == (1, 0)


def test_only_what_can_use_threads_gets_them(demo):
    assert needs("30_training", demo, [LARGE], model="vision_mlp", threads=8).threads == 8
    assert needs("30_training", demo, [LARGE], model="baselines", threads=8).threads == 1
    assert needs("22_folds", demo, [LARGE], threads=8).threads == 1


def test_disk_grows_with_spots_and_models(demo):
    fewer = demo.model_copy(update={"models": {}, "stacking": None})
    sizes = [replace(LARGE, spots=1000)] * 4
    assert disk_bytes(fewer, sizes, 3) < disk_bytes(demo, sizes, 3) < disk_bytes(demo, [LARGE] * 4, 3)


def profile(folder, **content):
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_local_profile_shares_the_cores_between_two_trainings(tmp_path):
    assert Profile.read(None, cores=8).threads == 4
    assert Profile.read(profile(tmp_path, **{"max-threads": 3}), cores=8).threads == 3
    assert Profile.read(None, cores=1).threads == 1


@pytest.mark.parametrize("named", ["slurm", "workflow/profiles/slurm"])
def test_the_profile_for_slurm_is_found_from_anywhere(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Profile.read(Path(named), cores=0)
    assert not found.local
    assert found.threads == 8
    assert found.gpus == 0


@pytest.mark.parametrize("resources", [["gpu=3", "mem_mb=1000"], {"gpu": 3}])
def test_gpus_are_those_of_the_profile(tmp_path, resources):
    assert Profile.read(profile(tmp_path, executor="slurm", resources=resources), cores=0).gpus == 3


@pytest.mark.parametrize(
    ("content", "cores", "words"),
    [
        ({"executor": "slurm", "max-threads": "many"}, 0, ["config.yaml", "max-threads", "many"]),
        ({"executor": "slurm", "resources": ["gpu=all"]}, 0, ["config.yaml", "gpu", "all"]),
        ({"executor": "slurm"}, 4, ["--cores", "4", "max-threads"]),
    ],
)
def test_a_wrong_profile_is_one_sentence(tmp_path, content, cores, words):
    with pytest.raises(InputError) as found:
        Profile.read(profile(tmp_path, **content), cores=cores)
    for word in words:
        assert word in str(found.value)
    assert "\n" not in str(found.value)


def test_a_profile_that_is_no_mapping_is_one_sentence(tmp_path):
    (tmp_path / "config.yaml").write_text("- executor")
    with pytest.raises(InputError, match="not a mapping"):
        Profile.read(tmp_path, cores=0)
    (tmp_path / "config.yaml").write_text("executor: [")
    with pytest.raises(InputError, match="not valid YAML"):
        Profile.read(tmp_path, cores=0)
