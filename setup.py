"""The one thing pyproject.toml cannot say: found packages and, beside them, `presets/` as `omnicli.presets`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["omnicli", "omnicli.*"]), "omnicli.presets"],
    package_dir={"omnicli.presets": "presets"},
)
