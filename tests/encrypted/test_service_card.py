"""One card for a service: it says what files tell, "not asked" where none does, on one page, and signed."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
from tests.commands import document
from tests.encrypted.made_service import FEATURES, GENES, asked, audit, look, public_part

from histocrypt import paths
from histocrypt.answer import plain
from histocrypt.encrypted import claims
from histocrypt.encrypted.article29 import DESIGN, NOT_ASKED, NOT_FOUND, POSSIBLE, PREVENTED, SIGNS, UNDECIDED
from histocrypt.encrypted.parameters import bootstrapped, choose
from histocrypt.encrypted.service_card import LONGEST, parse_card, service_card
from histocrypt.encrypted.service_files import NAMESPACE, PAGES, bundles_of, make_card, render_verified, verify_card
from histocrypt.encrypted.service_page import LARGEST, SMALLEST, html_page, pdf_page
from histocrypt.encrypted.service_parts import ServiceCard
from histocrypt.encrypted.signature import PublicKey, Signer, make_key, public_path, signature_path
from histocrypt.errors import InputError
from histocrypt.files import write_json

ROOT = paths.repository()


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "signing"
    make_key(path)
    return path


@pytest.fixture(scope="module")
def signed(tmp_path_factory, key) -> Path:
    """A signed card; tests must not change it."""
    folder = tmp_path_factory.mktemp("card")
    make_card(public_part(folder / "bundle"), folder / "card", key=key)
    return folder / "card" / "service_card.json"


@pytest.fixture
def copy(signed, tmp_path) -> Path:
    """The same, to be changed."""
    for path in signed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / signed.name


def answers(card: ServiceCard, name: str) -> list[str]:
    return [one.verdict for question in card.questions if question.name == name for one in question.answers]


def pages_of(pdf: bytes) -> int:
    return int(re.search(rb"/Count (\d+)", pdf)[1])


# What it says.


def test_without_an_audit_membership_is_not_asked(tmp_path):
    card = service_card(public_part(tmp_path).parent)
    assert not card.membership.asked
    assert card.membership.figures == []
    assert answers(card, "Inference") == [DESIGN, NOT_ASKED]
    assert "Not asked" in html_page(card, "0" * 64)


def test_figures_are_those_of_the_public_part(tmp_path):
    card = service_card(public_part(tmp_path))
    assert (card.service.genes, card.training.patients, card.training.sections) == (GENES, 2, 3)
    assert [(one.of, one.trusted, one.median) for one in card.trust.genes] == [(GENES, 3, 0.55)]
    assert (card.extraction.spots, card.extraction.messages) == (FEATURES + 1, {"single": 3})
    (ring,) = card.encryption.forms[0].rings
    assert ring.log2_modulus <= ring.most
    assert card.encryption.estimator is None


def test_colours_tell_slides_and_patients_apart(tmp_path):
    """Lightness 60, 61.5 of one patient, 68 of another: 1.5 within, at least 6.5 between."""
    card = service_card(public_part(tmp_path))
    out, link = (card.questions[at].answers[1] for at in (0, 1))
    assert (out.verdict, link.verdict) == (POSSIBLE, POSSIBLE)
    assert "at least 6.5 CIELAB" in out.words
    assert "is 1.5 to 1.5 CIELAB" in link.words


def test_one_slide_a_patient_leaves_linking_unasked(tmp_path):
    gate = {"section 1": look(1, 60.0), "section 2": look(2, 68.0)}
    assert answers(service_card(public_part(tmp_path, gate=gate)), "Linkability") == [PREVENTED, NOT_ASKED]


def test_what_an_owner_keeps_back_is_not_said(tmp_path):
    card = service_card(public_part(tmp_path, gate=None, predictability=None, intervals=None, origin=None))
    assert answers(card, "Singling out") == [PREVENTED, NOT_ASKED]
    assert not card.trust.slides_judged
    assert (card.trust.genes, card.trust.intervals, card.training.patients) == ([], {}, None)
    assert card.training.simulated is None
    html_page(card, "0" * 64)


def test_no_number_of_questions_is_claimed_for_a_network(tmp_path):
    card = service_card(public_part(tmp_path, level=3, parameters=choose(3, 1).to_dict()))
    assert card.extraction.spots is None
    assert card.extraction.copied == []
    assert "Not measured" in html_page(card, "0" * 64)


def test_a_network_that_is_refreshed_has_two_rings(tmp_path):
    about = {"sees": "tiles", "input": {"kind": "cells", "shape": [3, 64, 64], "factor": 8}, "level": 6, "batch": 1}
    card = service_card(public_part(tmp_path, parameters=bootstrapped().to_dict(), **about))
    ring, larger = card.encryption.forms[0].rings
    assert larger.log2_degree == ring.log2_degree + 1
    assert all(one.log2_modulus <= one.most for one in (ring, larger))
    assert len(card.encryption.assumes) == 3
    assert card.service.encoder is None
    assert "bootstrapping" in html_page(card, "0" * 64)


def test_what_came_back_of_tiles_decides_whether_encryption_prevents_it(tmp_path):
    folder = audit(tmp_path / "audit", asked("black box", 0.6, "leak"))
    rows = {"mean public tile": {"found": [0.01, 0.0, 0.02]}, "linear": {"found": [0.4, 0.3, 0.5]}}
    for hidden, verdict in (([0.01, 0.0, 0.02], PREVENTED), ([0.2, 0.1, 0.3], POSSIBLE)):
        said = {"encoder": "an encoder", "hospital": 100, "chance": 0.01, "encryption": {}}
        said["rows"] = rows | {"linear, ciphertexts": {"found": hidden}}
        write_json(folder / "embeddings.json", said)
        card = service_card(public_part(tmp_path), audit=folder)
        assert answers(card, "Singling out")[0] == verdict
        assert card.returned.clear == (0.4, 0.3, 0.5)
        assert "40.0% (30.0% to 50.0%)" in card.questions[0].answers[0].words
    write_json(folder / "embeddings.json", said | {"encryption": {"missing": "no engine"}, "rows": rows})
    assert service_card(public_part(tmp_path), audit=folder).returned is None
    write_json(folder / "embeddings.json", {"rows": rows})
    with pytest.raises(InputError) as caught:
        service_card(public_part(tmp_path), audit=folder)
    assert caught.value.field == "rows"


def _returned(rows: dict) -> dict:
    return {"encoder": "an encoder", "hospital": 10**6, "chance": 0.01, "encryption": {}, "rows": rows}


def _guesses(auc: float, low: float | None, *, p: float = 0.01, **changes: object) -> dict:
    """What an audit's folder holds in ``attributes.json``."""
    told = {"outputs": {"auc": auc, "low": low, "high": 0.95, "p_value": p}}
    told["image"] = {"auc": 0.7, "low": 0.6, "high": 0.8, "p_value": 0.01}
    beyond = {"outputs - image": {"auc": auc - 0.7, "low": -0.1, "high": 0.3, "p_value": None}}
    one = {"attribute": "subtype", "value": "luminal", "patients": {"with": 5, "without": 7}, "told": told}
    one |= {"beyond": beyond, "controls_passed": True} | changes
    return {"fold": "fold_1", "image": ["colour"], "predictors": {"fhe_head": [one]}}


