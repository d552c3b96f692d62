"""The verdict as JUnit XML: one test case per class, so that a pipeline shows which class failed and why."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from cilseg.evaluate.gate import ClassResult, GateResult
from cilseg.evaluate.gate_words import points

SUITE = "cilseg.gate"
_NOT_XML = re.compile("[^\\t\\n\\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PASSED = ("kept", "above floor")


def junit_xml(result: GateResult, *, title: str = "") -> bytes:
    """Return the report as UTF-8 XML.

    Old classes, and new ones with a floor, are test cases: ``failure`` for a class that dropped, is undecided or stays
    below its floor. The verdict is a case of its own, so that a HOLD without a gate set fails too. New classes without
    a floor are skipped cases: reported, not judged.

    Args:
        result: what the gate said.
        title: what was judged, for example ``"animals:4 against animals:3"``.
    """
    suite = ElementTree.Element("testsuite", name=_clean(f"{SUITE} {title}".strip()))
    verdict = ElementTree.SubElement(suite, "testcase", classname=SUITE, name="verdict")
    if result.verdict != "PROMOTE":
        _fail(verdict, result.verdict, result.headline, [*result.reasons, *result.advice])
    failures, skipped = int(result.verdict != "PROMOTE"), 0
    cases = [c for c in result.classes if c.role != "background"]
    for c in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{SUITE}.{c.role}", name=_clean(c.name))
        if c.status == "reported":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message="new class without a floor: reported, not judged")
        elif c.status not in _PASSED:
            failures += 1
            told = [line for line in (*result.reasons, *result.advice) if line.startswith(c.name)]
            _fail(case, c.status, f"{c.name}: {c.status} ({_numbers(c)})", told)
        ElementTree.SubElement(case, "system-out").text = _clean(_numbers(c))
    suite.attrib.update(tests=str(len(cases) + 1), failures=str(failures), errors="0", skipped=str(skipped), time="0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _fail(case: ElementTree.Element, kind: str, message: str, lines: list[str]) -> None:
    failure = ElementTree.SubElement(case, "failure", type=kind, message=_clean(message))
    failure.text = _clean("\n".join(lines))


def _numbers(c: ClassResult) -> str:
    change = (
        f"change {points(c.delta, sign=True)}, interval {points(c.lower, sign=True)} to {points(c.upper, sign=True)}"
    )
    return f"IoU {points(c.before)} -> {points(c.after)}, {change}, {c.images} images"


def _clean(text: str) -> str:
    """Return ``text`` without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
