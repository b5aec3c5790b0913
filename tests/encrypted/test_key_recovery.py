"""A lying evaluator that wants the secret key, or pixels, out of published predictions: see `forging`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pytest
from tests.encrypted import forging

from histocrypt.encrypted import messages
from histocrypt.encrypted.bundle import load_client, parse_client
from histocrypt.encrypted.compile import compile_lowered, lowered_model, training_inputs, write_bundle
from histocrypt.encrypted.evaluator import evaluate_request
from histocrypt.encrypted.key_owner import Keys, decrypt_response, encrypt_section, keygen, prepare
from histocrypt.encrypted.lowering import Lowered
from histocrypt.encrypted.single import hash_of
from histocrypt.errors import InputError
from histocrypt.pipeline.checkpoints import load_model

RANK = 4
"""Of the last layer of 24 outputs: nothing honest is along the other 20 directions."""
GAIN = 10
"""After two epochs of training outputs hardly vary; so they do as genes do."""
OLD_NOISE = 1e-3
"""As it was when the attack worked: a share of an output's standard deviation."""


@dataclass(frozen=True)
class Hospital:
    """Keys and a request in one form, and an honest response."""

    folder: Path
    lowered: Lowered
    """The evaluator's network."""
    spread: np.ndarray
    """(outputs,) what the evaluator knows of the outputs' standard deviations, from training."""

    @property
    def keys(self) -> Keys:
        return Keys(self.folder / "keys")

    @property
    def request(self):
        name = json.loads((self.folder / "response" / "response.json").read_text())["request"]
        return self.keys.request(name, file="response")

    def payloads(self) -> list[bytes]:
        """Return the results of all messages."""
        paths = sorted((self.folder / "response").glob("[0-9]*.ct"))
        return [messages.read_message(path, "output") for path in paths]

    def forged(self, folder: Path, payloads: list[bytes]) -> Path:
        """Return a response with these results, whole in every other respect."""
        folder.mkdir()
        shutil.copy(self.folder / "response" / "response.json", folder)
        for index, payload in enumerate(payloads):
            messages.write_message(folder / f"{index:05d}.ct", "output", payload, **self.request.place(index))
        return folder

    def publish(self, response: Path, output: Path) -> np.ndarray:
        """Return (spots, outputs) as the command writes them, of a hospital that gets no other response than this."""
        own = output.with_suffix(".keys")
        shutil.copytree(self.folder / "keys", own, ignore=shutil.ignore_patterns("evaluation.keys"))
        decrypt_response(response, own, output)
        return published(output, self.keys.client.about["outputs"])

    def refuses(self, payloads: list[bytes], folder: Path) -> str:
        """Return the field for which a response is refused; no file is written."""
        with pytest.raises(InputError) as error:
            self.publish(self.forged(folder / "response", payloads), folder / "p.h5ad")
        assert not (folder / "p.h5ad").exists()
        return error.value.field

    def error(self) -> float:
        """Return the typical difference of two copies' results, in an output's standard deviations."""
        request, owner = self.request, self.keys.decryptor()
        values = self.keys.client.decrypt(self.payloads()[0], owner, file="response") / self.spread
        order = np.array(request.note["order"])[: len(values)]
        pairs = np.argsort(order, kind="stable")
        same = np.diff(order[pairs]) == 0
        return float(np.median(np.abs(np.diff(values[pairs], axis=0)[same])))

    def unchecked(self, payloads: list[bytes]) -> np.ndarray:
        """Return (spots, outputs) as they were published when the attack worked: no copy is compared."""
        request, owner = self.request, self.keys.decryptor()
        each = [self.keys.client.decrypt(one, owner, file="response") for one in payloads]
        order = np.array(request.note["order"])
        values = np.concatenate(each)[np.unique(order, return_index=True)[1]]
        return values + np.random.default_rng(0).normal(size=values.shape) * OLD_NOISE * self.spread

    def shown_of(self, of_places: np.ndarray) -> np.ndarray:
        """Return (spots,) what is published of each spot, the mean over its places, from (slots,) numbers."""
        order = np.array(self.request.note["order"])
        return np.bincount(order, of_places[: len(order)]) / np.bincount(order)

    def first_places(self) -> np.ndarray:
        """Return (spots,) the place of the first copy of each spot: the evaluator is not told."""
        return np.unique(self.request.note["order"], return_index=True)[1]


def published(path: Path, outputs: list[str]) -> np.ndarray:
    file = anndata.read_h5ad(path)
    found = {f"{name}:{gene}": file.layers[name][:, j] for name in file.layers for j, gene in enumerate(file.var_names)}
    return np.stack([found[name] for name in outputs], axis=1).astype(float)


