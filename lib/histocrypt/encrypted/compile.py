"""From a trained model to a compiled one: merge linear layers, lay values out, write diagonals, calibrate ranges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histocrypt.encrypted import engine
from histocrypt.encrypted.batch.plan import Plan, Unfit, make_plan
from histocrypt.encrypted.bundle import MODEL, is_client, load_client, write_client
from histocrypt.encrypted.card import bundle_card
from histocrypt.encrypted.lowering import Affine, Lowered, linear, lower, scaling
from histocrypt.encrypted.packing import Layout, best_ratio, blocked, diagonals, spots_side_by_side
from histocrypt.encrypted.parameters import SECURITY_BITS, Parameters, check_security, choose
from histocrypt.encrypted.single import hash_of, input_layout
from histocrypt.encrypted.told import told_of
from histocrypt.errors import InputError
from histocrypt.files import claim, write_json, write_text

if TYPE_CHECKING:
    from histocrypt.pipeline.checkpoints import TrainedModel

MARGIN = 0.25
"""The calibrated range is widened by this share of itself on both sides."""
HEAD_BATCH = 16
"""Spots that share ciphertexts where the evaluator holds a head alone: fewest diagonals a spot at N = 2^12."""
EXAMPLES = 256
"""Training tiles, at least, by which weights of batches are rounded, where there are so many; twice as many at most."""


@dataclass(frozen=True)
class Compiled:
    """Nodes for the engine, and what keys they need."""

    parameters: Parameters
    nodes: list[engine.Node]
    rotations: set[int]
    layouts: list[Layout]
    """Of the input and of each map's output."""
    diagonals: list[int]
    """Number in each map."""
    encoded_bytes: int
    """What the evaluator holds once all of them are encoded."""
    moduli: list[int]
    """The ciphertext primes."""


def assemble(lowered: Lowered, parameters: Parameters, layouts: Sequence[Layout], moduli: Sequence[int]) -> Compiled:
    """Build the engine's graph.

    CKKS keeps each ciphertext with a scale; a square changes it to scale^2 / prime, and primes are only near powers of
    two. The engine adds biases at the nominal scale and does not correct for the difference. Here the true scale is
    followed exactly, and each matrix brings its output back to the nominal one.
    """
    nominal = float(1 << parameters.log_scale)
    true = claimed = nominal
    level, previous = lowered.levels, ()
    nodes, rotations, counts, encoded = [], set(), [], 0
    last = len(lowered.maps) - 1
    for number, (one, source, target) in enumerate(zip(lowered.maps, layouts, layouts[1:], strict=False)):
        after = max(claimed, nominal)  # what the engine will say of the scale once a bias is added
        aim = after if number == last else nominal
        blocks, folds = diagonals(one.matrix * (aim / true), source, target)
        bias = target.pack(one.bias * (aim / nominal))
        log_ratio, needed = best_ratio(blocks, parameters.slots)
        rotations |= needed | {parameters.slots >> (step + 1) for step in range(folds)}
        count = sum(len(found) for found in blocks.values())
        counts.append(count)
        encoded += count * (level + 1 + len(parameters.logp)) * parameters.limb_bytes
        options = {"log_ratio": log_ratio, "folds": folds}
        nodes.append(engine.linear_node(f"linear{number}", level, previous, blocks, bias, **options))
        true, claimed, level, previous = aim, after, level - 1, (f"linear{number}",)
        if number < last:
            nodes.append(engine.Node(f"square{number}", "quad", level, previous))
            true, claimed = true**2 / moduli[level], claimed**2 / moduli[level]
            level, previous = level - 1, (f"square{number}",)
    return Compiled(parameters, nodes, rotations, list(layouts), counts, encoded, list(moduli))


