"""What a repository depends on, by its manifests: which there are, for which ecosystem, and what they name."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from sources import MAX_TEXT_BYTES, File, clipped, number, shown, text_of, tree

Reader = Callable[[bytes], Iterable[str]]


def run(params: Any) -> dict[str, Any]:
    """List the manifests, and of those that can be read without running them the dependencies they name."""
    top = number(params, "top", 10, 1000)
    found = tree()
    manifests: list[dict[str, Any]] = []
    ecosystems: dict[str, int] = {}
    for file, data in found.texts(is_manifest, number(params, "max_file_bytes", MAX_TEXT_BYTES, 64 << 20)):
        manifest = describe(file, data, top)
        ecosystems[manifest["ecosystem"]] = ecosystems.get(manifest["ecosystem"], 0) + 1
        manifests.append(manifest)
    manifests.sort(key=lambda one: (one["path"].count("/"), one["path"]))
    return {
        "manifests": manifests[: 5 * top],
        "total": len(manifests),
        "ecosystems": dict(sorted(ecosystems.items(), key=lambda item: (-item[1], item[0]))),
        "skipped": found.skipped,
    }


def describe(file: File, data: bytes, top: int) -> dict[str, Any]:
    """One manifest: ``dependencies`` is None where only running it would tell, ``problem`` why it could not be read."""
    ecosystem, reader = kind_of(file.name)
    manifest: dict[str, Any] = {"path": shown(file.path), "ecosystem": ecosystem, "dependencies": None, "names": []}
    if reader is None:
        return manifest
    try:
        names = sorted({clipped(name, 100) for name in reader(data)})
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, configparser.Error) as error:
        return {**manifest, "problem": clipped(f"{type(error).__name__}: {error}".replace("\n", " "), 160)}
    return {**manifest, "dependencies": len(names), "names": names[:top]}


def is_manifest(file: File) -> bool:
    """Whether the name is one we know."""
    return any(fnmatchcase(file.name, pattern) for pattern, _, _ in KINDS)


def kind_of(name: str) -> tuple[str, Reader | None]:
    """The ecosystem of a manifest, and how its dependencies are read."""
    return next((ecosystem, reader) for pattern, ecosystem, reader in KINDS if fnmatchcase(name, pattern))


REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")


def required(lines: Iterable[Any]) -> Iterable[str]:
    """The distribution each requirement names (PEP 508), by its normal name (PEP 503)."""
    for line in lines:
        if isinstance(line, str) and (match := REQUIREMENT.match(line)):
            yield re.sub(r"[-_.]+", "-", match[1]).lower()


def pyproject(data: bytes) -> Iterable[str]:
    """PEP 621, PEP 735 and Poetry."""
    whole = tomllib.loads(data.decode("utf-8"))
    project = whole.get("project", {})
    yield from required(project.get("dependencies", []))
    for group in (*project.get("optional-dependencies", {}).values(), *whole.get("dependency-groups", {}).values()):
        yield from required(group)
    poetry = whole.get("tool", {}).get("poetry", {})
    tables = [poetry, *poetry.get("group", {}).values()]
    for table in tables:
        for key in ("dependencies", "dev-dependencies"):
            yield from required(name for name in table.get(key, {}) if name != "python")


def requirements(data: bytes) -> Iterable[str]:
    """A pip requirements file; options, links and comments name nothing."""
    lines = (line.strip() for line in text_of(data).splitlines())
    return required(line for line in lines if "://" not in line.partition("@")[0])


def setup_cfg(data: bytes) -> Iterable[str]:
    """The declarative form of setuptools."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(text_of(data))
    yield from required(parser.get("options", "install_requires", fallback="").splitlines())
    if parser.has_section("options.extras_require"):
        for value in dict(parser.items("options.extras_require")).values():
            yield from required(value.splitlines())


def package_json(data: bytes) -> Iterable[str]:
    """npm, yarn and pnpm."""
    whole = json.loads(data)
    for key in ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies"):
        yield from whole.get(key, {}).keys()


def composer(data: bytes) -> Iterable[str]:
    """PHP's composer; the platform (``php``, ``ext-…``) is no package."""
    whole = json.loads(data)
    for key in ("require", "require-dev"):
        yield from (name for name in whole.get(key, {}) if "/" in name)


def cargo(data: bytes) -> Iterable[str]:
    """Rust, with the dependencies of targets and of a workspace."""
    whole = tomllib.loads(data.decode("utf-8"))
    tables = [whole, whole.get("workspace", {}), *whole.get("target", {}).values()]
    for table in tables:
        for key in ("dependencies", "dev-dependencies", "build-dependencies"):
            yield from table.get(key, {}).keys()


GO_REQUIRE = re.compile(r"^(?:require\s+)?([\w.~-]+\.[\w.~-]+(?:/\S+)?)\s+v\S+", re.MULTILINE)


def go_mod(data: bytes) -> Iterable[str]:
    """Go's ``require`` lines, in a block or alone."""
    lines = (line.strip() for line in text_of(data).splitlines())
    return (match[1] for line in lines if (match := GO_REQUIRE.match(line)))


KINDS: tuple[tuple[str, str, Reader | None], ...] = (
    ("pyproject.toml", "Python", pyproject),
    ("requirements*.txt", "Python", requirements),
    ("setup.cfg", "Python", setup_cfg),
    ("setup.py", "Python", None),
    ("Pipfile", "Python", None),
    ("environment.yml", "Conda", None),
    ("package.json", "JavaScript", package_json),
    ("Cargo.toml", "Rust", cargo),
    ("go.mod", "Go", go_mod),
    ("composer.json", "PHP", composer),
    ("Gemfile", "Ruby", None),
    ("*.gemspec", "Ruby", None),
    ("pom.xml", "Java", None),
    ("build.gradle", "Java", None),
    ("build.gradle.kts", "Java", None),
    ("*.csproj", ".NET", None),
    ("mix.exs", "Elixir", None),
    ("pubspec.yaml", "Dart", None),
    ("Package.swift", "Swift", None),
)
"""Names as they are spelt, their ecosystem, and how they are read: None where only running them would tell."""
