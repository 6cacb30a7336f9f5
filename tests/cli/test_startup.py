"""Start-up: nothing is imported that is not used, and every public name is found by Python and by type checkers."""

import inspect
import json
import os
import pkgutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pyrolatent
from pyrolatent import VAE, declaration
from pyrolatent.inference.sampling.chains import SWEEPS

HEAVY = ["arviz", "jinja2", "matplotlib", "pandas", "rich", "scipy.stats", "sklearn", "torchvision", "xarray"]


def started(code: str, *names: str) -> Any:
    """What a new process prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], ["trian"], ["train", "--help"], ["train", "--sed=1"]]
)
def test_help_and_mistyped_commands_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = """if True:
        import json, sys
        from pyrolatent.__main__ import main
        try:
            main()
        except SystemExit:
            print(json.dumps("torch" in sys.modules))
    """
    assert started(code, *arguments) is False


def test_a_program_waits_for_what_it_uses_alone() -> None:
    code = "import json, sys, pyrolatent as pl; pl.VAE, pl.fit, pl.evaluate, pl.load_data; "
    imported = started(code + "print(json.dumps([*sys.modules]))")
    assert "pyro" in imported
    assert {*HEAVY}.isdisjoint(imported)


def test_components_are_declared_by_name_whatever_has_been_imported() -> None:
    code = """if True:
        import json
        from pyrolatent import declaration
        vae = declaration.build('model', {'vae': {'latent_dim': 2}}, event_shape=(4,), label_dim=0)
        found = {kind: sorted(declaration.registered(kind)) for kind in reversed(declaration.kinds())}
        print(json.dumps([str(vae), found]))
    """
    here = {kind: sorted(declaration.registered(kind)) for kind in declaration.kinds()}
    assert started(code) == [str(VAE((4,), latent_dim=2)), here]


def test_every_public_name_resolves() -> None:
    for name in pyrolatent.__all__:
        assert getattr(pyrolatent, name) is not None
    assert {*pyrolatent.__all__} < {*dir(pyrolatent)}
    # Importing a module makes its name an attribute of the package, which a function of the same name would lose.
    modules = {module.name for module in pkgutil.iter_modules(pyrolatent.__path__)}
    assert {
        name for name in {*pyrolatent.__all__} & modules if not inspect.ismodule(getattr(pyrolatent, name))
    } == set()
    assert pyrolatent.inference.evidence.psis.khat is not None
    with pytest.raises(AttributeError, match="'pyrolatent' has no attribute 'vea'"):
        _ = pyrolatent.vea


def test_type_checkers_find_the_names(tmp_path: Path) -> None:
    """Those that the stub has; what they are of is followed no further, which would take a minute."""
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(
        "import pyrolatent as pl\nfrom pyrolatent import *\npl.checks.Tarp, VAE, load_data, pl.Run\npl.vea\n"
    )
    stub = Path(pyrolatent.__file__).with_suffix(".pyi")
    options = ["--strict", "--follow-imports=skip", f"--cache-dir={tmp_path}"]
    said, _, _ = mypy.run([*options, str(program), str(stub)])
    assert said.splitlines()[:-1] == [f'{program}:4: error: Module has no attribute "vea"  [attr-defined]']


def test_help_says_how_many_sweeps_there_are() -> None:
    """In so many words, since it would take an import to know."""
    command = [sys.executable, "-m", "pyrolatent", "sample", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}).stdout
    assert f"(default: {SWEEPS})" in said


def test_ctrl_c_while_starting_is_one_line(tmp_path: Path) -> None:
    """Amid the import of torch, which a module of that name stands for."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrolatent", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted: nothing was begun\n")
