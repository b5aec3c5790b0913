"""A card says what its figures give, fits a page, and refuses to be written without controls."""

import json
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from tests.evaluation.chromium import BROWSER

from histocrypt.audit.card import (
    BELOW,
    DOES_NOT_COVER,
    LEAK,
    NOT_FOUND,
    SIGNS,
    UNDECIDED,
    WHO,
    WORDS,
    Asked,
    Card,
    Control,
    Figure,
    ask_membership,
    ask_procedure,
    read_card,
    write_card,
)
from histocrypt.audit.controls import run_controls
from histocrypt.audit.lower_bound import lower_bound
from histocrypt.audit.membership import judge
from histocrypt.audit.shadow import as_targets, halves
from histocrypt.errors import InputError

PLANTED = Control("overfitted on purpose", True, Figure(0.99, 0.97, 1.0), "an AUC of at least 0.9", True)  # noqa: FBT003
PERMUTED = Control("membership permuted", False, Figure(0.5, 0.4, 0.6), "0.5 in the interval", True)  # noqa: FBT003
SHARE = {"measure": "Share copied", "chance": 0.05}


def asked(figure=None, **changes):
    figure = figure or Figure(0.55, 0.45, 0.65)
    about = "408 of 3 patients against 269 of 3 patients"
    question = Asked("Was it trained on?", WHO["black box"], "black box", "Loss threshold", figure, about)
    return replace(question, **{"controls": [PLANTED, PERMUTED], **changes})


def card(*questions, kind="predictor", **changes):
    made = Card(
        "knn", kind, "Frozen-encoder kNN", "Predicts 12 genes.", "small", "fold_a", list(questions) or [asked()],
        list(DOES_NOT_COVER[kind]),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("question", "verdict"),
    [
        (asked(Figure(0.55, 0.45, 0.65)), NOT_FOUND),
        (asked(Figure(0.7, 0.5, 0.8)), NOT_FOUND),
        (asked(Figure(0.7, 0.6, 0.8)), LEAK),
        (asked(Figure(0.7, 0.6, 0.8, over="blocks")), SIGNS),
        (asked(Figure(0.7, 0.6, 0.8), by_lot=0.05), LEAK),
        (asked(Figure(0.7, 0.6, 0.8), by_lot=0.1), SIGNS),
        (asked(Figure(0.55, 0.45, 0.65), by_lot=0.5), NOT_FOUND),
        (asked(Figure(0.3, 0.2, 0.4)), BELOW),
        (asked(Figure(0.7, None, None)), UNDECIDED),
        (asked(Figure(0.7, np.nan, 0.8)), UNDECIDED),
        (asked(Figure(0.06, 0.02, 0.11, **SHARE)), NOT_FOUND),
        (asked(Figure(0.3, 0.2, 0.4, **SHARE)), LEAK),
        (asked(Figure(0.0, 0.0, 0.0, **SHARE)), NOT_FOUND),
        (asked(controls=[replace(PLANTED, passed=False), PERMUTED]), UNDECIDED),
        (asked(Figure(0.7, 0.6, 0.8), controls=[replace(PLANTED, passed=False), PERMUTED]), LEAK),
        (asked(Figure(0.7, 0.6, 0.8), controls=[PLANTED, replace(PERMUTED, passed=False)]), UNDECIDED),
    ],
)
def test_verdicts_follow_the_rule(question, verdict):
    assert question.verdict == verdict


def test_the_gravest_answer_stands_on_top(tmp_path):
    found = card(asked(), asked(Figure(0.7, 0.6, 0.8)), asked(Figure(0.3, 0.2, 0.4)))
    assert found.verdict == LEAK
    page = write_card(tmp_path / "privacy_card.html", found).read_text()
    assert page.index(WORDS[LEAK]) < page.index(WORDS[NOT_FOUND])
    assert card(asked(), asked()).verdict == NOT_FOUND


def test_a_card_of_what_was_judged(tmp_path):
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(8)], 25)
    member = np.isin(patients, ["P0", "P1", "P2", "P3"])
    scores = rng.normal(size=200)
    controls = run_controls(scores, member, patients, overfitted=scores + 9 * member, draws=50)
    judged = judge(scores, member, patients, draws=50)
    question = ask_membership(judged, controls, access="black box", attack="Loss threshold")
    assert (question.figure.value, question.figure.over) == (judged.auc, "patients")
    assert question.n == "100 of 4 patients against 100 of 4 patients"
    assert [control.positive for control in question.controls] == [True, False]
    assert question.also["Members found at 0.1, 1 and 5 % false alarms"] == "too few non-members to tell"
    assert not [note for note in question.notes if "TPR" in note]
    page = write_card(tmp_path / "card.html", card(question, notes=["Read <this>."]))
    text = page.read_text()
    assert f"AUC {judged.auc:.2f}" in text
    assert "Read &lt;this&gt;." in text
    assert len(text) < 30_000
    assert not re.search(r"anonym|\bsafe|https?://(?!www\.w3)|<script", text, re.IGNORECASE)
    assert read_card(page.with_suffix(".json")) == card(question, notes=["Read <this>."])


