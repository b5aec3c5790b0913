"""The card of a service as one page: HTML for screens, and PDF on one sheet of A4, of the same words.

Both carry the SHA-256 of the JSON that they were made from, and say no more than it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.encrypted.article29 import OF_AUDIT, UNDECIDED, VERDICTS, figure_words
from histocrypt.encrypted.signature import check_package

if TYPE_CHECKING:
    from fpdf import FPDF

    from histocrypt.encrypted.service_parts import Figure, Form, Learns, ServiceCard

NAME = "service_card"
"""Of the card's files, without suffix."""
MARK = "sha256:"
"""Before the digest of the JSON, in the HTML as in the PDF."""
LARGEST, SMALLEST = 8.6, 5.0
"""Size of letters in points, from which they shrink until all fits on one sheet, and at the least."""
INK, GREY, LINE, TINT = (30, 36, 44), (92, 100, 110), (178, 184, 191), (241, 244, 246)
TONES = {
    "possible": (165, 42, 32),
    "signs of it": (165, 42, 32),
    "not decided": (150, 95, 5),
    "not asked": (92, 100, 110),
    "by design": (36, 84, 140),
    "not found": (30, 110, 80),
    "prevented": (30, 110, 80),
}
"""Colours of verdicts; each is also written out."""


@dataclass(frozen=True)
class Block:
    """A heading with lines below it, each with what it is about."""

    title: str
    rows: list[tuple[str, str]]


def blocks(card: ServiceCard) -> list[Block]:
    """Return what the page says beside the three questions and the table of who learns what."""
    return [
        Block("The service", list(_service(card))),
        Block("Encryption", list(_encryption(card))),
        Block("Who took part in the training", list(_membership(card))),
        Block("Taking the model by asking", list(_extraction(card))),
        Block("How far to trust predictions", list(_trust(card))),
        Block("Not covered", [("", " ".join(card.not_covered))]),
    ]


def _service(card: ServiceCard) -> Iterator[tuple[str, str]]:
    service, learnt = card.service, card.training
    sees = (
        "tiles of the slide" if service.sees == "tiles" else f"features ({service.encoder}), which it computes itself"
    )
    yield "Predicts", f"{service.genes} genes for each spot ({', '.join(service.transforms)}), by {service.model}"
    yield "Hospital encrypts", sees
    kind = {None: "tissue that it does not name", True: "SIMULATED tissue, no patient's", False: "real tissue"}[
        learnt.simulated
    ]
    many = [f"{n} {word if n != 1 else word.removesuffix('s')}" for n, word in
            ((learnt.sections, "slides"), (learnt.patients, "patients")) if n]  # fmt: skip
    rest = [", ".join(names) for names in (learnt.organs, learnt.stains, learnt.platforms) if names]
    rest += [f"laboratory {', '.join(learnt.laboratories)}"] if learnt.laboratories else []
    yield "Learnt from", "; ".join([f"{' of '.join(many)}: {kind}" if many else kind, *rest])
    yield "Study", f"{service.study}, {service.fold} (settings {service.study_hash})"
    yield "Weights", f"SHA-256 {service.weights_sha256}"
    yield "Public part", f"{service.public_part} (client.json; the owner confirms it by another way)"


def _encryption(card: ServiceCard) -> Iterator[tuple[str, str]]:
    said = card.encryption
    yield "Scheme", f"{said.scheme}; at least {said.security_bits} bits against {said.attacks} attacks"
    ran = f"estimated by {said.estimator}" if said.estimator else "no estimator was run for this card"
    tables = dict.fromkeys(ring.table for form in said.forms for ring in form.rings)
    yield "Claimed by", f"the table of {'; '.join(tables)}; {ran}. No claim against quantum computers"
    for form in _forms(said.forms):
        yield f"Form {form.form}", _rings(form)
    yield "Assumes", "; ".join(said.assumes)


