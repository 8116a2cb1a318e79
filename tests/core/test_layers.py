"""What may be imported where, as a user without the other framework would notice it."""

import subprocess
import sys

BLOCKED = "import sys\nfor n in ('torch', 'mlx', 'mlx.core', 'typer', 'rich'): sys.modules[n] = None\n"


def test_the_whole_core_imports_without_any_framework():
    code = BLOCKED + (
        "import pkgutil, importlib, sconce\n"
        "names = [m.name for m in pkgutil.walk_packages(sconce.__path__, 'sconce.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
