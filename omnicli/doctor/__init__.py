"""Checks of an installation and a machine, each by itself; `omni doctor` renders them. Nothing here decides or repairs.

A check is a function that takes nothing and returns a `Check`. torch and PyAV are imported inside checks only.
"""