def _forms(forms: list[Form]) -> list[Form]:
    """Return the first form of each kind: batches differ by how many spots they hold."""
    return list({form.form: form for form in reversed(forms)}.values())[::-1]


def _rings(form: Form) -> str:
    rings = "; bootstrapping ".join(
        f"ring 2^{ring.log2_degree}, modulus of {ring.log2_modulus} bits (at most {ring.most})" for ring in form.rings
    )
    return f"{form.places:,} spot{'s' * (form.places != 1)} a message; {rings}"


def _membership(card: ServiceCard) -> Iterator[tuple[str, str]]:
    found = card.membership
    if not found.asked:
        yield "Decrypted outputs", f"Not asked: {found.of}. Encryption makes this no harder for who sees predictions"
        return
    yield "Asked of", found.of
    decrypted = [one for one in found.figures if one.access == "decrypted outputs"]
    clear = [one for one in found.figures if one.access != "decrypted outputs"]
    if decrypted:
        yield "Decrypted outputs", _found(decrypted[0])
    else:
        yield "Decrypted outputs", "Not asked"
    if clear:
        more = f" The strongest of {len(clear)} attacks." if len(clear) > 1 else ""
        yield "Same outputs, in the clear", f"{_found(clear[0])}.{more}"


def _found(figure: Figure) -> str:
    return f"{OF_AUDIT.get(figure.verdict, UNDECIDED).capitalize()}: {figure_words(figure)}; {figure.n}"


def _extraction(card: ServiceCard) -> Iterator[tuple[str, str]]:
    cost = card.extraction
    if cost.spots is not None:
        ways = " or ".join(f"{n:,} message{'s' * (n != 1)} ({form})" for form, n in cost.messages.items())
        quickest = min(cost.minutes.values())
        wait = "less than a minute" if quickest < 1 else f"{quickest:.0f} minutes"
        yield "Exactly", f"{cost.spots:,} made-up spots give all weights: {ways}"
        yield (
            "At the usual limit",
            f"{wait} ({cost.per_minute:,} spots a minute); no quota that lets a slide in stops it",
        )
    if cost.copied:
        best = cost.copied[0]
        yield (
            "A copy",
            f"({best.way}) from {best.spots:,} spots agrees by a correlation of {best.correlation:.2f} "
            f"({best.low:.2f} to {best.high:.2f}) on other slides; with measured values {best.copy_with_measured:.2f}, "
            f"the original {best.original_with_measured:.2f}",
        )
    yield "How known", cost.basis[:1].upper() + cost.basis[1:]


def _trust(card: ServiceCard) -> Iterator[tuple[str, str]]:
    said = card.trust
    yield (
        "The slide",
        f"judged by the hospital before it sends: {', '.join(said.judged_by)}"
        if said.slides_judged
        else "not judged: the owner does not tell what training slides looked like",
    )
    for one in said.genes[:1]:
        worth = (
            f"{one.trusted} of {one.of} worth trusting"
            if one.trusted is not None
            else f"which of {one.of} to trust: not told"
        )
        median = "" if one.median is None else f"; median correlation {one.median:.2f} on training patients left out"
        yield "Genes", f"{worth} ({one.transform}){median}"
    if not said.genes:
        yield "Genes", "not asked: the public part does not say how well each is predicted"
    first = next(iter(said.intervals.values()), None)
    yield "Intervals", first or "none are told"
    yield "Whose word", "the model owner's; a slide whose expression was measured is the test"


def party_rows(card: ServiceCard) -> list[tuple[str, str, str]]:
    """Return the table of who learns what: party, what it learns, what it does not and against whom that holds."""
    rows = []
    for party in dict.fromkeys(one.party for one in card.parties):
        own = [one for one in card.parties if one.party == party and not one.shown]
        learns = "; ".join(one.what for one in own if one.learns)
        rows.append((party, learns[:1].upper() + learns[1:], _held([one for one in own if not one.learns])))
    return rows


