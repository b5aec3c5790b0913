"""A model of others, audited from its predictions and a table of members: planted leaks are found, and no others."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from tests.commands import document
from typer.testing import CliRunner

from histocrypt.answer import plain
from histocrypt.audit.black_box import audit_predictions
from histocrypt.audit.card import LEAK, NOT_FOUND, read_card
from histocrypt.audit.membership import read_scores
from histocrypt.cli import app
from histocrypt.errors import InputError

PATIENTS, SIDE, GENES, KNOWN = 8, 6, 30, 4
UNITS = "log1p_cp10k"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder of sections, the first half of them members, and a function that writes predictions of them."""
    folder, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(0)
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    genes, sections = [f"GENE{number}" for number in range(GENES)], {}
    for number in range(PATIENTS):
        rates = np.exp(rng.normal(size=(len(x), GENES)) * 0.7) * np.linspace(5, 40, GENES)
        section = ad.AnnData(
            csr_matrix(rng.poisson(rates).astype(np.float32)),
            obs=pd.DataFrame({"patient": f"P{number}"}, index=names),
            var=pd.DataFrame(index=genes),
            obsm={"spatial": np.column_stack([x, y]) * 200.0},
        )
        section.write_h5ad(folder / f"S{number}.h5ad")
        counts = section.X.toarray()
        sections[number] = rates, np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))

    def write(home, *, leak):
        """Predict a blurred truth, of members the counts themselves by a share of ``leak``; return the table."""
        noise, rows = np.random.default_rng(1), []
        for number, (rates, measured) in sections.items():
            smooth = np.log1p(1e4 * rates / rates.sum(axis=1, keepdims=True)) + noise.normal(0, 0.3, rates.shape)
            share = leak if number < KNOWN else 0.0
            predicted = ad.AnnData((1 - share) * smooth + share * measured, obs=pd.DataFrame(index=names))
            predicted.var = pd.DataFrame(index=genes[::-1])
            predicted.X = predicted.X[:, ::-1]
            predicted.write_h5ad(home / f"p{number}.h5ad")
            row = {"prediction": f"p{number}.h5ad", "section": folder / f"S{number}.h5ad"}
            rows.append({**row, "MIA_label": int(number < KNOWN)})
        table = home / "deepspot.csv"
        pd.DataFrame(rows).to_csv(table, index=False)
        return table

    return write


def test_a_planted_leak_is_found_and_a_model_without_one_is_not_accused(world, tmp_path):
    for name, leak, verdict in (("leaky", 0.6, LEAK), ("clean", 0.0, NOT_FOUND)):
        home = tmp_path / name
        home.mkdir()
        card = audit_predictions(world(home, leak=leak), home / "out", units=UNITS, draws=200)
        (asked,) = card.questions
        assert (card.thing, asked.verdict) == ("deepspot", verdict)
        assert asked.positive.passed, "a network that knew members by heart would have been found out"
        assert asked.negative.passed
        assert asked.figure.over == "patients"
        assert any("which need the training" in line for line in card.does_not_cover)
        assert read_card(home / "out" / "privacy_card_deepspot.json") == card
        (attack,) = read_scores(home / "out" / "scores" / "deepspot.csv").values()
        assert len(attack.scores) == PATIENTS * SIDE * SIDE
        assert attack.member.sum() == KNOWN * SIDE * SIDE


def test_without_units_z_scores_are_attacked_in_each_transform(world, tmp_path):
    card = audit_predictions(world(tmp_path, leak=0.6), tmp_path / "out", name="Deep spot", draws=50)
    assert card.thing == "Deep-spot"
    assert [asked.attack for asked in card.questions] == [
        f"loss threshold ({name}, z-scores within sections)" for name in ("log1p_cp10k", "log1p")
    ]
    assert card.questions[0].verdict == LEAK


def test_a_table_that_does_not_say_it_is_refused(world, tmp_path):
    table = world(tmp_path, leak=0.0)
    rows = pd.read_csv(table).to_dict("records")

    def refused(change, **how):
        pd.DataFrame([change(row) for row in rows]).to_csv(table, index=False)
        with pytest.raises(InputError) as error:
            audit_predictions(table, tmp_path / "out", **how)
        assert not (tmp_path / "out").exists()
        return error.value

    def without(name):
        return lambda row: {key: value for key, value in row.items() if key != name}

    assert refused(without("MIA_label")).field == "member"
    assert refused(without("prediction")).field == "prediction"
    assert refused(lambda row: {**row, "MIA_label": "perhaps"}).value == "perhaps"
    assert refused(lambda row: {**row, "section": ""}).field == "line 2"
    assert refused(lambda row: {**row, "MIA_label": 1}).field == "member"
    assert refused(lambda row: {**row, "patient": "P"}).value == "P"
    assert refused(lambda row: row, units="furlongs").field == "--units"


def test_the_command_replaces_its_own_card_alone(world, tmp_path):
    table, out = world(tmp_path, leak=0.0), tmp_path / "out"
    audit_predictions(table, out, units=UNITS, draws=20)
    said = ["audit", str(table), "-o", str(out), "--units", UNITS]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    assert "Not seen: " in done.output
    assert document(*said) == plain(read_card(out / "privacy_card_deepspot.json").to_dict())
    (out / "privacy_card_deepspot.json").write_text("{}")
    assert CliRunner().invoke(app, said).exception.field == "--output"
