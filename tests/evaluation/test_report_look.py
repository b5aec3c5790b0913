"""The report can be read: contrast, width on a screen and on a telephone, pages on paper, a glossary of every word."""

import ast
import base64
import re
from pathlib import Path

import pytest
from tests.notebooks.browser import CHROMIUM
from tests.notebooks.browser import page as browser

import histocrypt
from histocrypt.audit import shadow, shadow_sets
from histocrypt.evaluation import wording
from histocrypt.evaluation.metrics import METRICS
from histocrypt.evaluation.scores import NOISE_CEILING, SHARE
from histocrypt.predictors.registry import BASELINES, MODELS, STACKS
from histocrypt.report import page as report
from histocrypt.report import parts
from histocrypt.targets.transforms import COMPOSITIONS, TRANSFORMS

FOLDER = Path(report.__file__).parent
CSS = (FOLDER / "report.css").read_text(encoding="utf-8")
TEMPLATE = (FOLDER / "report.html").read_text(encoding="utf-8")
LEAST = 4.5
"""Of contrast: WCAG 2.2, level AA, for text of any size."""
DARKEST = 0.55
"""Of the shade behind a score of a section (`page.by_section`)."""
CONTRAST = """(() => {
  const parsed = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => top.slice(0, 3).map((one, i) => top[3] * one + (1 - top[3]) * below[i]).concat(1);
  const behind = (element) => {
    if (!element) return [255, 255, 255, 1];
    const own = parsed(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = (colour) => {
    const linear = (one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (const one of document.querySelectorAll("details")) one.open = true;
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest("option, script, style")) continue;
    const ground = behind(element), ink = over(parsed(getComputedStyle(element).color), ground);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    const name = `${element.tagName} ${element.className} ${ink} on ${ground}`;
    if (!(found[name] <= contrast)) found[name] = contrast;
  }
  return found;
})()"""
WIDE = """[...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => `${one.querySelector("th").innerText}: ${one.scrollWidth} in ${one.clientWidth}`)"""

CUT = """[...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > 401)
  .filter((one) => !one.closest(".scroll, .two")).map((one) => `${one.tagName} ${one.className} ${one.id}`)"""


def light(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def named(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", css))


def coloured(css: str) -> dict[str, str]:
    """Return the colour of text by selector, as ``#rrggbb``."""
    names, found = named(css), {}
    for selector, rule in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)):
        for colour in re.findall(r"(?:^|[;\s])color:\s*(?:var\(--([\w-]+)\)|(#[0-9a-f]{6}))", rule):
            found[selector.strip()] = names[colour[0]] if colour[0] else colour[1]
    return found


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert coloured(":root { --ink: #111111; }\na:hover { background: red; color: var(--ink); }") == {
        "a:hover": "#111111"
    }


def test_every_colour_of_text_is_dark_enough_on_every_ground_it_may_stand_on():
    colours, names = coloured(CSS), named(CSS)
    assert len(colours) > 15
    grounds = [names["paper"], names["wash"]]  # code stands on the latter, within text of any colour
    pale = {f"{selector} on {on}": contrast(colour, on) for selector, colour in colours.items() for on in grounds}
    assert {where: round(value, 2) for where, value in pale.items() if value < LEAST} == {}
    ink = re.search(r"rgba\(0, 114, 178, \{\{ cell\.shade \}\}\); color: (#[0-9a-f]{6})", TEMPLATE)[1]
    shade = "#" + "".join(f"{round(DARKEST * one + (1 - DARKEST) * 255):02x}" for one in (0, 114, 178))
    assert contrast(ink, shade) > LEAST
    assert "td.shade small { color: inherit; }" in CSS


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the report cannot be opened")
def test_the_report_can_be_read_on_a_screen_on_a_telephone_and_on_paper(page, tmp_path):
    with browser(tmp_path, width=1300) as tab:
        tab.open(page.as_uri())
        tab.wait("document.readyState === 'complete' && document.querySelector('#glossary') !== null")
        assert tab.ask(WIDE) == []
        pale = tab.ask(CONTRAST)
        assert len(pale) > 15
        assert {name: round(value, 2) for name, value in pale.items() if value < LEAST} == {}
        pdf = base64.b64decode(tab.call("Page.printToPDF", preferCSSPageSize=True)["data"])
        assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
        tab.call("Emulation.setDeviceMetricsOverride", width=400, height=900, deviceScaleFactor=1, mobile=True)
        assert tab.ask(CUT) == []
        assert tab.ask("parseFloat(getComputedStyle(document.querySelector('.answer p')).fontSize)") >= 16
        tab.screenshot(tmp_path / "telephone.png")
        assert tab.complaints == []


def attacks() -> set[str]:
    """Return the names of attacks as they may stand in an audit, the parts that are computed left out."""
    found = {*shadow.ATTACKS, *shadow_sets.ATTACKS}
    for path in (Path(histocrypt.__file__).parent / "audit").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = next((one.value for one in call.keywords if one.arg == "attack"), None)
            if name is None and isinstance(call.func, ast.Attribute) and call.func.attr == "attack" and call.args:
                name = call.args[0]
            pieces = name.values if isinstance(name, ast.JoinedStr) else [name]
            found |= {
                one.value.strip(", ") for one in pieces if isinstance(one, ast.Constant) and one.value.strip(", ")
            }
    return found


def test_the_glossary_has_every_model_measure_attack_and_unit():
    own = {
        name for name, entry in MODELS.items() if entry.target.startswith("histocrypt.")
    }  # a test may register others
    assert {*own, *BASELINES, *STACKS} == set(wording.MODEL_WORDS)
    assert set(METRICS) <= set(wording.METRIC_WORDS)
    assert {NOISE_CEILING, SHARE} <= set(wording.CEILING_WORDS)
    known = attacks()
    assert {"loss threshold", "density ratio", "denoising loss", "by shadow generators"} <= known
    assert {one for one in known if not any(name in one for name in wording.ATTACK_WORDS)} == set()
    terms = re.findall(r"<dt>([^<{]+)</dt>", TEMPLATE[TEMPLATE.index('id="glossary"') :])
    terms = [word for term in terms for word in term.split(", ")]
    assert {*TRANSFORMS, *COMPOSITIONS} <= set(terms)
    for title in parts.PRIVACY_SHOWN.values():
        assert any(term.lower() in title.lower() for term in terms), title
    assert {"AUC", "Share copied", "CRPS"} <= set(terms)


def test_the_words_of_a_unit_are_those_of_its_title():
    assert set(wording.TRANSFORM_WORDS) == {*TRANSFORMS, *COMPOSITIONS}