def test_what_predictions_tell_of_patients_beyond_genes(tmp_path):
    part = public_part(tmp_path)
    folder = audit(tmp_path / "audit", asked("black box", 0.6, "leak"))
    for said, verdict in (
        (_guesses(0.9, 0.8), POSSIBLE),
        (_guesses(0.9, 0.8, p=0.1), SIGNS),
        (_guesses(0.6, 0.4), DESIGN),
        (_guesses(0.9, None), DESIGN),
        (_guesses(0.9, 0.8, controls_passed=False), DESIGN),
        (_guesses(0.9, 0.8, told={}, beyond={}), DESIGN),
    ):
        write_json(folder / "attributes.json", said)
        card = service_card(part, audit=folder)
        assert answers(card, "Inference")[0] == verdict
        assert card.attributes[0].patients == 12
    write_json(folder / "attributes.json", _guesses(0.9, 0.8) | {"fold": "fold_2"})
    assert service_card(part, audit=folder).attributes == []
    write_json(folder / "attributes.json", {"fold": "fold_1", "predictors": {"fhe_head": [{}]}})
    with pytest.raises(InputError) as caught:
        service_card(part, audit=folder)
    assert caught.value.field == "predictors"


def test_copies_that_were_measured_of_these_weights_are_said(tmp_path):
    part = public_part(tmp_path, level=3, parameters=choose(3, 1).to_dict())
    folder = audit(tmp_path / "audit", asked("black box", 0.6, "leak"))
    row = {"way": "same network", "sections": 3, "low": 0.5, "high": 0.99}
    row |= {"copy_with_measured": 0.3, "original_with_measured": 0.32}
    rows = [row | {"spots": spots, "correlation": found} for spots, found in ((10, 0.6), (200, 0.9))]
    said = {"format": "histocrypt extraction", "version": 1, "weights_sha256": "9b" * 32, "copied": rows}
    path = folder / "extraction_fhe_head.json"
    write_json(path, said)
    card = service_card(part, audit=folder)
    assert [one.spots for one in card.extraction.copied] == [200, 10]
    assert "0.90 (0.50 to 0.99)" in html_page(card, "0" * 64)
    write_json(path, said | {"weights_sha256": "0" * 64})
    assert service_card(part, audit=folder).extraction.copied == []
    for wrong, field in (({"format": "a poem"}, "format"), ({"copied": [{"spots": 3}]}, "copied")):
        write_json(path, said | wrong)
        with pytest.raises(InputError) as caught:
            service_card(part, audit=folder)
        assert caught.value.field == field


