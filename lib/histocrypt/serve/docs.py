"""The page ``/docs``: FastAPI's description of the interface, drawn here.

FastAPI's own page loads its scripts from another host. A hospital's machine often has no way there, and whoever
controls that host could read the token that is typed into the page. This one loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def page_of(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page, and the policy that keeps a browser to what is in it.

    Parameters
    ----------
    schema
        OpenAPI 3.1, as ``FastAPI.openapi`` gives it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("docs.html").render(about=schema["info"], requests=_requests(schema))
    sources = " ".join(map(_hashed, re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)))
    styles = " ".join(map(_hashed, re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)))
    policy = f"default-src 'none'; script-src {sources}; style-src {styles}; connect-src 'self'; "
    return page, policy + "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _requests(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what can be asked, in the order in which it was declared."""
    found = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            parameters = [_parameter(one) for one in about.get("parameters", ())]
            answers = {code: one["description"] for code, one in about["responses"].items()}
            found.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "words": about.get("description") or about["summary"],
                    "token": "security" in about,
                    "body": about.get("requestBody", {}).get("description"),
                    "parameters": parameters,
                    "answers": answers,
                }
            )
    return found


def _parameter(about: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [about["schema"], *about["schema"].get("anyOf", ())]
    kind = next(one["type"] for one in kinds if one.get("type", "null") != "null")
    return {
        "name": about["name"],
        "kind": kind,
        "required": about.get("required", False),
        "default": about["schema"].get("default"),
        "in": about["in"],
        "words": about.get("description", ""),
    }
