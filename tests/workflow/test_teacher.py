"""A student is trained after its teacher, fold by fold."""

from tests.small_study import SMALL

from histocrypt.data.folds import FINAL
from histocrypt.study import parse_study
from histocrypt.workflow.outline import Outline

ROWS = [
    {"section": f"S_{k}", "patient": f"P_{k}", "size": {"spots": 9, "genes": 60}, "files": [], "read_as": {}}
    for k in range(1, 7)
]


def test_a_student_waits_for_the_same_fold_of_its_teacher():
    models = {"resnet18": {"teacher": "vision_mlp", "epochs": 1}, "vision_mlp": {"width": 0.25}}
    outline = Outline(parse_study({**SMALL, "name": "small", "models": models}), ROWS)
    for notebook in ("30_training", "38_inner_training"):
        students = [job for job in outline.by_stage[notebook] if job.values["model"] == "resnet18"]
        for student in students:
            before = [job for job in outline.before(student) if job.values.get("model") == "vision_mlp"]
            assert [(job.stage.notebook, job.values["fold"]) for job in before] == [(notebook, student.values["fold"])]
        folds = [job.values["fold"] for job in students]
        assert folds == ["fold_1", "fold_2", "fold_3", *([FINAL] if notebook == "30_training" else [])]