def test_the_strongest_attack_of_an_audit_stands_first(tmp_path):
    questions = (
        asked("white box", 0.99, "leak"),
        asked("black box", 0.7, "leak"),
        asked("black box", 0.9, "leak"),
        asked("black box", 0.97, "leak", question="If this training were repeated, would it tell who took part?"),
        asked("decrypted outputs", 0.55, "not found"),
    )
    folder = audit(tmp_path / "audit", *questions)
    card = service_card(public_part(tmp_path), audit=folder)
    assert [one.value for one in card.membership.figures] == [0.9, 0.7, 0.97, 0.55]
    assert answers(card, "Inference") == [DESIGN, POSSIBLE]
    assert "not compared" in card.membership.of
    assert set(card.membership.files) == {"privacy_card_fhe_head.json"}
    page = html_page(card, "0" * 64)
    assert "0.55 (0.45 to 0.57)" in page
    assert "0.90 (0.80 to 0.92)" in page


def test_an_attack_whose_control_failed_is_not_the_strongest(tmp_path):
    failed = asked("black box", 0.8, "undecided", controls=[{"name": "planted", "passed": False}])
    folder = audit(tmp_path / "audit", failed, asked("decrypted outputs", 0.5, "not found"))
    card = service_card(public_part(tmp_path), audit=folder)
    assert [one.value for one in card.membership.figures] == [0.5, 0.8]
    assert "a control failed" in html_page(card, "0" * 64)


@pytest.mark.parametrize(("word", "verdict"), [("undecided", UNDECIDED), ("not found", NOT_FOUND), ("odd", UNDECIDED)])
def test_words_of_an_audit_become_those_of_the_card(tmp_path, word, verdict):
    folder = audit(tmp_path / "audit", asked("decrypted outputs", 0.6, word))
    assert answers(service_card(public_part(tmp_path), audit=folder), "Inference")[1] == verdict


