"""Whether Triton's kernels run in its interpreter is settled where triton is imported. A test module says by INTERPRET
which way it needs; where this process has the other, its tests run in one child process and report from there."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from triton.runtime import interpreter

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"
CHILD = pytest.StashKey()


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


@pytest.fixture
def quick_sizes(monkeypatch):
    """Sets constants of a kernel's module to what the interpreter is quick with, for which no GPU has room."""

    def set_all(module, **constants):
        for name, value in constants.items() if INTERPRETING else ():
            monkeypatch.setattr(module, name, value)

    return set_all


def needs_child(item) -> bool:
    if item.config.on_device:
        return False
    return getattr(getattr(item, "module", None), "INTERPRET", INTERPRETING) != INTERPRETING


class Child:
    """The process that runs the selected tests which need it, beside all others."""

    def __init__(self, session):
        self.items = [item for item in session.items if needs_child(item)]
        self.folder = tempfile.TemporaryDirectory()
        self.report = Path(self.folder.name, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={self.report}"]
        self.process = subprocess.Popen(
            [*command, *(item.nodeid for item in self.items)],
            cwd=session.config.rootpath,
            env={**os.environ, "TRITON_INTERPRET": str(int(not INTERPRETING))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def results(self):
        """{test: what went wrong with it, or None}."""
        output = self.process.communicate()[0]
        cases = list(ElementTree.parse(self.report).iter("testcase")) if self.report.exists() else []
        if len(cases) != len(self.items):
            pytest.fail(f"pytest ended with {self.process.returncode}:\n{output}", pytrace=False)
        return {(case.get("classname"), case.get("name")): failure_of(case) for case in cases}

    def end(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def pytest_collection_finish(session):
    if not session.config.option.collectonly and any(map(needs_child, session.items)):
        session.config.stash[CHILD] = Child(session)


def pytest_sessionfinish(session):
    if child := session.config.stash.get(CHILD, None):
        child.end()


@pytest.fixture(scope="session")
def child_results(request):
    return request.config.stash[CHILD].results()


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