def _held(claims: list[Learns]) -> str:
    """Return what is not learnt, and against whom that holds, said once."""
    said = []
    for against in dict.fromkeys(one.against for one in claims):
        what = "; ".join(one.what for one in claims if one.against == against)
        said.append(f"{what[:1].upper() + what[1:]}. Holds against {against}.")
    return " ".join(said) or "\u2013"


def shown_words(card: ServiceCard) -> str:
    """Return what changes once decrypted predictions are shown to the operator."""
    shown, said = [one for one in card.parties if one.shown], []
    for against in dict.fromkeys(one.against for one in shown):
        what = "; ".join(one.what for one in shown if one.against == against)
        said.append(f"{against[:1].upper()}{against[1:]} learns {what}.")
    return f"If decrypted predictions are shown to the operator: {' '.join(said)}"


def signed_words(card: ServiceCard) -> tuple[str, str]:
    """Return whether the card is signed, and what to do about it."""
    if card.signer is None:
        return "Not signed", "Anybody can have written this card. Ask for one that is signed."
    check = f"histocrypt fhe verify-card {NAME}.json --key KEY.pub"
    return "Signed: check it", f"By the ed25519 key {card.signer.fingerprint}. {check}, with a key got by another way."


def meta(card: ServiceCard) -> str:
    """Return the line below the title."""
    return f"{card.service.study_title} \u00b7 {card.date} \u00b7 {card.made_by} \u00b7 card version {card.version}"


def foot_words(mark: str) -> str:
    """Return the lines at the foot: which JSON this page is of, and what its words mean."""
    meanings = "; ".join(f"{name}: {means}" for name, means in VERDICTS.items())
    return (
        f"The card itself is {NAME}.json, {mark}; this page is made from it. Verdicts: {meanings}. AUC: how often who "
        "took part gets a higher score than who did not. CIELAB: a scale of colours on which eyes see a difference "
        "from about 1 on. The three questions are those of the Article 29 Working Party, Opinion 05/2014 (WP 216)."
    )