def compile_model(model_folder: str | Path, output: str | Path, *, looks: bool = True) -> str:
    """Compile a trained model into a bundle.

    Parameters
    ----------
    model_folder
        ``models/<name>/<fold>`` of a run; the run's tiles of the model's training sections calibrate the input range.
    output
        The bundle: ``server/`` (secret, mode 0700) and ``client.json`` (public).
    looks
        Tell clients what training slides looked like, so that they can judge theirs; see `told.told_of`.

    Returns
    -------
    str
        One line that says what was compiled.

    Raises
    ------
    InputError
        If the model cannot be evaluated on ciphertexts, or its training tiles are not beside it.
    """
    from histocrypt.encrypted.resnet.bundle import RESIDUAL, compile_residual
    from histocrypt.pipeline.checkpoints import load_model
    from histocrypt.predictors.registry import check_no_average

    claim_bundle(Path(output))
    model = load_model(model_folder, device="cpu")
    check_no_average(model.about, Path(model_folder))
    told = told_of(model.about, model.gate, looks=looks)
    if model.about["model"] in RESIDUAL:
        return compile_residual(model, Path(output), inputs=partial(training_inputs, model), margin=MARGIN, told=told)
    described, lowered = lowered_model(model)
    compiled = compile_lowered(lowered, described)
    parameters = compiled.parameters
    input_range, output_range, largest, examples = _calibrate(model, described, lowered)
    room = 2.0 ** (parameters.logq[0] - parameters.log_scale - 1)
    far = max(map(abs, output_range))
    if 2 * far > room:
        problem = "outputs are too large for the first prime of the parameters"
        raise InputError(problem, file=model_folder, field="outputs", value=far, expected=f"at most {room / 2:g}")
    about = {
        "model": model.about["model"],
        "title": model.about.get("title", model.about["model"]),
        "outputs": model.about["outputs"],
        "input_range": input_range,
        "output_range": output_range,
        **described,
        **told,
        "weights_sha256": model.about["weights"]["sha256"],
    }
    private = {
        "model": str(Path(model_folder).resolve()),
        "largest_before_square": largest,
        "output_sd": np.asarray(model.scaling.sd, dtype=float).tolist(),
    }
    try:
        reached = {"input_range": input_range, "largest": [*largest, far], "examples": examples}
        plan = make_plan(lowered, described["input"], **reached)
        said = f"; in batches of {plan.layouts[-1].tiles} spots, {plan.proof()}"
    except Unfit as why:
        plan, said = None, f"; no batches: {why}"
    write_bundle(Path(output), compiled, about, private, plan)
    write_text(Path(output) / "card.md", bundle_card(load_client(output), said))
    return (
        f"{output}: {about['title']} ({about['model']}), "
        f"{lowered.levels} level{'s' * (lowered.levels != 1)} at N = 2^{parameters.logn}, "
        f"log QP {parameters.log_qp}, at least {SECURITY_BITS} bits; {sum(compiled.diagonals)} diagonals, "
        f"{len(compiled.rotations)} rotation keys{said}; public part {Path(output) / 'client.json'}"
    )


def compile_lowered(lowered: Lowered, described: dict[str, Any]) -> Compiled:
    """Choose parameters, lay out every tensor, and build the engine's graph.

    Parameters
    ----------
    lowered
        The network.
    described
        How inputs are described to clients: ``input`` and ``batch`` of the client part.
    """
    inputs, batch = described["input"], described["batch"]
    parameters = choose(lowered.levels, int(np.prod(inputs["shape"])) if inputs["kind"] == "tiles" else 1)
    check_security(parameters)
    layouts = [input_layout(inputs, parameters.slots)]
    for number, one in enumerate(lowered.maps):
        if number < len(lowered.maps) - 1 and len(one.target) == 3:
            layouts.append(blocked(one.target, parameters.slots, factors=lowered.strides[number + 1 :]))
        else:
            layouts.append(spots_side_by_side(one.target[0], batch, parameters.slots))
    matrices = Lowered([_for_batch(one, batch) for one in lowered.maps], lowered.strides)
    return assemble(matrices, parameters, layouts, engine.KeyOwner(parameters).moduli())


def write_bundle(
    output: Path, compiled: Compiled, about: dict[str, Any], private: dict[str, Any], plan: Plan | None = None
) -> None:
    """Write ``server/`` (secret, mode 0700) and ``client.json`` (public).

    Parameters
    ----------
    output
        Folder of the bundle.
    compiled
        The network.
    about
        What clients learn beside parameters and rotations; see `bundle.REQUIRED`.
    private
        What stays in ``server/server.json`` beside the compiled network.
    plan
        The form ``batch``, where there is one.
    """
    parameters = compiled.parameters
    about = {
        **about,
        "batch_form": None if plan is None else plan.public(),
        "parameters": parameters.to_dict(),
        "security_bits": SECURITY_BITS,
        "rotations": sorted(compiled.rotations),
        "moduli": [str(prime) for prime in compiled.moduli],
        "level": compiled.nodes[0].level,
    }
    about = json.loads(json.dumps(about))
    server = output / "server"
    server.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that exists keeps its mode; what it gets has its own
    (server / "server.json").unlink(missing_ok=True)
    path = server / MODEL
    size = engine.write_model(path, parameters, compiled.nodes, compiled.rotations)
    if plan is not None:
        plan.save(server / "batch.safetensors")
    write_client(output / "client.json", about)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(
        server / "server.json",
        {
            "client": hash_of(about),
            "file_bytes": path.stat().st_size,
            "model_bytes": size,
            "sha256": digest,
            "encoded_bytes": compiled.encoded_bytes,
            "diagonals": compiled.diagonals,
            "batch_bytes": 0 if plan is None else plan.most_bytes(),
            **private,
        },
    )
    (server / "server.json").chmod(0o600)


def claim_bundle(output: Path) -> None:
    """Refuse a folder where a bundle would replace what is none."""
    ours = is_client(output / "client.json")
    for name in ("card.md", "client.json", "server/server.json", f"server/{MODEL}", "server/network/steps.json"):
        claim(output / name, mine=lambda _: ours, overwrite=None)