def test_whose_weights_were_audited_is_said(tmp_path):
    folder = audit(tmp_path / "audit", asked("decrypted outputs", 0.6, "not found"))
    own = public_part(tmp_path / "bundle")
    public_part(folder / "decrypted" / "hospital")
    assert "this model" in service_card(own, audit=folder).membership.of
    other = public_part(tmp_path / "other", fold="fold_2")
    assert "fold_1" in service_card(other, audit=folder).membership.of


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": "a poem"}, "format"),
        ({"thing": "stem"}, "format"),
        ({"study": "another"}, "study"),
        ({"questions": [{"access": "black box"}]}, "questions"),
        ({"questions": [asked("black box", float(1), "leak", figure={})]}, "questions"),
    ],
)
def test_other_audits_are_refused(tmp_path, changes, field):
    folder = audit(tmp_path / "audit", **changes)
    with pytest.raises(InputError) as caught:
        service_card(public_part(tmp_path), audit=folder)
    assert caught.value.field == field


def test_no_audit_at_all_is_refused_and_an_audit_of_others_is_said(tmp_path):
    part = public_part(tmp_path)
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError) as caught:
            service_card(part, audit=folder)
        assert caught.value.field == "--audit"
    other = audit(tmp_path / "audit", asked("black box", 0.6, "leak"))
    (other / "privacy_card_fhe_head.json").rename(other / "privacy_card_stem.json")
    assert not service_card(part, audit=other).membership.asked


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        service_card(tmp_path)
    assert caught.value.field == "client.json"
    (tmp_path / "client.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        service_card(tmp_path)
    assert caught.value.file == tmp_path / "client.json"


def test_every_claim_says_against_whom_and_names_its_tests():
    for one in (*claims.CLAIMS, *claims.SHOWN):
        assert one.brief
        assert one.against or (one.learns and one not in claims.SHOWN)
    for test in {test for one in claims.SHOWN for test in one.tests}:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


# The page.


def test_one_sheet_whatever_there_is_to_say(tmp_path):
    """Every name as long as it may be, nothing kept back, every part at its wordiest."""
    long = "Wording " * 40
    many = [f"{long} {at}" for at in range(30)]
    questions = [
        asked(access, 0.123, "undecided", attack=long, n=long) for access in ("black box", "decrypted outputs")
    ]
    questions[0]["controls"][0]["passed"] = questions[1]["controls"][0]["passed"] = False
    study = {"name": long, "title": long, "hash": "f" * 300}
    part = public_part(
        tmp_path,
        title=long,
        fold=long,
        study=study,
        weights_sha256="f" * 300,
        transforms=["log1p"],
        origin=dict.fromkeys(("organs", "stains", "laboratories", "platforms"), many) | {"simulated": True},
        input={"kind": "features", "shape": [10**6, 16], "encoder": long},
    )
    folder = audit(tmp_path / "audit", *questions, study=long, fold="another " * 40)
    rows = {"linear": {"found": [0.4, 0.3, 0.5]}, "linear, ciphertexts": {"found": [0.01, 0.0, 0.02]}}
    write_json(folder / "embeddings.json", _returned(rows) | {"encoder": long})
    write_json(folder / "attributes.json", _guesses(0.9, 0.8, attribute=long, value=long, controls_passed=False))
    card = service_card(part, audit=folder)
    assert len(card.service.title) == LONGEST
    pdf = pdf_page(card, "0" * 64)
    assert pages_of(pdf) == 1
    assert SMALLEST < LARGEST


def test_who_has_the_json_can_make_the_pages_again(signed):
    content = signed.read_bytes()
    card, digest = parse_card(content, file=signed), hashlib.sha256(content).hexdigest()
    assert html_page(card, digest).encode() == signed.with_suffix(".html").read_bytes()
    assert pdf_page(card, digest) == signed.with_suffix(".pdf").read_bytes()


def test_names_from_outside_are_text_on_the_page(tmp_path):
    page = html_page(service_card(public_part(tmp_path, title="<script>alert(1)</script>")), "0" * 64)
    assert "<script" not in page


def test_the_schema_is_documented():
    told = json.loads((ROOT / "docs" / "service_card.schema.json").read_text(encoding="utf-8"))
    assert told == ServiceCard.model_json_schema()


def test_the_json_is_read_again(signed):
    content = signed.read_bytes()
    assert parse_card(content, file=signed).model_dump_json(indent=2) + "\n" == content.decode()
    with pytest.raises(InputError) as caught:
        parse_card(content.replace(b'"version": 1', b'"version": 2'), file=signed)
    assert caught.value.field == "version"


# Signatures.


def test_a_signed_card_is_believed(signed, key):
    said = verify_card(signed, public_path(key), client=signed.parent.parent / "bundle")
    assert said["signed_by"] == Signer.read(key).public.fingerprint
    assert said["signed_by"] in render_verified(said)
    assert said["signed_pages"] == dict.fromkeys(PAGES, True)
    assert document("fhe", "verify-card", signed, "--key", public_path(key)) == plain(said)
    assert "Signed" in signed.with_suffix(".html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [".json", *PAGES])
def test_a_changed_card_or_page_is_refused(copy, key, kind):
    path = copy.with_suffix(kind)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"e", b"i", 1))
    with pytest.raises(InputError) as caught:
        verify_card(copy, public_path(key))
    assert (caught.value.file, caught.value.field) == (path, "signature")


