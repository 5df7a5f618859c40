"""Builds the native codec modules (see csrc/); everything else about the package stands in pyproject.toml."""

from setuptools import setup

setup()
