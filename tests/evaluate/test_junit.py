"""The JUnit report, read back as a pipeline reads it."""

from __future__ import annotations

from xml.etree import ElementTree

from test_gate import CLASSES, OLD, POLICY, simulate, verdict

from cilseg.classes import ClassSet
from cilseg.evaluate.gate import judge
from cilseg.evaluate.junit import junit_xml


def suite_of(xml: bytes) -> ElementTree.Element:
    assert xml.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
    root = ElementTree.fromstring(xml)
    assert root.tag == "testsuites"
    (suite,) = root
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
    return suite


def test_one_case_per_class_and_one_for_the_verdict() -> None:
    result = verdict(*simulate(200, loss=(0, 0.06, 0)))
    suite = suite_of(junit_xml(result, title="animals:4 against animals:3"))
    assert suite.attrib["name"] == "cilseg.gate animals:4 against animals:3"
    cases = {case.attrib["name"]: case for case in suite}
    assert list(cases) == ["verdict", *OLD, "cow"]
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {"verdict", "dog"}
    failure = cases["dog"].find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "dropped"
    assert "the drop is real" in (failure.text or "")
    assert cases["cow"].find("skipped") is not None
    assert cases["verdict"].find("failure").attrib["type"] == "REJECT"  # type: ignore[union-attr]


def test_promotion_has_no_failure() -> None:
    suite = suite_of(junit_xml(verdict(*simulate(150))))
    assert suite.attrib["failures"] == "0"


def test_hold_without_a_gate_set_fails() -> None:
    suite = suite_of(junit_xml(verdict(None, None)))
    assert [case.attrib["name"] for case in suite] == ["verdict"]
    assert suite.attrib["failures"] == "1"


def test_floor_makes_a_case_of_a_new_class() -> None:
    policy = POLICY.model_copy(update={"new_class_floors": {"cow": 60.0}})
    suite = suite_of(junit_xml(verdict(*simulate(150, cow=0.3), policy)))
    cow = next(case for case in suite if case.attrib["name"] == "cow")
    assert cow.attrib["classname"] == "cilseg.gate.new"
    assert cow.find("failure").attrib["type"] == "below floor"  # type: ignore[union-attr]


def test_names_that_xml_cannot_hold() -> None:
    names = ClassSet.base(['<cat>&"', "d\x01g", *OLD[2:]]).extend(["cow"], step=1)
    result = judge(*simulate(60), class_set=names, old=names.foreground[:3], policy=POLICY)
    cases = [case.attrib["name"] for case in suite_of(junit_xml(result))]
    assert cases[1:3] == ['<cat>&"', "d\N{REPLACEMENT CHARACTER}g"]
    assert len(CLASSES) == len(names)
