"""Matplotlib's SVG made part of a page: themed, accessible, without clashing ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from nemo_gdpo.evaluation.report.style import VARIABLES

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")


def page_svg(raw: str, name: str, title: str, description: str, tips: Mapping[str, str]) -> str:
    """Make a drawing fit for the page.

    Args:
        raw: what matplotlib wrote. Written by this package, so it is safe to parse.
        name: unique on the page.
        title: accessible name of the plot.
        description: what it shows, in words.
        tips: id of an artist -> text that is shown when the pointer rests on it.

    Returns:
        An `svg` element. Placeholder colours are CSS variables, artists with an id have a class
        instead (`series-2.point-0` -> `series series-2`), and the remaining ids begin with `name`.
    """
    root = ElementTree.fromstring(raw)
    for child in list(root):
        if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}title"):
            root.remove(child)
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style":
                parent.remove(child)
    used = _referenced(root)
    for element in root.iter():
        _rename(element, name, used, tips)
        _recolour(element)
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(f"{{{SVG}}}{tag}")
        label.set("id", f"{name}-{'title' if tag == 'title' else 'description'}")
        label.text = text
        root.insert(place, label)
    return _without_prefixes(ElementTree.tostring(root, encoding="unicode"))


def _referenced(root: ElementTree.Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        link = element.get(LINK)
        if link is not None:
            found.add(link.removeprefix("#"))
        for value in element.attrib.values():
            found.update(_REFERENCE.findall(value))
    return found


def _rename(
    element: ElementTree.Element, name: str, used: set[str], tips: Mapping[str, str]
) -> None:
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{name}-{own}")
    elif own is not None and own.startswith(("series-", "front-")):
        series = own.split(".")[0]
        element.set("class", f"series {series}" if own.startswith("series-") else "front")
        if own in tips:
            tip = ElementTree.Element(f"{{{SVG}}}title")
            tip.text = tips[own]
            element.insert(0, tip)
    link = element.attrib.pop(LINK, None)
    if link is not None:
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    for key, value in element.attrib.items():
        if "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))


def _recolour(element: ElementTree.Element) -> None:
    style = element.get("style")
    if style is None:
        return
    for placeholder, variable in VARIABLES.items():
        style = style.replace(placeholder, variable)
    # The page's own font; the size is matplotlib's.
    element.set("style", _FAMILY.sub("", style))


def _without_prefixes(text: str) -> str:
    """ElementTree writes `ns0:g`; a page wants `g`."""
    prefix = re.search(rf'xmlns:(\w+)="{re.escape(SVG)}"', text)
    if prefix is None:
        return text
    return re.sub(rf"(</?){prefix[1]}:", r"\1", text).replace(f"xmlns:{prefix[1]}=", "xmlns=", 1)
