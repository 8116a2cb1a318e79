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


def test_no_framework_loads_before_a_backend_asks_for_it():
    """torch must not be there before sconce_torch has set OpenMP up, nor before sconce_mlx has loaded its BLAS."""
    code = (
        "import sys, sconce.orchestrate, sconce.training.job, sconce.generation.text, sconce_cli.summary\n"
        "print([name for name in ('torch', 'mlx', 'transformers', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