def hospital(world, folder, lowered, section, *, spots):
    """Compile a network in all its forms, make keys for so many spots, and have a section evaluated."""
    model = load_model(world.model, device="cpu")
    described, _ = lowered_model(model)
    inputs = np.concatenate(list(training_inputs(model, described)))
    about = load_client(world.bundle).about
    forging.compile_anew(lowered, described, about, inputs, folder / "bundle")
    keygen(folder / "bundle" / "client.json", folder / "keys", spots=spots)
    encrypt_section(section, folder / "keys", folder / "request")
    keys = folder / "keys" / "evaluation.keys"
    evaluate_request(folder / "request", folder / "bundle", keys, folder / "response", workers=1)
    low, high = about["output_range"]
    return Hospital(folder, lowered, np.maximum(lowered(inputs).std(axis=0), 1e-2 * (high - low)))


@pytest.fixture(scope="module")
def lowered(world):
    return forging.of_rank(lowered_model(load_model(world.model, device="cpu"))[1], RANK, gain=GAIN)


@pytest.fixture(scope="module")
def single(world, section, lowered, tmp_path_factory):
    """One tile a message, nine tiles."""
    return hospital(world, tmp_path_factory.mktemp("single"), lowered, section, spots=1)


@pytest.fixture(scope="module")
def batch(world, lowered, tmp_path_factory):
    """All 36 tiles in one message, several times."""
    return hospital(world, tmp_path_factory.mktemp("batch"), lowered, world.section, spots=None)


def windows(single, folder, *, size, everywhere):
    """Return the attack on single tiles, and forged results."""
    forger = forging.Forger(single.keys.client, single.folder / "keys" / "evaluation.keys", folder)
    attack = forging.Windows(forger, single.lowered, single.spread, size=size, everywhere=everywhere)
    return attack, [attack.forge(payload, place) for place, payload in enumerate(single.payloads())]


@pytest.mark.parametrize(("size", "everywhere"), [(0.01, False), (1.0, True)])
def test_single_results_hold_the_key_where_nobody_looks(single, tmp_path, size, everywhere):
    """The attack that led to the checks: predictions with little noise, and copies not compared."""
    attack, payloads = windows(single, tmp_path, size=size, everywhere=everywhere)
    slots, found = attack.recover(single.unchecked(payloads), single.first_places())
    assert forging.correlation(found, forging.key_slots(single.keys)[slots])[0] > 0.98


def test_single_results_that_differ_by_place_are_refused(single, tmp_path):
    """Beyond a tenth of a standard deviation; smaller ones at all places pass for a large honest error."""
    _, payloads = windows(single, tmp_path, size=0.5, everywhere=False)
    assert single.refuses(payloads, tmp_path).startswith("spot ")


def test_single_results_forged_alike_are_not_for_the_evaluator(single, tmp_path):
    """Every copy has the same piece of the key added, so they agree. The file says who must not see it."""
    attack, payloads = windows(single, tmp_path, size=1.0, everywhere=True)
    values = single.publish(single.forged(tmp_path / "response", payloads), tmp_path / "p.h5ad")
    slots, found = attack.recover(values, single.first_places())
    assert forging.correlation(found, forging.key_slots(single.keys)[slots])[0] > 0.98
    assert "not with the evaluator" in anndata.read_h5ad(tmp_path / "p.h5ad").uns["prediction"]["share"]


@pytest.mark.slow
def test_single_results_multiplied_by_the_key_agree(world, single, tmp_path):
    """Another consistent lie: as many numbers of the key as the evaluator wants."""
    described, lowered = lowered_model(load_model(world.model, device="cpu"))
    attack = forging.Multiplied(compile_lowered(lowered, described), 8, size=0.5)
    write_bundle(tmp_path / "bundle", attack.compiled, load_client(world.bundle).about, {})
    keygen(tmp_path / "bundle" / "client.json", tmp_path / "keys", spots=1)
    encrypt_section(world.section, tmp_path / "keys", tmp_path / "request")
    paths = sorted((tmp_path / "request").glob("[0-9]*.ct"))
    inputs = [messages.unpack_list(messages.read_message(path, "input"), count=1, file=path)[0] for path in paths]
    own = Hospital(tmp_path, lowered, single.spread)
    results = attack.evaluate(inputs, own.keys.client, tmp_path / "keys" / "evaluation.keys", tmp_path)
    (tmp_path / "response").mkdir()
    shutil.copy(tmp_path / "request" / "request.json", tmp_path / "response" / "response.json")
    response = own.forged(tmp_path / "forged", [messages.pack_list([one]) for one in results])
    slots, found = attack.recover(own.publish(response, tmp_path / "p.h5ad"))
    assert len(found) == 8 * (24 - 8)
    assert forging.correlation(found, forging.key_slots(own.keys)[slots])[0] > 0.98


@pytest.fixture(scope="module")
def forger(batch):
    return forging.BatchForger(batch.keys.client, batch.lowered, batch.spread)


def sizes(batch, size):
    return np.full(batch.keys.client.places, size)


