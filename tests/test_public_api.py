"""The public API as a snapshot: a change of a name or a signature shows in review, in tests/public_api.txt.

`python -m tests.test_public_api` writes it anew.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import endor_jax as endor

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def described(name: str, value: object) -> list[str]:
    """A public name with its signature; of a class, its public methods and properties too; of a module, what
    it defines."""
    if isinstance(value, ModuleType):
        own = {n: v for n, v in vars(value).items() if getattr(v, "__module__", "") == value.__name__}
        public = sorted(n for n in own if not n.startswith("_"))
        return [f"{name}.{n}{'' if inspect.isclass(own[n]) else inspect.signature(own[n])}" for n in public]
    if not callable(value):
        return [name]
    lines = [f"{name}{inspect.signature(value)}"]
    if inspect.isclass(value):
        for member, item in sorted(vars(value).items()):
            if member.startswith("_"):
                continue
            if isinstance(item, property):
                lines.append(f"{name}.{member}")
            elif inspect.isfunction(item):
                lines.append(f"{name}.{member}{inspect.signature(item)}")
    return lines


def api() -> str:
    """All public names, one a line."""
    return "\n".join(line for name in endor.__all__ for line in described(name, getattr(endor, name))) + "\n"


def test_public_api_is_the_snapshot() -> None:
    script = "import tests.test_public_api as t, sys; sys.stdout.write(t.api())"
    # In a process of its own: the type checks of this one wrap the functions.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == SNAPSHOT.read_text(), "run `python -m tests.test_public_api` and look at the diff"


def test_import_does_no_work() -> None:
    script = "import sys, endor_jax; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_keep_their_names_when_folders_are_imported() -> None:
    script = (
        "import endor_jax.streaming.plan, endor_jax.conversion.pipeline, endor_jax.kernels.expand\n"
        "import endor_jax as endor\n"
        "names = set(endor.__all__) - {'errors', 'orbax', '__version__'}\n"
        "print(*(callable(getattr(endor, name)) for name in names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"True"}


if __name__ == "__main__":
    SNAPSHOT.write_text(api())