def lowered_model(model: TrainedModel) -> tuple[dict[str, Any], Lowered]:
    """Return how inputs are described to clients, and the network with the outputs' units merged into its last map.

    Raises
    ------
    InputError
        If the model cannot be evaluated on ciphertexts.
    """
    about, state = model.about, model.predictor.state()
    by_section = about["training"]["normalise_by_section"]
    where = {"file": model.folder, "field": "model", "value": about["model"]}
    unfit = partial(InputError, **where, expected="fhe_cnn, fhe_head or fhe_resnet18")
    if about["kind"] == "network":
        network = model.predictor.network
        if not hasattr(network, "layers"):
            raise unfit("this network was not made for encrypted evaluation")
        side = about["geometry"]["input_px"]
        lowered = lower(network, (3, side, side))
        mean, sd = np.asarray(state["pixel_moments"], dtype=float)
        described = {
            "sees": "tiles",
            "batch": 1,
            "input": {"kind": "tiles", "shape": [3, side, side], "factors": lowered.strides},
            "normalisation": {"by_section": by_section}
            | ({} if by_section else {"mean": mean.tolist(), "sd": sd.tolist()}),
        }
    elif "axes" in state and "coefficient" in state:
        axes, coefficient = state["axes"].astype(float), state["coefficient"].astype(float)
        weight = (axes @ coefficient).T
        offset = state["intercept"].astype(float) - weight @ state["centre"].astype(float)
        lowered = Lowered([linear(weight, offset, (len(axes),))], [])
        described = {
            "sees": "features",
            "batch": HEAD_BATCH,
            "input": {"kind": "features", "shape": [len(axes), HEAD_BATCH], "encoder": model.predictor.encoder},
            "normalisation": {"by_section": by_section, "sd": state["sd"].tolist()}
            | ({} if by_section else {"mean": state["mean"].tolist()}),
        }
    else:
        raise unfit("this model cannot be evaluated on ciphertexts")
    units = scaling(model.scaling.sd.astype(float), model.scaling.mean.astype(float), lowered.maps[-1].target)
    return described, Lowered([*lowered.maps[:-1], lowered.maps[-1].then(units)], lowered.strides)


def _for_batch(one: Affine, batch: int) -> Affine:
    """Return a map for several spots side by side; a tile is alone in its ciphertext."""
    if batch == 1:
        return one
    return Affine(
        sp.kron(one.matrix, sp.eye(batch), format="csr"),
        np.repeat(one.bias, batch),
        (*one.source, batch),
        (*one.target, batch),
    )


def _calibrate(
    model: TrainedModel, described: dict[str, Any], lowered: Lowered
) -> tuple[list[float], list[float], list[float], np.ndarray]:
    """Return the range of inputs over the training tiles, widened, of outputs, what entered each square, some tiles."""
    low, high, out_low, out_high = np.inf, -np.inf, np.inf, -np.inf
    largest, examples, step, number = [0.0] * (len(lowered.maps) - 1), [], 1, 0
    for inputs in training_inputs(model, described):
        low, high = min(low, float(inputs.min())), max(high, float(inputs.max()))
        outputs = lowered(inputs)
        out_low, out_high = min(out_low, float(outputs.min())), max(out_high, float(outputs.max()))
        largest = [max(pair) for pair in zip(largest, lowered.largest(inputs), strict=True)]
        for one in inputs:
            if number % step == 0:
                examples.append(one.astype(np.float32))
            number += 1
            if len(examples) == 2 * EXAMPLES:  # every second one, and from now on half as often
                examples, step = examples[::2], 2 * step
    room = MARGIN * (high - low)
    return [low - room, high + room], [out_low, out_high], largest, np.stack(examples).astype(np.float64)


def training_inputs(model: TrainedModel, described: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield what the network was trained on, as it enters the network, some spots of a section at a time."""
    from histocrypt.data.features import normalised_chunks, section_features
    from histocrypt.data.load import spot_names
    from histocrypt.encrypted.prepare import CHUNK, as_seen
    from histocrypt.paths import RunFolder
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_places, read_tiles

    run = RunFolder(model.folder.resolve().parents[2])
    stain = model.about["stain"]
    reference = StainStatistics.from_dict(stain["reference"], file=model.folder / "model.json")
    for section in model.about["train_sections"]:
        if not run.tiles(section).is_file() or not run.stain(section).is_file():
            problem = "the tiles that this model was trained on calibrate its input range, and they are not here"
            fix = "compile the model inside the run folder it was trained in"
            raise InputError(problem, file=run.tiles(section), fix=fix)
        tiles, barcodes = read_tiles(run.tiles(section))[:2]
        own = StainStatistics.load(run.stain(section))
        if described["sees"] == "features":
            names = spot_names(section, np.asarray(barcodes).astype(str))
            encoder = described["input"]["encoder"]
            how = {"stain": own, "method": stain["method"], "names": names, "places": read_places(run.tiles(section))}
            values = section_features(tiles, encoder=encoder, **how)
        else:
            side = model.about["geometry"]["input_px"]
            chunks = normalised_chunks(tiles, source=own, reference=reference, method=stain["method"], side=side)
            values = np.concatenate(list(chunks))
        values, scale = as_seen(values, described["sees"], described["normalisation"])
        for start in range(0, len(values), CHUNK):
            yield scale(values[start : start + CHUNK]).astype(np.float64)