def test_a_signed_page_of_another_card_is_refused(copy, key, tmp_path):
    make_card(public_part(tmp_path / "bundle", seed=1), tmp_path / "other", key=key)
    for suffix in (".html", ".html.sig"):
        (tmp_path / "other" / f"service_card{suffix}").rename(copy.with_name(f"service_card{suffix}"))
    with pytest.raises(InputError) as caught:
        verify_card(copy, public_path(key))
    assert caught.value.field == "sha256"
    with pytest.raises(InputError) as caught:
        verify_card(copy, public_path(key), client=tmp_path / "bundle")
    assert caught.value.field == "service.public_part"


def test_pages_that_are_gone_are_said(copy, key):
    copy.with_suffix(".pdf").unlink()
    assert verify_card(copy, public_path(key))["signed_pages"] == {".html": True, ".pdf": False}


def test_another_key_is_refused(signed, tmp_path):
    make_key(tmp_path / "other")
    with pytest.raises(InputError) as caught:
        verify_card(signed, tmp_path / "other.pub")
    assert caught.value.field == "key"


def test_an_unsigned_card_says_so_and_is_refused(tmp_path, key):
    part, folder = public_part(tmp_path), tmp_path / "card"
    make_card(part, folder, key=key)
    make_card(part, folder)
    path = folder / "service_card.json"
    assert not list(folder.glob("*.sig")), "signatures of the card before it"
    assert "Not signed" in path.with_suffix(".html").read_text(encoding="utf-8")
    with pytest.raises(InputError) as caught:
        verify_card(path, public_path(key))
    assert caught.value.file == signature_path(path)


def test_a_signature_for_something_else_does_not_count(copy, key):
    signature_path(copy).write_text(Signer.read(key).sign(copy.read_bytes(), namespace="file"), encoding="ascii")
    with pytest.raises(InputError) as caught:
        verify_card(copy, public_path(key))
    assert (caught.value.field, caught.value.value) == ("namespace", "file")


@pytest.mark.parametrize(
    "text", ["", "nothing\n", "-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n"]
)
def test_what_is_no_signature_is_refused(copy, key, text):
    signature_path(copy).write_text(text, encoding="ascii")
    with pytest.raises(InputError) as caught:
        verify_card(copy, public_path(key))
    assert caught.value.file == signature_path(copy)