def test_batches_hold_the_key_where_nobody_looks(batch, forger):
    found = forger.recover(batch.unchecked([forger.forge(one, sizes(batch, 0.01)) for one in batch.payloads()]))
    assert forging.correlation(found, forging.key_slots(batch.keys)[batch.first_places()])[0] > 0.98


@pytest.mark.parametrize(
    ("forged", "field"),
    [
        ("all places", "spot "),
        ("one place", "spot "),
        ("half of the places", "spot "),
        ("beyond what is plausible", "slots"),
        ("outside the field", "coefficients"),
    ],
)
def test_forged_batches_are_refused(batch, forger, tmp_path, forged, field):
    size, chance = sizes(batch, 0.05), np.random.default_rng()
    if forged == "one place":
        number = np.abs(forging.key_slots(batch.keys)[: len(size)])  # a key's number may be next to nothing
        size = np.where(np.arange(len(size)) == chance.choice(np.flatnonzero(number > 0.1 * forger.typical)), 1.0, 0.0)
    elif forged == "half of the places":
        size *= chance.random(len(size)) < 0.5
    elif forged == "beyond what is plausible":
        size *= 1e5
    payloads = [forger.forge(payload, size) for payload in batch.payloads()]
    if forged == "outside the field":
        payloads = [b"\xff" * 8 + payload[8:] for payload in payloads]
    assert batch.refuses(payloads, tmp_path).startswith(field)


def test_a_forgery_that_is_accepted_tells_nothing(batch, forger, tmp_path):
    """Larger and larger ones, until one is refused; the evaluator is even told which place each spot had."""
    truth = batch.shown_of(forging.key_slots(batch.keys))
    for number, size in enumerate((0.0, *(batch.error() * 2.0 ** np.arange(-1, 8)))):
        payloads = [forger.forge(payload, sizes(batch, size)) for payload in batch.payloads()]
        response = batch.forged(tmp_path / str(number), payloads)
        try:
            values = batch.publish(response, tmp_path / f"{number}.h5ad")
        except InputError:
            break
        assert forging.correlation(forger.recover(values), truth)[1] > 1e-6
    assert number > 1  # honest results and small forgeries pass
    assert size < 0.05


def test_another_answer_to_a_request_is_refused(batch, forger, tmp_path):
    """A lying evaluator cannot try again, whether its first answer was accepted or refused; nor an honest one."""
    honest = batch.forged(tmp_path / "honest", batch.payloads())
    small = batch.forged(tmp_path / "small", [forger.forge(one, sizes(batch, 1e-6)) for one in batch.payloads()])
    large = batch.forged(tmp_path / "large", [forger.forge(one, sizes(batch, 0.5)) for one in batch.payloads()])
    for first, others in ((honest, (small, large)), (large, (honest, small))):
        keys = tmp_path / f"keys{first.name}"
        shutil.copytree(batch.folder / "keys", keys, ignore=shutil.ignore_patterns("evaluation.keys"))

        def decrypt(response, keys=keys):
            output = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5ad"
            decrypt_response(response, keys, output)
            return published(output, batch.keys.client.about["outputs"])

        if first is honest:
            assert np.array_equal(decrypt(first), decrypt(first))  # the same noise, so that nothing averages out
        else:
            with pytest.raises(InputError, match="sent twice"):
                decrypt(first)
        for other in others:
            with pytest.raises(InputError) as error:
                decrypt(other)
            assert error.value.field == "answer"


def test_keys_are_for_one_section(world, batch, tmp_path):
    with pytest.raises(InputError) as error:
        encrypt_section(world.section, batch.folder / "keys", tmp_path / "request")
    assert error.value.field == "requests"
    assert not (tmp_path / "request").exists()


@pytest.mark.parametrize("ends", [[float("nan"), 1.0], [-float("inf"), float("inf")], [2.0, -2.0], [0.0], ["0", "1"]])
def test_ranges_that_are_none_are_refused(world, ends):
    """They are the evaluator's words, and noise is scaled by them."""
    content = json.loads((world.bundle / "client.json").read_text()) | {"output_range": ends}
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    with pytest.raises(InputError) as error:
        parse_client({**content, "hash": hash_of(about)}, file="client.json")
    assert error.value.field == "output_range"


def test_a_consistent_lie_shows_pixels_to_who_sees_the_predictions(world, section, lowered, single, tmp_path):
    """No copy tells: it is another network, evaluated well. Hence predictions are not for the evaluator."""
    lying, along = forging.with_pixels(lowered, single.spread, size=0.5)
    own = hospital(world, tmp_path, lying, section, spots=1)
    values = own.publish(own.folder / "response", tmp_path / "p.h5ad")
    tiles = prepare(own.keys.client, section).values
    cells = tiles.reshape(len(tiles), 3, 3, 8, 3, 8).mean(axis=(1, 3, 5)).reshape(len(tiles), -1)
    found = (values - lowered.maps[-1].bias) / single.spread @ along
    assert forging.correlation(found.ravel(), cells.ravel())[0] > 0.8