def test_a_way_of_training_is_asked_by_its_shadows():
    rng = np.random.default_rng(1)
    patients = np.repeat([f"P{i}" for i in range(6)], 10)
    inside = halves(patients, 8, seed=0)
    scores = rng.normal(size=inside.shape) + 3 * inside
    found = as_targets(scores, inside, patients, draws=50)
    controls = run_controls(scores[0], inside[0], patients, overfitted=inside[0] + 0.1 * scores[0], draws=50)
    question = ask_procedure(found, controls, access="black box", attack="LiRA")
    assert question.n == "8 trainings on halves of 6 patients"
    assert question.verdict == LEAK
    assert question.notes == list(controls.notes)


def test_a_failed_control_is_named(tmp_path):
    page = write_card(tmp_path / "card.html", card(asked(controls=[replace(PLANTED, passed=False), PERMUTED])))
    assert "FAILED: had to give an AUC of at least 0.9" in page.read_text()


def test_distances_are_a_filter_and_never_the_verdict_on_a_set(tmp_path):
    passed, failed = (asked(Figure(0.3, low, 0.4, **SHARE), decides=False) for low in (0.02, 0.2))
    assert (passed.verdict, failed.verdict) == (UNDECIDED, LEAK)
    alone = card(passed, kind="synthetic set")
    assert alone.verdict == UNDECIDED
    assert "never a verdict" in write_card(tmp_path / "card.html", alone).read_text()
    assert "none were trained" in alone.rests
    assert card(asked(), passed, kind="synthetic set").verdict == NOT_FOUND
    assert card(asked(), failed, kind="synthetic set").verdict == UNDECIDED
    assert card(asked(Figure(0.7, 0.6, 0.8)), passed, kind="synthetic set").verdict == LEAK
    assert "none were trained" not in card(asked(), passed, kind="synthetic set").rests
    assert read_card(tmp_path / "card.json") == alone


def test_cards_that_would_say_too_little():
    too_little = [
        lambda: replace(card(), questions=[]),
        lambda: card(asked(controls=[])),
        lambda: card(asked(), kind="synthetic set"),  # without a figure on memorisation
    ]
    for write in too_little:
        with pytest.raises(InputError) as refused:
            write()
        assert refused.value.field == "questions"
    assert card(asked(), asked(Figure(0.06, 0.02, 0.11, **SHARE)), kind="synthetic set").verdict == NOT_FOUND
    with pytest.raises(InputError, match="not a number"):
        Figure(np.nan, 0.1, 0.2)
    with pytest.raises(InputError, match=r"ends in \.html"):
        write_card("card.pdf", card())


@pytest.mark.parametrize("change", [{"format": "something"}, {"verdict": LEAK}, {"questions": [{}]}, {"safe": True}])
def test_a_changed_card_is_refused(tmp_path, change):
    path = write_card(tmp_path / "card.html", card()).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError) as refused:
        read_card(path)
    assert refused.value.file == path


@pytest.mark.parametrize("paper", ["A4", "letter"])
def test_six_questions_and_ten_attacks_fit_on_one_page(tmp_path, paper):
    if not BROWSER:
        pytest.skip("no Chromium here: the page cannot be printed")
    also = {"Balanced accuracy": "0.61 (0.52 to 0.70)", "Advantage, at most": "0.31"}
    also |= {f"Members found at {rate} % false alarms": "0.12 (0.04 to 0.20)" for rate in ("1", "5")}
    also |= {"Members found at 0.1 % false alarms": "too few non-members to tell"}
    notes = [
        "4 patients among members and 2 among non-members: the intervals are over blocks of these patients and say "
        "nothing of other patients.",
        "Too few patients to deal membership out among them: half of each patient's records became members.",
    ]
    questions = [asked(also=also, notes=notes, against=str(place)) for place in (0, 0, 0, 0, 0, 1, 2, 3, 4)]
    questions.append(asked(Figure(0.06, 0.02, 0.11, **SHARE), against="5"))
    made = card(*questions, kind="synthetic set")
    assert [len(attacks) for attacks in made.families] == [5, 1, 1, 1, 1, 1]
    page = write_card(tmp_path / "card.html", made)
    page.write_text(page.read_text().replace("size: auto", f"size: {paper}"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--no-pdf-header-footer"]
    printed = tmp_path / "card.pdf"
    subprocess.run([*command, f"--print-to-pdf={printed}", page.as_uri()], capture_output=True, check=True, timeout=600)
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) == 1


def test_what_is_promised_and_proved_of_epsilon_stands_on_the_card_beside_the_verdict(tmp_path):
    coins = np.random.default_rng(0).random((4, 10)) < 0.5
    bound = lower_bound(coins.astype(float), coins, delta=1e-5)
    promised = "epsilon 8.00 at delta 1e-05 for one patient"
    with_both = card(asked(), bound=bound, promised=promised)
    assert with_both.verdict == card(asked()).verdict == NOT_FOUND
    page = write_card(tmp_path / "card.html", with_both).read_text()
    assert promised in page
    assert bound.sentence() in page
    assert read_card(tmp_path / "card.json") == with_both
    assert "<b>Epsilon</b>" not in write_card(tmp_path / "bare.html", card(asked())).read_text()
