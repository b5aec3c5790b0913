"""The parts of a service's card, as its JSON holds them; the schema is ``docs/service_card.schema.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT, VERSION = "histocrypt service card", 1


class Part(BaseModel):
    """A part of the card: nothing but its fields, and none changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Service(Part):
    """What is offered."""

    title: str
    model: str
    public_part: str
    """Hash of the public part, to which keys and messages are bound."""
    weights_sha256: str
    genes: int
    transforms: list[str]
    """Scales in which each gene is predicted."""
    sees: Literal["tiles", "features"]
    """What a hospital encrypts: tiles, or features that it computed itself."""
    encoder: str | None
    """Of the features."""
    study: str
    study_title: str
    study_hash: str
    fold: str


class Training(Part):
    """What the model learnt from; None and empty where the public part does not tell."""

    simulated: bool | None
    patients: int | None
    sections: int | None
    organs: list[str]
    stains: list[str]
    laboratories: list[str]
    platforms: list[str]


class Ring(Part):
    """A ring in which something is encrypted, held against the table that its security is claimed by."""

    log2_degree: int
    log2_modulus: int
    most: int
    """The largest log2 of a modulus that keeps the claimed level in this ring."""
    table: str


class Form(Part):
    """One of the forms in which spots are sent."""

    form: Literal["single", "batch"]
    places: int
    """Spots that one message holds."""
    rings: list[Ring]
    """That of messages, and that of bootstrapping where there is one."""
    evaluation_key_bytes: int


class Encryption(Part):
    """Parameters, and how their security is claimed."""

    scheme: Literal["CKKS"]
    security_bits: int
    attacks: str
    estimator: str | None
    """Which program estimated the level for these parameters; None: none was run, the level is read off tables."""
    assumes: list[str]
    forms: list[Form]


class Learns(Part):
    """A claim of the threat model."""

    party: str
    learns: bool
    shown: bool
    """Whether it holds only once decrypted predictions are shown to the operator."""
    what: str
    against: str
    tests: list[str]


class Figure(Part):
    """One answer of the audit, on what a client gets to see."""

    question: str
    access: str
    attack: str
    measure: str
    value: float
    low: float | None
    high: float | None
    chance: float
    over: str
    """What was drawn for the interval."""
    n: str
    verdict: str
    controls_passed: bool


class Membership(Part):
    """Whether predictions tell who the model learnt from."""

    asked: bool
    of: str
    """Of which weights; or why it was not asked."""
    figures: list[Figure]
    """The strongest first."""
    files: dict[str, str]
    """SHA-256 of the audit's files that they come from, by name."""


class Copied(Part):
    """A copy that somebody trained from answers, held against the original on slides that were not asked about."""

    way: str
    """How the copy was made."""
    spots: int
    """How many answers it learnt from."""
    sections: int
    """Slides held out in turn."""
    correlation: float
    """Of its predictions with the original's; mean over genes and slides."""
    low: float
    high: float
    """Of single slides."""
    copy_with_measured: float
    original_with_measured: float


class Returned(Part):
    """What a decoder that was trained on other patients' tiles gets back of tiles whose features were sent."""

    encoder: str
    tiles: int
    chance: float
    """Share of tiles that a guess finds."""
    ciphertext: tuple[float, float, float]
    """Share that is found from ciphertexts, with its 95 % interval."""
    clear: tuple[float, float, float]
    """The same from features in the clear."""


class Guessed(Part):
    """How well an attribute of patients is guessed: AUC with its 95 % interval, no ends where patients are too few."""

    auc: float
    low: float | None
    high: float | None
    p_value: float | None
    """By dealing the attribute out among patients; None for a difference."""


class Attribute(Part):
    """What an audit asked predictions about patients, beyond gene expression."""

    attribute: str
    value: str
    patients: int
    outputs: Guessed | None
    """From predictions; None where there are too few patients to ask."""
    image: Guessed | None
    """From the slide itself: what who holds it could have guessed anyway."""
    beyond: Guessed | None
    """The first less the second."""
    controls_passed: bool


class Extraction(Part):
    """What it costs a client to take the model by asking."""

    spots: int | None
    """Questions that give all weights exactly; None: no such number is known."""
    messages: dict[str, int]
    """As messages of each form."""
    minutes: dict[str, float]
    """At the server's usual limit, in each form."""
    per_minute: int
    """Spots that a server takes of a client in a minute where its operator says nothing else."""
    copied: list[Copied]
    """What a measurement found, `benchmarks/extraction.py`; empty where none was made of these weights."""
    basis: str


class Genes(Part):
    """How well the genes of one scale are predicted on training patients left out."""

    transform: str
    of: int
    trusted: int | None
    """Better than chance, and right in each patient; None where the public part does not tell."""
    median: float | None
    """Correlation, over genes."""


class Trust(Part):
    """What a hospital is told of how far to trust predictions. It is the owner's word."""

    slides_judged: bool
    """Whether a slide can be judged before it is sent."""
    judged_by: list[str]
    genes: list[Genes]
    genes_promise: str | None
    intervals: dict[str, str]
    """What the intervals of each kind promise."""


class Answer(Part):
    """One answer to one of the three questions, for one group of people."""

    who: str
    verdict: str
    words: str


class Question(Part):
    """One of the three questions of the Article 29 Working Party (Opinion 05/2014)."""

    name: Literal["Singling out", "Linkability", "Inference"]
    means: str
    verdict: str
    """The gravest of the answers."""
    answers: list[Answer]


class Signed(Part):
    """Who says that they sign the card; only the signature beside it proves that they did."""

    key: str
    fingerprint: str


class ServiceCard(Part):
    """The whole card; its JSON schema is ``docs/service_card.schema.json``."""

    format: Literal["histocrypt service card"]
    version: Literal[1]
    made_by: str
    date: str
    service: Service
    training: Training
    encryption: Encryption
    parties: list[Learns]
    returned: Returned | None
    """What came back of tiles, where an audit asked; of services that are sent features."""
    attributes: list[Attribute]
    """What an audit of this fold guessed of patients from predictions; empty where it asked nothing."""
    membership: Membership
    extraction: Extraction
    trust: Trust
    questions: list[Question]
    not_covered: list[str]
    signer: Signed | None