@pytest.mark.parametrize("package", ["fpdf", "cryptography"])
def test_an_old_environment_is_told_what_it_lacks(tmp_path, key, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        make_card(public_part(tmp_path), tmp_path / "card", key=key)
    assert caught.value.field == package
    assert not list((tmp_path / "card").glob("*"))


def test_nothing_of_others_is_replaced(tmp_path):
    part, mine = public_part(tmp_path), tmp_path / "card" / "service_card.pdf"
    mine.parent.mkdir()
    mine.write_text("a thesis")
    with pytest.raises(InputError) as caught:
        make_card(part, mine.parent)
    assert caught.value.file == mine
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


def test_keys_are_private_and_never_shown(key, tmp_path):
    assert key.stat().st_mode & 0o777 == 0o600
    secret = "".join(key.read_text(encoding="ascii").splitlines()[1:-1])
    assert secret[60:120] not in str(vars(Signer.read(key).public)) + repr(Signer.read(key))
    with pytest.raises(InputError) as caught:
        make_key(key)
    assert caught.value.file == key
    shared = tmp_path / "shared"
    shared.write_bytes(key.read_bytes())
    shared.chmod(0o640)
    with pytest.raises(InputError) as caught:
        Signer.read(shared)
    assert caught.value.field == "mode"
    (tmp_path / "no").write_text("no key " + secret[60:120])
    (tmp_path / "no").chmod(0o600)
    with pytest.raises(InputError) as caught:
        Signer.read(tmp_path / "no")
    assert secret[60:120] not in str(caught.value)
    with pytest.raises(InputError) as caught:
        PublicKey.read(key)
    assert caught.value.field == "--key"


def run(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=300)


@pytest.mark.skipif(not which("ssh-keygen"), reason="no ssh-keygen here: OpenSSH cannot be asked")
def test_openssh_believes_the_signature_and_is_believed(copy, key, tmp_path):
    signers, name = tmp_path / "signers", "owner@hospital.example"
    signers.write_text(f"{name} {PublicKey.read(public_path(key)).line}\n")
    check = ("ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", name, "-n", NAMESPACE, "-s")
    for path in (copy, copy.with_suffix(".html"), copy.with_suffix(".pdf")):
        done = run(*check, str(signature_path(path)), stdin=path.read_bytes())
        assert done.returncode == 0, done.stderr
        assert run(*check, str(signature_path(path)), stdin=path.read_bytes() + b" ").returncode
    signature_path(copy).unlink()
    assert run("ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(copy)).returncode == 0
    assert verify_card(copy, signers)["signed_by"]


@pytest.mark.skipif(not which("ssh-keygen"), reason="no ssh-keygen here: OpenSSH cannot be asked")
def test_keys_of_openssh_are_taken_and_others_refused(tmp_path):
    part = public_part(tmp_path)
    for kind, phrase in (("ed25519", ""), ("ed25519", "a phrase"), ("ecdsa", "")):
        path = tmp_path / f"{kind}{bool(phrase)}"
        run("ssh-keygen", "-q", "-t", kind, "-N", phrase, "-f", str(path))
        if (kind, phrase) == ("ed25519", ""):
            assert Signer.read(path).public == PublicKey.read(public_path(path))
            continue
        with pytest.raises(InputError) as caught:
            make_card(part, tmp_path / "card", key=path)
        assert caught.value.field == "--sign"
    # a key that this program need not see
    later = tmp_path / "card"
    said = make_card(part, later, signer=public_path(tmp_path / "ed25519False"))
    files = [str(later / name) for name in ("service_card.json", "service_card.html", "service_card.pdf")]
    assert NAMESPACE in said
    assert (
        run("ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(tmp_path / "ed25519False"), *files).returncode == 0
    )
    assert verify_card(files[0], public_path(tmp_path / "ed25519False"))["signed_by"]


def test_bad_input_is_one_sentence_and_code_2(copy, key):
    """The whole command, as people type it."""
    copy.write_bytes(copy.read_bytes().replace(b"possible", b"prevented"))
    done = run(sys.executable, "-m", "histocrypt", "fhe", "verify-card", str(copy), "--key", str(public_path(key)))
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "Traceback" not in done.stderr.decode()


def test_a_study_gives_the_bundles_of_its_audited_fold(tmp_path):
    for fold, section in (("fold_0", "S_1"), ("fold_1", "S_2"), ("fold_2", "S_3")):
        public_part(tmp_path / "fhe_head" / section / "parties" / "model_owner" / "bundle", fold=fold)
    public_part(tmp_path / "fhe_cnn" / "S_1" / "parties" / "model_owner" / "bundle", model="fhe_cnn", fold="fold_0")
    found = bundles_of(tmp_path, "fold_1")
    assert {name: path.parents[3].name for name, path in found.items()} == {"fhe_head": "S_2", "fhe_cnn": "S_1"}
