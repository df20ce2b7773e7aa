"""Whether Triton's kernels run in its interpreter is settled where triton is imported. A test module says by INTERPRET
which way it needs; where this process has the other, its tests run in one child process and report from there."""

import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from triton.runtime import interpreter

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Triton's interpreter without the two things that take half of its time and change nothing: it prepares
    `triton.language` at each call of a function by a kernel, not once for each module that the functions are in, and
    does integer arithmetic a second time for checks of overflow that it makes under `debug` alone."""
    if not INTERPRETING:
        yield
        return
    prepared = set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in prepared:
            prepared.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        builder = interpreter.interpreter_builder
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


def needs_child(item) -> bool:
    if item.config.on_device:
        return False
    return getattr(getattr(item, "module", None), "INTERPRET", INTERPRETING) != INTERPRETING


@pytest.fixture(scope="session")
def child_results(request, tmp_path_factory):
    """{test: what went wrong with it, or None} of all selected tests that need the child process."""
    items = [item for item in request.session.items if needs_child(item)]
    report = tmp_path_factory.mktemp("triton") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    child = subprocess.run(
        [*command, *(item.nodeid for item in items)],
        cwd=request.config.rootpath,
        env={**os.environ, "TRITON_INTERPRET": str(int(not INTERPRETING))},
        capture_output=True,
        text=True,
    )
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if len(cases) != len(items):
        pytest.fail(f"pytest ended with {child.returncode}:\n{child.stdout}{child.stderr}", pytrace=False)
    return {(case.get("classname"), case.get("name")): failure_of(case) for case in cases}


def failure_of(case):
    """What went wrong with a test, skipped ones included, or None."""
    return "\n".join(part.text or part.get("message", part.tag) for part in case) or None


def pytest_collection_modifyitems(items):
    for item in items:
        if needs_child(item):
            item.fixturenames.append("child_results")


def pytest_pyfunc_call(pyfuncitem):
    if not needs_child(pyfuncitem):
        return None
    module = pyfuncitem.nodeid.partition("::")[0].removesuffix(".py").replace("/", ".")
    failure = pyfuncitem.funcargs["child_results"][module, pyfuncitem.name]
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True
