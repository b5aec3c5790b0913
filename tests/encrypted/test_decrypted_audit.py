"""What encryption changes for a model's patients: real ciphertexts of members and non-members, beside the clear."""

import numpy as np
import pytest
from tests.encrypted.serving import refuses

from histocrypt.audit.membership import judge, loss_threshold
from histocrypt.audit.predictors import decrypted_records
from histocrypt.audit.subjects import Auditable
from histocrypt.errors import InputError
from histocrypt.study import load_study


@pytest.fixture
def study(world, monkeypatch):
    """The study behind the small networks for encryption: three patients, one section each."""
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(world.outputs))
    return load_study(world.outputs / "tiny" / "study.json")


def test_decrypted_outputs_tell_what_clear_ones_tell(study, world, tmp_path):
    fold = world.head.name
    found = decrypted_records(study, "fhe_head", fold, folder=tmp_path / "parties", spots=4, workers=1)
    assert found.encrypted.names.tolist() == found.clear.names.tolist()
    assert len(found.clear) == 12
    assert found.about["noise"] > 0

    apart = found.compared()
    assert 0 < apart["max_abs_error"] < 0.05, "noise and the error of real ciphertexts: small, and not nothing"
    clear = Auditable(study, "fhe_head", fold).records
    row = {name: index for index, name in enumerate(clear.names.tolist())}
    same = clear.subset(np.array([row[name] for name in found.clear.names.tolist()]))
    assert same.member.tolist() == found.clear.member.tolist()
    np.testing.assert_allclose(same.truth, found.clear.truth, atol=1e-5)
    np.testing.assert_allclose(same.prediction, found.clear.prediction, atol=2e-2)

    decrypted, plain = (
        judge(loss_threshold(one.loss), one.member, one.patients, blocks=one.blocks, draws=50, seed=0)
        for one in (found.encrypted, found.clear)
    )
    assert decrypted.auc == pytest.approx(plain.auc, abs=0.02)
    left = {path.name for path in (tmp_path / "parties").rglob("*") if path.is_file()}
    assert not {name for name in left if name.endswith((".ct", ".key", ".keys", ".orion"))}


def test_what_cannot_be_decrypted(study, world, tmp_path):
    with refuses("model"):
        decrypted_records(study, "knn", world.head.name, folder=tmp_path)
    with pytest.raises(InputError, match="nobody is held out"):
        decrypted_records(study, "fhe_head", "final", folder=tmp_path)