def html_page(card: ServiceCard, digest: str) -> str:
    """Return the page as self-contained HTML.

    Parameters
    ----------
    card
        What it says.
    digest
        SHA-256 of the JSON, in hexadecimal.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = Environment(loader=loader, **settings).get_template("service_card.html")
    return template.render(
        card=card,
        blocks=blocks(card),
        parties=party_rows(card),
        shown=shown_words(card),
        signed=signed_words(card),
        meta=meta(card),
        mark=MARK + digest,
        foot=foot_words(MARK + digest),
        tones={name: "#" + bytes(tone).hex() for name, tone in TONES.items()},
    )


def pdf_page(card: ServiceCard, digest: str) -> bytes:
    """Return the page as a PDF of one sheet of A4; letters shrink until all fits.

    Raises
    ------
    InputError
        If fpdf2 is not installed.
    ValueError
        If it does not fit at the smallest size; names are cut beforehand, so that no card is so long.
    """
    check_package("fpdf")
    size = LARGEST
    while True:
        pdf, end = _drawn(card, digest, size)
        if end <= BOTTOM:
            return bytes(pdf.output())
        if size <= SMALLEST:
            raise ValueError(f"the card does not fit on one sheet at {SMALLEST} points")
        size = max(SMALLEST, min(0.98 * size, 0.995 * size * math.sqrt((BOTTOM - TOP) / (end - TOP))))


LEFT, TOP, WIDTH, BOTTOM, GAP = 14.0, 12.0, 182.0, 285.0, 6.0
"""Of the sheet, in millimetres."""


def _drawn(card: ServiceCard, digest: str, size: float) -> tuple[FPDF, float]:
    """Return the sheet with letters of a size in points, and where it ends in mm from the top."""
    pen = _Pen(card, size)
    pen.pdf.set_keywords(MARK + digest)
    y = pen.head(card)
    y = pen.questions(card, y + 1.5)
    y = pen.parties(card, y + 2)
    y = pen.columns(blocks(card), y + 2)
    return pen.pdf, pen.foot(digest, y + 2)


class _Pen:
    """What draws on the sheet; every method takes where to begin and returns where it ended, in mm from the top."""

    def __init__(self, card: ServiceCard, size: float) -> None:
        from datetime import datetime

        from fpdf import FPDF

        self.size, self.pdf = size, FPDF(format="A4", unit="mm")
        fonts = Path(find_spec("matplotlib").submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
        self.pdf.add_font("sans", "", fonts / "DejaVuSans.ttf")
        self.pdf.add_font("sans", "B", fonts / "DejaVuSans-Bold.ttf")
        self.pdf.set_auto_page_break(False)
        self.pdf.set_creation_date(datetime.fromisoformat(f"{card.date}T00:00:00+00:00"))
        self.pdf.set_title(f"Service card: {card.service.title}")
        self.pdf.set_creator(card.made_by)
        self.pdf.set_lang("en")
        self.pdf.add_page()
        self.pdf.c_margin = 0

    def text(
        self, x: float, y: float, width: float, words: str, *, scale: float = 1.0, bold: bool = False, tone: tuple = INK
    ) -> float:
        """Write words within a width."""
        size = self.size * scale
        self.pdf.set_font("sans", "B" if bold else "", size)
        self.pdf.set_text_color(*tone)
        self.pdf.set_xy(x, y)
        self.pdf.multi_cell(width, size * 0.46, words, align="L", new_x="LEFT", new_y="NEXT")
        return self.pdf.get_y()

    def height(self, width: float, words: str, *, scale: float = 1.0, bold: bool = False) -> float:
        """Return how high words within a width would be."""
        size = self.size * scale
        self.pdf.set_font("sans", "B" if bold else "", size)
        return self.pdf.multi_cell(width, size * 0.46, words, align="L", dry_run=True, output="HEIGHT")

    def rule(self, x: float, y: float, width: float, tone: tuple = LINE, thick: float = 0.2) -> None:
        self.pdf.set_draw_color(*tone)
        self.pdf.set_line_width(thick)
        self.pdf.line(x, y, x + width, y)

    def head(self, card: ServiceCard) -> float:
        word, why = signed_words(card)
        box = 62.0
        x = LEFT + WIDTH - box
        self.pdf.set_fill_color(*TINT)
        high = self.height(box - 6, word, bold=True, scale=1.15) + self.height(box - 6, why, scale=0.82) + 4.5
        self.pdf.rect(x, TOP, box, high, style="F")
        tone = TONES["possible"] if card.signer is None else INK
        end = self.text(x + 3, TOP + 2, box - 6, word, bold=True, scale=1.15, tone=tone)
        self.text(x + 3, end + 0.5, box - 6, why, scale=0.82, tone=GREY)
        y = self.text(LEFT, TOP, WIDTH - box - GAP, "SERVICE CARD \u00b7 ENCRYPTED PREDICTION", scale=0.85, tone=GREY)
        y = self.text(LEFT, y + 1, WIDTH - box - GAP, card.service.title, bold=True, scale=1.9)
        y = self.text(LEFT, y + 1, WIDTH - box - GAP, meta(card), scale=0.88, tone=GREY)
        y = max(y, TOP + high) + 2
        self.rule(LEFT, y, WIDTH, INK, 0.5)
        return y

    def title(self, x: float, y: float, width: float, words: str) -> float:
        y = self.text(x, y, width, words, bold=True, scale=1.15) + 0.7
        self.rule(x, y, width)
        return y + 1

    def questions(self, card: ServiceCard, y: float) -> float:
        """Draw three boxes side by side."""
        width = (WIDTH - 2 * 4) / 3
        inner, top = width - 5, y + 2
        ends = []
        for draw in (False, True):
            if draw:
                self.pdf.set_fill_color(*TINT)
            for at, question in enumerate(card.questions):
                x = LEFT + at * (width + 4)
                if draw:
                    self.pdf.rect(x, y, width, max(ends) - y + 2, style="F")
                    self.pdf.set_fill_color(*TONES[question.verdict])
                    self.pdf.rect(x, y, 1.1, max(ends) - y + 2, style="F")
                    self.pdf.set_fill_color(*TINT)
                at_y = self._put(x + 3.2, top, inner, question.name, draw, bold=True, scale=1.2)
                at_y = self._put(x + 3.2, at_y, inner, question.means, draw, scale=0.9, tone=GREY)
                for answer in question.answers:
                    at_y = self._put(x + 3.2, at_y + 1.1, inner, f"{answer.who}:", draw, scale=0.92, bold=True)
                    word = answer.verdict.capitalize()
                    at_y = self._put(x + 3.2, at_y, inner, word, draw, bold=True, tone=TONES[answer.verdict])
                    at_y = self._put(x + 3.2, at_y, inner, answer.words, draw, scale=0.92)
                ends.append(at_y)
        return max(ends) + 2

    def _put(self, x: float, y: float, width: float, words: str, draw: bool, **how: object) -> float:  # noqa: FBT001
        if draw:
            return self.text(x, y, width, words, **how)
        return y + self.height(width, words, **{name: value for name, value in how.items() if name != "tone"})

    def parties(self, card: ServiceCard, y: float) -> float:
        """Draw the table of who learns what."""
        y = self.title(LEFT, y, WIDTH, "Who learns what")
        widths = (32.0, 56.0, WIDTH - 88.0)
        heads = ("", "Learns", "Does not learn, and against whom that holds")
        y = self._row(y, widths, heads, scale=0.88, tone=GREY)
        for row in party_rows(card):
            y = self._row(y, widths, row, scale=0.95)
        return self.text(LEFT, y + 0.4, WIDTH, shown_words(card), scale=0.95)

    def _row(
        self, y: float, widths: tuple[float, ...], cells: tuple[str, ...], *, scale: float, tone: tuple = INK
    ) -> float:
        x, ends = LEFT, []
        for at, (width, words) in enumerate(zip(widths, cells, strict=True)):
            ends.append(self.text(x, y, width - 3, words, scale=scale, tone=tone, bold=not at) if words else y)
            x += width
        return max(ends) + 0.8

    def columns(self, all_blocks: list[Block], y: float) -> float:
        """Draw blocks in two columns as even as their order allows."""
        width = (WIDTH - GAP) / 2
        heights = [self.block(one, LEFT, y, width, draw=False) - y for one in all_blocks]
        split = min(range(1, len(heights)), key=lambda at: max(sum(heights[:at]), sum(heights[at:])))
        ends = []
        for x, own in ((LEFT, all_blocks[:split]), (LEFT + width + GAP, all_blocks[split:])):
            at_y = y
            for one in own:
                at_y = self.block(one, x, at_y, width, draw=True)
            ends.append(at_y)
        return max(ends)

    def block(self, block: Block, x: float, y: float, width: float, *, draw: bool) -> float:
        """Draw a heading and its lines: what a line is about to the left of it."""
        label = 25.0
        if draw:
            y = self.title(x, y, width, block.title)
        else:
            y += self.height(width, block.title, bold=True, scale=1.15) + 1.7
        for about, words in block.rows:
            left = label if about else 0.0
            end = self._put(x, y, label - 2, about, draw, scale=0.88, tone=GREY) if about else y
            y = max(end, self._put(x + left, y, width - left, words, draw, scale=0.95)) + 0.5
        return y + 2

    def foot(self, digest: str, y: float) -> float:
        self.rule(LEFT, y, WIDTH)
        return self.text(LEFT, y + 1, WIDTH, foot_words(MARK + digest), scale=0.82, tone=GREY)
